"""Several apps on one server: a lab, and siblings of its app."""

from __future__ import annotations

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tests.lab.account import account, fresh_directory
from tests.lab.faults import LabError, wait_until
from tests.lab.lab import Lab
from tests.lab.postgres import free_port


class Sibling(Lab):
    """One more process of the app of `first`, with a directory, a port, a log and a pool of its own.

    The server is that of `first`: `down` leaves it alone.
    """

    def __init__(self, first: Lab, home: Path) -> None:
        self.first = first
        super().__init__(home)

    def up(self) -> str:
        """Start the app and wait until a login answers 200."""
        self.home.mkdir(mode=0o700, parents=True)
        self._save(
            directory=str(fresh_directory("odras-")), app_port=free_port(), password=self.first.password
        )
        left_out = shutil.ignore_patterns("__pycache__", self.log.name, self.pid_file.name)
        shutil.copytree(self.first.app, self.app, ignore=left_out)
        settings = (self.app / "app.env").read_text()
        port = f"ODRAS_PORT={self.first.app_port}\n"
        if port not in settings:
            raise LabError(f"{self.app}/app.env has no line {port!r}")
        self._write(self.app / "app.env", settings.replace(port, f"ODRAS_PORT={self.app_port}\n"))
        account().own(self.app)
        self.odras("start")
        self._await_login()
        return f"application   {self.login_url} answers 200"

    def down(self) -> str:
        """Stop the app and remove its directory."""
        for pid in self.app_pids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.app_pids(), "the application is gone")
        shutil.rmtree(self.directory)
        return f"stopped the application; removed {self.directory}"

    def _load(self) -> None:
        super()._load()
        self.server = self.first.server


class Fleet:
    """`size` apps on one server, named web-1 and so on in the inventory; `first` is a whole lab."""

    def __init__(self, home: Path, size: int) -> None:
        self.first = Lab(home / "web-1")
        self._homes = [home / f"web-{number}" for number in range(2, size + 1)]
        self.apps: list[Lab] = []

    def up(self, **settings: object) -> None:
        """Start everything; `settings` are those of postgresql.conf. On failure nothing is left behind."""
        self.first.up()
        self.apps = [self.first]
        try:
            if settings:
                self.first.server.stop()
                self.first.server.start(**settings)
                self.first.heal()
            for home in self._homes:
                self.apps.append(Sibling(self.first, home))
                self.apps[-1].up()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Stop and remove everything."""
        for app in reversed(self.apps):
            if app.exists():
                app.down()

    def lose_slots(self) -> None:
        """End all sessions again and again, with logins in between, until no pool has a slot left."""
        for _ in range(3 * Lab.pool_maximum):
            self.first.end_sessions()
            with ThreadPoolExecutor(len(self.apps)) as users:
                statuses = [s for app in self.apps for s in users.map(lambda _, a=app: a.login(), range(2))]
            if set(statuses) == {500} and not self.first.sessions():
                return
        raise LabError(f"logins still answer {statuses}")

    def inventory(self, path: Path, size: int | None = None, **variables: Any) -> Path:
        """Write an inventory of `size` hosts (default: one for each app) to `path`; the path.

        With more hosts than apps, several names share an app. `variables`: for all app hosts.
        """
        groups = yaml.safe_load(self.first.inventory.read_text())["all"]["children"]
        hosts = {}
        for number in range(size or len(self.apps)):
            app = self.apps[number % len(self.apps)]
            own = app._hosts()["all"]["children"]["app"]["hosts"]["web-1"]
            state = f"{app.directory}/state-{number + 1}"
            hosts[f"web-{number + 1}"] = {**own, "diagnose_state_directory": state, **variables}
        groups["app"]["hosts"] = hosts
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump({"all": {"children": groups}}))
        return path

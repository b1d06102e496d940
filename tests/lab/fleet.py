"""Several apps on one server: a lab, and siblings of its app."""

from __future__ import annotations

import json
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


class Sibling(Lab):
    """One more process of the app of `first`, with a directory, ports, a log and a pool of its own.

    The server is that of `first`: `down` leaves it alone. Not for `break_` and `heal`, which mean a whole lab.
    """

    def __init__(self, first: Lab, home: Path) -> None:
        self.first = first
        super().__init__(home, first.kind)

    def up(self) -> str:
        """Start the app and wait until a login answers 200."""
        self.home.mkdir(mode=0o700, parents=True)
        state = json.loads(self.first._state.read_text())
        ports = {name: (state[name], self.free_port()) for name in state if name.endswith("_port")}
        new = {name: port for name, (_, port) in ports.items()}
        self._save(**{**state, **new, "directory": str(fresh_directory("odras-"))})
        left_out = shutil.ignore_patterns("__pycache__", self.log.name, self.pid_file.name)
        shutil.copytree(self.first.app, self.app, ignore=left_out)
        settings = self.app / "app.env"
        text = settings.read_text()
        for old, port in ports.values():
            text = text.replace(str(old), str(port))
        settings.write_text(text)
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
    """`size` apps on one server, web-1 and so on in the inventory, with db-1; `first` is a whole lab.

    settings: further lines of every app.env. `server`: parameters of postgresql.conf.
    """

    def __init__(
        self, home: Path, size: int, server: dict[str, object] | None = None, **settings: object
    ) -> None:
        self.first = Lab(home / "web-1", **settings)
        self.apps: list[Lab] = []
        self._homes = [home / f"web-{number}" for number in range(2, size + 1)]
        self._server = server or {}

    def __enter__(self) -> Fleet:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Start everything; on failure nothing is left behind."""
        self.first.up()
        self.apps = [self.first]
        try:
            if self._server:
                self.first.server.stop()
                self.first.server.start(**self._server)
                self.first.restart()
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
        """End all sessions again and again, with logins in between, until no pool has a slot left.

        Each app needs as many rounds as its pool has slots; the guide's own has 20.
        """
        statuses: list[int | None] = []
        for _ in range(60):
            self.first.end_sessions()
            with ThreadPoolExecutor(len(self.apps)) as users:
                statuses = [s for _ in range(2) for s in users.map(Lab.login, self.apps)]
            if set(statuses) == {500} and not self.first.sessions():
                return
        raise LabError(f"after 60 cuts the logins answer {statuses}")

    def inventory(self, path: Path, size: int | None = None, **variables: Any) -> Path:
        """Write an inventory of `size` app hosts (default: one for each app) to `path`; the path.

        With more hosts than apps several names share an app. `variables`: for all app hosts.
        """
        groups = yaml.safe_load(self.first.inventory.read_text())["all"]["children"]
        hosts = {}
        for number in range(size or len(self.apps)):
            app = self.apps[number % len(self.apps)]
            own = app._hosts()["all"]["children"]["app"]["hosts"]["web-1"]
            # Each host its own, so that the cool-down of one does not hold for another.
            state = f"{app.directory}/state-{number + 1}"
            hosts[f"web-{number + 1}"] = {**own, "diagnose_state_directory": state, **variables}
        groups["app"]["hosts"] = hosts
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump({"all": {"children": groups}}))
        return path

"""The lab: a PostgreSQL server and the guide's application on it, to be broken and healed at will.

    scripts/lab up             start both; writes .lab/inventory.yml for ansible-playbook -i
    scripts/lab status         what runs (does not log in: that would change a broken pool)
    scripts/lab break FAULT    break it for real; without FAULT: the list
    scripts/lab heal           everything as it was after `up`, with an empty log; proves a login
    scripts/lab down           stop everything and remove every trace; may be repeated

No root is needed. Started by root, server and application run as `nobody`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg2
import yaml

from tests.lab.account import account, fresh_directory
from tests.lab.database import DATABASE, USERNAME, prepare, prepare_reference, prepare_roles
from tests.lab.faults import FAULTS, LabError, wait_until
from tests.lab.interpreter import interpreter
from tests.lab.postgres import Postgres, free_port

ROOT = Path(__file__).resolve().parents[2]
APPS = Path(__file__).resolve().parent / "apps"
OTHERS = APPS.with_name("others")
# What each of the apps imports; the guide's own is the one that everything else starts from, the others never
# heard of this project.
PACKAGES = {
    "guide": ("fastapi", "uvicorn", "psycopg2-binary"),
    "reference": ("fastapi", "uvicorn", "psycopg2-binary", "argon2-cffi"),
    "psycopg2": ("fastapi", "uvicorn", "psycopg2-binary"),
    "sqlalchemy": ("fastapi", "uvicorn", "psycopg2-binary", "sqlalchemy", "gunicorn"),
    "psycopg": ("fastapi", "uvicorn", "psycopg", "psycopg-binary", "psycopg-pool"),
}
# The most connections that all processes of an app may have.
POOL_MAXIMUM = {"guide": 20, "reference": 20, "psycopg2": 10, "sqlalchemy": 30, "psycopg": 8}
# Set where the lab has a network of its own, see tests/incidents.py.
ALONE = "LAB_HAS_A_NETWORK_OF_ITS_OWN"
START_SECONDS = 45
LOGIN_SECONDS = 10


def alone() -> bool:
    """Whether packets may be dropped here: nobody else uses this network."""
    return ALONE in os.environ


class Lab:
    """One lab. `home` keeps its state and inventory; everything else lies in a temporary directory.

    After `up` (or for a lab that is up): `directory`, `app` (its subdirectory with odras.sh, app.env,
    backend/), `log`, `pid_file`, `app_port`, `login_url`, `username`, `password`, `server` (a `Postgres`),
    `inventory` (the file to give to Ansible). Names, paths and ports do not depend on what is broken later.
    """

    def __init__(self, home: Path, app: str = "guide", **settings: object) -> None:
        """`app`: a directory of tests/lab/apps, for `up`; a lab that is up knows its own.

        settings: further lines of app.env, over those that are always there; for `up` too.
        """
        self.home = home.absolute()
        self.kind = app
        self._settings = settings
        self.inventory = self.home / "inventory.yml"
        self._state = self.home / "state.json"
        if self.exists():
            self._load()

    def exists(self) -> bool:
        """Whether this lab is up, or partly so."""
        return self._state.exists()

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # -- commands ------------------------------------------------------------------------------------

    def up(self) -> str:
        """Start everything and wait until a login answers 200. On failure nothing is left behind."""
        if self.exists():
            raise LabError(f"a lab is up already in {self.directory}: `scripts/lab down` ends it")
        if self.kind not in PACKAGES:
            raise LabError(f"no app {self.kind!r}; there are: {', '.join(PACKAGES)}")
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Kept from the first moment, so that `down` finds it whatever happens from here on.
        self._save(
            directory=str(fresh_directory("odras-")),
            app_port=free_port(),
            partner_port=free_port(),
            cache_port=free_port(),
            kind=self.kind,
        )
        try:
            self.server.start()
            self._save(password=self._prepare())
            self._install()
            self._keep()
            self.odras("start")
            self._await_login()
            self._write(self.inventory, yaml.safe_dump(self._hosts(), sort_keys=False))
        except BaseException:
            self.down()
            raise
        return (
            f"PostgreSQL    127.0.0.1:{self.server.port}, database {DATABASE}\n"
            f"application   {self.login_url} answers 200\n"
            f"directory     {self.directory}\n"
            f"inventory     {self.inventory}"
        )

    def down(self) -> str:
        """Stop and remove everything, however much of it still lives."""
        if not self.exists():
            return "nothing is up"
        self.end_others()
        for pid in self.app_pids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.app_pids(), "the application is gone")
        self.server.remove()
        for pid in account().processes_in(self.directory):  # whatever a fault or a diagnosis has left
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not account().processes_in(self.directory), "everything is gone")
        if self.directory.exists():
            shutil.rmtree(self.directory)
        self.inventory.unlink(missing_ok=True)
        self._state.unlink()
        if not any(self.home.iterdir()):
            self.home.rmdir()
        return f"stopped the application and PostgreSQL; removed {self.directory}"

    def status(self) -> str:
        """What runs, without touching the application."""
        self._require_up()
        pids = ", ".join(map(str, self.app_pids()))
        server = f"pid {self.server.postmaster_pid}" if self.server.running() else "not running"
        return (
            f"PostgreSQL    127.0.0.1:{self.server.port}: {server}\n"
            f"application   {self.login_url}: {f'pid {pids}' if pids else 'not running'}\n"
            f"directory     {self.directory}\n"
            f"inventory     {self.inventory}"
        )

    def break_(self, name: str) -> str:
        """Make one fault of `FAULTS`; what was done and seen. Another may have been made before it."""
        self._require_up()
        if name not in FAULTS:
            raise LabError(f"no fault {name!r}; there are: {', '.join(FAULTS)}")
        if not (self.server.running() and self.app_pids()):
            raise LabError("it is broken already, something is not running: `scripts/lab heal` first")
        apps = FAULTS[name].apps
        if apps and self.kind not in apps:
            raise LabError(f"{name} is made in {', '.join(apps)} only, and this is {self.kind}")
        return FAULTS[name].make(self)

    def heal(self) -> str:
        """Undo every fault alike: everything as it was after `up`; wait for a login."""
        self._require_up()
        self.end_others()
        if alone():
            subprocess.run(["nft", "flush", "ruleset"], check=True, timeout=10)
        for place in (self.app, self.server.directory):
            for pid in account().processes_in(place):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        self.odras("stop")
        self.log.write_bytes(b"")
        self._lay()
        for kept, place in self._kept():
            shutil.copyfile(kept, place)  # into the file that is there: its owner and mode stay
        self.server.heal()
        prepare_roles(self.server)
        self.odras("start")
        self._await_login()
        return f"everything is as it was at first, and {self.login_url} answers 200"

    # -- what faults and tests need --------------------------------------------------------------------

    @property
    def most_sessions(self) -> int:
        """The most sessions that the processes of the application may have together."""
        return self.pool_maximum * (2 if self.kind == "reference" else 1)  # it runs two workers

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """One statement in the application's database, as the owner of its tables."""
        return self.server.sql(statement, database=DATABASE, user="odras_owner")

    def login(self, username: str | None = None, password: str | None = None) -> int | None:
        """HTTP status of one login, by default a good one; None without any answer within 10 s."""
        body = {"username": username or self.username, "password": password or self.password}
        request = urllib.request.Request(
            self.login_url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return self._ask(request, LOGIN_SECONDS)

    def get(self, path: str, seconds: float = LOGIN_SECONDS) -> int | None:
        """HTTP status of one GET of the app's own pages, e.g. `/api/projects`; None without an answer."""
        return self._ask(urllib.request.Request(self.url + path), seconds)

    def logins(self, count: int) -> list[int | None]:
        """The statuses of `count` logins at the same time."""
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: self.login(), range(count)))

    def sessions(self) -> int:
        """How many sessions the application has on the server."""
        return self.server.sql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'odras_app'")[0][0]

    def end_sessions(self) -> int:
        """End them all, as an administrator does, and wait until they are gone; how many there were."""
        ended = self.server.sql(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'odras_app'"
        )
        left = ([pid for pid, _ in ended],)
        ask = "SELECT 1 FROM pg_stat_activity WHERE usename = 'odras_app' AND pid = ANY (%s)"
        wait_until(lambda: not self.server.sql(ask, left), "these sessions ended", 20)
        return len(ended)

    def app_pids(self) -> list[int]:
        """The application's processes: whatever runs `backend.main` in its directory."""
        found = []
        for pid in account().processes_in(self.app):
            with suppress(OSError):  # ended meanwhile
                if b"\0backend.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def configure(self, **settings: object) -> None:
        """Change lines of app.env (None: leave a line out), as a person does; the application is not told."""
        lines = {**_pairs((self.app / "app.env").read_text()), **settings}
        left = {name: value for name, value in lines.items() if value is not None}
        (self.app / "app.env").write_text(_lines(left))

    def fill(self, **values: object) -> None:
        """The same by the names of the apps' templates (host, port, user, password, database, pool_maximum),
        in whatever form an app has them."""
        self.configure(**_pairs(self._filled(**values)))

    def restart(self) -> None:
        """Restart the application and wait for a login."""
        self.odras("restart")
        self._await_login()

    def other(self, program: str, **told: object) -> subprocess.Popen[str]:
        """Start a program of tests/lab/others, told `told`, and wait for its "ready".

        It has nothing to do with the application, and lives until `heal` or `down` ends it.
        """
        started = self.started(self.python, "-c", (OTHERS / f"{program}.py").read_text())
        assert started.stdin and started.stdout
        started.stdin.write(json.dumps(told))
        started.stdin.close()
        said = []
        for line in started.stdout:
            said.append(line)
            if line.startswith("ready"):
                return started
        raise LabError(f"{program}.py ended: {''.join(said)[-600:]}")

    def started(self, *command: object) -> subprocess.Popen[str]:
        """Start any program in the place of the others, which is where `heal` and `down` look for it."""
        self.others.mkdir(exist_ok=True)
        account().own(self.others)
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=self.others,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **account().run_as(),
        )

    def users(self, count: int = 6, seconds: float = 30, pause: float = 0.2) -> None:
        """People who log in all the time, from now on."""
        self.other(
            "users",
            url=self.login_url,
            username=self.username,
            password=self.password,
            count=count,
            seconds=seconds,
            pause=pause,
        )

    def strangers(
        self,
        *statements: str,
        count: int = 1,
        last: str = "",
        user: str = "odras_owner",
        name: str = "nightly-report",
        **connect: object,
    ) -> None:
        """Sessions of another program that run the statements and stay; `last` is what they go on with."""
        arguments = {**self.server.connection(user, DATABASE), "application_name": name, **connect}
        self.other("sessions", connect=arguments, count=count, statements=statements, last=last)

    def end_others(self) -> None:
        """End what `other` started, and wait until it is gone."""
        for pid in account().processes_in(self.others):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not account().processes_in(self.others), "the other programs are gone")
        if (self.others / "db-2").exists():
            Postgres(self.others / "db-2").remove()

    @property
    def python(self) -> str:
        """The interpreter that the application runs with; it has psycopg2."""
        lines = (self.app / "app.env").read_text().splitlines()
        return next(line.partition("=")[2] for line in lines if line.startswith("ODRAS_PYTHON="))

    def odras(self, action: str) -> str:
        """Run `odras.sh ACTION`; its output. LabError if it fails."""
        result = subprocess.run(
            [str(self.app / "odras.sh"), action],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if result.returncode:
            raise LabError(f"odras.sh {action} ended with {result.returncode}: {result.stderr.strip()}")
        return result.stdout

    def in_own_network(self, *command: str, told: str = "") -> None:
        """Run a command that changes the network; LabError where that is not ours alone."""
        if not alone():
            raise LabError("this needs a network of its own: scripts/incidents makes one")
        done = subprocess.run(command, input=told, text=True, capture_output=True, check=False, timeout=10)
        if done.returncode:
            raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")

    @staticmethod
    def free_port() -> int:
        """A port that nobody listens on."""
        return free_port()

    @staticmethod
    def listens(port: int) -> bool:
        """Whether somebody accepts connections on 127.0.0.1:port."""
        with socket.socket() as probe:
            probe.settimeout(5)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    # -- inside ----------------------------------------------------------------------------------------

    @staticmethod
    def _ask(request: urllib.request.Request, seconds: float) -> int | None:
        try:
            # An opener of our own: proxies of the environment are not for 127.0.0.1.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=seconds) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return None

    def _prepare(self) -> str:
        make = prepare_reference if self.kind == "reference" else prepare
        return make(self.server, getattr(self, "password", ""))

    def _kept(self) -> list[tuple[Path, Path]]:
        """(copy, file) of what faults may write in."""
        files = [self.app / "app.env", self.server.data / "pg_hba.conf"]
        return [(self.directory / f"kept-{file.name}", file) for file in files]

    def _keep(self) -> None:
        for kept, file in self._kept():
            kept.touch(mode=0o600)
            shutil.copyfile(file, kept)

    def _lay(self) -> None:
        """The app's files. Whatever the app, its directory looks the same: what all of them share, then its own."""
        ignore = shutil.ignore_patterns("__pycache__")
        for source in (APPS / "shared", APPS / self.kind):
            shutil.copytree(source, self.app, ignore=ignore, dirs_exist_ok=True)
        if self.kind == "reference":
            shutil.copytree(ROOT / "runbook", self.app / "runbook", ignore=ignore, dirs_exist_ok=True)

    def _install(self) -> None:
        self._lay()
        own: dict[str, object] = {}
        if self.kind == "reference":
            self.status_directory.mkdir()
            own = {"APP_PORT": self.app_port, "POSTGRES_POOL_RUNTIME_DIRECTORY": self.status_directory}
        python = interpreter(account(), self.directory / "runtime", (*PACKAGES[self.kind], "psycopg2-binary"))
        settings = {
            "ODRAS_PYTHON": python,
            "ODRAS_PORT": self.app_port,
            "ODRAS_PARTNER": f"127.0.0.1:{self.partner_port}",
            **_pairs(self._filled()),
            **own,
            **self._settings,
        }
        (self.app / "app.env").unlink()  # the new one is readable by its owner alone from the start
        self._write(self.app / "app.env", _lines(settings))
        account().own(self.app)

    def _filled(self, **settings: object) -> str:
        """The app's own settings file with this lab's values, or others."""
        values = {
            "http_port": self.app_port,
            "host": self.server.host,
            "port": self.server.port,
            "database": DATABASE,
            "user": "odras_app",
            "password": self.server.passwords["odras_app"],
            "pool_maximum": self.pool_maximum,
        }
        return (APPS / self.kind / "app.env").read_text().format(**{**values, **settings})

    def _await_login(self) -> None:
        # The shell has said the pid of the process before that has become the application.
        with suppress(LabError):
            wait_until(self.app_pids, "the application's process", 20)

        def answers() -> bool:
            # Not by its command line: it has none for a moment, while it becomes Python.
            if not account().processes_in(self.app):
                end = self.log.read_text(errors="replace")[-1500:] if self.log.exists() else ""
                raise LabError(f"the application ended while it started; its log ends with:\n{end}")
            return self.login() == 200

        wait_until(answers, f"{self.login_url} answers 200; see {self.log}", START_SECONDS)

    def _hosts(self) -> dict[str, Any]:
        """The inventory: web-1 in group app, db-1 in group postgres."""
        # The base interpreter: what diagnoses a host finds no packages there either.
        python = str(Path(sys._base_executable).resolve())
        local = {"ansible_connection": "local", "ansible_python_interpreter": python}
        odras = str(self.app / "odras.sh")
        web = {
            "diagnose_login_url": self.login_url,
            "diagnose_login_username": self.username,
            "diagnose_login_password": self.password,
            "diagnose_start_command": [odras, "start"],
            "diagnose_restart_command": [odras, "restart"],
            "diagnose_pid_file": str(self.pid_file),
            "diagnose_log": str(self.log),
            "diagnose_environment_file": str(self.app / "app.env"),
            "diagnose_source": [str(self.app / "backend")],
            "diagnose_status_directories": [str(self.status_directory)],
            # Its own, so that the cool-down of one lab does not hold in the next.
            "diagnose_state_directory": str(self.directory / "state"),
        }
        database = {
            "diagnose_database_name": DATABASE,
            "diagnose_database_host": self.server.host,
            "diagnose_database_port": self.server.port,
            "diagnose_database_user": "odras_diagnosis",
            "diagnose_database_password": self.server.passwords["odras_diagnosis"],
        }
        return {
            "all": {
                "children": {
                    "app": {"hosts": {"web-1": {**local, **web}}},
                    "postgres": {"hosts": {"db-1": {**local, **database}}},
                }
            }
        }

    def _require_up(self) -> None:
        if not self.exists():
            raise LabError("no lab is up: `scripts/lab up` starts one")

    def _save(self, **values: object) -> None:
        state = json.loads(self._state.read_text()) if self.exists() else {}
        self._write(self._state, json.dumps({**state, **values}, indent=2) + "\n")
        self._load()

    def _load(self) -> None:
        state = json.loads(self._state.read_text())
        self.directory = Path(state["directory"])
        self.kind = state["kind"]
        self.app_port: int = state["app_port"]
        self.partner_port: int = state["partner_port"]
        self.cache_port: int = state["cache_port"]
        self.pool_maximum = POOL_MAXIMUM[self.kind]
        self.password: str = state.get("password", "")
        self.username = USERNAME
        self.app = self.directory / "app"
        self.log = self.app / "odras_app.log"
        self.pid_file = self.app / "odras.pid"
        self.status_directory = self.app / "run"
        self.url = f"http://127.0.0.1:{self.app_port}"
        self.login_url = f"{self.url}/api/auth/login"
        self.server = Postgres(self.directory / "postgresql")
        self.others = self.directory / "others"

    @staticmethod
    def _write(path: Path, text: str) -> None:
        """Write a file that holds a password: readable by its owner alone from the start."""
        path.touch(mode=0o600)
        path.write_text(text)


def _pairs(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def _lines(settings: Mapping[str, object]) -> str:
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def main(arguments: list[str] | None = None) -> int:
    """The command line. 0 done; 1 could not (said on stderr); 2 wrong usage."""
    parser = argparse.ArgumentParser(
        "scripts/lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["up", "down", "status", "break", "heal"])
    parser.add_argument("fault", nargs="?", help="for break: " + ", ".join(FAULTS))
    parser.add_argument("--app", choices=sorted(PACKAGES), default="guide", help="for up: which app")
    parser.add_argument("--directory", type=Path, default=ROOT / ".lab", help="where its state is kept")
    given = parser.parse_args(arguments)
    if (given.action == "break") != (given.fault is not None):
        parser.error(f"break, and only break, takes a FAULT, one of: {', '.join(FAULTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `up` cleans up
    lab = Lab(given.directory, given.app)
    try:
        command = {"up": lab.up, "down": lab.down, "status": lab.status, "heal": lab.heal}
        print(lab.break_(given.fault) if given.fault else command[given.action]())
    except (LabError, OSError, RuntimeError, psycopg2.Error) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130
    return 0

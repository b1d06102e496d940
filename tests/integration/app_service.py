"""The reference application as its role runs it: commands, processes, HTTP, log and status sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import psycopg2

from tests.integration.pool.house import ask, until, valid_status
from tests.lab.postgres import Postgres, free_port

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "runbook.app"]
COMMAND_SECONDS = 60
START_SECONDS = 60
STATUS = {"schema": "runbook/status/1", "op": "status"}


@dataclass
class Answer:
    """What came back over HTTP; `status` 0: no answer at all."""

    status: int
    headers: Message
    body: Any


class Database:
    """A database of the application's own on a server that has the lab's roles, and its commands."""

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self.name = f"app_{secrets.token_hex(4)}"
        server.sql(f"CREATE DATABASE {self.name} OWNER odras_owner")
        self.environ = {
            "PATH": os.environ["PATH"],
            "POSTGRES_HOST": server.host,
            "POSTGRES_PORT": str(server.port),
            "POSTGRES_DATABASE": self.name,
            "POSTGRES_USER": "odras_app",
            "POSTGRES_PASSWORD": server.passwords["odras_app"],
        }
        self.owner = {
            "POSTGRES_OWNER_USER": "odras_owner",
            "POSTGRES_OWNER_PASSWORD": server.passwords["odras_owner"],
        }

    def drop(self) -> None:
        self.server.sql(f"DROP DATABASE {self.name} WITH (FORCE)")

    def sql(self, statement: str, *parameters: object, user: str = "postgres") -> list[tuple[Any, ...]]:
        return self.server.sql(statement, parameters or None, database=self.name, user=user)

    def begin(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        """Start a command whose input and output are pipes."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            [*COMMAND, *arguments], cwd=ROOT, env={**self.environ, **environ}, text=True, **pipes
        )

    def run(self, *arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=ROOT,
            env={**self.environ, **environ},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def migrate(self) -> None:
        assert self.run("migrate", **self.owner).returncode == 0

    @contextlib.contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Nobody else can read or write the table; whoever tries waits with his connection."""
        connection = psycopg2.connect(**self.server.connection("postgres", self.name))
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield
        finally:
            connection.close()


def arguments(pid: int) -> bytes:
    """The argv of a process, by NUL; empty if it ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class App:
    """One `serve`, with `username` and `password` to log in. Starts at once; `stop()` at the end."""

    username = "das_service"
    password = f"canary-{secrets.token_urlsafe(12)}"

    def __init__(self, database: Database, directory: Path, **environ: object) -> None:
        self.database = database
        self.directory = directory
        self.port = free_port()
        self.log_file = directory / "app.log"
        own = {"APP_PORT": self.port, "APP_DRAIN_SECONDS": 0, **environ}
        own["POSTGRES_POOL_RUNTIME_DIRECTORY"] = directory
        self.environ = {**database.environ, **{name: str(value) for name, value in own.items()}}
        self._seen: set[int] = set()
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "serve"], cwd=ROOT, env=self.environ, stdout=log, stderr=log
            )

    def stop(self) -> None:
        """End every process of it that was ever seen, whatever state they are in."""
        self.children()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        for pid in self._seen:
            if b"runbook.app" in arguments(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def wait(self, seconds: float = 15) -> int:
        """Its exit status, when it ended."""
        return self.process.wait(seconds)

    # -- what runs -----------------------------------------------------------------------------------

    def children(self) -> set[int]:
        """Pids of its worker processes; empty where it serves by itself."""
        try:
            listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except OSError:
            return set()
        found = set(map(int, listed.split()))
        self._seen |= found
        return found

    def pids(self) -> set[int]:
        return {self.process.pid, *self.children()}

    def statuses(self) -> list[dict[str, Any]]:
        """What each of its pools says, checked against the schema; nothing of a process that was killed."""
        said = []
        for path in sorted(self.directory.glob("pool-*.sock")):
            with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                said.append(valid_status(ask(path, STATUS)))
        return said

    def blocked(self) -> int:
        """How many of its connections wait for a lock."""
        return self.database.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = ANY(%s)",
            [each["application_name"] for each in self.statuses()],
        )[0][0]

    def log(self) -> str:
        return self.log_file.read_text()

    # -- HTTP ----------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        seconds: float = 30,
        **headers: str,
    ) -> Answer:
        """One request on a connection of its own. body: sent as JSON, bytes as they are."""
        sent = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            return Answer(0, Message(), None)
        finally:
            connection.close()
        return Answer(response.status, response.headers, json.loads(text) if text else None)

    def login(self, username: str | None = None, password: str | None = None, **more: Any) -> Answer:
        body = {"username": username or self.username, "password": password or self.password}
        return self.request("POST", "/api/auth/login", body, **more)

    def token(self) -> str:
        answer = self.login()
        assert answer.status == 200, answer
        token: str = answer.body["token"]
        return token

    def ready(self) -> int:
        return self.request("GET", "/readyz", seconds=10).status

    def refuses(self) -> bool:
        """Whether nobody listens on its port; not if it is accepted and left alone."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=2).close()
        except ConnectionRefusedError:
            return True
        return False

    def await_serving(self) -> App:
        """Until it answers at all, ready or not."""
        return self._await("/livez")

    def await_ready(self) -> App:
        return self._await("/readyz")

    def _await(self, path: str) -> App:
        def answers() -> bool:
            assert self.process.poll() is None, self.log()[-3000:]
            return self.request("GET", path, seconds=10).status == 200

        until(answers, START_SECONDS)
        return self

    def await_workers(self, number: int) -> list[dict[str, Any]]:
        """Until that many pools have a status socket and the connections they keep; their statuses."""

        def settled() -> list[dict[str, Any]]:
            found = self.statuses()
            warm = all(each["count"]["idle"] >= each["config"]["min_connections"] for each in found)
            return found if len(found) == number and warm else []

        return until(settled, START_SECONDS)


class Load:
    """Logs in again and again from a few threads; `answers`: (started, ended, status), monotonic seconds."""

    def __init__(self, app: App, threads: int = 3) -> None:
        self.answers: list[tuple[float, float, int]] = []
        self._app = app
        self._stop = threading.Event()
        self._executor = ThreadPoolExecutor(threads)
        self._running = [self._executor.submit(self._log_in) for _ in range(threads)]

    def _log_in(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            status = self._app.login().status
            self.answers.append((began, time.monotonic(), status))

    def goes_on(self, number: int = 5) -> None:
        """Until so many more logins that begin from now on have been answered."""
        now = time.monotonic()
        until(lambda: sum(began > now for began, _, _ in list(self.answers)) >= number, 60)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._running:
            each.result(60)
        self._executor.shutdown()


LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ [\w.]+ \[\d+\] \S.*")

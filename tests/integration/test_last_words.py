"""The server's last words, read from outside on connections of another process: told apart, and left as they were.

Each test ends *two* connections of a holder process in the same real way. One is looked at by Watch, the
other never: it is the control. Afterwards the process must find no difference between them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from jsonschema import Draft202012Validator

from runbook.common.documents import schema
from runbook.evidence import proc
from runbook.evidence.sockets import Watch
from tests.integration.pool.house import Relay, until
from tests.lab.account import fresh_directory
from tests.lab.database import prepare
from tests.lab.postgres import Postgres

HOST_EVIDENCE = schema("host-evidence")
VIEW = {
    **HOST_EVIDENCE["properties"]["views"]["properties"]["sockets"]["properties"]["data"],
    "$defs": HOST_EVIDENCE["$defs"],
}

# Holds one connection. Its first line of input says how to connect and what to run before it falls idle; each
# further line is a query, answered with the error that psycopg2 raises for it.
HOLDER = """
import json, sys, psycopg2
order = json.loads(sys.stdin.readline())
connection = psycopg2.connect(**order["connection"])
connection.autocommit = True
cursor = connection.cursor()
for statement in order["statements"]:
    cursor.execute(statement)
print(json.dumps({"fd": connection.fileno(), "backend": connection.info.backend_pid}), flush=True)
for line in sys.stdin:
    try:
        cursor.execute(line)
        answer = {"rows": cursor.fetchall()}
    except psycopg2.Error as error:
        answer = {"type": type(error).__name__, "sqlstate": error.pgcode, "text": str(error)}
    print(json.dumps({**answer, "closed": connection.closed}), flush=True)
"""


class Holder:
    """A process with one connection. `port`: of the server, or of what stands before it."""

    def __init__(self, server: Postgres, statements: list[str], port: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.peer = f"127.0.0.1:{port}"
        connection = {**server.connection("odras_app", "odras"), "port": port}
        told = self._ask(json.dumps({"connection": connection, "statements": statements}))
        self.fd: int = told["fd"]
        self.backend: int = told["backend"]
        self.inode = (proc.socket_fds(self.process.pid) or {})[self.fd]

    def query(self) -> dict[str, Any]:
        """What the application would meet now."""
        return self._ask("SELECT 1")

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def row(self) -> dict[str, Any]:
        """The kernel's line about its socket; {} once the kernel lists it no more (reset)."""
        return proc.tcp_table(self.process.pid).get(self.inode, {})

    def ended(self) -> bool:
        """Whether the other side's end has arrived."""
        return self.row().get("state") != "ESTAB"

    def descriptors(self) -> dict[str, str]:
        directory = Path(f"/proc/{self.process.pid}/fd")
        return {fd.name: os.readlink(fd) for fd in directory.iterdir()}

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


Two = Callable[..., tuple[Holder, Holder]]


@pytest.fixture
def two() -> Iterator[Two]:
    """Makes the holder that is looked at and its control."""
    made: list[Holder] = []

    def make(server: Postgres, *statements: str, port: int | None = None) -> tuple[Holder, Holder]:
        for _ in range(2):
            made.append(Holder(server, list(statements), port or server.port))
        return made[0], made[1]

    yield make
    for holder in made:
        holder.close()


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgres]:
    with Postgres(fresh_directory("odras-")) as server:
        prepare(server)
        yield server


@pytest.fixture
def mortal(own_server: Postgres) -> Postgres:
    """A server that a test may stop and crash; it accepts connections, whatever was done to it before."""
    if not own_server.running():
        own_server.start()

    def accepts() -> bool:
        with suppress(psycopg2.OperationalError):  # it recovers from the last crash
            return own_server.sql("SELECT 1") == [(1,)]
        return False

    until(accepts, 30)
    return own_server


def look(holder: Holder) -> dict[str, Any]:
    """View S of one process as collect.py reads it, checked against its schema: its last words."""
    watch = Watch([holder.process.pid], [holder.peer])
    watch.sample("before_login")
    data = watch.data(watch.read())
    Draft202012Validator(VIEW).validate(data)
    assert data["peek"] == {"state": "ok", "reason": ""}
    assert len(data["last_words"]) == 1, data
    words: dict[str, Any] = data["last_words"][0]
    assert 0 <= words.pop("idle_seconds") < 60  # since the last byte came; the only thing that goes on
    assert (words["pid"], words["fd"]) == (holder.process.pid, holder.fd)
    return words


def look_and_compare(watched: Holder, control: Holder) -> dict[str, Any]:
    """Look, twice, at the first of two ended connections: neither it nor its process notices anything."""
    until(lambda: watched.ended() and control.ended())
    descriptors, row = watched.descriptors(), watched.row()
    words = look(watched)
    assert look(watched) == words, "the first look took something away"
    assert watched.descriptors() == descriptors
    assert watched.row() == row
    kept = ("state", "recv_q")
    assert [row.get(key) for key in kept] == [control.row().get(key) for key in kept]
    expected, met = control.query(), watched.query()
    assert "type" in expected, f"the control's connection lives: {expected}"
    assert met == expected
    assert watched.query() == control.query()
    return words


TIMEOUTS = {
    "57P05": (["SET idle_session_timeout = 100"], "terminating connection due to idle-session timeout"),
    "25P03": (
        ["SET idle_in_transaction_session_timeout = 100", "BEGIN", "SELECT 1"],
        "terminating connection due to idle-in-transaction timeout",
    ),
    "25P04": (
        ["SET transaction_timeout = 100", "BEGIN", "SELECT 1"],
        "terminating connection due to transaction timeout",
    ),
}


@pytest.mark.parametrize("sqlstate", TIMEOUTS)
def test_a_timeout_of_the_server(postgres: Postgres, two: Two, sqlstate: str) -> None:
    statements, message = TIMEOUTS[sqlstate]
    words = look_and_compare(*two(postgres, *statements))
    assert (words["kind"], words["sqlstate"], words["message"]) == ("error", sqlstate, message)
    assert words["bytes"] > len(message)


def test_an_administrator(postgres: Postgres, two: Two) -> None:
    watched, control = two(postgres)
    for holder in (watched, control):
        assert postgres.sql("SELECT pg_terminate_backend(%s, 5000)", (holder.backend,)) == [(True,)]
    words = look_and_compare(watched, control)
    assert (words["kind"], words["sqlstate"]) == ("error", "57P01")
    assert words["message"] == "terminating connection due to administrator command"


def test_the_crash_of_a_neighbour(mortal: Postgres, two: Two) -> None:
    watched, control = two(mortal)
    victim = Holder(mortal, [], mortal.port)
    try:
        mortal.kill_backend(victim.backend, signal.SIGKILL)
        words = look_and_compare(watched, control)
    finally:
        victim.close()
    assert (words["kind"], words["sqlstate"]) == ("error", "57P02")
    assert "crash of another server process" in words["message"]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_the_stop_of_the_server(mortal: Postgres, two: Two, mode: str) -> None:
    watched, control = two(mortal)
    mortal.stop(mode)
    words = look_and_compare(watched, control)
    assert (words["kind"], words["sqlstate"]) == ("error", "57P01")


@pytest.mark.parametrize(("reset", "kind"), [(False, "fin"), (True, "rst")])
def test_a_cut_by_something_in_between_says_nothing(
    postgres: Postgres, two: Two, reset: bool, kind: str
) -> None:
    relay = Relay(postgres.host, postgres.port)
    try:
        watched, control = two(postgres, port=relay.port)
        relay.cut(reset=reset)
        words = look_and_compare(watched, control)
    finally:
        relay.close()
    assert words["kind"] == kind
    assert (words["sqlstate"], words["message"], words["bytes"]) == (None, None, 0)


def test_a_connection_that_lives_has_no_last_words(postgres: Postgres, two: Two) -> None:
    watched, control = two(postgres)
    descriptors, row = watched.descriptors(), watched.row()
    watch = Watch([watched.process.pid], [watched.peer])
    (seen,) = watch.sample("before_login")
    data = watch.data(watch.read())
    assert (seen["state"], seen["recv_q"], data["last_words"]) == ("ESTAB", 0, [])
    assert len(data["options"]) == 1
    assert (watched.descriptors(), watched.row()) == (descriptors, row)
    assert watched.query() == control.query() == {"rows": [[1]], "closed": 0}

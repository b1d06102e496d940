"""A trip ends in its time and stays small, whatever hangs and however much there is to read."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from runbook.common import documents
from runbook.evidence import collect, proc
from runbook.evidence.log import BLOCK_BYTES, WINDOW_BYTES, Follower
from runbook.report.build import build
from runbook.verdict.judge import Verdict, judge
from tests.integration.test_collectors import MARGIN_SECONDS, request_of, stopped, trip_as
from tests.integration.test_refusals import readable_python
from tests.lab.account import account, fresh_directory
from tests.lab.database import DATABASE
from tests.lab.lab import Lab
from tests.lab.postgres import Postgres
from tests.unit.incidents import healthy

Evidence = dict[str, Any]
# What reading a host may last, whatever hangs: its deadline, and the moment in which that is noticed.
MOST_SECONDS = 20.5
# What a trip may weigh as JSON: the controller has it of every host, in memory and on the disk.
MOST_BYTES = 4 << 20
STRANGER = 60_000  # a user id without a name


def trip(lab: Lab, **changes: Any) -> tuple[Evidence, Evidence]:
    """(host document, database document) of one trip as the module makes it, database and all: in time, valid
    and not too heavy."""
    began = time.monotonic()
    told = collect.read({"database": database_of(lab.server), **request_of(lab, **changes)})
    took = time.monotonic() - began
    assert took < collect.TRIP_SECONDS + MARGIN_SECONDS, f"the trip took {took:.1f} s"
    host = told["host"]
    assert host
    assert host["seconds"] <= MOST_SECONDS, f"the host took {host['seconds']:.1f} s"
    return checked(host), checked(told["database"]) if told["database"] else {}


def database_of(server: Postgres) -> dict[str, Any]:
    """What the module hands to `read_database`."""
    target = {"host": server.host, "port": server.port, "name": DATABASE, "user": "odras_diagnosis"}
    return {
        "run_id": "a run",
        "host": "web-1",
        "database": "main",
        "target": {**target, "sslmode": "prefer"},
        "password": server.passwords["odras_diagnosis"],
        "app_user": "odras_app",
    }


def checked(document: Evidence) -> Evidence:
    documents.validate(document)
    assert len(json.dumps(document)) < MOST_BYTES
    return document


def verdict(host: Evidence, database: Evidence | None = None) -> Verdict:
    """The judge's, which must not take long over whatever was read."""
    began = time.process_time()
    told = judge(host, database)
    assert time.process_time() - began < 2
    return told


def processes_of(postmaster: int) -> list[int]:
    """The postmaster and everything below it."""
    return [postmaster, *(p for p in proc.pids() if (proc.stat(p) or {"ppid": 0})["ppid"] == postmaster)]


def test_a_trip_has_no_more_time_than_is_promised() -> None:
    assert collect.TRIP_SECONDS == 20


# -- it hangs ----------------------------------------------------------------------------------------------


def test_a_server_of_which_every_process_is_stopped(lab: Lab) -> None:
    with stopped(*processes_of(lab.server.postmaster_pid)):
        host, _ = trip(lab)
    views = host["views"]
    new = views["new_connection"]["data"]
    assert (new["ok"], new["phase"], new["error"]["kind"]) == (False, "startup", "timeout")
    assert set(views["login"]["data"]["rounds"][0]["by_status"]) == {"timeout"}
    assert verdict(host).cause == "postgres_not_answering"
    lab.heal()


class BlackHole:
    """A port of 127.0.0.1 that never answers a SYN: the backlog of a listener that accepts nobody is full."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._waiting: list[socket.socket] = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", self.port))
            self._waiting.append(client)

    def close(self) -> None:
        for one in (self._listener, *self._waiting):
            one.close()


@pytest.fixture
def black_hole() -> Iterator[int]:
    hole = BlackHole()
    yield hole.port
    hole.close()


def settings_for(lab: Lab, path: Path, port: int) -> str:
    """The app's settings with the database at another port; their path."""
    text = (lab.app / "app.env").read_text()
    path.touch(mode=0o600)
    path.write_text(text.replace(f"POSTGRES_PORT={lab.server.port}", f"POSTGRES_PORT={port}"))
    return str(path)


def test_everything_at_once(lab: Lab, tmp_path: Path, black_hole: int) -> None:
    """App and server are stopped, the settings lead into a black hole, log and source are pipes."""
    pipe = tmp_path / "app.log"
    os.mkfifo(pipe)
    os.mkfifo(tmp_path / "app.py")
    hole = settings_for(lab, tmp_path / "app.env", black_hole)
    with stopped(*lab.app_pids(), *processes_of(lab.server.postmaster_pid)):
        host, _ = trip(lab, log=str(pipe), source=[str(tmp_path)], environment_file=hole)
    views = host["views"]
    assert views["new_connection"]["data"]["error"]["kind"] == "timeout"
    assert set(views["login"]["data"]["rounds"][0]["by_status"]) == {"timeout"}
    assert views["log"]["state"] == "timeout"
    assert views["process"]["state"] == "ok"
    assert verdict(host).cause in ("postgres_unreachable", "unknown")
    lab.heal()


# -- there is much of it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kept"),
    [(100 << 20, 2), (1 << 30, 2), (10 << 30, 2), (10 << 30, 20)],
    ids=["100 MB", "1 GB", "10 GB", "10 GB and a long window"],
)
def test_of_a_log_the_window_is_read_and_at_most_a_megabyte_more(
    tmp_path: Path, size: int, kept: int
) -> None:
    """`kept` MB of lines of the last hour lie at its end, behind older ones and a hole."""
    path, now = tmp_path / "app.log", time.time()

    def lines(age: float, megabytes: int) -> bytes:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now - age))
        line = f"{stamp},123 INFO uvicorn.access: 10.0.4.17:53122 - GET /api/projects/p-1 200 OK\n"
        return line.encode() * (megabytes * (1 << 20) // len(line))

    window = lines(1800, kept)
    with path.open("wb") as file:
        file.truncate(size - (4 << 20) - len(window))
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + lines(7200, 4) + window)
    follower = Follower(str(path), None, 3600.0)
    before = bytes_read()
    data = follower.data()
    read = bytes_read() - before
    assert data["size"] >= size - (1 << 10)
    assert read <= min(len(window), WINDOW_BYTES) + BLOCK_BYTES + (64 << 10)
    assert data["bytes_read"] <= read
    assert data["whole_window"] is (kept == 2)
    assert data["timestamps"] is True


def bytes_read() -> int:
    """What this thread has read so far, as the kernel counts it."""
    told = dict(line.split(": ") for line in Path("/proc/thread-self/io").read_text().splitlines())
    return int(told["rchar"])


HOLDER = """
import resource, socket, sys, threading, time
count = int(sys.argv[1])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
door = socket.socket()
door.bind(("127.0.0.1", 0))
door.listen(4096)
accepted = []
def accept():
    while True:
        accepted.append(door.accept()[0])
if sys.argv[2] == "server":
    threading.Thread(target=accept, daemon=True).start()
    print(door.getsockname()[1], flush=True)
else:
    held = [socket.create_connection(("127.0.0.1", int(sys.argv[2]))) for _ in range(count)]
    print(door.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(count: int, peer: str) -> Iterator[tuple[int, int]]:
    """(pid, port it listens on) of a process that accepts `count` connections, or holds them to a port."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(count), peer],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stdin
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.stdin.close()


def test_five_thousand_sockets_in_one_process(lab: Lab, tmp_path: Path) -> None:
    """All of them to its database; and every one is counted, though not each is looked into."""
    count = 5000
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < count + 100:
        pytest.fail(f"this needs {count + 100} descriptors: ulimit -Hn")
    with holder(count, "server") as (_, port), holder(count, str(port)) as (pid, door):
        file = tmp_path / "app.pid"
        file.write_text(str(pid))
        host, _ = trip(
            lab,
            pid_file=str(file),
            login_url=f"http://127.0.0.1:{door}/login",
            environment_file=settings_for(lab, tmp_path / "app.env", port),
        )
    view = host["views"]["sockets"]
    assert view["state"] == "ok", view["reason"]
    assert [len(sample["sockets"]) for sample in view["data"]["samples"]] == [count] * 3


def test_ten_thousand_sessions(fresh_postgres: Postgres) -> None:
    """The server is real, and so are its answers to our queries; the sessions are rows that were put into its
    view pg_stat_activity, and waits into pg_locks: no machine of ours bears ten thousand processes.
    """
    server, count = fresh_postgres, 10_000
    with contextlib.closing(psycopg2.connect(**server.connection("odras_app", DATABASE))) as template:
        text = f"SELECT 'CanaryOfAQuery', {'1 + ' * 300}1"
        template.cursor().execute(text)
        one, pid = f"pid = {template.get_backend_pid()}", "1000000 + n"
        query = "replace(real.query, 'Canary', 'Canary' || n)"  # no two are the same
        pretend(server, "pg_stat_activity", one, count, pid=pid, query=query)
        pretend(server, "pg_locks", one, count, pid=pid, granted="false")
        began, worked = time.monotonic(), time.process_time()
        document = checked(collect.read_database(database_of(server)))
    assert time.monotonic() - began < collect.TRIP_SECONDS
    assert time.process_time() - worked < 8
    views = document["views"]
    assert {name: view["state"] for name, view in views.items()} == dict.fromkeys(views, "ok"), views
    activity, limits = views["activity"]["data"], views["limits"]["data"]
    assert activity["total"] > count
    assert activity["truncated"] is True
    assert 1000 <= len(activity["sessions"]) <= 2000
    assert sum(row["count"] for row in limits["by_role"]) == limits["used"] > count
    assert limits["headroom"] < 0
    assert len(views["locks"]["data"]["blocked"]) <= count
    assert "Canary" not in json.dumps(document)
    assert document["masked"] >= collect.MOST_QUERIES
    assert verdict(healthy()[0], document).cause


def pretend(server: Postgres, view: str, of: str, count: int, **changed: str) -> None:
    """Let a view of the catalog show `count` more rows, like the one for which `of` holds but for `changed`."""
    columns = [
        name
        for (name,) in server.sql(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass ORDER BY attnum",
            (view,),
            database=DATABASE,
        )
    ]
    ((definition,),) = server.sql("SELECT pg_get_viewdef(%s::regclass)", (view,), database=DATABASE)
    more = ", ".join(changed.get(name, f"real.{name}") for name in columns)
    server.sql(
        f"SET allow_system_table_mods = on; CREATE OR REPLACE VIEW pg_catalog.{view} AS"
        f" WITH real AS ({definition.rstrip('; ')}) SELECT * FROM real UNION ALL SELECT {more}"
        f" FROM (SELECT * FROM real WHERE {of} LIMIT 1) AS real CROSS JOIN generate_series(1, {count}) AS n",
        database=DATABASE,
    )


# -- there is no room, and no right ------------------------------------------------------------------------


@contextlib.contextmanager
def slots_taken(server: Postgres, *users: str) -> Iterator[None]:
    """Every slot that these roles may have, one role after the other."""
    held = []
    try:
        for user in users:
            with contextlib.suppress(psycopg2.OperationalError):
                while len(held) < 1000:
                    held.append(psycopg2.connect(**server.connection(user, DATABASE)))
        assert held
        yield
    finally:
        for connection in held:
            connection.close()


def test_no_free_slot(lab: Lab) -> None:
    """Not even one for superusers; what the server says at the door decides."""
    lab.heal()
    with slots_taken(lab.server, "odras_owner", "postgres"):
        host, database = trip(lab)
    new = host["views"]["new_connection"]["data"]
    assert (new["ok"], new["error"]["sqlstate"]) == (False, "53300")
    assert database["views"]["connection"]["data"]["error"]["sqlstate"] == "53300"
    assert {view["state"] for name, view in database["views"].items() if name != "connection"} == {"unknown"}
    told = verdict(host, database)
    assert (told.cause, told.confidence) == ("connection_slots_full", "decided")
    assert told.action != "restart"


def test_a_slot_that_is_kept_for_the_diagnosis(fresh_postgres: Postgres) -> None:
    """As role postgres sets it up: the app finds no slot, and D is read all the same."""
    server = fresh_postgres
    server.stop()
    server.start(max_connections=12, superuser_reserved_connections=2, reserved_connections=1)
    server.sql("GRANT pg_use_reserved_connections TO odras_diagnosis")
    with slots_taken(server, "odras_owner"):
        views = checked(collect.read_database(database_of(server)))["views"]
    assert views["connection"]["data"]["ok"] is True
    assert views["limits"]["data"]["headroom"] == 0
    assert {row["role"]: row["count"] for row in views["limits"]["data"]["by_role"]} == {"odras_owner": 9}


def test_without_the_right_to_look_into_the_app(lab: Lab) -> None:
    """By a user who is neither root nor the app's own: what was not read is said, with what it would decide."""
    if not account().dropped:
        pytest.skip("only root can become somebody else")
    lab.heal()
    lab.break_("slot_leak")
    place = fresh_directory("stranger-")
    try:
        host = trip_as(
            lab, place, readable_python(), {"user": STRANGER, "group": STRANGER, "extra_groups": []}
        )
    finally:
        subprocess.run(["rm", "-rf", "--", str(place)], check=True)
    lab.heal()
    views = host["views"]
    assert views["login"]["data"]["rounds"][-1]["by_status"] == {"500": 3}
    assert views["sockets"]["state"] == views["config"]["state"] == "unknown"
    assert "become the app's user" in views["sockets"]["reason"]
    assert "app.env: Permission denied" in views["config"]["reason"]
    told = verdict(host)
    assert (told.cause, told.action) == ("unknown", "open")
    report = build(host, None, told, actions=[], proof=None, evidence=[], seconds=0.0)
    words = " ".join(f"{one['view']}: {one['text']}." for one in report["unread"])
    for view in ("sockets", "new_connection", "config"):
        assert f"{view}: " in words
    assert re.search(r"it would decide [^.]*slot_leak", words)

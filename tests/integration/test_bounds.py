"""A trip ends in its time and stays small, whatever hangs and however much there is to read."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook.common import documents
from runbook.evidence import collect, proc
from runbook.evidence.log import BLOCK_BYTES, WINDOW_BYTES, Follower
from runbook.verdict.judge import Verdict, judge
from tests.integration.test_collectors import MARGIN_SECONDS, request_of, stopped
from tests.lab.database import DATABASE
from tests.lab.lab import Lab

Evidence = dict[str, Any]
# What a trip may weigh as JSON: the controller has it of every host, in memory and on the disk.
MOST_BYTES = 4 << 20


def trip(lab: Lab, **changes: Any) -> tuple[Evidence, Evidence]:
    """(host document, database document) of one trip as the module makes it, database and all: in time, valid
    and not too heavy."""
    target = {"host": lab.server.host, "port": lab.server.port, "name": DATABASE, "user": "odras_diagnosis"}
    database = {
        "run_id": "a run",
        "host": "web-1",
        "database": "main",
        "target": {**target, "sslmode": "prefer"},
        "password": lab.server.passwords["odras_diagnosis"],
        "app_user": "odras_app",
    }
    began = time.monotonic()
    told = collect.read({"database": database, **request_of(lab, **changes)})
    took = time.monotonic() - began
    assert took < collect.TRIP_SECONDS + MARGIN_SECONDS, f"the trip took {took:.1f} s"
    host = told["host"]
    assert host
    return checked(host), checked(told["database"]) if told["database"] else {}


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


@pytest.mark.parametrize("size", [100 << 20, 1 << 30, 10 << 30], ids=["100 MB", "1 GB", "10 GB"])
@pytest.mark.parametrize("kept", [2, 20], ids=["a short window", "a long window"])
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
    print(view["seconds"], len(json.dumps(host)))
    assert view["state"] == "ok", view["reason"]
    assert [len(sample["sockets"]) for sample in view["data"]["samples"]] == [count] * 3

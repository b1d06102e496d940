"""The collectors on the lab's app: whole and valid when all is well, and in time when a part of it hangs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

import runbook
from runbook.common import documents
from runbook.evidence import proc
from runbook.evidence.collect import TRIP_SECONDS, read, read_host
from tests.lab.account import account, fresh_directory
from tests.lab.lab import Lab
from tests.unit.incidents import status_document

Views = dict[str, dict[str, Any]]
VIEWS = {
    "login",
    "new_connection",
    "pool",
    "sockets",
    "process",
    "log",
    "config",
    "source",
    "monitor",
}
# What the machine may add to a deadline: threads that begin late on two busy cores.
MARGIN_SECONDS = 3.0


def request_of(lab: Lab, **changes: Any) -> dict[str, Any]:
    """What the module hands to `read_host` for the lab's web-1."""
    children = yaml.safe_load(lab.inventory.read_text())["all"]["children"]
    host = children["app"]["hosts"]["web-1"]
    names = ("login_url", "login_username", "login_password", "pid_file", "log", "environment_file", "source")
    return {
        "run_id": "a run",
        "host": "web-1",
        "read_host": True,
        "probe": True,
        "login_attempts": 0,
        "service": None,
        "status_directories": [],
        "state_directory": None,
        "window": 3600.0,
        **{name: host[f"diagnose_{name}"] for name in names},
        **changes,
    }


def trip(lab: Lab, **changes: Any) -> Views:
    """One trip: within its time, its document valid and complete; its views."""
    began = time.monotonic()
    document = read_host(request_of(lab, **changes), lambda _: None)
    took = time.monotonic() - began
    assert took < TRIP_SECONDS + MARGIN_SECONDS, f"the trip took {took:.1f} s"
    documents.validate(document)
    views: Views = document["views"]
    assert set(views) == VIEWS
    for name, view in views.items():
        assert (view["state"] == "ok") == (view["reason"] == ""), name
        # P that was read and is not there is no error: the empty list says so.
        absent = name == "pool" and view["data"] and not view["data"]["processes"]
        assert (view["state"] == "ok") == (view["data"] is not None and not absent), name
    assert lab.password not in json.dumps(document)
    assert lab.server.passwords["odras_app"] not in json.dumps(document)
    return views


def states(views: Views, *names: str) -> dict[str, str]:
    return {name: views[name]["state"] for name in names or sorted(views)}


def others_are_read(views: Views, *but: str) -> None:
    """Every view was read but these, and but P, which the lab's app cannot tell."""
    unread = {name: view["reason"] for name, view in views.items() if view["state"] != "ok"}
    assert set(unread) - {"pool", "monitor"} == set(but), unread


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Processes that live and do nothing."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


# -- all is well -------------------------------------------------------------------------------------------


def test_every_view_of_a_healthy_app(lab: Lab) -> None:
    (pid,) = lab.app_pids()
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    views = trip(lab)
    others_are_read(views)
    data = {name: view["data"] for name, view in views.items()}
    (first,) = data["login"]["rounds"]
    assert (data["login"]["kind"], first["ok"], first["by_status"]) == ("full", True, {"200": 3})
    assert data["login"]["misconfigured"] is None
    new = data["new_connection"]
    assert (new["ok"], new["kind"], new["phase"]) == (True, "credentials", "query")
    assert (new["host"], new["port"], new["user"]) == (lab.server.host, lab.server.port, "odras_app")
    assert [row["pid"] for row in data["process"]["processes"]] == [pid]
    assert data["process"]["listening"] is True
    assert data["process"]["processes"][0]["fds"] == pytest.approx(descriptors, abs=3)
    assert [one["moment"] for one in data["sockets"]["samples"]] == [
        "before_login",
        "during_login",
        "after_login",
    ]
    before = data["sockets"]["samples"][0]["sockets"]
    assert {row["peer"] for row in before} == {f"127.0.0.1:{lab.server.port}"}
    assert {row["state"] for row in before} == {"ESTAB"}
    assert data["sockets"]["last_words"] == []
    assert {row["idle"] for row in data["sockets"]["options"]} == {30}  # what the app set, not the kernel's
    assert data["config"]["file"] == str(lab.app / "app.env")
    assert data["config"]["database"]["has_password"] is True
    assert data["config"]["settings"]["POSTGRES_POOL_MAX_CONNECTIONS"]["value"] == "20"
    assert data["source"]["complete"] is True
    assert [row["file"].rpartition("/")[2] for row in data["source"]["findings"]] == ["db.py"]
    assert data["log"]["size"] >= data["log"]["bytes_read"] // 2 > 0


def test_the_database_that_the_settings_name_is_read_on_the_same_trip(lab: Lab) -> None:
    wanted = {"run_id": "a run", "host": "web-1", "database": "main", "target": None, "password": None}
    told = read(request_of(lab, database=wanted))
    assert told["host"] and told["database"]
    documents.validate(told["host"])
    documents.validate(told["database"])
    assert told["database"]["views"]["connection"]["data"]["ok"] is True


def test_the_database_that_the_settings_name_is_read_without_the_host(lab: Lab) -> None:
    """The fallback of a fleet whose database host cannot be reached: the same place, and nothing else."""
    wanted = {"run_id": "a run", "host": "web-1", "database": "main", "target": None, "password": None}
    told = read(request_of(lab, read_host=False, database=wanted))
    assert told["host"] is None
    assert told["database"], told
    documents.validate(told["database"])
    assert told["database"]["views"]["connection"]["data"]["ok"] is True


# -- a part of it hangs ------------------------------------------------------------------------------------


def test_an_app_that_is_stopped(lab: Lab) -> None:
    """It accepts and does not answer: each login times out, and all else is read in the time of the trip."""
    with stopped(*lab.app_pids()):
        views = trip(lab)
    lab.restart()  # its heartbeats would tell others of the standstill
    others_are_read(views)
    login = views["login"]["data"]
    assert all(set(one["by_status"]) == {"timeout"} and not one["ok"] for one in login["rounds"])
    assert login["misconfigured"] is None
    assert views["new_connection"]["data"]["ok"] is True
    assert {row["state"] for row in views["process"]["data"]["processes"]} == {"T"}


def test_a_server_that_is_stopped(lab: Lab) -> None:
    """The kernel accepts for it, and nobody reads the startup packet."""
    lab.heal()  # a pool of its own: logins that an earlier test left waiting may hold its connections still
    postmaster = lab.server.postmaster_pid
    with stopped(postmaster):
        views = trip(lab, login_attempts=1)  # more would need connections that the pool does not have
    others_are_read(views)
    new = views["new_connection"]["data"]
    assert (new["ok"], new["phase"], new["error"]["kind"]) == (False, "startup", "timeout")
    assert new["seconds_by_phase"]["startup"] > 1
    assert views["login"]["data"]["rounds"][0]["ok"] is True, "the app's own connections still work"


# -- a log that cannot be read -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "said"),
    [("fifo", ""), ("missing", "No such file or directory"), ("directory", "Is a directory")],
)
def test_a_log_that_is_none(lab: Lab, tmp_path: Path, kind: str, said: str) -> None:
    path = tmp_path / "app.log"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    began = time.monotonic()
    views = trip(lab, log=str(path))
    assert time.monotonic() - began < 4 + 4 + MARGIN_SECONDS
    others_are_read(views, "log")
    assert said in views["log"]["reason"]
    assert str(path) in views["log"]["reason"] or kind == "fifo"


def test_a_log_that_this_user_may_not_read(lab: Lab) -> None:
    """As the app's own user where we are root: nobody keeps anything from root."""
    place = fresh_directory("reader-")
    try:
        views = trip_as_account(lab, place, mode=0o000)
    finally:
        subprocess.run(["rm", "-rf", "--", str(place)], check=True)
    assert views["log"]["state"] == "unknown"
    assert "Permission denied" in views["log"]["reason"]
    assert states(views, "login", "new_connection", "process", "source") == {
        "login": "ok",
        "new_connection": "ok",
        "process": "ok",
        "source": "ok",
    }


def trip_as_account(lab: Lab, place: Path, mode: int) -> Views:
    """A trip of the lab's account, standard library alone, with a log of this mode; its views."""
    log = place / "app.log"
    log.write_text("2026-11-23 03:41:07 started\n")
    account().own(log)
    log.chmod(mode)
    views: Views = trip_as(lab, place, lab.python, account().run_as(), log=str(log))["views"]
    return views


def trip_as(lab: Lab, place: Path, python: str, user: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The host document of a trip of another user (arguments for subprocess), with a copy of the package in `place`."""
    subprocess.run(["cp", "-r", str(Path(runbook.__file__).parent), str(place / "runbook")], check=True)
    place.chmod(0o755)
    code = (
        "import json, os, sys; from runbook.evidence.collect import read_host;"
        "print(json.dumps(read_host(json.load(sys.stdin), lambda _: None)), flush=True); os._exit(0)"
    )
    ran = subprocess.run(
        [python, "-B", "-c", code],
        input=json.dumps(request_of(lab, **changes)),
        capture_output=True,
        text=True,
        timeout=TRIP_SECONDS + 10,
        cwd=place,
        env={"PYTHONPATH": str(place), "PATH": os.defpath},
        check=False,
        **user,
    )
    assert ran.returncode == 0, ran.stderr
    document: dict[str, Any] = json.loads(ran.stdout)
    documents.validate(document)
    return document


def test_a_log_of_the_size_that_a_busy_app_writes(lab: Lab, tmp_path: Path) -> None:
    """More than is read of it lies within the window, in ordinary lines; the trouble is at its end."""
    path = tmp_path / "busy.log"
    now = time.time()

    def line(age: float, words: str) -> str:
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now - age))},123 INFO uvicorn.access: {words}\n"

    ordinary = '10.0.4.17:53122 - "GET /api/projects/p-1/requirements?page=4 HTTP/1.1" 200 OK'
    lines = [line((240_000 - number) / 80, ordinary) for number in range(240_000)]
    lines += [line(0, "Login error: connection pool exhausted")] * 7
    path.write_text("".join(lines))
    assert path.stat().st_size > 24 << 20
    views = trip(lab, log=str(path))
    assert views["log"]["state"] == "ok", views["log"]["reason"]
    data = views["log"]["data"]
    assert data["counts"]["pool_exhausted"] == 7
    assert data["timestamps"] is True
    assert data["whole_window"] is False
    assert data["bytes_read"] <= 9 << 20


# -- the source --------------------------------------------------------------------------------------------


def test_a_source_of_ten_thousand_files(lab: Lab, tmp_path: Path) -> None:
    """And a FIFO among them, which nobody ever writes to."""
    leak = "def take(pool):\n    connection = pool.getconn()\n    connection.cursor().execute('SELECT 1')\n"
    text = leak + "".join(
        f"\n\ndef ordinary_{n}(x):\n    return [x + {n} for x in range(x)]\n" for n in range(20)
    )
    for directory in range(100):
        place = tmp_path / f"package_{directory}"
        place.mkdir()
        for file in range(100):
            (place / f"module_{file}.py").write_text(text)
    os.mkfifo(tmp_path / "package_0" / "pipe.py")
    views = trip(lab, source=[str(tmp_path)])
    others_are_read(views)
    source = views["source"]
    assert source["seconds"] < 5 + MARGIN_SECONDS
    assert source["data"]["findings"]
    assert source["data"]["complete"] is False or source["data"]["files"] == 10_000


# -- a status socket that does not do what it should -------------------------------------------------------

HOSTILE: dict[str, bytes | None] = {
    "silent": None,
    "garbage": b"\xff\xfe\x00 no JSON at all\n",
    "a list": b"[1, 2, 3]\n",
    "cut": b'{"schema": "runbook/status/1", "pid"',
    "endless": b"x" * (6 << 20),
    "deep": b"[" * 200_000 + b"\n",
    "no monitor": b'{"schema": "runbook/status/1", "monitor": null, "count": null}\n',
    "half a monitor": b'{"schema": "runbook/status/1", "monitor": {}, "count": {"used": "many"}}\n',
    "number": b'{"schema": "runbook/status/1", "count": {"used": 1e400, "maximum": -5}}\n',
}


class StatusSocket:
    """A server on `pool-<pid>.sock` that answers every question with the same bytes, or with nothing."""

    def __init__(self, path: Path, answer: bytes | None) -> None:
        self._answer = answer
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._held.append(client)
                if self._answer is not None:
                    client.settimeout(5)
                    with contextlib.suppress(OSError):  # it may hang up when it has read enough
                        client.sendall(self._answer)

    def close(self) -> None:
        self._server.close()
        for client in self._held:
            client.close()


@pytest.fixture
def status_socket(lab: Lab) -> Iterator[Callable[[bytes | None], str]]:
    """Puts a status socket beside the app; gives the directory it is in."""
    place = fresh_directory("status-")  # short enough for a socket's path
    made: list[StatusSocket] = []

    def make(answer: bytes | None) -> str:
        (pid,) = lab.app_pids()
        made.append(StatusSocket(place / f"pool-{pid}.sock", answer))
        return str(place)

    yield make
    for one in made:
        one.close()
    subprocess.run(["rm", "-rf", "--", str(place)], check=True)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_status_socket_that_does_not_tell(
    lab: Lab, status_socket: Callable[[bytes | None], str], kind: str
) -> None:
    """P is unread, or what was told is passed on as it is; nothing else suffers."""
    directory = status_socket(HOSTILE[kind])
    views = trip(lab, status_directories=[directory])
    others_are_read(views)
    pool = views["pool"]
    assert pool["seconds"] < 3 + MARGIN_SECONDS
    rows = (pool["data"] or {"processes": []})["processes"]
    for row in rows:
        assert (row["status"] is None) != (row["error"] is None)
    if kind not in ("no monitor", "half a monitor", "number"):
        assert not any(row["status"] for row in rows)
        assert views["monitor"]["data"] is None or views["monitor"]["data"]["alive"] is None
    json.loads(json.dumps(pool), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_status_socket_of_a_dead_process(lab: Lab, status_socket: Callable[[bytes | None], str]) -> None:
    """It is named as such, and hides nothing of the living."""
    place = Path(status_socket(json.dumps(status_document(1, [], [])).encode() + b"\n"))
    dead = place / "pool-4194305.sock"  # no kernel gives such a pid
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))
    (place / "pool-notes.sock").touch()
    pool = trip(lab, status_directories=[str(place)])["pool"]
    assert [(row["pid"], row["error"]) for row in pool["data"]["processes"]] == [(lab.app_pids()[0], None)]
    assert (pool["state"], pool["data"]["left_behind"]) == ("ok", [str(dead)])
    (place / f"pool-{lab.app_pids()[0]}.sock").unlink()
    alone = trip(lab, status_directories=[str(place)])["pool"]
    assert alone["reason"] == f"the app has no status socket; {dead}: a process that is gone left it behind"


def test_a_stale_pid_file_makes_no_stranger_a_part_of_the_app(lab: Lab, tmp_path: Path) -> None:
    """After a reboot the pid in it may be anybody's: whoever began after the file was written is not meant."""
    file = tmp_path / "odras.pid"
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as stranger:
        file.write_text(f"{stranger.pid}\n")
        yesterday = time.time() - 86_400
        os.utime(file, (yesterday, yesterday))
        views = trip(lab, pid_file=str(file))
        stranger.kill()
    assert [row["pid"] for row in views["process"]["data"]["processes"]] == lab.app_pids()
    assert views["process"]["data"]["service"]["main_pid"] != stranger.pid


def test_when_a_process_started_is_told_to_the_hundredth() -> None:
    """Less would make a server that an app was started right after the younger of the two."""
    before = time.time()
    with subprocess.Popen(["sleep", "60"]) as process:
        after = time.time()
        try:
            told = proc.describe(process.pid, proc.boot_time())
            assert told
            started = datetime.fromisoformat(told["started_at"]).timestamp()
            assert before - 0.02 <= started <= after + 0.01
        finally:
            process.kill()


def test_sockets_of_ipv6_are_in_the_table_as_soon_as_there_is_one() -> None:
    def states() -> list[str]:
        return sorted(row["state"] for row in proc.tcp_table(os.getpid()).values() if "[::1]" in row["local"])

    before = states()
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert states() == sorted([*before, "LISTEN"])
        with socket.create_connection(server.getsockname()[:2]) as client:
            server.accept()[0].close()
            assert client.recv(1) == b""
            assert {"CLOSE-WAIT", "LISTEN"} <= set(states())

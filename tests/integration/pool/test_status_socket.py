"""The status socket: answers when everything else hangs, and cannot be made to hang itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from runbook.pool import PoolTimeout, request
from runbook.pool.status import CLIENTS, REQUEST_BYTES
from tests.integration.pool.house import House, Relay, ask, until, valid_status

STATUS = {"schema": "runbook/status/1", "op": "status"}


def path_of(house: House) -> Path:
    return house.directory / f"pool-{os.getpid()}.sock"


def test_the_document_fits_its_schema(house: House) -> None:
    pool = house.pool(min_connections=1)
    answer = valid_status(ask(path_of(house), STATUS))
    assert answer["pid"] == os.getpid()
    assert (answer["host"], answer["port"], answer["user"]) == ("127.0.0.1", house.server.port, "odras_app")
    assert answer["application_name"] == pool.application_name
    assert answer["config"]["tcp_user_timeout"] == 30_000
    assert (answer["overrides"], answer["samples"], answer["events"]) == ([], [], [])
    assert house.server.passwords["odras_app"] not in json.dumps(answer)


def test_its_mode_keeps_strangers_out(house: House) -> None:
    house.pool()
    mode = path_of(house).lstat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o660
    assert [path.name for path in house.directory.iterdir()] == [path_of(house).name]


SICK = """
import asyncio, sys, threading
from concurrent.futures import ThreadPoolExecutor
from runbook.pool import Pool, PoolTimeout, Settings, request
pool = Pool(Settings.from_environment(), "billing")

def handler(number):
    with request(f"login-{number}"):
        connection = pool.getconn()
        connection.cursor().execute("SELECT 1")
        threading.Event().wait(60)

def leaky(number):
    with request(f"leaked-{number}"):
        leaked.append(pool.getconn())

leaked = []
leaky(0)
workers = ThreadPoolExecutor(8)
for number in range(8):
    workers.submit(handler, number)

async def application():
    pool.watch_loop()
    await asyncio.sleep(0.1)
    print("ready", flush=True)
    threading.Event().wait(60)      # the event loop is blocked, too

asyncio.run(application())
"""


@contextlib.contextmanager
def sick_application(house: House, **environ: str) -> Iterator[Path]:
    """A process whose pool is exhausted, whose workers all wait and whose event loop is blocked."""
    settings = house.settings()
    values = {
        "POSTGRES_HOST": settings.host,
        "POSTGRES_PORT": str(settings.port),
        "POSTGRES_DATABASE": settings.database,
        "POSTGRES_USER": settings.user,
        "POSTGRES_PASSWORD": settings.password or "",
        "POSTGRES_POOL_MIN_CONNECTIONS": "0",
        "POSTGRES_POOL_MAX_CONNECTIONS": "3",
        "RUNTIME_DIRECTORY": str(house.directory),
        **environ,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", SICK], env=values, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield house.directory / f"pool-{process.pid}.sock"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)


def test_row_10_an_exhausted_process_says_so_itself(house: House) -> None:
    with sick_application(house) as path:
        status = until(
            lambda: (s := ask(path, STATUS)) and s["count"]["waiting"] == 6 and len(s["holders"]) == 3 and s
        )
        valid_status(status)
        assert (status["count"]["used"], status["count"]["idle"]) == (3, 0)
        leaked, first, _ = status["holders"]
        assert (leaked["request_id"], leaked["request_over"]) == ("leaked-0", True)
        assert (first["request_id"][:6], first["request_over"]) == ("login-", False)
        assert leaked["site"] == "<string>:15" and first["site"] == "<string>:9"
        assert leaked["thread"] == "MainThread" and first["thread"].startswith("ThreadPoolExecutor")
        assert leaked["age"] >= first["age"] > 0
        assert {waiter["request_id"][:6] for waiter in status["waiters"]} == {"login-"}
        backends = house.server.sql(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s", (status["application_name"],)
        )
        assert {pid for (pid,) in backends} == {holder["backend_pid"] for holder in status["holders"]}
        until(lambda: ask(path, STATUS)["loop"]["heartbeat_age"] > 0.5)  # and the loop's silence shows
        found = ask(path, {**STATUS, "op": "stacks"})
        asleep = [one for one in found["stacks"] if one["thread"].startswith("ThreadPoolExecutor")]
        assert len(asleep) == 8
        assert sum("in getconn" in one["stack"] for one in asleep) == 6  # those that wait
        assert {"MainThread", "pool-status", "pool-monitor"} <= {one["thread"] for one in found["stacks"]}


def test_it_answers_without_the_database(breakable_house: House) -> None:
    pool = breakable_house.pool(max_connections=3)
    breakable_house.fill(pool, 2)
    breakable_house.server.stop()
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.3)
    status = valid_status(ask(path_of(breakable_house), STATUS, seconds=1))
    assert "refused" in status["last_connect_error"]
    assert status["counters"]["dead_found"]["57P01"] == 2


def test_it_counts_the_dead_that_nobody_has_touched(house: House) -> None:
    """Idle or borrowed: dead is what is dead now, and no summand."""
    pool = house.pool(max_connections=4)
    held, _, _ = house.fill(pool, 3)
    with pool.connection() as borrowed:
        assert borrowed is not held
        house.end_backends(pool)
        count = valid_status(ask(path_of(house), STATUS))["count"]
        assert (count["used"], count["idle"], count["never_opened"], count["dead"]) == (1, 2, 1, 3)


def test_row_22_the_status_is_consistent_under_churn(house: House) -> None:
    pool = house.pool(max_connections=4, connection_lifetime=0.3, monitor_interval=0.1, connection_timeout=20)
    stop = threading.Event()

    def churn(number: int) -> int:
        rounds = 0
        while not stop.is_set():
            with contextlib.suppress(psycopg2.Error), pool.connection() as connection:
                if rounds % 10 == number:
                    connection.close()
            rounds += 1
            stop.wait(0.001)
        return rounds

    with ThreadPoolExecutor(6) as threads:
        running = [threads.submit(churn, number) for number in range(6)]
        try:
            for _ in range(200):
                status = valid_status(pool.status())
                assert len(status["holders"]) + status["count"]["connecting"] == status["count"]["used"]
                assert len(status["waiters"]) == status["count"]["waiting"]
        finally:
            stop.set()
        assert min(one.result(20) for one in running) > 10


def test_a_waiter_that_holds_one_already_is_told(house: House) -> None:
    pool = house.pool(max_connections=1)
    with ThreadPoolExecutor(1) as threads:

        def nested() -> None:
            with request("nested"), pool.connection(), pytest.raises(PoolTimeout):
                pool.getconn(timeout=2)

        running = threads.submit(nested)
        status = until(lambda: (s := pool.status())["holders"] and s["waiters"] and s)
        assert status["waiters"][0]["holds"] == 1
        assert status["waiters"][0]["request_id"] == "nested"
        running.result(5)


def test_a_long_lived_borrower_says_why(house: House) -> None:
    pool = house.pool()
    with pool.connection(long_lived="LISTEN for invoices"):
        (holder,) = pool.status()["holders"]
    assert holder["long_lived"] == "LISTEN for invoices"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"hello\n", "the request is not one line of JSON"),
        (b"[" * 4000 + b"\n", "the request is not one line of JSON"),
        (b'{"op": "status"}\n', "the request's schema must be 'runbook/status/1'"),
        (b'{"schema": "runbook/status/1"}\n', "unknown op None; known: status, stacks, set, revert"),
        (
            b'{"schema": "runbook/status/1", "op": "halt"}\n',
            "unknown op 'halt'; known: status, stacks, set, revert",
        ),
        (b"x" * 2 * REQUEST_BYTES, f"the request is longer than {REQUEST_BYTES} bytes"),
    ],
)
def test_what_is_not_understood_is_refused_clearly(house: House, line: bytes, error: str) -> None:
    house.pool()
    assert ask(path_of(house), line) == {"schema": "runbook/status/1", "error": error}


def test_slow_and_idle_clients_keep_nobody_waiting(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runbook.pool.status.CLIENT_SECONDS", 0.5)
    house.pool()
    with contextlib.ExitStack() as clients:
        idle = []
        for _ in range(CLIENTS + 5):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(3)
            client.connect(str(path_of(house)))
            client.send(b'{"schema"')
            idle.append(client)
            valid_status(ask(path_of(house), STATUS, seconds=1))
        started = time.monotonic()
        for client in idle:  # each is dropped in the end, though it said nothing more
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        assert time.monotonic() - started < 2


def test_a_client_that_does_not_read_is_dropped(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runbook.pool.status.CLIENT_SECONDS", 0.5)
    pool = house.pool()
    with socket.socket(socket.AF_UNIX) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.connect(str(path_of(house)))
        client.sendall(json.dumps({**STATUS, "op": "stacks"}).encode() + b"\n")
        valid_status(ask(path_of(house), STATUS, seconds=1))
        until(lambda: not pool._socket._clients, seconds=3)


def test_only_sockets_nobody_listens_on_are_removed(house: House, caplog: pytest.LogCaptureFixture) -> None:
    stale, served, other = (house.directory / f"pool-{pid}.sock" for pid in (1, 2, 3))
    other.write_text("no socket at all")
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as living:
        dead.bind(str(stale))
        living.bind(str(served))
        living.listen()
        house.pool()
        assert not stale.exists()
        assert served.exists() and other.exists()


def test_it_takes_the_place_of_a_dead_process_with_the_same_pid(house: House) -> None:
    """In a container the pid is the same after every restart."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path_of(house)))
    house.pool()
    valid_status(ask(path_of(house), STATUS))


def test_a_second_pool_leaves_the_firsts_socket_alone(house: House, caplog: pytest.LogCaptureFixture) -> None:
    first, second = house.pool(), house.pool()
    assert any("another pool of this process is served there" in text for text in caplog.messages)
    second.close()
    assert ask(path_of(house), STATUS)["application_name"] == first.application_name


@pytest.mark.parametrize("directory", ["/proc/no-such-directory", "/dev/null"])
def test_without_a_place_for_it_the_pool_works_all_the_same(
    house: House, directory: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = house.pool(runtime_directory=directory)
    pool.putconn(pool.getconn())
    assert any(f"No status socket at {directory}/pool-" in text for text in caplog.messages)


def test_close_removes_it(house: House) -> None:
    pool = house.pool()
    assert path_of(house).exists()
    pool.close()
    assert not path_of(house).exists()
    assert "pool-status" not in {thread.name for thread in threading.enumerate()}


def test_the_status_does_not_wait_for_a_hanging_connect(house: House, relay: Relay) -> None:
    relay.hold_new = True
    pool = house.pool(port=relay.port, connect_timeout=2)
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.2)
    started = time.monotonic()
    status: dict[str, Any] = ask(path_of(house), STATUS)
    assert time.monotonic() - started < 0.5
    assert (status["count"]["used"], status["count"]["connecting"]) == (1, 1)


def test_the_loop_of_the_application_proves_its_life(house: House) -> None:
    pool = house.pool()
    assert pool.status()["loop"] is None

    async def application() -> float:
        pool.watch_loop()
        await asyncio.sleep(1.3)
        status = await asyncio.to_thread(ask, path_of(house), STATUS)
        age: float = status["loop"]["heartbeat_age"]
        return age

    assert asyncio.run(application()) < 1.0

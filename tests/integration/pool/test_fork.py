"""A forked child has a pool of its own; its parent notices nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from runbook.pool import Pool
from tests.integration.pool.house import House, ask, until

STATUS = {"schema": "runbook/status/1", "op": "status"}


def in_child(work: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Fork, run `work` in the child and return what it returned, through JSON; its failure is a failure."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(int(seconds))
            os.write(write, json.dumps(work()).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status}"
    return json.loads(answer)


def backend_of(pool: Pool) -> int:
    with pool.connection(timeout=5) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone() or (0,)
        return int(pid)


# Python 3.12 warns of a fork with threads, which is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def open_sockets() -> set[str]:
    """The sockets that this process holds, by inode."""
    paths = list(Path("/proc/self/fd").iterdir())
    return {os.readlink(path) for path in paths if path.is_symlink()}


def test_row_29_the_child_works_and_the_parent_is_unharmed(house: House) -> None:
    pool = house.pool(min_connections=2, max_connections=4)
    until(lambda: pool.status()["count"]["idle"] == 2)
    backends = house.backends(pool)
    borrowed = pool.getconn()
    cursor = borrowed.cursor()
    cursor.execute("CREATE TEMPORARY TABLE mine AS SELECT 7 AS n")
    assert pool._socket._listener is not None
    descriptors = [borrowed.fd, *(c.fd for c in pool.idle_connections()), pool._socket._listener.fileno()]
    sockets = {os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in descriptors}

    def child() -> dict[str, Any]:
        kept = sockets & open_sockets()
        status = pool.status()
        own = backend_of(pool)
        asked = ask(house.directory / f"pool-{os.getpid()}.sock", STATUS)
        monitor = until(lambda: (m := pool.status()["monitor"])["heartbeat_age"] is not None and m)
        try:
            cursor.execute("SELECT n FROM mine")
            error = "none"
        except psycopg2.Error as caught:
            error = type(caught).__name__
        borrowed.close()
        pool.close()
        return {
            "kept": sorted(kept),
            "holders": status["holders"],
            "checkouts": status["counters"]["checkouts"],
            "name": status["application_name"],
            "backend": own,
            "asked": [asked["pid"], os.getpid()],
            "alive": monitor["alive"],
            "error": error,
        }

    told = in_child(child)
    assert told["kept"] == []  # nobody holds the parent's sockets but the parent
    assert told["holders"] == [] and told["checkouts"] == 0
    assert told["backend"] not in backends
    assert told["asked"][0] == told["asked"][1] != os.getpid()
    assert told["name"] == pool.application_name.replace(str(os.getpid()), str(told["asked"][1]))
    assert told["alive"]
    assert told["error"] in ("OperationalError", "InterfaceError", "DatabaseError")
    # The parent: same backends, its transaction still open, its monitor and socket alive.
    cursor.execute("SELECT n FROM mine")
    assert cursor.fetchone() == (7,)
    borrowed.commit()
    pool.putconn(borrowed)
    assert house.backends(pool) == backends
    assert backend_of(pool) in backends
    assert pool.status()["counters"]["dead_found"]["fin"] == 0
    assert ask(house.directory / f"pool-{os.getpid()}.sock", STATUS)["pid"] == os.getpid()
    assert pool.monitor.alive()


def test_row_29_a_child_that_just_ends_harms_nobody(house: House) -> None:
    pool = house.pool(min_connections=0, max_connections=4)
    connections = house.fill(pool, 3)
    for _ in range(3):
        assert in_child(lambda: 1) == 1
    assert house.backends(pool) == {connection.backend_pid for connection in connections}
    assert backend_of(pool) == connections[-1].backend_pid


def test_row_29_forking_while_others_borrow(house: House) -> None:
    """Whatever the other threads did at that moment, the child's pool is whole."""
    pool = house.pool(max_connections=3)
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            backend_of(pool)

    threads = [threading.Thread(target=churn) for _ in range(5)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert in_child(lambda: backend_of(pool)) > 0
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert pool.status()["count"]["used"] == 0
    found = pool.status()["counters"]["dead_found"]
    assert sum(found.values()) == 0


def test_a_closed_pool_stays_closed_in_the_child(house: House) -> None:
    pool = house.pool()
    pool.close()
    assert in_child(lambda: pool.closed and not pool.monitor.alive())

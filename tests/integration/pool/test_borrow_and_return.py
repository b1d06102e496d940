"""Borrowing and returning: no dead connection is handed out, no slot is lost, nobody waits for ever.

`test_row_NN_…` shows row NN of the list of defects in the guide's own code.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import psycopg2.pool
import pytest

from runbook.pool import Pool, PoolClosed, PoolTimeout, TooManyWaiting
from tests.integration.pool.house import House, Relay, until


def value(pool: Pool, statement: str = "SELECT 1") -> Any:
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        (found,) = cursor.fetchone() or (None,)
        return found


def counts(pool: Pool) -> tuple[int, int]:
    """(used, idle)."""
    count = pool.status()["count"]
    return count["used"], count["idle"]


def test_row_01_dead_connections_give_their_slots_back(house: House) -> None:
    pool = house.pool(max_connections=3)
    for _ in range(7):  # more often than the maximum
        connections = [pool.getconn() for _ in range(3)]
        house.end_backends(pool)
        for connection in connections:
            pool.putconn(connection)
    assert counts(pool)[0] == 0
    assert value(pool) == 1


def test_row_02_after_all_backends_died_the_next_request_succeeds(house: House) -> None:
    pool = house.pool(max_connections=10)
    house.fill(pool, 10)
    house.end_backends(pool)
    assert value(pool) == 1
    assert pool.status()["counters"]["dead_found"]["57P01"] == 10


def test_row_04_a_waiter_gets_the_connection_that_comes_back(house: House) -> None:
    pool = house.pool(max_connections=2, connection_timeout=5)

    def work(_: int) -> Any:
        return value(pool, "SELECT pg_sleep(0.05) IS NULL")

    with ThreadPoolExecutor(20) as threads:
        assert list(threads.map(work, range(20))) == [False] * 20
    assert len(house.backends(pool)) == 2
    assert pool.status()["counters"]["waits"] >= 18


def test_row_04_first_come_first_served(house: House) -> None:
    pool = house.pool(max_connections=1)
    held = pool.getconn()
    served: list[int] = []

    def wait(number: int) -> None:
        with pool.connection():
            served.append(number)

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=wait, args=[number]))
        threads[-1].start()
        until(lambda n=number: pool.status()["count"]["waiting"] == n + 1)
    pool.putconn(held)
    for thread in threads:
        thread.join(10)
    assert served == [0, 1, 2, 3, 4]


def test_row_04_the_error_at_the_deadline_says_who_holds(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    pool = house.pool(max_connections=2)
    listener = pool.getconn(long_lived="LISTEN for invoices")
    held = pool.getconn()
    line = held.lease.borrower.line
    started = time.monotonic()
    with pytest.raises(PoolTimeout) as caught:
        pool.getconn(timeout=0.5)
    assert 0.5 <= time.monotonic() - started < 1.0
    text = str(caught.value)
    assert "connection pool exhausted: no connection within 0.5 s: 2 of 2 used (0 connecting)" in text
    assert "0 idle, 0 never opened, 1 waiting" in text
    assert f"oldest holder {__file__}:{line} in thread MainThread for 0." in text
    assert isinstance(caught.value, psycopg2.pool.PoolError)  # what callers of psycopg2.pool catch
    assert f"Failed to get database connection: {text}" in caplog.messages
    assert pool.status()["counters"]["timeouts"] == 1
    assert pool.status()["count"]["waiting"] == 0
    pool.putconn(held)
    pool.putconn(listener)


def test_row_04_no_more_waiters_than_allowed(house: House) -> None:
    pool = house.pool(max_connections=1, max_waiting=1)
    held = pool.getconn()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(value, pool)
        until(lambda: pool.status()["count"]["waiting"] == 1)
        with pytest.raises(TooManyWaiting, match="1 wait already, and no more may: 1 of 1 used"):
            pool.getconn()
        pool.putconn(held)
        assert waiting.result(10) == 1


def test_row_05_lifetime_ends_at_checkout_and_at_return(house: House) -> None:
    pool = house.pool(max_connections=1, connection_lifetime=0.5)
    first = value(pool, "SELECT pg_backend_pid()")
    assert value(pool, "SELECT pg_backend_pid()") == first
    time.sleep(0.5)  # the lifetime itself is under test
    second = value(pool, "SELECT pg_backend_pid()")
    assert second != first
    held = pool.getconn()
    time.sleep(0.5)
    pool.putconn(held)
    assert counts(pool) == (0, 0)


def test_row_05_lifetimes_are_jittered(house: House) -> None:
    pool = house.pool(max_connections=8, connection_lifetime=1000)
    connections = [pool.getconn() for _ in range(8)]
    rests = [connection.expires_at - connection.checked_at for connection in connections]
    for connection in connections:
        pool.putconn(connection)
    assert all(895 < rest <= 1001 for rest in rests)
    assert len({round(rest, 3) for rest in rests}) == 8


def test_row_06_what_is_above_the_minimum_is_kept(house: House) -> None:
    pool = house.pool(min_connections=1, max_connections=8)
    seen: set[int] = set()
    for _ in range(10):
        connections = [pool.getconn() for _ in range(8)]
        seen |= {connection.backend_pid for connection in connections}
        for connection in connections:
            pool.putconn(connection)
    assert len(seen) == 8
    assert house.backends(pool) == seen


def test_row_09_a_return_is_quick_while_a_connect_hangs(house: House, relay: Relay) -> None:
    pool = house.pool(port=relay.port, max_connections=2, connect_timeout=2)
    connection = pool.getconn()
    relay.hold_new = True
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.getconn)
        until(lambda: pool.status()["count"]["connecting"] == 1)
        assert counts(pool) == (2, 0)  # the one being connected takes a slot
        started = time.monotonic()
        pool.putconn(connection)
        assert time.monotonic() - started < 0.2
        assert waiting.result(1) is connection  # and the waiter has the one that came back
        pool.putconn(connection)


def test_row_09_the_deadline_holds_while_a_connect_hangs(house: House, relay: Relay) -> None:
    relay.hold_new = True
    pool = house.pool(port=relay.port, connect_timeout=2)
    started = time.monotonic()
    with pytest.raises(PoolTimeout, match=r"1 of 20 used \(1 connecting\)"):
        pool.getconn(timeout=0.5)
    assert time.monotonic() - started < 1.0
    relay.hold_new = False
    until(lambda: pool.status()["last_connect_error"])
    assert "timeout expired" in pool.status()["last_connect_error"]
    assert value(pool) == 1
    assert pool.status()["last_connect_error"] is None


def test_row_17_as_many_backends_as_the_pool_says_and_named(house: House) -> None:
    pool = house.pool(min_connections=3, max_connections=6)
    until(lambda: counts(pool) == (0, 3))
    held = [pool.getconn() for _ in range(5)]
    assert len(house.backends(pool)) == sum(counts(pool)) == 5
    for connection in held:
        pool.putconn(connection)
    name = pool.application_name
    assert name.startswith("billing-") and name.endswith(f":{pool.status()['pid']}")


@pytest.mark.parametrize("name", ["b", "b" * 100, "büro"])
def test_row_17_the_name_fits_into_what_the_server_keeps(house: House, name: str) -> None:
    pool = Pool(house.settings(), name)
    try:
        with pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute("SHOW application_name")
            assert cursor.fetchone() == (pool.application_name,)
        assert len(pool.application_name.encode()) <= 63
        assert pool.application_name.endswith(f":{os.getpid()}")
    finally:
        pool.close()


def test_row_18_no_transaction_is_left_behind(house: House) -> None:
    pool = house.pool(max_connections=2, validate_after_idle=0)  # a round trip at every checkout
    with pool.connection() as unused:
        pid = unused.backend_pid
    with pool.connection() as again:
        assert again.backend_pid == pid
        assert not again.autocommit
        rows = house.server.sql("SELECT state FROM pg_stat_activity WHERE pid = %s", (pid,))
        assert rows == [("idle",)]
    pool.monitor._tick()
    assert house.server.sql("SELECT state FROM pg_stat_activity WHERE pid = %s", (pid,)) == [("idle",)]


def test_row_18_what_was_not_committed_is_rolled_back(house: House) -> None:
    pool = house.pool(max_connections=1)
    connection = pool.getconn()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE scratch (n int)")
    pool.putconn(connection)
    assert pool.getconn() is connection
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('scratch')")
        assert cursor.fetchone() == (None,)
    connection.rollback()
    connection.autocommit = True
    pool.putconn(connection)
    assert pool.getconn() is connection
    assert not connection.autocommit


def broken_by_user_error(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")


def closed_by_its_borrower(connection: Any) -> None:
    connection.close()


def interrupted(connection: Any) -> None:
    raise KeyboardInterrupt


def ended_inside_a_statement(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.mark.parametrize(
    "trouble", [broken_by_user_error, closed_by_its_borrower, interrupted, ended_inside_a_statement]
)
def test_row_19_the_slot_comes_back_on_every_exception(house: House, trouble: Callable[[Any], None]) -> None:
    pool = house.pool(max_connections=1)
    for _ in range(3):
        with pytest.raises((psycopg2.Error, KeyboardInterrupt)), pool.connection() as connection:
            trouble(connection)
    assert counts(pool)[0] == 0
    assert value(pool) == 1
    found = pool.status()["counters"]["dead_found"]
    assert sum(found.values()) == found["in_use"] == (3 if trouble is ended_inside_a_statement else 0)


def test_row_19_an_interrupted_waiter_leaves_the_queue(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception out of nowhere (a signal handler's) while waiting: nothing is kept, nothing is lost."""
    pool = house.pool(max_connections=1)
    held = pool.getconn()
    real_wait = threading.Event.wait

    def interrupted_wait(event: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread() is threading.main_thread():
            pool.putconn(held)  # it is even handed over at that very moment
            raise KeyboardInterrupt
        return real_wait(event, timeout)

    monkeypatch.setattr(threading.Event, "wait", interrupted_wait)
    with pytest.raises(KeyboardInterrupt):
        pool.getconn()
    monkeypatch.undo()
    assert counts(pool) == (0, 1)
    assert pool.status()["count"]["waiting"] == 0


def test_row_28_a_connection_that_died_in_a_transaction_can_be_returned(house: House) -> None:
    pool = house.pool(max_connections=1)
    for _ in range(3):
        connection = pool.getconn()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        house.end_backends(pool, connection.backend_pid)
        pool.putconn(connection)
        assert counts(pool) == (0, 0)
    assert pool.status()["counters"]["dead_found"]["57P01"] == 3


def test_a_forgotten_connection_frees_its_slot_and_is_told(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    pool = house.pool(max_connections=2)

    def forget() -> None:
        pool.getconn().cursor().execute("SELECT 1")

    for _ in range(5):
        forget()
        gc.collect()
    assert value(pool) == 1
    assert pool.status()["counters"]["lost"] == 5
    assert f"borrowed by {__file__}" in next(text for text in caplog.messages if "Lost connection" in text)
    until(lambda: len(house.backends(pool)) == 1)


def test_with_getconn_alone_loses_nothing(house: House) -> None:
    """`with pool.getconn() as c` ends the transaction and returns nothing, in psycopg2 as here."""
    pool = house.pool(max_connections=2)

    def careless() -> None:
        with pool.getconn() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    for _ in range(6):
        careless()


def test_a_waiter_gets_the_slot_of_a_forgotten_connection(house: House) -> None:
    pool = house.pool(max_connections=1)
    forgotten = [pool.getconn()]
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(value, pool)
        until(lambda: pool.status()["count"]["waiting"] == 1)
        forgotten.clear()
        assert waiting.result(5) == 1


def test_returned_while_a_statement_still_runs(house: House) -> None:
    """The statement of the other thread fails at once; the return does not wait for it."""
    pool = house.pool(max_connections=1)
    connection = pool.getconn()

    def sleep() -> None:
        connection.cursor().execute("SELECT pg_sleep(5)")

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(sleep)
        until(
            lambda: house.server.sql(
                "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active'",
                (connection.backend_pid,),
            )
        )
        started = time.monotonic()
        pool.putconn(connection)
        assert time.monotonic() - started < 1
        with pytest.raises(psycopg2.Error):
            running.result(5)
    assert counts(pool) == (0, 0)


def test_a_rollback_is_bounded(house: House) -> None:
    pool = house.pool(max_connections=1, validation_timeout=0.5)
    connection = pool.getconn()
    connection.cursor().execute("SELECT 1")
    with house.stopped(connection.backend_pid):
        started = time.monotonic()
        pool.putconn(connection)
        assert time.monotonic() - started < 1.5
    assert pool.status()["counters"]["dead_found"]["silent"] == 1
    assert value(pool) == 1


def test_a_second_return_is_an_error(house: House) -> None:
    pool = house.pool()
    connection = pool.getconn()
    pool.putconn(connection)
    with pytest.raises(psycopg2.pool.PoolError, match="not borrowed from this pool"):
        pool.putconn(connection)
    assert counts(pool) == (0, 1)


def test_close_drains_then_cuts(house: House) -> None:
    pool = house.pool(max_connections=2)
    quick, slow = pool.getconn(), pool.getconn()
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(pool.getconn)
        until(lambda: pool.status()["count"]["waiting"] == 1)
        closing = threads.submit(pool.close, 1.0)
        with pytest.raises(PoolClosed, match="while waiting"):
            waiting.result(1)
        with pytest.raises(PoolClosed):
            pool.getconn()
        pool.putconn(quick)
        assert closing.result(3) == 1
    assert slow.closed and quick.closed
    pool.putconn(slow)
    until(lambda: not house.backends(pool))
    assert not pool.monitor.alive()
    assert pool.close() == 0


def test_close_ends_when_the_last_one_comes_back(house: House) -> None:
    pool = house.pool()
    connection = pool.getconn()
    with ThreadPoolExecutor(1) as threads:
        closing = threads.submit(pool.close, 30.0)
        until(lambda: pool.closed)
        pool.putconn(connection)
        assert closing.result(2) == 0


def test_many_threads_in_trouble_lose_nothing(house: House) -> None:
    """Errors, forgotten connections and ended backends at once: afterwards the pool is as good as new."""
    pool = house.pool(max_connections=5, connection_timeout=20, connection_lifetime=0.5)

    def work(kind: int) -> None:
        with pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            if kind == 0:
                cursor.execute("SELECT 1 / 0")
            elif kind == 1:
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            elif kind == 2:
                raise ValueError
            elif kind == 3:
                pool.putconn(connection, close=True)  # and once more at the end of the block

    def trouble(number: int) -> None:
        for step in range(15):
            with contextlib.suppress(psycopg2.Error, ValueError):
                work((number + step) % 5)
            if step % 5 == 0:
                pool.getconn(timeout=20)  # and forget it

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(trouble, range(12)))
    gc.collect()
    until(lambda: counts(pool)[0] == 0)  # a connection may still be in the making for a waiter already served
    held = [pool.getconn(timeout=5) for _ in range(5)]
    assert len({connection.backend_pid for connection in held}) == 5
    until(lambda: len(house.backends(pool)) == 5)

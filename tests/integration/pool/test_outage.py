"""The database goes and comes back; nobody restarts the application."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from runbook.pool import PoolTimeout
from tests.integration.pool.house import House, until


def test_an_outage_needs_no_restart(breakable_house: House) -> None:
    pool = breakable_house.pool(min_connections=2, max_connections=5, connection_timeout=3)
    breakable_house.fill(pool, 5)
    breakable_house.server.stop()
    started = time.monotonic()
    with pytest.raises(
        PoolTimeout, match=r"no connection within 1\.\d s: .*last failure to connect: .*refused"
    ):
        pool.getconn(timeout=1)
    assert time.monotonic() - started < 1.5
    status = pool.status()
    assert status["count"]["never_opened"] >= 4
    assert "refused" in status["last_connect_error"]
    breakable_house.server.start()
    with ThreadPoolExecutor(10) as threads:
        connections = threads.map(lambda _: pool.putconn(pool.getconn()), range(10))
        assert list(connections) == [None] * 10
    status = pool.status()
    assert status["last_connect_error"] is None
    assert status["counters"]["dead_found"]["57P01"] == 5


def test_waiters_ride_out_a_restart(breakable_house: House) -> None:
    pool = breakable_house.pool(max_connections=4, connection_timeout=20)
    breakable_house.fill(pool, 4)
    breakable_house.server.stop()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(lambda: pool.putconn(pool.getconn())) for _ in range(8)]
        until(lambda: pool.status()["counters"]["connect_failures"] >= 2)
        breakable_house.server.start()
        for one in waiting:
            one.result(10)


def test_attempts_are_few_while_the_database_is_away(breakable_house: House) -> None:
    """One at a time, further and further apart, however many wait."""
    pool = breakable_house.pool(max_connections=20, connection_timeout=20)
    breakable_house.server.stop()
    with ThreadPoolExecutor(20) as threads:
        waiting = [threads.submit(pool.getconn, 3) for _ in range(20)]
        # The first attempts are made together, as nobody knows yet.
        until(lambda: (count := pool.status()["count"])["waiting"] == 20 and count["connecting"] <= 1)
        before = pool.status()["counters"]["connect_failures"]
        for one in waiting:
            with pytest.raises(PoolTimeout):
                one.result(10)
    attempts = pool.status()["counters"]["connect_failures"] - before
    assert 2 <= attempts <= 12


def test_an_unreachable_host_is_refused_clearly_and_within_the_deadline(house: House) -> None:
    pool = house.pool(host="no-such-host.invalid")
    started = time.monotonic()
    with pytest.raises(PoolTimeout, match=r'last failure to connect: .*"no-such-host.invalid"') as caught:
        pool.getconn(timeout=2)
    assert time.monotonic() - started < 3
    assert house.server.passwords["odras_app"] not in str(caught.value)


def test_a_wrong_password_is_told_without_it(house: House, caplog: pytest.LogCaptureFixture) -> None:
    pool = house.pool(password="canary-7d1f")
    with pytest.raises(PoolTimeout, match='password authentication failed for user "odras_app"') as caught:
        pool.getconn(timeout=1)
    assert "canary-7d1f" not in str(caught.value) + caplog.text + repr(pool.settings) + str(pool.status())


def test_no_thread_can_be_started(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost when the system refuses a thread, and the waiter is served once it no longer does."""
    pool = house.pool()
    real_start, refusals = threading.Thread.start, iter(range(2))

    def refuse_twice(thread: threading.Thread) -> None:
        if thread.name == "pool-connect" and next(refusals, None) is not None:
            raise RuntimeError("can't start new thread")
        real_start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_twice)
    pool.putconn(pool.getconn(timeout=5))
    assert pool.status()["counters"]["connect_failures"] == 2
    assert pool.status()["count"]["used"] == 0

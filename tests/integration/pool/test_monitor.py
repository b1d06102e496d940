"""The monitor: what it tests, keeps and says; and logging that is in the file when one looks."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.integration.pool.house import House, until

LOGGER = "runbook.pool"


def test_row_03_an_idle_pool_uses_nothing_and_warns_of_nothing(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    pool = house.pool(min_connections=2, max_connections=20, monitor_interval=0.1)
    until(lambda: sum("DB Pool Status: 0/20 connections in use" in text for text in caplog.messages) >= 3)
    count = pool.status()["count"]
    assert (count["used"], count["idle"], count["never_opened"]) == (0, 2, 18)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_row_03_more_than_80_percent_used_is_a_warning(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    pool = house.pool(max_connections=5, monitor_interval=0.1)
    held = [pool.getconn() for _ in range(4)]
    until(lambda: any("DB Pool Status: 4/5 connections in use" in text for text in caplog.messages))
    assert not [text for text in caplog.messages if "High connection pool usage" in text]
    held.append(pool.getconn())
    until(lambda: any("High connection pool usage: 5/5 connections" in text for text in caplog.messages))
    for connection in held:
        pool.putconn(connection)


def test_row_07_every_idle_connection_is_tested(house: House) -> None:
    pool = house.pool(min_connections=5, max_connections=8, monitor_interval=0.2)
    connections = house.fill(pool, 6)
    victim = connections[2]
    house.end_backends(pool, victim.backend_pid)
    until(lambda: pool.status()["counters"]["dead_found"]["57P01"] == 1)
    assert victim.closed
    asked = {connection: connection.checked_at for connection in connections if connection is not victim}
    until(lambda: all(connection.checked_at > before for connection, before in asked.items()))
    assert pool.status()["count"]["idle"] == 5


def test_the_minimum_is_kept_warm(house: House) -> None:
    pool = house.pool(min_connections=3, monitor_interval=0.2)
    until(lambda: pool.status()["count"]["idle"] == 3)
    house.end_backends(pool)
    until(lambda: pool.status()["counters"]["opened"] == 6)
    assert len(house.backends(pool)) == 3


def test_row_06_idle_connections_are_closed_by_time_down_to_the_minimum(house: House) -> None:
    pool = house.pool(min_connections=1, max_connections=6, idle_timeout=0.5, monitor_interval=0.1)
    house.fill(pool, 6)
    assert pool.status()["count"]["idle"] == 6
    until(lambda: pool.status()["count"]["idle"] == 1)
    until(lambda: len(house.backends(pool)) == 1)
    assert pool.status()["counters"]["opened"] == 6  # the minimum was left, and not closed and opened again


def test_row_08_a_stopped_backend_stops_neither_monitor_nor_event_loop(house: House) -> None:
    pool = house.pool(max_connections=3, monitor_interval=0.3, validation_timeout=0.8)
    connections = house.fill(pool, 3)
    ages: list[float] = []

    async def application() -> None:
        pool.watch_loop()
        deadline = time.monotonic() + 15
        while pool.status()["counters"]["dead_found"]["silent"] == 0:
            assert time.monotonic() < deadline
            ages.append(pool.status()["loop"]["heartbeat_age"])
            await asyncio.sleep(0.05)

    with house.stopped(connections[1].backend_pid):
        asyncio.run(application())
    assert max(ages) < 1.5  # it beats every second
    assert pool.status()["loop"] is None  # that loop has ended
    until(lambda: connections[0].checked_at > connections[1].checked_at)
    assert pool.status()["monitor"]["alive"]


def test_row_14_a_dead_monitor_is_flagged(house: House) -> None:
    pool = house.pool(monitor_interval=0.1)
    until(lambda: (pool.status()["monitor"]["heartbeat_age"] or 0) < 0.1)
    pool.monitor.stop()
    pool.monitor.join(5)
    monitor = pool.status()["monitor"]
    assert not monitor["alive"]
    until(lambda: pool.status()["monitor"]["heartbeat_age"] > 2 * monitor["interval"])


def test_row_14_a_hanging_monitor_is_flagged(house: House) -> None:
    release = threading.Event()
    pool = house.pool(monitor_interval=0.1)
    pool.housekeeping = lambda: release.wait(20)
    until(lambda: pool.status()["monitor"]["heartbeat_age"] > 0.5)
    release.set()
    until(lambda: pool.status()["monitor"]["heartbeat_age"] < 0.1)


def test_row_23_a_burst_between_two_ticks_shows(house: House) -> None:
    pool = house.pool(max_connections=3)
    held = [pool.getconn() for _ in range(3)]
    with pytest.raises(Exception, match="no connection within"):
        pool.getconn(timeout=0.05)
    for connection in held:
        pool.putconn(connection)
    counters = pool.status()["counters"]
    assert pool.status()["count"]["used"] == 0
    assert (counters["peak_used"], counters["peak_waiting"], counters["timeouts"]) == (3, 1, 1)
    assert counters["checkouts"] == 3
    assert counters["wait_seconds"] >= 0.05
    assert counters["use_seconds"] > 0.05


def test_row_27_housekeeping_deletes_what_expired(house: House) -> None:
    house.server.sql(
        """INSERT INTO auth_tokens (token_hash, user_id, expires_at)
           SELECT name, user_id, now() + span::interval
           FROM users, (VALUES ('expired', '-1 hour'), ('valid', '1 hour')) AS t (name, span)""",
        database="odras",
    )

    def delete_expired() -> None:
        with pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM auth_tokens WHERE expires_at < now()")

    pool = house.pool(monitor_interval=0.1)
    pool.housekeeping = delete_expired
    try:
        until(
            lambda: house.server.sql("SELECT token_hash FROM auth_tokens", database="odras") == [("valid",)]
        )
    finally:
        house.server.sql("DELETE FROM auth_tokens", database="odras")


def test_failing_housekeeping_is_told_and_the_monitor_lives_on(house: House) -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("no such table")

    pool = house.pool(housekeeping=fail, monitor_interval=0.2)
    until(lambda: pool.status()["monitor"]["last_error"] == "RuntimeError: no such table")
    until(lambda: len(calls) >= 3 and pool.status()["monitor"]["last_error"] is None)


def test_the_baseline_of_the_servers_counters(house: House) -> None:
    pool = house.pool(min_connections=1)
    baseline = until(lambda: pool.status()["server_baseline"])
    before = baseline["sessions_killed"]
    house.end_backends(pool)
    now = "SELECT sessions_killed FROM pg_stat_database WHERE datname = 'odras'"
    until(lambda: house.server.sql(now) > [(before,)])
    assert pool.status()["server_baseline"] == baseline


PROGRAM = """
import signal, sys
from runbook.pool import Pool, Settings, configure_logging
configure_logging(sys.argv[1])
pool = Pool(Settings.from_environment(), "billing")
pool.putconn(pool.getconn())
print("ready", flush=True)
signal.pause()
"""
LINE = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z %s runbook\.pool \[%d\] %s"


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_row_11_and_12_the_lines_are_in_the_file_at_once(house: House, tmp_path: Path, level: str) -> None:
    """With time, level, logger and pid, while the process still runs: the guide's greps find them."""
    settings = house.settings()
    environ = {
        "POSTGRES_HOST": settings.host,
        "POSTGRES_PORT": str(settings.port),
        "POSTGRES_DATABASE": settings.database,
        "POSTGRES_USER": settings.user,
        "POSTGRES_PASSWORD": settings.password or "",
    }
    log = tmp_path / "app.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, level], stdout=subprocess.PIPE, stderr=file, env=environ
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        started = LINE % ("INFO", process.pid, "Database connection pool monitor started")
        assert until(lambda: re.search(started, log.read_text(), re.M), seconds=1)
        usage = LINE % ("INFO", process.pid, r"DB Pool Status: \d/20 connections in use")
        assert until(lambda: re.search(usage, log.read_text(), re.M), seconds=3)
        acquired = LINE % ("DEBUG", process.pid, "acquired backend")
        assert bool(re.search(acquired, log.read_text(), re.M)) == (level == "DEBUG")
        assert (settings.password or "") not in log.read_text()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)


def test_row_15_debug_tells_every_acquisition_and_return(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    pool = house.pool()

    def lines() -> list[str]:
        pool.putconn(pool.getconn())
        found = [text for text in caplog.messages if text.startswith(("acquired", "returned"))]
        caplog.clear()
        return found

    assert lines() == []
    caplog.set_level(logging.DEBUG, logger=LOGGER)
    acquired, returned = lines()
    who = rf"by {re.escape(__file__)}:\d+ in thread MainThread after \d+\.\d ms"
    assert re.fullmatch(rf"acquired backend \d+ {who}", acquired)
    assert re.fullmatch(rf"returned backend \d+ {who}", returned)
    caplog.set_level(logging.INFO, logger=LOGGER)
    assert lines() == []

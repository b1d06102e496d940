"""How a connection dies, what the pool finds, and that finding it is bounded.

Every death is real. Where a glance must suffice, the test would fail on a round trip: the connection has just
been used, and round trips are only made after 30 s.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from runbook.pool.connection import read_last_words
from tests.integration.pool.house import House, Relay, black_hole, until
from tests.lab.postgres import free_port


def dead_found(pool: Any) -> dict[str, int]:
    found: dict[str, int] = pool.status()["counters"]["dead_found"]
    return {cause: number for cause, number in found.items() if number}


def borrow_once(pool: Any) -> None:
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def test_57P01_terminated(house: House) -> None:
    pool = house.pool()
    house.fill(pool, 2)
    house.end_backends(pool)
    assert pool.status()["count"]["dead"] == 2
    borrow_once(pool)
    assert dead_found(pool) == {"57P01": 2}


@pytest.fixture
def tls_port(breakable_house: House, tmp_path: Path) -> Iterator[int]:
    """Where the server is reached under TLS."""
    port, files = free_port(), {"certificate": str(tmp_path / "crt"), "key": str(tmp_path / "key")}
    new = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=db-1")
    made = (*new, "-keyout", files["key"], "-out", files["certificate"])
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    told = json.dumps({"listen": port, "to": breakable_house.server.port, **files})
    command = [sys.executable, str(Path(__file__).parents[2] / "lab" / "others" / "tls.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin and other.stdout
        other.stdin.write(told)
        other.stdin.close()
        assert other.stdout.readline() == "ready\n"
        yield port
        other.kill()


@pytest.mark.parametrize("cause", ["57P01", "57P02", "57P05"])
def test_the_last_words_under_tls(breakable_house: House, tls_port: int, cause: str) -> None:
    """Only libpq can read them there, and a statement would lose them."""
    house = breakable_house
    pool = house.pool(port=tls_port)
    idle, victim = house.fill(pool, 2)
    assert idle.info.ssl_in_use
    if cause == "57P01":
        house.end_backends(pool, idle.backend_pid)
    elif cause == "57P02":
        house.server.kill_backend(victim.backend_pid, signal.SIGKILL)
    else:
        connection = pool.getconn()
        with connection.cursor() as cursor:
            cursor.execute("SET idle_session_timeout = '100ms'")
        connection.commit()
        pool.putconn(connection)
    until(lambda: pool.status()["count"]["dead"])
    until(lambda: _connects(house, tls_port))
    held = [pool.getconn() for _ in range(2)]
    assert dead_found(pool).get(cause) == 1
    for connection in held:
        pool.putconn(connection)


def _connects(house: House, port: int) -> bool:
    with contextlib.suppress(psycopg2.Error):
        psycopg2.connect(**{**house.server.connection("odras_app", "odras"), "port": port}).close()
        return True
    return False


def test_what_libpq_reads_for_a_look_leaves_a_healthy_connection_as_it_was(
    breakable_house: House, tls_port: int
) -> None:
    pool = breakable_house.pool(port=tls_port)
    with pool.connection() as listener, listener.cursor() as cursor:
        cursor.execute("LISTEN news")
    breakable_house.server.sql("NOTIFY news", database="odras")
    until(lambda: listener.glance() == "suspect")
    with pool.connection() as connection, connection.cursor() as cursor:
        assert connection is listener
        assert len(connection.notifies) == 1
        with pytest.raises(psycopg2.Error) as failure:
            cursor.execute("SELEC 1")
    assert "42601" not in str(failure.value), "the texts of errors are as short as before"
    assert dead_found(pool) == {}


@pytest.mark.parametrize(
    ("setting", "statement", "cause"),
    [
        ("idle_session_timeout", "", "57P05"),
        ("idle_in_transaction_session_timeout", "SELECT 1", "25P03"),
        ("transaction_timeout", "SELECT 1", "25P04"),
    ],
)
def test_ended_by_a_timeout_of_the_server(house: House, setting: str, statement: str, cause: str) -> None:
    """The last two strike while the connection is borrowed: its return finds out."""
    pool = house.pool()
    connection = pool.getconn()
    with connection.cursor() as cursor:
        cursor.execute(f"SET {setting} = '100ms'")
        connection.commit()
        if statement:
            cursor.execute(statement)
    if not statement:
        pool.putconn(connection)
    until(connection.looks_dead)
    if statement:
        pool.putconn(connection)
    borrow_once(pool)
    assert dead_found(pool) == {cause: 1}


def test_57P02_a_neighbour_crashed(breakable_house: House) -> None:
    pool = breakable_house.pool(max_connections=3)
    _, _, victim = breakable_house.fill(pool, 3)
    breakable_house.server.kill_backend(victim.backend_pid, signal.SIGKILL)
    until(lambda: pool.status()["count"]["dead"] == 3)
    borrow_once(pool)  # waits until the server has recovered
    assert dead_found(pool) == {"57P02": 2, "fin": 1}  # the killed one itself could say nothing


def test_fin_from_something_in_between(house: House, relay: Relay) -> None:
    pool = house.pool(port=relay.port)
    house.fill(pool, 2)
    relay.cut()
    until(lambda: pool.status()["count"]["dead"] == 2)
    borrow_once(pool)
    assert dead_found(pool) == {"fin": 2}


def test_rst_from_something_in_between(house: House, relay: Relay) -> None:
    pool = house.pool(port=relay.port)
    house.fill(pool, 2)
    relay.cut(reset=True)
    until(lambda: pool.status()["count"]["dead"] == 2)
    borrow_once(pool)
    assert dead_found(pool) == {"rst": 2}


def test_a_silent_one_costs_one_deadline_and_no_more(house: House) -> None:
    """Its neighbours are suspects then: not the borrower but the monitor finds out about them."""
    pool = house.pool(validate_after_idle=0, validation_timeout=0.6)
    connections = house.fill(pool, 7)
    with contextlib.ExitStack() as stopped:
        for connection in connections:
            stopped.enter_context(house.stopped(connection.backend_pid))
        started = time.monotonic()
        borrow_once(pool)
        assert 0.6 <= time.monotonic() - started < 1.8
        until(lambda: dead_found(pool)["silent"] >= 3)


def test_one_dead_makes_those_idle_for_longer_suspects(house: House) -> None:
    pool = house.pool(validation_timeout=0.4)
    oldest, older, youngest = house.fill(pool, 3)
    house.end_backends(pool, youngest.backend_pid)
    with house.stopped(older.backend_pid):  # a glance sees nothing
        borrow_once(pool)
        assert dead_found(pool) == {"57P01": 1, "silent": 1}
    until(lambda: not oldest.suspect)  # the monitor has asked it
    assert not oldest.closed


def test_row_20_black_hole_while_idle(house: House) -> None:
    """Found by unanswered keepalive probes, without a round trip of our own."""
    pool = house.pool(
        keepalives_idle=1, keepalives_interval=1, tcp_user_timeout=10_000, validation_timeout=60
    )
    (connection,) = house.fill(pool, 1)
    black_hole(connection.fd)
    until(lambda: pool.status()["count"]["dead"] == 1, seconds=8)
    started = time.monotonic()
    borrow_once(pool)
    assert time.monotonic() - started < 1.0
    assert dead_found(pool) == {"silent": 1}
    assert connection.closed


def test_row_20_black_hole_with_a_query_in_flight(house: House) -> None:
    """Keepalive does not bound this one: tcp_user_timeout does."""
    pool = house.pool(tcp_user_timeout=1500)
    connection = pool.getconn()
    black_hole(connection.fd)
    started = time.monotonic()
    with pytest.raises(psycopg2.OperationalError), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert 1.0 < time.monotonic() - started < 6
    pool.putconn(connection)
    assert dead_found(pool) == {"in_use": 1}
    borrow_once(pool)


def test_row_20_black_hole_before_the_probes(house: House) -> None:
    """Nothing has been noticed yet; the round trip at checkout has its own deadline."""
    pool = house.pool(validate_after_idle=0, validation_timeout=0.4)
    (connection,) = house.fill(pool, 1)
    black_hole(connection.fd)
    started = time.monotonic()
    borrow_once(pool)
    assert 0.4 <= time.monotonic() - started < 1.2
    assert dead_found(pool) == {"silent": 1}


def test_the_watchdog_ends_when_idle_and_is_there_when_needed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runbook.pool.connection.WATCHDOG_SECONDS", 0.1)
    pool = house.pool(validate_after_idle=0, validation_timeout=0.4)

    for _ in range(2):
        (connection,) = house.fill(pool, 1)
        borrow_once(pool)
        until(lambda: not pool._watchdog._running)
        with house.stopped(connection.backend_pid):
            borrow_once(pool)
    assert dead_found(pool) == {"silent": 2}


def test_keepalive_and_user_timeout_are_live_on_the_socket(house: House) -> None:
    pool = house.pool()
    connection = pool.getconn()
    with socket.fromfd(connection.fd, socket.AF_INET, socket.SOCK_STREAM) as copy:
        assert copy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        values = [copy.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
    assert values == [30, 10, 5, 30_000]
    pool.putconn(connection)


def test_a_notification_is_no_last_word(house: House) -> None:
    pool = house.pool(max_connections=1)
    connection = pool.getconn()
    with connection.cursor() as cursor:
        cursor.execute("LISTEN invoices")
    connection.commit()
    pool.putconn(connection)
    house.server.sql("NOTIFY invoices", database="odras")
    until(lambda: connection._poll.poll(0))
    assert pool.getconn() is connection
    pool.putconn(connection)
    assert dead_found(pool) == {}


def test_over_a_unix_socket(house: House) -> None:
    """No keepalive and no TCP_INFO there; the last words are."""
    pool = house.pool(host=str(house.server.data))
    house.fill(pool, 1)
    borrow_once(pool)
    house.end_backends(pool)
    borrow_once(pool)
    assert dead_found(pool) == {"57P01": 1}


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


FATAL = message(b"E", b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0")


@pytest.mark.parametrize(
    ("said", "hung_up", "verdict"),
    [
        (b"", True, "fin"),
        (FATAL, True, "57P01"),
        (FATAL, False, "57P01"),
        (message(b"S", b"TimeZone\0UTC\0"), False, None),
        (message(b"S", b"TimeZone\0UTC\0") + FATAL, True, "57P01"),
        (message(b"A", b"\0\0\0\1a\0\0"), True, "fin"),
        (FATAL[:20], True, "fin"),
        (message(b"E", b"SFATAL\0Mno code at all\0\0"), True, "fin"),
        (b"\x17\x03\x03\x00\x13encrypted bytes", False, "suspect"),
        (b"\x15\x03\x03\x00\x13encrypted bytes", True, "fin"),
        (b"N\0\0\0\0", False, "suspect"),
        (message(b"N", b"SWARNING\0C57P02\0Mterminating connection\0\0"), True, "57P02"),
        (message(b"N", b"SNOTICE\0C00000\0Mhello\0\0"), False, None),
        (message(b"N", b"SNOTICE\0C00000\0Mhello\0\0"), True, "fin"),
    ],
)
def test_last_words(said: bytes, hung_up: bool, verdict: str | None) -> None:
    assert read_last_words(said, hung_up) == verdict

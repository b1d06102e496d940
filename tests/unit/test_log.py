"""The app's log: what a line says and when, the window, and bounds that hold for any file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook.common.clock import rfc3339
from runbook.common.documents import validate
from runbook.evidence.log import (
    BLOCK_BYTES,
    PATTERNS,
    WINDOW_BYTES,
    Follower,
    last_error,
    line_time,
    summarize,
)
from runbook.pool.connection import LAST_WORDS
from tests.unit.incidents import healthy

MOMENT = datetime(2026, 11, 23, 3, 41, 7, 120000, tzinfo=timezone.utc).timestamp()
EXHAUSTED = "Login error: connection pool exhausted"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def new_york() -> Iterator[None]:
    """A machine whose time zone is not UTC."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "America/New_York"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def read(path: Path, appended: str = "", window: float = 3600.0) -> dict[str, Any]:
    """What a follower says of a file that grows by `appended` while the login is probed."""
    follower = Follower(str(path), None, window)
    with path.open("a", encoding="utf-8") as file:
        file.write(appended)
    data = follower.data()
    host = healthy().host
    host["views"]["log"]["data"] = data
    validate(host)
    return data


# -- times -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-23T03:41:07.120Z message",
        "2026-11-23T03:41:07.120000Z message",
        "2026-11-23T03:41:07.120456789Z message",
        "2026-11-23 03:41:07,120Z message",
        "2026-11-23 03:41:07.120 UTC [4272] ERROR:  message",
        "2026-11-23 03:41:07.120 GMT [4272] ERROR:  message",
        "2026-11-23T04:41:07.120+01:00 message",
        "2026-11-23 04:41:07.120+0100 message",
        "2026-11-23 04:41:07.120+01 message",
        "[2026-11-22 22:41:07.120 -0500] [99] [INFO] message",
        '{"time": "2026-11-23T03:41:07.120Z", "level": "error"}',
        "1795405267.120000 web-1 odras[4272]: message",
        "[2026-11-22 22:41:07.120] local time",
        "2026-11-22 22:41:07,120 - odras - INFO - local time",
    ],
)
@pytest.mark.usefixtures("new_york")
def test_every_usual_time_of_a_line_is_understood(line: str) -> None:
    told = line_time(line)
    assert told is not None
    assert told == pytest.approx(MOMENT, abs=0.001)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Login error: connection pool exhausted",
        'INFO:     127.0.0.1:39262 - "POST /api/auth/login HTTP/1.1" 500 Internal Server Error',
        "9999-99-99 99:99:99 not a time",
        "2026-02-30T00:00:00Z no such day",
        "0000-01-01T00:00:00Z",
        "2026-11-23T03:41:07+99:99",
        "x" * 90 + "2026-11-23T03:41:07Z too far from the start to be the line's own",
        "17954052671795405267.1 no seconds",
    ],
)
def test_what_is_no_time_is_none(line: str) -> None:
    assert line_time(line) is None


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from("0123456789-:T. ,Z+UTC[]"), max_size=40) | st.text(max_size=40))
def test_any_line_has_a_time_or_none(line: str) -> None:
    told = line_time(line)
    assert told is None or isinstance(told, float)


# -- what a line says --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (EXHAUSTED, {"pool_exhausted", "login_error"}),
        ("Failed to get database connection: connection pool exhausted", {"pool_exhausted"}),
        ("sqlalchemy.exc.TimeoutError: QueuePool limit of size 5 overflow 10 reached", {"pool_exhausted"}),
        ("psycopg_pool.PoolTimeout: couldn't get a connection after 30.00 sec", {"pool_exhausted"}),
        ("Dead connection detected, recreating: SSL SYSCALL error", {"dead_connection", "server_closed"}),
        ("Found dead connection, closing it: x", {"dead_connection"}),
        ("server closed the connection unexpectedly", {"server_closed"}),
        (
            "FATAL:  terminating connection due to administrator command",
            {"server_closed", "terminated_by_administrator"},
        ),
        (
            "FATAL:  terminating connection due to idle-session timeout",
            {"server_closed", "idle_session_timeout"},
        ),
        (
            "terminating connection because of crash of another server process",
            {"crash_of_another_process"},
        ),
        ("could not connect to server: Connection refused", {"connection_refused"}),
        ("FATAL:  sorry, too many clients already", {"too_many_clients"}),
        (
            "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
            {"too_many_clients"},
        ),
        *(
            (f"WARNING Dead connection detected ({code}: {meaning}), backend 7", {"dead_connection", name})
            for (code, meaning), name in zip(
                LAST_WORDS.items(),
                (
                    *("terminated_by_administrator", "crash_of_another_process", "idle_session_timeout"),
                    *("idle_in_transaction_timeout", "transaction_timeout"),
                ),
            )
        ),
        ('FATAL:  password authentication failed for user "odras_app"', {"authentication_failed"}),
        ("FATAL:  the database system is starting up", {"starting_up"}),
        ("ERROR:  cannot execute INSERT in a read-only transaction", {"read_only"}),
        ("OSError: [Errno 24] Too many open files", {"file_descriptors"}),
        (
            "Error processing queued events: unable to perform operation on <TCPTransport closed=True>",
            {"other_dependency"},
        ),
        ("✅ Database connection pool monitor started", {"monitor_started"}),
        ("DB Pool Status: 5/20 connections in use", {"pool_status"}),
        ("High connection pool usage: 18/20 connections", {"high_usage"}),
        (
            'INFO:     127.0.0.1:1 - "POST /api/auth/login HTTP/1.1" 500 Internal Server Error',
            {"login_error", "server_error"},
        ),
        ('INFO:     127.0.0.1:1 - "POST /api/auth/login HTTP/1.1" 401 Unauthorized', set()),
        ('INFO:     127.0.0.1:1 - "GET /api/projects HTTP/1.1" 200 OK', set()),
        ("Failed to load resource: net::ERR_NETWORK_IO_SUSPENDED", {"client_suspended"}),
        ("Traceback (most recent call last):", {"exception"}),
    ],
)
def test_what_a_line_says(line: str, names: set[str]) -> None:
    assert set(summarize([line], None)["counts"]) == names


@pytest.mark.parametrize(
    ("line", "active", "maximum"),
    [
        ("DB Pool Status: 5/20 connections in use", 5, 20),
        ("High connection pool usage: 18/20 connections", 18, 20),
        (
            "High connection pool usage: {'minconn': 5, 'maxconn': 50, 'closed': False,"
            " 'available_connections': 3, 'active_connections': 47, 'connection_creation_times': 0}",
            *(47, 50),
        ),
    ],
)
def test_the_guides_own_numbers_are_read(line: str, active: int, maximum: int) -> None:
    told = summarize(["Pool status: 1/2", line], None)["pool_line"]
    assert told == {"active": active, "maximum": maximum, "at": None}


def test_a_line_without_a_time_belongs_to_the_one_before() -> None:
    lines = ["2026-11-23T03:41:07Z start", "Traceback (most recent call last):", EXHAUSTED]
    told = summarize(lines, MOMENT - 10)
    assert told["counts"] == {"exception": 1, "pool_exhausted": 1, "login_error": 1}
    assert told["first"]["pool_exhausted"] == told["last"]["pool_exhausted"] == "2026-11-23T03:41:07.000Z"


def test_a_sample_is_bounded() -> None:
    told = summarize([EXHAUSTED + "x" * 10_000], None)
    assert len(told["samples"]["pool_exhausted"]) <= 4096  # whole for the masker; the evidence cuts it after


# -- the window --------------------------------------------------------------------------------------------


def dated(age: float, text: str) -> str:
    return f"{rfc3339(time.time() - age)} {text}\n"


def test_only_the_window_counts(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text(dated(7200, EXHAUSTED) + dated(1800, EXHAUSTED) + dated(5, "server closed the connection"))
    data = read(log)
    assert data["timestamps"] is True
    assert data["counts"]["pool_exhausted"] == 1
    assert data["whole_window"] is True
    assert data["window_from"] < data["window_to"]


def test_a_log_without_times_counts_as_far_as_it_was_read(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text(f"{EXHAUSTED}\n" * 3)
    data = read(log, f"{EXHAUSTED}\n")
    assert data["timestamps"] is False
    assert data["window_from"] is data["window_to"] is None
    assert data["counts"]["pool_exhausted"] == 4
    assert data["during_login"]["pool_exhausted"] == 1


def test_what_the_probe_caused_is_told_apart_without_times(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text(f"{EXHAUSTED}\n" * 30)
    data = read(log, "server closed the connection unexpectedly\n")
    assert data["during_login"] == {"server_closed": 1}
    assert read(log)["during_login"] == {}


def test_the_middle_of_a_character_at_the_cut_does_no_harm(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_bytes(b"\xff\xfe\x80 not UTF-8\n" + "✅".encode() + f" {EXHAUSTED}\n".encode("utf-16"))
    assert read(log, f"✅ {EXHAUSTED}\n")["during_login"]["pool_exhausted"] == 1


def test_an_empty_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.touch()
    data = read(log)
    assert (data["size"], data["counts"], data["timestamps"], data["whole_window"]) == (0, {}, False, True)


@pytest.mark.parametrize("rotation", ["copied and truncated", "renamed"])
def test_what_the_probe_caused_is_seen_though_the_log_was_rotated_meanwhile(
    rotation: str, tmp_path: Path
) -> None:
    """`0 lines about an exhausted pool` would be a disproof made of nothing."""
    log = tmp_path / "app.log"
    log.write_text("INFO: started\n" * 1000)
    follower = Follower(str(log), None, 3600.0)
    if rotation == "renamed":
        log.rename(tmp_path / "app.log.1")
    log.write_text(f"{EXHAUSTED}\n")
    assert follower.data()["during_login"].get("pool_exhausted") == 1


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"app\.log"):
        Follower(str(tmp_path / "app.log"), None, 3600.0)


# -- bounds ------------------------------------------------------------------------------------------------


def test_of_a_huge_file_only_the_end_is_read(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    tail = (dated(5, "INFO: all is well") * 1000 + dated(4, EXHAUSTED)).encode()
    with log.open("wb") as file:
        file.truncate(10 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + tail)
    began = time.process_time()
    data = read(log, dated(0, EXHAUSTED))
    assert time.process_time() - began < 5
    assert data["size"] > 10 << 30
    assert data["bytes_read"] <= WINDOW_BYTES
    assert data["whole_window"] is False
    assert data["counts"]["pool_exhausted"] == 2
    assert data["during_login"] == {"pool_exhausted": 1, "login_error": 1}


def test_a_huge_file_of_holes_is_read_at_once(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    with log.open("wb") as file:
        file.truncate(10 << 30)
    began = time.process_time()
    data = read(log)
    assert time.process_time() - began < 3
    assert data["counts"] == {}


def test_of_a_log_without_times_only_the_last_part_counts(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text(f"{EXHAUSTED}\n" + "INFO: all is well\n" * (2 * BLOCK_BYTES // 18) + f"{EXHAUSTED}\n")
    data = read(log)
    assert data["counts"]["pool_exhausted"] == 1
    assert data["whole_window"] is False


def test_a_full_window_of_ordinary_lines_takes_little_more_than_reading_their_times(tmp_path: Path) -> None:
    """8 MiB, an hour of a busy app, against `strptime` on each line in the same run: it is 3.3 times as much, and
    may be 6; then it ends within the deadline on what is three times as slow as most machines."""
    log = tmp_path / "app.log"
    line = dated(60, 'INFO uvicorn.access 127.0.0.1:39262 - "GET /api/projects/42?page=3 HTTP/1.1" 200 OK')
    lines = [line] * (WINDOW_BYTES // len(line))
    log.write_text("".join(lines))
    follower = Follower(str(log), None, 3600.0)
    began = time.process_time()
    follower.data()
    taken, began = time.process_time() - began, time.process_time()
    for each in lines:
        time.strptime(each[:19].replace("T", " "), "%Y-%m-%d %H:%M:%S")
    assert taken < 6 * (time.process_time() - began)


PROGRAM = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
sys.path.insert(0, sys.argv[1])
from runbook.evidence.log import summarize
print(json.dumps(summarize([json.load(sys.stdin)], None)["counts"]))
"""


@pytest.mark.parametrize(
    "part",
    [
        *(
            'role "',
            'database "',
            "cannot execute ",
            "kafka",
            "elasticsearch",
            "pool status: ",
            "'maxconn': 1",
        ),
        *("/login", "x", " ", "HTTP/1.1", "2026-11-23 ", "no pg_hba.conf", "pool usage: 'maxconn': 1", "\0"),
    ],
)
def test_a_hostile_line_of_a_megabyte_is_read_in_seconds(part: str) -> None:
    """In a process of its own: a regex that runs away holds every thread, and with them every deadline."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT)],
        input=json.dumps(part * (1_000_000 // len(part))),
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-300:] or f"ended by signal {-done.returncode}: more than 5 s"


def test_the_names_of_the_patterns_are_words_of_a_report() -> None:
    assert all(name.replace("_", "").isalpha() for name in PATTERNS)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_what_a_pattern_says_is_found_wherever_its_expression_is(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(PATTERNS)))
    text = data.draw(st.from_regex(PATTERNS[name].expression)).lower()
    if re.search(PATTERNS[name].expression, text):  # in lower case it may be another text
        assert PATTERNS[name].search(text), (name, text)


def test_no_pattern_is_searched_for_in_every_log() -> None:
    common = "2026-11-30 14:00:00,123 INFO app: GET / 200 in 3 ms\n"
    assert [
        name for name, pattern in PATTERNS.items() if any(word in common for word in pattern.beginnings)
    ] == []
    assert all(len(word) > 2 for pattern in PATTERNS.values() for word in pattern.beginnings)


# -- the last error ----------------------------------------------------------------------------------------

TRACEBACK = """\
Traceback (most recent call last):
  File "/srv/app/backend/cache.py", line 25, in recall
    _connection.sendall(line)
BrokenPipeError: [Errno 32] Broken pipe

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/srv/app/backend/main.py", line 45, in login
    recall(credentials.username)
  File "/srv/venv/lib/python3.11/site-packages/starlette/routing.py", line 9, in run
    raise
backend.errors.NoCache: the cache is gone
"""
ACCESS = 'INFO:     127.0.0.1:40000 - "POST /api/auth/login HTTP/1.1" 500 Internal Server Error'


def test_the_last_error_is_the_last_line_of_the_last_traceback_with_the_apps_own_place() -> None:
    found = last_error([*TRACEBACK.splitlines(), ACCESS, "INFO:     started"])
    assert found == {
        "text": "backend.errors.NoCache: the cache is gone",
        "at": "/srv/app/backend/main.py:45 in login",
    }


def test_a_journal_writes_its_own_words_before_each_line_of_a_traceback() -> None:
    lines = [f"1795405267.120000 web-1 odras[4272]: {line}" for line in TRACEBACK.splitlines()]
    assert last_error(lines) == last_error(TRACEBACK.splitlines())


def test_without_a_traceback_the_line_that_says_why_counts_not_what_was_answered() -> None:
    lines = ["Login error: connection refused by the cache", ACCESS]
    assert last_error(lines) == {"text": lines[0], "at": None}
    assert last_error([ACCESS]) is None


def test_a_traceback_that_is_cut_off_tells_nothing() -> None:
    assert last_error(TRACEBACK.splitlines()[:3]) is None


def test_a_number_of_the_process_before_this_one_is_forgotten() -> None:
    warning = "High connection pool usage: 18/20 connections"
    told = summarize([warning, "INFO:     Application startup complete."], None)
    assert told["pool_line"] is None
    assert summarize(["INFO:     Application startup complete.", warning], None)["pool_line"] == {
        "active": 18,
        "maximum": 20,
        "at": None,
    }

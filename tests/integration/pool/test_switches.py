"""What is changed in the running process ends by itself, and what was seen meanwhile is told."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runbook.pool import PoolTimeout
from runbook.pool.switches import SITES
from tests.integration.pool.house import House, ask, until, valid_status

SCHEMA = "runbook/status/1"
KNOWN = "max_connections, monitor_interval, log_level, stacks"


def path_of(house: House) -> Path:
    return house.directory / f"pool-{os.getpid()}.sock"


def switch(house: House, seconds: float, **values: Any) -> dict[str, Any]:
    return ask(path_of(house), {"schema": SCHEMA, "op": "set", "values": values, "seconds": seconds})


def status(house: House) -> dict[str, Any]:
    return valid_status(ask(path_of(house), {"schema": SCHEMA, "op": "status"}))


def test_each_switch_is_on_and_goes_back_by_itself(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.pool(min_connections=1)
    before = status(house)
    answer = valid_status(
        switch(house, 1.0, monitor_interval=60, log_level="DEBUG", stacks=True, max_connections=30)
    )
    told = {one["name"]: (one["value"], one["was"]) for one in answer["overrides"]}
    assert told == {
        "monitor_interval": ("60", "300"),
        "log_level": ("DEBUG", "INFO"),
        "stacks": ("on", "off"),
        "max_connections": ("30", "20"),
    }
    assert all(0 < one["reverts_in"] <= 1.0 for one in answer["overrides"])
    assert answer["config"]["monitor_interval"] == answer["monitor"]["interval"] == 60
    assert answer["config"]["log_level"] == "DEBUG"
    assert answer["count"]["maximum"] == answer["config"]["max_connections"] == 30
    # Nobody asks any more: the process does it alone.
    until(lambda: any("Switched back" in text for text in caplog.messages), 3)
    after = status(house)
    assert after["overrides"] == []
    assert after["config"] == before["config"]
    assert (after["pid"], after["started_at"]) == (before["pid"], before["started_at"])
    changes = [(one["event"], one["change"]) for one in after["events"]]
    assert ("set", "monitor_interval 300 -> 60") in changes
    assert ("reverted by itself", "log_level DEBUG -> INFO") in changes
    assert len(changes) == 8


def test_set_again_takes_the_new_value_and_time_and_goes_back_to_the_first(house: House) -> None:
    pool = house.pool()
    switch(house, 0.5, monitor_interval=60)
    answer = switch(house, 30, monitor_interval=70)
    (one,) = answer["overrides"]
    assert (one["value"], one["was"]) == ("70", "300")
    assert one["reverts_in"] > 20
    # Switches have their own time: the short one ends, the long one stays.
    switch(house, 0.3, max_connections=25)
    until(lambda: pool.settings.max_connections == 20, 3)
    assert pool.settings.monitor_interval == 70
    answer = ask(path_of(house), {"schema": SCHEMA, "op": "revert"})
    assert answer["overrides"] == []
    assert pool.settings == house.settings()


def test_one_of_several_can_be_taken_back_alone(house: House) -> None:
    house.pool()
    switch(house, 30, monitor_interval=60, stacks=True)
    answer = ask(path_of(house), {"schema": SCHEMA, "op": "revert", "names": ["stacks"]})
    assert [one["name"] for one in answer["overrides"]] == ["monitor_interval"]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"seconds": 5}, f"values is None: allowed is an object with one or more of {KNOWN}"),
        ({"values": {}, "seconds": 5}, f"values is {{}}: allowed is an object with one or more of {KNOWN}"),
        ({"values": {"speed": 1}, "seconds": 5}, f"unknown switch 'speed'; known: {KNOWN}"),
        (
            {"values": {"stacks": True}, "seconds": 3601},
            "seconds is 3601: allowed is a number above 0, at most 3600",
        ),
        (
            {"values": {"stacks": True}, "seconds": True},
            "seconds is True: allowed is a number above 0, at most 3600",
        ),
        (
            {"values": {"stacks": 1, "log_level": "LOUD"}, "seconds": 0},
            "log_level is 'LOUD': allowed is one of DEBUG, INFO, WARNING, ERROR; stacks is 1: allowed is true or"
            " false; seconds is 0: allowed is a number above 0, at most 3600",
        ),
        (
            {"values": {"max_connections": 5000}, "seconds": 5},
            "POSTGRES_POOL_MAX_CONNECTIONS is 5000: allowed is an integer from 1 to 1000 (never more than these)",
        ),
        (
            {"values": {"max_connections": 20.5}, "seconds": 5},
            "POSTGRES_POOL_MAX_CONNECTIONS is 20.5: allowed is an integer from 1 to 1000"
            " (never more than these)",
        ),
        (
            {"values": {"max_connections": 1}, "seconds": 5},
            "POSTGRES_POOL_MIN_CONNECTIONS is 2: allowed is at most POSTGRES_POOL_MAX_CONNECTIONS, which is 1",
        ),
        (
            {"values": {"monitor_interval": "often", "stacks": True}, "seconds": 5},
            "POSTGRES_POOL_MONITOR_INTERVAL is 'often': allowed is a number from 0.1 to 86400 (seconds)",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    house: House, request_: dict[str, Any], error: str
) -> None:
    pool = house.pool(min_connections=2)
    answer = ask(path_of(house), {"schema": SCHEMA, "op": "set", **request_})
    assert answer == {"schema": SCHEMA, "error": error}
    assert (status(house)["overrides"], pool.settings.max_connections, pool.stacks) == ([], 20, False)


@pytest.mark.parametrize("names", ["stacks", ["speed"], [["stacks"]]])
def test_what_is_no_switch_cannot_be_taken_back(house: House, names: object) -> None:
    house.pool()
    answer = ask(path_of(house), {"schema": SCHEMA, "op": "revert", "names": names})
    assert answer["error"] == f"names is {names!r}: allowed is a list of {KNOWN}"


def test_debug_lines_appear_and_stop(house: House, caplog: pytest.LogCaptureFixture) -> None:
    pool = house.pool()
    caplog.handler.setLevel(logging.DEBUG)  # as an application's handler must be, or nobody sees them

    def lines() -> int:
        return sum(text.startswith(("acquired", "returned")) for text in caplog.messages)

    with pool.connection():
        pass
    assert lines() == 0
    switch(house, 30, log_level="DEBUG")
    with pool.connection():
        pass
    assert lines() == 2
    ask(path_of(house), {"schema": SCHEMA, "op": "revert"})
    with pool.connection():
        pass
    assert lines() == 2


def test_a_shorter_interval_holds_at_once(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.pool()

    def ticks() -> int:
        return sum(text.startswith("DB Pool Status") for text in caplog.messages)

    first = ticks()
    switch(house, 30, monitor_interval=0.2)
    until(lambda: ticks() >= first + 3, 5)
    ask(path_of(house), {"schema": SCHEMA, "op": "revert"})
    settled = ticks()
    time.sleep(0.7)  # three of the short intervals: that nothing happens takes its time
    assert ticks() <= settled + 1


def borrow_deep(pool: Any) -> Any:
    return pool.getconn()


def test_holders_show_their_whole_stack_while_it_is_on(house: House) -> None:
    pool = house.pool()
    early = pool.getconn()
    switch(house, 30, stacks=True)
    late = borrow_deep(pool)
    stacks = {one["backend_pid"]: one["stack"] for one in status(house)["holders"]}
    assert stacks[early.backend_pid] is None
    told = stacks[late.backend_pid].splitlines()
    assert told[-1].startswith(f"{__file__}:") and told[-1].endswith(" in borrow_deep")
    assert " in test_holders_show_their_whole_stack" in told[-2]
    for connection in (early, late):
        pool.putconn(connection)


def test_a_raised_maximum_lets_waiters_through_at_once(house: House) -> None:
    pool = house.pool(max_connections=1)
    held = pool.getconn()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.getconn, 10)
        until(lambda: status(house)["count"]["waiting"] == 1)
        switch(house, 30, max_connections=2)
        second = waiting.result(5)
    assert len(house.backends(pool)) == 2
    for connection in (held, second):
        pool.putconn(connection)


def test_above_a_maximum_that_went_back_connections_are_closed_as_they_return(house: House) -> None:
    pool = house.pool(max_connections=2)
    switch(house, 30, max_connections=5)
    held = [pool.getconn() for _ in range(5)]
    pool.putconn(held.pop())  # one of them is idle
    ask(path_of(house), {"schema": SCHEMA, "op": "revert"})
    until(lambda: status(house)["count"]["idle"] == 0)  # too many, and in nobody's hands: closed at once
    count = status(house)["count"]
    assert (count["used"], count["idle"], count["never_opened"], count["maximum"]) == (4, 0, 0, 4)
    with pytest.raises(PoolTimeout, match="4 of 4 used"):
        pool.getconn(timeout=0.1)
    for left in (3, 2):
        pool.putconn(held.pop())
        until(lambda left=left: len(house.backends(pool)) == left)
        count = status(house)["count"]
        assert (count["used"], count["idle"], count["maximum"]) == (left, 0, left)
    pool.putconn(held.pop())
    count = status(house)["count"]
    assert (count["used"], count["idle"], count["maximum"]) == (1, 1, 2)
    pool.putconn(held.pop())
    assert len(house.backends(pool)) == 2


def test_what_was_seen_is_told_by_site(house: House) -> None:
    pool = house.pool(max_connections=1)
    with pool.connection():
        pass
    assert status(house)["samples"] == []
    switch(house, 30, stacks=True)
    before = pool.getconn()
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.2)
    time.sleep(0.3)  # it is held that long
    pool.putconn(before)
    for _ in range(3):
        with pool.connection():
            pass
    ask(path_of(house), {"schema": SCHEMA, "op": "revert"})
    with pool.connection():
        pass
    rows = {row["site"]: row for row in status(house)["samples"]}  # kept until something is switched on again
    held, refused, quick = (
        rows[site] for site in sorted(rows, key=lambda site: int(site.rpartition(":")[2]))
    )
    assert (held["checkouts"], held["returned"]) == (1, 1)
    assert held["hold_seconds"] == held["longest_hold"] > 0.5
    assert (refused["checkouts"], refused["refused"]) == (0, 1)
    assert refused["longest_wait"] >= 0.2
    assert (quick["checkouts"], quick["returned"]) == (3, 3)
    assert quick["hold_seconds"] < 0.3
    switch(house, 30, stacks=True)
    assert status(house)["samples"] == []


def test_what_was_seen_has_a_bound(house: House) -> None:
    pool = house.pool()
    switch(house, 30, stacks=True)
    sites = "\n".join("give(take())" for _ in range(SITES + 50))
    exec(compile(sites, "many.py", "exec"), {"take": pool.getconn, "give": pool.putconn})
    samples = status(house)["samples"]
    assert len(samples) == SITES + 1
    assert samples[-1]["site"] == "elsewhere"
    assert samples[-1]["checkouts"] == samples[-1]["returned"] == 50


def test_a_forked_child_and_a_closed_pool_are_as_they_were(house: House) -> None:
    pool = house.pool()
    switch(house, 30, max_connections=25, log_level="DEBUG", stacks=True)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        level = logging.getLogger("runbook.pool").level
        os.write(writing, json.dumps([pool.settings.max_connections, level, pool.stacks]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert json.loads(os.read(reading, 100)) == [20, logging.INFO, False]
    for end in (reading, writing):
        os.close(end)
    assert pool.settings.max_connections == 25
    pool.close()
    assert logging.getLogger("runbook.pool").level == logging.INFO


ALONE = """
import os, sys, threading
from runbook.pool import Pool, Settings, configure_logging
configure_logging("INFO")
pool = Pool(Settings.from_environment(), "billing")
print("ready", flush=True)
while True:
    with pool.connection() as connection:
        threading.Event().wait(0.05)
"""


def test_it_ends_in_time_though_whoever_asked_is_dead(house: House) -> None:
    settings = house.settings()
    environ = {
        "POSTGRES_HOST": settings.host,
        "POSTGRES_PORT": str(settings.port),
        "POSTGRES_DATABASE": settings.database,
        "POSTGRES_USER": settings.user,
        "POSTGRES_PASSWORD": settings.password or "",
        "RUNTIME_DIRECTORY": str(house.directory),
    }
    log = house.directory / "app.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", ALONE], env=environ, stdout=subprocess.PIPE, stderr=file
        )
    path = house.directory / f"pool-{process.pid}.sock"
    try:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        until(path.exists)
        request = json.dumps(
            {"schema": SCHEMA, "op": "set", "values": {"log_level": "DEBUG"}, "seconds": 1.5}
        )
        # A client that is killed before it has read a byte of the answer.
        asker = f"import socket,time; s=socket.socket(socket.AF_UNIX); s.connect({str(path)!r})\n"
        asker += f"s.sendall({request!r}.encode() + b'\\n'); print('asked', flush=True); time.sleep(60)"
        client = subprocess.Popen([sys.executable, "-c", asker], stdout=subprocess.PIPE)
        assert client.stdout and client.stdout.readline() == b"asked\n"
        client.kill()
        client.wait(10)
        until(lambda: " acquired backend " in log.read_text())
        until(lambda: "Switched back: log_level DEBUG -> INFO" in log.read_text(), 5)
        after = log.read_text().partition("Switched back")[2].count(" acquired backend ")
        time.sleep(0.5)  # ten more checkouts, of which nothing is to be seen
        assert log.read_text().partition("Switched back")[2].count(" acquired backend ") == after <= 1
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)


def test_everything_at_once_keeps_the_counts_right(house: House) -> None:
    """The maximum goes up and down under load: nobody fails, and no connection is lost or left over."""
    pool = house.pool(max_connections=3)
    stop = threading.Event()

    def churn() -> int:
        rounds = 0
        while not stop.is_set():
            with pool.connection():
                rounds += 1
            time.sleep(0.0005)
        return rounds

    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(churn) for _ in range(8)]
        try:
            for number in range(30):
                if number % 2:
                    ask(path_of(house), {"schema": SCHEMA, "op": "revert"})
                else:
                    switch(house, 30, max_connections=3 + number % 5, stacks=True)
                status(house)
        finally:
            ask(path_of(house), {"schema": SCHEMA, "op": "revert"})
            stop.set()
        assert all(one.result(20) > 3 for one in running)
    until(lambda: len(house.backends(pool)) <= 3)
    until(lambda: status(house)["count"]["used"] == 0)  # the monitor may be opening one
    count = status(house)["count"]
    assert (count["waiting"], count["maximum"]) == (0, 3)

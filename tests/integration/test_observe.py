"""The guide's steps 5 and 6 at run time: the real playbook, the shipped pool, a real PostgreSQL.

What is switched comes on in the running processes, ends by itself, and what was seen comes back.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runbook.common import documents
from runbook.evidence import step2_pool
from tests.integration.playbook import Diagnosis, Variables, identities, inventory
from tests.integration.pool.house import until, valid_status
from tests.lab.lab import Lab

PLAYBOOK = "playbooks/observe.yml"
SHORT = 0.2  # minutes: long enough for two looks


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The reference application with two processes, each with the shipped pool and a status socket."""
    with Lab(tmp_path_factory.mktemp("reference"), "reference") as lab:
        yield lab


def statuses(lab: Lab) -> dict[int, dict[str, Any]]:
    """What each of its pools says now."""
    found, pids = step2_pool.sockets_in([str(lab.status_directory)]), lab.app_pids()
    return {pid: valid_status(step2_pool.ask(found[pid], "status", 5)) for pid in set(found) & set(pids)}


def switched(lab: Lab) -> list[dict[str, Any]]:
    return [one for status in statuses(lab).values() for one in status["overrides"]]


def observe(lab: Lab, place: Path, minutes: float = SHORT, *arguments: str, **variables: object) -> Diagnosis:
    """Begin a run of the playbook; the variables without their prefix."""
    told = {f"diagnose_observe_{name}": value for name, value in {"minutes": minutes, **variables}.items()}
    return Diagnosis(lab.inventory, place, "-e", json.dumps(told), *arguments, playbook=PLAYBOOK)


@contextmanager
def logins(lab: Lab) -> Iterator[None]:
    """Somebody logs in all the time."""
    stop = threading.Event()

    def go() -> None:
        while not stop.is_set():
            lab.login()
            stop.wait(0.1)

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def document(run: Diagnosis, host: str = "web-1") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run.run / "observations" / f"{host}.json").read_text())
    documents.validate(loaded)
    return loaded


def counted(lab: Lab, *words: str) -> int:
    return sum(lab.log.read_text().count(word) for word in words)


@pytest.fixture(scope="module")
def run(app: Lab, tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    """One observation under logins, and what was true around it."""
    before, asked = identities(app), statuses(app)
    assert len(asked) == 2
    with logins(app):
        running = observe(app, tmp_path_factory.mktemp("observed"), monitor_interval=1, maximum=30)
        until(lambda: len(switched(app)) == 8, 60)
        meanwhile = statuses(app)
        running.wait()
    assert switched(app) == []
    running.before, running.after = before, identities(app)  # type: ignore[attr-defined]
    running.asked, running.meanwhile = asked, meanwhile  # type: ignore[attr-defined]
    return running


def test_it_is_on_in_every_process_meanwhile(run: Any) -> None:
    for pid, status in run.meanwhile.items():
        assert {one["name"]: (one["value"], one["was"]) for one in status["overrides"]} == {
            "monitor_interval": ("1", "300"),
            "log_level": ("DEBUG", "INFO"),
            "stacks": ("on", "off"),
            "max_connections": ("30", str(run.asked[pid]["config"]["max_connections"])),
        }
        assert status["count"]["maximum"] == status["config"]["max_connections"] == 30


def test_it_ended_by_itself_in_the_same_processes(run: Any, app: Lab) -> None:
    assert run.status == 0, run.output
    assert run.before == run.after
    for pid, status in statuses(app).items():
        assert status["config"] == run.asked[pid]["config"]
        assert status["started_at"] == run.asked[pid]["started_at"]
        back = [e["change"] for e in status["events"] if e["event"] == "reverted by itself"]
        assert "log_level DEBUG -> INFO" in back and "monitor_interval 1 -> 300" in back
        assert not [e for e in status["events"] if e["event"] == "reverted on request"]


def test_the_lines_came_and_stopped(run: Any, app: Lab) -> None:
    told = document(run)["log"]["counts"]
    assert told["acquired"] > 10 and told["returned"] > 10
    assert told["pool_status"] >= 2 * (SHORT * 60 - 4)  # two processes, each second
    assert counted(app, " acquired backend ") == told["acquired"]
    before = counted(app, " acquired backend ", "DB Pool Status")
    assert app.logins(4) == [200] * 4
    assert counted(app, " acquired backend ", "DB Pool Status") == before


def test_what_was_seen_is_in_the_report(run: Any, app: Lab) -> None:
    seen = document(run)
    assert (seen["outcome"], seen["wrong"]) == ("observed", [])
    assert seen["seconds"] == SHORT * 60
    assert {row["pid"] for row in seen["processes"]} == {pid for pid, _ in run.before}
    pools = [row for row in seen["processes"] if row["reverted"] is not None]
    assert len(pools) == 2
    assert all(row["same"] and row["reverted"] for row in pools)
    rows = [row for one in pools for row in one["samples"]]
    sites = {row["site"] for row in rows}
    assert sites and all("/runbook/app/accounts.py:" in site for site in sites)
    assert sum(row["checkouts"] for row in rows) == seen["log"]["counts"]["acquired"]
    # A login may be under way when it ends, or when it begins.
    assert all(row["hold_seconds"] > 0 and abs(row["checkouts"] - row["returned"]) <= 1 for row in rows), rows
    assert len(seen["looks"]) == 2
    for look in seen["looks"]:
        assert len(look["pools"]) == 2
        assert look["sockets"]["ESTAB"] >= 2
        assert sum(look["sessions"].values()) >= 2


def test_the_screen_says_so(run: Any) -> None:
    screen = run.output[run.output.index("\nweb-1   OBSERVED for 12 s") : run.output.index("PLAY [Report]")]
    for words in (
        "max_connections",
        "log_level INFO -> DEBUG in pid",
        "reverted by itself, the last at ",
        "the same processes as before",
        "/runbook/app/accounts.py:",
        " acquired, ",
        "sessions ",
        "observations/web-1.json",
    ):
        assert words in screen, screen
    assert [line for line in screen.splitlines() if len(line) > 100 and str(run.reports) not in line] == []
    assert "observing: " in run.output


def test_it_is_audited(run: Any) -> None:
    (line,) = [json.loads(text) for text in (run.reports / "audit.log").read_text().splitlines()]
    assert (line["host"], line["action"], line["result"]) == ("web-1", "observe", "observed")
    assert "@" in line["who"]


def test_it_ends_in_time_though_the_controller_is_dead(app: Lab, tmp_path: Path) -> None:
    before, asked = identities(app), statuses(app)
    running = observe(app, tmp_path, 0.25, maximum=25)
    try:
        until(lambda: len(switched(app)) == 8, 60)
    finally:
        running.end()  # SIGKILL to the playbook and all its children
    longest = max(one["reverts_in"] for one in switched(app))
    assert 0 < longest <= 15
    lines = counted(app, " acquired backend ")
    assert app.login() == 200
    assert counted(app, " acquired backend ") > lines
    began = time.monotonic()
    until(lambda: not switched(app), longest + 5)
    assert time.monotonic() - began > longest - 1
    assert identities(app) == before
    assert {pid: one["config"] for pid, one in statuses(app).items()} == {
        pid: one["config"] for pid, one in asked.items()
    }
    lines = counted(app, " acquired backend ")
    assert app.login() == 200
    assert counted(app, " acquired backend ") == lines


def test_check_says_what_it_would_do_and_changes_nothing(app: Lab, tmp_path: Path) -> None:
    events = {pid: status["events"] for pid, status in statuses(app).items()}
    began = time.monotonic()
    run = observe(app, tmp_path, 30, "--check", maximum=25).wait()
    assert run.status == 0, run.output
    assert time.monotonic() - began < 60
    pids = ", ".join(map(str, sorted(events)))
    assert (
        "would switch for 30 min 00 s: monitor interval 10 s, log level DEBUG, stacks on, maximum 25"
        in run.words
    )
    assert f"in pid {pids}" in run.words
    assert {pid: status["events"] for pid, status in statuses(app).items()} == events
    assert not (run.run / "observations/web-1.json").exists()
    assert not (run.reports / "audit.log").exists()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"maximum": 400}, "diagnose_observe_maximum does not fit: the pools could open "),
        (
            {"maximum": "many"},
            "diagnose_observe_maximum is 'many': wanted is int (",
        ),
        ({"minutes": 61}, "diagnose_observe_minutes is 61: wanted is a number from 0 to 60"),
        (
            {"maximum": 1001},
            "diagnose_observe_maximum is 1001: wanted is a number from 0 to 1000",
        ),
        (
            {"monitor_interval": 0},
            "diagnose_observe_monitor_interval is 0: wanted is a number from 0.1 to 86400",
        ),
        ({"log_level": "LOUD"}, "diagnose_observe_log_level must be one of: DEBUG, INFO, WARNING, ERROR"),
        ({"minuts": 1}, "diagnose_observe_minuts is not a variable of this collection; did you mean"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_switched(
    app: Lab, tmp_path: Path, variables: Variables, words: str
) -> None:
    events = {pid: status["events"] for pid, status in statuses(app).items()}
    run = observe(app, tmp_path, **variables).wait()  # type: ignore[arg-type]
    assert run.status != 0
    assert words in run.words
    if "does not fit" in words:
        assert "there is room for" in run.words and "max_connections 100 - 3 reserved - " in run.words
        assert "each would fit" in run.words
    assert {pid: status["events"] for pid, status in statuses(app).items()} == events


def test_what_a_process_refuses_is_said_at_once(app: Lab, tmp_path: Path) -> None:
    began = time.monotonic()
    run = observe(app, tmp_path, 30, maximum=1).wait()
    assert run.status != 0
    assert time.monotonic() - began < 60
    assert "POSTGRES_POOL_MIN_CONNECTIONS is 2: allowed is at most POSTGRES_POOL_MAX_CONNECTIONS" in run.words
    assert document(run)["outcome"] == "failed"


def test_a_host_that_was_not_read_leaves_the_room_unknown(app: Lab, tmp_path: Path) -> None:
    hosts = inventory(app, tmp_path / "inventory.yml", {"web-1": {}, "web-2": {"ansible_connection": "ssh"}})
    told = json.dumps({"diagnose_observe_minutes": SHORT, "diagnose_observe_maximum": 12})
    run = Diagnosis(hosts, tmp_path, "-e", told, "--limit", "web-1,db-1", playbook=PLAYBOOK).wait()
    assert run.status != 0
    assert "diagnose_observe_maximum: web-2 was not read, so how many connections its pools may" in run.words


def test_a_restart_meanwhile_is_no_success(app: Lab, tmp_path: Path) -> None:
    running = observe(app, tmp_path)
    until(lambda: len(switched(app)) == 6, 60)
    app.restart()
    running.wait()
    assert running.status != 0
    told = document(running)
    assert told["outcome"] == "failed"
    assert any("the process is gone" in words for words in told["wrong"])
    assert "web-1   NOT OBSERVED WELL" in running.output


def test_an_app_that_never_heard_of_it_is_looked_at(lab: Lab, tmp_path: Path) -> None:
    before = identities(lab)
    with logins(lab):
        run = observe(lab, tmp_path, maximum=30).wait()
    assert run.status == 0, run.output
    assert identities(lab) == before
    seen = document(run)
    assert (seen["outcome"], seen["wrong"]) == ("partly", [])
    assert any("no process of the app has a status socket" in words for words in seen["unread"])
    assert len(seen["looks"]) == 2
    for look in seen["looks"]:
        assert look["pools"] == []
        assert look["sockets"]["ESTAB"] >= 2
        assert sum(look["sessions"].values()) >= 2
    assert seen["log"]["lines"] > 5
    assert "web-1   LOOKED AT, NOT SWITCHED for 12 s" in run.output


def diagnose_open(lab: Lab, place: Path, *arguments: str) -> Diagnosis:
    """A diagnosis whose cause stays open: the probe is told a page that is not there."""
    hosts = inventory(lab, place / "inventory.yml", {"web-1": {"diagnose_login_url": f"{lab.url}/nowhere"}})
    return Diagnosis(hosts, place, *arguments).wait()


def test_a_diagnosis_offers_it_where_the_cause_is_open(app: Lab, tmp_path: Path) -> None:
    run = diagnose_open(app, tmp_path)
    report = run.report()
    assert report["cause"] == "unknown"
    assert any("playbooks/observe.yml" in line for line in report["next"])
    steps = {step["step"]: step for step in report["steps"]}
    assert (steps[5]["status"], steps[6]["status"]) == ("skipped", "skipped")


def test_a_diagnosis_does_it_where_that_was_asked_for(app: Lab, tmp_path: Path) -> None:
    before = identities(app)
    with logins(app):
        run = diagnose_open(app, tmp_path, "-e", f"diagnose_observe_minutes={SHORT}")
    report, seen = run.report(), document(run)
    assert identities(app) == before
    assert report["cause"] == "unknown" and seen["outcome"] == "observed"
    steps = {step["step"]: step for step in report["steps"]}
    assert steps[5]["status"] == steps[6]["status"] == "ok"
    assert "every 10 s in pid " in steps[5]["summary"] and "pool status in the log" in steps[5]["summary"]
    assert "DEBUG in pid " in steps[6]["summary"] and " acquired, " in steps[6]["summary"]
    assert run.second_of("step 5, ") > run.second_of("switching for ")
    (action, *_) = report["actions"]
    assert (action["action"], action["result"], action["seconds"]) == ("observe", "done", SHORT * 60)
    assert action["before"] == action["after"] != []
    assert not any("observe.yml" in line for line in report["next"])
    assert "observed for 12 s: " in run.words


def test_a_decided_cause_is_not_observed(app: Lab, tmp_path: Path) -> None:
    run = Diagnosis(app.inventory, tmp_path, "-e", "diagnose_observe_minutes=5").wait()
    assert run.report()["cause"] == "healthy"
    assert run.status == 0
    assert switched(app) == []
    assert "not needed, the cause is decided" in run.output

"""The five faults of the lab, each made for real and diagnosed with one command: the whole way through."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runbook.common import documents
from runbook.common.clock import rfc3339, seconds_of
from tests.integration.playbook import Diagnosis, audit_lines, diagnose, identities
from tests.lab.database import DATABASE
from tests.lab.faults import FAULTS, Fault
from tests.lab.faults.table import wait_until
from tests.lab.lab import Lab

# fault → outcomes that may be; whether the first login fails (None: as it comes); does the run end with 0
WANTED: dict[str, tuple[set[str], bool | None, bool]] = {
    "healthy": ({"healthy"}, False, True),
    "slot_leak": ({"restored"}, True, True),
    "sessions_terminated": ({"healthy", "restored"}, None, True),  # the app heals while it is probed
    "postgres_down": ({"not_restored"}, True, False),
    "app_down": ({"restored"}, True, True),
}
VERBS = {"none": "none", "start": "start", "restart": "restart"}
STEPS = [
    "is the monitor running",
    "pool status of the running process",
    "PostgreSQL's side",
    "connection leaks in the source",
    "monitoring frequency",
    "debug logging",
]


@dataclass
class Case:
    """One fault and the run that met it. `before`, `after`: (pid, start time) of the app's processes."""

    fault: Fault
    run: Diagnosis
    before: list[tuple[int, int]]
    after: list[tuple[int, int]]
    sessions: list[tuple[int]]

    @property
    def report(self) -> dict[str, Any]:
        return self.run.report()


@pytest.fixture(scope="module", params=list(WANTED))
def case(request: pytest.FixtureRequest, shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name: str = request.param
    if shared_lab.log.exists():
        shared_lab.log.write_bytes(b"")  # nothing of earlier tests
    shared_lab.heal()
    shared_lab.break_(name)
    before = identities(shared_lab)
    place = tmp_path_factory.mktemp(name)
    for days in (1, 2):
        restarted_before(place / "reports", days, FAULTS[name].cause)
    run = diagnose(shared_lab.inventory, place)
    own: list[tuple[int]] = []
    if shared_lab.server.running():
        own = shared_lab.server.sql(
            "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%runbook%'"
        )
    print(
        f"{name}: first line after {run.lines[0][0]:.1f} s, cause after"
        f" {run.second_of('step 6'):.1f} s, end after {run.lines[-1][0]:.1f} s"
    )
    return Case(FAULTS[name], run, before, identities(shared_lab), own)


def restarted_before(reports: Path, days: int, cause: str) -> None:
    """What a run left behind so many days ago, as far as it is read later: the cause, and that a restart helped."""
    at = time.time() - days * 86400
    told = {"started": rfc3339(at), "cause": cause, "outcome": "restored"}
    done = {"actions": [{"action": "restart", "result": "done"}]}
    run = time.strftime("%Y-%m-%dT%H%M%SZ-0000", time.gmtime(at))
    documents.write_text(reports / run / "hosts/web-1.json", json.dumps({**told, **done}))


def test_the_cause_is_found(case: Case) -> None:
    assert case.report["cause"] == case.fault.cause, case.run.output
    assert case.report["confidence"] in ("decided", "likely")
    assert case.report["title"]
    assert case.report["why"]


def test_the_outcome_and_the_exit_status(case: Case) -> None:
    outcomes, fails, fine = WANTED[case.fault.name]
    assert case.report["outcome"] in outcomes
    assert (case.run.status == 0) == fine, case.run.output
    before, after = case.report["login_before"], case.report["login_after"]
    assert fails is None or before["ok"] is not fails
    assert after["ok"] is fine
    assert before["kind"] == after["kind"] == "full"
    for login in (before, after):
        assert login["attempts"] >= 3
        assert sum(login["by_status"].values()) == login["attempts"]
        assert (login["failed"] == 0) == login["ok"]
        assert seconds_of(login["at"])
    assert (seconds_of(before["at"]) or 0) <= (seconds_of(after["at"]) or 0)
    (row,) = case.run.document("fleet.json")["hosts"]
    assert row == {
        "host": "web-1",
        "outcome": case.report["outcome"],
        "cause": case.fault.cause,
        "reachable": True,
    }


def test_exactly_what_helps_is_done(case: Case, shared_lab: Lab) -> None:
    action = case.run.action()
    assert action["action"] == VERBS[case.fault.restart]
    assert action["result"] == "done"
    assert action["why"]
    told = {key: sorted((p["pid"], p["start_ticks"]) for p in action[key]) for key in ("before", "after")}
    assert told["before"] == case.before
    if case.fault.restart == "none":
        assert case.before == case.after
        assert told["after"] == []
        assert case.report["restart_helps"] is False
    else:
        assert case.report["restart_helps"] is True
        assert told["after"] == case.after != []
        assert not set(case.before) & set(case.after)
        assert not {pid for pid, _ in case.before} & set(shared_lab.app_pids()), "an old process is left"


def test_how_long_the_cure_holds_is_said_for_what_comes_back(case: Case) -> None:
    assert (case.report["holds_seconds"] is not None) == (case.fault.name == "slot_leak")


def test_how_often_it_was_here_before_is_told(case: Case) -> None:
    """By the reports of the last two days; and where a restart helps again, that it cures nothing."""
    told = case.report["history"]
    if case.fault.cause == "healthy":
        assert told is None
        return
    assert (told["times"], told["within_days"], told["restarts"], told["helped"]) == (3, 3, 2, 2)
    assert ("RESTARTING IS NOT A CURE" in case.run.words) is (case.fault.restart != "none")
    assert "seen here 3 times, 3 in 14 days; last" in case.run.words


def test_the_action_is_audited_on_the_host_and_on_the_controller(case: Case) -> None:
    there, here = case.run.audit(), audit_lines(case.run.reports / "audit.log")
    if case.fault.restart == "none":
        assert there == here == []
        return
    ((host_line,), (line,)) = there, here
    for one in (host_line, line):
        assert one["run_id"] == case.report["run_id"]
        assert (one["action"], one["result"]) == (case.fault.restart, "done")
        assert one["cause"] == case.fault.cause
        assert "@" in one["who"]
        assert seconds_of(one["at"])
    assert line["host"] == "web-1"
    assert line["evidence_sha256"] == case.report["evidence"][0]["sha256"]
    assert host_line["before"] == [pid for pid, _ in case.before]
    assert host_line["after"] == [pid for pid, _ in case.after]
    assert host_line["login_ok"] is True


def test_the_six_steps_are_gone_through_in_their_order(case: Case) -> None:
    steps = case.report["steps"]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step["name"] for step in steps] == STEPS
    assert all(step["summary"] for step in steps)
    seconds = [case.run.second_of(f"step {number}, {name}: ") for number, name in enumerate(STEPS, 1)]
    assert seconds == sorted(seconds)
    for step in steps:
        wanted = f"step {step['step']}, {step['name']}: {step['status']}: {step['summary']}"
        assert wanted in case.run.output
    status = {step["step"]: step["status"] for step in steps}
    assert (status[5], status[6]) == ("skipped", "skipped")
    assert status[3] == ("fail" if case.fault.name == "postgres_down" else "ok")
    assert (status[2] == "fail") == (case.fault.name == "slot_leak")
    assert status[4] == "warn"  # the lab's source has the guide's leak
    assert "services/db.py" in steps[3]["summary"]


def test_the_evidence_is_whole_and_the_report_points_to_it(case: Case) -> None:
    evidence, database = case.run.evidence(), case.run.document("databases/main.json")
    unread = {name for name, view in evidence["views"].items() if view["state"] != "ok"}
    assert unread <= {"pool", "monitor"}, {name: evidence["views"][name]["reason"] for name in unread}
    assert evidence["run_id"] == database["run_id"] == case.report["run_id"] == case.run.run.name
    assert database["views"]["connection"]["state"] == "ok"
    assert database["views"]["connection"]["data"]["ok"] == (case.fault.name != "postgres_down")
    files = {entry["file"]: entry["sha256"] for entry in case.report["evidence"]}
    assert set(files) == {"evidence/web-1.json", "databases/main.json"}
    for name, digest in files.items():
        assert hashlib.sha256((case.run.run / name).read_bytes()).hexdigest() == digest
    assert case.sessions == [], "the diagnosis left sessions on the server"


def test_only_the_owner_can_read_the_reports(case: Case) -> None:
    found = [case.run.reports, *case.run.reports.rglob("*")]
    assert len(found) > 8
    for path in found:
        if path.is_symlink():
            continue
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    names = {path.relative_to(case.run.run).as_posix() for path in case.run.run.rglob("*")}
    assert {"fleet.json", "hosts/web-1.json", "web-1/ticket.md"} <= names
    assert not [name for name in names if Path(name).name.startswith(".")], "a half-written file is left"


def test_latest_points_to_the_run(case: Case) -> None:
    link = case.run.reports / "latest"
    assert link.is_symlink()
    assert Path(case.run.reports, link.readlink()) == case.run.reports / case.report["run_id"]


def test_the_output_is_plain_and_says_the_cause_first(case: Case) -> None:
    output = case.run.output
    assert "\x1b" not in output
    screen = output[output.index("PLAY [Report]") :]
    head = re.search(rf"^web-1 +([A-Z, ]+?)   {case.fault.cause}\b.*$", screen, re.MULTILINE)
    assert head, screen
    name = head.group(1)
    wanted = {"healthy": "HEALTHY", "restored": "RESTORED", "not_restored": "NOT RESTORED"}
    assert name.startswith(wanted[case.report["outcome"]])
    if case.fault.restart == "none" and case.report["outcome"] == "not_restored":
        assert name == "NOT RESTORED, NOT TOUCHED"
    body = screen[head.start() : screen.index(" masked\n")]
    assert [line for line in body.splitlines() if len(line) > 100 and str(case.run.reports) not in line] == []
    for word in ("login", "done", "why", "steps", "saved", *(["next"] if name != "HEALTHY" else [])):
        assert re.search(rf"^  {word} ", body, re.MULTILINE), word


def test_the_ticket_says_what_the_report_says(case: Case) -> None:
    ticket = (case.run.run / "web-1" / "ticket.md").read_text()
    assert ticket.startswith("## web-1: ")
    assert f"**Cause**: {case.report['cause']} ({case.report['confidence']})" in ticket
    assert case.report["run_id"] in ticket
    assert case.report["evidence"][0]["sha256"] in ticket


def test_what_the_probe_caused_is_counted_in_the_log(case: Case) -> None:
    log = case.run.evidence()["views"]["log"]["data"]
    exhausted = log["during_login"].get("pool_exhausted", 0)
    assert (exhausted > 0) == (case.fault.name == "slot_leak")


OLD_LINES = """\
ERROR:  cannot execute INSERT in a read-only transaction
FATAL:  sorry, too many clients already
FATAL:  terminating connection due to idle-session timeout
FATAL:  the database system is starting up
connection to server at "db-1", port 5432 failed: Connection refused
OSError: [Errno 24] Too many open files
lost synchronization with server: got message type "S"
redis.exceptions.ConnectionError: Error 111 connecting to cache-1:6379
Traceback (most recent call last)
INFO: Pool status: {'maxconn': 20, 'active_connections': 20}
"""


def test_what_the_log_tells_of_another_day_decides_nothing(shared_lab: Lab, tmp_path: Path) -> None:
    """The log has no times, so these lines may be of any day; the probe caused none of them."""
    shared_lab.heal()
    shared_lab.break_("slot_leak")
    with shared_lab.log.open("a") as log:
        log.write(OLD_LINES)
    run = diagnose(shared_lab.inventory, tmp_path, "-e", "diagnose_restart=never")
    assert (run.report()["cause"], run.report()["confidence"]) == ("slot_leak", "decided")
    assert run.report()["restart_helps"] is True


def test_when_it_is_over_the_log_of_it_makes_nobody_sick(shared_lab: Lab, tmp_path: Path) -> None:
    shared_lab.heal()
    with shared_lab.log.open("a") as log:
        log.write(OLD_LINES)
    run = diagnose(shared_lab.inventory, tmp_path)
    assert (run.report()["outcome"], run.report()["cause"]) == ("healthy", "healthy")
    assert run.status == 0


def test_a_lock_that_only_the_probe_meets(shared_lab: Lab, tmp_path: Path) -> None:
    """On a quiet app the probe's logins are the first that wait, so the database is read once more."""
    shared_lab.heal()
    shared_lab.strangers("BEGIN", "LOCK TABLE public.users IN ACCESS EXCLUSIVE MODE", name="migrate")
    try:
        wait_until(
            lambda: shared_lab.server.sql(
                "SELECT count(*) FROM pg_locks WHERE relation = 'public.users'::regclass AND granted"
                " AND mode = 'AccessExclusiveLock'",
                database=DATABASE,
            )[0][0],
            "the table is locked",
        )
        run = diagnose(shared_lab.inventory, tmp_path)
    finally:
        shared_lab.end_others()
    report = run.report()
    assert (report["cause"], report["confidence"]) == ("lock_contention", "decided"), run.output
    assert "database main again, after a login hung, read" in run.words
    assert run.document("fleet.json")["database_connections"] == 2

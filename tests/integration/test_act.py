"""Starting and restarting: under which conditions, by whose word, one at a time, and what is proven after it."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from runbook.act.service import act
from runbook.evidence import process
from tests.integration.playbook import Diagnosis, diagnose, identities, inventory, script, untouched
from tests.integration.pool.house import until
from tests.lab.lab import ROOT, Lab

Begin = Callable[..., Diagnosis]


@pytest.fixture
def exhausted(shared_lab: Lab) -> Lab:
    """The lab with the guide's own symptom: a restart helps. One that a test left so is taken as it is."""
    if not (shared_lab.server.running() and shared_lab.sessions() == 0 and shared_lab.login() == 500):
        shared_lab.heal()
        shared_lab.break_("slot_leak")
    return shared_lab


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Begins runs that are not waited for; ends them with the test."""
    begun: list[Diagnosis] = []

    def one(inventory: Path, place: Path, *arguments: str) -> Diagnosis:
        begun.append(Diagnosis(inventory, place, *arguments))
        return begun[-1]

    yield one
    for run in begun:
        run.end()


# -- by whose word -----------------------------------------------------------------------------------------


def test_nothing_is_done_without_the_word_for_it(exhausted: Lab, tmp_path: Path) -> None:
    """Four hosts, each the same app: told never, asked in vain, approved wrongly, and not told how."""
    hosts = {
        "never": {"diagnose_restart": "never"},
        "asked": {"diagnose_restart": "ask"},
        "wrong": {"diagnose_restart": "ask", "diagnose_approve": "0123456789ab"},
        "speechless": {"diagnose_restart_command": None, "diagnose_start_command": None},
    }
    with untouched(exhausted):
        run = diagnose(inventory(exhausted, tmp_path / "hosts.yml", hosts), tmp_path)
    assert run.status != 0
    assert run.audit() == []
    why = {}
    for host in hosts:
        report = run.report(host)
        assert (report["outcome"], report["cause"]) == ("not_restored", "slot_leak"), host
        assert report["restart_helps"] is True
        action = run.action(host)
        assert (action["action"], action["result"], action["after"]) == ("restart", "refused", []), host
        why[host] = action["why"]
    assert "diagnose_restart is never" in why["never"]
    assert "diagnose_restart_command" in why["speechless"]
    assert "diagnose_service" in why["speechless"]
    plans = dict(re.findall(r"s  (asked|wrong) +plan ([0-9a-f]{12}): restart ", run.output))
    assert set(plans) == {"asked", "wrong"}
    assert plans["asked"] != plans["wrong"]
    assert f"-e diagnose_approve={plans['asked']}" in why["asked"]
    assert "0123456789ab" in why["wrong"]
    assert plans["wrong"] in why["wrong"]


def test_the_approved_plan_is_done_and_then_the_cool_down_holds(exhausted: Lab, tmp_path: Path) -> None:
    before = identities(exhausted)
    asked = diagnose(exhausted.inventory, tmp_path, "-e", "diagnose_restart=ask")
    plan = re.search(r"-e diagnose_approve=([0-9a-f]{12})", asked.action()["why"])
    assert plan
    assert identities(exhausted) == before
    approved = diagnose(
        exhausted.inventory, tmp_path, "-e", "diagnose_restart=ask", "-e", f"diagnose_approve={plan.group(1)}"
    )
    assert approved.status == 0, approved.output
    assert (approved.report()["outcome"], approved.action()["result"]) == ("restored", "done")
    assert not set(before) & set(identities(exhausted))
    # It comes back. A restart within the cool-down is not done, and what was approved once is not for ever.
    exhausted.break_("slot_leak")
    hosts = {
        "cooling": {"diagnose_restart": "auto"},
        "web-1": {"diagnose_restart": "ask", "diagnose_approve": plan.group(1)},
    }
    with untouched(exhausted):
        again = diagnose(inventory(exhausted, tmp_path / "hosts.yml", hosts), tmp_path)
    assert again.status != 0
    for host in hosts:
        assert again.report(host)["outcome"] == "not_restored"
        assert (again.action(host)["action"], again.action(host)["result"]) == ("restart", "refused")
    for words in ("cool-down", "900", "diagnose_cooldown", approved.report()["run_id"], "slot_leak"):
        assert words in again.action("cooling")["why"]
    assert f"diagnose_approve is {plan.group(1)}, and the plan is " in again.action("web-1")["why"]
    assert [line["result"] for line in again.audit()] == ["done", "refused"]


def test_a_person_at_the_terminal_is_asked(exhausted: Lab, tmp_path: Path) -> None:
    """With a terminal `ask` asks there; "no" leaves the app alone."""
    command = f"""
import os, pty, sys
sys.exit(os.waitstatus_to_exitcode(pty.spawn({[str(Path(sys.executable).with_name("ansible-playbook"))]!r} + sys.argv[1:])))
"""
    arguments = ["-i", str(exhausted.inventory), "diagnose.yml", "-e", "diagnose_restart=ask"]
    places = {"diagnose_reports": f"{tmp_path}/reports", "diagnose_state_directory": str(tmp_path)}
    arguments += ["-e", json.dumps(places)]
    with untouched(exhausted):
        person = subprocess.Popen(
            [sys.executable, "-c", command, *arguments],
            cwd=ROOT,
            env={**os.environ, "HOME": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert person.stdin and person.stdout
        seen = b""
        watchdog = threading.Timer(90, lambda: os.killpg(person.pid, signal.SIGKILL))
        watchdog.start()
        try:
            while True:
                if select.select([person.stdout], [], [], 0.5)[0]:
                    part = os.read(person.stdout.fileno(), 65536)
                    if not part:
                        break
                    seen += part
                elif b"yes or no" in seen:  # again and again: what is typed before it listens is thrown away
                    person.stdin.write(b"no\n")
                    person.stdin.flush()
        finally:
            watchdog.cancel()
            with suppress(ProcessLookupError):
                os.killpg(person.pid, signal.SIGKILL)
            person.wait()
    assert person.returncode != 0, seen.decode()
    report = json.loads((tmp_path / "reports/latest/hosts/web-1.json").read_text())
    assert report["actions"][0]["result"] == "refused"
    assert "did not say yes" in report["actions"][0]["why"]


def test_check_mode_changes_nothing_and_says_what_would_be_done(exhausted: Lab, tmp_path: Path) -> None:
    """One host whose login may be probed in check mode, and one whose login may not: the default."""
    hosts = {"probed": {"diagnose_probe_in_check": True}, "quiet": {}}
    size = exhausted.log.stat().st_size
    with untouched(exhausted):
        run = diagnose(inventory(exhausted, tmp_path / "hosts.yml", hosts), tmp_path, "--check")
    assert run.status != 0
    quiet = run.report("quiet")
    assert (quiet["outcome"], quiet["login_before"], quiet["login_after"]) == ("unknown", None, None)
    assert run.action("quiet")["result"] in ("refused", "would")
    assert "-e diagnose_probe_in_check=true" in run.words
    probed, action = run.report("probed"), run.action("probed")
    assert (probed["outcome"], probed["cause"]) == ("not_restored", "slot_leak")
    assert (action["action"], action["result"], action["after"]) == ("restart", "would", [])
    assert "Would restart" in run.output
    with exhausted.log.open("rb") as log:
        log.seek(size)
        tried = log.read().count(b'"POST /api/auth/login')
    rounds = run.evidence("probed")["views"]["login"]["data"]["rounds"]
    assert tried == sum(one["attempts"] for one in rounds), "the quiet host's login was tried"
    assert run.audit() == []
    assert not run.state.exists(), "--check made the state directory"
    assert "changed=0" in run.output
    assert "changed=1" not in run.output


# -- when it goes wrong ------------------------------------------------------------------------------------


def test_a_restart_command_that_fails(exhausted: Lab, tmp_path: Path) -> None:
    broken = script(tmp_path / "restart", 'echo "no such service: odras" >&2; exit 3')
    hosts = {"web-1": {"diagnose_restart_command": [broken]}}
    with untouched(exhausted):
        run = diagnose(inventory(exhausted, tmp_path / "hosts.yml", hosts), tmp_path)
    assert run.status != 0
    assert run.report()["outcome"] == "not_restored"
    action = run.action()
    assert (action["action"], action["result"]) == ("restart", "failed")
    for words in (broken, "exit status 3", "no such service: odras"):
        assert words in action["why"]
    (line,) = run.audit()
    assert (line["result"], line["login_ok"]) == ("failed", False)
    assert "restart FAILED" in run.output


def test_a_restart_that_does_not_help(exhausted: Lab, tmp_path: Path) -> None:
    """The configuration on disk works, but not for the login: every process is new, and it still fails."""
    before, settings = identities(exhausted), exhausted.app / "app.env"
    original = settings.read_bytes()
    try:
        # A database that is there and has no users table; `-e` names the settings that N is tried with.
        settings.write_bytes(original.replace(b"POSTGRES_DATABASE=odras", b"POSTGRES_DATABASE=postgres"))
        run = diagnose(exhausted.inventory, tmp_path)
        after = identities(exhausted)
    finally:
        settings.write_bytes(original)
        exhausted.heal()
    assert run.status != 0
    report, action = run.report(), run.action()
    assert (report["outcome"], report["login_after"]["ok"]) == ("not_restored", False)
    assert report["login_after"]["by_status"] == {"500": report["login_after"]["attempts"]}
    assert (action["action"], action["result"]) == ("restart", "failed")
    assert "the login still fails" in action["why"]
    assert after
    assert not set(before) & set(after)
    assert sorted((p["pid"], p["start_ticks"]) for p in action["after"]) == after
    (line,) = run.audit()
    assert (line["result"], line["login_ok"]) == ("failed", False)


# -- what is not touched -----------------------------------------------------------------------------------


def test_an_app_that_a_person_stopped_is_not_started(lab: Lab, tmp_path: Path) -> None:
    lab.odras("stop")
    run = diagnose(lab.inventory, tmp_path)
    assert lab.app_pids() == []
    assert run.status != 0
    report = run.report()
    assert (report["cause"], report["outcome"]) == ("app_down", "not_restored")
    assert report["restart_helps"] is False
    assert run.action()["action"] == "none"
    assert "stopped" in " ".join(report["next"])
    assert run.audit() == []


# -- one at a time -----------------------------------------------------------------------------------------


def test_a_second_run_only_reads_and_names_the_first(exhausted: Lab, tmp_path: Path, begin: Begin) -> None:
    """While one run restarts, another looks: before the old process ended, and while there is none."""
    place = shlex.quote(str(tmp_path))
    odras = shlex.quote(str(exhausted.app / "odras.sh"))
    slow = script(
        tmp_path / "restart",
        f"""
cp {place}/reports/*/evidence/web-1.json {place}/witness.json  # before anything is touched
await() {{ i=0; until [ -e {place}/$1 ]; do i=$((i + 1)); [ $i -lt 900 ] || exit 9; sleep 0.1; done; }}
touch {place}/begun
await stop
{odras} stop
touch {place}/stopped
await start
exec {odras} start""",
    )
    own = {"web-1": {"diagnose_restart_command": [slow]}}
    begun, stopped = tmp_path / "begun", tmp_path / "stopped"
    before = identities(exhausted)
    first = begin(inventory(exhausted, tmp_path / "hosts.yml", own), tmp_path)
    try:
        until(begun.exists, 60)
        other = tmp_path / "other"  # another person's reports, the same host
        other.mkdir()
        (other / "state").symlink_to(tmp_path / "state")
        second = diagnose(exhausted.inventory, other)
        assert identities(exhausted) == before
        (tmp_path / "stop").touch()
        until(stopped.exists, 30)
        third = diagnose(exhausted.inventory, other)
        assert exhausted.app_pids() == []
    finally:
        (tmp_path / "stop").touch()
        (tmp_path / "start").touch()
    first.wait()
    assert first.status == 0, first.output
    assert not set(before) & set(identities(exhausted))
    witness = (tmp_path / "witness.json").read_bytes()
    assert (first.run / "evidence/web-1.json").read_bytes() == witness, "the evidence was not safe before it"
    assert [line["run_id"] for line in first.audit()] == [first.report()["run_id"]]
    for run in (second, third):
        assert run.status != 0
        assert run.action()["result"] != "done" or run.action()["action"] == "none"
        assert run.evidence()["views"]["process"]["data"]["lock"]["run_id"] == first.report()["run_id"]
    assert second.report()["cause"] == "slot_leak"
    for run in (second, third):
        assert first.report()["run_id"] in run.action()["why"], "the first run is not named"
        assert "only read" in run.action()["why"]
        assert first.report()["run_id"] in run.words


# -- the module alone, on the real app ---------------------------------------------------------------------


@pytest.fixture
def request_of(lab: Lab, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Makes requests for `act` that name the lab's app as it runs now."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "action": "restart",
            "command": [str(lab.app / "odras.sh"), "restart"],
            "pid_file": str(lab.pid_file),
            "login_url": lab.login_url,
            "login_username": lab.username,
            "login_password": lab.password,
            "login_attempts": 0,
            "ready_timeout": 30.0,
            "cooldown": 900.0,
            "state_directory": str(tmp_path / "state"),
            "before": [{"pid": pid, "start_ticks": ticks} for pid, ticks in identities(lab)],
            "who": "somebody@somewhere",
            "run_id": "the first run",
            "cause": "slot_leak",
            **changes,
        }

    return make


Request = Callable[..., dict[str, Any]]


def results(tmp_path: Path) -> list[tuple[str, str]]:
    lines = map(json.loads, (tmp_path / "state" / "audit.log").read_text().splitlines())
    return [(line["run_id"], line["result"]) for line in lines]


def test_refusals_are_audited_as_refusals_and_never_prolong_the_cool_down(
    lab: Lab, tmp_path: Path, request_of: Request
) -> None:
    idle = {"command": ["true"], "ready_timeout": 0.5}  # it restarts nothing, so the old process stays
    with untouched(lab):
        first = act(request_of(**idle))
        second = act(request_of(**idle, run_id="the second run"))
        third = act(request_of(**idle, run_id="the third run"))
    assert first["result"] == "failed"
    assert "still the old process" in first["why"]
    for refused in (second, third):
        assert refused["result"] == "refused"
        assert "the first run" in refused["why"], "the cool-down counts from what was done"
    assert results(tmp_path) == [
        ("the first run", "failed"),
        ("the second run", "refused"),
        ("the third run", "refused"),
    ]


def test_a_refused_configuration_stops_nothing_and_costs_no_cool_down(
    lab: Lab, tmp_path: Path, request_of: Request
) -> None:
    refusing = script(tmp_path / "check", "echo port is no number; exit 4")
    with untouched(lab):
        refused = act(request_of(check_config_command=[refusing]))
    assert refused["result"] == "refused"
    for words in (refusing, "exit status 4", "port is no number"):
        assert words in refused["why"]
    assert results(tmp_path) == [("the first run", "refused")]
    done = act(request_of(check_config_command=["true"], run_id="the second run"))
    assert (done["result"], done["login"]["ok"]) == ("done", True), done["why"]


def test_processes_other_than_those_of_the_evidence_are_not_restarted(
    lab: Lab, tmp_path: Path, request_of: Request
) -> None:
    request = request_of()
    request["before"][0]["start_ticks"] -= 1  # the same pid, another process
    with untouched(lab):
        refused = act(request)
    assert refused["result"] == "refused"
    assert "not those that the evidence was read from" in refused["why"]
    assert results(tmp_path) == [("the first run", "refused")]


def test_an_old_process_that_stays_is_no_success(lab: Lab, tmp_path: Path, request_of: Request) -> None:
    """A restart that says it worked, and did nothing."""
    with untouched(lab):
        failed = act(request_of(command=["true"], ready_timeout=1.0))
    assert failed["result"] == "failed"
    (pid, _), *_ = identities(lab)
    assert f"pid {pid} is still the old process" in failed["why"]
    assert failed["login"] is None


def test_the_lock_of_a_run_that_was_killed_holds_nobody_up(
    lab: Lab, tmp_path: Path, request_of: Request
) -> None:
    """The lock is named while its run lives, and free when it was killed; nobody has to clear anything."""
    state = tmp_path / "state"
    slow = script(tmp_path / "slow", f"touch {shlex.quote(str(tmp_path / 'begun'))}; exec sleep 60")
    code = "import json, sys; from runbook.act.service import act; act(json.load(sys.stdin))"
    run = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=ROOT)
    sleeping: list[int] = []
    try:
        assert run.stdin
        run.stdin.write(json.dumps(request_of(command=[slow])).encode())
        run.stdin.close()
        until((tmp_path / "begun").exists, 20)
        sleeping += map(int, Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split())
        holder = process.lock_holder(state)
        assert holder and (holder["pid"], holder["run_id"]) == (run.pid, "the first run")
        with untouched(lab):
            refused = act(request_of(command=["true"], run_id="the second run"))
        assert refused["result"] == "refused"
        assert "somebody@somewhere" in refused["why"]
        assert "the first run" in refused["why"]
        assert not (state / "audit.log").exists()
    finally:
        run.kill()
        run.wait()
        for pid in sleeping:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert process.lock_holder(state) is None
    done = act(request_of(run_id="the third run"))
    assert done["result"] == "done", done["why"]


def test_a_state_directory_that_cannot_be_made_stops_everything(
    lab: Lab, tmp_path: Path, request_of: Request
) -> None:
    file = tmp_path / "a file"
    file.touch()
    with untouched(lab):
        refused = act(request_of(state_directory=str(file / "state")))
    assert refused["result"] == "refused"
    assert "diagnose_state_directory" in refused["why"]
    assert str(file) in refused["why"]

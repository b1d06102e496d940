"""The report, the screen and the ticket: every outcome, every state, every width, and never green by accident."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Sequence
from typing import Any, Optional

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook.common.documents import validate
from runbook.report.build import build, login_round, outcome
from runbook.report.page import page
from runbook.report.screen import fleet_screen, screen, state
from runbook.report.stanza import stanza
from runbook.report.ticket import ticket
from runbook.report.words import WIDTH, answers, clock, columns, duration, section, spans
from runbook.verdict.causes import IDS
from runbook.verdict.fleet import OF_THE_APP, fleet
from runbook.verdict.judge import judge
from tests.unit import incidents
from tests.unit.incidents import TABLE, Incident, Json, at, healthy, no_connection, unread

BEFORE, AFTER = [{"pid": 4272, "start_ticks": 1}], [{"pid": 9911, "start_ticks": 2}]
ACTIONS: dict[str, Optional[Json]] = {
    "nothing noted": None,
    "none": {"action": "none", "result": "done", "why": "it does not help", "before": [], "after": []},
    "open": {"action": "none", "result": "refused", "why": "the causes that fit do not agree", "before": []}
    | {"after": []},
    "restarted": {"action": "restart", "result": "done", "why": "ready after 6.2 s", "before": BEFORE}
    | {"after": AFTER},
    "started": {
        "action": "start",
        "result": "done",
        "why": "ready after 1.5 s",
        "before": [],
        "after": AFTER,
    },
    "failed": {"action": "restart", "result": "failed", "why": "no new process within 60 s"}
    | {"before": BEFORE, "after": BEFORE},
    "refused": {"action": "restart", "result": "refused", "why": "ops@web-2 is acting", "before": BEFORE}
    | {"after": []},
    "would": {"action": "restart", "result": "would", "why": "--check changes nothing", "before": BEFORE}
    | {"after": []},
}
UNREAD = {
    "unknown, no sockets": ("slot_leak", ("sockets",)),
    "unknown, no database": ("slot_leak", ("activity", "server", "locks", "limits", "connection")),
    "unknown, nothing": ("lock_contention", (*incidents.HOST_VIEWS, *incidents.DATABASE_VIEWS)),
    "healthy, not all read": ("healthy", ("sockets", "log")),
}
CASES: dict[str, Incident] = {name: build_() for name, (build_, _) in TABLE.items()} | {
    name: unread(TABLE[base][0](), *lost, reason="no right to read it: become the app's user, or name it")
    for name, (base, lost) in UNREAD.items()
}


def report_of(incident: Incident, action: str = "nothing noted", proof: Optional[bool] = None) -> Json:
    """The report over an incident, valid by its schema. `proof`: did the login after the action work?"""
    told = ACTIONS[action]
    after = None
    if proof is not None:
        one = incidents.login_round("200" if proof else "500")
        after = login_round({**one, "started_at": at(22)}, "full")
    report = build(
        *incident,
        judge(*incident),
        actions=[{**told, "seconds": 6.5}] if told else [],
        proof=after,
        evidence=[{"file": "evidence/odras-lab-1.json", "sha256": "9f2c" * 16}],
        seconds=22.1,
    )
    validate(report)
    return report


def lines_of(report: Json, saved: str = "reports/latest") -> list[str]:
    """The screen's lines, with what holds of every screen."""
    text = screen(report, saved)
    assert text.endswith("\n")
    assert "\x1b" not in text
    lines = text.splitlines()
    assert [line for line in lines if len(line) > WIDTH] == []
    assert [line for line in lines if line != line.rstrip()] == []
    return lines


def squeezed(text: str) -> str:
    return " ".join(text.split())


# -- every outcome, every state ------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_screen_has_the_cause_then_the_next_step_then_the_evidence(case: str, action: str) -> None:
    for proof in (None, True, False):
        report = report_of(CASES[case], action, proof)
        lines = lines_of(report)
        head, whole = lines[0], squeezed(" ".join(lines))
        assert head.startswith(f"{report['host']}   {state(report)}   {report['cause']}")
        labels = [
            f" {report['cause']}",
            " login ",
            " done ",
            *([" next "] if report["next"] else []),
            " steps ",
        ]
        order = [whole.find(label) for label in labels]
        assert -1 not in order
        assert order == sorted(order)
        assert squeezed(report["title"]) in whole
        for step in report["next"]:
            assert squeezed(step) in whole
        for one in report["why"]:
            assert squeezed(one["text"]) in whole, "the evidence is cut"
        if report["why"]:
            assert whole.find(" why ") > max(order[:-1])
        assert f"{report['masked']} values masked" in whole


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_ticket_can_be_pasted(case: str, action: str) -> None:
    for proof in (None, True, False):
        report = report_of(CASES[case], action, proof)
        text = ticket(report)
        assert text.startswith(f"## {report['host']}: ")
        assert f"**Cause**: {report['cause']}" in text
        assert report["title"] in text
        assert "9f2c" * 16 in text
        assert report["run_id"] in text
        assert "runbook explain" in text
        for step in report["next"]:
            assert f"- [ ] {step}" in text


@pytest.mark.parametrize(
    ("before", "after", "cause", "wanted"),
    [
        (True, True, "healthy", "healthy"),
        (True, True, "stale_configuration", "healthy"),
        (True, True, "unknown", "unknown"),
        (False, True, "sessions_terminated", "restored"),
        (False, True, "unknown", "restored"),
        (False, False, "slot_leak", "not_restored"),
        (True, False, "healthy", "not_restored"),
        (None, True, "app_down", "unknown"),
        (True, None, "healthy", "unknown"),
        (None, None, "slot_leak", "unknown"),
    ],
)
def test_the_outcome_is_what_the_users_path_says(
    before: Optional[bool], after: Optional[bool], cause: str, wanted: str
) -> None:
    first, last = ({"ok": ok} if ok is not None else None for ok in (before, after))
    assert outcome(first, last, cause) == wanted


def discovered(local: Sequence[str] = (), **told: Any) -> str:
    """The stanza of a host on which that was found, and nothing else."""
    nothing = dict.fromkeys(
        ("service", "user", "log", "container", "database", "pid_file", "environment_file")
    )
    lists: Json = {name: [] for name in ("peers", "login_paths", "login_routes", "unread")}
    known = {"port": 8000, "processes": 1, "command": "python3 -m backend.main", "sudo": True}
    return stanza({"web-1": [{**known, **nothing, **lists, **told}]}, local)


@pytest.mark.parametrize(("log", "user"), [(None, "root"), ("/var/log/odras.log", "odras")])
def test_a_unit_that_logs_to_the_journal_is_read_as_root(log: Optional[str], user: str) -> None:
    text = discovered(service="odras.service", user="odras", log=log)
    assert yaml.safe_load(text)["app"]["hosts"]["web-1"]["diagnose_user"] == user


def test_the_stanza_of_this_very_machine_without_sudo_works_on_it() -> None:
    (told,) = yaml.safe_load(discovered(["web-1"], user="odras", log="/x", sudo=False))["app"][
        "hosts"
    ].values()
    assert told["ansible_connection"] == "local"
    assert "diagnose_user" not in told
    (other,) = yaml.safe_load(discovered(user="odras", log="/x"))["app"]["hosts"].values()
    assert "ansible_connection" not in other
    assert other["diagnose_user"] == "odras"


def test_where_the_settings_do_not_name_the_database_its_peers_are_told() -> None:
    peers = ["10.0.4.9:5432", "10.0.4.7:6379"]
    words = "its database is not known; connected to 10.0.4.9:5432, 10.0.4.7:6379"
    assert f"# 1 process of python3 -m backend.main; {words}\n" in discovered(peers=peers)
    assert "connected to" not in discovered()
    database = {"user": "odras", "host": "db2", "port": 5432, "name": "odras"}
    told = discovered(peers=peers, database=database, settings_from="/etc/odras.env", processes=4)
    assert (
        "# 4 processes of python3 -m backend.main; database odras@db2:5432/odras (from /etc/odras.env)\n"
        in told
    )


def test_a_login_that_works_beside_a_connection_that_will_fail_is_not_restored() -> None:
    assert report_of(incidents.name_moved())["outcome"] == "not_restored"
    assert report_of(incidents.name_moved(), proof=True)["outcome"] == "restored"


@pytest.mark.parametrize(
    ("case", "action", "proof", "words"),
    [
        ("healthy", "none", None, "HEALTHY"),
        ("slot_leak", "restarted", True, "RESTORED, NOT FIXED"),
        ("slot_leak", "restarted", False, "NOT RESTORED"),
        ("slot_leak", "failed", False, "NOT RESTORED"),
        ("slot_leak", "refused", None, "NOT RESTORED, NOT TOUCHED"),
        ("slot_leak", "would", None, "NOT RESTORED, NOT TOUCHED"),
        ("postgres_down", "none", None, "NOT RESTORED, NOT TOUCHED"),
        ("lock_contention", "none", None, "NOT RESTORED, NOT TOUCHED"),
        ("app_down", "started", True, "RESTORED"),
        ("app_stopped", "none", None, "NOT RESTORED, NOT TOUCHED"),
        ("sessions_terminated", "none", None, "RESTORED BY ITSELF"),
        ("postgres_restarted", "restarted", True, "RESTORED"),
        ("unknown, nothing", "open", None, "UNKNOWN, NOT TOUCHED"),
        ("healthy, not all read", "none", None, "UNKNOWN, NOT TOUCHED"),
        ("unknown, no sockets", "open", None, "NOT RESTORED, NOT TOUCHED"),
    ],
)
def test_the_state_words(case: str, action: str, proof: Optional[bool], words: str) -> None:
    assert state(report_of(CASES[case], action, proof)) == words


# -- never green by accident -----------------------------------------------------------------------------------


def test_green_is_not_said_while_new_connections_are_refused() -> None:
    """The app lives on connections that it still has; the next one it opens will fail."""
    incident = no_connection(healthy(), "tcp", kind="refused", text="10.0.4.9 port 5432: Connection refused")
    report = report_of(incident, "none")
    assert report["cause"] == "postgres_down"
    assert report["outcome"] != "healthy"
    assert not state(report).startswith("HEALTHY")


def test_green_is_not_said_while_the_credentials_on_disk_are_refused() -> None:
    incident = no_connection(
        healthy(), "auth", "28P01", severity="FATAL", message="password authentication failed"
    )
    report = report_of(incident, "none")
    assert report["cause"] == "authentication_failed"
    assert report["outcome"] != "healthy"


@pytest.mark.parametrize("case", [name for name, (_, e) in TABLE.items() if name in incidents.FAILING])
def test_no_failure_is_green(case: str) -> None:
    assert report_of(CASES[case])["outcome"] in ("restored", "not_restored")


def test_a_login_that_was_not_probed_is_unknown_and_says_so() -> None:
    report = report_of(unread(healthy(), "login", reason="not probed in check mode"))
    assert report["outcome"] == "unknown"
    assert "login not probed" in squeezed(screen(report))
    assert lines_of(report)


def test_a_login_path_that_answers_is_never_called_a_login_that_works() -> None:
    """Without credentials 401 says that the lookup reached the database, and no more."""
    incident = incidents.heals(healthy())
    incident.data("login").update(kind="path")
    incident.data("login")["rounds"][-1] = incidents.login_round("401", ok=True)
    text = squeezed(screen(report_of(incident)))
    assert "the login path answers" in text
    healthy_path = healthy()
    healthy_path.data("login").update(kind="path")
    healthy_path.data("login")["rounds"] = [incidents.login_round("401", ok=True)]
    report = report_of(healthy_path)
    for text in (screen(report), ticket(report)):
        assert "login works" not in text
        assert "the login path answers" in squeezed(text)


# -- what the screen says --------------------------------------------------------------------------------------


def test_the_screen_of_a_slot_leak() -> None:
    text = squeezed(screen(report_of(CASES["slot_leak"], "restarted", True), "reports/latest"))
    for words in (
        "odras-lab-1 RESTORED, NOT FIXED slot_leak: ",
        "login 03:41:08 500 in 0.04 s, 8 of 8 -> 03:41:29 200 in 0.04 s, 8 of 8",
        "done restarted once: pid 4272 -> 9911, ready after 6.2 s",
        "holds about 9 h",
        "12:41:29 UTC",
        "sockets 0 sockets from the app",
        "not connection_leak ",
        "5 interval and 6 debug log: not needed, the cause is decided",
        "saved reports/latest/odras-lab-1/ticket.md",
        "22 s, 6 values masked",
    ):
        assert words in text, words


def test_what_is_only_likely_says_so() -> None:
    incident = unread(CASES["lock_contention"], "process")
    assert "lock_contention (likely): " in screen(report_of(incident))


def test_what_contributes_is_named() -> None:
    incident = CASES["slot_leak"].copy()
    incident.host["views"]["config"] = CASES["stale_configuration"].host["views"]["config"]
    assert "also stale_configuration" in squeezed(screen(report_of(incident)))


def test_an_open_cause_lists_what_fits_and_what_was_not_read() -> None:
    report = report_of(CASES["unknown, no sockets"], "open")
    text = squeezed(screen(report))
    assert " fits " in text
    assert " unread " in text
    assert "slot_leak undecided: " in text
    assert "no right to read it: become the app's user" in text


def test_a_failed_action_is_said_and_so_is_a_refused_one() -> None:
    failed = screen(report_of(CASES["slot_leak"], "failed", False))
    assert "restart FAILED: no new process within 60 s" in failed
    refused = screen(report_of(CASES["slot_leak"], "refused"))
    assert "refused: ops@web-2 is acting" in squeezed(refused)
    would = screen(report_of(CASES["slot_leak"], "would"))
    assert "Would restart: --check changes nothing" in squeezed(would)


@pytest.mark.parametrize("case", CASES)
def test_the_six_steps_are_there_in_the_guides_order(case: str) -> None:
    report = report_of(CASES[case])
    assert [step["step"] for step in report["steps"]] == [1, 2, 3, 4, 5, 6]
    text = squeezed(screen(report))
    labels = ["1 monitor", "2 pool", "3 PostgreSQL", "4 leaks", "5 interval", "6 debug log"]
    places = [text.find(label, text.find(" steps ")) for label in labels]
    assert -1 not in places
    assert places == sorted(places)
    if report["confidence"] != "decided":
        assert "observe.yml" in text, "steps 5 and 6 name the command that would do them"


def test_a_process_that_died_hard_is_seen_by_the_socket_it_left() -> None:
    alive = incidents.status_document(1, [incidents.holder(1, 0.1, False)], [])
    incident = incidents.pool(healthy(), alive)
    assert report_of(incident)["steps"][1]["status"] == "ok"
    incident.data("pool")["left_behind"] = ["/run/odras/pool-99.sock"]
    step = report_of(incident)["steps"][1]
    assert step["status"] == "warn"
    assert "killed or crashed: the process that left /run/odras/pool-99.sock behind" in step["summary"]


def test_every_view_that_was_not_read_is_in_the_report() -> None:
    lost = ("sockets", "process", "activity")
    report = report_of(unread(healthy(), *lost))
    assert set(lost) <= {one["view"] for one in report["unread"]}


# -- widths ----------------------------------------------------------------------------------------------------

LONG_HOST = "ip-10-0-12-171.eu-central-1.compute.internal.production.example.org"


@pytest.mark.parametrize("case", ["healthy", "slot_leak", "idle_in_transaction", "unknown, nothing"])
def test_a_long_host_name_hides_no_cause(case: str) -> None:
    incident = CASES[case].copy()
    incident.host["host"] = LONG_HOST
    report = report_of(incident)
    assert report["cause"] in squeezed(screen(report, "reports/latest"))
    lines_of(report)


LONG = ["x" * 300, "a b " * 100, " " * 150 + "x", "\n\n", "\t", "", "-" * 120]
words = st.text(max_size=30) | st.sampled_from(LONG)


@settings(deadline=None, max_examples=100)
@given(
    case=st.sampled_from(sorted(CASES)),
    action=st.sampled_from(sorted(ACTIONS)),
    proof=st.sampled_from([None, True, False]),
    texts=st.lists(words, min_size=1, max_size=5),
)
def test_no_text_makes_the_screen_wider(
    case: str, action: str, proof: Optional[bool], texts: list[str]
) -> None:
    """Every free text of a report replaced; its shape and what the schema enumerates stay."""
    report, told = report_of(CASES[case], action, proof), itertools.cycle(texts)
    report.update(host=next(told), title=next(told), next=[next(told), next(told)])
    for key in ("why", "why_not", "fits", "unread", "actions"):
        for one in report[key]:
            one["why" if key == "actions" else "text"] = next(told)
    for one in report["steps"]:
        one["summary"] = next(told)
    validate(report)
    lines = screen(report, next(told)).splitlines()
    assert [line for line in lines if len(line) > WIDTH] == []
    assert ticket(report)


HOSTILE = {
    "escape": "\x1b[2J\x1b[31mHEALTHY",
    "one-byte escape": "\x9b31m",
    "backspace": "\b\b\b\b",
    "carriage return": "\rweb-1   HEALTHY",
    "new line": "line\nweb-1   HEALTHY   healthy: all is well",
    "turned around": "\u202e gnal",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_evidence_cannot_steer_the_terminal(name: str) -> None:
    """An application_name, a query or a line of the log is somebody else's text."""
    text = HOSTILE[name]
    incident = CASES["lock_contention"].copy()
    for session in incident.data("activity")["sessions"]:
        session.update(application_name=text, query=text)
    broken = CASES["login_broken"].copy()
    broken.data("log")["samples"]["login_error"] = f"Login error: {text}"
    for one in (incident, broken):
        shown = screen(report_of(one), "reports/latest")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029]", shown)
        assert "\nweb-1" not in shown


# -- words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0, "0 s"), (0.004, "0 s"), (0.04, "0.04 s"), (4.2, "4.2 s"), (9.999, "10 s"), (25.4, "25 s")),
        *((59.6, "1 min 00 s"), (590, "9 min 50 s"), (3599.7, "1 h 00 min"), (33120, "9 h 12 min")),
        *((86400, "1 d 0 h"), (273600, "3 d 4 h")),
    ],
)
def test_a_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_clock() -> None:
    assert clock("2026-11-23T03:41:07.120Z") == "03:41:07"
    assert clock("yesterday") == "?"


@pytest.mark.parametrize(
    ("by_status", "words"),
    [
        ({"500": 8}, "500 in 0.01 s, 8 of 8"),
        ({"401": 7, "500": 1}, "401, 7 of 8; 500, 1 of 8"),
        ({"timeout": 8}, "no answer in time, 8 of 8"),
        ({"refused": 8}, "connection refused, 8 of 8"),
        ({"reset": 4, "500": 4}, "500, 4 of 8; connection reset, 4 of 8"),
        ({}, "nothing"),
    ],
)
def test_the_answers_of_a_login(by_status: dict[str, int], words: str) -> None:
    assert answers({"attempts": 8, "by_status": by_status, "seconds": 0.012}) == words


def test_lines_are_wrapped_under_their_label() -> None:
    lines = section("next", ["word " * 60, "  indented " + "word " * 30])
    assert lines[0].startswith("  next    word")
    assert all(line.startswith(" " * 10) for line in lines[1:])
    assert max(map(len, lines)) <= WIDTH
    assert columns([]) == []


# -- many hosts ------------------------------------------------------------------------------------------------


def named(case: str, host: str, started: str = "2026-11-23T03:41:07Z") -> Json:
    incident = CASES[case].copy()
    incident.host.update(host=host, collected_at=started)
    return report_of(incident)


def fleet_of(reports: list[Json], missing: list[str]) -> Json:
    document = fleet("run", reports, missing, 1)
    validate(document)
    return document


def began(report: Json, moment: str) -> Json:
    """The report, its log telling that logins fail from this moment on."""
    return {**report, "trouble": {"first": moment, "last": moment, "lines": 3, "ended": ""}}


def test_the_same_cause_on_many_hosts_is_one_event_and_said_once() -> None:
    """They were read over five minutes, and began to fail in three seconds."""
    reports = [
        began(
            named("postgres_down", f"web-{n:02}", f"2026-11-23T03:{41 + n // 4}:07.000Z"),
            f"2026-11-23T03:12:4{n % 4}.000Z",
        )
        for n in range(1, 20)
    ]
    document = fleet_of(reports, ["web-20"])
    assert document["one_event"] is True
    (event,) = document["events"]
    assert (event["cause"], event["minute"], event["where"]) == (
        "postgres_down",
        "2026-11-23T03:12",
        "database or network",
    )
    assert (event["first"], event["last"]) == ("2026-11-23T03:12:40.000Z", "2026-11-23T03:12:43.000Z")
    text = squeezed(fleet_screen(document, reports, {"web-20": "ssh: no answer in 10 s"}))
    assert text.startswith("20 hosts NOT RESTORED, NOT TOUCHED on 19, 1 NOT REACHED")
    assert text.count("postgres_down") == 1
    assert (
        "event postgres_down on 19 of 20, first errors from 03:12:40 to 03:12:43 UTC: one event on the database or"
        " network, not 19 host problems"
    ) in text
    assert "hosts 19 NOT RESTORED, NOT TOUCHED web-[01-19] login 500" in text
    assert "1 NOT REACHED web-20 ssh: no answer in 10 s; nothing is known about it" in text
    assert "database connections of this run: 1" in text


def test_what_began_at_different_times_is_several_events() -> None:
    moments = ["2026-11-23T03:12:40Z", "2026-11-23T03:13:10Z", "2026-11-23T03:30:00Z"]
    reports = [began(named("slot_leak", f"web-{n}"), moment) for n, moment in enumerate(moments)]
    document = fleet_of(reports, [])
    assert [(event["hosts"], event["where"]) for event in document["events"]] == [
        (["web-0", "web-1"], "database or network"),
        (["web-2"], "host"),
    ]
    assert document["one_event"] is False


def test_a_cause_that_lies_in_the_app_is_no_event_on_the_database() -> None:
    reports = [named("app_down", f"web-{n}") for n in range(3)]
    document = fleet_of(reports, [])
    assert [event["where"] for event in document["events"]] == ["app"]
    assert "on the database" not in fleet_screen(document, reports)
    assert set(IDS) >= OF_THE_APP


def test_one_event_is_one_though_the_clock_turned_while_it_was_read() -> None:
    """20 hosts are read within half a minute; which minute that falls into says nothing."""
    times = ["2026-11-23T03:10:59.900Z", "2026-11-23T03:11:00.100Z"]
    reports = [named("postgres_down", f"web-{n}", moment) for n, moment in enumerate(times)]
    assert fleet_of(reports, [])["one_event"] is True


def test_one_sick_host_is_that_host() -> None:
    reports = [named("slot_leak", "web-1"), named("healthy", "web-2"), named("healthy", "web-3")]
    document = fleet_of(reports, [])
    assert document["one_event"] is False
    (event,) = document["events"]
    assert (event["cause"], event["minute"]) == ("slot_leak", "2026-11-23T03:41")
    assert (event["hosts"], event["where"], event["first"]) == (["web-1"], "host", None)
    assert "slot_leak on web-1 alone, 03:41 UTC: it is that host" in squeezed(fleet_screen(document, reports))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["web-1"], ["web-1"]),
        (["web-2", "web-1"], ["web-1", "web-2"]),
        ([f"web-{n:02}" for n in (1, 2, 3, 7, 9, 10, 11)], ["web-[01-03,07,09-11]"]),
        ([f"web-{n}" for n in range(1, 12)], ["web-[1-9]", "web-10", "web-11"]),
        ([f"w{n}.eu.example" for n in (4, 5, 6)], ["w[4-6].eu.example"]),
        (["10.0.4.17", "10.0.4.18", "10.0.4.19"], ["10.0.4.17", "10.0.4.18", "10.0.4.19"]),
        (["db", "db", "café"], ["café", "db", "db"]),
    ],
)
def test_names_that_differ_in_a_number_are_told_together(names: list[str], told: list[str]) -> None:
    assert spans(names) == told


def test_a_host_that_was_not_reached_is_never_well() -> None:
    document = fleet_of([], ["web-1"])
    assert document["hosts"] == [{"host": "web-1", "outcome": "unknown", "cause": None, "reachable": False}]
    assert "NOT REACHED" in fleet_screen(document, [])


def test_the_screen_of_a_fleet_in_every_state_is_not_too_wide() -> None:
    cases: list[tuple[str, str, Any]] = [
        *(("healthy", "none", None), ("slot_leak", "restarted", True), ("app_down", "started", True)),
        *(
            ("sessions_terminated", "none", None),
            ("postgres_down", "none", None),
            ("slot_leak", "failed", False),
        ),
        *(("unknown, nothing", "open", None), ("healthy, not all read", "none", None)),
    ]
    reports = []
    for number, (case, action, proof) in enumerate(cases * 30):
        report = report_of(CASES[case], action, proof)
        report["host"] = f"{number}.{LONG_HOST}"
        reports.append(report)
    document = fleet_of(reports, [LONG_HOST])
    text = fleet_screen(document, reports)
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []
    words = re.sub(r"\n\s+", "", text)
    for name in spans(report["host"] for report in reports if state(report) == "HEALTHY"):
        assert name in words


def test_every_cause_fits_its_line() -> None:
    assert max(map(len, IDS)) + len("NOT RESTORED, NOT TOUCHED") + len(" (likely):") + 6 < WIDTH


# -- the page ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_every_page_says_what_the_screen_says_and_loads_nothing(case: str) -> None:
    report = report_of(CASES[case])
    text = page(report)
    words = squeezed(html.unescape(re.sub(r"<[^>]+>", " ", text)))
    assert squeezed(f"{report['cause']}{' (likely)' if report['confidence'] == 'likely' else ''}:") in words
    for row in (*report["why"], *report["why_not"], *report["unread"]):
        assert squeezed(row["text"]) in words
    for step in (*report["next"], *(one["summary"] for one in report["steps"])):
        assert squeezed(step) in words
    assert state(report) in words
    assert not re.search(r"(?:src|href)=|url\(|@import|<script", text)


def test_evidence_cannot_write_into_the_page() -> None:
    report = report_of(incidents.slot_leak())
    hostile = "<script>alert(1)</script>\x1b[2J\u202e"
    report["title"] = report["host"] = report["next"][0] = report["why"][0]["text"] = hostile
    text = page(report)
    assert "<script>" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;?[2J?") >= 4

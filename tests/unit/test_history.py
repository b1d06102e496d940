"""How often it was here before, and when it was broken: from the archive, and from the log."""

from __future__ import annotations

from typing import Any

import pytest

from runbook.common.documents import validate
from runbook.report.build import build
from runbook.report.history import history
from runbook.report.screen import screen
from runbook.report.ticket import ticket
from runbook.verdict.facts import Facts
from runbook.verdict.judge import judge
from tests.unit import incidents
from tests.unit.incidents import Incident

Json = dict[str, Any]
NOW = "2026-11-23T03:41:07.000Z"


def earlier(day: str, cause: str = "slot_leak", done: str = "restart", outcome: str = "restored") -> Json:
    actions = [{"action": done, "result": "done"}] if done else []
    return {"started": f"2026-11-{day}:00:00.000Z", "cause": cause, "actions": actions, "outcome": outcome}


def test_the_first_time_is_the_first() -> None:
    assert history("slot_leak", NOW, []) == {
        "times": 1,
        "within_days": 1,
        "last": None,
        "restarts": 0,
        "helped": 0,
    }


@pytest.mark.parametrize("cause", ["healthy", "unknown"])
def test_what_is_no_cause_has_no_history(cause: str) -> None:
    assert history(cause, NOW, [earlier("22T03", cause)]) is None


def test_times_days_restarts_and_whether_they_helped() -> None:
    past = [
        earlier("01T03"),
        earlier("20T03", outcome="not_restored"),
        earlier("22T03", done=""),
        earlier("21T03", cause="idle_cut"),
        {"started": "2026-11-24T00:00:00.000Z", "cause": "slot_leak", "actions": [], "outcome": "restored"},
        {"not": "a report"},
    ]
    assert history("slot_leak", NOW, past) == {
        "times": 4,
        "within_days": 3,
        "last": "2026-11-22T03:00:00.000Z",
        "restarts": 2,
        "helped": 1,
    }


def test_running_it_again_is_no_second_time_but_a_relapse_is() -> None:
    again = [earlier("23T03", done="", outcome="not_restored")]
    assert history("slot_leak", NOW, again) == {
        "times": 1,
        "within_days": 1,
        "last": None,
        "restarts": 0,
        "helped": 0,
    }
    relapse = history("slot_leak", NOW, [earlier("23T03")])
    assert relapse is not None
    assert (relapse["times"], relapse["restarts"], relapse["helped"]) == (2, 1, 1)


def report_of(incident: Incident, past: list[Json]) -> Json:
    report = build(*incident, judge(*incident), actions=[], proof=None, evidence=[], seconds=1, earlier=past)
    validate(report)
    return report


def test_the_third_time_in_fourteen_days_the_screen_says_that_restarting_is_no_cure() -> None:
    second = report_of(incidents.slot_leak(), [])
    past = [earlier("22T03"), earlier("20T03")]
    assert "before" not in screen(second)
    told = screen(report_of(incidents.slot_leak(), past[:1]))
    assert "seen here 2 times" in told
    assert "NOT A CURE" not in told
    third = report_of(incidents.slot_leak(), past)
    assert third["history"]["within_days"] == 3
    told = " ".join(screen(third).split())
    assert "seen here 3 times, 3 in 14 days" in told
    assert "worked after 2 of 2 restarts. RESTARTING IS NOT A CURE" in told
    assert "**Before**" in ticket(third)


# -- healthy now, broken from … to … -----------------------------------------------------------------------


def logged(incident: Incident, first: float, last: float, lines: int = 57) -> Incident:
    """With errors in the log from `first` to `last`, seconds after the time of the evidence."""
    changed = incident.copy()
    changed.data("log").update(
        counts={"login_error": lines},
        first={"login_error": incidents.at(first)},
        last={"login_error": incidents.at(last)},
    )
    return changed


def start(incident: Incident, app: float, server: float) -> Incident:
    changed = incident.copy()
    for process in changed.data("process")["processes"]:
        process["started_at"] = incidents.at(app)
    changed.data("server")["postmaster_start"] = incidents.at(server)
    return changed


@pytest.mark.parametrize(
    ("app", "server", "ended"),
    [
        (-590, -90000, "the app was started at"),
        (-80000, -900, "PostgreSQL was started at"),
        (-80000, -90000, "they ended by themselves"),
    ],
)
def test_healthy_now_and_broken_before_says_from_when_to_when_and_what_ended_it(
    app: float, server: float, ended: str
) -> None:
    incident = start(logged(incidents.healthy(), -1200, -600), app, server)
    trouble = Facts(*incident).trouble
    assert trouble is not None
    assert (trouble["first"], trouble["last"], trouble["lines"]) == (
        incidents.at(-1200),
        incidents.at(-600),
        57,
    )
    assert trouble["ended"].startswith(ended)
    verdict = judge(*incident)
    assert verdict.cause == "healthy"
    span = f"from {incidents.at(-1200)[11:19]} to {incidents.at(-600)[11:19]} UTC"
    assert f"57 errors in its log {span}" in verdict.title
    assert span in screen(report_of(incident, [])).replace("\n          ", " ")


def test_while_it_fails_nothing_has_ended() -> None:
    incident = logged(incidents.slot_leak(), -1200, 0)
    trouble = Facts(*incident).trouble
    assert trouble is not None
    assert trouble["ended"] == ""
    assert "still going on when read" in ticket(report_of(incident, []))


def test_a_log_without_errors_or_times_tells_of_no_trouble() -> None:
    assert Facts(*incidents.healthy()).trouble is None
    untimed = logged(incidents.healthy(), -1200, -600)
    untimed.data("log").update(first={}, last={})
    assert Facts(*untimed).trouble is None

"""The pure parts of a rollout: the file's text, what differs, what is too long, what fits, and what is said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook.act import configuration
from runbook.act.configuration import idle_problems, parse, pool_differences, render
from runbook.act.service import Failed, Refused
from runbook.pool.settings import read_environment_file
from runbook.report.rollout import end, over_budget, planned, results, seconds_left

ONE_LINE = st.text(st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029", min_codepoint=32))
STATUS: dict[str, Any] = {
    "host": "db1",
    "port": 5432,
    "database": "app",
    "user": "app",
    "config": {"max_connections": 20, "connection_timeout": 30.0, "keepalives_idle": 30},
    "overrides": [],
}
VALUES = {
    "APP_PORT": "8000",
    "POSTGRES_HOST": "db1",
    "POSTGRES_PORT": "5432",
    "POSTGRES_PASSWORD": "secret",
    "POSTGRES_POOL_MAX_CONNECTIONS": "20",
    "POSTGRES_POOL_CONNECTION_TIMEOUT": "30",
    "POSTGRES_POOL_CONNECTION_LIFETIME": "1800",
    "POSTGRES_KEEPALIVES_IDLE": "30",
}
PLAN: dict[str, Any] = {
    "host": "app1",
    "act": True,
    "write": [],
    "restart": [],
    "start": False,
    "changes": {},
    "interrupted": None,
    "server": "db1:5432",
    "connections": 40,
    "slots": 95,
    "others": 3,
}


@settings(deadline=None)
@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z_0-9]{0,20}", fullmatch=True), ONE_LINE, max_size=5))
def test_a_file_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]
) -> None:
    """To the evidence, and to the app's own reader, which has systemd's rules."""
    text = render(values)
    assert parse([text]) == values
    file = tmp_path_factory.mktemp("written") / "app.env"
    file.write_text(text, encoding="utf-8")
    told = {name: value for name, value in values.items() if not any(c in value for c in "\\`$")}
    assert told.items() <= read_environment_file(str(file)).items()


@pytest.mark.parametrize("values", [{"NAME": "two\nlines"}, {"NAME": "\x00"}, {"A NAME": "x"}, {"1": "x"}])
def test_what_one_line_cannot_hold_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(Refused, match="one line"):
        render(values)


def test_a_pool_with_the_values_does_not_differ() -> None:
    assert pool_differences(STATUS, VALUES) == []


def test_a_pool_with_other_values_is_told_by_the_names_of_the_variables() -> None:
    wanted = {**VALUES, "POSTGRES_HOST": "db2", "POSTGRES_POOL_MAX_CONNECTIONS": "25"}
    assert pool_differences(STATUS, wanted) == [
        ("POSTGRES_HOST", "db1"),
        ("POSTGRES_POOL_MAX_CONNECTIONS", "20"),
    ]


def test_what_a_process_takes_back_by_itself_does_not_differ() -> None:
    override = {"name": "max_connections", "value": "30", "was": "20", "reverts_in": 60}
    changed = {**STATUS, "config": {**STATUS["config"], "max_connections": 30}, "overrides": [override]}
    assert pool_differences(changed, VALUES) == []


@pytest.mark.parametrize(
    ("lifetime", "idle", "cut", "server", "named"),
    [
        ("1800", "30", 0, 0, []),
        ("300", "30", 350, 0, []),
        ("350", "30", 350, 0, ["postgres_pool_connection_lifetime is 350"]),
        ("0", "30", 350, 0, ["postgres_pool_connection_lifetime is 0"]),
        ("300", "350", 350, 0, ["postgres_keepalives_idle is 350"]),
        ("1800", "30", 0, 600, ["idle_session_timeout"]),
        ("0", "400", 350, 600, ["rollout_idle_cut_seconds", "idle_session_timeout", "keepalives_idle"]),
    ],
)
def test_what_outlives_a_known_cut_is_told(
    lifetime: str, idle: str, cut: float, server: float, named: list[str]
) -> None:
    values = {**VALUES, "POSTGRES_POOL_CONNECTION_LIFETIME": lifetime, "POSTGRES_KEEPALIVES_IDLE": idle}
    problems = idle_problems(values, cut, server)
    assert len(problems) == len(named)
    assert all(word in problem for word, problem in zip(named, problems))


@pytest.mark.parametrize(
    ("others", "slots", "fits"), [(3, None, False), (15, None, False), (0, 140, True), (39, 140, False)]
)
def test_pools_must_fit_what_others_leave(others: int, slots: int | None, fits: bool) -> None:
    plans = {name: {**PLAN, "host": name, "connections": 51, "others": others} for name in ("a", "b")}
    problems = over_budget(plans, slots)
    assert (problems == []) is fits
    assert fits or f"{(slots or 95) - others} for them" in problems[0]


def test_each_server_has_a_budget_of_its_own() -> None:
    plans = {
        "a": {**PLAN, "connections": 90, "server": "db1:5432"},
        "b": {**PLAN, "connections": 93, "server": "db2:5432"},
    }
    assert [problem.partition(" has ")[0].split()[-1] for problem in over_budget(plans, None)] == ["db2:5432"]


def test_a_plan_says_why() -> None:
    assert planned(PLAN) == ["nothing to do: file and processes have the values"]
    assert planned({**PLAN, "write": ["A is 1, wanted 2"]}) == [
        "write: A is 1, wanted 2",
        "no restart: every process has the values",
    ]
    assert planned({**PLAN, "restart": ["A is 1 in pid 7, wanted 2"]}) == [
        "restart: A is 1 in pid 7, wanted 2"
    ]
    told = {"who": "ops@bastion", "run_id": "r1", "since": "…", "step": "gate"}
    assert planned({**PLAN, "interrupted": told})[0] == (
        "finish: rollout r1 by ops@bastion was interrupted here (at gate)"
    )


def test_the_time_left_is_by_what_hosts_took() -> None:
    assert seconds_left(10, 0, 4) == 0
    assert seconds_left(10, 1, 4) == 30
    assert seconds_left(20, 4, 4) == 0


def test_the_end_says_what_became_of_every_host() -> None:
    plans = {name: {**PLAN, "host": name} for name in ("a", "b", "c")} | {
        "d": {**PLAN, "host": "d", "act": False}
    }
    done = {
        "a": {"result": "undone", "why": "the login fails", "healthy": True, "seconds": 9.0},
        "b": {"result": "undone", "why": "and worse", "healthy": False, "seconds": 9.0},
    }
    lines = "\n".join(end(results(plans, done), "the login fails"))
    assert "STOPPED   the login fails" in lines
    assert "a   has its former values back, proven, and is in traffic: the login fails" in lines
    assert "b   is NOT HEALTHY and out of traffic: and worse" in lines
    assert "c   untouched" in lines
    assert "d   had them already" in lines


POOL: dict[str, Any] = {
    **STATUS,
    "pid": 7,
    "count": {"used": 1, "idle": 2},
    "monitor": {"alive": True},
    "config": {**STATUS["config"], "min_connections": 3, "connection_lifetime": 1800},
}


@pytest.mark.parametrize(
    ("changed", "ready", "login", "words"),
    [
        ({}, "", {"ok": True}, ""),
        (
            {"config": {**POOL["config"], "max_connections": 19}},
            "",
            {"ok": True},
            "POSTGRES_POOL_MAX_CONNECTIONS 19",
        ),
        ({"count": {"used": 1, "idle": 1}}, "", {"ok": True}, "has 1 of at least 3"),
        ({"monitor": {"alive": False}}, "", {"ok": True}, "the pool of pid 7"),
        ({}, "no schema", {"ok": True}, "no schema"),
        ({}, "", {"ok": False, "by_status": {"500": 3}, "detail": "Oops"}, "the login fails: Oops"),
        (None, "", {"ok": True}, "0 of 1 processes tell their pool"),
    ],
    ids=["well", "another value", "a thin pool", "a dead monitor", "not ready", "no login", "no socket"],
)
def test_the_gate(
    monkeypatch: pytest.MonkeyPatch, changed: Any, ready: str, login: dict[str, Any], words: str
) -> None:
    """What has to hold before a host goes back into traffic; the process itself is asked by other tests."""
    pools = [] if changed is None else [{"pid": 7, "status": {**POOL, **changed}, "error": None}]
    seen = configuration.Seen({}, 7, VALUES, pools, None, {})
    monkeypatch.setattr(configuration, "_look", lambda _: seen)
    monkeypatch.setattr(configuration, "_ready", lambda _: ready)
    monkeypatch.setattr(configuration, "prove", lambda _: login)
    request = {
        **{"ready_url": "", "ready_timeout": 0, "status_sockets": True, "secrets": {}, "newer": []},
        **{"variables": VALUES, "log": "/nowhere"},
    }
    if words:
        with pytest.raises(Failed, match=words):
            configuration._gate(request, VALUES, 7)
    else:
        configuration._gate(request, VALUES, 7)

"""The matrix fault x cause: what is wrong in it, what a sample of it leaves out, and what is kept in bench/results."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests import incidents
from tests.lab.lab import ROOT

TEXT = (ROOT / "tests/evidence/slot_leak.json").read_text()
ROW = {
    **{"fault": "slot_leak", "app": "guide", "seed": 1, "round": 1, "cause": "slot_leak"},
    **{"confidence": "decided", "contributing": [], "unread": [], "outcome": "restored"},
    **{"restarted": "restart", "login_after": True, "seconds": 3.0},
    **{"processes_before": [[10, 100], [11, 101]], "processes_after": [[20, 200], [21, 201]]},
}
Change = dict[str, Any]
# What the diagnosis says of an app that it knows nothing of, beside what it could not read for want of rights.
UNREAD = "whether threads are stuck; it would decide app_blocked, connection_leak"
OPEN = {"cause": "unknown", "confidence": "unknown", "outcome": "not_restored", "unread": [UNREAD]}
DOWN = {"fault": "postgres_down", "cause": "postgres_down", "outcome": "not_restored", "restarted": "none"}
WELL = {"fault": "healthy", "outcome": "healthy", "restarted": "none"}
OURS = {"app": "reference"}
PAIR = {"fault": "wrong_node+stale_configuration", "cause": "wrong_node", **{"restarted": "none"}}
TOLD = {"contributing": ["stale_configuration"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"restarted": "none"}, "none where restart was wanted"),
        ({**DOWN, "restarted": "restart"}, "restart where none was wanted"),
        ({"login_after": False}, "the login fails after it"),
        ({**WELL, "cause": "healthy", "login_after": False}, "healthy, and the login fails"),
        ({**DOWN, "outcome": "restored", "login_after": False}, "restored, and the login fails"),
        ({**DOWN, "login_after": False}, ""),
        ({"cause": "healthy"}, "wanted slot_leak"),
        ({"cause": "healthy", "confidence": "likely", "unread": [UNREAD]}, "wanted slot_leak"),
        ({"confidence": "likely", "unread": [UNREAD]}, ""),
        ({"confidence": "likely"}, "likely, and no view is named"),
        ({**OURS, "confidence": "likely", "unread": [UNREAD]}, "wanted slot_leak, decided"),
        ({**OPEN, "unread": []}, "unknown, and no view is named"),
        (OPEN, "unknown, and no view is named that would decide slot_leak"),
        ({**OPEN, "fault": "connection_leak"}, ""),
        ({**OPEN, **OURS, "fault": "connection_leak"}, "wanted connection_leak, decided"),
        # What is no reason for a login to fail gives way to what is open above it.
        ({**OPEN, **WELL}, ""),
        ({**OPEN, **WELL, "unread": []}, "unknown, and no view is named"),
        # Where nobody could tell.
        ({**OPEN, **OURS, "fault": "pgbouncer_mute", "restarted": "none"}, ""),
        ({**PAIR, **TOLD}, ""),
        (PAIR, "stale_configuration is not told beside it"),
        ({"fault": "slot_leak+stale_configuration"}, ""),  # by nothing that is left
        # Nothing is left of a second fault that was made before the cause.
        ({**DOWN, "fault": "postgres_down+sessions_terminated"}, ""),
    ],
)
def test_what_is_wrong_with_a_row(change: Change, words: str) -> None:
    assert incidents.trouble({**ROW, **change}) == words


@pytest.mark.parametrize(("decided", "enough"), [(79, False), (80, True)])
def test_of_the_foreign_apps_so_many_have_to_be_decided(decided: int, enough: bool) -> None:
    row = {**ROW, "fault": "connection_leak"}
    rows = [{**row, "cause": "connection_leak"}] * decided + [{**row, **OPEN}] * (100 - decided)
    words, well = incidents.summary(rows)
    assert words.endswith(f"{decided} of 100 decided in foreign apps{'' if enough else ', too few'}")
    assert well is enough
    assert incidents.summary([*rows, {**row, **OURS}])[1] is False, "one that is wrong, beside them"


def test_restarts_that_are_wrong_and_that_are_missed_are_counted() -> None:
    rows = [ROW, {**ROW, "restarted": "none"}, {**ROW, **DOWN, "restarted": "restart"}]
    assert "2 wrong; wrong restarts 1, missed restarts 1" in incidents.summary(rows)[0]


# -- a sample --------------------------------------------------------------------------------------------------


def test_a_sample_begins_with_our_own_app_and_is_another_one_with_another_seed() -> None:
    there = incidents.cases([], [], 1, pairs=True)
    first, again, other = (incidents.sampled(list(there), seed) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == sorted(other) == sorted(there)
    own = [case for case in there if case.app == "reference" and len(case.faults) == 1]
    assert (
        set(first[: len(own)]) == set(other[: len(own)]) == set(own) == set(filter(incidents.always, first))
    )


@pytest.mark.parametrize(
    ("app", "fault", "well"),
    [
        ("guide", "slot_leak", True),
        ("reference", "slot_leak+stale_configuration", True),
        ("reference", "healthy", False),
    ],
)
def test_what_there_was_no_time_for_is_told(app: str, fault: str, well: bool) -> None:
    """And is a failure where it is one that no sample may leave out."""
    run = incidents.Harness(seed=1, until=0)
    run.rows = [ROW]
    case = incidents.Case(1, tuple(fault.split("+")), app)
    assert run.left_out(case) is well
    run.interrupted = True
    run.run([case], jobs=1)
    words, all_well = run.told()
    assert words.splitlines()[-1] == f"not run, 1: {fault} in {app}"
    assert all_well is well


def test_a_run_of_nothing_and_one_with_an_error_are_not_well() -> None:
    run = incidents.Harness(seed=1, until=0)
    assert run.told()[1] is False
    run.rows = [ROW]
    assert run.told()[1] is True
    run.errors = ["slot_leak in guide: no report"]
    assert run.told() == (f"{incidents.summary([ROW])[0]}\nnot made: slot_leak in guide: no report", False)


# -- what is kept ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"cause": "healthy"}, ["healthy decided then, slot_leak decided now"]),
        # The table of faults says what was wanted, whatever the row came to.
        ({"fault": "connection_leak"}, ["wanted connection_leak"]),
        ({"login_after": False}, ["the login fails after it"]),
        ({"confidence": "likely"}, ["slot_leak likely then, slot_leak decided now"]),
        ({"restarted": "none"}, ["none it says, restart by its processes"]),
        # A master that replaces its workers was not restarted by anybody.
        (
            {"processes_after": [[10, 100], [21, 201]]},
            [
                "restart it says, none by its processes",
                "done was none, and the verdict wants restart",
                "none where restart was wanted",
            ],
        ),
    ],
)
def test_a_row_that_its_evidence_does_not_bear_out(change: Change, words: list[str]) -> None:
    row = {**ROW, **change}
    name = f"{row['fault']} in guide, seed 1, round 1"
    assert incidents.differs(row, TEXT) == [f"{name}: {one}" for one in words]


def test_what_is_kept_comes_to_the_same_again_and_is_right() -> None:
    """Of what there is; what is lacking `scripts/incidents --check` says."""
    rows, texts = incidents.kept()
    assert incidents.again(rows, texts) == []
    words, well = incidents.summary(rows)
    assert well, words


def test_a_row_without_its_evidence() -> None:
    assert incidents.differs(ROW, None) == ["slot_leak in guide, seed 1, round 1: its evidence is not kept"]


@pytest.mark.parametrize(
    "lose", [lambda row: row["app"] == "guide" and row["round"] == 3, lambda row: "+" in row["fault"]]
)
def test_a_case_that_is_missing(lose: Callable[[Change], bool]) -> None:
    cases = incidents.cases([], [], incidents.ROUNDS, pairs=True)
    rows = [{"fault": "+".join(one.faults), "app": one.app, "round": one.round} for one in cases]
    assert incidents.lacks(rows) == []
    lost = [row for row in rows if lose(row)]
    told = incidents.lacks([row for row in rows if not lose(row)])
    assert lost
    assert len(told) == len(lost)
    assert all(f"{row['fault']} in {row['app']}: " in " ".join(told) for row in lost)
    left = incidents.lacking(cases, [row for row in rows if not lose(row)])
    assert sorted((one.fault, one.app) for one in left) == sorted((row["fault"], row["app"]) for row in lost)


def test_of_each_fault_in_each_app_the_newest_rounds_stay(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incidents, "RESULTS", tmp_path / "incidents.json")
    monkeypatch.setattr(incidents, "EVIDENCE", tmp_path / "incidents.jsonl.xz")
    for turn in range(1, 6):
        run = incidents.Harness(seed=turn, until=0)
        run.rows = [{**ROW, "seed": turn, "evidence_sha256": incidents.hashed(f"text {turn}")}]
        run.evidence = {incidents.hashed(f"text {turn}"): f"text {turn}"}
        incidents.keep(run)
    rows, texts = incidents.kept()
    assert [row["seed"] for row in rows] == [3, 4, 5]
    assert sorted(texts.values()) == ["text 3", "text 4", "text 5"]
    assert json.loads((tmp_path / "incidents.json").read_text()) == rows


def test_only_what_was_decided_as_in_most_apps_is_recorded(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incidents, "RECORDED", tmp_path)
    run = incidents.Harness(seed=1, until=0)
    nested = {"fault": "nested_checkout", "cause": "nested_checkout", "outcome": "not_restored"}
    run.rows = [
        {
            **ROW,
            "fault": "connection_leak",
            "cause": "connection_leak",
            "confidence": "likely",
            "unread": [UNREAD],
        },
        {**ROW, **DOWN, "fault": "postgres_starting", "cause": "postgres_not_answering"},
        {**ROW, **nested, "app": "psycopg", "restarted": "none"},
        ROW,
    ]
    assert not any(map(incidents.trouble, run.rows))
    run.rows = [{**row, "evidence_sha256": "of the text"} for row in run.rows]
    run.evidence = {"of the text": TEXT}
    incidents.record(run)
    (file,) = tmp_path.iterdir()
    assert file.name == "slot_leak.json"
    assert file.read_text() == TEXT

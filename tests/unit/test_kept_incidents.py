"""The matrix fault x cause that is kept in bench/results, judged again."""

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
    **{"confidence": "decided", "restarted": "restart", "wanted_restart": "restart"},
    **{"processes_before": [[10, 100], [11, 101]], "processes_after": [[20, 200], [21, 201]]},
}
Change = dict[str, Any]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"cause": "healthy"}, ["healthy decided then, slot_leak decided now"]),
        ({"confidence": "likely"}, ["slot_leak likely then, slot_leak decided now"]),
        ({"restarted": "none"}, ["none it says, restart by its processes"]),
        # A master that replaces its workers was not restarted by anybody.
        (
            {"processes_after": [[10, 100], [21, 201]]},
            [
                "restart it says, none by its processes",
                "done was none, and the verdict wants restart",
            ],
        ),
    ],
)
def test_a_row_that_its_evidence_does_not_bear_out(change: Change, words: list[str]) -> None:
    name = "slot_leak in guide, seed 1, round 1"
    assert incidents.differs({**ROW, **change}, TEXT) == [f"{name}: {one}" for one in words]


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

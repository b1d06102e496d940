"""How long a diagnosis takes beside the steps by hand, as it is kept in bench/results."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest

from bench import diagnose

KEPT: dict[str, dict[str, Any]] = json.loads(diagnose.RESULTS.read_text())


@pytest.mark.parametrize("size", KEPT)
def test_the_figures_are_those_of_the_rounds(size: str) -> None:
    kept = KEPT[size]
    ours, naive = (statistics.median(kept[f"{name}_all_s"]) for name in ("runbook", "naive"))
    assert (kept["runbook_s"], kept["naive_s"]) == (round(ours, 2), round(naive, 2))
    assert kept["ratio"] == round(kept["naive_s"] / kept["runbook_s"], 2)
    # Whether that is enough is said by the bench itself, where it is measured.
    rounds = diagnose.ROUNDS[int(size.removeprefix("hosts_"))]
    assert len(kept["runbook_all_s"]) == len(kept["naive_all_s"]) == rounds


@pytest.mark.parametrize(("ratio", "slow"), [(1.3, []), (1.29, ["hosts_1: 1.29 times faster, wanted 1.3"])])
def test_what_is_too_slow_is_told(ratio: float, slow: list[str]) -> None:
    assert diagnose.too_slow({"hosts_1": {"ratio": ratio}, "hosts_200": {"ratio": 0.1}}) == slow

"""The guide's verification: what is red, and what is green on something."""

from __future__ import annotations

import pytest

from runbook.report.verification import verification
from runbook.verdict.facts import Facts
from tests.unit.incidents import Incident, fails, healthy, pool, status_document, unread


def verified(incident: Incident) -> tuple[bool, str]:
    return verification(Facts(incident.host, incident.database))


@pytest.mark.parametrize(("used", "well"), [(15, True), (16, False), (20, False)])
def test_a_pool_is_used_to_less_than_80_percent(used: int, well: bool) -> None:
    found, words = verified(pool(healthy(), status_document(used, [], [])))
    assert found == well
    assert (f"{used} of 20 used in 1 pools" if well else f"{used} of 20 connections used") in words


def test_without_status_sockets_there_is_none_to_ask() -> None:
    incident = healthy().copy()
    incident.host["views"]["pool"]["data"] = {"processes": [], "left_behind": []}
    found, words = verified(incident)
    assert found
    assert words.endswith("no status socket to ask")


def test_a_pool_that_was_not_read_is_not_healthy() -> None:
    found, words = verified(
        unread(pool(healthy(), status_document(1, [], [])), "pool", reason="no right to it")
    )
    assert (found, words) == (False, "the pool: no right to it")


def test_one_process_that_does_not_say_is_enough() -> None:
    incident = pool(healthy(), status_document(1, [], []))
    row = incident.data("pool")["processes"][0]
    incident.data("pool")["processes"].append({**row, "pid": 1, "status": None, "error": "no answer"})
    assert verified(incident) == (False, "the pool: status socket of pid 1: no answer")


def test_a_login_that_fails() -> None:
    found, words = verified(fails(healthy()))
    assert not found
    assert words.startswith("the login: 500")

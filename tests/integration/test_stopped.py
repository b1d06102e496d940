"""Processes of the app that somebody stopped: they live, they listen, and they do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runbook.evidence.threads import Looks
from tests.integration.playbook import diagnose
from tests.integration.test_collectors import stopped
from tests.lab.faults.network import frozen
from tests.lab.lab import Lab

PROBED = ("--check", "-e", "diagnose_probe_in_check=true")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The reference application: a supervisor and two workers."""
    with Lab(tmp_path_factory.mktemp("reference"), "reference") as lab:
        yield lab


def test_when_every_process_is_stopped_nobody_is_answered(app: Lab, tmp_path: Path) -> None:
    pids = app.app_pids()
    with stopped(*pids):
        run = diagnose(app.inventory, tmp_path, *PROBED)
    report = run.report()
    assert (report["cause"], report["restart_helps"]) == ("app_blocked", True), run.output
    assert f"pid {', '.join(map(str, sorted(pids)))} are stopped (state T)" in run.words
    assert f"kill -CONT {' '.join(map(str, sorted(pids)))}" in run.words
    assert report["steps"][1]["status"] == "warn"


def test_a_frozen_unit_is_told_though_its_threads_look_asleep(app: Lab, tmp_path: Path) -> None:
    pids = app.app_pids()
    with frozen(pids):
        run = diagnose(app.inventory, tmp_path, *PROBED)
    report = run.report()
    assert (report["cause"], report["restart_helps"]) == ("app_blocked", True), run.output
    assert f"pid {', '.join(map(str, sorted(pids)))} are frozen with the control group (state F)" in run.words
    assert "then find out who froze it" in report["next"][0]


def test_one_worker_that_is_stopped_is_named_though_the_other_serves(app: Lab, tmp_path: Path) -> None:
    """They share one listening socket, so no login fails of it; and not all is well."""
    worker = max(app.app_pids())
    with stopped(worker):
        run = diagnose(app.inventory, tmp_path, *PROBED)
    report = run.report()
    assert (report["cause"], report["outcome"]) == ("unknown", "unknown"), run.output
    assert f"pid {worker} is stopped (state T)" in report["title"]
    assert f"kill -CONT {worker}" in report["next"][0]
    assert report["steps"][1]["status"] == "warn"


def test_who_minds_workers_waits_for_a_signal(app: Lab) -> None:
    """The supervisor is not at work in a call that nobody knows; nor is what goes on after a stop."""
    with stopped(*app.app_pids()):
        pass
    calls = {thread["call"] for thread in Looks(app.app_pids(), None).look("before_login")["threads"]}
    assert "wait" in calls
    assert not [call for call in calls if call.startswith("call ")], calls

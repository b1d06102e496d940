"""What was recorded from real faults comes to its cause again: here, and with nothing but a bare Python.

`scripts/incidents --record` writes these files: one for each cause, a host's and its database's evidence.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from runbook.common.documents import validate
from runbook.verdict.causes import IDS
from runbook.verdict.judge import judge
from tests.lab.faults import FAULTS
from tests.lab.faults.table import PAIRS

ROOT = Path(__file__).parents[2]
RECORDED = sorted((ROOT / "tests/evidence").glob("*.json"))
# PostgreSQL has settings of these names, and the view of the log counts lines of some kinds by these.
SETTINGS = {"idle_session_timeout", "transaction_timeout", "idle_in_transaction_timeout", "client_suspended"}


def load(file: Path) -> Any:
    return json.loads(file.read_text())


def test_what_is_recorded_is_named_by_causes() -> None:
    assert {file.stem for file in RECORDED} == set(IDS)


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_it_comes_to_its_cause_and_to_the_right_action(file: Path) -> None:
    incident = load(file)
    verdict = judge(incident["host"], incident["database"])
    assert (verdict.cause, verdict.confidence) == (file.stem, "decided")
    assert verdict.action == FAULTS[file.stem].restart
    assert verdict.next or verdict.cause == "healthy"


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_an_app_that_does_not_tell_its_requests_comes_to_the_same_cause(file: Path) -> None:
    """Our pool without its middleware: it counts for a waiter what its thread holds, and says of no request that
    it is over."""
    incident = load(file)
    pools = (incident["host"]["views"]["pool"]["data"] or {"processes": []})["processes"]
    for status in (row["status"] for row in pools if row["status"]):
        for holder in status["holders"]:
            holder.update(request_id=None, request_over=None)
        for waiter in status["waiters"]:
            own = sum(holder["tid"] == waiter["tid"] for holder in status["holders"])
            waiter.update(request_id=None, holds=own)
    verdict = judge(incident["host"], incident["database"])
    assert (verdict.cause, verdict.confidence) == (file.stem, "decided")


def test_of_a_pair_the_first_has_the_higher_rank() -> None:
    assert len(PAIRS) >= 15
    for first, second in PAIRS:
        assert IDS.index(FAULTS[first].cause) < IDS.index(FAULTS[second].cause), (first, second)


def test_who_has_the_slots_is_told_of_the_whole_server() -> None:
    """PostgreSQL 16 says "remaining connection slots are reserved for roles with …", and means no role's limit."""
    (file,) = (file for file in RECORDED if file.stem == "connection_slots_full")
    incident = load(file)
    told = judge(incident["host"], incident["database"]).next
    assert "nightly-report" in told[1], told
    assert not any("pg_terminate_backend" in words and "odras_app" in words for words in told)


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_it_is_a_document_of_its_schema(file: Path) -> None:
    incident = load(file)
    assert set(incident) == {"schema", "host", "database"}
    assert incident["schema"] == "runbook/incident/1"
    validate(incident["host"])
    if incident["database"] is not None:
        validate(incident["database"])


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_nothing_in_it_tells_the_fault_or_the_machine_that_it_was_recorded_on(file: Path) -> None:
    text = file.read_text()
    for name in {*IDS, *FAULTS} - SETTINGS - {"healthy"}:
        assert not re.search(rf"\b{name}\b", text), name
    assert not re.search(r"/(?:root|home|tmp|var/tmp)/", text)
    assert "/srv/" in text


def test_explain_needs_nothing_but_python() -> None:
    """No site-packages, no environment: what a clone and a fresh machine have."""
    for file in RECORDED:
        done = subprocess.run(
            [sys.executable, "-E", "-s", "-S", "-m", "runbook", "explain", "--json", str(file)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{file.name}: {done.stderr}"
        assert json.loads(done.stdout)["cause"] == file.stem


def test_what_travels_in_an_archive_is_compiled_once(tmp_path: Path) -> None:
    archive = tmp_path / "sent.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((ROOT / "runbook").rglob("*.py")):
            file.write(path, path.relative_to(ROOT))
    program = """
import sys
compiled = []
sys.addaudithook(lambda event, told: event == "compile" and compiled.append(str(told[1])))
sys.path.insert(0, sys.argv[1])
import runbook.evidence.collect
sent = {name: module for name, module in sys.modules.items() if name.startswith("runbook.")}
for name, module in sent.items():
    path = sys.argv[1] + "/" + name.replace(".", "/") + ("/__init__" if hasattr(module, "__path__") else "") + ".py"
    assert module.__file__ == path, (module.__file__, path)
inner = [name for name in compiled if name.startswith(sys.argv[1]) and not name.endswith("__init__.py")]
print(len(sent), sorted({name for name in inner if inner.count(name) > 1}))
"""
    command = [sys.executable, "-I", "-c", program, str(archive)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    modules, _, again = done.stdout.partition(" ")
    assert int(modules) > 25, done.stderr
    assert again.strip() == "[]", "compiled again"

"""The collection, built and installed elsewhere, finds the cause from another directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.lab import ROOT, Lab

BIN = Path(sys.executable).parent


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a command printed. It must end with 0 within two minutes."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    done = subprocess.run(
        command, cwd=cwd, env={**own, **environment}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of collections that holds this one, as `ansible-galaxy` installs it."""
    place = tmp_path_factory.mktemp("installed")
    galaxy = BIN / "ansible-galaxy"
    run(galaxy, "collection", "build", "--output-path", place, cwd=ROOT)
    (package,) = place.glob("pool-runbook-*.tar.gz")
    run(galaxy, "collection", "install", package, "--no-deps", "-p", place / "collections", cwd=place)
    return place / "collections"


def test_the_collection_carries_the_product_and_nothing_of_the_workshop(installed: Path) -> None:
    root = installed / "ansible_collections" / "pool" / "runbook"
    names = {path.name for path in root.iterdir()}
    assert {"playbooks", "roles", "plugins", "runbook", "README.md", "inventory.example"} <= names
    assert not names & {"tests", "molecule", ".git", ".venv", "reports", "Makefile.lock", ".collections"}
    assert (root / "plugins" / "module_utils" / "runbook" / "verdict" / "judge.py").is_file()


def test_diagnose_runs_from_another_directory(installed: Path, lab: Lab, tmp_path: Path) -> None:
    lab.heal()  # and its log is empty: what an earlier test did is not told here
    run(
        BIN / "ansible-playbook",
        "-i",
        lab.inventory,
        "pool.runbook.diagnose",
        cwd=tmp_path,
        ANSIBLE_COLLECTIONS_PATH=str(installed),
    )
    report = json.loads((tmp_path / "reports" / "latest" / "hosts" / "web-1.json").read_text())
    assert (report["outcome"], report["cause"]) == ("healthy", "healthy")

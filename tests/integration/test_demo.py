"""`make demo` is the first thing that anybody sees: it ends as it says, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.lab.account import account
from tests.lab.lab import ROOT

COMMAND = [sys.executable, str(ROOT / "scripts" / "demo")]


def begin(fault: str, temporary: Path) -> subprocess.Popen[str]:
    """The demo, with a temporary directory of its own to look for left-overs in."""
    return subprocess.Popen(
        [*COMMAND, fault],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def left_in(temporary: Path) -> list[str]:
    """Directories of the lab or of the demo that are still there."""
    return [path.name for path in temporary.iterdir() if path.name.startswith(("demo-", "odras-"))]


def test_it_breaks_and_heals(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    demo = begin("slot_leak", tmp_path)
    output, _ = demo.communicate(timeout=180)
    assert demo.returncode == 0, output
    assert "three times: 500, 500, 500" in output
    assert "RESTORED, NOT FIXED   slot_leak" in output
    assert "now a login answers 200" in output
    assert left_in(tmp_path) == []


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    demo = begin("slot_leak", tmp_path)
    assert demo.stdout
    directory = None
    for line in demo.stdout:
        if line.startswith("directory"):
            directory = Path(line.split()[1])
        if "broken by another process" in line:
            break
    assert directory and directory.is_dir()
    os.killpg(demo.pid, signal.SIGINT)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert not directory.exists()
    assert account().processes_in(directory) == {}
    assert left_in(tmp_path) == []


def test_an_unknown_fault_is_refused_by_name(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    demo = begin("slot_leek", tmp_path)
    output, _ = demo.communicate(timeout=120)
    assert demo.returncode != 0
    assert "slot_leek" in output
    assert "slot_leak" in output
    assert left_in(tmp_path) == []

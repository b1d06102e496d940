"""Idle for real, in less than a minute: a path that drops, the shipped pool, and 100 logins at once.

The long version is a command, `scripts/idle 31`; what it said is in docs/idle.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration import idle
from tests.lab.lab import ROOT

DEADLINE_SECONDS = 420
MINUTES, CUT = 0.3, 3
# Keepalive every second tells the path that the connection is wanted; after 5 s it comes too late.
KEPT = {"POSTGRES_KEEPALIVES_IDLE": 1, "POSTGRES_KEEPALIVES_INTERVAL": 1}
TOO_LATE = {
    "POSTGRES_KEEPALIVES_IDLE": 5,
    "POSTGRES_KEEPALIVES_INTERVAL": 1,
    "POSTGRES_TCP_USER_TIMEOUT": 3000,
}


def stay_idle(place: Path, settings: dict[str, int]) -> dict[str, Any]:
    """What `scripts/idle` found."""
    if idle.cannot():
        pytest.skip(idle.cannot())  # in CI that is a failure
    result = place / "result.json"
    told = [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]
    command = [
        sys.executable,
        str(ROOT / "scripts/idle"),
        str(MINUTES),
        f"--cut={CUT}",
        f"--json={result}",
        *told,
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    loaded: dict[str, Any] = json.loads(result.read_text())
    assert loaded["dropped_packets"] > 0  # of the guide's app, whose keepalive begins after 30 s
    return loaded


def test_a_path_that_forgets_costs_no_login(tmp_path: Path) -> None:
    apps = stay_idle(tmp_path, TOO_LATE)["apps"]
    reference = apps["reference"]
    assert (reference["attempts"], reference["failed"]) == (100, 0)
    assert reference["same_processes"]
    assert reference["found_silent"] >= reference["idle_before"] >= 4, "nothing was cut, so nothing was shown"
    assert apps["guide"]["failed"] > 0


def test_keepalive_keeps_a_path_that_would_forget(tmp_path: Path) -> None:
    reference = stay_idle(tmp_path, KEPT)["apps"]["reference"]
    assert (reference["attempts"], reference["failed"]) == (100, 0)
    assert reference["same_processes"]
    assert reference["found_silent"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["0.1", "--cut", "6"], "MINUTES is 0.1 and --cut 6: the idle time must be longer than the cut"),
        (["nan"], "MINUTES is nan and --cut 240"),
        (["1", "--cut", "0"], "MINUTES is 1 and --cut 0"),
    ],
)
def test_what_would_show_nothing_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        idle.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_without_root_it_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert idle.main(["1", "--cut", "3"]) == 2
    assert "scripts/idle: it needs root, for a network of its own" in capsys.readouterr().err

"""What is said of a service, from what systemd says of its unit."""

from __future__ import annotations

import pytest

from runbook.evidence import process

UNIT = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "Result": "success"}
AGAIN = "; it ended by itself, and systemd started it again (NRestarts 1)"


@pytest.mark.parametrize(
    ("told", "words"),
    [({}, ""), ({"NRestarts": ""}, ""), ({"NRestarts": "0"}, ""), ({"NRestarts": "1"}, AGAIN)],
)
def test_a_service_that_was_started_again_says_so(
    told: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old systemd does not count."""
    monkeypatch.setattr(process, "systemd_unit", lambda _: {**UNIT, **told})
    service = process.collect("app.service", None, None, None)["service"]
    assert service["why"] == f"app.service is active (running), result success{words}"

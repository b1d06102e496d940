"""The app's own pool under TLS: it reads why PostgreSQL ended its sessions, where nobody else can."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.playbook import diagnose, untouched
from tests.lab.account import account
from tests.lab.lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path / "lab", "reference") as made:
        place, port = made.directory / "tls", made.free_port()
        place.mkdir()
        certificate, key = place / "server.crt", place / "server.key"
        new = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=db-1")
        command = [*new, "-keyout", key, "-out", certificate]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        account().own(place)
        made.other("tls", listen=port, to=made.server.port, certificate=str(certificate), key=str(key))
        made.fill(port=port)
        made.restart()
        yield made


@pytest.mark.parametrize("with_log", [True, False])
def test_sessions_terminated(lab: Lab, with_log: bool, tmp_path: Path) -> None:
    """Its status socket says so after the probe, whether or not there is a log."""
    assert set(lab.logins(9)) == {200}
    assert lab.end_sessions()
    more = () if with_log else ("-e", "diagnose_log=/nowhere/app.log")
    with untouched(lab):
        run = diagnose(lab.inventory, tmp_path, *more)
    words = run.evidence()["views"]["sockets"]["data"]["last_words"]
    assert {(row["kind"], row["sqlstate"]) for row in words} == {("bytes", None)}
    report = run.report()
    assert (report["cause"], report["confidence"]) == ("sessions_terminated", "decided"), run.output
    assert "the app's pool read on dead connections: 57P01" in run.output

"""`verify.yml`, the guide's verification: the login and the pool, at once or after a chosen idle time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.playbook import diagnose, inventory, untouched
from tests.lab.lab import Lab

VERIFY = "playbooks/verify.yml"


def test_it_stays_idle_for_the_chosen_time(lab: Lab, tmp_path: Path) -> None:
    """A part of a minute as well, and it is silence: nobody logs in meanwhile."""
    file = inventory(lab, tmp_path / "hosts.yml")
    with untouched(lab):
        run = diagnose(file, tmp_path, "-e", "diagnose_idle_minutes=0.1", playbook=VERIFY)
    assert run.status == 0, run.output
    idle, reads = run.second_of("nobody logs in: 6 s left"), run.second_of("web-1   reading login")
    assert 6 <= reads - idle < 20
    assert run.second_of("web-1   login 200: 3 (of 3)") > reads
    assert "web-1   verified: login 200" in run.output


def test_without_one_it_looks_at_once_and_is_red_on_a_failing_login(lab: Lab, tmp_path: Path) -> None:
    file = inventory(lab, tmp_path / "hosts.yml")
    lab.break_("slot_leak")
    with untouched(lab):
        run = diagnose(file, tmp_path, playbook=VERIFY)
    assert run.status not in (0, None), run.output
    assert "nobody logs in" not in run.output
    assert re.search(r"web-1   NOT VERIFIED: the login: 500 in [\d.]+ s, 3 of 3", run.output)


def test_the_ports_of_what_was_deployed_are_followed(lab: Lab, tmp_path: Path) -> None:
    """Named once, for the roles that deploy."""
    app = {"diagnose_login_url": None, "app_port": lab.app_port}
    database = {"diagnose_database_port": None, "postgres_port": lab.server.port}
    file = inventory(lab, tmp_path / "hosts.yml", {"web-1": app}, postgres=database)
    run = diagnose(file, tmp_path, playbook=VERIFY)
    assert run.status == 0, run.output
    assert run.evidence()["views"]["login"]["data"]["url"] == lab.login_url
    assert run.document("databases/main.json")["views"]["connection"]["data"]["ok"] is True


@pytest.mark.parametrize("value", ["-5", "soon", "nan", "1441", ""])
def test_an_idle_time_that_cannot_be(lab: Lab, tmp_path: Path, value: str) -> None:
    file = inventory(lab, tmp_path / "hosts.yml")
    run = diagnose(file, tmp_path, "-e", f"diagnose_idle_minutes={value}", playbook=VERIFY)
    assert run.status not in (0, None), run.output
    assert f"diagnose_idle_minutes is '{value}': wanted is " in run.words
    assert "reading login" not in run.output

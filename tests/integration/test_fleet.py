"""A fleet: three sick apps on one server, read over one connection to it, restarted one by one."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.playbook import Diagnosis, diagnose, identities
from tests.lab.faults import wait_until
from tests.lab.fleet import Fleet
from tests.lab.lab import Lab

HOSTS = ["web-1", "web-2", "web-3"]
# Every run here has a host's state of its own beside the reports, shared by all of its hosts.
NO_COOLDOWN = ("-e", "diagnose_cooldown=0")
NEVER = ("-e", "diagnose_restart=never")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A pool of four is as exhausted as one of twenty, and sooner."""
    place, server = tmp_path_factory.mktemp("fleet"), {"log_connections": "on"}
    with Fleet(place, len(HOSTS), server, POSTGRES_POOL_MAX_CONNECTIONS=4) as made:
        yield made


@pytest.fixture
def well(fleet: Fleet) -> Fleet:
    for app in fleet.apps:
        if not app.app_pids() or app.login() != 200:
            app.restart()
    return fleet


@pytest.fixture
def broken(fleet: Fleet) -> Fleet:
    """Every login answers 500."""
    fleet.lose_slots()
    return fleet


def connections(fleet: Fleet) -> dict[str, int]:
    """Role → how often a session of this project has logged in so far, by the server's own log."""
    log = fleet.first.server.log.read_text(errors="replace")
    roles = re.findall(r"connection authorized: user=(\S+) database=\S+ application_name=pool-runbook", log)
    return {role: roles.count(role) for role in ("odras_app", "odras_diagnosis")}


def run(fleet: Fleet, place: Path, *arguments: str, **variables: Any) -> Diagnosis:
    return diagnose(fleet.inventory(place / "hosts.yml", **variables), place, *arguments)


def seconds_of(done: Diagnosis, host: str, words: str) -> float:
    """When the line of a host that holds these words was printed."""
    return next(second for second, line in done.lines if re.search(rf" {host}   .*{words}", line))


def test_one_view_of_the_database_over_one_connection(well: Fleet, tmp_path: Path) -> None:
    """And one new connection for each host, which is what an app would open."""
    before = connections(well)
    done = run(well, tmp_path)
    after = connections(well)
    assert done.status == 0, done.output
    assert {role: after[role] - before[role] for role in after} == {"odras_diagnosis": 1, "odras_app": 3}
    document = done.document("fleet.json")
    assert document["database_connections"] == 1
    assert [path.name for path in (done.run / "databases").iterdir()] == ["main.json"]
    assert [(row["host"], row["outcome"]) for row in document["hosts"]] == [
        (name, "healthy") for name in HOSTS
    ]
    assert document["events"] == []
    assert "3 hosts   HEALTHY on 3" in done.output
    assert re.search(r"3  HEALTHY +web-\[1-3\] +login 200 in .*, 9 of 9", done.output)
    assert "database connections of this run: 1" in done.output
    sessions = [len(done.evidence(name)["views"]["sockets"]["data"]["samples"]) for name in HOSTS]
    assert sessions == [3, 3, 3]


def test_a_host_that_is_not_reached_is_a_finding_and_the_others_are_read(well: Fleet, tmp_path: Path) -> None:
    file = well.inventory(tmp_path / "hosts.yml")
    hosts = yaml.safe_load(file.read_text())
    with socket.socket() as taken:  # ours, and it refuses connections
        taken.bind(("127.0.0.1", 0))
        hosts["all"]["children"]["app"]["hosts"]["web-2"].update(
            ansible_connection="ssh",
            ansible_host="127.0.0.1",
            ansible_port=taken.getsockname()[1],
            ansible_ssh_common_args="-o ConnectTimeout=2 -o BatchMode=yes -o ControlMaster=no",
        )
        file.write_text(yaml.safe_dump(hosts))
        done = diagnose(file, tmp_path)
    assert done.status not in (0, None), done.output
    rows = {row["host"]: (row["outcome"], row["reachable"]) for row in done.document("fleet.json")["hosts"]}
    assert rows == {"web-1": ("healthy", True), "web-2": ("unknown", False), "web-3": ("healthy", True)}
    assert "3 hosts   HEALTHY on 2, 1 NOT REACHED" in done.output
    assert re.search(r"1 NOT REACHED web-2 Data could not be sent.*; nothing is known about it", done.words)
    assert "1 of 3: web-2 not reached" in done.words


def test_the_same_on_all_is_one_event_and_said_once(broken: Fleet, tmp_path: Path) -> None:
    before = [identities(app) for app in broken.apps]
    done = run(broken, tmp_path, *NEVER)
    assert done.status not in (0, None), done.output
    document = done.document("fleet.json")
    (event,) = document["events"]
    assert (event["cause"], event["hosts"], event["where"]) == ("slot_leak", HOSTS, "database or network")
    assert document["one_event"] is True
    assert "one event on the database or network, not 3 host problems" in done.words
    screens = re.findall(r"^(web-\d)   NOT RESTORED, NOT TOUCHED   slot_leak", done.output, re.MULTILINE)
    assert screens == ["web-1"]
    assert "2 more, like these: runbook show" in done.words
    assert [identities(app) for app in broken.apps] == before
    for name in HOSTS:
        assert done.action(name)["result"] == "refused"


def test_when_the_first_restart_does_not_help_there_is_no_second(broken: Fleet, tmp_path: Path) -> None:
    """A command that changes nothing; the others are spared it, and are told on which host it was tried."""
    before = [identities(app) for app in broken.apps]
    settings = {"diagnose_restart_command": ["/bin/true"], "diagnose_ready_timeout": 2}
    done = run(broken, tmp_path, *NO_COOLDOWN, **settings)
    assert done.status not in (0, None), done.output
    assert [done.action(name)["result"] for name in HOSTS] == ["failed", "refused", "refused"]
    for name in HOSTS[1:]:
        assert done.action(name)["why"] == "a restart for the same cause did not help on web-1"
        assert done.report(name)["restart_helps"] is True
    assert [identities(app) for app in broken.apps] == before
    assert [line["what"] for line in done.audit()] == ["/bin/true"]


def test_restarts_are_made_one_by_one(broken: Fleet, tmp_path: Path) -> None:
    before = [identities(app) for app in broken.apps]
    done = run(broken, tmp_path, *NO_COOLDOWN)
    assert done.status == 0, done.output
    assert {done.report(name)["outcome"] for name in HOSTS} == {"restored"}
    for app, old in zip(broken.apps, before):
        assert not set(old) & set(identities(app))
    spans = [
        (seconds_of(done, name, "restart begins"), seconds_of(done, name, "restart done")) for name in HOSTS
    ]
    for (_, ended), (begun, _) in zip(spans, spans[1:]):
        assert ended <= begun
    assert re.search(r"3 RESTORED, NOT FIXED web-\[1-3\] +login 500 .*, 9 of 9 -> 200 .*, 9 of 9", done.words)


def test_one_sick_host_is_that_host(well: Fleet, tmp_path: Path) -> None:
    sick = well.apps[1]
    for pid in sick.app_pids():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Lab.listens(sick.app_port), "the app is gone")
    done = run(well, tmp_path, *NEVER)
    (event,) = done.document("fleet.json")["events"]
    assert (event["cause"], event["hosts"], event["where"]) == ("app_down", ["web-2"], "host")
    assert "app_down on web-2 alone" in done.words
    assert "it is that host" in done.words
    assert "3 hosts   HEALTHY on 2, NOT RESTORED, NOT TOUCHED on 1" in done.output

"""Never green on nothing: what was not read, not reached or not meant ends non-zero and says why."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.playbook import Diagnosis, Variables, diagnose, inventory, untouched
from tests.lab.account import account
from tests.lab.lab import ROOT, Lab

# Answers nobody, at once.
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": "/nonexistent"}


def hosts(path: Path, *, app: Variables | None, postgres: Variables | None = None, **other: Any) -> Path:
    """Write an inventory; groups map host names to variables. The path."""
    groups = {"app": {"hosts": app}, "postgres": {"hosts": postgres or {}}, **other}
    path.write_text(yaml.safe_dump({"all": {"children": groups}}))
    return path


def refused(run: Diagnosis) -> str:
    """The words of a run that failed and wrote no report; nothing was begun."""
    assert run.status not in (0, None), run.output
    assert not (run.reports / "latest").exists(), run.output
    return run.words


def closed_port() -> Iterator[int]:
    """A port of 127.0.0.1 that is ours and refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def unreachable() -> Iterator[dict[str, Any]]:
    """Variables of a host that ssh cannot reach."""
    with contextlib.contextmanager(closed_port)() as port:
        yield {
            "ansible_connection": "ssh",
            "ansible_host": "127.0.0.1",
            "ansible_port": port,
            "ansible_ssh_common_args": "-o ConnectTimeout=2 -o BatchMode=yes -o ControlMaster=no",
        }


# -- before anything is read -------------------------------------------------------------------------------


def test_no_inventory(tmp_path: Path) -> None:
    run = diagnose(None, tmp_path, environment={"ANSIBLE_INVENTORY": str(tmp_path / "missing.yml")})
    words = refused(run)
    assert "no host in group app" in words
    assert "inventory.example" in words
    assert "-i INVENTORY" in words


def test_an_empty_group(tmp_path: Path) -> None:
    file = hosts(tmp_path / "hosts.yml", app={}, postgres={"db-1": LOCAL}, web={"hosts": {"web-1": LOCAL}})
    assert "no host in group app" in refused(diagnose(file, tmp_path))


def test_a_mistyped_variable_on_the_command_line(tmp_path: Path) -> None:
    file = hosts(tmp_path / "hosts.yml", app={"web-1": LOCAL})
    words = refused(diagnose(file, tmp_path, "-e", "diagnose_login_pasword=Canary-4711"))
    assert "diagnose_login_pasword " in words
    assert "did you mean diagnose_login_password?" in words
    assert "Canary-4711" not in words


def test_mistyped_variables_in_the_inventory_are_all_named(tmp_path: Path) -> None:
    file = hosts(
        tmp_path / "hosts.yml",
        app={"web-1": LOCAL, "web-2": {**LOCAL, "diagnose_pidfile": "/run/odras.pid"}},
        postgres={"db-1": {**LOCAL, "diagnose_database_pasword": "x", "diagnose_zzz": 1}},
    )
    words = refused(diagnose(file, tmp_path, "--limit", "web-1"))
    assert re.search(r"diagnose_pidfile .*?did you mean diagnose_pid_file\?", words)
    assert re.search(r"diagnose_database_pasword .*?did you mean diagnose_database_password\?", words)
    assert "diagnose_zzz " in words


def test_values_of_the_wrong_kind_are_all_named(tmp_path: Path) -> None:
    wrong = {
        "diagnose_restart": "sometimes",
        "diagnose_window": "soon",
        "diagnose_login_attempts": "some",
        "diagnose_database_sslmode": "on",
    }
    settings = [part for name, value in wrong.items() for part in ("-e", f"{name}={value}")]
    words = refused(diagnose(hosts(tmp_path / "hosts.yml", app={"web-1": LOCAL}), tmp_path, *settings))
    for name in wrong:
        assert name in words
    for allowed in ("auto, ask, never", "float", "int", "verify-full"):
        assert allowed in words
    assert "reading login" not in words


def test_what_no_host_can_be_asked_is_all_named(tmp_path: Path) -> None:
    """What is wrong, what is allowed and where it is set; a run that would wait for ever, or prove nothing."""
    numbers = {
        **{"login_attempts": (-3, "0 to 1000"), "login_seconds": (0, "0.1 to 60")},
        **{"window": (-1, "1 to 31536000"), "cooldown": ("nan", "0 to 31536000")},
        **{"ready_timeout": ("inf", "1 to 3600"), "database_port": (70000, "1 to 65535")},
    }
    own = {f"diagnose_{name}": value for name, (value, _) in numbers.items()}
    url = "http://127.0.0.1:70000/api/auth/login"
    apps = {name: {**LOCAL, "diagnose_login_url": url} for name in ("web-1", "web-2")}
    words = refused(diagnose(hosts(tmp_path / "hosts.yml", app=apps), tmp_path, "-e", json.dumps(own)))
    for name, (value, allowed) in numbers.items():
        assert (
            f"web-1, web-2: diagnose_{name} is {value!r}: wanted is a number from {allowed};"
            " set it in the inventory or with -e"
        ) in words
    wanted = "wanted is http(s)://HOST[:PORT]/PATH, PORT from 1 to 65535; set it in the inventory or with -e"
    assert f"web-1, web-2: diagnose_login_url is {url}: {wanted}" in words
    assert "reading login" not in words


@pytest.mark.parametrize("name", ["diagnose_login_username", "diagnose_login_password"])
def test_half_a_login(tmp_path: Path, name: str) -> None:
    """It would prove less than was meant, and be green."""
    apps = {"web-1": {**LOCAL, name: "canary-4711"}, "web-2": LOCAL}
    words = refused(diagnose(hosts(tmp_path / "hosts.yml", app=apps), tmp_path))
    assert "web-1: diagnose_login_username and diagnose_login_password go together" in words
    assert "web-2" not in words
    assert "canary-4711" not in words


def test_reports_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.touch()
    run = diagnose(
        hosts(tmp_path / "hosts.yml", app={"web-1": LOCAL}),
        tmp_path,
        "-e",
        json.dumps({"diagnose_reports": f"{file}/reports"}),
    )
    words = refused(run)
    assert f"diagnose_reports: {file}" in words
    assert "reading login" not in words


# -- provisioning: refused before a host is touched ---------------------------------------------------------

# What every host of `site.yml` must be told.
PROVISION = {
    "postgres_host": "127.0.0.1",
    "postgres_app_networks": ["127.0.0.0/8"],
    **{f"postgres_{whose}password": "canary-4711" for whose in ("", "owner_", "diagnosis_")},
}


def provision(tmp_path: Path, *arguments: str, **variables: Any) -> Diagnosis:
    """`site.yml` with these variables, None for one that is not set, on hosts that answer nobody."""
    given = {name: value for name, value in {**PROVISION, **variables}.items() if value is not None}
    file = hosts(
        tmp_path / "hosts.yml", app={"web-1": {**LOCAL, **given}}, postgres={"db-1": {**LOCAL, **given}}
    )
    return diagnose(file, tmp_path, *arguments, playbook="playbooks/site.yml")


def refused_at_once(run: Diagnosis) -> str:
    """The words of a run that reached no host."""
    words = refused(run)
    assert "PLAY [Reach every host]" not in run.output, run.output
    assert "canary-4711" not in words
    return words


def test_what_is_given_would_do(tmp_path: Path) -> None:
    """Else each refusal below might be for another reason."""
    assert "PLAY [Reach every host]" in provision(tmp_path).output


@pytest.mark.parametrize(("value", "said"), [(None, "not set"), ("", "empty")])
def test_missing_secrets_are_all_named(tmp_path: Path, value: str | None, said: str) -> None:
    names = [name for name in PROVISION if name.endswith("password")]
    words = refused_at_once(provision(tmp_path, **dict.fromkeys(names, value)))
    for host, name in [(host, name) for host in ("web-1", "db-1") for name in names]:
        wanted = host == "db-1" or "diagnosis" not in name  # the app's host need not know that one
        assert (f"{host}: {name} is {said}: set it in the inventory, best from a vault" in words) == wanted


def test_networks_that_let_nobody_in(tmp_path: Path) -> None:
    assert "db-1: postgres_app_networks is empty" in refused_at_once(
        provision(tmp_path, postgres_app_networks=[])
    )


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"postgres_pool_max_connections": 60}, "the pools may open 120 connections"),
        ({"postgres_pool_min_connections": 21}, "allowed: 0 <= postgres_pool_min_connections (21)"),
        ({"postgres_pool_connection_timeout": "soon"}, "postgres_pool_connection_timeout"),
        ({"postgres_max_connections": "many"}, "postgres_max_connections is 'many'"),
        (
            {"postgres_superuser_reserved_connections": "few"},
            "postgres_superuser_reserved_connections is 'few'",
        ),
        (
            {"postgres_reserved_connections": -9},
            "postgres_reserved_connections is -9: wanted is a number from 0",
        ),
        ({"app_port": 70000}, "app_port (70000) from 1 to 65535"),
        ({"app_workers": "all"}, "app_workers is 'all'"),
        ({"postgres_port": 70000}, "postgres_port (70000) from 1 to 65535"),
        ({"app_ready_timeout": 0}, "web-1: app_ready_timeout is 0: wanted is a number from 1 to 3600"),
        ({"rollout_drain_seconds": -1}, "web-1: rollout_drain_seconds is -1: wanted is a number from 0 to"),
        ({"diagnose_login_attempts": -3}, "diagnose_login_attempts is -3: wanted is a number from 0 to 1000"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_is_refused_before_any_host_is_reached(
    tmp_path: Path, variables: dict[str, Any], said: str
) -> None:
    assert said in refused_at_once(provision(tmp_path, **variables))


def test_each_server_has_the_budget_of_its_own_apps(tmp_path: Path) -> None:
    """Two servers with 97 slots each carry four pools of 40, two on each; not three on one."""
    apps = {f"web-{n}": {**LOCAL, **PROVISION, "postgres_host": f"db-{1 + n % 2}"} for n in range(4)}
    servers = {f"db-{n}": {**LOCAL, **PROVISION} for n in (1, 2)}
    file = hosts(tmp_path / "hosts.yml", app=apps, postgres=servers)
    run = diagnose(file, tmp_path, "-e", "postgres_pool_max_connections=20", playbook="playbooks/site.yml")
    assert "PLAY [Reach every host]" in run.output
    apps["web-0"]["postgres_host"] = "db-2"
    hosts(tmp_path / "hosts.yml", app=apps, postgres=servers)
    run = diagnose(file, tmp_path, "-e", "postgres_pool_max_connections=20", playbook="playbooks/site.yml")
    assert "the pools may open 120 connections" in refused_at_once(run)


def test_a_restart_is_allowed_to_one_run_and_not_to_every(tmp_path: Path) -> None:
    assert "postgres_restart is set in the inventory" in refused_at_once(
        provision(tmp_path, postgres_restart=True)
    )
    given = provision(tmp_path, "-e", "postgres_restart=true")
    assert "PLAY [Reach every host]" in given.output


def role(
    tmp_path: Path, name: str, entry: str = "main", collections: Path | None = None, **variables: Any
) -> Diagnosis:
    """A role of the collection in somebody's own play, on this machine and in check mode: nothing is touched."""
    play = {"hosts": "web-1", "gather_facts": False, "vars": {**PROVISION, **variables}}
    play["tasks"] = [{"ansible.builtin.import_role": {"name": f"pool.runbook.{name}", "tasks_from": entry}}]
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    file = hosts(tmp_path / "hosts.yml", app={"web-1": here})
    environment = {"ANSIBLE_COLLECTIONS_PATH": str(collections)} if collections else None
    return diagnose(file, tmp_path, "--check", playbook=tmp_path / "play.yml", environment=environment)


@pytest.mark.parametrize(
    ("name", "entry", "variables", "said"),
    [
        (
            "postgres",
            "main",
            {"postgres_diagnosis_password": ""},
            "postgres_diagnosis_password is empty: set it",
        ),
        ("postgres", "client", {"postgres_password": ""}, "postgres_password is empty: set it"),
        ("app", "main", {"postgres_owner_password": ""}, "postgres_owner_password is empty: set it"),
        (
            "app",
            "main",
            {"app_login_username": "das_service", "app_login_password": "short"},
            "app_login_password has 5 characters: app_login_username is das_service, so 8 to 1024 are wanted",
        ),
        ("app", "main", {"app_source": "/no/such/place"}, "app_source is /no/such/place: the absolute path"),
        ("rollout", "plan", {"rollout_batches": [1, "0%"]}, "rollout_batches (1, 0%) are numbers of hosts"),
        ("rollout", "plan", {"rollout_batches": ["x"]}, "rollout_batches (x) are numbers of hosts"),
        ("rollout", "plan", {"rollout_batches": []}, "rollout_batches () are numbers of hosts"),
        ("rollout", "plan", {"rollout_drain_seconds": -1}, "rollout_drain_seconds (-1)"),
        (
            "rollout",
            "plan",
            {"rollout_into_traffic": "/no/such/file"},
            "rollout_into_traffic (/no/such/file)",
        ),
        ("rollout", "plan", {"rollout_out_of_traffic": "roles"}, "rollout_into_traffic (roles)"),
    ],
)
def test_a_role_refuses_by_itself(
    tmp_path: Path, name: str, entry: str, variables: Variables, said: str
) -> None:
    run = role(tmp_path, name, entry, **variables)
    assert said in refused(run)
    assert "inventory" in run.words or "controller" in run.words
    assert not re.search(r"changed=[1-9]", run.output)


def test_a_role_names_the_secret_that_nobody_defined(tmp_path: Path) -> None:
    file = hosts(tmp_path / "hosts.yml", app={"web-1": {"ansible_connection": "local"}})
    (tmp_path / "play.yml").write_text(
        yaml.safe_dump([{"hosts": "web-1", "gather_facts": False, "roles": ["pool.runbook.postgres"]}])
    )
    words = refused(diagnose(file, tmp_path, "--check", playbook=tmp_path / "play.yml"))
    for name in ("postgres_password", "postgres_owner_password", "postgres_diagnosis_password"):
        assert name in words


def test_a_wheel_that_does_not_build(tmp_path: Path) -> None:
    copy = tmp_path / "collections" / "ansible_collections" / "pool" / "runbook"
    for name in ("roles", "plugins", "runbook"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True)
    shutil.copy(ROOT / "galaxy.yml", copy)
    (copy / "pyproject.toml").write_text("[project]\nname = ")
    words = refused(role(tmp_path, "app", collections=tmp_path / "collections"))
    assert f"{copy} does not build on the controller, see its pyproject.toml; pip says: " in words
    assert "pyproject.toml" in words.partition("pip says: ")[2]
    assert "Install Python" not in words, "the host was touched all the same"


def test_one_host_of_a_provisioning_unreachable(tmp_path: Path, unreachable: Variables) -> None:
    """The one that is reached is not touched."""
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    file = hosts(
        tmp_path / "hosts.yml",
        app={"web-1": {**PROVISION, **here}, "web-2": {**PROVISION, **unreachable}},
        postgres={"db-1": {**PROVISION, **here}},
    )
    run = diagnose(file, tmp_path, "--check", playbook="playbooks/site.yml")
    words = refused(run)
    assert re.search(r"web-2.*?UNREACHABLE.*?Connection refused", words)
    assert re.search(r"^web-2 .*unreachable=1", run.output, re.MULTILINE)
    for host in ("web-1", "db-1"):
        assert re.search(rf"^{host} .*ok=[0-9]+ +changed=0 ", run.output, re.MULTILINE)
    assert "TASK [Look for the lists of packages]" not in run.output
    assert "PLAY [Provision PostgreSQL]" not in run.output, "hosts were touched all the same"


# -- nobody of group app is part of the run ----------------------------------------------------------------


@pytest.mark.parametrize("limit", ["db-1", "bystander"])
def test_a_limit_that_leaves_no_app_host(lab: Lab, tmp_path: Path, limit: str) -> None:
    file = inventory(lab, tmp_path / "hosts.yml")
    known = yaml.safe_load(file.read_text())
    known["all"]["children"]["other"] = {"hosts": {"bystander": LOCAL}}
    file.write_text(yaml.safe_dump(known))
    run = diagnose(file, tmp_path, "--limit", limit)
    assert run.status not in (0, None), run.output
    assert "no host of group app was part of this run" in run.words
    assert "--limit" in run.words
    assert run.document("fleet.json")["hosts"] == []


def test_a_limit_that_matches_nothing(tmp_path: Path) -> None:
    run = diagnose(hosts(tmp_path / "hosts.yml", app={"web-1": LOCAL}), tmp_path, "--limit", "web-7")
    assert "web-7" in refused(run)


# -- hosts that cannot be reached or read ------------------------------------------------------------------


def test_every_host_unreachable(tmp_path: Path, unreachable: Variables) -> None:
    file = hosts(
        tmp_path / "hosts.yml",
        app={"web-1": unreachable, "web-2": unreachable},
        postgres={"db-1": unreachable},
    )
    run = diagnose(file, tmp_path, "-e", "diagnose_login_seconds=30")
    assert run.status not in (0, None), run.output
    assert "(at most 45 s)" in run.words, "slow logins make a trip as much longer"
    assert re.search(r"2 NOT REACHED web-1 web-2 .*nothing is known about it", run.words)
    for host in ("web-1", "web-2"):
        assert f"{host} not reached" in run.words
        assert not (run.run / f"hosts/{host}.json").exists()
    assert "HEALTHY" not in run.output
    fleet = run.document("fleet.json")
    assert [(row["host"], row["outcome"], row["reachable"]) for row in fleet["hosts"]] == [
        ("web-1", "unknown", False),
        ("web-2", "unknown", False),
    ]
    assert "Connection refused" in run.words


def test_one_of_two_unreachable(lab: Lab, tmp_path: Path, unreachable: Variables) -> None:
    """The lost one comes first in every order; the other is diagnosed all the same."""
    file = inventory(lab, tmp_path / "hosts.yml", {"a-lost": unreachable, "web-1": {}})
    with untouched(lab):
        run = diagnose(file, tmp_path)
    assert run.status not in (0, None), run.output
    assert run.report()["outcome"] == "healthy"
    assert re.search(r"1 NOT REACHED a-lost .*nothing is known about it", run.words)
    assert "1 of 2: a-lost not reached" in run.words
    rows = {row["host"]: (row["outcome"], row["reachable"]) for row in run.document("fleet.json")["hosts"]}
    assert rows == {"a-lost": ("unknown", False), "web-1": ("healthy", True)}


def test_the_database_host_unreachable(lab: Lab, tmp_path: Path, unreachable: Variables) -> None:
    """Its database is read from the app host instead; that it was not reached is said, and not green."""
    run = diagnose(inventory(lab, tmp_path / "hosts.yml", postgres=unreachable), tmp_path)
    database = run.document("databases/main.json")
    assert database["collected_from"] == "web-1"
    assert database["views"]["connection"]["data"]["ok"] is True
    assert run.report()["outcome"] == "healthy"
    assert re.search(r"db-1 +NOT READ|db-1 +NOT REACHED", run.output)
    assert run.status not in (0, None), "a host was unreachable and the run is green"


def test_a_host_without_python(lab: Lab, tmp_path: Path) -> None:
    file = inventory(
        lab,
        tmp_path / "hosts.yml",
        {"bare": {"ansible_python_interpreter": "/opt/none/bin/python3"}, "web-1": {}},
    )
    run = diagnose(file, tmp_path)
    assert run.status not in (0, None), run.output
    assert run.report()["outcome"] == "healthy"
    assert "1 of 2: bare not re" in run.words
    assert re.search(r"bare .*?/opt/none/bin/python3", run.words)
    assert not (run.run / "hosts/bare.json").exists()


# -- what was read does not suffice ------------------------------------------------------------------------


def test_a_probe_that_does_not_speak_for_the_app(lab: Lab, tmp_path: Path) -> None:
    """Nothing is wrong with the app in any of these; nothing was seen to be right either."""
    base = lab.login_url.rpartition("/")[0]
    wrong = {
        "elsewhere": {"diagnose_login_url": f"{base}/sign-in"},
        "getonly": {"diagnose_login_url": f"{base}/me"},
        "secretless": {"diagnose_login_password": "not the password"},
        "stranger": {"diagnose_login_username": "nobody of this name"},
    }
    with untouched(lab):
        run = diagnose(inventory(lab, tmp_path / "hosts.yml", wrong), tmp_path)
    assert run.status not in (0, None), run.output
    assert re.search(r"\b4 of 4: ", run.words)
    named = {
        "elsewhere": "diagnose_login_url",
        "getonly": "diagnose_login_url",
        "secretless": "diagnose_login_password",
        "stranger": "diagnose_login_username",
    }
    for host, variable in named.items():
        report = run.report(host)
        assert (report["outcome"], report["cause"], report["confidence"]) == ("unknown", "unknown", "unknown")
        misconfigured = run.evidence(host)["views"]["login"]["data"]["misconfigured"]
        assert variable in misconfigured
        assert f"{host} unknown (unknown)" in run.words
        assert any(variable in entry["text"] for entry in report["unread"]), host
        assert run.action(host)["action"] == "none"
    for host, variable in named.items():  # where a person looks: on the screen, for each host
        screen = run.output[run.output.index(f"\n{host}   UNKNOWN, NOT TOUCHED") :]
        assert variable in screen[: screen.index("\n  saved")], host
    assert "not the password" not in run.output


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:port/login", "ftp://127.0.0.1/login", "http://127.0.0.1:{closed}/api/auth/login"],
)
def test_a_login_url_that_leads_nowhere(lab: Lab, tmp_path: Path, url: str) -> None:
    """The app runs and is well: a wrong port is no reason to start or restart anything."""
    with contextlib.contextmanager(closed_port)() as port:
        url = url.format(closed=port)
        changes = {"diagnose_login_url": url, "diagnose_ready_timeout": 1}
        with untouched(lab):
            run = diagnose(inventory(lab, tmp_path / "hosts.yml", {"web-1": changes}), tmp_path)
    assert run.audit() == [], "it acted on an app that is well"
    assert run.status not in (0, None), run.output
    assert "HEALTHY" not in run.output
    assert "diagnose_login_url" in run.words
    assert url in run.words


def test_a_service_that_systemd_does_not_know(lab: Lab, tmp_path: Path) -> None:
    """The app is well, and in the incident nobody could restart it: said while there is time."""
    file = inventory(lab, tmp_path / "hosts.yml", {"web-1": {"diagnose_service": "nobody-has-this.service"}})
    with untouched(lab):
        run = diagnose(file, tmp_path)
    assert run.status not in (0, None), run.output
    assert run.report()["outcome"] == "healthy"
    words = "systemd does not know a unit nobody-has-this.service: is diagnose_service right?"
    assert f"1 of 1: web-1: {words}" in run.words
    assert {"view": "process", "text": words} in run.report()["unread"]


def test_a_wrong_password_for_the_view_of_the_database(lab: Lab, tmp_path: Path) -> None:
    """What can be read without it is read, and the verdict stands; but the run is not green."""
    file = inventory(lab, tmp_path / "hosts.yml", postgres={"diagnose_database_password": "not the password"})
    with untouched(lab):
        run = diagnose(file, tmp_path)
    assert run.status not in (0, None), run.output
    assert re.search(
        r"db-1 NOT READ: .*password authentication failed.*: are diagnose_database_\* right\?", run.words
    )
    assert "1 of 2: db-1 (database) not read" in run.words
    assert "not the password" not in run.output


def test_no_right_to_read_the_settings(lab: Lab, tmp_path: Path) -> None:
    """The app's settings belong to somebody else; without them it was not seen that a new connection works."""
    file, ours = lab.app / "app.env", account()
    owner = file.stat()
    variables: dict[str, Any] = {}
    if ours.dropped:  # root may read everything, so the reading is done as the app's own user
        variables = {
            "diagnose_user": "nobody",
            "ansible_become_method": "su",
            "ansible_become_flags": "-s /bin/sh",
            "ansible_python_interpreter": readable_python(),
            "ansible_remote_tmp": "/tmp/.ansible-nobody",
        }
        os.chown(file, 0, 0)
        file.chmod(0o600)
    else:
        file.chmod(0)
    try:
        with untouched(lab):
            run = diagnose(inventory(lab, tmp_path / "hosts.yml", {"web-1": variables}), tmp_path)
    finally:
        os.chown(file, owner.st_uid, owner.st_gid)
        file.chmod(owner.st_mode & 0o777)
    assert run.status not in (0, None), run.output
    report = run.report()
    assert (report["outcome"], report["cause"]) == ("unknown", "unknown")
    assert report["login_after"]["ok"] is True
    assert f"{file}: Permission denied" in run.words
    assert any(str(file) in entry["text"] for entry in report["unread"])


def test_no_way_to_become_the_user(lab: Lab, tmp_path: Path) -> None:
    """A host without the program that changes the user gave no evidence; the screen and the last line say why."""
    variables = {"diagnose_user": "nobody", "ansible_become_exe": "/nowhere/sudo"}
    with untouched(lab):
        run = diagnose(inventory(lab, tmp_path / "hosts.yml", {"web-1": variables}), tmp_path)
    assert run.status not in (0, None), run.output
    assert re.search(r"web-1 +NOT REACHED .*/nowhere/sudo: not found", run.words), run.output
    assert "web-1 not reached" in run.words


def test_a_log_that_is_not_there(lab: Lab, tmp_path: Path) -> None:
    """It is named with where it was set; a working login is not green without it, a failing one not judged."""
    missing, runs = str(tmp_path / "app.log"), {}
    file = inventory(lab, tmp_path / "hosts.yml", {"web-1": {"diagnose_log": missing}})
    for state in ("well", "ill"):
        if state == "ill":
            lab.break_("slot_leak")
        (tmp_path / state).mkdir()
        with untouched(lab):
            runs[state] = diagnose(file, tmp_path / state)
        report = runs[state].report()
        assert (report["cause"], report["confidence"]) == ("unknown", "unknown")
        told = {entry["text"] for entry in report["unread"] if entry["view"] == "log"}
        assert f"diagnose_log: {missing}: No such file or directory" in told
    assert runs["well"].report()["login_after"]["ok"] is True
    assert (runs["well"].report()["outcome"], runs["ill"].report()["outcome"]) == ("unknown", "not_restored")
    for run in runs.values():
        assert run.status not in (0, None), run.output
        assert f"diagnose_log: {missing}" in run.words


def readable_python() -> str:
    """A Python of the system that every user may run."""
    for path in ("/usr/bin/python3", "/usr/local/bin/python3"):
        tried = subprocess.run(
            [path, "-c", "import sys; sys.exit(sys.version_info < (3, 9))"],
            check=False,
            cwd="/",
            **account().run_as(),
        )
        if tried.returncode == 0:
            return path
    raise RuntimeError("no Python from 3.9 on is in /usr/bin or /usr/local/bin, or nobody may not run it")

"""An app that never heard of this, and its database in all the places where one may be: docs/your-app.md, run.

The inventories are the page's own, with the lab's values under the page's names: what the page does not name,
the diagnosis has to find.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from runbook.report.stanza import by_hand
from tests.integration.playbook import COMMAND, Diagnosis, diagnose, untouched
from tests.integration.test_refusals import readable_python
from tests.lab.account import account, fresh_directory
from tests.lab.database import DATABASE
from tests.lab.faults import network
from tests.lab.lab import ROOT, Lab

PAGE = (ROOT / "docs" / "your-app.md").read_text()
IMAGE = "localhost/pool-runbook-trixie"
BASE = str(Path(sys._base_executable).resolve())
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": BASE}

needs_pgbouncer = pytest.mark.skipif(
    not shutil.which("pgbouncer", path=f"{os.defpath}:/usr/sbin"), reason="apt install pgbouncer"
)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """SQLAlchemy's pool under `gunicorn --preload`, settings in the environment alone, a log without access lines."""
    with Lab(tmp_path_factory.mktemp("lab"), "sqlalchemy") as lab:
        yield lab


@pytest.fixture
def lab(catalogue: Lab) -> Lab:
    """The same, with everything running; for what leaves it so."""
    assert catalogue.login() == 200
    return catalogue


@pytest.fixture
def broken(catalogue: Lab) -> Iterator[Lab]:
    """The same, and everything as it was at first afterwards."""
    yield catalogue
    catalogue.heal()


class Loader(yaml.SafeLoader):
    """YAML with Ansible's tag for a secret."""


Loader.add_constructor("!vault", lambda *_: "")


def shown_under(heading: str, language: str) -> str:
    """The first block of a language that the page shows under a heading."""
    section = re.split(r"^## ", PAGE.partition(f"## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    shown = re.search(rf"^```{language}\n(.*?)```", section, re.DOTALL | re.MULTILINE)
    assert shown, heading
    return shown[1]


def example(heading: str) -> dict[str, Any]:
    """The inventory that the page shows under a heading: group → host → variables."""
    groups: dict[str, Any] = yaml.load(shown_under(heading, "yaml"), Loader)
    return {group: told["hosts"] for group, told in groups.items()}


def inventory(lab: Lab, path: Path, heading: str, command: list[str] | None = None) -> Path:
    """The page's inventory with this lab's values; where it shows no app, the one of a managed database."""
    known = {
        "diagnose_login_url": lab.login_url,
        "diagnose_restart_command": [str(lab.app / "odras.sh"), "restart"],
        "diagnose_database_name": DATABASE,
        "diagnose_database_app_user": "odras_app",
        "diagnose_database_user": "odras_diagnosis",
        "diagnose_database_password": lab.server.passwords["odras_diagnosis"],
        "diagnose_database_command": command,
    }
    shown = {**example("A managed database"), **example(heading)}
    groups: dict[str, Any] = {}
    for group, hosts in shown.items():
        for host, variables in hosts.items():
            own = {name: known[name] for name in variables}
            if group == "postgres" and not command:  # a lab's server is not where Debian's is
                own.update(diagnose_database_host=lab.server.host, diagnose_database_port=lab.server.port)
            groups.setdefault(group, {"hosts": {}})["hosts"][host] = {**LOCAL, **own}
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(groups))
    return path


def verdict(run: Diagnosis) -> tuple[str, str, str]:
    """(cause, confidence, outcome)"""
    report = run.report()
    return report["cause"], report["confidence"], report["outcome"]


# -- where the database is -----------------------------------------------------------------------------------


@pytest.fixture
def container(lab: Lab) -> Iterator[list[str]]:
    """Words that run psql in a container beside the server; without a container engine, in the server's own
    namespaces (root), or just so."""
    data = str(lab.server.data)
    psql = [str(lab.server.program("psql")), f"--host={data}", f"--port={lab.server.port}"]
    psql += [f"--username={lab.server.superuser}", "--no-password"]
    secret = lab.server.directory / "pgpass"
    secret.touch(mode=0o600)
    secret.write_text(f"*:*:*:*:{lab.server.superuser_password}\n")
    psql = ["env", f"PGPASSFILE={secret}", *psql]
    images = ["podman", "image", "exists", IMAGE]
    if not (shutil.which("podman") and subprocess.run(images, check=False).returncode == 0):
        assert "CI" not in os.environ, f"no image {IMAGE}: scripts/test-hosts makes it"
        enter = ["nsenter", f"--target={lab.server.postmaster_pid}", "--mount", "--net", "--"]
        yield [*(enter if os.geteuid() == 0 else []), *psql]
        return
    place = str(lab.server.directory)
    started = subprocess.run(
        [
            *("podman", "run", "--detach", "--rm", "--network=none", f"--volume={place}:{place}"),
            *("--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", IMAGE, "sleep", "600"),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    name = started.stdout.strip()
    try:
        yield ["podman", "exec", "--interactive", name, *psql]
    finally:
        subprocess.run(
            ["podman", "rm", "--force", "--time=0", name], capture_output=True, check=True, timeout=60
        )


def test_in_a_container(lab: Lab, container: list[str], tmp_path: Path) -> None:
    run = diagnose(inventory(lab, tmp_path / "i.yml", "The database in a container", container), tmp_path)
    assert verdict(run) == ("healthy", "decided", "healthy"), run.output
    views = run.document("databases/main.json")["views"]
    assert {view["state"] for view in views.values()} == {"ok"}, views
    assert views["connection"]["data"]["kind"] == "command", run.output
    assert views["activity"]["data"]["sees_all"] is True
    assert any(session["role"] == "odras_app" for session in views["activity"]["data"]["sessions"])


def test_a_command_that_does_not_reach_it_is_named(lab: Lab, tmp_path: Path) -> None:
    command = ["/nowhere/docker", "exec", "psql"]
    run = diagnose(inventory(lab, tmp_path / "i.yml", "The database in a container", command), tmp_path)
    assert "database main not readable" in run.output
    # The app's own settings reach it, so the first app host reads it instead.
    assert run.document("databases/main.json")["collected_from"] == "web-1"


@pytest.mark.parametrize("between", ["a proxy", pytest.param("PgBouncer", marks=needs_pgbouncer)])
def test_behind_something(broken: Lab, between: str, tmp_path: Path) -> None:
    """Healthy, though nothing can be joined; then down behind what still answers, and not restarted for that."""
    if between == "PgBouncer":
        network.through_pgbouncer(broken, "")
    else:
        network.through_a_proxy(broken)
    where = inventory(broken, tmp_path / "i.yml", "Behind PgBouncer")
    healthy = diagnose(where, tmp_path)
    assert verdict(healthy) == ("healthy", "decided", "healthy"), healthy.output
    ports = {
        session["client_port"]
        for session in healthy.document("databases/main.json")["views"]["activity"]["data"]["sessions"]
        if session["role"] == "odras_app"
    }
    samples = healthy.evidence()["views"]["sockets"]["data"]["samples"]
    ours = {int(row["local"].rpartition(":")[2]) for sample in samples for row in sample["sockets"]}
    assert ports and ours and not ports & ours
    broken.server.stop()
    with untouched(broken):
        down = diagnose(where, tmp_path)
    assert verdict(down) == ("postgres_down", "decided", "not_restored"), down.output


def test_managed(lab: Lab, tmp_path: Path) -> None:
    """No host to log in to: the app's host reads it, with the app's role, found in the environment of a process."""
    where = inventory(lab, tmp_path / "i.yml", "A managed database")
    assert set(yaml.safe_load(where.read_text())) == {"app"}
    run = diagnose(where, tmp_path)
    assert verdict(run) == ("healthy", "decided", "healthy"), run.output
    document = run.document("databases/main.json")
    assert document["collected_from"] == "web-1"
    assert document["views"]["activity"]["data"]["sees_all"] is False
    views = run.evidence()["views"]
    assert views["config"]["data"]["file"] is None
    assert views["config"]["data"]["database"]["user"] == "odras_app"
    assert views["log"]["data"]["path"] == str(lab.log)
    assert [pool["maximum"] for pool in views["source"]["data"]["pools"]] == [10]
    assert lab.server.passwords["odras_app"] not in run.output + json.dumps(views)


def test_under_tls(broken: Lab, tmp_path: Path) -> None:
    """What the server said is hidden; whatever it was, the login works again and nobody is restarted."""
    place, port = broken.directory / "tls", broken.free_port()
    place.mkdir(exist_ok=True)
    certificate, key = place / "server.crt", place / "server.key"
    new = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=db-1")
    subprocess.run([*new, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60)
    account().own(place)
    broken.other("tls", listen=port, to=broken.server.port, certificate=str(certificate), key=str(key))
    broken.fill(port=port)
    broken.restart()
    assert set(broken.logins(6)) == {200}
    broken.end_sessions()
    with untouched(broken):
        run = diagnose(inventory(broken, tmp_path / "i.yml", "Behind PgBouncer"), tmp_path)
    words = run.evidence()["views"]["sockets"]["data"]["last_words"]
    assert {(row["kind"], row["sqlstate"]) for row in words} == {("bytes", None)}
    report = run.report()
    assert (report["cause"], report["outcome"], report["restart_helps"]) == ("unknown", "restored", False)
    # Whether the app stood still for a while is open where nothing tells its heartbeat.
    assert [fit["cause"] for fit in report["fits"]] == ["sessions_terminated", "host_suspended"]
    assert report["next"][0].startswith("look in PostgreSQL's own log, near "), report["next"]
    for lines in shown_under("TLS to the database", "").split("\n\n"):
        shown, there = (re.sub(r"\d+ connections?", "some connections", text) for text in (lines, run.output))
        assert " ".join(shown.split()) in " ".join(there.split())


# -- without an inventory ------------------------------------------------------------------------------------


def discover(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(COMMAND), "playbooks/discover.yml", "-i", "web-1,", "-e", json.dumps(LOCAL), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def stanza_of(output: str) -> dict[str, Any]:
    """The stanza in the playbook's output."""
    shown = re.search(r"^app:\n(?:[ ]+.*\n)+", output, re.MULTILINE)
    assert shown, output
    assert by_hand(shown[0]) <= 3
    found: dict[str, Any] = yaml.safe_load(shown[0])["app"]["hosts"]
    return found


def discovered_names(heading: str) -> set[str]:
    """The variables that the page shows; without sudo on this machine nobody is to be become."""
    names = set(example(heading)["app"]["web-1"])
    return names if shutil.which("sudo") else names - {"diagnose_user"}


def test_from_nothing_to_a_verdict(broken: Lab, tmp_path: Path) -> None:
    """As a new user: one command prints the inventory, one line is written by hand, the next command heals."""
    done = discover(broken, "-e", f"discover_port={broken.app_port}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert broken.server.passwords["odras_app"] not in done.stdout
    place = f"odras_app@{broken.server.host}:{broken.server.port}/{DATABASE} (from {broken.app / 'app.env'})"
    words = " ".join(done.stdout.replace("#", "").split())
    assert re.search(
        rf"4 processes of \S*python\S* -m gunicorn --preload .*; database {re.escape(place)}", words
    )
    (host,) = stanza_of(done.stdout).values()
    assert host.pop("ansible_connection") == "local"
    user = {"diagnose_user": pwd.getpwuid(account().uid).pw_name} if shutil.which("sudo") else {}
    assert set(host) == discovered_names("From a clone to a verdict")
    assert host == {
        "diagnose_login_url": broken.login_url,
        "diagnose_restart_command": [],
        **user,
        "diagnose_pid_file": str(broken.pid_file),
        "diagnose_log": str(broken.log),
        "diagnose_environment_file": str(broken.app / "app.env"),
    }
    # By hand; and the lab needs no `become`, for it is on this machine.
    host["diagnose_restart_command"] = [str(broken.app / "odras.sh"), "restart"]
    host.pop("diagnose_user", None)
    where = tmp_path / "inventory.yml"
    where.write_text(yaml.safe_dump({"app": {"hosts": {"web-1": {**LOCAL, **host}}}}))
    broken.break_("app_down")
    run = diagnose(where, tmp_path)
    assert verdict(run) == ("app_down", "decided", "restored"), run.output
    assert run.report()["login_after"]["kind"] == "path"
    assert broken.login() == 200


@pytest.mark.parametrize(("app", "fault"), [("psycopg2", "connection_leak"), ("psycopg", "app_down")])
def test_a_script_with_a_plain_pool(app: str, fault: str, tmp_path: Path) -> None:
    """What discover.yml prints has the lines that the page shows, and is enough to tell the cause."""
    with Lab(tmp_path / "lab", app) as lab:
        (host,) = stanza_of(discover(lab, "-e", f"discover_port={lab.app_port}").stdout).values()
        assert host.pop("ansible_connection") == "local"
        assert set(host) == discovered_names("A script with a pid file")
        host["diagnose_restart_command"] = [str(lab.app / "odras.sh"), "restart"]
        host.pop("diagnose_user", None)  # on this machine
        where = tmp_path / "inventory.yml"
        where.write_text(yaml.safe_dump({"app": {"hosts": {"web-1": {**LOCAL, **host}}}}))
        lab.break_(fault)
        run = diagnose(where, tmp_path)
        assert verdict(run) == (fault, "decided", "restored"), run.output
        assert lab.login() == 200


def test_a_login_that_keeps_its_connection_is_told_before_the_probe_costs_the_last_one(
    tmp_path: Path,
) -> None:
    """On the way of an unknown user, which is the probe's: the first run used up what was idle."""
    with Lab(tmp_path / "lab", "psycopg2") as lab:
        main = lab.app / "backend" / "main.py"
        refuse = "    raise HTTPException(401"
        main.write_text(main.read_text().replace(refuse, f"    take()  # and never given back\n{refuse}"))
        lab.restart()
        (host,) = stanza_of(discover(lab, "-e", f"discover_port={lab.app_port}").stdout).values()
        host.pop("diagnose_restart_command")
        host.pop("diagnose_user", None)  # on this machine
        where = tmp_path / "inventory.yml"
        where.write_text(yaml.safe_dump({"app": {"hosts": {"web-1": {**LOCAL, **host}}}}))
        told = [diagnose(where, tmp_path).output for _ in range(2)]
        words = "more after the probe's logins, one for each, though some were open before"
        assert words in " ".join(told[1].split()), told[1]


def test_a_misspelt_variable_is_refused(lab: Lab) -> None:
    done = discover(lab, "-e", "discover_prot=8000")
    assert done.returncode != 0
    assert "discover_prot is not a variable of this collection; did you mean discover_port?" in " ".join(
        done.stdout.split()
    )


def test_one_host_of_several(lab: Lab) -> None:
    """Only a host that was asked for may be missing."""
    far = ("-i", "web-1,web-9,", "-e", f"discover_port={lab.app_port}", "--limit")
    done = discover(lab, *far, "web-1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(stanza_of(done.stdout)) == ["web-1"]


def test_a_port_that_nobody_listens_on(lab: Lab) -> None:
    done = discover(lab, "-e", f"discover_port={lab.free_port()}")
    assert "no Python program listens there" in done.stdout


# -- without Ansible -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_file() -> Iterator[Path]:
    """runbook.pyz, built twice with the same bytes, where every user may read it."""
    place = fresh_directory("pyz-")
    place.chmod(0o755)
    for name in ("runbook.pyz", "again.pyz"):
        command = [sys.executable, ROOT / "scripts" / "build-collect", place / name]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert (place / "runbook.pyz").read_bytes() == (place / "again.pyz").read_bytes()
    yield place / "runbook.pyz"
    shutil.rmtree(place)


def alone(one_file: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The file, run by a Python without a single package."""
    python = options.pop("python", BASE)
    command = [python, "-I", "-S", "-B", str(one_file), *map(str, arguments)]
    options.setdefault("cwd", "/")
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def test_one_file_collects_and_explains(lab: Lab, one_file: Path, tmp_path: Path) -> None:
    saved = tmp_path / "app.json"
    with untouched(lab):
        done = alone(one_file, "collect", "--port", lab.app_port, "--output", saved)
    assert done.returncode == 0, done.stderr
    assert saved.stat().st_mode & 0o777 == 0o600
    assert lab.server.passwords["odras_app"] not in saved.read_text()
    told = alone(one_file, "explain", saved)
    assert "HEALTHY   healthy: login answers 401" in told.stdout
    assert "the login path answers" in told.stdout
    again = subprocess.run(
        [sys.executable, "-m", "runbook", "explain", saved],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.stdout == told.stdout


def test_one_file_says_what_it_may_not_read(lab: Lab, one_file: Path) -> None:
    """As another user than the app's: what is open to all, and a word on the rest."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    stranger = {"user": account().uid - 1, "group": account().gid - 1, "extra_groups": []}
    stranger["python"] = readable_python()
    done = alone(one_file, "discover", "--port", lab.app_port, **stranger)
    assert f"# not read: whose process listens on port {lab.app_port}" in done.stdout
    assert by_hand(done.stdout) == 3


def test_one_file_refuses_what_cannot_be(one_file: Path) -> None:
    for arguments, words in (
        (("collect",), "--port or --login-url: one of them is wanted"),
        (("explain", "/nowhere.json"), "/nowhere.json: No such file or directory"),
    ):
        done = alone(one_file, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr

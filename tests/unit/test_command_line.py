"""The command line, as a person starts it: `python -m runbook …` in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runbook import __version__
from runbook.__main__ import main
from runbook.common.documents import InvalidDocument, validate
from runbook.report.build import build
from runbook.report.screen import screen
from runbook.verdict.causes import IDS
from runbook.verdict.judge import judge
from tests.unit.incidents import TABLE, Incident, healthy, postgres_down, slot_leak, unread

ROOT = Path(__file__).parents[2]
# Nothing but the standard library: no site-packages, no environment, no user's directory.
BARE = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('runbook', run_name='__main__')"
)
Ended = subprocess.CompletedProcess[str]


def runbook(*arguments: str | Path) -> Ended:
    return ended([sys.executable, "-m", "runbook", *map(str, arguments)])


def bare(*arguments: str | Path) -> Ended:
    return ended([sys.executable, "-I", "-S", "-B", "-c", BARE, str(ROOT), *map(str, arguments)])


def ended(command: list[str]) -> Ended:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr, done.stderr[-600:]
    return done


def refused(done: Ended, *words: str) -> None:
    """Exit status 2, nothing on standard output, and one clear line that names what is wrong."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr


def save(directory: Path, incident: Incident) -> tuple[Path, Path]:
    host, database = directory / "host evidence.json", directory / "database.json"
    host.write_text(json.dumps(incident.host))
    database.write_text(json.dumps(incident.database))
    return host, database


def report_of(incident: Incident) -> dict[str, Any]:
    return build(*incident, judge(*incident), actions=[], proof=None, evidence=[], seconds=0.0)


@pytest.fixture
def leak(tmp_path: Path) -> tuple[Path, Path]:
    return save(tmp_path, slot_leak())


# -- explain -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [runbook, bare], ids=["python -m", "standard library alone"])
@pytest.mark.parametrize("name", ["slot_leak", "postgres_down", "healthy", "connection_leak"])
def test_explain_judges_saved_evidence_as_the_run_did(name: str, start: Any, tmp_path: Path) -> None:
    incident = TABLE[name][0]()
    done = start("explain", *save(tmp_path, incident))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == screen(report_of(incident))


def test_explain_takes_the_files_in_any_order(leak: tuple[Path, Path]) -> None:
    assert runbook("explain", *leak).stdout == runbook("explain", *reversed(leak)).stdout


def test_explain_without_a_database_says_what_is_missing(leak: tuple[Path, Path]) -> None:
    done = runbook("explain", leak[0])
    assert done.returncode == 0
    assert "unknown" in done.stdout.splitlines()[0]
    assert "the database was not read" in done.stdout


def test_explain_takes_both_in_one_file(tmp_path: Path) -> None:
    incident = slot_leak()
    both = tmp_path / "incident.json"
    both.write_text(
        json.dumps({"schema": "runbook/incident/1", "host": incident.host, "database": incident.database})
    )
    assert runbook("explain", both).stdout == screen(report_of(incident))


def test_explain_gives_the_report_as_json(leak: tuple[Path, Path]) -> None:
    done = runbook("explain", "--json", *leak)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    validate(report)
    assert report == report_of(slot_leak())


@pytest.mark.parametrize("start", [runbook, bare])
def test_why_not_shows_every_condition(leak: tuple[Path, Path], start: Any) -> None:
    done = start("explain", *leak, "--why-not", "nested_checkout")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("nested_checkout: ")
    assert any(line.startswith("  true ") for line in lines)
    assert any(line.startswith("  FALSE ") for line in lines)
    assert "nobody holds a connection" in done.stdout
    assert lines[-1].startswith("  a restart helps: ")


@pytest.mark.parametrize("cause", IDS)
def test_why_not_knows_every_cause(cause: str, leak: tuple[Path, Path]) -> None:
    assert main(["explain", str(leak[0]), "--why-not", cause]) == 0


def test_why_not_of_an_unread_view_says_why_it_is_unread(tmp_path: Path) -> None:
    files = save(tmp_path, unread(slot_leak(), "sockets", reason="no right to read it"))
    done = runbook("explain", *files, "--why-not", "slot_leak")
    assert "  unread " in done.stdout
    assert "no right to read it" in done.stdout


def test_why_not_of_no_cause_is_refused_and_the_causes_are_named(leak: tuple[Path, Path]) -> None:
    refused(runbook("explain", *leak, "--why-not", "slotleak"), "slotleak", "slot_leak", "healthy")


# -- show --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [runbook, bare])
@pytest.mark.parametrize("name", ["slot_leak", "lock_contention", "healthy"])
def test_show_prints_the_screen_again(name: str, start: Any, tmp_path: Path) -> None:
    report = report_of(TABLE[name][0]())
    saved = tmp_path / "run 1" / "hosts" / "odras-lab-1.json"
    saved.parent.mkdir(parents=True)
    saved.write_text(json.dumps(report))
    done = start("show", saved)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == screen(report, str(tmp_path / "run 1"))
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize("host", ["::1", "web 1"])
def test_show_names_files_that_are_there(host: str, tmp_path: Path) -> None:
    """A host's name becomes part of a file's name; the screen must name that file."""

    incident = slot_leak()
    incident.host["host"] = host
    safe = "".join(letter if letter.isalnum() or letter in "_.-" else "_" for letter in host)
    saved = tmp_path / "hosts" / f"{safe}.json"
    saved.parent.mkdir()
    saved.write_text(json.dumps(report_of(incident)))
    shown = "".join(runbook("show", saved).stdout.split())
    assert "".join(str(saved).split()) in shown


# -- what cannot be used -----------------------------------------------------------------------------------

BAD: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "No such file"),
    "empty": (b"", "not JSON"),
    "cut": (b'{"schema": "runbook/report/1", ', "not JSON"),
    "not text": (b"\xff\xfe\x00\x01", "not JSON"),
    "nested too deep": (b"[" * 200_000, ""),
    "a number too long": (b'{"schema": ' + b"9" * 10_000 + b"}", ""),
    "a list": (b"[]", "object"),
    "a text": (b'"runbook/report/1"', "object"),
    "of no kind": (b"{}", "schema"),
    "of another kind": (b'{"schema": "runbook/fleet/1"}', "runbook/fleet/1"),
    "of a newer kind": (b'{"schema": "runbook/report/2"}', "runbook/report/2"),
    "a kind that is no text": (b'{"schema": {"a": 1}}', "schema"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("command", ["show", "explain"])
def test_a_file_that_cannot_be_used_is_refused_and_named(command: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "some file.json"
    if BAD[name][0] is not None:
        path.write_bytes(BAD[name][0] or b"")
    refused(runbook(command, path), str(path), BAD[name][1])


@pytest.mark.parametrize("command", ["show", "explain"])
def test_a_directory_is_refused_and_named(command: str, tmp_path: Path) -> None:
    refused(runbook(command, tmp_path), str(tmp_path), "directory")


def cut(document: dict[str, Any], *path: str) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(json.dumps(document))
    where = whole
    for key in path[:-1]:
        where = where[key]
    del where[path[-1]]
    return whole


@pytest.mark.parametrize("missing", ["host", "title", "steps"])
def test_show_refuses_half_a_report_and_names_what_is_missing(missing: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(cut(report_of(slot_leak()), missing)))
    refused(runbook("show", path), str(path), missing)
    refused(bare("show", path), str(path), missing)


@pytest.mark.parametrize("missing", ["host", "run_id", "collected_at"])
def test_explain_refuses_half_a_document_and_names_what_is_missing(missing: str, tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps(cut(slot_leak().host, missing)))
    refused(runbook("explain", path), str(path), missing)
    refused(bare("explain", path), str(path), missing)


@pytest.mark.parametrize("missing", [("views",), ("views", "login"), ("views", "sockets", "data")])
def test_explain_judges_what_is_left_of_the_views(missing: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps(cut(slot_leak().host, *missing)))
    done = runbook("explain", path)
    assert done.returncode == 0
    assert "unknown" in done.stdout.splitlines()[0]


def test_explain_without_evidence_of_a_host_is_refused(leak: tuple[Path, Path]) -> None:
    refused(runbook("explain", leak[1]), "host")


def test_explain_refuses_two_databases(tmp_path: Path, leak: tuple[Path, Path]) -> None:
    """Which of them belongs to the host cannot be told, and the wrong one gives a wrong verdict."""
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**postgres_down().database, "database": "reports"}))
    refused(runbook("explain", *leak, other), "database")


def test_explain_of_two_hosts_shows_both(tmp_path: Path, leak: tuple[Path, Path]) -> None:
    other = tmp_path / "web-2.json"
    other.write_text(json.dumps({**healthy().host, "host": "web-2"}))
    done = runbook("explain", *leak, other)
    assert done.returncode == 0
    heads = [line for line in done.stdout.splitlines() if line.startswith(("odras-lab-1 ", "web-2 "))]
    assert len(heads) == 2


@pytest.mark.parametrize(
    "arguments", [(), ("explain",), ("show",), ("no-such",), ("explain", "--no-such", "x")]
)
def test_what_is_no_command_is_refused(arguments: tuple[str, ...]) -> None:
    done = runbook(*arguments)
    assert done.returncode == 2
    assert "usage: runbook" in done.stderr


def test_the_version() -> None:
    assert runbook("--version").stdout == f"runbook {__version__}\n"


def test_a_reader_that_goes_away_is_no_error(leak: tuple[Path, Path]) -> None:
    """`runbook explain … | head -1`"""
    command = [sys.executable, "-m", "runbook", "explain", *map(str, leak)]
    # Most people's output is buffered, and written when the interpreter ends.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, b"")


# -- the rest ----------------------------------------------------------------------------------------------


def test_status_without_a_socket_says_where_it_looked(tmp_path: Path) -> None:
    done = runbook("status", "--directory", tmp_path)
    assert done.returncode == 1
    assert str(tmp_path) in done.stdout


def test_status_of_a_socket_that_nobody_answers_says_so(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "pool-1.sock"))
    done = runbook("status", "--directory", tmp_path)
    assert "pool-1.sock: ConnectionRefusedError: nobody listens there, a process that is gone" in done.stdout
    assert done.returncode == 1


def test_leaks_names_what_is_not_there(tmp_path: Path) -> None:
    refused(runbook("leaks", tmp_path / "no-such"), str(tmp_path / "no-such"))


def test_leaks_finds_one_and_exits_1(tmp_path: Path) -> None:
    source = (
        "def f(pool):\n    conn = pool.getconn()\n    conn.cursor().execute('x')\n    pool.putconn(conn)\n"
    )
    (tmp_path / "db.py").write_text(source)
    done = runbook("leaks", tmp_path)
    assert done.returncode == 1
    assert "db.py" in done.stdout
    assert bare("leaks", tmp_path, "--format", "json").returncode == 1


def test_half_a_report_is_indeed_invalid() -> None:
    with pytest.raises(InvalidDocument, match="title"):
        validate(cut(report_of(slot_leak()), "title"))

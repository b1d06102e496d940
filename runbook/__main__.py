"""The command line ``runbook``: what can be done without Ansible, from any saved file."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Optional

from . import __version__
from .common.documents import schema, text_of, write_text
from .evidence import step2_pool
from .evidence.collect import read
from .evidence.discover import discover
from .evidence.login import port_of
from .leaks.search import search_paths
from .leaks.text import format_text
from .report.build import build
from .report.screen import screen
from .report.stanza import stanza
from .verdict.causes import CAUSES, IDS
from .verdict.facts import Facts
from .verdict.judge import judge

# What a report takes from a host's evidence as it stands; a view that is not there is merely unread.
_IDENTITY = ("run_id", "host", "collected_at")
# A secret never stands in a command line.
LOGIN_VARIABLE = "RUNBOOK_LOGIN_PASSWORD"


class Refused(Exception):
    """An input that cannot be used; the text names it and what is allowed."""


def main(arguments: Optional[list[str]] = None) -> int:
    """Run one command; its exit status: 0 fine, 1 it found something, 2 the input cannot be used."""
    parser = argparse.ArgumentParser(
        prog="runbook", description="Why can nobody log in? The cause, from evidence."
    )
    parser.add_argument("--version", action="version", version=f"runbook {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    leaks = commands.add_parser("leaks", help="search source for connections that are not given back")
    leaks.add_argument("paths", nargs="+", metavar="PATH")
    leaks.add_argument("--format", choices=("text", "json"), default="text")

    explain = commands.add_parser("explain", help="judge saved evidence again: a host's, and its database's")
    explain.add_argument("evidence", nargs="+", metavar="EVIDENCE")
    explain.add_argument("--json", action="store_true", help="the report as JSON")
    explain.add_argument("--why-not", metavar="CAUSE", help="the conditions of one cause, one by one")

    show = commands.add_parser("show", help="print the screen of a saved report again")
    show.add_argument("report", metavar="REPORT", help="reports/RUN/hosts/HOST.json")

    collect = commands.add_parser("collect", help="read the evidence of an app on this host; changes nothing")
    collect.add_argument("--port", type=int, help="where the app listens; the rest is found from it")
    collect.add_argument("--login-url", help="where one logs in, where that is not found")
    collect.add_argument(
        "--login-username",
        help=f"a user to log in with; its password: environment variable {LOGIN_VARIABLE}",
    )
    collect.add_argument("--no-probe", action="store_true", help="do not try the login")
    collect.add_argument("--service", help="the systemd unit")
    for name in ("--pid-file", "--log", "--environment-file"):
        collect.add_argument(name, help="where it is not found")
    collect.add_argument("--source", action="append", default=[], help="a directory of its source")
    collect.add_argument("--status-directory", action="append", default=[], help="of its status sockets")
    collect.add_argument(
        "--database-command", default="", help="runs psql where the database is: 'docker exec -i db psql'"
    )
    collect.add_argument("--output", metavar="FILE", help="for `runbook explain`; default: standard output")

    found = commands.add_parser("discover", help="the inventory stanza of what listens on this host")
    found.add_argument("--port", type=int, help="only what listens there; default: every Python program")

    status = commands.add_parser(
        "status", help="the pools of this host's processes that have a status socket"
    )
    status.add_argument("--directory", action="append", help="where their sockets are (default: below /run)")

    options = parser.parse_args(arguments)
    try:
        ended = COMMANDS[options.command](options)
        sys.stdout.flush()
        return ended
    except Refused as refused:
        print(f"runbook {options.command}: {refused}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # what is left in the buffer has nowhere to go when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _read(name: str) -> dict[str, Any]:
    try:
        document = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"{name}: {error.strerror}") from error
    except ValueError as error:
        raise Refused(f"{name}: not JSON: {error}") from error
    except RecursionError as error:
        raise Refused(f"{name}: nested too deep") from error
    return _with(document, (), name)


def _with(document: Any, fields: Iterable[str], name: str) -> dict[str, Any]:
    """The document of file ``name`` if it is an object that has the fields."""
    if not isinstance(document, dict):
        raise Refused(f"{name}: a JSON object is wanted")
    missing = [field for field in fields if field not in document]
    if missing:
        raise Refused(f"{name}: it is not whole, it lacks {', '.join(missing)}")
    return document


def _leaks(options: argparse.Namespace) -> int:
    missing = [path for path in options.paths if not Path(path).exists()]
    if missing:
        raise Refused(f"{missing[0]}: no such file or directory")
    result = search_paths(options.paths)
    if options.format == "json":
        print(json.dumps([finding._asdict() for finding in result.findings], indent=1))
    else:
        print(format_text(result))
    return 1 if result.findings else 0


def _explain(options: argparse.Namespace) -> int:
    hosts: list[dict[str, Any]] = []
    databases: list[dict[str, Any]] = []
    for name in options.evidence:
        document = _read(name)
        kind = str(document.get("schema", ""))
        if kind == "runbook/incident/1":  # a host's and its database's evidence in one file
            hosts.append(_with(document.get("host"), _IDENTITY, f"{name}: host"))
            if document.get("database") is not None:
                databases.append(_with(document["database"], (), f"{name}: database"))
        elif kind == "runbook/host-evidence/1":
            hosts.append(_with(document, _IDENTITY, name))
        elif kind == "runbook/database-evidence/1":
            databases.append(document)
        else:
            raise Refused(
                f"{name}: its schema is {kind or 'not said'}; evidence of a host or a database is wanted"
            )
    if not hosts:
        raise Refused("no evidence of a host among the files")
    if len(databases) > 1:
        raise Refused(
            f"evidence of {len(databases)} databases among the files; give that of the hosts' own alone"
        )
    database = databases[0] if databases else None
    for host in hosts:
        verdict = judge(host, database)
        if options.why_not:
            print(_conditions(options.why_not, host, database))
            continue
        report = build(host, database, verdict, actions=[], proof=None, evidence=[], seconds=0.0)
        print(json.dumps(report, indent=1) + "\n" if options.json else screen(report), end="")
    return 0


def _conditions(name: str, host: dict[str, Any], database: Optional[dict[str, Any]]) -> str:
    if name not in IDS:
        raise Refused(f"--why-not {name}: not a cause; known are {', '.join(IDS)}")
    cause = CAUSES[IDS.index(name)]
    facts = Facts(host, database)
    lines = [f"{cause.id}: {cause.title}"]
    for condition in cause.conditions:
        answer = condition(facts)
        word = {True: "true", False: "FALSE", None: "unread"}[answer.value]
        lines += [
            f"  {word:<7} {(condition.__doc__ or condition.__name__).strip()}",
            f"          {answer.view}: {answer.text}",
        ]
    helps = {True: "a restart helps", False: "a restart does not help", None: "open whether a restart helps"}
    return "\n".join([*lines, f"  {helps[cause.restart.helps(facts)]}: {cause.restart.why}"])


def _show(options: argparse.Namespace) -> int:
    report = _read(options.report)
    if report.get("schema") != "runbook/report/1":
        raise Refused(
            f"{options.report}: its schema is {report.get('schema')!r}, wanted is 'runbook/report/1'"
        )
    _with(report, schema("report")["required"], options.report)
    run = Path(options.report).resolve().parent.parent
    print(screen(report, str(run)), end="")
    return 0


def _status(options: argparse.Namespace) -> int:
    directories = [Path(name) for name in options.directory or ("/run",)]
    patterns = ("pool-*.sock", "*/pool-*.sock")
    found = sorted({path for top in directories for each in patterns for path in top.glob(each)})
    told = 0
    for path in found:
        try:
            answer = step2_pool.ask(str(path), "status", 2.0)
            counts = answer["count"]
            print(
                f"pid {answer['pid']}  {counts['used']} of {counts['maximum']} used, {counts['idle']} idle,"
                f" {counts['waiting']} waiting  {answer['application_name']}  {time.strftime('%H:%M:%S')}"
            )
            told += 1
        except (OSError, ValueError, KeyError) as error:
            print(f"{path}: {type(error).__name__}: {error}")
    if not found:
        print(f"no status socket pool-PID.sock below {', '.join(str(d) for d in directories)}")
    return 0 if told else 1


def _collect(options: argparse.Namespace) -> int:
    """The host's evidence, and its database's as the app's own role sees it, in one document."""
    if options.port is None and not options.login_url:
        raise Refused("--port or --login-url: one of them is wanted")
    port = options.port or port_of(options.login_url)
    found: dict[str, Any] = next(iter(discover(port)), {})
    paths = [*found.get("login_paths", []), *found.get("login_routes", []), "/api/auth/login"]
    run = {"run_id": time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime()), "host": socket.gethostname()}
    wanted = {"database": "main", "target": None, "password": None, "app_user": None}
    request = {
        **run,
        "read_host": True,
        "login_url": options.login_url or f"http://127.0.0.1:{port}{paths[0]}",
        "login_username": options.login_username,
        "login_password": os.environ.get(LOGIN_VARIABLE),
        "probe": not options.no_probe,
        **{key: getattr(options, key) or found.get(key) for key in ("service", "pid_file", "log")},
        "environment_file": options.environment_file or found.get("environment_file"),
        "source": options.source,
        "status_directories": options.status_directory or ["/run"],
        "database": {**run, **wanted, "command": shlex.split(options.database_command)},
    }
    text = text_of({"schema": "runbook/incident/1", **read(request)})
    if not options.output:
        print(text, end="")
        return 0
    try:
        write_text(Path(options.output).absolute(), text)
    except OSError as error:
        raise Refused(f"--output {options.output}: {error.strerror}") from error
    print(f"{request['login_url']} was read; now: runbook explain {options.output}", file=sys.stderr)
    return 0


def _discover(options: argparse.Namespace) -> int:
    services = discover(options.port)
    if not services:
        where = f"on port {options.port}" if options.port else "that is a Python program"
        raise Refused(f"nothing listens here {where}")
    print(stanza({socket.gethostname(): services}), end="")
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "leaks": _leaks,
    "explain": _explain,
    "show": _show,
    "collect": _collect,
    "discover": _discover,
    "status": _status,
}

if __name__ == "__main__":
    sys.exit(main())

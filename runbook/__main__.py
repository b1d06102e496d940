"""The command line ``runbook``: what can be done without Ansible, from any saved file."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from . import __version__
from .common.documents import schema
from .evidence import step2_pool
from .leaks.search import search_paths
from .leaks.text import format_text
from .report.build import build
from .report.screen import screen
from .verdict.causes import CAUSES, IDS
from .verdict.facts import Facts
from .verdict.judge import judge

# What a report takes from a host's evidence as it stands; a view that is not there is merely unread.
_IDENTITY = ("run_id", "host", "collected_at")


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

    status = commands.add_parser(
        "status", help="the pools of this host's processes that have a status socket"
    )
    status.add_argument("--directory", action="append", help="where their sockets are (default: below /run)")

    options = parser.parse_args(arguments)
    try:
        return int(
            {"leaks": _leaks, "explain": _explain, "show": _show, "status": _status}[options.command](options)
        )
    except Refused as refused:
        print(f"runbook {options.command}: {refused}", file=sys.stderr)
        return 2
    except BrokenPipeError:
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
    result = search_paths(options.paths, deadline=None)
    if options.format == "json":
        print(json.dumps([vars(finding) for finding in result.findings], indent=1))
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
        print(
            json.dumps(report, indent=1) if options.json else screen(report), end="\n" if options.json else ""
        )
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
    return "\n".join([*lines, f"  {helps[cause.restart(facts)]}: {cause.why_restart}"])


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
    directories = [Path(name) for name in options.directory] if options.directory else [Path("/run")]
    found = sorted(
        {
            path
            for top in directories
            for pattern in ("pool-*.sock", "*/pool-*.sock")
            for path in top.glob(pattern)
        }
    )
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


if __name__ == "__main__":
    sys.exit(main())

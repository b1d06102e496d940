"""The last screen: cause first, evidence next, next step last. Pure, plain text, at most 100 columns.

Colour is added by the caller, on the state words alone.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Optional

from ..common.clock import rfc3339, seconds_of
from ..common.documents import file_name
from .history import DAYS, TIMES
from .words import (
    MARGIN,
    WIDTH,
    answers,
    clock,
    columns,
    duration,
    heading,
    login_line,
    plain,
    section,
    spans,
)

VIEWS = {
    "new_connection": "connection",
    **dict.fromkeys(("activity", "server", "connection", "locks", "limits"), "database"),
}
MOST_NOT, MOST_UNREAD, MOST_FITS = 4, 5, 6
_LABELS = {1: "monitor", 2: "pool", 3: "PostgreSQL", 4: "leaks", 5: "interval", 6: "debug log"}


def state(report: dict[str, Any]) -> str:
    """The state words of a report: what holds now, and whether anybody touched the host."""
    acted = [a for a in report["actions"] if a["result"] in ("done", "failed") and a["action"] != "none"]
    if report["outcome"] == "healthy":
        return "HEALTHY"
    if report["outcome"] == "restored":
        if not acted:
            return "RESTORED BY ITSELF"
        return "RESTORED, NOT FIXED" if report["holds_seconds"] is not None else "RESTORED"
    word = "UNKNOWN" if report["outcome"] == "unknown" else "NOT RESTORED"
    return word if acted else f"{word}, NOT TOUCHED"


def screen(report: dict[str, Any], saved: str = "") -> str:
    """The screen of one host. ``saved``: the directory of the run, shown at the end."""
    sure = "" if report["confidence"] != "likely" else " (likely)"
    head, title = f"{report['host']}   {state(report)}   {report['cause']}{sure}:", report["title"]
    fits = len(head) + 1 + len(title) <= WIDTH
    out = [f"{head} {title}"] if fits else [*heading(head), *section("", [title])]
    out.append("")
    out += section("login", [login_line(report["login_before"], report["login_after"])])
    out += section("done", done(report))
    out += section("holds", holds(report))
    out += section("before", before(report))
    out += section("next", report["next"])
    if report["contributing"]:
        out += section("also", [", ".join(report["contributing"])])
    if report["why"]:
        out += ["", *_table("why", by_view(report["why"]))]
    if report["fits"]:
        fitting = [(one["cause"], f"undecided: {one['text']}") for one in report["fits"][:MOST_FITS]]
        out += ["", *_table("fits", fitting)]
    if report["why_not"] and report["cause"] not in ("healthy", "unknown"):
        out += _table("not", [(n["cause"], n["text"]) for n in report["why_not"][:MOST_NOT]])
    if report["unread"] and report["confidence"] != "decided":
        out += _table("unread", by_view(report["unread"][:MOST_UNREAD]))
    out += ["", *section("steps", _steps(report))]
    if saved:
        name = file_name(report["host"])
        files = f"{saved}/{name}/ticket.md  {saved}/{name}/page.html  {saved}/hosts/{name}.json"
        out += section("saved", [files, f"{duration(report['seconds'])}, {report['masked']} values masked"])
    return plain("\n".join(out) + "\n")


def by_view(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    """(what people call the view, words) of ``why`` or ``unread``."""
    return [(VIEWS.get(row["view"], row["view"]), row["text"]) for row in rows]


def _table(label: str, rows: list[tuple[str, str]]) -> list[str]:
    lines = columns(rows)
    return [(f"  {label:<8}" if index == 0 else " " * MARGIN) + line for index, line in enumerate(lines)]


def done(report: dict[str, Any]) -> list[str]:
    """What was done about it, and why nothing was."""
    lines = []
    for action in report["actions"]:
        pids = " ".join(str(p["pid"]) for p in action["before"]) or "none"
        fresh = " ".join(str(p["pid"]) for p in action["after"]) or "none"
        verb = {"start": "started", "restart": "restarted"}.get(action["action"], action["action"])
        if action["action"] == "none":
            lines.append(f"nothing. {action['why'][:1].upper()}{action['why'][1:]}")
        elif action["action"] == "observe" and action["result"] == "done":
            lines.append(f"observed for {duration(action['seconds'])}: {action['why']}")
        elif action["result"] == "done":
            lines.append(f"{verb} once: pid {pids} -> {fresh}, {action['why']}")
        elif action["result"] == "failed":
            lines.append(f"{action['action']} FAILED: {action['why']}")
        elif action["result"] == "refused":
            lines.append(f"nothing. A {action['action']} was refused: {action['why']}")
        else:
            lines.append(f"nothing. Would {action['action']}: {action['why']}")
    return lines or ["nothing"]


def holds(report: dict[str, Any]) -> list[str]:
    """How long the cure will last, where it is none."""
    seconds, after = report["holds_seconds"], report["login_after"]
    if seconds is None or report["outcome"] != "restored" or after is None:
        return []
    again = (seconds_of(after["at"]) or 0.0) + seconds
    return [
        f"about {duration(seconds)}: the process before lasted no longer, so with the same traffic expect it again"
        f" near {clock(rfc3339(again))} UTC"
    ]


def before(report: dict[str, Any]) -> list[str]:
    """How often this was seen here, and whether restarting helped; nothing the first time."""
    told = report["history"]
    if not told or told["times"] < 2:
        return []
    often = f"seen here {told['times']} times, {told['within_days']} in {DAYS} days; last {told['last'][:16].replace('T', ' ')} UTC"
    if told["restarts"]:
        often += f"; the login worked after {told['helped']} of {told['restarts']} restarts"
    cured = report["restart_helps"] and told["within_days"] >= TIMES
    return [often + (". RESTARTING IS NOT A CURE" if cured else "")]


def _steps(report: dict[str, Any]) -> list[str]:
    """Four short words and what comes of 5 and 6; the run has said each step in full."""
    done, later = [], []
    for step in report["steps"]:
        status = {"unknown": "?", "fail": "FAIL"}.get(step["status"], step["status"])
        label = f"{step['step']} {_LABELS[step['step']]}"
        if step["status"] == "skipped":
            later.append(label)
        else:
            done.append(f"{label} {status}")
    words = next((step["summary"] for step in report["steps"] if step["status"] == "skipped"), "")
    return ["    ".join(done), *([f"{' and '.join(later)}: {words}"] if later else [])]


def fleet_screen(
    fleet: dict[str, Any], reports: list[dict[str, Any]], missing: Optional[dict[str, str]] = None
) -> str:
    """The screen over several hosts: one line for the whole, what happened, then who is how.

    ``missing``: host → why it gave no report.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        groups.setdefault(state(report), []).append(report)
    lost = [row["host"] for row in fleet["hosts"] if not row["reachable"]]
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    counts = [f"{key} on {len(members)}" for key, members in ordered]
    counts += [f"{len(lost)} NOT REACHED"] if lost else []
    out = [*heading(f"{len(fleet['hosts'])} hosts   {', '.join(counts)}"), ""]
    out += section("event", [_event(event, len(fleet["hosts"])) for event in fleet["events"]])
    rows = [
        (f"{len(members):>3}  {key}", f"{' '.join(spans(r['host'] for r in members))}   {_logins(members)}")
        for key, members in ordered
    ]
    why: dict[str, list[str]] = {}
    for host in lost:
        reason = (missing or {}).get(host, "it gave no evidence")
        why.setdefault(reason, []).append(host)
    rows += [
        (f"{len(hosts):>3}  NOT REACHED", f"{' '.join(spans(hosts))}   {words}; nothing is known about it")
        for words, hosts in why.items()
    ]
    out += _table("hosts", rows)
    out += section("", [f"database connections of this run: {fleet['database_connections']}"])
    return plain("\n".join(out) + "\n\n")


def _event(event: dict[str, Any], total: int) -> str:
    """What happened, where, and when it began on the first and on the last host."""
    hosts, first, last = event["hosts"], event["first"], event["last"]
    began = f"{event['minute'][11:]} UTC"
    if first:
        begin, end = clock(first), clock(last)
        began = f"first errors {f'at {begin}' if begin == end else f'from {begin} to {end}'} UTC"
    if event["where"] == "host":
        return f"{event['cause']} on {hosts[0]} alone, {began}: it is that host"
    place = "in what they share of the app" if event["where"] == "app" else f"on the {event['where']}"
    many = len(hosts)
    return f"{event['cause']} on {many} of {total}, {began}: one event {place}, not {many} host problems"


def _logins(reports: list[dict[str, Any]]) -> str:
    """Login before and after over several hosts."""
    both = []
    for key in ("login_before", "login_after"):
        told = [report[key] for report in reports if report[key]]
        by_status: Counter[str] = Counter()
        for login in told:
            by_status.update(login["by_status"])
        attempts = sum(login["attempts"] for login in told)
        seconds = max((login["seconds"] for login in told), default=0.0)
        login = {"by_status": by_status, "attempts": attempts, "seconds": seconds}
        both.append(answers(login) if told else "")
    before, after = both
    return f"login {before} -> {after}" if before != after else f"login {after}" if after else "not probed"

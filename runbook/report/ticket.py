"""``ticket.md``: what one pastes into the tracker. Pure."""

from __future__ import annotations

from typing import Any

from .screen import before, by_view, state
from .words import clock, duration, login_line, plain


def ticket(report: dict[str, Any]) -> str:
    """The ticket of one host as Markdown."""
    first, after = report["login_before"], report["login_after"]
    when = f", {clock(first['at'])} to {clock(after['at'])} UTC" if first and after else ""
    sick = first is None or not first["ok"]
    works = "login works" if after and after["kind"] == "full" else "the login path answers"
    what = "login failed" if sick else works
    rows = [
        ("Cause", f"{report['cause']} ({report['confidence']}). {report['title']}"),
        ("Login", login_line(first, after)),
        ("Proof", "; ".join(f"{view}: {words}" for view, words in by_view(report["why"])) or "-"),
        ("Not", "; ".join(f"{n['cause']}: {n['text']}" for n in report["why_not"][:3]) or "-"),
        ("Done", "; ".join(_action(action) for action in report["actions"]) or "nothing"),
    ]
    told = report["trouble"]
    if told:
        span = f"{told['first'][:19].replace('T', ' ')} to {told['last'][11:19]} UTC"
        ended = told["ended"] or "still going on when read"
        rows.insert(1, ("Impact", f"{told['lines']} errors in the log from {span}; {ended}"))
    rows += [("Before", words) for words in before(report)]
    if report["holds_seconds"] is not None and report["outcome"] == "restored":
        again = f"in about {duration(report['holds_seconds'])} at the rate seen, unless it is mended"
        rows.append(("Again", again))
    if report["unread"]:
        rows.append(("Unread", "; ".join(f"{u['view']}: {u['text']}" for u in report["unread"][:4])))
    lines = [f"## {report['host']}: {what}{when}, {state(report).lower()}", ""]
    lines += [f"- **{name}**: {words}" for name, words in rows]
    lines += ["", *(f"- [ ] {step}" for step in report["next"]), ""]
    lines += [f"Evidence: {e['file']} sha256 {e['sha256']}" for e in report["evidence"]]
    files = " ".join(e["file"] for e in report["evidence"])
    lines.append(
        f"{report['masked']} values masked; run {report['run_id']}; judged again, in its directory, with:"
        f" runbook explain {files}"
    )
    return plain("\n".join(lines) + "\n")


def _action(action: dict[str, Any]) -> str:
    if action["action"] == "none":
        return f"nothing: {action['why']}"
    return f"{action['action']} {action['result']}: {action['why']} ({duration(action['seconds'])})"

"""The report of one host: the verdict, what was done about it, and whether the login works now. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Optional

from ..verdict.facts import Facts, mapping, text, whole
from ..verdict.judge import OBSERVE, Verdict
from ..verdict.steps import steps
from .history import history
from .observation import headline


def login_of(facts: Facts, index: int) -> Optional[dict[str, Any]]:
    """Round ``index`` of the login probe as the report has it (0 the first, -1 the last); None unread."""
    if not facts.rounds or facts.login is None:
        return None
    return login_round(facts.rounds[index], text(facts.login.get("kind")))


def login_round(one: dict[str, Any], kind: str) -> dict[str, Any]:
    """A round of view ``login`` as ``login_before`` and ``login_after`` have it."""
    return {
        "ok": one.get("ok") is True,
        "kind": kind if kind in ("path", "full") else "path",
        "attempts": whole(one.get("attempts")),
        "failed": whole(one.get("failed")),
        "by_status": {text(k): whole(v) for k, v in mapping(one.get("by_status")).items()},
        "seconds": one.get("seconds") if isinstance(one.get("seconds"), (int, float)) else 0.0,
        "detail": text(one.get("detail")),
        "at": text(one.get("started_at")),
    }


def outcome(
    before: Optional[dict[str, Any]],
    after: Optional[dict[str, Any]],
    cause: str,
    ends_badly: bool = False,
) -> str:
    """What the user's path says: healthy, restored, not_restored or unknown.

    Never green on a missing view (an open cause), nor where the next login may fail although the last one
    worked (``ends_badly``): a new connection fails, or one is kept that fails whoever gets it.
    """
    if before is None or after is None:
        return "unknown"
    if not after["ok"] or ends_badly:
        return "not_restored"
    if not before["ok"]:
        return "restored"
    return "unknown" if cause == "unknown" else "healthy"


def build(
    host: dict[str, Any],
    database: Optional[dict[str, Any]],
    verdict: Verdict,
    *,
    actions: list[dict[str, Any]],
    proof: Optional[dict[str, Any]],
    evidence: list[dict[str, str]],
    seconds: float,
    earlier: Iterable[dict[str, Any]] = (),
    observed: Optional[dict[str, Any]] = None,
) -> dict[str, Any]:
    """The report document. ``proof``: the login after an action, as ``login_after``; None without one,
    then the last round of the evidence is what holds. ``earlier``: the host's reports of earlier runs.
    ``observed``: the observation of this one."""
    facts = Facts(host, database)
    before = login_of(facts, 0)
    after = proof if proof is not None else login_of(facts, -1)
    ends_badly = facts.new_ok is False or (proof is None and bool(facts.login_will_fail))
    return {
        "schema": "runbook/report/1",
        "run_id": host["run_id"],
        "host": host["host"],
        "started": host["collected_at"],
        "seconds": round(seconds, 3),
        "outcome": outcome(before, after, verdict.cause, ends_badly),
        "login_before": before,
        "login_after": after,
        "cause": verdict.cause,
        "title": verdict.title,
        "confidence": verdict.confidence,
        "restart_helps": verdict.restart_helps,
        "action_wanted": verdict.action,
        "holds_seconds": verdict.holds_seconds,
        "history": history(verdict.cause, host["collected_at"], earlier),
        "trouble": facts.trouble,
        "contributing": verdict.contributing,
        "why": [{"view": a.view, "text": a.text} for a in verdict.why],
        "why_not": [{"cause": cause, "text": words} for cause, words in verdict.why_not],
        "fits": [{"cause": cause, "text": words} for cause, words in verdict.fits],
        "unread": [{"view": a.view, "text": a.text} for a in verdict.unread] + unread_views(host, database),
        "steps": steps(facts, verdict, observed),
        "actions": [*_observing(facts, observed), *actions],
        "next": [line for line in verdict.next if not (observed and OBSERVE in line)],
        "masked": whole(host.get("masked")) + whole(mapping(database).get("masked")),
        "evidence": evidence,
    }


def _observing(facts: Facts, observed: Optional[dict[str, Any]]) -> list[dict[str, Any]]:
    if not observed:
        return []
    living = {row["pid"] for row in observed["processes"] if row["same"]}
    before = [{key: one[key] for key in ("pid", "start_ticks")} for one in facts.processes or []]
    return [
        {
            "action": "observe",
            "result": "failed" if observed["wrong"] else "done",
            "why": "; ".join(observed["wrong"]) or headline(observed),
            "before": before,
            "after": [one for one in before if one["pid"] in living],
            "seconds": observed["seconds"],
        }
    ]


def unread_views(host: dict[str, Any], database: Optional[dict[str, Any]]) -> list[dict[str, str]]:
    """Every view that was not read, and why, whether or not the verdict needed it."""
    found = []
    for document in (host, database):
        for name, one in mapping(mapping(document).get("views")).items():
            view = mapping(one)
            if view.get("state") != "ok":
                found.append({"view": text(name), "text": text(view.get("reason")) or "not read"})
    wrong = unknown_service(host)
    return [*found, {"view": "process", "text": wrong}] if wrong else found


def unknown_service(host: dict[str, Any]) -> str:
    """What is wrong with the name of the service, in words; empty where nothing is, or none is named."""
    service = Facts(host).service
    if service.get("kind") != "systemd" or text(service.get("active")):
        return ""
    return f"{text(service.get('why'))}: is diagnose_service right?"

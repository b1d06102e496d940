"""The verdict over one host of a run, from the evidence that is on the controller."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Optional

from ..module_utils.runbook.common.documents import file_name
from ..module_utils.runbook.verdict.facts import Facts
from ..module_utils.runbook.verdict.judge import Verdict, judge
from .run import Run


class Judged:
    """A host's evidence and its database's; the facts in both and the verdict over them, once they are asked for."""

    def __init__(self, host: dict[str, Any], database: Optional[dict[str, Any]]) -> None:
        self.host = host
        self.database = database

    @cached_property
    def facts(self) -> Facts:
        return Facts(self.host, self.database)

    @cached_property
    def verdict(self) -> Verdict:
        return judge(self.host, self.database)


def judged(run: Run, host: str) -> Optional[Judged]:
    """The verdict over one host; None when it gave no evidence. Cheap and pure, so it is never kept."""
    evidence = run.evidence_of(host)
    if evidence is None:
        return None
    label = (run.load(f"evidence/{file_name(host)}.asked") or {}).get("label", "main")
    return Judged(evidence, run.database_of(label))


def every(run: Run) -> Iterator[tuple[str, Optional[Judged]]]:
    """All app hosts of the run with their verdicts, in the order of their names; each database is read once."""
    databases: dict[str, Optional[dict[str, Any]]] = {}
    for host, label in run.hosts().items():
        if label not in databases:
            databases[label] = run.database_of(label)
        evidence, database = run.evidence_of(host), databases[label]
        yield host, None if evidence is None else Judged(evidence, database)


def decision(seen: Judged, wanted: str, restart: str) -> dict[str, Any]:
    """An action as the run keeps it: with the result ``go``, or with the reason why there is none.

    ``wanted``: start, restart, none or open; ``restart``: diagnose_restart. No other precondition of a start
    or restart is asked yet.
    """
    verdict, facts = seen.verdict, seen.facts
    acts = wanted in ("start", "restart")
    decided: dict[str, Any] = {
        "action": wanted if acts else "none",
        "result": "go" if acts else "done" if wanted == "none" else "refused",
        "why": verdict.why_action,
        "before": [{"pid": p["pid"], "start_ticks": p["start_ticks"]} for p in facts.processes or []],
        "after": [],
        "seconds": 0.0,
        "login": None,
        "cause": verdict.cause,
    }
    if acts and restart not in ("auto", "ask"):
        decided.update(result="refused", why=f"diagnose_restart is {restart}")
    lock = (facts.process or {}).get("lock")
    if lock:
        words = f"{lock['who']} is acting on this host since {lock['since']} (run {lock['run_id']})"
        decided.update(result="refused", why=f"{words}; this run only reads")
    return decided

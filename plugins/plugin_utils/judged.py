"""The verdict over one host of a run, from the evidence that is on the controller."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

from ..module_utils.runbook.common.documents import file_name
from ..module_utils.runbook.verdict.judge import Verdict, judge
from .run import Run


class Judged(NamedTuple):
    """A host's evidence, its database's, and the verdict over both."""

    host: dict[str, Any]
    database: Optional[dict[str, Any]]
    verdict: Verdict


def judged(run: Run, host: str) -> Optional[Judged]:
    """The verdict; None when the host gave no evidence. Cheap and pure, so it is never kept."""
    evidence = run.load(f"evidence/{file_name(host)}.json")
    if evidence is None:
        return None
    asked = run.load(f"evidence/{file_name(host)}.asked") or {}
    database = run.database_of(asked.get("label", "main"))
    return Judged(evidence, database, judge(evidence, database))

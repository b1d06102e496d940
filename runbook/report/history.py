"""How often a host had this cause before: from the reports of earlier runs. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Optional

from ..common.clock import seconds_of

# Reports of one cause closer than this are of one occurrence, unless it was restored in between: somebody
# ran it again.
SAME_SECONDS = 3600.0
# The third time within this many days, restarting is no cure (the guide's incident came back daily).
DAYS = 14
TIMES = 3


def history(cause: str, started: str, earlier: Iterable[dict[str, Any]]) -> Optional[dict[str, Any]]:
    """Occurrences of ``cause`` with this one, or None where there is nothing to count.

    earlier: reports of the same host, in any order. ``{times, within_days, last, restarts, helped}``: how
    often in all, how often in the last `DAYS` days, the last time before this one (RFC 3339 or null), how
    often a restart or start was done then, and how often the login worked after it.
    """
    if cause in ("healthy", "unknown"):
        return None
    now = seconds_of(started) or 0.0
    same = [(seconds_of(report.get("started")), report) for report in earlier if report.get("cause") == cause]
    moments, restarts, helped = [now], 0, 0
    last = None
    for at, report in sorted(((at, r) for at, r in same if at and at <= now), key=lambda row: -row[0]):
        if moments[-1] - at > SAME_SECONDS or report.get("outcome") == "restored":
            last = last or report["started"]
            moments.append(at)
        else:
            moments[-1] = at
        acted = [a["action"] for a in report.get("actions", ()) if a["result"] == "done"]
        done = not {"start", "restart"}.isdisjoint(acted)
        restarts += done
        helped += done and report.get("outcome") == "restored"
    return {
        "times": len(moments),
        "within_days": sum(now - at <= DAYS * 86400 for at in moments),
        "last": last,
        "restarts": restarts,
        "helped": helped,
    }

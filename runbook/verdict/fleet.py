"""One run over many hosts: is it one event or many?

The same cause in the same minute on several hosts is one event on the database or the network between;
on one host it is that host.
"""

from __future__ import annotations

from typing import Any

from ..common.clock import seconds_of
from .facts import text


def fleet(
    run_id: str, reports: list[dict[str, Any]], missing: list[str], database_connections: int
) -> dict[str, Any]:
    """``fleet.json`` of a run: its reports, the hosts that gave none, and how many database connections
    the run opened to read D."""
    hosts = [
        {"host": report["host"], "outcome": report["outcome"], "cause": report["cause"], "reachable": True}
        for report in reports
    ]
    hosts += [{"host": host, "outcome": "unknown", "cause": None, "reachable": False} for host in missing]
    events: list[dict[str, Any]] = []
    last: dict[str, float] = {}
    for report in sorted(reports, key=lambda one: text(one["started"])):
        cause, moment = report["cause"], seconds_of(report["started"]) or 0.0
        if cause in ("healthy", "unknown"):
            continue
        event = next((e for e in reversed(events) if e["cause"] == cause), None)
        if event is None or moment - last[cause] > 60:
            event = {"cause": cause, "minute": text(report["started"])[:16], "hosts": []}
            events.append(event)
        last[cause] = moment
        event["hosts"].append(report["host"])
    for event in events:
        event["hosts"].sort()
    sick = sum(len(event["hosts"]) for event in events)
    return {
        "schema": "runbook/fleet/1",
        "run_id": run_id,
        "hosts": sorted(hosts, key=lambda row: str(row["host"])),
        "events": events,
        "one_event": len(events) == 1 and sick > 1,
        "database_connections": database_connections,
    }

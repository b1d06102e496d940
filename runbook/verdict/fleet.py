"""One run over many hosts: is it one event or many?

The same cause in the same minute on several hosts is one event on the database or the network between;
on one host it is that host.
"""

from __future__ import annotations

from typing import Any

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
    groups: dict[tuple[str, str], list[str]] = {}
    for report in reports:
        if report["cause"] not in ("healthy", "unknown"):
            groups.setdefault((report["cause"], text(report["started"])[:16]), []).append(report["host"])
    events = [
        {"cause": cause, "minute": minute, "hosts": sorted(names)}
        for (cause, minute), names in sorted(groups.items())
    ]
    sick = sum(len(event["hosts"]) for event in events)
    return {
        "schema": "runbook/fleet/1",
        "run_id": run_id,
        "hosts": sorted(hosts, key=lambda row: str(row["host"])),
        "events": events,
        "one_event": len(events) == 1 and sick > 1,
        "database_connections": database_connections,
    }

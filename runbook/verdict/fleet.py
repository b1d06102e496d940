"""One run over many hosts: is it one event or many?

The same cause at the same minute on several hosts is one event on the database or the network between;
on one host it is that host.
"""

from __future__ import annotations

from typing import Any, Optional

from ..common.clock import rfc3339, seconds_of
from .facts import mapping, text

TOGETHER_SECONDS = 60.0
# Causes that lie in the app or its host: where several have one of them at once, it is what they share.
OF_THE_APP = {
    *("app_down", "app_resources", "app_blocked", "app_saturated", "fork_shared", "host_suspended"),
    *("stale_configuration", "monitor_dead", "login_broken", "metric_artefact"),
}


def fleet(
    run_id: str, reports: list[dict[str, Any]], missing: list[str], database_connections: int
) -> dict[str, Any]:
    """``fleet.json`` of a run: its reports, the hosts that gave none, and how many database connections
    the run opened to read D."""
    hosts = [
        {**{key: one[key] for key in ("host", "outcome", "cause")}, "reachable": True} for one in reports
    ]
    hosts += [{"host": host, "outcome": "unknown", "cause": None, "reachable": False} for host in missing]
    events: list[dict[str, Any]] = []
    last: dict[str, float] = {}
    for report in sorted(reports, key=_moment):
        cause, moment, began = report["cause"], _moment(report), _began(report)
        if cause in ("healthy", "unknown"):
            continue
        event = next((e for e in reversed(events) if e["cause"] == cause), None)
        if event is None or moment - last[cause] > TOGETHER_SECONDS:
            event = {"cause": cause, "minute": rfc3339(moment)[:16], "first": None, "last": None, "hosts": []}
            events.append(event)
        last[cause] = moment
        if began:
            event["first"], event["last"] = event["first"] or began, began
        event["hosts"].append(report["host"])
    for event in events:
        event["hosts"].sort()
        many = "app" if event["cause"] in OF_THE_APP else "database or network"
        event["where"] = many if len(event["hosts"]) > 1 else "host"
    sick = sum(len(event["hosts"]) for event in events)
    return {
        "schema": "runbook/fleet/1",
        "run_id": run_id,
        "hosts": sorted(hosts, key=lambda row: str(row["host"])),
        "events": events,
        "one_event": len(events) == 1 and sick > 1,
        "database_connections": database_connections,
    }


def _began(report: dict[str, Any]) -> Optional[str]:
    """When the first login failed, as the host's log tells it; None where it does not."""
    first = text(mapping(report.get("trouble")).get("first"))
    return first if seconds_of(first) is not None else None


def _moment(report: dict[str, Any]) -> float:
    """The time by which a host belongs to an event: when it began, else when it was read."""
    return seconds_of(_began(report) or report["started"]) or 0.0

"""What a rollout says: its plan, whether it fits, how long it takes, and what became of every host. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Optional

_ENDS = {
    "done": "has the new values, proven",
    "unchanged": "had them already",
    "undone": "has its former values back, proven",
    "not begun": "untouched",
    "refused": "untouched",
    "lost": "not known: the next run finishes or undoes it",
}

Document = dict[str, Any]


def planned(plan: Document) -> list[str]:
    """What would be done on a host and why; ``plan`` as act.configuration.plan returns it."""
    lines = []
    if plan["interrupted"]:
        told = plan["interrupted"]
        whose = f"{told['run_id']} by {told['who']}"
        lines.append(
            f"finish: rollout {whose} was interrupted here (at {told['step']})"
            if told["step"]
            else f"wait: run {whose} is acting here"
        )
    lines += [f"write: {words}" for words in plan["write"]]
    lines += [f"restart: {words}" for words in plan["restart"]]
    if plan["start"]:
        lines.append("start: it does not run")
    elif plan["write"] and not plan["restart"]:
        lines.append("no restart: every process has the values")
    return lines or ["nothing to do: file and processes have the values"]


def over_budget(plans: dict[str, Document], slots: Mapping[str, int]) -> list[str]:
    """What of the new values does not fit the servers as they are: the pools of all hosts and everybody else's
    sessions against the slots. ``slots``: server → what it will have, where this run may restart it."""
    problems = []
    for server in sorted({plan["server"] for plan in plans.values() if plan.get("slots") is not None}):
        here = {host: plan for host, plan in plans.items() if plan.get("server") == server}
        told = [plan for plan in here.values() if plan["slots"] is not None]
        has = slots.get(server) or min(plan["slots"] for plan in told)
        others = max(plan["others"] or 0 for plan in here.values())
        limits = [("slots", has, others), *(tuple(limit) for plan in told for limit in plan["limits"])]
        room, name, limit, used = min((limit - used, name, limit, used) for name, limit, used in limits)
        wanted = sum(plan["connections"] for plan in here.values())
        if wanted > room:
            sums = ", ".join(f"{host} {plan['connections']}" for host, plan in sorted(here.items()))
            problems.append(
                f"the pools may open {wanted} connections (app_workers x postgres_pool_max_connections: {sums}),"
                f" and {server} has {room} for them ({limit} {name}, {used} used by others)"
            )
    return problems


def seconds_left(elapsed: float, done: int, wanted: int) -> float:
    """By what the hosts took so far, also where several are done at once."""
    return elapsed / done * max(0, wanted - done) if done else 0.0


def results(
    plans: dict[str, Document], done: dict[str, Document], out: Collection[str] = ()
) -> dict[str, Document]:
    """host → ``{result, why, healthy, balancer, changes, seconds}``, for the record and the screen. ``out``: the
    plans of hosts that the balancer was not told to take back."""
    found = {}
    for name, plan in plans.items():
        told = done.get(name, {"result": "not begun" if plan["act"] else "unchanged"})
        found[plan["host"]] = {
            "result": told["result"],
            "why": told.get("why", ""),
            "healthy": told.get("healthy", True),
            "balancer": name not in out,
            "changes": plan["changes"],
            "seconds": told.get("seconds", 0),
        }
    return found


def end(hosts: dict[str, Document], failed: Optional[str]) -> list[str]:
    """The last lines of the screen; hosts with the same end share one. ``failed``: what stopped it."""
    told: dict[str, list[str]] = {}
    for host, row in sorted(hosts.items()):
        words = _ENDS[row["result"]]
        if row["result"] == "lost":
            pass
        elif not row["healthy"]:
            words = "is NOT HEALTHY and out of traffic"
        elif not row["balancer"]:
            words += ", but may be OUT OF THE BALANCER: the next run brings it back"
        elif row["result"] == "undone":
            words += ", and is in traffic"
        if row["why"] and row["result"] != "done":
            words += f": {row['why']}"
        told.setdefault(words, []).append(host)
    head = f"STOPPED   {failed}" if failed else "ROLLED OUT"
    return ["", head, *(f"  {', '.join(names)}   {words}" for words, names in told.items()), ""]

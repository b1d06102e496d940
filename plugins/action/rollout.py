"""The fleet's part of a rollout: may it begin, and what is its record?"""

from __future__ import annotations

import os
import time
from typing import Any, Optional

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ..module_utils.runbook.common.clock import rfc3339
from ..module_utils.runbook.report.words import plain
from ..plugin_utils.run import Run, who
from .preflight import slots_of


def over_budget(plans: dict[str, dict[str, Any]], slots: Optional[int]) -> list[str]:
    """What of the new values does not fit the servers as they are now: pools of all hosts and everybody else's
    sessions against the slots. ``slots``: what the server will have, where this run may restart it."""
    problems = []
    for server in sorted({plan["server"] for plan in plans.values() if plan.get("slots") is not None}):
        here = {host: plan for host, plan in plans.items() if plan.get("server") == server}
        gives = slots or min(plan["slots"] for plan in here.values() if plan["slots"] is not None)
        others = max(plan["others"] or 0 for plan in here.values())
        wanted = sum(plan["connections"] for plan in here.values())
        if wanted > gives - others:
            sums = ", ".join(f"{host} {plan['connections']}" for host, plan in sorted(here.items()))
            problems.append(
                f"the pools may open {wanted} connections (app_workers x postgres_pool_max_connections: {sums}), and"
                f" {server} has {gives - others} for them ({gives} slots, {others} used by others)"
            )
    return problems


def summary(results: dict[str, dict[str, Any]], failed: Optional[str]) -> list[str]:
    """The end of the screen: what became of every host; hosts with the same end share a line."""
    ends = {
        "done": "has the new values, proven",
        "unchanged": "had them already",
        "undone": "has its former values back, proven, and is in traffic",
        "not begun": "untouched",
        "lost": "not known: the next run finishes or undoes it",
        "refused": "untouched",
    }
    told: dict[str, list[str]] = {}
    for host, row in sorted(results.items()):
        words = "is NOT HEALTHY and out of traffic" if not row["healthy"] else ends[row["result"]]
        told.setdefault(
            words + (f": {row['why']}" if row["result"] != "done" and row["why"] else ""), []
        ).append(host)
    lines = [f"{', '.join(hosts)}   {words}" for words, hosts in told.items()]
    head = f"STOPPED: {failed}" if failed else "ROLLED OUT"
    return ["", head, *(f"  {line}" for line in lines), ""]


class ActionModule(ActionBase):
    """Runs on the controller, once."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """``operation: decide`` fails with every reason against it; ``finish`` writes the record, and fails with
        ``failed`` if that is given; ``say`` prints ``words``."""
        result = super().run(tmp, task_vars)
        run = Run.begun(task_vars or {})
        result.update(changed=False, ansible_facts=run.facts())
        if self._task.args["operation"] == "say":
            run.say((task_vars or {})["inventory_hostname"], self._task.args["words"])
            return result
        if self._task.args["operation"] == "decide":
            plans = run.notes("plan")
            problems = [f"{p['host']}: {words}" for p in plans.values() for words in p["problems"]]
            problems += over_budget(plans, self._slots(task_vars or {}))
            if problems:
                result.update(failed=True, msg=f"refused, nothing was touched: {'; '.join(problems)}")
            return result
        failed = self._task.args.get("failed")
        self._record(run, failed)
        if failed:
            result.update(failed=True, msg=failed)
        return result

    @staticmethod
    def _slots(variables: dict[str, Any]) -> Optional[int]:
        """What the server will give when this run may restart it; None when it stays as it is."""
        servers = variables["groups"].get("postgres", [])
        server = variables["hostvars"][servers[0]] if servers else {}
        return slots_of(server) if boolean(server.get("postgres_restart", False)) else None

    def _record(self, run: Run, failed: Optional[str]) -> None:
        """One line for each rollout that touched a host, whoever of several failed hosts comes first."""
        plans, done = run.notes("plan"), run.notes("apply")
        results = {
            plan["host"]: {
                "result": done[name]["result"]
                if name in done
                else "not begun"
                if plan["act"]
                else "unchanged",
                "why": done.get(name, {}).get("why", ""),
                "healthy": done.get(name, {}).get("healthy", True),
                "changes": plan["changes"],
                "seconds": done.get(name, {}).get("seconds", 0),
            }
            for name, plan in plans.items()
        }
        try:
            os.close(os.open(run.path / "recorded", os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return
        for words in summary(results, failed):
            run.display.display(plain(words))
        if done:
            line = {"at": rfc3339(time.time()), "who": who(), "run_id": run.id, "why": failed or ""}
            run.append(
                "rollouts.jsonl", {**line, "result": "stopped" if failed else "done", "hosts": results}
            )

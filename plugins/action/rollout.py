"""The fleet's part of a rollout: may it begin, and what is its record?"""

from __future__ import annotations

import os
import time
from typing import Any, Optional

from ansible.plugins.action import ActionBase

from ..module_utils.runbook.common.clock import rfc3339
from ..plugin_utils.run import Run, who


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


class ActionModule(ActionBase):
    """Runs on the controller, once."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """``operation: decide`` fails with every reason against it; ``finish`` writes the record, and fails with
        ``failed`` if that is given."""
        result = super().run(tmp, task_vars)
        run = Run.begun(task_vars or {})
        result["changed"] = False
        if self._task.args["operation"] == "decide":
            plans = run.notes("plan")
            problems = [f"{p['host']}: {words}" for p in plans.values() for words in p["problems"]]
            problems += over_budget(plans, self._task.args.get("slots"))
            if problems:
                result.update(failed=True, msg=f"refused, nothing was touched: {'; '.join(problems)}")
            return result
        failed = self._task.args.get("failed")
        self._record(run, failed)
        if failed:
            result.update(failed=True, msg=failed)
        return result

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
                "changes": plan["changes"],
                "seconds": done.get(name, {}).get("seconds", 0),
            }
            for name, plan in plans.items()
        }
        counts = [row["result"] for row in results.values()]
        words = ", ".join(f"{counts.count(kind)} {kind}" for kind in dict.fromkeys(counts))
        try:
            os.close(os.open(run.path / "recorded", os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return
        run.say("", f"{'STOPPED' if failed else 'rolled out'}: {words}")
        if done:
            line = {"at": rfc3339(time.time()), "who": who(), "run_id": run.id, "why": failed or ""}
            run.append(
                "rollouts.jsonl", {**line, "result": "stopped" if failed else "done", "hosts": results}
            )

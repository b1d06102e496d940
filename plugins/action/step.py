"""Say what one of the guide's six steps found, for every host of the run."""

from __future__ import annotations

from typing import Any, Optional

from ansible.plugins.action import ActionBase

from ..module_utils.runbook.common.documents import file_name
from ..module_utils.runbook.verdict.facts import Facts
from ..module_utils.runbook.verdict.steps import steps
from ..plugin_utils.judged import every
from ..plugin_utils.run import FEW, Run


class ActionModule(ActionBase):
    """Runs on the controller, once, from the evidence that is there."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Print one line a host; ``found`` holds the step of each."""
        result = super().run(tmp, task_vars)
        run, number = Run.of(task_vars or {}), int(self._task.args["step"])
        found, few = {}, len(run.hosts()) <= FEW
        for host, seen in every(run):
            if seen is None:
                continue
            observed = run.load(f"observations/{file_name(host)}.json")
            step = steps(Facts(seen.host, seen.database), seen.verdict, observed)[number - 1]
            found[host] = step
            if few or step["status"] in ("warn", "fail"):
                run.say(host, f"step {number}, {step['name']}: {step['status']}: {step['summary']}")
        result.update(changed=False, found=found)
        return result

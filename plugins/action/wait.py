"""Wait for a chosen time, and say now and then how much of it is left."""

from __future__ import annotations

import time
from typing import Any, Optional

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils.runbook.report.words import duration
from ..plugin_utils.run import Run

LONGEST_MINUTES = 24 * 60.0
LINES = 10  # over the time
SHORTEST = 5.0  # seconds between two of them


class ActionModule(ActionBase):
    """Runs on the controller, once, whatever hosts there are."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """``minutes`` is the value of the variable named ``variable``; ``why`` stands in each line."""
        result = super().run(tmp, task_vars)
        run, why = Run.of(task_vars or {}), self._task.args["why"]
        given, variable = self._task.args["minutes"], self._task.args["variable"]
        try:
            seconds = float(given) * 60
        except (TypeError, ValueError):
            seconds = -1.0
        if not 0 <= seconds <= LONGEST_MINUTES * 60:
            raise AnsibleActionFail(
                f"{variable} is {given!r}: wanted is a number of minutes from 0 to {LONGEST_MINUTES:g}"
            )
        result["changed"] = False
        if self._task.check_mode:
            if seconds:
                run.say("", f"would wait {duration(seconds)}: {why}")
            return result
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            run.say("", f"{why}: {duration(left)} left")
            time.sleep(min(left, max(SHORTEST, seconds / LINES)))
        return result

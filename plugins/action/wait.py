"""Wait for a chosen time, and say now and then how much of it is left."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleActionFail

from ..module_utils.runbook.report.words import duration
from ..plugin_utils.action import OnController
from ..plugin_utils.run import Run

LONGEST_MINUTES = 24 * 60.0
LINES = 10  # over the time
SHORTEST = 5.0  # seconds between two of them


class ActionModule(OnController):
    """Runs on the controller, once, whatever hosts there are."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """``minutes`` is the value of the variable named ``variable``; ``why`` stands in each line."""
        run, why = Run.of(variables), self._task.args["why"]
        given, variable = self._task.args["minutes"], self._task.args["variable"]
        try:
            seconds = float(given) * 60
        except (TypeError, ValueError):
            seconds = -1.0
        if not 0 <= seconds <= LONGEST_MINUTES * 60:
            raise AnsibleActionFail(
                f"{variable} is {given!r}: wanted is a number of minutes from 0 to {LONGEST_MINUTES:g}"
            )
        if self._task.check_mode:
            if seconds:
                run.say("", f"would wait {duration(seconds)}: {why}")
            return {}
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            run.say("", f"{why}: {duration(left)} left")
            time.sleep(min(left, max(SHORTEST, seconds / LINES)))
        return {}

"""Wait for a chosen time, and say now and then how much of it is left."""

from __future__ import annotations

import time
from typing import Any

from ..module_utils.runbook.report.words import duration
from ..plugin_utils.action import OnController
from ..plugin_utils.run import Run

LINES = 10  # over the time
SHORTEST = 5.0  # seconds between two of them


class ActionModule(OnController):
    """Runs on the controller, once, whatever hosts there are."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """``why`` stands in each line."""
        run, why = Run.of(variables), self._task.args["why"]
        seconds = 60 * float(self._task.args["minutes"])
        if self._task.check_mode:
            if seconds:
                run.say("", f"would wait {duration(seconds)}: {why}")
            return {}
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            run.say("", f"{why}: {duration(left)} left")
            time.sleep(min(left, max(SHORTEST, seconds / LINES)))
        return {}

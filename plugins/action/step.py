"""Say what one of the guide's six steps found, for every host of the run."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..module_utils.runbook.common.documents import file_name
from ..module_utils.runbook.verdict.steps import step
from ..plugin_utils.action import OnController
from ..plugin_utils.judged import every
from ..plugin_utils.run import FEW, Run


class ActionModule(OnController):
    """Runs on the controller, once, from the evidence that is there."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Print one line a host; ``found`` holds the step of each."""
        run, number = Run.of(variables), int(self._task.args["step"])
        found, few = {}, len(run.hosts()) <= FEW
        for host, seen in every(run):
            if seen is None:
                continue
            observed = run.load(f"observations/{file_name(host)}.json")
            told = found[host] = step(number, seen.facts, partial(getattr, seen, "verdict"), observed)
            if few or told["status"] in ("warn", "fail"):
                run.say(host, f"step {number}, {told['name']}: {told['status']}: {told['summary']}")
        return {"found": found}

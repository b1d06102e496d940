"""Say the cause, once the evidence is safe on the controller."""

from __future__ import annotations

from typing import Any, Optional

from ansible.plugins.action import ActionBase

from ..plugin_utils.judged import judged
from ..plugin_utils.run import Run


class ActionModule(ActionBase):
    """Runs on the controller for each app host."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Print one line; ``cause``, ``confidence`` and ``action`` are returned."""
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        run, host = Run.of(variables), variables["inventory_hostname"]
        seen = judged(run, host)
        result["changed"] = False
        if seen is None:
            result.update(cause="unknown", confidence="unknown", action="none")
            return result
        verdict = seen.verdict
        words = {
            "restart": "a restart helps",
            "start": "a start helps",
            "none": "no restart",
            "open": "whether a restart helps is open",
        }
        run.say(
            host,
            f"{verdict.cause}, {verdict.confidence}: {verdict.title}. {words[verdict.action].capitalize()}: {verdict.why_action}",
        )
        result.update(cause=verdict.cause, confidence=verdict.confidence, action=verdict.action)
        return result

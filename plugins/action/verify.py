"""Say whether a host is verified, and fail it where it is not."""

from __future__ import annotations

from typing import Any

from ..module_utils.runbook.report.verification import verification
from ..module_utils.runbook.verdict.facts import Facts
from ..plugin_utils.action import OnController
from ..plugin_utils.judged import judged
from ..plugin_utils.run import Run


class ActionModule(OnController):
    """Runs on the controller for each app host, from the evidence that was read."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Fails the host, in words, when the login or the pool is not as it should be."""
        run, host = Run.of(variables), variables["inventory_hostname"]
        seen = judged(run, host)
        well, words = verification(Facts(seen.host if seen else None, seen.database if seen else None))
        run.say(host, f"{'verified' if well else 'NOT VERIFIED'}: {words}")
        return {"failed": not well, "msg": words}

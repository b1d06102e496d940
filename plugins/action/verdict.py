"""Say the cause, once the evidence is safe on the controller."""

from __future__ import annotations

from typing import Any, Optional

from ansible.plugins.action import ActionBase

from ..module_utils.runbook.common.documents import file_name
from ..plugin_utils.judged import decision, every
from ..plugin_utils.run import Run

WORDS = {
    "restart": "A restart helps",
    "start": "A start helps",
    "none": "No restart",
    "open": "Whether a restart helps is open",
}


class ActionModule(ActionBase):
    """Runs on the controller, once, over every app host."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Print a line for each host; the fact ``runbook_run.acting``: the hosts where something may be done.

        For all others it is noted here that nothing is done, and why.
        """
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        run, acting = Run.of(variables), []
        for host, seen in every(run):
            if seen is None:
                continue
            verdict = seen.verdict
            words = f"{verdict.cause}, {verdict.confidence}: {verdict.title}"
            run.say(host, f"{words}. {WORDS[verdict.action]}: {verdict.why_action}")
            restart = variables["hostvars"][host].get("diagnose_restart", "auto")
            if verdict.action == "none" or restart == "never":
                run.note(f"actions/{file_name(host)}.json", decision(seen, verdict.action, restart))
            else:
                acting.append(host)
        result.update(changed=False, ansible_facts=run.facts(acting=acting))
        return result

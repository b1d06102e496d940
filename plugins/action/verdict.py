"""Say the cause, once the evidence is safe on the controller."""

from __future__ import annotations

from typing import Any

from ..module_utils.runbook.common.documents import file_name
from ..plugin_utils.action import OnController
from ..plugin_utils.judged import decision, every
from ..plugin_utils.run import Run

WORDS = {
    "restart": "A restart helps",
    "start": "A start helps",
    "none": "No restart",
    "open": "Whether a restart helps is open",
}


class ActionModule(OnController):
    """Runs on the controller, once, over every app host."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Print a line for each host; the fact ``runbook_run.acting``: the hosts where something may be done.

        For all others it is noted here that nothing is done, and why.
        """
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
        return {"ansible_facts": run.facts(acting=acting)}

"""Plan or bring into use one host's configuration, and say what happens while it does."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure

from ..module_utils.runbook.common.documents import file_name
from ..module_utils.runbook.report.rollout import planned, seconds_left
from ..plugin_utils.action import Action, no_answer
from ..plugin_utils.run import Run, who

MODULE = "pool.runbook.configuration"


class ActionModule(Action):
    """Adds who and in which run to the module's request; the run's notes are what the record is made of."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The result of the module; ``act`` and ``problems`` of a plan, ``result`` and ``healthy`` of ``apply``."""
        run, host = Run.begun(variables), variables["inventory_hostname"]
        operation = self._task.args["operation"]
        request = {**self._task.args["request"], "operation": operation, "who": who(), "run_id": run.id}
        hosts = variables["ansible_play_hosts_all"]
        place = f"host {hosts.index(host) + 1} of {len(hosts)}"
        if operation == "apply":
            run.say(host, f"{place} begins")
            if run.load("begun.json") is None:
                run.note("begun.json", {"at": time.time()})
        try:
            answer = self._execute_module(module_name=MODULE, module_args=request, task_vars=variables)
        except AnsibleConnectionFailure as error:
            answer = {
                "msg": f"the host was lost: {error}; it finishes or undoes by itself, ask with the next run"
            }
        told = answer.get("told")
        if not told:
            words = no_answer(answer)
            told = {"result": "lost", "why": words, "healthy": False, "problems": [words]}
            if operation in ("out", "back"):
                return {"failed": True, "msg": words}
        run.note(f"{operation}/{file_name(host)}.json", {"host": host, **told})
        if operation == "plan":
            for words in (*told["problems"], *(planned(told) if "act" in told else ())):
                run.say(host, words)
        elif operation == "apply":
            run.say(host, self._progress(run, place, told))
        changes = {key: answer[key] for key in ("changed", "diff") if key in answer}
        return {**changes, "told": told, "ansible_facts": run.facts()}

    @staticmethod
    def _progress(run: Run, place: str, told: dict[str, Any]) -> str:
        wanted = sum(bool(plan.get("act")) for plan in run.notes("plan").values())
        began = (run.load("begun.json") or {}).get("at", time.time())
        left = seconds_left(time.time() - began, len(run.notes("apply")), wanted)
        words = f"{place} {told['result']} in {told.get('seconds', 0):.1f} s, about {left:.0f} s left"
        return words if told["result"] in ("done", "unchanged") else f"{words}: {told['why']}"

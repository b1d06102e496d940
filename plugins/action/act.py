"""Start or restart an app, if its verdict asks for it and every precondition holds."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsiblePromptInterrupt, AnsiblePromptNoninteractive

from ..module_utils.runbook.common.documents import file_name
from ..module_utils.runbook.verdict.facts import Facts
from ..plugin_utils.action import Action, given, no_answer
from ..plugin_utils.judged import Judged, decision, judged
from ..plugin_utils.run import Run, who

MODULE = "pool.runbook.service"
# Arguments that are this plugin's; all others are the module's too.
OWN = ("restart", "approve", "cause_open", "restart_command", "start_command")


class ActionModule(Action):
    """Decides on the controller; only what is really to be done goes to the host, as one module."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Act or say why not; the result is a note of the run that the report takes up."""
        run, host = Run.of(variables), variables["inventory_hostname"]
        seen = judged(run, host)
        if seen is None:
            return {}
        decided = action = self._decide(run, host, seen)
        if decided["result"] == "go":
            action = self._go(run, host, decided, variables)
        run.note(f"actions/{file_name(host)}.json", action)
        changed = decided["result"] == "go" and action["result"] in ("done", "failed")
        return {"changed": changed, "action": {key: action[key] for key in ("action", "result", "why")}}

    def _decide(self, run: Run, host: str, seen: Judged) -> dict[str, Any]:
        """``go``, or what the report will say instead."""
        verdict, facts, arguments = seen.verdict, seen.facts, self._task.args
        wanted = verdict.action
        if wanted == "open" and arguments["cause_open"] == "restart" and facts.login_fails and facts.new_ok:
            wanted = "restart"
        action = decision(seen, wanted, arguments["restart"])
        if action["result"] != "go":
            return action
        refusal = self._refusal(run, facts, action)
        if refusal:
            return {**action, "result": "refused", "why": refusal}
        if self._task.check_mode:
            return {**action, "result": "would", "why": f"{verdict.why_action}; --check changes nothing"}
        if arguments["restart"] == "ask":
            return self._ask(run, host, {**action, "result": "refused"})
        return action

    def _refusal(self, run: Run, facts: Facts, action: dict[str, Any]) -> str:
        """The first precondition that does not hold, in words; empty when all do."""
        arguments = self._task.args
        if facts.login_will_fail is not True:
            return "it was not seen that the login fails"
        if not arguments.get("service") and not arguments.get(f"{action['action']}_command"):
            return f"neither diagnose_service nor diagnose_{action['action']}_command names what to {action['action']}"
        # The slots that are missing for a new connection may be those that this very app holds.
        if facts.new_ok is not True and action["cause"] != "connection_slots_full":
            return f"a new connection with the configuration on disk was not seen to work ({facts.reason('new_connection') or 'it fails'})"
        if facts.service.get("masked") is True:
            return f"the unit is masked: {facts.service.get('why')}"
        for other, done in run.notes("actions").items():
            tried = done["result"] in ("done", "failed") and done["action"] == action["action"]
            if tried and done["cause"] == action["cause"] and not (done["login"] or {}).get("ok"):
                return f"a {action['action']} for the same cause did not help on {other}"
        return ""

    def _ask(self, run: Run, host: str, action: dict[str, Any]) -> dict[str, Any]:
        """``go`` when a person approves the plan, by its hash or at the terminal."""
        arguments = self._task.args
        command = arguments.get("service") or arguments[f"{action['action']}_command"]
        told = {key: action[key] for key in ("action", "cause", "before")}
        plan = {"host": host, "what": command, **told}
        digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]
        pids = " ".join(str(p["pid"]) for p in action["before"]) or "none"
        run.say(host, f"plan {digest}: {action['action']} {command} (pid {pids}) for {action['cause']}")
        if arguments.get("approve"):
            if arguments["approve"] == digest:
                return {**action, "result": "go"}
            return {**action, "why": f"diagnose_approve is {arguments['approve']}, and the plan is {digest}"}
        try:  # asked by way of the main process: this one has no terminal
            answer = run.display.prompt_until(f"      {action['action']} {host}? yes or no: ", seconds=300)
        except AnsiblePromptNoninteractive:
            words = f"diagnose_restart is ask; to approve this plan: -e diagnose_approve={digest}"
            return {**action, "why": words}
        except AnsiblePromptInterrupt:
            answer = b""
        if (answer or b"").decode(errors="replace").strip().lower() in ("y", "yes"):
            return {**action, "result": "go"}
        return {**action, "why": "the person at the terminal did not say yes"}

    def _go(self, run: Run, host: str, action: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        arguments = self._task.args
        name = f"evidence/{file_name(host)}.json"
        digest = run.digest(name)  # raises if it is not on this machine: nothing is touched before that
        run.say(host, f"evidence is safe here (sha256 {digest[:12]}); {action['action']} begins")
        wanted = {key: value for key, value in given(arguments).items() if key not in OWN}
        if "service" not in wanted:
            wanted["command"] = arguments[f"{action['action']}_command"]
        wanted.update({key: action[key] for key in ("action", "before", "cause")}, who=who(), run_id=run.id)
        began = time.time()
        try:
            answer = self._execute_module(module_name=MODULE, module_args=wanted, task_vars=variables)
        except AnsibleConnectionFailure as error:
            answer = {"msg": f"the host was lost while it was asked to {action['action']}: {error}"}
        told = answer.get("act")
        if not isinstance(told, dict):
            told = {"result": "failed", "why": no_answer(answer), "after": [], "login": None}
            told["seconds"] = round(time.time() - began, 3)
        action = {**action, **{key: told[key] for key in ("result", "why", "after", "seconds", "login")}}
        pids = [" ".join(str(p["pid"]) for p in action[key]) or "none" for key in ("before", "after")]
        run.say(host, f"{action['action']} {action['result']}: pid {pids[0]} -> {pids[1]}, {action['why']}")
        line = {key: action[key] for key in ("action", "cause", "result", "why")}
        run.append("audit.log", {"host": host, "evidence_sha256": digest, **line})
        return action

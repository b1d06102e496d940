"""The fleet's part of a rollout: may it begin, and what is its record?"""

from __future__ import annotations

import os
from typing import Any, Optional

from ansible.module_utils.parsing.convert_bool import boolean

from ..module_utils.runbook.common.documents import file_name
from ..module_utils.runbook.report.rollout import end, over_budget, results
from ..module_utils.runbook.report.words import plain
from ..plugin_utils.action import OnController
from ..plugin_utils.run import Run
from .preflight import connections_of, number, slots_of


class ActionModule(OnController):
    """Runs on the controller, once."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """``operation: decide`` fails with every reason against it; ``finish`` writes the record, and fails with
        ``failed`` if that is given; ``say`` prints ``words``, and notes the ``setting`` that is about to change."""
        run = Run.begun(variables)
        result: dict[str, Any] = {"ansible_facts": run.facts()}
        operation = self._task.args["operation"]
        if operation == "say":
            host, setting = variables["inventory_hostname"], self._task.args.get("setting")
            run.say(host, self._task.args["words"])
            if setting and not self._task.check_mode:
                run.note(f"settings/{file_name(host)}.{setting['name']}.json", {"host": host, **setting})
        elif operation == "decide":
            plans = run.notes("plan")
            problems = [f"{p['host']}: {words}" for p in plans.values() for words in p["problems"]]
            plans.update(_not_planned(variables, plans))
            problems += over_budget(plans, _slots(variables, plans))
            if problems:
                result.update(failed=True, msg=f"refused, nothing was touched: {'; '.join(problems)}")
        else:
            failed = self._task.args.get("failed")
            self._record(run, failed)
            if failed:
                result.update(failed=True, msg=failed)
        return result

    def _record(self, run: Run, failed: Optional[str]) -> None:
        """One line for each rollout that touched a host, whoever of several failed hosts comes first."""
        done, settings = run.notes("apply"), list(run.notes("settings").values())
        hosts = results(run.notes("plan"), done, set(run.notes("out")) - set(run.notes("back")))
        try:
            os.close(os.open(run.path / "recorded", os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return
        for words in end(hosts, failed):
            run.display.display(plain(words))
        if done or settings:
            told = {"why": failed or "", "result": "stopped" if failed else "done", "hosts": hosts}
            told["settings"] = [
                {key: row[key] for key in ("host", "name", "has", "wanted")} for row in settings
            ]
            run.append("rollouts.jsonl", told)


def _slots(variables: dict[str, Any], plans: dict[str, Any]) -> dict[str, int]:
    """Server, as plans name it → what it will give; of those that this run may restart for settings of ours."""
    servers, found = variables["groups"].get("postgres", []), {}
    named = {plan["server"] for plan in plans.values() if "server" in plan}
    for host in servers:
        server = variables["hostvars"][host]
        ours = server.get("__postgres_owned", {}).get("stat", {}).get("exists", False)
        if ours and boolean(server.get("postgres_restart", False)):
            port = number(server, "postgres_port")
            called = {f"{name}:{port}" for name in (host, server.get("ansible_host"))}
            only = len(servers) == len(named) == 1  # then it may be called anything
            found.update(dict.fromkeys(named if only else named & called, slots_of(server)))
    return found


def _not_planned(variables: dict[str, Any], plans: dict[str, Any]) -> dict[str, Any]:
    """What the hosts that this run was not given (--limit) may open, as their plans would say it."""
    found = {}
    for host in set(variables["groups"].get("app", [])) - {plan["host"] for plan in plans.values()}:
        given = variables["hostvars"][host]
        found[host] = {
            "server": f"{given.get('postgres_host')}:{number(given, 'postgres_port')}",
            "connections": connections_of(given),
            "slots": None,
            "others": None,
        }
    return found

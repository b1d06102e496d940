"""Refuse, before anything is read, what would end green on nothing; then begin the run."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Optional

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..plugin_utils.run import Run

PREFIXES = ("diagnose_", "app_", "postgres_", "rollout_")
ROLES = Path(__file__).resolve().parents[2] / "roles"


def known_variables() -> set[str]:
    """Every variable that the argument specs of this collection's roles know."""
    names: set[str] = set()
    for path in ROLES.glob("*/meta/argument_specs.yml"):
        for spec in yaml.safe_load(path.read_text())["argument_specs"].values():
            names |= set(spec.get("options", {}))
    return names


def unknown_variables(names: set[str], known: set[str]) -> list[str]:
    """A line for each variable with one of our prefixes that no spec knows, the nearest name suggested."""
    lines = []
    for name in sorted(n for n in names - known if n.startswith(PREFIXES)):
        near = difflib.get_close_matches(name, known, n=1)
        lines.append(
            f"{name} is not a variable of this collection" + (f"; did you mean {near[0]}?" if near else "")
        )
    return lines


class ActionModule(ActionBase):
    """Runs on the controller, once, whatever hosts the inventory has."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Begin a run; its result sets ``runbook_run``."""
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        groups, hostvars = variables.get("groups", {}), variables.get("hostvars", {})
        apps = groups.get("app", [])
        if not apps:
            raise AnsibleActionFail(
                "the inventory has no host in group app, so nothing would be diagnosed. Copy inventory.example to"
                " inventory.yml and name your app's host there, or give -i INVENTORY"
            )
        names = set(variables)
        for host in {*apps, *groups.get("postgres", [])}:
            names |= set(hostvars[host])
        wrong = unknown_variables(names, known_variables())
        if wrong:
            raise AnsibleActionFail("; ".join(wrong))
        run = Run.create(self._task.args["reports"])
        run.say("", f"run {run.id}, reports go to {self._task.args['reports']}/latest")
        result.update(changed=False, ansible_facts=run.facts())
        return result

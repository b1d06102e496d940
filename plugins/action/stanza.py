"""Print the inventory stanza of what was discovered, for all hosts at once."""

from __future__ import annotations

from typing import Any, Optional

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils.runbook.report.stanza import by_hand, stanza


class ActionModule(ActionBase):
    """Runs on the controller, once; fails where a host was not reached, for it is not in the stanza."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """``stanza`` is what was printed, ``by_hand`` the number of lines in it that are left to a person."""
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        groups, found, missing = variables["groups"], {}, []
        for host in sorted(set(groups["all"]) - set(groups.get("postgres", []))):
            told = variables["hostvars"][host].get("__discover_found") or {}
            if isinstance(told.get("services"), list):
                found[host] = told["services"]
            else:
                missing.append(host)
        text = stanza(found)
        Display().display(f"\n{text}")
        result.update(changed=False, stanza=text, by_hand=by_hand(text))
        if missing:
            result.update(failed=True, msg=f"not reached, and not in the stanza: {', '.join(missing)}")
        return result

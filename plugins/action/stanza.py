"""Print the inventory stanza of what was discovered, for all hosts at once."""

from __future__ import annotations

from typing import Any

from ansible import context
from ansible.utils.display import Display

from ..module_utils.runbook.report.stanza import by_hand, stanza
from ..plugin_utils.action import OnController


class ActionModule(OnController):
    """Runs on the controller, once; fails where a host was not reached, for it is not in the stanza."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """``stanza`` is what was printed, ``by_hand`` the number of lines in it that are left to a person."""
        groups, found, missing = variables["groups"], {}, []
        here = set(groups["all"]) & set(variables["ansible_play_hosts_all"])  # what --limit leaves
        for host in sorted(here - set(groups.get("postgres", []))):
            told = variables["hostvars"][host].get("__discover_found") or {}
            if isinstance(told.get("services"), list):
                found[host] = told["services"]
            else:
                missing.append(host)
        words = context.CLIARGS.get("connection")  # -c, which no variable tells
        local = [h for h in found if variables["hostvars"][h].get("ansible_connection", words) == "local"]
        text = stanza(found, local)
        Display().display(f"\n{text}")
        result = {"stanza": text, "by_hand": by_hand(text)}
        if missing:
            result.update(failed=True, msg=f"not reached, and not in the stanza: {', '.join(missing)}")
        return result

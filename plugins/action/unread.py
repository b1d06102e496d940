"""Say which databases nobody could read yet, and from which host each can be."""

from __future__ import annotations

from typing import Any

from ..module_utils.runbook.verdict.facts import Facts
from ..plugin_utils.action import OnController
from ..plugin_utils.run import Run


class ActionModule(OnController):
    """Runs on the controller, once, after every host was read."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The fact ``runbook_run.readers``: for each database without evidence the first app host that
        reached it; none where no host did."""
        run = Run.of(variables)
        readers: dict[str, str] = {}
        read: dict[str, bool] = {}
        for host, label in run.hosts().items():
            if label not in read:
                connection = Facts(None, run.database_of(label)).connection
                read[label] = bool(connection and connection.get("ok"))
            if not read[label] and label not in readers:
                new = Facts(run.evidence_of(host)).new
                if new and new.get("ok"):
                    readers[label] = host
        return {"ansible_facts": run.facts(readers=sorted(readers.values()))}

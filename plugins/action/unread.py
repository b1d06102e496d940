"""Say which databases nobody could read yet, and from which host each can be."""

from __future__ import annotations

from typing import Any, Optional

from ansible.plugins.action import ActionBase

from ..module_utils.runbook.common.documents import file_name
from ..module_utils.runbook.verdict.facts import Facts
from ..plugin_utils.run import Run


class ActionModule(ActionBase):
    """Runs on the controller, once, after every host was read."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """The fact ``runbook_run.readers``: for each database without evidence the first app host that
        reached it; none where no host did."""
        result = super().run(tmp, task_vars)
        run = Run.of(task_vars or {})
        readers: dict[str, str] = {}
        read: dict[str, bool] = {}
        for host, label in run.hosts().items():
            if label not in read:
                connection = Facts(None, run.database_of(label)).connection
                read[label] = bool(connection and connection.get("ok"))
            if not read[label] and label not in readers:
                new = Facts(run.load(f"evidence/{file_name(host)}.json")).new
                if new and new.get("ok"):
                    readers[label] = host
        result.update(changed=False, ansible_facts=run.facts(readers=sorted(readers.values())))
        return result

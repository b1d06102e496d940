"""Say which databases are still to be read, and from which host each can be."""

from __future__ import annotations

from typing import Any

from ..module_utils.runbook.verdict.conditions.login import login_hangs
from ..module_utils.runbook.verdict.facts import Facts
from ..module_utils.runbook.verdict.judge import UNKNOWN, judge
from ..plugin_utils.action import OnController
from ..plugin_utils.run import Run


class ActionModule(OnController):
    """Runs on the controller, once, after every host was read."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The fact ``runbook_run.readers``: for each database without evidence the first app host that reached
        it, none where no host did; and who has read a database before a login hung that nothing explains.

        On a quiet app that login is the first to wait for whatever it waits for, and it still does.
        """
        run = Run.of(variables)
        readers: dict[str, str] = {}
        for host, label in run.hosts().items():
            if label in readers:
                continue
            evidence, database = run.evidence_of(host), run.database_of(label)
            facts = Facts(evidence, database)
            if not run.was_read(label):
                if facts.new and facts.new.get("ok"):
                    readers[label] = host
            elif login_hangs(facts).value and judge(evidence, database).cause == UNKNOWN:
                readers[label] = str((database or {}).get("collected_from"))
        return {"ansible_facts": run.facts(readers=sorted(readers.values()))}

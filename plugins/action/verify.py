"""The guide's verification: the login works, and the pool is used to less than 80 %."""

from __future__ import annotations

from typing import Any

from ..module_utils.runbook.report.build import login_of
from ..module_utils.runbook.report.words import answers
from ..module_utils.runbook.verdict.facts import Facts, mapping, whole
from ..plugin_utils.action import OnController
from ..plugin_utils.judged import judged
from ..plugin_utils.run import Run

HEALTHY = 0.8  # the guide: "healthy ratio (< 80 % utilization)"


class ActionModule(OnController):
    """Runs on the controller for each app host, from the evidence that was read."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Fails the host, in words, when one of the two does not hold."""
        run, host = Run.of(variables), variables["inventory_hostname"]
        seen = judged(run, host)
        facts = Facts(seen.host if seen else None, seen.database if seen else None)
        logins = [login_of(facts, 0), login_of(facts, -1)]
        login = ", then ".join(dict.fromkeys(answers(one) for one in logins if one)) or facts.reason("login")
        wrong = [] if all(one and one["ok"] for one in logins) else [f"the login: {login}"]
        for status in facts.pool or []:
            counts = mapping(status.get("count"))
            if whole(counts.get("used")) >= HEALTHY * whole(counts.get("maximum")):
                wrong.append(
                    f"pid {status.get('pid')}: {counts.get('used')} of {counts.get('maximum')} connections used"
                )
        pools = (
            f"{facts.pool_count('used')} of {facts.pool_count('maximum')} used in {len(facts.pool)} pools"
            if facts.pool
            else ""
        )
        words = "; ".join(wrong) or f"login {login}; {pools or 'no status socket to ask'}"
        run.say(host, f"{'NOT VERIFIED' if wrong else 'verified'}: {words}")
        return {"failed": bool(wrong), "msg": words}

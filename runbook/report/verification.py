"""The guide's verification: the login works, and the pool is used to less than 80 %."""

from __future__ import annotations

from typing import Any

from ..verdict.facts import Facts, mapping, whole
from .build import login_of
from .words import answers

HEALTHY = 0.8  # the guide: "healthy ratio (< 80 % utilization)"


def verification(facts: Facts) -> tuple[bool, str]:
    """Whether both hold, and in words what does not, or what was seen. A pool that was not read is no healthy one;
    an app without status sockets has none to ask."""
    logins = [login_of(facts, 0), login_of(facts, -1)]
    login = ", then ".join(dict.fromkeys(answers(one) for one in logins if one)) or facts.reason("login")
    wrong = [] if all(one and one["ok"] for one in logins) else [f"the login: {login}"]
    if facts.pool is None and not facts.no_status_socket:
        wrong.append(f"the pool: {facts.reason('pool') or 'not every process said how its pool is'}")
    wrong += [_full(status) for status in facts.pool or [] if _share(status) >= HEALTHY]
    pools = (
        f"{facts.pool_count('used')} of {facts.pool_count('maximum')} used in {len(facts.pool)} pools"
        if facts.pool
        else "no status socket to ask"
    )
    return not wrong, "; ".join(wrong) or f"login {login}; {pools}"


def _share(status: dict[str, Any]) -> float:
    counts = mapping(status.get("count"))
    return whole(counts.get("used")) / max(1, whole(counts.get("maximum")))


def _full(status: dict[str, Any]) -> str:
    counts = mapping(status.get("count"))
    return f"pid {status.get('pid')}: {counts.get('used')} of {counts.get('maximum')} connections used"

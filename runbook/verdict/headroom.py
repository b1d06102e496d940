"""Do the pools of a whole fleet fit the server when their maximum is raised? Pure."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

from .facts import mapping, rows, text, whole


class Wanted(NamedTuple):
    """One process's pool: how many connections it has, may have and shall be allowed to have."""

    host: str
    user: str
    open: int
    maximum: int
    wanted: int


def too_many(pools: list[Wanted], limits: dict[str, Any]) -> Optional[str]:
    """Why these maxima do not fit, with the sum; None when they fit.

    ``limits``: the view of that name of the database evidence. Every pool may grow to its maximum, so what
    counts is what all of them may still open, against what the server, the database and the role still give.
    """
    growth = sum(max(0, pool.wanted - pool.open) for pool in pools)
    room, why = _room(limits, {pool.user for pool in pools})
    if growth <= room:
        return None
    raised = [pool for pool in pools if pool.wanted > pool.maximum]
    others = growth - sum(max(0, pool.wanted - pool.open) for pool in raised)
    by_host: dict[str, list[str]] = {}
    for pool in pools:
        by_host.setdefault(pool.host, []).append(f"{pool.wanted} - {pool.open} open")
    sums = "; ".join(f"{host}: {' + '.join(parts)}" for host, parts in sorted(by_host.items()))
    fits = (room - others + sum(pool.open for pool in raised)) // max(1, len(raised))
    most = (
        f"at most {fits} each would fit"
        if raised and fits > max(p.maximum for p in raised)
        else "no more fit"
    )
    return f"the pools could open {growth} more connections ({sums}), and there is room for {room} ({why}); {most}"


def _room(limits: dict[str, Any], users: set[str]) -> tuple[int, str]:
    """(connections that may still be opened, the sum that says so): the smallest of what limits them."""
    reserved = whole(limits.get("superuser_reserved_connections")) + whole(limits.get("reserved_connections"))
    slots, used = whole(limits.get("max_connections")), whole(limits.get("used"))
    found = [(slots - reserved - used, f"max_connections {slots} - {reserved} reserved - {used} used")]
    for row in rows(limits.get("role_limits")):
        limit, role = row.get("limit"), text(row.get("role"))
        if role in users and isinstance(limit, int) and limit >= 0:
            own = sum(whole(r.get("count")) for r in rows(limits.get("by_role")) if r.get("role") == role)
            found.append((limit - own, f"the limit of role {role}, {limit} - {own} used"))
    database = limits.get("database_limit")
    if isinstance(database, int) and database >= 0:
        names = {text(r.get("database")) for r in rows(limits.get("by_role")) if r.get("role") in users}
        own = sum(whole(r.get("count")) for r in rows(limits.get("by_role")) if r.get("database") in names)
        found.append((database - own, f"the limit of the database, {database} - {own} used"))
    room, why = min(found)
    return max(0, room), why


def pool_of(host: str, status: Any, wanted: int) -> Wanted:
    """A pool as its status document tells it; ``wanted`` 0 leaves its maximum."""
    told, counts = mapping(status), mapping(mapping(status).get("count"))
    maximum = whole(mapping(told.get("config")).get("max_connections"))
    is_open = whole(counts.get("used")) + whole(counts.get("idle"))
    return Wanted(host, text(told.get("user")), is_open, maximum, wanted or maximum)

"""The next step where PostgreSQL's side decides: whose session it is, who has the slots, where a setting was made.

Concrete, so that a person can act on it at once, and guarded, so that it hits nothing else.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from .conditions import pool
from .facts import OWN_NAME, Facts, mapping, number, rows, text, whole

# Guarded: a pid may have been given to another session since the evidence was read.
_END_SESSION = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {pid} AND backend_start = '{start}'"
)
# What pg_settings calls the place where a value of ALTER ROLE or ALTER DATABASE was set: for whom, how to undo it.
_PLACES = {
    "database user": ("this role in this database", "ALTER ROLE {user} IN DATABASE {database} RESET {name}"),
    "user": ("this role", "ALTER ROLE {user} RESET {name}"),
    "database": ("this database", "ALTER DATABASE {database} RESET {name}"),
    "global": ("all roles", "ALTER ROLE ALL RESET {name}"),
}


# -- sessions ----------------------------------------------------------------------------------------------


def who(facts: Facts, session: dict[str, Any]) -> str:
    """Who a session is, what it does and for how long, and its last statement, in one line."""
    age = facts.server_age(session.get("xact_start") or session.get("state_change"))
    since = f" for {age:.0f} s" if age is not None else ""
    name = text(session.get("application_name")) or "no application_name"
    where = text(session.get("client_address")) or "local"
    query = f": {text(session.get('query'))[:80]}" if session.get("query") else ""
    return f"{text(session.get('role')) or '?'} ({name}, {where}), {text(session.get('state'))}{since}{query}"


def end(session: dict[str, Any]) -> str:
    """The statement that ends this session and no other; its open transaction is rolled back."""
    return _END_SESSION.format(pid=whole(session.get("pid")), start=text(session.get("backend_start")))


# -- slots -------------------------------------------------------------------------------------------------


def at_the_limit(facts: Facts) -> list[dict[str, Any]]:
    """The sessions that count against the limit that was met: the role's, the database's or the server's.

    Each with role, application_name, client_address and count, the greatest first; empty when not read.
    """
    said = text(facts.new_error.get("message"))
    role, database = facts.app_role
    found = rows(mapping(facts.limits).get("by_role"))
    # Not PostgreSQL 16's "reserved for roles with …", which is said of the whole server.
    if "connections for role" in said:
        found = [row for row in found if row.get("role") == role]
    elif "connections for database" in said:
        found = [row for row in found if row.get("database") == database]
    return sorted(found, key=lambda row: -whole(row.get("count")))


def if_we_hold_the_slots(facts: Facts) -> Optional[bool]:
    """A restart frees the slots only where the app itself holds most of them, for nothing."""
    all_of_them = sum(whole(row.get("count")) for row in at_the_limit(facts))
    ours = facts.backends if facts.limits is not None else facts.held
    if ours is None:
        return None
    if facts.limits is None:
        return None if ours else False
    return pool.holders_are_done(facts).value if 2 * len(ours) > all_of_them else False


def next_slots(facts: Facts) -> list[str]:
    """Who has them, what these sessions do, and how to free one."""
    said = f"the server says: {text(facts.new_error.get('message')) or text(facts.new_error.get('text'))}"
    eaters = at_the_limit(facts)
    if not eaters:
        why = facts.reason("limits")
        return [
            f"{said}; who has them could not be read ({why})",
            "ask a superuser, for whom slots are reserved: SELECT usename, application_name, client_addr, state,"
            " count(*) FROM pg_stat_activity GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC",
            "for the next time: reserved_connections = 2, GRANT pg_use_reserved_connections to the diagnosis's role",
        ]
    named = [
        f"{whole(row.get('count'))} by {text(row.get('role')) or '?'}"
        f" ({text(row.get('application_name')) or 'no application_name'},"
        f" {text(row.get('client_address')) or 'local'})"
        for row in eaters[:3]
    ]
    steps = [f"{said}; who has them: {'; '.join(named)}"]
    theirs = _sessions_of(facts, eaters[0])
    oldest = min(theirs, key=lambda s: text(s.get("state_change")) or "~", default=None)
    if oldest:
        states = [text(session.get("state")) for session in theirs]
        told = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        steps.append(
            f"the first of these: {told}; the longest is pid {oldest.get('pid')}, {who(facts, oldest)}"
        )
        steps.append(f"ask their owner; to free that one: {end(oldest)}")
    return steps


def _sessions_of(facts: Facts, row: dict[str, Any]) -> list[dict[str, Any]]:
    keys = ("role", "application_name", "database", "client_address")
    return [
        session
        for session in facts.sessions
        if all(session.get(key) == row.get(key) for key in keys)
        and session.get("application_name") != OWN_NAME
    ]


def next_bouncer(facts: Facts) -> list[str]:
    """Who keeps PgBouncer's server connections: the sessions of the app's role that do not idle."""
    busy = [session for session in facts.backends or [] if text(session.get("state")) not in ("", "idle")]
    busy.sort(key=lambda session: text(session.get("xact_start")) or "~")
    steps = [
        f"pid {whole(session.get('pid'))} keeps one of its server connections: {who(facts, session)}"
        for session in busy[:3]
    ]
    steps += [f"ask its owner; to end the oldest: {end(session)}" for session in busy[:1]]
    return [
        *steps,
        f"or raise default_pool_size of PgBouncer at {facts.target}, within the server's headroom",
    ]


# -- the network -------------------------------------------------------------------------------------------


def keepalive(facts: Facts) -> str:
    """What is live on the app's connections, in words; empty when not read."""
    options = rows(mapping(facts.sockets).get("options"))
    if not options:
        return ""
    if not all(row.get("keepalive") for row in options):
        return "keepalives are off on the app's connections"
    first = options[0]
    probes = ", ".join(
        f"{name} {whole(first.get(key))}"
        for name, key in (("keepalives_idle", "idle"), ("interval", "interval"), ("count", "count"))
    )
    limit = whole(first.get("user_timeout_ms"))
    return f"live on the app's connections: {probes}, tcp_user_timeout {limit} ms{'' if limit else ' (off)'}"


def next_cut(facts: Facts) -> list[str]:
    """After how long it was cut, what is live, and the cuts that are known."""
    cut = [row for row in facts.words or [] if row.get("kind") in ("fin", "rst")]
    idle = [age for age in (number(row.get("idle_seconds")) for row in cut) if age is not None]
    after = f"cut at the latest after {max(idle):.0f} s without traffic; " if idle else ""
    return [
        f"{after}{keepalive(facts) or 'see which keepalives are live'}",
        "set keepalives_idle below the cut: AWS NLB 350 s, Azure 4 min, Google VPC 10 min, firewalls 30 to 60 min",
    ]


def next_black_hole(facts: Facts) -> list[str]:
    """Which flows, what bounds their silence, and what to look for."""
    flows = ", ".join(facts.silent_flows[:3])
    return [
        f"find what dropped the state of these flows (firewall, NAT): {flows or facts.target}",
        f"{keepalive(facts) or 'see which keepalives are live'}; a query in flight is bounded by tcp_user_timeout alone",
    ]


# -- settings ----------------------------------------------------------------------------------------------


def setting(facts: Facts, name: str) -> str:
    """``name is 15min for ROLE in DATABASE, set for …; to undo it: …``, as it holds for the app; empty when not read."""
    row, (user, database) = facts.server_settings.get(name), facts.app_role
    if row is None:
        return ""
    unit = f" {text(row.get('unit'))}" if row.get("unit") and row.get("setting") != "0" else ""
    words = f"{name} is {text(row.get('setting'))}{unit}"
    source, file = text(row.get("source")), text(row.get("file"))
    if source in _PLACES:
        whom, undo = _PLACES[source]
        undo = undo.format(user=user, database=database, name=name)
        return f"{words} for {user} in {database}, set for {whom}; to undo it: {undo}"
    if file.endswith("postgresql.auto.conf"):
        return f"{words}, set by ALTER SYSTEM; to undo it: ALTER SYSTEM RESET {name}; SELECT pg_reload_conf()"
    where = f"{file}:{whole(row.get('line'))}" if file else f"source {source or 'unknown'}"
    return f"{words}, set in {where}"


def next_setting(name: str, cure: str) -> Callable[[Facts], list[str]]:
    """What the setting is for the app and where it was made, then the cure."""

    def steps(facts: Facts) -> list[str]:
        told = setting(facts, name)
        unread = f"find where {name} is set on {facts.target}, for the role, the database or the server"
        return [told or unread, cure]

    return steps

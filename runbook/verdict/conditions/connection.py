"""Conditions of view N: a new connection."""

from __future__ import annotations

from typing import Optional

from ..answers import Answer, count, decided, no, opposite, unread, yes
from ..facts import Facts, mapping, rows, text, whole


def _new(facts: Facts, question: str) -> Optional[Answer]:
    if facts.new is None or (facts.new.get("ok") is not True and not facts.new_error):
        return unread(facts, "new_connection", question)
    if facts.new_ok:
        return no("new_connection", _took(facts))
    if facts.new.get("ok") is True:
        return no("new_connection", f"{facts.target} answers a new connection and asks for credentials")
    return None


def _took(facts: Facts) -> str:
    return f"a new connection to {facts.target} took {facts.new_seconds * 1000:.0f} ms"


def _failed(facts: Facts, holds: bool) -> Answer:
    words = f"a new connection: {text(facts.new_error.get('text')) or 'failed'}"
    return decided(holds, "new_connection", words[:300])


def no_answer_to_a_new_connection(facts: Facts) -> Answer:
    """N: no answer to SYN, no route, or the name does not resolve."""
    kind = facts.new_error.get("kind")
    silent = kind == "timeout" and facts.new_phase in ("tcp", "resolve")
    return _new(facts, "whether the database's host answers") or _failed(
        facts, silent or kind in ("unresolved", "unreachable")
    )


def new_connection_refused(facts: Facts) -> Answer:
    """N: refused: the host answers, and nothing listens on the port."""
    return _new(facts, "whether a new connection is refused") or _failed(
        facts, facts.new_error.get("kind") == "refused"
    )


def refused_beyond_what_answers(facts: Facts) -> Answer:
    """N, D: what answers the app is a proxy or pooler that gives up, and behind it PostgreSQL's host refuses."""
    question = "whether PostgreSQL's host refuses connections behind what answers"
    answered = _new(facts, question)
    if answered:
        return answered
    kind, phase = facts.new_error.get("kind"), facts.new_phase
    gives_up = kind in ("closed", "reset") or facts.new_error.get("sqlstate") in ("08P01", "08006", "58000")
    if not gives_up and not (kind == "timeout" and phase == "query"):
        return _failed(facts, False)
    if facts.connection is None:
        return unread(facts, "connection", question)
    told = mapping(facts.connection.get("error"))
    words = f"{facts.target} answers; PostgreSQL itself: {text(told.get('text')) or 'answers'}"
    return decided(told.get("kind") == "refused", "connection", words)


def new_connection_hangs_in_query(facts: Facts) -> Answer:
    """N: the login at the server worked, and the first query waits: what a full PgBouncer does."""
    return _new(facts, "whether a first query waits") or _failed(
        facts, facts.new_error.get("kind") == "timeout" and facts.new_phase == "query"
    )


def pgbouncer_queues(facts: Facts) -> Answer:
    """N: SHOW POOLS of the PgBouncer in between shows waiting clients and no idle server connection."""
    hangs = new_connection_hangs_in_query(facts)
    if not hangs.value:
        return hangs
    if facts.bouncer is None:
        return no("new_connection", f"no PgBouncer answers at {facts.target}")
    if facts.bouncer.get("pools") is None:
        words = f"how many clients wait at PgBouncer: SHOW POOLS is not for this role ({text(facts.bouncer.get('refused'))})"
        return Answer(None, words, "new_connection")
    pools = rows(facts.bouncer.get("pools"))
    waiting, busy = (sum(whole(pool.get(name)) for pool in pools) for name in ("cl_waiting", "sv_active"))
    idle = sum(whole(pool.get("sv_idle")) + whole(pool.get("sv_used")) for pool in pools)
    longest = max((whole(pool.get("maxwait")) for pool in pools), default=0)
    words = (
        f"{count(waiting, 'client')} of PgBouncer wait, the first for {longest} s;"
        f" of its server connections {busy} are busy and {idle} idle"
    )
    return decided(waiting and not idle, "new_connection", words)


def new_connection_silent(facts: Facts) -> Answer:
    """N: TCP is accepted, then silence; or 57P03: starting up, shutting down, recovering."""
    answered = _new(facts, "whether the server answers after TCP was accepted")
    if answered:
        return answered
    if facts.bouncer is not None:
        return no("new_connection", f"PgBouncer at {facts.target} answers at its console")
    late = ("tls", "startup", "auth", "query")
    silent = facts.new_error.get("kind") == "timeout" and facts.new_phase in late
    return _failed(facts, silent or facts.new_error.get("sqlstate") == "57P03")


def no_slot_for_a_new_connection(facts: Facts) -> Answer:
    """N: 53300: no slot for the app's role; the message says whose limit it is."""
    return _new(facts, "whether a slot is free") or _failed(facts, facts.new_error.get("sqlstate") == "53300")


def new_connection_not_allowed(facts: Facts) -> Answer:
    """N: the app's own role and secret are not accepted (28P01, 28000, 3D000, TLS refused)."""
    answered = _new(facts, "whether the app's credentials are accepted")
    if answered:
        return answered
    if facts.new and facts.new.get("kind") == "knock" and facts.new_error.get("sqlstate") != "28000":
        return unread(
            facts, "new_connection", "whether the app's credentials are accepted (no right to read them)"
        )
    refused = facts.new_error.get("sqlstate") in ("28P01", "28000", "3D000", "42501")
    return _failed(facts, refused or facts.new_error.get("kind") in ("tls", "unsupported"))


def new_connection_works(facts: Facts) -> Answer:
    """N: a new connection works, with the settings on disk."""
    if facts.new_ok is None:
        return unread(facts, "new_connection", "whether a new connection works")
    return decided(True, "new_connection", _took(facts)) if facts.new_ok else _failed(facts, False)


def server_in_recovery(facts: Facts) -> Answer:
    """N: pg_is_in_recovery() where the app's connections lead to is true."""
    place, server = facts.node
    value = server.get("in_recovery")
    if not isinstance(value, bool):
        return unread(facts, "new_connection", f"whether {place} is a standby")
    words = f"{place} is {'a standby' if value else 'a primary'}"
    if value and place != facts.target and facts.new_server.get("in_recovery") is False:
        words += f", and a new connection to {facts.target} reaches a primary"
        if facts.kept_to_standby and not facts.login_fails:
            words += (
                f"; the app keeps {count(facts.kept_to_standby, 'connection')} to the standby after the probe"
            )
    return decided(value, "new_connection", words)


def server_read_only(facts: Facts) -> Answer:
    """N: new transactions are read only on a server that is not in recovery."""
    _, server = facts.node
    value, recovery = server.get("read_only"), server.get("in_recovery")
    if not isinstance(value, bool) or not isinstance(recovery, bool):
        return unread(facts, "new_connection", "whether transactions are read only")
    ways = {(True, False): "are read only by default", (True, True): "are read only: a standby"}
    words = f"transactions on {facts.target} {ways.get((value, recovery), 'may write')}"
    return decided(value and not recovery, "new_connection", words)


def server_is_primary(facts: Facts) -> Answer:
    """N: the server is not in recovery."""
    return opposite(server_in_recovery(facts))


def login_writes_and_fails(facts: Facts) -> Answer:
    """L: while the probe ran, a write was refused as read only (25006), and a new connection may not write."""
    if facts.new_server.get("read_only") is False:
        return no("new_connection", f"a new connection to {facts.target} may write")
    return _write_refused(facts)


def app_writes_and_fails(facts: Facts) -> Answer:
    """L: the app tried to write and was refused (25006) while the probe ran; or a moment ago, where the login works,
    which need not write."""
    age = facts.logged_lately("read_only")
    if facts.login_failed is False and age is not None:
        return yes("log", f"a write was refused as read only {age:.0f} s ago")
    return _write_refused(facts)


def _write_refused(facts: Facts) -> Answer:
    lines = facts.logged_now("read_only")
    if lines is None:
        return unread(facts, "log", "whether a write was refused during the probe")
    return decided(lines, "log", f"{count(lines, 'write')} refused as read only during the probe")

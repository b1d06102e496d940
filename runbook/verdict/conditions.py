"""The named conditions of which causes are made: each true, false or unread, with its reason in words.

A condition asks the facts one question. It answers false as soon as *any* view disproves it, true only
when what decides was read, and unread otherwise; so a missing view can hide a cause, never invent one.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Optional

from ..common.clock import seconds_of
from . import doing
from .facts import (
    EXHAUSTED_SECONDS,
    IDLE_SECONDS,
    MONITOR_SECONDS,
    OLD_SECONDS,
    Facts,
    mapping,
    number,
    rows,
    text,
    whole,
)


class Answer(NamedTuple):
    """The value of a condition (None: unread), in words, and the view that says so or is missing."""

    value: Optional[bool]
    text: str
    view: str


Condition = Callable[[Facts], Answer]


def yes(view: str, words: str) -> Answer:
    """The condition holds."""
    return Answer(True, words, view)


def no(view: str, words: str) -> Answer:
    """The condition does not hold."""
    return Answer(False, words, view)


def unread(facts: Facts, view: str, question: str) -> Answer:
    """The condition is open: ``question`` is what the view would have answered."""
    reason = facts.reason(view)
    return Answer(None, f"{question} ({reason})" if reason else question, view)


def any_of(*conditions: Condition) -> Condition:
    """True if one is, false if all are, unread otherwise: Kleene's or."""

    def either(facts: Facts) -> Answer:
        answers = [condition(facts) for condition in conditions]
        for value in (True, None):
            for answer in answers:
                if answer.value is value:
                    return answer
        return answers[0]

    either.__name__ = "_or_".join(condition.__name__ for condition in conditions)
    either.__doc__ = (
        "; or ".join((condition.__doc__ or "").strip().rstrip(".") for condition in conditions) + "."
    )
    return either


def all_of(*conditions: Condition) -> Condition:
    """True if all are, false if one is, unread otherwise: Kleene's and. Its words are those that decide."""

    def each(facts: Facts) -> Answer:
        answers = [condition(facts) for condition in conditions]
        for value in (False, None):
            for answer in answers:
                if answer.value is value:
                    return answer
        return answers[-1]._replace(text="; ".join(answer.text for answer in answers))

    each.__name__ = "_and_".join(condition.__name__ for condition in conditions)
    each.__doc__ = " And ".join((condition.__doc__ or "").strip() for condition in conditions)
    return each


def count(number_of: int, noun: str) -> str:
    """``1 socket``, ``20 sockets``, ``2 processes``."""
    return f"{number_of} {noun}{'' if number_of == 1 else 'es' if noun.endswith('s') else 's'}"


# U: the user's path


def login_still_fails(facts: Facts) -> Answer:
    """U: the login fails, also after as many probes as there were connections to trip over."""
    if facts.login_fails is None:
        if facts.login and facts.login.get("misconfigured"):
            return Answer(
                None, f"the probe is misconfigured: {text(facts.login.get('misconfigured'))}", "login"
            )
        return unread(facts, "login", "whether the login fails")
    words = f"login answers {statuses(facts)}"
    return yes("login", words) if facts.login_fails else no("login", words)


def login_hangs(facts: Facts) -> Answer:
    """U: logins are not answered in time; with several workers not all of them need hang."""
    if facts.login_fails is None:
        return unread(facts, "login", "whether the login hangs")
    late, all_of_them = facts.login_statuses.get("timeout", 0), sum(facts.login_statuses.values())
    if late:
        return yes("login", f"no answer to {late} of {count(all_of_them, 'login')} within 5 s")
    return no("login", f"the app answers: {statuses(facts)}")


def login_works(facts: Facts) -> Answer:
    """U: every login works, in every round."""
    if facts.login_failed is None or facts.login_fails is None:
        return unread(facts, "login", "whether the login works")
    if facts.login_failed or facts.login_fails:
        return no("login", f"login answered {statuses(facts)}")
    return yes("login", f"login answers {statuses(facts)}")


def login_failed_or_fails(facts: Facts) -> Answer:
    """U: the login failed in this run, whether or not it healed meanwhile."""
    if facts.login_failed is None:
        return unread(facts, "login", "whether the login failed")
    first = mapping(facts.rounds[0])
    words = f"{whole(first.get('failed'))} of {count(whole(first.get('attempts')), 'login')} failed at first"
    return yes("login", words) if facts.login_failed else no("login", "no login failed")


def login_healed_at_the_restart(facts: Facts) -> Answer:
    """U, D: logins failed and healed in this run, and the server was started within the last hour."""
    if facts.login_failed is None:
        return unread(facts, "login", "whether the login failed and healed")
    if not facts.login_failed or facts.login_fails:
        return no("login", "no login failed and healed in this run")
    if facts.postmaster_start is None or facts.server_now is None:
        return unread(facts, "server", "when the server started")
    age = facts.server_now - facts.postmaster_start
    return (yes if age < 3600 else no)("server", f"the login healed; the server started {age:.0f} s ago")


def login_fails_at_once(facts: Facts) -> Answer:
    """U: the app answers with an error of its own, without waiting for anything."""
    if facts.login_fails is None:
        return unread(facts, "login", "how fast the login fails")
    if not facts.login_fails:
        return no("login", "the login works")
    seconds = number(facts.rounds[-1].get("seconds")) or 0.0
    errors = [status for status in facts.login_statuses if len(status) == 3 and status.startswith("5")]
    if errors and seconds < 2.0:
        return yes("login", f"login answers {statuses(facts)} within {seconds:.1f} s")
    return no("login", f"login ends with {statuses(facts)} after {seconds:.1f} s")


def statuses(facts: Facts) -> str:
    """``500, 8 of 8`` or ``200: 7, 500: 1``."""
    answers = facts.login_statuses
    if len(answers) == 1:
        ((status, times),) = answers.items()
        return f"{status}, {times} of {times}"
    return ", ".join(f"{status}: {times}" for status, times in sorted(answers.items())) or "nothing"


# N: a new connection


def _new(facts: Facts, question: str) -> Optional[Answer]:
    if facts.new is None or (facts.new.get("ok") is not True and not facts.new_error):
        return unread(facts, "new_connection", question)
    if facts.new.get("ok") is True:
        if facts.new_ok is None:
            return no("new_connection", f"{facts.target} answers a new connection and asks for credentials")
        return no(
            "new_connection", f"a new connection to {facts.target} took {facts.new_seconds * 1000:.0f} ms"
        )
    return None


def _failed(facts: Facts, holds: bool) -> Answer:
    words = f"a new connection: {text(facts.new_error.get('text')) or 'failed'}"
    return (yes if holds else no)("new_connection", words[:300])


def no_answer_to_a_new_connection(facts: Facts) -> Answer:
    """N: no answer to SYN, no route, or the name does not resolve."""
    answered = _new(facts, "whether the database's host answers")
    if answered:
        return answered
    kind = facts.new_error.get("kind")
    silent = kind == "timeout" and facts.new_phase in ("tcp", "resolve")
    return _failed(facts, kind in ("unresolved", "unreachable") or silent)


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
    return (yes if told.get("kind") == "refused" else no)("connection", words)


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
        why = text(facts.bouncer.get("refused"))
        return Answer(
            None,
            f"how many clients wait at PgBouncer: SHOW POOLS is not for this role ({why})",
            "new_connection",
        )
    waiting, busy, idle, longest = bouncer_counts(facts)
    words = (
        f"{count(waiting, 'client')} of PgBouncer wait, the first for {longest} s;"
        f" of its server connections {busy} are busy and {idle} idle"
    )
    return (yes if waiting and not idle else no)("new_connection", words)


def bouncer_counts(facts: Facts) -> tuple[int, int, int, int]:
    """(waiting clients, busy and idle server connections, seconds that the first client waits)."""
    pools = rows(mapping(facts.bouncer).get("pools"))
    waiting, busy = (sum(whole(pool.get(name)) for pool in pools) for name in ("cl_waiting", "sv_active"))
    idle = sum(whole(pool.get("sv_idle")) + whole(pool.get("sv_used")) for pool in pools)
    return waiting, busy, idle, max((whole(pool.get("maxwait")) for pool in pools), default=0)


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
    if facts.new_ok:
        return yes(
            "new_connection", f"a new connection to {facts.target} took {facts.new_seconds * 1000:.0f} ms"
        )
    return _failed(facts, False)


def server_in_recovery(facts: Facts) -> Answer:
    """N: pg_is_in_recovery() where the app's connections lead to is true."""
    place, server = facts.node
    value = server.get("in_recovery")
    if not isinstance(value, bool):
        return unread(facts, "new_connection", f"whether {place} is a standby")
    words = f"{place} is {'a standby' if value else 'a primary'}"
    if value and place != facts.target and facts.new_server.get("in_recovery") is False:
        words += f", and a new connection to {facts.target} reaches a primary"
    return (yes if value else no)("new_connection", words)


def server_read_only(facts: Facts) -> Answer:
    """N: new transactions are read only on a server that is not in recovery."""
    _, server = facts.node
    value, recovery = server.get("read_only"), server.get("in_recovery")
    if not isinstance(value, bool) or not isinstance(recovery, bool):
        return unread(facts, "new_connection", "whether transactions are read only")
    if value and not recovery:
        return yes("new_connection", f"transactions on {facts.target} are read only by default")
    return no(
        "new_connection",
        f"transactions on {facts.target} {'are read only: a standby' if value else 'may write'}",
    )


def server_is_primary(facts: Facts) -> Answer:
    """N: the server is not in recovery."""
    answer = server_in_recovery(facts)
    return answer if answer.value is None else answer._replace(value=not answer.value)


def login_writes_and_fails(facts: Facts) -> Answer:
    """L: while the probe ran, a write was refused as read only (25006)."""
    lines = facts.logged_now("read_only")
    if lines is None:
        return unread(facts, "log", "whether a write was refused during the probe")
    return (yes if lines else no)("log", f"{count(lines, 'write')} refused as read only during the probe")


def app_writes_and_fails(facts: Facts) -> Answer:
    """L: the app tried to write and was refused (25006)."""
    lines = facts.logged("read_only")
    if lines is None:
        return unread(facts, "log", "whether a write was refused")
    return (yes if lines else no)("log", f"{count(lines, 'write')} refused as read only in the log")


# X: the process


def nothing_listens(facts: Facts) -> Answer:
    """X: no process, or nothing listens where the login is."""
    if facts.listening is None:
        return unread(facts, "process", "whether anything listens on the login's port")
    port = whole((facts.process or {}).get("port"))
    if facts.listening:
        return no("process", f"port {port} is listened on")
    words = f"nothing listens on port {port}; {text(facts.service.get('why'))}"
    if facts.processes:
        return Answer(None, f"{words}, and lives: is diagnose_login_url right?", "process")
    return yes("process", words)


def out_of_resources(facts: Facts) -> Answer:
    """X, L: descriptors at the limit, EMFILE, out of memory or out of local ports."""
    if facts.processes is None:
        return unread(facts, "process", "whether descriptors ran out")
    lines = facts.logged_now("file_descriptors", "out_of_memory", "no_local_port")
    for process in facts.processes:
        limit, used = number(process.get("fd_limit")), number(process.get("fds"))
        if limit and used is not None and used >= limit - 2:
            return yes(
                "process", f"pid {whole(process.get('pid'))} has {used:.0f} of {limit:.0f} descriptors open"
            )
    if lines:
        return yes(
            "log", f"{count(lines, 'line')} about exhausted descriptors, memory or ports during the probe"
        )
    if facts.processes and any(number(process.get("fds")) is None for process in facts.processes):
        return unread(facts, "process", "how many descriptors are open: no right to read it")
    if lines is None and facts.login_fails is not False:
        return unread(facts, "log", "whether the app ran out of descriptors, memory or ports")
    most = max((whole(process.get("fds")) for process in facts.processes), default=0)
    return no("process", f"at most {count(most, 'descriptor')} open in a process, below the limit")


def clock_stood_still(facts: Facts) -> Answer:
    """X: the machine was suspended since it booted (BOOTTIME minus MONOTONIC grew)."""
    if facts.process is None:
        return unread(facts, "process", "whether the machine was suspended")
    seconds = number(mapping(facts.process.get("clocks")).get("suspended_seconds"))
    if seconds is None:
        return unread(facts, "process", "whether the machine was suspended")
    return (yes if seconds > 1 else no)(
        "process", f"this machine was suspended for {seconds:.0f} s since it booted"
    )


def heartbeats_share_a_gap(facts: Facts) -> Answer:
    """P: every heartbeat of the app fell silent and came back at the same moment: none of it ran meanwhile."""
    if facts.pool is None:
        return unread(facts, "pool", "whether the whole app stood still for a while")
    if facts.gap is None:
        return no("pool", "no silence that all heartbeats of the app share")
    ago = f", until {facts.now - facts.gap[1]:.0f} s ago" if facts.now is not None else ""
    return yes("pool", f"the whole app stood still for {facts.gap[0]:.0f} s{ago}: it was frozen")


def threads_stuck(facts: Facts) -> Answer:
    """P, X: an event loop is silent for more than 5 s, or threads wait for a session that the server does not have."""
    hangs = login_hangs(facts)
    if hangs.value is False:
        return no("login", hangs.text)
    beats = [
        (number(mapping(status.get("loop")).get("heartbeat_age")), status) for status in facts.pool or []
    ]
    known = [(age, whole(status.get("pid"))) for age, status in beats if age is not None]
    if known and max(known)[0] > 5:
        age, pid = max(known)
        return yes("pool", f"the event loop of pid {pid} beat {age:.0f} s ago{doing.stands_at(facts, pid)}")
    if known:
        return no("pool", f"every event loop beat within {max(known)[0]:.0f} s")
    looks = doing.while_it_hangs(facts)
    queues = [number(look.get("not_accepted")) for look in looks]
    if len(looks) < 2 or None in queues:
        return unread(facts, "process", "what the app's threads wait for (thread stacks)")
    refused = min(whole(queue) for queue in queues)
    stuck = doing.stuck_loop(facts, looks)
    if refused and stuck:
        return yes("process", f"{stuck}, and {count(refused, 'client')} waited to be accepted")
    waiting = doing.unanswered(facts)
    if waiting is None:
        return unread(facts, "activity", "whether threads wait for a session that PostgreSQL does not have")
    lost = sum(state == "none" for _, state in waiting.values())
    if lost:
        return yes("process", f"threads wait on {count(lost, 'connection')} without a session in PostgreSQL")
    return no(
        "process",
        "every client was accepted at once, so the event loop comes round"
        if not refused
        else "no event loop is stuck",
    )


def workers_busy(facts: Facts) -> Answer:
    """P, X: the pool is idle, nobody waits for it, and every worker is busy elsewhere."""
    if facts.login_fails is False:
        return no("login", "the login works")
    if facts.pool is not None and facts.pool_count("waiting"):
        return no("pool", f"{facts.pool_count('waiting')} wait for a connection")
    exhausted = facts.logged_now("pool_exhausted")
    if exhausted:
        return no("log", "logins fail for want of a connection, not of a worker")
    if login_hangs(facts).value is False:
        return no("login", f"the app answers: {statuses(facts)}")
    looks = doing.while_it_hangs(facts)
    found = doing.work_by_stacks(facts) or (doing.work(facts, looks[-1]) if looks else None)
    if found is None:
        return unread(facts, "process", "whether every worker is busy (thread stacks)")
    loops = doing.event_loops(facts)
    for pid, work in sorted(found.items()):
        if (
            work.busy >= (4 if pid in loops else 1)
            and work.busy >= 9 * work.idle
            and work.busy > work.database
        ):
            return yes(
                "process",
                f"{work.busy} threads of pid {pid} at work elsewhere ({work.most}), {work.idle} free",
            )
    busy, idle = sum(w.busy for w in found.values()), sum(w.idle for w in found.values())
    return no("process", f"{count(busy, 'thread')} at work elsewhere than with PostgreSQL, {idle} free")


# S: sockets

# The clocks of two hosts differ, and a request takes a moment to be seen on the server.
_SETTLED_SECONDS = 2.0


def _held(facts: Facts, question: str) -> Optional[Answer]:
    return unread(facts, "sockets", question) if facts.held is None else None


def peer_is_silent(facts: Facts) -> Answer:
    """S: the peer of a connection does not answer probes or data."""
    missing = _held(facts, "whether the peer of a connection is silent")
    if missing:
        return missing
    found = facts.silent or 0
    return (yes if found else no)(
        "sockets", f"{count(found, 'connection')} to {facts.target} whose peer is silent"
    )


def flows_hang(facts: Facts) -> Answer:
    """S, D: requests went out on connections that the kernel finds healthy, and the server works on none."""
    if facts.alive == 0:
        return no("sockets", f"no open connection to {facts.target} that could hang")
    if facts.bouncer is not None:
        return no("new_connection", f"PgBouncer at {facts.target} answers at its console")
    if facts.waits is None:
        return unread(facts, "sockets", "whether a request on an open connection has no answer")
    if facts.backends is None or facts.database_now is None:
        return unread(facts, "activity", "whether the server works on what the app waits for")
    # Only what had gone out well before the server was looked at can be missed there.
    lost = [
        wait
        for wait in facts.waits
        if wait.get("acknowledged") is True and wait["sent"] < facts.database_now - _SETTLED_SECONDS
    ]
    active = sum(1 for session in facts.backends if session.get("state") == "active")
    words = f"{count(len(lost), 'request')} unanswered, {active} that the server works on"
    return (yes if len(lost) > active else no)("sockets", words)


def database_answers_elsewhere(facts: Facts) -> Answer:
    """D: the database answers from beyond whatever is in between."""
    if facts.connection is None:
        return unread(facts, "connection", "whether the database answers from beyond the proxy")
    if facts.connection.get("ok") is True and facts.read_from_here and not facts.new_ok:
        return Answer(
            None, "whether the database answers from beyond the proxy (it was read from here)", "connection"
        )
    if facts.connection.get("ok") is True:
        return yes("connection", "the database answers on its own host")
    return no("connection", "the database does not answer there either")


def _words(facts: Facts, question: str) -> Optional[Answer]:
    if facts.held is not None and not [r for r in facts.held if r.get("state") != "ESTAB" or r.get("recv_q")]:
        return no("sockets", f"no connection to {facts.target} was ended by the other side")
    return unread(facts, "sockets", question) if facts.words is None else None


def last_words(sqlstate: str, meaning: str) -> Condition:
    """A condition: the server ended connections with this SQLSTATE, and the app still holds them."""

    def said(facts: Facts) -> Answer:
        missing = _words(facts, f"whether the server's last words are {sqlstate}, {meaning}")
        if missing:
            return missing
        found = facts.words_with(sqlstate)
        if not found and facts.hidden_words:
            return _hidden(facts, sqlstate, meaning)
        return (yes if found else no)(
            "sockets", f"{count(found, 'connection')} ended by the server with {sqlstate}, {meaning}"
        )

    said.__name__ = f"last_words_{sqlstate}"
    said.__doc__ = (
        f"S: the server's last words on a connection that the app still holds are {sqlstate}, {meaning}."
    )
    return said


# By SQLSTATE: what the app's log calls it, and the setting without which the server does not do it.
_ENDINGS = {
    "57P01": ("terminated_by_administrator", None),
    "57P02": ("crash_of_another_process", None),
    "57P05": ("idle_session_timeout", "idle_session_timeout"),
    "25P03": ("idle_in_transaction_timeout", "idle_in_transaction_session_timeout"),
    "25P04": ("transaction_timeout", "transaction_timeout"),
}


def _hidden(facts: Facts, sqlstate: str, meaning: str) -> Answer:
    """TLS hides the words. The app's log may have them, and the server's settings what it cannot have said."""
    hidden = count(facts.hidden_words, "connection")
    name, setting = _ENDINGS[sqlstate]
    if facts.logged_now(*(one for one, _ in _ENDINGS.values())):
        told = facts.logged_now(name) or 0
        words = f"TLS hides the server's words on {hidden}; {count(told, 'line')} with them in the app's log, {meaning}"
        return (yes if told else no)("log", words)
    if setting and facts.server_setting(setting) == "0":
        return no("server", f"{setting} is 0 for the app's role")
    if sqlstate == "57P02" and facts.crashed is False:
        return no("server", "the server's helpers are as old as itself, so it has not recovered from a crash")
    words = f"whether {hidden} ended with {sqlstate}, {meaning}: TLS hides the server's words"
    return Answer(None, f"{words}, and the app's log has none of them", "sockets")


def dead_ones_matter(facts: Facts) -> Answer:
    """U, S, L: the login works again, or the app still has dead connections: it did not replace them.

    Each dead connection that is replaced fails one request. Where they are gone and the login fails all the
    same, it fails for another reason.
    """
    if facts.login_fails is None:
        return unread(facts, "login", "whether the login still fails")
    if not facts.login_fails:
        return yes("login", "the login works again")
    after = facts.sample("after_login")
    if after is None or facts.held is None:
        return unread(facts, "sockets", "whether the dead connections were replaced")
    other = another_exception(facts)
    if other.value:
        return no("log", f"the login fails for another reason: {other.text}")
    dead = [sum(1 for row in sample if _is_dead(row)) for sample in (facts.held, after)]
    if dead[1]:
        return yes("sockets", f"{count(dead[1], 'dead connection')} still held after the probe")
    failures = facts.logged_now("server_closed", "dead_connection")
    if failures is None:
        return unread(facts, "log", "whether the dead connections were replaced")
    words = f"{count(failures, 'line')} about a lost connection during the probe, for {count(dead[0], 'dead connection')}"
    return (yes if failures > dead[0] else no)("log", words)


def _is_dead(row: dict[str, Any]) -> bool:
    return row.get("state") != "ESTAB" or bool(row.get("recv_q"))


def cut_without_a_word(facts: Facts) -> Answer:
    """S: something ended connections without a word (a bare FIN, or a reset) on which nobody waited. Or L, D: it
    answered with a reset when they were used, and the server knows nothing of it."""
    after = {text(row.get("local")) for row in facts.sample("after_login") or [] if not _is_dead(row)}
    gone = {text(row.get("local")) for row in facts.held or [] if not _is_dead(row)} - after
    resets = facts.logged_now("connection_reset")
    if resets and gone:
        words = f"{count(len(gone), 'idle connection')} gone during the probe, and {count(resets, 'line')} about a reset"
        return yes("log", words)
    # psycopg2 calls a reset what it calls an end: then the server tells that it did not end them.
    kept = gone & {facts.client(session) for session in facts.backends or []}
    if kept and facts.logged_now("server_closed"):
        words = f"{count(len(kept), 'idle connection')} closed when used, by the log, and the server still serves them"
        return yes("log", words)
    missing = _words(facts, "whether something cut connections without a word")
    if missing:
        return missing
    cut = [row for row in facts.words or [] if row.get("kind") in ("fin", "rst")]
    idle = [
        row
        for row in cut
        if row.get("in_use") is False and (number(row.get("idle_seconds")) or 0) >= IDLE_SECONDS
    ]
    longest = max((number(row.get("idle_seconds")) or 0.0 for row in idle), default=0.0)
    if idle and facts.gap and facts.now is not None and longest < facts.now - facts.gap[1] + 2 * facts.gap[0]:
        return no("pool", f"{count(len(idle), 'connection')} cut while the app itself stood still")
    words = (
        f"{count(len(cut), 'connection')} ended without a word (bare FIN or reset), {len(idle)} of them idle"
    )
    return (yes if idle else no)("sockets", f"{words}{f' for up to {longest:.0f} s' if idle else ''}")


def dead_connections_held(facts: Facts) -> Answer:
    """S: the app holds connections that the other side ended."""
    missing = _held(facts, "whether the app holds connections that the other side ended")
    if missing:
        return missing
    dead = sum(1 for row in facts.held or [] if row.get("state") != "ESTAB" or row.get("recv_q"))
    return (yes if dead else no)("sockets", f"{count(dead, 'connection')} held that the other side ended")


def socket_shared_and_used(facts: Facts) -> Answer:
    """S, L, X: processes share a connection, and at least two of them use it (holding alone is harmless)."""
    if facts.sockets is None:
        return unread(facts, "sockets", "whether processes share a connection")
    shared = facts.shared
    if not shared and facts.held is not None:
        return no("sockets", "no connection is shared by processes")
    words = f"{count(len(shared), 'connection')} shared by processes"
    if shared and facts.logged("protocol_error"):
        return yes("log", f"{words}, and protocol errors in the log")
    if any(inode in shared for inode, _ in (doing.unanswered(facts) or {}).values()):
        return yes("process", f"{words}; a thread waits on one for an answer that another process has taken")
    both = [inode for inode, pids in doing.waiting_on(facts).items() if inode in shared and len(pids) > 1]
    if both:
        return yes("process", f"{words}; two processes wait for an answer on one of them")
    worked = doing.worked(facts)
    sharing = {pid for pids in shared.values() for pid in pids}
    if not shared or worked is None or not facts.rounds:
        return unread(facts, "process", f"{words}: whether two of them used one")
    alone = {whole(row.get("pid")) for row in facts.held or [] if whole(row.get("inode")) not in shared}
    users = sorted(pid for pid in sharing & worked if pid not in alone)
    if len(users) > 1:
        named = " and ".join(map(str, users[:3]))
        return yes(
            "process", f"{words}; pid {named} worked during the probe and have no connection of their own"
        )
    # An exhausted pool is not used; each process took them out of its own copy of it.
    takers = sorted(sharing & doing.served(facts) - alone) if facts.logged_now("pool_exhausted") else []
    if len(takers) > 1:
        named = " and ".join(map(str, takers[:3]))
        return yes(
            "process", f"{words}; pid {named} serve, and have no other to take from their exhausted pools"
        )
    if len(sharing & worked) < 2:
        return no("process", f"{words}, and one of them at most used it")
    return Answer(None, f"{words}: whether two of them used one", "process")


def live_settings_differ(facts: Facts) -> Answer:
    """S, X: what runs differs from the file on disk: a changed file under an unchanged process."""
    if facts.config is None:
        return unread(facts, "config", "whether the process runs with the settings on disk")
    told = facts.differing
    if told:
        return yes("config", "; ".join(told[:3]))
    settings = mapping(facts.config.get("settings"))
    wanted = {
        option: text(mapping(settings.get(name)).get("value"))
        for option, name in (
            ("idle", "POSTGRES_KEEPALIVES_IDLE"),
            ("interval", "POSTGRES_KEEPALIVES_INTERVAL"),
            ("count", "POSTGRES_KEEPALIVES_COUNT"),
            ("user_timeout_ms", "POSTGRES_TCP_USER_TIMEOUT"),
        )
        if mapping(settings.get(name)).get("value")
    }
    if wanted and facts.words is None:
        return unread(facts, "sockets", "whether the keepalive that is live is the one on disk")
    for row in rows((facts.sockets or {}).get("options")):
        for option, value in wanted.items():
            if str(row.get(option)) != value:
                return yes(
                    "sockets",
                    f"keepalive {option} is {row.get(option)} on a live connection and {value} on disk",
                )
    if facts.changed_since_the_start and not (facts.pool or facts.config.get("live")):
        words = f"whether the process runs with the settings of {text(facts.config.get('file'))}, changed since it started"
        return Answer(None, words, "config")
    return no("config", "nothing that is set on disk differs from what runs")


# D: the database


def _backends(facts: Facts, question: str) -> Optional[Answer]:
    if facts.held == [] and facts.pool is None:
        return no("sockets", f"0 sockets from the app to {facts.target}")
    return unread(facts, "activity", question) if facts.backends is None else None


def many_wait_for_one_lock(facts: Facts) -> Answer:
    """D: at least two of the app's sessions have waited for a second or more behind one session."""
    if facts.waiting_for_lock is None:
        return _backends(facts, "whether sessions wait for a lock") or unread(
            facts, "locks", "whether sessions wait for a lock"
        )
    found = len(longest_queue(facts)[1])
    return (yes if found >= 2 else no)(
        "activity", f"{count(found, 'session')} of the app wait behind one lock"
    )


def longest_queue(facts: Facts) -> tuple[int, list[dict[str, Any]]]:
    """(root pid, the app's sessions that wait behind it, not only for an instant), the longest such queue."""
    queues = {
        root: [b for b in waiting if (number(b.get("seconds")) or 1.0) >= 1.0]
        for root, waiting in (facts.waiting_for_lock or {}).items()
    }
    return max(queues.items(), key=lambda item: (len(item[1]), -item[0]), default=(0, []))


def root_is_leaked(facts: Facts) -> Answer:
    """P, D: the lock at the root is held by the app itself, for a request that is over."""
    root, waiting = longest_queue(facts)
    if facts.waiting_for_lock is None or len(waiting) < 2:
        return many_wait_for_one_lock(facts)
    session = next((s for s in facts.backends or [] if s.get("pid") == root), None)
    if session is None:
        return no("activity", f"the lock is held by pid {root}, which is no session of this host's app")
    age = facts.server_age(session.get("state_change")) or 0.0
    words = f"the lock is held by pid {root}, a session of the app itself, {text(session.get('state'))} for {age:.0f} s"
    holder = next((h for h in facts.holders or [] if h.get("backend_pid") == root), None)
    if holder:
        over = holder.get("request_over")
        told = (
            f"{words}; its request is {'over' if over else 'under way'}, taken at {text(holder.get('site'))}"
        )
        return Answer(over if isinstance(over, bool) else None, told, "pool")
    if session not in facts.resting:
        return no("activity", f"{words}, at work")
    look = doing.before_the_probe(facts)
    if look is None or age < OLD_SECONDS:
        return unread(facts, "process", "whether the request that holds the lock is over")
    # Each session that waits is a request of its own; is there another, or a thread at work, that could hold it?
    clients = whole(look.get("connected")) - sum(s in (facts.backends or []) for s in waiting_sessions(facts))
    busy = sum(work.busy for work in doing.work(facts, look).values())
    if clients > 0 or busy:
        return Answer(None, f"{words}; whether its request is over", "process")
    return yes("process", f"{words}; no request is under way but those that wait")


def waiting_sessions(facts: Facts) -> list[dict[str, Any]]:
    """The sessions in the longest queue for a lock."""
    return [facts.session(blocked.get("pid")) for blocked in longest_queue(facts)[1]]


def slow_statements(facts: Facts) -> Answer:
    """D: at least half of the app's sessions are in statements that run for long and wait for no lock."""
    missing = _backends(facts, "whether statements are slow")
    if missing:
        return missing
    slow = slow_sessions(facts)
    many = max(2, len(facts.backends or []) / 2)
    words = f"{len(slow)} of {count(len(facts.backends or []), 'session')} in a statement for more than 5 s"
    return (yes if len(slow) >= many else no)("activity", words)


def slow_sessions(facts: Facts) -> list[dict[str, Any]]:
    """The app's sessions that have been in one statement for more than 5 s, and wait for no lock."""
    return [
        s
        for s in facts.backends or []
        if s.get("state") == "active"
        and s.get("wait_event_type") != "Lock"
        and (facts.server_age(s.get("query_start")) or 0) > 5
    ]


def server_started_after_the_app(facts: Facts) -> Answer:
    """D, N: the postmaster is younger than the app's processes."""
    if facts.postmaster_start is None:
        return unread(facts, "server", "when the server started")
    if facts.started is None:
        return unread(facts, "process", "when the app started")
    younger = facts.postmaster_start > facts.started
    age = facts.server_age(
        (facts.server or {}).get("postmaster_start") or facts.new_server.get("postmaster_start")
    )
    since = f"{age:.0f} s ago, " if age is not None else ""
    return (yes if younger else no)(
        "server", f"the server started {since}{'after' if younger else 'before'} the app"
    )


def server_not_restarted(facts: Facts) -> Answer:
    """D, N: the server has not been started since the app was."""
    answer = server_started_after_the_app(facts)
    return answer if answer.value is None else answer._replace(value=not answer.value)


# P: the pool, and what tells of it where there is no status socket


def pool_is_exhausted(facts: Facts) -> Answer:
    """P, L: every slot is used; without a status socket, the app says so while the probe runs."""
    if facts.pool is not None:
        used, most = facts.pool_count("used") or 0, facts.pool_count("maximum") or 0
        words = f"{used} of {most} used"
        if facts.full and used < most:  # with several workers, who meets the full one fails
            words += f"; all of them in {len(facts.full)} of {count(len(facts.pool), 'process')}"
        return (yes if facts.full else no)("pool", words)
    if facts.login_fails is False:
        return no("login", "the login works, so a connection was free")
    lines = facts.logged_now("pool_exhausted")
    if lines is None:
        return unread(facts, "log", "whether the pool is exhausted")
    if not lines and login_hangs(facts).value and not facts.pool_never_waits:
        return _logins_wait_for_the_pool(facts)
    return (yes if lines else no)("log", f"{count(lines, 'line')} about an exhausted pool during the probe")


def _logins_wait_for_the_pool(facts: Facts) -> Answer:
    """A pool that waits says that it is exhausted later than the probe lasts: so what others were told counts."""
    stuck = threads_stuck(facts)
    if stuck.value:
        return no(stuck.view, f"{stuck.text}: nobody comes as far as the pool")
    age = facts.exhausted_ago
    if age is not None and age < EXHAUSTED_SECONDS:
        return yes("log", f"logins wait, and {age:.0f} s ago the log said that the pool is exhausted")
    return Answer(
        None, "whether logins wait for the pool: it says so only after its own timeout, often 30 s", "log"
    )


def slots_without_connection(facts: Facts) -> Answer:
    """P, S: slots are used by entries that are closed, or by none: fewer sockets than used slots."""
    if facts.pool is not None:
        used, holders = facts.pool_count("used") or 0, len(facts.holders or [])
        connecting = facts.pool_count("connecting") or 0
        lost = used - holders - connecting
        return (yes if lost > 0 else no)(
            "pool", f"{used} used, {holders} held by someone, {connecting} connecting"
        )
    if facts.held is None:
        return unread(facts, "sockets", "whether used slots have connections")
    # The probe itself may have opened what was not open before it.
    held = max(len(facts.held), len(facts.sample("after_login") or []))
    words = f"{count(held, 'socket')} from the app to {facts.target}"
    moments = [
        {text(row.get("local")) for row in rows(sample.get("sockets"))}
        for sample in rows(mapping(facts.sockets).get("samples"))
    ]
    most = max(map(len, moments), default=0)
    if most == 0:
        return yes("sockets", words)
    if facts.maximum is None:
        return unread(facts, "config", "the pool's maximum, to compare with the sockets")
    if most >= facts.maximum:
        return no("sockets", f"{words}, {most} at most: as many as the pool may have")
    # A pool that has lost its slots opens nothing; in a crowd connections come and go.
    if 2 * most > facts.maximum and any(moment != moments[0] for moment in moments):
        return no("sockets", f"connections come and go, up to {most} of {facts.maximum} during the probe")
    return yes("sockets", f"{words}, and the pool's maximum is {facts.maximum}")


def no_backend_of_the_app(facts: Facts) -> Answer:
    """D: the server has no more sessions of the app than the app has sockets."""
    if facts.backends is None:
        return unread(facts, "activity", "how many sessions of the app the server has")
    found = len(facts.backends)
    limit = len(facts.held) if facts.held is not None else 0
    return (yes if found <= limit else no)("activity", f"{count(found, 'session')} of the app on the server")


def holders_are_done(facts: Facts) -> Answer:
    """P: connections are held, long, for requests that are over. Without P, D, X: sessions have been idle for
    long although the pool is exhausted, and there are fewer requests and working threads than such sessions."""
    if facts.holders is not None:
        over = [h for h in facts.holders if h.get("request_over") is True and not h.get("long_lived")]
        old = [h for h in over if (number(h.get("age")) or 0) > OLD_SECONDS]
        site = most_common([text(h.get("site")) for h in old])
        words = f"{count(len(old), 'connection')} held for requests that are over" + (
            f", at {facts.short(site)}" if site else ""
        )
        return (yes if len(old) >= 2 else no)("pool", words)
    if facts.login_fails is False:
        return no("login", "the login works, so a connection was free")
    if facts.alive is not None and facts.alive < 2:
        return no("sockets", f"needs living holders; there are {count(facts.alive, 'open socket')}")
    if facts.backends is None:
        return unread(facts, "activity", "how long sessions have been idle")
    resting = [s for s in facts.resting if (facts.server_age(s.get("state_change")) or 0) > OLD_SECONDS]
    if len(resting) < 2:
        return no("activity", f"{count(len(resting), 'session')} idle for more than {OLD_SECONDS:.0f} s")
    under_way = requests_under_way(facts)
    if under_way is None:
        return unread(facts, "process", "whether the requests that hold the connections are over")
    words = f"{count(len(resting), 'session')} idle for more than {OLD_SECONDS:.0f} s, and {under_way} at work for them"
    return (
        yes("process", words)
        if len(resting) - under_way >= 2
        else Answer(None, f"{words}: who holds which", "pool")
    )


def requests_under_way(facts: Facts) -> Optional[int]:
    """How many requests may be under way at most, before the probe: clients connected, and threads at work."""
    look = doing.before_the_probe(facts)
    connected = number(look.get("connected")) if look else None
    if look is None or connected is None:
        return None
    return max(whole(connected), sum(work.busy for work in doing.work(facts, look).values()))


def waiters_already_hold_one(facts: Facts) -> Answer:
    """P: most connections are held by requests that wait for another one."""
    if facts.waiters is not None:
        nested = [w for w in facts.waiters if whole(w.get("holds"))]
        held = sum(whole(w.get("holds")) for w in nested)
        used = sum(whole(mapping(status.get("count")).get("used")) for status in facts.full)
        words = f"{held} of {used} connections are held by requests that wait for one more"
        site = most_common([text(w.get("site")) for w in nested])
        return (yes if len(nested) >= 2 and 2 * held >= used else no)(
            "pool", words + (f", at {site}" if site else "")
        )
    open_question = _living_holders(facts, "whether those who wait already hold a connection")
    if open_question.value is not None:
        return open_question
    if facts.logged_now("pool_exhausted") and login_fails_at_once(facts).value:
        return no("login", "the pool refuses at once, so nobody waits in it")
    under_way = requests_under_way(facts)
    if under_way is None or facts.backends is None:
        return open_question
    resting = sum((facts.server_age(s.get("state_change")) or 0) > 5 for s in facts.resting)
    if min(resting, under_way) < 2:
        words = f"{count(resting, 'session')} idle for more than 5 s, {under_way} requests under way"
        return no("process", f"{words}: nobody holds one and waits for another")
    return open_question


def holders_outside_the_database(facts: Facts) -> Answer:
    """P: holders' requests are alive and do something else than a query. Without P, X: so do threads."""
    if facts.holders is not None and facts.activity is not None:
        queued = {text(w.get("request_id")) for w in facts.waiters or [] if whole(w.get("holds"))} - {""}
        alive = [
            h
            for h in facts.holders
            if h.get("request_over") is False
            and text(h.get("request_id")) not in queued
            and (number(h.get("age")) or 0) > 5
            and not facts.active_backend(h)
        ]
        site = most_common([text(h.get("site")) for h in alive])
        at = most_common([doing.stands_at(facts, h.get("tid")) for h in alive])
        words = f"{count(len(alive), 'request')} holding a connection for more than 5 s without a query"
        words += f", taken at {facts.short(site)}" if site else ""
        return (yes if len(alive) >= 2 else no)("pool", words + (f", and now{at}" if at else ""))
    look = doing.before_the_probe(facts)
    open_question = _living_holders(facts, "what the holders of connections do")
    if open_question.value is not None or facts.backends is None or look is None:
        return open_question
    resting = [s for s in facts.resting if (facts.server_age(s.get("state_change")) or 0) > 5]
    if len(resting) < 2:
        return no("activity", f"{count(len(resting), 'session')} idle for more than 5 s")
    busy = [work for work in doing.work(facts, look).values() if work.busy]
    threads = sum(work.busy for work in busy)
    words = f"{count(len(resting), 'session')} idle for more than 5 s; {count(threads, 'thread')} at work elsewhere"
    words += f" ({', '.join(work.most for work in busy)})" if busy else ""
    if 2 * threads >= len(resting):
        return yes("process", words)
    under_way = requests_under_way(facts)
    if under_way is None or len(resting) - under_way < 2:
        return open_question
    return no("process", f"{words}, {under_way} requests under way")


def somebody_waits(facts: Facts) -> Answer:
    """P, L: requests wait for a connection, or were refused one while the probe ran."""
    refused = facts.logged_now("pool_exhausted")
    if facts.waiters is not None:
        waiting = len(facts.waiters) or facts.pool_count("waiting") or 0
        return (yes if waiting or refused else no)(
            "pool", f"{count(waiting, 'request')} waiting for a connection"
        )
    if refused is None:
        return unread(facts, "log", "whether requests want a connection")
    if not refused and login_hangs(facts).value:
        return pool_is_exhausted(facts)
    return (yes if refused else no)(
        "log", f"{count(refused, 'request')} refused a connection during the probe"
    )


def nobody_holds_long(facts: Facts) -> Answer:
    """P: the pool is full of short holders: more demand than slots."""
    if facts.holders is not None:
        old = sum(1 for h in facts.holders if (number(h.get("age")) or 0) > 5 and not h.get("long_lived"))
        return (yes if not old else no)("pool", f"{count(old, 'holder')} for more than 5 s")
    open_question = _living_holders(facts, "how long connections are held")
    if open_question.value is not None or not pool_is_exhausted(facts).value:
        return open_question
    if facts.backends is None or 2 * len(facts.backends) < (facts.maximum or 4):
        return open_question
    failed = sum(text(s.get("state")) == "idle in transaction (aborted)" for s in facts.backends)
    if failed:
        return no(
            "activity", f"{count(failed, 'session')} in a transaction that has failed: nobody uses them"
        )
    # Where none is free, one that did nothing for long is held for long.
    old = sum((facts.server_age(s.get("state_change")) or 0) > 5 for s in facts.backends)
    return (yes if not old else no)(
        "activity", f"{count(old, 'session')} without a new state for more than 5 s"
    )


def _living_holders(facts: Facts, question: str) -> Answer:
    """Without P: nobody can hold a connection where there is none, and nobody lacks one where logins work."""
    if facts.login_fails is False:
        return no("login", "the login works, so a connection was free")
    if facts.alive == 0:
        return no("sockets", f"0 open sockets from the app to {facts.target}: nobody holds a connection")
    if facts.logged_now("pool_exhausted") == 0 and login_hangs(facts).value is False:
        return no("log", "no login failed for want of a connection")
    return Answer(None, f"{question} ({facts.reason('pool')})", "pool")


def monitor_is_silent(facts: Facts) -> Answer:
    """P, L: the monitor's heartbeat, or its newest line, is older than two intervals."""
    if facts.pool is not None:
        monitors = [mapping(status.get("monitor")) for status in facts.pool]
        dead = [one for one in monitors if one.get("alive") is False or _late(one)]
        words = f"{len(dead)} of {count(len(monitors), 'pool')} without a living monitor"
        return (yes if dead else no)("pool", words)
    newest = text((facts.monitor or {}).get("newest"))
    if facts.no_monitor:
        return no("log", "the app has no status socket, and its log knows no monitor of the pool")
    if not newest or facts.now is None:
        return unread(
            facts, "monitor", "whether the pool's monitor is alive: no heartbeat, no dated line of it"
        )
    age = facts.server_age(newest) or 0.0
    return (yes if age > 2 * MONITOR_SECONDS else no)("log", f"the monitor's newest line is {age:.0f} s old")


def _late(monitor: dict[str, Any]) -> bool:
    """Is the heartbeat of a pool's monitor older than two of its intervals, and than any test that it may make?"""
    age, interval = number(monitor.get("heartbeat_age")), number(monitor.get("interval"))
    return age is not None and interval is not None and age > max(2 * interval, OLD_SECONDS)


def own_number_is_wrong(facts: Facts) -> Answer:
    """L, S: the app logs more connections in use than it has sockets."""
    if facts.log is None:
        return unread(facts, "log", "what the app says of its pool")
    line = mapping(facts.log.get("pool_line"))
    told, at = number(line.get("active")), seconds_of(line.get("at"))
    if told is None or (at is not None and facts.started is not None and at < facts.started):
        return no("log", "the app's log tells no number of this process")
    if facts.held is None:
        return unread(facts, "sockets", "whether the app's own number is true")
    held = len(facts.held)
    words = f"the app's log says {told:.0f} in use; it has {count(held, 'socket')}"
    if at is None and told + held != number(line.get("maximum")):
        # It may have been true when it was written, unless it is just what was idle, taken from the maximum.
        return no("log", f"{words}, and does not say when that was")
    return (yes if told > held else no)("log", words)


# L: the log


def another_exception(facts: Facts) -> Answer:
    """L: what the log shows while the login fails is not about a connection to PostgreSQL."""
    if facts.login_fails is False:
        return no("login", "the login works")
    if facts.logged_now() is None:
        return unread(facts, "log", "what the app logs when the login fails")
    about = facts.logged_now(
        *("pool_exhausted", "server_closed", "connection_refused"),
        *("too_many_clients", "authentication_failed", "starting_up"),
    )
    # A statement that fails and whose connection is then forgotten exhausts the pool, as logins are tried.
    failed = facts.logged_now("sql_error")
    if about and not failed:
        return no("log", f"{count(about, 'line')} about connections to PostgreSQL during the probe")
    other = facts.logged_now("exception", "login_error", "server_error", "other_dependency", "sql_error") or 0
    words = f"{count(other, 'line')} about another error during the probe"
    return (yes if other else no)("log", f"{words}{f': {facts.error}' if other and facts.error else ''}")


def browser_was_suspended(facts: Facts) -> Answer:
    """L: a browser reports that its own network was suspended."""
    lines = facts.logged("client_suspended")
    if lines is None:
        return unread(facts, "log", "whether browsers report a suspended network")
    return (yes if lines else no)("log", f"{count(lines, 'line')} about a browser's suspended network")


def database_was_read(facts: Facts) -> Answer:
    """D: the server's side was read."""
    if facts.activity is None:
        return unread(facts, "activity", "the server's side")
    return yes("activity", f"the server has {count(len(facts.backends or []), 'session')} of the app")


def sockets_were_read(facts: Facts) -> Answer:
    """S: the app's sockets were read, with what is unread on them."""
    if facts.held is None or (facts.held and facts.words is None):
        return unread(facts, "sockets", "the state of the app's connections")
    return yes("sockets", f"{count(len(facts.held), 'socket')} from the app to {facts.target}")


def log_was_read(facts: Facts) -> Answer:
    """L: the log was read."""
    if facts.log is None:
        return unread(facts, "log", "what the app logged")
    return yes("log", "the log was read")


def pool_was_read(facts: Facts) -> Answer:
    """P: the pool was asked, where the app can answer."""
    if facts.pool is not None:
        return yes("pool", f"{facts.pool_count('used')} of {facts.pool_count('maximum')} used")
    if facts.no_status_socket:
        return yes("pool", "the app has no status socket to ask")
    return unread(facts, "pool", "what the process says of its pool")


def something_listens(facts: Facts) -> Answer:
    """X: the app listens."""
    answer = nothing_listens(facts)
    return answer if answer.value is None else answer._replace(value=not answer.value)


def most_common(values: list[str]) -> str:
    """The most frequent non-empty text; of equals the first in order; empty where there is none."""
    present = sorted(value for value in values if value)
    return max(dict.fromkeys(present), key=present.count) if present else ""


def root_of_lock(facts: Facts) -> dict[str, Any]:
    """The session at the root of a lock that the app waits for; empty where it is not known."""
    return facts.session(longest_queue(facts)[0])

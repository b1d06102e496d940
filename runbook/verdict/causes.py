"""The table of causes: from it come the verdict, why, why not, what was not read, and the documentation.

The order is the rank: the first cause whose conditions all hold is the cause; whatever holds below it is
contributing. A cause is a title, its conditions (all must hold), what a restart would do in this case,
and the next step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Optional

from . import server
from .answers import Condition, all_of, any_of, count, most_common
from .conditions import connection, database, log, login, pool, process, sockets
from .facts import HALTED, OLD_SECONDS, POOL_SIZES, Facts, number, text, whole


@dataclass(frozen=True)
class Restart:
    """What a restart does. ``helps``: in this case, None while open; ``why``: in words. ``comes_back``: it only
    buys time."""

    helps: Callable[[Facts], Optional[bool]]
    why: str
    comes_back: bool = False


def always(_: Facts) -> Optional[bool]:
    """A restart ends it, for a while or for good."""
    return True


def never(_: Facts) -> Optional[bool]:
    """A restarted app would meet the same."""
    return False


def if_login_still_fails(facts: Facts) -> Optional[bool]:
    """Dead connections heal as they are tripped over; a restart helps only if that did not happen."""
    return facts.login_fails


def if_not_stopped_by_a_person(facts: Facts) -> Optional[bool]:
    """Start what died; leave alone what somebody stopped or masked."""
    if facts.service.get("masked") is True:
        return False
    stopped = facts.service.get("stopped_by_person")
    return None if not isinstance(stopped, bool) else not stopped


def if_a_new_connection_works(facts: Facts) -> Optional[bool]:
    """A restart gives the app new connections, so it helps as soon as those work."""
    return facts.new_ok


def if_a_primary_is_reached(facts: Facts) -> Optional[bool]:
    """A restart helps only when a freshly resolved connection reaches a primary."""
    recovery = facts.new_server.get("in_recovery")
    return None if not isinstance(recovery, bool) else not recovery


@dataclass(frozen=True)
class Cause:
    """One row of the table. ``last_resort``: it explains what nothing else does, so it never contributes.
    ``ends_logins``: it can be why nobody can log in. ``gives_way``: where this holds too, a cause below is the
    cause, and this one contributes. ``not_to_confuse``: causes that people take it for; the screen says first
    why those are not it."""

    id: str
    title: str
    conditions: tuple[Condition, ...]
    restart: Restart
    next: Callable[[Facts], list[str]]
    action: str = "restart"
    last_resort: bool = False
    ends_logins: bool = True
    gives_way: Optional[Condition] = None
    not_to_confuse: tuple[str, ...] = ()


def why_of(cause: Cause, helps: Optional[bool]) -> str:
    """Why a restart does what it does in this case, in words."""
    if cause.restart.helps is if_login_still_fails and helps is False:
        return "the login works again: dead connections were replaced as requests tripped over them"
    return cause.restart.why


def say(*steps: str) -> Callable[[Facts], list[str]]:
    """A next step that is the same in every case; ``{target}`` is the app's database."""
    return lambda facts: [step.format(target=facts.target) for step in steps]


def say_with(condition: Condition, step: str) -> Callable[[Facts], list[str]]:
    """A next step that ends with what a condition found."""
    return lambda facts: [f"{step}: {condition(facts).text}"]


def _next_node(facts: Facts) -> list[str]:
    if if_a_primary_is_reached(facts):
        return [
            "so that the app leaves a standby by itself: target_session_attrs=read-write, and a pool lifetime"
        ]
    return [f"point the app at the primary (target_session_attrs=read-write), or promote {facts.target}"]


def _next_lock(facts: Facts) -> list[str]:
    root = facts.session(database.longest_queue(facts)[0])
    if not root:
        return ["find the session at the root with pg_blocking_pids() and ask its owner"]
    return [
        f"the root is pid {whole(root.get('pid'))}, {server.who(facts, root)}",
        f"ask its owner first; to end it (its open transaction is rolled back): {server.end(root)}",
    ]


def _next_leak_site(facts: Facts) -> list[str]:
    # A connection dropped inside the wrapper (R9) loses a slot for every caller, so it comes first.
    findings = sorted(facts.findings, key=lambda f: f.get("rule") != "R9")
    if not findings:
        return [f"find where a connection is closed or dropped and not given back{_searched(facts)}"]
    first = findings[0]
    return [
        f"send ticket.md to the owner of {first['site']}: {text(first.get('fix'))};"
        " a restart does not repair that line"
    ]


def _next_holders(facts: Facts) -> list[str]:
    root = database.root_is_leaked(facts)
    lock = [f"{root.text}; a restart ends it, with its transaction"] if root.value else []
    idle = {whole(session.get("pid")) for session in facts.resting_for(OLD_SECONDS)}
    held = [h for h in facts.holders or [] if not h.get("long_lived")]
    unnamed = [h for h in held if h.get("request_over") is None and whole(h.get("backend_pid")) in idle]
    kept = [h for h in held if h.get("request_over") is True] or unnamed
    if kept:
        return [*lock, f"send ticket.md to the owner of {_sites(facts, kept)}: it keeps what it took"]
    query = most_common([text(s.get("query")) for s in facts.resting if len(text(s.get("query"))) > 9])
    who = [f"the sessions that nobody gives back ran last: {query[:120]}"] if query else []
    # A connection dropped inside the wrapper (R9) loses a slot and holds nothing.
    named = [one for one in facts.findings if one.get("rule") != "R9"]
    steps = [f"the leak search names {one['site']}: {text(one.get('fix'))}" for one in named[:2]]
    return [*lock, *who, *steps] or [f"find what takes a connection and keeps it{_searched(facts)}"]


def _searched(facts: Facts) -> str:
    """What the leak search could not tell, where it ran."""
    source = facts.source or {}
    if not source.get("roots"):
        return ": runbook leaks PATH"
    return "; the leak search knows no line for it, so look for one that keeps what a helper of the app's own took"


def _sites(facts: Facts, holders: list[dict[str, Any]]) -> str:
    """Where connections were taken, how often, and for which requests: the most frequent place."""
    site = most_common([text(h.get("site")) for h in holders])
    here = [h for h in holders if text(h.get("site")) == site]
    asked = [text(h.get("request_id")) for h in here if text(h.get("request_id"))]
    requests = f", requests {', '.join(asked[:3])}{' …' if len(asked) > 3 else ''}" if asked else ""
    return f"{facts.short(site)} ({len(here)} of {len(holders)}{requests})"


def _next_forked(facts: Facts) -> list[str]:
    commands = {text(process.get("command")) for process in facts.processes or []}
    preload = " (its command says so)" if any("preload" in command for command in commands) else ""
    return [f"open the pool after the fork, in a post-fork hook, or do without preload{preload}"]


def _next_nested(facts: Facts) -> list[str]:
    nested = [w for w in facts.waiters or [] if pool.held_by(facts, w)]
    return [f"let a request use one connection; the second is asked for at {_sites(facts, nested)}"]


def _next_slow(facts: Facts) -> list[str]:
    slow = database.slow_sessions(facts)
    oldest = max(slow, key=lambda s: facts.server_age(s.get("query_start")) or 0.0, default={})
    query = most_common([text(s.get("query")) for s in slow])
    return [
        f"{sum(text(s.get('query')) == query for s in slow)} times: {query[:120]}; look at its plan and indexes,"
        " and set statement_timeout for the app's role",
        f"the oldest has run for {facts.server_age(oldest.get('query_start')) or 0:.0f} s; ask its owner, then: "
        + server.end(oldest),
    ]


def _next_held(facts: Facts) -> list[str]:
    alive = [h for h in facts.holders or [] if h.get("request_over") is False]
    where = (
        f"for the owner of {_sites(facts, alive)}" if alive else pool.holders_outside_the_database(facts).text
    )
    return [f"give the connection back before the outside call, and set a timeout for that: {where}"]


def _next_too_small(facts: Facts) -> list[str]:
    room = number((facts.limits or {}).get("headroom"))
    told = facts.on_disk(*POOL_SIZES)
    if room is not None and room < 1:
        return ["shed load, or make room on the server first: it has no slot free for a larger pool"]
    within = f"; the server has {count(int(room), 'slot')} free" if room is not None else ""
    return [f"raise the pool's maximum ({told or 'not found in the settings'}){within}; or shed load"]


def _next_started(facts: Facts) -> list[str]:
    if facts.service.get("stopped_by_person") is True or facts.service.get("masked") is True:
        return [f"somebody stopped it ({text(facts.service.get('why'))}); ask who and why before starting it"]
    return [f"find out why it ended: {text(facts.service.get('why'))}; its log is in the evidence"]


def go_on(facts: Facts) -> list[str]:
    """How processes that may not run go on, if there are any."""
    pids = {state: [str(pid) for pid, one in facts.halted.items() if one == state] for state in HALTED}
    stopped, held = " ".join(pids["T"]), ", ".join(pids["t"])
    steps = [f"to let it go on without a restart: kill -CONT {stopped}; then find out who stopped it"]
    traced = [f"find who holds pid {held} (TracerPid in /proc/PID/status), and let them detach"]
    unit = text(facts.service.get("name")) if facts.service.get("kind") == "systemd" else ""
    thaw = (
        f"systemctl thaw {unit}"
        if unit
        else f"cgroup.freeze of the group in /proc/{(pids['F'] or [''])[0]}/cgroup"
    )
    frozen = [f"to let it go on without a restart: {thaw}; then find out who froze it"]
    return [*(steps if stopped else []), *(traced if held else []), *(frozen if pids["F"] else [])]


def _next_blocked(facts: Facts) -> list[str]:
    if process.processes_halted(facts).value:
        return go_on(facts)
    return [f"ask the owner of the code about this: {process.threads_stuck(facts).text}"]


def _next_authentication(facts: Facts) -> list[str]:
    file = text((facts.config or {}).get("file"))
    where = f" in {file}" if file else ""
    return [
        f"mend the role, secret, database or pg_hba.conf: {text(facts.new_error.get('text'))}",
        f"they are set{where}",
    ]


def _next_login_broken(facts: Facts) -> list[str]:
    told = facts.error
    if not told:
        return ["read the app's log: the error is the app's own"]
    if facts.logged_now("other_dependency"):
        return [f"another dependency, not PostgreSQL: {told}"]
    if facts.logged_now("sql_error"):
        return [
            f"PostgreSQL answers, and refuses the statement: {told}; compare the schema with what the app expects"
        ]
    return [f"the app fails by itself, or by another dependency than PostgreSQL: {told}"]


_TOO_LATE = Restart(if_login_still_fails, "the connections are dead and the pool does not replace them")
_BUYS_TIME = Restart(always, "a restart frees everything, and it comes back", comes_back=True)
_HEALS = "a pool that validates what it hands out heals by itself"

CAUSES: tuple[Cause, ...] = (
    Cause(
        "postgres_unreachable",
        "PostgreSQL's host does not answer from here",
        (connection.no_answer_to_a_new_connection,),
        Restart(never, "a restarted app would meet the same silence"),
        say("check name, route and firewall between this host and {target}"),
        not_to_confuse=("postgres_down", "slot_leak"),
    ),
    Cause(
        "postgres_down",
        "PostgreSQL does not run: its host refuses connections",
        (any_of(connection.new_connection_refused, connection.refused_beyond_what_answers),),
        Restart(never, "a restarted app would be refused as well"),
        say("start PostgreSQL on {target}, or find out why it stopped: its own log says it"),
        not_to_confuse=("postgres_unreachable", "slot_leak"),
    ),
    Cause(
        "pgbouncer_queue",
        "PgBouncer's clients queue: its server connections are all busy",
        (connection.new_connection_hangs_in_query, connection.pgbouncer_queues),
        Restart(never, "a restarted app would queue again"),
        server.next_bouncer,
        not_to_confuse=("postgres_not_answering", "proxy_hang", "lock_contention"),
    ),
    Cause(
        "proxy_hang",
        "something between the app and PostgreSQL accepts and does not deliver",
        (any_of(connection.new_connection_silent, sockets.flows_hang), sockets.database_answers_elsewhere),
        Restart(
            if_a_new_connection_works,
            "it gives the app new connections, which helps once they work through the proxy",
        ),
        say("mend the proxy at {target}, which accepts and does not deliver; then run this again"),
    ),
    Cause(
        "postgres_not_answering",
        "PostgreSQL accepts connections and does not serve them",
        (connection.new_connection_silent,),
        Restart(never, "a restarted app would wait as well"),
        say("look at the server {target}: starting, recovering, stopped or out of CPU or disk"),
        not_to_confuse=("postgres_down",),
    ),
    Cause(
        "connection_slots_full",
        "PostgreSQL has no free connection slot for the app",
        (connection.no_slot_for_a_new_connection,),
        Restart(
            server.if_we_hold_the_slots,
            "the app competes for the same slots again, unless it holds them itself for nothing",
        ),
        server.next_slots,
        not_to_confuse=("slot_leak", "pool_too_small"),
    ),
    Cause(
        "authentication_failed",
        "PostgreSQL does not accept the app's credentials",
        (connection.new_connection_not_allowed,),
        Restart(never, "a restart would end the last connections that still work"),
        _next_authentication,
    ),
    Cause(
        "app_down",
        "the app does not run",
        (process.nothing_listens,),
        Restart(if_not_stopped_by_a_person, "it is started if it died, not if somebody stopped it"),
        _next_started,
        action="start",
        not_to_confuse=("postgres_down",),
    ),
    Cause(
        "app_resources",
        "the app ran out of descriptors, memory or local ports",
        (process.out_of_resources, connection.new_connection_works),
        _BUYS_TIME,
        say_with(
            process.out_of_resources, "find what grows in the app, or raise LimitNOFILE if it is only too low"
        ),
        not_to_confuse=("slot_leak", "app_blocked", "app_saturated"),
    ),
    Cause(
        "wrong_node",
        "the app writes to a standby",
        (connection.server_in_recovery, connection.app_writes_and_fails),
        Restart(if_a_primary_is_reached, "it helps only if a fresh connection reaches the primary"),
        _next_node,
    ),
    Cause(
        "postgres_read_only",
        "PostgreSQL is read only",
        (
            any_of(connection.server_read_only, connection.login_writes_and_fails),
            connection.server_is_primary,
            login.login_failed_or_fails,
        ),
        Restart(never, "a restarted app could not write either"),
        server.next_setting(
            "default_transaction_read_only", "find out who set it, and why, before undoing it"
        ),
    ),
    Cause(
        "lock_contention",
        "sessions of the app wait behind one lock",
        (database.many_wait_for_one_lock,),
        Restart(never, "the same requests would queue behind the lock again"),
        _next_lock,
        gives_way=database.root_is_leaked,
        not_to_confuse=("slow_queries", "pool_too_small"),
    ),
    Cause(
        "fork_shared",
        "processes share a connection that was opened before they were forked",
        (sockets.socket_shared_and_used,),
        _BUYS_TIME,
        _next_forked,
        not_to_confuse=("slot_leak", "idle_cut", "black_hole"),
    ),
    Cause(
        "nested_checkout",
        "requests wait for a second connection while they hold one",
        (pool.pool_is_exhausted, pool.waiters_already_hold_one),
        _BUYS_TIME,
        _next_nested,
        not_to_confuse=("connection_leak", "slow_queries", "pool_too_small"),
    ),
    Cause(
        "slow_queries",
        "the connections are busy with slow statements",
        (login.login_still_fails, database.slow_statements),
        Restart(never, "the same statements would be slow again"),
        _next_slow,
        not_to_confuse=("lock_contention", "held_while_waiting", "pool_too_small"),
    ),
    Cause(
        "held_while_waiting",
        "requests hold connections while they wait for something else",
        (pool.pool_is_exhausted, pool.holders_outside_the_database),
        Restart(never, "the same requests would hold them again"),
        _next_held,
        not_to_confuse=("connection_leak", "slow_queries", "pool_too_small"),
    ),
    Cause(
        "black_hole",
        "packets to PostgreSQL vanish on established connections",
        (sockets.peer_is_silent, connection.new_connection_works),
        Restart(if_login_still_fails, "threads stuck in recv come free only with the process"),
        server.next_black_hole,
    ),
    Cause(
        "app_blocked",
        "the app accepts and does not answer: its loop or all its threads are stuck",
        (login.login_hangs, process.threads_stuck),
        Restart(always, "a stuck loop comes free only with the process"),
        _next_blocked,
        not_to_confuse=("app_saturated", "slow_queries", "lock_contention", "black_hole"),
    ),
    Cause(
        "slot_leak",
        "the pool's slots are lost: used, and no connection behind them",
        (
            login.login_still_fails,
            pool.pool_is_exhausted,
            pool.slots_without_connection,
            pool.no_backend_of_the_app,
            connection.new_connection_works,
        ),
        _BUYS_TIME,
        _next_leak_site,
        not_to_confuse=("connection_leak", "lock_contention", "postgres_down", "pool_too_small"),
    ),
    Cause(
        "connection_leak",
        "connections are held for requests that are over",
        (any_of(all_of(pool.pool_is_exhausted, pool.holders_are_done), database.root_is_leaked),),
        _BUYS_TIME,
        _next_holders,
        not_to_confuse=("slot_leak", "pool_too_small"),
    ),
    Cause(
        "postgres_restarted",
        "PostgreSQL was restarted under the app's connections",
        (
            database.server_started_after_the_app,
            any_of(
                sockets.last_words("57P01", "ended by an administrator or a restart"),
                login.login_healed_at_the_restart,
            ),
            sockets.dead_ones_matter,
        ),
        _TOO_LATE,
        say(f"{_HEALS}; find out who restarted {{target}}"),
        not_to_confuse=("sessions_terminated", "postgres_crash_recovery"),
    ),
    Cause(
        "postgres_crash_recovery",
        "a crash of another backend made PostgreSQL end every session",
        (sockets.last_words("57P02", "a crash of another server process"), sockets.dead_ones_matter),
        _TOO_LATE,
        say("find the crash in the log of {target}"),
        not_to_confuse=("postgres_restarted",),
    ),
    Cause(
        "idle_session_timeout",
        "PostgreSQL ends the app's idle sessions (idle_session_timeout)",
        (sockets.last_words("57P05", "idle_session_timeout"), sockets.dead_ones_matter),
        _TOO_LATE,
        server.next_setting(
            "idle_session_timeout",
            "0 for the app's role switches it off; or let the pool close idle ones earlier",
        ),
        not_to_confuse=("sessions_terminated", "idle_cut"),
    ),
    Cause(
        "idle_in_transaction_timeout",
        "PostgreSQL ends sessions that idle in a transaction",
        (sockets.last_words("25P03", "idle_in_transaction_session_timeout"), sockets.dead_ones_matter),
        _TOO_LATE,
        server.next_setting(
            "idle_in_transaction_session_timeout",
            "end the transaction before doing something else (autocommit for reads): it held its connection too",
        ),
    ),
    Cause(
        "transaction_timeout",
        "PostgreSQL ends transactions that take too long",
        (sockets.last_words("25P04", "transaction_timeout"), sockets.dead_ones_matter),
        _TOO_LATE,
        server.next_setting(
            "transaction_timeout", "make the transaction shorter, or the timeout longer for the app's role"
        ),
    ),
    Cause(
        "sessions_terminated",
        "somebody terminated the app's sessions",
        (
            sockets.last_words("57P01", "ended by an administrator"),
            database.server_not_restarted,
            sockets.dead_ones_matter,
        ),
        _TOO_LATE,
        say(f"find the job that calls pg_terminate_backend() on {{target}} and stop it; {_HEALS}"),
        not_to_confuse=("postgres_restarted", "idle_session_timeout", "idle_cut"),
    ),
    Cause(
        "idle_cut",
        "something in between cut idle connections",
        (sockets.cut_without_a_word, sockets.dead_ones_matter),
        _TOO_LATE,
        server.next_cut,
        not_to_confuse=("sessions_terminated",),
    ),
    Cause(
        "host_suspended",
        "this machine, or the app on it, was suspended, and connections died meanwhile",
        (
            any_of(process.clock_stood_still, process.heartbeats_share_a_gap),
            sockets.dead_connections_held,
            sockets.dead_ones_matter,
        ),
        _TOO_LATE,
        say(
            "find out who suspended it: the hypervisor's log, a snapshot, or the freezer of its control group"
        ),
    ),
    Cause(
        "stale_configuration",
        "the running process has other settings than its file",
        (sockets.live_settings_differ,),
        Restart(never, "it is cured host by host by a rollout, not in the incident"),
        say_with(sockets.live_settings_differ, "roll the configuration out, host by host"),
        ends_logins=False,
    ),
    Cause(
        "monitor_dead",
        "the pool's monitor is dead",
        (pool.monitor_is_silent,),
        Restart(never, "it is cured host by host, not in the incident"),
        say("restart the app host by host when it is quiet"),
        ends_logins=False,
    ),
    Cause(
        "pool_too_small",
        "more requests want a connection than the pool may have",
        (login.login_failed_or_fails, pool.pool_is_exhausted, pool.somebody_waits, pool.nobody_holds_long),
        Restart(never, "the same demand would meet the same pool"),
        _next_too_small,
        not_to_confuse=("slot_leak", "connection_leak"),
    ),
    Cause(
        "app_saturated",
        "every worker is busy, and not with the database",
        (login.login_still_fails, process.workers_busy),
        Restart(never, "the same load would meet the same workers"),
        say_with(process.workers_busy, "add workers, or set a timeout for what keeps them"),
        last_resort=True,
        not_to_confuse=("app_blocked", "pool_too_small", "slow_queries"),
    ),
    Cause(
        "login_broken",
        "the login fails for a reason of its own, not the pool's",
        (login.login_fails_at_once, log.another_exception, connection.new_connection_works),
        Restart(never, "the same code would fail again"),
        _next_login_broken,
        last_resort=True,
        not_to_confuse=("slot_leak", "connection_slots_full", "authentication_failed"),
    ),
    Cause(
        "client_suspended",
        "the login works, and browsers report that their network was suspended",
        (login.login_works, log.browser_was_suspended),
        Restart(never, "nothing is wrong here"),
        say("ask the user to reload the page"),
        last_resort=True,
        ends_logins=False,
    ),
    Cause(
        "metric_artefact",
        "the app's own number is wrong: it counts slots that were never opened",
        (login.login_works, pool.own_number_is_wrong),
        Restart(never, "nothing is wrong but the number"),
        say_with(pool.own_number_is_wrong, "count what is used, not maximum minus idle"),
        ends_logins=False,
    ),
    Cause(
        "healthy",
        "the login works, and nothing is wrong that was looked for",
        (
            login.login_works,
            connection.new_connection_works,
            process.something_listens,
            sockets.sockets_were_read,
            database.database_was_read,
            log.log_was_read,
            pool.pool_was_read,
        ),
        Restart(never, "the login works"),
        say(),
        last_resort=True,
        ends_logins=False,
    ),
)
IDS = tuple(cause.id for cause in CAUSES)

"""Conditions of view X: the process."""

from __future__ import annotations

from .. import doing
from ..answers import Answer, count, decided, no, opposite, unread, yes
from ..facts import RECENT_SECONDS, Facts, mapping, number, text, whole
from .login import login_hangs, statuses


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
    """X: the machine was suspended (BOOTTIME minus MONOTONIC): nobody knows when since it booted, for the difference
    was not kept when the app started; so this leaves open what the heartbeats do not tell."""
    seconds = number(mapping(mapping(facts.process).get("clocks")).get("suspended_seconds"))
    if seconds is None:
        return unread(facts, "process", "whether the machine was suspended")
    words = f"this machine was suspended for {seconds:.0f} s since it booted"
    return Answer(None, f"when {words}", "process") if seconds > 1 else no("process", words)


def heartbeats_share_a_gap(facts: Facts) -> Answer:
    """P: within the last hour every heartbeat of the app fell silent and came back at the same moment: none of it
    ran meanwhile. Heartbeats count the time that the machine was suspended."""
    if facts.pool is None or facts.now is None:
        return unread(facts, "pool", "whether the whole app stood still for a while")
    if facts.gap is None:
        return no("pool", "no silence that all heartbeats of the app share")
    seconds, ago = facts.gap[0], facts.now - facts.gap[1]
    words = f"the whole app stood still for {seconds:.0f} s, until {ago:.0f} s ago"
    return decided(ago < RECENT_SECONDS, "pool", words)


def processes_halted(facts: Facts) -> Answer:
    """X: every process of the app is stopped, frozen, or held by a debugger; or one that serves is, and clients wait to be
    accepted. A parent that only minds its workers is not why nobody is answered."""
    if facts.processes is None or not facts.looks:
        return unread(facts, "process", "whether a process is stopped")
    if not facts.halted:
        return no("process", "no process is stopped")
    living = {whole(p.get("pid")): whole(p.get("ppid")) for p in facts.processes if p.get("state") != "Z"}
    if set(living) <= set(facts.halted):
        return yes("process", facts.halted_words)
    serving = set(facts.halted) - (set(living.values()) - doing.event_loops(facts))
    queues = [
        number(look.get("not_accepted")) for look in facts.looks if look.get("moment") != "before_login"
    ]
    if serving and (None in queues or not queues):
        return unread(facts, "process", f"{facts.halted_words}: whether clients wait to be accepted")
    refused = min((whole(queue) for queue in queues), default=0)
    words = f"{facts.halted_words}; {count(refused, 'client')} waited to be accepted"
    return decided(serving and refused, "process", words)


def threads_stuck(facts: Facts) -> Answer:
    """P, X: an event loop is silent for more than 5 s, or threads wait for a session that the server does not have;
    or processes are stopped or frozen.

    A loop that comes round says nothing of the threads that it gives requests to.
    """
    hangs = login_hangs(facts)
    if hangs.value is False:
        return no("login", hangs.text)
    halted = processes_halted(facts)
    if halted.value:
        return halted
    beats = [
        (number(mapping(status.get("loop")).get("heartbeat_age")), status) for status in facts.pool or []
    ]
    known = [(age, whole(status.get("pid"))) for age, status in beats if age is not None]
    if known and max(known)[0] > 5:
        age, pid = max(known)
        return yes("pool", f"the event loop of pid {pid} beat {age:.0f} s ago{doing.stands_at(facts, pid)}")
    waiting = doing.unanswered(facts)
    lost = sum(state == "none" for _, state in (waiting or {}).values())
    if lost:
        return yes("process", f"threads wait on {count(lost, 'connection')} without a session in PostgreSQL")
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
    if waiting is None:
        return unread(facts, "activity", "whether threads wait for a session that PostgreSQL does not have")
    at_once = "every client was accepted at once, so the event loop comes round"
    return no("process", "no event loop is stuck" if refused else at_once)


def workers_busy(facts: Facts) -> Answer:
    """P, X: the pool is idle, nobody waits for it, and every worker is busy elsewhere."""
    if facts.login_fails is False:
        return no("login", "the login works")
    if facts.pool is not None and facts.pool_count("waiting"):
        return no("pool", f"{facts.pool_count('waiting')} wait for a connection")
    if facts.logged_now("pool_exhausted"):
        return no("log", "logins fail for want of a connection, not of a worker")
    if login_hangs(facts).value is False:
        return no("login", f"the app answers: {statuses(facts)}")
    looks = doing.while_it_hangs(facts)
    found = doing.work_by_stacks(facts) or (doing.work(facts, looks[-1]) if looks else None)
    if found is None:
        return unread(facts, "process", "whether every worker is busy (thread stacks)")
    loops = doing.event_loops(facts)
    for pid, work in sorted(found.items()):
        if work.busy >= max(4 if pid in loops else 1, 9 * work.idle) and work.busy > work.database:
            words = (
                f"{count(work.busy, 'thread')} of pid {pid} at work elsewhere ({work.most}), {work.idle} free"
            )
            return yes("process", words)
    busy, idle = sum(w.busy for w in found.values()), sum(w.idle for w in found.values())
    return no("process", f"{count(busy, 'thread')} at work elsewhere than with PostgreSQL, {idle} free")


def something_listens(facts: Facts) -> Answer:
    """X: the app listens."""
    return opposite(nothing_listens(facts))

"""Conditions of view P: the pool, and what tells of it where there is no status socket."""

from __future__ import annotations

from typing import Any, Optional

from ...common.clock import seconds_of
from .. import doing
from ..answers import Answer, count, decided, most_common, no, unread, yes
from ..facts import MONITOR_SECONDS, OLD_SECONDS, Facts, mapping, number, rows, text, whole
from .login import login_fails_at_once, login_hangs
from .process import threads_stuck


def pool_is_exhausted(facts: Facts) -> Answer:
    """P, L: every slot is used; without a status socket, the app says so while the probe runs."""
    if facts.pool is not None:
        used, most = facts.pool_count("used") or 0, facts.pool_count("maximum") or 0
        words = f"{used} of {most} used"
        if facts.full and used < most:  # with several workers, who meets the full one fails
            words += f"; all of them in {len(facts.full)} of {count(len(facts.pool), 'process')}"
        return decided(facts.full, "pool", words)
    if facts.pool_was_free:
        return no("login", "the login works, so a connection was free")
    lines = facts.logged_now("pool_exhausted")
    if lines is None:
        return unread(facts, "log", "whether the pool is exhausted")
    if not lines and login_hangs(facts).value and not facts.pool_never_waits:
        return _logins_wait_for_the_pool(facts)
    return decided(lines, "log", f"{count(lines, 'line')} about an exhausted pool during the probe")


def _logins_wait_for_the_pool(facts: Facts) -> Answer:
    """A pool that waits says that it is exhausted later than the probe lasts: so what others were told counts."""
    stuck = threads_stuck(facts)
    if stuck.value:
        return no(stuck.view, f"{stuck.text}: nobody comes as far as the pool")
    age = facts.logged_lately("pool_exhausted")
    if age is not None:
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
        return decided(lost > 0, "pool", f"{used} used, {holders} held by someone, {connecting} connecting")
    if facts.held is None:
        return unread(facts, "sockets", "whether used slots have connections")
    # The probe itself may have opened what was not open before it.
    held = max(len(facts.held), len(facts.sample("after_login") or []))
    words = f"{count(held, 'socket')} from the app to {facts.target}"
    moments = [{text(row.get("local")) for row in rows(sample.get("sockets"))} for sample in facts.samples]
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
    return decided(found <= limit, "activity", f"{count(found, 'session')} of the app on the server")


def holders_are_done(facts: Facts) -> Answer:
    """P: connections are held, long, for requests that are over. Without P or request ids, D, X: sessions have been
    idle for long although the pool is exhausted, and there are fewer requests and working threads than such sessions;
    where P tells who took them: ever since, and two of them at one site."""
    taken: dict[int, dict[str, Any]] = {}
    if facts.holders is not None:
        old = [h for h in facts.holders if _age(h) > OLD_SECONDS and not h.get("long_lived")]
        over = [h for h in old if h.get("request_over") is True]
        taken = {whole(h.get("backend_pid")): h for h in old if h.get("request_over") is None}
        if len(over) >= 2 or len(over) + len(taken) < 2:
            words = f"{count(len(over), 'connection')} held for requests that are over{_at(facts, over)}"
            return decided(len(over) >= 2, "pool", words)
    elif facts.login_fails is False:
        return no("login", "the login works, so a connection was free")
    elif facts.alive is not None and facts.alive < 2:
        return no("sockets", f"needs living holders; there are {count(facts.alive, 'open socket')}")
    if facts.backends is None:
        return unread(facts, "activity", "how long sessions have been idle")
    idle = facts.resting_for(OLD_SECONDS)
    if taken:
        idle = [s for s in idle if _idle_since(facts, s, taken.get(whole(s.get("pid"))))]
    kept = [taken.get(whole(session.get("pid")), {}) for session in idle]
    words = f"{count(len(idle), 'session')} idle for more than {OLD_SECONDS:.0f} s{_at(facts, kept)}"
    if len(idle) < 2 and all(map(facts.session, taken)):
        return no("activity", words)
    under_way = requests_under_way(facts)
    if under_way is None:
        return unread(facts, "process", "whether the requests that hold the connections are over")
    words += f", and {under_way} at work for them"
    sites = [holder.get("site") for holder in kept]
    if len(idle) - under_way >= 2 and max(map(sites.count, sites)) >= 2:
        return yes("process", words)
    return Answer(None, f"{words}: who holds which", "pool")


def _idle_since(facts: Facts, session: dict[str, Any], holder: Optional[dict[str, Any]]) -> bool:
    """Has the session been idle since this holder took it, save for what a request does at first?"""
    age = facts.server_age(session.get("state_change")) or 0.0
    return holder is not None and age > _age(holder) - OLD_SECONDS


def _age(one: dict[str, Any]) -> float:
    return number(one.get("age")) or 0.0


def _at(facts: Facts, askers: list[dict[str, Any]], words: str = ", at") -> str:
    """The place where most of them took or want a connection, in words; empty where none is known."""
    site = most_common([text(one.get("site")) for one in askers])
    return f"{words} {facts.short(site)}" if site else ""


def requests_under_way(facts: Facts) -> Optional[int]:
    """How many requests that may hold a connection are under way at most, before the probe: clients connected, save
    those that wait for one, and threads at work."""
    look = doing.before_the_probe(facts)
    connected = number(look.get("connected")) if look else None
    if look is None or connected is None:
        return None
    waiting = sum(not held_by(facts, waiter) for waiter in facts.waiters or [])
    return max(whole(connected) - waiting, sum(work.busy for work in doing.work(facts, look).values()))


def held_by(facts: Facts, waiter: dict[str, Any]) -> int:
    """How many connections the request that waits for one has. Without request ids the pool counts its thread's:
    what that took long before was for another request."""
    tid = whole(waiter.get("tid"))
    if text(waiter.get("request_id")) or not tid:
        return whole(waiter.get("holds"))
    own = [holder for holder in facts.holders or [] if whole(holder.get("tid")) == tid]
    return sum(_age(holder) - _age(waiter) <= OLD_SECONDS for holder in own)


def waiters_already_hold_one(facts: Facts) -> Answer:
    """P: most connections are held by requests that wait for another one."""
    if facts.waiters is not None:
        nested = [w for w in facts.waiters if held_by(facts, w)]
        held = sum(held_by(facts, w) for w in nested)
        used = sum(whole(mapping(status.get("count")).get("used")) for status in facts.full)
        words = f"{held} of {used} connections are held by requests that wait for one more"
        return decided(len(nested) >= 2 and 2 * held >= used, "pool", words + _at(facts, nested))
    open_question = _living_holders(facts, "whether those who wait already hold a connection")
    if open_question.value is not None:
        return open_question
    if facts.logged_now("pool_exhausted") and login_fails_at_once(facts).value:
        return no("login", "the pool refuses at once, so nobody waits in it")
    under_way = requests_under_way(facts)
    if under_way is None or facts.backends is None:
        return open_question
    resting = len(facts.resting_for(5))
    if min(resting, under_way) < 2 and not _gave_up(facts):
        words = f"{count(resting, 'session')} idle for more than 5 s, {under_way} requests under way"
        return no("process", f"{words}: nobody holds one and waits for another")
    return open_question


def holders_outside_the_database(facts: Facts) -> Answer:
    """P: holders' requests are alive and do something else than a query. Without P or request ids, X: so do threads."""
    if facts.holders is not None and facts.activity is not None:
        queued = {text(w.get("request_id")) for w in facts.waiters or [] if held_by(facts, w)} - {""}
        waiting = [
            h
            for h in facts.holders
            if h.get("request_over") is not True
            and text(h.get("request_id")) not in queued
            and _age(h) > 5
            and not h.get("long_lived")
            and not facts.active_backend(h)
        ]
        alive = [h for h in waiting if h.get("request_over") is False]
        if len(alive) >= 2 or len(waiting) < 2:
            site = _at(facts, alive, ", taken at")
            at = most_common([doing.stands_at(facts, h.get("tid")) for h in alive])
            words = f"{count(len(alive), 'request')} holding a connection for more than 5 s without a query"
            return decided(len(alive) >= 2, "pool", f"{words}{site}{f', and now{at}' if at else ''}")
    look = doing.before_the_probe(facts)
    open_question = _living_holders(facts, "what the holders of connections do")
    if open_question.value is not None or facts.backends is None or look is None:
        return open_question
    resting = len(facts.resting_for(5))
    words = f"{count(resting, 'session')} idle for more than 5 s"
    if resting < 2:
        return no("activity", words)
    busy = [work for work in doing.work(facts, look).values() if work.busy]
    threads = sum(work.busy for work in busy)
    words += f"; {count(threads, 'thread')} at work elsewhere"
    words += f" ({', '.join(work.most for work in busy)})" if busy else ""
    if 2 * threads >= resting:
        return yes("process", words)
    under_way = requests_under_way(facts)
    if under_way is None or resting - under_way < 2:
        return open_question
    return no("process", f"{words}, {under_way} requests under way")


def somebody_waits(facts: Facts) -> Answer:
    """P, L: requests wait for a connection, or were refused one while the probe ran."""
    refused = facts.logged_now("pool_exhausted")
    if facts.waiters is not None:
        waiting = len(facts.waiters) or facts.pool_count("waiting") or 0
        return decided(waiting or refused, "pool", f"{count(waiting, 'request')} waiting for a connection")
    if refused is None:
        return unread(facts, "log", "whether requests want a connection")
    if not refused and login_hangs(facts).value:
        return pool_is_exhausted(facts)
    return decided(refused, "log", f"{count(refused, 'request')} refused a connection during the probe")


def nobody_holds_long(facts: Facts) -> Answer:
    """P: the pool is full of short holders: more demand than slots."""
    if facts.holders is not None:
        old = sum(1 for h in facts.holders if (number(h.get("age")) or 0) > 5 and not h.get("long_lived"))
        return decided(not old, "pool", f"{count(old, 'holder')} for more than 5 s")
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
    words = f"{count(old, 'session')} without a new state for more than 5 s"
    gave_up = _gave_up(facts)
    if gave_up:
        return Answer(None, f"how long connections are held: {words}, and {gave_up}", "activity")
    return decided(not old, "activity", words)


def _gave_up(facts: Facts) -> str:
    """Whether requests waited in vain until a moment ago for connections that nobody used, in words; else empty.

    What they held is free again then, and the sessions of whoever came after them are new for that alone.
    """
    waited = facts.logged_now("pool_exhausted") if login_hangs(facts).value else 0
    said = text(mapping(mapping(facts.log).get("samples")).get("pool_exhausted")).lower()
    looks = [look for look in facts.looks if look.get("moment") != "after_login"]
    used = any(work.database for look in looks for work in doing.work(facts, look).values())
    old = sum((facts.server_age(s.get("state_change")) or 0) > 5 for s in facts.backends or [])
    # One may still be about to give up; in psycopg2's pool nobody waits.
    if not waited or used or old > 1 or "connection pool exhausted" in said:
        return ""
    return f"{count(waited, 'request')} gave up waiting"


def _living_holders(facts: Facts, question: str) -> Answer:
    """Without P: nobody can hold a connection where there is none, and nobody lacks one where logins work."""
    if facts.pool_was_free:
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
        return decided(dead, "pool", words)
    newest = text((facts.monitor or {}).get("newest"))
    if facts.no_monitor:
        return no("log", "the app has no status socket, and its log knows no monitor of the pool")
    if not newest or facts.now is None:
        return unread(
            facts, "monitor", "whether the pool's monitor is alive: no heartbeat, no dated line of it"
        )
    age = facts.server_age(newest) or 0.0
    return decided(age > 2 * MONITOR_SECONDS, "log", f"the monitor's newest line is {age:.0f} s old")


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
    return decided(told > held, "log", words)


def pool_was_read(facts: Facts) -> Answer:
    """P: the pool was asked, where the app can answer."""
    if facts.pool is not None:
        return yes("pool", f"{facts.pool_count('used')} of {facts.pool_count('maximum')} used")
    if facts.no_status_socket:
        return yes("pool", "the app has no status socket to ask")
    return unread(facts, "pool", "what the process says of its pool")

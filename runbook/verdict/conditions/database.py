"""Conditions of view D: the database."""

from __future__ import annotations

from typing import Any, Optional

from .. import doing
from ..answers import Answer, count, decided, no, opposite, unread, yes
from ..facts import OLD_SECONDS, Facts, number, text, truth, whole


def _backends(facts: Facts, question: str) -> Optional[Answer]:
    if facts.held == [] and facts.pool is None:
        return no("sockets", f"0 sockets from the app to {facts.target}")
    return unread(facts, "activity", question) if facts.backends is None else None


def many_wait_for_one_lock(facts: Facts) -> Answer:
    """D: at least two of the app's sessions have waited for a second or more behind one session."""
    if facts.waiting_for_lock is None:
        question = "whether sessions wait for a lock"
        return _backends(facts, question) or unread(facts, "locks", question)
    found = len(longest_queue(facts)[1])
    return decided(found >= 2, "activity", f"{count(found, 'session')} of the app wait behind one lock")


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
    over = truth(holder.get("request_over")) if holder else None
    if holder and over is not None:
        told = f"its request is {'over' if over else 'under way'}, taken at {text(holder.get('site'))}"
        return decided(over, "pool", f"{words}; {told}")
    if session not in facts.resting:
        return no("activity", f"{words}, at work")
    look = doing.before_the_probe(facts)
    if look is None or age < OLD_SECONDS:
        return unread(facts, "process", "whether the request that holds the lock is over")
    # Each session that waits is a request of its own; is there another, or a thread at work, that could hold it?
    clients = whole(look.get("connected")) - len(waiting)
    busy = sum(work.busy for work in doing.work(facts, look).values())
    if clients > 0 or busy:
        return Answer(None, f"{words}; whether its request is over", "process")
    return yes("process", f"{words}; no request is under way but those that wait")


def slow_statements(facts: Facts) -> Answer:
    """D: at least half of the app's sessions are in statements that run for long and wait for no lock."""
    missing = _backends(facts, "whether statements are slow")
    if missing:
        return missing
    slow = slow_sessions(facts)
    many = max(2, len(facts.backends or []) / 2)
    words = f"{len(slow)} of {count(len(facts.backends or []), 'session')} in a statement for more than 5 s"
    return decided(len(slow) >= many, "activity", words)


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
    now = facts.server_now
    since = f"{max(0.0, now - facts.postmaster_start):.0f} s ago, " if now is not None else ""
    return decided(younger, "server", f"the server started {since}{'after' if younger else 'before'} the app")


def server_not_restarted(facts: Facts) -> Answer:
    """D, N: the server has not been started since the app was."""
    return opposite(server_started_after_the_app(facts))


def database_was_read(facts: Facts) -> Answer:
    """D: the server's side was read."""
    if facts.activity is None:
        return unread(facts, "activity", "the server's side")
    return yes("activity", f"the server has {count(len(facts.backends or []), 'session')} of the app")

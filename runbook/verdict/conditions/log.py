"""Conditions of view L: the log."""

from __future__ import annotations

from typing import Any

from ..answers import Answer, count, no, unread, yes
from ..facts import Facts
from .database import longest_queue
from .process import nothing_listens


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

"""Conditions of view L: the log."""

from __future__ import annotations

from ..answers import Answer, count, decided, no, unread, yes
from ..facts import WITHOUT_CONNECTION, Facts


def another_exception(facts: Facts) -> Answer:
    """L: what the log shows while the login fails is not about a connection to PostgreSQL."""
    if facts.login_fails is False:
        return no("login", "the login works")
    if facts.logged_now() is None:
        return unread(facts, "log", "what the app logs when the login fails")
    about = facts.logged_now(*WITHOUT_CONNECTION)
    # A statement that fails and whose connection is then forgotten exhausts the pool, as logins are tried.
    failed = facts.logged_now("sql_error")
    if about and not failed:
        return no("log", f"{count(about, 'line')} about connections to PostgreSQL during the probe")
    other = facts.logged_now("exception", "login_error", "server_error", "other_dependency", "sql_error") or 0
    words = f"{count(other, 'line')} about another error during the probe"
    return decided(other, "log", f"{words}{f': {facts.error}' if other and facts.error else ''}")


def browser_was_suspended(facts: Facts) -> Answer:
    """L: a browser reports that its own network was suspended."""
    lines = facts.logged("client_suspended")
    if lines is None:
        return unread(facts, "log", "whether browsers report a suspended network")
    return decided(lines, "log", f"{count(lines, 'line')} about a browser's suspended network")


def log_was_read(facts: Facts) -> Answer:
    """L: the log was read."""
    if facts.log is None:
        return unread(facts, "log", "what the app logged")
    return yes("log", "the log was read")

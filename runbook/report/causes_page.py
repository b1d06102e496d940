"""``docs/causes.md``, written from the table of causes. `make docs` writes it; a test holds it to the table."""

from __future__ import annotations

from ..verdict import server
from ..verdict.causes import (
    CAUSES,
    Cause,
    always,
    if_a_new_connection_works,
    if_a_primary_is_reached,
    if_login_still_fails,
    never,
)

_RESTART = {
    always: "helps",
    never: "does not help",
    if_login_still_fails: "helps only if the login still fails",
    if_a_new_connection_works: "helps only if a new connection works",
    server.if_we_hold_the_slots: "helps only if the app itself holds most of the slots, for requests that are over",
    if_a_primary_is_reached: "helps only if a fresh connection reaches a primary",
}

HEAD = """# The causes

Written from the table in `runbook/verdict/causes.py` by `make docs`. The order is the rank: the first cause whose
conditions all hold is the cause, and what holds below it contributes. A condition is true, false or unread; the letter
says which view decides it: U the user's path, N a new connection, D the database, S sockets, P the pool, L the log,
X the process.
"""


def causes_page() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for rank, cause in enumerate(CAUSES, 1):
        conditions = "\n".join(f"- {' '.join((c.__doc__ or '').split())}" for c in cause.conditions)
        parts.append(
            f"## {rank}. {cause.id}\n\n{cause.title[:1].upper()}{cause.title[1:]}.\n\n{conditions}\n\n{_action(cause)}\n"
        )
    parts.append(
        "## unknown\n\nA needed view could not be read, or nothing fits. The report lists what fits, what was not read and"
        " what it would decide.\n"
    )
    return "\n".join(parts)


def _action(cause: Cause) -> str:
    if cause.action == "start":
        return f"A start helps if it died: {cause.restart.why}."
    return f"A restart {_RESTART[cause.restart.helps]}: {cause.restart.why}."

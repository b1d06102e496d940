"""The table of faults, and what the functions that make them share.

A fault is one function that breaks the running lab for real, checks that it is broken, and returns what it
did in a sentence. It raises `LabError` when the symptom did not come. `Lab.heal` undoes all of them alike,
so none has to be undone by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tests.lab.lab import Lab

DEADLINE_SECONDS = 10
POLL_SECONDS = 0.05

Restart = Literal["none", "start", "restart"]
Make = Callable[["Lab"], str]


class LabError(Exception):
    """The lab cannot do what it was asked to; the text says why and what to do."""


@dataclass(frozen=True)
class Fault:
    """One row of the table of faults.

    cause: the cause id that a diagnosis should come to.
    restart: what it should do to the application: nothing, start it, or restart it.
    apps: the apps that it can be made in; empty for all of them.
    instead: app → (cause, restart), where an app takes the same fault in another way.
    """

    name: str
    cause: str
    restart: Restart
    make: Make
    apps: tuple[str, ...] = ()
    instead: tuple[tuple[str, tuple[str, Restart]], ...] = ()

    def wanted(self, app: str) -> tuple[str, Restart]:
        """(cause, restart) that a diagnosis of this app should come to."""
        return dict(self.instead).get(app, (self.cause, self.restart))


FAULTS: dict[str, Fault] = {}


def fault(
    cause: str,
    restart: Restart,
    *,
    apps: tuple[str, ...] = (),
    **instead: tuple[str, Restart],
) -> Callable[[Make], Make]:
    """Enter the decorated function in `FAULTS` under its own name; the arguments are those of `Fault`."""

    def enter(make: Make) -> Make:
        name = make.__name__
        FAULTS[name] = Fault(name, cause, restart, make, apps, tuple(instead.items()))
        return make

    return enter


def wait_until(true: Callable[[], object], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Poll until `true()`; LabError naming `what` after the deadline."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise LabError(f"not within {seconds:.0f} s: {what}")
        time.sleep(POLL_SECONDS)


# Two faults at once: the first is the cause, and its restart is the wanted one. It is made after the second,
# but for those that change what the running application is not told of.
PAIRS: list[tuple[str, str]] = [
    ("postgres_unreachable", "sessions_terminated"),
    ("postgres_unreachable", "slot_leak"),
    ("postgres_down", "sessions_terminated"),
    ("postgres_down", "slot_leak"),
    ("pgbouncer_queue", "stale_configuration"),
    ("proxy_hang", "stale_configuration"),
    ("postgres_not_answering", "sessions_terminated"),
    ("role_limit", "sessions_terminated"),
    ("role_limit", "slot_leak"),
    ("password_changed", "stale_configuration"),
    ("app_resources", "sessions_terminated"),
    ("wrong_node", "stale_configuration"),
    ("postgres_read_only", "sessions_terminated"),
    ("lock_contention", "idle_session_timeout"),
    ("lock_contention", "stale_configuration"),
    ("slow_trigger", "idle_session_timeout"),
    ("black_hole", "stale_configuration"),
    ("slot_leak", "stale_configuration"),
    ("connection_leak", "stale_configuration"),
    ("sessions_terminated", "stale_configuration"),
]
MADE_LAST = ("stale_configuration",)
# A pool that lost all its slots has no connection left to read the live settings by.
HIDDEN = (("slot_leak", "stale_configuration"),)

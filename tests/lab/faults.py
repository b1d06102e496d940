"""The faults: each done for real, from outside, by a process that the diagnosis knows nothing of.

A fault is one function that breaks the running lab, checks that it is broken, and returns what it did in a
sentence. It raises `LabError` when the symptom did not come. Add one by decorating a function below.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tests.lab.lab import Lab

DEADLINE_SECONDS = 10
POLL_SECONDS = 0.05


class LabError(Exception):
    """The lab cannot do what it was asked to; the text says why and what to do."""


Make = Callable[["Lab"], str]


@dataclass(frozen=True)
class Fault:
    """One row of the table of faults.

    wanted_cause: the cause id that a diagnosis should come to.
    wanted_restart: what it should do to the application: nothing, start it, or restart it.
    """

    name: str
    wanted_cause: str
    wanted_restart: Literal["none", "start", "restart"]
    make: Make


FAULTS: dict[str, Fault] = {}


def fault(wanted_cause: str, wanted_restart: Literal["none", "start", "restart"]) -> Callable[[Make], Make]:
    """Enter the decorated function in `FAULTS` under its own name."""

    def enter(make: Make) -> Make:
        FAULTS[make.__name__] = Fault(make.__name__, wanted_cause, wanted_restart, make)
        return make

    return enter


def wait_until(true: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Poll until `true()`; LabError naming `what` after the deadline."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise LabError(f"not within {seconds:.0f} s: {what}")
        time.sleep(POLL_SECONDS)


@fault("healthy", "none")
def healthy(lab: Lab) -> str:
    """Break nothing."""
    status = lab.login()
    if status != 200:
        raise LabError(f"the login answers {status}, not 200: `scripts/lab heal` first")
    return "nothing was broken; a login answered 200"


@fault("slot_leak", "restart")
def slot_leak(lab: Lab) -> str:
    """End the application's sessions on the server, with logins in between, until its pool has no slot left.

    Each time the application meets a dead connection it closes it and forgets to give the slot back.
    """
    attempts, most_rounds = 5, 3 * lab.pool_maximum
    for cuts in range(1, most_rounds + 1):
        lab.end_sessions()
        before = lab.log.stat().st_size
        # At most one login fails of the cut itself; the pool is exhausted when none comes through.
        if all(lab.login() == 500 for _ in range(attempts)):
            with lab.log.open("rb") as log:
                log.seek(before)
                said = log.read().count(b"Login error: connection pool exhausted")
            if said < attempts - 1 or lab.sessions():
                raise LabError(f"logins fail, but not for want of a slot; see {lab.log}")
            return (
                f"ended the application's sessions {cuts} times, with logins in between; now {attempts} of "
                f"{attempts} logins answered 500 (connection pool exhausted); the server has no session of it"
            )
    raise LabError(f"the pool still has slots after {most_rounds} rounds of cuts and logins")


@fault("sessions_terminated", "none")
def sessions_terminated(lab: Lab) -> str:
    """End all sessions once. The application has not noticed yet: no login follows."""
    statuses = lab.logins(8)
    if set(statuses) != {200}:
        raise LabError(f"logins answered {statuses} before the cut: `scripts/lab heal` first")
    ended = lab.end_sessions()
    if ended < 2 or lab.sessions():
        raise LabError(f"{ended} sessions ended, {lab.sessions()} left; wanted at least 2 and 0")
    return f"ended {ended} idle sessions of the application on the server, once; 0 are left there"


@fault("postgres_down", "none")
def postgres_down(lab: Lab) -> str:
    """Stop the server."""
    pid = lab.server.postmaster_pid
    lab.server.stop()
    wait_until(lambda: not lab.listens(lab.server.port), "PostgreSQL's port refuses connections")
    return f"stopped PostgreSQL (pid {pid}); port {lab.server.port} refuses connections"


@fault("app_down", "start")
def app_down(lab: Lab) -> str:
    """Kill the application without a word; its pid file stays."""
    pids = lab.app_pids()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not lab.app_pids() and not lab.listens(lab.app_port), "the application is gone")
    if not lab.pid_file.exists():
        raise LabError(f"{lab.pid_file} is gone; it should have stayed")
    return (
        f"killed the application (pid {', '.join(map(str, pids))}); port {lab.app_port} refuses connections"
    )

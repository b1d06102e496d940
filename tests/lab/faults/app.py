"""What breaks in the application, or on its host."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from tests.lab.faults.table import LabError, fault, wait_until

if TYPE_CHECKING:
    from tests.lab.lab import Lab


@fault("healthy", "none")
def healthy(lab: Lab) -> str:
    """Break nothing."""
    status = lab.login()
    if status != 200:
        raise LabError(f"the login answers {status}, not 200: `scripts/lab heal` first")
    return "nothing was broken; a login answered 200"


@fault("slot_leak", "restart", apps=("guide",))
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

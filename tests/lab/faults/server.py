"""What breaks in PostgreSQL, or on its host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lab.faults.table import LabError, fault, wait_until

if TYPE_CHECKING:
    from tests.lab.lab import Lab


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

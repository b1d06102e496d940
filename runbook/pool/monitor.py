"""The pool's background thread, and the proof that an event loop is alive."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from .connection import clock
from .status import utc_now

if TYPE_CHECKING:
    from .pool import Pool

logger = logging.getLogger("runbook.pool")

HIGH_USAGE = 0.8  # share of the maximum
# How far back the baseline of the server's counters reaches: so many of them, at least so many seconds apart.
BASELINES, BASELINE_SECONDS = 12, 270.0
PULSE_SECONDS = 1.0  # between two signs of life of a thread or an event loop
GAP_SECONDS = 5.0  # from when on a silence is kept; where all have the same one, the process did not run

_SESSION_COUNTERS = """
    SELECT sessions_killed, sessions_fatal, sessions_abandoned
    FROM pg_stat_database WHERE datname = current_database()
"""


class Pulse:
    """Signs of life, and the last long silence between two of them."""

    def __init__(self) -> None:
        self.gap: dict[str, object] | None = None
        self._last = clock()

    def beat(self) -> None:
        """Here is one."""
        now = clock()
        if now - self._last > GAP_SECONDS:
            self.gap = {"seconds": round(now - self._last, 3), "ended_at": utc_now()}
        self._last = now

    def age(self) -> float:
        """Seconds since the last one."""
        return clock() - self._last


class Monitor:
    """A thread that looks after the pool every `monitor_interval` seconds.

    Each tick: closes what is too old, tests every idle connection by a round trip, opens what is missing to
    the minimum, keeps a baseline of the server's session counters, logs the counts (a warning above 80 % of
    used), calls the housekeeping. Whatever fails is logged and shown in the status; the thread lives on.
    """

    def __init__(self, pool: Pool) -> None:
        self.last_error: str | None = None
        self.baseline: deque[dict[str, object]] = deque(maxlen=BASELINES)
        self.pulse = Pulse()
        self._baseline_at = float("-inf")
        self._pool = pool
        self._beat: float | None = None
        self._stopped = False
        self._called = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pool-monitor", daemon=True)

    def start(self) -> None:
        """Start the thread; its first tick comes at once."""
        self._thread.start()

    def wake(self) -> None:
        """Look after the connections now; the other duties keep their time, by the interval that holds now."""
        self._called.set()

    def stop(self) -> None:
        """Ask the thread to end; `join` waits for that."""
        self._stopped = True
        self._called.set()

    def join(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the thread's end; from the thread itself this does nothing."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def heartbeat_age(self) -> float | None:
        """Seconds since it last finished a round of work; None before the first."""
        return None if self._beat is None else clock() - self._beat

    def _run(self) -> None:
        logger.info(
            "Database connection pool monitor started, every %g s", self._pool.settings.monitor_interval
        )
        ticked = float("-inf")
        while not self._stopped:
            self._called.clear()
            try:
                if clock() >= ticked + self._pool.settings.monitor_interval:
                    ticked = clock()
                    self._tick()
                else:
                    self._look_after_connections()
                self.last_error = None
            except Exception as error:
                self.last_error = " ".join(f"{type(error).__name__}: {error}".split())
                logger.exception("Error in database monitor")
            self._beat = clock()
            while not self._called.is_set() and clock() < ticked + self._pool.settings.monitor_interval:
                self.pulse.beat()
                left = ticked + self._pool.settings.monitor_interval - clock()
                self._called.wait(max(0.0, min(PULSE_SECONDS, left)))
            self.pulse.beat()

    def _tick(self) -> None:
        self._look_after_connections()
        self._log_usage()
        self._keep_baseline()
        if self._pool.housekeeping is not None:
            self._pool.housekeeping()

    def _look_after_connections(self) -> None:
        pool = self._pool
        pool.reap()
        pool.retire()
        for connection in pool.idle_connections():
            if self._stopped:
                return
            pool.ask_idle(connection)
        pool.keep_minimum()

    def _log_usage(self) -> None:
        now = self._pool.snapshot()
        maximum = self._pool.settings.max_connections
        share = f"{now.used}/{maximum} connections"
        rest = f"{now.idle} idle, {now.dead} dead, {len(now.waiters)} waiting, peak {now.counters.peak_used}"
        logger.info("DB Pool Status: %s in use (%s)", share, rest)
        if now.used > maximum * HIGH_USAGE:
            logger.warning("High connection pool usage: %s (%s)", share, rest)

    def _keep_baseline(self) -> None:
        if clock() - self._baseline_at < BASELINE_SECONDS:
            return
        for connection in reversed(self._pool.idle_connections()):
            if connection.server_version < 140_000:
                return  # these counters came with PostgreSQL 14
            row = self._pool.ask_idle(connection, _SESSION_COUNTERS)
            if row is not None:
                names = ("sessions_killed", "sessions_fatal", "sessions_abandoned")
                self.baseline.append({"at": utc_now(), **dict(zip(names, row))})
                self._baseline_at = clock()
                return


class LoopHeartbeat(Pulse):
    """A sign of life from the running event loop every second, for as long as the loop exists."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._again()

    def closed(self) -> bool:
        """Whether the loop is closed, so that its silence means nothing."""
        return self._loop.is_closed()

    def _again(self) -> None:
        self.beat()
        self._loop.call_later(PULSE_SECONDS, self._again)

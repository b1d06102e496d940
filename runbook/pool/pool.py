"""A pool of psycopg2 connections that hands out no dead one, loses no slot and keeps no caller for ever.

How the counts stay right: nothing is counted by hand that can be counted by looking. A connection is in
`_idle`, in `_testing` (by the monitor) or leased in `_used`; what is in none of them takes no slot. All of it
changes under one lock, and nothing that can block (connect, round trip, close, log) happens under it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Callable, NamedTuple

import psycopg2
from psycopg2.pool import PoolError

from .connection import LAST_WORDS, SUSPECT, UNFIT, Borrower, Dead, Lease, PooledConnection, Watchdog, clock
from .monitor import LoopHeartbeat, Monitor
from .request import current_request
from .settings import Settings
from .status import Operation, StatusSocket, describe, stack_of, stacks, utc_now
from .switches import Seen, Switches

logger = logging.getLogger("runbook.pool")

# A waiter looks again after this many seconds, for what nobody announces: a collected connection's slot, the
# end of a back-off, a thread that could not be started.
LOOK_AGAIN = 0.25
# Seconds before the next attempt after failed ones: doubled each time up to the last, and jittered.
BACKOFF_FIRST, BACKOFF_LAST = 0.05, 2.0
LIFETIME_JITTER = 0.1  # share of the lifetime, so that connections do not all expire together

_EXPIRED = "expired"
_random = random.SystemRandom()
_new = tuple.__new__  # of a NamedTuple, in half the time


class PoolTimeout(PoolError):
    """No connection came within the time to wait."""


class TooManyWaiting(PoolError):
    """As many threads wait already as `max_waiting` allows."""


class PoolClosed(PoolError):
    """The pool is closed, or was closed while waiting."""


@dataclass
class Counters:
    """What happened since the pool was made; seconds are sums."""

    checkouts: int = 0
    timeouts: int = 0
    refused: int = 0
    waits: int = 0
    wait_seconds: float = 0.0
    use_seconds: float = 0.0
    opened: int = 0
    closed: int = 0
    lost: int = 0
    connect_failures: int = 0
    peak_used: int = 0
    peak_waiting: int = 0
    dead_found: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LAST_WORDS, 0))
    dead_found_at: dict[str, str] = field(default_factory=dict)  # the last of each


@dataclass(eq=False)
class Waiter:
    """A thread in the queue; `since` is the start of its getconn."""

    borrower: Borrower
    since: float
    connection: PooledConnection | None = None
    arrived: threading.Event = field(default_factory=threading.Event)


class Snapshot(NamedTuple):
    """The pool at one moment: used (including connecting) + idle + never opened = the maximum."""

    now: float
    maximum: int
    used: int
    idle: int
    connecting: int
    dead: int
    leases: list[Lease]
    waiters: list[Waiter]
    counters: Counters
    last_connect_error: str | None
    samples: list[dict[str, Any]]

    @property
    def slots(self) -> int:
        """used + idle + never opened: the maximum, or more while what is above a lowered one is still out."""
        return max(self.maximum, self.used + self.idle)


class Pool:
    """One pool per process. Opens `min_connections` in the background; never blocks while it is made.

    settings: see `Settings`. application_name: the service's name; the server sees `name@host:pid`.
    housekeeping: called by the monitor at each of its ticks, for instance to delete expired tokens.

        with pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT …")

    `getconn`, `putconn`, `closeall` and `closed` are those of psycopg2.pool. Errors are PoolTimeout,
    TooManyWaiting and PoolClosed, all of them psycopg2.pool.PoolError. Safe for threads. A forked child has a
    fresh pool of its own and cannot disturb its parent's connections.
    """

    def __init__(
        self,
        settings: Settings,
        application_name: str,
        *,
        housekeeping: Callable[[], object] | None = None,
    ) -> None:
        self.settings = settings
        self.name = application_name
        self.housekeeping = housekeeping
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        """A fresh state, monitor and status socket: at the start, and again in a forked child."""
        self.application_name = process_name(self.name)
        self.started_at = utc_now()
        self.counters = Counters()
        self.last_connect_error: str | None = None
        self.loop: LoopHeartbeat | None = None
        self.closed = False
        # Re-entrant: a finalizer that the garbage collector runs under it may return a connection.
        self._lock = threading.RLock()
        self._idle: list[PooledConnection] = []  # the longest idle first; borrowed from the end
        self._testing: list[PooledConnection] = []
        self._used: set[Lease] = set()
        self._connecting = 0
        self._waiters: deque[Waiter] = deque()
        self._lost: deque[Lease] = deque()
        self._failures = 0  # to connect, in a row
        self._next_attempt = 0.0
        self._drained = threading.Event()
        self._watchdog = Watchdog()
        self.stacks = False  # whether every borrower's stack is kept
        self.seen: Seen | None = None  # where checkouts are noted, while something is switched on
        self.switches = Switches(self)
        self.monitor = Monitor(self)
        operations: dict[str, Operation] = {
            **{"status": lambda _: self.status(), "stacks": stacks},
            **{"set": self.switches.set, "revert": self.switches.revert},
        }
        self._socket = StatusSocket(self.settings.runtime_directory, operations, self.switches.end_overdue)
        self.monitor.start()

    # -- borrow and return ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def connection(
        self, timeout: float | None = None, *, long_lived: str | None = None
    ) -> Iterator[PooledConnection]:
        """Borrow a connection for the block: commits at its end, rolls back if it raises."""
        connection = self.getconn(timeout, long_lived=long_lived)
        lease = connection.lease
        try:
            yield connection
            connection.commit()
        finally:
            self._give_back(connection, lease)  # rolls back what was not committed

    def getconn(self, timeout: float | None = None, *, long_lived: str | None = None) -> PooledConnection:
        """A connection that is alive; give it back with `putconn`.

        timeout: seconds to wait, default `connection_timeout`. long_lived: why this one is kept for long (a
        listener, say), so that nobody takes it for a leak. Raises PoolTimeout, TooManyWaiting, PoolClosed.
        """
        frame = sys._getframe(1)
        while frame.f_code.co_filename in _INSIDE and frame.f_back is not None:
            frame = frame.f_back
        stack = stack_of(frame) if self.stacks else None
        thread = threading.current_thread()
        borrower = _new(
            Borrower, (current_request.get(), frame.f_code, frame.f_lineno, thread, long_lived, stack)
        )
        since = clock()
        with self._lock:
            connection = self._lease(self._idle.pop(), borrower, since) if self._idle else None
        if connection is None or not connection.is_sound(since, self.settings.validate_after_idle):
            connection = self._take_care(connection, borrower, since, timeout)
        if self.seen is not None:
            with self._lock:
                self._saw(borrower, clock() - since, came=True)
        if logger.isEnabledFor(logging.DEBUG):
            waited = (clock() - since) * 1000
            logger.debug("acquired backend %d by %s after %.1f ms", connection.backend_pid, borrower, waited)
        return connection

    def putconn(self, connection: PooledConnection, close: bool = False) -> None:
        """Give a connection back; what it did not commit is rolled back. close: do not keep it.

        Never raises because of the connection's state. Raises PoolError for one that is not borrowed from
        this pool in this process, as after a second return.
        """
        self._give_back(connection, getattr(connection, "lease", None), close)

    def _give_back(self, connection: PooledConnection, lease: Lease | None, close: bool = False) -> None:
        if lease is None or lease not in self._used:
            raise PoolError("this connection is not borrowed from this pool: was it returned before?")
        connection.lease = None
        cause: str | None = UNFIT
        try:
            if close or self.closed:
                cause = _EXPIRED
            else:
                cause = connection.clean(self._watchdog, self.settings.validation_timeout)
        except psycopg2.Error as error:
            logger.warning("Error while returning backend %d: %s", connection.backend_pid, _one_line(error))
        finally:
            now = clock()
            with self._lock:
                self._release(lease)
                self.counters.use_seconds += now - lease.since
                if self.seen is not None:
                    self.seen.returned(lease.borrower.site, now - lease.since)
                connection.idle_since = now
                keep = cause is None and now < connection.expires_at and self._hand_over(connection)
            if not keep:
                self._bury(connection, cause)
        if logger.isEnabledFor(logging.DEBUG):
            used = (now - lease.since) * 1000
            logger.debug("returned backend %d by %s after %.1f ms", lease.backend_pid, lease.borrower, used)

    # -- the rest of the surface ---------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the pool knows of itself, as in status.schema.json; needs no database and no connection."""
        self.reap()
        return describe(self)

    def snapshot(self) -> Snapshot:
        """The counts, and who holds and waits; `dead` is counted by looking at every connection now."""
        with self._lock:
            used, idle = self._counts()
            leases = sorted(self._used, key=lambda lease: lease.since)
            held = [connection for connection in (lease() for lease in leases) if connection is not None]
            dead = sum(connection.looks_dead() for connection in [*self._idle, *held])
            found = dict(self.counters.dead_found), dict(self.counters.dead_found_at)
            counters = replace(self.counters, dead_found=found[0], dead_found_at=found[1])
            samples = [dict(row) for row in self.switches.seen.rows.values()]
            at = (clock(), self.settings.max_connections, used, idle, self._connecting, dead, leases)
            return Snapshot(*at, list(self._waiters), counters, self.last_connect_error, samples)

    def settings_changed(self) -> None:
        """After a switch: the monitor takes its new interval, waiters take what a higher maximum allows."""
        self.monitor.wake()
        self._connect_for_waiters()

    def watch_loop(self) -> None:
        """Called inside a running event loop: from now on `status` tells how long ago that loop was alive."""
        if self.loop is None or self.loop.closed():
            self.loop = LoopHeartbeat()

    def close(self, timeout: float = 10.0) -> int:
        """Refuse new borrowers, wait up to `timeout` seconds for connections to come back, end the rest.

        Waiters get PoolClosed at once. Returns how many were still borrowed at the end and were cut.
        """
        deadline = clock() + timeout
        with self._lock:
            self.closed = True
            resting, self._idle = self._idle, []
            for waiter in self._waiters:
                waiter.arrived.set()
            if not self._used:
                self._drained.set()
        for connection in resting:
            self._bury(connection, _EXPIRED)
        self.monitor.stop()
        while not self._drained.wait(min(LOOK_AGAIN, max(0.0, deadline - clock()))) and clock() < deadline:
            self.reap()
        with self._lock:
            cut = list(self._used)
        for lease in cut:
            logger.warning("closing backend %d under %s", lease.backend_pid, lease.borrower)
            held = lease()
            if held is not None:
                held.end()
        self.monitor.join(max(0.0, deadline - clock()))
        self._socket.close()
        self.switches.forget()
        return len(cut)

    closeall = close

    # -- taking, waiting, handing over ---------------------------------------------------------------

    def _take_care(
        self, connection: PooledConnection | None, borrower: Borrower, since: float, timeout: float | None
    ) -> PooledConnection:
        """The long way: this connection if it turns out to be alive, else the next, else one that comes."""
        deadline = since + (self.settings.connection_timeout if timeout is None else timeout)
        connection = connection or self._wait(borrower, since, deadline)
        while (cause := self._verdict(connection, deadline)) is not None:
            self._reject(connection, cause)
            # A silent one has cost time, and its neighbours may be as silent: now only a fresh one will do.
            with self._lock:
                other = self._idle.pop() if self._idle and cause != "silent" else None
                connection = self._lease(other, borrower, clock()) if other else None
            connection = connection or self._wait(borrower, since, deadline, front=True)
        return connection

    def _lease(self, connection: PooledConnection, borrower: Borrower, now: float) -> PooledConnection:
        """Lock held. The callback is a plain deque's append: it may run in the middle of anything."""
        lease = Lease(connection, self._lost.append)
        lease.backend_pid, lease.borrower, lease.since = connection.backend_pid, borrower, now
        connection.lease = lease
        self._used.add(lease)
        counters, used = self.counters, len(self._used) + self._connecting
        counters.checkouts += 1
        counters.peak_used = max(counters.peak_used, used)
        return connection

    def _release(self, lease: Lease) -> None:
        """Lock held."""
        self._used.discard(lease)
        if self.closed and not self._used:
            self._drained.set()

    def _wait(
        self, borrower: Borrower, since: float, deadline: float, front: bool = False
    ) -> PooledConnection:
        """Wait in the queue for a connection that comes back or is made; front: go on where one stood."""
        waiter = Waiter(borrower, since)
        queued = clock()
        limit = self.settings.max_waiting
        with self._lock:
            if self.closed:
                raise PoolClosed("the pool is closed")
            if limit and len(self._waiters) >= limit and not front:
                self.counters.refused += 1
                self._saw(borrower, queued - since, came=False)
                refusal = TooManyWaiting(self._why_none(f"{limit} wait already, and no more may"))
            else:
                refusal = None
                (self._waiters.appendleft if front else self._waiters.append)(waiter)
                self.counters.waits += not front
                self.counters.peak_waiting = max(self.counters.peak_waiting, len(self._waiters))
        if refusal is not None:
            logger.error("Failed to get database connection: %s", refusal)
            raise refusal
        try:
            while not waiter.arrived.is_set():
                self.reap()
                self._connect_for_waiters()
                remaining = deadline - clock()
                if remaining <= 0:
                    break
                waiter.arrived.wait(min(remaining, LOOK_AGAIN))
        except BaseException:
            self._leave_queue(waiter, queued)
            if waiter.connection is not None:
                self.putconn(waiter.connection)
            raise
        failure = self._leave_queue(waiter, queued)
        if waiter.connection is not None:
            return waiter.connection
        if self.closed:
            raise PoolClosed("the pool was closed while waiting for a connection")
        logger.error("Failed to get database connection: %s", failure)
        raise PoolTimeout(failure)

    def _leave_queue(self, waiter: Waiter, queued: float) -> str:
        """Returns the text of the error if nothing arrived."""
        with self._lock:
            now = clock()
            self.counters.wait_seconds += now - queued
            text = ""
            if waiter.connection is None:
                text = self._why_none(f"no connection within {now - waiter.since:.1f} s")
            if waiter.connection is not None:
                return ""
            self._waiters.remove(waiter)
            self.counters.timeouts += not self.closed
            self._saw(waiter.borrower, now - waiter.since, came=False)
            return text

    def _why_none(self, what: str) -> str:
        """Lock held."""
        used, idle = self._counts()
        maximum = max(self.settings.max_connections, used + idle)
        text = "connection pool exhausted: " if len(self._used) >= maximum else ""
        text += f"{what}: {used} of {maximum} used ({self._connecting} connecting), {idle} idle, "
        text += f"{maximum - used - idle} never opened, {len(self._waiters)} waiting"
        leases = [lease for lease in self._used if lease.borrower.long_lived is None]
        if leases:
            oldest = min(leases, key=lambda lease: lease.since)
            text += f"; oldest holder {oldest.borrower} for {clock() - oldest.since:.1f} s"
        if self.last_connect_error:
            text += f"; last failure to connect: {self.last_connect_error}"
        return text

    def _counts(self) -> tuple[int, int]:
        """Lock held. (used including those being connected, idle including those under test)."""
        return len(self._used) + self._connecting, len(self._idle) + len(self._testing)

    def _saw(self, borrower: Borrower, seconds: float, came: bool) -> None:
        """Lock held."""
        if self.seen is not None:
            self.seen.asked(borrower.site, seconds, came)

    def _hand_over(self, connection: PooledConnection) -> bool:
        """Lock held. To whoever waits longest, else to the idle ones; not if the maximum was lowered since."""
        others = len(self._used) + self._connecting + len(self._idle) + len(self._testing)
        if self.closed or others >= self.settings.max_connections:
            return False
        if self._waiters:
            waiter = self._waiters.popleft()
            self._lease(connection, waiter.borrower, clock())
            waiter.connection = connection
            waiter.arrived.set()
        else:
            self._idle.append(connection)
        return True

    def _verdict(self, connection: PooledConnection, deadline: float) -> str | None:
        """Why this borrowed connection must not be handed out; None if it may."""
        try:
            now = clock()
            if now >= connection.expires_at:
                return _EXPIRED
            # A short time to answer is better than none.
            seconds = max(0.1, min(self.settings.validation_timeout, deadline - now))
            return connection.check(self._watchdog, self.settings.validate_after_idle, seconds)
        except BaseException:
            self._reject(connection, UNFIT)
            raise

    def _reject(self, connection: PooledConnection, cause: str) -> None:
        """A connection that was leased but not handed out."""
        with self._lock:
            lease, connection.lease = connection.lease, None
            if lease is not None:
                self._release(lease)
            self.counters.checkouts -= 1
        self._bury(connection, cause)

    def _bury(self, connection: PooledConnection, cause: str | None) -> None:
        """Close one that takes no slot any more, and let a waiter have the slot."""
        found = cause if cause not in (None, _EXPIRED, UNFIT) else None
        with self._lock:
            self.counters.closed += 1
            if found:
                self.counters.dead_found[found] = self.counters.dead_found.get(found, 0) + 1
                self.counters.dead_found_at[found] = utc_now()
                for older in self._idle:
                    older.suspect |= older.checked_at <= connection.checked_at
        backend, idle = connection.backend_pid, clock() - connection.idle_since
        if found:
            told = (found, LAST_WORDS.get(found, "the server's last word"), backend, idle)
            logger.warning("Dead connection detected (%s: %s), backend %d, given back %.1f s ago", *told)
        if cause == UNFIT:
            logger.warning(
                "Backend %d is not kept: it was returned closed or busy, or its check failed", backend
            )
        if cause == "silent":
            self.monitor.wake()  # look at its neighbours before a borrower has to
        connection.end()
        self._connect_for_waiters()

    def reap(self) -> None:
        """Free the slots of connections that were garbage-collected instead of returned."""
        freed = []
        with self._lock:
            while self._lost:
                lease = self._lost.popleft()
                if lease in self._used:
                    self._release(lease)
                    self.counters.lost += 1
                    self.counters.closed += 1
                    freed.append(lease)
        for lease in freed:
            logger.warning(
                "Lost connection: backend %d, borrowed by %s %.1f s ago, was never returned: slot freed",
                *(lease.backend_pid, lease.borrower, clock() - lease.since),
            )

    # -- connecting ----------------------------------------------------------------------------------

    def _connect_for_waiters(self) -> None:
        """Start a connection for each waiter that has none in the making, as far as slots allow.

        In threads of their own, so that a waiter's deadline holds whatever the resolver or the server does.
        """
        with self._lock:
            number = self._reserve(len(self._waiters) - self._connecting) if self._waiters else 0
        for _ in range(number):
            try:
                threading.Thread(target=self._connect, name="pool-connect", daemon=True).start()
            except RuntimeError as error:  # no more threads: the waiter looks again
                self._connected(None, error)

    def _reserve(self, wanted: int) -> int:
        """Lock held. Reserve slots for connections to be made; only one at a time while connecting fails."""
        if self.closed or (self._failures and clock() < self._next_attempt):
            return 0
        used, idle = self._counts()
        if self._failures:
            wanted = min(wanted, 1 - self._connecting)
        number = max(0, min(wanted, self.settings.max_connections - used - idle))
        self._connecting += number
        self.counters.peak_used = max(self.counters.peak_used, used + number)
        return number

    def _connect(self) -> bool:
        """Make one connection in a reserved slot; whether it worked."""
        connection: PooledConnection | None = None
        error: BaseException | None = None
        try:
            connection = psycopg2.connect(
                connection_factory=PooledConnection,
                application_name=self.application_name,
                **self.settings.connect_arguments(),
            )
            lifetime = self.settings.connection_lifetime
            if lifetime:
                connection.expires_at = clock() + lifetime * _random.uniform(1 - LIFETIME_JITTER, 1)
        except Exception as caught:  # psycopg2.Error, but also UnicodeError from a localised message
            error = caught
        finally:
            self._connected(connection, error)
        return connection is not None

    def _connected(self, connection: PooledConnection | None, error: BaseException | None) -> None:
        kept = False
        with self._lock:
            self._connecting -= 1
            failures = self._failures
            if connection is None:
                self.counters.connect_failures += 1
                self.last_connect_error = _one_line(error)
                now = clock()
                if now >= self._next_attempt:  # attempts that were made together and fail together are one
                    self._failures += 1
                    # Far below the time to wait: who comes when the database is back meets an attempt.
                    longest = min(BACKOFF_LAST, self.settings.connection_timeout / 4)
                    pause = min(longest, BACKOFF_FIRST * 2 ** min(failures, 16))
                    self._next_attempt = now + pause * _random.uniform(0.5, 1)
            else:
                self._failures = 0
                self.last_connect_error = None
                self.counters.opened += 1
                kept = self._hand_over(connection)
        if connection is None:
            logger.warning("Cannot connect: %s", _one_line(error))
        elif not kept:
            self._bury(connection, _EXPIRED)
        elif failures:
            logger.info("Connected again")
            self._connect_for_waiters()

    # -- what the monitor does -----------------------------------------------------------------------

    def retire(self) -> None:
        """Close idle connections that are too old, idle for too long and above the minimum, or above the
        maximum since it was lowered.
        """
        now, settings = clock(), self.settings
        with self._lock:
            left = sum(self._counts())
            leaving: list[PooledConnection] = []
            for connection in list(self._idle):
                too_long = settings.idle_timeout and now - connection.idle_since >= settings.idle_timeout
                too_many = left > settings.max_connections or (too_long and left > settings.min_connections)
                if now >= connection.expires_at or too_many:
                    leaving.append(connection)
                    self._idle.remove(connection)
                    left -= 1
        for connection in leaving:
            self._bury(connection, _EXPIRED)

    def idle_connections(self) -> list[PooledConnection]:
        """Those idle now, the longest idle first."""
        with self._lock:
            return list(self._idle)

    def ask_idle(self, connection: PooledConnection, statement: str = "SELECT 1") -> tuple[Any, ...] | None:
        """One row from an idle connection, which nobody can borrow meanwhile; a dead one is removed.

        None if it is dead, or no longer idle (then its borrower has checked it). Takes at most
        `validation_timeout`.
        """
        with self._lock:
            if connection not in self._idle:
                return None
            self._idle.remove(connection)
            self._testing.append(connection)
        cause: str | None = UNFIT
        try:
            found = connection.glance()
            if found not in (None, SUSPECT):
                raise Dead(found)
            row = connection.ask(self._watchdog, statement, self.settings.validation_timeout)
            cause = None
            return row
        except Dead as dead:
            cause = dead.cause
            return None
        finally:
            with self._lock:
                self._testing.remove(connection)
                keep = cause is None and self._hand_over(connection)
                if keep:
                    self._idle.sort(key=lambda each: each.idle_since)
            if not keep:
                self._bury(connection, cause)

    def keep_minimum(self) -> None:
        """Open what is missing to the minimum, one after the other; stop at the first failure."""
        while True:
            with self._lock:
                missing = self.settings.min_connections - sum(self._counts())
                reserved = self._reserve(min(missing, 1))
            if not reserved or not self._connect():
                return

    # -- fork ----------------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        """In the child: let go of the parent's connections without a word to the server, and begin afresh.

        psycopg2 itself never closes a connection in another process than that which made it.
        """
        for connection in self._idle + self._testing:
            if not connection.closed:
                os.close(connection.fd)
        self._watchdog.abandon()
        # The child may still hold a borrowed one: using it must fail, and not talk into the parent's session.
        dead_end, other_end = socket.socketpair()
        with dead_end, other_end:
            for lease in self._used:
                held = lease()
                if held is not None and not held.closed:
                    os.dup2(dead_end.fileno(), held.fd)
        self._socket.abandon()
        self.switches.forget()
        if not self.closed:
            self._begin()


# Frames of these files are not who asked for the connection.
_INSIDE = (Pool.getconn.__code__.co_filename, contextlib.contextmanager.__code__.co_filename)


def process_name(application: str) -> str:
    """`application@host:pid` in the 63 bytes that PostgreSQL keeps; the pid always stays whole."""
    host = socket.gethostname().split(".")[0][:24]
    rest = f"@{host}:{os.getpid()}"
    name = application.encode("ascii", "replace").decode()
    return name[: 63 - len(rest)] + rest


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _begin_afresh() -> None:
    for pool in list(_pools):
        pool._after_fork()


os.register_at_fork(after_in_child=_begin_afresh)

"""One pooled connection: is it alive, and if not, what ended it; and how to end it without hanging.

PostgreSQL says why it ends a session before it closes the socket. On an idle connection nobody reads that:
it lies in the receive queue, where MSG_PEEK reads it and leaves it for libpq.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import re
import select
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg2
from psycopg2 import _psycopg, extensions

from .request import Request

# The keys of `dead_found`: SQLSTATEs of the server's last words, and what the kernel knows without them.
LAST_WORDS = {
    "57P01": "terminated by an administrator or a restart",
    "57P02": "the server crashed and recovers",
    "57P05": "idle_session_timeout",
    "25P03": "idle_in_transaction_session_timeout",
    "25P04": "transaction_timeout",
    "fin": "closed by the other side, no word readable",
    "rst": "reset",
    "silent": "no answer",
    "in_use": "broke while it was borrowed, its borrower saw the error",
}
SUSPECT = "suspect"
UNFIT = "unfit"
BROKEN = 2  # psycopg2's `closed` when the connection broke; 1 is a call of close()

# The watchdog's thread ends when there was nothing to guard for so long.
WATCHDOG_SECONDS = 60.0
# Probes and retransmissions take longer than this; so often the kernel is asked for them, and no oftener.
GLANCE_SECONDS = 1.0

MESSAGES = 4  # under TLS, the last of which may be the server's last word

_IN_TRANSACTION = (extensions.TRANSACTION_STATUS_INTRANS, extensions.TRANSACTION_STATUS_INERROR)
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_HUNG_UP = select.POLLRDHUP | select.POLLHUP | select.POLLERR
_UNANSWERED = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


# libpq's own: psycopg2 gives no SQLSTATE of a notice, save in the text of a verbose one. None where it is hidden.
_VERBOSE = 2
_set_verbosity: Any = None
with contextlib.suppress(OSError, AttributeError):
    _set_verbosity = ctypes.CDLL(_psycopg.__file__).PQsetErrorVerbosity
    _set_verbosity.argtypes = [ctypes.c_void_p, ctypes.c_int]

# Seconds since boot, the time asleep included: a suspended host's connections have been idle that long.
clock = functools.partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Borrower(NamedTuple):
    """Who asked for a connection, kept cheaply; `site` puts it in words."""

    request: Request | None
    code: Any
    line: int
    thread: threading.Thread
    long_lived: str | None
    stack: list[tuple[str, int, str]] | None  # file, line, function; the innermost last

    @property
    def site(self) -> str:
        """`file:line` of the code that asked."""
        return f"{self.code.co_filename}:{self.line}"

    def __str__(self) -> str:
        served = f", request {self.request.id}" if self.request else ""
        return f"{self.site} in thread {self.thread.name}{served}"


class Lease(weakref.ref["PooledConnection"]):
    """A connection that is handed out. Only a weak reference: one that is forgotten can be collected, and
    the callback of this reference then tells the pool that its slot is free.
    """

    __slots__ = ("backend_pid", "borrower", "since")
    backend_pid: int
    borrower: Borrower
    since: float


class Watchdog:
    """Bounds blocking calls of libpq, which know no deadline: one thread shuts an overdue socket down.

    The call then fails as if the server had gone. The thread exists while it is needed, and works on a duplicate of the descriptor, because libpq
    may close its own at any time and the number may then belong to something else.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._deadlines: dict[int, float] = {}
        self._wakes_at = 0.0
        self._running = False

    @contextlib.contextmanager
    def guard(self, connection: PooledConnection, seconds: float) -> Iterator[None]:
        """Whatever blocks on this connection inside ends after `seconds`.

        Raises Dead instead of psycopg2.Error if the time ran out or the error ended the connection.
        """
        duplicate = os.dup(connection.fd)
        deadline = clock() + seconds
        error: psycopg2.Error | None = None
        try:
            with self._changed:
                self._deadlines[duplicate] = deadline
                if not self._running:
                    threading.Thread(target=self._run, name="pool-watchdog", daemon=True).start()
                    self._running = True
                elif deadline < self._wakes_at:
                    self._changed.notify()
            yield
        except psycopg2.Error as caught:
            error = caught
        finally:
            with self._changed:
                fired = self._deadlines.pop(duplicate, None) is None
                os.close(duplicate)
        if fired:  # also when the answer came in the same instant: the socket is shut down
            raise Dead("silent") from error
        if error is not None and connection.closed:
            raise Dead(error.pgcode or "fin") from error
        if error is not None:
            raise error

    def abandon(self) -> None:
        """In a forked child, where neither the thread nor the guarded calls exist: close the duplicates."""
        for duplicate in self._deadlines:
            os.close(duplicate)

    def _run(self) -> None:
        with self._changed:
            useful = True
            while self._deadlines or useful:
                now = clock()
                for duplicate in [each for each, deadline in self._deadlines.items() if deadline <= now]:
                    del self._deadlines[duplicate]
                    shut_down(duplicate)
                useful = bool(self._deadlines)
                self._wakes_at = min(self._deadlines.values(), default=now + WATCHDOG_SECONDS)
                self._changed.wait(self._wakes_at - now)
            self._running = False


def shut_down(descriptor: int) -> None:
    """End the conversation on a socket, whoever is blocked on it; one that is gone already is fine."""
    with contextlib.suppress(OSError), _socket_on(descriptor) as borrowed:
        borrowed.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _socket_on(descriptor: int) -> Iterator[socket.SocketType]:
    """A Python socket on libpq's descriptor; it lets go of it at the end, where its collection would close it."""
    borrowed = socket.SocketType(fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


class PooledConnection(extensions.connection):
    """psycopg2's connection, and what the pool knows about it. Times are those of `clock`."""

    lease: Lease | None = None
    suspect = False
    expires_at = float("inf")

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.fd = self.fileno()
        self.backend_pid: int = self.info.backend_pid
        self.checked_at = self.idle_since = self._glanced_at = clock()
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN | select.POLLRDHUP)
        with _socket_on(self.fd) as known:
            tcp = known.family in (socket.AF_INET, socket.AF_INET6)
        self._tcp = tcp and hasattr(socket, "TCP_INFO")

    def is_sound(self, now: float, after_idle: float) -> bool:
        """Whether nothing at all speaks against handing it out; else `check` looks closer. No round trip."""
        return (
            not self.closed
            and now < self.expires_at
            and now - self._glanced_at < GLANCE_SECONDS
            and not self.suspect
            and now - self.checked_at < after_idle
            and not self._poll.poll(0)
        )

    def check(self, watchdog: Watchdog, after_idle: float, seconds: float) -> str | None:
        """Is it alive? None if so, else the key of `dead_found`.

        A glance always; a round trip of at most `seconds` if the glance leaves doubt or nothing was heard for
        `after_idle` seconds.
        """
        found = self.glance()
        if found not in (None, SUSPECT):
            return found
        heard_lately = not self.suspect and clock() - self.checked_at < after_idle
        if found == SUSPECT or not heard_lately:
            try:
                self.ask(watchdog, "SELECT 1", seconds)
            except Dead as dead:
                return dead.cause
            except psycopg2.Error:
                pass  # an error is an answer too
        return None

    def glance(self) -> str | None:
        """What the kernel knows, without a round trip: None (all is well), SUSPECT, or what ended it.

        To be asked once: the kernel tells a reset only the first time.
        """
        if self.closed:
            return "in_use"
        events = self._poll.poll(0)
        if events:
            return self._last_words(bool(events[0][1] & _HUNG_UP))
        if clock() - self._glanced_at < GLANCE_SECONDS:
            return None
        unanswered = self._unanswered()
        if unanswered:
            return SUSPECT if unanswered == 1 else "silent"
        self._glanced_at = clock()
        return None

    def ask(self, watchdog: Watchdog, statement: str, seconds: float) -> tuple[Any, ...] | None:
        """One row by a round trip that leaves no transaction behind.

        Raises Dead if no answer comes within `seconds`, psycopg2.Error if the answer is an error.
        """
        try:
            with watchdog.guard(self, seconds):
                self.autocommit = True
                with self.cursor(cursor_factory=extensions.cursor) as cursor:
                    cursor.execute(statement)
                    row = cursor.fetchone()
        finally:
            if not self.closed:
                self.autocommit = False
        self.checked_at = clock()
        self.suspect = False
        return row

    def clean(self, watchdog: Watchdog, seconds: float) -> str | None:
        """Make it fit for the next borrower: None if it is, else why not (a key of `dead_found`, or UNFIT).

        No round trip if there is nothing to roll back.
        """
        if self.closed:
            return "in_use" if self.closed == BROKEN else UNFIT
        status = self.get_transaction_status()
        if status in _IN_TRANSACTION:
            found = self.glance()
            if found not in (None, SUSPECT):
                return found
            try:
                with watchdog.guard(self, seconds):
                    self.rollback()
            except Dead as dead:
                return dead.cause
            self.checked_at = clock()
        elif status != extensions.TRANSACTION_STATUS_IDLE:
            return UNFIT
        if self.autocommit:
            self.autocommit = False
        return None

    def end(self) -> None:
        """Close it without ever waiting.

        psycopg2's close() waits for a statement that another thread runs on the same connection: such a one
        is shut down first, the others take their leave of the server.
        """
        resting = (extensions.TRANSACTION_STATUS_IDLE, *_IN_TRANSACTION)
        if not self.closed and self.get_transaction_status() not in resting:
            shut_down(self.fd)
        self.close()

    def looks_dead(self) -> bool:
        """Whether it is closed, hung up or unanswered; changes nothing, may be asked while it is used."""
        if self.closed:
            return True
        poll = select.poll()
        poll.register(self.fd, select.POLLRDHUP)
        try:
            return bool(poll.poll(0)) or self._unanswered() >= 2
        except OSError:  # closed by its borrower since
            return True

    def _unanswered(self) -> int:
        """Probes or retransmissions in a row that the peer has not answered."""
        if not self._tcp:
            return 0
        with _socket_on(self.fd) as borrowed:
            # struct tcp_info begins with one byte each: state, ca_state, retransmits, probes.
            _, _, retransmits, probes = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 4)
        return max(retransmits, probes)

    def _last_words(self, hung_up: bool) -> str | None:
        try:
            with _socket_on(self.fd) as borrowed:
                said = borrowed.recv(8192, _PEEK)
        except BlockingIOError:
            return "fin" if hung_up else None
        except OSError as error:
            return "silent" if error.errno in _UNANSWERED else "rst"
        found = read_last_words(said, hung_up)
        return self._words_under_tls() or found if said and found in ("fin", SUSPECT) else found

    def _words_under_tls(self) -> str | None:
        """The key of `dead_found` if libpq, which alone can read under TLS, finds it said there; else None.

        On an idle connection it takes the server's last words for a notice; a statement would lose them.
        """
        libpq = self.pgconn_ptr
        if _set_verbosity is None or libpq is None:
            return None
        before = _set_verbosity(libpq, _VERBOSE)
        with contextlib.suppress(psycopg2.Error):  # at the end of what was said, if it hung up
            for _ in range(MESSAGES):
                self.poll()
        if not self.closed:
            _set_verbosity(libpq, before)
        codes = [re.match(r"[^:]+:\s+([0-9A-Z]{5}):", notice) for notice in self.notices[-MESSAGES:]]
        return next((code[1] for code in reversed(codes) if code and code[1] in LAST_WORDS), None)


class Dead(Exception):
    """A round trip found the connection dead; `cause` is the key of `dead_found`."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(cause)


def read_last_words(said: bytes, hung_up: bool) -> str | None:
    """Judge bytes that lie unread on an idle connection: None, SUSPECT, or what ended it.

    A notice, a notification or a changed parameter (N, A, S) may lie there on a healthy connection. After a
    crash the last word is a notice, too, not an error (E). Under TLS nothing can be read here: a suspect until
    it hangs up.
    """
    ended = "fin" if hung_up or not said else None
    position = 0
    while position + 5 <= len(said):
        kind = said[position : position + 1]
        end = position + 1 + int.from_bytes(said[position + 1 : position + 5], "big")
        if kind not in (b"E", b"N", b"A", b"S") or end < position + 5:
            return ended or SUSPECT
        code = re.search(rb"(?:^|\0)C([0-9A-Z]{5})\0", said[position + 5 : end]) if kind in b"EN" else None
        if kind == b"E":
            return code[1].decode() if code else "fin"
        if code and hung_up and code[1].startswith(b"57P"):
            ended = code[1].decode()
        position = end
    return ended

"""What a pool says of itself: the status document, and the socket that hands it out.

The socket has a thread of its own and needs no database, no login and no free worker: it answers when
everything else hangs. One JSON line in, one JSON line out.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import selectors
import socket
import stat
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable

from .connection import Borrower, Lease, clock

if TYPE_CHECKING:
    from .pool import Pool, Snapshot, Waiter

logger = logging.getLogger("runbook.pool")

SCHEMA = "runbook/status/1"
REQUEST_BYTES = 4096
CLIENT_SECONDS = 5.0  # for a whole exchange
STACK_FRAMES = 60  # of a borrower's stack, the innermost ones
CLIENTS = 16  # at the same time; one more pushes the oldest out


def utc_now() -> str:
    """The time as RFC 3339, UTC."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# -- the document ------------------------------------------------------------------------------------


def describe(pool: Pool) -> dict[str, Any]:
    """The document of status.schema.json, from one consistent snapshot."""
    at = pool.snapshot()
    settings, loop = pool.settings, pool.loop
    return {
        "schema": SCHEMA,
        "kind": "runbook",
        "pid": os.getpid(),
        "started_at": pool.started_at,
        "now": utc_now(),
        "name": pool.name,
        "application_name": pool.application_name,
        "host": settings.host,
        "port": settings.port,
        "database": settings.database,
        "user": settings.user,
        "count": {
            "maximum": at.slots,
            "used": at.used,
            "idle": at.idle,
            "never_opened": at.slots - at.used - at.idle,
            "dead": at.dead,
            "connecting": at.connecting,
            "waiting": len(at.waiters),
        },
        "holders": [_holder(lease, at) for lease in at.leases],
        "waiters": [_waiter(waiter, at) for waiter in at.waiters],
        "monitor": {
            "heartbeat_age": pool.monitor.heartbeat_age(),
            "interval": settings.monitor_interval,
            "alive": pool.monitor.alive(),
            "last_error": pool.monitor.last_error,
            "gap": pool.monitor.pulse.gap,
        },
        "loop": None if loop is None or loop.closed() else {"heartbeat_age": loop.age(), "gap": loop.gap},
        "counters": asdict(at.counters),
        "last_connect_error": at.last_connect_error,
        "server_baseline": next(iter(pool.monitor.baseline), None),
        "config": {
            **{name: getattr(settings, name) for name in _CONFIG},
            "log_level": logging.getLevelName(logger.getEffectiveLevel()),
        },
        "overrides": pool.switches.describe(),
        "samples": at.samples,
        "events": list(pool.switches.events),
    }


_CONFIG = (
    *("min_connections", "max_connections", "connection_timeout", "connection_lifetime", "idle_timeout"),
    *("max_waiting", "monitor_interval", "validate_after_idle", "validation_timeout", "connect_timeout"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
)


def _holder(lease: Lease, at: Snapshot) -> dict[str, Any]:
    borrower = lease.borrower
    return {
        **_asker(borrower, at.now - lease.since),
        "backend_pid": lease.backend_pid,
        "request_over": borrower.request.over if borrower.request else None,
        "stack": borrower.stack and "".join(map("{0}:{1} in {2}\n".format, *zip(*borrower.stack))),
        "long_lived": borrower.long_lived,
    }


def _waiter(waiter: Waiter, at: Snapshot) -> dict[str, Any]:
    own = waiter.borrower
    # What the same request holds already; without requests, the same thread.
    kin = attrgetter("request" if own.request else "thread")
    holds = sum(kin(lease.borrower) is kin(own) for lease in at.leases)
    return {**_asker(own, at.now - waiter.since), "holds": holds}


def _asker(borrower: Borrower, age: float) -> dict[str, Any]:
    return {
        "request_id": borrower.request.id if borrower.request else None,
        "site": borrower.site,
        "thread": borrower.thread.name,
        "tid": _tid(borrower.thread),
        "age": max(0.0, age),
    }


def _tid(thread: threading.Thread) -> int | None:
    """The kernel's number of a thread; Python remembers its parent's for the main thread of a forked child."""
    return os.getpid() if thread is threading.main_thread() else thread.native_id


def stacks(_: object) -> dict[str, Any]:
    """What every thread of this process does at the moment: `{thread, tid, stack}`, the innermost call last."""
    threads = {thread.ident: (thread.name, _tid(thread)) for thread in threading.enumerate()}
    found = []
    for ident, frame in sys._current_frames().items():
        name, tid = threads.get(ident, (str(ident), None))
        found.append({"thread": name, "tid": tid, "stack": "".join(traceback.format_stack(frame))})
    return {"schema": SCHEMA, "stacks": found}


def stack_of(frame: FrameType | None) -> list[tuple[str, int, str]]:
    """Where a frame was called from, without reading a line of source."""
    found: list[tuple[str, int, str]] = []
    while frame is not None and len(found) < STACK_FRAMES:
        found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found[::-1]


# -- the socket --------------------------------------------------------------------------------------


Operation = Callable[[dict[str, Any]], dict[str, Any]]  # from a request to the answer


class StatusSocket:
    """`<directory>/pool-<pid>.sock`, mode 0660, served by a thread of its own; nothing without a directory.

    A failure to open it is logged and does not keep the application from starting. `due` is called again and
    again: it does what is due, and says when, by `clock`, something is due next.
    """

    def __init__(
        self,
        directory: str | None,
        operations: Mapping[str, Operation],
        due: Callable[[], float | None],
    ) -> None:
        self._operations = operations
        self._due = due
        self._listener: socket.socket | None = None
        self._clients: dict[socket.socket, _Client] = {}
        self._closing = False
        if directory is None:
            logger.info(
                "No status socket: neither POSTGRES_POOL_RUNTIME_DIRECTORY nor RUNTIME_DIRECTORY is set"
            )
            return
        self.path = Path(directory) / f"pool-{os.getpid()}.sock"
        try:
            _remove_stale(Path(directory))
            self._listener = _listen(self.path)
        except OSError as error:
            logger.error("No status socket at %s: %s", self.path, error)
            return
        self._thread = threading.Thread(
            target=self._serve, args=[self._listener], name="pool-status", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving and remove the socket."""
        if self._listener is None or self._closing:
            return
        self._closing = True
        with contextlib.suppress(OSError):
            self.path.unlink()
        # Wakes the thread, which closes what it serves.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(CLIENT_SECONDS)

    def abandon(self) -> None:
        """In a forked child: close the copies of the parent's descriptors and leave its socket in place."""
        for each in (self._listener, *self._clients):
            if each is not None:
                each.close()

    def _serve(self, listener: socket.socket) -> None:
        with selectors.PollSelector() as selector, listener:
            selector.register(listener, selectors.EVENT_READ)
            while not self._closing:
                deadlines = [client.deadline for client in self._clients.values()]
                due = self._due()
                if due is not None:
                    # A suspended host: a wait does not count the time asleep, the clock does.
                    deadlines.append(min(due, clock() + 1.0))
                ready = selector.select(max(0.0, min(deadlines) - clock()) if deadlines else None)
                for key, _ in ready:
                    if key.fileobj is listener:
                        self._accept(listener, selector)
                    elif key.fileobj in self._clients:
                        self._advance(key.data, selector)
                for client in list(self._clients.values()):
                    if clock() >= client.deadline:
                        self._drop(client, selector)
            for client in list(self._clients.values()):
                self._drop(client, selector)

    def _accept(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if not self._closing and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                time.sleep(0.1)  # no descriptor to be had: the client stays in the queue, this thread idle
            return
        connection.setblocking(False)
        if len(self._clients) >= CLIENTS:
            self._drop(min(self._clients.values(), key=lambda client: client.deadline), selector)
        client = self._clients[connection] = _Client(connection)
        selector.register(connection, selectors.EVENT_READ, client)

    def _advance(self, client: _Client, selector: selectors.BaseSelector) -> None:
        try:
            if not client.answer:
                received = client.connection.recv(REQUEST_BYTES)
                client.request += received
                if received and b"\n" not in client.request and len(client.request) <= REQUEST_BYTES:
                    return
                client.answer = memoryview(self._answer(client.request))
                selector.modify(client.connection, selectors.EVENT_WRITE, client)
            client.answer = client.answer[client.connection.send(client.answer) :]
        except BlockingIOError:
            return
        except OSError:
            self._drop(client, selector)  # gone, which is its own affair
            return
        if not client.answer:
            self._drop(client, selector)

    def _drop(self, client: _Client, selector: selectors.BaseSelector) -> None:
        selector.unregister(client.connection)
        del self._clients[client.connection]
        client.connection.close()

    def _answer(self, request: bytes) -> bytes:
        try:
            answer = self._operate(request.partition(b"\n")[0])
        except ValueError as error:
            answer = {"schema": SCHEMA, "error": str(error)}
        except Exception as error:
            logger.exception("Error in the status socket")
            answer = {"schema": SCHEMA, "error": f"{type(error).__name__}: {error}"}
        return json.dumps(answer).encode() + b"\n"

    def _operate(self, line: bytes) -> dict[str, Any]:
        """Raises ValueError for a request that is not understood."""
        if len(line) > REQUEST_BYTES:
            raise ValueError(f"the request is longer than {REQUEST_BYTES} bytes")
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError("the request is not one line of JSON") from None
        if not isinstance(request, dict) or request.get("schema") != SCHEMA:
            raise ValueError(f"the request's schema must be {SCHEMA!r}")
        operation = self._operations.get(str(request.get("op")))
        if operation is None:
            raise ValueError(f"unknown op {request.get('op')!r}; known: {', '.join(self._operations)}")
        return operation(request)


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.deadline = clock() + CLIENT_SECONDS
        self.request = b""
        self.answer = memoryview(b"")


def _listen(path: Path) -> socket.socket:
    """A listening socket, seen at `path` only once it listens and has its mode; OSError if it cannot be."""
    if _is_served(path):
        raise OSError(errno.EADDRINUSE, "another pool of this process is served there")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    hidden = path.with_name(f".{path.stem}")
    try:
        hidden.unlink(missing_ok=True)
        listener.bind(str(hidden))
        hidden.chmod(0o660)
        listener.listen(CLIENTS)
        listener.setblocking(False)
        hidden.rename(path)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_stale(directory: Path) -> None:
    """Remove the sockets of processes that ended without doing so: those nobody listens on."""
    for path in directory.glob("pool-*.sock"):
        with contextlib.suppress(OSError):  # another process may do the same, or it is not ours to remove
            if stat.S_ISSOCK(path.lstat().st_mode) and not _is_served(path):
                path.unlink()


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # With its queue full, or without the right to ask, somebody may well be there.
        return probe.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT)

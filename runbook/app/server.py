"""The processes: one or several workers, each with its own pool, and a stop that loses no request.

A parent listens, forks the workers and replaces one that dies; with one worker there is no parent. SIGTERM
or SIGINT: /readyz says 503 for `drain_seconds`, then nothing new is accepted and what runs may finish within
`stop_seconds`, then the pool is closed; exit status 0.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Optional

import psycopg2
import uvicorn

from runbook.pool import Pool, Settings

from .accounts import delete_expired
from .database import connect, one_line
from .schema import schema_problem
from .settings import AppSettings
from .web import Service, create_app

logger = logging.getLogger("runbook.app")

FAILED, OLDER_SCHEMA = 1, 3  # exit statuses
BACKLOG = 2048
CLOSE_SECONDS = 3.0  # for the pool to close, when every request is over or has had its time
REPLACE_SECONDS = 1.0  # a worker that died is replaced after this long
SCHEMA_SECONDS = 5  # for the look at the schema before anything is served
_STOP = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_STOP, signal.SIGCHLD)


def serve(settings: AppSettings, database: Settings) -> int:
    """Serve until told to stop; the exit status.

    An older schema is refused. A database that is away is not: then /readyz says 503 until it is back.
    """
    try:
        problem = _look_at_schema(settings, database)
    except (psycopg2.Error, UnicodeError) as error:  # the latter: a message in the server's language
        logger.warning("The database cannot be asked for its schema: %s", one_line(error))
        problem = None
    if problem:
        print(f"does not serve: {problem}", file=sys.stderr)
        return OLDER_SCHEMA
    try:
        listener = _listen(settings)
    except OSError as error:
        where = f"APP_HOST {settings.host}, APP_PORT {settings.port}"
        print(f"cannot listen on {where}: {error.strerror}", file=sys.stderr)
        return FAILED
    logger.info("Listening on %s port %d, workers: %d", settings.host, settings.port, settings.workers)
    # Blocked, signals wait: for sigtimedwait in a parent, for the server's handlers in a worker. None is lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    if settings.workers == 1:
        return _work(settings, database, listener)
    return _supervise(settings, database, listener)


def _look_at_schema(settings: AppSettings, database: Settings) -> Optional[str]:
    connection = connect(database, f"{settings.name}-start", SCHEMA_SECONDS)
    try:
        with connection.cursor() as cursor:
            return schema_problem(cursor)
    finally:
        connection.close()


def _listen(settings: AppSettings) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)


# -- a worker ----------------------------------------------------------------------------------------


class Server(uvicorn.Server):
    """uvicorn's server that drains before it stops, and whose process then ends with 0, not by the signal."""

    def __init__(self, config: uvicorn.Config, service: Service, parent: Optional[int]) -> None:
        super().__init__(config)
        self._service = service
        self._parent = parent

    def handle_exit(self, sig: int, frame: Optional[FrameType]) -> None:
        """The signal handler. Only the first time counts: systemd and the parent may both tell."""
        if self._service.stop_at is None:
            self._service.stop_at = time.monotonic() + self._service.settings.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; whether to stop accepting."""
        if self._parent is not None and os.getppid() != self._parent:
            self.handle_exit(signal.SIGTERM, None)  # nobody would ever stop an orphan
        stop_at = self._service.stop_at
        self.should_exit = stop_at is not None and time.monotonic() >= stop_at
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Instead of uvicorn's, which puts the former handlers back, so that a second signal would kill."""
        for each in _STOP:
            signal.signal(each, self.handle_exit)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # see serve
        yield


def _work(
    settings: AppSettings, database: Settings, listener: socket.socket, parent: Optional[int] = None
) -> int:
    """One process that serves, with a pool, a monitor and a status socket of its own; its exit status."""
    pool = Pool(database, settings.name)
    pool.housekeeping = functools.partial(delete_expired, pool)
    service = Service(settings, pool)
    config = uvicorn.Config(
        create_app(service),
        lifespan="on",
        log_config=None,  # the root logger's: configure_logging
        access_log=False,  # AccessLog
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=settings.stop_seconds,
    )
    try:
        Server(config, service, parent).run(sockets=[listener])
    finally:
        cut = pool.close(CLOSE_SECONDS)
        logger.info("Stopped; database connections cut under a request: %d", cut)
    return 0


# -- their parent ------------------------------------------------------------------------------------


def _supervise(settings: AppSettings, database: Settings, listener: socket.socket) -> int:
    """Keep the workers running until told to stop, then see them end; the exit status.

    A worker that was killed, or told to stop by itself, is replaced. One that failed would fail again: then
    all of it stops, for the service manager to see.
    """
    parent, status, told = os.getpid(), 0, False
    workers: set[int] = set()
    start_at, kill_at = 0.0, float("inf")
    while True:
        ended, now = _ended(workers), time.monotonic()
        workers.difference_update(ended)
        if kill_at < float("inf"):
            if not workers:
                return status
            if now >= kill_at:
                logger.error("Workers %s did not stop in time and are killed", sorted(workers))
                status = FAILED
                _tell(workers, signal.SIGKILL)
        else:
            for pid, code in ended.items():
                logger.error("Worker %d ended with %d", pid, code)
                start_at = now + REPLACE_SECONDS
            if any(code > 0 for code in ended.values()):
                status, told = FAILED, True
            if told:
                logger.info("Workers %s are told to stop", sorted(workers))
                _tell(workers, signal.SIGTERM)
                listener.close()  # else it would go on to accept what no worker serves any more
                kill_at = now + settings.drain_seconds + settings.stop_seconds + CLOSE_SECONDS + 2
            while not told and now >= start_at and len(workers) < settings.workers:
                pid = os.fork()
                if pid == 0:
                    _be_worker(settings, database, listener, parent)
                workers.add(pid)
        received = signal.sigtimedwait(_SIGNALS, 0.5)
        told = told or (received is not None and received.si_signo in _STOP)


def _ended(workers: set[int]) -> dict[int, int]:
    """Those that ended, with their exit code, or minus the signal."""
    waited = [os.waitpid(pid, os.WNOHANG) for pid in workers]
    return {pid: os.waitstatus_to_exitcode(status) for pid, status in waited if pid}


def _tell(workers: set[int], sig: signal.Signals) -> None:
    for pid in workers:
        os.kill(pid, sig)  # not yet waited for, so it is still theirs


def _be_worker(settings: AppSettings, database: Settings, listener: socket.socket, parent: int) -> None:
    """In the new process; never returns into the parent's code."""
    status = FAILED
    try:
        status = _work(settings, database, listener, parent)
    except BaseException:
        logger.exception("Worker failed")
    finally:
        os._exit(status)

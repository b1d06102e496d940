"""Pools on a real server for the tests, and real trouble on the way to it."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema

from runbook.pool import Pool, Settings
from tests.lab.postgres import Postgres

_SCHEMA = json.loads(
    (Path(__file__).parents[3] / "runbook/common/schemas/status.schema.json").read_text(encoding="utf-8")
)
_SO_ATTACH_FILTER = 26
_numbers = itertools.count()


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait until `condition()` is true and return it; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.01)
    return value


def valid_status(document: dict[str, Any]) -> dict[str, Any]:
    """The document, after the check against its schema and of the sum that must always hold."""
    jsonschema.Draft202012Validator(_SCHEMA).validate(document)
    count = document["count"]
    assert count["used"] + count["idle"] + count["never_opened"] == count["maximum"]
    return document


def ask(path: Path, request: dict[str, Any] | bytes, seconds: float = 5.0) -> dict[str, Any]:
    """One exchange with a status socket, as a collector does it."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(seconds)
        client.connect(str(path))
        client.sendall(request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.endswith(b"\n")
    parsed: dict[str, Any] = json.loads(answer)
    return parsed


class Relay:
    """A TCP relay to a server, as a firewall is one: it can cut, reset, or let new connections hang."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._held: list[socket.socket] = []
        self.hold_new = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.hold_new:
                    self._held.append(client)
                    continue
                try:
                    server = socket.create_connection(self._target, timeout=5)
                except OSError:
                    client.close()
                    continue
                self._pairs.append((client, server))
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=[source, sink], daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        # Never long inside one system call: a socket is closed only when nobody is in a call on it.
        source.settimeout(0.05)
        with contextlib.suppress(OSError):
            while True:
                try:
                    data = source.recv(65536)
                except TimeoutError:
                    continue
                if not data:
                    return
                sink.sendall(data)

    def cut(self, reset: bool = False) -> None:
        """End all conversations on the client's side: with a FIN, or with an RST."""
        pairs, self._pairs = self._pairs, []
        for client, server in pairs:
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            for side in (client, server):
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()
        for client in self._held:
            client.close()


def black_hole(descriptor: int) -> None:
    """Let the kernel drop whatever arrives on this TCP connection, acknowledgements too, without a trace."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # one BPF instruction: ret 0
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(drop_all))
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        copy.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


class House:
    """Makes pools on one server and closes them; the pool's backends as the server sees them."""

    def __init__(self, server: Postgres, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self._pools: list[Pool] = []

    def settings(self, **changes: Any) -> Settings:
        values: dict[str, Any] = {
            "host": self.server.host,
            "port": self.server.port,
            "database": "odras",
            "user": "odras_app",
            "password": self.server.passwords["odras_app"],
            "min_connections": 0,
            "connection_timeout": 10.0,
            "runtime_directory": str(self.directory),
        }
        return Settings(**{**values, **changes})

    def pool(self, housekeeping: Callable[[], object] | None = None, **changes: Any) -> Pool:
        # A name of its own, as a backend may outlive the test that cut it off.
        pool = Pool(self.settings(**changes), f"billing-{next(_numbers)}", housekeeping=housekeeping)
        self._pools.append(pool)
        # The monitor's first round is over when the test begins.
        until(lambda: pool.monitor.heartbeat_age() is not None)
        return pool

    def backends(self, pool: Pool) -> set[int]:
        rows = self.server.sql(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s", (pool.application_name,)
        )
        return {pid for (pid,) in rows}

    def end_backends(self, pool: Pool, *pids: int) -> None:
        """Terminate them (all, by default), and wait until the server has none of them any more."""
        chosen = set(pids) or self.backends(pool)
        self.server.sql("SELECT pg_terminate_backend(pid) FROM unnest(%s) AS pid", (list(chosen),))
        until(lambda: not chosen & self.backends(pool))

    @contextlib.contextmanager
    def stopped(self, pid: int) -> Iterator[None]:
        """One backend that is alive and does not answer; for 15 s at most, so that no mistake hangs the test."""
        self.server.kill_backend(pid, signal.SIGSTOP)
        wake = threading.Timer(15, self.server.kill_backend, [pid, signal.SIGCONT])
        wake.start()
        try:
            yield
        finally:
            wake.cancel()
            self.server.kill_backend(pid, signal.SIGCONT)

    def fill(self, pool: Pool, number: int) -> list[Any]:
        """Open `number` connections and leave them idle; returns them, the last one borrowed next."""
        connections = [pool.getconn() for _ in range(number)]
        for connection in connections:
            pool.putconn(connection)
        return connections

    def close(self) -> None:
        for pool in self._pools:
            pool.close(timeout=0)

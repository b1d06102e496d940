"""View S: the service's sockets to PostgreSQL, and the server's last words that nobody has read yet.

Before PostgreSQL ends a session it says why. On an idle connection that message waits in the receive
queue of the client. It is read here on a *copy* of the socket (pidfd_getfd) with MSG_PEEK, so that the
application keeps its descriptors, its queue and the answer to its next query.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import time
from collections import Counter
from typing import Any, Optional

from . import proc
from .wire import parse_error_fields, read_messages

_PIDFD_GETFD = 438  # the same number on every architecture
_USUAL_PORTS = {"5432", "6432"}
_MOST_PEEKED = 2000
_MOST_WORDS = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)
_CLOSED = 7  # TCP_CLOSE
_SO_PEERNAME = 28  # asm-generic/socket.h


class Watch:
    """Samples one service's sockets over the time of a diagnosis.

    ``pids``: the service's processes. ``peers``: ``address:port`` of the database; when empty, the usual
    ports of PostgreSQL and PgBouncer are taken for it.
    """

    def __init__(self, pids: list[int], peers: list[str]) -> None:
        self.pids = pids
        self.peers = peers
        self.samples: list[dict[str, Any]] = []
        self.unreadable: set[int] = set()
        self.started = time.monotonic()

    def sample(self, moment: str) -> list[dict[str, Any]]:
        """One look; ``moment`` is before_login, during_login or after_login."""
        rows: list[dict[str, Any]] = []
        tables: dict[str, dict[int, dict[str, Any]]] = {}
        for pid in self.pids:
            fds = proc.socket_fds(pid)
            if fds is None:
                if proc.stat(pid):
                    self.unreadable.add(pid)
                continue
            table = proc.tcp_table_in(tables, pid)
            for fd, inode in sorted(fds.items()):
                row = table.get(inode) or self._reset(pid, fd)
                if row and row["state"] != "LISTEN":
                    rows.append({"pid": pid, "fd": fd, "inode": inode, **row})
        rows, elsewhere = self._to_database(rows)
        second = round(time.monotonic() - self.started, 3)
        self.samples.append({"moment": moment, "second": second, "sockets": rows, "elsewhere": elsewhere})
        return rows

    def _reset(self, pid: int, fd: int) -> Optional[dict[str, Any]]:
        """A TCP socket that the kernel no longer lists was reset. It still knows with whom it was."""
        try:
            copy = duplicate(pid, fd)
        except OSError:
            return None
        with copy:
            if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.type != socket.SOCK_STREAM:
                return None
            if copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0] != _CLOSED:
                return None
            peer = former_peer(copy)
        counts = {"recv_q": 0, "send_q": 0, "retransmits": 0, "probes": 0}
        known = {"local": f"?:{fd}", "peer": peer, "state": "RESET", "timer": "off"}
        return {**known, **counts} if peer else None

    def _to_database(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Those to the peers; where there is none, those to their ports: a name may lead elsewhere by now.

        And peer → open connections on these ports that lead to another peer: one of before, or another database.
        """
        ports = {peer.rpartition(":")[2] for peer in self.peers} or _USUAL_PORTS
        alike = [row for row in rows if row["peer"].rpartition(":")[2] in ports]
        found = [row for row in alike if row["peer"] in self.peers]
        others = [row["peer"] for row in alike if row["peer"] not in self.peers and row["state"] == "ESTAB"]
        return found or alike, dict(Counter(others)) if self.peers else {}

    def read(self) -> dict[str, Any]:
        """What is unread on every socket of the first sample, and the options that are live on it."""
        words: list[dict[str, Any]] = []
        options: list[dict[str, Any]] = []
        peek = {"state": "ok", "reason": ""}
        rows = self.samples[0]["sockets"] if self.samples else []
        for row in rows[:_MOST_PEEKED]:
            try:
                copy = duplicate(row["pid"], row["fd"])
            except OSError as error:
                peek = _denial(error)
                if peek["state"] != "ok":
                    break
                continue
            try:
                here = {"pid": row["pid"], "fd": row["fd"]}
                options.append({**here, **live_options(copy)})
                if row["recv_q"] or row["state"] in ("CLOSE-WAIT", "CLOSE", "RESET"):
                    words.append({**here, "local": row["local"], "peer": row["peer"], **last_words(copy)})
            finally:
                copy.close()
        return {"last_words": words, "options": options, "waits": [], "peek": peek}

    def waits(self) -> list[dict[str, Any]]:
        """The connections of the last sample on which a request went out and nothing has come back since."""
        found: list[dict[str, Any]] = []
        for row in self.samples[-1]["sockets"][:_MOST_PEEKED]:
            if row["state"] != "ESTAB":
                continue
            try:
                with duplicate(row["pid"], row["fd"]) as copy:
                    seconds = unanswered(copy)
            except OSError:
                continue  # gone meanwhile; or no right, which ``read`` has said already
            if seconds is not None:
                place = {key: row[key] for key in ("pid", "fd", "local", "peer")}
                acknowledged = not (row["send_q"] or row["probes"] or row["retransmits"])
                found.append({**place, "seconds": seconds, "acknowledged": acknowledged})
        return found

    def data(self, read: dict[str, Any]) -> dict[str, Any]:
        """The data of view ``sockets``."""
        holders: dict[int, set[int]] = {}
        for sample in self.samples:
            for row in sample["sockets"]:
                holders.setdefault(row["inode"], set()).add(row["pid"])
        return {
            "peers": self.peers,
            "samples": self.samples,
            **read,
            "shared": [{"inode": i, "pids": sorted(p)} for i, p in sorted(holders.items()) if len(p) > 1],
            "unreadable_pids": sorted(self.unreadable),
        }


def suspicious(rows: list[dict[str, Any]]) -> bool:
    """Is there a socket whose silence a second look, two seconds later, would explain?"""
    return any(row["probes"] or row["retransmits"] or row["send_q"] for row in rows)


def duplicate(pid: int, fd: int) -> socket.socket:
    """A copy of another process's socket. Raises OSError: EPERM without the right to trace it."""
    pidfd = os.pidfd_open(pid)
    try:
        copy = _libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)
        if copy < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(pidfd)
    return socket.socket(fileno=copy)


def _denial(error: OSError) -> dict[str, str]:
    if error.errno in (errno.EPERM, errno.EACCES):
        return {
            "state": "denied",
            "reason": "copying a socket of another process needs root, or the same user where kernel.yama.ptrace_scope is 0",
        }
    if error.errno == errno.ENOSYS:
        return {"state": "unsupported", "reason": "this kernel has no pidfd_getfd (Linux 5.6 brought it)"}
    return {"state": "ok", "reason": ""}  # the process or its descriptor went away meanwhile


def former_peer(copy: socket.socket) -> str:
    """``address:port`` that a closed socket was connected to; empty where it was to nothing.

    getpeername() does not tell it of a closed socket, the option SO_PEERNAME does.
    """
    size, at = (16, 4) if copy.family == socket.AF_INET else (28, 8)
    try:
        raw = copy.getsockopt(socket.SOL_SOCKET, _SO_PEERNAME, size)
    except OSError:
        return ""
    address = raw[at : at + (4 if size == 16 else 16)]
    return proc.socket_address(address, int.from_bytes(raw[2:4], "big"))


def live_options(copy: socket.socket) -> dict[str, Any]:
    """Keepalive and user timeout as the kernel has them, whatever a file says."""

    def option(level: int, name: int) -> int:
        return copy.getsockopt(level, name)

    return {
        "keepalive": bool(option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)),
        "idle": option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        "interval": option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
        "count": option(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
        "user_timeout_ms": option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    }


def _ages(copy: socket.socket) -> tuple[int, float, float]:
    """(state, seconds since data was last sent, seconds since data last came) of a socket."""
    # struct tcp_info of linux/tcp.h: the state is byte 0; the milliseconds are the words at 44 and 52.
    info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 56)
    return info[0], struct.unpack_from("=I", info, 44)[0] / 1000, struct.unpack_from("=I", info, 52)[0] / 1000


def unanswered(copy: socket.socket) -> Optional[float]:
    """For how many seconds a request has had no answer; None where the last word was the other side's."""
    _, sent, received = _ages(copy)
    return sent if sent < received else None


def last_words(copy: socket.socket) -> dict[str, Any]:
    """What lies unread in the queue of a socket, without taking it."""
    state, sent, received = _ages(copy)
    ages = {"idle_seconds": min(sent, received), "in_use": sent < received}
    nothing = interpret(b"")
    if state == _CLOSED:
        # A pending ECONNRESET belongs to the application: even a peek would take it away, so no peek.
        return {**nothing, **ages, "kind": "rst"}
    try:
        unread = copy.recv(_MOST_WORDS, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return {**nothing, **ages, "kind": "bytes"}
    except ConnectionError:
        return {**nothing, **ages, "kind": "rst"}
    return {**interpret(unread), **ages}


def interpret(unread: bytes) -> dict[str, Any]:
    """Unread bytes as kind, sqlstate and message. Bytes that are no protocol (TLS) keep only their size.

    The last message with an SQLSTATE counts. A crash or an immediate shutdown is announced in a notice
    (57P02, 57P01); every other notice is no ending.
    """
    result: dict[str, Any] = {
        "kind": "bytes" if unread else "fin",
        "sqlstate": None,
        "message": None,
        "bytes": len(unread),
    }
    for kind, payload in read_messages(unread):
        if kind not in (b"E", b"N"):
            continue
        fields = parse_error_fields(payload)
        sqlstate = fields["sqlstate"]
        ending = kind == b"E" or (sqlstate or "").startswith("57P")
        if ending and (sqlstate or not result["sqlstate"]):
            result.update(kind="error", sqlstate=sqlstate, message=fields["message"])
    return result

"""What /proc says, read with nothing but the standard library. Small readers, no opinion."""

from __future__ import annotations

import os
import pwd
import socket
import struct
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

from ..common.clock import rfc3339

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
# include/net/tcp_states.h; the names are those of ss(8)
TCP_STATES = {
    **{1: "ESTAB", 2: "SYN-SENT", 3: "SYN-RECV", 4: "FIN-WAIT-1", 5: "FIN-WAIT-2", 6: "TIME-WAIT"},
    **{7: "CLOSE", 8: "CLOSE-WAIT", 9: "LAST-ACK", 10: "LISTEN", 11: "CLOSING"},
}
# net/ipv4/tcp_ipv4.c, get_tcp4_sock(): the column "tr"
TIMERS = {0: "off", 1: "on", 2: "keepalive", 3: "timewait", 4: "persist"}


def read(path: Path, limit: int = 1 << 16) -> Optional[bytes]:
    """At most ``limit`` bytes of a file; None when it is gone or not ours to read."""
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError:
        return None


def read_text(path: Path, limit: int = 1 << 16) -> str:
    """The same as text; empty when it is gone or not ours to read."""
    return (read(path, limit) or b"").decode("utf-8", "replace")


def end_of(path: Path, most: int) -> str:
    """At most the last ``most`` bytes of a file as text; empty when it is gone or not ours to read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def pids() -> Iterator[int]:
    """Every process there is now."""
    for entry in os.listdir(PROC):
        if entry.isdigit():
            yield int(entry)


def boot_time() -> float:
    """Seconds since the epoch at which this machine booted. Not btime of /proc/stat, which lacks a part of a second:
    an app that was started right after its server would seem the older one."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def stat(pid: int) -> Optional[dict[str, Any]]:
    """pid, ppid, session, state, threads, start_ticks of a process; None when it is gone."""
    raw = read(PROC / str(pid) / "stat")
    if not raw or b")" not in raw:
        return None
    fields = raw[raw.rindex(b")") + 2 :].split()  # the name may hold spaces and brackets: start after it
    if len(fields) < 20:
        return None
    return {
        "pid": pid,
        "state": fields[0].decode(),
        "ppid": int(fields[1]),
        "session": int(fields[3]),
        "threads": int(fields[17]),
        "start_ticks": int(fields[19]),
    }


def describe(pid: int, booted: float) -> Optional[dict[str, Any]]:
    """One process as the schema of view ``process`` has it; None when it is gone."""

    base = stat(pid)
    if base is None:
        return None
    directory = PROC / str(pid)
    try:
        names = os.listdir(directory / "fd")
        fds: Optional[int] = len(names)
        # Who waits for events in a loop has a descriptor for it.
        loop: Optional[bool] = any(
            link(directory / "fd" / name) == "anon_inode:[eventpoll]" for name in names
        )
    except OSError:
        fds = loop = None
    limit = None
    for line in read_text(directory / "limits").splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            limit = int(soft) if soft.isdigit() else None
    statm = (read(directory / "statm") or b"0 0").split()
    try:
        owner = directory.stat().st_uid
        user = pwd.getpwuid(owner).pw_name
    except (OSError, KeyError):
        user = "?"
    return {
        "pid": pid,
        "ppid": base["ppid"],
        "start_ticks": base["start_ticks"],
        "started_at": rfc3339(booted + base["start_ticks"] / TICKS),
        "state": base["state"],
        "threads": base["threads"],
        "fds": fds,
        "fd_limit": limit,
        "event_loop": loop,
        "rss_bytes": int(statm[1]) * os.sysconf("SC_PAGE_SIZE") if len(statm) > 1 else 0,
        "user": user,
        "command": read_text(directory / "cmdline", 4096).replace("\0", " ").strip(),
        "directory": link(directory / "cwd"),
        "readable": fds is not None,
    }


def link(path: Path) -> Optional[str]:
    """Where a link of /proc points; None when it is gone or not ours to read."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def socket_fds(pid: int) -> Optional[dict[int, int]]:
    """fd → inode of every socket that a process holds; None without the right to look."""
    directory = f"{PROC}/{pid}/fd/"  # all descriptors of all processes are read: no Path for each
    try:
        names = os.listdir(directory)
    except OSError:
        return None
    found: dict[int, int] = {}
    for name in names:
        try:
            target = os.readlink(directory + name)
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            found[int(name)] = int(target[8:-1])
    return found


def tcp_table(pid: int) -> dict[int, dict[str, Any]]:
    """inode → TCP socket, as the network namespace of ``pid`` sees it.

    The fields are those of /proc/net/tcp: queues in bytes, ``retransmits`` of what was sent, ``probes``
    sent and not answered (keepalive or zero window).
    """
    table: dict[int, dict[str, Any]] = {}
    net = PROC / str(pid) / "net"
    # The kernel looks through all of its buckets to list nothing at all, which takes longer than all else here.
    none = "TCP6: inuse 0\n" in read_text(net / "sockstat6")
    for family in ("tcp",) if none else ("tcp", "tcp6"):
        try:
            lines = (net / family).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            parts = line.split()
            if len(parts) < 10 or parts[9] == "0":
                continue
            send, receive = parts[4].split(":")
            table[int(parts[9])] = {
                "local": _address(parts[1]),
                "peer": _address(parts[2]),
                "state": TCP_STATES.get(int(parts[3], 16), parts[3]),
                "recv_q": int(receive, 16),
                "send_q": int(send, 16),
                "timer": TIMERS.get(int(parts[5].split(":")[0], 16), "unknown"),
                "retransmits": int(parts[6], 16),
                "probes": int(parts[8]),
            }
    return table


def listeners(port: Optional[int]) -> dict[int, list[int]]:
    """port → pids that hold a listening socket on it, none where they may not be read; of one port or of all."""
    inodes: dict[int, int] = {}
    for inode, row in tcp_table(os.getpid()).items():
        at = int(row["local"].rpartition(":")[2])
        if row["state"] == "LISTEN" and port in (None, at):
            inodes[inode] = at
    found: dict[int, list[int]] = {at: [] for at in inodes.values()}
    for pid in pids() if inodes else ():
        for at in {inodes[inode] for inode in (socket_fds(pid) or {}).values() if inode in inodes}:
            found[at].append(pid)
    return found


def tcp_table_in(tables: dict[str, dict[int, dict[str, Any]]], pid: int) -> dict[int, dict[str, Any]]:
    """The table of the network namespace of ``pid``, read once for each: ``tables`` keeps them."""
    namespace = link(PROC / str(pid) / "ns" / "net") or str(pid)
    if namespace not in tables:
        tables[namespace] = tcp_table(pid)
    return tables[namespace]


@lru_cache(maxsize=4096)
def _address(text: str) -> str:
    """``0100007F:1538`` → ``127.0.0.1:5432``; IPv4 in IPv6 is shown as IPv4."""
    raw, port = text.split(":")
    words = [struct.pack("=I", int(raw[at : at + 8], 16)) for at in range(0, len(raw), 8)]
    return socket_address(b"".join(words), int(port, 16))


def socket_address(packed: bytes, port: int) -> str:
    """4 or 16 bytes of an address in network order, and a port, as one text; IPv4 in IPv6 is shown as IPv4."""
    if len(packed) == 16 and packed[:12] == b"\0" * 10 + b"\xff\xff":
        packed = packed[12:]
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return join_address(socket.inet_ntop(family, packed), port)


def join_address(host: str, port: int) -> str:
    """host and port as one text; an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

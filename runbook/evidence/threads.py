"""What the threads of the service do, read from the kernel, and who waits at its door.

Nobody's stacks are read here, so an app that never heard of us tells as much as any other: a system call
that lasts, the descriptor it waits on and what that is connected to. Of each thread several looks are kept;
one that has neither run nor been switched between two looks stood still.
"""

from __future__ import annotations

import os
import platform
import struct
import time
from pathlib import Path
from typing import Any, Optional

from . import proc

MOST_THREADS = 400
# System calls in which a thread can stay, by what it waits for (asm/unistd_64.h, asm-generic/unistd.h).
_CALLS = {
    "x86_64": {
        **dict.fromkeys((7, 271), "poll"),
        **dict.fromkeys((23, 270), "select"),
        **dict.fromkeys((232, 281, 441), "epoll"),
        **dict.fromkeys((202, 449), "futex"),
        **dict.fromkeys((35, 230), "sleep"),
        **dict.fromkeys((45, 47, 299), "recv"),
        **dict.fromkeys((44, 46), "send"),
        **dict.fromkeys((43, 288), "accept"),
        **dict.fromkeys((34, 61, 128, 130, 247), "wait"),  # for a child, or for a signal
        **{0: "read", 1: "write", 42: "connect", 73: "flock"},
    },
    "aarch64": {
        **{73: "poll", 72: "select", 63: "read", 64: "write", 203: "connect", 32: "flock"},
        **dict.fromkeys((22, 441), "epoll"),
        **dict.fromkeys((98, 449), "futex"),
        **dict.fromkeys((101, 115), "sleep"),
        **dict.fromkeys((207, 212, 243), "recv"),
        **dict.fromkeys((206, 211), "send"),
        **dict.fromkeys((202, 242), "accept"),
        **dict.fromkeys((95, 133, 137, 260), "wait"),
    },
}.get(platform.machine(), {})
_GROUPS = "/sys/fs/cgroup"
# Goes on with what was interrupted, as after a stop, and does not say what that was.
_RESTARTED = {"x86_64": b"219", "aarch64": b"128"}.get(platform.machine())
# Where the system call may not be read, the kernel function that it sleeps in says as much without the descriptor.
_SLEEPS_IN = (
    *(("futex", "futex"), ("ep_poll", "epoll"), ("do_select", "select"), ("poll", "poll")),
    *(("nanosleep", "sleep"), ("accept", "accept"), ("connect", "connect"), ("do_wait", "wait")),
    *(("recv", "recv"), ("sk_wait_data", "recv"), ("wait_woken", "recv"), ("sk_stream_wait", "send")),
    *(("pipe_read", "read"), ("flock", "flock")),
)
_ON_A_DESCRIPTOR = ("read", "write", "recv", "send", "connect", "accept", "flock")


class Looks:
    """Looks at one service's threads over the time of a diagnosis.

    ``pids``: the service's processes. ``port``: where it listens, or None.
    """

    def __init__(self, pids: list[int], port: Optional[int]) -> None:
        self.pids = pids
        self.port = port
        self.looks: list[dict[str, Any]] = []
        self.started = time.monotonic()

    def look(self, moment: str) -> dict[str, Any]:
        """One look; ``moment`` is before_login, during_login or after_login."""
        second = round(time.monotonic() - self.started, 3)
        tables: dict[str, dict[int, dict[str, Any]]] = {}
        rows: list[dict[str, Any]] = []
        for pid in self.pids:
            rows += _threads(pid, proc.tcp_table_in(tables, pid), MOST_THREADS - len(rows))
        door = [row for table in tables.values() for row in table.values() if self._is_ours(row)]
        waiting = [row["recv_q"] for row in door if row["state"] == "LISTEN"]
        found = {
            "moment": moment,
            "second": second,
            "connected": sum(row["state"] == "ESTAB" for row in door),
            "not_accepted": sum(waiting) if waiting else None,
            "threads": rows,
        }
        self.looks.append(found)
        return found

    def _is_ours(self, row: dict[str, Any]) -> bool:
        return self.port is not None and row["local"].rpartition(":")[2] == str(self.port)


def _threads(pid: int, table: dict[int, dict[str, Any]], most: int) -> list[dict[str, Any]]:
    task = proc.PROC / str(pid) / "task"
    try:
        names = sorted(os.listdir(task), key=int)
    except OSError:
        return []
    sockets, still = proc.socket_fds(pid) or {}, _frozen(pid)
    rows = []
    for name in names[:most]:
        raw = proc.read(task / name / "stat")
        if not raw or b")" not in raw:
            continue  # ended meanwhile
        call, fd = _call(pid, name)
        inode = sockets.get(fd) if fd is not None else None
        connection = table.get(inode) if inode is not None else None
        told = (proc.read(task / name / "schedstat") or b"").split()
        rows.append(
            {
                "pid": pid,
                "tid": int(name),
                "state": "F" if still else raw[raw.rindex(b")") + 2 :][:1].decode("ascii", "replace"),
                "call": call,
                "inode": inode,
                "to": connection["peer"] if connection and connection["state"] != "LISTEN" else None,
                "cpu_seconds": round(int(told[0]) / 1e9, 4) if len(told) > 2 else None,
                "turns": int(told[2]) if len(told) > 2 else None,
            }
        )
    return rows


def _frozen(pid: int) -> bool:
    """Whether its control group is frozen (systemctl freeze, podman pause): its threads look asleep then."""
    for line in proc.read_text(proc.PROC / str(pid) / "cgroup").splitlines():
        _, kind, path = line.split(":", 2)
        if kind == "freezer" and proc.read_text(Path(f"{_GROUPS}/freezer{path}/freezer.state")) == "FROZEN\n":
            return True
        if not kind and "frozen 1" in proc.read_text(Path(f"{_GROUPS}{path}/cgroup.events")):
            return True
    return False


def _call(pid: int, tid: str) -> tuple[str, Optional[int]]:
    """(what the thread waits in, the descriptor it waits on). ``running`` in none; empty where unreadable."""
    task = proc.PROC / str(pid) / "task" / tid
    words = (proc.read(task / "syscall") or b"").split()
    if not words or words[0] == _RESTARTED:
        kernel = proc.read_text(task / "wchan")
        return next((call for part, call in _SLEEPS_IN if part in kernel), ""), None
    if words[0] == b"running" or not words[0].isdigit():
        return "running", None
    call = _CALLS.get(int(words[0]), f"call {int(words[0])}")
    first, second = int(words[1], 16), int(words[2], 16)
    if call in _ON_A_DESCRIPTOR:
        return call, first & 0xFFFFFFFF
    if call == "poll":
        return call, _polled(pid, first, second)
    if call == "select":
        return call, _selected(pid, first, second)
    return call, None


def _polled(pid: int, address: int, count: int) -> Optional[int]:
    """The descriptor that poll() waits on; None when it is none, several, or not ours to read."""
    if count != 1:
        return None
    fd = struct.unpack("=i", _memory(pid, address, 4) or b"\xff\xff\xff\xff")[0]
    return fd if fd >= 0 else None


def _selected(pid: int, most: int, address: int) -> Optional[int]:
    bits = int.from_bytes(_memory(pid, address, min(most, 1024) // 8 + 1) or b"", "little")
    found = [fd for fd in range(min(most, 1024)) if bits >> fd & 1]
    return found[0] if len(found) == 1 else None


def _memory(pid: int, address: int, size: int) -> Optional[bytes]:
    """A few bytes of another process: only what a system call of its own just gave to the kernel."""
    try:
        memory = os.open(proc.PROC / str(pid) / "mem", os.O_RDONLY)
    except OSError:
        return None
    try:
        found = os.pread(memory, size, address)
    except (OSError, OverflowError):
        return None
    finally:
        os.close(memory)
    return found if len(found) == size else None

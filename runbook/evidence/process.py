"""View X: the service, every process of it, its listener, clocks, and who is acting on this host."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from ..common.clock import rfc3339
from . import proc

_PROPERTIES = (
    *("LoadState", "ActiveState", "SubState", "Result", "UnitFileState", "MainPID", "ControlGroup"),
    "NRestarts",  # by systemd itself, since somebody last started it
)
# Where root keeps the lock and the audit log of a host; readable by all, for they hold no secret.
SYSTEM_STATE = Path("/var/lib/pool-runbook")
MOST_PROCESSES = 500


def state_directory(named: Optional[str]) -> Path:
    """Where this user keeps the lock and the audit log of this host."""
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return SYSTEM_STATE
    try:
        return Path("~/.local/state/pool-runbook").expanduser()
    except RuntimeError:  # a user without a home has nothing there
        return SYSTEM_STATE


def collect(
    service: Optional[str], pid_file: Optional[str], port: Optional[int], state: Optional[str]
) -> dict[str, Any]:
    """The data of view ``process``. Reads only; what it may not read is None or ``readable: false``."""
    unit, found, listening = running(service, pid_file, port)
    processes = described(found)
    suspended = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    places = [state_directory(state)] if state else [SYSTEM_STATE, state_directory(None)]
    return {
        "service": _service(service, unit, pid_file, processes),
        "port": port,
        "listening": listening,
        "processes": processes,
        "looks": [],
        "clocks": {
            "suspended_seconds": round(max(suspended, 0.0), 3),
            "booted_at": rfc3339(proc.boot_time()),
        },
        "lock": next(filter(None, map(lock_holder, places)), None),
        "last_action": next(filter(None, map(last_action, places)), None),
    }


def running(
    service: Optional[str], pid_file: Optional[str], port: Optional[int]
) -> tuple[dict[str, str], list[int], Optional[bool]]:
    """(properties of the unit, pids of the service, whether anything listens on ``port``), now."""
    unit = systemd_unit(service)
    listeners, listening = listeners_of(port)
    return unit, service_pids(unit, pid_file, listeners), listening


def described(pids: list[int]) -> list[dict[str, Any]]:
    """Those of the processes that still live, as the view has them."""
    booted = proc.boot_time()
    return [one for one in (proc.describe(pid, booted) for pid in pids[:MOST_PROCESSES]) if one]


def systemd_unit(name: Optional[str]) -> dict[str, str]:
    """The properties of a unit that matter here; empty without one, and when systemd does not answer
    within 3 s."""
    if not name:
        return {}
    command = ["systemctl", "show", name, *(f"--property={p}" for p in (*_PROPERTIES, "EnvironmentFiles"))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        # EnvironmentFiles has a line for each.
        found[key] = f"{found[key]}\n{value}" if key in found else value
    return found


def listeners_of(port: Optional[int]) -> tuple[list[int], Optional[bool]]:
    """(pids that hold a listening socket on ``port``, whether anything listens at all).

    The kernel's table tells anyone that somebody listens; who it is needs the right to read that
    process, so the first may be empty while the second is true.
    """
    if port is None:
        return [], None
    found = proc.listeners(port)
    return sorted(found.get(port, [])), port in found


def service_pids(unit: dict[str, str], pid_file: Optional[str], listeners: Iterable[int]) -> list[int]:
    """Every process of the service: its control group; else what descends from the pid file's process
    and from the listeners."""
    group = unit.get("ControlGroup", "")
    if group and group != "/":
        return sorted(pid for pid in proc.pids() if _in_group(pid, group))
    roots = {pid for pid in (*listeners, read_pid(pid_file)) if pid}
    parents = {pid: info["ppid"] for pid in proc.pids() if (info := proc.stat(pid))}
    return sorted(pid for pid in parents if _descends(pid, roots, parents))


def _in_group(pid: int, group: str) -> bool:
    lines = proc.read_text(proc.PROC / str(pid) / "cgroup").splitlines()
    return any(f"{line.split(':', 2)[-1]}/".startswith(f"{group}/") for line in lines)


def _descends(pid: int, roots: set[int], parents: dict[int, int]) -> bool:
    for _ in range(64):  # no process tree is deeper; the bound guards against a table read while it changed
        if pid in roots:
            return True
        pid = parents.get(pid, 0)
        if pid <= 1:
            return False
    return False


def read_pid(pid_file: Optional[str]) -> Optional[int]:
    """The pid in a pid file, if that process lives."""
    text = proc.read_text(Path(pid_file), 64).split() if pid_file else []
    if not text or not text[0].isdecimal():
        return None
    pid = int(text[0])
    info = proc.stat(pid)
    if info is None or info["state"] == "Z":
        return None
    # Whoever began after the file was written is a stranger that was given the number again.
    began = proc.boot_time() + info["start_ticks"] / proc.TICKS
    return pid if began < Path(str(pid_file)).stat().st_mtime + 5 else None


def _service(
    name: Optional[str], unit: dict[str, str], pid_file: Optional[str], processes: list[dict[str, Any]]
) -> dict[str, Any]:
    unknown = dict.fromkeys(("active", "result", "unit_file", "main_pid", "stopped_by_person", "masked"))
    told: dict[str, Any] = {"kind": "none", "name": name, **unknown}
    if name:
        told["kind"] = "systemd"
        if unit.get("LoadState") in (None, "", "not-found"):
            return {**told, "why": f"systemd does not know a unit {name}"}
        active, result, main = (unit.get(key, "") for key in ("ActiveState", "Result", "MainPID"))
        again = unit.get("NRestarts", "0")
        times = (
            ""
            if again in ("", "0")
            else f"; it ended by itself, and systemd started it again (NRestarts {again})"
        )
        return {
            **told,
            "active": active,
            "result": result,
            "unit_file": unit.get("UnitFileState") or None,
            "main_pid": int(main) if main.isdigit() and main != "0" else None,
            "masked": unit.get("LoadState") == "masked",
            "stopped_by_person": active == "inactive" and result == "success",
            "why": f"{name} is {active} ({unit.get('SubState', '')}), result {result}{times}",
        }
    if not pid_file:
        return {**told, "why": "neither a service nor a pid file is named for this host"}
    there, pid = _there(pid_file), read_pid(pid_file)
    if pid:
        why = f"{pid_file} names pid {pid}"
    elif there is None:
        why = f"no right to read {pid_file}"
    elif there:
        why = f"{pid_file} is there and its process is gone: it died"
    else:
        why = f"{pid_file} is not there: an orderly stop removes it"
    stopped = False if pid or processes else None if there is None else not there
    told.update(kind="command", name=pid_file, main_pid=pid, masked=False, stopped_by_person=stopped, why=why)
    return told


def _there(name: str) -> Optional[bool]:
    """Whether a file is there for us to read; None without the right to know."""
    try:
        os.close(os.open(name, os.O_RDONLY | os.O_NONBLOCK))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    return True


def lock_holder(directory: Path) -> Optional[dict[str, Any]]:
    """Who is starting or restarting on this host right now; None when nobody is.

    The lock file names its holder; it counts only while that process lives, so nobody has to clean up
    after a run that was killed.
    """
    held = _json(proc.read_text(directory / "lock"))
    if not held or not isinstance(held.get("pid"), int):
        return None
    info = proc.stat(held["pid"])
    if info is None or info["start_ticks"] != held.get("start_ticks"):
        return None
    return {key: held.get(key) for key in ("who", "run_id", "since", "pid")}


def last_action(directory: Path, what: Optional[str] = None) -> Optional[dict[str, Any]]:
    """The newest line of this host's audit log; with ``what``, of those that acted on it."""
    lines = proc.end_of(directory / "audit.log", 1 << 16).splitlines()
    told = (line for line in map(_json, reversed(lines)) if line)
    if what is None:
        return next(told, None)
    return next((line for line in told if line.get("what") == what and line.get("result") != "refused"), None)


def _json(text: str) -> Optional[dict[str, Any]]:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None

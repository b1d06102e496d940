"""What runs here and listens: everything that an inventory has to say of an app, read from the app itself.

Reads only, as far as its rights reach; what they do not reach is said. Nothing is guessed where several
answers are possible: the candidates are told.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any, Optional

from ..common.masking import Masker
from ..leaks.search import IGNORED
from . import proc, process, settings
from .log import BLOCK_BYTES, log_of
from .new_connection import resolve
from .wire import WireError

_PYTHON = re.compile(
    r"(?:^|/)(?:python[\d.]*|gunicorn|uvicorn|hypercorn|daphne|uwsgi|waitress-serve)(?=\s|$|:)"
)
_UNIT = re.compile(r"/([^/]+\.service)(?:/|$)")
_CONTAINER = re.compile(r"/(?:docker|libpod|crio|containerd|kubepods)[-/]")
# Where people log in, as an access log has it, and as a source has it.
_LOGGED = re.compile(r'"POST (/[^ "?]*(?:log-?in|sign-?in|auth|token|session)[^ "?]*)', re.IGNORECASE)
_ROUTE = re.compile(r"""["'](/[\w./-]{0,80}(?:log-?in|sign-?in)/?)["']""", re.IGNORECASE)
_LOGOUT = re.compile(r"log-?out|sign-?out|refresh|revoke", re.IGNORECASE)
_PLACES_OF_PID_FILES = ("/run", "/run/*", "/var/run", "/tmp")  # noqa: S108 - looked at, not written to
_MOST_FILES = 2000
_MOST_SOURCE = 4 << 20  # bytes


def discover(port: Optional[int]) -> list[dict[str, Any]]:
    """A description of the service on ``port``, or of every Python program that listens, by port.

    Each: ``port``, ``service``, ``container``, ``user``, ``pid`` (of the oldest process), ``processes``,
    ``command``, ``directory``, ``log``, ``pid_file``, ``environment_file``, ``database`` (without its secret),
    ``settings_from`` (in words), ``peers`` (address:port of what it is connected to), ``login_paths`` (as the
    access log has them), ``login_routes`` (as the source has them), ``sudo`` (is it there), ``unread`` (in words).
    """
    found = []
    for at, holders in sorted(proc.listeners(port).items()):
        if not holders:
            if port is not None:
                found.append(_nobody(at))
            continue
        members = process.service_pids({}, None, holders)
        oldest = min(members, key=lambda pid: ((proc.stat(pid) or {}).get("start_ticks", 0), pid))
        command = (proc.describe(oldest, 0.0) or {}).get("command", "")
        if port is not None or _PYTHON.search(command.split(" -", 1)[0]):
            found.append(_describe(at, oldest, members))
    return found


def _nobody(port: int) -> dict[str, Any]:
    words = f"whose process listens on port {port}: that needs root, or the app's own user"
    lists = ("peers", "login_paths", "login_routes")
    texts = ("service", "container", "user", "pid", "command", "directory", "log", "pid_file")
    known = {"port": port, "processes": 0, "settings_from": "", "sudo": True, **{name: [] for name in lists}}
    return {**known, "unread": [words], **dict.fromkeys((*texts, "environment_file", "database"))}


def _describe(port: int, oldest: int, members: list[int]) -> dict[str, Any]:
    told = proc.describe(oldest, 0.0) or {}
    group = proc.read_text(proc.PROC / str(oldest) / "cgroup")
    units = [name for name in _UNIT.findall(group) if not name.startswith("user@")]
    service = units[-1] if units else None
    unit = process.systemd_unit(service) if service else {}
    log, directory = log_of(oldest), told.get("directory")
    config = settings.collect(None, unit, [{"pid": oldest, "directory": directory}])
    unread = []
    if not told.get("readable"):
        whose = f"pid {oldest} (user {told.get('user')})"
        unread.append(f"the descriptors of {whose}: its log and its connections")
    if settings.environ(oldest) is None:
        unread.append(f"the environment of pid {oldest}, where its database may be named")
    peers = _peers(members)
    file = None if service or config.file else _file_with(config, peers, directory)
    if file:
        config = settings.collect(file, unit, [{"pid": oldest, "directory": directory}])
    return {
        "port": port,
        "service": service,
        "container": bool(_CONTAINER.search(group)) or None,
        "user": told.get("user"),
        "pid": oldest,
        "processes": len(members),
        "command": Masker(config.secrets).text(str(told.get("command", "")))[:200],
        "directory": directory,
        "log": log,
        "pid_file": None if service else _pid_file(oldest, directory),
        "environment_file": file,
        "database": config.database,
        "settings_from": (config.file or f"the environment of pid {oldest}") if config.database else "",
        "peers": peers,
        "login_paths": _login_paths(log),
        "login_routes": _login_routes(directory),
        "sudo": shutil.which("sudo") is not None,
        "unread": unread,
    }


def _peers(members: list[int]) -> list[str]:
    """What the processes are connected to, but for who is connected to them."""
    table = proc.tcp_table(os.getpid())
    ours = {row["local"].rpartition(":")[2] for row in table.values() if row["state"] == "LISTEN"}
    inodes = {inode for pid in members for inode in (proc.socket_fds(pid) or {}).values()}
    rows = [table[inode] for inode in inodes & set(table)]
    outward = [r for r in rows if r["state"] != "LISTEN" and r["local"].rpartition(":")[2] not in ours]
    return sorted({row["peer"] for row in outward})[:50]


def _file_with(config: settings.Settings, peers: list[str], directory: Optional[str]) -> Optional[str]:
    """An environment file where the app runs that names the database of its environment, or, where that names
    none, one that it is connected to; None if none does."""
    if not directory or directory == "/":
        return None
    for path in sorted(Path(directory).glob("*.env"))[:_MOST_FILES]:
        found = settings.collect(str(path), {}, [])
        same = (found.database, found.password) == (config.database, config.password)
        if found.database and (same if config.database else _is_connected(found.database, peers)):
            return str(path)
    return None


def _is_connected(database: dict[str, Any], peers: list[str]) -> bool:
    try:
        addresses = resolve(database["host"], database["port"], 2.0)
    except (OSError, WireError):
        return False
    return any(proc.join_address(address, database["port"]) in peers for address in addresses)


def _pid_file(pid: int, directory: Optional[str]) -> Optional[str]:
    """A file *.pid that names the process."""
    places = [Path(directory)] if directory and directory != "/" else []
    places += [found for name in _PLACES_OF_PID_FILES for found in Path("/").glob(name.lstrip("/"))]
    for place in places:
        with contextlib.suppress(OSError):
            for name in sorted(place.glob("*.pid"))[:_MOST_FILES]:
                if process.read_pid(str(name)) == pid:
                    return str(name)
    return None


def _login_paths(log: Optional[str]) -> list[str]:
    """Where people logged in, as the end of the access log has it; the most frequent first."""
    text = proc.end_of(Path(log), BLOCK_BYTES) if log else ""
    paths = [path for path in _LOGGED.findall(text) if not _LOGOUT.search(path)]
    return sorted(dict.fromkeys(paths), key=lambda path: (-paths.count(path), path))[:5]


def _login_routes(directory: Optional[str]) -> list[str]:
    """Texts of the source that look like a path where one logs in."""
    found: list[str] = []
    left = _MOST_SOURCE
    for at, names, files in os.walk(directory if directory and directory != "/" else os.devnull):
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in IGNORED)
        for name in sorted(files):
            if name.endswith(".py") and left > 0:
                text = proc.read_text(Path(at, name), left)
                left -= len(text)
                found += [route for route in _ROUTE.findall(text) if not _LOGOUT.search(route)]
    return list(dict.fromkeys(found))[:5]

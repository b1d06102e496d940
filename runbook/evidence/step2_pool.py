"""Step 2 of the guide: what does the pool of the *running* process say?

The guide built a new pool in a new process, which says nothing of the one that fails. Here the process
itself is asked, over its status socket ``<runtime directory>/pool-<pid>.sock``: one JSON line in, one out,
no database, no login and no free worker needed. An app that has no such socket is no error: the view is
unread, and the other views decide.
"""

from __future__ import annotations

import json
import math
import re
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional

STATUS = "runbook/status/1"
LEFT_BEHIND = "a process that is gone left it behind"
MOST_STACKS, MOST_FRAMES = 400, 12
_MOST_BYTES = 4 << 20
# A frame as the module traceback writes it.
_FRAME = re.compile(r'^  File "([^"\n]{1,300})", line (\d{1,7}), in (\S{1,100})$', re.MULTILINE)


def sockets_in(directories: list[str]) -> dict[int, str]:
    """pid → path of every status socket there is, whether or not that process still lives."""
    found: dict[int, str] = {}
    for path in (path for directory in directories for path in sorted(Path(directory).glob("pool-*.sock"))):
        pid = path.stem.partition("-")[2]
        if pid.isdigit() and path.is_socket():
            found.setdefault(int(pid), str(path))
    return found


def _finite(text: str) -> float:
    """A number of JSON. Raises ValueError for what Python reads and JSON cannot tell."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number of JSON")
    return number


def ask(path: str, operation: str, seconds: float, more: Optional[dict[str, Any]] = None) -> dict[str, Any]:
    """One question to a status socket, within a wall-clock deadline; ``more`` belongs to the operation.

    Raises OSError (nobody listens, no right, no answer in time) or ValueError (no JSON object).
    """
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(seconds)
        try:
            client.connect(path)
        except ConnectionRefusedError as error:
            raise ConnectionRefusedError(f"nobody listens there, {LEFT_BEHIND}") from error
        client.sendall(json.dumps({**(more or {}), "schema": STATUS, "op": operation}).encode() + b"\n")
        received = b""
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no whole answer within {seconds:g} s")
            client.settimeout(left)
            part = client.recv(1 << 16)
            if not part:
                break
            received += part
            if len(received) > _MOST_BYTES:
                raise ValueError(f"an answer of more than {_MOST_BYTES} bytes")
    answer = json.loads(received, parse_float=_finite, parse_constant=_finite)
    if not isinstance(answer, dict):
        raise ValueError("the answer is not a JSON object")
    return answer


def frames(answer: dict[str, Any]) -> Optional[list[dict[str, Any]]]:
    """The stacks of an answer as ``{thread, tid, frames}``, each frame ``file:line function``, the innermost
    first. The lines of code themselves stay where they are: a secret may stand in one."""
    stacks = answer.get("stacks")
    if not isinstance(stacks, list):
        return None
    return [
        {
            "thread": str(one.get("thread")),
            "tid": one.get("tid") if isinstance(one.get("tid"), int) else None,
            "frames": [
                ":".join(found[:2]) + f" {found[2]}" for found in _FRAME.findall(str(one.get("stack")))
            ][: -MOST_FRAMES - 1 : -1],
        }
        for one in stacks[:MOST_STACKS]
        if isinstance(one, dict)
    ]


def collect(pids: list[int], directories: list[str], seconds: float) -> dict[str, Any]:
    """The data of view ``pool``: a row for every process that has a status socket; ``left_behind`` are the
    sockets beside them that nobody serves any more."""
    found = sockets_in(directories)
    rows = []
    for pid in sorted(set(found) & set(pids)):
        path = found[pid]
        row: dict[str, Any] = {"pid": pid, "socket": path, "status": None, "stacks": None, "error": None}
        try:
            row["status"] = ask(path, "status", seconds)
            row["stacks"] = frames(ask(path, "stacks", seconds))
        except (OSError, ValueError) as error:
            row["error"] = f"{type(error).__name__}: {error}"
        rows.append(row)
    others = [path for pid, path in sorted(found.items()) if pid not in pids]
    return {"processes": rows, "left_behind": [path for path in others if not _served(path)]}


def look_again(rows: list[dict[str, Any]], seconds: float) -> None:
    """Add to each row of ``collect`` what its pool has found dead by now, as the probe made it look."""
    for row in rows:
        with suppress(OSError, ValueError):
            counters = row["status"] and ask(row["socket"], "status", seconds).get("counters")
            found = counters.get("dead_found_at") if isinstance(counters, dict) else None
            row["dead_found_at"] = found if isinstance(found, dict) else None


def _served(path: str) -> bool:
    """Whether anybody listens on a socket; one that may not be asked counts as served."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True

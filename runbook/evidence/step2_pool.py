"""Step 2 of the guide: what does the pool of the *running* process say?

The guide built a new pool in a new process, which says nothing of the one that fails. Here the process
itself is asked, over its status socket ``<runtime directory>/pool-<pid>.sock``: one JSON line in, one out,
no database, no login and no free worker needed. An app that has no such socket is no error: the view is
unread, and the other views decide.
"""

from __future__ import annotations

import json
import math
import socket
import time
from pathlib import Path
from typing import Any, Optional

STATUS = "runbook/status/1"
_MOST_BYTES = 4 << 20


def sockets_of(pids: list[int], directories: list[str]) -> dict[int, str]:
    """pid → path of the status socket of each of these processes that has one."""
    found: dict[int, str] = {}
    for directory in directories:
        for pid in pids:
            path = Path(directory) / f"pool-{pid}.sock"
            if path.is_socket():
                found.setdefault(pid, str(path))
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
        client.connect(path)
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


def collect(pids: list[int], directories: list[str], seconds: float) -> dict[str, Any]:
    """The data of view ``pool``: a row for every process that has a status socket."""
    paths = sockets_of(pids, directories)
    rows = []
    for pid, path in sorted(paths.items()):
        row: dict[str, Any] = {"pid": pid, "socket": path, "status": None, "error": None}
        try:
            row["status"] = ask(path, "status", seconds)
        except (OSError, ValueError) as error:
            row["error"] = f"{type(error).__name__}: {error}"
        rows.append(row)
    return {"processes": rows}

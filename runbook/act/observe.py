"""The guide's steps 5 and 6 on the target: switch the running processes, look at them, read back.

Three trips. Between them nothing of ours runs there: each process keeps its own time and switches back by
itself, whatever becomes of the controller. An app without a status socket is looked at, and nothing more.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Optional

from ..common.clock import rfc3339
from ..common.masking import Masker, transform
from ..evidence import process, settings, sockets, step2_pool
from ..evidence.log import Follower, summarize
from .service import identities

_ANSWER = 3.0  # seconds for one answer of a status socket
_LATE = 10.0  # seconds that a process may be late in switching back
_TEXT = 300  # characters of a line of the log
_BEFORE = ("config", "counters", "events", "overrides")
_SEEN = ("checkouts", "timeouts", "refused", "waits", "wait_seconds", "opened", "closed", "connect_failures")

Document = dict[str, Any]


def begin(request: Document) -> Document:
    """Switch every process that has a status socket; what is said of a process stays in ``processes``.

    ``request``: ``values`` and ``seconds`` as the status socket takes them, and the names of the service as
    the evidence has them. Returns ``{at, mark, unread, processes: [{pid, start_ticks, socket, error,
    before}]}``; ``before`` is what is compared afterwards.
    """
    found: Document = {"at": rfc3339(time.time()), "mark": None, "unread": [], "processes": []}
    try:
        follower = _follower(request, None)
        found["mark"] = follower.mark if follower else None
        if not follower:
            found["unread"].append("the log: none is named for this host; name it in diagnose_log")
    except OSError as error:
        found["unread"].append(f"the log: {request.get('log')}: {error.strerror or error}")
    living, _ = identities(request)
    paths = step2_pool.sockets_in(request.get("status_directories") or [])
    for one in living:
        row: Document = {**one, "socket": paths.get(one["pid"]), "error": None, "before": None}
        if row["socket"]:
            try:
                status = _ask(row["socket"], "status")
                row["before"] = {name: status[name] for name in _BEFORE}
                _ask(row["socket"], "set", values=request["values"], seconds=request["seconds"])
            except (OSError, ValueError, KeyError) as error:
                row["error"] = str(error)
        found["processes"].append(row)
    return found


def look(request: Document) -> Document:
    """One look meanwhile: ``{at, pools: [{pid, …counts}], sockets: {state: number} or None}``."""
    pids = [one["pid"] for one in identities(request)[0]]
    pools = []
    paths = step2_pool.sockets_in(request.get("status_directories") or [])
    for pid in set(paths) & set(pids):
        try:
            pools.append({"pid": pid, **_ask(paths[pid], "status")["count"]})
        except (OSError, ValueError, KeyError):
            continue  # the last trip says so if it stays that way
    watch = sockets.Watch(pids, request.get("peers") or [])
    states = dict(Counter(row["state"] for row in watch.sample("meanwhile")))
    blind = bool(pids) and len(watch.unreadable) == len(pids)
    return {"at": rfc3339(time.time()), "pools": pools, "sockets": None if blind else states}


def end(request: Document) -> Document:
    """Wait until every switched process is as it was, and read what it and the log saw.

    ``request`` holds what ``begin`` returned as ``begun``. Returns ``{processes: [{pid, same, reverted, error,
    changes, counters, samples, holders}], log, unread, masked}``; what was not switched has ``reverted`` None.
    """
    begun = request["begun"]
    now = {(one["pid"], one["start_ticks"]) for one in identities(request)[0]}
    deadline = time.monotonic() + request["seconds"] + _LATE
    rows = [_read_back(row, (row["pid"], row["start_ticks"]) in now, deadline) for row in begun["processes"]]
    unit = process.systemd_unit(request["service"]) if request.get("service") else {}
    app = settings.collect(request.get("environment_file"), unit, [])
    masker = Masker([request.get("login_password"), *app.secrets])
    log: Optional[Document] = None
    unread = []
    if begun["mark"]:
        try:
            log = _log(request, begun["mark"])
        except OSError as error:
            unread.append(f"the log: {error.strerror or error}")
    found = {"processes": rows, "log": log, "unread": unread}
    return {**transform(masker.document(found), lambda text: text[: _TEXT * 20]), "masked": masker.count}


def _read_back(row: Document, same: bool, deadline: float) -> Document:
    told: Document = {"pid": row["pid"], "same": same, "reverted": None, "error": row["error"]}
    told.update(changes=[], counters={}, samples=[], holders=[])
    before = row["before"]
    if not same:
        return {**told, "error": "the process is gone"}
    if not before or row["error"]:
        return told
    try:
        status = _ask(row["socket"], "status")
        while status["overrides"] and time.monotonic() < deadline:
            soonest = min(one["reverts_in"] for one in status["overrides"])
            time.sleep(min(max(soonest, 0.05), max(0.0, deadline - time.monotonic())))
            status = _ask(row["socket"], "status")
        known = {(event["at"], event["change"]) for event in before["events"]}
        return {
            **told,
            # Where somebody else had switched already, it was not as it should be before.
            "reverted": not status["overrides"]
            and bool(before["overrides"] or status["config"] == before["config"]),
            "changes": [event for event in status["events"] if (event["at"], event["change"]) not in known],
            "counters": {name: status["counters"][name] - before["counters"][name] for name in _SEEN},
            "samples": status["samples"],
            "holders": status["holders"],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {**told, "reverted": False, "error": f"{type(error).__name__}: {error}"}


def _ask(path: str, operation: str, **more: Any) -> Document:
    """Raises ValueError with the process's own words where it refuses."""
    answer = step2_pool.ask(path, operation, _ANSWER, more)
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer


def _follower(request: Document, mark: Optional[Document]) -> Optional[Follower]:
    if not request.get("log") and not request.get("service"):
        return None
    return Follower(request.get("log"), request.get("service"), 0.0, mark)


def _log(request: Document, mark: Document) -> Document:
    follower = _follower(request, mark)
    lines = follower.appended().splitlines() if follower else []
    told = summarize(lines, None)
    samples = {name: line[:_TEXT] for name, line in told["samples"].items()}
    path = request.get("log") or f"journal of {request['service']}"
    return {"path": path, "lines": len(lines), "counts": told["counts"], "samples": samples}

"""Honest evidence of incidents, as the collectors would write it: builders that the pure tests share.

Every incident begins as `healthy()` and is changed where the incident shows. The words `odras`, `lab` and the
names of causes stand all over it (host, paths, names, texts), so that a judge which reads them would be seen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

from runbook.common.clock import rfc3339, seconds_of

NOW = "2026-11-23T03:41:07.000Z"
PEER = "10.0.4.9:5432"
HOUR = 3600.0
APP_PID, APP_STARTED = 4272, -9 * HOUR
HOST_VIEWS = (
    *("login", "new_connection", "pool", "sockets", "process", "log", "source", "config", "monitor"),
)
DATABASE_VIEWS = ("connection", "server", "activity", "locks", "limits", "statistics")
Json = dict[str, Any]


class Incident(NamedTuple):
    """The two documents that a verdict is made of."""

    host: Json
    database: Json

    def data(self, name: str) -> Json:
        """The data of a view of either document."""
        document = self.host if name in self.host["views"] else self.database
        found: Json = document["views"][name]["data"]
        return found

    def copy(self) -> Incident:
        """The same, to change."""
        return copy.deepcopy(self)


def at(seconds: float) -> str:
    """A time, seconds after the collection began."""
    return rfc3339((seconds_of(NOW) or 0.0) + seconds)


def view(data: Optional[Json], reason: str = "") -> Json:
    return {"state": "unknown" if data is None else "ok", "reason": reason, "seconds": 0.01, "data": data}


def unread(incident: Incident, *names: str, reason: str = "no right to read it") -> Incident:
    """The same incident with views that were not read."""
    changed = incident.copy()
    for name in names:
        document = changed.host if name in HOST_VIEWS else changed.database
        document["views"][name] = view(None, reason)
    return changed


# -- parts -------------------------------------------------------------------------------------------------


def login_round(status: str, attempts: int = 8, ok: Optional[bool] = None, seconds: float = 0.04) -> Json:
    works = status.startswith("2") if ok is None else ok
    return {
        "attempts": attempts,
        "failed": 0 if works else attempts,
        "by_status": {status: attempts},
        "seconds": seconds,
        "ok": works,
        "started_at": at(1),
        "detail": "" if works else "Internal Server Error of odras in the lab",
    }


def connection(ok: bool = True, phase: str = "query", **error: Any) -> Json:
    unsaid = dict.fromkeys(("sqlstate", "severity", "message", "routine"))
    return {
        "kind": "credentials",
        "host": "db-1.odras.lab",
        "port": 5432,
        "database": "odras",
        "user": "odras_app",
        "address": "10.0.4.9",
        "addresses": ["10.0.4.9"],
        "ok": ok,
        "phase": phase,
        "seconds_by_phase": {"resolve": 0.001, "tcp": 0.001, "startup": 0.001, "auth": 0.001},
        "error": None if ok else {"text": "10.0.4.9 port 5432: it failed", **unsaid, **error},
        "server": {
            "in_recovery": False,
            "read_only": False,
            "version_num": 150007,
            "postmaster_start": at(-9 * 24 * HOUR),
            "backend_pid": 90001,
        }
        if ok
        else None,
        "pgbouncer": None,
        "live": None,
    }


def sock(fd: int, state: str = "ESTAB", pid: int = APP_PID, **more: Any) -> Json:
    return {
        **{"pid": pid, "fd": fd, "inode": 70000 + fd, "local": f"10.0.4.17:{40000 + fd}", "peer": PEER},
        **{"state": state, "recv_q": 0, "send_q": 0, "timer": "off", "retransmits": 0, "probes": 0},
        **more,
    }


def ended(fd: int, sqlstate: Optional[str], kind: str = "error", idle: float = 900.0) -> tuple[Json, Json]:
    """A socket whose other side ended it, and what is unread on it."""
    size = 110 if sqlstate else 0
    row = sock(fd, "CLOSE-WAIT", recv_q=size + 1)
    words = {key: row[key] for key in ("pid", "fd", "local", "peer")}
    message = "terminating connection" if sqlstate else None
    return row, {
        **words,
        "kind": kind,
        "sqlstate": sqlstate,
        "message": message,
        "bytes": size,
        "idle_seconds": idle,
        "in_use": False,
    }


def hold(incident: Incident, *rows: Json, later: tuple[Json, ...] = ()) -> Incident:
    """The app's sockets, in every sample (`later`: other ones in the last)."""
    data = incident.data("sockets")
    for sample in data["samples"]:
        sample["sockets"] = list(rows)
    if later:
        data["samples"][-1]["sockets"] = list(later)
    options = {"keepalive": True, "idle": 30, "interval": 10, "count": 5, "user_timeout_ms": 0}
    data["options"] = [{"pid": row["pid"], "fd": row["fd"], **options} for row in rows]
    return incident


def session(pid: int, port: Optional[int], state: str = "idle", **more: Any) -> Json:
    return {
        **{"pid": pid, "role": "odras_app", "database": "odras", "application_name": "slot_leak"},
        **{"client_address": "10.0.4.17", "client_port": port, "backend_type": "client backend"},
        **{"state": state, "wait_event_type": "Client", "wait_event": "ClientRead"},
        **{"backend_start": at(-HOUR), "xact_start": None, "query_start": at(-1), "state_change": at(-1)},
        "query": "SELECT ? FROM app_down",
        **more,
    }


def backends(incident: Incident, *sessions: Json) -> Incident:
    data, limits = incident.data("activity"), incident.data("limits")
    data["sessions"] = [*data["sessions"][:1], *sessions]
    data["total"] = len(data["sessions"])
    limits["used"] = len(sessions)
    limits["headroom"] = limits["max_connections"] - 3 - len(sessions)
    return incident


def fails(incident: Incident, status: str = "500", during: Optional[Json] = None, **more: Any) -> Incident:
    """The login fails in two rounds, and the app logs what `during` counts."""
    incident.data("login")["rounds"] = [login_round(status, **more), login_round(status, **more)]
    log = incident.data("log")
    log["during_login"] = dict(during or {})
    log["counts"] = {**log["counts"], **(during or {})}
    return incident


def heals(incident: Incident, during: Optional[Json] = None) -> Incident:
    """The first round fails, the last does not."""
    fails(incident, during=during)
    incident.data("login")["rounds"][-1] = login_round("200")
    return incident


def no_connection(incident: Incident, phase: str, sqlstate: Optional[str] = None, **error: Any) -> Incident:
    """A new connection fails, from the app's host and for the diagnosis."""
    kind = error.pop("kind", "server")
    words = {"kind": kind, "sqlstate": sqlstate, **error}
    incident.host["views"]["new_connection"]["data"] = connection(False, phase, **words)
    incident.database["views"]["connection"]["data"] = connection(False, phase, **words)
    for name in DATABASE_VIEWS[1:]:
        incident.database["views"][name] = view(None, "the database was not reached")
    return incident


def status_document(used: int, holders: list[Json], waiters: list[Json], maximum: int = 20) -> Json:
    """What our own pool says over its status socket."""
    counts = {"maximum": maximum, "used": used, "idle": 0, "never_opened": maximum - used}
    return {
        **{"schema": "runbook/status/1", "kind": "runbook", "pid": APP_PID, "name": "odras"},
        **{"started_at": at(APP_STARTED), "now": NOW, "application_name": "odras@web-1:4272"},
        **{"host": "db-1.odras.lab", "port": 5432, "database": "odras", "user": "odras_app"},
        "count": {**counts, "dead": 0, "connecting": 0, "waiting": len(waiters)},
        "holders": holders,
        "waiters": waiters,
        "monitor": {"heartbeat_age": 3.0, "interval": 30, "alive": True, "last_error": None},
        "loop": {"heartbeat_age": 0.2},
        "counters": {
            **{"checkouts": 900, "timeouts": 3, "waits": 9, "wait_seconds": 1.5, "use_seconds": 80.5},
            **{"opened": 20, "closed": 0, "connect_failures": 0, "peak_used": 20, "peak_waiting": 5},
            "dead_found": {},
        },
        "last_connect_error": None,
        "server_baseline": None,
        "config": {
            **{"min_connections": 2, "max_connections": maximum, "connection_timeout": 30},
            **{"connection_lifetime": 1800, "idle_timeout": 600, "max_waiting": 100},
            **{"monitor_interval": 30, "log_level": "INFO", "keepalives": 1, "keepalives_idle": 30},
            **{"keepalives_interval": 10, "keepalives_count": 5, "tcp_user_timeout": 0},
        },
        **{"overrides": [], "samples": [], "events": []},
    }


def holder(index: int, age: float, over: Optional[bool]) -> Json:
    return {
        **{"backend_pid": 80000 + index, "request_id": f"r{index}", "request_over": over, "age": age},
        **{"site": "backend/services/lab.py:58", "thread": f"worker-{index}", "stack": None},
        "long_lived": None,
    }


def waiter(index: int, holds: int = 0) -> Json:
    site = {"site": "backend/services/lab.py:80", "thread": f"worker-{index}"}
    who = f"{'r' if holds else 'w'}{index}"  # who holds one is among the holders
    return {"request_id": who, **site, "age": 2.5, "holds": holds}


def pool(incident: Incident, status: Json) -> Incident:
    """The app has a status socket."""
    row = {"pid": APP_PID, "socket": "/run/odras/pool-4272.sock", "status": status, "error": None}
    incident.host["views"]["pool"] = view({"processes": [row]})
    return incident


# -- the healthy app ---------------------------------------------------------------------------------------


def healthy() -> Incident:
    """One process, two idle connections, no status socket: what the guide's app looks like when all is well."""
    process = {
        **{"pid": APP_PID, "ppid": 1, "start_ticks": 123456, "started_at": at(APP_STARTED), "state": "S"},
        **{"threads": 9, "fds": 21, "fd_limit": 1024, "rss_bytes": 90_000_000, "user": "odras"},
        **{"command": "python app_down.py --lab", "directory": "/srv/lab/odras", "readable": True},
    }
    service = {
        **{"kind": "systemd", "name": "odras.service", "active": "active", "result": "success"},
        **{"unit_file": "enabled", "main_pid": APP_PID, "stopped_by_person": False, "masked": False},
        "why": "odras.service is active (running), result success",
    }
    database = {"host": "db-1.odras.lab", "port": 5432, "name": "odras", "user": "odras_app"}
    where = "/srv/lab/odras/healthy.env"
    data: dict[str, Any] = {
        "login": {
            **{"kind": "full", "url": "http://127.0.0.1:8000/api/auth/login", "misconfigured": None},
            "rounds": [login_round("200")],
        },
        "new_connection": connection(),
        "pool": {"processes": []},
        "sockets": {
            "peers": [PEER],
            "samples": [
                {"moment": moment, "second": second, "sockets": []}
                for moment, second in (("before_login", 0.0), ("during_login", 0.4), ("after_login", 2.6))
            ],
            **{
                "last_words": [],
                "peek": {"state": "ok", "reason": ""},
                "options": [],
                "waits": [],
                "shared": [],
            },
            "unreadable_pids": [],
        },
        "process": {
            **{"service": service, "port": 8000, "listening": True, "processes": [process], "looks": []},
            "clocks": {"suspended_seconds": 0.0, "booted_at": at(-30 * 24 * HOUR)},
            **{"lock": None, "last_action": None},
        },
        "log": {
            **{"path": "/srv/lab/odras/slot_leak.log", "size": 9443, "bytes_read": 9443},
            **{"timestamps": True, "window_from": at(-HOUR), "window_to": at(5), "whole_window": True},
            **{"counts": {"monitor_started": 1, "pool_status": 12}, "during_login": {}},
            "first": {"monitor_started": at(APP_STARTED), "pool_status": at(-3500)},
            "last": {"monitor_started": at(APP_STARTED), "pool_status": at(-120)},
            "samples": {"pool_status": "DB Pool Status: 2/20 connections in use"},
            "pool_line": {"active": 2, "maximum": 20, "at": at(-120)},
        },
        "source": {
            **{"roots": ["/srv/lab/odras"], "files": 6, "complete": True, "findings": []},
            "pools": [
                {"library": "psycopg2.pool", "file": "/srv/lab/odras/db.py", "line": 21, "maximum": None}
            ],
        },
        "config": {
            **{"file": where, "database": {**database, "sslmode": "prefer", "has_password": True}},
            "settings": {"POSTGRES_POOL_MAX_CONNECTIONS": {"value": "20", "where": f"{where}:9"}},
            **{"live": {}, "differs": []},
        },
        "monitor": {"alive": None, "started": True, "lines": 12, "newest": at(-120)},
    }
    diagnosis = {"role": "runbook", "application_name": "pool-runbook", "query": None, "state": "active"}
    database_data: dict[str, Any] = {
        "connection": connection(),
        "server": {
            **{"version_num": 150007, "postmaster_start": at(-9 * 24 * HOUR), "now": NOW},
            **{"in_recovery": False, "read_only": False, "checkpointer_start": at(-9 * 24 * HOUR)},
            "settings": [
                {"name": "idle_session_timeout", "setting": "0", "unit": "ms", "source": "default"}
                | {"file": None, "line": None, "pending_restart": False}
            ],
            "role_settings": [],
        },
        "activity": {
            **{"total": 1, "truncated": False, "own_pids": [90001], "sees_all": True},
            "sessions": [session(90001, 39999, **diagnosis)],
        },
        "locks": {"blocked": [], "roots": []},
        "limits": {
            **{"max_connections": 100, "superuser_reserved_connections": 3, "reserved_connections": 0},
            **{"used": 0, "headroom": 97, "by_role": [], "role_limits": [], "database_limit": -1},
        },
        "statistics": {
            **{"numbackends": 3, "sessions": 900, "sessions_abandoned": 0, "sessions_fatal": 0},
            **{"sessions_killed": 0, "deadlocks": 0, "stats_reset": None},
        },
    }
    views = {name: view(data[name]) for name in HOST_VIEWS}
    views["pool"] = {**view(None, "the app has no status socket"), "data": {"processes": []}}
    name = "lab-healthy-slot_leak-postgres_down-app_down-sessions_terminated"
    said = {"run_id": name, "collected_at": NOW, "seconds": 4.2, "masked": 3}
    incident = Incident(
        {"schema": "runbook/host-evidence/1", "host": "odras-lab-1", **said, "views": views},
        {
            **{"schema": "runbook/database-evidence/1", "database": "main", "collected_from": "odras-lab-1"},
            **{**said, "views": {name: view(database_data[name]) for name in DATABASE_VIEWS}},
        },
    )
    hold(incident, sock(11), sock(12))
    return backends(incident, session(81, 40011), session(82, 40012))


# -- the incidents -----------------------------------------------------------------------------------------


def slot_leak() -> Incident:
    incident = fails(healthy(), during={"pool_exhausted": 16, "login_error": 16, "server_error": 8})
    finding = {"rule": "R9", "file": "backend/services/lab.py", "line": 58, "function": "_conn"}
    path = {"acquire": "self.pool.getconn()", "path": "closed, not put back", "fix": "putconn(close=True)"}
    incident.data("source")["findings"] = [{**finding, **path}]
    return backends(hold(incident))


def postgres_down() -> Incident:
    incident = fails(healthy(), during={"connection_refused": 16, "login_error": 16})
    row, words = ended(11, "57P01")
    hold(incident, row)
    incident.data("sockets")["last_words"] = [words]
    return no_connection(incident, "tcp", kind="refused", text="10.0.4.9 port 5432: Connection refused")


def postgres_down_behind_a_proxy() -> Incident:
    """The proxy accepts and closes; on the database's own host nothing listens."""
    incident = fails(healthy(), during={"server_closed": 16, "login_error": 16})
    hold(incident)
    no_connection(incident, "tcp", kind="refused", text="10.0.4.9 port 5432: Connection refused")
    closed = connection(False, "startup", kind="closed", text="the server closed the connection")
    incident.host["views"]["new_connection"]["data"] = closed
    return incident


def postgres_unreachable() -> Incident:
    incident = fails(healthy(), "timeout", seconds=5.0)
    return no_connection(incident, "tcp", kind="timeout", text="10.0.4.9 port 5432: no answer to SYN")


def name_not_resolved() -> Incident:
    incident = fails(healthy(), during={"name_not_resolved": 8})
    return no_connection(incident, "resolve", kind="unresolved", text="db-1.odras.lab: unknown name")


def postgres_not_answering() -> Incident:
    incident = fails(healthy(), "timeout", seconds=5.0)
    return no_connection(incident, "startup", kind="timeout", text="no answer to the startup packet")


def postgres_starting() -> Incident:
    incident = hold(fails(healthy(), during={"starting_up": 8, "login_error": 8}))
    message = "the database system is starting up"
    return no_connection(incident, "startup", "57P03", severity="FATAL", message=message)


def connection_slots_full() -> Incident:
    incident = hold(fails(healthy(), during={"too_many_clients": 8, "login_error": 8}))
    message = "sorry, too many clients already"
    return no_connection(incident, "startup", "53300", severity="FATAL", message=message)


def authentication_failed() -> Incident:
    incident = hold(fails(healthy(), during={"authentication_failed": 8, "login_error": 8}))
    message = 'password authentication failed for user "odras_app"'
    return no_connection(incident, "auth", "28P01", severity="FATAL", message=message)


def app_down() -> Incident:
    """It died."""
    incident = fails(healthy(), "refused", seconds=0.01)
    process = incident.data("process")
    process.update(listening=False, processes=[])
    process["service"].update(active="failed", result="signal", main_pid=None)
    process["service"]["why"] = "odras.service is failed (failed), result signal"
    return backends(hold(incident))


def app_stopped() -> Incident:
    """A person stopped it."""
    incident = app_down()
    service = incident.data("process")["service"]
    service.update(active="inactive", result="success", stopped_by_person=True)
    return incident


def app_masked() -> Incident:
    """A person masked it."""
    incident = app_down()
    incident.data("process")["service"].update(masked=True, unit_file="masked")
    return incident


def said(incident: Incident, sqlstate: Optional[str], kind: str = "error") -> Incident:
    """The server ended both connections, and the app has not noticed."""
    pairs = [ended(fd, sqlstate, kind) for fd in (11, 12)]
    hold(incident, *(row for row, _ in pairs))
    incident.data("sockets")["last_words"] = [words for _, words in pairs]
    return backends(incident)


_CLOSED = {"server_closed": 3, "dead_connection": 3, "login_error": 8}


def sessions_terminated() -> Incident:
    """Healed while it was probed."""
    return said(heals(healthy(), {"server_closed": 3, "dead_connection": 3}), "57P01")


def sessions_terminated_failing() -> Incident:
    return said(fails(healthy(), during=_CLOSED), "57P01")


def under_tls(incident: Incident) -> Incident:
    """The same over encrypted connections: of the server's words only the size is known."""
    for row in incident.data("sockets")["last_words"]:
        row.update(kind="bytes", sqlstate=None, message=None)
    return incident


def sessions_terminated_under_tls() -> Incident:
    """The driver tells what it read when the probe made it use a dead connection."""
    incident = under_tls(sessions_terminated())
    incident.data("log")["during_login"]["terminated_by_administrator"] = 2
    return incident


def postgres_restarted() -> Incident:
    """Under the app's connections, a minute ago; the app does not get over it."""
    incident = said(fails(healthy(), during=_CLOSED), "57P01")
    for place in (incident.data("server"), incident.data("new_connection")["server"]):
        place["postmaster_start"] = at(-60)
    incident.data("server")["checkpointer_start"] = at(-60)
    return incident


def crash_recovery() -> Incident:
    incident = said(fails(healthy(), during=_CLOSED), "57P02")
    incident.data("server")["checkpointer_start"] = at(-60)
    return incident


def idle_session_timeout() -> Incident:
    return said(fails(healthy(), during=_CLOSED), "57P05")


def idle_in_transaction() -> Incident:
    return said(fails(healthy(), during=_CLOSED), "25P03")


def transaction_timeout() -> Incident:
    return said(fails(healthy(), during=_CLOSED), "25P04")


def idle_cut() -> Incident:
    return said(fails(healthy(), during=_CLOSED), None, "fin")


def reset_when_used() -> Incident:
    """What idled is gone after the probe, the app's log calls it closed, and the server still has the sessions."""
    incident = healthy()
    log = incident.data("log")
    log["during_login"] = dict(_CLOSED)
    log["counts"] = {**log["counts"], **_CLOSED}
    held = incident.data("sockets")["samples"][0]["sockets"]
    fresh = tuple({**row, "local": f"10.0.4.17:{50000 + port}"} for port, row in enumerate(held))
    return hold(incident, *held, later=fresh)


def lock_contention() -> Incident:
    incident = fails(healthy(), "timeout", seconds=5.0)
    hold(incident, *(sock(fd) for fd in range(11, 31)))
    lock = {"wait_event_type": "Lock", "wait_event": "relation", "query_start": at(-60)}
    waiting = [session(80 + fd, 40000 + fd, "active", **lock) for fd in range(11, 31)]
    root = {"role": "migrate", "application_name": "batch-2", "xact_start": at(-1560)}
    backends(incident, *waiting, session(88123, 50000, "idle in transaction", **root))
    pids = [one["pid"] for one in waiting]
    locks = [{"pid": pid, "blocked_by": [88123], "seconds": 60.0} for pid in pids]
    incident.data("locks").update(blocked=locks, roots=[88123])
    return incident


def black_hole() -> Incident:
    incident = fails(healthy(), "timeout", seconds=5.0)
    rows = [sock(fd, send_q=60, timer="on", retransmits=1) for fd in (11, 12)]
    return hold(incident, *rows, later=tuple({**row, "retransmits": 3} for row in rows))


def host_suspended() -> Incident:
    """The server's words are under TLS, so only the heartbeats tell."""
    incident = stood_still(under_tls(sessions_terminated_failing()), 5400.0, ago=60.0)
    incident.data("process")["clocks"]["suspended_seconds"] = 5400.0
    return incident


def stood_still(incident: Incident, seconds: float, ago: float) -> Incident:
    """The app has a status socket, and all its heartbeats were silent for so long, until so long ago."""
    status = status_document(0, [], [])
    status["count"].update(idle=2, never_opened=18)
    for beat in (status["monitor"], status["loop"]):
        beat["gap"] = {"seconds": seconds, "ended_at": at(-ago)}
    return pool(incident, status)


def stale_configuration() -> Incident:
    incident = healthy()
    name, where = "POSTGRES_POOL_MAX_CONNECTIONS", "environment of pid 4272"
    incident.data("config").update(live={name: {"value": "50", "where": where}}, differs=[name])
    return incident


def monitor_dead() -> Incident:
    incident = healthy()
    incident.data("monitor")["newest"] = at(-1900)
    return incident


def app_resources() -> Incident:
    incident = hold(fails(healthy(), during={"file_descriptors": 9, "login_error": 8}))
    incident.data("process")["processes"][0].update(fds=1023, fd_limit=1024)
    return backends(incident)


def wrong_node() -> Incident:
    incident = fails(healthy(), during={"read_only": 8, "login_error": 8})
    for place in (incident.data("server"), incident.data("new_connection")["server"]):
        place.update(in_recovery=True, read_only=True)
    return incident


def name_moved() -> Incident:
    """The name leads to the primary by now; one connection to the standby is left, which the last round missed.

    What `Watch` makes of such sockets is in test_sockets_words.py.
    """
    incident = heals(healthy(), during={"read_only": 3, "login_error": 3})
    standby = {**connection()["server"], "in_recovery": True, "read_only": True}
    old = "10.0.4.8:5432"
    incident.data("new_connection")["live"] = {"peer": old, "server": standby, "error": None}
    for sample in incident.data("sockets")["samples"]:
        sample["elsewhere"] = {old: 1}
    return incident


def postgres_read_only() -> Incident:
    incident = fails(healthy(), during={"read_only": 8, "login_error": 8})
    for place in (incident.data("server"), incident.data("new_connection")["server"]):
        place.update(read_only=True)
    return incident


def login_broken() -> Incident:
    incident = fails(healthy(), during={"exception": 8, "login_error": 8, "server_error": 8})
    incident.data("log")["samples"]["login_error"] = "Login error: KeyError('slot_leak')"
    return incident


def connection_leak() -> Incident:
    """With a status socket: twenty connections held for requests that are over."""
    incident = fails(healthy(), "timeout", seconds=5.0)
    hold(incident, *(sock(fd) for fd in range(11, 31)))
    backends(incident, *(session(80 + fd, 40000 + fd) for fd in range(11, 31)))
    holders = [holder(index, 400.0 + index, True) for index in range(20)]
    return pool(incident, status_document(20, holders, [waiter(1), waiter(2)]))


def pool_too_small() -> Incident:
    """With a status socket: every connection is held, none for long, and others wait."""
    incident = fails(healthy(), "503", {"pool_exhausted": 8, "login_error": 8}, seconds=2.5)
    hold(incident, *(sock(fd) for fd in range(11, 31)))
    busy = {"wait_event_type": None, "wait_event": None, "query_start": at(-0.1)}
    backends(incident, *(session(80 + fd, 40000 + fd, "active", **busy) for fd in range(11, 31)))
    holders = [holder(index, 0.3, False) for index in range(20)]
    return pool(incident, status_document(20, holders, [waiter(index) for index in range(5)]))


def nested_checkout() -> Incident:
    incident = connection_leak()
    holders = [holder(index, 12.0, False) for index in range(20)]
    return pool(incident, status_document(20, holders, [waiter(index, 1) for index in range(20)]))


def held_while_waiting() -> Incident:
    incident = connection_leak()
    holders = [holder(index, 12.0, False) for index in range(20)]
    return pool(incident, status_document(20, holders, [waiter(index) for index in range(5)]))


def app_blocked() -> Incident:
    """With a status socket, answered by a thread of its own: the event loop is stuck."""
    incident = fails(healthy(), "timeout", seconds=5.0)
    status = status_document(2, [], [])
    status["count"].update(used=0, idle=2, never_opened=18)
    status["loop"]["heartbeat_age"] = 61.0
    return pool(incident, status)


# -- the same without a status socket: what the kernel tells of the threads ---------------------------------


def thread(index: int, call: str = "futex", fd: Optional[int] = None, to: Optional[str] = None) -> Json:
    """One that stands still; `fd`: on the socket to PostgreSQL that `sock(fd)` makes."""
    inode = None if fd is None else 70000 + fd
    where = {"inode": inode, "to": PEER if fd is not None else to}
    tid = APP_PID + index
    return {"pid": APP_PID, "tid": tid, "state": "S", "call": call, **where, "cpu_seconds": 1.5, "turns": 90}


def looked(incident: Incident, *threads: Json, connected: int = 0, not_accepted: int = 0) -> Incident:
    """The app is an event loop with these threads, at all looks."""
    incident.data("process")["processes"][0]["event_loop"] = True
    incident.data("process")["looks"] = [
        {
            **{"moment": moment, "second": second, "connected": connected, "threads": list(threads)},
            "not_accepted": not_accepted if moment != "before_login" else 0,
        }
        for moment, second in (("before_login", 0.1), ("during_login", 0.5), ("during_login", 2.7))
    ]
    return incident


def loop_blocked() -> Incident:
    incident = fails(healthy(), "timeout", seconds=5.0)
    return looked(incident, thread(0, "sleep"), thread(1), not_accepted=8)


def supervised(status: str, state: str, *halted: int, not_accepted: int = 0) -> Incident:
    """A supervisor and two workers, which serve one socket; `halted`: those of the three that are in this state."""
    incident = fails(healthy(), status, seconds=5.0) if status == "timeout" else healthy()
    workers = [{**thread(index, "epoll"), "pid": APP_PID + index} for index in (1, 2)]
    partner = {**thread(9, "recv", to="10.0.7.7:443"), "pid": APP_PID + 1}
    looked(incident, thread(0, "call 999"), *workers, partner, not_accepted=not_accepted)
    processes = incident.data("process")["processes"]
    processes[:] = [{**processes[0], "pid": APP_PID + i, "ppid": APP_PID if i else 1} for i in range(3)]
    processes[0]["event_loop"] = False
    for one in [row for look in incident.data("process")["looks"] for row in look["threads"]]:
        one["state"] = state if one["pid"] - APP_PID in halted else "S"
    return incident


def all_stopped() -> Incident:
    return supervised("timeout", "T", 0, 1, 2, not_accepted=8)


def app_saturated() -> Incident:
    incident = fails(healthy(), "timeout", seconds=5.0)
    partners = [thread(index, "recv", to="10.0.7.7:443") for index in range(1, 41)]
    return looked(incident, thread(0, "epoll"), *partners, connected=40)


def twenty(incident: Incident, since: float, state: str = "idle") -> Incident:
    """Twenty connections, in this state for so long; the pool of the guide's app refuses at once."""
    during = {"pool_exhausted": 16, "login_error": 16, "server_error": 8}
    hold(fails(incident, during=during), *(sock(fd) for fd in range(11, 31)))
    times = {"query_start": at(-since), "state_change": at(-since), "query": "SELECT name FROM slot_leak"}
    return backends(incident, *(session(80 + fd, 40000 + fd, state, **times) for fd in range(11, 31)))


def connections_kept() -> Incident:
    return looked(twenty(healthy(), 400.0), thread(0, "epoll"), thread(1), thread(2))


def held_for_a_partner() -> Incident:
    incident = twenty(healthy(), 40.0, "idle in transaction")
    partners = [thread(index, "poll", to="10.0.7.7:443") for index in range(1, 21)]
    return looked(incident, thread(0, "epoll"), *partners, connected=20)


def slow_queries() -> Incident:
    incident = twenty(healthy(), 40.0, "active")
    for one in incident.data("activity")["sessions"][1:]:
        one.update(wait_event_type="IO", wait_event="DataFileRead")
    asking = [thread(fd - 10, "poll", fd) for fd in range(11, 31)]
    return looked(incident, thread(0, "epoll"), *asking, connected=20)


def burst() -> Incident:
    incident = twenty(healthy(), 0.4, "active")
    asking = [thread(fd - 10, "poll", fd) for fd in range(11, 31)]
    return looked(incident, thread(0, "epoll"), *asking, connected=60)


def leaked_lock() -> Incident:
    """The sessions wait behind one of the app's own, for which no request is under way."""
    incident = looked(lock_contention(), thread(0, "epoll"), thread(1), connected=20)
    sessions = incident.data("activity")["sessions"]
    hold(incident, *(sock(fd) for fd in range(11, 32)))
    own = session(sessions[-1]["pid"], 40031, "idle in transaction", state_change=at(-600))
    return backends(incident, *sessions[1:-1], own)


def without_requests(incident: Incident, age: float, connected: int, *threads: Json) -> Incident:
    """Our pool without its middleware knows of no request; its sessions have been idle since they were taken."""
    holders = incident.data("pool")["processes"][0]["status"]["holders"]
    for one, held in zip(incident.data("activity")["sessions"][1:], holders):
        held.update(request_id=None, request_over=None, age=age)
        one.update(pid=held["backend_pid"], state_change=at(-age))
    return looked(incident, thread(0, "epoll"), *threads, connected=connected)


def leak_without_requests(connected: int = 2) -> Incident:
    """The two clients that are connected wait for a connection."""
    return without_requests(connection_leak(), 400.0, connected)


def held_without_requests() -> Incident:
    partners = [thread(index, "recv", to="10.0.7.7:443") for index in range(1, 21)]
    return without_requests(held_while_waiting(), 45.0, 25, *partners)


def fork_shared() -> Incident:
    """A parent and its child hold one connection; a thread waits on it for what the other has read."""
    incident = looked(fails(healthy(), "timeout", seconds=5.0), thread(0, "epoll"), thread(1, "poll", 11))
    child = copy.deepcopy(incident.data("process")["processes"][0])
    incident.data("process")["processes"].append({**child, "pid": APP_PID + 9, "ppid": APP_PID})
    for sample in incident.data("sockets")["samples"]:
        sample["sockets"].append({**sample["sockets"][0], "pid": APP_PID + 9})
    incident.data("sockets")["shared"] = [{"inode": 70011, "pids": [APP_PID, APP_PID + 9]}]
    incident.database["collected_at"] = at(2)
    return incident


def fork_exhausted() -> Incident:
    """The same, when all that they have was lost to both: nobody uses it any more, and everybody is refused."""
    incident = fork_shared()
    fails(incident, during={"pool_exhausted": 16, "login_error": 16, "server_error": 8})
    for sample in incident.data("sockets")["samples"]:
        sample["sockets"] = [row for row in sample["sockets"] if row["inode"] == 70011]
    own = thread(1), {**thread(9, "epoll"), "pid": APP_PID + 9}, {**thread(10), "pid": APP_PID + 9}
    return looked(incident, thread(0, "epoll"), *own)


def client_suspended() -> Incident:
    incident = healthy()
    incident.data("log")["counts"]["client_suspended"] = 4
    return incident


def metric_artefact() -> Incident:
    incident = healthy()
    incident.data("log")["pool_line"]["active"] = 18
    return incident


class Expected(NamedTuple):
    """What a verdict must be; `contributing` in the table's order."""

    cause: str
    restart_helps: Optional[bool]
    contributing: tuple[str, ...] = ()
    confidence: str = "decided"
    action: str = "none"


TABLE: dict[str, tuple[Callable[[], Incident], Expected]] = {
    "healthy": (healthy, Expected("healthy", False)),
    "slot_leak": (slot_leak, Expected("slot_leak", True, action="restart")),
    "postgres_down": (postgres_down, Expected("postgres_down", False)),
    "postgres_down_behind_a_proxy": (postgres_down_behind_a_proxy, Expected("postgres_down", False)),
    "postgres_unreachable": (postgres_unreachable, Expected("postgres_unreachable", False)),
    "name_not_resolved": (name_not_resolved, Expected("postgres_unreachable", False)),
    "postgres_not_answering": (postgres_not_answering, Expected("postgres_not_answering", False)),
    "postgres_starting": (postgres_starting, Expected("postgres_not_answering", False)),
    "connection_slots_full": (connection_slots_full, Expected("connection_slots_full", False)),
    "authentication_failed": (authentication_failed, Expected("authentication_failed", False)),
    "app_down": (app_down, Expected("app_down", True, action="start")),
    "app_stopped": (app_stopped, Expected("app_down", False)),
    "app_masked": (app_masked, Expected("app_down", False)),
    "app_resources": (app_resources, Expected("app_resources", True, action="restart")),
    "wrong_node": (wrong_node, Expected("wrong_node", False)),
    "name_moved": (name_moved, Expected("wrong_node", True, action="restart")),
    "postgres_read_only": (postgres_read_only, Expected("postgres_read_only", False)),
    "lock_contention": (lock_contention, Expected("lock_contention", False)),
    "nested_checkout": (
        nested_checkout,
        Expected("nested_checkout", True, action="restart"),
    ),
    "held_while_waiting": (held_while_waiting, Expected("held_while_waiting", False)),
    "black_hole": (black_hole, Expected("black_hole", True, action="restart")),
    "app_blocked": (app_blocked, Expected("app_blocked", True, action="restart")),
    "connection_leak": (connection_leak, Expected("connection_leak", True, action="restart")),
    "postgres_restarted": (postgres_restarted, Expected("postgres_restarted", True, action="restart")),
    "crash_recovery": (crash_recovery, Expected("postgres_crash_recovery", True, action="restart")),
    "idle_session_timeout": (idle_session_timeout, Expected("idle_session_timeout", True, action="restart")),
    "idle_in_transaction": (
        idle_in_transaction,
        Expected("idle_in_transaction_timeout", True, action="restart"),
    ),
    "transaction_timeout": (transaction_timeout, Expected("transaction_timeout", True, action="restart")),
    "sessions_terminated": (sessions_terminated, Expected("sessions_terminated", False)),
    "sessions_terminated_failing": (
        sessions_terminated_failing,
        Expected("sessions_terminated", True, action="restart"),
    ),
    "sessions_terminated_under_tls": (
        sessions_terminated_under_tls,
        Expected("sessions_terminated", False),
    ),
    "idle_cut": (idle_cut, Expected("idle_cut", True, action="restart")),
    "reset_when_used": (reset_when_used, Expected("idle_cut", False)),
    "host_suspended": (
        host_suspended,
        Expected("host_suspended", True, confidence="likely", action="restart"),
    ),
    "stale_configuration": (stale_configuration, Expected("stale_configuration", False)),
    "monitor_dead": (monitor_dead, Expected("monitor_dead", False)),
    "pool_too_small": (pool_too_small, Expected("pool_too_small", False)),
    "login_broken": (login_broken, Expected("login_broken", False)),
    "loop_blocked": (loop_blocked, Expected("app_blocked", True, action="restart")),
    "all_stopped": (all_stopped, Expected("app_blocked", True, action="restart")),
    "app_saturated": (app_saturated, Expected("app_saturated", False)),
    "connections_kept": (connections_kept, Expected("connection_leak", True, action="restart")),
    "held_for_a_partner": (held_for_a_partner, Expected("held_while_waiting", False)),
    "leak_without_requests": (
        leak_without_requests,
        Expected("connection_leak", True, action="restart"),
    ),
    "held_without_requests": (held_without_requests, Expected("held_while_waiting", False)),
    "slow_queries": (slow_queries, Expected("slow_queries", False)),
    "burst": (burst, Expected("pool_too_small", False)),
    "leaked_lock": (
        leaked_lock,
        Expected("connection_leak", True, ("lock_contention",), action="restart"),
    ),
    "fork_shared": (fork_shared, Expected("fork_shared", True, action="restart")),
    "fork_exhausted": (
        fork_exhausted,
        Expected("fork_shared", True, ("slot_leak",), action="restart"),
    ),
    "client_suspended": (client_suspended, Expected("client_suspended", False)),
    "metric_artefact": (metric_artefact, Expected("metric_artefact", False)),
}
FAILING = [name for name, (build, _) in TABLE.items() if not build().data("login")["rounds"][0]["ok"]]

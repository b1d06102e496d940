"""Step 3 of the guide, view D: what PostgreSQL itself says. Read once per database, over one connection.

The diagnosis has a role of its own, with settings, limits and rights of its own. What counts is what holds
for the app's role: its settings are worked out here, and the diagnosis's own sessions are left out of counts.
The queries know nothing of the connection: whatever takes a string of SQL and gives rows will do.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Optional, Union

from . import psql
from .new_connection import bounded, reach
from .wire import APPLICATION_NAME, Connection, Row, WireError

Query = Callable[[str], list[Row]]
View = dict[str, Any]

SETTINGS = (
    *("max_connections", "superuser_reserved_connections", "reserved_connections"),
    *("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout"),
    *("statement_timeout", "lock_timeout", "transaction_timeout", "idle_in_transaction_session_timeout"),
    *("idle_session_timeout", "client_connection_check_interval"),
    *("log_line_prefix", "default_transaction_read_only"),
)
_OUT_OF_TIME = ("57014", "55P03")  # statement_timeout, lock_timeout
# Read only, without temporary files (hence the memory), without more processes than our own.
_QUIET = (
    "SET TRANSACTION READ ONLY; SET LOCAL work_mem = '32MB';"
    "SET LOCAL jit = off; SET LOCAL max_parallel_workers_per_gather = 0;"
)


def collect(
    target: dict[str, Any],
    password: Optional[str],
    deadline_seconds: float,
    *,
    app_user: Optional[str] = None,
    app_database: Optional[str] = None,
    command: Optional[list[str]] = None,
) -> dict[str, View]:
    """The ``views`` of the database evidence. Ends within ``deadline_seconds``; a failure is data.

    ``target`` and ``password``: how the diagnosis connects, as for new_connection.collect; with ``command``,
    see psql.Psql, that connects instead, and ``target`` only says what is meant. ``app_user`` and
    ``app_database``: whose settings, sessions and limits are asked (None: those of ``target``). The queries
    of sessions are *not* masked yet, the caller does that. Raises ValueError for a ``target`` that cannot be.
    """
    began = time.monotonic()
    deadline = began + deadline_seconds
    connection: Union[Connection, psql.Psql, None]
    if command:
        data, connection = psql.reach(command, target, deadline)
    else:
        data, connection = reach(target, password, deadline)
        if _not_in_this_database(data):  # what is asked stands in catalogs that all databases share
            data, connection = reach({**target, "name": "postgres"}, password, deadline)
    connected = _view("ok", "", time.monotonic() - began, data)
    if connection is None:
        reason = data["error"]["text"] if data["error"] else "the server wants a password and none is known"
        return {"connection": connected, **{name: _view("unknown", reason) for name in _READERS}}
    try:
        views = read(connection.query, app_user or target["user"], app_database or target["name"], deadline)
    finally:
        connection.close()
    return {"connection": connected, **views}


def _not_in_this_database(data: dict[str, Any]) -> bool:
    """Whether it is the database that lets nobody in: it is full, or it is not there."""
    error = data["error"] or {}
    full = error.get("sqlstate") == "53300" and error.get("routine") == "CheckMyDatabase"
    return full or error.get("sqlstate") == "3D000"


def read(query: Query, app_user: str, app_database: str, deadline: float) -> dict[str, View]:
    """The views but ``connection``, asked over ``query``, until a moment of ``time.monotonic()``.

    ``query`` takes statements as one string, gives the rows of the last one, and raises WireError.
    """
    asker = Asker(query, app_user, app_database)
    views: dict[str, View] = {}
    lost = ""
    for left, (name, reader) in zip(range(len(_READERS), 0, -1), _READERS.items()):
        if lost:
            views[name] = _view("unknown", lost)
            continue
        began = time.monotonic()
        asker.until = began + (deadline - began) / left
        state, reason, data = "ok", "", None
        try:
            data = reader(asker)
        except Unreadable as error:
            state, reason = "unknown", str(error)
        except WireError as error:
            late = error.kind == "timeout" or error.sqlstate in _OUT_OF_TIME
            state, reason = "timeout" if late else "unknown", error.text
            if error.fields["severity"] != "ERROR":
                lost = f"the connection was lost: {error.text}"
        views[name] = _view(state, reason, time.monotonic() - began, data)
    return views


class Unreadable(Exception):
    """The server answers, and what is asked for is not there."""


class Asker:
    """Asks queries that end in time: at ``until``, a moment of ``time.monotonic()``.

    The queries are constants and get their parameters as settings of their transaction, ``runbook.…``:
    the app's role and database, and ``blocking``, the pids of sessions that block or are blocked.
    """

    def __init__(self, query: Query, user: str, database: str) -> None:
        self.until = 0.0
        self.user, self.database = user, database
        self.blocking: set[int] = set()
        self._query = query

    def ask(self, sql: str, limited: bool = True) -> list[Row]:
        """The rows of a query; ``limited`` False where the limits themselves are what it reads."""
        parameters = {
            "app_user": self.user,
            "app_database": self.database,
            "ours": APPLICATION_NAME,
            "settings": " ".join(SETTINGS),
            "blocking": " ".join(map(str, sorted(self.blocking))),
        }
        given = "".join(
            f"SET LOCAL runbook.{name} = {_literal(value)};" for name, value in parameters.items()
        )
        return self._query(_QUIET + given + bounded(sql, self.until - time.monotonic() if limited else None))


def _literal(text: str) -> str:
    """A string as an SQL literal, whatever standard_conforming_strings says."""
    quoted = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{quoted}'"


def _view(state: str, reason: str, seconds: float = 0.0, data: Optional[dict[str, Any]] = None) -> View:
    return {"state": state, "reason": reason, "seconds": round(seconds, 3), "data": data}


# -- the server and its settings -----------------------------------------------------------------------------

_FACTS = """
    SELECT current_setting('server_version_num') AS version_num, pg_is_in_recovery() AS in_recovery,
           to_char(pg_postmaster_start_time(), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS postmaster_start,
           to_char(clock_timestamp(), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS now,
           (SELECT to_char(max(backend_start), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
              FROM pg_stat_activity WHERE backend_type = 'checkpointer') AS checkpointer_start"""

_OVERRIDES = """
    SELECT r.rolname AS role, d.datname AS database,
           split_part(config, '=', 1) AS name, substr(config, strpos(config, '=') + 1) AS value
      FROM pg_db_role_setting AS s CROSS JOIN LATERAL unnest(s.setconfig) AS config
      LEFT JOIN pg_roles AS r ON r.oid = s.setrole
      LEFT JOIN pg_database AS d ON d.oid = s.setdatabase
     WHERE split_part(config, '=', 1) = ANY (string_to_array(current_setting('runbook.settings'), ' '))
     ORDER BY (r.rolname <> current_setting('runbook.app_user')) IS TRUE,
              (d.datname <> current_setting('runbook.app_database')) IS TRUE,
              r.rolname, d.datname, name
     LIMIT 500"""

_BASE = """
    SELECT name, reset_val, unit, vartype, source, sourcefile, sourceline, pending_restart
      FROM pg_settings
     WHERE name = ANY (string_to_array(current_setting('runbook.settings'), ' '))
     ORDER BY name"""


def _server(asker: Asker) -> dict[str, Any]:
    facts = asker.ask(_FACTS)[0]
    overrides = asker.ask(_OVERRIDES)
    # Unlimited, since the limit would be what it reads; it looks into memory and waits for nobody.
    base = asker.ask(_BASE, limited=False)
    settings = effective(base, overrides, asker.user, asker.database)
    in_recovery = facts["in_recovery"] == "t"
    written = {setting["name"]: setting["setting"] for setting in settings}
    return {
        **facts,
        "version_num": _int(facts["version_num"]),
        "in_recovery": in_recovery,
        "read_only": in_recovery or written.get("default_transaction_read_only") == "on",
        "settings": settings,
        "role_settings": overrides,
    }


# What pg_settings calls a value of ALTER ROLE ALL, ALTER DATABASE, ALTER ROLE, ALTER ROLE IN DATABASE, by
# (has a role, has a database). Where several fit, the greatest wins.
_SOURCES = {
    (False, False): "global",
    (False, True): "database",
    (True, False): "user",
    (True, True): "database user",
}


def effective(base: list[Row], overrides: list[Row], user: str, database: str) -> list[dict[str, Any]]:
    """Settings as a new session of ``user`` in ``database`` gets them, in the unit of pg_settings.

    ``base``: rows of pg_settings (name, reset_val, unit, vartype, source, sourcefile, sourceline,
    pending_restart) as *another* role sees them. ``overrides``: rows (role, database, name, value) of
    ALTER ROLE and ALTER DATABASE, None meaning all. Where an override of that other role alone hides the
    value that holds for ``user``, the setting is left out: it is not known.
    """
    settings = []
    for row in base:
        setting: dict[str, Any] = {
            "name": row["name"],
            "setting": row["reset_val"] or "",
            "unit": row["unit"],
            "source": row["source"],
            "file": row["sourcefile"],
            "line": _int_or_none(row["sourceline"]),
            "pending_restart": row["pending_restart"] == "t",
        }
        fitting = {
            (each["role"] is not None, each["database"] is not None): each["value"] or ""
            for each in overrides
            if each["name"] == row["name"]
            and each["role"] in (None, user)
            and each["database"] in (None, database)
        }
        if fitting:
            strongest = max(fitting)
            value = in_unit(fitting[strongest], row["vartype"], row["unit"])
            setting.update(setting=value, source=_SOURCES[strongest], file=None, line=None)
        elif row["source"] in _SOURCES.values():
            continue
        settings.append(setting)
    return settings


_MILLISECONDS = {"us": 0.001, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


def in_unit(value: str, vartype: Optional[str], unit: Optional[str]) -> str:
    """A value as ALTER ROLE keeps it ("30s", "true") as pg_settings shows it ("30000" in unit ms, "on")."""
    if vartype == "bool":
        return "on" if value.lower() in ("on", "true", "t", "yes", "y", "1") else "off"
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d*)?)\s*(us|ms|s|min|h|d)\s*", value)
    if match is None or unit not in _MILLISECONDS:
        return value
    return str(round(float(match.group(1)) * _MILLISECONDS[match.group(2)] / _MILLISECONDS[unit]))


# -- sessions and who blocks them ----------------------------------------------------------------------------

# pg_blocking_pids holds up the lock manager for a moment each time: only for who waits, 500 times at most.
_WAITING = """
    WITH waiting AS (
        SELECT pid, min(waitstart) AS since FROM pg_locks WHERE NOT granted GROUP BY pid
    ), placed AS (
        SELECT pid, since, row_number() OVER (ORDER BY since) AS place FROM waiting
    )
    SELECT pid, greatest(round(extract(epoch FROM clock_timestamp() - since), 3), 0) AS seconds,
           CASE WHEN place <= 500 THEN array_to_string(pg_blocking_pids(pid), ' ') END AS blockers
      FROM placed ORDER BY place"""


def _locks(asker: Asker) -> dict[str, Any]:
    locks = chains(asker.ask(_WAITING))
    asker.blocking = {pid for row in locks["blocked"] for pid in (row["pid"], *row["blocked_by"])}
    return locks


def chains(rows: list[Row]) -> dict[str, Any]:
    """Rows of waiting sessions (pid, seconds, blockers: pids with spaces between) as blocked and roots.

    A root blocks others and waits for no lock itself; pid 0 is a prepared transaction. Blockers None: it
    waits, but for whom was not asked; no blockers: it has its lock by now. A deadlock has no root.
    """
    blocked: list[dict[str, Any]] = [
        {
            "pid": _int(row["pid"]),
            "blocked_by": sorted({int(pid) for pid in (row["blockers"] or "").split()}),
            "seconds": None if row["seconds"] is None else float(row["seconds"]),
        }
        for row in rows
        if row["blockers"] != ""
    ]
    waiting = {row["pid"] for row in blocked}
    blocking = {pid for row in blocked for pid in row["blocked_by"]}
    return {"blocked": blocked, "roots": sorted(blocking - waiting)}


_SESSIONS = """
    SELECT a.pid, usename AS role, datname AS database, application_name,
           host(client_addr) AS client_address, client_port,
           coalesce(backend_type, 'unknown') AS backend_type, state, wait_event_type, wait_event,
           to_char(a.backend_start, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS backend_start,
           to_char(xact_start, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS xact_start,
           to_char(query_start, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS query_start,
           to_char(state_change, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS state_change,
           CASE WHEN NOT ours THEN left(nullif(query, '<insufficient privilege>'), 500) END AS query,
           ours, count(*) OVER () AS total, pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all
      FROM pg_stat_activity AS a
     CROSS JOIN LATERAL (SELECT coalesce(application_name = current_setting('runbook.ours'), false)
                                OR a.pid = pg_backend_pid() AS ours) AS own
     ORDER BY ours DESC,
              a.pid IN (SELECT told::int
                          FROM unnest(string_to_array(current_setting('runbook.blocking'), ' ')) AS told) DESC,
              (usename = current_setting('runbook.app_user')
               OR datname = current_setting('runbook.app_database')) IS TRUE DESC,
              a.backend_start
     LIMIT 2000"""


def _activity(asker: Asker) -> dict[str, Any]:
    sessions: list[dict[str, Any]] = []
    own_pids: list[int] = []
    total, sees_all = 0, False
    for row in asker.ask(_SESSIONS):
        total, sees_all = _int(row.pop("total")), row.pop("sees_all") == "t"
        if row.pop("ours") == "t":
            own_pids.append(_int(row["pid"]))
        sessions.append({**row, "pid": _int(row["pid"]), "client_port": _int_or_none(row["client_port"])})
    return {
        "total": total,
        "truncated": total > len(sessions),
        "own_pids": own_pids,
        "sees_all": sees_all,
        "sessions": sessions,
    }


# -- slots and counters --------------------------------------------------------------------------------------

_MAXIMA = """
    SELECT current_setting('max_connections') AS max_connections,
           current_setting('superuser_reserved_connections') AS superuser_reserved_connections,
           coalesce(current_setting('reserved_connections', true), '0') AS reserved_connections,
           (SELECT datconnlimit FROM pg_database
             WHERE datname = current_setting('runbook.app_database')) AS database_limit"""

# Who may not see of what type a session is counts every session of a role in a database, parallel workers
# too: the headroom is then too low rather than too high.
_USERS = """
    SELECT usename AS role, application_name, datname AS database, host(client_addr) AS client_address,
           count(*) AS count, sum(count(*)) OVER () AS used
      FROM pg_stat_activity
     WHERE (backend_type = 'client backend'
            OR backend_type IS NULL AND usesysid IS NOT NULL AND datid IS NOT NULL)
       AND application_name IS DISTINCT FROM current_setting('runbook.ours')
       AND pid <> pg_backend_pid()
     GROUP BY usename, application_name, datname, client_addr
     ORDER BY count(*) DESC, usename, application_name
     LIMIT 500"""

_ROLE_LIMITS = """
    SELECT rolname AS role, rolconnlimit AS limit
      FROM pg_roles
     WHERE rolconnlimit >= 0 OR rolname = current_setting('runbook.app_user')
     ORDER BY rolname = current_setting('runbook.app_user') DESC, rolname
     LIMIT 500"""


def _limits(asker: Asker) -> dict[str, Any]:
    maxima = asker.ask(_MAXIMA)[0]
    if maxima["database_limit"] is None:
        raise Unreadable(f"there is no database {asker.database!r}")
    users = asker.ask(_USERS)
    numbers = {name: _int(value) for name, value in maxima.items()}
    used = _int(users[0]["used"]) if users else 0
    kept_back = numbers["superuser_reserved_connections"] + numbers["reserved_connections"]
    keys = ("role", "application_name", "database", "client_address")
    return {
        **numbers,
        "used": used,
        "headroom": numbers["max_connections"] - kept_back - used,
        "by_role": [{**{key: row[key] for key in keys}, "count": _int(row["count"])} for row in users],
        "role_limits": [
            {"role": row["role"], "limit": _int(row["limit"])} for row in asker.ask(_ROLE_LIMITS)
        ],
    }


_COUNTERS = """
    SELECT numbackends, sessions, sessions_abandoned, sessions_fatal, sessions_killed, deadlocks,
           to_char(stats_reset, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS stats_reset
      FROM pg_stat_database
     WHERE datname = current_setting('runbook.app_database')"""


def _statistics(asker: Asker) -> dict[str, Any]:
    rows = asker.ask(_COUNTERS)
    if not rows:
        raise Unreadable(f"there is no database {asker.database!r}")
    return {name: value if name == "stats_reset" else _int(value) for name, value in rows[0].items()}


def _int(value: Optional[str]) -> int:
    return int(value or 0)


def _int_or_none(value: Optional[str]) -> Optional[int]:
    return None if value is None else int(value)


# In the order of reading: of the sessions, activity keeps those first that locks found.
_READERS: dict[str, Callable[[Asker], dict[str, Any]]] = {
    "server": _server,
    "locks": _locks,
    "activity": _activity,
    "limits": _limits,
    "statistics": _statistics,
}

"""View N: one new connection to the database, as the app would make it, closed at once.

How far it gets decides most causes: the name, the port, the start-up, the password, the slots. Without a
password it is a knock: a startup packet, to which the server's request for one is the wanted answer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Optional

from .wire import APPLICATION_NAME, Connection, PasswordNeeded, Target, WireError, connect, resolve

__all__ = ["bounded", "collect", "described", "reach", "resolve"]

_LEAST_SECONDS = 0.05
_BOUNCER_SHARE = 1 / 8


def collect(settings: Mapping[str, Any], password: Optional[str], deadline_seconds: float) -> dict[str, Any]:
    """The data of view ``new_connection``; a failure is data too, never an exception.

    ``settings``: ``host`` (a path is the directory of a unix socket), ``port``, ``name`` of the database,
    ``user``, and where set ``sslmode``, ``sslrootcert``, ``sslcert``, ``sslkey``, all in libpq's meaning.
    ``password`` None makes it a knock, unless the server lets us in without one. Without a ``user`` the
    knock uses a stand-in, whose refusal by the server says nothing about the app and counts as an answer.
    Where the server lets us in and then keeps silent, the last of the time goes to asking a PgBouncer.
    Ends within ``deadline_seconds``. Raises ValueError for settings that cannot be (see wire.Target).
    """
    deadline = time.monotonic() + deadline_seconds
    data, connection = reach(settings, password, deadline - deadline_seconds * _BOUNCER_SHARE)
    if connection is not None:
        connection.close()
    silent = data["error"] is not None and data["error"]["kind"] == "timeout"
    if silent and data["phase"] in ("auth", "query"):
        data["pgbouncer"] = _pgbouncer(settings, password, deadline)
    return data


def reach(
    settings: Mapping[str, Any], password: Optional[str], deadline: float
) -> tuple[dict[str, Any], Optional[Connection]]:
    """As collect, until the moment ``deadline`` of ``time.monotonic()``, and the connection still open.

    The connection is None unless it is logged in and has answered a first query.
    """
    target = _target(settings, settings["name"], password)
    data = described("credentials", settings, target.user)
    connection: Optional[Connection] = None
    try:
        connection = connect(target, deadline)
        data["server"] = _server(connection, deadline)
        data["phase"], trace = "query", connection.trace
    except WireError as error:
        data["phase"], trace = error.phase, error.trace
        refused_stand_in = not settings["user"] and (error.sqlstate or "")[:2] in ("28", "3D")
        if not (isinstance(error, PasswordNeeded) or refused_stand_in):
            data["ok"], data["error"] = False, error.as_dict()
        if connection is not None:
            connection.close()
            connection = None
        elif password is None:
            data["kind"] = "knock"
    data["address"], data["addresses"] = trace.address, trace.addresses
    data["seconds_by_phase"] = trace.seconds_by_phase
    return data, connection


def described(kind: str, settings: Mapping[str, Any], user: str) -> dict[str, Any]:
    """The data of a connection that works, before anything is known of it but where it leads."""
    place = {"host": settings["host"], "port": int(settings["port"]), "database": settings["name"]}
    unknown = dict.fromkeys(("error", "server", "pgbouncer", "live"))
    return {"kind": kind, **place, "user": user, "ok": True, **unknown}


def _target(settings: Mapping[str, Any], database: str, password: Optional[str]) -> Target:
    return Target(
        host=settings["host"],
        port=int(settings["port"]),
        database=database,
        user=settings["user"] or APPLICATION_NAME,
        password=password,
        sslmode=settings.get("sslmode") or "prefer",
        sslrootcert=settings.get("sslrootcert"),
        sslcert=settings.get("sslcert"),
        sslkey=settings.get("sslkey"),
    )


# The columns of SHOW POOLS that tell of a queue; PgBouncer of every version has them.
_POOLS = ("cl_active", "cl_waiting", "sv_active", "sv_idle", "sv_used", "sv_login", "maxwait")


def _pgbouncer(
    settings: Mapping[str, Any], password: Optional[str], deadline: float
) -> Optional[dict[str, Any]]:
    """What a PgBouncer at that address says of the pools of this database; None where there is none.

    Its console is a database by the name of pgbouncer that it serves itself, however long its clients
    queue, to the roles in its ``stats_users``.
    """
    connection: Optional[Connection] = None
    try:
        connection = connect(_target(settings, "pgbouncer", password), deadline)
        rows = [row for row in connection.query("SHOW POOLS") if row["database"] == settings["name"]]
        counts = [{name: int(row[name] or "") for name in _POOLS} for row in rows]
        pools = [
            {"user": row["user"], "pool_mode": row.get("pool_mode"), **told}
            for row, told in zip(rows, counts)
        ]
    except (KeyError, ValueError):
        return None  # it answers, and not as PgBouncer does
    except WireError as error:
        # PostgreSQL has no such database (3D000); PgBouncer does not let everybody at its console.
        told = error.kind == "server" and error.sqlstate != "3D000"
        return {"pools": None, "refused": error.text} if told else None
    finally:
        if connection is not None:
            connection.close()
    return {"pools": pools, "refused": None}


def bounded(sql: str, seconds: Optional[float]) -> str:
    """A query that the server itself ends after ``seconds``, whatever the role, its settings and the pooler.

    One string of statements is one transaction: the settings end with it and stay on no pooled connection.
    Nobody's object shadows one of the catalog's; times come in UTC. None: no limit, for a query that reads
    these very limits.
    """
    prefix = "SET LOCAL search_path = pg_catalog; SET LOCAL TimeZone = 'UTC';"
    if seconds is not None:
        limit = int(max(seconds, _LEAST_SECONDS) * 1000)
        prefix += f"SET LOCAL statement_timeout = {limit}; SET LOCAL lock_timeout = {limit};"
    return prefix + sql


_SERVER = """
    SELECT pg_is_in_recovery() AS in_recovery,
           current_setting('transaction_read_only') AS read_only,
           current_setting('server_version_num') AS version_num,
           to_char(pg_postmaster_start_time(), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS postmaster_start,
           pg_backend_pid() AS backend_pid"""


def _server(connection: Connection, deadline: float) -> dict[str, Any]:
    rows = connection.query(bounded(_SERVER, deadline - time.monotonic()))
    try:
        return {
            "in_recovery": rows[0]["in_recovery"] == "t",
            "read_only": rows[0]["read_only"] == "on",
            "version_num": int(rows[0]["version_num"] or ""),
            "postmaster_start": rows[0]["postmaster_start"],
            "backend_pid": int(rows[0]["backend_pid"] or ""),
        }
    except (IndexError, KeyError, ValueError) as error:
        words = "not PostgreSQL: it answers a query with something else"
        raise connection.failure("protocol", words) from error

"""View D against a real server of every version that is installed here."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from runbook.common.clock import seconds_of
from runbook.common.documents import validate
from runbook.evidence import step3_postgresql
from runbook.evidence.step3_postgresql import SETTINGS, Asker, chains, in_unit, read
from runbook.evidence.wire import Connection, Row, Target, WireError, connect
from tests.integration.test_new_connection import Packaged, eventually, packaged_versions
from tests.lab.account import fresh_directory
from tests.lab.database import prepare
from tests.lab.postgres import Postgres

VIEWS = {"connection", "server", "activity", "locks", "limits", "statistics"}


@pytest.fixture(
    scope="module", params=["embedded", *packaged_versions()], ids=lambda p: str(p).split("/")[-2:][0]
)
def server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server of each version with the lab's roles, and a role `plain` that has no rights at all."""
    directory = fresh_directory("odras-")
    server = Postgres(directory) if request.param == "embedded" else Packaged(request.param, directory)
    try:
        server.start(max_connections=30, timezone="Asia/Tokyo")
        prepare(server)
        server.remember(plain="p")
        server.sql("CREATE ROLE plain LOGIN PASSWORD 'p'")
        yield server
    finally:
        server.remove()


def collect(
    server: Postgres, role: str = "odras_diagnosis", seconds: float = 15.0, database: str = "odras"
) -> dict[str, Any]:
    """The views as `role` gets them for the app `odras_app`; they fit the schema and came in time."""
    began = time.monotonic()
    target = {"host": server.host, "port": server.port, "name": "odras", "user": role, "sslmode": "prefer"}
    views = step3_postgresql.collect(
        target, server.passwords[role], seconds, app_user="odras_app", app_database=database
    )
    assert time.monotonic() - began < seconds + 1.5
    check(views)
    return views


def check(views: dict[str, Any]) -> None:
    assert set(views) == VIEWS
    head = {"schema": "runbook/database-evidence/1", "run_id": "test", "database": "odras", "masked": 0}
    when = {"collected_from": "test", "collected_at": "2026-01-01T00:00:00Z", "seconds": 0.0}
    validate({**head, **when, "views": views})
    for view in views.values():
        assert (view["data"] is not None) == (view["state"] == "ok")
        assert bool(view["reason"]) == (view["state"] != "ok")


@contextlib.contextmanager
def session(
    server: Postgres, user: str = "odras_app", database: str = "odras", **options: Any
) -> Iterator[Any]:
    """A connection of psycopg2, as the app has them."""
    connection = psycopg2.connect(**server.connection(user, database), **options)
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def logged_in(server: Postgres, role: str = "odras_diagnosis", seconds: float = 20.0) -> Iterator[Connection]:
    """A connection of ours."""
    target = Target(server.host, server.port, "odras", role, server.passwords[role])
    connection = connect(target, time.monotonic() + seconds)
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def altered(server: Postgres, *alterations: tuple[str, str, str]) -> Iterator[None]:
    """ALTER … SET for each (whom, setting, value), and RESET afterwards."""
    try:
        for whom, setting, value in alterations:
            server.sql(f"ALTER {whom} SET {setting} = '{value}'")
        yield
    finally:
        for whom, setting, _ in alterations:
            server.sql(f"ALTER {whom} RESET {setting}")


def named(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows}


# -- sessions ----------------------------------------------------------------------------------------------


def test_a_quiet_server(server: Postgres) -> None:
    views = collect(server)
    assert {name: view["state"] for name, view in views.items()} == dict.fromkeys(VIEWS, "ok")
    facts = views["server"]["data"]
    assert facts["version_num"] == server.sql("SELECT current_setting('server_version_num')::int")[0][0]
    assert facts["postmaster_start"] <= facts["checkpointer_start"] <= facts["now"]
    assert abs((seconds_of(facts["now"]) or 0) - time.time()) < 30  # and not in the server's own time zone
    assert (facts["in_recovery"], facts["read_only"]) == (False, False)
    activity = views["activity"]["data"]
    assert activity["sees_all"] is True
    assert activity["own_pids"] == [views["connection"]["data"]["server"]["backend_pid"]]
    assert activity["total"] == len(activity["sessions"])
    (checkpointer,) = [s for s in activity["sessions"] if s["backend_type"] == "checkpointer"]
    assert facts["checkpointer_start"] == checkpointer["backend_start"]
    assert views["locks"]["data"] == {"blocked": [], "roots": []}


@pytest.mark.parametrize(("role", "sees"), [("odras_diagnosis", True), ("postgres", True), ("plain", False)])
def test_a_session_as_each_role_sees_it(server: Postgres, role: str, sees: bool) -> None:
    long = "SELECT inet_client_port(), 'é" + "x" * 1500 + "'"
    with session(server, application_name="odras@here") as connection, connection.cursor() as cursor:
        cursor.execute(long)
        port = cursor.fetchone()[0]
        views = collect(server, role)
        pid = connection.get_backend_pid()
    assert {view["state"] for view in views.values()} == {"ok"}
    activity = views["activity"]["data"]
    assert activity["sees_all"] is sees
    (found,) = [s for s in activity["sessions"] if s["application_name"] == "odras@here"]
    known = {"pid": pid, "role": "odras_app", "database": "odras", "application_name": "odras@here"}
    assert found.items() >= known.items()
    hidden = {key: value for key, value in found.items() if key not in known}
    if not sees:
        assert hidden.pop("backend_type") == "unknown"
        assert set(hidden.values()) == {None}
        assert views["server"]["data"]["checkpointer_start"] is None
        return
    times = [hidden.pop(name) for name in ("backend_start", "xact_start", "query_start", "state_change")]
    assert times == sorted(times)
    assert hidden == {
        "client_address": "127.0.0.1",
        "client_port": port,
        "backend_type": "client backend",
        "state": "idle in transaction",
        "wait_event_type": "Client",
        "wait_event": "ClientRead",
        "query": long[:500],
    }


def test_text_of_another_encoding_hides_nothing_else(server: Postgres) -> None:
    server.sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with session(server, "postgres", "latin") as connection, connection.cursor() as cursor:
            connection.set_client_encoding("LATIN1")
            cursor.execute("SELECT 'é" + "ü" * 1200 + "'")
            views = collect(server)
            found = {s["pid"]: s for s in views["activity"]["data"]["sessions"]}[connection.get_backend_pid()]
        assert found["query"].startswith("SELECT '")
    finally:
        server.sql("DROP DATABASE latin WITH (FORCE)")


def test_the_sessions_kept_are_those_that_matter(server: Postgres) -> None:
    """With room for four: our own, the chain, the app's; strangers are counted and left out."""
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(session(server, "postgres", "postgres"))
        app = stack.enter_context(session(server, "odras_app"))
        chain = [stack.enter_context(session(server, "postgres", "postgres")) for _ in range(2)]
        chain[0].cursor().execute("SELECT pg_advisory_lock(1)")
        waits(stack, chain[1], "SELECT pg_advisory_lock(1)")
        ours = stack.enter_context(logged_in(server))

        def small(sql: str) -> list[Row]:
            return ours.query(sql.replace("LIMIT 2000", "LIMIT 4"))

        eventually(lambda: bool(collect(server)["locks"]["data"]["blocked"]))
        views = read(small, "odras_app", "odras", time.monotonic() + 5)
        activity = views["activity"]["data"]
        kept = [row["pid"] for row in activity["sessions"]]
        assert kept[0] == ours.backend_pid
        assert set(kept[1:3]) == {connection.get_backend_pid() for connection in chain}
        assert kept[3:] == [app.get_backend_pid()]
        assert activity["truncated"] is True
        assert activity["total"] > 4


# -- locks -------------------------------------------------------------------------------------------------


def waits(stack: contextlib.ExitStack, connection: Any, statement: str) -> None:
    """Run a statement that will wait, in a thread of its own; it is cancelled when the stack unwinds."""

    def run() -> None:
        with contextlib.suppress(psycopg2.Error), connection.cursor() as cursor:
            cursor.execute(statement)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    stack.callback(thread.join, 10)
    stack.callback(connection.cancel)


@pytest.mark.parametrize("role", ["odras_diagnosis", "plain"])
def test_a_chain_of_locks(server: Postgres, role: str) -> None:
    """a holds what b waits for, b holds what c waits for; d waits behind c for the same row."""
    update = "UPDATE public.projects SET name = name WHERE project_id = %s"
    with contextlib.ExitStack() as stack:
        a, b, c, d = (stack.enter_context(session(server)) for _ in range(4))
        a.cursor().execute(update, ("p-1",))
        b.cursor().execute(update, ("p-2",))
        waits(stack, b, update.replace("%s", "'p-1'"))
        waits(stack, c, update.replace("%s", "'p-2'"))
        pid = {name: each.get_backend_pid() for name, each in (("a", a), ("b", b), ("c", c), ("d", d))}
        locks: dict[str, Any] = {}

        def blocked(count: int) -> Callable[[], bool]:
            def look() -> bool:
                locks.update(collect(server, role)["locks"]["data"])
                return len(locks["blocked"]) == count

            return look

        eventually(blocked(2))
        waits(stack, d, update.replace("%s", "'p-2'"))
        eventually(blocked(3))
        by = {row["pid"]: row["blocked_by"] for row in locks["blocked"]}
        assert (by[pid["b"]], by[pid["c"]]) == ([pid["a"]], [pid["b"]])
        assert by[pid["d"]] == [pid["c"]]
        assert locks["roots"] == [pid["a"]]
        assert all(0 <= row["seconds"] < 30 for row in locks["blocked"])


def test_chains_of_what_is_gone_not_asked_or_circular() -> None:
    def rows(*waiting: tuple[int, str | None]) -> list[Row]:
        return [{"pid": str(pid), "seconds": None, "blockers": blockers} for pid, blockers in waiting]

    assert chains(rows((1, ""))) == {"blocked": [], "roots": []}
    assert chains(rows((1, "2 2"), (2, None))) == {
        "blocked": [
            {"pid": 1, "blocked_by": [2], "seconds": None},
            {"pid": 2, "blocked_by": [], "seconds": None},
        ],
        "roots": [],
    }
    assert chains(rows((1, "2"), (2, "1")))["roots"] == []
    assert chains(rows((1, "0")))["roots"] == [0]


# -- settings ----------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_app_not_of_the_diagnosis(server: Postgres) -> None:
    alterations = (
        ("ROLE odras_app", "idle_session_timeout", "90s"),
        ("ROLE odras_app", "tcp_keepalives_idle", "2min"),
        ("DATABASE odras", "idle_session_timeout", "1h"),
        ("DATABASE odras", "lock_timeout", "1500ms"),
        ("ROLE odras_app IN DATABASE odras", "idle_in_transaction_session_timeout", "7"),
        ("ROLE odras_app", "idle_in_transaction_session_timeout", "8"),
        ("ROLE odras_app IN DATABASE postgres", "tcp_user_timeout", "1"),
        ("ROLE ALL", "tcp_keepalives_count", "4"),
        # its own role's, which its SHOW would tell
        ("ROLE odras_diagnosis", "statement_timeout", "20s"),
        ("ROLE odras_diagnosis", "idle_session_timeout", "1d"),
        ("ROLE odras_diagnosis", "default_transaction_read_only", "on"),
    )
    with altered(server, *alterations):
        with session(server) as connection, connection.cursor() as cursor:
            # The server's own account: what a session of the app has got. Over TCP the keepalives are read
            # from the socket, so reset_val.
            cursor.execute(
                "SELECT name, reset_val, unit, source FROM pg_settings WHERE name = ANY (%s)",
                (list(SETTINGS),),
            )
            truth = {name: rest for name, *rest in cursor.fetchall()}
        data = collect(server)["server"]["data"]
    settings = named(data["settings"])
    assert {name: [s["setting"], s["unit"], s["source"]] for name, s in settings.items()} == {
        name: rest
        for name, rest in truth.items()
        # hidden behind the diagnosis role's own, hence not known
        if name not in ("statement_timeout", "default_transaction_read_only")
    }
    assert settings["idle_session_timeout"]["setting"] == "90000"
    assert settings["idle_in_transaction_session_timeout"]["source"] == "database user"
    assert settings["max_connections"]["file"].endswith("own.conf")
    assert settings["max_connections"]["line"] > 0
    assert data["read_only"] is False
    kept = {(o["role"], o["database"], o["name"]): o["value"] for o in data["role_settings"]}
    assert kept["odras_app", None, "idle_session_timeout"] == "90s"
    assert kept[None, "odras", "lock_timeout"] == "1500ms"
    assert kept["odras_diagnosis", None, "statement_timeout"] == "20s"
    assert kept[None, None, "tcp_keepalives_count"] == "4"


def test_a_role_that_may_not_write_is_read_only(server: Postgres) -> None:
    with altered(server, ("ROLE odras_app", "default_transaction_read_only", "true")):
        data = collect(server)["server"]["data"]
    assert data["read_only"] is True
    assert named(data["settings"])["default_transaction_read_only"]["setting"] == "on"
    assert collect(server)["server"]["data"]["read_only"] is False


def test_a_setting_that_waits_for_a_start_says_so(server: Postgres) -> None:
    own = server.data / "own.conf"
    before = own.read_text()
    try:
        own.write_text(before + "max_connections = 77\n")
        server.sql("SELECT pg_reload_conf()")

        def pending() -> bool:
            setting = named(collect(server)["server"]["data"]["settings"])["max_connections"]
            assert setting["setting"] == "30"
            return bool(setting["pending_restart"])

        eventually(pending)
    finally:
        own.write_text(before)
        server.sql("SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    ("value", "vartype", "unit", "expected"),
    [
        ("30s", "integer", "ms", "30000"),
        ("1.5min", "integer", "ms", "90000"),
        ("2h", "integer", "s", "7200"),
        ("1500us", "integer", "ms", "2"),
        ("30", "integer", "ms", "30"),
        ("-1", "integer", None, "-1"),
        ("yes", "bool", None, "on"),
        ("FALSE", "bool", None, "off"),
        ("%m 5s ", "string", None, "%m 5s "),
    ],
)
def test_units(value: str, vartype: str, unit: str | None, expected: str) -> None:
    assert in_unit(value, vartype, unit) == expected


# -- slots and counters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["odras_diagnosis", "plain"])
def test_slots_used_and_left(server: Postgres, role: str) -> None:
    server.sql("ALTER ROLE plain CONNECTION LIMIT 9")
    server.sql("ALTER DATABASE odras CONNECTION LIMIT 25")
    try:
        eventually(lambda: collect(server, role)["limits"]["data"]["used"] == 0)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(session(server, application_name="odras@a"))
            stack.enter_context(session(server, "postgres", "postgres", application_name="psql"))
            stack.enter_context(logged_in(server))  # of another diagnosis: not counted
            limits = collect(server, role)["limits"]["data"]
    finally:
        server.sql("ALTER DATABASE odras CONNECTION LIMIT -1")
    groups = limits.pop("by_role")
    assert limits == {
        "max_connections": 30,
        "superuser_reserved_connections": 3,
        "reserved_connections": 0,
        "used": 4,
        "headroom": 23,
        "role_limits": [{"role": "odras_app", "limit": -1}, {"role": "plain", "limit": 9}],
        "database_limit": 25,
    }
    address = "127.0.0.1" if role == "odras_diagnosis" else None
    assert groups == [
        {
            "role": "odras_app",
            "application_name": "odras@a",
            "database": "odras",
            "client_address": address,
            "count": 3,
        },
        {
            "role": "postgres",
            "application_name": "psql",
            "database": "postgres",
            "client_address": address,
            "count": 1,
        },
    ]


def test_headroom_is_what_can_still_be_opened(server: Postgres) -> None:
    eventually(lambda: collect(server)["limits"]["data"]["used"] == 0)
    headroom = collect(server)["limits"]["data"]["headroom"]
    opened = 0
    with (
        contextlib.ExitStack() as stack,
        pytest.raises(psycopg2.OperationalError, match="slots are reserved"),
    ):
        for _ in range(40):
            stack.enter_context(session(server))
            opened += 1
    assert opened == headroom


def test_killed_sessions_are_counted(server: Postgres) -> None:
    before = collect(server)["statistics"]["data"]["sessions_killed"]
    with session(server) as connection:
        server.sql("SELECT pg_terminate_backend(%s)", (connection.get_backend_pid(),))
        eventually(lambda: collect(server)["statistics"]["data"]["sessions_killed"] == before + 1)


def test_a_database_that_is_not_there(server: Postgres) -> None:
    views = collect(server, database="o'dras\\")
    for name in ("limits", "statistics"):
        assert (views[name]["state"], views[name]["data"]) == ("unknown", None)
        assert "there is no database" in views[name]["reason"]
    assert views["activity"]["state"] == "ok"


# -- what goes wrong ---------------------------------------------------------------------------------------


def test_no_way_in_is_evidence(server: Postgres) -> None:
    target = {"host": server.host, "port": server.port, "name": "odras", "user": "plain"}
    views = step3_postgresql.collect(target, "wrong", 5)
    check(views)
    assert views["connection"]["data"]["error"]["sqlstate"] == "28P01"
    for name in VIEWS - {"connection"}:
        assert views[name]["state"] == "unknown"
        assert "28P01" in views[name]["reason"]
    knocked = step3_postgresql.collect(target, None, 5)
    check(knocked)
    assert knocked["connection"]["data"]["kind"] == "knock"
    assert "password" in knocked["activity"]["reason"]


def test_a_view_that_waits_for_a_lock_does_not_hold_up_the_others(server: Postgres) -> None:
    with logged_in(server) as ours, session(server, "postgres", "odras") as holder:
        holder.cursor().execute("LOCK TABLE pg_db_role_setting IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        views = read(ours.query, "odras_app", "odras", began + 3)
        took = time.monotonic() - began
    assert took < 3
    assert {name: view["state"] for name, view in views.items()} == {
        **dict.fromkeys(("activity", "locks", "statistics"), "ok"),
        **dict.fromkeys(("server", "limits"), "timeout"),  # pg_roles looks into that table too
    }
    assert "timeout" in views["server"]["reason"]


def test_a_server_that_stops_in_the_middle_is_left_at_the_deadline(server: Postgres) -> None:
    with logged_in(server, seconds=1.5) as ours:
        deadline = time.monotonic() + 1.5

        def stopping(sql: str) -> list[Row]:
            if "pg_locks" in sql:
                server.kill_backend(ours.backend_pid or 0, signal.SIGSTOP)
            return ours.query(sql)

        try:
            views = read(stopping, "odras_app", "odras", deadline)
        finally:
            server.kill_backend(ours.backend_pid or 0, signal.SIGCONT)
        assert abs(time.monotonic() - deadline) < 1.5
    assert (views["server"]["state"], views["locks"]["state"]) == ("ok", "timeout")
    assert views["statistics"]["state"] == "unknown"
    assert "connection was lost" in views["statistics"]["reason"]


def test_a_session_that_is_ended_in_the_middle(server: Postgres) -> None:
    with logged_in(server) as ours:

        def ending(sql: str) -> list[Row]:
            if "pg_locks" in sql:
                server.sql("SELECT pg_terminate_backend(%s, 5000)", (ours.backend_pid,))
            return ours.query(sql)

        views = read(ending, "odras_app", "odras", time.monotonic() + 5)
    assert views["server"]["state"] == "ok"
    assert "57P01" in views["locks"]["reason"]
    assert all("57P01" in views[name]["reason"] for name in ("activity", "limits", "statistics"))


def test_nothing_is_written(server: Postgres) -> None:
    with logged_in(server, "postgres") as ours:
        asker = Asker(ours.query, "odras_app", "odras")
        asker.until = time.monotonic() + 5
        with pytest.raises(WireError) as caught:
            asker.ask("CREATE TABLE public.trace (a int)")
        assert caught.value.sqlstate == "25006"
        asker.until = time.monotonic() + 0.2
        with pytest.raises(WireError) as caught:
            asker.ask("SELECT pg_sleep(10)")
        assert caught.value.sqlstate == "57014"
        # and no setting of ours outlives its query, whether that fails or not
        asker.until = time.monotonic() + 5
        assert asker.ask("SELECT current_setting('transaction_read_only') AS r") == [{"r": "on"}]
        (row,) = ours.query(
            "SELECT current_setting('statement_timeout') AS t, current_setting('search_path') AS s"
        )
        assert row == {"t": "0", "s": '"$user", public'}


def test_a_crash_is_seen_by_the_checkpointer(fresh_postgres: Postgres) -> None:
    server = fresh_postgres
    quiet = collect(server)["server"]["data"]
    with session(server) as connection:
        server.kill_backend(connection.get_backend_pid(), signal.SIGKILL)
    after: dict[str, Any] = {}

    def recovered() -> bool:
        after.update(collect(server)["server"])
        return bool(after["data"]) and after["data"]["checkpointer_start"] != quiet["checkpointer_start"]

    eventually(recovered, 30)
    assert after["data"]["postmaster_start"] == quiet["postmaster_start"]
    assert after["data"]["checkpointer_start"] > quiet["now"]

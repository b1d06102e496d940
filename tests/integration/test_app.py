"""The reference application: real processes, real HTTP, real PostgreSQL, real trouble."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import argon2
import psycopg2
import pytest

from runbook.act import configuration
from tests.integration.app_service import COMMAND, LOG_LINE, ROOT, App, Database, Load, arguments
from tests.integration.pool.house import until
from tests.lab.account import fresh_directory
from tests.lab.database import prepare
from tests.lab.postgres import Postgres, free_port

Serve = Callable[..., App]


@contextlib.contextmanager
def prepared(server: Postgres) -> Iterator[Database]:
    """A database with the schema and one user."""
    database = Database(server)
    database.migrate()
    added = database.run("add-user", App.username, stdin=f"{App.password}\n")
    assert added.stdout == f"user {App.username}: added\n", added
    yield database
    if server.running():
        database.drop()


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> Iterator[Database]:
    with prepared(postgres) as made:
        yield made


@pytest.fixture(scope="module")
def app(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Two workers that look after expired tokens every second; nobody stops them."""
    place = tmp_path_factory.mktemp("app")
    made = App(database, place, APP_WORKERS=2, POSTGRES_POOL_MONITOR_INTERVAL=1, APP_LOG_LEVEL="DEBUG")
    yield made.await_ready()
    made.stop()


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database on a server of this module's own, to be stopped and started; each test leaves it running."""
    with Postgres(fresh_directory("odras-")) as server:
        prepare(server)
        with prepared(server) as made:
            yield made


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts applications of the test's own: `serve(database, APP_WORKERS=1, …)`."""
    started: list[App] = []

    def start(database: Database, **environ: object) -> App:
        started.append(App(database, tmp_path, **environ))
        return started[-1]

    yield start
    for each in started:
        each.stop()


# -- the endpoints -----------------------------------------------------------------------------------


def test_login_opens_what_is_the_users_until_logout(app: App, database: Database) -> None:
    for name, active in (("Ferry", True), ("Bridge", True), ("Tunnel", False)):
        database.sql(
            "INSERT INTO projects (user_id, name, is_active) SELECT user_id, %s, %s FROM users"
            " WHERE username = %s",
            *(name, active, app.username),
        )
    database.run("add-user", "neighbour", stdin="another password\n")
    database.sql("INSERT INTO projects (user_id, name) SELECT max(user_id), 'Dam' FROM users")
    before = datetime.datetime.now(datetime.timezone.utc)
    login = app.login()
    assert (login.status, login.headers["Cache-Control"]) == (200, "no-store")
    lasts = datetime.datetime.fromisoformat(login.body["expires_at"].replace("Z", "+00:00")) - before
    assert abs(lasts.total_seconds() - 28_800) < 60
    token = login.body["token"]
    me = app.request("GET", "/api/auth/me", token=token)
    assert (me.status, me.body) == (
        200,
        {"username": app.username, "expires_at": login.body["expires_at"]},
    )
    projects = app.request("GET", "/api/projects", token=token)
    assert projects.status == 200
    assert [each["name"] for each in projects.body["projects"]] == ["Bridge", "Ferry"]
    assert set(projects.body["projects"][0]) == {"project_id", "name", "description"}
    assert app.request("POST", "/api/auth/logout", token=token).status == 204
    for path in ("/api/auth/me", "/api/projects"):
        refused = app.request("GET", path, token=token)
        assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert app.request("POST", "/api/auth/logout", token=token).status == 401


def test_a_token_is_stored_hashed_and_only_until_it_expires(app: App, database: Database) -> None:
    token = app.token()
    hashed = hashlib.sha256(token.encode()).digest()
    assert database.sql("SELECT count(*) FROM auth_tokens WHERE token_hash = %s", hashed) == [(1,)]
    assert token not in str(database.sql("SELECT encode(token_hash, 'escape') FROM auth_tokens"))
    database.sql("UPDATE auth_tokens SET expires_at = now() WHERE token_hash = %s", hashed)
    assert app.request("GET", "/api/auth/me", token=token).status == 401


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer nonsense", "Bearer \xe9", "Basic dXNlcjpwdw=="])
def test_without_a_valid_token_nothing_opens(app: App, header: str | None) -> None:
    headers = {"Authorization": header} if header else {}
    for method, path in (
        *(("GET", "/api/auth/me"), ("GET", "/api/projects")),
        *(("POST", "/api/auth/logout"),),
    ):
        answer = app.request(method, path, **headers)
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


def test_who_may_not_log_in_is_not_told_why(app: App, database: Database) -> None:
    database.run("add-user", "gone", stdin=f"{app.password}\n")
    database.sql("UPDATE users SET is_active = false WHERE username = 'gone'")
    answers = [app.login(password="wrong"), app.login(username="nobody"), app.login(username="gone")]
    assert {answer.status for answer in answers} == {401}
    assert all(answer.body == {"detail": "wrong username or password"} for answer in answers)


def test_an_unknown_user_takes_as_long_as_a_wrong_password(app: App) -> None:
    def fastest(username: str) -> float:
        taken = []
        for _ in range(8):
            began = time.monotonic()
            assert app.login(username=username, password="wrong").status == 401
            taken.append(time.monotonic() - began)
        return min(taken)

    # Without a hash to verify, the unknown one would be answered several times as fast.
    assert fastest("nobody") > 0.6 * fastest(app.username)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[]",
        b'{"username": "a"}',
        b'{"username": "", "password": "canary-x"}',
        b'{"username": "a", "password": ""}',
        b'{"username": 7, "password": "canary-x"}',
        b'{"username": "a", "password": {"canary-x": 1}}',
        b'{"username": "a\\u0000b", "password": "canary-x"}',
        b'{"username": "a", "password": "canary-x\\ud800"}',
        b'{"username": "\\ud800", "password": "canary-x"}',
        b'{"username": "a", "password": "canary-' + b"x" * 2000 + b'"}',
        b'{"username": "' + b"a" * 200 + b'", "password": "canary-x"}',
    ],
)
def test_a_malformed_login_is_400_and_its_password_not_repeated(app: App, body: bytes) -> None:
    answer = app.request("POST", "/api/auth/login", body)
    assert answer.status == 400
    assert "canary" not in str(answer.body)


def test_every_answer_has_a_request_id_and_a_line_in_the_log(app: App) -> None:
    asked = [
        ("GET", "/livez", 200),
        ("GET", "/readyz", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/api/auth/login", 405),
        ("GET", "/api/auth/me?token=canary-in-the-query", 401),
    ]
    for number, (method, path, status) in enumerate(asked):
        mine = f"mine-{number}"
        answer = app.request(method, path, X_Request_ID=mine)
        assert (answer.status, answer.headers.get_all("X-Request-ID")) == (status, [mine])
        line = f"Request {mine} from 127.0.0.1: {method} {path.partition('?')[0]}: {status},"
        assert until(lambda line=line: line in app.log())
    forged = app.request("GET", "/livez", X_Request_ID="a b")
    assert len(forged.headers["X-Request-ID"]) == 32


def test_an_error_that_nobody_expected_is_found_again_by_its_request_id(
    database: Database, serve: Serve
) -> None:
    """A column that somebody changed by hand: what it holds now is no JSON."""
    app = serve(database, APP_WORKERS=1).await_ready()
    token = app.token()
    database.sql("INSERT INTO projects (user_id, name) SELECT user_id, 'Lock' FROM users")
    database.sql("ALTER TABLE projects ALTER description TYPE bytea USING '\\xff'")
    try:
        answer = app.request("GET", "/api/projects", token=token, X_Request_ID="mine")
    finally:
        database.sql("ALTER TABLE projects ALTER description TYPE text USING NULL")
        database.sql("DELETE FROM projects WHERE name = 'Lock'")
    assert (answer.status, answer.headers.get_all("X-Request-ID")) == (500, ["mine"])
    assert answer.body == {"detail": "internal error", "request_id": "mine"}
    assert until(lambda: "Request mine from 127.0.0.1: GET /api/projects: 500," in app.log())
    assert until(lambda: "Traceback (most recent call last)" in app.log())
    assert app.request("GET", "/api/projects", token=token).status == 200


def test_a_password_hash_of_earlier_parameters_is_renewed(app: App, database: Database) -> None:
    weak = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash("old password")
    database.sql("INSERT INTO users (username, password_hash) VALUES ('veteran', %s)", weak)
    assert app.login("veteran", "old password").status == 200
    ((renewed,),) = database.sql("SELECT password_hash FROM users WHERE username = 'veteran'")
    assert renewed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert app.login("veteran", "old password").status == 200


# -- processes and pools -----------------------------------------------------------------------------


def test_each_worker_has_a_pool_a_monitor_and_a_status_socket(app: App, database: Database) -> None:
    statuses = app.await_workers(2)
    assert {each["pid"] for each in statuses} == app.children()
    for each in statuses:
        assert each["application_name"] == f"app@{socket.gethostname().partition('.')[0][:24]}:{each['pid']}"
        assert each["monitor"]["alive"]
        assert each["loop"]["heartbeat_age"] < 5

    def fits() -> bool:
        # Counted before and after, because the monitor may open or close one in between.
        said, there, again = [_open(app), _backends(database), _open(app)]
        return said == there == again

    assert until(fits)


def _open(app: App) -> int:
    return sum(each["count"]["used"] + each["count"]["idle"] for each in app.statuses())


def _backends(database: Database) -> int:
    return database.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND usename = 'odras_app'", database.name
    )[0][0]


def test_expired_tokens_and_only_those_are_deleted(app: App, database: Database) -> None:
    living = app.token()
    database.sql(
        "INSERT INTO auth_tokens SELECT sha256(n::text::bytea), (SELECT min(user_id) FROM users),"
        " now() + make_interval(secs => CASE WHEN n <= 2500 THEN -1 ELSE 60 END)"
        " FROM generate_series(1, 2503) AS n"
    )
    until(lambda: database.sql("SELECT count(*) FROM auth_tokens WHERE expires_at <= now()") == [(0,)], 20)
    ((left,),) = database.sql(
        "SELECT count(*) FROM auth_tokens JOIN generate_series(2501, 2503) AS n"
        " ON token_hash = sha256(n::text::bytea)"
    )
    assert left == 3
    assert app.request("GET", "/api/auth/me", token=living).status == 200
    assert until(lambda: "expired tokens" in app.log())


def test_a_worker_that_died_is_replaced(database: Database, serve: Serve) -> None:
    app = serve(database, APP_WORKERS=2).await_ready()
    victim, survivor = sorted(each["pid"] for each in app.await_workers(2))
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(app.children() - {victim}) == 2)
    app.await_workers(2)
    assert survivor in app.children()
    assert f"Worker {victim} ended with -9" in app.log()
    os.kill(survivor, signal.SIGTERM)
    until(lambda: survivor not in app.children() and len(app.children()) == 2)
    assert f"Worker {survivor} ended with 0" in app.log()
    app.await_workers(2)
    assert app.login().status == 200


def test_workers_that_cannot_start_end_the_service(database: Database) -> None:
    # Descriptors enough for the parent, and too few for an event loop.
    command = ["bash", "-c", 'ulimit -n 6 && exec "$@"', "bash", *COMMAND, "serve"]
    environ = {**database.environ, "APP_WORKERS": "2", "APP_PORT": str(free_port())}
    ended = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 1
    assert "Worker failed" in ended.stderr
    assert "Too many open files" in ended.stderr


def test_workers_do_not_outlive_their_parent(database: Database, serve: Serve) -> None:
    app = serve(database, APP_WORKERS=2).await_ready()
    app.await_workers(2)
    workers = app.children()
    app.process.kill()
    app.wait()
    until(lambda: not any(map(arguments, workers)))
    assert not app.statuses()


# -- a pool without a free connection ----------------------------------------------------------------


def test_an_exhausted_pool_is_503_with_retry_after_and_seen_from_outside(
    database: Database, serve: Serve
) -> None:
    app = serve(
        database,
        APP_WORKERS=1,
        POSTGRES_POOL_MIN_CONNECTIONS=0,
        POSTGRES_POOL_MAX_CONNECTIONS=2,
        POSTGRES_POOL_CONNECTION_TIMEOUT=4,
    ).await_ready()
    with ThreadPoolExecutor(3) as threads:
        with database.locked("auth_tokens"):
            held = [threads.submit(app.login, X_Request_ID=f"held-{number}") for number in range(2)]
            until(lambda: app.blocked() == 2)
            late = threads.submit(app.login)
            (status,) = until(lambda: [each for each in app.statuses() if each["count"]["waiting"]])
            assert status["count"]["used"] == 2
            assert {each["request_id"] for each in status["holders"]} == {"held-0", "held-1"}
            assert all("/accounts.py:" in each["site"] for each in status["holders"])
            ready = app.request("GET", "/readyz")
            assert (ready.status, ready.body["reason"]) == (503, "no free database connection: 2 at most")
            assert app.request("GET", "/livez", seconds=2).status == 200
            answer = late.result(20)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            assert answer.body == {"detail": "the database is not available: try again"}
        assert [each.result(20).status for each in held] == [200, 200]
    assert app.ready() == 200
    (status,) = app.statuses()
    assert status["counters"]["timeouts"] >= 1


def test_more_requests_than_threads_all_have_an_answer_in_time(database: Database, serve: Serve) -> None:
    app = serve(
        database, APP_WORKERS=1, POSTGRES_POOL_MAX_CONNECTIONS=2, POSTGRES_POOL_CONNECTION_TIMEOUT=4
    ).await_ready()
    with ThreadPoolExecutor(60) as threads, database.locked("users"):
        began = time.monotonic()
        answers = [threads.submit(app.login) for _ in range(60)]
        until(lambda: app.statuses()[0]["count"]["waiting"] == 38)  # 40 threads, 2 of them have a connection
        assert app.request("GET", "/livez", seconds=2).status == 200
        # Not "no answer": the probe has a thread of its own.
        assert app.request("GET", "/readyz").body["reason"] == "no free database connection: 2 at most"
        until(lambda: sum(each.done() for each in answers) == 58, 20)
        assert time.monotonic() - began < 7  # those that waited for a thread, too
        assert {each.result().status for each in answers if each.done()} == {503}


def test_more_logins_than_processors_are_503_with_retry_after(database: Database, serve: Serve) -> None:
    app = serve(database, APP_WORKERS=1, POSTGRES_POOL_CONNECTION_TIMEOUT=0.2).await_ready()
    with ThreadPoolExecutor(60) as threads:
        answers = [each.result(30) for each in [threads.submit(app.login) for _ in range(120)]]
    assert {each.status for each in answers} <= {200, 503}
    busy = [each for each in answers if each.body == {"detail": "the service is busy: try again"}]
    assert busy
    assert {each.headers["Retry-After"] for each in busy} == {"5"}
    assert app.login().status == 200


def test_a_database_that_refuses_is_503_and_granting_again_cures_it(app: App, database: Database) -> None:
    token = app.token()
    database.sql("REVOKE SELECT ON projects FROM odras_app", user="odras_owner")
    answer = app.request("GET", "/api/projects", token=token)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    database.migrate()
    assert app.request("GET", "/api/projects", token=token).status == 200


# -- PostgreSQL away, restarted, sessions terminated --------------------------------------------------


def test_postgresql_away_at_the_start_and_later_needs_no_restart(frail: Database, serve: Serve) -> None:
    frail.server.stop()
    app = serve(frail, APP_WORKERS=2, POSTGRES_POOL_CONNECTION_TIMEOUT=2).await_serving()
    _is_away(app)
    frail.server.start()
    app.await_ready()
    pids = app.pids()
    assert app.login().status == 200
    frail.server.stop()
    _is_away(app)
    frail.server.start()
    app.await_ready()
    assert [app.login().status for _ in range(6)] == [200] * 6
    assert app.pids() == pids


def _is_away(app: App) -> None:
    assert app.request("GET", "/livez").status == 200
    ready = app.request("GET", "/readyz")
    assert (ready.status, ready.body) == (
        503,
        {"ready": False, "reason": "cannot connect to the database"},
    )
    login = app.login()
    assert (login.status, login.headers["Retry-After"]) == (503, "5")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_no_login_fails_over_a_restart_of_postgresql(frail: Database, serve: Serve, mode: str) -> None:
    app = serve(frail, APP_WORKERS=2).await_ready()
    app.await_workers(2)
    pids = app.pids()
    with Load(app) as load:
        load.goes_on()
        frail.server.restart(mode)
        back = time.monotonic()
        load.goes_on(15)
    # None at all, and not only none of those that began when it was back: the others waited for it.
    assert [status for began, _, status in load.answers if began > back].count(200) >= 15
    assert {status for _, _, status in load.answers} == {200}
    assert app.pids() == pids


def test_no_login_fails_when_all_sessions_are_terminated(frail: Database, serve: Serve) -> None:
    app = serve(frail, APP_WORKERS=2).await_ready()
    app.await_workers(2)
    with Load(app) as load:
        for _ in range(4):
            load.goes_on(4)
            frail.server.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'odras_app'"
            )
        load.goes_on(4)
    assert {status for _, _, status in load.answers} == {200}
    found = [each["counters"]["dead_found"] for each in app.statuses()]
    assert sum(each["57P01"] + each["in_use"] for each in found) >= 4


def test_a_database_that_stops_answering_is_not_ready_and_the_loop_goes_on(
    frail: Database, serve: Serve
) -> None:
    app = serve(frail, APP_WORKERS=1, POSTGRES_POOL_MIN_CONNECTIONS=1).await_ready()
    (status,) = app.await_workers(1)
    rows = frail.sql(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s", status["application_name"]
    )
    backends = [pid for (pid,) in rows]
    for pid in backends:
        frail.server.kill_backend(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        ready = app.request("GET", "/readyz")
        assert (ready.status, ready.body["reason"]) == (503, "no answer from the database within 2 s")
        assert time.monotonic() - began < 4
        (status,) = app.statuses()
        assert status["loop"]["heartbeat_age"] < 3
    finally:
        for pid in backends:
            frail.server.kill_backend(pid, signal.SIGCONT)
    app.await_ready()


# -- the schema --------------------------------------------------------------------------------------


@pytest.fixture
def empty(postgres: Postgres) -> Iterator[Database]:
    """A database without any table."""
    made = Database(postgres)
    yield made
    made.drop()


def test_migrations_are_applied_once_by_however_many(empty: Database) -> None:
    at_once = [empty.begin("migrate", **empty.owner) for _ in range(4)]
    said = [each.communicate(timeout=60)[0] for each in at_once]
    assert [each.returncode for each in at_once] == [0] * 4
    assert sorted(said) == [
        "schema version 2: applied migrations 1 to 2\n",
        *["schema version 2: nothing to do\n"] * 3,
    ]
    # The password neither in an argument nor in the environment, as the role does it.
    file = {"POSTGRES_OWNER_USER": "odras_owner", "POSTGRES_OWNER_PASSWORD_FILE": "/dev/stdin"}
    again = empty.run("migrate", stdin=empty.owner["POSTGRES_OWNER_PASSWORD"], **file)
    assert (again.returncode, again.stdout) == (0, "schema version 2: nothing to do\n")


def test_a_migration_that_fails_leaves_nothing_behind(empty: Database) -> None:
    empty.sql("CREATE TABLE public.projects (other text)", user="odras_owner")
    failed = empty.run("migrate", **empty.owner)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == 'migrate failed: DuplicateTable: relation "projects" already exists\n'
    assert empty.sql("SELECT to_regclass('users')") == [(None,)]


def test_an_older_schema_is_refused_and_never_migrated(database: Database, serve: Serve) -> None:
    app = serve(database, APP_WORKERS=1).await_ready()
    database.sql("DELETE FROM schema_version WHERE version = 2")
    database.sql("ALTER TABLE projects RENAME TO projects_kept")
    older = (
        "schema version 1 is older than 2, which this application needs: run `python -m runbook.app migrate`"
    )
    try:
        ready = app.request("GET", "/readyz")
        assert (ready.status, ready.body["reason"]) == (503, older)
        refused = database.run("serve", APP_PORT=str(app.port + 1))
        assert (refused.returncode, refused.stderr) == (3, f"does not serve: {older}\n")
        assert database.sql("SELECT max(version) FROM schema_version") == [(1,)]
        up = database.run("migrate", **database.owner)
        assert up.stdout == "schema version 2: applied migrations 2 to 2\n"
        assert app.ready() == 200
    finally:
        database.sql("DROP TABLE IF EXISTS projects")
        database.sql("ALTER TABLE projects_kept RENAME TO projects")
        database.migrate()


def test_without_any_schema_or_right_it_does_not_serve(empty: Database) -> None:
    refused = empty.run("serve")
    assert refused.returncode == 3
    assert refused.stderr.startswith("does not serve: schema version 0 is older than 2")
    empty.migrate()
    empty.sql("REVOKE SELECT ON schema_version FROM odras_app")
    refused = empty.run("serve")
    assert refused.returncode == 3
    assert "may not read public.schema_version" in refused.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE public.t (n int)",
        "CREATE TEMPORARY TABLE t (n int)",
        "CREATE SCHEMA s",
        "ALTER TABLE users ADD COLUMN n int",
        "DROP TABLE auth_tokens",
        "TRUNCATE auth_tokens",
        "CREATE INDEX ON users (is_active)",
        "INSERT INTO schema_version (version) VALUES (99)",
        "GRANT SELECT ON users TO PUBLIC",
    ],
)
def test_the_applications_role_changes_rows_and_no_tables(database: Database, statement: str) -> None:
    refused = (psycopg2.errors.InsufficientPrivilege,)
    if statement.startswith("GRANT"):
        # PostgreSQL only warns; nobody else can read the table afterwards either.
        with contextlib.suppress(*refused):
            database.sql(statement, user="odras_app")
        assert database.sql("SELECT has_table_privilege('odras_diagnosis', 'users', 'SELECT')") == [(False,)]
        return
    with pytest.raises(refused):
        database.sql(statement, user="odras_app")


# -- the stop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_drains_and_loses_no_request(database: Database, serve: Serve, workers: int) -> None:
    # Long enough to be seen not ready before nothing new is accepted.
    app = serve(database, APP_WORKERS=workers, APP_DRAIN_SECONDS=3).await_ready()
    names = [each["application_name"] for each in app.await_workers(workers)]
    with ThreadPoolExecutor(1) as thread:
        with database.locked("auth_tokens"):
            in_flight = thread.submit(app.login)
            until(lambda: app.blocked() == 1)
            app.process.send_signal(signal.SIGTERM)
            until(lambda: app.request("GET", "/readyz").body == {"ready": False, "reason": "draining"})
            assert app.request("GET", "/livez").status == 200
            # Afterwards nobody is accepted and left without an answer.
            until(app.refuses)
            assert not in_flight.done()
        assert in_flight.result(20).status == 200
    assert app.wait() == 0
    assert not list(app.directory.glob("pool-*.sock"))
    gone = "SELECT count(*) FROM pg_stat_activity WHERE application_name = ANY(%s)"
    until(lambda: database.sql(gone, names) == [(0,)])


def test_while_its_drain_file_is_there_it_serves_and_is_not_ready(
    database: Database, serve: Serve, tmp_path: Path
) -> None:
    """In every worker; the reason is the word by which a rollout knows that nothing else is wrong."""
    file = tmp_path / "out-of-traffic"
    app = serve(database, APP_WORKERS=2, APP_DRAIN_FILE=file).await_ready()
    app.await_workers(2)
    file.write_text("for a test\n")
    out = {"ready": False, "reason": configuration._DRAINED}
    assert [app.request("GET", "/readyz").body for _ in range(10)] == [out] * 10
    assert app.login().status == 200
    file.unlink()
    assert [app.request("GET", "/readyz").status for _ in range(10)] == [200] * 10


def test_a_request_that_does_not_end_does_not_keep_it_from_stopping(database: Database, serve: Serve) -> None:
    app = serve(database, APP_WORKERS=2, APP_STOP_SECONDS=1).await_ready()
    app.await_workers(2)
    with ThreadPoolExecutor(1) as thread, database.locked("auth_tokens"):
        stuck = thread.submit(app.login)
        until(lambda: app.blocked() == 1)
        app.process.send_signal(signal.SIGTERM)
        for pid in app.children():  # as systemd does by default: everybody is told, some twice
            os.kill(pid, signal.SIGTERM)
        assert app.wait(10) == 0
        answer = stuck.result(10)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert "cut under a request: 1" in app.log()


def test_it_can_be_stopped_while_the_database_is_away(frail: Database, serve: Serve) -> None:
    app = serve(frail, APP_WORKERS=2, APP_STOP_SECONDS=1).await_ready()
    frail.server.stop()
    try:
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(app.login)
            until(lambda: any(each["count"]["waiting"] for each in app.statuses()))
            app.process.send_signal(signal.SIGTERM)
            assert app.wait(10) == 0
            assert waiting.result(10).status == 503
    finally:
        frail.server.start()


# -- settings, log, secrets --------------------------------------------------------------------------


def test_all_problems_of_the_settings_are_told_at_once(database: Database, tmp_path: Path) -> None:
    wrong = {
        "APP_PORT": "70000",
        "APP_WORKERS": "two",
        "APP_TOKEN_SECOND": "60",
        "APP_LOG_LEVEL": "verbose",
        "POSTGRES_POOL_MAX_CONNECTIONS": "1",
        "POSTGRES_PORT": "x",
        "POSTGRES_PASSWORD": "canary-in-the-settings",
    }
    file = tmp_path / "app.env"
    settings = {**database.environ, **wrong}
    file.write_text("".join(f'{name}="{value}"\n' for name, value in settings.items()))
    for refused in (
        database.run("serve", **wrong),
        database.run("check-config", **wrong),
        database.run("check-config", "--env-file", str(file)),
    ):
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.splitlines() == [
            "APP_PORT is '70000': allowed is an integer from 1 to 65535 (a port)",
            "APP_WORKERS is 'two': allowed is an integer from 1 to 64 (processes, each with a pool of its own)",
            "APP_LOG_LEVEL is 'verbose': allowed is one of DEBUG, INFO, WARNING, ERROR",
            "APP_TOKEN_SECOND is unknown; did you mean APP_TOKEN_SECONDS?",
            "POSTGRES_PORT is 'x': allowed is an integer from 1 to 65535 (a port)",
            "POSTGRES_POOL_MIN_CONNECTIONS is 2: "
            "allowed is at most POSTGRES_POOL_MAX_CONNECTIONS, which is 1",
        ]
    assert database.run("check-config").returncode == 0


def test_migrate_names_what_it_lacks(database: Database) -> None:
    nothing = database.run("migrate")
    assert (nothing.returncode, nothing.stderr.splitlines()) == (
        2,
        [
            "POSTGRES_OWNER_USER is missing: set it",
            "POSTGRES_OWNER_PASSWORD is missing or empty: set it, or name a file with it in "
            "POSTGRES_OWNER_PASSWORD_FILE (only a Unix socket directory as POSTGRES_HOST does without)",
        ],
    )
    same = database.run("migrate", POSTGRES_OWNER_USER="odras_app", POSTGRES_OWNER_PASSWORD="x")
    assert (same.returncode, "must not own its tables" in same.stderr) == (2, True)
    wrong = database.run("migrate", POSTGRES_OWNER_USER="odras_owner", POSTGRES_OWNER_PASSWORD="canary")
    assert (wrong.returncode, "password authentication failed" in wrong.stderr) == (1, True)
    assert "canary" not in wrong.stderr


def test_a_port_that_is_taken_is_named(app: App, database: Database) -> None:
    refused = database.run("serve", APP_PORT=str(app.port))
    assert refused.returncode == 1
    said = f"cannot listen on APP_HOST 127.0.0.1, APP_PORT {app.port}: Address already in use"
    assert refused.stderr.splitlines()[-1].startswith(said)


def test_add_user_takes_the_databases_password_from_standard_input(app: App, database: Database) -> None:
    mine = database.environ["POSTGRES_PASSWORD"]
    given = ["add-user", "--database-password", "given"]
    wrong = database.run(*given, stdin="wrong\npassword of given\n", POSTGRES_PASSWORD="")
    assert (wrong.returncode, "password authentication failed" in wrong.stderr) == (1, True)
    assert database.run(*given, stdin=f"{mine}\npassword of given\n", POSTGRES_PASSWORD="").returncode == 0
    assert app.login("given", "password of given").status == 200


def test_add_user_is_idempotent_and_replaces_a_password_only_when_told(app: App, database: Database) -> None:
    def add(password: str, *options: str, name: str = "new") -> subprocess.CompletedProcess[str]:
        return database.run("add-user", *options, name, stdin=f"{password}\n")

    assert add("first password").stdout == "user new: added\n"
    assert add("first password").stdout == "user new: unchanged\n"
    token = app.login("new", "first password").body["token"]
    refused = add("other password")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "the user 'new' exists with another password: --update replaces it\n"
    assert add("other password", "--update").stdout == "user new: updated\n"
    assert app.request("GET", "/api/auth/me", token=token).status == 401
    assert app.login("new", "first password").status == 401
    assert app.login("new", "other password").status == 200
    assert add("short").returncode == 2
    assert add("long enough", name="two\nlines").returncode == 2


def test_no_secret_is_in_the_log_or_in_an_argument(app: App, database: Database) -> None:
    tokens = [app.token() for _ in range(3)]
    app.request("GET", "/api/auth/me", token=tokens[0], Cookie="canary-in-a-cookie")
    app.login(password="canary-mistyped-password")
    adding = database.begin("add-user", "late")
    try:
        until(lambda: b"add-user" in arguments(adding.pid))
        given = b"\0".join(map(arguments, [adding.pid, *app.pids()]))
    finally:
        output = adding.communicate("canary-password-of-late\n", timeout=60)
    assert adding.returncode == 0
    everything = app.log() + str(output) + given.decode()
    secrets = [app.password, "canary", *tokens, *database.server.passwords.values()]
    assert not [each for each in secrets if each in everything]


def test_every_line_of_the_log_has_time_level_logger_and_pid(app: App) -> None:
    app.token()
    lines = app.log().splitlines()
    assert [line for line in lines if not LOG_LINE.fullmatch(line)] == []
    text = "\n".join(lines)
    for logger in ("runbook.app", "runbook.app.access", "runbook.pool", "uvicorn.error"):
        assert f" {logger} [" in text

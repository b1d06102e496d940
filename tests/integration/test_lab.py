"""The lab: its server leaves no trace, its application fails as the guide's did, its faults are real."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
import yaml

from tests.lab.account import account, fresh_directory
from tests.lab.database import DATABASE, USERNAME, prepare
from tests.lab.faults import FAULTS
from tests.lab.lab import ROOT, Lab
from tests.lab.postgres import Postgres

COMMAND = ROOT / "scripts" / "lab"


def until(true: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def segments(pid: int) -> int:
    """How many System V shared memory segments the process `pid` made that still exist."""
    rows = Path("/proc/sysvipc/shm").read_text().splitlines()
    column = rows[0].split().index("cpid")
    return sum(row.split()[column] == str(pid) for row in rows[1:])


# -- the server ------------------------------------------------------------------------------------------


def test_server_starts_for_any_user_and_leaves_no_trace() -> None:
    directory = fresh_directory("odras with a space-")
    parents = [Path(shutil.__file__).parent, ROOT, *ROOT.parents, *directory.parents]
    packages = Path(psycopg2.__file__).resolve().parents
    watched = [*parents, *packages, Path("/etc/passwd"), Path("/etc/group")]

    def marks() -> list[tuple[int, int, int]]:
        return [(s.st_mode, s.st_uid, s.st_gid) for s in (path.stat() for path in watched)]

    users, before = Path("/etc/passwd").read_bytes(), marks()
    with Postgres(directory) as server:
        pid = server.postmaster_pid
        assert Path(f"/proc/{pid}").stat().st_uid == account().uid != 0
        assert server.sql("SELECT current_setting('server_version_num')::int >= 180000") == [(True,)]
        assert segments(pid) == 1
        assert marks() == before
    assert not directory.exists()
    assert not alive(pid)
    assert segments(pid) == 0
    assert marks() == before
    assert Path("/etc/passwd").read_bytes() == users


def test_server_killed_outright_leaves_no_trace_either() -> None:
    directory = fresh_directory("odras-")
    server = Postgres(directory)
    try:
        server.start()
        pid = server.postmaster_pid
        processes = [pid, *children(pid)]
        assert len(processes) > 3
        os.kill(pid, signal.SIGKILL)
        until(lambda: not any(map(alive, processes)), "children notice that their postmaster is gone")
        assert segments(pid) == 1
    finally:
        server.remove()
    assert segments(pid) == 0
    assert not directory.exists()


def test_server_that_lost_its_pid_file_is_ended_all_the_same() -> None:
    server = Postgres(fresh_directory("odras-"))
    try:
        server.start()
        pid = server.postmaster_pid
        (server.data / "postmaster.pid").unlink()
    finally:
        server.remove()
    assert not alive(pid)
    assert segments(pid) == 0
    assert not server.directory.exists()


def test_server_keeps_settings_port_and_data_over_restarts(fresh_postgres: Postgres) -> None:
    port, pid = fresh_postgres.port, fresh_postgres.postmaster_pid
    fresh_postgres.stop()
    assert not fresh_postgres.running()
    fresh_postgres.start(max_connections=7, superuser_reserved_connections=2)
    fresh_postgres.restart("immediate")
    assert (fresh_postgres.port, fresh_postgres.postmaster_pid != pid) == (port, True)
    assert fresh_postgres.sql("SHOW max_connections") == [("7",)]
    assert fresh_postgres.sql("SELECT count(*) FROM users", database=DATABASE, user="odras_app") == [(1,)]


def test_server_says_why_it_does_not_start(fresh_postgres: Postgres) -> None:
    fresh_postgres.stop()
    with pytest.raises(RuntimeError, match="max_connections"):
        fresh_postgres.start(max_connections="many")


def test_server_neither_uses_nor_removes_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy")
    with pytest.raises(RuntimeError, match="not empty"), Postgres(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "the only copy"


def test_server_names_the_parent_that_its_user_may_not_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o600)
    first = next(parent for parent in tmp_path.parents if parent.name.startswith("pytest-of-"))
    try:
        with pytest.raises((RuntimeError, PermissionError), match=str(first)):
            Postgres(closed / "server").start()
        assert closed.stat().st_mode & 0o777 == 0o600
    finally:
        closed.chmod(0o700)


def test_two_servers_live_side_by_side(postgres: Postgres, fresh_postgres: Postgres) -> None:
    assert postgres.port != fresh_postgres.port
    ours, other = (
        s.sql("SELECT system_identifier FROM pg_control_system()") for s in (postgres, fresh_postgres)
    )
    assert ours != other


def test_another_object_takes_a_running_server_over(fresh_postgres: Postgres) -> None:
    again = Postgres(fresh_postgres.directory)
    assert again.sql("SHOW data_directory") == [(str(fresh_postgres.data),)]
    assert again.passwords == fresh_postgres.passwords
    again.stop()
    assert not fresh_postgres.running()


def test_kill_backend_ends_our_sessions_and_nothing_else(postgres: Postgres) -> None:
    session = psycopg2.connect(**postgres.connection("odras_app", DATABASE))
    try:
        pid = session.info.backend_pid
        postgres.kill_backend(pid, signal.SIGTERM)
        until(lambda: not alive(pid), "the backend ended")
        with pytest.raises(psycopg2.OperationalError), session.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        session.close()
    with pytest.raises(ValueError, match="no process of the server"):
        postgres.kill_backend(os.getpid(), signal.SIGTERM)


def test_roles_may_do_their_work_and_no_more(postgres: Postgres) -> None:
    def run(statement: str, user: str) -> list[tuple]:
        return postgres.sql(statement, database=DATABASE, user=user)

    assert run("SELECT username FROM users", "odras_app") == [(USERNAME,)]
    for statement in ("CREATE TABLE x ()", "DROP TABLE users", "ALTER TABLE users ADD x int"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(statement, "odras_app")
    # Without pg_monitor the query text of others reads <insufficient privilege>.
    others = (
        "SELECT query FROM pg_stat_activity WHERE usename = 'postgres' AND backend_type = 'client backend'"
    )
    watcher = psycopg2.connect(**postgres.connection())
    try:
        watcher.cursor().execute("SELECT 42")
        assert ("SELECT 42",) in run(others, "odras_diagnosis")
        assert ("SELECT 42",) not in run(others, "odras_app")
    finally:
        watcher.close()
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run("SELECT * FROM users", "odras_diagnosis")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(**{**postgres.connection("odras_app", DATABASE), "password": "wrong"})


def test_database_can_be_prepared_twice(fresh_postgres: Postgres) -> None:
    passwords = dict(fresh_postgres.passwords)
    prepare(fresh_postgres)
    assert fresh_postgres.passwords == passwords
    assert fresh_postgres.sql("SELECT count(*) FROM users", database=DATABASE) == [(1,)]


# -- the application -------------------------------------------------------------------------------------


def run_lab(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(COMMAND), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd="/",
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab made by the command, with a space in every path."""
    home = tmp_path_factory.mktemp("home") / "of a person"
    temporary = fresh_directory("with a space-")
    try:
        made = run_lab("up", "--directory", home, TMPDIR=str(temporary), FAULT="slot_leak")
        assert made.returncode == 0, made.stderr
        assert "answers 200" in made.stdout
        yield Lab(home)
    finally:
        ended = run_lab("down", "--directory", home)
        left = list(temporary.iterdir())
        shutil.rmtree(temporary)
    assert ended.returncode == 0, ended.stderr
    assert left == []
    assert not home.exists()


@pytest.fixture
def healthy_lab(lab: Lab) -> Iterator[Lab]:
    """The lab, healed after the test."""
    yield lab
    lab.heal()
    assert lab.login() == 200


def call(lab: Lab, method: str, path: str, token: str | None = None, **body: str) -> tuple[int, dict]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{lab.app_port}{path}",
        method=method,
        data=json.dumps(body).encode() if body else None,
        headers={
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {token}"} if token else {}),
        },
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_people_log_in_and_out(lab: Lab) -> None:
    status, answer = call(lab, "POST", "/api/auth/login", username=lab.username, password=lab.password)
    assert status == 200
    token = answer["token"]
    assert call(lab, "GET", "/api/auth/me", token) == (200, {"username": USERNAME})
    assert [p["name"] for p in call(lab, "GET", "/api/projects", token)[1]["projects"]] == ["Bridge", "Ferry"]
    assert call(lab, "POST", "/api/auth/logout", token)[0] == 200
    assert call(lab, "GET", "/api/auth/me", token)[0] == 401


def test_strangers_are_refused_after_a_look_into_the_database(lab: Lab) -> None:
    assert lab.login("nobody-of-that-name", "x") == 401
    assert lab.login(lab.username, "wrong") == 401
    for path in ("/api/auth/me", "/api/projects"):
        assert call(lab, "GET", path)[0] == 401
        assert call(lab, "GET", path, "forged")[0] == 401


def test_application_is_the_guides_and_nothing_of_ours(lab: Lab) -> None:
    sources = list((lab.app / "backend").rglob("*.py"))
    assert len(sources) >= 6
    for source in sources:
        assert "runbook" not in source.read_text(), source
    names = lab.server.sql("SELECT application_name FROM pg_stat_activity WHERE usename = 'odras_app'")
    assert names
    assert set(names) == {("",)}
    assert {path.stat().st_uid for path in map(Path, (f"/proc/{pid}" for pid in lab.app_pids()))} == {
        account().uid
    }


def test_its_log_is_as_poor_as_the_guides(lab: Lab) -> None:
    lab.odras("restart")
    until(lambda: lab.listens(lab.app_port), "the application listens")
    # Buffered: said at start, yet not to be seen before something else flushes the buffer.
    last_start = lab.log.read_text().rpartition("Started server process")[2]
    assert "Uvicorn running" in last_start
    assert "monitor started" not in last_start
    lab.login()
    assert lab.log.read_text().rpartition("Started server process")[2].count("monitor started") == 1


def test_nothing_it_can_read_tells_what_will_be_broken(lab: Lab) -> None:
    hosts = yaml.safe_load(lab.inventory.read_text())
    telling = {*FAULTS, *(f.cause for f in FAULTS.values()), "lab", "sick", "fault"} - {"healthy"}
    (pid,) = lab.app_pids()
    read = {
        "inventory": re.sub(str(lab.home), "", json.dumps(hosts)),
        "environment": Path(f"/proc/{pid}/environ").read_text(),
        "arguments": Path(f"/proc/{pid}/cmdline").read_text(),
        "settings": (lab.app / "app.env").read_text(),
        "files": str(sorted(lab.app.rglob("*"))),
    }
    for name, text in read.items():
        for word in telling:
            assert not re.search(rf"(?<![A-Za-z]){word}(?![A-Za-z])", text), (name, word)
    assert "FAULT" not in read["environment"]


def test_secrets_stay_in_files_of_their_owner(lab: Lab) -> None:
    secrets = {lab.password, *lab.server.passwords.values()}
    assert len(secrets) == 5
    for file in (lab.app / "app.env", lab.inventory, lab.home / "state.json"):
        assert any(secret in file.read_text() for secret in secrets)
        assert file.stat().st_mode & 0o077 == 0, file
    told = [lab.log.read_text(), lab.server.log.read_text(), lab.status()]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            told.append(process.read_text(errors="replace"))
        except OSError:
            continue
    assert not any(secret in text for text in told for secret in secrets)


def test_inventory_has_the_two_hosts(lab: Lab) -> None:
    groups = yaml.safe_load(lab.inventory.read_text())["all"]["children"]
    web, database = groups["app"]["hosts"]["web-1"], groups["postgres"]["hosts"]["db-1"]
    assert web["diagnose_login_url"] == lab.login_url
    assert lab.login(web["diagnose_login_username"], web["diagnose_login_password"]) == 200
    for name in ("diagnose_pid_file", "diagnose_log", "diagnose_environment_file"):
        assert Path(web[name]).is_file(), name
    assert all(Path(path).is_dir() for path in web["diagnose_source"])
    session = psycopg2.connect(
        host=database["diagnose_database_host"],
        port=database["diagnose_database_port"],
        dbname=database["diagnose_database_name"],
        user=database["diagnose_database_user"],
        password=database["diagnose_database_password"],
    )
    session.close()
    before = lab.app_pids()
    subprocess.run(web["diagnose_restart_command"], check=True, timeout=30, stdout=subprocess.DEVNULL)
    until(lambda: lab.login() == 200, "a login after the restart")
    assert set(lab.app_pids()).isdisjoint(before)
    assert database["ansible_python_interpreter"] == str(Path(sys._base_executable).resolve())


# -- its control script ----------------------------------------------------------------------------------


def test_script_keeps_the_log_and_its_pid_file(healthy_lab: Lab) -> None:
    lab = healthy_lab
    before = lab.log.read_bytes()
    (old,) = lab.app_pids()
    assert f"pid {old}" in lab.odras("status")
    assert f"already: pid {old}" in lab.odras("start")
    lab.odras("restart")
    (new,) = lab.app_pids()
    assert new != old
    assert lab.pid_file.read_text() == f"{new}\n"
    assert lab.log.read_bytes().startswith(before)
    lab.odras("stop")
    assert not lab.app_pids()
    assert not lab.pid_file.exists()
    status = subprocess.run(
        [str(lab.app / "odras.sh"), "status"], check=False, capture_output=True, timeout=10
    )
    assert status.returncode == 3


def test_script_never_ends_a_stranger_with_a_reused_pid(healthy_lab: Lab) -> None:
    lab = healthy_lab
    lab.odras("stop")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        lab.pid_file.write_text(f"{stranger.pid}\n")
        account().own(lab.pid_file)
        assert "not running" in lab.odras("stop")
        assert stranger.poll() is None
        stranger.kill()


def test_script_ends_a_process_that_does_not_listen(healthy_lab: Lab) -> None:
    lab = healthy_lab
    (pid,) = lab.app_pids()
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    lab.odras("restart")
    assert 5 < time.monotonic() - began < 25
    assert not alive(pid)
    until(lambda: lab.login() == 200, "a login after the restart")


# -- the faults ------------------------------------------------------------------------------------------


def sockets_to(port: int, pid: int) -> list[str]:
    """States (hexadecimal, as in /proc/net/tcp) of the sockets that process `pid` has to 127.0.0.1:port."""
    links = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[3] for row in rows if row[2] == f"0100007F:{port:04X}" and row[9] in inodes]


def seen_healthy(lab: Lab) -> None:
    assert set(lab.logins(4)) == {200}


def seen_slot_leak(lab: Lab) -> None:
    (pid,) = lab.app_pids()
    assert [lab.login() for _ in range(10)] == [500] * 10
    assert lab.logins(8) == [500] * 8
    assert lab.login("nobody-of-that-name", "x") == 500
    assert lab.sessions() == 0
    assert sockets_to(lab.server.port, pid) == []
    # It is the application's own fault: its role gets a connection at once.
    psycopg2.connect(**lab.server.connection("odras_app", DATABASE)).close()
    end = lab.log.read_text()[-1500:]
    assert "Failed to get database connection: connection pool exhausted" in end
    assert "Login error: connection pool exhausted" in end
    assert "'available_connections': 0, 'active_connections': 20" in end


def seen_sessions_terminated(lab: Lab) -> None:
    (pid,) = lab.app_pids()
    close_wait = "08"  # the server has closed its end, the pool does not know
    assert sockets_to(lab.server.port, pid) == [close_wait] * 2
    assert lab.sessions() == 0
    statuses = [lab.login() for _ in range(6)]
    assert statuses[0] == 500
    assert statuses[2:] == [200] * 4


def seen_postgres_down(lab: Lab) -> None:
    assert not lab.server.running()
    with pytest.raises(psycopg2.OperationalError, match="Connection refused"):
        psycopg2.connect(**lab.server.connection())
    assert [lab.login() for _ in range(5)] == [500] * 5
    assert lab.app_pids()


def seen_app_down(lab: Lab) -> None:
    assert lab.app_pids() == []
    assert lab.login() is None
    assert lab.pid_file.exists()
    assert lab.server.running()


SEEN = {name.removeprefix("seen_"): seen for name, seen in globals().items() if name.startswith("seen_")}


@pytest.mark.parametrize("name", SEEN)
def test_fault_is_made_and_healed(healthy_lab: Lab, name: str) -> None:
    names = (healthy_lab.app_port, healthy_lab.server.port, healthy_lab.inventory.read_bytes())
    made = run_lab("break", name, "--directory", healthy_lab.home)
    assert made.returncode == 0, made.stderr
    assert len(made.stdout) > 20
    SEEN[name](healthy_lab)
    healed = run_lab("heal", "--directory", healthy_lab.home)
    assert healed.returncode == 0, healed.stderr
    assert set(healthy_lab.logins(8)) == {200}
    assert names == (healthy_lab.app_port, healthy_lab.server.port, healthy_lab.inventory.read_bytes())


def test_one_fault_at_a_time(healthy_lab: Lab) -> None:
    healthy_lab.break_("app_down")
    again = run_lab("break", "slot_leak", "--directory", healthy_lab.home)
    assert again.returncode == 1
    assert "heal" in again.stderr


# -- the command -----------------------------------------------------------------------------------------


def test_up_while_up_says_so(lab: Lab) -> None:
    again = run_lab("up", "--directory", lab.home)
    assert again.returncode == 1
    assert f"up already in {lab.directory}" in again.stderr
    assert lab.login() == 200


def test_status_does_not_log_in(lab: Lab) -> None:
    before = lab.log.read_bytes()
    status = run_lab("status", "--directory", lab.home)
    assert f"pid {lab.app_pids()[0]}" in status.stdout
    assert f"pid {lab.server.postmaster_pid}" in status.stdout
    assert lab.log.read_bytes() == before


@pytest.mark.parametrize("words", [["break"], ["up", "slot_leak"], ["sink"], []])
def test_wrong_usage(words: list[str]) -> None:
    assert run_lab(*words).returncode == 2


def test_unknown_fault_names_those_there_are(lab: Lab) -> None:
    unknown = run_lab("break", "earthquake", "--directory", lab.home)
    assert unknown.returncode == 1
    assert all(name in unknown.stderr for name in FAULTS)


def test_without_a_lab(tmp_path: Path) -> None:
    for words in (["status"], ["heal"], ["break", "healthy"]):
        missing = run_lab(*words, "--directory", tmp_path / "none")
        assert missing.returncode == 1
        assert "no lab is up" in missing.stderr
    assert run_lab("down", "--directory", tmp_path / "none").returncode == 0


def test_down_when_half_of_it_is_dead(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "home")
    lab.up()
    pids = [*lab.app_pids(), lab.server.postmaster_pid]
    os.kill(lab.server.postmaster_pid, signal.SIGKILL)
    lab.pid_file.unlink()
    (lab.app / "odras.sh").unlink()
    assert "removed" in lab.down()
    assert not any(map(alive, pids))
    assert segments(pids[-1]) == 0
    assert not lab.directory.exists()
    assert not lab.home.exists()
    assert lab.down() == "nothing is up"


@pytest.mark.parametrize(
    "moment", ["postgresql/instance.json", "postgresql/data/postmaster.pid", "app/odras.pid"]
)
def test_up_interrupted_leaves_nothing(tmp_path: Path, moment: str) -> None:
    """Caught while initdb runs, while it fills the data directory, and while the application starts."""
    home = tmp_path / "home"
    command = [sys.executable, str(COMMAND), "up", "--directory", str(home)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as starting:
        state = home / "state.json"
        until(lambda: state.exists() and state.read_text().endswith("}\n"), "the state is written")
        directory = Path(json.loads(state.read_text())["directory"])
        until((directory / moment).exists, moment)
        starting.send_signal(signal.SIGINT)
        said = starting.communicate(timeout=60)[1]
    assert starting.returncode == 130, said
    assert "Traceback" not in said
    assert not directory.exists()
    assert not home.exists()
    assert account().processes_in(directory) == {}

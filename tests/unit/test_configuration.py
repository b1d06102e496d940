"""The pure parts of a rollout: the file's text, what differs, what is too long, what fits, and what is said."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook.act import configuration
from runbook.act.configuration import idle_problems, parse, pool_differences, render
from runbook.act.service import Failed, Lock, Refused
from runbook.pool.settings import read_environment_file
from runbook.report.rollout import end, over_budget, planned, results, seconds_left

ONE_LINE = st.text(st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029", min_codepoint=32))
STATUS: dict[str, Any] = {
    "host": "db1",
    "port": 5432,
    "database": "app",
    "user": "app",
    "config": {"max_connections": 20, "connection_timeout": 30.0, "keepalives_idle": 30},
    "overrides": [],
}
VALUES = {
    "APP_PORT": "8000",
    "POSTGRES_HOST": "db1",
    "POSTGRES_PORT": "5432",
    "POSTGRES_PASSWORD": "secret",
    "POSTGRES_POOL_MAX_CONNECTIONS": "20",
    "POSTGRES_POOL_CONNECTION_TIMEOUT": "30",
    "POSTGRES_POOL_CONNECTION_LIFETIME": "1800",
    "POSTGRES_KEEPALIVES_IDLE": "30",
}
PLAN: dict[str, Any] = {
    "host": "app1",
    "act": True,
    "write": [],
    "restart": [],
    "start": False,
    "changes": {},
    "interrupted": None,
    "server": "db1:5432",
    "connections": 40,
    "slots": 95,
    "limits": [],
    "others": 3,
}


@settings(deadline=None)
@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z_0-9]{0,20}", fullmatch=True), ONE_LINE, max_size=5))
def test_a_file_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]
) -> None:
    """To the evidence, and to the app's own reader, which has systemd's rules."""
    text = render(values)
    assert parse([text]) == values
    file = tmp_path_factory.mktemp("written") / "app.env"
    file.write_text(text, encoding="utf-8")
    told = {name: value for name, value in values.items() if not any(c in value for c in "\\`$")}
    assert told.items() <= read_environment_file(str(file)).items()


@pytest.mark.parametrize("values", [{"NAME": "two\nlines"}, {"NAME": "\x00"}, {"A NAME": "x"}, {"1": "x"}])
def test_what_one_line_cannot_hold_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(Refused, match="one line"):
        render(values)


def test_a_pool_with_the_values_does_not_differ() -> None:
    assert pool_differences(STATUS, VALUES) == []


def test_a_pool_with_other_values_is_told_by_the_names_of_the_variables() -> None:
    wanted = {**VALUES, "POSTGRES_HOST": "db2", "POSTGRES_POOL_MAX_CONNECTIONS": "25"}
    assert pool_differences(STATUS, wanted) == [
        ("POSTGRES_HOST", "db1"),
        ("POSTGRES_POOL_MAX_CONNECTIONS", "20"),
    ]


def test_what_a_process_takes_back_by_itself_does_not_differ() -> None:
    override = {"name": "max_connections", "value": "30", "was": "20", "reverts_in": 60}
    changed = {**STATUS, "config": {**STATUS["config"], "max_connections": 30}, "overrides": [override]}
    assert pool_differences(changed, VALUES) == []


@pytest.mark.parametrize(
    ("lifetime", "idle", "cut", "server", "named"),
    [
        ("1800", "30", 0, 0, []),
        ("300", "30", 350, 0, []),
        ("350", "30", 350, 0, ["postgres_pool_connection_lifetime is 350"]),
        ("0", "30", 350, 0, ["postgres_pool_connection_lifetime is 0"]),
        ("300", "350", 350, 0, ["postgres_keepalives_idle is 350"]),
        ("1800", "30", 0, 600, ["idle_session_timeout"]),
        ("0", "400", 350, 600, ["rollout_idle_cut_seconds", "idle_session_timeout", "keepalives_idle"]),
    ],
)
def test_what_outlives_a_known_cut_is_told(
    lifetime: str, idle: str, cut: float, server: float, named: list[str]
) -> None:
    values = {**VALUES, "POSTGRES_POOL_CONNECTION_LIFETIME": lifetime, "POSTGRES_KEEPALIVES_IDLE": idle}
    problems = idle_problems(values, cut, server)
    assert len(problems) == len(named)
    assert all(word in problem for word, problem in zip(named, problems))


@pytest.mark.parametrize(
    ("others", "slots", "fits"), [(3, None, False), (15, None, False), (0, 140, True), (39, 140, False)]
)
def test_pools_must_fit_what_others_leave(others: int, slots: int | None, fits: bool) -> None:
    plans = {name: {**PLAN, "host": name, "connections": 51, "others": others} for name in ("a", "b")}
    problems = over_budget(plans, {"db1:5432": slots} if slots else {})
    assert (problems == []) is fits
    assert fits or f"{(slots or 95) - others} for them" in problems[0]


def test_each_server_has_a_budget_of_its_own() -> None:
    plans = {
        "a": {**PLAN, "connections": 90, "server": "db1:5432"},
        "b": {**PLAN, "connections": 93, "server": "db2:5432"},
    }
    assert [problem.partition(" has ")[0].split()[-1] for problem in over_budget(plans, {})] == ["db2:5432"]


@pytest.mark.parametrize(
    ("slots", "limits", "wrong"),
    [
        ({}, [], ["db1:5432", "db2:5432"]),
        ({"db1:5432": 200}, [], ["db2:5432"]),
        ({"db1:5432": 200, "db2:5432": 200}, [], []),
        ({"db1:5432": 200, "db2:5432": 200}, [["by the role's limit", 99, 0]], ["db2:5432"]),
        ({"db1:5432": 200, "db2:5432": 200}, [["by the role's limit", 100, 0]], []),
        ({"db1:5432": 200, "db2:5432": 200}, [["by the database's limit", 101, 2]], ["db2:5432"]),
    ],
    ids=[
        "as they are",
        "one restarts",
        "both restart",
        "role's limit",
        "others are not the role",
        "database's limit",
    ],
)
def test_more_slots_are_only_where_the_run_restarts(
    slots: dict[str, int], limits: list[list[Any]], wrong: list[str]
) -> None:
    plans = {
        "a": {**PLAN, "connections": 100},
        "b": {**PLAN, "connections": 100, "server": "db2:5432", "others": 40, "limits": limits},
    }
    problems = over_budget(plans, slots)
    assert [problem.partition(" has ")[0].split()[-1] for problem in problems] == wrong


def test_a_plan_says_why() -> None:
    assert planned(PLAN) == ["nothing to do: file and processes have the values"]
    assert planned({**PLAN, "write": ["A is 1, wanted 2"]}) == [
        "write: A is 1, wanted 2",
        "no restart: every process has the values",
    ]
    assert planned({**PLAN, "restart": ["A is 1 in pid 7, wanted 2"]}) == [
        "restart: A is 1 in pid 7, wanted 2"
    ]
    told = {"who": "ops@bastion", "run_id": "r1", "since": "…", "step": "gate"}
    assert planned({**PLAN, "interrupted": told})[0] == (
        "finish: rollout r1 by ops@bastion was interrupted here (at gate)"
    )


def test_the_time_left_is_by_what_hosts_took() -> None:
    assert seconds_left(10, 0, 4) == 0
    assert seconds_left(10, 1, 4) == 30
    assert seconds_left(20, 4, 4) == 0


def test_the_end_says_what_became_of_every_host() -> None:
    plans = {name: {**PLAN, "host": name} for name in ("a", "b", "c")} | {
        "d": {**PLAN, "host": "d", "act": False}
    }
    done = {
        "a": {"result": "undone", "why": "the login fails", "healthy": True, "seconds": 9.0},
        "b": {"result": "undone", "why": "and worse", "healthy": False, "seconds": 9.0},
    }
    lines = "\n".join(end(results(plans, done), "the login fails"))
    assert "STOPPED   the login fails" in lines
    assert "a   has its former values back, proven, and is in traffic: the login fails" in lines
    assert "b   is NOT HEALTHY and out of traffic: and worse" in lines
    assert "c   untouched" in lines
    assert "d   had them already" in lines


def test_the_end_says_whom_the_balancer_was_not_told_to_take_back() -> None:
    plans = {name: {**PLAN, "host": name} for name in ("a", "b", "c", "d")}
    done = {
        "a": {"result": "done", "healthy": True},
        "b": {"result": "undone", "healthy": True},
        "c": {"result": "done", "healthy": True},
    }
    lines = end(results(plans, done, {"a", "b", "d"}), "the balancer does not answer")
    out = ", but may be OUT OF THE BALANCER: the next run brings it back"
    assert f"  a   has the new values, proven{out}" in lines
    assert f"  b   has its former values back, proven{out}" in lines
    assert "  c   has the new values, proven" in lines
    assert f"  d   untouched{out}" in lines


POOL: dict[str, Any] = {
    **STATUS,
    "pid": 7,
    "count": {"used": 1, "idle": 2},
    "monitor": {"alive": True},
    "config": {**STATUS["config"], "min_connections": 3, "connection_lifetime": 1800},
}


@pytest.mark.parametrize(
    ("changed", "ready", "login", "words"),
    [
        ({}, "", {"ok": True}, ""),
        (
            {"config": {**POOL["config"], "max_connections": 19}},
            "",
            {"ok": True},
            "POSTGRES_POOL_MAX_CONNECTIONS 19",
        ),
        ({"count": {"used": 1, "idle": 1}}, "", {"ok": True}, "has 1 of at least 3"),
        ({"monitor": {"alive": False}}, "", {"ok": True}, "the pool of pid 7"),
        ({}, "no schema", {"ok": True}, "no schema"),
        ({}, "", {"ok": False, "by_status": {"500": 3}, "detail": "Oops"}, "the login fails: Oops"),
        (None, "", {"ok": True}, "0 of 1 processes tell their pool"),
    ],
    ids=["well", "another value", "a thin pool", "a dead monitor", "not ready", "no login", "no socket"],
)
def test_the_gate(
    monkeypatch: pytest.MonkeyPatch, changed: Any, ready: str, login: dict[str, Any], words: str
) -> None:
    """What has to hold before a host goes back into traffic; the process itself is asked by other tests."""
    pools = [] if changed is None else [{"pid": 7, "status": {**POOL, **changed}, "error": None}]
    seen = configuration.Seen({}, 7, VALUES, pools, None, {})
    monkeypatch.setattr(configuration, "_look", lambda _: seen)
    monkeypatch.setattr(configuration, "_ready", lambda _: ready)
    monkeypatch.setattr(configuration, "prove", lambda _: login)
    request = {
        **{"ready_url": "", "ready_timeout": 0, "status_sockets": True, "secrets": {}, "newer": []},
        **{"variables": VALUES, "log": "/nowhere"},
    }
    if words:
        with pytest.raises(Failed, match=words):
            configuration._gate(request, VALUES, 7)
    else:
        configuration._gate(request, VALUES, 7)


class Host:
    """A host without systemd: its files are real, its process has what it was started with."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.state = directory, directory / "state"
        self.environ = dict(VALUES)
        self.ready, self.starts = "", 0
        self.request: dict[str, Any] = {
            "operation": "apply",
            "service": "app.service",
            "environment_file": str(directory / "app.env"),
            "private_file": str(directory / "secrets.env"),
            "variables": {name: value for name, value in VALUES.items() if name != "POSTGRES_PASSWORD"},
            "secrets": {"POSTGRES_PASSWORD": VALUES["POSTGRES_PASSWORD"]},
            "newer": [],
            "workers": 1,
            "status_sockets": False,
            "status_directories": [],
            "check_command": [],
            "drain_file": str(directory / "out-of-traffic"),
            "drain_seconds": 0,
            "drain_timeout": 0,
            "ready_url": "http://127.0.0.1:1/readyz",
            "ready_timeout": 0,
            "repair": True,
            "into_traffic": True,
            "log": str(directory / "app.log"),
            "who": "ops@bastion",
            "run_id": "r2",
        }
        for path, values in configuration._files(self.request):
            Path(path).write_text(render(values))
            Path(path).chmod(0o640)
        changes: dict[str, Any] = {
            "_unit": lambda _: {"LoadState": "not-found"},
            "_look": self.look,
            "_owner": lambda _: (0o640, os.getgid()),
            "_restart": self.restart,
            "_ready": lambda _: self.ready,
            "prove": lambda _: {"ok": True},
        }
        for name, value in changes.items():
            monkeypatch.setattr(configuration, name, value)
        monkeypatch.setattr(configuration.process, "state_directory", lambda _: self.state)

    def look(self, request: dict[str, Any]) -> configuration.Seen:
        texts = {path: configuration._read(path) for path, _ in configuration._files(request)}
        journal, mark = (
            json.loads(configuration._read(of(request)) or "null")
            for of in (configuration._journal, configuration._mark)
        )
        return configuration.Seen({}, os.getpid(), self.environ, [], journal, texts, mark)

    def restart(self, request: dict[str, Any]) -> int:
        self.starts += 1
        self.environ = parse(configuration._read(path) for path, _ in configuration._files(request))
        return os.getpid()

    def want(self, **changes: str) -> None:
        self.request["variables"] = {**self.request["variables"], **changes}

    def left(self) -> set[str]:
        return {path.name for path in self.directory.iterdir()} - {"app.env", "secrets.env", "state"}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_new_values_are_written_and_loaded_and_nothing_is_left(host: Host) -> None:
    host.want(APP_PORT="8001")
    told = configuration.apply(host.request)
    assert (told["result"], told["healthy"], host.environ["APP_PORT"]) == ("done", True, "8001")
    assert not host.left()


@pytest.mark.parametrize(
    "trouble", [OSError(28, "No space left on device"), ValueError("x"), http.client.IncompleteRead(b"")]
)
def test_whatever_breaks_on_the_way_is_undone(
    host: Host, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    write, troubles = configuration._write_all, [trouble]

    def breaks_once(request: dict[str, Any], texts: dict[str, str | None]) -> None:
        if troubles:
            raise troubles.pop()
        write(request, texts)

    monkeypatch.setattr(configuration, "_write_all", breaks_once)
    host.want(APP_PORT="8001")
    told = configuration.apply(host.request)
    assert (told["result"], told["healthy"], told["why"]) == ("undone", True, str(trouble))
    assert parse([(host.directory / "app.env").read_text()])["APP_PORT"] == "8000"
    assert not host.left()


def test_a_drain_file_that_has_no_directory_leaves_the_host_as_it_was(host: Host) -> None:
    host.request["drain_file"] = str(host.directory / "nowhere" / "out-of-traffic")
    host.want(APP_PORT="8001")
    told = configuration.apply(host.request)
    assert (told["result"], told["healthy"], host.starts) == ("undone", True, 0)
    assert not host.left()


def test_a_host_whose_journal_cannot_be_written_is_untouched(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(configuration, "_step", full)
    host.want(APP_PORT="8001")
    told = configuration.apply(host.request)
    assert (told["result"], told["healthy"], host.starts) == ("refused", True, 0)
    assert "No space left" in told["why"]
    assert not host.left()


def test_half_an_answer_is_no_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    """The body of a 503 is cut off: it is said as what it is, and not raised."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\n{")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        thread = threading.Thread(target=answer)
        thread.start()
        assert "answers 503" in configuration._ready(f"http://127.0.0.1:{server.getsockname()[1]}/readyz")
        thread.join()


def test_a_host_that_nobody_brought_back_is_in_the_plan(host: Host) -> None:
    assert not configuration.plan(host.request)["act"]
    configuration.mark({**host.request, "operation": "out", "run_id": "r1"})
    told = configuration.plan(host.request)
    assert (told["act"], told["problems"]) == (True, [])
    assert planned({**PLAN, **told}) == [
        "finish: rollout r1 by ops@bastion was interrupted here (at the balancer)"
    ]
    assert configuration.apply(host.request)["result"] == "unchanged"
    configuration.mark({**host.request, "operation": "back"})
    assert not configuration.plan(host.request)["act"]
    assert not host.left()


def test_who_cannot_bring_a_host_back_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "_refused_by_the_server", lambda *_: [])
    look = host.look
    monkeypatch.setattr(
        configuration, "_look", lambda request: look(request)._replace(unit={"LoadState": "loaded"})
    )
    configuration.mark({**host.request, "operation": "out", "run_id": "r1"})
    (words,) = configuration.plan({**host.request, "into_traffic": False})["problems"]
    assert f"give rollout_into_traffic, or remove {host.directory}/app.env.balancer when it is back" in words


def test_a_plan_waits_for_whoever_works_on_the_host(host: Host) -> None:
    """After a controller that was killed the module goes on, and its journal may not be there yet."""
    with Lock(host.state, "ops@bastion", "r1"):
        told = configuration.plan(host.request)
    assert told["act"]
    assert planned({**PLAN, **told}) == ["wait: run r1 by ops@bastion is acting here"]


def test_the_patience_is_that_of_a_change_which_fails(host: Host) -> None:
    """With no time for the app to get ready, a restart and its undoing still take theirs."""
    held = Lock(host.state, "ops@bastion", "r1")
    held.__enter__()
    ended = threading.Timer(0.5, held.__exit__)
    ended.start()
    assert configuration.apply(host.request)["result"] == "unchanged"
    ended.join()


def test_a_variable_that_systemd_sets_too_can_be_removed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.want(LANG="de_DE.UTF-8")
    assert configuration.apply(host.request)["result"] == "done"
    del host.request["variables"]["LANG"]

    def restart(request: dict[str, Any]) -> int:
        pid = host.restart(request)
        host.environ = {"LANG": "C.UTF-8", **host.environ}
        return pid

    monkeypatch.setattr(configuration, "_restart", restart)
    assert "LANG" in configuration.plan(host.request)["changes"]
    told = configuration.apply(host.request)
    assert (told["result"], host.environ["LANG"]) == ("done", "C.UTF-8"), told["why"]
    assert not configuration.plan(host.request)["act"]


def test_a_file_deep_in_the_source_is_newer_than_the_process(host: Host) -> None:
    deep = host.directory / "src" / "backend"
    deep.mkdir(parents=True)
    (deep / "main.py").touch()
    host.request["newer"] = [str(host.directory / "src")]
    long_ago = time.time() - 100 * 365 * 86400
    for path in (deep / "main.py", deep, deep.parent):
        os.utime(path, (long_ago, long_ago))
    assert not configuration.plan(host.request)["act"]
    future = time.time() + 3600
    os.utime(deep / "main.py", (future, future))
    assert configuration.plan(host.request)["restart"] == [f"{deep.parent} is newer than pid {os.getpid()}"]


def test_half_a_file_that_may_hold_a_secret_does_not_stay(host: Host) -> None:
    half = host.directory / ".secrets.env.ab_c1234"
    half.write_text("POSTGRES_PASSWORD=")
    assert configuration.plan(host.request)["act"]
    assert configuration.apply(host.request)["result"] == "done"
    assert not host.left()
    assert not configuration.plan(host.request)["act"]


def test_what_somebody_edited_on_disk_is_in_the_record_from_and_to(host: Host) -> None:
    file = host.directory / "app.env"
    file.write_text(file.read_text().replace("8000", "9000"))
    assert configuration.plan(host.request)["changes"] == {"APP_PORT": ["9000", "8000"]}


@pytest.mark.parametrize(
    ("open_now", "timeout", "looks"), [([2, 1, 0], 60, 3), ([1], 0, 1)], ids=["they end", "one does not"]
)
def test_what_is_under_way_ends_first_but_not_for_ever(
    host: Host, monkeypatch: pytest.MonkeyPatch, open_now: list[int], timeout: float, looks: int
) -> None:
    asked: list[int] = []

    def connections(port: int) -> int:
        asked.append(port)
        return open_now[len(asked) - 1]

    monkeypatch.setattr(configuration, "_connections", connections)
    monkeypatch.setattr(configuration, "_POLL", 0)
    journal = {"run_id": "r1", "who": "ops@bastion", "since": "now"}
    host.request["drain_timeout"] = timeout
    configuration._drain(host.request, host.look(host.request), journal)
    assert asked == [1] * looks
    assert "out of traffic for rollout r1" in Path(host.request["drain_file"]).read_text()


def test_no_half_of_any_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is killed while it writes, the next run removes what it left; other people's files stay."""
    request = {"environment_file": f"{tmp_path}/app.env", "private_file": f"{tmp_path}/secrets.env"}
    request |= {"drain_file": f"{tmp_path}/out-of-traffic"}
    given: dict[str, Any] = {**request, "variables": {}, "secrets": {}}
    monkeypatch.setattr(Path, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    names = (*request.values(), configuration._journal(given), configuration._mark(given))
    for name in names:
        child = os.fork()
        if child == 0:
            configuration.write_whole(Path(name), "half", 0o600, -1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (tmp_path / ".app.env.swp").touch()
    assert len(list(tmp_path.iterdir())) == len(names) + 1
    configuration._write_all(given, {})
    assert [path.name for path in tmp_path.iterdir()] == [".app.env.swp"]

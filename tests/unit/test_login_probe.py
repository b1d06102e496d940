"""The login probe against a real HTTP server that answers, hangs, resets, heals and lies."""

from __future__ import annotations

import itertools
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Optional

import pytest

from runbook.common.documents import validate
from runbook.evidence import login
from runbook.evidence.login import MOST_ROUNDS, Probe, collect, port_of
from tests.unit.incidents import healthy

SHORT = 0.8  # seconds for one attempt, instead of five: the logic is the same


class Request(NamedTuple):
    """What one login was: the number of the request, its path, body and headers."""

    number: int
    path: str
    body: dict[str, Any]
    headers: dict[str, str]


class Hang(Exception):
    """Raised by an app that never answers."""


class Reset(Exception):
    """Raised by an app that resets the connection."""


class Close(Exception):
    """Raised by an app that hangs up without an answer."""


Answer = tuple[int, str]


class App:
    """A login on a free port. `answer` decides; what it was asked is kept in `logins` and `others`."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        app, self.answer, self.end = self, answer, threading.Event()
        self.logins: list[Request] = []
        self.others: list[Request] = []
        self.connections: set[Any] = set()
        self._count = itertools.count(1)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                app.connections.add(self.client_address)
                raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                request = Request(
                    next(app._count), self.path, json.loads(raw or b"{}"), dict(self.headers.items())
                )
                (app.logins if "logout" not in self.path else app.others).append(request)
                try:
                    status, text = app.answer(request)
                except Hang:
                    app.end.wait(30)
                    return
                except Reset:
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.connection.close()
                    return
                except Close:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                """Silent."""

            def handle(self) -> None:
                try:
                    super().handle()
                except (OSError, ValueError):
                    return

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/api/auth/login"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.end.set()
        self.server.shutdown()
        self._thread.join(5)
        self.server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Request], Answer]], App]]:
    apps: list[App] = []

    def start(answer: Callable[[Request], Answer]) -> App:
        apps.append(App(answer))
        return apps[-1]

    yield start
    for app in apps:
        app.close()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "ATTEMPT_SECONDS", SHORT)


Serve = Callable[[Callable[[Request], Answer]], App]


def always(status: int, text: str = "{}") -> Callable[[Request], Answer]:
    return lambda _: (status, text)


def path_of(app: App) -> Probe:
    return Probe(app.url, None, None)


def full(app: App) -> Probe:
    return Probe(app.url, "das_service", "das_service_2024!")


def look(probe: Probe, attempts: int = 3, dead: int = 0, seconds: float = 30.0) -> dict[str, Any]:
    """The view's data, valid by its schema."""
    data = collect(probe, attempts, dead, time.monotonic() + seconds)
    host = healthy().host
    host["views"]["login"]["data"] = data
    validate(host)
    for one in data["rounds"]:
        assert one["attempts"] == attempts == sum(one["by_status"].values())
        assert one["ok"] == (one["failed"] == 0)
    return data


# -- what an answer means ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 204])
def test_a_real_login_that_is_accepted_works(serve: Serve, status: int) -> None:
    data = look(full(serve(always(status))))
    assert (data["kind"], len(data["rounds"]), data["rounds"][0]["ok"]) == ("full", 1, True)
    assert data["misconfigured"] is None


def test_401_to_an_unknown_user_says_that_the_path_answers(serve: Serve) -> None:
    data = look(path_of(serve(always(401))))
    assert (data["kind"], data["rounds"][0]["ok"], data["misconfigured"]) == ("path", True, None)
    assert data["rounds"][0]["by_status"] == {"401": 3}


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("kind", [path_of, full])
def test_an_error_of_the_app_fails(serve: Serve, kind: Callable[[App], Probe], status: int) -> None:
    data = look(kind(serve(always(status, "Internal   Server\nError" + "x" * 500))))
    assert len(data["rounds"]) >= 2, "a failed round is followed by another"
    last = data["rounds"][-1]
    assert (last["ok"], last["failed"], last["by_status"]) == (False, 3, {str(status): 3})
    assert last["detail"].startswith("Internal Server Error")
    assert len(last["detail"]) <= 200
    assert data["misconfigured"] is None


@pytest.mark.parametrize("status", [301, 302, 307, 404, 405, 415, 422, 429])
@pytest.mark.parametrize("kind", [path_of, full])
def test_what_is_not_the_login_names_the_variable(
    serve: Serve, kind: Callable[[App], Probe], status: int
) -> None:
    app = serve(always(status))
    data = look(kind(app))
    assert data["misconfigured"].startswith("diagnose_login_url: ")
    assert str(status) in data["misconfigured"]
    assert app.url in data["misconfigured"]
    assert len(data["rounds"]) == 1, "there is no use in asking again"


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_name_the_variables_and_not_the_secret(serve: Serve, status: int) -> None:
    data = look(full(serve(always(status))))
    assert "diagnose_login_username" in data["misconfigured"]
    assert "diagnose_login_password" in data["misconfigured"]
    assert "das_service_2024!" not in json.dumps(data)


def test_403_to_an_unknown_user_is_no_login(serve: Serve) -> None:
    assert look(path_of(serve(always(403))))["misconfigured"]


def test_a_404_beside_an_error_of_the_app_is_the_apps(serve: Serve) -> None:
    data = look(path_of(serve(lambda request: (500 if request.number % 3 else 404, ""))))
    assert data["misconfigured"] is None
    assert data["rounds"][-1]["ok"] is False


def test_a_limit_on_logins_that_the_probe_itself_reached_is_no_failing_login(serve: Serve) -> None:
    """The first round fails and heals the pool; the second meets the limiter, which says nothing of the app."""
    data = look(path_of(serve(lambda request: (500 if request.number <= 3 else 429, "slow down"))))
    assert data["misconfigured"] is not None
    assert "429" in data["misconfigured"]


# -- no answer ---------------------------------------------------------------------------------------------


def test_no_answer_is_a_timeout_and_ends_in_time(serve: Serve) -> None:
    def hang(_: Request) -> Answer:
        raise Hang

    began = time.monotonic()
    data = look(path_of(serve(hang)), attempts=8, seconds=SHORT + 0.1)
    assert time.monotonic() - began < SHORT + 2
    assert data["rounds"][-1]["by_status"] == {"timeout": 8}
    assert data["misconfigured"] is None


def test_an_answer_that_never_ends_is_a_timeout() -> None:
    """One byte at a time, each in time: the deadline is for the whole."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        end = threading.Event()

        def drip() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while not end.wait(SHORT / 8):
                    try:
                        client.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        began = time.monotonic()
        data = look(Probe(f"http://127.0.0.1:{listener.getsockname()[1]}/login", None, None), 1, 0, SHORT)
        took = time.monotonic() - began
        end.set()
        thread.join(5)
    assert data["rounds"][-1]["by_status"] == {"timeout": 1}
    assert took < SHORT + 2


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    data = look(Probe(f"http://127.0.0.1:{port}/login", None, None))
    assert [one["by_status"] for one in data["rounds"]] == [{"refused": 3}], "once is enough"


@pytest.mark.parametrize("end", [Reset, Close])
def test_a_connection_that_is_ended_without_an_answer(serve: Serve, end: type[Exception]) -> None:
    def hang_up(_: Request) -> Answer:
        raise end

    assert look(path_of(serve(hang_up)))["rounds"][-1]["by_status"] == {"reset": 3}


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b"\0" * 70_000]
)
def test_something_else_than_http_is_an_error(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def other() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(1 << 16)
                client.sendall(answer)
                client.shutdown(socket.SHUT_WR)
                client.recv(1)

        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        data = look(Probe(f"http://127.0.0.1:{listener.getsockname()[1]}/login", None, None), 1, 0, 0.0)
        thread.join(5)
    assert set(data["rounds"][0]["by_status"]) <= {"error", "reset"}


def test_https_to_a_server_that_does_not_speak_it_is_an_error(serve: Serve) -> None:
    app = serve(always(200))
    data = look(Probe(app.url.replace("http:", "https:"), None, None), seconds=0.0)
    assert data["rounds"][0]["by_status"] == {"error": 3}


def test_a_name_that_does_not_resolve_is_an_error() -> None:
    data = look(Probe("http://no-such-host.invalid:8000/login", None, None), seconds=0.0)
    assert data["rounds"][0]["by_status"] == {"error": 3}


def test_a_path_that_cannot_be_sent_is_no_timeout(serve: Serve) -> None:
    """It never left this machine: the app was not asked, so nothing is known of it."""
    app = serve(always(401))
    data = look(Probe(app.url.replace("login", "anmeldung/über"), None, None), seconds=0.0)
    assert "timeout" not in data["rounds"][0]["by_status"]


def test_the_whole_url_is_asked(serve: Serve) -> None:
    app = serve(always(401))
    look(Probe(f"{app.url}?realm=odras", None, None))
    assert {request.path for request in app.logins} == {"/api/auth/login?realm=odras"}


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://127.0.0.1:8000/api", 8000),
        ("http://odras/api", 80),
        ("https://odras/api", 443),
        ("http://[::1]:8001/", 8001),
    ],
)
def test_the_port_of_a_url(url: str, port: int) -> None:
    assert port_of(url) == port


# -- as several users at once --------------------------------------------------------------------------------


def test_a_round_is_as_many_fresh_connections_at_the_same_time(serve: Serve) -> None:
    together = threading.Barrier(8)

    def all_or_none(_: Request) -> Answer:
        together.wait(SHORT / 2)  # only if all are there does any get an answer
        return 401, ""

    app = serve(all_or_none)
    data = look(path_of(app), attempts=8)
    assert data["rounds"][0]["by_status"] == {"401": 8}
    assert len(app.connections) == 8


def test_one_sick_worker_of_four_is_seen(serve: Serve) -> None:
    data = look(path_of(serve(lambda request: (500 if request.number % 4 == 0 else 401, ""))), attempts=8)
    first = data["rounds"][0]
    assert (first["ok"], first["failed"], first["by_status"]) == (False, 2, {"401": 6, "500": 2})


def test_an_unknown_user_is_sent_and_never_a_known_one(serve: Serve) -> None:
    app = serve(always(401))
    look(path_of(app))
    look(Probe(app.url, "das_service", None))
    assert len(app.logins) == 6
    for request in app.logins:
        assert request.body["username"].startswith("nobody-")
        assert len(request.body["password"]) >= 16
    assert len({request.body["username"] for request in app.logins}) == 2, "another one for each probe"


# -- rounds ------------------------------------------------------------------------------------------------


def test_a_login_that_works_is_asked_once(serve: Serve) -> None:
    app = serve(always(401))
    look(path_of(app), dead=20)
    assert len(app.logins) == 3


def test_a_pool_that_heals_while_it_is_probed_is_seen_to_heal(serve: Serve) -> None:
    data = look(path_of(serve(lambda request: (500 if request.number <= 2 else 401, ""))), dead=2)
    assert [one["ok"] for one in data["rounds"]] == [False, True]


@pytest.mark.parametrize(("attempts", "dead"), [(3, 5), (3, 11), (3, 20), (8, 20), (8, 50)])
def test_still_fails_means_after_more_probes_than_there_were_dead_connections(
    serve: Serve, attempts: int, dead: int
) -> None:
    """A pool that trips over `dead` connections heals with the next request; a restart would be wrong."""
    app = serve(lambda request: (500 if request.number <= dead else 401, ""))
    data = look(path_of(app), attempts, dead)
    assert data["rounds"][-1]["ok"] is True, f"{len(app.logins)} probes for {dead} dead connections"


def test_a_login_that_fails_for_good_is_asked_a_bounded_number_of_times(serve: Serve) -> None:
    app = serve(always(500))
    look(path_of(app), attempts=3, dead=4)
    assert 6 <= len(app.logins) <= 3 * MOST_ROUNDS


def test_no_round_begins_that_could_not_end_before_the_deadline(serve: Serve) -> None:
    app = serve(always(500))
    data = look(path_of(app), dead=20, seconds=SHORT / 2)
    assert len(data["rounds"]) == 1


# -- logging out -------------------------------------------------------------------------------------------


def issue(request: Request) -> Answer:
    """A token for each login, and a logout that takes it."""
    if request.path.endswith("/logout"):
        return 204, ""
    return 200, json.dumps({"access_token": f"token-{request.number}", "token_type": "bearer"})


def test_every_token_is_given_back(serve: Serve) -> None:
    app = serve(issue)
    look(full(app))
    assert [request.path for request in app.others] == ["/api/auth/logout"] * 3
    given = {f"Bearer token-{request.number}" for request in app.logins}
    assert {request.headers["Authorization"] for request in app.others} == given


def test_a_probe_without_credentials_logs_nobody_out(serve: Serve) -> None:
    app = serve(issue)
    look(path_of(app))
    assert app.others == []


@pytest.mark.parametrize("trouble", [Hang, Reset, Close, None])
def test_a_login_is_proven_whatever_the_logout_does(serve: Serve, trouble: Optional[type[Exception]]) -> None:
    def answer(request: Request) -> Answer:
        if request.path.endswith("/logout"):
            if trouble:
                raise trouble
            return 500, ""
        return issue(request)

    data = look(full(serve(answer)), seconds=0.0)
    assert data["rounds"][0]["by_status"] == {"200": 3}
    assert data["rounds"][0]["ok"] is True


def test_a_slow_login_is_proven_though_the_logout_hangs(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two together take longer than one attempt may; the answer to the login was there in time."""
    monkeypatch.setattr(login, "ATTEMPT_SECONDS", 2.0)

    def answer(request: Request) -> Answer:
        if request.path.endswith("/logout"):
            raise Hang
        app.end.wait(1.5)
        return issue(request)

    app = serve(answer)
    assert look(full(app), seconds=0.0)["rounds"][0]["by_status"] == {"200": 3}


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]", "null", '{"token": 3}', '{"access_token": "a\\nb: c"}']
)
def test_an_answer_without_a_token_is_a_login_all_the_same(serve: Serve, text: str) -> None:
    data = look(full(serve(always(200, text))), seconds=0.0)
    assert data["rounds"][0]["by_status"] == {"200": 3}


def test_a_login_by_another_name_is_not_logged_out_at_a_guessed_place(serve: Serve) -> None:
    app = serve(issue)
    look(Probe(app.url.replace("login", "token"), "das_service", "das_service_2024!"))
    assert app.others == []

"""View N against real servers: every way in which a new connection succeeds or fails."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from jsonschema import Draft202012Validator

from runbook.common.documents import schema
from runbook.evidence import new_connection
from tests.lab.account import account, fresh_directory
from tests.lab.postgres import Postgres, free_port

HOST_EVIDENCE = schema("host-evidence")
VIEW = {
    **HOST_EVIDENCE["properties"]["views"]["properties"]["new_connection"]["properties"]["data"],
    "$defs": HOST_EVIDENCE["$defs"],
}
PASSWORD = "pässword-Ⅸ\u00a0x"  # SASLprep makes "pässword-IX x" of it, and so must we
FATAL = {"severity": "FATAL", "kind": "server"}


class Packaged(Postgres):
    """PostgreSQL as a package of the system installed it, for other versions and for a server with TLS."""

    def __init__(self, binaries: Path, directory: Path) -> None:
        self.binaries = binaries
        super().__init__(directory)

    @property
    def _binaries(self) -> Path:
        return self.binaries

    def _copy_binaries(self) -> None:
        """They are where everybody can run them."""


def packaged_versions() -> list[Path]:
    """Directories with the binaries of the versions 15 to 18 that are installed here; there may be none."""
    return [
        path for path in sorted(Path("/usr/lib/postgresql").glob("1[5-8]/bin")) if (path / "initdb").exists()
    ]


def settings_of(server: Postgres, user: str, **changes: Any) -> dict[str, Any]:
    return {"host": server.host, "port": server.port, "name": "postgres", "user": user, **changes}


def collect(settings: dict[str, Any], password: str | None, seconds: float = 5.0) -> dict[str, Any]:
    """The data, checked: it fits the schema, it came in time, and the password is nowhere in it."""
    began = time.monotonic()
    data = new_connection.collect(settings, password, seconds)
    assert time.monotonic() - began < seconds + 1.5
    Draft202012Validator(VIEW).validate(data)
    assert data["ok"] == (data["error"] is None)
    assert data["phase"] in data["seconds_by_phase"]
    if password:
        assert password not in repr(data)
    return data


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def entries(server: Postgres, *lines: str) -> None:
    """Put lines at the head of pg_hba.conf and wait until they are in force."""
    before = server.sql("SELECT pg_conf_load_time()")
    file = server.data / "pg_hba.conf"
    file.write_text("\n".join(lines) + "\n" + file.read_text())
    server.sql("SELECT pg_reload_conf()")
    eventually(lambda: server.sql("SELECT pg_conf_load_time()") != before)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """Eight slots, a role for each way to authenticate, and roles and a database without a place left."""
    me = getpass.getuser()
    server = Postgres(fresh_directory("odras-"))
    try:
        server.start(max_connections=8, superuser_reserved_connections=2, reserved_connections=1)
        for role in ("app", "clear", "trusted", "banned"):
            server.sql(f"CREATE ROLE {role} LOGIN PASSWORD %s", (PASSWORD,))
        server.sql("SET password_encryption = 'md5'; CREATE ROLE digest LOGIN PASSWORD %s", (PASSWORD,))
        server.sql("CREATE ROLE limited LOGIN CONNECTION LIMIT 0 PASSWORD %s", (PASSWORD,))
        server.sql("CREATE ROLE reader LOGIN PASSWORD %s", (PASSWORD,))
        server.sql("ALTER ROLE reader SET default_transaction_read_only = on")
        server.sql(f'CREATE ROLE "{me}" LOGIN')
        server.sql("CREATE DATABASE tiny CONNECTION LIMIT 0")
        entries(
            server,
            "host all trusted 127.0.0.1/32 trust",
            "host all clear 127.0.0.1/32 password",
            "host all digest 127.0.0.1/32 md5",
            "host all banned 127.0.0.1/32 reject",
            f'local all "{me}" peer',
        )
        yield server
    finally:
        server.remove()


# -- logged in ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["app", "clear", "digest"])
def test_every_kind_of_password(server: Postgres, user: str) -> None:
    data = collect(settings_of(server, user), PASSWORD)
    assert data["ok"], data["error"]
    assert (data["kind"], data["phase"]) == ("credentials", "query")
    assert (data["address"], data["addresses"]) == ("127.0.0.1", ["127.0.0.1"])
    assert list(data["seconds_by_phase"]) == ["resolve", "tcp", "startup", "auth", "query"]
    ((started, version),) = server.sql(
        "SELECT to_char(pg_postmaster_start_time() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),"
        " current_setting('server_version_num')::int"
    )
    assert data["server"].pop("backend_pid") > 1
    assert data["server"] == {
        "in_recovery": False,
        "read_only": False,
        "version_num": version,
        "postmaster_start": started,
    }


def test_the_prepared_form_of_a_password_is_the_same_password(server: Postgres) -> None:
    assert collect(settings_of(server, "app"), "pässword-IX x")["ok"]


def test_trust_needs_no_password(server: Postgres) -> None:
    data = collect(settings_of(server, "trusted"), None)
    assert (data["ok"], data["kind"], data["phase"]) == (True, "credentials", "query")


def test_a_unix_socket_and_the_peer_behind_it(server: Postgres) -> None:
    data = collect(settings_of(server, getpass.getuser(), host=str(server.data)), None)
    assert (data["ok"], data["kind"], data["phase"]) == (True, "credentials", "query")
    assert data["address"] == f"{server.data}/.s.PGSQL.{server.port}"
    # sslmode means nothing there, as with libpq
    assert collect(settings_of(server, "app", host=str(server.data), sslmode="verify-full"), PASSWORD)["ok"]


def test_it_is_closed_at_once(server: Postgres) -> None:
    pid = collect(settings_of(server, "app"), PASSWORD)["server"]["backend_pid"]
    eventually(lambda: not server.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)))


def test_what_the_role_may_write_is_seen(server: Postgres) -> None:
    data = collect(settings_of(server, "reader"), PASSWORD)
    assert data["ok"]
    assert data["server"]["read_only"] is True
    assert data["server"]["in_recovery"] is False


# -- refused by the server ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "password", "phase", "text"),
    [
        ({"user": "app"}, "wrong", "auth", "28P01 password authentication failed"),
        ({"user": "clear"}, "wrong", "auth", "28P01 password authentication failed"),
        ({"user": "digest"}, "wrong", "auth", "28P01 password authentication failed"),
        ({"user": "nobody_knows"}, "wrong", "auth", "28P01 password authentication failed"),
        ({"name": "nowhere"}, PASSWORD, "auth", '3D000 database "nowhere" does not exist'),
        ({"user": "banned"}, PASSWORD, "startup", "28000 pg_hba.conf rejects connection"),
        ({"user": "limited"}, PASSWORD, "auth", "53300 too many connections for role"),
        ({"name": "tiny"}, PASSWORD, "auth", "53300 too many connections for database"),
    ],
)
def test_the_servers_own_words(
    server: Postgres, changes: dict[str, Any], password: str, phase: str, text: str
) -> None:
    data = collect({**settings_of(server, "app"), **changes}, password)
    assert data["phase"] == phase
    assert data["error"].items() >= {**FATAL, "sqlstate": text[:5]}.items()
    assert data["error"]["text"].startswith(f"FATAL {text}")
    assert data["error"]["text"].endswith(data["error"]["message"])
    assert data["error"]["routine"]
    assert data["server"] is None


def test_slots_that_are_reserved_and_slots_that_are_gone(server: Postgres) -> None:
    with contextlib.ExitStack() as stack:

        def fill(user: str, most: int) -> str:
            arguments = {**server.connection(), "user": user, "password": PASSWORD}
            for _ in range(most):
                try:
                    held = psycopg2.connect(**(arguments if user == "app" else server.connection(user)))
                except psycopg2.OperationalError as error:
                    return str(error)
                stack.callback(held.close)
            raise AssertionError(f"{most} connections of {user} fit into eight slots")

        fill("app", 9)
        reserved = collect(settings_of(server, "app"), PASSWORD)
        assert reserved["error"]["sqlstate"] == "53300"
        assert reserved["phase"] == "auth"
        assert "remaining connection slots are reserved" in reserved["error"]["message"]

        fill("postgres", 9)
        gone = collect(settings_of(server, "app"), PASSWORD)
        assert gone["error"]["sqlstate"] == "53300"
        assert gone["phase"] == "startup"
        assert gone["error"]["message"] == "sorry, too many clients already"
        assert collect(settings_of(server, "app"), None)["error"] == gone["error"]  # a knock hears it too
    eventually(lambda: bool(collect(settings_of(server, "app"), PASSWORD)["ok"]))


# -- a knock -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["app", "clear", "digest"])
def test_a_knock_hears_that_the_server_asks_for_a_password(server: Postgres, user: str) -> None:
    data = collect(settings_of(server, user), None)
    assert (data["kind"], data["ok"], data["phase"], data["server"]) == ("knock", True, "auth", None)


def test_a_knock_with_the_apps_own_name_can_be_refused(server: Postgres) -> None:
    data = collect(settings_of(server, "banned"), None)
    assert (data["kind"], data["ok"], data["error"]["sqlstate"]) == ("knock", False, "28000")


def test_a_knock_with_a_stand_in_takes_its_refusal_for_an_answer(server: Postgres) -> None:
    entries(server, "host all pool-runbook 127.0.0.1/32 reject")
    data = collect(settings_of(server, ""), None)
    assert (data["kind"], data["ok"], data["phase"], data["user"]) == (
        "knock",
        True,
        "startup",
        "pool-runbook",
    )


# -- no server behind the port, or none that speaks --------------------------------------------------------


def test_refused(server: Postgres) -> None:
    port = free_port()
    data = collect(settings_of(server, "app", port=port), PASSWORD)
    assert (data["error"]["kind"], data["phase"], data["address"]) == ("refused", "tcp", None)
    assert f"127.0.0.1 port {port}" in data["error"]["text"]
    assert (
        collect(settings_of(server, "app", host=str(server.data), port=port), PASSWORD)["error"]["kind"]
        == "refused"
    )
    assert collect(settings_of(server, "app", port=port), None)["kind"] == "knock"


def test_a_name_that_does_not_resolve(server: Postgres) -> None:
    data = collect(settings_of(server, "app", host="nowhere.invalid"), PASSWORD, 3.0)
    assert (data["error"]["kind"], data["phase"], data["addresses"]) == ("unresolved", "resolve", [])


def test_no_answer_to_a_syn(server: Postgres) -> None:
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # once its queue is full, the kernel drops every further SYN
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        data = collect(settings_of(server, "app", port=listener.getsockname()[1]), PASSWORD, 0.6)
    assert (data["error"]["kind"], data["phase"], data["address"]) == ("timeout", "tcp", None)
    assert 0.5 <= data["seconds_by_phase"]["tcp"] < 2


def test_the_first_address_that_accepts_is_taken(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with three addresses, of which the last one has the server. The server listens on 127.0.0.1."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.3", server.port))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        addresses = ["127.0.0.2", "127.0.0.3", "127.0.0.1"]

        def three(_host: str, port: int, **_: Any) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", three)
        data = collect(settings_of(server, "app", host="db.example"), PASSWORD, 2.0)
        assert data["ok"], data["error"]
        assert (data["addresses"], data["address"]) == (addresses, "127.0.0.1")
        # of those that fail, the refusal tells most, and each address has its words
        addresses.pop()
        failed = collect(settings_of(server, "app", host="db.example"), PASSWORD, 1.0)
        assert failed["error"]["kind"] == "refused"
        assert "127.0.0.3" in failed["error"]["text"]
        assert failed["address"] is None


@pytest.mark.parametrize("sslmode", ["disable", "prefer"])
def test_a_stopped_server_is_silent_at_startup(server: Postgres, sslmode: str) -> None:
    os.kill(server.postmaster_pid, signal.SIGSTOP)
    try:
        data = collect(settings_of(server, "app", sslmode=sslmode), PASSWORD, 1.0)
    finally:
        os.kill(server.postmaster_pid, signal.SIGCONT)
    assert (data["error"]["kind"], data["phase"], data["address"]) == ("timeout", "startup", "127.0.0.1")
    assert 0.8 < sum(data["seconds_by_phase"].values()) < 2.5


def test_a_locked_catalog_makes_the_login_hang_and_not_us(server: Postgres) -> None:
    with contextlib.closing(psycopg2.connect(**server.connection())) as holder, holder.cursor() as cursor:
        cursor.execute("LOCK TABLE pg_authid IN ACCESS EXCLUSIVE MODE")
        data = collect(settings_of(server, "app"), PASSWORD, 1.0)
    assert data["error"]["kind"] == "timeout"
    assert data["phase"] in ("startup", "auth")


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port on 127.0.0.1 where ``serve`` gets every connection, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(5)
                        serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def dribble(connection: socket.socket) -> None:
    connection.recv(100)
    for byte in b"N" + b"R\0\0\1\0" + bytes(200):
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def reset(connection: socket.socket) -> None:
    connection.recv(100)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def say(*words: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        for word in words:
            connection.recv(1000)
            connection.sendall(word)

    return answer


def silent_after(*words: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        say(*words)(connection)
        while connection.recv(1000):
            pass

    return answer


@pytest.mark.parametrize(
    ("serve", "kind", "phase"),
    [
        (say(b""), "closed", "startup"),
        (say(b"N", b""), "closed", "startup"),
        (reset, "reset", "startup"),
        (dribble, "timeout", "startup"),
        (silent_after(), "timeout", "startup"),
        (silent_after(b"S"), "timeout", "tls"),
        (say(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "protocol", "startup"),
        (say(b"N", b"SSH-2.0-OpenSSH_9.2\r\n"), "protocol", "startup"),
        (say(b"Ecould not fork new process for connection: Cannot allocate memory\n\0"), "server", "startup"),
        (silent_after(b"N", b"R\0\0\0\x08\0\0\0\0Z\0\0\0\5I"), "timeout", "query"),
        (say(b"N", b"R\0\0\0\x08\0\0\0\0Z\0\0\0\5I", b"C\0\0\0\7OK\0Z\0\0\0\5I"), "protocol", "query"),
    ],
)
def test_others_on_the_port(
    server: Postgres, serve: Callable[[socket.socket], None], kind: str, phase: str
) -> None:
    with listening(serve) as port:
        data = collect(settings_of(server, "app", port=port), PASSWORD, 1.0)
    assert (data["error"]["kind"], data["phase"]) == (kind, phase), data["error"]


# -- a server that comes and goes --------------------------------------------------------------------------


def test_shutting_down_then_a_standby(fresh_postgres: Postgres) -> None:
    server = fresh_postgres
    app, password = settings_of(server, "odras_app", name="odras"), server.passwords["odras_app"]
    pid = server.postmaster_pid
    with contextlib.closing(psycopg2.connect(**server.connection())):
        os.kill(pid, signal.SIGTERM)  # a smart shutdown waits for the session that is open
        data: dict[str, Any] = {}

        def refused() -> bool:
            data.update(collect(app, password))
            return not data["ok"]

        eventually(refused)
        assert data["error"].items() >= {**FATAL, "sqlstate": "57P03"}.items()
        assert data["phase"] == "startup"
    eventually(lambda: not server.running(), 30)
    assert collect(app, password)["error"]["kind"] == "refused"

    (server.data / "standby.signal").touch()
    account().own(server.data / "standby.signal")
    server.start()
    standby = collect(app, password)
    assert standby["ok"], standby["error"]
    assert standby["server"]["in_recovery"] is True
    assert standby["server"]["read_only"] is True


# -- TLS ---------------------------------------------------------------------------------------------------


@dataclass
class Secure:
    """A server with TLS: `guarded` may log in with it only, `plain` without it only, `app` both ways."""

    port: int
    root: Path
    encrypted: Callable[[], int]  # how many sessions were encrypted so far


class Front:
    """Ends TLS before a server that has none: encrypted clients reach it from 127.0.0.2, others from .1."""

    def __init__(self, target: int, certificate: Path, key: Path) -> None:
        self.encrypted = 0
        self._target = target
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(5)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(client)
            first, source = client.recv(8), "127.0.0.1"
            if first == struct.pack("!II", 8, 80877103):
                client.sendall(b"S")
                client = stack.enter_context(self._context.wrap_socket(client, server_side=True))
                first, source = b"", "127.0.0.2"
                self.encrypted += 1
            backend = socket.create_connection(("127.0.0.1", self._target), 5, source_address=(source, 0))
            stack.enter_context(backend)
            backend.sendall(first)
            back = threading.Thread(target=self._pump, args=(backend, client))
            back.start()
            self._pump(client, backend)
            back.join()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(end, socket.SHUT_RDWR)


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for the name ``localhost``, and its key."""
    paths = directory / f"{name}.crt", directory / f"{name}.key"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}"
        f" -addext subjectAltName=DNS:localhost -out {name}.crt -keyout {name}.key".split(),
        cwd=directory,
        check=True,
        capture_output=True,
        timeout=30,
    )
    return paths


@pytest.fixture(
    scope="module", params=["front", *packaged_versions()], ids=lambda p: str(p).split("/")[-2:][0]
)
def secure(request: pytest.FixtureRequest) -> Iterator[Secure]:
    """TLS before the embedded server, which is built without it, and that of an installed server."""
    keys = fresh_directory("odras-tls-")
    root, key = certificate(keys, "server")
    account().own(keys)
    front = request.param == "front"
    directory = fresh_directory("odras-")
    server = Postgres(directory) if front else Packaged(request.param, directory)
    proxy: Front | None = None
    try:
        if front:
            server.start()
            for_tls, for_plain = "host all {} 127.0.0.2/32 {}", "host all {} 127.0.0.1/32 {}"
        else:
            server.start(ssl="on", ssl_cert_file=root, ssl_key_file=key, log_connections="on")
            for_tls, for_plain = "hostssl all {} 127.0.0.1/32 {}", "hostnossl all {} 127.0.0.1/32 {}"
        for role in ("app", "guarded", "plain"):
            server.sql(f"CREATE ROLE {role} LOGIN PASSWORD %s", (PASSWORD,))
        entries(
            server,
            for_tls.format("guarded", "scram-sha-256"),
            for_plain.format("guarded", "reject"),
            for_tls.format("plain", "reject"),
            for_plain.format("plain", "scram-sha-256"),
            "host all all 127.0.0.2/32 scram-sha-256",
        )
        if front:
            proxy = Front(server.port, root, key)
            yield Secure(proxy.port, root, lambda: proxy.encrypted if proxy else 0)
        else:
            yield Secure(server.port, root, lambda: server.log.read_text().count("SSL enabled"))
    finally:
        if proxy:
            proxy.close()
        server.remove()
        shutil.rmtree(keys)


def over(secure: Secure, user: str, sslmode: str, password: str = PASSWORD, **changes: Any) -> dict[str, Any]:
    settings = {
        "host": "127.0.0.1",
        "port": secure.port,
        "name": "postgres",
        "user": user,
        "sslmode": sslmode,
    }
    return collect({**settings, **changes}, password)


@pytest.mark.parametrize("sslmode", ["prefer", "require", "verify-ca"])
def test_tls_is_spoken(secure: Secure, sslmode: str) -> None:
    before = secure.encrypted()
    data = over(secure, "app", sslmode, sslrootcert=str(secure.root))
    assert data["ok"], data["error"]
    assert data["seconds_by_phase"]["tls"] > 0
    assert secure.encrypted() == before + 1


def test_tls_is_not_spoken(secure: Secure) -> None:
    before = secure.encrypted()
    for sslmode in ("disable", "allow"):
        data = over(secure, "app", sslmode)
        assert data["ok"], data["error"]
        assert "tls" not in data["seconds_by_phase"]
    assert secure.encrypted() == before


@pytest.mark.parametrize(
    ("user", "sslmode", "password", "sqlstate"),
    [
        ("guarded", "prefer", PASSWORD, None),
        ("guarded", "allow", PASSWORD, None),  # refused without TLS, tried again with it
        ("guarded", "disable", PASSWORD, "28000"),
        ("plain", "prefer", PASSWORD, None),  # refused with TLS, tried again without it
        ("plain", "require", PASSWORD, "28000"),
        # refused twice, for two reasons: the one of the try that got further is told
        ("guarded", "allow", "wrong", "28P01"),
        ("guarded", "prefer", "wrong", "28P01"),
        ("plain", "prefer", "wrong", "28P01"),
        ("plain", "allow", "wrong", "28P01"),
    ],
)
def test_the_second_attempt(
    secure: Secure, user: str, sslmode: str, password: str, sqlstate: str | None
) -> None:
    data = over(secure, user, sslmode, password)
    assert (data["error"] or {"sqlstate": None})["sqlstate"] == sqlstate


def test_the_certificate_is_verified(secure: Secure, tmp_path: Path) -> None:
    other, _ = certificate(tmp_path, "other")
    stranger = over(secure, "app", "verify-ca", sslrootcert=str(other))
    assert (stranger["error"]["kind"], stranger["phase"]) == ("tls", "tls")
    assert "self" in stranger["error"]["text"]
    # a root certificate that exists counts in every mode; prefer then goes on without TLS, as in libpq
    assert over(secure, "app", "require", sslrootcert=str(other))["error"]["kind"] == "tls"
    fallen_back = over(secure, "app", "prefer", sslrootcert=str(other))
    assert fallen_back["ok"], fallen_back["error"]

    misnamed = over(secure, "app", "verify-full", sslrootcert=str(secure.root))
    assert (misnamed["error"]["kind"], misnamed["phase"]) == ("tls", "tls")
    assert "127.0.0.1" in misnamed["error"]["text"]
    assert over(secure, "app", "verify-full", host="localhost", sslrootcert=str(secure.root))["ok"]

    missing = over(secure, "app", "verify-ca", sslrootcert=str(tmp_path / "none.crt"))
    assert missing["error"]["kind"] == "tls"
    assert "none.crt" in missing["error"]["text"]


@pytest.mark.parametrize("sslmode", ["require", "verify-ca", "verify-full"])
def test_a_server_without_tls(server: Postgres, sslmode: str) -> None:
    data = collect(settings_of(server, "app", sslmode=sslmode), PASSWORD)
    assert (data["error"]["kind"], data["phase"]) == ("tls", "tls")
    assert f"sslmode={sslmode}" in data["error"]["text"]


def test_settings_that_cannot_be_are_named(server: Postgres) -> None:
    with pytest.raises(ValueError, match="sslmode 'on'"):
        new_connection.collect(settings_of(server, "app", sslmode="on"), PASSWORD, 1)

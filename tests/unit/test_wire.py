"""The wire protocol against bytes that no honest server sends. Real servers: tests/integration."""

from __future__ import annotations

import base64
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook.evidence.wire import (
    APPLICATION_NAME,
    Connection,
    PasswordNeeded,
    Target,
    Trace,
    WireError,
    connect,
    parse_error_fields,
    read_messages,
    resolve,
)

SECRET = "hunter2-never-shown"
TARGET = Target("127.0.0.1", 5432, "odras", "odras_app", SECRET)
KINDS = b"RKSZTDCIENAGHWVcdnstv123"
TERMINATED = (
    b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0"
    b"Fpostgres.c\0L3275\0RProcessInterrupts\0\0"
)


def message(kind: bytes, payload: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(payload) + 4) + payload


READY = message(b"Z", b"I")


# -- unread bytes of a socket ------------------------------------------------------------------------------


def test_last_words_are_read_from_the_middle_of_a_stream() -> None:
    stream = message(b"S", b"TimeZone\0UTC\0") + message(b"N", b"SWARNING\0\0") + message(b"E", TERMINATED)
    kinds, payloads = zip(*read_messages(stream))
    assert kinds == (b"S", b"N", b"E")
    assert parse_error_fields(payloads[2]) == {
        "sqlstate": "57P01",
        "severity": "FATAL",
        "message": "terminating connection due to administrator command",
        "routine": "ProcessInterrupts",
    }


@pytest.mark.parametrize("kept", range(30, len(TERMINATED)))
def test_a_cut_message_still_gives_its_code(kept: int) -> None:
    ((kind, payload),) = read_messages(message(b"E", TERMINATED)[: kept + 5])
    assert kind == b"E"
    assert len(payload) == kept
    assert parse_error_fields(payload)["sqlstate"] == "57P01"


def test_encrypted_bytes_are_no_messages() -> None:
    assert list(read_messages(b"\x17\x03\x03\x00\x1a" + bytes(26))) == []
    assert list(read_messages(b"HTTP/1.1 400 Bad Request\r\n\r\n")) == []


def test_the_untranslated_severity_is_preferred_and_the_translated_one_is_better_than_none() -> None:
    assert parse_error_fields(b"SSCHWERWIEGEND\0VFATAL\0\0")["severity"] == "FATAL"
    assert parse_error_fields(b"SFATAL\0C57P03\0\0")["severity"] == "FATAL"


@given(st.binary(max_size=400))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    found = list(read_messages(data))
    assert len(found) <= len(data) // 5
    assert sum(5 + len(payload) for _, payload in found) <= len(data)
    fields = parse_error_fields(data)
    assert set(fields) == {"sqlstate", "severity", "message", "routine"}


@given(st.lists(st.tuples(st.sampled_from(list(KINDS)), st.binary(max_size=40)), max_size=10))
def test_well_formed_messages_come_back_as_they_went(pairs: list[tuple[int, bytes]]) -> None:
    expected = [(bytes([kind]), payload) for kind, payload in pairs]
    assert list(read_messages(b"".join(message(*pair) for pair in expected))) == expected


def test_error_fields_are_bounded() -> None:
    fields = parse_error_fields(b"M" + b"x" * 100_000 + b"\0C" + b"5" * 100_000 + b"\0" * 100_000)
    assert len(fields["message"] or "") == 1000
    assert fields["sqlstate"] is None


# -- a connection to somebody hostile ----------------------------------------------------------------------


def talk(answer: bytes, action: Callable[[Connection], object], seconds: float = 5.0) -> object:
    """Run an action on a connection whose peer has said ``answer`` and hung up."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        return action(Connection(ours, time.monotonic() + seconds, Trace()))


def log_in(connection: Connection) -> Connection:
    connection.log_in(TARGET)
    return connection


def ask(connection: Connection) -> object:
    return connection.query("SELECT 1")


hostile = st.one_of(
    st.binary(max_size=300),
    st.lists(
        st.tuples(st.sampled_from(list(KINDS)), st.binary(max_size=60)).map(
            lambda pair: message(bytes([pair[0]]), pair[1])
        ),
        max_size=8,
    ).map(b"".join),
    # requests for authentication of every kind, well formed or not
    st.lists(
        st.tuples(st.integers(0, 15), st.binary(max_size=40)).map(
            lambda pair: message(b"R", struct.pack("!I", pair[0]) + pair[1])
        ),
        max_size=4,
    ).map(b"".join),
)


@settings(max_examples=300)
@given(hostile, st.sampled_from([log_in, ask, lambda connection: connection.encrypt(TARGET)]))
def test_any_answer_ends_in_a_result_or_in_the_one_exception(
    answer: bytes, action: Callable[[Connection], object]
) -> None:
    began = time.monotonic()
    try:
        talk(answer, action)
    except WireError as error:
        assert error.kind in {"closed", "server", "protocol", "unsupported", "tls", "reset"}
        assert SECRET not in f"{error}{error!r}{error.as_dict()}"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (message(b"T", b"\0\x02a\0" + bytes(18)), "ends too early"),
        (message(b"T", b"\0\x01a\0" + bytes(18)) + message(b"D", b"\0\x01\0\0\0\x09abc"), "ends too early"),
        (message(b"D", b"\0"), "ends too early"),
        (message(b"G", b"\0"), "in the answer to a query"),
        (b"T" + struct.pack("!I", 1 << 28), "not PostgreSQL"),
    ],
)
def test_an_answer_that_breaks_the_protocol_is_called_so(answer: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words) as caught:
        talk(answer, ask)
    assert (caught.value.kind, caught.value.phase) == ("protocol", "query")


def test_rows_of_the_last_statement_come_with_their_nulls() -> None:
    first = message(b"T", b"\0\x01old\0" + bytes(18)) + message(b"D", b"\0\x01\0\0\0\x01x")
    second = message(b"T", b"\0\x02a\0" + bytes(18) + b"b\0" + bytes(18))
    rows = message(b"D", b"\0\x02\0\0\0\x02\xc3\xa9\xff\xff\xff\xff")
    assert talk(first + second + rows + message(b"C", b"SELECT 1\0") + READY, ask) == [{"a": "é", "b": None}]


def test_the_last_words_of_a_session_survive_the_hangup() -> None:
    with pytest.raises(WireError) as caught:
        talk(message(b"E", TERMINATED), ask)
    assert (caught.value.kind, caught.value.sqlstate) == ("server", "57P01")


def test_bytes_injected_before_the_handshake_are_refused() -> None:
    with pytest.raises(WireError) as caught:
        talk(b"S" + READY, lambda connection: connection.encrypt(TARGET))
    assert caught.value.kind == "protocol"


def test_a_postmaster_that_cannot_fork_is_understood() -> None:
    text = b"Ecould not fork new process for connection: Resource temporarily unavailable\n\0"
    with pytest.raises(WireError) as caught:
        talk(text, log_in)
    assert (caught.value.kind, caught.value.phase, caught.value.sqlstate) == ("server", "startup", None)
    assert (caught.value.fields["message"] or "").startswith("could not fork new process")


# -- SCRAM with a server that does not know the password ---------------------------------------------------


def scram(respond: Callable[[bytes], bytes], last: bytes) -> None:
    """Log in to a server that answers the client's nonce with ``respond(nonce)``, the proof with ``last``."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        theirs.settimeout(5)
        theirs.sendall(message(b"R", struct.pack("!I", 10) + b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"))
        received = b""
        while b",r=" not in received or not received.endswith(nonce_of(received)):
            received += theirs.recv(4096)
        theirs.sendall(message(b"R", struct.pack("!I", 11) + respond(nonce_of(received))) + last + READY)
        theirs.shutdown(socket.SHUT_WR)

    def nonce_of(received: bytes) -> bytes:
        nonce = received.rpartition(b",r=")[2]
        return nonce if len(nonce) == 24 else b"\0"

    thread = threading.Thread(target=serve)
    with ours, theirs:
        thread.start()
        try:
            Connection(ours, time.monotonic() + 5, Trace()).log_in(TARGET)
        finally:
            thread.join()


SALT = base64.b64encode(b"salt")
WELCOME = message(b"R", struct.pack("!I", 0))


@pytest.mark.parametrize(
    ("respond", "last", "words"),
    [
        (lambda nonce: b"r=" + nonce + b"x,s=" + SALT + b",i=4096", WELCOME, "without proving"),
        (
            lambda nonce: b"r=" + nonce + b"x,s=" + SALT + b",i=4096",
            message(b"R", struct.pack("!I", 12) + b"v=" + base64.b64encode(bytes(32))) + WELCOME,
            "does not know the password",
        ),
        (
            lambda nonce: b"r=" + nonce + b"x,s=" + SALT + b",i=4096",
            message(b"R", struct.pack("!I", 12) + b"e=other-error") + WELCOME,
            "does not know the password",
        ),
        (lambda nonce: b"r=" + nonce + b",s=" + SALT + b",i=4096", WELCOME, "somebody else's nonce"),
        (lambda nonce: b"r=other,s=" + SALT + b",i=4096", WELCOME, "somebody else's nonce"),
        (lambda nonce: b"r=" + nonce + b"x,s=" + SALT + b",i=2000000000", WELCOME, "2000000000 iterations"),
        (lambda nonce: b"r=" + nonce + b"x,s=!,i=4096", WELCOME, "cannot be read"),
        (lambda nonce: b"what?", WELCOME, "cannot be read"),
    ],
)
def test_scram_does_not_trust_the_server(respond: Callable[[bytes], bytes], last: bytes, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(WireError, match=words) as caught:
        scram(respond, last)
    assert (caught.value.kind, caught.value.phase) == ("protocol", "auth")
    assert time.monotonic() - began < 2


def test_scram_is_not_skipped_and_not_continued_from_nowhere() -> None:
    with pytest.raises(WireError, match="never began"):
        talk(message(b"R", struct.pack("!I", 12) + b"v=x"), log_in)


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (struct.pack("!I", 7), "GSSAPI"),
        (struct.pack("!I", 9), "SSPI"),
        (struct.pack("!I", 10) + b"OAUTHBEARER\0\0", "OAUTHBEARER"),
        (struct.pack("!I", 99), "number 99"),
    ],
)
def test_authentication_that_is_not_spoken_is_named(request_: bytes, name: str) -> None:
    with pytest.raises(WireError, match=name) as caught:
        talk(message(b"R", request_), log_in)
    assert (caught.value.kind, caught.value.phase) == ("unsupported", "auth")
    assert not isinstance(caught.value, PasswordNeeded)


# -- targets -----------------------------------------------------------------------------------------------


def test_the_password_is_in_no_text() -> None:
    assert SECRET not in repr(TARGET)
    with pytest.raises(ValueError, match="password") as caught:
        Target("h", 5432, "d", "u", SECRET + "\0")
    assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match="password") as caught:
        Target("h", 5432, "d", "u", SECRET + "\ud800")
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(("port", "sslmode"), [(0, "prefer"), (65536, "prefer"), (5432, "on")])
def test_a_target_that_cannot_be_is_refused(port: int, sslmode: str) -> None:
    with pytest.raises(ValueError, match=str(port) if sslmode == "prefer" else sslmode):
        Target("h", port, "d", "u", sslmode=sslmode)


@pytest.mark.parametrize(
    ("host", "kind"),
    [("", "unsupported"), ("a,b", "unsupported"), ("a..b", "unresolved"), ("x" * 70 + ".b", "unresolved")],
)
def test_names_that_cannot_resolve(host: str, kind: str) -> None:
    with pytest.raises(WireError) as caught:
        connect(Target(host, 5432, "d", "u"), time.monotonic() + 5)
    assert (caught.value.kind, caught.value.phase) == (kind, "resolve")
    assert caught.value.trace.addresses == []
    assert set(caught.value.trace.seconds_by_phase) == {"resolve"}
    assert resolve(host, 5432, 5) == []


def test_a_resolver_that_never_answers_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        release.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    began = time.monotonic()
    try:
        with pytest.raises(WireError) as caught:
            connect(Target("slow.example", 5432, "d", "u"), began + 0.3)
    finally:
        release.set()
    assert caught.value.kind == "unresolved"
    assert 0.25 < time.monotonic() - began < 2
    assert caught.value.trace.seconds_by_phase["resolve"] >= 0.25


def test_literal_addresses_resolve_to_themselves() -> None:
    assert resolve("127.0.0.1", 5432, 5) == ["127.0.0.1"]
    assert resolve("::1", 5432, 5) == ["::1"]
    assert resolve("/run/postgresql", 5433, 5) == ["/run/postgresql/.s.PGSQL.5433"]


def test_our_sessions_have_a_name_of_their_own() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(5)
        theirs.sendall(message(b"R", struct.pack("!I", 0)) + READY)
        Connection(ours, time.monotonic() + 5, Trace()).log_in(TARGET)
        assert f"application_name\0{APPLICATION_NAME}\0".encode() in theirs.recv(4096)

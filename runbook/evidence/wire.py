"""A PostgreSQL client over the standard library that says how far a new connection gets, and why not further.

libpq gives no SQLSTATE for a failed connect and words its errors in the language of the server; this one
keeps the phase, the seconds and the server's own fields. It follows libpq where the outcome depends on it:
the order of addresses, sslmode with its second attempt, the files under ~/.postgresql. It speaks the simple
query protocol and nothing more. Every wait ends at one absolute moment of ``time.monotonic()``.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import hashlib
import hmac
import re
import secrets
import socket
import ssl
import stringprep
import struct
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Optional

# Sessions of a diagnosis carry this name, so that whoever counts connections can leave them out.
APPLICATION_NAME = "pool-runbook"
PHASES = ("resolve", "tcp", "tls", "startup", "auth", "query")
SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

Row = dict[str, Optional[str]]

_PROTOCOL_3 = 196608
_SSL_REQUEST = struct.pack("!II", 8, 80877103)
_TERMINATE = b"X\0\0\0\4"
_SERVER_MESSAGES = b"RKSZTDCIENAGHWVcdnstv123"
_LONGEST_MESSAGE = 0x3FFFFFFF  # what a server can build at all
_MOST_BYTES = 64 << 20  # of one answer: more than any query of ours returns
_LONGEST_TEXT = 1000
# A hostile server must not make us compute for longer than about a second; PostgreSQL's default is 4096.
_MOST_ITERATIONS = 1_000_000


class WireError(Exception):
    """A connection or query that failed.

    ``kind``: unresolved, refused, unreachable, timeout, reset, closed, tls, server (the server said so),
    protocol (it is no PostgreSQL, or not the one that knows the password) or unsupported (this client could
    not try). ``phase``: the last one begun. ``fields``: the server's own, see parse_error_fields. ``trace``:
    seconds and addresses. No text of it holds a password.
    """

    def __init__(self, kind: str, phase: str, text: str, fields: Optional[Row] = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.phase = phase
        self.text = text
        self.fields = fields or parse_error_fields(b"")
        self.trace = Trace()

    @property
    def sqlstate(self) -> Optional[str]:
        return self.fields["sqlstate"]

    def as_dict(self) -> dict[str, Optional[str]]:
        """The object ``error`` of the schemas."""
        return {"kind": self.kind, "text": self.text, **self.fields}


class PasswordNeeded(WireError):
    """The server asks for a password and none was given: all that a knock wants to hear."""


class Malformed(ValueError):
    """Bytes that are not what the protocol has at this place."""


@dataclass(frozen=True)
class Target:
    """Where to connect, in libpq's terms. A host that begins with / is the directory of a unix socket.

    Raises ValueError for a port or sslmode that cannot be, and for text that the protocol cannot carry.
    """

    host: str
    port: int
    database: str
    user: str
    password: Optional[str] = field(default=None, repr=False)
    sslmode: str = "prefer"
    sslrootcert: Optional[str] = None
    sslcert: Optional[str] = None
    sslkey: Optional[str] = None

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            words = f"port {self.port}: a TCP port is 1 to 65535; it comes from the app's configuration"
            raise ValueError(words)
        if self.sslmode not in SSLMODES:
            raise ValueError(f"sslmode {self.sslmode!r}: it is one of {', '.join(SSLMODES)}")
        for name in ("host", "database", "user", "password"):
            text = getattr(self, name) or ""
            try:
                usable = b"\0" not in _encoded(text)
            except UnicodeEncodeError:
                usable = False
            if not usable:  # never the value: it may be the password
                raise ValueError(f"{name} has a NUL or half a surrogate pair in it")


class Trace:
    """How far a connection got: the phase begun last, seconds of each, the addresses and who answered."""

    def __init__(self) -> None:
        self.phase = PHASES[0]
        self.seconds_by_phase: dict[str, float] = {}
        self.addresses: list[str] = []
        self.address: Optional[str] = None
        self._since: Optional[float] = None

    def begin(self, phase: str) -> None:
        """Begin a phase; the one before it ends. A phase begun again adds to its seconds."""
        self.end()
        self.phase = phase
        self.seconds_by_phase.setdefault(phase, 0.0)
        self._since = time.monotonic()

    def end(self) -> None:
        """Stop counting: what follows is not the connection's time."""
        if self._since is not None:
            spent = time.monotonic() - self._since
            self.seconds_by_phase[self.phase] = round(self.seconds_by_phase[self.phase] + spent, 6)
            self._since = None


def _encoded(text: str) -> bytes:
    """UTF-8; bytes of an environment variable that were not UTF-8 go out as they came in."""
    return text.encode("utf-8", "surrogateescape")


# -- reading bytes: pure, and safe with any input ------------------------------------------------------------


def read_messages(buffer: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The server's messages in a piece of its stream, as (type, payload), for example ``(b"E", b"SFATAL…")``.

    A message cut off by the end of the buffer comes with as much payload as there is. Bytes that are no
    protocol (TLS, another service) end the reading. Never raises; never more messages than bytes / 5.
    """
    start = 0
    while len(buffer) - start >= 5:
        try:
            kind, length = _header(buffer[start : start + 5])
        except Malformed:
            return
        yield kind, bytes(buffer[start + 5 : start + 1 + length])
        start += 1 + length


def parse_error_fields(payload: bytes) -> Row:
    """An ErrorResponse or NoticeResponse as sqlstate, severity, message, routine; None for what it lacks.

    Severity is the untranslated one (V), else the translated (S). Never raises: a cut or hostile payload
    gives what could be read, at most 1,000 characters of each.
    """
    found: dict[str, str] = {}
    for part in payload.split(b"\0", 64)[:64]:
        if part:
            found.setdefault(
                chr(part[0]), part[1 : 4 * _LONGEST_TEXT].decode("utf-8", "replace")[:_LONGEST_TEXT]
            )
    sqlstate = found.get("C", "")
    return {
        "sqlstate": sqlstate if re.fullmatch(r"[0-9A-Z]{5}", sqlstate) else None,
        "severity": found.get("V") or found.get("S"),
        "message": found.get("M"),
        "routine": found.get("R"),
    }


def _header(head: bytes) -> tuple[bytes, int]:
    """Type and length (its own four bytes included) of a message of the server. Raises Malformed."""
    length: int = struct.unpack_from("!I", head, 1)[0]
    if head[0] not in _SERVER_MESSAGES or not 4 <= length <= _LONGEST_MESSAGE:
        raise Malformed(f"not PostgreSQL's protocol: {head!r}")
    return head[:1], length


def _names(payload: bytes) -> list[str]:
    """The column names of a RowDescription. Raises Malformed."""
    try:
        (count,), at, names = struct.unpack_from("!H", payload), 2, []
        for _ in range(count):
            end = payload.index(b"\0", at)
            names.append(payload[at:end].decode("utf-8", "replace"))
            at = end + 19  # past the NUL, and past 18 bytes on the column's table and type
    except (struct.error, ValueError) as error:
        raise Malformed("a row description that ends too early") from error
    return names


def _values(payload: bytes) -> list[Optional[str]]:
    """The values of a DataRow. Raises Malformed."""
    try:
        (count,), at = struct.unpack_from("!H", payload), 2
        values: list[Optional[str]] = []
        for _ in range(count):
            (size,) = struct.unpack_from("!i", payload, at)
            at += 4
            if size < 0:
                values.append(None)
                continue
            if at + size > len(payload):
                raise Malformed("a row that ends too early")
            # Another database's text may be in another encoding; what is unreadable must not hide the rest.
            values.append(payload[at : at + size].decode("utf-8", "replace"))
            at += size
    except struct.error as error:
        raise Malformed("a row that ends too early") from error
    return values


# -- connecting ----------------------------------------------------------------------------------------------


def connect(target: Target, deadline: float) -> Connection:
    """A connection that is logged in. ``deadline``: moment of ``time.monotonic()`` for all that it ever does.

    The addresses of the name are tried in order until one accepts; the time for TCP is shared between those
    still to try, so that a silent first address leaves some for the second. Raises WireError (with its
    ``trace``) for all that can fail, PasswordNeeded where the server wants a password and there is none.
    """
    trace = Trace()
    try:
        trace.begin("resolve")
        endpoints = _resolve(target, deadline)
        trace.addresses = [endpoint.address for endpoint in endpoints]
        return _connect(target, endpoints, deadline, trace)
    except WireError as error:
        trace.end()
        error.trace = trace
        raise


def resolve(host: str, port: int, seconds: float) -> list[str]:
    """The addresses of a host name in the order in which libpq tries them; [] when it does not resolve."""
    try:
        target = Target(host, port, "", "")
        return [endpoint.address for endpoint in _resolve(target, time.monotonic() + seconds)]
    except WireError:
        return []


class _Endpoint(NamedTuple):
    family: int
    sockaddr: Any
    address: str

    def __str__(self) -> str:
        return self.address if self.family == socket.AF_UNIX else f"{self.address} port {self.sockaddr[1]}"


def _resolve(target: Target, deadline: float) -> list[_Endpoint]:
    host, port = target.host, target.port
    if host.startswith("/"):
        path = f"{host}/.s.PGSQL.{port}"
        return [_Endpoint(socket.AF_UNIX, path, path)]
    if not host or "," in host:
        # To look a list up as a name would end in "does not resolve", which is another finding.
        said = f"several hosts in one setting are not tried: {host!r}" if host else "no host is configured"
        raise WireError("unsupported", "resolve", said)
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:  # UnicodeError: a label too long or empty
            answers.append(error)

    # The resolver has its own idea of patience and cannot be interrupted, only left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if not answers:
        raise WireError("unresolved", "resolve", f"the resolver did not answer for {host!r} in time")
    if isinstance(answers[0], Exception):
        reason = getattr(answers[0], "strerror", None) or answers[0]
        raise WireError("unresolved", "resolve", f"{host!r} does not resolve: {reason}")
    return [_Endpoint(family, sockaddr, sockaddr[0]) for family, _, _, _, sockaddr in answers[0]]


def _connect(target: Target, endpoints: list[_Endpoint], deadline: float, trace: Trace) -> Connection:
    """sslmode as libpq has it: prefer and allow try the other way when the first is not let in."""
    never = target.sslmode == "disable" or endpoints[0].family == socket.AF_UNIX
    if never or target.sslmode not in ("allow", "prefer"):
        return _attempt(target, endpoints, not never, deadline, trace)
    encrypted = target.sslmode == "prefer"
    try:
        return _attempt(target, endpoints, encrypted, deadline, trace)
    except PasswordNeeded:
        raise
    except WireError as error:
        # Another try is for refusals that may depend on encryption; it would only burden a full server.
        no_tls = error.phase == "tls" and error.kind != "timeout"
        if not (no_tls or (error.sqlstate or "").startswith("28")):
            raise
        first = error
    answered = [endpoint for endpoint in endpoints if endpoint.address == trace.address]
    try:
        return _attempt(target, answered, not encrypted, deadline, trace)
    except WireError as second:
        # The one that got further knows more: "wrong password" rather than "no pg_hba.conf entry".
        if PHASES.index(second.phase) > PHASES.index(first.phase):
            raise
        raise first from second


def _attempt(
    target: Target, endpoints: list[_Endpoint], encrypted: bool, deadline: float, trace: Trace
) -> Connection:
    connection = Connection(_open(endpoints, deadline, trace), deadline, trace)
    try:
        if encrypted:
            connection.encrypt(target)
        connection.log_in(target)
    except BaseException:
        connection.close()
        raise
    trace.end()
    return connection


# Of several addresses that all failed, the kind that tells most: a refusal comes from a living host.
_MOST_TELLING = ("refused", "timeout", "reset", "unreachable", "unsupported")


def _open(endpoints: list[_Endpoint], deadline: float, trace: Trace) -> socket.socket:
    trace.begin("tcp")
    failures: list[tuple[str, str]] = []
    for number, endpoint in enumerate(endpoints):
        share = (deadline - time.monotonic()) / (len(endpoints) - number)
        try:
            sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
            try:
                sock.settimeout(max(share, 0.001))
                sock.connect(endpoint.sockaddr)
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            failures.append((_kind(error), f"{endpoint}: {_words(error)}"))
            continue
        trace.address = endpoint.address
        return sock
    kind = min((kind for kind, _ in failures), key=_MOST_TELLING.index)
    raise WireError(kind, "tcp", "; ".join(text for _, text in failures))


_KINDS = {
    "refused": (errno.ECONNREFUSED, errno.ENOENT),  # ENOENT: a unix socket that nobody made
    # EAGAIN: a unix socket whose queue of those who wait to be accepted is full
    "timeout": (errno.ETIMEDOUT, errno.EAGAIN),
    # EPERM: a firewall of this host
    "unreachable": (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EPERM),
    "reset": (errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE),
}


def _kind(error: OSError) -> str:
    if isinstance(error, socket.timeout):
        return "timeout"
    # No right, no descriptor, no free port: it says nothing of the server.
    return next((kind for kind, numbers in _KINDS.items() if error.errno in numbers), "unsupported")


def _words(error: OSError) -> str:
    return "no answer in time" if _kind(error) == "timeout" else error.strerror or str(error)


class Connection:
    """One connection. ``parameters``: what the server said of itself; ``backend_pid``: its process there."""

    def __init__(self, sock: socket.socket, deadline: float, trace: Trace) -> None:
        self.trace = trace
        self.parameters: dict[str, str] = {}
        self.backend_pid: Optional[int] = None
        self._sock = sock
        self._deadline = deadline
        self._buffer = bytearray()

    def query(self, sql: str) -> list[Row]:
        """Run one string of statements; the rows of the last one that returns any, values as text or None.

        Raises WireError; the connection can be used again after an error of the statement (kind ``server``
        with severity ERROR), and not after any other. ValueError for a NUL in ``sql``.
        """
        if "\0" in sql:
            raise ValueError("the statement has a NUL in it")
        self.trace.begin("query")
        try:
            self._send_message(b"Q", sql.encode() + b"\0")
            return self._rows()
        except Malformed as error:
            raise self.failure("protocol", str(error)) from error
        finally:
            self.trace.end()

    def close(self) -> None:
        """Say goodbye and close. Never raises, never waits."""
        with contextlib.suppress(OSError):
            self._sock.settimeout(0)
            self._sock.send(_TERMINATE)
        self._sock.close()

    # -- the phases --------------------------------------------------------------------------------------

    def encrypt(self, target: Target) -> None:
        """Ask for TLS and shake hands. With sslmode allow or prefer, a server's no leaves it unencrypted."""
        # Whether the server answers at all is a matter of its start-up; only the handshake is that of TLS.
        self.trace.begin("startup")
        self._send(_SSL_REQUEST)
        self._fill(1)
        answer = bytes(self._buffer)
        if answer[:1] == b"E":
            raise self._server_error(self._message()[1])
        if answer not in (b"S", b"N"):  # nor bytes after it, that somebody wants read as if encrypted
            raise self.failure("protocol", f"not PostgreSQL: it answers {answer[:60]!r} to a request for TLS")
        self._buffer.clear()
        if answer == b"N" and target.sslmode in ("allow", "prefer"):
            return
        self.trace.begin("tls")
        if answer == b"N":
            raise self.failure("tls", f"the server offers no TLS, and sslmode={target.sslmode} asks for it")
        try:
            context = _tls_context(target)
            self._sock.settimeout(self._remaining())
            self._sock = context.wrap_socket(self._sock, server_hostname=target.host)
        except socket.timeout as error:
            raise self.failure("timeout", "the TLS handshake had no answer in time") from error
        except ConnectionError as error:
            raise self.failure("reset", "the connection was reset in the TLS handshake") from error
        except (OSError, ValueError) as error:  # ValueError: a host that cannot be a name in a certificate
            words = getattr(error, "verify_message", None) or getattr(error, "reason", None) or error
            raise self.failure("tls", f"TLS with sslmode={target.sslmode}: {words}") from error

    def log_in(self, target: Target) -> None:
        """Startup and authentication, until the server is ready for a query."""
        self.trace.begin("startup")
        options = {
            "user": target.user,
            "database": target.database,
            "application_name": APPLICATION_NAME,
            "client_encoding": "UTF8",
        }
        body = b"".join(_encoded(f"{name}\0{value}\0") for name, value in options.items() if value) + b"\0"
        self._send(struct.pack("!II", len(body) + 8, _PROTOCOL_3) + body)
        scram: Optional[_Scram] = None
        try:
            while True:
                kind, payload = self._message()
                if kind == b"R":
                    if self.trace.phase == "startup":
                        self.trace.begin("auth")
                    scram = self._authenticate(target, payload, scram)
                elif kind == b"K":
                    self.backend_pid = struct.unpack_from("!i", payload)[0]
                elif kind == b"Z":
                    return
                elif kind == b"E":
                    raise self._server_error(payload)
                elif kind not in b"NSv":
                    raise Malformed(f"a message {kind!r} in the middle of the login")
        except (Malformed, struct.error) as error:
            raise self.failure("protocol", str(error)) from error

    def _authenticate(self, target: Target, payload: bytes, scram: Optional[_Scram]) -> Optional[_Scram]:
        """One message of authentication; the SCRAM exchange under way, if there is one."""
        (code,), rest = struct.unpack_from("!I", payload), payload[4:]
        if code == 0:
            if scram is not None and not scram.verified:
                raise Malformed("the server let us in without proving that it knows the password")
            return None
        if code in (11, 12):
            if scram is None:
                raise Malformed("the server continues a SCRAM exchange that never began")
            if code == 12:
                scram.verify(rest)
            else:
                self._send_message(b"p", scram.answer(rest))
            return scram
        mechanisms = rest.split(b"\0")
        asked = {3: "password", 5: "md5"}.get(code)
        if code == 10 and b"SCRAM-SHA-256" in mechanisms:
            asked = "scram-sha-256"
        if asked is None:
            other = {2: "Kerberos", 7: "GSSAPI", 9: "SSPI"}.get(code, f"number {code}")
            if code == 10:
                other = b", ".join(mechanisms).decode("ascii", "replace").strip(", ")[:100]
            text = f"the server asks for authentication by {other}, not spoken here"
            raise self.failure("unsupported", text)
        if target.password is None:
            text = f"the server asks for a password ({asked}) and none is known"
            raise PasswordNeeded("unsupported", self.trace.phase, text)
        secret = _encoded(target.password)
        if asked == "scram-sha-256":
            scram = _Scram(target.password)
            first = scram.first()
            self._send_message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!I", len(first)) + first)
            return scram
        if asked == "md5":
            inner = _md5(secret + _encoded(target.user))
            secret = b"md5" + _md5(inner + rest[:4])
        self._send_message(b"p", secret + b"\0")
        return None

    def _rows(self) -> list[Row]:
        names: list[str] = []
        rows: list[Row] = []
        failed: Optional[WireError] = None
        received = 0
        while True:
            kind, payload = self._message()
            received += len(payload)
            if received > _MOST_BYTES:
                raise Malformed(f"an answer of more than {_MOST_BYTES} bytes")
            if kind == b"T":
                names, rows = _names(payload), []
            elif kind == b"D":
                rows.append(dict(zip(names, _values(payload))))
            elif kind == b"E":
                failed = self._server_error(payload)
                if failed.fields["severity"] != "ERROR":
                    raise failed  # FATAL or PANIC: the server hangs up, nothing follows
            elif kind == b"Z":
                if failed is not None:
                    raise failed
                return rows
            elif kind not in b"CINSA":
                raise Malformed(f"a message {kind!r} in the answer to a query")

    # -- the bytes ---------------------------------------------------------------------------------------

    def _message(self) -> tuple[bytes, bytes]:
        self._fill(5)
        try:
            kind, length = _header(bytes(self._buffer[:5]))
            if length > _MOST_BYTES:
                raise Malformed(f"a message of {length} bytes")
        except Malformed:
            if self.trace.phase == "startup" and self._buffer[:1] == b"E":
                raise self._unframed_error() from None
            raise self.failure("protocol", f"not PostgreSQL: it says {bytes(self._buffer[:60])!r}") from None
        self._fill(1 + length)
        payload = bytes(self._buffer[5 : 1 + length])
        del self._buffer[: 1 + length]
        return kind, payload

    def _unframed_error(self) -> WireError:
        """A postmaster that cannot fork says so without a length: E, text, NUL."""
        with contextlib.suppress(WireError):  # it closes right after, and the NUL may never come
            while b"\0" not in self._buffer and len(self._buffer) < _LONGEST_TEXT:
                self._fill(len(self._buffer) + 1)
        text = bytes(self._buffer[1:]).partition(b"\0")[0].decode("utf-8", "replace").strip()[:_LONGEST_TEXT]
        fields: Row = {**parse_error_fields(b""), "message": text}
        return self.failure("server", text, fields)

    def _fill(self, size: int) -> None:
        """Read until ``size`` bytes are in the buffer."""
        while len(self._buffer) < size:
            try:
                self._sock.settimeout(self._remaining())
                chunk = self._sock.recv(65536)
            except socket.timeout as error:
                raise self.failure("timeout", f"no answer in time in phase {self.trace.phase}") from error
            except ssl.SSLError as error:  # TLS 1.3: the server refuses our certificate after the handshake
                raise self.failure("tls", f"TLS: {error.reason or error}") from error
            except OSError as error:
                raise self.failure(_kind(error), f"in phase {self.trace.phase}: {_words(error)}") from error
            if not chunk:
                raise self.failure("closed", f"the server closed the connection in phase {self.trace.phase}")
            self._buffer += chunk

    def _send_message(self, kind: bytes, payload: bytes) -> None:
        self._send(kind + struct.pack("!I", len(payload) + 4) + payload)

    def _send(self, data: bytes) -> None:
        try:
            self._sock.settimeout(self._remaining())
            self._sock.sendall(data)
        except socket.timeout as error:
            raise self.failure("timeout", f"nothing taken in time in phase {self.trace.phase}") from error
        except OSError:
            # A server that ends a session says why before it closes. Those words are worth more than our
            # failed write: the read that follows finds them, or the same error.
            return

    def _remaining(self) -> float:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise self.failure("timeout", f"no answer in time in phase {self.trace.phase}")
        return remaining

    def _server_error(self, payload: bytes) -> WireError:
        fields = parse_error_fields(payload)
        said = (fields["severity"], fields["sqlstate"], fields["message"])
        text = " ".join(part for part in said if part) or "an error without words"
        return self.failure("server", text, fields)

    def failure(self, kind: str, text: str, fields: Optional[Row] = None) -> WireError:
        """An error of this connection, to be raised by the caller."""
        error = WireError(kind, self.trace.phase, text, fields)
        error.trace = self.trace
        return error


# -- TLS and secrets -----------------------------------------------------------------------------------------


def _tls_context(target: Target) -> ssl.SSLContext:
    """As libpq: a root certificate that exists is used in every mode, and the verify modes insist on one.

    Raises OSError (ssl.SSLError is one) for a file that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = target.sslmode == "verify-full"
    root = Path(target.sslrootcert) if target.sslrootcert else _home_file("root.crt")
    if target.sslrootcert == "system":
        context.load_default_certs()
    elif root is not None and root.exists():
        context.load_verify_locations(root)
    elif target.sslmode.startswith("verify"):
        words = f"sslmode={target.sslmode} needs a root certificate; sslrootcert {root} is missing"
        raise FileNotFoundError(words)
    else:
        context.verify_mode = ssl.CERT_NONE
    own = Path(target.sslcert) if target.sslcert else _home_file("postgresql.crt")
    if own is not None and own.exists():
        key = Path(target.sslkey) if target.sslkey else _home_file("postgresql.key")
        context.load_cert_chain(own, key, password="")  # an encrypted key fails, instead of asking a person
    return context


def _home_file(name: str) -> Optional[Path]:
    try:
        return Path.home() / ".postgresql" / name
    except RuntimeError:  # a user without a home
        return None


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).hexdigest().encode()


class _Scram:
    """The client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677) without channel binding. Raises Malformed."""

    def __init__(self, password: str) -> None:
        self._password = _encoded(_saslprep(password))
        self._bare = b"n=,r=" + base64.b64encode(secrets.token_bytes(18))
        self._signature = b""
        self.verified = False

    def first(self) -> bytes:
        return b"n,," + self._bare

    def answer(self, server_first: bytes) -> bytes:
        """The proof, for the server's first message ``r=…,s=…,i=…``."""
        attributes = _attributes(server_first)
        try:
            nonce, salt = attributes[b"r"], base64.b64decode(attributes[b"s"], validate=True)
            iterations = int(attributes[b"i"])
        except (KeyError, ValueError) as error:
            raise Malformed("a SCRAM challenge that cannot be read") from error
        own = self._bare.partition(b"r=")[2]
        if not nonce.startswith(own) or len(nonce) <= len(own):
            raise Malformed("a SCRAM challenge to somebody else's nonce")
        if not 0 < iterations <= _MOST_ITERATIONS:
            most = f"at most {_MOST_ITERATIONS} are computed"
            raise Malformed(f"a SCRAM challenge with {iterations} iterations; {most}")
        salted = hashlib.pbkdf2_hmac("sha256", self._password, salt, iterations)
        client_key = _hmac(salted, b"Client Key")
        final = b"c=biws,r=" + nonce
        message = b",".join((self._bare, server_first, final))
        signature = _hmac(hashlib.sha256(client_key).digest(), message)
        proof = bytes(a ^ b for a, b in zip(client_key, signature))
        self._signature = _hmac(_hmac(salted, b"Server Key"), message)
        return final + b",p=" + base64.b64encode(proof)

    def verify(self, server_final: bytes) -> None:
        """Check the server's own proof ``v=…``: only who knows the password can make it."""
        try:
            shown = base64.b64decode(_attributes(server_final).get(b"v", b""), validate=True)
        except binascii.Error as error:
            raise Malformed("a SCRAM signature that cannot be read") from error
        if not self._signature or not hmac.compare_digest(shown, self._signature):
            raise Malformed("the server does not know the password: this is not the real one")
        self.verified = True


def _attributes(message: bytes) -> Mapping[bytes, bytes]:
    return {part[:1]: part[2:] for part in message.split(b",") if part[1:2] == b"="}


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def _saslprep(password: str) -> str:
    """RFC 4013 as PostgreSQL applies it: a password with a character that it forbids is used as it is.

    Its rule on right-to-left text is left out: such a password is normalised here, which rarely changes it.
    """
    if password.isascii():
        return password
    kept = (" " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c))
    prepared = unicodedata.normalize("NFKC", "".join(kept))
    tables = ["a1", "c12", "c21_c22", "c3", "c4", "c5", "c6", "c7", "c8", "c9"]
    forbidden = any(getattr(stringprep, f"in_table_{table}")(c) for table in tables for c in prepared)
    return password if forbidden or not prepared else prepared

"""The pool's settings: one frozen dataclass, read from the environment, with every problem told at once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

# A Unix socket's path has 107 usable bytes; the longest name in the directory is that of the largest pid.
LONGEST_DIRECTORY = 107 - len("/pool-4194304.sock")

# Variables that belong to us whatever follows, so that a misspelt one is an error and not silence.
_OWN_PREFIXES = ("POSTGRES_POOL_", "POSTGRES_KEEPALIVE", "POSTGRES_TCP_", "POSTGRES_CONNECT")


class SettingsError(ValueError):
    """The settings are refused. `problems`: one sentence per problem, never with a secret in it."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        lines = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(f"the pool's settings are refused (they come from the environment):{lines}")


def _number(variable: str, default: float, low: float, high: float, meaning: str) -> Any:
    metadata = {"variable": variable, "low": low, "high": high, "meaning": meaning}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """What a pool needs to know. Times are seconds, except `tcp_user_timeout` (milliseconds, as in libpq).

    Raises SettingsError, naming each variable, its value and what is allowed.
    """

    host: str = field(metadata={"variable": "POSTGRES_HOST"})
    database: str = field(metadata={"variable": "POSTGRES_DATABASE"})
    user: str = field(metadata={"variable": "POSTGRES_USER"})
    password: str | None = field(default=None, repr=False, metadata={"variable": "POSTGRES_PASSWORD"})
    port: int = _number("POSTGRES_PORT", 5432, 1, 65535, "a port")
    min_connections: int = _number("POSTGRES_POOL_MIN_CONNECTIONS", 2, 0, 1000, "kept open")
    max_connections: int = _number("POSTGRES_POOL_MAX_CONNECTIONS", 20, 1, 1000, "never more than these")
    connection_timeout: float = _number(
        "POSTGRES_POOL_CONNECTION_TIMEOUT", 30.0, 0, 3600, "seconds to wait for a connection"
    )
    max_waiting: int = _number("POSTGRES_POOL_MAX_WAITING", 0, 0, 100_000, "waiters; 0 = no limit")
    connection_lifetime: float = _number(
        "POSTGRES_POOL_CONNECTION_LIFETIME", 1800.0, 0, 604_800, "seconds; 0 = no limit"
    )
    idle_timeout: float = _number("POSTGRES_POOL_IDLE_TIMEOUT", 600.0, 0, 604_800, "seconds; 0 = no limit")
    validate_after_idle: float = _number(
        "POSTGRES_POOL_VALIDATE_AFTER_IDLE", 30.0, 0, 86_400, "seconds; 0 = a round trip at every checkout"
    )
    validation_timeout: float = _number(
        "POSTGRES_POOL_VALIDATION_TIMEOUT", 5.0, 0.1, 60, "seconds for that round trip, or for a rollback"
    )
    monitor_interval: float = _number("POSTGRES_POOL_MONITOR_INTERVAL", 300.0, 0.1, 86_400, "seconds")
    connect_timeout: int = _number(
        "POSTGRES_CONNECT_TIMEOUT", 10, 2, 300, "seconds for one attempt to connect, per address"
    )
    keepalives: int = _number("POSTGRES_KEEPALIVES", 1, 0, 1, "1 = on, 0 = off")
    keepalives_idle: int = _number("POSTGRES_KEEPALIVES_IDLE", 30, 1, 32_767, "seconds")
    keepalives_interval: int = _number("POSTGRES_KEEPALIVES_INTERVAL", 10, 1, 32_767, "seconds")
    keepalives_count: int = _number("POSTGRES_KEEPALIVES_COUNT", 5, 1, 127, "unanswered probes")
    tcp_user_timeout: int = _number(
        "POSTGRES_TCP_USER_TIMEOUT", 30_000, 0, 3_600_000, "milliseconds; 0 = the system's own"
    )
    runtime_directory: str | None = field(
        default=None, metadata={"variable": "POSTGRES_POOL_RUNTIME_DIRECTORY"}
    )

    def __post_init__(self) -> None:
        problems = [problem for f in fields(self) for problem in _range_problem(f, getattr(self, f.name))]
        if self.min_connections > self.max_connections:
            problems.append(
                f"POSTGRES_POOL_MIN_CONNECTIONS is {self.min_connections}: "
                f"allowed is at most POSTGRES_POOL_MAX_CONNECTIONS, which is {self.max_connections}"
            )
        if not self.password and not self.host.startswith("/"):
            problems.append(
                "POSTGRES_PASSWORD is missing or empty: set it, or name a file with it in "
                "POSTGRES_PASSWORD_FILE (only a Unix socket directory as POSTGRES_HOST does without)"
            )
        directory = self.runtime_directory
        if directory is not None and (
            not directory.startswith("/") or len(os.fsencode(directory)) > LONGEST_DIRECTORY
        ):
            problems.append(
                f"POSTGRES_POOL_RUNTIME_DIRECTORY is {directory!r}: allowed is an absolute path of at most "
                f"{LONGEST_DIRECTORY} bytes (a Unix socket's path has no room for more)"
            )
        if problems:
            raise SettingsError(problems)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the `POSTGRES_…` variables; raises SettingsError with all problems.

        `POSTGRES_PASSWORD_FILE` may name a file that holds the password. The runtime directory defaults to
        systemd's `RUNTIME_DIRECTORY` (its first entry); without either there is no status socket.
        """
        problems: list[str] = []
        values: dict[str, Any] = {}
        for f in fields(cls):
            variable, text = f.metadata["variable"], environ.get(f.metadata["variable"])
            if text is None:
                if f.name in ("host", "database", "user"):
                    problems.append(f"{variable} is missing: set it")
                    values[f.name] = "?"
            elif "low" in f.metadata:
                try:
                    values[f.name] = int(text) if f.type == "int" else float(text)
                except ValueError:
                    problems.append(_refusal(f, text))
            else:
                values[f.name] = text
        _read_password_file(environ, values, problems)
        if "runtime_directory" not in values and environ.get("RUNTIME_DIRECTORY"):
            values["runtime_directory"] = environ["RUNTIME_DIRECTORY"].split(":")[0]
        problems += _unknown(environ, {f.metadata["variable"] for f in fields(cls)})
        try:
            settings = cls(**values)
        except SettingsError as error:
            raise SettingsError(problems + error.problems) from None
        if problems:
            raise SettingsError(problems)
        return settings

    def connect_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `psycopg2.connect`, the password among them."""
        names = (
            *("host", "port", "database", "user", "password", "connect_timeout", "tcp_user_timeout"),
            *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
        )
        return {name: getattr(self, name) for name in names}


def _refusal(f: Any, value: object) -> str:
    kind = "an integer" if f.type == "int" else "a number"
    allowed = f"{kind} from {f.metadata['low']} to {f.metadata['high']} ({f.metadata['meaning']})"
    return f"{f.metadata['variable']} is {value!r}: allowed is {allowed}"


def _range_problem(f: Any, value: Any) -> list[str]:
    if "low" in f.metadata:
        # Neither NaN nor a boolean is in a range.
        right = type(value) is int or (f.type == "float" and type(value) is float)
        return [] if right and f.metadata["low"] <= value <= f.metadata["high"] else [_refusal(f, value)]
    if f.name in ("host", "database", "user") and not value.strip():
        return [f"{f.metadata['variable']} is {value!r}: allowed is a name that is not empty"]
    return []


def _read_password_file(environ: Mapping[str, str], values: dict[str, Any], problems: list[str]) -> None:
    path = environ.get("POSTGRES_PASSWORD_FILE")
    if path is None:
        return
    if "password" in values:
        problems.append("POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE are both set: keep one of them")
        return
    try:
        values["password"] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        problems.append(f"POSTGRES_PASSWORD_FILE is {path!r}, which cannot be read: {reason}")
        values["password"] = path  # not told a second time, as a missing password


def _unknown(environ: Mapping[str, str], known: set[str]) -> list[str]:
    """Variables nobody will read: those with a prefix of ours, and those one slip away from one of ours."""
    known = known | {"POSTGRES_PASSWORD_FILE"}
    problems = []
    for variable in sorted(set(environ) - known):
        if not variable.startswith("POSTGRES_"):
            continue
        nearest = difflib.get_close_matches(variable, known, n=1, cutoff=0.6)
        slip = difflib.get_close_matches(variable, known, n=1, cutoff=0.9)
        if slip or variable.startswith(_OWN_PREFIXES):
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            problems.append(f"{variable} is unknown{hint}")
    return problems


def read_environment_file(path: str) -> dict[str, str]:
    """Variables of a file in the syntax of systemd's `EnvironmentFile=`.

    Raises SettingsError for an unreadable file and for lines that are no assignment (by number, as the line
    may hold a secret).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SettingsError([f"{path} cannot be read: {reason}"]) from None
    variables: dict[str, str] = {}
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text[0] in "#;":
            continue
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name.strip()):
            problems.append(f"{path}, line {number}: allowed is NAME=value")
        elif value[:1] in ("'", '"') and (len(value) < 2 or value[-1] != value[0]):
            problems.append(f"{path}, line {number}: the value's quotes are not closed")
        else:
            variables[name.strip()] = _unquote(value.strip())
    if problems:
        raise SettingsError(problems)
    return variables


def _unquote(value: str) -> str:
    if value[:1] == "'":
        return value[1:-1]
    if value[:1] == '"':
        return re.sub(r'\\(["\\`$])', r"\1", value[1:-1])
    return re.sub(r"\\(.)", r"\1", value)

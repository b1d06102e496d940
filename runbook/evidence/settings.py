"""The settings of the app: as they stand on disk, and as the running process has them.

The file on disk decides what a restarted app would do, so a new connection is tried with it; the
process's environment tells what it runs with now.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional
from urllib.parse import parse_qs, unquote, urlsplit

from ..common.clock import rfc3339
from . import proc

_NAMES = {
    "host": ("POSTGRES_HOST", "PGHOST", "DB_HOST", "DATABASE_HOST", "POSTGRES_SERVER"),
    "port": ("POSTGRES_PORT", "PGPORT", "DB_PORT", "DATABASE_PORT"),
    "name": ("POSTGRES_DATABASE", "POSTGRES_DB", "PGDATABASE", "DB_NAME", "DATABASE_NAME"),
    "user": ("POSTGRES_USER", "PGUSER", "DB_USER", "DATABASE_USER"),
    "password": ("POSTGRES_PASSWORD", "PGPASSWORD", "DB_PASSWORD", "DATABASE_PASSWORD", "DB_PASS", "DB_PWD"),
    "sslmode": ("POSTGRES_SSLMODE", "PGSSLMODE", "DB_SSLMODE"),
    "sslrootcert": ("POSTGRES_SSLROOTCERT", "PGSSLROOTCERT", "DB_SSLROOTCERT"),
    "sslcert": ("POSTGRES_SSLCERT", "PGSSLCERT", "DB_SSLCERT"),
    "sslkey": ("POSTGRES_SSLKEY", "PGSSLKEY", "DB_SSLKEY"),
}
_URLS = (
    "DATABASE_URL",
    "POSTGRES_DSN",
    "POSTGRES_URL",
    "SQLALCHEMY_DATABASE_URI",
    "SQLALCHEMY_DATABASE_URL",
    "DB_URL",
)
# Names whose value is a pool's or a connection's setting and never a secret.
_TELLING = re.compile(
    r"^(?:POSTGRES|PG|DB|DATABASE|SQLALCHEMY)_?(?:(?:POOL|KEEPALIVES|TCP|MAX|MIN)\w*|CONNECT\w*TIMEOUT)$"
    r"|^WEB_CONCURRENCY$"
)
# PWD, the directory, is none: masking it would take every path out of the evidence.
_SECRET = re.compile(
    r"passw|passphrase|_pass$|_pwd$|secret|token|key|credential|dsn|url|uri|cookie|salt"
    r"|connection$|conn\w*str",
    re.IGNORECASE,
)
# Whatever its name: a value that can be nothing but a DSN of PostgreSQL.
_DSN = re.compile(r"postgres(?:ql)?(?:\+\w+)?://|(?=.*\bdbname\s*=).*\bhost(?:addr)?\s*=")
# One key=value of libpq's connection string; the value may stand in single quotes.
_OPTION = re.compile(r"\b(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|\S*)")


@dataclass
class Settings:
    """What was found. ``database`` is host, port, name, user, sslmode and where set the files of TLS, or None."""

    file: Optional[str]
    reason: str = ""
    changed_at: Optional[str] = None
    database: Optional[dict[str, Any]] = None
    password: Optional[str] = None
    secrets: list[str] = field(default_factory=list)
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    live: dict[str, dict[str, str]] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """The data of view ``config``; no secret is in it."""
        database = dict(self.database, has_password=self.password is not None) if self.database else None
        shared = self.settings.keys() & self.live.keys()
        return {
            "file": self.file,
            "changed_at": self.changed_at,
            "database": database,
            "settings": self.settings,
            "live": self.live,
            "differs": sorted(n for n in shared if self.settings[n]["value"] != self.live[n]["value"]),
        }


def collect(
    environment_file: Optional[str], unit: dict[str, str], processes: list[dict[str, Any]]
) -> Settings:
    """Find and read the app's settings. What could not be read is said in ``reason``."""
    main = processes[0] if processes else None
    told = environ(main["pid"]) if main else {}
    running = told or {}
    files, entries, reason = [], {}, ""
    for candidate in _candidates(environment_file, unit, main):
        try:
            entries.update(parse(Path(candidate).read_text(encoding="utf-8"), candidate))
        except (OSError, UnicodeDecodeError) as error:
            trouble = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            reason = reason or f"{candidate}: {trouble}"
            continue
        files.append(candidate)
    if not files and not reason:
        reason = "no environment file was found; name it in diagnose_environment_file"
        if main and told is None:
            reason = f"the environment of pid {main['pid']} may not be read; {reason}"
    found = Settings(files[0] if files else None, reason)
    found.changed_at = max(map(_changed, files), default=None)
    values = {name: entry["value"] for name, entry in entries.items()}
    # What the file leaves unsaid, Environment= of the unit says to a restarted app too.
    for source in (values, {**running, **values}):
        try:
            database, password = database_of(source)
        except Ambiguous as several:
            found.reason = str(several)
            continue
        if found.password is None and found.database in (None, database):
            found.database, found.password = database, password
    if not found.database:
        found.reason = found.reason or (
            f"{found.file} names no database: neither POSTGRES_HOST and POSTGRES_DATABASE nor a DSN as in DATABASE_URL"
        )
    for name, value in (*values.items(), *running.items()):
        if _SECRET.search(name) or _DSN.match(value):
            found.secrets += [text for text in (value, _dsn(value).get("password", "")) if len(text) > 3]
    found.settings = {n: e for n, e in entries.items() if _tells(n)}
    where = f"environment of pid {main['pid']}" if main else ""
    found.live = {n: {"value": v, "where": where} for n, v in running.items() if _tells(n)}
    return found


def _changed(file: str) -> str:
    """When a file was changed last; the beginning of time where it is gone."""
    try:
        return rfc3339(Path(file).stat().st_mtime)
    except OSError:
        return rfc3339(0)


def _tells(name: str) -> bool:
    return bool(_TELLING.match(name)) and not _SECRET.search(name)


def _candidates(named: Optional[str], unit: dict[str, str], main: Optional[dict[str, Any]]) -> list[str]:
    """The named file, then those of the unit, a later one overriding; without any, .env where the app runs."""
    found = [named] if named else []
    units = re.findall(r"(/\S+) \(ignore_errors=\w+\)", unit.get("EnvironmentFiles", ""))
    found += [name for name in units if name not in found]
    if not found and main and main.get("directory"):
        found.append(f"{main['directory']}/.env")
    return found


def environ(pid: int) -> Optional[dict[str, str]]:
    """The environment that a process was started with; None without the right to read it."""
    raw = proc.read(proc.PROC / str(pid) / "environ", 1 << 20)
    if raw is None:
        return None
    pairs = (item.decode("utf-8", "replace").partition("=") for item in raw.split(b"\0") if b"=" in item)
    return {name: value for name, _, value in pairs}


def parse(text: str, filename: str) -> dict[str, dict[str, str]]:
    """An environment file as name → {value, where}; lines that are no assignment are passed over."""
    entries: dict[str, dict[str, str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, equals, value = line.strip().partition("=")
        name = name.replace("export ", "", 1).strip()
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            continue
        entries[name] = {"value": _unquote(value.strip()), "where": f"{filename}:{number}"}
    return entries


def _unquote(value: str) -> str:
    """A quoted value without its quotes and without a comment behind them; any other as it stands."""
    if value[:1] not in ("'", '"'):
        return value
    try:
        return shlex.split(value, comments=True)[0]
    except ValueError:
        return value


class Ambiguous(Exception):
    """Several databases are named, and nothing says which of them the login uses."""


def database_of(values: dict[str, str]) -> tuple[Optional[dict[str, Any]], Optional[str]]:
    """(database without its secret, password) of a set of environment variables; None where unsaid.

    A DSN goes before single names, one of a usual name before one that is known by its value alone. Beside it
    only libpq's own (PG…) count, as libpq has it: the others may be those of another role, such as the
    superuser of the server's image. Raises Ambiguous, naming the variables.
    """
    dsn: dict[str, str] = next(filter(None, (_dsn(values.get(name, "")) for name in _URLS)), {})
    if not dsn:
        found = {name: _dsn(value) for name, value in values.items() if _DSN.match(value)}
        several = [name for name, one in found.items() if one != next(iter(found.values()))]
        if several:
            raise Ambiguous(f"{next(iter(found))} and {', '.join(several)} name different databases")
        dsn = next(iter(found.values()), {})
    parts = dict(dsn)
    for key, names in _NAMES.items():
        usable = (values.get(name) for name in names if not dsn or name.startswith("PG"))
        parts.setdefault(key, next(filter(None, usable), ""))
    parts = {key: value for key, value in parts.items() if value}
    if not parts.get("host") and not parts.get("name"):
        return None, None
    port = parts.get("port", "5432")
    database: dict[str, Any] = {
        "host": parts.get("host", "127.0.0.1"),
        "port": int(port) if re.fullmatch("[0-9]{1,5}", port) else 5432,
        "name": parts.get("name") or parts.get("user", "postgres"),
        "user": parts.get("user", "postgres"),
        "sslmode": parts.get("sslmode", "prefer"),
        **{key: parts[key] for key in ("sslrootcert", "sslcert", "sslkey") if key in parts},
    }
    return database, parts.get("password")


def _dsn(text: str) -> dict[str, str]:
    """What a DSN of PostgreSQL says (the keys of ``_NAMES``), as URL or as key=value; else nothing."""
    found: dict[str, str] = {}
    if _OPTION.match(text):
        options = {key: re.sub(r"\\(.)", r"\1", _bare(value)) for key, value in _OPTION.findall(text)}
    else:
        try:
            url = urlsplit(text)
            found["port"] = str(url.port or "")
        except ValueError:
            return {}
        if not url.scheme.startswith("postgres"):
            return {}
        found["host"] = unquote(url.hostname or "")
        found["name"] = unquote(url.path.lstrip("/"))
        found["user"] = unquote(url.username or "")
        found["password"] = unquote(url.password or "")
        options = {key: values[-1] for key, values in parse_qs(url.query).items()}
    found.update(options, name=options.get("dbname") or found.get("name", ""))
    return {key: found[key] for key in _NAMES if found.get(key)}


def _bare(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == "'" else value

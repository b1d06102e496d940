"""View L: the app's log in the window, and what it wrote while the probe ran.

Bounded: a file is read from its end, block by block, until a line is older than the window, and at most
``WINDOW_BYTES`` of it, whatever its size. Lines with times
are counted from the start of the window; a log without times is counted as far as was read, and what
the probe itself caused is told apart by the file's size before and after, which needs no times.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
import time
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

from ..common.clock import rfc3339
from . import proc

WINDOW_BYTES = 8 << 20
BLOCK_BYTES = 1 << 20  # of a log without times no more counts than one
_JOURNAL_SECONDS = 3.0
# An entry of several lines has them indented below its first.
_JOURNAL_ENTRY = re.compile(r"(?m)^(?=\d+\.\d+ )")


class Pattern:
    """A regular expression that is searched for where one of the texts is that its alternatives begin with.

    A text is found many times faster than an expression, and most of these are nowhere in a log.
    """

    def __init__(self, expression: str) -> None:
        self.expression = expression
        begins = [match for match in map(_BEGINNING.match, _ALTERNATIVES.split(expression)) if match]
        self.beginnings = [match[0].replace("\\.", ".") for match in begins]

    @cached_property
    def compiled(self) -> re.Pattern[str]:
        return re.compile(self.expression)

    def search(self, text: str) -> Optional[re.Match[str]]:
        """The first match in a text in lower case."""
        return self.compiled.search(text) if any(one in text for one in self.beginnings) else None


# Between alternatives that no bracket holds; what is itself at the beginning of one, up to what may be missing.
_ALTERNATIVES = re.compile(r"\|(?![^(]*\))")
_BEGINNING = re.compile(r"(?:(?:[a-z0-9 _'<>:/,-]|\\\.)(?![?*{]))*")

# What a line says, by name. The texts are those of PostgreSQL, libpq, psycopg2, psycopg_pool,
# SQLAlchemy, uvicorn, asyncio, of the guide's own code and of runbook.pool. They are searched in a line in lower case, which
# is several times faster than IGNORECASE, and every repetition is bounded, which keeps hostile lines linear.
PATTERNS: dict[str, Pattern] = {
    name: Pattern(text)
    for name, text in {
        "pool_exhausted": r"connection pool exhausted|queuepool limit of size|pooltimeout|couldn't get a connection after",
        "dead_connection": r"dead connection (?:detected|found)|found dead connection",
        "server_closed": r"server closed the connection unexpectedly|connection already closed|connection has been closed unexpectedly|terminating connection due to|ssl syscall error|could not receive data from server",
        "connection_reset": r"could not (?:receive data from|send data to) server[^\n]{0,60}connection reset by peer|ssl syscall error[^\n]{0,60}connection reset by peer",
        "terminated_by_administrator": r"terminating connection due to administrator command|dead connection detected \(57p01",
        "crash_of_another_process": r"because of crash of another server process|dead connection detected \(57p02",
        "idle_session_timeout": r"terminating connection due to idle-session timeout|dead connection detected \(57p05",
        "idle_in_transaction_timeout": r"terminating connection due to idle-in-transaction timeout|dead connection detected \(25p03",
        "transaction_timeout": r"terminating connection due to transaction timeout|dead connection detected \(25p04",
        "connection_refused": r"connection to server [^\n]{1,160} failed: connection refused|could not connect to server: connection refused",
        "name_not_resolved": r"could not translate host name|name or service not known|temporary failure in name resolution",
        "too_many_clients": r"too many clients already|remaining connection slots are reserved|too many connections for (?:role|database)",
        "authentication_failed": r"password authentication failed|no pg_hba\.conf entry|role \"[^\"]{0,130}\" does not exist|database \"[^\"]{0,130}\" does not exist",
        "starting_up": r"the database system is (?:starting up|shutting down|in recovery mode|not yet accepting)",
        "read_only": r"cannot execute [a-z ]{1,60} in a read-only transaction",
        "canceled": r"canceling statement due to",
        "lock": r"deadlock detected|lock timeout",
        "file_descriptors": r"too many open files",
        "out_of_memory": r"cannot allocate memory|memoryerror|out of memory",
        "no_local_port": r"cannot assign requested address",
        "protocol_error": r"lost synchronization with server|arrived from server while idle|bad record mac|insufficient data in \"",
        "other_dependency": r"unable to perform operation on <tcptransport|redis\.exceptions|aio_?pika|kafka.{0,80}(?:error|exception)|elasticsearch.{0,80}exception",
        "monitor_started": r"pool monitor started",
        "monitor_error": r"error in database monitor",
        "pool_status": r"pool status: \d+/\d+",
        "high_usage": r"high connection pool usage",
        "acquired": r"acquired backend \d+ by",
        "returned": r"returned backend \d+ by",
        "login_error": r"login error|/login\S{0,200} http/\d\.\d\"? 5\d\d|/login: 5\d\d",
        "sql_error": r"column [\w.\"]{1,130} does not exist|relation [\w.\"]{1,130} does not exist|function [\w.\"]{1,130} does not exist|table [\w.\"]{1,130} does not exist|permission denied for (?:table|schema|relation|sequence)|undefined(?:column|table|function)|insufficientprivilege|violates [a-z-]{1,20} constraint|syntax error at or near",
        "server_error": r"http/\d\.\d\"? 5\d\d|internal server error",
        "exception": r"traceback \(most recent call last\)",
        "client_suspended": r"net::err_network_io_suspended",
        "started": r"application startup complete|uvicorn running on|booting worker",
        "stopped": r"application shutdown complete|finished server process|shutting down: master",
    }.items()
}
_POOL_LINE = re.compile(
    r"pool (?:status|usage): (?:(\d{1,9})/(\d{1,9})"
    r"|\{[^{}]{0,80}'maxconn': (\d{1,9})[^{}]{0,200}'active_connections': (\d{1,9}))"
)
_JOURNAL_HEAD = re.compile(r"^\d{10}\.\d{3,6} \S+ \S+: ")
_FRAME = re.compile(r'^\s+File "([^"]{1,300})", line (\d{1,7}), in (\S{1,100})')
_LIBRARY = re.compile(r"site-packages/|dist-packages/|/lib/python\d|^<")
_CHAINED = ("Traceback", "During handling of", "The above exception")
# Of lines without a traceback those that say most, the most telling first.
_TELLING = ("sql_error", "other_dependency", "login_error")
_ACCESS = re.compile(r"HTTP/\d\.\d|: 5\d\d, ")  # says what was answered, not why
_LONGEST_LINE = 4096  # characters; of a longer line the ends are searched
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,](\d+))?\s?(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?(?!\d))?"
)
_UNIX = re.compile(r"^(\d{10})\.(\d{3,6}) ")


def line_time(line: str) -> Optional[float]:
    """Seconds since the epoch at which a line says it was written; None when it does not say."""
    head = line[:80]
    unix = _UNIX.match(head)
    if unix:
        return float(f"{unix.group(1)}.{unix.group(2)}")
    iso = _ISO.search(head)
    if not iso:
        return None
    zone = iso.group(4)
    try:
        moment = datetime.fromisoformat(f"{iso.group(1)}T{iso.group(2)}")
        if zone in ("Z", "UTC", "GMT"):
            moment = moment.replace(tzinfo=timezone.utc)
        elif zone:
            digits = zone[1:].replace(":", "")
            moment = datetime.fromisoformat(f"{moment.isoformat()}{zone[0]}{digits[:2]}:{digits[2:] or '00'}")
        return moment.timestamp() + float(f"0.{iso.group(3) or 0}")  # without a zone: this machine's time
    except (ValueError, OverflowError):
        return None


def log_of(pid: int) -> Optional[str]:
    """The file that a process's standard error, or else its standard output, goes to; None where it is none."""
    for number in (2, 1):
        name = proc.link(proc.PROC / str(pid) / "fd" / str(number)) or ""
        if name.startswith("/") and Path(name).is_file():
            return name
    return None


class Follower:
    """One log, remembered before the probe and read after it.

    ``path`` is a file; without one the journal of ``unit`` is read. Raises OSError when a named file
    cannot be read, with the reason in its text. ``mark``: that of an earlier follower of the same log, to go
    on from where it began.
    """

    def __init__(
        self,
        path: Optional[str],
        unit: Optional[str],
        window_seconds: float,
        mark: Optional[dict[str, Any]] = None,
    ) -> None:
        self.path = Path(path) if path else None
        self.unit = unit
        self.window = window_seconds
        now = self.path.stat() if self.path else None
        self.mark = mark or {
            "at": time.time(),
            "inode": now.st_ino if now else None,
            "size": now.st_size if now else None,
        }
        self.began: float = self.mark["at"]

    def appended(self) -> str:
        """What was written since the mark, at most WINDOW_BYTES of it."""
        if not self.path:
            return self._journal(self.began)[2]
        size = self.path.stat().st_size
        return _slice(self.path, max(self._from(), size - WINDOW_BYTES), size).decode("utf-8", "replace")

    def _from(self) -> int:
        """Where in the file that is there now what came after the mark begins."""
        assert self.path
        now = self.path.stat()
        # Another or a shorter file was rotated in: all of it came after.
        same = now.st_ino == self.mark["inode"] and now.st_size >= self.mark["size"]
        return int(self.mark["size"]) if same else 0

    def data(self) -> dict[str, Any]:
        """The data of view ``log``."""
        since = self.began - self.window
        if self.path:
            size, mark = self.path.stat().st_size, self._from()
            raw, timed = read_back(self.path, size, since, mark)
            start, read = size - len(raw), len(raw)
            text, whole = _whole_lines(raw, start), start == 0
            appended = raw[max(0, mark - start) :].decode("utf-8", "replace")
        else:
            text, whole, appended, size = self._journal(since)
            read, timed = size, True
        lines = text.splitlines()
        summary = summarize(lines, since if timed else None)
        return {
            "path": str(self.path) if self.path else f"journal of {self.unit}",
            "size": size,
            "bytes_read": read,
            "timestamps": timed,
            "window_from": rfc3339(since) if timed else None,
            "window_to": rfc3339(time.time()) if timed else None,
            "whole_window": whole or summary.pop("_reached"),
            **{key: value for key, value in summary.items() if not key.startswith("_")},
            "during_login": summarize(appended.splitlines(), None)["counts"],
            "error": last_error(appended.splitlines()),
        }

    def _journal(self, since: float) -> tuple[str, bool, str, int]:
        """(the journal since a time, whether that is all of it, what came after the mark, bytes that were read)."""
        command = ["journalctl", f"--unit={self.unit}", "--output=short-unix", "--no-pager"]
        command += [f"--since=@{int(since)}", "--reverse"]  # the newest first: what is too much is the oldest
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as running,
        ):
            assert running.stdout
            late = threading.Timer(_JOURNAL_SECONDS, running.kill)
            late.start()
            raw, more = running.stdout.read(WINDOW_BYTES), running.stdout.read(1)
            late.cancel()
            if more:
                running.kill()
            failed = running.wait() != 0 and not more
            errors.seek(0)
            said = errors.read(1000).decode("utf-8", "replace")
        if "not seeing messages" in said or "insufficient permissions" in said:
            raise OSError("the journal is for root and the group systemd-journal: diagnose_user")
        if failed:
            raise OSError(f"journalctl: {said.strip()[:200] or f'no end within {_JOURNAL_SECONDS:.0f} s'}")
        entries = _JOURNAL_ENTRY.split(raw.decode("utf-8", "replace"))
        lines = [entry for entry in entries[: len(entries) - bool(more)][::-1] if entry]
        appended = [entry for entry in lines if (line_time(entry) or 0) >= self.began]
        return "".join(lines), not more, "".join(appended), len(raw)


def read_back(path: Path, size: int, since: float, mark: int) -> tuple[bytes, bool]:
    """(the end of a file, whether its lines have times), read in blocks from byte ``size`` back.

    It begins before a line older than ``since`` (seconds since the epoch) and before byte ``mark``; the end
    of a log without times is one block. Never more than `WINDOW_BYTES`.
    """
    start = max(0, size - BLOCK_BYTES)
    raw = block = _slice(path, start, size)
    timed = any(line_time(line) is not None for line in _whole_lines(raw, start).splitlines()[-200:])
    least = max(0, size - WINDOW_BYTES)
    while start > least and (start > mark or (timed and not _reaches(block, since))):
        start, end = max(least, start - BLOCK_BYTES), start
        block = _slice(path, start, end)
        raw = block + raw
    return raw, timed


def _reaches(block: bytes, since: float) -> bool:
    """Is the first line of a block that has a time older than ``since``?"""
    times = map(line_time, _whole_lines(block, 1).splitlines())
    first = next((at for at in times if at is not None), None)
    return first is not None and first < since


def _whole_lines(raw: bytes, start: int) -> str:
    """Bytes from the place ``start`` of a file as text, without a line that began before it."""
    return (raw.partition(b"\n")[2] if start else raw).decode("utf-8", "replace")


def _slice(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def _ends(line: str) -> str:
    """A line; of a long one the two ends, for a traceback within one line ends with its error."""
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[: _LONGEST_LINE // 2]} … {line[-_LONGEST_LINE // 2 :]}"


def last_error(lines: list[str]) -> Optional[dict[str, Any]]:
    """The last exception of these lines: ``{text, at}``, its own line and where the app's code stood; None if none.

    ``at`` is ``file:line in function`` of the innermost frame that is no library's, None without a traceback.
    """
    told: Optional[dict[str, Any]] = None
    at: Optional[str] = None
    inside = False
    for line in (_JOURNAL_HEAD.sub("", line) for line in lines):
        frame = _FRAME.match(line)
        if line.lstrip().startswith("Traceback (most"):
            inside, at = True, None
        elif frame and not _LIBRARY.search(frame.group(1)):
            at = f"{frame.group(1)}:{frame.group(2)} in {frame.group(3)}"
        elif inside and line.strip() and not line[0].isspace() and not line.startswith(_CHAINED):
            told, inside = {"text": line.strip()[:_LONGEST_LINE], "at": at}, False
    if told:
        return told
    for name in _TELLING:
        said = [
            line for line in lines if PATTERNS[name].search(_ends(line).lower()) and not _ACCESS.search(line)
        ]
        if said:
            return {"text": said[-1].strip()[:_LONGEST_LINE], "at": None}
    return None


def summarize(lines: list[str], since: Optional[float]) -> dict[str, Any]:
    """Counts, first and last time and one sample of each pattern; the newest pool line.

    A line without a time of its own belongs to the one before it (a traceback, for example).
    ``_reached``: a line older than the window was seen, so the window is whole.
    """
    counts: dict[str, int] = {}
    first: dict[str, str] = {}
    last: dict[str, str] = {}
    samples: dict[str, str] = {}
    pool_line: Optional[dict[str, Any]] = None
    at: Optional[float] = None
    reached = False
    # Most patterns are nowhere in a log; those need not be searched in each of its lines.
    whole = "\n".join(map(_ends, lines)).lower()
    likely = [(name, pattern) for name, pattern in PATTERNS.items() if pattern.search(whole)]
    for line in lines:
        own = line_time(line)
        at = own if own is not None else at
        if since is not None and (at is None or at < since):
            reached = reached or at is not None
            continue
        lower = _ends(line).lower()
        for name in [name for name, pattern in likely if pattern.search(lower)]:
            counts[name] = counts.get(name, 0) + 1
            samples[name] = line.strip()[:_LONGEST_LINE]  # masked first, and cut after that
            if name == "started":
                pool_line = None  # told by a process that is no more
            if at is not None:
                first.setdefault(name, rfc3339(at))
                last[name] = rfc3339(at)
        found = _POOL_LINE.search(lower)
        if found:
            active, maximum = (found[1], found[2]) if found[1] else (found[4], found[3])
            pool_line = {"active": int(active), "maximum": int(maximum), "at": rfc3339(at) if at else None}
    told = {"counts": counts, "first": first, "last": last, "samples": samples, "pool_line": pool_line}
    return {**told, "_reached": reached}

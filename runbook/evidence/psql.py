"""View D through a command that runs psql where the database is: in a container, or behind another door.

Each query is a psql of its own, one after the other, fed on its standard input, so that nothing has to
survive the quoting of whatever stands in between. psql is asked for CSV with a NULL that no text can be.
"""

from __future__ import annotations

import csv
import io
import re
import secrets
import subprocess
import time
from typing import Any, Optional

from .new_connection import bounded, described
from .wire import Row, WireError, parse_error_fields

_OPTIONS = ("--no-psqlrc", "--quiet", "--csv", "--set=ON_ERROR_STOP=1", "--set=VERBOSITY=verbose")
_FAILURE = re.compile(r"^(?:psql:[^\n]*?)?(FATAL|ERROR|PANIC): +(?:([0-9A-Z]{5}): )?(.*)$", re.MULTILINE)
_FIRST_SECONDS = 5.0  # a container's client takes its time to start


class Psql:
    """Queries over ``command``: the words up to and with ``psql`` and how it connects. Ends at ``deadline``."""

    def __init__(self, command: list[str], deadline: float) -> None:
        self._null = f"null-{secrets.token_hex(8)}"
        self._command = [*command, *_OPTIONS, f"--pset=null={self._null}"]
        self._deadline = deadline

    def query(self, sql: str) -> list[Row]:
        """The rows of a string of statements, in one transaction. Raises WireError."""
        left = self._deadline - time.monotonic()
        try:
            done = subprocess.run(
                self._command,
                input=f"BEGIN;\n{sql};\nCOMMIT;\n",
                capture_output=True,
                text=True,
                errors="replace",
                timeout=max(left, 0.05),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise WireError("timeout", "query", f"{self._command[0]}: no answer in time") from error
        except OSError as error:
            raise WireError("unsupported", "resolve", f"{self._command[0]}: {error.strerror}") from error
        if done.returncode:
            raise self._failure(done.stderr.strip() or f"exit status {done.returncode}")
        table = csv.reader(io.StringIO(done.stdout))
        names = next(table, [])
        return [
            {name: None if value == self._null else value for name, value in zip(names, row)} for row in table
        ]

    def close(self) -> None:
        """Nothing stays open between two queries."""

    def _failure(self, words: str) -> WireError:
        told = _FAILURE.search(words)
        if not told:  # psql or what stands before it did not get as far as the server
            return WireError("unreachable", "tcp", f"{self._command[0]}: {words.splitlines()[-1][:300]}")
        severity, sqlstate, message = told.groups()
        fields = {**parse_error_fields(b""), "sqlstate": sqlstate, "severity": severity, "message": message}
        return WireError("server", "query" if severity == "ERROR" else "startup", message, fields)


def reach(
    command: list[str], target: dict[str, Any], deadline: float
) -> tuple[dict[str, Any], Optional[Psql]]:
    """The data of view ``connection``, and what to ask with; None where no query was answered."""
    began = time.monotonic()
    data = described("command", target, target["user"])
    data.update(phase="query", address=None, addresses=[])
    psql = Psql(command, deadline)
    try:
        psql.query(bounded("SELECT 1 AS one", _FIRST_SECONDS))
    except WireError as error:
        data.update(ok=False, phase=error.phase, error=error.as_dict())
    data["seconds_by_phase"] = {data["phase"]: round(time.monotonic() - began, 6)}
    return data, psql if data["ok"] else None

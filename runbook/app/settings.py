"""The application's own settings, from `APP_…` variables; those of its pool come from `runbook.pool`."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runbook.pool import Settings, SettingsError

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
# variable: (default, lowest, highest, meaning)
_NUMBERS = {
    "APP_PORT": (8000, 1, 65_535, "a port"),
    "APP_WORKERS": (2, 1, 64, "processes, each with a pool of its own"),
    "APP_TOKEN_SECONDS": (28_800, 1, 31_536_000, "seconds that a login lasts"),
    "APP_DRAIN_SECONDS": (1, 0, 300, "seconds that it still serves, not ready, after it was told to stop"),
    "APP_STOP_SECONDS": (20, 1, 600, "seconds that requests then have to finish"),
}
# variable: (default, pattern, meaning)
_TEXTS = {
    "APP_HOST": ("127.0.0.1", r"\S+", "the address to listen on"),
    "APP_NAME": ("app", r"[A-Za-z0-9._-]{1,32}", "1 to 32 of A-Z a-z 0-9 . _ -"),
    "APP_DRAIN_FILE": (
        "",
        r"(/\S+)?",
        "an absolute path: while it exists, the app says that it is not ready",
    ),
    "APP_LOG_LEVEL": ("INFO", "|".join(_LEVELS), f"one of {', '.join(_LEVELS)}"),
}


@dataclass(frozen=True)
class AppSettings:
    """What a process of the application needs to know beside its pool's settings; times are seconds."""

    host: str
    port: int
    workers: int
    name: str
    token_seconds: int
    drain_seconds: int
    stop_seconds: int
    log_level: str
    drain_file: str = ""


def read_settings(environ: Mapping[str, str] = os.environ) -> tuple[AppSettings, Settings]:
    """The application's and its pool's settings; raises SettingsError with the problems of both."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for variable, (default, low, high, meaning) in _NUMBERS.items():
        text = environ.get(variable, str(default))
        if re.fullmatch(r"[0-9]{1,9}", text) and low <= int(text) <= high:
            values[_field(variable)] = int(text)
        else:
            problems.append(f"{variable} is {text!r}: allowed is an integer from {low} to {high} ({meaning})")
    for variable, (initial, pattern, meaning) in _TEXTS.items():
        text = environ.get(variable, initial)
        values[_field(variable)] = text
        if not re.fullmatch(pattern, text):
            problems.append(f"{variable} is {text!r}: allowed is {meaning}")
    problems += _misspelt(environ)
    try:
        pool = Settings.from_environment(environ)
    except SettingsError as error:
        raise SettingsError(problems + error.problems) from None
    if problems:
        raise SettingsError(problems)
    return AppSettings(**values), pool


def read_owner(environ: Mapping[str, str] = os.environ) -> tuple[Settings, str]:
    """How to connect as the owner of the schema, and the role that the application connects as.

    The owner is POSTGRES_OWNER_USER with POSTGRES_OWNER_PASSWORD or POSTGRES_OWNER_PASSWORD_FILE, the role
    POSTGRES_USER, whose password is not needed. Raises SettingsError.
    """
    own = ("POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_PASSWORD_FILE")
    as_owner = {name: value for name, value in environ.items() if name not in own}
    for name in own:
        owners = _owners(name)
        if owners in as_owner:
            as_owner[name] = as_owner.pop(owners)
    role = environ.get("POSTGRES_USER", "")
    problems = [] if role else ["POSTGRES_USER is missing: set it to the role that the application uses"]
    if role and role == environ.get("POSTGRES_OWNER_USER"):
        problems.append(
            f"POSTGRES_OWNER_USER is {role!r}, like POSTGRES_USER: allowed is another role, "
            "because the application must not own its tables"
        )
    try:
        settings = Settings.from_environment(as_owner)
    except SettingsError as error:
        told = [re.sub("|".join(reversed(own)), lambda m: _owners(m[0]), text) for text in error.problems]
        raise SettingsError(problems + told) from None
    if problems:
        raise SettingsError(problems)
    return settings, role


def _owners(variable: str) -> str:
    return variable.replace("POSTGRES_", "POSTGRES_OWNER_")


def _field(variable: str) -> str:
    return variable.removeprefix("APP_").lower()


def _misspelt(environ: Mapping[str, str]) -> list[str]:
    """Variables that nobody reads and that are one slip away from one of ours."""
    known = [*_NUMBERS, *_TEXTS]
    problems = []
    for variable in sorted(set(environ) - set(known)):
        nearest = difflib.get_close_matches(variable, known, n=1, cutoff=0.85)
        if nearest and variable.startswith("APP_"):
            problems.append(f"{variable} is unknown; did you mean {nearest[0]}?")
    return problems

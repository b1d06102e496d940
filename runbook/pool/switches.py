"""What may be changed in the running process for a while, and what is seen meanwhile.

Every change ends by itself, in this process, whatever becomes of those who asked for it: the thread of the
status socket makes the changes and ends them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from .connection import clock
from .settings import SettingsError
from .status import utc_now

if TYPE_CHECKING:
    from .pool import Pool

logger = logging.getLogger("runbook.pool")

LONGEST_SECONDS = 3600.0
SITES = 200  # told apart in what is seen; whatever comes after them is one
EVENTS = 100

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
# `log_level` is that of the logger `runbook.pool` alone: at DEBUG the root logger would show what others keep
# secret. `stacks`: whether every borrower's whole stack is kept.
SWITCHES = ("max_connections", "monitor_interval", "log_level", "stacks")


class Change(NamedTuple):
    """A switch that is not as it was. `until`: by `clock`."""

    value: Any
    was: Any
    until: float


class Seen:
    """Checkouts by site; whoever writes holds the pool's lock."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def asked(self, site: str, seconds: float, came: bool) -> None:
        """Somebody got a connection after so many seconds, or an error instead."""
        row = self._row(site)
        row["checkouts" if came else "refused"] += 1
        row["wait_seconds"] += seconds
        row["longest_wait"] = max(row["longest_wait"], seconds)

    def returned(self, site: str, seconds: float) -> None:
        """A connection came back after so many seconds."""
        row = self._row(site)
        row["returned"] += 1
        row["hold_seconds"] += seconds
        row["longest_hold"] = max(row["longest_hold"], seconds)

    def _row(self, site: str) -> dict[str, Any]:
        if site not in self.rows:
            if len(self.rows) >= SITES:
                site = "elsewhere"
            waits = {"checkouts": 0, "refused": 0, "wait_seconds": 0.0, "longest_wait": 0.0}
            holds = {"returned": 0, "hold_seconds": 0.0, "longest_hold": 0.0}
            self.rows.setdefault(site, {"site": site, **waits, **holds})
        return self.rows[site]


class Switches:
    """The changes of one pool: which are on, what was seen under the last of them, when each came and went."""

    def __init__(self, pool: Pool) -> None:
        self.seen = Seen()
        self.events: deque[dict[str, str]] = deque(maxlen=EVENTS)
        self._pool = pool
        self._on: dict[str, Change] = {}

    def set(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Change `values` {name: value} for `seconds`; what is on already takes the new value and time.

        All of it or nothing. The new status; ValueError with every problem: name, value, what is allowed.
        """
        values, seconds = _valid(request)
        before = {name: self._now(name) for name in values}
        self._apply(values)
        if not self._on:
            self.seen = self._pool.seen = Seen()
        for name, value in values.items():
            was = self._on[name].was if name in self._on else before[name]
            self._on[name] = Change(value, was, clock() + seconds)
        told = [_arrow(name, before[name], value) for name, value in values.items()]
        self._pool.settings_changed()
        self._tell("set", told)
        logger.warning("Switched for %g s: %s", seconds, ", ".join(told))
        return self._pool.status()

    def revert(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """End `names`, by default all that are on, at once; the new status. ValueError for what is no switch."""
        names = request.get("names", list(self._on))
        if not isinstance(names, list) or not all(name in SWITCHES for name in names):
            raise ValueError(f"names is {names!r}: allowed is a list of {', '.join(SWITCHES)}")
        self._end(names, "reverted on request")
        return self._pool.status()

    def end_overdue(self) -> float | None:
        """End those whose time is over; when, by `clock`, the next one's is. None when none is on."""
        now = clock()
        self._end([name for name, change in self._on.items() if change.until <= now], "reverted by itself")
        return min((change.until for change in self._on.values()), default=None)

    def forget(self) -> None:
        """End all, and wake nobody: in a forked child, and when the pool is closed."""
        self._apply({name: change.was for name, change in self._on.items()})
        self._on.clear()
        self._pool.seen = None

    def describe(self) -> list[dict[str, Any]]:
        """`overrides` of status.schema.json."""
        return [
            {
                "name": name,
                "value": _text(name, change.value),
                "was": _text(name, change.was),
                "reverts_in": max(0.0, change.until - clock()),
            }
            for name, change in list(self._on.items())
        ]

    def _end(self, names: Iterable[str], event: str) -> None:
        ending = {name: self._on[name] for name in names if name in self._on}
        if not ending:
            return
        told = [_arrow(name, change.value, change.was) for name, change in ending.items()]
        self._apply({name: change.was for name, change in ending.items()})
        for name in ending:
            del self._on[name]
        if not self._on:
            self._pool.seen = None
        self._pool.settings_changed()
        self._tell(event, told)
        logger.warning("Switched back: %s", ", ".join(told))

    def _now(self, name: str) -> Any:
        if name == "log_level":
            return logger.level  # its own: 0 is that of the loggers above it
        return self._pool.stacks if name == "stacks" else getattr(self._pool.settings, name)

    def _apply(self, values: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in values.items() if name not in ("log_level", "stacks")}
        try:
            self._pool.settings = replace(self._pool.settings, **numbers)
        except SettingsError as error:
            raise ValueError("; ".join(error.problems)) from None
        if "log_level" in values:
            logger.setLevel(values["log_level"])
        self._pool.stacks = values.get("stacks", self._pool.stacks)

    def _tell(self, event: str, told: list[str]) -> None:
        self.events.extend({"at": utc_now(), "event": event, "change": change} for change in told)


def _valid(request: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """(values, seconds) of a request to set. Raises ValueError; the ranges of numbers are those of Settings."""
    values, seconds = request.get("values"), request.get("seconds")
    if not isinstance(values, dict) or not values:
        raise ValueError(
            f"values is {values!r}: allowed is an object with one or more of {', '.join(SWITCHES)}"
        )
    problems = [
        f"unknown switch {name!r}; known: {', '.join(SWITCHES)}" for name in values if name not in SWITCHES
    ]
    if values.get("log_level", "INFO") not in _LEVELS:
        problems.append(f"log_level is {values['log_level']!r}: allowed is one of {', '.join(_LEVELS)}")
    if type(values.get("stacks", True)) is not bool:
        problems.append(f"stacks is {values['stacks']!r}: allowed is true or false")
    if type(seconds) not in (int, float) or not 0 < (seconds or 0) <= LONGEST_SECONDS:
        problems.append(f"seconds is {seconds!r}: allowed is a number above 0, at most {LONGEST_SECONDS:g}")
    if problems:
        raise ValueError("; ".join(problems))
    return values, float(seconds or 0)


def _text(name: str, value: Any) -> str:
    if name == "log_level":
        above = logger.parent.getEffectiveLevel() if logger.parent else 0
        return value if isinstance(value, str) else str(logging.getLevelName(value or above))
    return {True: "on", False: "off"}[value] if name == "stacks" else f"{value:g}"


def _arrow(name: str, old: Any, new: Any) -> str:
    return f"{name} {_text(name, old)} -> {_text(name, new)}"

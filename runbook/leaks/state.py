"""What the walk carries along: the state of one connection on one way, and the exits of a statement."""

from __future__ import annotations

from typing import NamedTuple

# Kinds of exceptions: the connection is dead; any error of the database; any at all. Beside these the name of a
# class, where the text raises it.
CONN, DB, ANY = "conn", "db", "any"

MAX_STATES, MAX_STEPS = 200, 12


class Status:
    """What became of the connection: not yet taken; in our hands; closed but not given back; given back, or
    handed to somebody who will."""

    BEFORE, HELD, CLOSED, SAFE = "before", "held", "closed", "safe"


class Way:
    """The ways out of a statement."""

    NEXT, RETURN, RAISE, BREAK, CONTINUE = "next", "return", "raise", "break", "continue"


class TooManyPaths(Exception):
    """The function is too large to walk within the bounds; the search says so instead of guessing."""


class Step(NamedTuple):
    what: str
    line: int
    end: int = 0


class State(NamedTuple):
    status: str = Status.BEFORE
    names: frozenset[str] = frozenset()
    """Where the connection can be reached: ``conn``, ``self.conn``, a list that contains it."""
    cursors: frozenset[str] = frozenset()
    facts: frozenset[tuple[str, bool]] = frozenset()
    """Truth of the conditions that decide about acquire and release, by their text."""
    error: str = ""
    """Kind of the exception under way."""
    dead: bool = False
    """An operation on the connection failed, or a condition asked about it, on this way."""
    unsure: bool = False
    """Somebody unknown got it on this way and may give it back."""
    steps: tuple[Step, ...] = ()
    """How it came to this since the acquire."""

    @property
    def live(self) -> bool:
        return self.status in (Status.HELD, Status.CLOSED)

    def step(self, what: str, line: int, end: int = 0) -> State:
        if not self.live:
            return self
        kept = self.steps
        if len(kept) == MAX_STEPS:  # the acquire, and the end that matters
            kept = (kept[0], *kept[2:])
        return self._replace(steps=(*kept, Step(what, line, end)))

    def safe(self) -> State:
        return State(Status.SAFE, error=self.error)


class Release(NamedTuple):
    line: int
    within: tuple[tuple[str, int], ...]
    """The ``finally`` and ``handler`` blocks around it, as (block, line of its try)."""


class Loss(NamedTuple):
    state: State
    exit: str
    """``next``, ``return`` or ``raise`` of the function; ``rebound``: its last name got another value;
    ``unbound``: it never had a name."""
    line: int


class Flow:
    """The states at each exit of a statement. States that differ only in how they came about are one."""

    def __init__(self) -> None:
        self._exits: dict[str, dict[State, State]] = {}

    def add(self, way: str, state: State) -> None:
        states = self._exits.setdefault(way, {})
        states.setdefault(state._replace(steps=()), state)
        if len(states) > MAX_STATES:
            raise TooManyPaths

    def join(self, other: Flow) -> None:
        for way, state in other.all():
            self.add(way, state)

    def take(self, way: str) -> list[State]:
        """The states at this exit, which are gone from it then."""
        return list(self._exits.pop(way, {}).values())

    def all(self) -> list[tuple[str, State]]:
        return [(way, state) for way, states in self._exits.items() for state in states.values()]

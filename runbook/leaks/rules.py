"""The rules: which name a loss has, in which words it is told, and what the smallest fix is.

``RULES`` is the table, in order of precedence: one acquire is reported once, under the first rule that one of
its losses falls under. To add a rule is to add a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Optional

from .flow import Walk
from .reading import Site
from .state import Loss, Status, Step
from .syntax import dotted
from .vocabulary import called

JUMPS = ("return", "raise", "break", "continue")


class Case(NamedTuple):
    """One loss, with what the walk learned of the whole function; lines are 0 where there is none."""

    walk: Walk
    loss: Loss
    site: Optional[Site]

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.loss.state.steps

    @property
    def never(self) -> bool:
        """No way through the function gives the connection back or hands it to the caller."""
        return not self.walk.releases and not self.walk.returned

    @property
    def raised(self) -> int:
        """Line of the first operation that raised on this way."""
        return next((step.line for step in self.steps if step.what == "raises"), 0)

    @property
    def jump(self) -> Optional[Step]:
        """The early exit on this way: one with a release behind it.

        After an exception it must stand inside the handler: there it is a choice, further down it is the
        ordinary end of the function. A handler that raises again leaves on the exception's own way.
        """
        handler = next((step for step in self.steps if step.what == "caught"), None)
        for step in self.steps:
            if step.what in JUMPS:
                inside = handler is not None and step.what != "raise" and step.line <= handler.end
                behind = self.walk.returned or any(one.line > step.line for one in self.walk.releases)
                if behind and (inside or not self.raised):
                    return step
        return None

    @property
    def skipped(self) -> int:
        """Line of the release in a ``finally`` through which this way ran without it."""
        passed = {("finally", step.line) for step in self.steps if step.what == "finally"}
        return min((one.line for one in self.walk.releases if passed & set(one.within)), default=0)

    @property
    def guard(self) -> int:
        """Line of the try that would have given it back, had what raised stood inside it."""
        lines = (line for one in self.walk.releases for _, line in one.within if line > self.raised)
        return min(lines, default=0) if self.raised else 0

    @property
    def wrapper(self) -> bool:
        """A wrapper hands connections out or takes them back; here it drops one that is dead."""
        dead = self.loss.state.dead or self.loss.state.status == Status.CLOSED
        return dead and (self.walk.returned or self.site is None)

    @property
    def with_only(self) -> bool:
        """A ``with`` over the connection is all that this function does to end the loan."""
        return bool(self.site and self.site.in_with) or (self.never and self.walk.in_with)

    @property
    def closed(self) -> bool:
        """Closed here, or kept in a field that another function of the file closes and none gives back."""
        kept = {name.rpartition(".")[2] for name in self.loss.state.names if "." in name}
        elsewhere = self.never and bool(kept & self.walk.elsewhere.closed)
        return self.loss.state.status == Status.CLOSED or elsewhere


class Rule(NamedTuple):
    id: str
    fits: Callable[[Case], bool]
    path: str
    """How the way ends; what led there is told by the steps."""
    fix: str


FINALLY = "use it inside a try that begins right after, and in its finally: {release}"
RULES = (
    Rule(
        "R6",
        lambda case: case.with_only,
        "`with` over the connection ends its transaction and gives nothing back",
        "take it before a try and give it back in the finally: {release}",
    ),
    Rule(
        "R9",
        lambda case: case.wrapper,
        "the dead connection is dropped in line {line} and its slot stays taken",
        "give the slot back on this way too: {discard}",
    ),
    Rule(
        "R7",
        lambda case: case.closed,
        "it is closed and not given back, so its slot stays taken",
        "give it back instead and let the pool close it: {discard}",
    ),
    Rule("R1", lambda case: case.never, "nothing gives it back", FINALLY),
    Rule(
        "R8",
        lambda case: case.skipped > 0,
        "the release in line {skipped} is not reached",
        "make it the first and unconditional statement of a finally: {release}",
    ),
    Rule(
        "R4",
        lambda case: case.jump is not None,
        "the {jump.what} in line {jump.line} comes before the release",
        FINALLY,
    ),
    Rule(
        "R5",
        lambda case: case.loss.exit == "rebound",
        "line {line} gives {name} another value before the release",
        "give it back in every round, in a finally: {release}",
    ),
    Rule(
        "R3",
        lambda case: case.guard > 0,
        "the try in line {guard}, which would give it back, has not begun",
        "begin that try right after line {taken}",
    ),
    Rule("R2", lambda case: case.raised > 0, "the release is not reached", FINALLY),
    Rule(
        "R8",
        lambda case: True,
        "the release stands under a condition that does not hold here",
        "release unconditionally, in a finally: {release}",
    ),
)
STEPS = {
    "entered": "handed in at line {}",
    "acquired": "taken in line {}",
    "raises": "line {} can raise",
    "caught": "caught in line {}",
    "closed": "closed in line {}",
    "true": "the condition in line {} holds",
    "false": "the condition in line {} does not hold",
    **{jump: jump + " in line {}" for jump in JUMPS},
}


class Found(NamedTuple):
    """A finding without its file."""

    rule: str
    line: int
    function: str
    acquire: str
    path: str
    fix: str


def findings(walk: Walk, site: Optional[Site]) -> list[Found]:
    """What a finished walk lost, one per rule, the most telling first."""
    told: dict[str, tuple[int, Found]] = {}
    cases = [Case(walk, loss, site) for loss in walk.losses]
    # It gives its parameter back under a condition of its own (`if own:`): not a function that takes back.
    if site is None and not all(case.wrapper or case.raised for case in cases):
        return []
    for case in cases:
        loss = case.loss
        # Somebody unknown has it, and nothing here ever takes it back: it is theirs.
        if case.never and loss.state.unsure:
            continue
        rank, rule = next((rank, rule) for rank, rule in enumerate(RULES) if rule.fits(case))
        # A function that takes connections back answers for the dead ones it drops, not for its caller's.
        if site is not None or case.wrapper:
            told.setdefault(rule.id, (rank, _told(rule, case)))
    return [found for _, found in sorted(told.values())]


def _told(rule: Rule, case: Case) -> Found:
    acquire = case.walk.acquire
    name = min(case.loss.state.names - case.walk.source.dead_ends - {"with"}, default="conn")
    receiver = called(case.site.call)[0] if case.site else ""
    prefix = receiver + "." if receiver else ""
    release = f"{name}.close()" if acquire.release == "close" else f"{prefix}{acquire.release}({name})"
    discard = f"{prefix}putconn({name}, close=True)" if acquire.release == "putconn" else release
    words = {
        **{"line": case.loss.line, "taken": case.steps[0].line, "skipped": case.skipped, "guard": case.guard},
        **{"jump": case.jump, "name": name, "release": release, "discard": discard},
    }
    closed = (step.line for step in case.steps if step.what == "closed")
    return Found(
        rule=rule.id,
        # The place to mend: for R9 where the connection is dropped, else where it was taken.
        line=next(closed, case.loss.line) if rule.id == "R9" else case.steps[0].line,
        function=case.walk.scope.name,
        acquire=_acquire(case.site) if case.site else f"{name}, handed in",
        path="; ".join([*_way(case), rule.path.format(**words)]),
        fix=rule.fix.format(**words),
    )


def _acquire(site: Site) -> str:
    """The call without its arguments: they may hold what nobody should read."""
    return dotted(site.call.func) + ("(...)" if site.call.args or site.call.keywords else "()")


def _way(case: Case) -> Iterator[str]:
    """The steps in words. Of the conditions only the last, and only where it decided: not before an exception,
    and not where the connection was closed anyway."""
    steps = [step for step in case.steps if step.what in STEPS]
    for position, step in enumerate(steps):
        later = {other.what for other in steps[position + 1 :]}
        decided = case.loss.state.status != Status.CLOSED and not later & {"true", "false", "raises"}
        if decided or step.what not in ("true", "false"):
            yield STEPS[step.what].format(step.line)

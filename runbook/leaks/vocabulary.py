"""What takes a connection from a pool and what gives it back.

``DEFAULTS`` knows psycopg2.pool, psycopg_pool, SQLAlchemy and the pair ``_conn``/``_return``. ``learn`` adds a
project's own pairs: a function that takes a connection and returns it acquires; one that gives its parameter
back releases. Everything goes by name: types are not known without running the program.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Optional

from .syntax import Scope, arguments, assignment, callee, dotted


class Acquire(NamedTuple):
    """One way to take a connection: a call of ``name`` on a receiver that fits."""

    name: str
    release: str = "putconn"
    """What gives it back, for the words of the fix."""
    receiver: str = ""
    """Pattern the receiver must contain; empty: any receiver."""
    close_releases: bool = False
    """``close()`` on the connection, and ``with`` over it, give it back (SQLAlchemy)."""
    certain: bool = True
    """False: only the name speaks for it, so ``with`` over it may be a context manager."""
    owner: str = ""
    """Class for which ``self.name()`` means this; empty: every class."""


class Vocabulary(NamedTuple):
    acquires: frozenset[Acquire]
    releases: frozenset[str]
    """Functions that give back what they get."""
    defined: frozenset[str]
    """Other functions of the code read, methods also as ``Class.name``: nothing is guessed about them."""
    managers: frozenset[str] = frozenset()
    """Context managers of the code read: ``with`` over one of them is no ``with`` over a connection."""

    def joined(self, other: Vocabulary) -> Vocabulary:
        """Both; what acquires or releases anywhere is not counted as merely defined."""
        acquires, releases = self.acquires | other.acquires, self.releases | other.releases
        methods = {f"{acquire.owner}.{acquire.name}" for acquire in acquires}
        defined = (self.defined | other.defined) - releases - methods
        return Vocabulary(acquires, releases, defined, self.managers | other.managers)

    def shared(self) -> Vocabulary:
        """What other files may know of it: not a function named so plainly that it would mean another there."""
        return self._replace(acquires=frozenset(one for one in self.acquires if one.receiver != BARE))


ENGINE = r"(?i)engine"
DEFAULTS = Vocabulary(
    acquires=frozenset(
        {
            Acquire("getconn"),
            Acquire("raw_connection", release="close", close_releases=True),
            Acquire("connect", release="close", receiver=ENGINE, close_releases=True),
            Acquire("_conn", release="_return", certain=False),
        }
    ),
    releases=frozenset({"putconn", "_return"}),
    defined=frozenset(),
    managers=frozenset({"connection"}),  # psycopg_pool
)
# They run the function they are given: `await asyncio.to_thread(pool.getconn)` acquires.
OFFLOADS = frozenset({"to_thread", "run_in_executor", "run_in_threadpool", "run_sync"})
# A callee nobody here defines and whose name says that it gives back: believed, to be silent rather than wrong.
RELEASE_LIKE = re.compile(
    r"(?i)release|return|give_?back|put_?(conn|back)|^put$|check_?in|close|dispose|clean_?up"
)
# A wrapper named like this is known on any receiver; another name (`get`) only where the receiver speaks for it.
CONNECTION_LIKE = re.compile(r"(?i)conn(?!ect$)|db")
POOL_LIKE = r"(?i)(^|[._])(db|database|pool)\w*$|pool$"
BARE = r"^$"
# psycopg_pool's option by which close() gives back.
CLOSE_RETURNS = re.compile(r"\bclose_returns\s*=\s*True\b")
CLOSING_POOL = Vocabulary(
    frozenset({Acquire("getconn", release="close", close_releases=True)}), frozenset(), frozenset()
)


def acquire_of(call: ast.Call, vocabulary: Vocabulary, owner: str = "") -> Optional[Acquire]:
    """The way in which this call takes a connection, inside class ``owner``; None if it takes none."""
    receiver, name = called(call)
    own = receiver in ("self", "cls")
    if own and f"{owner}.{name}" in vocabulary.defined:
        return None
    fits = []
    for acquire in vocabulary.acquires:
        if acquire.name != name or (not acquire.certain and name in vocabulary.defined):
            continue
        if (own and acquire.owner == owner) or re.search(acquire.receiver, receiver):
            fits.append(acquire)
    return max(fits, key=lambda acquire: (acquire.close_releases, acquire.certain, acquire), default=None)


def called(call: ast.Call) -> tuple[str, str]:
    """(receiver, name) of what really runs: for ``asyncio.to_thread(pool.getconn)`` that is ``pool.getconn``."""
    receiver, name = callee(call)
    if name in OFFLOADS:
        references = [dotted(argument) for argument in arguments(call)]
        receiver, _, name = next((one for one in references if one), name).rpartition(".")
    return receiver, name


def releases_by_name(name: str, vocabulary: Vocabulary) -> bool:
    """Does a function of this name give back the connection it is handed?"""
    return name in vocabulary.releases or (
        name not in vocabulary.defined and RELEASE_LIKE.search(name) is not None
    )


def mentions(vocabulary: Vocabulary) -> Callable[[str], bool]:
    """Can a file of this text have a finding? Cheaper than to parse it, and never wrongly no."""
    names = {
        acquire.name for acquire in vocabulary.acquires if acquire.receiver != ENGINE
    } | vocabulary.releases
    whole = re.compile(r"\b(?:" + "|".join(map(re.escape, sorted(names))) + r")\b")

    def mentioned(text: str) -> bool:
        if any(name in text for name in names) and whole.search(text):
            return True
        return ".connect" in text and "engine" in text.lower()

    return mentioned


def learn(scopes: Sequence[Scope], text: str, known: Vocabulary) -> Vocabulary:
    """``known`` and what the functions of this file add; wrappers of wrappers up to three deep."""
    if CLOSE_RETURNS.search(text):
        known = known.joined(CLOSING_POOL)
    functions = [scope for scope in scopes if scope.function and not scope.name.startswith("__")]
    learned = known
    for _ in range(3):
        before, learned = learned, known.joined(_pairs(functions, learned))
        if learned == before:
            break
    return learned


def _pairs(functions: Iterable[Scope], known: Vocabulary) -> Vocabulary:
    acquires: dict[str, Acquire] = {}
    releases: dict[str, str] = {}
    others: set[str] = set()
    managers: set[str] = set()
    for scope in functions:
        name, owner = scope.name, scope.owner
        if scope.decorators & {"contextmanager", "asynccontextmanager"}:
            managers.add(name)
        taken = _returns_connection(scope, known)
        if given_parameters(scope, known):
            releases[name] = owner
        elif taken is None:
            others |= {name, f"{owner}.{name}"}
        else:
            receiver = "" if CONNECTION_LIKE.search(name) else POOL_LIKE if owner else BARE
            acquires[name] = taken._replace(name=name, receiver=receiver, certain=True, owner=owner)
    # The wrapper that takes and the one that gives back stand in one class: the fix names the latter.
    partner = {owner: name for name, owner in sorted(releases.items(), reverse=True)}
    paired = {
        acquire
        if acquire.close_releases
        else acquire._replace(release=partner.get(acquire.owner, acquire.release))
        for acquire in acquires.values()
    }
    # A name is what one definition says that acquires or releases, whatever its namesakes do.
    return Vocabulary(
        frozenset(paired), frozenset(releases), frozenset(others - set(acquires)), frozenset(managers)
    )


def _returns_connection(scope: Scope, known: Vocabulary) -> Optional[Acquire]:
    """How the connection was taken that this function hands to its caller; None if it hands none.

    Not counted: generators and properties, and a connection that is also kept in a field (the caller borrows it).
    """
    if scope.function is None or scope.decorators & {"property", "cached_property"}:
        return None
    returned = [node.value for node in scope.nodes if isinstance(node, ast.Return) and node.value]
    direct = [acquire for value in returned for acquire in [_taken(value, known, scope.owner)] if acquire]
    taken = _taken_names(scope, known)
    kept = {
        dotted(node.value)
        for node in scope.nodes
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Attribute) for target in node.targets)
    }
    by_name = [taken[name] for name in map(dotted, returned) if name in taken and name not in kept]
    return None if scope.is_generator else next(iter([*direct, *by_name]), None)


def _taken_names(scope: Scope, known: Vocabulary) -> dict[str, Acquire]:
    """The variables to which an acquire is assigned."""
    taken = {}
    for node in scope.nodes:
        targets, value = assignment(node)
        acquire = _taken(value, known, scope.owner) if value else None
        if acquire:
            taken.update({target.id: acquire for target in targets if isinstance(target, ast.Name)})
    return taken


def _taken(value: ast.expr, known: Vocabulary, owner: str) -> Optional[Acquire]:
    while isinstance(value, (ast.Await, ast.NamedExpr)):
        value = value.value
    return acquire_of(value, known, owner) if isinstance(value, ast.Call) else None


def given_parameters(scope: Scope, known: Vocabulary) -> set[str]:
    """The parameters that a function hands to a function known to give back.

    Not one that it may also take itself (``conn=None``): that it gives back only then.
    """
    given: set[str] = set()
    for node in scope.nodes:
        if isinstance(node, ast.Call) and callee(node)[1] in known.releases:
            given.update(dotted(argument) for argument in arguments(node))
    given &= set(scope.parameters)
    return given - set(_taken_names(scope, known)) if given else given

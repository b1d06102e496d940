"""What takes a connection from a pool and what gives it back.

``DEFAULTS`` knows psycopg2.pool, psycopg_pool, SQLAlchemy and the pair ``_conn``/``_return``. ``learn`` adds a
project's own pairs: a function that takes a connection and returns it acquires; one that gives its parameter
back releases. Everything goes by name: types are not known without running the program.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import NamedTuple, Optional

from .syntax import Function, arguments, callee, decorators, dotted, is_generator, ordered, parameters, scopes


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

    def joined(self, other: Vocabulary) -> Vocabulary:
        """Both; what acquires or releases anywhere is not counted as merely defined."""
        acquires, releases = self.acquires | other.acquires, self.releases | other.releases
        methods = {f"{acquire.owner}.{acquire.name}" for acquire in acquires}
        return Vocabulary(acquires, releases, (self.defined | other.defined) - releases - methods)

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
)
# They run the function they are given: `await asyncio.to_thread(pool.getconn)` acquires.
OFFLOADS = frozenset({"to_thread", "run_in_executor", "run_in_threadpool", "run_sync"})
# A callee nobody here defines and whose name says that it gives back: believed, to be silent rather than wrong.
RELEASE_LIKE = re.compile(
    r"(?i)release|return|give_?back|put_?(conn|back)|^put$|check_?in|close|dispose|clean_?up"
)
# A wrapper named like this is known on any receiver; another name (`get`) only where the receiver speaks for it.
CONNECTION_LIKE = re.compile(r"(?i)conn|db")
POOL_LIKE = r"(?i)(^|[._])(db|database|pool)\w*$|pool$"
BARE = r"^$"
# A file whose text has none of this defines no pair.
DEFINES = re.compile(
    r"getconn|putconn|raw_connection|close_returns|(?i:engine)\S*\.connect\b|def (_conn|_return)\b"
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


def mentions(vocabulary: Vocabulary) -> re.Pattern[str]:
    """Matches the text of every file that can have a finding: cheaper than to parse it."""
    anywhere = {acquire.name for acquire in vocabulary.acquires if not acquire.receiver} | vocabulary.releases
    parts = [r"\b(?:" + "|".join(sorted(map(re.escape, anywhere))) + r")\b"]
    for acquire in sorted(vocabulary.acquires):
        if acquire.receiver == ENGINE:
            parts.append(r"(?i:engine)\S*\." + re.escape(acquire.name) + r"\b")
        elif acquire.receiver:
            parts.append(
                r"(?:(?i:db|database|pool)\w*\.|self\.|cls\.|(?<![\w.]))" + re.escape(acquire.name) + r"\("
            )
    return re.compile("|".join(parts))


def learn(tree: ast.Module, known: Vocabulary) -> Vocabulary:
    """``known`` and what the functions of this file add; wrappers of wrappers up to three deep."""
    functions = [(scope.function, scope.owner) for scope in scopes(tree) if scope.function]
    for _ in range(3):
        before = known
        known = known.joined(_pairs(functions, known))
        if known == before:
            break
    return known.joined(_closing_pools(tree))


def _pairs(functions: Iterable[tuple[Function, str]], known: Vocabulary) -> Vocabulary:
    acquires: dict[str, Acquire] = {}
    releases: dict[str, str] = {}
    others: set[str] = set()
    for function, owner in functions:
        if function.name.startswith("__"):
            continue
        taken = _returns_connection(function, owner, known)
        if given_parameters(function, known):
            releases[function.name] = owner
        elif taken is None:
            others |= {function.name, f"{owner}.{function.name}"}
        else:
            receiver = "" if CONNECTION_LIKE.search(function.name) else POOL_LIKE if owner else BARE
            acquires[function.name] = taken._replace(
                name=function.name, receiver=receiver, certain=True, owner=owner
            )
    # The wrapper that takes and the one that gives back stand in one class: the fix names the latter.
    partner = {owner: name for name, owner in sorted(releases.items(), reverse=True)}
    paired = {
        acquire
        if acquire.close_releases
        else acquire._replace(release=partner.get(acquire.owner, acquire.release))
        for acquire in acquires.values()
    }
    # A name is what one definition says that acquires or releases, whatever its namesakes do.
    return Vocabulary(frozenset(paired), frozenset(releases), frozenset(others - set(acquires)))


def _returns_connection(function: Function, owner: str, known: Vocabulary) -> Optional[Acquire]:
    """How the connection was taken that this function hands to its caller; None if it hands none.

    Not counted: generators and properties, and a connection that is also kept in a field (the caller borrows it).
    """
    if is_generator(function) or decorators(function) & {"property", "cached_property", "contextmanager"}:
        return None
    taken: dict[str, Acquire] = {}
    kept: set[str] = set()
    returned: list[ast.expr] = []
    for node in ordered(*function.body):
        if isinstance(node, ast.Return) and node.value:
            returned.append(node.value)
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value:
            acquire = _taken(node.value, known, owner)
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if acquire and isinstance(target, ast.Name):
                    taken[target.id] = acquire
                elif isinstance(target, ast.Attribute):
                    kept.add(dotted(node.value))
    for value in returned:
        direct = _taken(value, known, owner)
        if direct:
            return direct
        name = dotted(value)
        if name in taken and name not in kept:
            return taken[name]
    return None


def _taken(value: ast.expr, known: Vocabulary, owner: str) -> Optional[Acquire]:
    while isinstance(value, (ast.Await, ast.NamedExpr)):
        value = value.value
    return acquire_of(value, known, owner) if isinstance(value, ast.Call) else None


def given_parameters(function: Function, known: Vocabulary) -> set[str]:
    """The parameters that a function hands to a function known to give back."""
    given: set[str] = set()
    for node in ordered(*function.body):
        if isinstance(node, ast.Call) and callee(node)[1] in known.releases:
            given.update(dotted(argument) for argument in arguments(node))
    return given & set(parameters(function))


def _closing_pools(tree: ast.Module) -> Vocabulary:
    """psycopg_pool's ``close_returns=True`` makes ``close()`` a release."""
    acquires = frozenset(
        Acquire("getconn", release="close", close_releases=True)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg == "close_returns"
        and getattr(node.value, "value", None) is True
    )
    return Vocabulary(acquires, frozenset(), frozenset())

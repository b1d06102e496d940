"""One file as the walk needs it: its functions, and the fields whose connections it gives back somewhere."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from .syntax import Scope, arguments, assignment, callee, dotted
from .vocabulary import Vocabulary, releases_by_name

CONTAINERS = frozenset({"list", "dict", "set", "deque", "defaultdict", "OrderedDict"})
STORES = frozenset({"append", "appendleft", "add", "push", "insert", "setdefault", "put_nowait"})


class Words(NamedTuple):
    """Names of fields, containers and globals whose connection a function gives back, or closes."""

    given: frozenset[str]
    closed: frozenset[str]


class Source:
    def __init__(self, scopes: Sequence[Scope], vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.scopes = scopes
        self.escaping: dict[str, str] = {}
        """Kind of exception that leaves a helper of this file, as far as already walked."""
        self._words: list[Words] = []
        counted: dict[str, list[Scope]] = {}
        for scope in self.scopes:
            counted.setdefault(scope.name, []).append(scope)
        self._unique = {name: found[0] for name, found in counted.items() if len(found) == 1}

    @cached_property
    def dead_ends(self) -> frozenset[str]:
        """The module's own lists and the like out of which nothing in this file ever takes what it puts in."""
        return _dead_ends(self.scopes[0])

    def helper(self, name: str) -> Scope | None:
        """The only function of this name here; None if there is none or more than one."""
        scope = self._unique.get(name)
        return scope if scope and scope.function else None

    def elsewhere(self, scope: Scope, close_releases: bool) -> Words:
        """What the other functions of this file give back or close; closing may be giving back."""
        if not self._words:
            self._words = [_words(one, self.vocabulary) for one in self.scopes]
        others = [(one, words) for one, words in zip(self.scopes, self._words) if one is not scope]
        # Whoever gives back is believed, only the same class is accused of closing.
        return Words(
            frozenset().union(
                *(words.given | (words.closed if close_releases else set()) for _, words in others)
            ),
            frozenset().union(*(words.closed for one, words in others if one.owner == scope.owner)),
        )


def _dead_ends(module: Scope) -> frozenset[str]:
    made: set[str] = set()
    for node in module.nodes:
        targets, value = assignment(node)
        called = callee(value)[1] if isinstance(value, ast.Call) else ""
        if isinstance(value, (ast.List, ast.Dict, ast.Set)) or called in CONTAINERS:
            made.update(map(dotted, targets))
    uses: Counter[str] = Counter()
    for node in [node for statement in module.body if made for node in ast.walk(statement)]:
        if isinstance(node, ast.Name):
            uses[node.id] += 1
        elif isinstance(node, ast.arg):
            uses[node.arg] += 1
        elif isinstance(node, ast.Call) and callee(node)[1] in STORES:
            uses[callee(node)[0]] -= 1
        elif isinstance(node, ast.Call) and callee(node) == ("", "len"):
            uses.subtract(map(dotted, arguments(node)))
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            uses[dotted(node.value)] -= 1
    return frozenset(name for name in made if uses[name] == 1)  # where it is made


def _words(scope: Scope, vocabulary: Vocabulary) -> Words:
    origins: dict[str, set[str]] = {name: set() for name in scope.parameters}
    for node in scope.nodes:
        for name, value in _bindings(node):
            origins.setdefault(name, set()).update(_mentioned([value], {}))
    given: set[str] = set()
    closed: set[str] = set()
    for node in scope.nodes:
        if not isinstance(node, ast.Call):
            continue
        if releases_by_name(callee(node)[1], vocabulary):
            given |= _mentioned(arguments(node), origins)
        elif callee(node)[1] == "close" and isinstance(node.func, ast.Attribute):
            closed |= _mentioned([node.func.value], origins)
    return Words(frozenset(given), frozenset(closed))


def _bindings(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    targets, value = assignment(node)
    if isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
        targets, value = [node.target], node.iter
    elif isinstance(node, ast.withitem) and node.optional_vars:
        targets, value = [node.optional_vars], node.context_expr
    for part in [part for target in targets for part in ast.walk(target)]:
        if value and isinstance(part, ast.Name):
            yield part.id, value


def _mentioned(values: Iterable[ast.expr], origins: dict[str, set[str]]) -> set[str]:
    """Last names and text keys in the values; a local name stands for what it was assigned from."""
    found: set[str] = set()
    for value in values:
        for node in ast.walk(value):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Name):
                found |= origins.get(node.id, {node.id})
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found

"""One file as the walk needs it: its functions, and the fields whose connections it gives back somewhere."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from .syntax import Scope, arguments, callee
from .vocabulary import Vocabulary, releases_by_name


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
    if isinstance(node, ast.Assign):
        targets, value = node.targets, node.value
    elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
        targets, value = [node.target], node.iter
    elif isinstance(node, ast.NamedExpr):
        targets, value = [node.target], node.value
    elif isinstance(node, ast.withitem) and node.optional_vars:
        targets, value = [node.optional_vars], node.context_expr
    else:
        return
    for target in targets:
        yield from ((part.id, value) for part in ast.walk(target) if isinstance(part, ast.Name))


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

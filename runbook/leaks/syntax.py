"""Questions to a syntax tree that know nothing about connections."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple, Optional, Union

Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]
# What runs later than the code around it, or not at all: a walk through a function does not enter it.
LATER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


class Scope(NamedTuple):
    """A function, or the module's own statements (name ``<module>``, ``function`` None)."""

    name: str
    body: list[ast.stmt]
    nodes: list[ast.AST]
    """``ordered(*body)``: made once, read often."""
    function: Optional[Function]
    owner: str
    """The class around it, or an empty string."""

    @property
    def parameters(self) -> list[str]:
        """Their names, without self and cls."""
        given = self.function.args if self.function else ast.arguments([], [], None, [], [], None, [])
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        return [argument.arg for argument in every if argument.arg not in ("self", "cls")]

    @property
    def decorators(self) -> set[str]:
        """Their last names: ``{"contextmanager", "fixture"}``."""
        named = self.function.decorator_list if self.function else []
        targets = [one.func if isinstance(one, ast.Call) else one for one in named]
        return {dotted(target).rpartition(".")[2] for target in targets}

    @property
    def is_generator(self) -> bool:
        return any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in self.nodes)


def name_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def dotted(node: ast.AST) -> str:
    """``self.pool`` for that chain of names; an empty string for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    parts.append(node.id)
    return ".".join(reversed(parts))


def leftward(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all that it is reached through: ``conn.cursor().execute``, ``conn.cursor()``, … ``conn``."""
    while True:
        yield node
        if isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred, ast.Await)):
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            return


def root(node: ast.AST) -> str:
    """The name on the far left: ``conn`` for ``conn.cursor().execute``; an empty string if there is none."""
    *_, last = leftward(node)
    return last.id if isinstance(last, ast.Name) else ""


def callee(call: ast.Call) -> tuple[str, str]:
    """(receiver, name) of a call: ``("self.pool", "getconn")``, ``("", "helper")``.

    A receiver that is itself a call gives that call's chain: ``get_engine().connect()`` has ``get_engine``.
    """
    if isinstance(call.func, ast.Name):
        return "", call.func.id
    if isinstance(call.func, ast.Attribute):
        value = call.func.value
        return dotted(value.func if isinstance(value, ast.Call) else value), call.func.attr
    return "", ""


def arguments(call: ast.Call) -> list[ast.expr]:
    """Positional and keyword arguments, stars taken off."""
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    return [value.value if isinstance(value, ast.Starred) else value for value in values]


def assignment(node: ast.AST) -> tuple[list[ast.expr], Optional[ast.expr]]:
    """Targets and value of anything that assigns; none of either for anything else."""
    if isinstance(node, ast.Assign):
        return node.targets, node.value
    if isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)) and node.value:
        return [node.target], node.value
    return [], None


def ordered(*nodes: ast.AST) -> list[ast.AST]:
    """The nodes and all below them, inner before outer and left before right: the order of evaluation.

    Functions, lambdas and classes are listed but not entered. No recursion: the depth is the text's choice.
    """
    found: list[ast.AST] = []
    waiting = list(nodes)
    while waiting:
        current = waiting.pop()
        found.append(current)
        if not isinstance(current, LATER):
            waiting.extend(_children(current))
    found.reverse()
    return found


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """As ast.iter_child_nodes, without the contexts (Load, Store) that are a third of every tree."""
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, list):
            yield from (one for one in value if isinstance(one, ast.AST))
        elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
            yield value


def scopes(tree: ast.Module) -> Iterator[Scope]:
    """The module first, then every function in it, however deep."""
    module = Scope("<module>", tree.body, ordered(*tree.body), None, "")
    yield module
    waiting: list[tuple[list[ast.AST], str]] = [(module.nodes, "")]
    while waiting:
        nodes, owner = waiting.pop()
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                scope = Scope(node.name, node.body, ordered(*node.body), node, owner)
                yield scope
                waiting.append((scope.nodes, owner))
            elif isinstance(node, ast.ClassDef):
                waiting.append((ordered(*node.body), node.name))

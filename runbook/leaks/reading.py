"""What an expression means for the connection that is being followed. Changes nothing, walks nothing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple, Optional

from .source import Source
from .state import State
from .syntax import Scope, arguments, callee, dotted, leftward, name_set, root
from .vocabulary import Acquire, acquire_of, called, releases_by_name

# Give the connection back on which they are called, in the pools that wrap it.
OWN_RELEASES = frozenset({"release", "putback", "give_back", "return_to_pool"})
CLOSES = frozenset({"close", "aclose", "invalidate", "detach", "__exit__", "__aexit__"})
# Their result is the connection they were given, or it on which they are called.
ENTERS = frozenset({"enter_context", "enter_async_context"})
CLOSING = frozenset({"closing", "aclosing"})
PASS_ON = ENTERS | CLOSING | {"cast", "wait_for", "shield", "run_until_complete"}
TAKE_OUT = frozenset({"pop", "popleft", "popitem", "get", "values", "items", "copy", "execution_options"})
CURSOR_MAKERS = frozenset({"cursor", "execute", "pipeline"})
# They hand what they get to another thread or task.
SPAWNS = name_set("submit create_task ensure_future start_soon spawn add_task run_in_executor to_thread")


class Site(NamedTuple):
    """A call that takes a connection, and how the text around it uses the result."""

    call: ast.Call
    acquire: Acquire
    in_with: bool


def sites(source: Source, scope: Scope) -> Iterator[Site]:
    """The acquires of a scope, in the order of the text."""
    found = [
        (call, acquire)
        for call in scope.nodes
        if isinstance(call, ast.Call)
        for acquire in [acquire_of(call, source.vocabulary, scope.owner)]
        if acquire
    ]
    above = {child: node for node in scope.nodes for child in ast.iter_child_nodes(node)} if found else {}
    for call, acquire in found:
        node: ast.AST = call
        closing = entered = False
        while True:
            parent = above[node]
            if isinstance(parent, ast.Call) and callee(parent)[1] in PASS_ON:
                closing |= callee(parent)[1] in CLOSING
                entered |= callee(parent)[1] in ENTERS
            elif not isinstance(parent, ast.Await):
                break
            node = parent
        entered |= isinstance(parent, ast.withitem) and parent.context_expr is node
        # Only a name says that this is a connection, and a `with` says that it is a context manager.
        manager = not acquire.certain or called(call)[1] in source.vocabulary.managers
        if closing or not (entered and manager):
            yield Site(call, acquire, in_with=entered and not closing)


def atoms(test: ast.expr) -> Iterator[str]:
    """The conditions a test is made of, as text; those with a call are left out, they may change their mind."""
    if isinstance(test, ast.BoolOp):
        for value in test.values:
            yield from atoms(value)
    elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from atoms(test.operand)
    elif asked := none_test(test):
        yield ast.unparse(asked[0])
    elif not any(isinstance(node, (ast.Call, ast.Await, ast.NamedExpr)) for node in ast.walk(test)):
        yield ast.unparse(test)


def none_test(test: ast.expr) -> Optional[tuple[ast.expr, bool]]:
    """(``x``, True) for ``x is None``, (``x``, False) for ``x is not None`` (or ==, !=)."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        against = test.comparators[0]
        if isinstance(against, ast.Constant) and against.value is None:
            return test.left, isinstance(test.ops[0], (ast.Is, ast.Eq))
    return None


class Reader:
    def __init__(self, source: Source, scope: Scope, acquire: Acquire, site: Optional[ast.Call]) -> None:
        self.vocabulary, self.acquire, self.site = source.vocabulary, acquire, site
        self.nodes = scope.nodes
        self.pools = self._pools()
        self.closures = dict(self._releasing_closures())
        self.keys = self._deciding_conditions()

    # Who has the connection

    def carries(self, value: ast.AST, state: State) -> bool:
        """Is the value the connection, or a container of it?"""
        if value is self.site:
            return state.live
        name = dotted(value)
        if name:
            if (
                isinstance(value, ast.Attribute)
                and value.attr == "connection"
                and root(value) in state.cursors
            ):
                return True
            return name in state.names or any(known.startswith(name + ".") for known in state.names)
        if isinstance(value, (ast.Await, ast.Starred, ast.NamedExpr, ast.Subscript)):
            return self.carries(value.value, state)
        if isinstance(value, ast.IfExp):
            return self.carries(value.body, state) or self.carries(value.orelse, state)
        if isinstance(value, (ast.BoolOp, ast.Dict)):
            return any(self.carries(one, state) for one in value.values)
        if isinstance(value, (ast.Tuple, ast.List, ast.Set)):
            return any(self.carries(one, state) for one in value.elts)
        if isinstance(value, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
            return self.carries(value.elt, state)
        if isinstance(value, ast.Call):
            name = callee(value)[1]
            if name in TAKE_OUT and isinstance(value.func, ast.Attribute):
                return self.carries(value.func.value, state)
            if name in PASS_ON or name in ("list", "tuple", "set", "reversed") or "wrap" in name.lower():
                return any(self.carries(one, state) for one in arguments(value))
        return False

    def hands_out(self, value: ast.expr, state: State) -> bool:
        """Does who gets the value get the connection with it? An object made from it counts, and a function
        that gives it back."""
        if self.carries(value, state) or (isinstance(value, ast.Name) and self._closes_over(value.id, state)):
            return True
        if isinstance(value, (ast.Tuple, ast.List)):
            return any(self.hands_out(one, state) for one in value.elts)
        if isinstance(value, ast.Call):
            parts = arguments(value)
            if any(part is self.site for part in parts):
                return True
            return makes_object(value) and any(self.hands_out(part, state) for part in parts)
        return isinstance(value, ast.Lambda) and bool(self._given_inside(value) & state.names)

    def touches(self, node: ast.AST, state: State) -> bool:
        """Is the node reached through the connection: ``conn.cursor().execute``?"""
        return any(
            dotted(part) in state.names or (part is self.site and state.live) for part in leftward(node)
        )

    def makes_cursor(self, value: Optional[ast.expr], name: str, state: State) -> bool:
        """Is the value, given to ``name``, a cursor on the connection?"""
        while isinstance(value, ast.Await):
            value = value.value
        if not isinstance(value, ast.Call):
            return False
        if callee(value)[1] in CURSOR_MAKERS:
            return self.touches(value.func, state) or root(value) in state.cursors
        return "cur" in name and any(self.carries(part, state) for part in arguments(value))

    # What a call does with it

    def gives_back(self, call: ast.Call, state: State) -> bool:
        """Does this call give the connection back, or see to it that it will be?"""
        name = callee(call)[1]
        if name == "closeall":  # the end of the pool ends every loan
            return True
        parts = arguments(call)
        if any(self._carried(part, call, state) for part in parts):
            if releases_by_name(name, self.vocabulary) or any(self._is_release(part) for part in parts):
                return True
            if name in ENTERS and self.acquire.close_releases:
                return True
        if any(isinstance(part, ast.Lambda) and self._given_inside(part) & state.names for part in parts):
            return True
        if any(isinstance(part, ast.Name) and self._closes_over(part.id, state) for part in parts):
            return True
        if isinstance(call.func, ast.Name):
            return self._closes_over(call.func.id, state)
        if isinstance(call.func, ast.Attribute) and self.carries(call.func.value, state):
            return name in OWN_RELEASES or (self.acquire.close_releases and name in CLOSES)
        return False

    def _carried(self, part: ast.expr, call: ast.Call, state: State) -> bool:
        if self.carries(part, state):
            return True
        # `[pool.putconn(conn) for conn in conns]`: the name comes from a comprehension.
        return isinstance(part, ast.Name) and any(
            isinstance(node, ast.comprehension)
            and dotted(node.target) == part.id
            and self.carries(node.iter, state)
            for node in self.nodes
        )

    def closes(self, call: ast.Call, state: State) -> bool:
        """``conn.close()`` on a connection that this does not give back; also ``closing`` given to a stack."""
        if callee(call)[1] in ENTERS:
            return any(
                isinstance(part, ast.Call) and callee(part)[1] in CLOSING and self.carries(part, state)
                for part in arguments(call)
            )
        return (
            callee(call)[1] in ("close", "aclose")
            and isinstance(call.func, ast.Attribute)
            and self.carries(call.func.value, state)
        )

    def leaves_unsure(self, call: ast.Call, state: State) -> bool:
        """Handed to an object, a task or a context manager of which nothing is known."""
        if not any(self.carries(part, state) for part in arguments(call)):
            return False
        return makes_object(call) or callee(call)[1] in SPAWNS

    def _is_release(self, value: ast.expr) -> bool:
        """A reference to a function that gives back: ``pool.putconn``, not called."""
        name = dotted(value).rpartition(".")[2]
        return bool(name) and releases_by_name(name, self.vocabulary)

    def _closes_over(self, name: str, state: State) -> bool:
        return bool(self.closures.get(name, frozenset()) & state.names)

    def _releasing_closures(self) -> Iterator[tuple[str, frozenset[str]]]:
        """Local functions and lambdas that give an outer variable back: (name, variables)."""
        for node in self.nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield node.name, self._given_inside(node)
            elif isinstance(node, ast.Assign):
                value = node.value
                if isinstance(value, ast.Lambda) or (
                    isinstance(value, ast.Call) and callee(value)[1] == "partial"
                ):
                    yield dotted(node.targets[0]), self._given_inside(value)

    def _given_inside(self, node: ast.AST) -> frozenset[str]:
        given: set[str] = set()
        for part in ast.walk(node):
            if isinstance(part, ast.Call):
                receiver, name = callee(part)
                parts = arguments(part)
                if releases_by_name(name, self.vocabulary) or any(self._is_release(one) for one in parts):
                    given.update(dotted(one) for one in parts)
                if name in OWN_RELEASES or (self.acquire.close_releases and name in CLOSES):
                    given.add(receiver)
        return frozenset(given - {""})

    # Conditions

    def _deciding_conditions(self) -> frozenset[str]:
        """Texts of the conditions that guard an acquire or a release: only they are worth remembering."""
        keys: set[str] = set()
        for node in self.nodes:
            if isinstance(node, (ast.If, ast.While, ast.IfExp)):
                tests = [node.test]
            elif isinstance(node, ast.BoolOp):
                tests = node.values
            else:
                continue
            if any(isinstance(part, ast.Call) and self._decides(part) for part in ast.walk(node)):
                for test in tests:
                    keys.update(atoms(test))
        return frozenset(keys)

    def _pools(self) -> frozenset[str]:
        """Texts of the objects that give and take connections here: while one is out they exist."""
        calls = [node for node in self.nodes if isinstance(node, ast.Call)]
        pools = {callee(call)[0] for call in calls if releases_by_name(callee(call)[1], self.vocabulary)}
        return frozenset(pools | ({called(self.site)[0]} if self.site else set()))

    def _decides(self, call: ast.Call) -> bool:
        name = callee(call)[1]
        guards = name in CLOSES or name in self.closures or releases_by_name(name, self.vocabulary)
        return guards or call is self.site

    def truth(self, test: ast.expr, state: State) -> Optional[bool]:
        """True or False where the way taken so far decides the condition; None where it is open."""
        if isinstance(test, ast.Constant):
            return bool(test.value)
        if isinstance(test, ast.NamedExpr):
            return self.truth(test.target, state)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.truth(test.operand, state)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            parts = [self.truth(value, state) for value in test.values]
            decisive = isinstance(test.op, ast.Or)
            if decisive in parts:
                return decisive
            return None if None in parts else not decisive
        if asked := none_test(test):
            is_none = self._is_none(asked[0], state)
            return None if is_none is None else is_none is asked[1]
        if self._exactly(test, state):
            return True
        if isinstance(test, ast.Attribute) and test.attr == "closed" and self._pool(test.value, state):
            return False
        return dict(state.facts).get(ast.unparse(test)) if self.keys else None

    def _is_none(self, value: ast.expr, state: State) -> Optional[bool]:
        if isinstance(value, ast.NamedExpr):
            value = value.target
        if self._exactly(value, state):
            return False
        return dict(state.facts).get(ast.unparse(value) + " is None")

    def _exactly(self, value: ast.expr, state: State) -> bool:
        return (state.live and dotted(value) in state.names) or self._pool(value, state)

    def _pool(self, value: ast.expr, state: State) -> bool:
        return state.live and dotted(value) in self.pools - {""}

    def refine(self, test: ast.expr, outcome: bool, state: State) -> State:
        """The state with what the outcome of a condition tells."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self.refine(test.operand, not outcome, state)
        if isinstance(test, ast.BoolOp):
            if outcome is isinstance(test.op, ast.And):
                for value in test.values:
                    state = self.refine(value, outcome, state)
            return state
        asked = none_test(test)
        text = ast.unparse(asked[0] if asked else test)
        if text not in self.keys:
            return state
        # What is not None is taken to be true, as connections and pools are.
        facts = {**dict(state.facts), text: asked[1] is not outcome if asked else outcome}
        if asked or outcome:
            facts[text + " is None"] = not facts[text]
        return state._replace(facts=frozenset(facts.items()))

    def assigned(self, name: str, value: Optional[ast.expr], state: State) -> State:
        """The state after ``name = value``: what was known of the name is gone, a constant is known."""
        whole = re.compile(r"(?<![\w.])" + re.escape(name) + r"(?!\w)")
        facts = {text: truth for text, truth in state.facts if not whole.search(text)}
        if isinstance(value, ast.Constant) and name in self.keys:
            facts[name] = bool(value.value)
            facts[name + " is None"] = value.value is None
        return state._replace(facts=frozenset(facts.items()))


def makes_object(call: ast.Call) -> bool:
    """By its name a class: ``Session(conn)``, ``functools.partial(f, conn)``."""
    name = callee(call)[1].lstrip("_")
    return name[:1].isupper() or name == "partial"

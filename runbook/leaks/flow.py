"""The walk: every way through one function, and what becomes of one connection on each.

A small abstract interpreter over the syntax tree. Exceptions are ways too: each operation that can raise opens
one. A connection that is still held where the function ends is a ``Loss``; ``rules`` gives it a name.

It errs towards silence: where only a name could decide and nothing is known of it, the connection counts as in
good hands.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Optional, Union

from .errors import SETTINGS, covers, of_connection, of_others
from .reading import CLOSING, Reader
from .source import STORES, Source, Words
from .state import ANY, CONN, DB, Flow, Loss, Release, State, Status, Step, TooManyPaths, Way
from .syntax import Scope, arguments, assignment, callee, dotted, ordered, root
from .vocabulary import CONNECTION_LIKE, Acquire, releases_by_name

MAX_ROUNDS, BUDGET = 4, 20_000
EXITS = {("sys", "exit"), ("os", "_exit"), ("", "exit"), ("", "quit")}
MAKES = (ast.Call, ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp, ast.Tuple)
ITERATES = frozenset({"list", "tuple", "set", "dict", "next", "sorted", "execute_values", "execute_batch"})

# Parts what arrives at the head of a loop: fills the second list with what leaves, returns what stays.
Head = Callable[[list[State], list[State]], list[State]]


class Walk:
    """Follows the connection that ``site`` takes in ``scope``; without a site, the one in the parameters ``held``."""

    def __init__(
        self,
        source: Source,
        scope: Scope,
        acquire: Acquire,
        site: Optional[ast.Call] = None,
        held: Iterable[str] = (),
    ) -> None:
        self.source, self.scope, self.acquire, self.site = source, scope, acquire, site
        self.losses: list[Loss] = []
        self.releases: set[Release] = set()
        self.returned = False
        """Handed to the caller on some way: this function is a wrapper."""
        self.in_with = False
        """Some ``with`` over the connection gives nothing back."""
        self.escaping: set[str] = set()
        """Kinds of the exceptions that leave the function."""
        self._held = frozenset(held)
        self._read = Reader(source, scope, acquire, site)
        self._budget = BUDGET
        self._within: list[tuple[str, int]] = []
        # pytest resumes a fixture after its yield whatever became of the test.
        self._yield_raises = "fixture" not in scope.decorators
        self._globals: set[str] = set()
        self._targets: set[str] = set()
        self._made: set[str] = set()
        """Names of lists, objects and the like that this function makes and nothing else holds."""
        for node in self._read.nodes:
            if isinstance(node, (ast.Global, ast.Nonlocal)):
                self._globals.update(node.names)
            targets, value = assignment(node)
            if value is not None and self._takes(value):
                self._targets.update(dotted(target) for target in targets)
            if isinstance(value, MAKES) and len(targets) == 1:
                self._made.add(dotted(targets[0]))
        loops = (node for node in self._read.nodes if isinstance(node, (ast.For, ast.AsyncFor)))
        self._made.difference_update(dotted(loop.target) for loop in loops)

    def run(self) -> None:
        function = self.scope.function
        first = function.lineno if function else 1
        entry = (
            State(Status.HELD, self._held, steps=(Step("entered", first),)) if self.site is None else State()
        )
        last = (self.scope.body[-1].end_lineno or first) if self.scope.body else first
        for way, state in self._block(self.scope.body, [entry]).all():
            if way == Way.RAISE:
                self.escaping.add(state.error or ANY)
            # An error in the module's own statements ends the import or the script: nothing lives on to leak.
            if state.live and (function or way != Way.RAISE):
                line = state.steps[-1].line if way != Way.NEXT else last
                self.losses.append(Loss(state, way, line))

    @property
    def elsewhere(self) -> Words:
        return self.source.elsewhere(self.scope, self.acquire.close_releases)

    # Statements: each reads the states before it and adds the states after it to the flow

    def _block(self, statements: Sequence[ast.stmt], states: Iterable[State]) -> Flow:
        done = Flow()
        current = list(states)
        for statement in statements:
            if not current:
                break
            self._budget -= len(current)
            if self._budget < 0:
                raise TooManyPaths
            flow = Flow()
            # By name: `match` and `except*` have no class in the ast of Python 3.9.
            getattr(self, "_do_" + type(statement).__name__, self._do_simple)(statement, current, flow)
            current = flow.take(Way.NEXT)
            done.join(flow)
        for state in current:
            done.add(Way.NEXT, state)
        return done

    def _do_simple(self, node: ast.stmt, states: list[State], flow: Flow) -> None:
        targets, assigned = assignment(node)
        for value, ready in self._alternatives(
            {dotted(target) for target in targets}, assigned, states, flow
        ):
            for before in self._evaluate(value or node, ready, flow):
                state = before
                for target in targets:
                    asks = isinstance(target, ast.Attribute) and target.attr in SETTINGS
                    if asks and self._read.touches(target, state):
                        self._fail(flow, state, DB, node.lineno, dead=True)
                    state = self._bind(target, value, state)
                if isinstance(node, ast.Delete):
                    for target in node.targets:
                        state = self._forget(dotted(target), None, state, node.lineno)
                elif isinstance(node, ast.Assert) and not self._read.truth(node.test, state):
                    self._fail(flow, state, ANY, node.lineno)
                flow.add(Way.NEXT, self._settled(state, node.lineno))

    def _alternatives(
        self, names: set[str], value: Optional[ast.expr], states: list[State], flow: Flow
    ) -> Iterator[tuple[Optional[ast.expr], list[State]]]:
        """The values that ``names`` may get, each with the states in which they get it.

        ``given or pool.getconn()`` has two, and so has ``own = conn is None`` where a condition on the name decides
        about acquire or release.
        """
        test: ast.expr
        choices: tuple[ast.expr, ast.expr]
        if isinstance(value, ast.IfExp) and self._takes(value):
            test, choices = value.test, (value.body, value.orelse)
        elif isinstance(value, ast.BoolOp) and isinstance(value.op, ast.Or) and self._takes(value):
            rest = value.values[1:]
            other = rest[0] if len(rest) == 1 else ast.BoolOp(op=value.op, values=rest)
            test, choices = value.values[0], (value.values[0], other)
        elif isinstance(value, (ast.Compare, ast.UnaryOp, ast.BoolOp)) and names & self._read.keys:
            test, choices = value, (ast.Constant(True), ast.Constant(False))
        else:
            yield value, states
            return
        tested = self._evaluate(test, states, flow)
        for choice, outcome in zip(choices, (True, False)):
            ready = [
                self._read.refine(test, outcome, state)
                for state in tested
                if self._read.truth(test, state) is not (not outcome)
            ]
            yield from self._alternatives(names, choice, ready, flow)

    def _takes(self, value: ast.expr) -> bool:
        return any(part is self.site for part in ordered(value))

    def _do_Return(self, node: ast.Return, states: list[State], flow: Flow) -> None:
        for state in self._evaluate(node.value, states, flow):
            handed = node.value is not None and state.live and self._read.hands_out(node.value, state)
            self.returned |= handed
            after = state.safe() if handed else state.step("return", node.lineno)
            flow.add(Way.RETURN, self._settled(after, node.lineno))

    def _do_Raise(self, node: ast.Raise, states: list[State], flow: Flow) -> None:
        for state in states:
            if node.exc is None:
                flow.add(Way.RAISE, state._replace(error=state.error or ANY))
            else:
                raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                kind = dotted(raised).rpartition(".")[2] or ANY
                flow.add(Way.RAISE, state._replace(error=kind).step("raise", node.lineno))

    def _do_Break(self, node: Union[ast.Break, ast.Continue], states: list[State], flow: Flow) -> None:
        way = Way.BREAK if isinstance(node, ast.Break) else Way.CONTINUE
        for state in states:
            flow.add(way, state.step(way, node.lineno))

    _do_Continue = _do_Break

    def _do_FunctionDef(self, node: ast.FunctionDef, states: list[State], flow: Flow) -> None:
        for state in states:
            flow.add(Way.NEXT, self._settled(self._forget(node.name, None, state, node.lineno), node.lineno))

    _do_AsyncFunctionDef = _do_ClassDef = _do_FunctionDef

    def _do_If(self, node: ast.If, states: list[State], flow: Flow) -> None:
        holds, fails = self._branches(node.test, states, flow)
        flow.join(self._block(node.body, holds))
        flow.join(self._block(node.orelse, fails))

    def _branches(self, test: ast.expr, states: list[State], flow: Flow) -> tuple[list[State], list[State]]:
        """The states in which the condition holds, and those in which it does not."""
        branches: dict[bool, list[State]] = {True: [], False: []}
        for state in self._evaluate(test, states, flow):
            known = self._read.truth(test, state)
            asked = known is None and any(dotted(part) in state.names for part in ordered(test))
            after = state._replace(dead=state.dead or asked)
            for outcome, where in branches.items():
                if known is not (not outcome):
                    way = after if known is not None else after.step(str(outcome).lower(), test.lineno)
                    where.append(self._read.refine(test, outcome, way))
        return branches[True], branches[False]

    def _do_Match(self, node: ast.Match, states: list[State], flow: Flow) -> None:
        ready = self._evaluate(node.subject, states, flow)
        for case in node.cases:
            flow.join(self._block(case.body, [state.step("true", case.pattern.lineno) for state in ready]))
        wildcard = any(case.guard is None and ast.unparse(case.pattern) == "_" for case in node.cases)
        for state in [] if wildcard else ready:
            flow.add(Way.NEXT, state)

    def _do_While(self, node: ast.While, states: list[State], flow: Flow) -> None:
        def head(arriving: list[State], leaving: list[State]) -> list[State]:
            staying, fails = self._branches(node.test, arriving, flow)
            leaving.extend(fails)
            return staying

        self._loop(node.body, node.orelse, states, flow, head)

    def _do_For(self, node: ast.For, states: list[State], flow: Flow) -> None:
        rounds = 0

        def head(arriving: list[State], leaving: list[State]) -> list[State]:
            nonlocal rounds
            rounds += 1
            staying = []
            for state in arriving:
                # A list that holds our connection has at least one round, and no second one for it.
                ours = state.live and self._read.carries(node.iter, state)
                if not ours and (self._read.touches(node.iter, state) or root(node.iter) in state.cursors):
                    self._fail(flow, state, DB, node.lineno, dead=True)
                if not ours or rounds > 1:
                    leaving.append(state)
                if not ours or rounds == 1:
                    staying.append(self._bind(node.target, node.iter if ours else None, state))
            return staying

        self._loop(node.body, node.orelse, self._evaluate(node.iter, states, flow), flow, head)

    _do_AsyncFor = _do_For

    def _loop(
        self,
        body: Sequence[ast.stmt],
        orelse: Sequence[ast.stmt],
        arriving: list[State],
        flow: Flow,
        head: Head,
    ) -> None:
        """Rounds until nothing new arrives at the head of the loop."""
        left = Flow()
        seen: set[State] = set()
        for _ in range(MAX_ROUNDS):
            new = [state for state in arriving if state._replace(steps=()) not in seen]
            if not new:
                break
            seen.update(state._replace(steps=()) for state in new)
            leaving: list[State] = []
            inner = self._block(body, head(new, leaving))
            for state in leaving:
                left.add(Way.NEXT, state)
            for state in inner.take(Way.BREAK):
                flow.add(Way.NEXT, state)
            arriving = [*inner.take(Way.NEXT), *inner.take(Way.CONTINUE)]
            flow.join(inner)
        flow.join(self._block(orelse, left.take(Way.NEXT)))

    def _do_With(self, node: ast.With, states: list[State], flow: Flow) -> None:
        closing = False
        managers = [item.context_expr for item in node.items]
        suppressed = [
            kind
            for call in managers
            if isinstance(call, ast.Call) and callee(call)[1] == "suppress"
            for kind in call.args
        ]
        for item, manager in zip(node.items, managers):
            entered = []
            for before in self._evaluate(manager, states, flow):
                state = before
                if state.live and self._read.carries(manager, state):
                    wrapped = isinstance(manager, ast.Call) and callee(manager)[1] in CLOSING
                    closing |= wrapped or self.acquire.close_releases
                    self.in_with |= not closing
                    # Without `as` the connection still has the with statement to hold it.
                    state = state._replace(names=state.names or frozenset({"with"}))
                elif isinstance(manager, ast.Call) and state.live:
                    given = any(self._read.carries(part, state) for part in arguments(manager))
                    state = state._replace(unsure=state.unsure or given)
                if item.optional_vars is not None:
                    state = self._bind(item.optional_vars, manager, state)
                entered.append(state)
            states = entered
        entered = [self._settled(state, node.lineno) for state in states]
        for way, after in self._block(node.body, entered).all():
            state = self._close(after, node.lineno) if closing and after.live else after
            ends_here = suppressed and way == Way.RAISE
            certain = covers(ast.Tuple(elts=suppressed), state.error) if ends_here else False
            if certain is not False:
                flow.add(Way.NEXT, state._replace(error="").step("caught", node.lineno))
            if not certain:
                flow.add(way, state)

    _do_AsyncWith = _do_With

    def _do_Try(self, node: ast.Try, states: list[State], flow: Flow) -> None:
        inner = self._block(node.body, states)
        raised = inner.take(Way.RAISE)
        if node.orelse:
            inner.join(self._block(node.orelse, inner.take(Way.NEXT)))
        caught: list[list[State]] = [[] for _ in node.handlers]
        for state in raised:
            for handler, where in zip(node.handlers, caught):
                certain = covers(handler.type, state.error)
                where.append(state.step("caught", handler.lineno, handler.end_lineno or 0))
                if certain:
                    break
            else:
                inner.add(Way.RAISE, state)
        for handler, where in zip(node.handlers, caught):
            for way, state in self._nested("handler", node, handler.body, where).all():
                inner.add(way, state if way == Way.RAISE else state._replace(error=""))
        for way, state in inner.all():
            if not node.finalbody:
                flow.add(way, state)
                continue
            after = self._nested("finally", node, node.finalbody, [state.step("finally", node.lineno)])
            for done in after.take(Way.NEXT):
                flow.add(way, done)
            flow.join(after)

    _do_TryStar = _do_Try

    def _nested(self, what: str, node: ast.Try, body: Sequence[ast.stmt], states: Iterable[State]) -> Flow:
        self._within.append((what, node.lineno))
        flow = self._block(body, states)
        self._within.pop()
        return flow

    # Expressions

    def _evaluate(self, node: Optional[ast.AST], states: list[State], flow: Flow) -> list[State]:
        """The states after the expressions in ``node``; none where the program ends in them."""
        for part in ordered(node) if node else ():
            if isinstance(part, ast.Call):
                ends = part is not self.site and callee(part) in EXITS
                states = [] if ends else [self._call(part, state, flow) for state in states]
            elif isinstance(part, ast.NamedExpr):
                states = [self._bind(part.target, part.value, state) for state in states]
            elif isinstance(part, (ast.Yield, ast.YieldFrom)) and self._yield_raises:
                for state in states:
                    self._fail(flow, state, ANY, part.lineno)
        return states

    def _call(self, call: ast.Call, state: State, flow: Flow) -> State:
        name = callee(call)[1]
        if call is self.site:
            self._fail(flow, state, ANY, call.lineno)
            return self._acquired(call, state)
        if state.live:
            if self._read.gives_back(call, state):
                self.releases.add(Release(call.lineno, tuple(self._within)))
                return state.safe()
            if self._read.closes(call, state):
                return self._close(state, call.lineno)
            ours = any(self._read.carries(part, state) for part in arguments(call))
            if ours and name in STORES and isinstance(call.func, ast.Attribute):
                return self._place(call.func.value, state, inside=True)
            if self._read.leaves_unsure(call, state):  # should the taker fail, that is the taker's to mend
                return state._replace(unsure=True)
        kind, dead = self._raises(call, state)
        if kind:
            self._fail(flow, state, kind, call.lineno, dead)
        return state

    def _acquired(self, call: ast.Call, state: State) -> State:
        names = state.names - self._targets
        if state.live and not names:
            self.losses.append(Loss(state, "rebound", call.lineno))
        steps = (Step("acquired", call.lineno),)
        return State(Status.HELD, names, facts=state.facts, error=state.error, steps=steps)

    def _close(self, state: State, line: int) -> State:
        if self.acquire.close_releases:
            self.releases.add(Release(line, tuple(self._within)))
            return state.safe()
        return (
            state
            if state.status == Status.CLOSED
            else state._replace(status=Status.CLOSED).step("closed", line)
        )

    def _fail(self, flow: Flow, state: State, kind: str, line: int, dead: bool = False) -> None:
        if state.status != Status.SAFE:
            failed = state._replace(error=kind, dead=state.dead or (dead and state.live))
            flow.add(Way.RAISE, failed.step("raises", line))

    def _raises(self, call: ast.Call, state: State) -> tuple[str, bool]:
        """(kind of the error the call may raise or an empty string, whether the connection is its subject)."""
        name = callee(call)[1]
        # A release that fails, or somebody who is given the fresh connection, is not the caller's leak.
        if releases_by_name(name, self.source.vocabulary) or any(one is self.site for one in arguments(call)):
            return "", False
        if self._read.touches(call.func, state):
            return of_connection(call), True
        first = root(call.func)
        if first in state.cursors:
            return ("" if name == "close" else of_connection(call)), True
        read = any(root(part) in state.cursors for part in arguments(call))
        if read and name in ITERATES:
            return DB, True
        subject = read or any(self._read.carries(part, state) for part in arguments(call))
        helper = self.source.helper(name)
        return (self._escaping(helper) if helper else of_others(call)), subject

    def _escaping(self, helper: Scope) -> str:
        """Widest kind of exception that leaves a helper of this file, with every parameter taken for a connection."""
        cache = self.source.escaping
        if helper.name not in cache:
            cache[helper.name] = ANY  # while it is being walked: a helper that calls itself
            walk = Walk(self.source, helper, self.acquire, held=helper.parameters)
            with contextlib.suppress(TooManyPaths):
                walk.run()
                kinds = walk.escaping
                widest = ANY if kinds - {DB, CONN} else DB if DB in kinds else CONN if kinds else ""
                cache[helper.name] = widest
        return cache[helper.name]

    # Names

    def _bind(self, target: ast.expr, value: Optional[ast.expr], state: State) -> State:
        """The state after ``target = value``."""
        if isinstance(target, (ast.Tuple, ast.List)):
            values: Sequence[Optional[ast.expr]] = [value] * len(target.elts)
            if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts):
                values = value.elts
            for one, its in zip(target.elts, values):
                state = self._bind(one, its, state)
            return state
        if isinstance(target, ast.Starred):
            return self._bind(target.value, value, state)
        name = dotted(target)
        ours = value is not None and state.live and self._read.carries(value, state)
        if isinstance(value, ast.Call) and any(part is self.site for part in arguments(value)):
            # `conn = prepared(pool.getconn())`: by its name, what comes out is what went in.
            ours = ours or CONNECTION_LIKE.search(name) is not None
        cursor = self._read.makes_cursor(value, name, state)
        if name and not ours:
            state = self._forget(name, value, state, target.lineno)
        elif ours:
            known = self._read.assigned(name, None, state) if name else state
            state = self._place(target, known, inside=isinstance(target, ast.Subscript))
        if cursor and name:
            state = state._replace(cursors=state.cursors | {name})
            # A cursor on a connection without a name may be the way back to it.
            if not state.names and any(dotted(node) == f"{name}.connection" for node in self._read.nodes):
                state = state._replace(names=frozenset({f"{name}.connection"}))
        return state

    def _forget(self, name: str, value: Optional[ast.expr], state: State, line: int) -> State:
        gone = {known for known in state.names if known == name or known.startswith(name + ".")}
        left = state.names - gone
        state = self._read.assigned(name, value, state)
        if gone and not left and state.live:
            self.losses.append(Loss(state, "rebound", line))
            return State(facts=state.facts, error=state.error)
        return state._replace(names=left, cursors=state.cursors - {name})

    def _place(self, target: ast.expr, state: State, inside: bool) -> State:
        """The connection is put into a variable or a field, or inside what that holds."""
        container = target.value if isinstance(target, ast.Subscript) else target
        name = dotted(container)
        if not name:
            return state.safe()
        if self.scope.function is None or "." in name or name in self._globals:
            words = {name.rpartition(".")[2]}
            if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
                words.add(str(target.slice.value))
            if words & self.elsewhere.given:
                return state.safe()
        # Inside an object that was not made here: its owner looks after it.
        first = root(container)
        ours = self._made | self.source.dead_ends | {"self", "cls"}
        if (inside or "." in name) and first not in ours:
            return state.safe()
        return state._replace(names=state.names | {name})

    def _settled(self, state: State, line: int) -> State:
        """A connection that no name holds is lost on the spot."""
        if not state.live or state.names:
            return state
        self.losses.append(Loss(state, "unbound", line))
        return State(facts=state.facts, error=state.error)

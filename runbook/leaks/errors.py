"""Which operations can raise, and which handlers catch it.

A search that took every operation for a possible exception would report every line. So: what practically
cannot fail (a clock, a log line, ``append``) does not; an operation on the connection or its cursor raises what
a database raises; everything else that is called may raise anything.
"""

from __future__ import annotations

import ast
import re
from typing import Optional

from .state import ANY, CONN, DB
from .syntax import arguments, callee, dotted, name_set

QUIET_FUNCTIONS = name_set(
    """id len str repr bool type isinstance issubclass hasattr getattr setattr callable print range enumerate zip reversed
    list tuple dict set frozenset super min max sum any all abs round vars partial
    suppress closing aclosing nullcontext ExitStack AsyncExitStack
    time monotonic perf_counter time_ns sleep getpid get_ident uuid4"""
)
QUIET_METHODS = name_set(
    """append appendleft add insert extend setdefault update discard clear keys values items copy lower upper strip
    split rsplit startswith endswith join format debug info warning error exception critical log time monotonic
    perf_counter time_ns monotonic_ns now utcnow today isoformat total_seconds get_ident current_thread
    callback enter_context push suppress closing aclosing nullcontext ExitStack AsyncExitStack is_set sleep done cancelled
    remove getpid uuid4 inc dec observe"""
)
LOCK_METHODS = frozenset({"acquire", "release", "locked", "notify", "notify_all"})
# A question about the connection (`is_healthy(conn)`) is taken to answer, not to raise, where it is not known.
QUESTION = re.compile(r"(?i)^_*(is|has)_|alive|healthy|valid")
# `get` on a dictionary returns; on these it goes over a network.
NETWORK = re.compile(r"(?i)(requests|httpx|session|client|https?|api|cache|redis)$")
# These fail on a connection or cursor only if the connection is dead; a query fails for many reasons.
CALM = name_set(
    "cursor rollback close cancel reset fetchone fetchmany fetchall get_backend_pid get_transaction_status"
)
# Only hands the connection on.
STEADY = frozenset({"execution_options", "fileno"})
# Attributes whose setting asks the connection.
SETTINGS = frozenset({"autocommit", "isolation_level", "readonly", "read_only", "deferrable"})
PROBE = re.compile(r"(?is)\s*select\b(?!.*\bfrom\b)")
EVERYTHING = frozenset({"Exception", "BaseException"})
DATABASE_ERRORS = frozenset({"Error", "DatabaseError", "DBAPIError", "SQLAlchemyError"})
DEAD_ERRORS = frozenset({"OperationalError", "InterfaceError"})


def covers(caught: Optional[ast.expr], kind: str) -> Optional[bool]:
    """Does ``except caught`` (None: bare) catch this kind of exception? None: sometimes.

    A kind may also be the name of a class, of one that is raised here.
    """
    if caught is None:
        return True
    types = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    names = {dotted(one).rpartition(".")[2] for one in types}
    if names & EVERYTHING or kind in names:
        return True
    if kind not in (CONN, DB):
        return None
    # A constant tuple of errors (DEAD = (OperationalError, InterfaceError)) is taken for the database's.
    if names & DATABASE_ERRORS or any(name.isupper() for name in names):
        return True
    return True if kind == CONN and names & DEAD_ERRORS else None


def of_connection(call: ast.Call) -> str:
    """Kind of the error that a call on a connection or cursor raises; empty: none."""
    name = callee(call)[1]
    if name in STEADY:
        return ""
    return CONN if name in CALM or (name == "execute" and _is_probe(call)) else DB


def _is_probe(call: ast.Call) -> bool:
    """A query without a table, ``SELECT 1``: it fails only where the connection does."""
    statement = call.args[0] if call.args else None
    if isinstance(statement, ast.Call) and statement.args:  # SQLAlchemy's text("SELECT 1")
        statement = statement.args[0]
    return (
        isinstance(statement, ast.Constant)
        and isinstance(statement.value, str)
        and PROBE.match(statement.value) is not None
    )


def of_others(call: ast.Call) -> str:
    """Kind of the error that a call raises which has nothing to do with the connection; empty: none."""
    receiver, name = callee(call)
    if not receiver and isinstance(call.func, ast.Name):
        return "" if name in QUIET_FUNCTIONS or QUESTION.search(name) else ANY
    if name == "get":
        return ANY if NETWORK.search(receiver) else ""
    if name == "pop" and len(arguments(call)) == 2:
        return ""
    if name in LOCK_METHODS and re.search(r"(?i)lock|cond|sem", receiver):
        return ""
    return "" if name in QUIET_METHODS or QUESTION.search(name) else ANY

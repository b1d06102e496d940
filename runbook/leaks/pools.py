"""How large the pools are that a source makes, as far as the source alone says."""

from __future__ import annotations

import ast
import re
from typing import Any, NamedTuple, Optional

from .syntax import callee


class Maker(NamedTuple):
    """A call that makes a pool: its arguments are added up, each by name, by place, or by its default."""

    library: str
    arguments: tuple[tuple[str, Optional[int], Optional[int]], ...]
    """(name, place among the positional ones, default): None where it has no place, or no default."""


_ENGINE = Maker("sqlalchemy", (("pool_size", None, 5), ("max_overflow", None, 10)))
_PSYCOPG2 = Maker("psycopg2.pool", (("maxconn", 1, None),))
_PSYCOPG = Maker("psycopg_pool", (("max_size", None, None),))
_ASYNCPG = Maker("asyncpg", (("max_size", None, 10),))
MAKERS = {
    **dict.fromkeys(("create_engine", "create_async_engine", "QueuePool"), _ENGINE),
    **dict.fromkeys(("ThreadedConnectionPool", "SimpleConnectionPool"), _PSYCOPG2),
    **dict.fromkeys(("ConnectionPool", "AsyncConnectionPool"), _PSYCOPG),
    **{"create_pool": _ASYNCPG},
}
NAMED = re.compile(rf"\b(?:{'|'.join(MAKERS)})\b")
_LARGEST = 100_000


def pools(tree: ast.Module, filename: str) -> list[dict[str, Any]]:
    """``{library, file, line, maximum}`` for each pool that a file makes; ``maximum`` is None where its size is
    worked out at run time, or has no end."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and callee(node)[1] in MAKERS:
            maker = MAKERS[callee(node)[1]]
            sizes = [_size(node, *argument) for argument in maker.arguments]
            known = sum(size for size in sizes if size is not None) if None not in sizes else None
            found.append({"library": maker.library, "file": filename, "line": node.lineno, "maximum": known})
    return found


def _size(call: ast.Call, name: str, place: Optional[int], default: Optional[int]) -> Optional[int]:
    """One argument as a number; None where it is no number that the source tells."""
    given: Optional[ast.expr] = next((word.value for word in call.keywords if word.arg == name), None)
    if given is None and place is not None and len(call.args) > place:
        given = call.args[place]
    if given is None:
        # What comes by ** or *, or another class of pool, is not known; without them the default holds.
        unknown = any(word.arg in (None, "poolclass") for word in call.keywords)
        return None if unknown or any(isinstance(one, ast.Starred) for one in call.args) else default
    value = given.value if isinstance(given, ast.Constant) else None
    return value if type(value) is int and 0 <= value < _LARGEST else None

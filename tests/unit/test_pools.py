"""How large a pool is, from the source that makes it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Optional

import pytest

from runbook.evidence.step4_leaks import collect
from runbook.leaks.pools import pools

APPS = Path(__file__).parents[1] / "lab" / "apps"


@pytest.mark.parametrize(
    ("source", "maximum"),
    [
        ("ThreadedConnectionPool(2, 10, dsn)", 10),
        ("psycopg2.pool.SimpleConnectionPool(minconn=1, maxconn=7)", 7),
        ("ThreadedConnectionPool(2, settings.most, dsn)", None),
        ("ThreadedConnectionPool(*sizes)", None),
        ("create_engine(url)", 15),
        ("sa.create_engine(url, pool_size=3)", 13),
        ("create_async_engine(url, pool_size=3, max_overflow=0)", 3),
        ("create_engine(url, pool_size=3, max_overflow=-1)", None),
        ("create_engine(url, poolclass=NullPool)", None),
        ("create_engine(url, **options)", None),
        ("ConnectionPool(dsn, min_size=2, max_size=8)", 8),
        ("AsyncConnectionPool(dsn, min_size=2)", None),
        ("await asyncpg.create_pool(dsn)", 10),
        ("ConnectionPool(dsn, max_size=True)", None),
    ],
)
def test_the_maximum_that_a_source_says(source: str, maximum: Optional[int]) -> None:
    (found,) = pools(ast.parse(f"\n{source}\n"), "app/pool.py")
    assert (found["maximum"], found["file"], found["line"]) == (maximum, "app/pool.py", 2)


def test_a_name_alone_makes_no_pool() -> None:
    assert pools(ast.parse("from sqlalchemy import create_engine  # create_engine(url)\n"), "x.py") == []


@pytest.mark.parametrize(("app", "maximum"), [("sqlalchemy", 10), ("psycopg", 8), ("psycopg2", None)])
def test_the_pools_of_the_labs_apps(app: str, maximum: Optional[int]) -> None:
    (found,) = collect([str(APPS / app)], 10)["pools"]
    assert (found["library"].partition(".")[0].removesuffix("_pool"), found["maximum"]) == (app, maximum)

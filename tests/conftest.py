"""Fixtures that several test rooms share: real PostgreSQL servers with the database `odras`. And two rules."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.lab.account import fresh_directory
from tests.lab.database import prepare
from tests.lab.postgres import Postgres

LEFT_OUT = 9  # exit status; pytest's own end with 5


def pytest_configure() -> None:
    """What a shell starts in the background ignores SIGINT, and so would everything that a test starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where CI is set a test that was skipped or left out is a failure: there everything can run.

    With a status of its own, so that nobody takes it for failed tests, which may be tried once more.
    """
    told = session.config.pluginmanager.get_plugin("terminalreporter").stats
    left_out = [name for name in ("skipped", "deselected") if told.get(name)]
    if os.environ.get("CI") and left_out and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        print(f"\nin CI no test may be {' or '.join(left_out)}")
        session.exitstatus = LEFT_OUT


def _server() -> Iterator[Postgres]:
    with Postgres(fresh_directory("odras-")) as server:
        prepare(server)
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for the whole test run; leave it running and its settings as they are.

    `tests.lab.postgres.Postgres`: `.host` "127.0.0.1", `.port`, `.sql("…", database="odras")`,
    `.connection(user, database)` = keyword arguments for psycopg2.connect, `.passwords[role]`.
    Database `odras` with the tables users, auth_tokens and projects. Roles, all LOGIN with a scram password:
    `odras_owner` (owns it), `odras_app` (SELECT, INSERT, UPDATE, DELETE), `odras_diagnosis` (pg_monitor);
    the superuser is `postgres`. One application user, `das_service`.
    """
    yield from _server()


@pytest.fixture
def fresh_postgres() -> Iterator[Postgres]:
    """A server of the test's own, in the same shape as `postgres`: stop, restart, kill, reconfigure it."""
    yield from _server()

"""Fixtures of the pool's tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.pool.house import House, Relay
from tests.lab.account import fresh_directory
from tests.lab.database import prepare
from tests.lab.postgres import Postgres


@pytest.fixture
def house(postgres: Postgres, tmp_path: Path) -> Iterator[House]:
    made = House(postgres, tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def breakable() -> Iterator[Postgres]:
    """One server for all tests that stop and crash theirs: making one takes longer than the tests."""
    with Postgres(fresh_directory("odras-")) as server:
        prepare(server)
        yield server


@pytest.fixture
def breakable_house(breakable: Postgres, tmp_path: Path) -> Iterator[House]:
    """On a server that the test may stop, crash and start."""
    if not breakable.running():
        breakable.start()
    made = House(breakable, tmp_path)
    yield made
    made.close()


@pytest.fixture
def relay(postgres: Postgres) -> Iterator[Relay]:
    made = Relay(postgres.host, postgres.port)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="runbook.pool")

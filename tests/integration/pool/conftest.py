"""Fixtures of the pool's tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.pool.house import House, Relay
from tests.lab.postgres import Postgres


@pytest.fixture
def house(postgres: Postgres, tmp_path: Path) -> Iterator[House]:
    made = House(postgres, tmp_path)
    yield made
    made.close()


@pytest.fixture
def fresh_house(fresh_postgres: Postgres, tmp_path: Path) -> Iterator[House]:
    """On a server that the test may stop, crash and start."""
    made = House(fresh_postgres, tmp_path)
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

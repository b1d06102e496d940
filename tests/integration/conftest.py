"""Fixtures of the tests that run the product against the lab."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab


@pytest.fixture(scope="session")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One lab for the whole test run, in whatever state the last test left it."""
    with Lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def lab(shared_lab: Lab) -> Lab:
    """The lab, with everything running and a login that works."""
    if not (shared_lab.server.running() and shared_lab.app_pids() and shared_lab.login() == 200):
        shared_lab.heal()
    return shared_lab

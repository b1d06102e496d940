"""Talking to PostgreSQL: once outside the pool, and again where a connection broke."""

from __future__ import annotations

import functools
import logging
from typing import Any, Callable, TypeVar, cast

import psycopg2

from runbook.pool import Settings

logger = logging.getLogger("runbook.app")

ATTEMPTS = 3
# SQLSTATEs of a session that ended, whatever it did; None: the connection broke without a word.
_LOST = {None, "57P01", "57P02", "57P03", "57P05", "25P03", "25P04", "08000", "08003", "08006"}

Work = TypeVar("Work", bound=Callable[..., Any])


def connect(settings: Settings, application_name: str, seconds: int) -> psycopg2.extensions.connection:
    """One connection for a command, without a pool; each statement may take `seconds`."""
    arguments = {**settings.connect_arguments(), "application_name": application_name}
    connection: psycopg2.extensions.connection = psycopg2.connect(**arguments)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT set_config('statement_timeout', %s, false)", (f"{seconds}s",))
    return connection


def again_if_lost(work: Work) -> Work:
    """Do it again on another connection if its own broke in the middle, at most ATTEMPTS times in all.

    So everything decorated must be harmless when it is done twice.
    """

    @functools.wraps(work)
    def attempt(*arguments: Any) -> Any:
        for _ in range(ATTEMPTS - 1):
            try:
                return work(*arguments)
            except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
                if error.pgcode not in _LOST:
                    raise
                logger.warning("Trying %s again: the connection broke: %s", work.__name__, one_line(error))
        return work(*arguments)

    return cast("Work", attempt)


def one_line(error: Exception) -> str:
    """Class and first line: those that follow may quote a statement with its values."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"

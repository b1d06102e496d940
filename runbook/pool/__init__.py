"""The connection pool that the application embeds, over psycopg2.

from runbook.pool import AsgiRequests, Pool, Settings, configure_logging

configure_logging("INFO")
pool = Pool(Settings.from_environment(), application_name="billing")
with pool.connection() as connection, connection.cursor() as cursor:
    cursor.execute("SELECT 1")
app = AsgiRequests(app, pool)        # who holds a connection, and whether its request is over
pool.close()
"""

from __future__ import annotations

from .log import configure_logging
from .pool import Pool, PoolClosed, PoolTimeout, TooManyWaiting
from .request import AsgiRequests, WsgiRequests, request
from .settings import Settings, SettingsError

__all__ = [
    "AsgiRequests",
    "Pool",
    "PoolClosed",
    "PoolTimeout",
    "Settings",
    "SettingsError",
    "TooManyWaiting",
    "WsgiRequests",
    "configure_logging",
    "request",
]

"""Connections: psycopg 3 and its pool."""

import os

from psycopg_pool import ConnectionPool

pool = ConnectionPool(os.environ["POSTGRES_DSN"], min_size=2, max_size=8, open=False)


def take():
    return pool.getconn()


def give(connection):
    pool.putconn(connection)

"""Connections: psycopg2's own pool, as its manual shows it."""

from pathlib import Path

from psycopg2.pool import ThreadedConnectionPool

lines = (Path(__file__).resolve().parents[1] / "app.env").read_text().splitlines()
settings = dict(line.split("=", 1) for line in lines if "=" in line)
pool = ThreadedConnectionPool(2, int(settings["DB_POOL_MAX"]), settings["DATABASE_URL"])


def take():
    return pool.getconn()


def give(connection):
    pool.putconn(connection)

"""The engine, made when the module is imported; gunicorn imports it once, before it forks (--preload)."""

import os

from sqlalchemy import create_engine, text

engine = create_engine(os.environ["SQLALCHEMY_DATABASE_URI"], pool_size=5, max_overflow=5)

if os.environ.get("CHECK_SCHEMA"):  # a connection that every worker inherits
    with engine.connect() as connection:
        connection.execute(text("SELECT user_id FROM users LIMIT 1"))


def take():
    return engine.raw_connection()


def give(connection):
    connection.close()

"""The reference application: `python -m runbook.app COMMAND`. All settings come from the environment."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from typing import Optional

import psycopg2

from runbook.pool import SettingsError, configure_logging
from runbook.pool.settings import read_environment_file

from .accounts import add_user
from .database import connect, one_line
from .schema import migrate
from .settings import read_owner, read_settings

REFUSED = 2  # exit status for settings and input that are refused; 1 is a failure


def main(arguments: Optional[list[str]] = None) -> int:
    """Run one command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m runbook.app", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", help="serve until SIGTERM; exit 3 if the schema is older than needed")
    check = commands.add_parser("check-config", help="check the settings; connects to nothing")
    check.add_argument("--env-file", metavar="FILE", help="read them from this file (systemd's syntax)")
    commands.add_parser("migrate", help="bring the schema up to date, as POSTGRES_OWNER_USER")
    add = commands.add_parser("add-user", help="add a user; the password is read from standard input")
    add.add_argument("name", help="1 to 150 characters")
    add.add_argument("--update", action="store_true", help="give an existing user this password")
    add.add_argument(
        "--database-password",
        action="store_true",
        help="the first line of standard input is POSTGRES_PASSWORD",
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "serve":
            return _serve()
        if options.command == "check-config":
            return _check_config(options.env_file)
        if options.command == "migrate":
            return _migrate()
        if options.database_password:
            os.environ["POSTGRES_PASSWORD"] = sys.stdin.readline().rstrip("\r\n")
        return _add_user(options.name, options.update)
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return REFUSED
    except psycopg2.Error as error:
        print(f"{options.command} failed: {one_line(error)}", file=sys.stderr)
        return 1


def _serve() -> int:
    # FastAPI takes longer to load than the other commands run.
    from .server import serve  # noqa: PLC0415

    settings, database = read_settings()
    configure_logging(settings.log_level)
    return serve(settings, database)


def _check_config(env_file: Optional[str]) -> int:
    settings, database = read_settings(read_environment_file(env_file) if env_file else os.environ)
    most = settings.workers * database.max_connections
    print(
        f"valid: {settings.name} on {settings.host} port {settings.port}, "
        f"{database.user}@{database.host}:{database.port}/{database.database}, "
        f"{settings.workers} workers with {most} connections at most"
    )
    return 0


def _migrate() -> int:
    owner, role = read_owner()
    connection = connect(owner, "app-migrate", seconds=600)
    try:
        before, after = migrate(connection, role)
    finally:
        connection.close()
    done = f"applied migrations {before + 1} to {after}" if before < after else "nothing to do"
    print(f"schema version {after}: {done}")
    return 0


def _add_user(name: str, update: bool) -> int:
    settings, database = read_settings()
    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    connection = connect(database, f"{settings.name}-add-user", seconds=10)
    try:
        with connection, connection.cursor() as cursor:
            done = add_user(cursor, name, password, update)
    except ValueError as error:
        print(error, file=sys.stderr)
        return REFUSED
    finally:
        connection.close()
    print(f"user {name}: {done}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The tables, as ordered migrations in plain SQL, and the version that this application needs.

Run once by the deployment, as the owner of the database: `python -m runbook.app migrate`. The application
connects as another role, which reads and writes rows and can change no table.
"""

from __future__ import annotations

from typing import Any, Optional

from psycopg2 import errors, sql

# Never edit one that was released: add another. The application before it must be able to go on with it,
# because it still runs while the new one is rolled out.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE public.users (
        user_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        username text NOT NULL UNIQUE,
        password_hash text NOT NULL,
        is_active boolean NOT NULL DEFAULT true,
        created_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE public.auth_tokens (
        token_hash bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
        user_id bigint NOT NULL REFERENCES public.users ON DELETE CASCADE,
        expires_at timestamptz NOT NULL
    );
    CREATE INDEX ON public.auth_tokens (user_id);
    CREATE INDEX ON public.auth_tokens (expires_at);
    """,
    """
    CREATE TABLE public.projects (
        project_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        user_id bigint NOT NULL REFERENCES public.users ON DELETE CASCADE,
        name text NOT NULL,
        description text,
        is_active boolean NOT NULL DEFAULT true,
        UNIQUE (user_id, name)
    );
    """,
)
REQUIRED = len(MIGRATIONS)

_LOCK = 7_065_706_469  # of the advisory lock: any number that nobody else uses in this database
_WAIT = "60s"  # for that lock, and for a table's

_PREPARE = """
    CREATE TABLE IF NOT EXISTS public.schema_version (
        version integer PRIMARY KEY,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""
# The two REVOKEs: creating tables, permanent or temporary, is what PUBLIC may do by default (the former up to
# PostgreSQL 14).
_GRANTS = """
    REVOKE CREATE ON SCHEMA public FROM PUBLIC;
    REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC;
    GRANT USAGE ON SCHEMA public TO {role};
    GRANT SELECT, INSERT, UPDATE, DELETE ON public.users, public.auth_tokens, public.projects TO {role};
    GRANT SELECT ON public.schema_version TO {role};
"""


def migrate(connection: Any, role: str) -> tuple[int, int]:
    """Bring the schema up to date and grant `role` its rights; the version before and after.

    connection: psycopg2's, of the owner. All in one transaction: done or not done. A second one that runs at
    the same time waits for the first (at most a minute) and finds nothing to do. Raises psycopg2.Error.
    """
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", (_WAIT,))
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        cursor.execute(_PREPARE)
        cursor.execute("SELECT coalesce(max(version), 0), current_database() FROM public.schema_version")
        before, database = cursor.fetchone()
        for number, statements in enumerate(MIGRATIONS[before:], before + 1):
            cursor.execute(statements)
            cursor.execute("INSERT INTO public.schema_version (version) VALUES (%s)", (number,))
        if before <= REQUIRED:  # what a newer one needs is not known here
            names = {"role": sql.Identifier(role), "database": sql.Identifier(database)}
            cursor.execute(sql.SQL(_GRANTS).format(**names))
    return before, max(before, REQUIRED)


def schema_problem(cursor: Any) -> Optional[str]:
    """What keeps this application from working with the schema that is there; None if nothing does.

    A newer schema is no problem (see MIGRATIONS).
    """
    cure = "run `python -m runbook.app migrate`"
    try:
        cursor.execute("SELECT coalesce(max(version), 0) FROM public.schema_version")
        version = cursor.fetchone()[0]
    except errors.UndefinedTable:
        version = 0
    except errors.InsufficientPrivilege:
        return f"the application's role may not read public.schema_version: {cure}, which grants it"
    if version >= REQUIRED:
        return None
    return f"schema version {version} is older than {REQUIRED}, which this application needs: {cure}"

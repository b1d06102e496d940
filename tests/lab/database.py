"""The database `odras` on a server of ours: roles, tables, a user and two projects."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

from tests.lab.apps.guide.backend.services.auth import hash_password
from tests.lab.postgres import Postgres

DATABASE = "odras"
ROLES = {
    "odras_owner": "LOGIN",  # owns the database and its tables
    "odras_app": "LOGIN",  # the application: reads and writes rows, nothing else
    "odras_diagnosis": "LOGIN IN ROLE pg_monitor",  # reads the server's statistics
}
USERNAME = "das_service"

TABLES = """
CREATE TABLE IF NOT EXISTS public.users (
    user_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    username text NOT NULL UNIQUE,
    salt bytea NOT NULL,
    password_hash bytea NOT NULL,
    is_active boolean NOT NULL DEFAULT true
);
CREATE TABLE IF NOT EXISTS public.auth_tokens (
    token_hash text PRIMARY KEY,
    user_id bigint NOT NULL REFERENCES public.users,
    expires_at timestamptz NOT NULL
);
CREATE TABLE IF NOT EXISTS public.projects (
    project_id text PRIMARY KEY,
    name text NOT NULL UNIQUE,
    description text,
    is_active boolean NOT NULL DEFAULT true
);
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO odras_app;
"""
# What a fault renamed; on a new server there is nothing to rename.
RENAME_BACK = """
DO $$ BEGIN ALTER TABLE public.users RENAME COLUMN login_name TO username;
EXCEPTION WHEN undefined_table OR undefined_column THEN NULL; END $$
"""


def prepare(server: Postgres, password: str = "") -> str:
    """Create what is missing of roles, database, tables and rows; the password of the user `das_service`.

    The passwords of the roles are in `server.passwords` afterwards; the returned one is the *user's*, for
    the login form: the one given, else a new one.
    """
    prepare_roles(server)
    server.sql(TABLES, database=DATABASE, user="odras_owner")
    password, salt = password or secrets.token_urlsafe(12), secrets.token_bytes(16)
    server.sql(
        "INSERT INTO public.users (username, salt, password_hash) VALUES (%s, %s, %s)"
        " ON CONFLICT (username) DO UPDATE SET salt = excluded.salt, password_hash = excluded.password_hash",
        (USERNAME, salt, hash_password(password, salt)),
        database=DATABASE,
    )
    server.sql(
        "INSERT INTO public.projects (project_id, name, description)"
        " VALUES ('p-1', 'Bridge', 'Requirements of a bridge'), ('p-2', 'Ferry', NULL)"
        " ON CONFLICT DO NOTHING",
        database=DATABASE,
    )
    return password


def prepare_reference(server: Postgres, password: str = "") -> str:
    """The same for the reference application, whose tables are its own to make."""
    prepare_roles(server)
    password = password or secrets.token_urlsafe(12)
    environment = {
        "PATH": os.environ["PATH"],
        "POSTGRES_HOST": server.host,
        "POSTGRES_PORT": str(server.port),
        "POSTGRES_DATABASE": DATABASE,
        "POSTGRES_USER": "odras_app",
        "POSTGRES_PASSWORD": server.passwords["odras_app"],
        "POSTGRES_OWNER_USER": "odras_owner",
        "POSTGRES_OWNER_PASSWORD": server.passwords["odras_owner"],
    }
    for command in (["migrate"], ["add-user", "--update", USERNAME]):
        subprocess.run(
            [sys.executable, "-m", "runbook.app", *command],
            cwd=Path(__file__).resolve().parents[2],
            env=environment,
            input=password,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    return password


def prepare_roles(server: Postgres) -> None:
    """Create what is missing of roles and database, and undo what faults did in them; rows stay as they are."""
    for role, attributes in ROLES.items():
        if role not in server.passwords:
            server.remember(**{role: secrets.token_urlsafe(18)})
        if not server.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)):
            server.sql(f"CREATE ROLE {role} {attributes}")
        server.sql(f"ALTER ROLE {role} LOGIN PASSWORD %s", (server.passwords[role],))
    if not server.sql("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)):
        server.sql(f"CREATE DATABASE {DATABASE} OWNER odras_owner")
    server.sql("ALTER SCHEMA public OWNER TO odras_owner", database=DATABASE)
    # What a fault has made to slow the application down.
    server.sql("DROP FUNCTION IF EXISTS public.audit CASCADE", database=DATABASE)
    server.sql(RENAME_BACK, database=DATABASE, user="odras_owner")

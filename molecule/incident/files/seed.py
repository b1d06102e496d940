"""The tables of the guide's app and its one user. Runs beside the app's auth.py, as the owner of the database."""

import json
import secrets
import sys

import psycopg2
from auth import hash_password

TABLES = """
CREATE TABLE IF NOT EXISTS public.users (
    user_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, username text NOT NULL UNIQUE,
    salt bytea NOT NULL, password_hash bytea NOT NULL, is_active boolean NOT NULL DEFAULT true
);
CREATE TABLE IF NOT EXISTS public.auth_tokens (
    token_hash text PRIMARY KEY, user_id bigint NOT NULL REFERENCES public.users, expires_at timestamptz NOT NULL
);
CREATE TABLE IF NOT EXISTS public.projects (
    project_id text PRIMARY KEY, name text NOT NULL UNIQUE, description text, is_active boolean NOT NULL DEFAULT true
);
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO odras_app;
"""
given = json.load(sys.stdin)
salt = secrets.token_bytes(16)
with psycopg2.connect(password=given["owner"]) as connection, connection.cursor() as cursor:
    cursor.execute(TABLES)
    cursor.execute(
        "INSERT INTO public.users (username, salt, password_hash) VALUES (%s, %s, %s)"
        " ON CONFLICT (username) DO UPDATE SET salt = excluded.salt, password_hash = excluded.password_hash",
        ("das_service", salt, hash_password(given["login"], salt)),
    )

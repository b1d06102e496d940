"""Users, their passwords and their sessions, in the database.

Every function borrows a connection for as long as its statements take and no longer: never while a password
is hashed. `deadline` is the moment, by `time.monotonic()`, up to which it may wait for a connection.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import re
import secrets
import threading
import time
from typing import Any, NamedTuple, Optional

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from runbook.pool import Pool

from .database import again_if_lost

logger = logging.getLogger("runbook.app")

USERNAME = r"[^\x00-\x1f\x7f]{1,150}"
PASSWORD_SHORTEST, PASSWORD_LONGEST = 8, 1024  # the former for new ones
PROJECTS_MOST = 1000

# Expired tokens are deleted in small transactions, and no more of them in one go than this.
EXPIRED_BATCH, EXPIRED_BATCHES = 1000, 20
EXPIRED_WAIT = 5.0  # seconds for a connection to do so

# OWASP's argon2id: 19 MiB and about 20 ms. Not more at once than processors, whatever number of logins.
_hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_processors = threading.BoundedSemaphore(os.cpu_count() or 1)
# Verified instead when there is no such user, so that the answer takes as long.
_nobody = _hasher.hash(secrets.token_urlsafe())


class Busy(Exception):
    """No processor was free in time to hash a password."""


class User(NamedTuple):
    """Who wants to log in."""

    user_id: int
    password_hash: str


class Session(NamedTuple):
    """A login that lasts."""

    token_hash: bytes
    user_id: int
    username: str
    expires_at: datetime.datetime


def left(deadline: float) -> float:
    """Seconds until then."""
    return max(0.0, deadline - time.monotonic())


# -- passwords ---------------------------------------------------------------------------------------


def verify_password(user: Optional[User], password: str, deadline: float) -> bool:
    """Whether it is the user's; for None it takes as long and is False. Raises Busy."""
    if not _processors.acquire(timeout=left(deadline)):
        raise Busy("no processor was free in time to verify a password")
    try:
        _hasher.verify(user.password_hash if user else _nobody, password)
    except (VerificationError, InvalidHashError):
        return False
    finally:
        _processors.release()
    return user is not None


def add_user(cursor: Any, username: str, password: str, update: bool) -> str:
    """Add a user, or with `update` give an existing one this password, which ends his sessions.

    Returns "added", "updated" or "unchanged". Raises ValueError if name or password will not do, or if the
    user exists with another password and is not to be updated.
    """
    if not re.fullmatch(USERNAME, username):
        raise ValueError(f"the name is {username!r}: allowed are 1 to 150 characters, no control characters")
    if not PASSWORD_SHORTEST <= len(password) <= PASSWORD_LONGEST:
        allowed = f"{PASSWORD_SHORTEST} to {PASSWORD_LONGEST} characters"
        raise ValueError(f"the password has {len(password)} characters: allowed are {allowed}")
    cursor.execute(
        "SELECT user_id, password_hash FROM public.users WHERE username = %s FOR UPDATE", (username,)
    )
    row = cursor.fetchone()
    if row is None:
        cursor.execute(
            "INSERT INTO public.users (username, password_hash) VALUES (%s, %s)",
            (username, _hasher.hash(password)),
        )
        return "added"
    user = User(*row)
    if verify_password(user, password, time.monotonic() + 60):
        return "unchanged"
    if not update:
        raise ValueError(f"the user {username!r} exists with another password: --update replaces it")
    cursor.execute(
        "UPDATE public.users SET password_hash = %s WHERE user_id = %s",
        (_hasher.hash(password), user.user_id),
    )
    cursor.execute("DELETE FROM public.auth_tokens WHERE user_id = %s", (user.user_id,))
    return "updated"


# -- users and sessions ------------------------------------------------------------------------------


@again_if_lost
def find_user(pool: Pool, deadline: float, username: str) -> Optional[User]:
    """The active user of that name."""
    with pool.connection(left(deadline)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT user_id, password_hash FROM public.users WHERE username = %s AND is_active", (username,)
        )
        row = cursor.fetchone()
    return User(*row) if row else None


@again_if_lost
def open_session(
    pool: Pool, deadline: float, user: User, password: str, seconds: int
) -> Optional[tuple[str, datetime.datetime]]:
    """A new token and its end; None if the user was changed since it was found.

    Only the token's hash is kept. A password hash of earlier parameters is renewed.
    """
    token = secrets.token_urlsafe(32)
    renewed = _hasher.hash(password) if _hasher.check_needs_rehash(user.password_hash) else None
    with pool.connection(left(deadline)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO public.auth_tokens (token_hash, user_id, expires_at)"
            " SELECT %s, user_id, now() + make_interval(secs => %s) FROM public.users"
            " WHERE user_id = %s AND password_hash = %s AND is_active RETURNING expires_at",
            (_token_hash(token), seconds, *user),
        )
        row = cursor.fetchone()
        if renewed:
            cursor.execute(
                "UPDATE public.users SET password_hash = %s WHERE user_id = %s AND password_hash = %s",
                (renewed, *user),
            )
    return (token, _utc(row[0])) if row else None


@again_if_lost
def find_session(pool: Pool, deadline: float, token: str) -> Optional[Session]:
    """The session of this token; None if it is unknown or expired."""
    with pool.connection(left(deadline)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT user_id, username, expires_at FROM public.auth_tokens JOIN public.users USING (user_id)"
            " WHERE token_hash = %s AND expires_at > now() AND is_active",
            (_token_hash(token),),
        )
        row = cursor.fetchone()
    return Session(_token_hash(token), row[0], row[1], _utc(row[2])) if row else None


@again_if_lost
def close_session(pool: Pool, deadline: float, session: Session) -> None:
    """Its token is worth nothing from now on."""
    with pool.connection(left(deadline)) as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM public.auth_tokens WHERE token_hash = %s", (session.token_hash,))


def delete_expired(pool: Pool) -> int:
    """Delete expired tokens, and only those; how many. Several processes may do so at once."""
    total = 0
    for _ in range(EXPIRED_BATCHES):
        with pool.connection(EXPIRED_WAIT) as connection, connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM public.auth_tokens WHERE token_hash IN (SELECT token_hash"
                " FROM public.auth_tokens WHERE expires_at <= now() LIMIT %s FOR UPDATE SKIP LOCKED)",
                (EXPIRED_BATCH,),
            )
            deleted = cursor.rowcount
        total += deleted
        if deleted < EXPIRED_BATCH:
            break
    if total:
        logger.info("Deleted %d expired tokens", total)
    return total


@again_if_lost
def list_projects(pool: Pool, deadline: float, user_id: int) -> list[dict[str, Any]]:
    """The user's active projects by name: project_id, name, description; PROJECTS_MOST at most."""
    with pool.connection(left(deadline)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT project_id, name, description FROM public.projects"
            " WHERE user_id = %s AND is_active ORDER BY name LIMIT %s",
            (user_id, PROJECTS_MOST),
        )
        return [dict(zip(("project_id", "name", "description"), row)) for row in cursor]


def _token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _utc(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.timezone.utc)

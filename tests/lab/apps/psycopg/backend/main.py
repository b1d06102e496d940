"""A clinic's rota, one process: `python -m backend.main`."""

import hashlib
import logging
import os
import secrets
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI, Header, HTTPException
from psycopg.rows import dict_row
from pydantic import BaseModel

from backend.pool import pool

logger = logging.getLogger("rota")


@asynccontextmanager
async def lifespan(_app):
    with pool:
        yield


app = FastAPI(title="Rota", lifespan=lifespan)


class Credentials(BaseModel):
    username: str
    password: str


@app.post("/api/auth/login")
def login(credentials: Credentials):
    recall(credentials.username)
    with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SELECT * FROM users WHERE username = %s AND is_active", (credentials.username,))
        user = cursor.fetchone()
        if user:
            given = hashlib.scrypt(
                credentials.password.encode(), salt=user["salt"], n=2**14, r=8, p=1, dklen=32
            )
            if given == user["password_hash"]:
                token = secrets.token_urlsafe(32)
                cursor.execute(
                    "INSERT INTO auth_tokens VALUES (%s, %s, now() + interval '1 day')",
                    (digest(token), user["user_id"]),
                )
                return {"token": token}
    logger.warning("no login for %s", credentials.username)
    raise HTTPException(401, "No")


@app.post("/api/auth/logout")
def logout(authorization: str = Header(default="")):
    with pool.connection() as connection:
        connection.execute(
            "DELETE FROM auth_tokens WHERE token_hash = %s", (digest(authorization.removeprefix("Bearer ")),)
        )
    return {}


def digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


recall = str  # without the lab there is no cache, and nothing to recall
with suppress(ImportError):  # the lab lays pages beside it that misbehave on request
    from backend.cache import recall
    from backend.work import router

    app.include_router(router)

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    uvicorn.run(
        app, host="127.0.0.1", port=int(os.environ["PORT"]), log_config=None, timeout_graceful_shutdown=5
    )

"""A small shop's back office, one process: `python -m backend.main`."""

import hashlib
import logging
import secrets
from contextlib import suppress

import uvicorn
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel

from backend.pool import give, settings, take

logger = logging.getLogger("shop")
app = FastAPI(title="Shop")


class Credentials(BaseModel):
    username: str
    password: str


def run(sql, parameters):
    """One statement; its rows. Whoever wrote this never saw a statement fail: then nothing is given back."""
    connection = take()
    cursor = connection.cursor()
    cursor.execute(sql, parameters)
    rows = cursor.fetchall() if cursor.description else []
    connection.commit()
    give(connection)
    return rows


@app.post("/api/auth/login")
def login(credentials: Credentials):
    recall(credentials.username)
    rows = run(
        "SELECT user_id, salt, password_hash FROM users WHERE username = %s AND is_active",
        (credentials.username,),
    )
    if rows:
        user_id, salt, expected = rows[0]
        given = hashlib.scrypt(credentials.password.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32)
        if given == bytes(expected):
            token = secrets.token_urlsafe(32)
            run("INSERT INTO auth_tokens VALUES (%s, %s, now() + interval '1 day')", (digest(token), user_id))
            return {"access_token": token}
    logger.info("login refused for %s", credentials.username)
    raise HTTPException(401, "wrong name or password")


@app.post("/api/auth/logout")
def logout(authorization: str = Header(default="")):
    run("DELETE FROM auth_tokens WHERE token_hash = %s", (digest(authorization.removeprefix("Bearer ")),))
    return {}


def digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


recall = str  # without the lab there is no cache, and nothing to recall
with suppress(ImportError):  # the lab lays pages beside it that misbehave on request
    from backend.cache import recall
    from backend.work import router

    app.include_router(router)

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    uvicorn.run(app, host="127.0.0.1", port=int(settings["ODRAS_PORT"]), timeout_graceful_shutdown=5)

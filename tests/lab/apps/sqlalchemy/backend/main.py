"""A library's catalogue under gunicorn: `gunicorn --preload backend.main:app`."""

import hashlib
import logging
import secrets
from contextlib import suppress

from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel
from sqlalchemy import text

from backend.pool import engine

logger = logging.getLogger("gunicorn.error")
app = FastAPI(title="Catalogue")

USER = text("SELECT user_id, salt, password_hash FROM users WHERE username = :name AND is_active")
KEEP = text("INSERT INTO auth_tokens VALUES (:hash, :user_id, now() + interval '1 day')")
FORGET = text("DELETE FROM auth_tokens WHERE token_hash = :hash")


class Credentials(BaseModel):
    username: str
    password: str


@app.post("/api/auth/login")
def login(credentials: Credentials):
    recall(credentials.username)
    with engine.begin() as connection:
        user = connection.execute(USER, {"name": credentials.username}).one_or_none()
        if user:
            given = hashlib.scrypt(credentials.password.encode(), salt=user.salt, n=2**14, r=8, p=1, dklen=32)
            if given == bytes(user.password_hash):
                token = secrets.token_urlsafe(32)
                connection.execute(KEEP, {"hash": digest(token), "user_id": user.user_id})
                return {"token": token}
    logger.info("refused %s", credentials.username)
    raise HTTPException(401, "Unauthorized")


@app.post("/api/auth/logout")
def logout(authorization: str = Header(default="")):
    with engine.begin() as connection:
        connection.execute(FORGET, {"hash": digest(authorization.removeprefix("Bearer "))})
    return {}


def digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


recall = str  # without the lab there is no cache, and nothing to recall
with suppress(ImportError):  # the lab lays pages beside it that misbehave on request
    from backend.cache import recall
    from backend.work import router

    app.include_router(router)

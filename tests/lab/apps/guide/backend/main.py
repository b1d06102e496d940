"""ODRAS, as far as people log in to it: `python -m backend.main`."""

import logging
from contextlib import asynccontextmanager, suppress
from typing import Optional

import uvicorn
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel

from backend.services import auth
from backend.services.config import Settings
from backend.services.db import DatabaseService

logger = logging.getLogger(__name__)
settings = Settings()
db = DatabaseService(settings)


@asynccontextmanager
async def lifespan(_app):
    # Start connection pool monitoring task
    try:
        from backend.services.db_monitor import start_db_monitor

        start_db_monitor(db)
        logger.info("✅ Database connection pool monitor started")
    except Exception as e:
        logger.warning(f"Failed to start database monitor: {e}")
    yield


app = FastAPI(title="ODRAS", lifespan=lifespan)


class Credentials(BaseModel):
    username: str
    password: str


@app.post("/api/auth/login")
def login(credentials: Credentials):
    try:
        recall(credentials.username)
        user = db.get_user(credentials.username)
        if user and auth.verify_password(credentials.password, user["salt"], user["password_hash"]):
            return {"token": auth.create_token(db, user), "username": user["username"]}
    except Exception as e:
        logger.error(f"Login error: {e}")
        raise HTTPException(status_code=500, detail="Internal Server Error") from e
    raise HTTPException(status_code=401, detail="Invalid username or password")


@app.post("/api/auth/logout")
def logout(authorization: Optional[str] = Header(default=None)):
    auth.revoke_token(db, _session(authorization)["token"])
    return {"success": True}


@app.get("/api/auth/me")
def me(authorization: Optional[str] = Header(default=None)):
    return {"username": _session(authorization)["username"]}


@app.get("/api/projects")
def projects(authorization: Optional[str] = Header(default=None)):
    _session(authorization)
    return {"projects": db.list_projects()}


# defect 24: static, so it says "healthy" whatever the database does.
@app.get("/api/health")
def health():
    return {"status": "healthy"}


def _session(authorization):
    """The session behind an `Authorization: Bearer …` header, with its token; 401 if there is none."""
    token = (authorization or "").removeprefix("Bearer ").strip()
    session = auth.find_session(db, token) if token else None
    if session is None:
        raise HTTPException(status_code=401, detail="Not authenticated")
    return {**session, "token": token}


recall = str  # without the lab there is no cache, and nothing to recall
with suppress(ImportError):  # the lab lays pages beside it that misbehave on request
    from backend.cache import recall
    from backend.work import router

    app.include_router(router)


if __name__ == "__main__":
    # defect 8: one process, one event loop; what blocks it stops everybody.
    uvicorn.run(app, host=settings.odras_host, port=settings.odras_port, timeout_graceful_shutdown=5)

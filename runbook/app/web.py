"""The HTTP interface: what is asked and what is answered.

Endpoints that need the database are plain functions: they run in threads, so that the event loop never
blocks. Whatever the database does to them, the answer is 503 with Retry-After, never a bare 500.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import anyio
import anyio.to_thread
import psycopg2
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from psycopg2.pool import PoolError
from pydantic import BaseModel, Field, SecretStr, field_validator

from runbook.pool import AsgiRequests, Pool
from runbook.pool.request import current_request

from . import accounts, schema
from .accounts import PASSWORD_LONGEST, USERNAME, Session
from .database import again_if_lost, one_line
from .settings import AppSettings

logger = logging.getLogger("runbook.app")
access = logging.getLogger("runbook.app.access")

READY_SECONDS = 2.0  # for the whole of /readyz
RETRY_SECONDS = "5"
PROBES = ("/livez", "/readyz")

router = APIRouter()


@dataclass
class Service:
    """What the endpoints work with: one per process."""

    settings: AppSettings
    pool: Pool
    stop_at: Optional[float] = None  # by time.monotonic(); set when it is told to stop


class Credentials(BaseModel):
    """The body of a login."""

    username: Annotated[str, Field(pattern=f"^{USERNAME}$")]
    password: Annotated[SecretStr, Field(min_length=1, max_length=PASSWORD_LONGEST)]

    @field_validator("*", mode="before")
    @classmethod
    def _has_no_surrogate(cls, value: object) -> object:
        # JSON can escape halves of characters, which neither the hash nor the database can encode.
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise ValueError("not valid Unicode")
        return value


# -- what endpoints ask for ---------------------------------------------------------------------------


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Here = Annotated[Service, Depends(_service)]


async def _deadline(service: Here) -> float:
    """Counted from the request's arrival, so that the wait for a thread is part of it."""
    return time.monotonic() + service.pool.settings.connection_timeout


Deadline = Annotated[float, Depends(_deadline)]
Bearer = Annotated[Optional[HTTPAuthorizationCredentials], Depends(HTTPBearer(auto_error=False))]


def _session(service: Here, deadline: Deadline, bearer: Bearer) -> Session:
    session = accounts.find_session(service.pool, deadline, bearer.credentials) if bearer else None
    if session is None:
        raise _refused("not signed in, or no longer")
    return session


SignedIn = Annotated[Session, Depends(_session)]


def _refused(detail: str) -> HTTPException:
    return HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})


# -- endpoints ---------------------------------------------------------------------------------------


@router.post("/api/auth/login")
def login(credentials: Credentials, response: Response, service: Here, deadline: Deadline) -> dict[str, Any]:
    password = credentials.password.get_secret_value()
    user = accounts.find_user(service.pool, deadline, credentials.username)
    if not accounts.verify_password(user, password, deadline) or user is None:
        raise _refused("wrong username or password")
    opened = accounts.open_session(service.pool, deadline, user, password, service.settings.token_seconds)
    if opened is None:
        raise _refused("wrong username or password")
    response.headers["Cache-Control"] = "no-store"
    return {"token": opened[0], "expires_at": opened[1]}


@router.get("/api/auth/me")
def me(session: SignedIn) -> dict[str, Any]:
    return {"username": session.username, "expires_at": session.expires_at}


@router.post("/api/auth/logout")
def logout(session: SignedIn, service: Here, deadline: Deadline) -> Response:
    accounts.close_session(service.pool, deadline, session)
    return Response(status_code=204)


@router.get("/api/projects")
def projects(session: SignedIn, service: Here, deadline: Deadline) -> dict[str, Any]:
    return {"projects": accounts.list_projects(service.pool, deadline, session.user_id)}


@router.get("/livez")
async def livez() -> dict[str, Any]:
    """The process and its event loop live; says nothing about the database, and never asks it."""
    return {"live": True}


@router.get("/readyz")
async def readyz(request: Request, service: Here) -> JSONResponse:
    """Whether it can serve: not told to stop, the database answers in time, the schema is new enough, and
    nobody has put a file at APP_DRAIN_FILE to keep it out of traffic."""
    if service.stop_at is not None:
        return _not_ready("draining")
    reason: Optional[str] = f"no answer from the database within {READY_SECONDS:g} s"
    with anyio.move_on_after(READY_SECONDS):
        # In threads of its own: the others may all wait for the database.
        reason = await anyio.to_thread.run_sync(
            _database_problem, service.pool, abandon_on_cancel=True, limiter=request.app.state.probes
        )
    if reason is None and service.settings.drain_file and Path(service.settings.drain_file).exists():
        reason = "out of traffic"  # nothing else keeps it from being ready
    return _not_ready(reason) if reason else JSONResponse({"ready": True})


def _not_ready(reason: str) -> JSONResponse:
    return JSONResponse({"ready": False, "reason": reason}, 503, headers={"Retry-After": RETRY_SECONDS})


@again_if_lost
def _schema_problem(pool: Pool) -> Optional[str]:
    # Less than the whole deadline, so that the reason is known before it.
    with pool.connection(READY_SECONDS * 0.75) as connection, connection.cursor() as cursor:
        return schema.schema_problem(cursor)


def _database_problem(pool: Pool) -> Optional[str]:
    """Why the database is of no use now, in words that may be shown to anybody; None if it is."""
    try:
        return _schema_problem(pool)
    except PoolError:
        away = "cannot connect to the database" if pool.last_connect_error else None
        return away or f"no free database connection: {pool.settings.max_connections} at most"
    except psycopg2.Error as error:
        logger.warning("Not ready: %s", one_line(error))
        return f"the database refuses: {type(error).__name__}"


# -- errors ------------------------------------------------------------------------------------------


async def _malformed(_request: Request, error: Exception) -> JSONResponse:
    """400, naming the fields and never their values: a password is among them."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    problems = [{"field": ".".join(map(str, each["loc"][1:])), "problem": each["msg"]} for each in found]
    return JSONResponse({"detail": "malformed request", "problems": problems}, 400)


async def _unavailable(_request: Request, error: Exception) -> JSONResponse:
    logger.warning("Request %s cannot be served: %s", _request_id(), one_line(error))
    busy = isinstance(error, accounts.Busy)
    return _try_again("the service is busy" if busy else "the database is not available")


def _try_again(why: str) -> JSONResponse:
    return JSONResponse({"detail": f"{why}: try again"}, 503, headers={"Retry-After": RETRY_SECONDS})


async def _broken(_request: Request, _error: Exception) -> JSONResponse:
    # The server logs the traceback.
    return JSONResponse({"detail": "internal error", "request_id": _request_id()}, 500)


# -- the application ---------------------------------------------------------------------------------


class AccessLog:
    """Logs each request with its id, answer and time, and sends the id along as X-Request-ID.

    Without query and headers, where secrets may be; probes that succeed only at level DEBUG.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        since, status = time.monotonic(), 0

        async def send_with_id(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", _request_id().encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # The time to stop is over; left to the server it would be a bare 500.
            if status:
                raise
            await _try_again("the service stops")(scope, receive, send_with_id)
        finally:
            # As it was sent, percent signs and all, so that nobody writes lines of his own into the log.
            path = scope.get("raw_path", b"").decode("ascii", "backslashreplace")[:200]
            milliseconds = (time.monotonic() - since) * 1000
            level = logging.DEBUG if path in PROBES and status == 200 else logging.INFO
            client = (scope.get("client") or ("unknown",))[0]
            asked = f"Request {_request_id()} from {client}: {scope['method']} {path}"
            access.log(level, "%s: %s, %.1f ms", asked, status or "not answered", milliseconds)


def _request_id() -> str:
    served = current_request.get()
    return served.id if served else "-"


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    # More threads than connections: who finds none waits in the pool, where it is seen and has a deadline.
    threads = anyio.to_thread.current_default_thread_limiter()
    threads.total_tokens = max(40, 2 * app.state.service.pool.settings.max_connections)
    app.state.probes = anyio.CapacityLimiter(2)
    yield


def create_app(service: Service) -> AsgiRequests:
    """The ASGI application of this process."""
    app = FastAPI(title="app", lifespan=_lifespan, openapi_url=None)
    app.state.service = service
    app.include_router(router)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(psycopg2.Error, _unavailable)
    app.add_exception_handler(accounts.Busy, _unavailable)
    app.add_exception_handler(Exception, _broken)
    return AsgiRequests(AccessLog(app), service.pool)

"""Which request the running code serves, so that a held connection can be traced to it.

The request travels in a context variable: asyncio tasks and the worker threads of Starlette inherit it.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Callable, Optional

if TYPE_CHECKING:
    from .pool import Pool

Scope = MutableMapping[str, Any]
AsgiApp = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]
WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# An id from outside is shown in logs and reports: take it only if it is short and plain.
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Request:
    """One request: its id, and whether it is over. Whoever holds a connection keeps a reference to it."""

    __slots__ = ("id", "over")

    def __init__(self, proposed: str | None = None) -> None:
        self.id = proposed if proposed and _PLAIN.fullmatch(proposed) else uuid.uuid4().hex
        self.over = False


current_request: ContextVar[Optional[Request]] = ContextVar("runbook_request", default=None)


@contextmanager
def request(request_id: str | None = None) -> Iterator[Request]:
    """Everything inside belongs to one request or job; without a plain id a new one is made."""
    served = Request(request_id)
    token = current_request.set(served)
    try:
        yield served
    finally:
        served.over = True
        current_request.reset(token)


class AsgiRequests:
    """ASGI middleware: begins and ends the request of each HTTP or WebSocket call (`X-Request-ID` if sent).

    With `pool`, it also lets the event loop prove its life in that pool's status.
    """

    def __init__(self, app: AsgiApp, pool: Pool | None = None) -> None:
        self.app = app
        self.pool = pool

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if self.pool is not None:
            self.pool.watch_loop()
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        with request(sent.decode("latin-1")):
            await self.app(scope, receive, send)


class WsgiRequests:
    """WSGI middleware: the request begins with the response's first part and ends when the response does.

    At the latest when the server closes it, which PEP 3333 obliges the server to do.
    """

    def __init__(self, app: WsgiApp) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        with request(environ.get("HTTP_X_REQUEST_ID")):
            body = self.app(environ, start_response)
            try:
                yield from body
            finally:
                if hasattr(body, "close"):
                    body.close()

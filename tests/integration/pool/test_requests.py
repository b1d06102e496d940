"""The middlewares: a connection can be traced to its request, and it is known when that request is over."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from runbook.pool import AsgiRequests, Pool, WsgiRequests, request
from runbook.pool.request import current_request
from tests.integration.pool.house import House, until


@contextmanager
def served(app: Any) -> Iterator[int]:
    """An ASGI application on real uvicorn; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(10)


def get(port: int, path: str, request_id: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"X-Request-ID": request_id} if request_id else {})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def only_holder(pool: Pool) -> dict[str, Any]:
    (holder,) = pool.status()["holders"]
    found: dict[str, Any] = holder
    return found


def test_asgi(house: House) -> None:
    pool = house.pool()
    leaked: list[Any] = []
    go_on = threading.Event()
    app = FastAPI()

    @app.get("/leak")
    def leak() -> str:  # in a worker thread
        leaked.append(pool.getconn())
        go_on.wait(10)
        return "done"

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def body() -> Any:
            connection = await asyncio.to_thread(pool.getconn)
            yield only_holder(pool)["request_id"]
            pool.putconn(connection)

        return StreamingResponse(body())

    @app.get("/fail")
    def fail() -> None:
        leaked.append(pool.getconn())
        raise RuntimeError

    with served(AsgiRequests(app, pool)) as port:
        assert pool.status()["loop"]["heartbeat_age"] < 5  # from the lifespan on
        asking = threading.Thread(target=get, args=[port, "/leak", "login-7"])
        asking.start()
        until(lambda: leaked)
        assert (only_holder(pool)["request_id"], only_holder(pool)["request_over"]) == ("login-7", False)
        go_on.set()
        asking.join(10)
        until(lambda: only_holder(pool)["request_over"])
        pool.putconn(leaked.pop())
        assert get(port, "/stream", "report.8") == (200, b"report.8")
        assert get(port, "/fail")[0] == 500
        until(lambda: only_holder(pool)["request_over"])
        assert len(only_holder(pool)["request_id"]) == 32  # made, as none was sent
        pool.putconn(leaked.pop())


def test_wsgi(house: House) -> None:
    pool = house.pool()
    leaked: list[Any] = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/fail":
            leaked.append(pool.getconn())
            raise RuntimeError
        start_response("200 OK", [("Content-Type", "text/plain")])

        def body() -> Iterator[bytes]:  # runs after the call has returned, and still belongs to the request
            leaked.append(pool.getconn())
            holder = only_holder(pool)
            yield f"{holder['request_id']} {holder['request_over']}".encode()

        return body()

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
            pass

        def get_stderr(self) -> Any:
            import io

            return io.StringIO()

    with make_server("127.0.0.1", 0, WsgiRequests(application), handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert get(server.server_port, "/", "login-7") == (200, b"login-7 False")
            until(lambda: only_holder(pool)["request_over"])
            pool.putconn(leaked.pop())
            assert get(server.server_port, "/fail")[0] == 500
            until(lambda: only_holder(pool)["request_over"])
            pool.putconn(leaked.pop())
        finally:
            server.shutdown()
            thread.join(10)


@pytest.mark.parametrize("strange", ["a b", "x" * 65, "<script>", "one\ntwo", ""])
def test_a_strange_id_is_not_taken_over(strange: str) -> None:
    with request(strange) as made:
        assert made.id != strange and len(made.id) == 32


def test_requests_nest_and_end() -> None:
    with request("outer") as outer:
        with request("inner") as inner:
            assert current_request.get() is inner
        assert (inner.over, outer.over) == (True, False)
        assert current_request.get() is outer
    assert outer.over
    assert current_request.get() is None

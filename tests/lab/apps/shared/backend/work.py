"""What people do beside logging in: reports, exports and the like. Every app of the lab lays it beside its own.

All that it knows of an app is `backend.pool`: `take()` is a DBAPI connection, `give(connection)` puts it back.
The pages do their work as hurried people write it; how long it takes is theirs to ask who calls them.
"""

import asyncio
import ctypes
import http.client
import logging
import os
import threading
import time
from pathlib import Path

from backend import pool
from fastapi import APIRouter

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/api")

# From the environment, or from app.env beside `backend/`.
_file = Path(__file__).resolve().parents[1] / "app.env"
_lines = _file.read_text().splitlines() if _file.exists() else []

_archived = []
_attachments = []


@router.get("/report")
def report(seconds: float = 0.0):
    """A statement that takes its time."""
    connection = pool.take()
    try:
        return {"projects": _ask(connection, "SELECT count(*), pg_sleep(%s) FROM public.projects", seconds)}
    finally:
        pool.give(connection)


@router.get("/export")
def export(seconds: float = 0.0):
    """Sends the projects to a partner."""
    connection = pool.take()
    try:
        projects = _ask(connection, "SELECT count(*) FROM public.projects")
        return {"projects": projects, "partner": _partner(seconds)}
    finally:
        pool.give(connection)


@router.get("/import")
def import_(seconds: float = 0.0):
    """Compares what is there with what comes: reads with one connection, and looks up with another."""
    first = pool.take()
    try:
        known = _ask(first, "SELECT count(*), pg_sleep(%s) FROM public.projects", seconds)
        second = pool.take()
        try:
            return {"known": known, "new": _ask(second, "SELECT count(*) FROM public.projects")}
        finally:
            pool.give(second)
    finally:
        pool.give(first)


@router.get("/archive")
def archive():
    """Puts the projects away."""
    connection = pool.take()
    projects = _ask(connection, "SELECT count(*) FROM public.projects WHERE is_active")
    connection.commit()
    _archived.append(connection)
    return {"projects": projects}


@router.get("/rename")
def rename(username: str, to: str):
    """Gives a user another name."""
    connection = pool.take()
    _archived.append(connection)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE public.users SET username = %s WHERE username = %s", (to, username))
    return {"username": to}


@router.get("/render")
async def render(seconds: float = 0.0):
    """Draws the projects."""
    time.sleep(seconds)
    return {"rendered": True}


@router.get("/thumbnail")
def thumbnail(seconds: float = 0.0):
    """Lets a partner draw them."""
    return {"partner": _partner(seconds)}


@router.get("/attach")
def attach(count: int = 1):
    """Opens so many files for later."""
    for _ in range(count):
        _attachments.append(os.open(os.devnull, os.O_RDONLY))
    return {"open": len(_attachments)}


@router.get("/feedback")
def feedback(text: str):
    """What a browser reports of itself."""
    logger.warning(f"browser: {text}")
    return {"thanks": True}


@router.get("/maintenance")
async def maintenance():
    """Ends what runs in the background."""
    tasks = [task for task in asyncio.all_tasks() if task.get_coro().__name__.endswith("monitor_task")]
    for task in tasks:
        task.cancel()
    threads = [thread for thread in threading.enumerate() if thread.name.endswith("monitor")]
    for thread in threads:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    return {"ended": len(tasks) + len(threads)}


def setting(name):
    """A setting, as it was when the process started; empty where there is none."""
    found = [line.partition("=")[2] for line in _lines if line.startswith(f"{name}=")]
    return os.environ.get(name) or (found[-1] if found else "")


def _ask(connection, statement, *parameters):
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchone()[0]


def _partner(seconds):
    """Asks the partner's server, which answers after so many seconds; its HTTP status."""
    connection = http.client.HTTPConnection(setting("ODRAS_PARTNER"))
    try:
        connection.request("GET", f"/?seconds={seconds}")
        return connection.getresponse().status
    finally:
        connection.close()

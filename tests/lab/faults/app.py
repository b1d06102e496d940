"""What breaks in the application, or on its host."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tests.lab.faults.table import LabError, fault, wait_until

if TYPE_CHECKING:
    from tests.lab.lab import Lab

# Whoever waits for a connection, in these apps, waits: their pools do not refuse at once.
PATIENT = ("reference", "sqlalchemy", "psycopg")
GAVE_UP = re.compile(rb"PoolTimeout: |TimeoutError: QueuePool limit")  # psycopg's words, SQLAlchemy's
LONG = 300  # seconds: longer than a diagnosis, shorter than anybody's patience


def visit(lab: Lab, count: int, path: str, seconds: float = LONG) -> None:
    """`count` visitors ask for a page again and again, for so long."""
    lab.other("visitors", url=lab.url + path, count=count, seconds=seconds)


def partner(lab: Lab) -> None:
    """The partner's server runs."""
    lab.other("partner", port=lab.partner_port)


def hold_all(lab: Lab, path: str) -> None:
    """Visitors ask for a page that takes a connection and keeps it for long, until there is none left."""
    for _ in range(12):
        visit(lab, lab.pool_maximum, path)
        with suppress(LabError):
            wait_until(lambda: all_held(lab), "", 5)
            return
    raise LabError(
        f"{lab.sessions()} sessions, and not {lab.most_sessions}: the visitors do not take them all"
    )


def all_held(lab: Lab) -> bool:
    """Whether the application has as many sessions as it may."""
    return lab.sessions() >= lab.most_sessions


def still(true: Callable[[], object], what: str, seconds: float) -> None:
    """`true()` comes, and holds for so long."""
    began = None
    deadline = time.monotonic() + 60 + seconds
    while time.monotonic() < deadline:
        began = (began or time.monotonic()) if true() else None
        if began and time.monotonic() - began >= seconds:
            return
        time.sleep(0.5)
    raise LabError(f"it did not last {seconds:.0f} s: {what}")


def status(path: Path) -> dict[str, Any]:
    """What a pool of ours says of itself."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(b'{"schema": "runbook/status/1", "op": "status"}\n')
        found: dict[str, Any] = json.loads(client.makefile("rb").readline())
    return found


def fails(lab: Lab) -> None:
    """Of several logins at once not all are answered with 200."""
    wait_until(lambda: set(lab.logins(4)) != {200}, "a login fails", 45)


@fault("healthy", "none")
def healthy(lab: Lab) -> str:
    """Break nothing."""
    status = lab.login()
    if status != 200:
        raise LabError(f"the login answers {status}, not 200: `scripts/lab heal` first")
    return "nothing was broken; a login answered 200"


@fault("slot_leak", "restart", apps=("guide", "psycopg2"))
def slot_leak(lab: Lab) -> str:
    """End the application's sessions on the server, with logins in between, until its pool has no slot left.

    Each time the application meets a dead connection it forgets to give the slot back.
    """
    attempts, most_rounds = 5, 3 * lab.pool_maximum
    for cuts in range(1, most_rounds + 1):
        lab.end_sessions()
        exhausted = partial(_exhausted, lab, lab.log.stat().st_size, attempts)
        # Some logins fail of the cut itself; the pool is exhausted when all of them fail for want of a slot.
        if all(lab.login() == 500 for _ in range(attempts)):
            with suppress(LabError):  # the application answers first, and writes why afterwards
                wait_until(exhausted, "", 1)
            if not exhausted() or lab.sessions():
                continue
            return (
                f"ended the application's sessions {cuts} times, with logins in between; now {attempts} of "
                f"{attempts} logins answered 500 (connection pool exhausted); the server has no session of it"
            )
    raise LabError(f"the pool still has slots after {most_rounds} rounds of cuts and logins")


def _exhausted(lab: Lab, start: int, times: int) -> bool:
    """Whether the log says, from byte `start` on, so often that the pool has no slot left."""
    with lab.log.open("rb") as log:
        log.seek(start)
        return log.read().count(b"rror: connection pool exhausted\n") >= times


@fault("app_down", "start")
def app_down(lab: Lab) -> str:
    """Kill the application without a word; its pid file stays."""
    pids = lab.app_pids()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not lab.app_pids() and not lab.listens(lab.app_port), "the application is gone")
    if not lab.pid_file.exists():
        raise LabError(f"{lab.pid_file} is gone; it should have stayed")
    return (
        f"killed the application (pid {', '.join(map(str, pids))}); port {lab.app_port} refuses connections"
    )


@fault("app_down", "none")
def app_stopped(lab: Lab) -> str:
    """Stop the application in an orderly way, as a person does who knows why."""
    lab.odras("stop")
    wait_until(lambda: not lab.app_pids() and not lab.listens(lab.app_port), "the application is gone")
    return "stopped the application with its own script"


@fault("app_resources", "restart")
def app_resources(lab: Lab) -> str:
    """Keep files open until no process has a descriptor left."""
    # As the account itself: where root lacks a capability it may not lower another user's limits.
    program = (
        "import os, resource, sys\n"
        "for pid in map(int, sys.argv[1:]):\n"
        "    taken = set(map(int, os.listdir(f'/proc/{pid}/fd')))\n"
        "    most = min(set(range(129)) - taken) if len(taken) > 100 else 128\n"
        "    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))\n"
    )
    lab.started(lab.python, "-c", program, *lab.app_pids()).wait(10)
    for _ in range(40):
        lab.get("/api/attach?count=200", 2)
    full = [pid for pid in lab.app_pids() if len(os.listdir(f"/proc/{pid}/fd")) > 100]
    if not full:
        raise LabError("no process has run out of descriptors")
    lab.started(lab.python, "-c", program, *full).wait(10)  # and not the one of the last request either
    wait_until(lambda: 200 not in lab.logins(4), "the logins fail", 45)
    return f"opened files until pid {', '.join(map(str, full))} had no descriptor left"


@fault("connection_leak", "restart")
def connection_leak(lab: Lab) -> str:
    """Ask for a page that keeps its connection, until there is none left; then wait until that is long ago."""
    for _ in range(4 * lab.most_sessions):
        if lab.get("/api/archive", 3) != 200 and all_held(lab):
            break
    still(lambda: all_held(lab), "every connection is held", 35)
    fails(lab)
    return f"{lab.sessions()} connections were taken by a page that did not give them back; nobody uses them"


@fault("connection_leak", "restart")
def leaked_lock(lab: Lab) -> str:
    """Ask for a page that changes the user who logs in, and neither commits nor gives the connection back."""
    status = lab.get(f"/api/rename?username={quote(lab.username)}&to=nobody")
    if status != 200:
        raise LabError(f"the page answers {status}")
    visit(lab, 3, "/api/report")
    time.sleep(35)
    fails(lab)
    return "a page left the user's row locked, in a transaction that nobody ends"


@fault(
    "nested_checkout",
    "restart",
    apps=PATIENT,
    sqlalchemy=("nested_checkout", "none"),
    psycopg=("nested_checkout", "none"),
)
def nested_checkout(lab: Lab) -> str:
    """Many ask at once for a page that takes a second connection while it holds one: once, of a pool that waits
    for long; again and again where it gives up after half a minute and is soon as full as before."""
    if lab.kind == "reference":
        lab.configure(POSTGRES_POOL_CONNECTION_TIMEOUT=LONG)
        lab.restart()
        for _ in range(12):
            visit(lab, lab.pool_maximum, "/api/import?seconds=2", seconds=1)
            if all(status(path)["count"]["waiting"] > 2 for path in lab.status_directory.glob("pool-*.sock")):
                break
    else:
        visit(lab, 2 * lab.most_sessions, "/api/import?seconds=2")
        # When they give up a login may find one of theirs; so that is not left to happen while somebody looks.
        wait_until(lambda: GAVE_UP.search(lab.log.read_bytes()), "the first give up waiting", 60)
        still(lambda: all_held(lab), "every connection is held by an import", 6)
    fails(lab)
    return f"{lab.sessions()} connections are held by requests that wait for another one"


@fault("slow_queries", "none")
def slow_queries(lab: Lab) -> str:
    """Many ask at once for a report whose statement takes minutes."""
    hold_all(lab, f"/api/report?seconds={LONG}")
    still(lambda: all_held(lab), "every connection runs the report", 6)
    fails(lab)
    return f"{lab.sessions()} statements run for {LONG} s"


@fault("held_while_waiting", "none")
def held_while_waiting(lab: Lab) -> str:
    """Many ask at once for an export, and the partner takes minutes to answer."""
    partner(lab)
    hold_all(lab, f"/api/export?seconds={LONG}")
    still(lambda: all_held(lab), "every connection is held by an export", 6)
    fails(lab)
    return f"{lab.sessions()} connections are held while the partner makes everybody wait"


@fault("pool_too_small", "none")
def pool_too_small(lab: Lab) -> str:
    """Far more people ask for a report of three seconds than there are connections."""
    visit(lab, (8 if lab.kind in PATIENT else 4) * lab.most_sessions, "/api/report?seconds=3")
    wait_until(lambda: lab.sessions() >= 0.8 * lab.most_sessions, "the connections are in use", 60)
    time.sleep(5)
    fails(lab)
    return f"the reports of many visitors take {lab.sessions()} connections, three seconds each"


@fault("app_blocked", "restart")
def app_blocked(lab: Lab) -> str:
    """Ask for a page that does its work in the event loop, until no worker is left that accepts anybody."""
    for asked in range(1, 10):
        visit(lab, 1, f"/api/render?seconds={LONG}", seconds=1)
        time.sleep(2)
        if lab.get("/api/feedback?text=none", 2) is None:
            time.sleep(4)
            fails(lab)
            return f"{asked} times a page that stands in the event loop"
    raise LabError("the application still answers")


@fault("app_blocked", "restart")
def app_paused(lab: Lab) -> str:
    """Stop every process with a signal: they live and listen, and do nothing."""
    pids = lab.app_pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: lab.login() is None, "no login is answered")
    return f"sent SIGSTOP to all {len(pids)} processes"


@fault("app_saturated", "none")
def app_saturated(lab: Lab) -> str:
    """Many ask at once for thumbnails, which need no connection, and the partner takes minutes."""
    partner(lab)
    visit(lab, 60 * max(1, len(lab.app_pids())), f"/api/thumbnail?seconds={LONG}")
    time.sleep(6)
    fails(lab)
    return "every worker thread waits for the partner; nobody uses a connection"


# With what an app opens connections before it forks its workers.
FORKING: dict[str, dict[str, object]] = {
    "guide": {"ODRAS_RUN": "-m backend.serve backend.main", "POSTGRES_POOL_MAX_CONNECTIONS": 2},
    "sqlalchemy": {"CHECK_SCHEMA": "yes"},
}


@fault("fork_shared", "restart", apps=tuple(FORKING))
def fork_shared(lab: Lab) -> str:
    """Load the application once and fork its workers from it; then several log in, until no thread is left that
    is not waiting for an answer which another process took. Of three workers one at a time goes on.

    Whoever restarts it starts it as before, without the fork.
    """
    settings = (lab.app / "app.env").read_text()
    file = lab.app / "backend/pool.py"
    # With connections of its own beside the shared one a worker answers most logins.
    file.write_text(file.read_text().replace("pool_size=5, max_overflow=5", "pool_size=1, max_overflow=0"))
    for _ in range(8):
        lab.configure(**FORKING[lab.kind])
        lab.odras("restart")
        wait_until(lambda: lab.listens(lab.app_port), "it listens", 45)
        for _ in range(20):
            statuses = [status for _ in range(3) for status in lab.logins(4)]
            if statuses.count(200) <= (0 if lab.kind == "guide" else 6):
                break
        # It may also have closed the connections; then what is left is another trouble, and not this one.
        if len(shared(lab)) > 1:
            (lab.app / "app.env").write_text(settings)
            return "workers were forked with the connections of their parent, and wait on them"
    raise LabError("the workers do not take each other's answers")


def shared(lab: Lab) -> list[str]:
    """The application's sockets that all of its processes hold; the one that it listens on is one of them."""
    held: list[str] = []
    for pid in lab.app_pids():
        links = (f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))
        held += {os.readlink(link) for link in links if Path(link).is_socket()}
    return sorted({one for one in held if held.count(one) == len(lab.app_pids())})


@fault("login_broken", "none")
def login_broken(lab: Lab) -> str:
    """Rename the column that the login reads, as a migration does that came too early."""
    lab.sql("ALTER TABLE public.users RENAME COLUMN username TO login_name")
    fails(lab)
    return "public.users.username has another name now"


@fault("login_broken", "none")
def cache_broken(lab: Lab) -> str:
    """Give the login a cache of sessions beside the database; then the cache goes away with a reset."""
    cache = lab.other("cache", port=lab.cache_port)
    lab.configure(ODRAS_CACHE=f"127.0.0.1:{lab.cache_port}")
    lab.restart()
    if set(lab.logins(8)) != {200}:
        raise LabError("with the cache a login fails already")
    cache.kill()
    cache.wait(10)
    fails(lab)
    return "the cache of sessions is gone, and the login holds a dead connection to it"


@fault("metric_artefact", "none", apps=("guide",))
def metric_artefact(lab: Lab) -> str:
    """Let the application's own monitor report every second, as the guide's step 5 does, and wait for its number."""
    file = lab.app / "backend/services/db_monitor.py"
    file.write_text(file.read_text().replace("asyncio.sleep(300)", "asyncio.sleep(1)"))
    lab.restart()
    wait_until(lambda: "High connection pool usage" in lab.log.read_text(), "the monitor warns", 20)
    return f"the monitor warns of high usage, and the application has {lab.sessions()} sessions"


@fault("monitor_dead", "none", apps=("reference",))
def monitor_dead(lab: Lab) -> str:
    """End the pools' monitors from within, and leave everything else running."""
    lab.configure(POSTGRES_POOL_MONITOR_INTERVAL=1)
    lab.restart()

    def alive() -> list[bool]:
        lab.get("/api/maintenance")
        return [status(path)["monitor"]["alive"] for path in lab.status_directory.glob("pool-*.sock")]

    wait_until(lambda: not any(alive()), "no monitor lives", 30)
    return f"ended the monitors of {len(alive())} workers"


@fault("stale_configuration", "none")
def stale_configuration(lab: Lab) -> str:
    """Change the settings on disk, as a rollout that forgot to restart."""
    before = lab.app_pids()
    lab.configure(POSTGRES_POOL_MAX_CONNECTIONS=40, POSTGRES_KEEPALIVES_IDLE=60)
    if not before or lab.app_pids() != before:
        raise LabError("the application was restarted, or does not run")
    return "the settings on disk are others now; the application was not restarted"


@fault("client_suspended", "none")
def client_suspended(lab: Lab) -> str:
    """A browser reports that its own network was suspended."""
    if (
        lab.get(f"/api/feedback?text={quote('net::ERR_NETWORK_IO_SUSPENDED at fetch /api/auth/login')}")
        != 200
    ):
        raise LabError("the report was not taken")
    return "a browser reported a suspended network; its login never arrived"

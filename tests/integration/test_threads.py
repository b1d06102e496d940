"""What the kernel tells of threads and of who waits at the door, against a process that does each of it."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from runbook.evidence import proc, sockets
from runbook.evidence.threads import Looks

# Does one of each for ever. Told: the port of a server that never answers. Says: its own port, then "ready".
PROGRAM = """
import select, socket, sys, threading, time
silent = int(sys.argv[1])
door = socket.create_server(("127.0.0.1", 0))
print(door.getsockname()[1], flush=True)
accepted, _ = door.accept()
connections = [socket.create_connection(("127.0.0.1", silent)) for _ in range(2)]
lock = threading.Lock(); lock.acquire()
def polls():
    poll = select.poll(); poll.register(connections[1], select.POLLIN); poll.poll()
def runs():
    while True: pass
for work in (lambda: connections[0].recv(1), polls, lambda: time.sleep(600), lock.acquire, runs):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
select.epoll().poll()
"""


@pytest.fixture(scope="module")
def app() -> Iterator[tuple[int, int, int]]:
    """(pid, its port, the port of the server that it waits for); one client accepted, two not."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        there = silent.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(there)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout
            port = int(process.stdout.readline())
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
            assert process.stdout.readline() == "ready\n"
            yield process.pid, port, there
            for client in clients:
                client.close()
        finally:
            process.kill()
            process.wait(10)


def seen(looks: Looks, wanted: set[str]) -> dict[str, list[dict[str, object]]]:
    """Look until every thread is where it belongs; call → the threads in it."""
    deadline = time.monotonic() + 10
    while True:
        found: dict[str, list[dict[str, object]]] = {}
        for thread in looks.look("before_login")["threads"]:
            found.setdefault(thread["call"], []).append(thread)
        if wanted <= set(found):
            return found
        assert time.monotonic() < deadline, sorted(found)


CALLS = {"recv", "poll", "sleep", "futex", "running", "epoll"}


def test_every_thread_is_found_in_what_it_waits_for(app: tuple[int, int, int]) -> None:
    pid, port, silent = app
    found = seen(Looks([pid], port), CALLS)
    for call in ("recv", "poll"):
        (thread,) = found[call]
        assert thread["to"] == f"127.0.0.1:{silent}"
        assert thread["inode"] in (proc.socket_fds(pid) or {}).values()
    assert {thread["to"] for call in ("sleep", "futex", "epoll") for thread in found[call]} == {None}
    (loop,) = found["epoll"]
    assert loop["tid"] == pid
    described = proc.describe(pid, 0.0)
    assert described and described["event_loop"] is True


def test_what_stands_still_took_no_turn_and_what_runs_took_time(app: tuple[int, int, int]) -> None:
    pid, port, _ = app
    looks = Looks([pid], port)
    first = seen(looks, CALLS)
    time.sleep(0.5)
    later = {thread["tid"]: thread for thread in looks.look("during_login")["threads"]}
    (sleeper,) = first["sleep"]
    assert later[sleeper["tid"]]["turns"] == sleeper["turns"]
    (runner,) = first["running"]
    assert later[runner["tid"]]["cpu_seconds"] > runner["cpu_seconds"]


def test_clients_that_were_not_accepted_are_counted_apart(app: tuple[int, int, int]) -> None:
    pid, port, _ = app
    look = Looks([pid], port).look("before_login")
    assert (look["connected"], look["not_accepted"]) == (1, 2)


def test_without_the_right_to_trace_nothing_is_guessed(
    app: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for another user: neither the system call nor, where the kernel hides it, the function slept in."""
    pid, port, _ = app
    real = proc.read
    hidden = ("syscall", "wchan")
    monkeypatch.setattr(proc, "read", lambda path, *more: None if path.name in hidden else real(path, *more))
    assert {thread["call"] for thread in Looks([pid], port).look("before_login")["threads"]} == {""}


def test_a_process_that_is_gone_has_no_threads() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait(10)
    assert Looks([ended.pid], None).look("before_login")["threads"] == []


def test_a_reset_socket_says_with_whom_it_was() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        places = [f"127.0.0.1:{server.getsockname()[1]}" for server in (one, other)]
        clients = [socket.create_connection(server.getsockname()) for server in (one, other)]
        for server in (one, other):
            accepted, _ = server.accept()
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()
        watch = sockets.Watch([os.getpid()], [places[0]])
        rows = watch.sample("before_login")
        assert [(row["state"], row["peer"]) for row in rows] == [("RESET", places[0])]
        assert [row["fd"] for row in rows] == [clients[0].fileno()]
        for client in clients:
            client.close()

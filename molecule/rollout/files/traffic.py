"""A load balancer as a deployment has one, and people who log in through it, for as long as the scenario lasts.

It asks every backend for /readyz twice a second and sends new connections to those that answer 200, in turn. What came
of the logins is in STATE, written anew twice a second. Configuration: CONFIG, readable by root alone.
"""

import asyncio
import collections
import contextlib
import json
import socket
import time
from pathlib import Path

CONFIG, STATE = "/root/traffic.json", "/root/traffic.state"
PERIOD, PATIENCE, PEOPLE = 0.5, 30.0, 3  # seconds between two looks, for an answer; logins at a time
ready: "dict[str, bool]" = {}
addresses: "dict[str, str]" = {}  # as last resolved: the name server of the hosts restarts when one comes or goes
statuses: "collections.Counter[str]" = collections.Counter()
failures: "list[str]" = []


async def ask(host, port, request):
    """(status, body) of one HTTP request."""
    reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), PATIENCE)
    try:
        writer.write(request)
        await writer.drain()
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b" ")[1].decode(), body.decode()


async def watch(host):
    """Is it ready? A word of its own counts at once, silence when it lasts."""
    request = f"GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    missed = 0
    while True:
        with contextlib.suppress(OSError):
            found = await asyncio.get_running_loop().getaddrinfo(host, 8000, family=socket.AF_INET)
            addresses[host] = found[0][4][0]
        try:
            status, _ = await ask(addresses.get(host, host), 8000, request)
            ready[host], missed = status == "200", 0
        except (OSError, asyncio.TimeoutError, IndexError):
            missed += 1
            ready[host] = ready[host] and missed < 2
        await asyncio.sleep(PERIOD)


async def serve(reader, writer):
    """One connection of a client, piped to the next backend that is ready."""
    hosts = [host for host in ready if ready[host]]
    if not hosts:
        writer.close()
        return
    host = hosts[0]
    ready[host] = ready.pop(host)  # to the end
    try:
        there, back = await asyncio.open_connection(addresses[host], 8000)
    except OSError as error:
        failures.append(f"{host}: {error}")
        writer.close()
        return

    async def pipe(source, target):
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
            target.write_eof()

    await asyncio.gather(pipe(reader, back), pipe(there, writer))
    for each in (back, writer):
        each.close()


async def log_in(config):
    """One person who logs in again and again."""
    body = json.dumps(config).encode()
    head = f"POST /api/auth/login HTTP/1.1\r\nHost: app\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    while True:
        began = time.strftime("%H:%M:%S")
        try:
            status, text = await ask("127.0.0.1", 9000, head.encode() + body)
        except (OSError, asyncio.TimeoutError, IndexError) as error:
            status, text = type(error).__name__, ""
        statuses[status] += 1
        if status != "200":
            failures.append(f"{began} {status} {text[:200]} ready: {[h for h in ready if ready[h]]}")
        await asyncio.sleep(0.2)


async def main():
    config = json.loads(Path(CONFIG).read_text())
    ready.update(dict.fromkeys(config.pop("hosts"), False))
    watchers = [asyncio.create_task(watch(host)) for host in list(ready)]
    while not all(ready.values()):
        await asyncio.sleep(0.1)
    server = await asyncio.start_server(serve, "127.0.0.1", 9000)
    people = [asyncio.create_task(log_in(config)) for _ in range(PEOPLE)]
    while not any(task.done() for task in (*watchers, *people)):
        state = {"statuses": statuses, "failures": failures[-20:], "failed": len(failures), "ready": ready}
        Path(f"{STATE}.new").write_text(json.dumps(state))
        Path(f"{STATE}.new").replace(STATE)
        await asyncio.sleep(PERIOD)
    server.close()
    await asyncio.gather(*watchers, *people)


asyncio.run(main())

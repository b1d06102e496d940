"""A TCP proxy between the application and PostgreSQL, healthy at first; says "ready" when it listens.

Standard input: {"listen": port, "to": port}. Signals change what it does, for what is established then and,
where said so, for what comes later:

    USR1  hang: acknowledges and delivers nothing, on established flows and on new ones
    USR2  hang: on established flows only
    INT   cut: close established flows at both ends, as an idle timeout does (FIN)
    QUIT  cut: reset them at the application's end (RST), and close them at the other
"""

import json
import selectors
import signal
import socket
import struct
import sys

told = json.load(sys.stdin)
events = selectors.DefaultSelector()
peers: dict[socket.socket, socket.socket] = {}
clients: set[socket.socket] = set()
silent: set[socket.socket] = set()
hangs: list[bool] = []  # with anything in it, what comes later hangs too


def forget(one: socket.socket) -> None:
    for end in (one, peers.get(one)):
        if end is not None and end in peers:
            events.unregister(end)
            del peers[end]
            clients.discard(end)
            end.close()


def on_signal(number: int, _: object) -> None:
    if number in (signal.SIGUSR1, signal.SIGUSR2):
        silent.update(peers)
        hangs.extend([True] * (number == signal.SIGUSR1))
    for client in list(clients) if number in (signal.SIGINT, signal.SIGQUIT) else []:
        if number == signal.SIGQUIT:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        forget(client)


listener = socket.create_server(("127.0.0.1", told["listen"]), backlog=200)
events.register(listener, selectors.EVENT_READ)
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, on_signal)
wake, waker = socket.socketpair()
waker.setblocking(False)
signal.set_wakeup_fd(waker.fileno())  # a signal ends the wait, so what it changed is seen at once
events.register(wake, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in events.select():
        one = key.fileobj
        if one is listener:
            client, _address = listener.accept()
            if hangs:
                silent.add(client)
                peers[client] = client
                events.register(client, selectors.EVENT_READ)
                continue
            server = socket.create_connection(("127.0.0.1", told["to"]))
            peers[client], peers[server] = server, client
            clients.add(client)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                events.register(end, selectors.EVENT_READ)
        elif one is wake:
            wake.recv(64)
        elif one in peers:
            try:
                data = one.recv(65536)
                if one in silent:
                    if not data:
                        forget(one)
                elif data:
                    peers[one].sendall(data)
                else:
                    forget(one)
            except OSError:
                forget(one)

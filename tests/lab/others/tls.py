"""What speaks TLS with the application for a PostgreSQL that cannot; says "ready" when it listens.

Standard input: {"listen": port, "to": port, "certificate": file, "key": file}. What either side says is passed
on, and when one ends, the other is ended.
"""

import json
import select
import socket
import ssl
import struct
import sys
import threading

REQUEST = struct.pack("!II", 8, 80877103)
told = json.load(sys.stdin)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(told["certificate"], told["key"])
context.num_tickets = 0  # as PostgreSQL, which leaves nothing unread on an idle connection


def serve(plain: socket.socket) -> None:
    if plain.recv(8, socket.MSG_WAITALL) != REQUEST:
        plain.close()
        return
    plain.sendall(b"S")
    server = socket.create_connection(("127.0.0.1", told["to"]))
    with server, context.wrap_socket(plain, server_side=True) as client:
        while pass_on(client, server):
            pass


def pass_on(client: ssl.SSLSocket, server: socket.socket) -> bool:
    """What one of them said next goes to the other; False when one ended."""
    ready = [client] if client.pending() else select.select([client, server], [], [])[0]
    for source, target in ((client, server), (server, client)):
        if source in ready:
            try:
                part = source.recv(1 << 16)
            except OSError:
                return False
            if not part:
                return False
            target.sendall(part)
    return True


listener = socket.create_server(("127.0.0.1", told["listen"]), backlog=128)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

"""A cache of sessions: a line in, a line out. When its process ends, its clients get a reset. Told: port."""

import json
import socket
import socketserver
import struct
import sys


class Cache(socketserver.StreamRequestHandler):
    def setup(self) -> None:
        super().setup()
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def handle(self) -> None:
        for _ in self.rfile:
            self.wfile.write(b"none\n")


class Threaded(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


server = Threaded(("127.0.0.1", json.load(sys.stdin)["port"]), Cache)
print("ready", flush=True)
server.serve_forever()

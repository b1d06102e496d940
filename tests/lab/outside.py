"""What is around the app: visitors, a partner's server, a cache of sessions. Each is a process of its own.

    python -m tests.lab.outside visit COUNT SECONDS URL   COUNT at a time ask for URL, again and again
    python -m tests.lab.outside partner PORT              answers GET /?seconds=N after N seconds
    python -m tests.lab.outside cache PORT                a line in, a line out; ends with a reset

They end by a signal. Whoever starts them waits until they listen, or until what they cause is seen.
"""

from __future__ import annotations

import socket
import socketserver
import struct
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

LONGEST = 900  # seconds that anything here lasts at most


def visit(count: int, seconds: float, url: str) -> None:
    """`count` visitors ask for `url` until `seconds` are over; whatever the answer, each asks again."""
    end = time.monotonic() + seconds
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def one() -> None:
        while time.monotonic() < end:
            with suppress(OSError), opener.open(url, timeout=LONGEST) as answer:
                answer.read()
            time.sleep(0.05)

    threads = [threading.Thread(target=one, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)


class Partner(BaseHTTPRequestHandler):
    """Answers after as many seconds as it is asked to."""

    def do_GET(self) -> None:
        wanted = parse_qs(urlsplit(self.path).query).get("seconds", ["0"])
        time.sleep(min(float(wanted[0]), LONGEST))
        with suppress(ConnectionError):
            self.send_response(204)
            self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody reads its log."""


class Cache(socketserver.StreamRequestHandler):
    """Whatever it is asked, it knows nothing of it. When its process ends, its clients get a reset."""

    def setup(self) -> None:
        super().setup()
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def handle(self) -> None:
        for _ in self.rfile:
            self.wfile.write(b"none\n")


class Threaded(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main(arguments: list[str]) -> None:
    what, *rest = arguments
    if what == "visit":
        visit(int(rest[0]), min(float(rest[1]), LONGEST), rest[2])
    elif what == "partner":
        ThreadingHTTPServer(("127.0.0.1", int(rest[0])), Partner).serve_forever()
    elif what == "cache":
        Threaded(("127.0.0.1", int(rest[0])), Cache).serve_forever()
    else:
        raise SystemExit(f"{what!r} is none of visit, partner, cache")


if __name__ == "__main__":
    main(sys.argv[1:])

"""A partner's server: answers GET /?seconds=N after N seconds. Told: port."""

import json
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Partner(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = parse_qs(urlsplit(self.path).query).get("seconds", ["0"])
        time.sleep(float(wanted[0]))
        with suppress(ConnectionError):
            self.send_response(204)
            self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody reads its log."""


server = ThreadingHTTPServer(("127.0.0.1", json.load(sys.stdin)["port"]), Partner)
print("ready", flush=True)
server.serve_forever()

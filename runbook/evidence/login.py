"""View U: the user's own path, probed as several users at once.

One probe hits one worker of many and lies, so a round is ``attempts`` fresh connections in parallel and
is ok only if all are. A pool with dead connections may heal while it is probed; so a failed round is
followed by others until one began after as many probes as there were connections to trip over. What the
*last* round says is what still holds.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import socket
import ssl
import string
import threading
import time
from collections import Counter
from typing import Any, Optional
from urllib.parse import quote, urlsplit

from ..common.clock import rfc3339

ATTEMPT_SECONDS = 5.0
# Enough for a pool of 50 in each worker, at two logins for each; the deadline may end it earlier.
MOST_ROUNDS = 30
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_NOT_THE_LOGIN = {400, 404, 405, 415, 422, 429}


class Probe:
    """A login to try. Without ``username`` an unknown user is sent: 401 then says that the lookup
    reached the database, and nothing more (``kind`` is ``path``)."""

    def __init__(
        self, url: str, username: Optional[str], password: Optional[str], seconds: Optional[float] = None
    ) -> None:
        self.url = url
        self.seconds = seconds or ATTEMPT_SECONDS  # that one login may take
        self.kind = "full" if username and password else "path"
        self._username = username if self.kind == "full" else f"nobody-{secrets.token_hex(4)}"
        self._password = password if self.kind == "full" else secrets.token_hex(12)

    def round(self, attempts: int) -> dict[str, Any]:
        """One round: ``attempts`` logins at the same time, each with its deadline."""
        started, began = time.time(), time.monotonic()
        results: list[Optional[tuple[str, str]]] = [None] * attempts
        logouts: list[str] = []
        gate = threading.Barrier(attempts)

        def attempt(index: int) -> None:
            gate.wait(self.seconds)
            status, text = self._once()
            results[index] = status, " ".join(text.split())[:200]
            if status == "200" and self.kind == "full":
                logouts.append(self._logout(text))  # after the result, which a hanging logout must not undo

        threads = [threading.Thread(target=attempt, args=(i,), daemon=True) for i in range(attempts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, began + self.seconds + 0.5 - time.monotonic()))
        answers = [result or ("timeout", f"no answer within {self.seconds:.0f} s") for result in results]
        failed = [detail for status, detail in answers if not self.passed(status)]
        return {
            "attempts": attempts,
            "failed": len(failed),
            "by_status": dict(Counter(status for status, _ in answers)),
            "seconds": round(time.monotonic() - began, 3),
            "ok": not failed,
            "logouts_failed": sum(status.startswith("5") for status in logouts),
            "started_at": rfc3339(started),
            "detail": failed[0] if failed else "",
        }

    def passed(self, status: str) -> bool:
        """Does this status prove the path? 200 does; 401 does when no credentials were given."""
        return status.startswith("2") or (self.kind == "path" and status == "401")

    def misconfigured(self, by_status: dict[str, int]) -> Optional[str]:
        """What to set when the answers speak of the probe and not of the app; else None."""
        codes = {int(status) for status in by_status if status.isdigit()}
        if not codes or len(codes) != len(by_status) or any(code >= 500 for code in codes):
            return None
        wrong = {code for code in codes if code in _NOT_THE_LOGIN or 300 <= code < 400}
        if wrong == {429}:
            return f"diagnose_login_url: {self.url} answers 429, a limit on logins; lower diagnose_login_attempts"
        if wrong:
            return f"diagnose_login_url: {self.url} answers {min(wrong)}, so this is not where one logs in"
        denied = codes & {401, 403}
        if denied and (self.kind == "full" or 403 in denied):
            return f"diagnose_login_username, diagnose_login_password: the app answers {min(denied)} to them"
        return None

    def _once(self) -> tuple[str, str]:
        """(status, the answer's beginning) of one login."""
        body = json.dumps({"username": self._username, "password": self._password})
        try:
            parts = urlsplit(self.url)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            # What is encoded already stays as it is.
            return self._post(
                quote(target, safe=string.punctuation), body, {"Content-Type": "application/json"}
            )
        except (socket.timeout, TimeoutError):
            return "timeout", f"no answer within {self.seconds:.0f} s"
        except ConnectionRefusedError:
            return "refused", "connection refused"
        except ConnectionError as error:
            return "reset", type(error).__name__
        except (OSError, ValueError, http.client.HTTPException) as error:
            return "error", f"{type(error).__name__}: {error}"

    def _post(self, target: str, body: str, headers: dict[str, str]) -> tuple[str, str]:
        """(status, the answer's beginning), over a connection of its own. Raises what http.client does."""
        connection = _connection(self.url, self.seconds)
        try:
            connection.request("POST", target, body, {**headers, "Connection": "close"})
            answer = connection.getresponse()
            return str(answer.status), answer.read(4096).decode("utf-8", "replace")
        finally:
            connection.close()

    def _logout(self, text: str) -> str:
        """Give back the token of a real login, where the app has a logout beside its login: its status, or empty."""
        base, _, last = urlsplit(self.url).path.rpartition("/")
        try:
            answer = json.loads(text)
            token = answer.get("access_token") or answer.get("token")
        except (ValueError, AttributeError):
            return ""
        if last == "login" and isinstance(token, str):
            # The login is proven; a token that stays expires by itself.
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                return self._post(f"{base}/logout", "", {"Authorization": f"Bearer {token}"})[0]
        return ""


def port_of(url: str) -> int:
    """The TCP port of a URL."""
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _connection(url: str, seconds: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    host, port = parts.hostname or "localhost", port_of(url)
    if parts.scheme == "https":
        context = ssl.create_default_context()
        if host in _LOOPBACK:  # no certificate names the loopback address
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
    return http.client.HTTPConnection(host, port, timeout=seconds)


def collect(probe: Probe, attempts: int, dead_connections: int, deadline: float) -> dict[str, Any]:
    """The data of view ``login``. ``deadline`` is a time of ``time.monotonic``."""
    rounds: list[dict[str, Any]] = []
    misconfigured: Optional[str] = None
    while len(rounds) < MOST_ROUNDS:
        before = attempts * len(rounds)
        rounds.append(probe.round(attempts))
        misconfigured = probe.misconfigured(rounds[-1]["by_status"])
        if rounds[-1]["ok"] or misconfigured or rounds[-1]["by_status"].get("refused") == attempts:
            break
        # A round ends half a second after its attempts; one that could not end in time is not begun.
        if (before and before >= dead_connections) or time.monotonic() + probe.seconds + 0.5 > deadline:
            break
    return {"kind": probe.kind, "url": probe.url, "rounds": rounds, "misconfigured": misconfigured}

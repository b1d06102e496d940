"""The cache of sessions: a server beside the database that the login asks first, where one is configured."""

import socket
import threading

from backend.work import setting

_lock = threading.Lock()
_connection = None


def recall(username):
    """What the cache knows of a user: one line out, one line in; empty where ODRAS_CACHE is not set.

    One connection for the whole process, opened at the first use.
    """
    global _connection  # noqa: PLW0603 - kept for the life of the process
    address = setting("ODRAS_CACHE")
    if not address:
        return ""
    with _lock:
        if _connection is None:
            host, _, port = address.rpartition(":")
            _connection = socket.create_connection((host, int(port)), timeout=5)
        _connection.sendall(f"GET {username}\n".encode())
        answer = _connection.makefile("r").readline()
    if not answer:
        raise ConnectionResetError(f"session cache {address}: connection closed")
    return answer.strip()

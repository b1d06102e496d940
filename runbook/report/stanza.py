"""The inventory stanza of what was discovered on a host: to paste, with what is left to do by hand. Pure."""

from __future__ import annotations

import json
from collections.abc import Container
from typing import Any

from .words import plain

BY_HAND = "# by hand: "


def stanza(hosts: dict[str, list[dict[str, Any]]], local: Container[str] = ()) -> str:
    """YAML of group app. ``hosts``: host → what ``evidence/discover.py`` found there; of several services on a
    host each becomes a host of its own, named after its port. ``local``: those that are this very machine."""
    lines = ["app:", "  hosts:"]
    for host, services in sorted(hosts.items()):
        if not services:
            words = "no Python program listens there; name its port: -e discover_port=8000"
            lines.append(f"    # {host}: {words}")
        for service in services:
            name = host if len(services) == 1 else f"{host}-{service['port']}"
            alias = [] if name == host else [f"ansible_host: {host}"]
            here = ["ansible_connection: local"] if host in local else []
            body = [*alias, *here, *_service(service)]
            lines += [f"    {name}:", *(f"      {line}" for line in body)]
    return plain("\n".join(" ".join(line.split("\n")) for line in lines)) + "\n"


def by_hand(text: str) -> int:
    """How many lines of a stanza are left to a person."""
    return text.count(BY_HAND)


def _service(found: dict[str, Any]) -> list[str]:
    lines = [f"# {_what(found)}"]
    url = f"diagnose_login_url: http://127.0.0.1:{found['port']}"
    paths = found["login_paths"] or found["login_routes"]
    if paths:
        place = "access log" if found["login_paths"] else "source; a prefix may be missing"
        others = f", beside {', '.join(paths[1:])}" if paths[1:] else ""
        lines.append(f"{url}{paths[0]}  # as in its {place}{others}")
    else:
        lines.append(f"{url}/api/auth/login  {BY_HAND}the path where one logs in")
    if not found["service"]:
        words = "the words that restart it; without, it never is"
        lines.append(f"diagnose_restart_command: []  {BY_HAND}{words}")
    if found["service"]:
        lines.append(f"diagnose_service: {found['service']}")
    if not found["sudo"]:
        lines.append("# no sudo there: it is read as whoever logs in, root or its own user")
    elif found["service"] and not found["log"]:
        lines.append("diagnose_user: root  # its log is the journal: for root and the group systemd-journal")
    elif found["user"]:
        lines.append(f"diagnose_user: {found['user']}")
    paths = [name for name in ("pid_file", "log", "environment_file") if found[name]]
    lines += [f"diagnose_{name}: {_scalar(found[name])}" for name in paths]
    if not found["log"] and not found["service"]:
        lines.append(f"diagnose_log: ''  {BY_HAND}its log file")
    return [*lines, *(f"# not read: {words}" for words in found["unread"])]


def _what(found: dict[str, Any]) -> str:
    database = found["database"]
    place = f"{database['user']}@{database['host']}:{database['port']}/{database['name']}" if database else ""
    words = [
        f"{found['processes']} process{'es' * (found['processes'] > 1)} of {found['command']}"
        if found["command"]
        else "an unknown program",
        "in a container" if found["container"] else "",
        f"database {place} (from {found['settings_from']})" if place else "its database is not known",
        f"connected to {', '.join(found['peers'])}" if found["peers"] and not place else "",
    ]
    return "; ".join(word for word in words if word)


def _scalar(text: str) -> str:
    """A text as YAML: as it stands where that is safe, else as JSON, which is YAML too."""
    plain = text.replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum()
    return text if plain and text.startswith("/") else json.dumps(text)

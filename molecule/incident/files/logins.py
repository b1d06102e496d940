"""Logins. Arguments: a host, and optionally a role.

A hundred logins of the user in /root/login.json, ten at a time, which must all work. With a role its sessions on this
machine's server are ended and an unknown user logs in, again and again, until logins answer 500 and stay so.
"""

import collections
import concurrent.futures
import json
import pathlib
import subprocess
import sys
import urllib.error
import urllib.request

NOBODY = {"username": "nobody", "password": "wrong"}


def login(host: str, user: dict[str, str] = NOBODY) -> int:
    body = json.dumps(user).encode()
    kind = {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(f"http://{host}:8000/api/auth/login", body, kind)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def hundred(host: str) -> None:
    user = json.loads(pathlib.Path("/root/login.json").read_text())
    with concurrent.futures.ThreadPoolExecutor(10) as workers:
        counts = collections.Counter(workers.map(login, [host] * 100, [user] * 100))
    print(dict(counts))
    sys.exit(counts != {200: 100})


def exhaust(host: str, role: str) -> None:
    end = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{role}'"
    for rounds in range(1, 61):
        subprocess.run(["psql", "--quiet", "--command", end], check=True, capture_output=True)
        login(host)
        if [login(host) for _ in range(5)] == [500] * 5:
            print(f"exhausted after {rounds} rounds")
            return
    sys.exit("60 rounds, and a login still works")


(hundred if len(sys.argv) == 2 else exhaust)(*sys.argv[1:])

"""End the app's sessions and let somebody log in, again and again, until logins answer 500 and stay so."""

import json
import subprocess
import sys
import urllib.error
import urllib.request

END = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'odras_app'"


def login() -> int:
    body = json.dumps({"username": "das_service", "password": "wrong"}).encode()
    request = urllib.request.Request(
        "http://web1:8000/api/auth/login", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


for rounds in range(1, 61):
    subprocess.run(
        ["psql", "--quiet", "--no-align", "--tuples-only", "--command", END], check=True, capture_output=True
    )
    login()
    if [login() for _ in range(5)] == [500] * 5:
        print(f"exhausted after {rounds} rounds")
        sys.exit(0)
sys.exit("60 rounds, and a login still works")

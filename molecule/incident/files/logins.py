"""A hundred logins, ten at a time, with an unknown user: 401 says that the lookup reached the database."""

import collections
import concurrent.futures
import json
import sys
import urllib.error
import urllib.request


def login(_: int) -> int:
    body = json.dumps({"username": "nobody", "password": "wrong"}).encode()
    request = urllib.request.Request(
        "http://app1:8000/api/auth/login", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


with concurrent.futures.ThreadPoolExecutor(10) as workers:
    counts = collections.Counter(workers.map(login, range(100)))
print(dict(counts))
sys.exit(counts != {401: 100})

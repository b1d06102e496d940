"""People who log in, each again as soon as it was answered. Says "ready" when all have begun.

Standard input: {"url", "username", "password", "count", "seconds": patience of one, "pause": between two}.
"""

import json
import sys
import threading
import time
import urllib.error
import urllib.request

told = json.load(sys.stdin)
body = json.dumps({"username": told["username"], "password": told["password"]}).encode()
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
begun = threading.Barrier(told["count"] + 1)


def person() -> None:
    begun.wait()
    while True:
        request = urllib.request.Request(told["url"], body, {"Content-Type": "application/json"})
        try:
            with opener.open(request, timeout=told["seconds"]) as answer:
                answer.read()
        except OSError:
            pass
        time.sleep(told["pause"])


for _ in range(told["count"]):
    threading.Thread(target=person, daemon=True).start()
begun.wait()
print("ready", flush=True)
threading.Event().wait()

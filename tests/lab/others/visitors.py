"""Visitors ask for a page again and again, whatever the answer.

Told: url, count (of them), seconds (after which nobody asks any more).
"""

import json
import sys
import threading
import time
import urllib.request
from contextlib import suppress

LONGEST = 900  # seconds to wait for one answer
told = json.load(sys.stdin)
end = time.monotonic() + told["seconds"]
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def one() -> None:
    while time.monotonic() < end:
        with suppress(OSError), opener.open(told["url"], timeout=LONGEST) as answer:
            answer.read()
        time.sleep(0.5)


threads = [threading.Thread(target=one) for _ in range(told["count"])]
for thread in threads:
    thread.start()
    time.sleep(0.02)  # one after the other, so that every worker of the app gets some
print("ready", flush=True)
for thread in threads:
    thread.join()

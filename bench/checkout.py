"""What safety costs: one checkout and return of an idle connection, beside psycopg2.pool, in one thread.

    python bench/checkout.py            prints microseconds, and writes bench/results/checkout.json

Both take turns in small batches on the same server, and the quickest batch of each counts, in the thread's own
processor time: whatever else the machine does hits both, and slows down no quickest batch. Compare the ratio,
not the microseconds.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg2.pool

from runbook.pool import Pool, Settings
from tests.lab.account import fresh_directory
from tests.lab.database import prepare
from tests.lab.postgres import Postgres

ROUNDS, BATCH = 400, 250
RESULT = Path(__file__).with_name("results") / "checkout.json"


def batch(get: Callable[[], Any], put: Callable[[Any], None]) -> float:
    """Seconds of one checkout and return."""
    began = time.thread_time()
    for _ in range(BATCH):
        put(get())
    return (time.thread_time() - began) / BATCH


def main() -> int:
    """Run it; exit status 0."""
    with Postgres(fresh_directory("odras-")) as server:
        prepare(server)
        theirs = psycopg2.pool.ThreadedConnectionPool(2, 20, **server.connection("odras_app", "odras"))
        where = {"host": server.host, "port": server.port, "database": "odras", "user": "odras_app"}
        ours = Pool(Settings(**where, password=server.passwords["odras_app"]), "bench")
        ours.putconn(ours.getconn())
        quickest = {"psycopg2.pool": 1.0, "runbook.pool": 1.0}
        for _ in range(ROUNDS):
            for name, pool in (("psycopg2.pool", theirs), ("runbook.pool", ours)):
                quickest[name] = min(quickest[name], batch(pool.getconn, pool.putconn))
        ours.close()
        theirs.closeall()
    found = {name: round(seconds * 1e6, 2) for name, seconds in quickest.items()}
    ratio = round(found["runbook.pool"] / found["psycopg2.pool"], 2)
    machine = {"python": platform.python_version(), "psycopg2": version("psycopg2-binary")}
    RESULT.write_text(json.dumps({"microseconds": found, "ratio": ratio, **machine}, indent=1) + "\n")
    print(f"microseconds a checkout and return: {found}; ratio {ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

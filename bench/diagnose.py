"""How long a diagnosis takes, against the same six steps written by hand with stock modules: bench/naive.yml.

    make bench                     1, 20 and 200 hosts; writes bench/results/diagnose.json
    python bench/diagnose.py 20    only 20 hosts, five rounds

What is real: the apps, each a process with a port, a log, a pool and a source tree of its own; their
PostgreSQL; the fault (all of them lost every slot of their pools: logins answer 500); ansible-playbook, with
the ansible.cfg of the clone for both. What is simulated: the hosts. They are names with a local connection
on one machine, so there is no network between them and the controller, and the work that 200 hosts would do
for themselves is done by the processors of one. With more hosts than apps several names share an app.

Both only read (diagnose_restart is never): how long a restart takes is the app's own affair. They take turns,
round by round, so that a machine that slows down slows both; the median counts.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.lab.fleet import Fleet  # noqa: E402 - the clone is no package: its place is known only now

RESULTS = ROOT / "bench" / "results" / "diagnose.json"
COMMAND = Path(sys.executable).with_name("ansible-playbook")
MOST_APPS = 20
ROUNDS = {1: 5, 20: 5, 200: 1}
WANTED = {1: 1.3, 20: 3.0}  # times faster, at least
DEADLINE_SECONDS = 1800


class Bench:
    """A broken fleet, and the two ways to look at it."""

    def __init__(self, fleet: Fleet, place: Path) -> None:
        self.fleet = fleet
        self.place = place

    def play(self, inventory: Path, playbook: str) -> tuple[float, str]:
        """(seconds, output) of one playbook. It must fail: the logins do."""
        # Nobody's environment may change what is measured: not even by keeping Python from its bytecode.
        own = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "PYTHON"))}
        settings = {"diagnose_restart": "never", "diagnose_reports": str(self.place / "reports")}
        began = time.monotonic()
        done = subprocess.run(
            [str(COMMAND), "-i", str(inventory), playbook, "-e", json.dumps(settings)],
            cwd=ROOT,
            env={**own, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        seconds = time.monotonic() - began
        if done.returncode != 2:
            raise SystemExit(f"{playbook} ended with {done.returncode}:\n{done.stdout[-4000:]}")
        return seconds, done.stdout

    def connections(self) -> int:
        """How often the diagnosis's own role has logged in to the server so far."""
        log = self.fleet.first.server.log.read_text(errors="replace")
        return log.count("connection authorized: user=odras_diagnosis")

    def runbook(self, inventory: Path, hosts: int) -> float:
        """Seconds of one diagnosis; every host must have its cause, over one database connection."""
        before = self.connections()
        seconds, output = self.play(inventory, "diagnose.yml")
        fleet = json.loads((self.place / "reports" / "latest" / "fleet.json").read_text())
        causes = [row["cause"] for row in fleet["hosts"]]
        opened = self.connections() - before
        if causes != ["slot_leak"] * hosts or (opened, fleet["database_connections"]) != (1, 1):
            raise SystemExit(f"{opened} connections, causes {sorted(set(causes))}:\n{output[-4000:]}")
        return seconds

    def naive(self, inventory: Path, hosts: int) -> float:
        """Seconds of the steps by hand; every host must have said that its login fails."""
        seconds, output = self.play(inventory, "bench/naive.yml")
        if output.count('"msg": "login 500 500 500;') != hosts:
            raise SystemExit(f"not every host was read:\n{output[-4000:]}")
        return seconds

    def compare(self, hosts: int, rounds: int) -> dict[str, Any]:
        """Both in turns; medians and all figures in seconds."""
        python = {"naive_python": self.fleet.first.python}
        inventory = self.fleet.inventory(self.place / f"hosts-{hosts}.yml", hosts, **python)
        ways: dict[str, Callable[[Path, int], float]] = {"runbook": self.runbook, "naive": self.naive}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds):
            # Whoever begins may find a colder machine, so they take turns in that too.
            for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
                seconds[name].append(round(ways[name](inventory, hosts), 2))
                print(f"{hosts:>4} hosts  round {turn + 1}  {name:<8} {seconds[name][-1]:8.2f} s", flush=True)
        median = {name: round(statistics.median(all_), 2) for name, all_ in seconds.items()}
        ratio = median["naive"] / median["runbook"]
        print(f"{hosts:>4} hosts  {ratio:.2f} times faster", flush=True)
        return {
            "runbook_s": median["runbook"],
            "naive_s": median["naive"],
            "ratio": round(ratio, 2),
            "runbook_all_s": seconds["runbook"],
            "naive_all_s": seconds["naive"],
            "database_connections": 1,
        }


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    commit = ["git", "describe", "--always", "--dirty"]
    told = subprocess.run(commit, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": told.stdout.strip(),
        "processors": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "ansible_core": version("ansible-core"),
    }


def too_slow(results: dict[str, Any]) -> list[str]:
    """What of the results is slower than it should be, in words."""
    wanted = {f"hosts_{size}": times for size, times in WANTED.items()}
    return [
        f"{name}: {result['ratio']} times faster, wanted {wanted[name]}"
        for name, result in results.items()
        if result["ratio"] < wanted.get(name, 0)
    ]


def main(sizes: list[int]) -> int:
    """Measure, and write what was measured over what was there before; 1 where that is too slow."""
    told = machine()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("interrupted"))  # the fleet is taken down all the same
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        place = Path(directory)
        # A pool of four: it is as exhausted as one of twenty, and sooner.
        server = {"max_connections": 300, "log_connections": "on"}
        apps = min(max(sizes), MOST_APPS)
        print(f"{apps} apps and their PostgreSQL; then they lose every slot", flush=True)
        with Fleet(place / "fleet", apps, server, POSTGRES_POOL_MAX_CONNECTIONS=4) as fleet:
            fleet.lose_slots()
            bench = Bench(fleet, place)
            results = {f"hosts_{size}": bench.compare(size, ROUNDS.get(size, 3)) for size in sizes}
    RESULTS.parent.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    measured = {size: {**result, "machine": told} for size, result in results.items()}
    RESULTS.write_text(json.dumps({**kept, **measured}, indent=1) + "\n")
    for words in too_slow(results):
        print(f"TOO SLOW: {words}")
    return 1 if too_slow(results) else 0


if __name__ == "__main__":
    sys.exit(main([int(size) for size in sys.argv[1:]] or list(ROUNDS)))

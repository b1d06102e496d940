#!/usr/bin/env python3
"""Interrupt rollouts on the first two hosts of this scenario in every way, and see that the next run ends clean.

INTERRUPTIONS=all tries every point, a number as many of them, chosen by INTERRUPTIONS_SEED. Ways:

- controller: it is killed after a task's result, after each of them on those hosts;
- controller at STEP: it is killed while a host is at this step of its transaction, which goes on alone;
- connection at STEP: the host's sshd is, so the transaction goes on alone while the controller lives;
- module at STEP: what works on the host is killed there, as a crash would;
- host at STEP: the whole host is, and boots again; its logins may fail.

After each the next run brings the new values, or the old ones; then no host may have another file than its processes have,
a journal, or be out of traffic or the balancer, and people logged in, and nobody's login failed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "callback"))

from kill_after import kill  # noqa: E402 - it lies in the directory that was just added

ROOT = HERE.parent.parent
PLACE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
HOSTS = ("app1", "app2")
STEPS = ("drain", "write", "restart", "gate")
VALUES = ((3, 25), (4, 24))  # minimum and maximum; rolled out in turn
DEADLINE = 600.0  # seconds for a run, on a busy machine
# Runs on the host: awaits a step of the journal; then says so, after it killed who holds the lock, or the sshd above him.
WATCH = """
import json, os, signal, sys, time
step, kill = sys.argv[1:]
deadline = time.monotonic() + 600
while time.monotonic() < deadline:
    try:
        if json.load(open("/etc/app/app.env.rollout"))["step"] == step:
            if kill in ("module", "connection"):
                pid = json.load(open("/var/lib/pool-runbook/lock"))["pid"]
                while kill == "connection" and not open(f"/proc/{pid}/comm").read().startswith("sshd"):
                    pid = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
                os.kill(pid, signal.SIGKILL)
            print("reached", flush=True)
            break
    except (FileNotFoundError, ValueError):
        pass
    time.sleep(0.002)  # the step stands in a file, and is over in milliseconds
"""
LOOK = """
set -eu
grep -c -e '^POSTGRES_POOL_MIN_CONNECTIONS="{minimum}"$' -e '^POSTGRES_POOL_MAX_CONNECTIONS="{maximum}"$' /etc/app/app.env
/opt/app/venv/bin/runbook status --directory /run/app | grep -c ' of {maximum} used' || true
ls -A /etc/app
python3 -c 'import urllib.request as u; print(u.urlopen("http://127.0.0.1:8000/readyz").status)'
"""
CLEAN = ["2", "2", "app.env", "secrets.env", "200"]


class Point(NamedTuple):
    """Where a rollout is interrupted."""

    way: str  # controller, connection, module, host
    host: str  # for a step
    step: str  # of the transaction; empty: after a task's result
    after: int  # results of tasks

    def __str__(self) -> str:
        return (
            f"{self.way} at {self.step} of {self.host}"
            if self.step
            else f"{self.way} after result {self.after}"
        )


def rollout(values: tuple[int, int], after: int = 0) -> subprocess.Popen[str]:
    """Begin one on the two hosts; it is the leader of its own process group."""
    environment = {
        **os.environ,
        "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback"),
        "ANSIBLE_CALLBACKS_ENABLED": "kill_after",
        "KILL_AFTER": str(after),
        "KILL_HOSTS": " ".join(HOSTS),
        "KILL_COUNT": str(PLACE / "count"),
    }
    inventories = (f"--inventory={ROOT}/molecule/shared/inventory", f"--inventory={HERE}/inventory")
    wanted = [f"postgres_pool_min_connections={values[0]}", f"postgres_pool_max_connections={values[1]}"]
    wanted += [f"diagnose_reports={PLACE}/interruptions"]
    wanted += [f"rollout_out_of_traffic={HERE}/tasks/out.yml", f"rollout_into_traffic={HERE}/tasks/in.yml"]
    command = [
        "ansible-playbook",
        *inventories,
        "playbooks/rollout.yml",
        "--limit",
        f"localhost,{','.join(HOSTS)}",
    ]
    return subprocess.Popen(
        [*command, *(part for each in wanted for part in ("-e", each))],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(run: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and output."""
    output, _ = run.communicate(timeout=DEADLINE)
    return run.returncode, output


def on(host: str, *command: str) -> list[str]:
    """A command in the container of a host."""
    return ["podman", "exec", "--interactive", f"pool-runbook-rollout-{host}", *command]


def traffic() -> tuple[int, int, list[str]]:
    """Logins that worked, that failed, and the last of these."""
    done = subprocess.run(on("db1", "cat", "/root/traffic.state"), text=True, capture_output=True, check=True)
    state = json.loads(done.stdout)
    return state["statuses"].get("200", 0), state["failed"], state["failures"][-3:]


def interrupt(point: Point, values: tuple[int, int]) -> str:
    """Begin a rollout and interrupt it there; what was reached."""
    if not point.step:
        status, _ = finish(rollout(values, point.after))
        return (PLACE / "count").read_text() if status == -signal.SIGKILL else ""
    watch = subprocess.Popen(
        on(point.host, "python3", "-", point.step, point.way),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert watch.stdin
    assert watch.stdout
    watch.stdin.write(WATCH)
    watch.stdin.close()
    run = rollout(values)
    reached = watch.stdout.readline().strip()
    if point.way == "controller":
        kill(run.pid)
    if point.way == "host":
        container = f"pool-runbook-rollout-{point.host}"
        subprocess.run(["podman", "kill", container], check=True, capture_output=True)
        subprocess.run(["podman", "start", container], check=True, capture_output=True)
    watch.wait(DEADLINE)
    status, output = finish(run)
    if point.way != "controller" and status == 0:
        sys.exit(f"{point}: the run ended well although it was interrupted\n{output}")
    return reached


def booted(host: str) -> None:
    """Wait until systemd is up, and the name server that all hosts share, which starts anew with each of them."""
    deadline = time.monotonic() + 120
    awaited = [(host, "systemctl", "is-system-running", "--wait")]
    awaited += [(each, "timeout", "5", "getent", "ahostsv4", "db1") for each in HOSTS]
    while awaited and time.monotonic() < deadline:
        done = subprocess.run(on(*awaited[0]), text=True, capture_output=True, check=False)
        if done.returncode == 0 or done.stdout.strip() == "degraded":
            del awaited[0]
        else:
            time.sleep(0.5)
    if awaited:
        sys.exit(f"{host} does not boot: {' '.join(awaited[0])}")


def unclean(values: tuple[int, int]) -> list[str]:
    """What is wrong on any host after the run that should have ended clean."""
    script = LOOK.format(minimum=values[0], maximum=values[1])
    wrong = []
    told = (PLACE / "balancer").read_text().splitlines()
    for host in HOSTS:
        if [words for words in told if words.endswith(f" {host}")][-1] != f"in {host}":
            wrong.append(f"{host} is out of the balancer")
        done = subprocess.run(on(host, "sh", "-c", script), text=True, capture_output=True, check=False)
        if done.stdout.split() != CLEAN:
            wrong.append(f"{host}: {done.stdout.split()}, wanted {CLEAN} {done.stderr}")
    return wrong


def main() -> int:
    """Try the points; the exit status says whether all ended clean."""
    wanted = os.environ.get("INTERRUPTIONS", "4")
    seed = os.environ.get("INTERRUPTIONS_SEED") or str(random.randrange(10**6))
    chance = random.Random(seed)
    status, output = finish(rollout(VALUES[1]))
    if status:
        sys.exit(output)
    results = int((PLACE / "count").read_text().split()[0])
    points = [Point("controller", "", "", after) for after in range(1, results + 1)]
    stepped = [
        Point(way, host, step, 0)
        for way in ("controller", "connection", "module")
        for host in HOSTS
        for step in STEPS
    ]
    hosts = [Point("host", HOSTS[0], step, 0) for step in STEPS]
    if wanted == "all":
        points += [*stepped, *hosts]
    else:  # in turn a controller after a task, each way at a step, a host; the seed says which of them is first
        each = len(HOSTS) * len(STEPS)
        ways = [points, *(stepped[n : n + each] for n in range(0, len(stepped), each)), hosts]
        first = chance.randrange(len(ways))
        points = [chance.choice(ways[(first + n) % len(ways)]) for n in range(int(wanted))]
    print(f"{len(points)} interruptions of {results} tasks and {len(STEPS)} steps, seed {seed}", flush=True)
    current, bad = 1, 0
    for point in points:
        began, before = time.monotonic(), traffic()
        reached = interrupt(point, VALUES[1 - current])
        current = chance.choice((current, 1 - current))
        if point.way == "host":
            booted(point.host)
        status, output = finish(rollout(VALUES[current]))
        wrong = ([f"the next run ended with {status}"] if status else []) + unclean(VALUES[current])
        after = traffic()
        if after[1] > before[1] and point.way != "host":
            wrong.append(f"{after[1] - before[1]} logins failed: {after[2]}")
        if after[0] <= before[0]:
            wrong.append("nobody logged in")
        if not reached:
            wrong.append("it was not interrupted")
        bad += bool(wrong)
        words = "; ".join(wrong) or f"clean, {after[0] - before[0]} logins, none failed"
        print(f"{point} ({reached}): {words} ({time.monotonic() - began:.0f} s)", flush=True)
        if wrong:
            print(output, flush=True)
    print(f"{len(points)} interruptions, {len(points) - bad} ended clean, {bad} did not")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""The guide's pending test: idle for long on a path that cuts sooner, then many logins at once.

    scripts/idle MINUTES [--cut SECONDS] [--json FILE]        needs root, for a network of its own

In a network namespace of its own, whose packet filter does what firewalls and load balancers do: it forgets a
connection after SECONDS without a packet, and drops silently whatever comes later. There run the reference
application with the shipped pool and, as the contrast, the guide's own, each with its PostgreSQL.
`playbooks/verify.yml` stays idle and then has 100 users log in to each at once. Exit status 0: none of those
failed on the reference application.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg2
import yaml

from runbook.evidence import step2_pool
from tests.lab.lab import ROOT, Lab

LOGINS = 100
LOGIN_SECONDS = 30  # as long as the pool waits: a busy machine is not what is tested
WARM = 30  # logins at once before the idle time, so that more than the minimum is open
TOOLS = ("ip", "nft", "unshare")

# A flow is known by its client's port, which lies above the server ports of `free_port`. At the input hook: a
# packet dropped there was sent, as on a wire; one dropped at the output hook would be an error of the sender's.
PATH = """
table inet path {{
  set servers {{ type inet_service; }}
  set alive {{ type inet_service; flags dynamic, timeout; timeout {cut}s; size 65535; }}
  counter dropped {{ }}
  chain input {{
    type filter hook input priority 0;
    tcp sport >= 32768 tcp flags & (syn | ack) == syn add @alive {{ tcp sport }} accept
    tcp sport @alive update @alive {{ tcp sport }} accept
    tcp dport @alive update @alive {{ tcp dport }} accept
    tcp dport @servers counter name dropped drop
    tcp sport @servers counter name dropped drop
  }}
}}
"""

Result = dict[str, Any]


def begin_path(cut: float) -> None:
    """From now on the path of this network namespace remembers a connection for `cut` silent seconds."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["nft", "--file", "-"], input=PATH.format(cut=round(cut)), text=True, check=True)


def drop_forgotten(port: int) -> None:
    """From now on the path drops what belongs to no connection to this port that it remembers."""
    subprocess.run(["nft", "add", "element", "inet", "path", "servers", f"{{ {port} }}"], check=True)


def dropped_packets() -> int:
    """How many packets the path has dropped."""
    command = ["nft", "--json", "list", "counter", "inet", "path", "dropped"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return sum(one["counter"]["packets"] for one in told["nftables"] if "counter" in one)


def inside(minutes: float, cut: float, place: Path, settings: dict[str, str]) -> Result:
    """The whole of it, in a network namespace of our own; `settings` are the reference application's."""
    begin_path(cut)
    labs = {"reference": Lab(place / "r", "reference", **settings), "guide": Lab(place / "g", "guide")}
    with ExitStack() as stack:
        for lab in labs.values():
            stack.enter_context(lab)
            drop_forgotten(lab.server.port)
        for lab in labs.values():
            lab.logins(WARM)
        before, reports = _pools(labs["reference"]), place / "reports"
        told = {
            **{"diagnose_idle_minutes": minutes, "diagnose_reports": str(reports)},
            **{"diagnose_login_attempts": LOGINS, "diagnose_login_seconds": LOGIN_SECONDS},
        }
        playbook = str(Path(sys.executable).with_name("ansible-playbook"))
        verified = subprocess.run(
            # One host after the other: with 200 logins at once a small machine would be the test.
            [
                playbook,
                "playbooks/verify.yml",
                "-i",
                _inventory(labs, place),
                "--forks=1",
                "-e",
                json.dumps(told),
            ],
            cwd=ROOT,
            env={**os.environ, "HOME": str(place)},
            stdin=subprocess.DEVNULL,
            check=False,
        )
        after = _pools(labs["reference"])
        (evidence,) = reports.glob("*/evidence")
        config = next(iter(after.values()))["config"]
        return {
            "at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "minutes": minutes,
            "cut_seconds": cut,
            "dropped_packets": dropped_packets(),
            "versions": _versions(labs["guide"]),
            "keepalive": [config[f"keepalives_{name}"] for name in ("idle", "interval", "count")],
            "tcp_user_timeout": config["tcp_user_timeout"],
            "verify_status": verified.returncode,
            "apps": {
                "reference": {**_first_round(evidence / "reference.json"), **_difference(before, after)},
                "guide": _first_round(evidence / "guide.json"),
            },
        }


def _inventory(labs: dict[str, Lab], place: Path) -> str:
    groups = {
        name: yaml.safe_load(lab.inventory.read_text())["all"]["children"] for name, lab in labs.items()
    }
    apps = {name: group["app"]["hosts"]["web-1"] for name, group in groups.items()}
    servers = {}
    for name, group in groups.items():
        apps[name]["diagnose_database"] = name
        servers[f"db-{name}"] = {**group["postgres"]["hosts"]["db-1"], "diagnose_database": name}
    path = place / "inventory.yml"
    path.touch(mode=0o600)
    children = {"app": {"hosts": apps}, "postgres": {"hosts": servers}}
    path.write_text(yaml.safe_dump({"all": {"children": children}}, sort_keys=False))
    return str(path)


def _first_round(evidence: Path) -> Result:
    """What the logins right after the idle time answered; later rounds are those of a healing pool."""
    first = json.loads(evidence.read_text())["views"]["login"]["data"]["rounds"][0]
    return {key: first[key] for key in ("attempts", "failed", "by_status", "seconds")}


def _pools(lab: Lab) -> dict[int, Result]:
    """pid → status of each pool of the application."""
    found, pids = step2_pool.sockets_in([str(lab.status_directory)]), lab.app_pids()
    return {pid: step2_pool.ask(found[pid], "status", 5) for pid in sorted(set(found) & set(pids))}


def _difference(before: dict[int, Result], after: dict[int, Result]) -> Result:
    def more(count: Any) -> int:
        return sum(map(count, after.values())) - sum(map(count, before.values()))

    return {
        "same_processes": set(before) == set(after),
        "idle_before": sum(status["count"]["idle"] for status in before.values()),
        "found_silent": more(lambda status: status["counters"]["dead_found"]["silent"]),
        "opened": more(lambda status: status["counters"]["opened"]),
    }


def _versions(lab: Lab) -> dict[str, str]:
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return {
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "python": platform.python_version(),
        "psycopg2": version("psycopg2-binary"),
        "libpq": str(psycopg2.extensions.libpq_version()),
        "postgresql": lab.server.sql("SHOW server_version")[0][0],
        "linux": platform.release(),
    }


def _words(result: Result) -> str:
    lines = [
        f"idle {result['minutes']:g} min on a path that cuts after {result['cut_seconds']:g} s of silence;"
        f" {result['dropped_packets']} packets dropped"
    ]
    for name, app in result["apps"].items():
        lines.append(
            f"  {name:<10} {app['attempts'] - app['failed']} of {app['attempts']} logins at once came through"
            f" in {app['seconds']:.1f} s: {app['by_status']}"
        )
    pools = result["apps"]["reference"]
    lines.append(
        f"  its pools  {pools['idle_before']} idle before; found dead and silent {pools['found_silent']},"
        f" opened {pools['opened']} since; {'the same' if pools['same_processes'] else 'OTHER'} processes"
    )
    return "\n".join(lines)


def cannot() -> str:
    """Why it cannot be run here; empty when it can."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return f"these are missing: {', '.join(missing)} (Debian: iproute2 nftables util-linux)"
    return "" if os.geteuid() == 0 else "it needs root, for a network of its own"


def main(arguments: list[str] | None = None) -> int:
    """The command line. 0 no login of the reference application failed, 1 one did, 2 cannot be run here."""
    parser = argparse.ArgumentParser(
        "scripts/idle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", type=float, metavar="MINUTES", help="how long nobody logs in")
    parser.add_argument(
        "--cut", type=float, default=240, metavar="SECONDS", help="what the path forgets after (240)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="for the reference application"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if not 0 < given.minutes * 60 > given.cut >= 1:
        parser.error(
            f"MINUTES is {given.minutes:g} and --cut {given.cut:g}: the idle time must be longer than the cut,"
            " and that at least 1 s"
        )
    if cannot():
        print(f"scripts/idle: {cannot()}", file=sys.stderr)
        return 2
    if not given.inside:
        own = sys.argv[1:] if arguments is None else arguments
        # The namespace, and with it the packet filter, ends with the last process in it: nothing to clean up.
        command = ["unshare", "--net", sys.executable, str(ROOT / "scripts/idle"), *own, "--inside"]
        os.execvp(command[0], command)
    with tempfile.TemporaryDirectory(prefix="idle-") as place:
        result = inside(given.minutes, given.cut, Path(place), dict(pair.split("=", 1) for pair in given.env))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    print(_words(result))
    return 1 if result["apps"]["reference"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""The guide's pending test: idle for long on a path that cuts sooner, then many logins at once.

    scripts/idle MINUTES [--cut SECONDS] [--json FILE]        needs root, for a network of its own

In a network namespace of its own, whose packet filter does what firewalls and load balancers do: it forgets a
connection after SECONDS without a packet, and drops silently whatever comes later. There run PostgreSQL, the
reference application with the shipped pool and, as the contrast, the guide's own. `playbooks/verify.yml` stays
idle and then has 100 users log in to each at once. Exit status 0: none failed on the reference application.
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
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg2
import yaml

from tests.integration.app_service import App, Database
from tests.lab.lab import ROOT, Lab

LOGINS = 100
LOGIN_SECONDS = 30  # as long as the pool waits: a busy machine is not what is tested
WARM = 30  # logins at once before the idle time, so that more than the minimum is open

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


def begin_path(cut: float) -> None:
    """From now on the path of this network namespace remembers a connection for `cut` silent seconds."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["nft", "--file", "-"], input=PATH.format(cut=round(cut)), text=True, check=True)


def drop_forgotten(port: int) -> None:
    """From now on the path drops what belongs to no connection to this port that it remembers."""
    subprocess.run(["nft", "add", "element", "inet", "path", "servers", f"{{ {port} }}"], check=True)


def dropped_packets() -> int:
    """How many packets the path has dropped."""
    told = subprocess.run(
        ["nft", "--json", "list", "counter", "inet", "path", "dropped"],
        capture_output=True,
        text=True,
        check=True,
    )
    counters = [one["counter"]["packets"] for one in json.loads(told.stdout)["nftables"] if "counter" in one]
    return int(counters[0])


def inside(minutes: float, cut: float, place: Path, environ: dict[str, str]) -> dict[str, Any]:
    """The whole of it, in a network namespace of our own; `environ` is for the reference application."""
    begin_path(cut)
    lab = Lab(place / "lab")
    lab.up()
    drop_forgotten(lab.server.port)
    database = Database(lab.server)
    runtime = place / "reference"
    runtime.mkdir()
    app: App | None = None
    try:
        database.migrate()
        added = database.run("add-user", App.username, stdin=f"{App.password}\n")
        assert added.returncode == 0, added.stderr
        app = App(database, runtime, **environ).await_ready()
        with ThreadPoolExecutor(WARM) as users:
            warm = [*users.map(lambda _: lab.login(), range(WARM))]
            warm += users.map(lambda _: app.login().status if app else 0, range(WARM))
        before = app.statuses()
        reports = place / "reports"
        verified = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("ansible-playbook")), "playbooks/verify.yml"),
                # One after the other: with 200 logins at once a small machine would be the test.
                *("-i", str(_inventory(lab, app, place)), "--forks=1"),
                *("-e", f"diagnose_idle_minutes={minutes}", "-e", f"diagnose_login_attempts={LOGINS}"),
                *("-e", f"diagnose_login_seconds={LOGIN_SECONDS}"),
                *("-e", f"diagnose_reports={reports}"),
            ],
            cwd=ROOT,
            env={**os.environ, "HOME": str(place)},
            stdin=subprocess.DEVNULL,
            check=False,
        )
        (run,) = (path.parent for path in reports.glob("*/evidence"))
        after = app.statuses()
        settings = after[0]["config"]
        return {
            "at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "minutes": minutes,
            "cut_seconds": cut,
            "dropped_packets": dropped_packets(),
            "versions": _versions(lab),
            "keepalive": [settings[f"keepalives_{name}"] for name in ("idle", "interval", "count")],
            "tcp_user_timeout": settings["tcp_user_timeout"],
            "verify_status": verified.returncode,
            "warm_failed": sum(status != 200 for status in warm),
            "apps": {
                "reference": {**_first_round(run, "reference"), **_pools(before, after)},
                "guide": _first_round(run, "guide"),
            },
        }
    finally:
        if app is not None:
            app.stop()
        lab.down()


def _inventory(lab: Lab, app: App, place: Path) -> Path:
    groups = yaml.safe_load(lab.inventory.read_text())["all"]["children"]
    guide = groups["app"]["hosts"].pop("web-1")
    reference = {
        **{name: guide[name] for name in ("ansible_connection", "ansible_python_interpreter")},
        "diagnose_login_url": f"http://127.0.0.1:{app.port}/api/auth/login",
        "diagnose_login_username": app.username,
        "diagnose_login_password": app.password,
        "diagnose_log": str(app.log_file),
        "diagnose_status_directories": [str(app.directory)],
        "diagnose_source": [str(ROOT / "runbook/app")],
    }
    groups["app"]["hosts"] = {"reference": reference, "guide": guide}
    path = place / "inventory.yml"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump({"all": {"children": groups}}, sort_keys=False))
    return path


def _first_round(run: Path, host: str) -> dict[str, Any]:
    """What the logins right after the idle time answered; later rounds are those of a healing pool."""
    evidence = json.loads((run / f"evidence/{host}.json").read_text())
    first = evidence["views"]["login"]["data"]["rounds"][0]
    return {key: first[key] for key in ("attempts", "failed", "by_status", "seconds")}


def _pools(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    def total(statuses: list[dict[str, Any]], name: str) -> int:
        return sum(status["counters"][name] for status in statuses)

    def silent(statuses: list[dict[str, Any]]) -> int:
        return sum(status["counters"]["dead_found"]["silent"] for status in statuses)

    return {
        "same_processes": {each["pid"] for each in before} == {each["pid"] for each in after},
        "idle_before": sum(status["count"]["idle"] for status in before),
        "found_silent": silent(after) - silent(before),
        "opened": total(after, "opened") - total(before, "opened"),
    }


def _versions(lab: Lab) -> dict[str, str]:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "psycopg2": version("psycopg2-binary"),
        "libpq": str(psycopg2.extensions.libpq_version()),
        "postgresql": lab.server.sql("SHOW server_version")[0][0],
        "linux": platform.release(),
    }


def _words(result: dict[str, Any]) -> str:
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
        "--env", action="append", default=[], metavar="NAME=VALUE", help="for the reference app"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if not 0 < given.minutes * 60 > given.cut >= 1:
        parser.error(
            f"MINUTES is {given.minutes:g} and --cut {given.cut:g}: the idle time must be longer than the cut,"
            " and that at least 1 s"
        )
    missing = [tool for tool in ("ip", "nft", "unshare") if not shutil.which(tool)]
    if os.geteuid() != 0 or missing:
        why = f"these are missing: {', '.join(missing)}" if missing else "it is started by another user"
        print(f"scripts/idle needs root and iproute2, nftables and util-linux; {why}", file=sys.stderr)
        return 2
    if not given.inside:
        own = arguments if arguments is not None else sys.argv[1:]
        # The namespace, and with it the packet filter, ends with the last process in it: nothing to clean up.
        os.execvp(
            "unshare",
            ["unshare", "--net", sys.executable, str(ROOT / "scripts/idle"), *own, "--inside"],
        )
    with tempfile.TemporaryDirectory(prefix="idle-") as place:
        environ = dict(pair.split("=", 1) for pair in given.env)
        result = inside(given.minutes, given.cut, Path(place), environ)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    print(_words(result))
    return 1 if result["apps"]["reference"]["failed"] or result["verify_status"] not in (0, 2) else 0


if __name__ == "__main__":
    sys.exit(main())

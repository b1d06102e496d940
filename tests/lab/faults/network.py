"""What breaks between the application and PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.database import DATABASE
from tests.lab.faults.server import APP, seen
from tests.lab.faults.table import LabError, Restart, fault, wait_until

if TYPE_CHECKING:
    from tests.lab.lab import Lab

CGROUPS = Path("/sys/fs/cgroup")
HOSTS = Path("/etc/hosts")
NAME = "db-1.internal"
FROZEN_SECONDS = 8
UNUSED_SECONDS = 3  # what cuts idle connections does not cut one that just worked


def nft(lab: Lab, *rules: str) -> None:
    """Add rules to a chain that every packet of this network passes."""
    script = "table inet lab {\nchain output {\ntype filter hook output priority 0;\n}\n}\n"
    script += "".join(f"add rule inet lab output {rule}\n" for rule in rules)
    lab.in_own_network("nft", "-f", "-", told=script)


def named(lab: Lab, address: str = "127.0.0.1") -> None:
    """Let the name of the database's host lead to an address; "" to none."""
    lab.in_own_network("true")
    line = f"{address} {NAME}\n" if address else ""
    HOSTS.write_text(f"127.0.0.1 localhost\n{line}")


@fault("postgres_unreachable", "none")
def postgres_unreachable(lab: Lab) -> str:
    """Drop every packet to the server's port and from it, without a word."""
    port = lab.server.port
    nft(lab, f"tcp dport {port} drop", f"tcp sport {port} drop")
    return f"every packet to and from port {port} is dropped"


@fault("postgres_unreachable", "none")
def syn_dropped(lab: Lab) -> str:
    """A firewall lets nobody new through; what is connected works."""
    lab.logins(24)  # so that every worker has connections
    nft(lab, f"tcp dport {lab.server.port} tcp flags & (syn|ack) == syn drop")
    seen(lab, 200)
    return f"every SYN to port {lab.server.port} is dropped; a login over an open connection answered 200"


@fault("postgres_unreachable", "none")
def name_unresolved(lab: Lab) -> str:
    """The name of the server's host is known no more."""
    named(lab)
    lab.fill(host=NAME)
    lab.restart()
    named(lab, "")
    return f"{NAME} resolves no more"


@fault("black_hole", "none")
def black_hole(lab: Lab) -> str:
    """Something in between forgets the established flows and drops their packets; new ones pass."""
    ports = [port for _, port in _flows(lab)]
    nft(lab, *(f"tcp {side} {port} drop" for port in ports for side in ("sport", "dport")))
    return f"the packets of {len(ports)} established flows are dropped; a new connection works"


@fault("black_hole", "restart", apps=("guide", "reference", "psycopg2"))
def black_hole_of_a_full_pool(lab: Lab) -> str:
    """The same, where the pool may have no more connections than those."""
    lab.fill(pool_maximum=2)
    lab.restart()
    return black_hole(lab)


def _flows(lab: Lab) -> list[tuple[str, int]]:
    """(address of the server, the application's port) of its established connections."""
    shown = subprocess.run(
        ["ss", "-Htn", "state", "established", "dport", "=", f":{lab.server.port}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    ends = [[end.rpartition(":") for end in line.split()[2:4]] for line in shown.stdout.splitlines()]
    if not ends:
        raise LabError("the application has no connection to the server")
    return [(there[0], int(here[2])) for here, there in ends]


# -- a proxy in between ------------------------------------------------------------------------------------


def through_a_proxy(lab: Lab, logins: int = 8, **values: object) -> subprocess.Popen[str]:
    """Put a proxy between the application and PostgreSQL, and see the application work through it."""
    port = lab.free_port()
    proxy = lab.other("proxy", listen=port, to=lab.server.port)
    lab.fill(port=port, **values)
    lab.restart()
    if set(lab.logins(logins)) != {200}:
        raise LabError("logins fail through the proxy")
    return proxy


@fault("proxy_hang", "none")
def proxy_hang(lab: Lab) -> str:
    """The proxy acknowledges everything and delivers nothing, also what is new."""
    through_a_proxy(lab).send_signal(signal.SIGUSR1)
    return "the proxy between the application and PostgreSQL accepts and delivers nothing"


@fault("proxy_hang", "restart", apps=("guide", "reference", "psycopg2"))
def proxy_hang_mended(lab: Lab) -> str:
    """The proxy forgot the established flows, and acknowledges them; it serves new ones."""
    through_a_proxy(lab, logins=2, pool_maximum=2).send_signal(signal.SIGUSR2)
    lab.users(count=2)
    wait_until(lambda: lab.login() != 200, "logins fail")
    return "the proxy delivers nothing on the established flows, and works for new connections"


def _once_idle(lab: Lab, number: signal.Signals) -> None:
    """Send a signal to a proxy in between when the connections have been idle for a while."""
    proxy = through_a_proxy(lab)
    time.sleep(UNUSED_SECONDS)  # time is what this fault is made of
    proxy.send_signal(number)


@fault("idle_cut", "none")
def idle_cut(lab: Lab) -> str:
    """The proxy closes idle connections."""
    _once_idle(lab, signal.SIGINT)
    return "the proxy closed the application's idle connections"


@fault("idle_cut", "none")
def idle_reset(lab: Lab) -> str:
    """The proxy resets idle connections."""
    _once_idle(lab, signal.SIGQUIT)
    return "the proxy reset the application's idle connections"


@fault("idle_cut", "none")
def reset_when_used(lab: Lab) -> str:
    """Something in between has forgotten the idle flows, and answers what comes on them with a reset."""
    ports = [port for _, port in _flows(lab)]
    nft(lab, *(f"tcp sport {port} reject with tcp reset" for port in ports))
    return f"what is sent on {len(ports)} established flows is answered with a reset; a new connection works"


# Without a heartbeat of the app nothing tells that it stood still, only that its idle connections were cut.
CUT: tuple[str, Restart] = ("idle_cut", "none")


@fault("host_suspended", "none", guide=CUT, psycopg2=CUT, sqlalchemy=CUT, psycopg=CUT)
def host_suspended(lab: Lab) -> str:
    """The whole application is frozen for a while, and its idle connections are cut meanwhile."""
    lab.configure(POSTGRES_POOL_MONITOR_INTERVAL=300)  # it would find them before anybody looks
    proxy = through_a_proxy(lab)
    pids = lab.app_pids()
    with frozen(pids):
        time.sleep(FROZEN_SECONDS)  # time is what this fault is made of
        proxy.send_signal(signal.SIGINT)
    return f"all {len(pids)} processes of the application were frozen for {FROZEN_SECONDS} s"


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Processes in a control group of their own, frozen; then they are what and where they were."""
    first = (CGROUPS / "freezer").is_dir()  # version 1 of control groups; else version 2
    tree = CGROUPS / "freezer" if first else CGROUPS
    name, on, off = ("freezer.state", "FROZEN", "THAWED") if first else ("cgroup.freeze", "1", "0")
    lines = Path(f"/proc/{pids[0]}/cgroup").read_text().splitlines()
    controller = "freezer" if first else ""
    home = next(path for _, kind, path in (line.split(":", 2) for line in lines) if kind == controller)
    group = tree / f"frozen-{pids[0]}-{time.time_ns()}"
    if not (tree / home.lstrip("/")).is_dir():
        raise LabError(f"this needs to see its own control group {home} below {tree}")
    try:
        group.mkdir()
    except OSError as error:
        raise LabError(f"this needs root, and the freezer of control groups: {error}") from error
    try:
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        (group / name).write_text(on)
        yield
    finally:
        (group / name).write_text(off)
        for member in (group / "cgroup.procs").read_text().split():
            (tree / home.lstrip("/") / "cgroup.procs").write_text(member)
        group.rmdir()


# -- another node ------------------------------------------------------------------------------------------


def _fail_over(lab: Lab, host: str, port: int) -> None:
    """A standby takes over, and the server comes back as the standby of it; the application meets that one."""
    lab.others.mkdir(exist_ok=True)
    (lab.others / "db-2").mkdir(mode=0o700)
    lab.server.follow(lab.server.standby(lab.others / "db-2", host, port))
    wait_until(lambda: 200 not in lab.logins(4), "every login fails to write", seconds=30)


@fault("wrong_node", "none")
def wrong_node(lab: Lab) -> str:
    """The database fails over, and the application's settings still name the old node."""
    _fail_over(lab, "127.0.0.1", lab.free_port())
    return "a standby was promoted; the application is connected to the old node, which follows it now"


# A pool that keeps two connections, as that of psycopg2's app does, may by chance lose the old ones under the probe.
KEEP_THEM = ("guide", "reference", "sqlalchemy", "psycopg")


@fault("wrong_node", "restart", apps=KEEP_THEM)
def name_moved(lab: Lab) -> str:
    """The database fails over, its name moves on, and the application keeps its connections to the old node."""
    named(lab)
    lab.fill(host=NAME)
    lab.restart()
    _fail_over(lab, "127.0.0.2", lab.server.port)
    named(lab, "127.0.0.2")
    return f"a standby was promoted and {NAME} leads to it; the application is connected to the old node"


@fault(
    "wrong_node", "restart", apps=("reference", "sqlalchemy")
)  # the others lose a slot with each ended session
def name_half_moved(lab: Lab) -> str:
    """The same, and the application has opened connections to the new node beside the old ones."""
    named(lab)
    lab.fill(host=NAME)
    lab.restart()
    _fail_over(lab, "127.0.0.2", lab.server.port)
    lab.logins(24)
    named(lab, "127.0.0.2")
    lab.server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{APP}' LIMIT 2")
    lab.logins(8)
    if {address for address, _ in _flows(lab)} != {"127.0.0.1", "127.0.0.2"}:
        raise LabError("the application is not connected to both nodes")
    return f"a standby was promoted and {NAME} leads to it; the application is connected to it and to the old node"


# -- PgBouncer ---------------------------------------------------------------------------------------------

BOUNCER = """
[databases]
{database} = host=127.0.0.1 port={to} dbname={database}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = users.txt
pool_mode = transaction
default_pool_size = 2
max_client_conn = 200
{more}
"""


def through_pgbouncer(lab: Lab, more: str) -> int:
    """Put PgBouncer between the application and PostgreSQL, and see the application work; its port."""
    program = shutil.which("pgbouncer", path=f"{os.defpath}:/usr/sbin")
    if not program:
        raise LabError("this needs PgBouncer; on Debian: apt install pgbouncer")
    port, password = lab.free_port(), lab.server.passwords[APP]
    lab.others.mkdir(exist_ok=True)
    (lab.others / "users.txt").write_text(f'"{APP}" "{password}"\n')
    settings = BOUNCER.format(database=DATABASE, to=lab.server.port, port=port, more=more)
    (lab.others / "pgbouncer.ini").write_text(settings)
    lab.started(program, "-q", "pgbouncer.ini")
    wait_until(lambda: lab.listens(port), "PgBouncer accepts connections")
    lab.fill(port=port)
    lab.restart()
    if set(lab.logins(8)) != {200}:
        raise LabError("logins fail through PgBouncer")
    return port


def _all_servers_busy(lab: Lab, port: int) -> None:
    """Another client of PgBouncer keeps both of its connections to PostgreSQL, in two open transactions."""
    lab.strangers("BEGIN", "SELECT 1", count=2, user=APP, name="export", port=port)
    lab.users()
    waits = f"SELECT count(*) = 2 FROM pg_stat_activity WHERE usename = '{APP}' AND state LIKE 'idle in%'"
    wait_until(lambda: lab.server.sql(waits)[0][0], "both server connections are in a transaction")


@fault("pgbouncer_queue", "none")
def pgbouncer_queue(lab: Lab) -> str:
    """PgBouncer's two server connections are taken by another client; the application's role may ask it."""
    _all_servers_busy(lab, through_pgbouncer(lab, f"stats_users = {APP}"))
    return "another client of PgBouncer keeps both of its server connections in open transactions"


@fault("unknown", "none")
def pgbouncer_mute(lab: Lab) -> str:
    """The same, where the application's role may not ask PgBouncer anything."""
    _all_servers_busy(lab, through_pgbouncer(lab, ""))
    return "another client of PgBouncer keeps both of its server connections; SHOW POOLS is not allowed"

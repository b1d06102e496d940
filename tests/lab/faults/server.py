"""What breaks in PostgreSQL, or on its host."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import psycopg2

from tests.lab.account import account
from tests.lab.database import DATABASE
from tests.lab.faults.table import LabError, fault, wait_until

if TYPE_CHECKING:
    from tests.lab.lab import Lab

APP = "odras_app"
OLD_SECONDS = 31  # what the verdict calls old, and a little more


def seen(lab: Lab, *statuses: int | None) -> None:
    """The next login answers one of these."""
    status = lab.login()
    if status not in statuses:
        raise LabError(f"a login answers {status}; wanted {' or '.join(map(str, statuses))}")


def refused(lab: Lab, words: str) -> None:
    """A new connection of the application's role fails with these words."""
    try:
        psycopg2.connect(**lab.server.connection(APP, DATABASE)).close()
    except psycopg2.OperationalError as error:
        if words not in str(error):
            raise LabError(f"a new connection fails with {error}; wanted {words}") from error
    else:
        raise LabError(f"a new connection works; wanted {words}")


# -- down, silent, starting --------------------------------------------------------------------------------


@fault("postgres_down", "none")
def postgres_down(lab: Lab) -> str:
    """Stop the server."""
    pid = lab.server.postmaster_pid
    lab.server.stop()
    wait_until(lambda: not lab.listens(lab.server.port), "PostgreSQL's port refuses connections")
    return f"stopped PostgreSQL (pid {pid}); port {lab.server.port} refuses connections"


@fault("postgres_not_answering", "none")
def postgres_not_answering(lab: Lab) -> str:
    """Freeze every process of the server: the kernel goes on accepting connections for it."""
    frozen = account().processes_in(lab.server.data)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    return f"stopped all {len(frozen)} processes of PostgreSQL with SIGSTOP; its port accepts connections"


@fault("postgres_not_answering", "none")
def postmaster_stopped(lab: Lab) -> str:
    """Freeze the postmaster alone: what is connected works, and nobody new is served."""
    lab.logins(24)  # so that every worker has connections
    os.kill(lab.server.postmaster_pid, signal.SIGSTOP)
    seen(lab, 200)
    return "stopped the postmaster with SIGSTOP; a login over an open connection answered 200"


@fault("postgres_not_answering", "none")
def postgres_starting(lab: Lab) -> str:
    """Start the server as a standby that serves nobody: it says "starting up" or "not accepting"."""
    lab.server.stop()
    (lab.server.data / "standby.signal").touch()
    lab.server.alter_stopped(hot_standby="off", primary_conninfo="host=127.0.0.1 port=1")
    lab.server.start_without_waiting()
    wait_until(lambda: lab.listens(lab.server.port), "PostgreSQL's port accepts connections")
    refused(lab, "the database system is")
    return "started PostgreSQL as a standby that accepts nobody (57P03)"


# -- slots -------------------------------------------------------------------------------------------------


def _few_slots(lab: Lab, **more: object) -> None:
    """A server of twelve slots, three of them for superusers, and the application connected to it."""
    lab.odras("stop")
    lab.server.alter(max_connections=12, max_wal_senders=0, **more)
    lab.server.restart()
    lab.restart()


@fault("connection_slots_full", "none")
def connection_slots_full(lab: Lab) -> str:
    """Another program takes all slots but those reserved; the diagnosis may use a reserved one."""
    _few_slots(lab, reserved_connections=2)
    lab.server.sql("GRANT pg_use_reserved_connections TO odras_diagnosis")
    lab.strangers(count=12)
    refused(lab, "remaining connection slots are reserved")
    return "another program took all connection slots that are not reserved"


@fault("connection_slots_full", "none")
def slots_full_for_all(lab: Lab) -> str:
    """Another program takes all slots but those of superusers; the diagnosis gets none either."""
    _few_slots(lab)
    lab.strangers(count=12)
    refused(lab, "remaining connection slots are reserved")
    return "another program took all connection slots; a role that is no superuser gets none"


@fault("connection_slots_full", "none")
def role_limit(lab: Lab) -> str:
    """The role may have as many connections as another program that uses it holds."""
    lab.strangers(count=6, user=APP, name="batch")
    lab.server.sql(f"ALTER ROLE {APP} CONNECTION LIMIT 6")
    refused(lab, "too many connections for role")
    return f"another program holds 6 sessions of {APP}, which may have 6"


@fault("connection_slots_full", "restart", apps=("guide", "reference"))
def slots_leaked(lab: Lab) -> str:
    """The application's role may have fewer connections than its pool, and requests keep what they took."""
    lab.server.sql(f"ALTER ROLE {APP} CONNECTION LIMIT 6")
    for _ in range(8):
        lab.get("/api/archive")
    wait_until(lambda: lab.login() != 200, "logins fail")
    refused(lab, "too many connections for role")
    wait_until(lambda: _longest_idle(lab) > OLD_SECONDS, "it is long ago", 60)
    return f"{APP} may have 6 sessions, and the application keeps all of them for requests that are over"


def _longest_idle(lab: Lab) -> float:
    """For how long the application's sessions have all been idle, in seconds."""
    idle = (
        f"SELECT min(extract(epoch FROM now() - state_change)) FROM pg_stat_activity WHERE usename = '{APP}'"
    )
    return float(lab.server.sql(idle)[0][0] or 0)


@fault("connection_slots_full", "none")
def limit_of_database(lab: Lab) -> str:
    """The database may have as many connections as another program holds."""
    lab.strangers(count=6, name="export")
    lab.server.sql(f"ALTER DATABASE {DATABASE} CONNECTION LIMIT 6")
    refused(lab, "too many connections for database")
    return f"another program holds 6 sessions of database {DATABASE}, which may have 6"


# -- who may come in ---------------------------------------------------------------------------------------


@fault("authentication_failed", "none")
def authentication_failed(lab: Lab) -> str:
    """The secret on disk becomes another one; the running application is still connected."""
    lab.fill(password="not-the-one-on-the-server")
    seen(lab, 200)
    return "the password in app.env is another one now; a login over an open connection answered 200"


@fault("authentication_failed", "none")
def password_changed(lab: Lab) -> str:
    """Somebody changes the role's password on the server, and the application's connections end."""
    lab.server.sql(f"ALTER ROLE {APP} PASSWORD 'a new one'")
    lab.end_sessions()
    refused(lab, "password authentication failed")
    return f"the password of {APP} is another one on the server; its sessions were ended"


@fault("authentication_failed", "none")
def hba_rejects(lab: Lab) -> str:
    """pg_hba.conf lets the application's role in no more."""
    file = lab.server.data / "pg_hba.conf"
    file.write_text(f"host all {APP} all reject\n{file.read_text()}")
    lab.server.sql("SELECT pg_reload_conf()")
    wait_until(lambda: _is_refused(lab), "pg_hba.conf is in force")
    refused(lab, "pg_hba.conf rejects connection")
    return f"pg_hba.conf rejects {APP}"


def _is_refused(lab: Lab) -> bool:
    try:
        psycopg2.connect(**lab.server.connection(APP, DATABASE)).close()
    except psycopg2.OperationalError:
        return True
    return False


@fault("authentication_failed", "none")
def role_may_not_log_in(lab: Lab) -> str:
    """The role loses its right to log in, and its sessions."""
    lab.server.sql(f"ALTER ROLE {APP} NOLOGIN")
    lab.end_sessions()
    refused(lab, "is not permitted to log in")
    return f"{APP} may not log in any more; its sessions were ended"


@fault("authentication_failed", "none")
def tls_refused(lab: Lab) -> str:
    """The configuration asks for TLS, and the server has none."""
    file = lab.app / "app.env"
    lines = [_with_tls(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines) + "\n")
    return "app.env asks for TLS (sslmode require), which the server does not offer"


def _with_tls(line: str) -> str:
    """A line of app.env, in whatever form it names the database, with sslmode=require."""
    if line.startswith("POSTGRES_HOST="):
        return f"{line}\nPOSTGRES_SSLMODE=require"
    if "://" in line:
        return f"{line}?sslmode=require"
    return line.replace(" dbname=", " sslmode=require dbname=")


# -- read only ---------------------------------------------------------------------------------------------


@fault("postgres_read_only", "none")
def postgres_read_only(lab: Lab) -> str:
    """Somebody makes the whole server read only."""
    lab.server.alter(default_transaction_read_only="on")
    wait_until(lambda: lab.login() not in (200, None), "a login fails to write")
    return "default_transaction_read_only is on for the whole server"


@fault("postgres_read_only", "none")
def role_read_only(lab: Lab) -> str:
    """The application's role is made read only; it meets that with its next connections."""
    lab.server.sql(f"ALTER ROLE {APP} SET default_transaction_read_only = on")
    lab.odras("restart")
    wait_until(lambda: lab.login() not in (200, None), "a login fails to write", seconds=30)
    return f"{APP} has default_transaction_read_only on"


# -- locks and slow statements -----------------------------------------------------------------------------


@fault("lock_contention", "none")
def lock_contention(lab: Lab) -> str:
    """Another program locks the table of users and goes to sleep; people go on logging in."""
    lab.strangers("BEGIN", "LOCK TABLE public.users IN ACCESS EXCLUSIVE MODE", name="migrate")
    lab.users()
    wait_until(lambda: _waiting_for_locks(lab) >= 2, "two sessions of the application wait for a lock")
    return "another program holds a lock on public.users, idle in its transaction"


def _waiting_for_locks(lab: Lab) -> int:
    return int(
        lab.server.sql(
            f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{APP}' AND wait_event_type = 'Lock'"
        )[0][0]
    )


SLOW = """
CREATE FUNCTION public.audit() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_sleep(40); RETURN new; END $$;
CREATE TRIGGER audit BEFORE INSERT ON public.auth_tokens FOR EACH ROW EXECUTE FUNCTION public.audit();
"""


@fault("slow_queries", "none")
def slow_trigger(lab: Lab) -> str:
    """A trigger makes every insert of a token slow; people go on logging in."""
    lab.server.sql(SLOW, database=DATABASE, user="odras_owner")
    lab.users()
    slow = f"usename = '{APP}' AND state = 'active' AND now() - query_start > '5 s'"
    wait_until(
        lambda: lab.server.sql(f"SELECT count(*) >= 3 FROM pg_stat_activity WHERE {slow}")[0][0],
        "three statements of the application run for more than 5 s",
    )
    return "inserting a token takes 40 s now"


# -- sessions that the server ends -------------------------------------------------------------------------


def _settled(lab: Lab) -> int:
    """The application's idle sessions after several logins at once."""
    statuses = lab.logins(8)
    if set(statuses) != {200}:
        raise LabError(f"logins answered {statuses} at first: `scripts/lab heal` first")
    return lab.sessions()


@fault("postgres_restarted", "none")
def postgres_restarted(lab: Lab) -> str:
    """Restart the server under the application's idle connections, as an administrator does."""
    held = _settled(lab)
    lab.server.restart("fast")
    return f"restarted PostgreSQL (fast) under {held} idle connections of the application"


@fault("postgres_crash_recovery", "none")
def postgres_crash_recovery(lab: Lab) -> str:
    """Kill another program's backend with SIGKILL: the server ends everybody and recovers."""
    held = _settled(lab)
    lab.strangers("SELECT 1", name="report")
    ((pid,),) = lab.server.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'report'")
    lab.server.kill_backend(pid, signal.SIGKILL)
    wait_until(lambda: not _is_refused(lab) and lab.sessions() == 0, "the server has recovered", seconds=30)
    return f"killed a backend of another program (pid {pid}); the {held} sessions of the application ended"


IDLE = "10min"  # longer than a diagnosis: what is proven at its end holds


def _end_the_idle(lab: Lab, set_timeout: Callable[[str], object]) -> None:
    set_timeout("1s")
    lab.restart()  # a session that idles already is told of it at its next statement
    lab.logins(8)
    wait_until(lambda: lab.sessions() == 0, "the idle sessions are ended")
    set_timeout(IDLE)


@fault("idle_session_timeout", "none")
def idle_session_timeout(lab: Lab) -> str:
    """The whole server has ended sessions that idled for too long; it does not end new ones before it is healed."""
    _end_the_idle(lab, lambda timeout: lab.server.alter(idle_session_timeout=timeout))
    return f"idle_session_timeout is {IDLE}; the idle sessions of the application were ended"


@fault("idle_session_timeout", "none")
def role_idle_session_timeout(lab: Lab) -> str:
    """The same, set on the application's role."""
    setting = f"ALTER ROLE {APP} IN DATABASE {DATABASE} SET idle_session_timeout"
    _end_the_idle(lab, lambda timeout: lab.server.sql(f"{setting} = '{timeout}'"))
    return f"idle_session_timeout of {APP} in {DATABASE} is {IDLE}; the idle sessions were ended"


def _held_in_transaction(lab: Lab, setting: str, of: str = "the server") -> str:
    """Two exports wait for a slow partner in an open transaction, and the server ends them for that."""
    lab.other("partner", port=lab.partner_port)
    if of == "the server":
        lab.server.alter(**{setting: "3s"})  # a login on a busy machine may take two
    else:
        lab.server.sql(f"ALTER {of} SET {setting} = '3s'")
        lab.restart()
    lab.other("visitors", url=f"{lab.url}/api/export?seconds=600", count=2, seconds=600)
    held = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{APP}' AND state = 'idle in transaction'"
    wait_until(lambda: lab.server.sql(held) == [(2,)], "two exports hold a transaction")
    wait_until(lambda: lab.server.sql(held) == [(0,)], "the server has ended them")
    return f"{setting} of {of} is 3 s; the server ended two sessions that waited in a transaction for something else"


@fault("idle_in_transaction_timeout", "none")
def idle_in_transaction_timeout(lab: Lab) -> str:
    """The whole server ends sessions that idle in a transaction for three seconds."""
    return _held_in_transaction(lab, "idle_in_transaction_session_timeout")


@fault("idle_in_transaction_timeout", "none")
def database_idle_in_transaction_timeout(lab: Lab) -> str:
    """The same, set on the database."""
    return _held_in_transaction(lab, "idle_in_transaction_session_timeout", f"DATABASE {DATABASE}")


@fault("idle_in_transaction_timeout", "none")
def role_idle_in_transaction_timeout(lab: Lab) -> str:
    """And on the application's role."""
    return _held_in_transaction(lab, "idle_in_transaction_session_timeout", f"ROLE {APP}")


@fault("transaction_timeout", "none")
def role_transaction_timeout(lab: Lab) -> str:
    """The same as below, set on the application's role."""
    return _held_in_transaction(lab, "transaction_timeout", f"ROLE {APP}")


@fault("transaction_timeout", "none")
def transaction_timeout(lab: Lab) -> str:
    """The whole server ends transactions that last longer than three seconds."""
    return _held_in_transaction(lab, "transaction_timeout")


@fault("sessions_terminated", "none")
def sessions_terminated(lab: Lab) -> str:
    """End all sessions once. The application has not noticed yet: no login follows."""
    _settled(lab)
    ended = lab.end_sessions()
    if ended < 2 or lab.sessions():
        raise LabError(f"{ended} sessions ended, {lab.sessions()} left; wanted at least 2 and 0")
    return f"ended {ended} idle sessions of the application on the server, once; 0 are left there"

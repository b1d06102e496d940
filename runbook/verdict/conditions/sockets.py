"""Conditions of view S: the sockets."""

from __future__ import annotations

from typing import Any, Optional

from ...common.clock import rfc3339
from .. import doing
from ..answers import Answer, Condition, count, decided, no, unread, yes
from ..facts import IDLE_SECONDS, LATELY_SECONDS, Facts, mapping, number, rows, text, whole
from .log import another_exception
from .login import statuses

# The clocks of two hosts differ, and a request takes a moment to be seen on the server.
_SETTLED_SECONDS = 2.0


def _held(facts: Facts, question: str) -> Optional[Answer]:
    return unread(facts, "sockets", question) if facts.held is None else None


def peer_is_silent(facts: Facts) -> Answer:
    """S: the peer of a connection does not answer probes or data."""
    missing = _held(facts, "whether the peer of a connection is silent")
    if missing:
        return missing
    found = len(facts.silent_flows)
    return decided(found, "sockets", f"{count(found, 'connection')} to {facts.target} whose peer is silent")


def flows_hang(facts: Facts) -> Answer:
    """S, D: requests went out on connections that the kernel finds healthy, and the server works on none."""
    if facts.alive == 0:
        return no("sockets", f"no open connection to {facts.target} that could hang")
    if facts.bouncer is not None:
        return no("new_connection", f"PgBouncer at {facts.target} answers at its console")
    if facts.waits is None:
        return unread(facts, "sockets", "whether a request on an open connection has no answer")
    if facts.backends is None or facts.database_now is None:
        return unread(facts, "activity", "whether the server works on what the app waits for")
    # Only what had gone out well before the server was looked at can be missed there.
    lost = [
        wait
        for wait in facts.waits
        if wait.get("acknowledged") is True and wait["sent"] < facts.database_now - _SETTLED_SECONDS
    ]
    active = sum(1 for session in facts.backends if session.get("state") == "active")
    words = f"{count(len(lost), 'request')} unanswered, {active} that the server works on"
    return decided(len(lost) > active, "sockets", words)


def database_answers_elsewhere(facts: Facts) -> Answer:
    """D: the database answers from beyond whatever is in between."""
    if facts.connection is None:
        return unread(facts, "connection", "whether the database answers from beyond the proxy")
    if facts.connection.get("ok") is not True:
        return no("connection", "the database does not answer there either")
    if facts.read_from_here and not facts.new_ok:
        words = "whether the database answers from beyond the proxy (it was read from here)"
        return Answer(None, words, "connection")
    return yes("connection", "the database answers on its own host")


def _words(facts: Facts, question: str) -> Optional[Answer]:
    if facts.held is not None and not any(map(_is_dead, facts.held)):
        return no("sockets", f"no connection to {facts.target} was ended by the other side")
    return unread(facts, "sockets", question) if facts.words is None else None


def last_words(sqlstate: str, meaning: str) -> Condition:
    """A condition: the server ended connections with this SQLSTATE, and the app still holds them."""

    def said(facts: Facts) -> Answer:
        missing = _words(facts, f"whether the server's last words are {sqlstate}, {meaning}")
        if missing and (missing.value is False or facts.held is None):
            return missing
        found, hidden = facts.words_with(sqlstate), count(facts.hidden_words, "connection")
        if found or not (missing or facts.hidden_words):
            words = f"{count(found, 'connection')} ended by the server with {sqlstate}, {meaning}"
            return decided(found, "sockets", words)
        words = f"whether {hidden} ended with {sqlstate}, {meaning}: TLS hides the server's words"
        tls = Answer(None, f"{words}, and the app's log has none of them", "sockets")
        return _without_words(facts, sqlstate, meaning) or missing or tls

    said.__name__ = f"last_words_{sqlstate}"
    said.__doc__ = (
        f"S: the server's last words on a connection that the app still holds are {sqlstate}, {meaning}"
        "; where they cannot be read, P or L has them"
        f"{', or D shows that it recovered from a crash then' if sqlstate == '57P02' else ''}."
    )
    return said


# By SQLSTATE: what the app's log calls it, and the setting without which the server does not do it.
_ENDINGS = {
    "57P01": ("terminated_by_administrator", None),
    "57P02": ("crash_of_another_process", None),
    "57P05": ("idle_session_timeout", "idle_session_timeout"),
    "25P03": ("idle_in_transaction_timeout", "idle_in_transaction_session_timeout"),
    "25P04": ("transaction_timeout", "transaction_timeout"),
}


def _without_words(facts: Facts, sqlstate: str, meaning: str) -> Optional[Answer]:
    """Where nobody may read the words, or TLS hides them: the app's own pool or its log may have them, the server's
    settings say what it cannot have said, and a crash leaves a trace. None where that tells nothing."""
    name, setting = _ENDINGS[sqlstate]
    read = facts.read_by_the_pool & set(_ENDINGS)
    if read:
        words = f"the app's pool read on dead connections: {', '.join(sorted(read))}"
        return decided(sqlstate in read, "pool", f"{words}{f', {meaning}' if sqlstate in read else ''}")
    if facts.logged_now(*(one for one, _ in _ENDINGS.values())):
        told = facts.logged_now(name) or 0
        words = f"{count(told, 'line')} in the app's log with the server's words, {meaning}"
        return decided(told, "log", words)
    if setting and facts.server_setting(setting) == "0":
        return no("server", f"{setting} is 0 for the app's role")
    if sqlstate != "57P02":
        return None
    if facts.crashed is False:
        return no("server", "the server's helpers are as old as itself, so it has not recovered from a crash")
    ago = facts.recovered_ago
    ended = [
        number(row.get("idle_seconds")) or 0.0 for row in facts.words or [] if row.get("kind") == "bytes"
    ]
    if ago is None or (ended and min(abs(seconds - ago) for seconds in ended) > LATELY_SECONDS):
        return None
    return yes("server", f"the server recovered from a crash {ago:.0f} s ago, while the app ran")


def under_tls(facts: Facts) -> str:
    """Where to look for the server's words if neither the app's pool nor its log has them; no right shows them."""
    if not facts.hidden_words or facts.read_by_the_pool or facts.now is None:
        return ""
    if facts.logged_now(*(one for one, _ in _ENDINGS.values())):
        return ""
    ages = [number(row.get("idle_seconds")) or 0.0 for row in facts.words or [] if row.get("kind") == "bytes"]
    return (
        f"look in PostgreSQL's own log, near {rfc3339(facts.now - min(ages))[11:19]} UTC, for why it ended the app's"
        f" sessions ({', '.join(_ENDINGS)}): TLS hides its words, whatever rights this run has"
    )


def dead_ones_matter(facts: Facts) -> Answer:
    """U, S, L: the login works again, or the app still has dead connections: it did not replace them.

    Each dead connection that is replaced fails one request. Where they are gone and the login fails all the
    same, it fails for another reason.
    """
    if facts.login_fails is None:
        return unread(facts, "login", "whether the login still fails")
    if not facts.login_fails:
        return yes("login", "the login works again")
    after = facts.sample("after_login")
    if after is None or facts.held is None:
        return unread(facts, "sockets", "whether the dead connections were replaced")
    other = another_exception(facts)
    if other.value:
        return no("log", f"the login fails for another reason: {other.text}")
    dead = [sum(1 for row in sample if _is_dead(row)) for sample in (facts.held, after)]
    if dead[1]:
        return yes("sockets", f"{count(dead[1], 'dead connection')} still held after the probe")
    failures = facts.logged_now("server_closed", "dead_connection")
    if failures is None:
        return unread(facts, "log", "whether the dead connections were replaced")
    words = f"{count(failures, 'line')} about a lost connection during the probe, for {count(dead[0], 'dead connection')}"
    return decided(failures > dead[0], "log", words)


def _is_dead(row: dict[str, Any]) -> bool:
    return row.get("state") != "ESTAB" or bool(row.get("recv_q"))


def cut_without_a_word(facts: Facts) -> Answer:
    """S: something ended connections without a word (a bare FIN, or a reset) on which nobody waited. Or L, D: it
    answered with a reset when they were used, and the server knows nothing of it."""
    after = {text(row.get("local")) for row in facts.sample("after_login") or [] if not _is_dead(row)}
    gone = {text(row.get("local")) for row in facts.held or [] if not _is_dead(row)} - after
    resets = facts.logged_now("connection_reset")
    if resets and gone:
        words = f"{count(len(gone), 'idle connection')} gone during the probe, and {count(resets, 'line')} about a reset"
        return yes("log", words)
    # psycopg2 calls a reset what it calls an end: then the server tells that it did not end them.
    kept = gone & {facts.client(session) for session in facts.backends or []}
    if kept and facts.logged_now("server_closed"):
        words = f"{count(len(kept), 'idle connection')} closed when used, by the log, and the server still serves them"
        return yes("log", words)
    missing = _words(facts, "whether something cut connections without a word")
    if missing:
        return missing
    cut = [row for row in facts.words or [] if row.get("kind") in ("fin", "rst")]
    unused = [row for row in cut if row.get("in_use") is False]
    own = [row for row in unused if row.get("kind") == "rst" or text(row.get("local")) not in facts.forked]
    ages = [number(row.get("idle_seconds")) or 0.0 for row in own]
    idle = [seconds for seconds in ages if seconds >= IDLE_SECONDS]
    if ages and not idle:
        words = f"{count(len(ages), 'connection')} ended without a word, {max(ages):.1f} s after their last answer at most"
        return Answer(None, f"{words}: whether they were idle", "sockets")
    if len(own) < len(unused) and not idle:
        words = f"{count(len(unused) - len(own), 'connection')} ended without a word that a forked process had too"
        return Answer(None, f"{words}: whether that one said goodbye on it", "sockets")
    longest = max(idle, default=0.0)
    seconds, ended = facts.gap or (0.0, 0.0)
    # What was cut in a silence has been idle since it ended, and was not for long when it began.
    if idle and 0.0 <= longest - ((facts.now or 0.0) - ended) < 2 * seconds:
        return no("pool", f"{count(len(idle), 'connection')} cut while the app itself stood still")
    words = (
        f"{count(len(cut), 'connection')} ended without a word (bare FIN or reset), {len(idle)} of them idle"
    )
    return decided(idle, "sockets", f"{words}{f' for up to {longest:.0f} s' if idle else ''}")


def dead_connections_held(facts: Facts) -> Answer:
    """S: the app holds connections that the other side ended."""
    missing = _held(facts, "whether the app holds connections that the other side ended")
    if missing:
        return missing
    dead = sum(map(_is_dead, facts.held or []))
    return decided(dead, "sockets", f"{count(dead, 'connection')} held that the other side ended")


def socket_shared_and_used(facts: Facts) -> Answer:
    """S, L, X: processes share a connection, and at least two of them use it (holding alone is harmless)."""
    if facts.sockets is None:
        return unread(facts, "sockets", "whether processes share a connection")
    shared = facts.shared
    if not shared and facts.held is not None:
        return no("sockets", "no connection is shared by processes")
    words = f"{count(len(shared), 'connection')} shared by processes"
    if shared and facts.logged("protocol_error"):
        return yes("log", f"{words}, and protocol errors in the log")
    if any(inode in shared for inode, _ in (doing.unanswered(facts) or {}).values()):
        return yes("process", f"{words}; a thread waits on one for an answer that another process has taken")
    both = [inode for inode, pids in doing.waiting_on(facts).items() if inode in shared and len(pids) > 1]
    if both:
        return yes("process", f"{words}; two processes wait for an answer on one of them")
    worked = doing.worked(facts)
    sharing = {pid for pids in shared.values() for pid in pids}
    if not shared or worked is None or not facts.rounds:
        return unread(facts, "process", f"{words}: whether two of them used one")
    alone = {whole(row.get("pid")) for row in facts.held or [] if whole(row.get("inode")) not in shared}
    users = sorted(pid for pid in sharing & worked if pid not in alone)
    if len(users) > 1:
        words += f"; pid {' and '.join(map(str, users[:3]))} worked during the probe"
        return yes("process", f"{words} and have no connection of their own")
    # An exhausted pool is not used; each process took them out of its own copy of it.
    takers = sorted(sharing & doing.served(facts) - alone) if facts.logged_now("pool_exhausted") else []
    if len(takers) > 1:
        words += f"; pid {' and '.join(map(str, takers[:3]))} serve"
        return yes("process", f"{words}, and have no other to take from their exhausted pools")
    if len(sharing & worked) < 2:
        return no("process", f"{words}, and one of them at most used it")
    return Answer(None, f"{words}: whether two of them used one", "process")


def live_settings_differ(facts: Facts) -> Answer:
    """S, X: what runs differs from the file on disk: a changed file under an unchanged process."""
    if facts.config is None:
        return unread(facts, "config", "whether the process runs with the settings on disk")
    told = facts.differing
    if told:
        return yes("config", "; ".join(told[:3]))
    settings = mapping(facts.config.get("settings"))
    wanted = {
        option: text(mapping(settings.get(name)).get("value"))
        for option, name in (
            ("idle", "POSTGRES_KEEPALIVES_IDLE"),
            ("interval", "POSTGRES_KEEPALIVES_INTERVAL"),
            ("count", "POSTGRES_KEEPALIVES_COUNT"),
            ("user_timeout_ms", "POSTGRES_TCP_USER_TIMEOUT"),
        )
        if mapping(settings.get(name)).get("value")
    }
    if wanted and facts.words is None:
        return unread(facts, "sockets", "whether the keepalive that is live is the one on disk")
    for row in rows((facts.sockets or {}).get("options")):
        for option, value in wanted.items():
            if str(row.get(option)) != value:
                words = f"keepalive {option} is {row.get(option)} on a live connection and {value} on disk"
                return yes("sockets", words)
    if facts.changed_since_the_start and not (facts.pool or facts.config.get("live")):
        words = f"whether the process runs with the settings of {text(facts.config.get('file'))}, changed since it started"
        return Answer(None, words, "config")
    return no("config", "nothing that is set on disk differs from what runs")


def sockets_were_read(facts: Facts) -> Answer:
    """S: the app's sockets were read, with what is unread on them."""
    if facts.held is None or (facts.held and facts.words is None):
        return unread(facts, "sockets", "the state of the app's connections")
    words = f"{count(len(facts.held), 'socket')} from the app to {facts.target}"
    return yes("sockets", f"{words}{f'; {kept_by_logins(facts)}' if facts.kept_by_logins else ''}")


def kept_by_logins(facts: Facts) -> str:
    """What the probe itself may have cost the app, in words; empty where it cost nothing. No verdict rests on it:
    several pools, or connections that were busy before, look the same."""
    if not facts.kept_by_logins:
        return ""
    return (
        f"{facts.kept_by_logins} more after the probe's logins, one for each, though some were open before: see"
        " whether the login gives its connection back on the way that the probe took"
        f" ({statuses(facts)})"
    )

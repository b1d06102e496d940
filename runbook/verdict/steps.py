"""The guide's six steps, in its order, each with a status and one line of what was found.

The steps present; the judge decides. Status: ok, warn, fail, skipped (not needed, or not carried out in a
diagnosis) or unknown (not read).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Callable, Optional

from .answers import count
from .conditions.pool import monitor_is_silent, pool_is_exhausted, slots_without_connection
from .facts import Facts, mapping, number, text, whole
from .judge import OBSERVE, Verdict

Found = tuple[str, str]


def steps(facts: Facts, verdict: Verdict, observed: Optional[dict[str, Any]] = None) -> list[dict[str, Any]]:
    """All six as the report has them. ``observed``: the observation of the host, where there was one."""
    return [step(number, facts, lambda: verdict, observed) for number in range(1, 7)]


def step(
    number: int, facts: Facts, verdict: Callable[[], Verdict], observed: Optional[dict[str, Any]]
) -> dict[str, Any]:
    """One of the six, 1 to 6. ``verdict`` is asked for by the last two alone."""
    table: list[tuple[str, str, Callable[[], Found]]] = [
        ("is the monitor running", "monitor", lambda: monitor(facts)),
        ("pool status of the running process", "pool", lambda: pool(facts)),
        ("PostgreSQL's side", "activity", lambda: postgresql(facts)),
        ("connection leaks in the source", "source", lambda: leaks(facts)),
        ("monitoring frequency", "", lambda: frequency(verdict(), observed)),
        ("debug logging", "", lambda: debug_log(verdict(), observed)),
    ]
    name, view, look = table[number - 1]
    status, summary = look()
    seconds = facts.seconds(view) if view else 0.0
    return {"step": number, "name": name, "status": status, "summary": summary, "seconds": seconds}


def monitor(facts: Facts) -> Found:
    """Step 1. A heartbeat proves it; a dated line makes it likely; a start-up line says nothing about now."""
    answer = monitor_is_silent(facts)
    if facts.no_monitor:
        return "unknown", answer.text
    if answer.value is not None:
        return ("fail", answer.text) if answer.value else ("ok", answer.text)
    if facts.monitor is None:
        return "unknown", facts.reason("monitor")
    started = facts.monitor.get("started")
    lines = whole(facts.monitor.get("lines"))
    seen = "its start-up line is in the log" if started else "no start-up line in the log that was read"
    words = f"{seen}, {count(lines, 'report')}; the app tells no heartbeat, so whether it lives is open"
    return "unknown", words


def pool(facts: Facts) -> Found:
    """Step 2. By the status socket; without one, by what the log and the sockets prove."""
    exhausted = pool_is_exhausted(facts)
    if facts.pool is not None:
        used, most = facts.pool_count("used") or 0, facts.pool_count("maximum") or 0
        counts = (
            f"{used} of {most} used, {facts.pool_count('idle')} idle, {facts.pool_count('waiting')} waiting"
        )
        killed = ", ".join(facts.left_behind)
        doubt = killed or (most and used > 0.8 * most)
        words = f"{counts}; killed or crashed: the process that left {killed} behind" if killed else counts
        return ("fail" if exhausted.value else "warn" if doubt else "ok"), words
    if exhausted.value is None:
        return "unknown", f"{facts.reason('pool')}; {exhausted.text}"
    if exhausted.value:
        lost = slots_without_connection(facts)
        return "fail", f"the app says exhausted; {lost.text}"
    held, silent = facts.held, facts.silent
    if silent:
        return "warn", f"{silent}; {exhausted.text}"
    if held is None:
        return "ok", exhausted.text
    dead = sum(1 for row in held if row.get("state") != "ESTAB")
    words = f"not exhausted; {count(len(held), 'socket')} to {facts.target}"
    return ("warn", f"{words}, {dead} of them dead") if dead else ("ok", words)


def postgresql(facts: Facts) -> Found:
    """Step 3. The server's own view, and a new connection with the app's credentials."""
    if facts.new_ok is False:
        return "fail", f"a new connection: {text(facts.new_error.get('text'))}"[:200]
    new = (
        f"a new connection took {facts.new_seconds * 1000:.0f} ms"
        if facts.new_ok
        else facts.reason("new_connection")
    )
    if facts.backends is None:
        return "unknown", f"{facts.reason('activity')}; {new}"
    states = Counter(text(session.get("state")) or "?" for session in facts.backends)
    told = ", ".join(f"{number_of} {name}" for name, number_of in sorted(states.items()))
    waiting = sum(len(queue) for queue in (facts.waiting_for_lock or {}).values())
    used, most = number((facts.limits or {}).get("used")), number((facts.limits or {}).get("max_connections"))
    slots = f", {used:.0f} of {most:.0f} slots" if used is not None and most else ""
    words = f"{count(len(facts.backends), 'session')} of the app{f' ({told})' if told else ''}{slots}; {new}"
    if waiting:
        return "fail", f"{waiting} wait for a lock; {words}"
    full = used is not None and most and used >= 0.9 * most
    return ("warn" if full else "ok"), words


def leaks(facts: Facts) -> Found:
    """Step 4. A finding alone decides nothing; it names the line to mend."""
    if facts.source is None:
        return "unknown", facts.reason("source")
    findings = facts.findings
    files = count(whole(facts.source.get("files")), "file")
    partly = "" if facts.source.get("complete") is True else ", not all of them"
    if not whole(facts.source.get("files")):
        roots = facts.source.get("roots")
        where = ", ".join(text(root) for root in roots) if isinstance(roots, list) else ""
        words = f"no source of the app's own below {where or 'where it runs'}; name it in diagnose_source"
        return "unknown", words
    if not findings:
        return "ok", f"no finding in {files}{partly}"
    named = ", ".join(f"{text(f.get('rule'))} {f['site']}" for f in findings[:3])
    return "warn", f"{count(len(findings), 'finding')} in {files}{partly}: {named}"


def frequency(verdict: Verdict, observed: Optional[dict[str, Any]]) -> Found:
    """Step 5."""
    return _observed(verdict, observed, "monitor_interval", ("pool_status", "high_usage", "monitor_error"))


def debug_log(verdict: Verdict, observed: Optional[dict[str, Any]]) -> Found:
    """Step 6."""
    return _observed(verdict, observed, "log_level", ("acquired", "returned", "pool_exhausted"))


def _observed(
    verdict: Verdict, observed: Optional[dict[str, Any]], switch: str, lines: tuple[str, ...]
) -> Found:
    """What was switched in the running processes, which lines came of it, and that it is as it was."""
    if not observed:
        decided = verdict.confidence == "decided"
        return "skipped", "not needed, the cause is decided" if decided else f"would show more: {OBSERVE}"
    if observed["outcome"] == "failed":
        return "fail", "; ".join(observed["wrong"])
    if observed["outcome"] == "partly":
        return "skipped", "no process has a status socket that could be asked"
    counts = mapping(mapping(observed["log"]).get("counts"))
    told = ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in lines if counts.get(name))
    pids = ", ".join(str(row["pid"]) for row in observed["processes"] if row["reverted"])
    came = f"{told} in the log" if told else "no line of it in the log" if observed["log"] else "log unread"
    value = observed["wanted"][switch]
    set_to = value if isinstance(value, str) else f"every {value:g} s"
    return "ok", f"{set_to} in pid {pids} for {observed['seconds']:.0f} s, back by itself: {came}"

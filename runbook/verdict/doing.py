"""What the app's threads do, from the stacks of our own pool's process, else from the kernel's looks.

A thread waits for work, or it is at work: with PostgreSQL, with something else, or with itself. A thread that
waits for a lock looks like one that waits for work, so what is counted here as at work is at least so much.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any, Optional

from .facts import HALTED, Facts, mapping, number, rows, text, whole

# A frame is `file:line function`, the innermost first; our own pool's threads have names of their own.
_OWN_THREADS = ("pool-", "MainThread")
_IDLE = re.compile(r"queue\.py:\d+ get$|concurrent/futures/thread\.py:\d+ _worker$|selectors\.py:\d+ select$")
_WAITS_FOR_THE_POOL = re.compile(r"/pool/pool\.py:\d+ (?:getconn|_wait)$")
_LIBRARY = re.compile(r"site-packages/|dist-packages/|/lib/python\d|<frozen |/runbook/pool/")


class Work:
    """What the threads of one process do: so many wait, so many are with PostgreSQL, so many with what else."""

    def __init__(self) -> None:
        self.idle = self.database = 0
        self.elsewhere: Counter[str] = Counter()

    @property
    def busy(self) -> int:
        """Threads at work with anything but PostgreSQL."""
        return sum(self.elsewhere.values())

    @property
    def most(self) -> str:
        """What most of them are at work with, in words."""
        told = self.elsewhere.most_common(2)
        how = [("in the kernel," if what.startswith("call ") else "with", what) for what, _ in told]
        return " and ".join(f"{number_of} {' '.join(one)}" for one, (_, number_of) in zip(how, told))


def before_the_probe(facts: Facts) -> Optional[dict[str, Any]]:
    """The look before anything was probed; None where the kernel did not tell what threads wait in."""
    found = [look for look in facts.looks if look.get("moment") == "before_login"]
    return found[0] if found and _readable(found[0]) else None


def while_it_hangs(facts: Facts) -> list[dict[str, Any]]:
    """The looks while logins are under way and at their end, one after the other; none if unread."""
    found = [look for look in facts.looks if look.get("moment") in ("during_login", "after_login")]
    return found if all(map(_readable, found)) else []


def _readable(look: dict[str, Any]) -> bool:
    threads = rows(look.get("threads"))
    return bool(threads) and all(text(thread.get("call")) for thread in threads)


def work(facts: Facts, look: dict[str, Any]) -> dict[int, Work]:
    """pid → what the threads of a look do. Those that only take requests or children in are not counted, nor are
    those that may not run."""
    found: dict[int, Work] = defaultdict(Work)
    loops = event_loops(facts)
    waited = {
        whole(thread.get("tid")) for thread in seen_threads(facts) if text(thread.get("call")) == "epoll"
    }
    for thread in rows(look.get("threads")):
        if text(thread.get("state")) in HALTED:
            continue
        pid, call, to = whole(thread.get("pid")), text(thread.get("call")), text(thread.get("to"))
        waits = not to and call in ("epoll", "futex", "accept", "poll", "select", "wait", "read")
        minds = pid in facts.parents - loops and not to and call != "running"  # its workers, in whatever call
        caught = call == "running" and pid in waited  # a loop that comes round is taking something in
        takes = pid in loops and (waits or caught)
        if whole(thread.get("tid")) == pid and (minds or takes):
            continue
        if waits:
            found[pid].idle += 1
        elif to in facts.peers:
            found[pid].database += 1
        else:
            found[pid].elsewhere["itself" if call == "running" else to or call] += 1
    return found


def work_by_stacks(facts: Facts) -> Optional[dict[int, Work]]:
    """The same for the worker threads of processes with a status socket; None without stacks."""
    if facts.stacks is None:
        return None
    found: dict[int, Work] = defaultdict(Work)
    asking = {whole(holder.get("tid")) for holder in facts.holders or [] if facts.active_backend(holder)}
    # A pooler in between has no session for them yet; the kernel knows whom they wait for.
    peers = facts.peers
    asking |= {whole(one.get("tid")) for one in seen_threads(facts) if text(one.get("to")) in peers}
    for stack in facts.stacks:
        if text(stack.get("thread")).startswith(_OWN_THREADS):
            continue
        frames, one = frames_of(stack), found[whole(stack.get("pid"))]
        if any(map(_IDLE.search, frames[:2])):
            one.idle += 1
        elif whole(stack.get("tid")) in asking or any(map(_WAITS_FOR_THE_POOL.search, frames)):
            one.database += 1
        else:
            one.elsewhere[site(frames)] += 1
    return found


def event_loops(facts: Facts) -> set[int]:
    """The processes that wait for events in a loop."""
    return {whole(p.get("pid")) for p in facts.processes or [] if p.get("event_loop") is True}


def frames_of(stack: dict[str, Any]) -> list[str]:
    """The frames of a stack, the innermost first."""
    found = stack.get("frames")
    return [text(frame) for frame in found] if isinstance(found, list) else []


def site(frames: list[str]) -> str:
    """The innermost frame that is not a library's: where the app's own code stands."""
    own = [frame for frame in frames if not _LIBRARY.search(frame)]
    return (own or frames or ["?"])[0].replace(" ", " in ")


def stands_at(facts: Facts, tid: Any) -> str:
    """Where the app's own code stands in a thread, in words; empty where its stack was not read."""
    for stack in facts.stacks or []:
        if whole(tid) and stack.get("tid") == tid:
            return f" at {facts.short(site(frames_of(stack)))}"
    return ""


def stuck_loop(facts: Facts, looks: list[dict[str, Any]]) -> str:
    """The main thread of an event loop that did not come round between two looks, in words; empty if none.

    It does not wait for events, and it stood still or ran all the time.
    """
    seconds = (number(looks[-1].get("second")) or 0.0) - (number(looks[0].get("second")) or 0.0)
    earlier = {whole(thread.get("tid")): thread for thread in rows(looks[0].get("threads"))}
    for thread in rows(looks[-1].get("threads")):
        tid, call = whole(thread.get("tid")), text(thread.get("call"))
        before = mapping(earlier.get(tid))
        if tid not in event_loops(facts) or "epoll" in (call, text(before.get("call"))) or seconds < 1.0:
            continue
        ran = (number(thread.get("cpu_seconds")) or 0.0) - (number(before.get("cpu_seconds")) or 0.0)
        if ran > 0.5 * seconds:
            return f"the main thread of pid {tid} ran {ran:.1f} of {seconds:.1f} s and did not come round"
        if thread.get("turns") is not None and thread.get("turns") == before.get("turns"):
            return f"the main thread of pid {tid} stood in {call} for {seconds:.1f} s"
    return ""


def standing(facts: Facts, looks: list[dict[str, Any]]) -> dict[str, int]:
    """Local end → inode of the connections to PostgreSQL on which a thread stood still through all these looks."""
    known = {
        whole(row.get("inode")): text(row.get("local"))
        for sample in facts.samples
        for row in rows(sample.get("sockets"))
    }
    seen = [
        {
            (whole(thread.get("tid")), whole(thread.get("inode")), whole(thread.get("turns")))
            for thread in rows(look.get("threads"))
            if text(thread.get("to")) in facts.peers and text(thread.get("state")) not in HALTED
        }
        for look in looks
    ]
    still = set.intersection(*seen) if seen else set()
    return {known.get(inode, ""): inode for _, inode, _ in sorted(still)}


def unanswered(facts: Facts) -> Optional[dict[str, tuple[int, str]]]:
    """Local end → (inode, state of the session) of the connections on which a thread has stood still since
    before the server was asked, and on which the server was not at work; None where that cannot be told."""
    before = before_the_probe(facts)
    if before is None or len(facts.looks) < 2:
        return None
    waiting = {local: (inode, facts.state_at(local)) for local, inode in standing(facts, facts.looks).items()}
    looked = (facts.now or 0.0) + (number(before.get("second")) or 0.0)
    if waiting and (facts.database_now is None or facts.database_now < looked):
        return None
    if any(state is None for _, state in waiting.values()):
        return None
    return {local: (inode, state) for local, (inode, state) in waiting.items() if state and state != "active"}


# Processor seconds that no idle process takes while logins are probed, and that every login takes.
_WORK_SECONDS = 0.02


def waiting_on(facts: Facts) -> dict[int, set[int]]:
    """inode → the processes of which a thread was seen waiting on it."""
    found: dict[int, set[int]] = defaultdict(set)
    for thread in seen_threads(facts):
        if whole(thread.get("inode")):
            found[whole(thread.get("inode"))].add(whole(thread.get("pid")))
    return found


def seen_threads(facts: Facts) -> list[dict[str, Any]]:
    """Every thread of every look."""
    return [thread for look in facts.looks for thread in rows(look.get("threads"))]


def worked(facts: Facts) -> Optional[set[int]]:
    """The processes that took processor time between the first look and the last; None when not read."""
    if len(facts.looks) < 2:
        return None
    spent: dict[int, float] = defaultdict(float)
    earlier = {whole(t.get("tid")): number(t.get("cpu_seconds")) for t in rows(facts.looks[0].get("threads"))}
    for thread in rows(facts.looks[-1].get("threads")):
        pid, seconds = whole(thread.get("pid")), number(thread.get("cpu_seconds"))
        if seconds is None:
            return None
        spent[pid] += seconds - (earlier.get(whole(thread.get("tid"))) or 0.0)
    return {pid for pid, seconds in spent.items() if seconds >= _WORK_SECONDS}


def served(facts: Facts) -> set[int]:
    """The processes of which another thread than the first has done work since it was born: it is not one that
    was inherited by a fork, which leaves the first alone."""
    threads = rows(facts.looks[-1].get("threads")) if facts.looks else []
    others = [thread for thread in threads if thread.get("pid") != thread.get("tid")]
    return {whole(t.get("pid")) for t in others if (number(t.get("cpu_seconds")) or 0.0) >= _WORK_SECONDS}

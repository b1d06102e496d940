"""The judge: a pure function of the evidence of one host and its database.

No I/O, no clock, no Ansible; the same evidence gives the same verdict, here and from a saved document.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from ..common.clock import seconds_of
from .answers import Answer, count
from .causes import CAUSES, Cause, go_on, why_of
from .conditions.database import longest_queue
from .conditions.login import login_hangs, statuses
from .conditions.process import processes_halted
from .conditions.sockets import kept_by_logins, under_tls
from .facts import LATELY_SECONDS, Facts, number, text, whole

UNKNOWN = "unknown"
# Steps 5 and 6 change a running process, so a diagnosis does them only when asked to.
OBSERVE = "ansible-playbook playbooks/observe.yml"


@dataclass(frozen=True)
class Judged:
    """One cause with the answers to its conditions, in order, and to whether it gives way to one below."""

    cause: Cause
    answers: tuple[Answer, ...]
    gives_way: Optional[Answer] = None

    @property
    def value(self) -> Optional[bool]:
        """All conditions: false if one is, else unread if one is, else true (Kleene's and)."""
        values = [answer.value for answer in self.answers]
        return False if False in values else None if None in values else True

    @property
    def disproof(self) -> str:
        """The words of the first condition that is false."""
        return next((answer.text for answer in self.answers if answer.value is False), "")


@dataclass(frozen=True)
class Verdict:
    """What the evidence says.

    ``restart_helps``: for this case; None while open. ``action``: start, restart, none or open.
    ``fits``: causes that nothing disproves, when the cause is unknown. ``holds_seconds``: how long the
    cure will last at the rate seen, None where it does not come back.
    """

    cause: str
    title: str
    confidence: str
    restart_helps: Optional[bool]
    action: str
    why_action: str
    contributing: list[str] = field(default_factory=list)
    why: list[Answer] = field(default_factory=list)
    why_not: list[tuple[str, str]] = field(default_factory=list)
    fits: list[tuple[str, str]] = field(default_factory=list)
    unread: list[Answer] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    holds_seconds: Optional[float] = None


def judge(host: Any, database: Any = None) -> Verdict:
    """The verdict over one host evidence document and, where there is one, its database's.

    Any value is accepted: what does not have the shape of the schemas counts as unread.
    """
    facts = Facts(host, database)
    judged = [
        Judged(
            cause,
            tuple(condition(facts) for condition in cause.conditions),
            cause.gives_way(facts) if cause.gives_way else None,
        )
        for cause in CAUSES
    ]
    # What cannot end a login is not the cause of one that fails.
    able = [one for one in judged if one.cause.ends_logins or not facts.login_fails]
    holding = (one for one in able if one.value and not (one.gives_way and one.gives_way.value))
    found = next(holding, None)
    unsettled = [one for one in (judged[: judged.index(found)] if found else judged) if one.value is None]
    # A blemish that could not be looked for is told, and leaves no doubt about why logins fail or work.
    open_above = [one for one in unsettled if one.cause.ends_logins]
    if found and not found.cause.ends_logins and open_above:
        found = None  # never green, nor content with a blemish, while a cause that ends logins is undecided
    if not found:
        return _unknown(facts, judged)
    if found.gives_way and found.gives_way.value is None:
        unsettled, open_above = [*unsettled, found], [*open_above, found]
    cause = found.cause
    helps, why_action = cause.restart.helps(facts), ""
    if helps and facts.login_will_fail is False:
        helps, why_action = False, "the login works"  # nobody is locked out now
    why_action = why_action or why_of(cause, helps)
    return Verdict(
        cause=cause.id,
        title=_title(cause, facts),
        confidence="likely" if open_above else "decided",
        restart_helps=helps,
        action=cause.action if helps else "open" if helps is None else "none",
        why_action=why_action,
        contributing=_contributing([one for one in judged if one is not found]),
        why=list(dict.fromkeys(found.answers)),
        why_not=_why_not(judged, cause),
        unread=_unread(unsettled),
        next=cause.next(facts),
        holds_seconds=_holds(cause, facts) if helps else None,
    )


def _unknown(facts: Facts, judged: list[Judged]) -> Verdict:
    """Nothing is proven. The action may be decided all the same, if all causes that fit agree on it."""
    still_open = [one for one in judged if one.value is None]
    # Nor does what cannot end a login fit one that fails.
    able = [one for one in still_open if one.cause.ends_logins or not facts.login_fails]
    fits = [one for one in able if one.cause.id != "healthy"]
    helps = {one.cause.restart.helps(facts) for one in fits}
    actions = {one.cause.action for one in fits}
    agreed = helps.pop() if len(helps) == 1 else None
    if facts.login_fails is False:
        agreed = False  # whatever it was: nobody is locked out now
    wrong = _set_right(facts)
    if agreed and (facts.login_fails is None or wrong):
        agreed = None  # no restart without seeing that the login fails
    action = actions.pop() if agreed and len(actions) == 1 else "none" if agreed is False else "open"
    names = ", ".join(one.cause.id for one in fits[:6])
    why_action = {
        True: f"it helps in every cause that fits: {names}",
        False: "the login works"
        if facts.login_fails is False
        else f"it helps in no cause that fits: {names}",
        None: "whether the login fails was not seen"
        if wrong
        else "the causes that fit do not agree on it"
        if fits
        else "no known cause fits what was read",
    }[agreed if action != "open" else None]
    still_unread = _unread(still_open)
    rights = "give this run the rights or names that the unread views need, and run it again"
    nothing = "nothing is unread, and what was read disproves every known cause: send the directory of this run to whoever knows the app"
    remedy = (
        wrong
        or _not_probed(facts)
        or _later(facts)
        or under_tls(facts)
        or (rights if still_unread else nothing)
    )
    fitting = f"{count(len(fits), 'cause')} would fit; what decides could not be read"
    known = [fitting] if fits else ["no known cause fits", _just_started(facts)]
    return Verdict(
        cause=UNKNOWN,
        title="; ".join(filter(None, (*known, facts.halted_words))),
        confidence=UNKNOWN,
        restart_helps=agreed if action != "open" else None,
        action=action,
        why_action=why_action,
        contributing=_contributing(judged),
        why_not=_why_not(judged, None),
        fits=[(one.cause.id, next(a.text for a in one.answers if a.value is None)) for one in fits],
        unread=still_unread,
        next=[
            *go_on(facts),
            *([remedy] if wrong or not facts.halted else []),
            f"to see more: {OBSERVE} watches the running processes for 5 minutes; -e diagnose_observe_minutes=5"
            " does so within this run",
            *([f"sockets to {facts.target}: {kept_by_logins(facts)}"] if facts.kept_by_logins else []),
        ],
    )


def _contributing(judged: list[Judged]) -> list[str]:
    return [one.cause.id for one in judged if one.value and not one.cause.last_resort]


def _just_started(facts: Facts) -> str:
    """What is known of an app that was started a moment ago, where logins failed and work again."""
    if not facts.login_failed or facts.login_fails or facts.age is None or facts.age > LATELY_SECONDS:
        return ""
    words = f"the app was started {facts.age:.0f} s before this run"
    return f"{words} ({text(facts.service.get('why'))})" if facts.service.get("why") else words


def _not_probed(facts: Facts) -> str:
    """Where nobody was to log in, for nothing may be changed."""
    forbidden = facts.login is None and "diagnose_probe_in_check" in facts.reason("login")
    return "let --check probe the login too: -e diagnose_probe_in_check=true" if forbidden else ""


def _later(facts: Facts) -> str:
    """Where a pool that waits has not yet given up: its log says so only then."""
    words = "run it again in half a minute: a pool that waits says in the log that it is exhausted only then"
    told = facts.log is None or facts.pool_never_waits or facts.logged_now("pool_exhausted")
    return words if login_hangs(facts).value and not told else ""


def _set_right(facts: Facts) -> str:
    """What to set when the probe does not speak for the app; empty when it does."""
    wrong = text((facts.login or {}).get("misconfigured"))
    if not wrong and facts.listening is False and facts.processes:
        url, port = text((facts.login or {}).get("url")), whole((facts.process or {}).get("port"))
        wrong = f"diagnose_login_url ({url}): nothing listens on port {port}, and the app lives"
    return f"set right {wrong}" if wrong else ""


def _why_not(judged: list[Judged], cause: Optional[Cause]) -> list[tuple[str, str]]:
    """Why the other causes are not it; first those it is easily taken for, then in the table's order."""
    first = cause.not_to_confuse if cause else ()
    false = {one.cause.id: one.disproof for one in judged if one.value is False and one.cause.id != "healthy"}
    order = [name for name in first if name in false] + [name for name in false if name not in first]
    return [(name, false[name]) for name in order]


def _unread(judged: list[Judged]) -> list[Answer]:
    """What was not read, each once, with the causes that it would decide."""
    wanted: dict[Answer, list[str]] = {}
    for one in judged:
        for answer in (*one.answers, *([one.gives_way] if one.gives_way and one.value else [])):
            if answer.value is None:
                wanted.setdefault(answer, []).append(one.cause.id)
    return [
        answer._replace(text=f"{answer.text}; it would decide {', '.join(dict.fromkeys(ids))}")
        for answer, ids in wanted.items()
    ]


def _title(cause: Cause, facts: Facts) -> str:
    if cause.id == "slot_leak" and facts.maximum:
        held = len(facts.held or [])
        lost = count(facts.maximum - held, "slot")
        if held:
            return f"the pool lost {lost}; {held} still have a connection"
        return f"the pool lost all {lost}; none is really in use"
    if cause.id == "app_blocked" and processes_halted(facts).value:
        return f"the app accepts and does not answer: {facts.halted_words}"
    if cause.id == "lock_contention":
        return f"{count(len(longest_queue(facts)[1]), 'session')} wait behind one lock"
    if cause.id == "sessions_terminated":
        ended = facts.words_with("57P01") or facts.hidden_words
        return f"{count(ended, 'session')} of the app ended by an administrator"
    if cause.id == "healthy":
        words, told = f"login answers {statuses(facts)}", facts.trouble
        if told:
            span = f"from {told['first'][11:19]} to {told['last'][11:19]} UTC"
            words += f"; {count(told['lines'], 'error')} in its log {span}: {told['ended']}"
        return words
    return cause.title


def _holds(cause: Cause, facts: Facts) -> Optional[float]:
    """How long until it is back: from the start of the process to the first failure, or to the last connection
    that was taken and kept; where neither is known, until now."""
    if not cause.restart.comes_back or facts.age is None or facts.started is None:
        return None
    known = [facts.age]
    first = seconds_of((facts.trouble or {}).get("first"))
    if first is not None and first >= facts.started:
        known.append(first - facts.started)
    kept = [number(holder.get("age")) for holder in facts.holders or [] if holder.get("request_over") is True]
    kept = kept or [facts.server_age(session.get("state_change")) for session in facts.resting]
    if cause.id == "connection_leak" and kept:
        known.append(facts.age - min(age or 0.0 for age in kept))
    return round(max(0.0, min(known)), 1)

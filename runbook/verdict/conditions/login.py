"""Conditions of view U: the user's path."""

from __future__ import annotations

from ..answers import Answer, count, decided, no, unread, yes
from ..facts import RECENT_SECONDS, Facts, mapping, number, text, whole


def login_still_fails(facts: Facts) -> Answer:
    """U: the login fails, also after as many probes as there were connections to trip over."""
    if facts.login_fails is None:
        wrong = text(mapping(facts.login).get("misconfigured"))
        if wrong:
            return Answer(None, f"the probe is misconfigured: {wrong}", "login")
        return unread(facts, "login", "whether the login fails")
    return decided(facts.login_fails, "login", f"login answers {statuses(facts)}")


def login_hangs(facts: Facts) -> Answer:
    """U: logins are not answered in time; with several workers not all of them need hang."""
    if facts.login_fails is None:
        return unread(facts, "login", "whether the login hangs")
    late, all_of_them = facts.login_statuses.get("timeout", 0), sum(facts.login_statuses.values())
    if late:
        return yes("login", f"no answer to {late} of {count(all_of_them, 'login')} within 5 s")
    return no("login", f"the app answers: {statuses(facts)}")


def login_works(facts: Facts) -> Answer:
    """U: every login works, in every round."""
    if facts.login_failed is None or facts.login_fails is None:
        return unread(facts, "login", "whether the login works")
    if facts.login_failed or facts.login_fails:
        return no("login", f"login answered {statuses(facts)}")
    return yes("login", f"login answers {statuses(facts)}")


def login_failed_or_fails(facts: Facts) -> Answer:
    """U: the login failed in this run, whether or not it healed meanwhile."""
    if facts.login_failed is None:
        return unread(facts, "login", "whether the login failed")
    first = mapping(facts.rounds[0])
    words = f"{whole(first.get('failed'))} of {count(whole(first.get('attempts')), 'login')} failed at first"
    return yes("login", words) if facts.login_failed else no("login", "no login failed")


def login_healed_at_the_restart(facts: Facts) -> Answer:
    """U, D: logins failed and healed in this run, and the server was started within the last hour."""
    if facts.login_failed is None:
        return unread(facts, "login", "whether the login failed and healed")
    if not facts.login_failed or facts.login_fails:
        return no("login", "no login failed and healed in this run")
    if facts.postmaster_start is None or facts.server_now is None:
        return unread(facts, "server", "when the server started")
    age = facts.server_now - facts.postmaster_start
    return decided(age < RECENT_SECONDS, "server", f"the login healed; the server started {age:.0f} s ago")


def login_fails_at_once(facts: Facts) -> Answer:
    """U: the app answers with an error of its own, without waiting for anything."""
    if facts.login_fails is None:
        return unread(facts, "login", "how fast the login fails")
    if not facts.login_fails:
        return no("login", "the login works")
    seconds = number(facts.rounds[-1].get("seconds")) or 0.0
    errors = [status for status in facts.login_statuses if len(status) == 3 and status.startswith("5")]
    if errors and seconds < 2.0:
        return yes("login", f"login answers {statuses(facts)} within {seconds:.1f} s")
    return no("login", f"login ends with {statuses(facts)} after {seconds:.1f} s")


def statuses(facts: Facts) -> str:
    """``500, 8 of 8`` or ``200: 7, 500: 1``."""
    answers = facts.login_statuses
    if len(answers) == 1:
        ((status, times),) = answers.items()
        return f"{status}, {times} of {times}"
    return ", ".join(f"{status}: {times}" for status, times in sorted(answers.items())) or "nothing"

"""What a condition answers: true, false or unread, with its reason in words; and how answers are joined.

A condition asks the facts one question. It answers false as soon as *any* view disproves it, true only
when what decides was read, and unread otherwise; so a missing view can hide a cause, never invent one.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional

from .facts import Facts


class Answer(NamedTuple):
    """The value of a condition (None: unread), in words, and the view that says so or is missing."""

    value: Optional[bool]
    text: str
    view: str


Condition = Callable[[Facts], Answer]


def yes(view: str, words: str) -> Answer:
    """The condition holds."""
    return Answer(True, words, view)


def no(view: str, words: str) -> Answer:
    """The condition does not hold."""
    return Answer(False, words, view)


def decided(holds: object, view: str, words: str) -> Answer:
    """The condition holds if ``holds`` is true, and does not otherwise."""
    return Answer(bool(holds), words, view)


def opposite(answer: Answer) -> Answer:
    """The condition that holds where this one does not; what is open stays open."""
    return answer if answer.value is None else answer._replace(value=not answer.value)


def unread(facts: Facts, view: str, question: str) -> Answer:
    """The condition is open: ``question`` is what the view would have answered."""
    reason = facts.reason(view)
    return Answer(None, f"{question} ({reason})" if reason else question, view)


def any_of(*conditions: Condition) -> Condition:
    """True if one is, false if all are, unread otherwise: Kleene's or."""

    def either(facts: Facts) -> Answer:
        answers = [condition(facts) for condition in conditions]
        return _first(answers, True) or _first(answers, None) or answers[0]

    either.__name__ = "_or_".join(condition.__name__ for condition in conditions)
    told = [(condition.__doc__ or "").strip().rstrip(".") for condition in conditions]
    either.__doc__ = f"{'; or '.join(told)}."
    return either


def all_of(*conditions: Condition) -> Condition:
    """True if all are, false if one is, unread otherwise: Kleene's and. Its words are those that decide."""

    def each(facts: Facts) -> Answer:
        answers = [condition(facts) for condition in conditions]
        held = answers[-1]._replace(text="; ".join(answer.text for answer in answers))
        return _first(answers, False) or _first(answers, None) or held

    each.__name__ = "_and_".join(condition.__name__ for condition in conditions)
    each.__doc__ = " And ".join((condition.__doc__ or "").strip() for condition in conditions)
    return each


def _first(answers: list[Answer], value: Optional[bool]) -> Optional[Answer]:
    return next((answer for answer in answers if answer.value is value), None)


def count(number_of: int, noun: str) -> str:
    """``1 socket``, ``20 sockets``, ``2 processes``."""
    return f"{number_of} {noun}{'' if number_of == 1 else 'es' if noun.endswith('s') else 's'}"


def most_common(values: list[str]) -> str:
    """The most frequent non-empty text; of equals the first in order; empty where there is none."""
    present = sorted(value for value in values if value)
    return max(dict.fromkeys(present), key=present.count) if present else ""

"""How figures are said to a person: durations, times, login results. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import Any, Optional

from ..common.clock import seconds_of

WIDTH = 100
MARGIN = 10  # two blanks, a label of up to six letters, two blanks


# Control characters and those that turn the direction of writing: evidence must not steer a terminal.
_STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


# A host name with a number in its first label: web-03.example.com
_NUMBERED = re.compile(r"([^.]*?)(\d{1,9})([^\d.]*(?:\..*)?)", re.DOTALL)


def plain(text: str) -> str:
    """A text that only prints: whatever would steer a terminal is a question mark."""
    return _STEERING.sub("?", text)


def duration(seconds: float) -> str:
    """``0.04 s``, ``25 s``, ``9 min 50 s``, ``9 h 12 min``, ``3 d 4 h``."""
    if seconds < 10:
        return f"{seconds:.2f}".rstrip("0").rstrip(".") + " s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def clock(moment: str) -> str:
    """The time of day of an RFC 3339 time, UTC."""
    return moment[11:19] if seconds_of(moment) is not None else "?"


def answers(login: dict[str, Any]) -> str:
    """``500 in 0.01 s, 8 of 8``; ``200, 7 of 8; 500, 1 of 8``; ``no answer in time, 8 of 8``."""
    names = {"timeout": "no answer in time", "refused": "connection refused", "reset": "connection reset"}
    total = login["attempts"]
    parts = sorted(login["by_status"].items(), key=lambda item: (-item[1], item[0]))
    if len(parts) == 1 and parts[0][0].isdigit():
        return f"{parts[0][0]} in {duration(login['seconds'])}, {parts[0][1]} of {total}"
    told = [f"{names.get(status, status)}, {times} of {total}" for status, times in parts]
    return "; ".join(told) or "nothing"


def login_line(before: Optional[dict[str, Any]], after: Optional[dict[str, Any]]) -> str:
    """Before and after in one line; one of them where they are the same probe."""
    if before is None:
        return "not probed"
    path = " (the login path answers)"  # an unknown user was sent: more than that is not proven
    first = f"{clock(before['at'])}  {answers(before)}"
    if after is None or after == before:
        return first + (path if before["kind"] == "path" and before["ok"] else "")
    second = f"{clock(after['at'])}  {answers(after)}"
    return f"{first}   ->   {second}" + (path if after["kind"] == "path" and after["ok"] else "")


def spans(names: Iterable[str]) -> list[str]:
    """Host names that differ in one number as one: ``web-[01-09,11]``. What is alone stays as it is."""
    numbers: dict[tuple[str, str, int], list[int]] = {}
    for name in names:
        found = _NUMBERED.fullmatch(name)
        before, digits, after = found.groups() if found else (name, "", "")
        numbers.setdefault((before, after, len(digits)), []).append(int(digits or 0))
    out = []
    for (before, after, width), known in sorted(numbers.items(), key=lambda one: (one[0][0], one[0][2])):
        runs: list[list[int]] = []
        for number in sorted(known):
            if runs and number == runs[-1][-1] + 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        parts = [
            f"{run[0]:0{width}}-{run[-1]:0{width}}"
            if len(run) > 2
            else ",".join(f"{n:0{width}}" for n in run)
            for run in runs
        ]
        numbered = ",".join(parts)
        if not width:
            out += [before] * len(known)
        elif len(known) < 3:
            out += [f"{before}{number:0{width}}{after}" for number in sorted(known)]
        else:
            out.append(f"{before}[{numbered}]{after}")
    return out


def heading(text: str) -> list[str]:
    """A first line, wrapped under itself where it is too long."""
    return wrapped(text, WIDTH, subsequent_indent=" " * MARGIN)


def wrapped(text: str, width: int, subsequent_indent: str = "") -> list[str]:
    """A text as lines of at most ``width`` characters; one at least."""
    return textwrap.wrap(text, width, subsequent_indent=subsequent_indent, break_on_hyphens=False) or [""]


def section(label: str, lines: list[str]) -> list[str]:
    """Lines under a label, wrapped at WIDTH, the label only before the first."""
    out: list[str] = []
    for line in lines:
        lead = min(len(line) - len(line.lstrip()), MARGIN)
        for part in wrapped(line.strip(), WIDTH - MARGIN - lead):
            head = f"  {label:<8}" if not out else " " * MARGIN
            out.append((head + " " * lead + part).rstrip())
    return out


def columns(rows: list[tuple[str, str]]) -> list[str]:
    """(name, text) as aligned lines, each wrapped under its own text."""
    if not rows:
        return []
    width = max(len(name) for name, _ in rows) + 2
    out = []
    for name, words in rows:
        first, *more = wrapped(words, WIDTH - MARGIN - width)
        out.append(f"{name:<{width}}{first}")
        out += [" " * width + part for part in more]
    return out

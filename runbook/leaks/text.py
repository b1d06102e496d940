"""The findings as plain text for a terminal, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections import Counter

from .search import Finding, Result

WIDTH = 100


def format_text(result: Result) -> str:
    """Every finding with its line, way and fix; what could not be read; a last line with counts."""
    blocks = [_finding(finding) for finding in result.findings]
    blocks += [_wrapped("not read  ", f"{_clean(one.file)}: {_clean(one.reason)}") for one in result.unread]
    return "\n".join([*blocks, *_wrapped("", _counts(result)).splitlines()]) + "\n"


def _finding(finding: Finding) -> str:
    head = f"{finding.rule} {_clean(finding.file)}:{finding.line} in {finding.function}"
    if len(head) > WIDTH:
        head = f"{finding.rule} ..." + head[-(WIDTH - 7) :]
    shown = textwrap.shorten(_clean(finding.text), WIDTH - 8, placeholder=" ...")
    way, fix = _wrapped("    way  ", _clean(finding.path)), _wrapped("    fix  ", _clean(finding.fix))
    return "\n".join([head, "        " + shown, way, fix, ""])


def _wrapped(label: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=label, subsequent_indent=" " * len(label))


def _counts(result: Result) -> str:
    rules = Counter(finding.rule for finding in result.findings)
    each = ", ".join(f"{rule} {count}" for rule, count in sorted(rules.items()))
    found = f"{_number(len(result.findings), 'finding')}{' (' + each + ')' if each else ''}"
    unread = f", {len(result.unread)} not read" if result.unread else ""
    end = "complete" if result.complete else "NOT complete: the deadline or the bound on files came first"
    return f"{found} in {_number(result.files, 'file')}{unread}; {end}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _clean(text: str) -> str:
    """A file name may contain what moves a terminal's cursor."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)

"""Masking: what leaves a target carries no password, token, cookie or literal of a query.

Runs on the target, inside the collector, before anything is printed or returned. Two nets: the secrets
that were read there are replaced wherever they appear, and the known shapes of a secret are replaced
even when nobody knew the value.
"""

from __future__ import annotations

import re
from typing import Any, Callable
from urllib.parse import quote

MASK = "***"
# A shorter "secret" occurs in ordinary words and numbers, and replacing it would ruin the evidence;
# its assignments (password=…) are still caught by shape.
SHORTEST_LITERAL = 4

_TELLTALE = r"[\w.-]*(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|credential)[\w.-]*"
_VALUE = r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s,;&'\"}\])]+)"
_SHAPES: list[tuple[re.Pattern[str], str]] = [
    # Cookie and Authorization headers, to the end of what belongs to them
    (re.compile(r"(?i)\b((?:set-)?cookie[\"']?\s*[:=]\s*)[^\r\n]+"), rf"\1{MASK}"),
    (
        re.compile(
            r"(?i)\b((?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)(?:(?:bearer|basic|digest|token)\s+)?[^\s\"']+"
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), rf"\1{MASK}"),
    (re.compile(r"\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*"), MASK),  # a JSON web token
    # scheme://user:secret@host; the secret may hold an @ when somebody forgot to encode it
    (re.compile(r"(\b[a-z][\w+.-]*://[^\s:/@]*):[^\s/]+@(?=[^\s@]*)"), rf"\1:{MASK}@"),
    # password=…, "password": "…", POSTGRES_PASSWORD: …
    (re.compile(rf"(?i)\b({_TELLTALE}[\"']?\s*[=:]\s*)(?!\*\*\*){_VALUE}"), rf"\1{MASK}"),
    (re.compile(r"(?i)(\bpassword\s+)('(?:[^']|'')*'?)"), rf"\1{MASK}"),  # ALTER ROLE … PASSWORD '…'
]

_SQL = re.compile(
    r"""
      (?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))
    | (?P<string>[eEbBxXnN]?'(?:[^'\\]|''|\\.)*(?:'|\Z)|\$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|\Z))
    | (?P<name>"(?:[^"]|"")*"|[A-Za-z_][\w$]*)
    | (?P<parameter>\$\d+)
    | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    """,
    re.VERBOSE | re.DOTALL,
)


class Masker:
    """Replaces secrets in text and counts what it replaced.

    ``secrets`` are literal values read on this target: they are replaced wherever they stand, in plain,
    URL-encoded and Python-quoted form. ``count`` is the number of replacements so far.
    """

    def __init__(self, secrets: Any = ()) -> None:
        self.count = 0
        self._literals: list[str] = []
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str | None) -> None:
        """Remember one more literal secret; None and too short ones are ignored."""
        if not secret or len(secret) < SHORTEST_LITERAL:
            return
        forms = {
            secret,
            quote(secret, safe=""),
            quote(secret),
            repr(secret)[1:-1],
            secret.replace('"', '\\"'),
        }
        # longest first: a secret that contains another one must not leave its rest behind
        self._literals = sorted({*self._literals, *forms}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """The text without secrets."""
        for literal in self._literals:
            found = text.count(literal)
            if found:
                self.count += found
                text = text.replace(literal, MASK)
        for pattern, replacement in _SHAPES:
            text, found = pattern.subn(replacement, text)
            self.count += found
        return text

    def sql(self, query: str) -> str:
        """A query without literals: strings, numbers and comments go, names and parameters stay."""

        def replace(match: re.Match[str]) -> str:
            if match.group("name") or match.group("parameter"):
                return match.group(0)
            self.count += 1
            return "" if match.group("comment") else "?"

        return self.text(_SQL.sub(replace, query))

    def document(self, value: Any) -> Any:
        """A copy of any JSON value with every string in it masked, keys included."""
        return transform(value, self.text)


def transform(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of any JSON value with ``change`` applied to each string."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(str(key)): transform(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [transform(item, change) for item in value]
    return value

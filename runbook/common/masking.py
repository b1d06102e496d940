"""Masking: what leaves a target carries no password, token, cookie or literal of a query.

Runs on the target, inside the collector, before anything is printed or returned. Two nets: the secrets
that were read there are replaced wherever they appear, and the known shapes of a secret are replaced
even when nobody knew the value. Where a secret ends is often open; then rather too much is replaced.

Every pattern takes linear time on any text: none begins with a repetition, and after an unbounded one
nothing follows that could fail, or the next match can only begin behind it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Callable, Optional
from urllib.parse import quote, quote_plus

MASK = "***"
# A shorter "secret" occurs in ordinary words and numbers, and replacing it would ruin the evidence;
# its assignments (password=…) are still caught by shape.
SHORTEST_LITERAL = 4
# The collectors cut texts at this many characters or more. At the end of one that long, the beginning
# of a secret is a secret; in a shorter one it is a word.
_SHORTEST_CUT = 200

_TELLTALE = (
    r"(?:passw(?:or)?d|passphrase|(?<![a-z])(?:pass|pwd)(?![a-z])|secret|token|api[_-]?key|credential)"
    r"[\w-]{0,64}"
)
# A word as a shell reads it: pieces in quotes and bare ones. A quote that is not closed ends with its line.
_VALUE = r"""(?:'(?:[^'\\\r\n]|\\.?)*'?|"(?:[^"\\\r\n]|\\.?)*"?|[^\s,;&'"}\])]+)+"""
_CLOSED = r"(?:\\*[\"'])?[ \t]*"  # what stands between a key and its = or :, also in JSON within JSON
_SHAPES: list[tuple[re.Pattern[str], str]] = [
    # The headers Cookie and Authorization, to the end of the line; ASGI has them as (b'cookie', b'…')
    (
        re.compile(rf"(?i)((?:cookies?|authorization)(?:{_CLOSED}[:=]|[\"'][ \t]*,)[ \t]*)[^\r\n]+"),
        rf"\1{MASK}",
    ),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), rf"\1{MASK}"),
    (re.compile(r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*"), MASK),  # a JSON web token
    # scheme://user:secret@host; the secret may hold an @ or a / when somebody forgot to encode it,
    # but host:port/path with an @ further on has none. A // behind the colon stays, as it may begin another one
    (
        re.compile(
            r"(://[^\s:/@]*:(?!\d{1,5}(?:[\s/?#\"',;)\]]|\Z))(?://|(?!//)))[^\s:]*(?::(?!//)[^\s:]*)*@",
        ),
        rf"\1{MASK}@",
    ),
    # ALTER ROLE … PASSWORD '…', E'…' or $$…$$, to the end of the line
    (re.compile(r"(?i)\b(password\s+)(?:e|n|u&)?['$][^\r\n]*"), rf"\1{MASK}"),
    # password=…, "password": "…", POSTGRES_PASSWORD: …
    (re.compile(rf"(?i)({_TELLTALE}{_CLOSED}[=:][ \t]*){_VALUE}"), rf"\1{MASK}"),
    # --db-password …
    (
        re.compile(rf"(?i)((?<![\w-])--(?=\w)[\w-]{{0,64}}?{_TELLTALE}[ \t]+)(?!-){_VALUE}"),
        rf"\1{MASK}",
    ),
]

# As PostgreSQL reads it, with standard_conforming_strings on. What is not closed goes to the end, for
# pg_stat_activity cuts queries; so does a comment within a comment, which no regular expression can follow.
_SQL = re.compile(
    r"""
      (?P<comment>--[^\n]*|/\*(?:(?!/\*).)*?\*/|/\*.*\Z)
    | (?P<string>
          [eE]'(?:[^'\\]|''|\\.?)*(?:'|\Z)
        | [bBxXnN]?'(?:[^']|'')*(?:'|\Z)
        | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)
      )
    | (?P<name>"(?:[^"]|"")*"|[^\W\d][\w$]*)
    | (?P<parameter>\$\d+)
    | (?P<number>\d(?:[eE][+-](?=\d)|\w|\.(?=\d))*)
    """,
    re.VERBOSE | re.DOTALL,
)

# What a document says in the format's own words, or as a name that PostgreSQL shows to everybody, is no
# secret, even where the password is the same word: masked, has_password or the role would be lost, and with
# the role the verdict.
_OWN_KEY = re.compile(r"[a-z][a-z_]*")
_OWN_VALUE = re.compile(r"[A-Za-z_][\w-]*|\d{4}-\d\d-\d\dT[\d:.]+Z|[\d.?]+:\d{1,5}|\[[\da-f:.]+\]:\d{1,5}")
_FIELDS_OF_WORDS = {
    *("state", "kind", "phase", "timer", "moment", "active", "result", "unit_file", "severity"),
    *("user", "role", "name", "database", "sslmode", "collected_at", "started_at"),
    *("local", "peer"),  # addresses as the kernel has them, by the thousand
}


class Masker:
    """Replaces secrets in text and counts what it replaced.

    ``secrets`` are literal values read on this target: they are replaced wherever they stand, in plain,
    URL-encoded, JSON and Python-quoted form. ``count`` is the number of replacements so far.
    """

    def __init__(self, secrets: Iterable[Optional[str]] = ()) -> None:
        self.count = 0
        self._literals: list[str] = []
        for secret in secrets:
            self.add(secret)

    def add(self, secret: Optional[str]) -> None:
        """Remember one more literal secret; None and too short ones are ignored."""
        if not secret or len(secret) < SHORTEST_LITERAL:
            return
        forms = {
            secret,
            quote(secret),
            quote(secret, safe=""),
            quote_plus(secret),
            json.dumps(secret)[1:-1],
            json.dumps(secret, ensure_ascii=False)[1:-1],
            repr(secret)[1:-1],
        }
        # longest first: a secret that contains another one must not leave its rest behind
        self._literals = sorted({*self._literals, *forms}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """The text without secrets."""
        cut = len(text) >= _SHORTEST_CUT
        for literal in self._literals:
            found = text.count(literal)
            if found:
                self.count += found
                text = text.replace(literal, MASK)
        for literal in self._literals if cut else ():
            for length in range(len(literal) - 1, SHORTEST_LITERAL - 1, -1):
                if text.endswith(literal[:length]):
                    self.count += 1
                    text = text[:-length] + MASK
                    break
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
            return " " if match.group("comment") else "?"

        return self.text(_SQL.sub(replace, query))

    def document(self, value: Any, most: Optional[int] = None) -> Any:
        """A copy of any JSON value with every string in it masked, keys included, and then cut to ``most``
        characters: half a secret is one that nobody recognizes.

        Only the format's own words and names stay as they are.
        """
        return transform(value, lambda text: self.text(text)[:most], _is_own)


def _is_own(text: str, field: Optional[str]) -> bool:
    if field is None:
        return bool(_OWN_KEY.fullmatch(text))
    return field in _FIELDS_OF_WORDS and bool(_OWN_VALUE.fullmatch(text))


def transform(
    value: Any,
    change: Callable[[str], str],
    keep: Callable[[str, Optional[str]], bool] = lambda text, field: False,
    field: Optional[str] = "",
) -> Any:
    """A copy of any JSON value with ``change`` applied to each string.

    ``keep`` says which strings stay: it is asked with the string and the field that it is in, None for a
    key. ``field`` is that of ``value`` itself.
    """
    if isinstance(value, str):
        return value if keep(value, field) else change(value)
    if isinstance(value, dict):
        return {
            transform(str(key), change, keep, None): transform(item, change, keep, str(key))
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [transform(item, change, keep, field) for item in value]
    return value

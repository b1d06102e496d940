"""The door of the leak search: ``search_source`` for one text, ``search_paths`` for files and trees.

Nothing that is searched is executed or imported. Every loop has a bound, every error of a searched file is a
line in the result.
"""

from __future__ import annotations

import ast
import io
import os
import re
import stat
import time
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from .flow import Walk
from .pools import NAMED, pools
from .reading import Site, sites
from .rules import Found, findings
from .source import Source
from .state import TooManyPaths
from .syntax import Scope, scopes
from .vocabulary import DEFAULTS, Acquire, Vocabulary, given_parameters, learn, mentions

MAX_BYTES = 1024 * 1024
KEPT_CHARACTERS = 32 * 1024  # a tree is about a hundred times as large as its text
IGNORED = frozenset({"site-packages", "dist-packages", "node_modules", "__pycache__", "venv", "virtualenv"})
SUPPRESSION = re.compile(r"#\s*runbook:\s*ignore\[([R\d,\s]+)\][ \t]*(\S?)")
LITERAL = re.compile(r"\"[^\"]*(?:\"|$)|'[^']*(?:'|$)")
# What Python raises on a text it cannot read: no Python, null bytes, nested too deeply.
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


class Finding(NamedTuple):
    """A way on which a connection is lost. Sorts by (file, line, rule)."""

    file: str
    line: int
    rule: str
    function: str
    acquire: str
    path: str
    """The way, in words with line numbers."""
    fix: str
    text: str = ""
    """The offending line with its string literals blanked: for a screen, not part of the evidence."""

    def as_dict(self) -> dict[str, object]:
        """An item of ``views.source.data.findings`` in host-evidence.schema.json."""
        names = ("rule", "file", "line", "function", "acquire", "path", "fix")
        return {name: getattr(self, name) for name in names}


class Unread(NamedTuple):
    file: str
    reason: str


class Result(NamedTuple):
    files: int
    """Files read. Those that name no acquire are not looked at further."""
    complete: bool
    """False when the deadline or ``max_files`` ended the search."""
    findings: list[Finding]
    unread: list[Unread]
    """What could not be searched, and why."""
    pools: Sequence[dict[str, Any]] = ()
    """The pools that are made, and how large they are; see ``pools.pools``."""


class OutOfTime(Exception):
    """The deadline has passed."""


class Clock(NamedTuple):
    """A deadline as a moment of ``time.monotonic()``; None: none."""

    deadline: Optional[float]

    def check(self) -> None:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise OutOfTime

    def half(self) -> Clock:
        """A clock that ends when half of the time left is gone."""
        now = time.monotonic()
        return Clock(None if self.deadline is None else now + (self.deadline - now) / 2)


def search_source(text: str, filename: str) -> list[Finding]:
    """The findings in one text, sorted. A text that Python cannot read has none; ``search_paths`` says why."""
    try:
        return sorted(_search(_source(text, DEFAULTS), text, filename, Clock(None), unread=[]))
    except UNREADABLE:
        return []


def search_paths(
    paths: Iterable[Union[str, os.PathLike[str]]],
    *,
    deadline: Optional[float] = None,
    first: Iterable[str] = (),
    max_files: int = 10_000,
) -> Result:
    """Search files and trees of ``*.py``.

    ``deadline`` is a moment of ``time.monotonic()``, in seconds; None: no deadline. ``first`` names files
    to search before all others (those of live checkout sites), absolute or relative to one of ``paths``.
    Hidden directories and those of other people's code (virtual environments, site-packages, node_modules) are
    left out unless ``paths`` names them, files above 1 MiB always; links to directories are not followed.
    """
    clock = Clock(deadline)
    found: list[Finding] = []
    unread: list[Unread] = []
    # Half of the time to list, half of the rest to learn: what is listed first is searched in any case.
    files, listed = _listed(
        _files([Path(path) for path in paths], list(first), clock.half(), unread), max_files
    )
    vocabulary, learned = _learned(files, clock.half())
    named = mentions(vocabulary)
    read, searched = 0, True
    made: list[dict[str, Any]] = []
    try:
        for path in files:
            clock.check()
            text = _text(path, unread)
            read += text is not None
            if text is None or not ((makes := NAMED.search(text)) or named(text)):
                continue
            try:
                if makes:
                    made.extend(pools(_parsed(text).tree, str(path)))
                found.extend(_search(_source(text, vocabulary), text, str(path), clock, unread))
            except UNREADABLE as error:
                unread.append(Unread(str(path), _reason(error)))
    except OutOfTime:
        searched = False
    return Result(read, listed and learned and searched, sorted(set(found)), sorted(set(unread)), made)


def _listed(paths: Iterator[Path], max_files: int) -> tuple[list[Path], bool]:
    """The paths, and whether they are all."""
    files: list[Path] = []
    try:
        for path in paths:
            if len(files) == max_files:
                return files, False
            files.append(path)
    except OutOfTime:
        return files, False
    return files, True


def _learned(files: Iterable[Path], clock: Clock) -> tuple[Vocabulary, bool]:
    """What the files define for each other, and whether all were read. A wrapper of another file's wrapper is
    known in its own file only."""
    vocabulary, defines = DEFAULTS, mentions(DEFAULTS)
    try:
        for path in files:
            clock.check()
            text = _text(path, [])
            if text is None or not defines(text):
                continue
            try:
                vocabulary = vocabulary.joined(learn(_parsed(text).scopes, text, DEFAULTS).shared())
            except UNREADABLE:
                continue  # told where the file is searched
    except OutOfTime:
        return vocabulary, False
    return vocabulary, True


def _search(
    source: Source, text: str, filename: str, clock: Clock, unread: list[Unread]
) -> Iterator[Finding]:
    lines = re.split(r"\r\n|\r|\n", text)
    for scope in source.scopes:
        for walk, site in _walks(source, scope):
            clock.check()
            try:
                walk.run()
            except TooManyPaths:
                where = site.call.lineno if site else walk.scope.body[0].lineno
                unread.append(Unread(filename, f"line {where}, {scope.name}: too many paths to follow"))
                continue
            yield from _reported(findings(walk, site), site, filename, lines)


def _walks(source: Source, scope: Scope) -> Iterator[tuple[Walk, Optional[Site]]]:
    for site in sites(source, scope):
        yield Walk(source, scope, site.acquire, site.call), site
    if scope.function and scope.name in source.vocabulary.releases:
        for parameter in sorted(given_parameters(scope, source.vocabulary)):
            yield Walk(source, scope, Acquire("getconn"), held=[parameter]), None


def _reported(
    ranked: Sequence[Found], site: Optional[Site], filename: str, lines: Sequence[str]
) -> Iterator[Finding]:
    """The first finding that no comment suppresses: one acquire, one finding."""
    for found in ranked:
        spots = {found.line, *(range(site.call.lineno, (site.call.end_lineno or 0) + 1) if site else ())}
        comments = [SUPPRESSION.search(lines[spot - 1]) for spot in sorted(spots)]
        named = [comment for comment in comments if comment and found.rule in re.findall(r"R\d+", comment[1])]
        if any(comment[2] for comment in named):
            continue
        unheard = "; the comment there gives no reason, so it suppresses nothing" if named else ""
        shown = LITERAL.sub("'...'", lines[found.line - 1].strip())
        fields = found._replace(path=found.path + unheard)._asdict()
        yield Finding(file=filename, text=shown, **fields)
        return


def _files(roots: Sequence[Path], first: Sequence[str], clock: Clock, unread: list[Unread]) -> Iterator[Path]:
    """Regular files, each once whatever its names, ``first`` first, then in the order of their names."""
    seen: set[tuple[int, int]] = set()
    for path in (*_existing(roots, first), *roots):
        for file in [path] if not path.is_dir() else _below(path, clock, unread):
            clock.check()
            try:
                status = file.stat()
            except OSError as error:
                unread.append(Unread(str(file), _reason(error)))
                continue
            identity = (status.st_dev, status.st_ino)
            if identity not in seen and stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES:
                seen.add(identity)
                yield file


def _existing(roots: Sequence[Path], first: Sequence[str]) -> Iterator[Path]:
    for name in first:
        # A site may be told from above the root: backend/services/db.py for the root /srv/app/backend.
        places = [base / name for root in roots for base in (root, root.parent)]
        yield from [place for place in places if place.is_file()][:1]


def _below(root: Path, clock: Clock, unread: list[Unread]) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        unread.append(Unread(str(error.filename), _reason(error)))

    for directory, names, files in os.walk(root, onerror=refused):
        clock.check()
        here = Path(directory)
        names[:] = sorted(
            name
            for name in names
            if not name.startswith(".") and name not in IGNORED and not (here / name / "pyvenv.cfg").exists()
        )
        yield from (here / name for name in sorted(files) if name.endswith(".py"))


def _text(path: Path, unread: list[Unread]) -> Optional[str]:
    try:
        content = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return content.decode(encoding)
    except (OSError, SyntaxError, ValueError) as error:
        unread.append(Unread(str(path), _reason(error)))
        return None


def _source(text: str, vocabulary: Vocabulary) -> Source:
    found = _parsed(text).scopes
    return Source(found, learn(found, text, vocabulary))


class _Parsed(NamedTuple):
    tree: ast.Module
    scopes: list[Scope]


@lru_cache(maxsize=32)
def _kept(text: str) -> _Parsed:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the searched text ("\\d"): not for the ears of this run
        tree = ast.parse(text.lstrip("\ufeff"))
    return _Parsed(tree, list(scopes(tree)))


def _parsed(text: str) -> _Parsed:
    """Asked for to learn from it and to search it; what is not large is kept in between."""
    return (_kept if len(text) <= KEPT_CHARACTERS else _kept.__wrapped__)(text)


def _reason(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}" if error.lineno else str(error.msg)
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, (RecursionError, MemoryError)):
        return "nested too deeply"
    return str(error)

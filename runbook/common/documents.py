"""The documents that leave a run: each has a JSON Schema, is validated before it is written, and is
readable by its owner alone."""

from __future__ import annotations

import hashlib
import json
import os
import pkgutil
import re
import tempfile
from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).parent / "schemas"


class InvalidDocument(ValueError):
    """A document that does not fit its schema; the text names the place and the value's trouble."""


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema ``name``: host-evidence, database-evidence, report, fleet or status."""
    # Not from a path: in the one file that scripts/build-collect makes there is none.
    text = pkgutil.get_data(__package__, f"schemas/{name}.schema.json") or b""
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def validate(document: dict[str, Any]) -> None:
    """Check a document against the schema that it names in its field ``schema``.

    Raises InvalidDocument. Needs the package jsonschema, which only the controller has.
    """
    # here, not above: a target reads this room without the package
    from jsonschema import Draft202012Validator  # noqa: PLC0415
    from jsonschema.exceptions import best_match  # noqa: PLC0415

    name = str(document.get("schema", "")).partition("/")[2].partition("/")[0]
    if not (SCHEMAS / f"{name}.schema.json").is_file():
        raise InvalidDocument(f"schema: {document.get('schema')!r} is not one that this version knows")
    error = best_match(Draft202012Validator(schema(name)).iter_errors(document))
    if error:
        where = "/".join(str(part) for part in error.absolute_path)[:150] or "the document"
        raise InvalidDocument(f"{name}: {where}: {error.message[:300]}")


def file_name(name: str) -> str:
    """The name of a host or database as a part of a file's name."""
    return re.sub(r"[^\w.-]", "_", name)


def text_of(document: dict[str, Any]) -> str:
    """The canonical text of a document: the same document, the same text.

    Raises ValueError for a number that JSON does not know (NaN, Infinity).
    """
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write(path: Path, document: dict[str, Any]) -> str:
    """Validate and write a document, whole or not at all, mode 0600; its SHA-256 in hex."""
    validate(document)
    return write_text(path, text_of(document))


def write_text(path: Path, text: str) -> str:
    """Write a text, whole or not at all, mode 0600, in directories of mode 0700; its SHA-256 in hex."""
    # one by one: with parents=True the mode would hold for the last one alone
    for above in reversed(path.parents):
        if not above.exists():
            above.mkdir(mode=0o700, exist_ok=True)
    write_whole(path, text, 0o600)
    return hashlib.sha256(text.encode()).hexdigest()


def write_whole(path: Path, text: str, mode: int, group: int = -1) -> None:
    """Write a text, whole or not at all, also when the power fails; ``group`` -1 is the user's own."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, mode)
            os.fchown(handle, -1, group)
            file.write(text)
            file.flush()
            os.fsync(handle)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    above = os.open(path.parent, os.O_RDONLY)
    os.fsync(above)
    os.close(above)

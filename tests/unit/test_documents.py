"""The documents of a run: validated before they are written, whole or not at all, for their owner alone."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook.common.documents import InvalidDocument, schema, text_of, validate, write, write_text
from tests.unit.incidents import Json, healthy, slot_leak


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o000, 0o077], ids=oct)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


# -- writing -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_umask")
def test_a_document_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "hosts" / "web-1.json"
    write(path, healthy().host)
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700


@pytest.mark.usefixtures("_umask")
def test_every_directory_that_is_made_for_it_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "run" / "hosts" / "web-1.json"
    write(path, healthy().host)
    assert [oct(mode(above)) for above in list(path.parents)[:3]] == ["0o700"] * 3


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "web-1.json"
    digest = write(path, slot_leak().host)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(path.read_text(encoding="utf-8")) == slot_leak().host


def test_the_same_document_has_the_same_text() -> None:
    document = healthy().host
    turned = dict(reversed(list(document.items())))
    assert text_of(document) == text_of(turned)
    assert text_of(document).endswith("}\n")


def test_a_written_document_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "web-1.json"
    path.write_text("old")
    path.chmod(0o644)
    write(path, healthy().host)
    assert mode(path) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["web-1.json"]


def test_an_invalid_document_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "web-1.json"
    write(path, healthy().host)
    before = path.read_bytes()
    broken = healthy().host
    broken["views"]["login"]["state"] = "fine"
    with pytest.raises(InvalidDocument):
        write(path, broken)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["web-1.json"]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "ticket.md"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half a character: \ud800")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["ticket.md"]


def test_a_directory_in_the_way_is_an_error_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "web-1.json" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match=r"web-1\.json"):
        write(tmp_path / "web-1.json", healthy().host)
    assert [one.name for one in tmp_path.iterdir()] == ["web-1.json"]


def _write_again_and_again(path: Path, filling: str, times: int) -> None:
    for _ in range(times):
        write_text(path, filling * 50_000)


def test_a_reader_never_sees_half_a_document(tmp_path: Path) -> None:
    """Two writers, and a reader that looks all the while."""
    path = tmp_path / "web-1.json"
    write_text(path, "a" * 50_000)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_again_and_again, args=(path, x, 40)) for x in "ab"]
    for writer in writers:
        writer.start()
    looks = 0
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        assert len(text) == 50_000
        assert set(text) in ({"a"}, {"b"})
        looks += 1
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert looks > 0
    assert [one.name for one in tmp_path.iterdir()] == ["web-1.json"]


# -- validating --------------------------------------------------------------------------------------------


def put(document: Json, path: str, value: Any) -> Json:
    """The document with a value at `a/b/0/c`."""
    where: Any = document
    *above, last = path.split("/")
    for key in above:
        where = where[int(key)] if isinstance(where, list) else where[key]
    where[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("host", 3),
        ("masked", -1),
        ("masked", True),
        ("seconds", "4.2"),
        ("collected_at", "yesterday"),
        ("views/login/state", "fine"),
        ("views/process/data/listening", "yes"),
        ("views/sockets/data/samples/0/moment", "some time"),
        ("views/process/data/processes/0/pid", "4272"),
    ],
)
def test_an_invalid_document_is_refused_and_the_place_is_named(path: str, value: Any, tmp_path: Path) -> None:
    document = put(healthy().host, path, value)
    with pytest.raises(InvalidDocument) as refused:
        write(tmp_path / "web-1.json", document)
    assert str(refused.value).startswith("host-evidence: ")
    assert path in str(refused.value)
    assert len(str(refused.value)) < 500
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["run_id", "views"])
def test_a_missing_field_is_named(missing: str) -> None:
    document = healthy().host
    del document[missing]
    with pytest.raises(InvalidDocument, match=missing):
        validate(document)


def test_a_field_too_many_is_named() -> None:
    with pytest.raises(InvalidDocument, match="surprise"):
        validate({**healthy().host, "surprise": 1})


@pytest.mark.parametrize(
    "kind",
    [
        *(
            None,
            3,
            "",
            "report",
            "runbook/",
            "runbook//1",
            "runbook/report",
            "runbook/report/2",
            "other/report/1",
        ),
        *("runbook/../../etc/passwd/1", "runbook/no-such/1", "runbook/host-evidence.schema.json/1"),
    ],
)
def test_a_document_of_no_known_kind_is_refused(kind: Any) -> None:
    with pytest.raises(InvalidDocument):
        validate({**healthy().host, "schema": kind})


def test_a_refusal_repeats_no_value_at_length() -> None:
    """The evidence is masked, and all the same an exception is no place for a page of it."""
    with pytest.raises(InvalidDocument) as refused:
        validate({**healthy().host, "run_id": ["x" * 10_000]})
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_know_is_never_written(value: float, tmp_path: Path) -> None:
    path = tmp_path / "web-1.json"
    with pytest.raises(ValueError, match=r".+"):
        write(path, {**healthy().host, "seconds": value})
    assert not path.exists()


def test_a_schema_is_loaded_by_name() -> None:
    assert schema("report")["$id"] == "urn:pool-runbook:report:1"
    with pytest.raises(FileNotFoundError):
        schema("no-such")

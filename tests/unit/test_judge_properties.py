"""The judge against any document at all: truncated, contradictory, hostile, renamed."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from runbook.common.documents import SCHEMAS, schema, validate
from runbook.evidence.log import PATTERNS
from runbook.report.build import build
from runbook.report.screen import screen
from runbook.report.ticket import ticket
from runbook.verdict.causes import CAUSES, IDS
from runbook.verdict.facts import Facts
from runbook.verdict.judge import Verdict, judge
from tests.unit.incidents import (
    DATABASE_VIEWS,
    FAILING,
    HOST_VIEWS,
    NOW,
    TABLE,
    Incident,
    Json,
    unread,
    view,
)

# A shared machine may be slow for a moment: no deadline for one example.
many = settings(deadline=None, max_examples=100)
FAULTS = ("slot_leak", "postgres_down", "app_down", "sessions_terminated", "healthy")
BLEMISHES = {cause.id for cause in CAUSES if not cause.ends_logins}
VIEWS = (*HOST_VIEWS, *DATABASE_VIEWS)
ODD = [
    "",
    "ok",
    "timeout",
    "500",
    "200",
    "²",
    "٣",
    "9" * 5000,
    "-1",
    NOW,
    "9999-99-99T99:99:99Z",
    "\0",
    "a b",
]

words = st.sampled_from(ODD) | st.text(max_size=8)
numbers = st.integers() | st.integers(10**14, 10**40) | st.floats(allow_nan=False) | st.just(-0.0)
scalars = st.none() | st.booleans() | numbers | words
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
incidents = st.sampled_from(sorted(TABLE)).map(lambda name: TABLE[name][0]())


def check(verdict: Verdict) -> None:
    """Everything that holds of every verdict."""
    assert verdict.cause in (*IDS, "unknown")
    assert verdict.confidence in ("decided", "likely", "unknown")
    assert (verdict.confidence == "unknown") == (verdict.cause == "unknown")
    assert verdict.restart_helps in (True, False, None)
    assert verdict.action in ("start", "restart", "none", "open")
    assert (verdict.action in ("start", "restart")) == (verdict.restart_helps is True)
    assert (verdict.action == "open") == (verdict.restart_helps is None)
    assert verdict.contributing == sorted(set(verdict.contributing), key=IDS.index)
    assert not {verdict.cause, "healthy"} & set(verdict.contributing)
    assert verdict.cause == "unknown" or not verdict.fits
    if verdict.confidence == "decided":  # what is open then is no reason why a login fails
        told = [answer.text.rpartition("it would decide ")[2].split(", ") for answer in verdict.unread]
        assert {cause for causes in told for cause in causes} <= BLEMISHES
    assert verdict.next or verdict.cause == "healthy"
    for text in (verdict.title, verdict.why_action, *verdict.next):
        assert isinstance(text, str)
        assert text
    for answer in (*verdict.why, *verdict.unread):
        assert isinstance(answer.text, str)
    assert all(answer.value is True for answer in verdict.why)
    assert all(answer.value is None for answer in verdict.unread)
    assert verdict.holds_seconds is None or 0 <= verdict.holds_seconds < math.inf


def check_report(host: Json, database: Any, verdict: Verdict) -> None:
    """A verdict over a valid document makes a valid report, and it can be shown."""
    database = database if isinstance(database, dict) else None
    report = build(host, database, verdict, actions=[], proof=None, evidence=[], seconds=1.0)
    validate(report)
    json.loads(json.dumps(report, allow_nan=False))
    assert max(map(len, screen(report, "reports/latest").splitlines())) <= 100
    assert ticket(report).startswith("## ")


VALIDATORS = {
    f"runbook/{name}/1": Draft202012Validator(schema(name)) for name in ("host-evidence", "database-evidence")
}


def is_valid(document: Json) -> bool:
    """As `validate` has it, a hundred times faster."""
    kind = document.get("schema")
    return isinstance(kind, str) and kind in VALIDATORS and VALIDATORS[kind].is_valid(document)


# -- any document --------------------------------------------------------------------------------------------


@many
@given(host=anything, database=anything)
def test_any_json_value_gives_a_verdict(host: Any, database: Any) -> None:
    check(judge(host, database))


@many
@given(incident=incidents, views=st.dictionaries(st.sampled_from(VIEWS), anything, min_size=1, max_size=4))
def test_a_view_of_any_shape_gives_a_verdict(incident: Incident, views: Json) -> None:
    for name, data in views.items():
        (incident.host if name in HOST_VIEWS else incident.database)["views"][name]["data"] = data
    check(judge(*incident))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into a document."""
    if path:
        yield path
    items: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in items:
        yield from places(inner, (*path, key))


def parent_of(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document


@many
@given(incident=incidents, data=st.data())
def test_a_truncated_document_gives_a_verdict(incident: Incident, data: st.DataObject) -> None:
    for document in incident:
        for _ in range(data.draw(st.integers(0, 6))):
            path = data.draw(st.sampled_from(list(places(document))))
            del parent_of(document, path)[path[-1]]
    verdict = judge(*incident)
    check(verdict)
    if is_valid(incident.host):
        check_report(incident.host, incident.database, verdict)


@many
@given(incident=incidents, data=st.data())
def test_a_hostile_document_gives_a_verdict(incident: Incident, data: st.DataObject) -> None:
    for document in incident:
        for _ in range(data.draw(st.integers(1, 6))):
            path = data.draw(st.sampled_from(list(places(document))))
            parent_of(document, path)[path[-1]] = data.draw(anything)
    verdict = judge(*incident)
    check(verdict)
    if is_valid(incident.host):
        check_report(incident.host, incident.database, verdict)


def like(value: Any) -> st.SearchStrategy[Any]:
    """Another value that the same place of a schema accepts, most of the time."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.integers(0, 3) | st.integers(0, 10**6) | st.integers(10**14, 10**30)
    if isinstance(value, float):
        return st.floats(0, 1e20, allow_nan=False)
    if isinstance(value, str) and re.fullmatch(r"\d{4}-.*Z", value):
        return st.sampled_from(
            [NOW, "2026-11-22T00:00:00Z", "0001-01-01T00:00:00.1Z", "9999-12-31T23:59:59Z"]
        )
    return words if isinstance(value, str) else st.just(value)


@many
@given(incident=incidents, other=incidents, data=st.data())
def test_a_valid_but_contradictory_document_gives_a_valid_report(
    incident: Incident, other: Incident, data: st.DataObject
) -> None:
    """Views of two incidents mixed, and any value replaced by another of its kind."""
    mixed = incident.copy()
    for index, document in enumerate(mixed):
        for name in data.draw(st.sets(st.sampled_from(sorted(document["views"])))):
            document["views"][name] = copy.deepcopy(other[index]["views"][name])
        for _ in range(data.draw(st.integers(0, 8))):
            path = data.draw(st.sampled_from(list(places(document["views"]))))
            where = parent_of(document["views"], path)
            before = where[path[-1]]
            where[path[-1]] = data.draw(like(before))
            if not is_valid(document):
                where[path[-1]] = before
    verdict = judge(*mixed)
    check(verdict)
    assert is_valid(mixed.host)
    check_report(mixed.host, mixed.database, verdict)


@pytest.mark.parametrize("status", ODD)
def test_a_status_that_is_no_number(status: str) -> None:
    incident = TABLE["login_broken"][0]()
    for one in incident.data("login")["rounds"]:
        one["by_status"] = {status: 8}
    check(judge(*incident))


@pytest.mark.parametrize("value", ODD)
def test_a_maximum_that_is_no_number(value: str) -> None:
    incident = TABLE["slot_leak"][0]()
    incident.data("config")["settings"]["POSTGRES_POOL_MAX_CONNECTIONS"]["value"] = value
    check(judge(*incident))


# -- nothing is hidden by what is missing ----------------------------------------------------------------------


def without(incident: Incident, names: tuple[str, ...], how: str) -> Incident:
    changed = unread(incident, *names)
    for name in names:
        views = (changed.host if name in HOST_VIEWS else changed.database)["views"]
        if how == "absent":
            del views[name]
        elif how == "late":
            views[name] = {**view(None, "no answer within 3 s"), "state": "timeout"}
    return changed


def check_not_green(incident: Incident, full: Verdict) -> None:
    verdict = judge(*incident)
    check(verdict)
    assert verdict.cause != "healthy"
    if full.action == "none" and verdict.action in ("start", "restart"):
        raise AssertionError(f"what is missing made {full.cause} (leave it) into {verdict.cause} (restart)")


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("how", ["unknown", "late", "absent"])
def test_one_missing_view_never_makes_a_failure_green(name: str, how: str) -> None:
    incident = TABLE[name][0]()
    for lost in VIEWS:
        check_not_green(without(incident, (lost,), how), judge(*incident))


@pytest.mark.parametrize("name", FAILING)
def test_two_missing_views_never_make_a_failure_green(name: str) -> None:
    incident = TABLE[name][0]()
    full = judge(*incident)
    for lost in itertools.combinations(VIEWS, 2):
        check_not_green(without(incident, lost, "absent"), full)


@many
@given(name=st.sampled_from(FAILING), lost=st.sets(st.sampled_from(VIEWS)))
def test_any_missing_views_never_make_a_failure_green(name: str, lost: set[str]) -> None:
    incident = TABLE[name][0]()
    check_not_green(without(incident, tuple(sorted(lost)), "unknown"), judge(*incident))


@pytest.mark.parametrize("name", FAILING)
def test_a_missing_database_never_makes_a_failure_green(name: str) -> None:
    incident = TABLE[name][0]()
    check_not_green(Incident(incident.host, {}), judge(*incident))


@pytest.mark.parametrize("name", FAILING)
def test_a_missing_view_never_makes_the_report_green(name: str) -> None:
    for lost in VIEWS:
        host, database = without(TABLE[name][0](), (lost,), "unknown")
        verdict = judge(host, database)
        report = build(host, database, verdict, actions=[], proof=None, evidence=[], seconds=1.0)
        assert report["outcome"] != "healthy"


@many
@given(data=st.data())
def test_what_is_cut_out_of_a_healthy_document_never_asks_for_a_restart(data: st.DataObject) -> None:
    incident = TABLE["healthy"][0]()
    for document in incident:
        for _ in range(data.draw(st.integers(0, 4))):
            path = data.draw(st.sampled_from(list(places(document))))
            del parent_of(document, path)[path[-1]]
    verdict = judge(*incident)
    assert verdict.action not in ("start", "restart"), verdict.cause


# -- names mean nothing --------------------------------------------------------------------------------------

SECRET_HINTS = sorted({*IDS, *FAULTS, "lab", "odras"}, key=len, reverse=True)
HINT = re.compile("|".join(map(re.escape, SECRET_HINTS)))


def vocabulary() -> set[str]:
    """The words that the format itself has: field names, what a schema enumerates, patterns of the log."""
    found = {*PATTERNS, "POSTGRES_POOL_MAX_CONNECTIONS"}

    def gather(value: Any) -> None:
        if isinstance(value, dict):
            found.update(value)
            found.update(text for text in value.get("enum", ()) if isinstance(text, str))
            for inner in value.values():
                gather(inner)
        elif isinstance(value, list):
            for inner in value:
                gather(inner)

    for path in SCHEMAS.glob("*.json"):
        gather(json.loads(path.read_text()))
    return found


VOCABULARY = vocabulary()


def renamed(value: Any, noise: dict[str, str]) -> Any:
    if isinstance(value, str):
        return HINT.sub(lambda match: noise[match.group()], value)
    if isinstance(value, dict):
        return {
            key if key in VOCABULARY else renamed(key, noise): renamed(inner, noise)
            for key, inner in value.items()
        }
    return [renamed(inner, noise) for inner in value] if isinstance(value, list) else value


def decided(verdict: Verdict) -> tuple[Any, ...]:
    """All of a verdict but the names that its texts repeat."""
    return (
        *(verdict.cause, verdict.confidence, verdict.restart_helps, verdict.action),
        *(tuple(verdict.contributing), verdict.holds_seconds),
        *(tuple(answer.view for answer in verdict.why), [cause for cause, _ in verdict.why_not]),
        *([cause for cause, _ in verdict.fits], [answer.view for answer in verdict.unread]),
    )


noise_words = st.text("bcdfghjkmnpqrtvwxyz", min_size=3, max_size=12)


@pytest.mark.parametrize("name", TABLE)
def test_the_evidence_of_these_tests_is_full_of_such_names(name: str) -> None:
    told = json.dumps(TABLE[name][0]())
    assert all(word in told for word in ("odras", "lab", *FAULTS))


@pytest.mark.parametrize("name", TABLE)
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_noise_in_place_of_every_name_changes_no_verdict(name: str, data: st.DataObject) -> None:
    spoken = data.draw(
        st.lists(noise_words, min_size=len(SECRET_HINTS), max_size=len(SECRET_HINTS), unique=True)
    )
    noise = dict(zip(SECRET_HINTS, spoken))
    incident = TABLE[name][0]()
    told = [renamed(document, noise) for document in incident]
    assert not any(hint in json.dumps(told[0]["views"]["log"]["data"]["path"]) for hint in SECRET_HINTS)
    assert decided(judge(*told)) == decided(judge(*incident))


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("planted", FAULTS)
def test_a_name_planted_everywhere_changes_no_verdict(name: str, planted: str) -> None:
    incident = TABLE[name][0]()
    told = [renamed(document, dict.fromkeys(SECRET_HINTS, planted)) for document in incident]
    assert decided(judge(*told)) == decided(judge(*incident))


# -- the same evidence, the same verdict -----------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_the_same_evidence_gives_the_same_verdict(name: str) -> None:
    incident = TABLE[name][0]()
    before = json.dumps(incident, sort_keys=True)
    first = judge(*incident)
    assert judge(*incident) == first
    assert judge(*(json.loads(json.dumps(document)) for document in incident)) == first
    assert json.dumps(incident, sort_keys=True) == before, "the judge changed its evidence"


@many
@given(incident=incidents, seed=st.integers(0, 2**32))
def test_the_order_of_fields_changes_no_verdict(incident: Incident, seed: int) -> None:
    random = Random(seed)

    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shuffled(value[key]) for key in random.sample(list(value), len(value))}
        return [shuffled(inner) for inner in value] if isinstance(value, list) else value

    assert judge(*(shuffled(document) for document in incident)) == judge(*incident)


@many
@given(incident=incidents, seed=st.integers(0, 2**32))
def test_the_order_of_rows_changes_no_cause(incident: Incident, seed: int) -> None:
    random, before = Random(seed), decided(judge(*incident))
    sockets = incident.data("sockets")
    lists = [sockets[key] for key in ("last_words", "options", "shared")]
    lists += [sample["sockets"] for sample in sockets["samples"]]
    lists.append(incident.data("process")["processes"])
    if incident.database["views"]["activity"]["data"]:
        lists.append(incident.data("activity")["sessions"])
    for rows in lists:
        random.shuffle(rows)
    assert decided(judge(*incident)) == before


def test_the_facts_of_a_document_never_change_it() -> None:
    incident = TABLE["lock_contention"][0]()
    before = copy.deepcopy(incident)
    facts = Facts(*incident)
    for name in dir(facts):
        getattr(facts, name)
    assert incident == before

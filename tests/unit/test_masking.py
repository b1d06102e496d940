"""Masking: planted secrets in every shape that a log, a header, a query or a settings file gives them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runbook.common.documents import validate
from runbook.common.masking import MASK, Masker, transform
from runbook.evidence.log import summarize
from runbook.verdict.judge import judge
from tests.unit.incidents import TABLE

CANARY = "Zq7xVerySecret"
ROOT = Path(__file__).parents[2]
many = settings(deadline=None, max_examples=200)

# What a secret looks like when nobody knows its value: the shape alone must give it away.
SHAPES = {
    "slashes": f"redis://u://54/{CANARY}@cache:6379/0",
    "dsn": f"connect to postgresql://odras_app:{CANARY}@db-1:5432/odras failed",
    "dsn without a user": f"redis://:{CANARY}@cache:6379/0",
    "dsn of a driver": f"postgresql+psycopg2://odras_app:{CANARY}@db-1/odras",
    "dsn with an at sign in the secret": f"postgresql://u:a@{CANARY}@db-1/odras",
    "dsn with a slash in the secret": f"postgresql://u:a/{CANARY}@db-1/odras",
    "dsn with the secret as an option": f"postgresql://db-1/odras?user=u&password={CANARY}&sslmode=require",
    "dsn in capitals": f"POSTGRESQL://u:{CANARY}@db-1/odras",
    "dsn of words": f"host=db-1 user=u password={CANARY} dbname=odras",
    "dsn of words, quoted": f"host=db-1 password='{CANARY} and \\' more {CANARY}' dbname=odras",
    "key=value": f"login with username=das_service&password={CANARY}&grant=1",
    "key = value": f"password = {CANARY}",
    "json": json.dumps({"username": "u", "password": CANARY}),
    "json, quotes in the secret": json.dumps({"password": f'a"{CANARY}"b'}),
    "json in json": json.dumps({"body": json.dumps({"password": CANARY})}),
    "json, cut off": f'{{"username": "u", "password": "{CANARY}',
    "json token": json.dumps({"access_token": CANARY, "token_type": "bearer"}),
    "python": repr({"password": CANARY}),
    "python bytes": repr(json.dumps({"password": CANARY}).encode()),
    "yaml": f"database:\n  password: {CANARY}\n  port: 5432",
    "yaml, quoted": f'db_password: "{CANARY} x"',
    "bearer": f"Authorization: Bearer {CANARY}",
    "bearer in a command": f"curl -H 'Authorization: Bearer {CANARY}' http://127.0.0.1",
    "bearer in json": json.dumps({"authorization": f"Bearer {CANARY}"}),
    "bearer in a list": json.dumps({"authorization": [f"Bearer {CANARY}"]}),
    "bearer alone": f"got bearer {CANARY} from the client",
    "bearer of asgi": f"headers: [(b'host', b'x'), (b'authorization', b'Bearer {CANARY}')]",
    "basic": f"authorization: Basic {CANARY}==",
    "basic of a proxy": f"Proxy-Authorization: Basic {CANARY}==",
    "basic of asgi": f"headers: [(b'host', b'x'), (b'authorization', b'Basic {CANARY}==')]",
    "another scheme": f"Authorization: ApiKey {CANARY}",
    "cookie": f"Cookie: theme=dark; session={CANARY}",
    "set-cookie": f"set-cookie: session={CANARY}; Path=/; HttpOnly",
    "cookie in json": json.dumps({"Cookie": f"session={CANARY}"}),
    "cookie of asgi": f"headers: [(b'host', b'x'), (b'cookie', b'session={CANARY}')]",
    "json web token": f"token is eyJhbGciOiJI.eyJzdWIi{CANARY}.{CANARY} of das_service",
    "api key": f"X-Api-Key: {CANARY}",
    "auth token": f"X-Auth-Token: {CANARY}",
    "environment": f"POSTGRES_PASSWORD={CANARY}",
    "environment, libpq's": f"PGPASSWORD={CANARY} psql -h db-1",
    "environment, exported": f"export POSTGRES_PASSWORD='{CANARY} {CANARY}'",
    "environment, short": f"DB_PASS={CANARY}",
    "environment, shorter": f"DB_PWD={CANARY}",
    "environment, django's": f"SECRET_KEY={CANARY}",
    "environment, a cloud's": f"AWS_SECRET_ACCESS_KEY={CANARY}",
    "option with =": f"app --db-password={CANARY} --port 8000",
    "option": f"app --db-password {CANARY} --port 8000",
    "alter role": f"STATEMENT:  ALTER ROLE odras_app PASSWORD '{CANARY}'",
    "alter role, E''": f"STATEMENT:  ALTER ROLE odras_app PASSWORD E'{CANARY}'",
    "alter role, $$": f"STATEMENT:  ALTER ROLE odras_app ENCRYPTED PASSWORD $${CANARY}$$",
}

# What only looks like one, and without which the evidence would be worth less.
HARMLESS = [
    'FATAL:  password authentication failed for user "odras_app"',
    'relation "auth_tokens" does not exist',
    "High connection pool usage: 18/20 connections",
    "terminating connection due to administrator command",
    "http://127.0.0.1:8000/api/auth/login answers 404",
    "postgresql://odras_app@db-1:5432/odras",
    "10.0.4.17:40011 -> 10.0.4.9:5432 ESTAB",
    "a new connection to db-1:5432 took 4 ms",
    "2026-11-23 03:41:07,120 INFO backend.services.db pool status 2/20",
    "backend/services/token.py:58",
    'File "/srv/odras/backend/services/token.py", line 58, in refresh_token',
]

SQL = {
    "string": f"SELECT * FROM users WHERE name = '{CANARY}'",
    "string with a quote": f"SELECT 'it''s {CANARY}', 'x''{CANARY}'",
    "string that ends in a backslash": rf"SELECT 'C:\', password FROM t WHERE secret = '{CANARY}'",
    "E string": rf"SELECT E'it\'s {CANARY}' || E'\\', '{CANARY}'",
    "bits": f"SELECT B'01', X'ff', N'{CANARY}', U&'{CANARY}'",
    "dollars": f"SELECT $${CANARY}$$, $a$ $$ {CANARY} $$ $a$, $1",
    "comment": f"SELECT 1 -- {CANARY}\n, 2 /* {CANARY}\n */ + 3",
    "comment in a comment": f"SELECT 1 /* a /* b */ {CANARY} */ + 2",
    "quoted name": f"SELECT \"it's\" FROM t WHERE x = '{CANARY}'",
    "continued": f"SELECT 'a'\n'{CANARY}'",
    "cut in a string": f"UPDATE users SET hash = '{CANARY}",
    "cut in an E string": f"UPDATE users SET hash = E'{CANARY}\\",
    "cut in dollars": f"DO $$ BEGIN PERFORM '{CANARY}",
    "cut in a comment": f"SELECT 1 /* {CANARY}",
}


# -- shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_a_secret_that_nobody_knew_is_known_by_its_shape(shape: str) -> None:
    """Alone, and in the middle of a log."""
    line = f"2026-11-23 03:41:07 ERROR {SHAPES[shape]}"
    for text in (SHAPES[shape], f"INFO: started\n{line}\n" * 3 + "INFO: the end of the log"):
        masker = Masker()
        masked = masker.text(text)
        assert CANARY not in masked
        assert MASK in masked
        assert masker.count >= 1
        assert masker.text(masked) == masked, "masked twice is not the same"
    assert masked.startswith("INFO: started")
    assert masked.endswith("INFO: the end of the log")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    masker = Masker()
    assert masker.text(text) == text
    assert masker.count == 0


# -- queries -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", SQL)
def test_a_query_keeps_no_literal(form: str) -> None:
    masker = Masker()
    masked = masker.sql(SQL[form])
    assert CANARY not in masked
    assert masker.count >= 1
    assert masker.sql(masked) == masked, "masked twice is not the same"


def test_a_query_keeps_names_and_parameters() -> None:
    query = "SELECT u.id, \"Name\", f($1, $2) FROM public.users u WHERE a_1$x = 4 AND b > 2.5e-3 AND c = 'x'"
    masker = Masker()
    assert masker.sql(query) == (
        'SELECT u.id, "Name", f($1, $2) FROM public.users u WHERE a_1$x = ? AND b > ? AND c = ?'
    )
    assert masker.count == 3


@pytest.mark.parametrize("number", ["42", "123.456", "1e9", "0xDEADBEEF", "123_456_789", "0o17", "0b11"])
def test_a_query_keeps_no_part_of_a_number(number: str) -> None:
    assert (
        Masker().sql(f"SELECT * FROM t WHERE ssn = {number} AND x") == "SELECT * FROM t WHERE ssn = ? AND x"
    )


def test_a_known_secret_in_a_query_is_masked_even_as_a_name() -> None:
    assert CANARY not in Masker([CANARY]).sql(f'SELECT "{CANARY}" FROM {CANARY}')


# -- literals ----------------------------------------------------------------------------------------------

AWKWARD = [
    *(CANARY, "a b c d", "p@ss/w:rd?x=1&y#z", "50%off+free", "it's", 'say "hi"', "back\\slash"),
    *(r"a.*+?^$()[]{}|\b", "[a-z]+", "(((((", "\\", "\\\\\\\\", "pässwörd", "密码密码密码", '"both\\"'),
    *("%2F%2f", "a\tb\tc", "***x", "tab\\tnot", "${HOME}", "{{ vault }}", "line\nbreak"),
]


@pytest.mark.parametrize("secret", AWKWARD)
def test_a_known_secret_is_masked_wherever_it_stands(secret: str) -> None:
    forms = {
        "plain": secret,
        "URL-encoded": quote(secret, safe=""),
        "URL-encoded path": quote(secret),
        "form-encoded": quote_plus(secret),
        "JSON": json.dumps(secret, ensure_ascii=False)[1:-1],
        "JSON in ASCII": json.dumps(secret)[1:-1],
        "Python": repr(secret)[1:-1],
    }
    if len(secret) < 4:  # too short to be replaced everywhere without ruining the rest
        return
    for name, form in forms.items():
        masker = Masker([secret])
        masked = masker.text(f"before <{form}> and <{form}> after")
        assert masked == f"before <{MASK}> and <{MASK}> after", name
        assert masker.count == 2, name


def test_a_secret_within_a_secret_leaves_no_rest() -> None:
    for secrets in (["hunter2", "hunter2hunter2", "xhunter2"], ["xhunter2", "hunter2", "hunter2hunter2"]):
        masked = Masker(secrets).text("hunter2 xhunter2 hunter2hunter2 <hunter2hunter2hunter2>")
        assert set(masked) <= set("* <>")


def test_a_secret_added_later_counts_too() -> None:
    masker = Masker()
    masker.add(None)
    masker.add("")
    masker.add(CANARY)
    masker.add(CANARY)
    assert masker.text(f"{CANARY}{CANARY}") == MASK * 2
    assert masker.count == 2


def test_a_very_short_secret_does_not_ruin_the_evidence() -> None:
    masker = Masker(["app", "5", "db"])
    assert masker.text("app on db-1:5432") == "app on db-1:5432"
    assert "app" not in masker.text("password=app")


@pytest.mark.parametrize("inside", range(1, len(CANARY) + 1))
def test_a_secret_is_masked_before_a_line_is_cut(inside: int) -> None:
    """A sample of the log keeps 300 characters; what is left of a secret at the cut has no shape and no match."""
    start = "Login error: could not connect with postgresql://odras_app:"
    line = (
        start.replace(" with", " with" + " x" * 200)[: 300 - inside - 40]
        + start[-40:]
        + CANARY
        + "@db-1/odras"
    )
    assert line.index(CANARY) == 300 - inside
    told = json.dumps(Masker([CANARY]).document(summarize([line], None)))
    assert CANARY[: max(4, inside)] not in told


# -- documents ---------------------------------------------------------------------------------------------


def test_every_string_of_a_document_is_masked_and_counted() -> None:
    masker = Masker([CANARY])
    masked = masker.document({"a": [CANARY, {"b": f"x{CANARY}y"}, 1, None, True, 2.5], CANARY: "password=x1"})
    assert CANARY not in json.dumps(masked)
    assert masked["a"][2:] == [1, None, True, 2.5]
    assert masker.count == 4


def test_a_document_is_copied() -> None:
    document = {"a": [CANARY]}
    Masker([CANARY]).document(document)
    assert document == {"a": [CANARY]}


COMMON_PASSWORDS = [
    "password",
    "postgres",
    "secret",
    "login",
    "state",
    "database",
    "timeout",
    "system",
    "odras",
]


@pytest.mark.parametrize("secret", COMMON_PASSWORDS)
@pytest.mark.parametrize("name", ["sessions_terminated", "connection_leak"])
def test_a_secret_that_is_an_ordinary_word_leaves_the_document_valid(secret: str, name: str) -> None:
    """The field `has_password`, the state `timeout`: the format's own words are nobody's secret."""
    for document in TABLE[name][0]():
        masker = Masker([secret])
        views = {view: masker.document(one) for view, one in document["views"].items()}
        validate({**document, "views": views, "masked": masker.count})


@pytest.mark.parametrize("secret", ["odras_app", "odras"])
@pytest.mark.parametrize("name", ["lock_contention", "slot_leak"])
def test_a_secret_that_is_the_name_of_the_role_changes_no_verdict(secret: str, name: str) -> None:
    """Role odras_app with password odras_app, and the database read by the diagnosis's own role."""
    incident = TABLE[name][0]()
    masker = Masker([secret])
    host: dict[str, Any] = {
        **incident.host,
        "views": {view: masker.document(one) for view, one in incident.host["views"].items()},
    }
    told, plain = judge(host, incident.database), judge(*incident)
    assert (told.cause, told.confidence, told.action) == (plain.cause, plain.confidence, plain.action)
    assert [answer.value for answer in told.why] == [answer.value for answer in plain.why]
    count = [answer.text for answer in plain.why if answer.view == "activity"]
    assert [answer.text for answer in told.why if answer.view == "activity"] == count


# -- any text at all ---------------------------------------------------------------------------------------

pieces = st.sampled_from(
    [
        *SHAPES.values(),
        *SQL.values(),
        *(
            "password",
            "=",
            ": ",
            '"',
            "'",
            "\\",
            "://",
            "@",
            "Bearer ",
            "Authorization: ",
            "token",
            "***",
            "$$",
        ),
        *("\n", " ", ",", ";", "--", "/*", "*/", "E'", CANARY, "cookie:", "eyJabcde.abcde.", "\0", "é"),
    ]
)
texts = st.lists(pieces | st.text(max_size=6), max_size=12).map("".join)


@many
@given(text=texts, secrets=st.lists(st.text(min_size=1, max_size=8), max_size=3))
@example(text="://://redis://:Zq7xVerySecret@cache:6379/0", secrets=[])
def test_masking_twice_is_masking_once(text: str, secrets: list[str]) -> None:
    masker = Masker(secrets)
    once = masker.text(text)
    assert masker.text(once) == once


@many
@given(text=texts)
def test_any_query_is_masked_without_an_error(text: str) -> None:
    masker = Masker([CANARY])
    assert CANARY not in masker.sql(text)


@many
@given(before=texts, after=texts)
def test_a_known_secret_never_survives(before: str, after: str) -> None:
    masked = Masker([CANARY]).text(before + CANARY + after)
    assert CANARY not in masked


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@many
@given(value=documents)
def test_any_document_is_masked_without_an_error(value: Any) -> None:
    masked = Masker([CANARY]).document(value)
    told: list[str] = []
    transform(masked, lambda text: told.append(text) or text)
    assert not any(CANARY in text for text in told)


# -- time --------------------------------------------------------------------------------------------------

HOSTILE = {
    "letters": "a" * 1_000_000,
    "dotted letters": "a." * 500_000,
    "dashed letters": "a-" * 500_000,
    "a word of the net": "password" * 125_000,
    "assignments": "password=" * 110_000,
    "open quotes": "password='" * 100_000,
    "backslashes": "password='" + "\\" * 1_000_000,
    "schemes": "a://" * 250_000,
    "users": "a://b:" * 160_000,
    "user and colons": "a://b" + ":c" * 500_000,
    "at signs": "postgres://u:" + "@" * 1_000_000,
    "authorization": "authorization: bearer " * 45_000,
    "spaces after a key": "password" + " " * 1_000_000,
    "bearer and spaces": "bearer" + " " * 1_000_000,
    "headers and spaces": ("authorization:" + " " * 1000) * 1000,
    "web tokens": "eyJabcdef." * 100_000,
    "quotes": "'" * 999_999,
    "double quotes": '"' * 999_999,
    "dollars": "$a" * 500_000,
    "dollar quotes": "$a$b" * 250_000,
    "comments": "/*" * 500_000,
    "stars": "/*" + "*" * 1_000_000,
    "dashes": "-" * 1_000_000,
    "digits": "1" * 1_000_000,
    "digits and dots": "1.e" * 330_000,
    "E strings": "E'\\" * 330_000,
    "alter role": "password '" * 100_000,
    "alter role, spaces": "password" + " " * 500_000 + "password" + " " * 500_000,
}
PROGRAM = """
import json, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
sys.path.insert(0, sys.argv[2])
from runbook.common.masking import Masker
masker = Masker(["hunter2-and-more"])
text = json.load(sys.stdin)
masker.text(text)
masker.sql(text)
"""


@pytest.mark.parametrize("line", HOSTILE)
def test_a_hostile_line_of_a_megabyte_is_masked_in_seconds(line: str) -> None:
    """In a process of its own with a limit of processor time: a regex that runs away cannot be interrupted."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "5", str(ROOT)],
        input=json.dumps(HOSTILE[line]),
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-300:] or f"ended by signal {-done.returncode}: more than 5 s"

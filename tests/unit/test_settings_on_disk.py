"""The app's settings: every form of an environment file and of a DSN, and no secret in what leaves the target."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook.common.documents import validate
from runbook.common.masking import Masker
from runbook.evidence.settings import Settings, collect, database_of, parse
from tests.unit.incidents import healthy

SECRET = "Zq7x/Very@Secret"
NAMES = {
    "POSTGRES_HOST": "db-1",
    "POSTGRES_PORT": "6432",
    "POSTGRES_DATABASE": "odras",
    "POSTGRES_USER": "odras_app",
    "POSTGRES_PASSWORD": SECRET,
}
WANTED = {"host": "db-1", "port": 6432, "name": "odras", "user": "odras_app", "sslmode": "prefer"}


def values(text: str) -> dict[str, str]:
    return {name: entry["value"] for name, entry in parse(text, "/etc/app.env").items()}


def on_disk(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "app.env"
    file.write_text(text, encoding="utf-8")
    return collect(str(file), {}, [])


@contextmanager
def running(environment: dict[str, str], directory: Path) -> Iterator[list[dict[str, Any]]]:
    """A process with this environment, as view `process` describes it."""
    process = subprocess.Popen(["sleep", "60"], env={"PATH": "/usr/bin:/bin", **environment}, cwd=directory)
    try:
        seen, deadline = Path(f"/proc/{process.pid}/environ"), time.monotonic() + 5
        while not seen.read_bytes() and time.monotonic() < deadline:
            time.sleep(
                0.001
            )  # Popen returns when exec began; the kernel shows the environment a moment later
        yield [{"pid": process.pid, "directory": str(directory)}]
    finally:
        process.kill()
        process.wait()


def told(found: Settings) -> str:
    """All that leaves the target, before masking; it must fit the schema."""
    host = healthy().host
    host["views"]["config"]["data"] = found.data()
    validate(host)
    return json.dumps(found.data())


# -- the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("KEY=value", "value"),
        ("  KEY = value  ", "value"),
        ("export KEY=value", "value"),
        ("KEY='single quoted'", "single quoted"),
        ('KEY="double quoted"', "double quoted"),
        ('KEY="an \\"inner\\" quote"', 'an "inner" quote'),
        ("KEY='it'\"'\"'s'", "it's"),
        ("KEY=", ""),
        ("KEY=''", ""),
        ("KEY=a=b=c", "a=b=c"),
        ("KEY=pa$$word`x`", "pa$$word`x`"),
        ("KEY=#no-comment", "#no-comment"),
        ("KEY=with#hash", "with#hash"),
        ("KEY='unclosed", "'unclosed"),
        ("KEY=value\r", "value"),
        ('KEY="quoted" # and a comment', "quoted"),
        ("KEY='quoted' # and a comment", "quoted"),
    ],
)
def test_every_form_of_an_assignment(line: str, value: str) -> None:
    assert values(line) == {"KEY": value}


@pytest.mark.parametrize(
    "line", ["", "# KEY=value", "KEY", "=value", "not a name=value", "[section]", "1KEY=x"]
)
def test_what_is_no_assignment_is_passed_over(line: str) -> None:
    assert values(line) == {}


def test_an_entry_says_where_it_stands_and_the_last_one_counts() -> None:
    entries = parse("# first\nA=1\n\nB=2\nA=3\n", "/etc/app.env")
    assert entries == {
        "A": {"value": "3", "where": "/etc/app.env:5"},
        "B": {"value": "2", "where": "/etc/app.env:4"},
    }


@settings(deadline=None, max_examples=200)
@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from(["A", "=", "'", '"', "\\", " ", "\n", "#", "x"])).map("".join)
)
def test_any_file_is_read_without_an_error(text: str) -> None:
    assert all(set(entry) == {"value", "where"} for entry in parse(text, "f").values())


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "no.env"
    found = collect(str(missing), {}, [])
    assert found.file is None
    assert found.reason == f"{missing}: No such file or directory"
    binary = tmp_path / "binary.env"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in collect(str(binary), {}, []).reason


def test_without_any_file_the_variable_to_set_is_named() -> None:
    assert "diagnose_environment_file" in collect(None, {}, []).reason


def test_a_file_without_a_database_says_so(tmp_path: Path) -> None:
    """Else the report says `the app's database is not known: ` and nothing after the colon."""
    found = on_disk(tmp_path, "LOG_LEVEL=debug\n")
    assert found.database is None
    assert found.reason
    assert str(tmp_path / "app.env") in found.reason


def test_the_units_file_and_the_apps_own_are_found_by_themselves(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PGHOST=db-1\nPGDATABASE=odras\n")
    found = collect(None, {}, [{"pid": 0, "directory": str(tmp_path)}])
    assert (found.file, (found.database or {}).get("host")) == (str(tmp_path / ".env"), "db-1")
    unit_file = tmp_path / "unit.env"
    unit_file.write_text("PGHOST=db-2\nPGDATABASE=odras\n")
    unit = {"EnvironmentFiles": f"{unit_file} (ignore_errors=no)"}
    found = collect(None, unit, [{"pid": 0, "directory": str(tmp_path)}])
    assert (found.file, (found.database or {}).get("host")) == (str(unit_file), "db-2")


# -- the database ------------------------------------------------------------------------------------------


def test_single_names() -> None:
    assert database_of(NAMES) == (WANTED, SECRET)


@pytest.mark.parametrize(
    "names",
    [
        {"PGHOST": "h", "PGPORT": "1", "PGDATABASE": "d", "PGUSER": "u", "PGPASSWORD": "p"},
        {"DB_HOST": "h", "DB_PORT": "1", "DB_NAME": "d", "DB_USER": "u", "DB_PASSWORD": "p"},
        {"DB_HOST": "h", "DB_PORT": "1", "DB_NAME": "d", "DB_USER": "u", "DB_PASS": "p"},
        {"POSTGRES_SERVER": "h", "POSTGRES_PORT": "1", "POSTGRES_DB": "d", "POSTGRES_USER": "u"}
        | {"POSTGRES_PASSWORD": "p"},
        {"DATABASE_HOST": "h", "DATABASE_PORT": "1", "DATABASE_NAME": "d", "DATABASE_USER": "u"}
        | {"DATABASE_PASSWORD": "p"},
    ],
)
def test_the_usual_families_of_names(names: dict[str, str]) -> None:
    wanted = {"host": "h", "port": 1, "name": "d", "user": "u", "sslmode": "prefer"}
    assert database_of(names) == (wanted, "p")


def test_the_files_of_tls_are_libpqs() -> None:
    names = {"PGHOST": "h", "PGSSLROOTCERT": "/r", "PGSSLCERT": "/c", "PGSSLKEY": "/k"}
    database, _ = database_of(names)
    assert database
    assert {key: value for key, value in database.items() if key.startswith("ssl")} == {
        "sslmode": "prefer",
        "sslrootcert": "/r",
        "sslcert": "/c",
        "sslkey": "/k",
    }


@pytest.mark.parametrize(
    ("dsn", "changed"),
    [
        (f"postgresql://odras_app:{quote(SECRET, safe='')}@db-1:6432/odras", {}),
        (f"postgres://odras_app:{quote(SECRET, safe='')}@db-1:6432/odras", {}),
        (f"postgresql+psycopg2://odras_app:{quote(SECRET, safe='')}@db-1:6432/odras", {}),
        (
            f"postgresql+asyncpg://odras_app:{quote(SECRET, safe='')}@db-1:6432/odras?sslmode=require",
            {"sslmode": "require"},
        ),
        (f"postgresql://odras_app:{quote(SECRET, safe='')}@db-1/odras", {"port": 5432}),
        (f"postgresql://odras_app:{quote(SECRET, safe='')}@[::1]:6432/odras", {"host": "::1"}),
        (
            f"postgresql://odras_app:{quote(SECRET, safe='')}@/odras?host=/run/postgresql&port=6432",
            {"host": "/run/postgresql"},
        ),
        (f"host=db-1 port=6432 dbname=odras user=odras_app password={SECRET}", {}),
        (
            f"host=db-1 port=6432 dbname=odras user=odras_app password='{SECRET}' sslmode=require",
            {"sslmode": "require"},
        ),
        (
            f"postgresql://odras_app:{quote(SECRET, safe='')}@db-1:6432/odras?sslmode=verify-full&sslrootcert=/etc/ca.crt",
            {"sslmode": "verify-full", "sslrootcert": "/etc/ca.crt"},
        ),
    ],
)
@pytest.mark.parametrize("name", ["DATABASE_URL", "POSTGRES_DSN"])
def test_every_form_of_a_dsn(name: str, dsn: str, changed: dict[str, Any]) -> None:
    assert database_of({name: dsn}) == ({**WANTED, **changed}, SECRET)


@pytest.mark.parametrize(
    "dsn",
    [
        *(
            "sqlite:///tmp/x.db",
            "mysql://u:p@h/d",
            "not a url",
            "postgresql://h:notaport/d",
            "postgresql://[::1/d",
        ),
        *("postgresql://h:99999/d", ""),
    ],
)
def test_what_is_no_dsn_of_postgresql_is_none(dsn: str) -> None:
    assert database_of({"DATABASE_URL": dsn}) == (None, None)


def test_a_whole_dsn_is_not_mixed_with_the_names_of_another_role() -> None:
    """POSTGRES_USER and POSTGRES_PASSWORD are those of the image of the server; the app has a DSN of its own."""
    names = {
        "DATABASE_URL": "postgresql://odras_app:the-apps@db-1:6432/odras",
        **{"POSTGRES_USER": "postgres", "POSTGRES_PASSWORD": "the-superusers", "POSTGRES_DB": "postgres"},
    }
    assert database_of(names) == (WANTED, "the-apps")


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql+psycopg2://odras_app:{quote(SECRET, safe='')}@db-1:6432/odras",
        f"host=db-1 port=6432 dbname=odras user=odras_app password='{SECRET}'",
    ],
)
def test_a_dsn_is_known_by_its_value_whatever_its_name(dsn: str) -> None:
    names = {"CATALOGUE": dsn, "CATALOGUE_AGAIN": dsn, "MOTTO": "host=you can"}
    assert database_of(names) == (WANTED, SECRET)
    usual = {**names, "DATABASE_URL": "postgresql://u@db-2/x", "CATALOGUE_AGAIN": "postgresql://db-3/y"}
    assert (database_of(usual)[0] or {})["host"] == "db-2"


def test_of_two_databases_without_a_usual_name_none_is_guessed(tmp_path: Path) -> None:
    found = on_disk(tmp_path, "ORDERS=postgresql://u:first@db-1/o\nARCHIVE=postgresql://u:second@db-2/a\n")
    assert found.database is None
    assert found.reason == "ORDERS and ARCHIVE name different databases"
    assert {"first", "second"} <= set(found.secrets)


def test_a_port_that_is_no_number_does_no_harm() -> None:
    for port in ("", "x", "²", "5432 # default"):
        database, _ = database_of({**NAMES, "POSTGRES_PORT": port})
        assert database is not None
        assert database["port"] == 5432


def test_without_a_host_and_a_name_there_is_no_database() -> None:
    assert database_of({"POSTGRES_USER": "u", "POSTGRES_PASSWORD": "p"}) == (None, None)


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(st.sampled_from([*NAMES, "DATABASE_URL", "PGSSLMODE"]), st.text(max_size=30), max_size=6)
)
def test_any_values_give_a_database_or_none(names: dict[str, str]) -> None:
    database, _ = database_of(names)
    assert database is None or set(database) == set(WANTED)


# -- no secret leaves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        f"POSTGRES_PASSWORD={SECRET}",
        f"DATABASE_URL=postgresql://odras_app:{quote(SECRET, safe='')}@db-1/odras",
        f"DATABASE_URL=postgresql://odras_app@db-1/odras?password={quote(SECRET, safe='')}",
        f"POSTGRES_DSN=host=db-1 password={SECRET}",
        f"DB_CONNECTION_STRING=postgresql://odras_app:{SECRET}@db-1/odras",
        f"DATABASE_CONNECTION=host=db-1 password={SECRET}",
        f"SECRET_KEY={SECRET}",
        f"JWT_SECRET={SECRET}",
        f"DB_PASS={SECRET}",
        f"PG_MAX_PASSWORD={SECRET}",
        f"REDIS_URL=redis://:{SECRET}@cache/0",
        f"SENTRY_DSN=https://{SECRET}@sentry/1",
    ],
)
def test_the_data_of_the_view_has_no_secret_in_any_form(line: str, tmp_path: Path) -> None:
    """Of the file and of the running process; before the masker, which is the second net."""
    found = on_disk(tmp_path, f"PGHOST=db-1\nPGDATABASE=odras\n{line}\n")
    for form in (SECRET, quote(SECRET, safe=""), quote(SECRET), SECRET.rpartition("@")[2]):
        assert form not in told(found)
    name, _, value = line.partition("=")
    with running({name: value, "PGHOST": "db-1"}, tmp_path) as processes:
        found = collect(None, {}, processes)
    for form in (SECRET, quote(SECRET, safe="")):
        assert form not in told(found)


@pytest.mark.parametrize("name", ["POSTGRES_PASSWORD", "SECRET_KEY", "API_TOKEN", "DB_PASS", "DB_PWD"])
def test_every_secret_of_file_and_process_is_known_to_the_masker(name: str, tmp_path: Path) -> None:
    """An exception text or a command line may repeat it without the name."""
    with running({name: SECRET}, tmp_path) as processes:
        live = collect(None, {}, processes)
    for found in (on_disk(tmp_path, f"PGHOST=db-1\n{name}={SECRET}\n"), live):
        masker = Masker(found.secrets)
        assert SECRET not in masker.text(f"the app says {SECRET} twice: {quote(SECRET, safe='')}")


def test_the_password_within_a_dsn_is_known_to_the_masker(tmp_path: Path) -> None:
    found = on_disk(tmp_path, f"DATABASE_URL=postgresql://u:{quote(SECRET, safe='')}@db-1/odras\n")
    assert found.password == SECRET
    assert SECRET in found.secrets


# -- the running process -----------------------------------------------------------------------------------


def test_pool_settings_are_told_with_their_place_and_the_differing_ones_named(tmp_path: Path) -> None:
    file = tmp_path / "app.env"
    file.write_text("POSTGRES_POOL_MAX_CONNECTIONS=20\nPOSTGRES_KEEPALIVES_IDLE=30\nPGHOST=db-1\n")
    environment = {"POSTGRES_POOL_MAX_CONNECTIONS": "50", "POSTGRES_KEEPALIVES_IDLE": "30"}
    with running(environment, tmp_path) as processes:
        found = collect(str(file), {}, processes)
    data = found.data()
    assert data["differs"] == ["POSTGRES_POOL_MAX_CONNECTIONS"]
    assert data["settings"]["POSTGRES_POOL_MAX_CONNECTIONS"] == {"value": "20", "where": f"{file}:1"}
    assert data["live"]["POSTGRES_POOL_MAX_CONNECTIONS"]["value"] == "50"
    assert data["live"]["POSTGRES_POOL_MAX_CONNECTIONS"]["where"].startswith("environment of pid ")
    assert "PGHOST" not in data["live"]


@pytest.mark.parametrize("file", [None, "LOG_LEVEL=debug\n"])
def test_what_the_file_does_not_say_the_environment_of_the_process_does(
    file: Optional[str], tmp_path: Path
) -> None:
    """A unit sets POSTGRES_… by Environment=, and its EnvironmentFile= is about something else."""
    if file:
        (tmp_path / ".env").write_text(file)
    with running(NAMES, tmp_path) as processes:
        found = collect(None, {}, processes)
    assert found.database == WANTED
    assert found.password == SECRET
    assert SECRET not in told(found)

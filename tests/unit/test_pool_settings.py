"""The pool's settings: every problem is told at once, with variable, value and what is allowed, and no secret."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook.pool import Settings, SettingsError
from runbook.pool.settings import LONGEST_DIRECTORY, read_environment_file

GOOD = {
    "POSTGRES_HOST": "db.example.org",
    "POSTGRES_DATABASE": "odras",
    "POSTGRES_USER": "odras_app",
    "POSTGRES_PASSWORD": "canary-31c7",
}


def problems(**changes: str | None) -> list[str]:
    environ = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(environ)
    assert "canary-31c7" not in str(caught.value)
    return caught.value.problems


def test_defaults_are_the_guides() -> None:
    settings = Settings.from_environment(GOOD)
    assert (settings.port, settings.min_connections, settings.max_connections) == (5432, 2, 20)
    assert (settings.connection_timeout, settings.connection_lifetime, settings.monitor_interval) == (
        30,
        1800,
        300,
    )
    keepalive = (settings.keepalives, settings.keepalives_idle, settings.keepalives_interval)
    assert (*keepalive, settings.keepalives_count, settings.tcp_user_timeout) == (1, 30, 10, 5, 30_000)
    assert settings.validate_after_idle == 30
    assert settings.runtime_directory is None


def test_every_variable_is_read() -> None:
    settings = Settings.from_environment(
        {
            **GOOD,
            "POSTGRES_PORT": "6432",
            "POSTGRES_POOL_MIN_CONNECTIONS": "1",
            "POSTGRES_POOL_MAX_CONNECTIONS": "7",
            "POSTGRES_POOL_CONNECTION_TIMEOUT": "2.5",
            "POSTGRES_POOL_MAX_WAITING": "40",
            "POSTGRES_POOL_CONNECTION_LIFETIME": "600",
            "POSTGRES_POOL_IDLE_TIMEOUT": "120",
            "POSTGRES_POOL_VALIDATE_AFTER_IDLE": "0",
            "POSTGRES_POOL_VALIDATION_TIMEOUT": "3",
            "POSTGRES_POOL_MONITOR_INTERVAL": "60",
            "POSTGRES_CONNECT_TIMEOUT": "4",
            "POSTGRES_KEEPALIVES": "0",
            "POSTGRES_KEEPALIVES_IDLE": "11",
            "POSTGRES_KEEPALIVES_INTERVAL": "12",
            "POSTGRES_KEEPALIVES_COUNT": "13",
            "POSTGRES_TCP_USER_TIMEOUT": "14000",
            "POSTGRES_POOL_RUNTIME_DIRECTORY": "/run/billing",
            "RUNTIME_DIRECTORY": "/run/other",
        }
    )
    assert settings == Settings(
        host="db.example.org",
        database="odras",
        user="odras_app",
        password="canary-31c7",
        port=6432,
        min_connections=1,
        max_connections=7,
        connection_timeout=2.5,
        max_waiting=40,
        connection_lifetime=600,
        idle_timeout=120,
        validate_after_idle=0,
        validation_timeout=3,
        monitor_interval=60,
        connect_timeout=4,
        keepalives=0,
        keepalives_idle=11,
        keepalives_interval=12,
        keepalives_count=13,
        tcp_user_timeout=14_000,
        runtime_directory="/run/billing",
    )


def test_all_problems_at_once() -> None:
    assert problems(
        POSTGRES_DATABASE=None,
        POSTGRES_USER="",
        POSTGRES_PORT="70000",
        POSTGRES_POOL_MAX_CONNECTIONS="ten",
        POSTGRES_POOL_MAX_CONECTIONS="10",
    ) == [
        "POSTGRES_DATABASE is missing: set it",
        "POSTGRES_POOL_MAX_CONNECTIONS is 'ten': allowed is an integer from 1 to 1000 (never more than these)",
        "POSTGRES_POOL_MAX_CONECTIONS is unknown; did you mean POSTGRES_POOL_MAX_CONNECTIONS?",
        "POSTGRES_USER is '': allowed is a name that is not empty",
        "POSTGRES_PORT is 70000: allowed is an integer from 1 to 65535 (a port)",
    ]


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("POSTGRES_PORT", "0", "POSTGRES_PORT is 0: allowed is an integer from 1 to 65535"),
        ("POSTGRES_PORT", "5432.5", "POSTGRES_PORT is '5432.5': allowed is an integer"),
        ("POSTGRES_PORT", "", "POSTGRES_PORT is '': allowed is an integer"),
        ("POSTGRES_POOL_MIN_CONNECTIONS", "-1", "is -1: allowed is an integer from 0 to 1000"),
        ("POSTGRES_POOL_CONNECTION_TIMEOUT", "nan", "is nan: allowed is a number from 0 to 3600 (seconds"),
        ("POSTGRES_POOL_CONNECTION_LIFETIME", "inf", "is inf: allowed is a number"),
        ("POSTGRES_POOL_MONITOR_INTERVAL", "0", "allowed is a number from 0.1 to 86400 (seconds)"),
        ("POSTGRES_KEEPALIVES", "2", "allowed is an integer from 0 to 1 (1 = on, 0 = off)"),
        ("POSTGRES_TCP_USER_TIMEOUT", "30s", "(milliseconds; 0 = the system's own)"),
        (
            "POSTGRES_POOL_RUNTIME_DIRECTORY",
            "run/billing",
            "'run/billing': allowed is an absolute path of at most",
        ),
        ("POSTGRES_POOL_RUNTIME_DIRECTORY", "/" + "x" * LONGEST_DIRECTORY, "at most 89 bytes"),
        ("POSTGRES_PASSWORD", "", "POSTGRES_PASSWORD is missing or empty"),
        ("POSTGRES_DATABSE", "odras", "POSTGRES_DATABSE is unknown; did you mean POSTGRES_DATABASE?"),
        ("POSTGRES_KEEPALIVE_IDLE", "30", "did you mean POSTGRES_KEEPALIVES_IDLE?"),
        ("POSTGRES_PASSWORD_FILE", "/nowhere/secret", "both set: keep one of them"),
    ],
)
def test_one_problem(variable: str, value: str, text: str) -> None:
    (problem,) = problems(**{variable: value})
    assert text in problem and variable in problem


def test_minimum_above_maximum() -> None:
    (problem,) = problems(POSTGRES_POOL_MIN_CONNECTIONS="30")
    assert problem == (
        "POSTGRES_POOL_MIN_CONNECTIONS is 30: allowed is at most POSTGRES_POOL_MAX_CONNECTIONS, which is 20"
    )


@pytest.mark.parametrize(
    "foreign", ["POSTGRES_DB", "POSTGRES_INITDB_ARGS", "POSTGRES_HOST_AUTH_METHOD", "POOL"]
)
def test_variables_of_others_are_none_of_our_business(foreign: str) -> None:
    Settings.from_environment({**GOOD, foreign: "x"})


def test_a_missing_secret_is_told_and_a_unix_socket_needs_none() -> None:
    (problem,) = problems(POSTGRES_PASSWORD=None)
    assert problem.startswith("POSTGRES_PASSWORD is missing or empty: set it, or name a file")
    without = {name: value for name, value in GOOD.items() if name != "POSTGRES_PASSWORD"}
    assert Settings.from_environment({**without, "POSTGRES_HOST": "/run/postgresql"}).password is None


def test_the_secret_may_come_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("canary-31c7\n")
    environ = {**GOOD, "POSTGRES_PASSWORD_FILE": str(secret)}
    del environ["POSTGRES_PASSWORD"]
    assert Settings.from_environment(environ).password == "canary-31c7"
    secret.write_text("\n")
    assert "POSTGRES_PASSWORD is missing or empty" in str(problems(**{**environ, "POSTGRES_PASSWORD": None}))
    secret.unlink()
    (problem,) = problems(POSTGRES_PASSWORD=None, POSTGRES_PASSWORD_FILE=str(secret))
    assert problem.startswith(
        f"POSTGRES_PASSWORD_FILE is {str(secret)!r}, which cannot be read: No such file"
    )


def test_systemds_runtime_directory_is_the_default() -> None:
    settings = Settings.from_environment({**GOOD, "RUNTIME_DIRECTORY": "/run/billing:/run/second"})
    assert settings.runtime_directory == "/run/billing"


def test_the_password_is_not_in_the_repr_and_nothing_can_be_changed() -> None:
    settings = Settings.from_environment(GOOD)
    assert "canary" not in repr(settings)
    with pytest.raises(FrozenInstanceError):
        settings.port = 1  # type: ignore[misc]


@given(st.dictionaries(st.sampled_from([*GOOD, "POSTGRES_PORT", "POSTGRES_POOL_MAX_CONNECTIONS"]), st.text()))
def test_any_text_gives_settings_or_problems(changes: dict[str, str]) -> None:
    try:
        Settings.from_environment({**GOOD, **changes})
    except SettingsError as error:
        assert error.problems
        assert all(problem.startswith("POSTGRES_") for problem in error.problems)


# -- the command -----------------------------------------------------------------------------------


def check_config(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runbook.pool", "--check-config", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def test_check_config_accepts() -> None:
    result = check_config(**GOOD)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "valid: odras_app@db.example.org:5432/odras, 2 to 20 connections\n"


def test_check_config_prints_each_problem_on_a_line() -> None:
    result = check_config(**GOOD, POSTGRES_PORT="x", POSTGRES_POOL_MAX_CONNECTIONS="0")
    assert result.returncode == 2
    assert result.stdout == ""
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [
        "POSTGRES_PORT is 'x'",
        "POSTGRES_POOL_MAX_CONNECTIONS is 0",
        "POSTGRES_POOL_MIN_CONNECTIONS is 2",
    ]
    assert "canary" not in result.stderr


def test_check_config_reads_a_file_and_not_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "billing.env"
    file.write_text("".join(f'{name}="{value}"\n' for name, value in GOOD.items()))
    assert check_config("--env-file", str(file), POSTGRES_PORT="x").returncode == 0
    file.unlink()
    result = check_config("--env-file", str(file))
    assert result.returncode == 2
    assert result.stderr == f"{file} cannot be read: No such file or directory\n"


def test_environment_file_as_systemd_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "billing.env"
    file.write_text(
        "# a comment\n"
        "; another\n"
        "\n"
        "PLAIN=some text # not a comment\n"
        "ESCAPED=one\\ two\n"
        '  DOUBLE = "say \\"hi\\", \\$5, \\\\, \\n"  \n'
        "SINGLE='as \"it\" \\is'\n"
        "EMPTY=\n"
    )
    assert read_environment_file(str(file)) == {
        "PLAIN": "some text # not a comment",
        "ESCAPED": "one two",
        "DOUBLE": 'say "hi", $5, \\, \\n',
        "SINGLE": 'as "it" \\is',
        "EMPTY": "",
    }


def test_environment_file_with_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "billing.env"
    file.write_text("POSTGRES_PASSWORD='canary\nexport A=b\ncanary\n")
    with pytest.raises(SettingsError) as caught:
        read_environment_file(str(file))
    assert caught.value.problems == [
        f"{file}, line 1: the value's quotes are not closed",
        f"{file}, line 2: allowed is NAME=value",
        f"{file}, line 3: allowed is NAME=value",
    ]

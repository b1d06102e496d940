"""A planted secret comes out nowhere: not in any output, any file, any argv, whatever it looks like.

Every canary begins with a word of its own, and that word is what is looked for: a secret of which only a
part was masked, or that was cut before it was masked, is found as well.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2
import pytest

from tests.integration.playbook import Diagnosis, diagnose, inventory, script
from tests.integration.pool.house import until
from tests.lab.account import account
from tests.lab.apps.guide.backend.services.auth import hash_password
from tests.lab.database import DATABASE, USERNAME
from tests.lab.lab import Lab

# name → the secret. Quotes, blanks and characters that are encoded in URLs are there to trip up whoever masks.
SETTINGS = "CanaryOfTheSettings p@ss/w%rd\"1'\\x"
LOGIN = "CanaryOfTheLogin:{}\"'&<>#"
DIAGNOSIS = "CanaryOfTheDiagnosis+/=?$1"
# In the environment of the running app, and in no file that is read.
ENVIRONMENT = "CanaryOfTheEnvironment"

PADDING = "High connection pool usage, and a line that is longer than what is kept of it "
# Lines of the app's log; each is of a kind that the evidence keeps a sample of.
LOG_LINES = [
    "Error in database monitor: postgresql://other:CanaryOfADsn@db.example:5432/odras refused",
    "redis.exceptions.ConnectionError: sent Authorization: Bearer CanaryOfABearer.abc-def_ghi and lost it",
    "net::ERR_NETWORK_IO_SUSPENDED Cookie: session=CanaryOfACookie; csrftoken=CanaryOfASecondCookie",
    "deadlock detected while running ALTER ROLE odras_app PASSWORD 'CanaryOfAnAlter'",
    'canceling statement due to timeout: {"api_key": "CanaryOfAnApiKey", "page": 4}',
    f"could not translate host name: {quote(SETTINGS, safe='')} is no host",
    "could not connect to server: host=db.example user=odras password=CanaryOfWords dbname=odras",
    "redis.exceptions.ConnectionError: sent Authorization: Basic CanaryOfABasic0123456789== and lost it",
    f"acquired backend 4711 by {ENVIRONMENT}",
    # A sample is 300 characters; these secrets begin before its end and end after it.
    f"{PADDING:<285}{SETTINGS}",
    f"{'the database system is starting up':<265}postgresql://u:CanaryOfTheCutDataSourceName@db/odras",
]
# Statements that run while the diagnosis reads what runs. Where they wait does not matter.
STATEMENTS = [
    "SELECT 'CanaryOfAString', 4929123456781234, pg_sleep(120) /* CanaryOfAComment */ -- CanaryOfALine",
    "SELECT 'C:\\', 'CanaryAfterABackslash', pg_sleep(120)",
    "SELECT E'it\\'s CanaryOfAnEscape', pg_sleep(120)",
    "SELECT $tag$ CanaryOfADollar $tag$, U&'CanaryOfUnicode', pg_sleep(120)",
    # The server cuts a text at 1024 bytes: this one in the middle of the literal.
    f"SELECT pg_sleep(120), {'1 + ' * 240}length('CanaryOfTheServersCut {'x' * 200}')",
]
CARD = "4929123456781234"


def canaries() -> list[str]:
    """The word that each secret begins with."""
    everything = " ".join([SETTINGS, LOGIN, DIAGNOSIS, *LOG_LINES, *STATEMENTS])
    words = {word for word in everything.replace("'", " ").replace('"', " ").split() if "Canary" in word}
    found = {word[word.index("Canary") :] for word in words}
    return sorted({"".join(c for c in word.partition(";")[0] if c.isalnum()) for word in found})


def words_to_look_for() -> list[str]:
    """A beginning of each canary that is long enough to be nobody else's, and the card number's."""
    return [*{word[:14] for word in canaries()}, CARD[:10]]


class ArgumentsSeen:
    """Every command line of every process, sampled while the block runs."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for name in os.listdir("/proc"):
                if name.isdigit():
                    with suppress(OSError):
                        self.seen.add(Path("/proc", name, "cmdline").read_bytes())

    def __enter__(self) -> ArgumentsSeen:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)


@dataclass
class Planted:
    """A lab whose passwords, log and running statements are the canaries."""

    lab: Lab
    connections: list[Any] = field(default_factory=list)

    def inventory(self, path: Path, **web: Any) -> Path:
        web = {"diagnose_login_password": LOGIN, **web}
        return inventory(self.lab, path, {"web-1": web}, postgres={"diagnose_database_password": DIAGNOSIS})


@pytest.fixture(scope="module")
def planted(shared_lab: Lab) -> Iterator[Planted]:
    lab, server = shared_lab, shared_lab.server
    if not server.running():
        lab.heal()
    settings = lab.app / "app.env"
    original, passwords, password = settings.read_text(), dict(server.passwords), lab.password
    made = Planted(lab)
    export = f"export API_TOKEN={ENVIRONMENT}"
    python = script(lab.app / "python", f'{export}\nexec {shlex.quote(lab.python)} "$@"')
    account().own(Path(python))
    changed = original.replace(passwords["odras_app"], SETTINGS)
    changed = changed.replace(f"ODRAS_PYTHON={lab.python}\n", f"ODRAS_PYTHON={python}\n")

    def change(app: str, diagnosis: str, login: str, text: str) -> None:
        for role, secret in (("odras_app", app), ("odras_diagnosis", diagnosis)):
            server.sql(f"ALTER ROLE {role} PASSWORD %s", (secret,))
        salt = os.urandom(16)
        server.sql(
            "UPDATE public.users SET salt = %s, password_hash = %s WHERE username = %s",
            (salt, hash_password(login, salt), USERNAME),
            database=DATABASE,
        )
        server.passwords.update(odras_app=app, odras_diagnosis=diagnosis)
        lab.password = login
        settings.write_text(text)
        lab.restart()

    try:
        change(SETTINGS, DIAGNOSIS, LOGIN, changed)
        for statement in STATEMENTS:
            connection = psycopg2.connect(**server.connection("odras_owner", DATABASE), async_=True)
            made.connections.append(connection)
            until(lambda c=connection: c.poll() == psycopg2.extensions.POLL_OK)  # type: ignore[misc]
            connection.cursor().execute(statement)
        until(
            lambda: (
                server.sql(
                    "SELECT count(*) FROM pg_stat_activity WHERE usename = 'odras_owner' AND state = 'active'"
                )
                == [(len(STATEMENTS),)]
            )
        )
        yield made
    finally:
        for connection in made.connections:
            connection.close()
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'odras_owner'")
        change(passwords["odras_app"], passwords["odras_diagnosis"], password, original)


@dataclass
class Seen:
    """A run at -vvv --diff on the broken lab, restart included, and every command line of its time."""

    run: Diagnosis
    arguments: set[bytes]
    temporary: Path


@pytest.fixture(scope="module")
def seen(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    place = tmp_path_factory.mktemp("secrets")
    temporary = place / "temporary"
    temporary.mkdir()
    planted.lab.break_("slot_leak")
    with planted.lab.log.open("a", encoding="utf-8") as log:
        log.write("".join(f"{line}\n" for line in LOG_LINES))
    with ArgumentsSeen() as arguments:
        run = diagnose(
            planted.inventory(place / "hosts.yml"),
            place,
            *("-vvv", "--diff"),
            environment={"TMPDIR": str(temporary)},
        )
    (place / "hosts.yml").unlink()  # the one place where the secrets belong
    return Seen(run, arguments.seen, temporary)


def leaks(text: bytes) -> list[str]:
    """The canaries in a text, plain or as JSON, YAML or a URL would write them: their first letters are plain."""
    return sorted(word for word in words_to_look_for() if word.encode() in text)


def test_the_run_read_what_holds_the_secrets(seen: Seen) -> None:
    """Else nothing could leak, and every test below would be green on nothing."""
    assert seen.run.status == 0, seen.run.output
    report, evidence = seen.run.report(), seen.run.evidence()
    assert (report["outcome"], report["cause"]) == ("restored", "slot_leak")
    samples = evidence["views"]["log"]["data"]["samples"]
    kinds = ("monitor_error", "other_dependency", "client_suspended", "lock", "canceled")
    kinds += ("name_not_resolved", "acquired")
    for kind in (*kinds, "high_usage", "starting_up"):
        assert kind in samples
    for kind in kinds:
        assert "***" in samples[kind], samples[kind]
    assert evidence["views"]["config"]["data"]["database"]["has_password"] is True
    assert evidence["views"]["new_connection"]["data"]["ok"] is True
    sessions = seen.run.document("databases/main.json")["views"]["activity"]["data"]["sessions"]
    queries = [s["query"] for s in sessions if s["role"] == "odras_owner"]
    assert len(queries) == len(STATEMENTS)
    assert all(query and query.startswith("SELECT ") for query in queries)
    assert report["masked"] >= len(LOG_LINES) + len(STATEMENTS)
    assert len(canaries()) == 22, canaries()


def test_no_secret_in_the_output(seen: Seen) -> None:
    assert "task path" in seen.run.output, "the run was not verbose"
    assert leaks(seen.run.output.encode()) == []


def test_no_secret_in_any_file_that_the_run_wrote(seen: Seen) -> None:
    written = [seen.run.reports, seen.run.state, seen.run.home, seen.temporary]
    files = [path for top in written for path in top.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"audit.log", "web-1.json", "main.json", "ticket.md", "fleet.json"} <= names
    assert {str(path): found for path in files if (found := leaks(path.read_bytes()))} == {}


def test_no_secret_in_the_arguments_of_any_process(seen: Seen) -> None:
    assert any(b"ansible-playbook" in line for line in seen.arguments)
    assert any(b"odras.sh" in line for line in seen.arguments), "the restart itself was not seen"
    assert [line for line in seen.arguments if leaks(line)] == []


def test_nothing_is_left_in_temporary_places(seen: Seen) -> None:
    assert list((seen.run.home / ".ansible" / "tmp").rglob("*")) == []
    assert list(seen.temporary.iterdir()) == []


def test_a_secret_in_what_the_restarted_app_answers(planted: Planted, tmp_path: Path) -> None:
    """The proof's login fails with a page that tells too much, and so does what the restart command prints."""
    lab = planted.lab
    page = {
        "detail": f"could not connect to postgresql://odras_app:{quote(SETTINGS, safe='')}@db: {SETTINGS}"
    }
    server = tmp_path / "server.py"
    server.write_text(
        f"""
import http.server, json
class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(500)
        self.end_headers()
        self.wfile.write(json.dumps({page!r}).encode())
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", {lab.app_port}), Answer).serve_forever()
"""
    )
    replace = script(
        tmp_path / "restart",
        f"""{lab.app}/odras.sh stop
setsid {shlex.quote(sys.executable)} {shlex.quote(str(server))} </dev/null >/dev/null 2>&1 &
echo $! >{lab.pid_file}
echo password={shlex.quote(SETTINGS)} >&2""",
    )
    failing = script(tmp_path / "fail", f"echo {shlex.quote('Settings(' + SETTINGS + ')')} >&2; exit 1")
    lab.break_("slot_leak")
    try:
        file = planted.inventory(tmp_path / "failing.yml", diagnose_restart_command=[failing])
        (tmp_path / "a").mkdir()
        failed = diagnose(file, tmp_path / "a", "-vvv")
        file = planted.inventory(tmp_path / "hosts.yml", diagnose_restart_command=[replace])
        (tmp_path / "b").mkdir()
        answered = diagnose(file, tmp_path / "b", "-vvv")
    finally:
        pid = int(lab.pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists() and str(server).encode() in command.read_bytes():
            os.kill(pid, signal.SIGKILL)
        lab.restart()
    assert (failed.action()["result"], answered.action()["result"]) == ("failed", "failed")
    assert "exit status 1" in failed.action()["why"]
    assert answered.report()["login_after"]["by_status"] == {"500": 3}
    found = {}
    for name, run in (("failed", failed), ("answered", answered)):
        found[f"output of {name}"] = leaks(run.output.encode())
        for path in [*run.reports.rglob("*"), *run.state.rglob("*")]:
            if path.is_file():
                found[str(path)] = leaks(path.read_bytes())
    assert {place: words for place, words in found.items() if words} == {}
    assert "***" in answered.report()["login_after"]["detail"]

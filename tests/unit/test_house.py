"""The house stands as drawn: who may import whom, what travels, and three places that must say the same."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from jsonschema import Draft202012Validator

from runbook.common.clock import seconds_of
from runbook.common.documents import SCHEMAS, schema
from runbook.pool import Settings
from runbook.report.causes_page import causes_page
from runbook.verdict.causes import CAUSES, IDS
from runbook.verdict.judge import judge
from tests.unit.incidents import TABLE, healthy

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "runbook"
EVERY = frozenset({"pool", "evidence", "verdict", "report", "leaks", "app", "common", "act"})

# A room may import these and itself.
ALLOWED: dict[str, frozenset[str]] = {
    "pool": frozenset(),
    "common": frozenset(),
    "leaks": frozenset(),
    "evidence": frozenset({"leaks", "common"}),
    "act": frozenset({"evidence", "common"}),
    "verdict": frozenset({"common"}),
    "report": frozenset({"verdict", "common"}),
    "app": frozenset({"pool"}),
    "__main__": EVERY,
    "__init__": frozenset(),
}
# These run where nothing can be installed, below whatever package they are put into.
TRAVELS = ("evidence", "common", "leaks", "verdict", "report", "act")
LAZY = {("common/documents.py", "jsonschema"), ("report/page.py", "jinja2")}

RANKS = [
    "postgres_unreachable",
    "postgres_down",
    "pgbouncer_queue",
    "proxy_hang",
    "postgres_not_answering",
    "connection_slots_full",
    "authentication_failed",
    "app_down",
    "app_resources",
    "wrong_node",
    "postgres_read_only",
    "lock_contention",
    "fork_shared",
    "nested_checkout",
    "slow_queries",
    "held_while_waiting",
    "black_hole",
    "app_blocked",
    "slot_leak",
    "connection_leak",
    "postgres_restarted",
    "postgres_crash_recovery",
    "idle_session_timeout",
    "idle_in_transaction_timeout",
    "transaction_timeout",
    "sessions_terminated",
    "idle_cut",
    "host_suspended",
    "stale_configuration",
    "monitor_dead",
    "pool_too_small",
    "app_saturated",
    "login_broken",
    "client_suspended",
    "metric_artefact",
    "healthy",
]


# -- imports -----------------------------------------------------------------------------------------------


class Import(NamedTuple):
    """One import statement, seen from the package `runbook`."""

    file: Path
    line: int
    module: str  # dotted, absolute: runbook.common.clock
    relative: bool
    top_level: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports(file: Path) -> Iterator[Import]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    package = list(file.relative_to(ROOT).with_suffix("").parts[:-1])
    outermost = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, False, node in outermost)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            whole = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:  # `from . import proc` names a module, `from .proc import x` does not
                name = ".".join([*whole, alias.name] if not node.module else whole)
                yield Import(file, node.lineno, name, bool(node.level), node in outermost)


def room_of(name: str) -> str:
    """The room of `runbook.room.module`; empty outside the package and for the package itself."""
    parts = name.split(".")
    while "module_utils" in parts:  # how a plugin names the package that travels with it
        parts = parts[parts.index("module_utils") + 1 :]
    return parts[1] if parts[0] == "runbook" and len(parts) > 1 and parts[1] in EVERY else ""


def modules(top: Path) -> list[Path]:
    return sorted(path for path in top.rglob("*.py") if "__pycache__" not in path.parts)


def test_every_room_is_known() -> None:
    found = {path.name if path.is_dir() else path.stem for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert found == set(ALLOWED)


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    place = PACKAGE / room
    files = modules(place) if place.is_dir() else [PACKAGE / f"{room}.py"]
    assert files
    wrong = [
        str(one)
        for file in files
        for one in imports(file)
        if room_of(one.module) not in ALLOWED[room] | {room, ""}
    ]
    assert wrong == []


@pytest.mark.parametrize("room", TRAVELS)
def test_what_travels_needs_only_itself_and_the_standard_library(room: str) -> None:
    wrong = []
    for one in (found for file in modules(PACKAGE / room) for found in imports(file)):
        top = one.module.partition(".")[0]
        lazy = (str(one.file.relative_to(PACKAGE)), top) in LAZY and not one.top_level
        if (top == "runbook" and not one.relative) or (
            top != "runbook" and top not in sys.stdlib_module_names and not lazy
        ):
            wrong.append(str(one))
    assert wrong == []


@pytest.mark.parametrize(
    ("folder", "rooms"),
    [
        ("plugins/modules", {"evidence", "act"}),
        ("plugins/action", {"verdict", "report", "common"}),
        ("plugins/plugin_utils", {"verdict", "report", "common"}),
        ("tests/lab", {"app", "common", "pool"}),
        # What was deployed before anybody heard of this project imports nothing of it.
        *(
            (f"tests/lab/apps/{app}", set())
            for app in ("shared", "guide", "psycopg2", "sqlalchemy", "psycopg")
        ),
    ],
)
def test_who_stands_outside_imports_only_what_it_may(folder: str, rooms: set[str]) -> None:
    files = modules(ROOT / folder)
    assert files
    wrong = [str(one) for file in files for one in imports(file) if room_of(one.module) not in rooms | {""}]
    assert wrong == []


def test_plugins_find_the_package_beside_them() -> None:
    link = ROOT / "plugins" / "module_utils" / "runbook"
    assert link.is_symlink()
    assert link.resolve() == PACKAGE
    assert not link.readlink().is_absolute()


# -- Python 3.9 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [*modules(PACKAGE), *modules(ROOT / "plugins" / "modules")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_syntax_is_that_of_python_3_9(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 9))
    # 3.9's own parser refuses these; feature_version does not look at them
    assert not [node for node in ast.walk(tree) if type(node).__name__ in ("Match", "TryStar", "TypeAlias")]


def interpreters() -> list[str]:
    """This Python, and every 3.9 that is on this machine and runs."""
    named = [shutil.which("python3.9"), *Path.home().glob(".pyenv/versions/3.9*/bin/python3.9")]
    found = [sys.executable]
    for name in filter(None, map(str, filter(None, named))):
        told = "import sys; print(sys.version_info[:2])"
        asked = subprocess.run([name, "-c", told], capture_output=True, text=True, check=False)
        if asked.stdout.strip() == "(3, 9)" and str(Path(name).resolve()) not in found:
            found.append(str(Path(name).resolve()))
    return found


PROGRAM = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
from runbook.verdict.judge import judge
for line in sys.stdin:
    verdict = judge(*json.loads(line))
    print(json.dumps([verdict.cause, verdict.confidence, verdict.action, verdict.title, verdict.why]))
"""


@pytest.mark.parametrize("python", interpreters(), ids=lambda path: Path(path).name)
def test_what_travels_runs_without_any_package_and_judges_the_same(python: str) -> None:
    names = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room in TRAVELS
        for file in modules(PACKAGE / room)
    ]
    incidents = [build() for build, _ in TABLE.values()]
    done = subprocess.run(
        [python, "-I", "-S", "-B", "-c", PROGRAM, str(ROOT), *names],
        input="\n".join(json.dumps(incident) for incident in incidents),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-800:]
    verdicts = [judge(*incident) for incident in incidents]
    mine = [[v.cause, v.confidence, v.action, v.title, [list(a) for a in v.why]] for v in verdicts]
    assert [json.loads(line) for line in done.stdout.splitlines()] == mine


TIMES = [f"2026-11-23T03:41:07{fraction}Z" for fraction in ("", ".1", ".12", ".120", ".1234", ".123456")]
CLOCK = """
import json, sys
sys.path.insert(0, sys.argv[1])
from runbook.common.clock import seconds_of
print(json.dumps([seconds_of(moment) for moment in json.load(sys.stdin)]))
"""


@pytest.mark.parametrize("python", interpreters(), ids=lambda path: Path(path).name)
def test_every_time_that_the_schemas_take_is_read_alike(python: str) -> None:
    """Else the verdict over a saved document depends on who reads it."""
    done = subprocess.run(
        [python, "-I", "-S", "-B", "-c", CLOCK, str(ROOT)],
        input=json.dumps(TIMES),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    whole = seconds_of("2026-11-23T03:41:07Z") or 0.0
    told = [None if seconds is None else round(seconds - whole, 6) for seconds in json.loads(done.stdout)]
    assert told == [0, 0.1, 0.12, 0.12, 0.1234, 0.123456]


# -- three places that say the same ------------------------------------------------------------------------

ROLES = sorted(path.parent.parent for path in ROOT.glob("roles/*/meta/argument_specs.yml"))
PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    **{"str": (str,), "path": (str,), "int": (int,), "float": (int, float), "bool": (bool,)},
    **{"list": (list,), "dict": (dict,), "raw": (object,)},
}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def options_of(role: Path) -> dict[str, Any]:
    """Every variable of every entry point."""
    found: dict[str, Any] = {}
    for spec in load(role / "meta" / "argument_specs.yml")["argument_specs"].values():
        for name, option in spec.get("options", {}).items():
            assert found.setdefault(name, option) == option, f"{name} differs between entry points"
    return found


def table_of(role: Path) -> list[list[str]]:
    """The rows of a README whose first cell is a variable, split as a reader of GitHub's Markdown splits them."""
    rows = []
    for line in (role / "README.md").read_text(encoding="utf-8").splitlines():
        if re.match(r"\| `\w+` \|", line):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            rows.append([cell.strip().replace("\\|", "|") for cell in cells])
    return rows


def test_there_are_roles() -> None:
    assert {"diagnose"} <= {role.name for role in ROLES}
    assert {role.name for role in ROLES} == {path.name for path in (ROOT / "roles").iterdir()}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_and_argument_specs_say_the_same(role: Path) -> None:
    options, defaults = options_of(role), load(role / "defaults" / "main.yml")
    assert {name: option["default"] for name, option in options.items() if "default" in option} == defaults
    assert {name for name, option in options.items() if not option.get("required")} == set(defaults)
    for name, option in options.items():
        assert name.startswith(f"{role.name}_")
        assert option["description"]
        value = option.get("default")
        if value is not None and not (isinstance(value, str) and "{{" in value):
            assert isinstance(value, PYTHON_TYPES[option["type"]]), name
            assert value in option.get("choices", [value]), name
        if any(word in name for word in ("password", "secret", "token")):
            assert option.get("no_log") is True, f"{name} would be shown"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_table_of_the_readme_says_the_same(role: Path) -> None:
    options, rows = options_of(role), table_of(role)
    assert sorted(row[0].strip("`") for row in rows) == sorted(options)
    for row in rows:
        option = options[row[0].strip("`")]
        assert len(row) == 4, f"{row[0]}: an unescaped | within a cell breaks the table where it is rendered"
        assert row[1] == option["type"], row[0]
        told = "required" if option.get("required") else yaml.safe_load(row[2].strip("`"))
        assert told == option.get("default", "required"), row[0]
        assert row[3], row[0]


def test_every_setting_of_the_pool_reaches_the_app_under_its_own_name() -> None:
    """And what nobody sets is the same with the role and without it."""
    variables = load(ROOT / "roles" / "app" / "vars" / "main.yml")["app_variables"]
    given = {name: value for name, value in variables.items() if name.startswith("POSTGRES_")}
    assert given.pop("POSTGRES_KEEPALIVES") == 1
    assert given == {name: f"{{{{ {name.lower()} }}}}" for name in given}
    specs = load(ROOT / "roles" / "postgres" / "meta" / "argument_specs.yml")["argument_specs"]
    prefixes = ("postgres_pool_", "postgres_keepalives_", "postgres_tcp_", "postgres_port")
    told = {n: o["default"] for n, o in specs["client"]["options"].items() if n.startswith(prefixes)}
    assert len(told) > len(prefixes)
    assert {name.upper() for name in told} <= set(given)
    own = {field.metadata["variable"]: field.default for field in fields(Settings)}
    assert told == {name: own[name.upper()] for name in told}


def test_every_number_has_its_bounds_and_its_default_is_within_them() -> None:
    """Most of a server's and of its pools' are refused by the server and the pool themselves."""
    text = (ROOT / "plugins" / "action" / "preflight.py").read_text(encoding="utf-8")
    assigned = [node for node in ast.parse(text).body if isinstance(node, ast.AnnAssign)]
    (bounds,) = (ast.literal_eval(n.value) for n in assigned if n.value and ast.unparse(n.target) == "BOUNDS")
    numbers = {
        name: option.get("default")
        for role in ("app", "diagnose", "rollout")
        for name, option in options_of(ROOT / "roles" / role).items()
        if option["type"] in ("int", "float")
    }
    asserted = (ROOT / "roles" / "app" / "tasks" / "check.yml").read_text(encoding="utf-8")
    for name in set(numbers) - set(bounds):
        assert f"{name} | int >= 1" in asserted
    numbers.update({name: o.get("default") for name, o in options_of(ROOT / "roles" / "postgres").items()})
    for name, (low, high) in bounds.items():
        assert isinstance(numbers[name], str) or low <= numbers[name] <= high, name


# -- modules -----------------------------------------------------------------------------------------------

MODULES = modules(ROOT / "plugins" / "modules")


def constants(file: Path) -> dict[str, Any]:
    """The literals that a module assigns at its top."""
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ("ARGUMENTS", "DOCUMENTATION", "RETURN", "EXAMPLES"):
                found[name] = ast.literal_eval(node.value)
    return found


def plain(options: dict[str, Any], below: str) -> dict[str, Any]:
    """What an argument spec and a documentation have in common; `below` names the options of an option."""
    kept = ("type", "required", "default", "choices", "elements")
    return {
        name: {
            **{key: option[key] for key in kept if key in option},
            "options": plain(option.get(below, {}), below),
        }
        for name, option in options.items()
    }


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.stem)
def test_a_module_takes_what_its_documentation_says(file: Path) -> None:
    told = constants(file)
    documentation = yaml.safe_load(told["DOCUMENTATION"])
    assert documentation["module"] == file.stem
    assert plain(told["ARGUMENTS"], "options") == plain(documentation["options"], "suboptions")
    assert yaml.safe_load(told["EXAMPLES"])
    assert yaml.safe_load(told["RETURN"])


def secret_arguments(options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, option in options.items():
        if re.search(r"password|secret|token", name):
            yield name, option
        yield from secret_arguments(option.get("options", {}))


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.stem)
def test_a_module_never_logs_a_secret(file: Path) -> None:
    for name, option in secret_arguments(constants(file)["ARGUMENTS"]):
        assert option.get("no_log") is True, name


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.stem)
def test_the_example_of_a_module_gives_what_it_requires(file: Path) -> None:
    told = constants(file)
    for task in yaml.safe_load(told["EXAMPLES"]):
        given = set(task[f"pool.runbook.{file.stem}"])
        assert {n for n, o in told["ARGUMENTS"].items() if o.get("required")} <= given
        assert given <= set(told["ARGUMENTS"])


# -- the table of causes -----------------------------------------------------------------------------------


def test_every_cause_has_its_rank() -> None:
    assert list(IDS) == RANKS


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.id)
def test_a_cause_is_complete(cause: Any) -> None:
    assert cause.title
    assert not cause.title.endswith(".")
    assert cause.restart.why
    assert cause.action in ("start", "restart")
    assert cause.conditions
    assert set(cause.not_to_confuse) <= set(IDS) - {cause.id}
    for condition in cause.conditions:
        text = (condition.__doc__ or "").strip()
        assert re.match(r"[UNDPSLX](, [UNDPSLX])*: \S", text), f"{condition.__name__}: {text!r} names no view"
        assert text.endswith("."), condition.__name__


# -- schemas -----------------------------------------------------------------------------------------------


def test_there_is_a_schema_of_every_document() -> None:
    assert {"host-evidence", "database-evidence", "report", "fleet", "status"} <= {
        path.name.removesuffix(".schema.json") for path in SCHEMAS.glob("*.json")
    }


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.name)
def test_a_schema_is_valid_and_named_as_its_file(path: Path) -> None:
    name = path.name.removesuffix(".schema.json")
    told = schema(name)
    Draft202012Validator.check_schema(told)
    assert told["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    assert told["properties"]["schema"] == {"const": f"runbook/{name}/1"}
    assert told["$id"] == f"urn:pool-runbook:{name}:1"
    assert told["additionalProperties"] is False
    assert set(told["required"]) <= set(told["properties"])
    defined = {f"#/$defs/{key}" for key in told.get("$defs", {})}
    assert set(re.findall(r'"\$ref": "([^"]+)"', path.read_text())) <= defined


@pytest.mark.parametrize("moment", ["2026-11-23T03:41:07", "2026-11-23 03:41:07Z", "2026-11-23", "now", ""])
def test_a_schema_takes_no_time_that_is_none(moment: str) -> None:
    host = healthy().host
    host["collected_at"] = moment
    assert not Draft202012Validator(schema("host-evidence")).is_valid(host)


# -- documents that name what stands elsewhere -------------------------------------------------------------


def test_every_defect_of_the_guide_names_its_test() -> None:
    page = (ROOT / "docs" / "guide-defects.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*\| `([\w/.]+)::(\w+)` \|$", page, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 32))
    for number, file, name in rows:
        found = re.findall(r"^def (test_\w+)\(", (ROOT / "tests" / file).read_text(), re.MULTILINE)
        assert name in found, f"row {number}: no {name} in tests/{file}"


class Inventory(yaml.SafeLoader):
    """YAML with Ansible's tag for a secret."""


Inventory.add_constructor("!vault", lambda *_: "secret")


def halves() -> list[Any]:
    """What inventory.example says for a diagnosis, and for playbooks/site.yml; each with its comments opened."""
    first, second = re.split(
        r"^# For playbooks/site.*$", (ROOT / "inventory.example").read_text(), flags=re.M
    )
    opened = re.sub(r"^( *)# ((?:diagnose_\w+: |  \$ANSIBLE|  …).*)$", r"\1\2", first, flags=re.M)
    return [yaml.load(text, Inventory) for text in (opened, re.sub(r"^# ?", "", second, flags=re.M))]


def test_the_example_of_an_inventory_is_one() -> None:
    options = {name: option for role in ROLES for name, option in options_of(role).items()}
    for half in halves():
        assert {"app", "postgres"} <= set(half)
        names = {
            name
            for group in half.values()
            for variables in [group.get("vars") or {}, *(group.get("hosts") or {}).values()]
            for name in variables
            if not name.startswith("ansible_")
        }
        assert names <= set(options), names - set(options)
    required = {name for name, option in options.items() if option.get("required")}
    assert {name for name in required if name.startswith("postgres_")} <= names


def test_the_page_of_the_causes_says_what_the_table_says() -> None:
    """`make docs` writes it."""
    assert (ROOT / "docs" / "causes.md").read_text() == causes_page()

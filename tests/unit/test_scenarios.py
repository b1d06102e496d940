"""Nothing of the scenarios on real hosts is left out unseen, and no secret passes unseen through them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCENARIOS = sorted(path.parent for path in ROOT.glob("molecule/*/molecule.yml"))
GOOD = """
INFO     one ➜ discovery: scenario test matrix: destroy, create, prepare, side_effect a.yml, verify
TASK [Show a decoy in the arguments of a process] ***
changed: [db1] => {"cmd": ["python3", "-c", "import time; time.sleep(1)", "canary-decoy-db1"]}
SCENARIO RECAP
one                       : actions=5  successful=5  disabled=0  skipped=0  missing=0  failed=0
"""


@pytest.fixture(scope="module")
def script() -> Any:
    """scripts/molecule as a module."""
    loader = SourceFileLoader("scripts_molecule", str(ROOT / "scripts" / "molecule"))
    spec = spec_from_loader(loader.name, loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_a_run_that_did_everything_is_green(script: Any) -> None:
    assert script.wrong_with(GOOD, 0) == []
    assert script.secrets_in(GOOD, set(), {"db1"}) == []


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (GOOD, 1, "molecule ended with 1"),
        ("", 0, "not every one of 0 steps was carried out"),
        (
            GOOD.replace("successful=5  disabled=0  skipped=0", "successful=4  disabled=0  skipped=1"),
            0,
            "5 steps",
        ),
        (
            GOOD.replace("successful=5  disabled=0  skipped=0  missing=0", "successful=4  missing=1"),
            0,
            "5 steps",
        ),
        (GOOD.replace("actions=5  successful=5", "actions=4  successful=4"), 0, "not every one of 5 steps"),
        (re.sub("^one .*", "", GOOD, flags=re.MULTILINE), 0, "not every one of 5 steps"),
        (f"{GOOD}skipping: no hosts matched\n", 0, "a play had no hosts"),
    ],
)
def test_what_molecule_passes_over_is_told(script: Any, text: str, status: int, said: str) -> None:
    (words,) = script.wrong_with(text, status)
    assert said in words


@pytest.mark.parametrize(
    ("text", "found", "decoys", "said"),
    [
        (f"{GOOD}password=canary-owner-51d0", set(), {"db1"}, "a secret is in the output: canary-owner-51d0"),
        (
            GOOD,
            {"in the arguments of a process: psql ***"},
            {"db1"},
            "a secret is in the arguments of a process: psql",
        ),
        (GOOD, set(), {"db2"}, "the processes of db1 were not watched"),
        (GOOD.replace("canary-decoy-db1", ""), set(), {"db1"}, "no host showed a decoy"),
    ],
)
def test_a_secret_or_a_blind_watch_is_told(
    script: Any, text: str, found: set[str], decoys: set[str], said: str
) -> None:
    (words,) = script.secrets_in(text, found, decoys)
    assert said in words


def test_there_is_something_to_run(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert script.scenarios() == [path.name for path in SCENARIOS]
    assert {"default", "hosts", "incident"} <= set(script.scenarios())
    named = re.findall(r"scripts/molecule (.+)", (ROOT / "Makefile").read_text())
    assert set(" ".join(named).split()) == set(script.scenarios()), "make runs every scenario"
    monkeypatch.setattr(script, "ROOT", tmp_path)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "test-hosts").symlink_to("/bin/true")
    with pytest.raises(SystemExit, match="no scenario"):
        script.main([])


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.name)
def test_every_playbook_of_a_scenario_is_one_of_its_steps(scenario: Path) -> None:
    shared = yaml.safe_load((ROOT / ".config" / "molecule" / "config.yml").read_text())
    own = yaml.safe_load((scenario / "molecule.yml").read_text()) or {}
    steps = own.get("scenario", shared["scenario"])["test_sequence"]
    named = {Path(step.split()[1]).name for step in steps if " " in step} | {f"{step}.yml" for step in steps}
    assert {path.name for path in scenario.glob("*.yml")} - {"molecule.yml"} <= named
    assert {"destroy", "create", "prepare", "converge"} <= set(steps)
    secrets = "canary-" in "".join(path.read_text() for path in scenario.glob("inventory/*"))
    assert not secrets or "side_effect ../shared/no_leaks.yml" in steps


def test_a_machine_that_cannot_make_hosts_says_what_to_install(tmp_path: Path) -> None:
    """For somebody who is not root, and of all programs finds the shell's and two more."""
    for program in ("stat", "dirname"):
        (tmp_path / program).symlink_to(shutil.which(program) or "")
    tmp_path.chmod(0o755)
    nobody: Any = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        ["/bin/bash", "-s"],
        stdin=(ROOT / "scripts" / "test-hosts").open(),
        env={"PATH": str(tmp_path)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **nobody,
    )
    assert done.returncode == 1, done.stdout
    assert "missing: podman" in done.stderr
    assert "apt-get install" in done.stderr.splitlines()[-1]
    assert "make test-fast" in (ROOT / "Makefile").read_text().partition("\nimages:")[2].partition("\n\n")[0]


# -- tests -------------------------------------------------------------------------------------------------

PASSES = "def test_passes(): pass\n"


@pytest.mark.parametrize(
    ("text", "arguments", "status"),
    [
        (PASSES, [], 0),
        (
            f"import pytest\n{PASSES}@pytest.mark.skip(reason='no time')\ndef test_is_left_out(): pass\n",
            [],
            9,
        ),
        (f"{PASSES}def test_is_left_out():\n    import pytest\n    pytest.skip('no time')\n", [], 9),
        (f"{PASSES}def test_is_left_out(): pass\n", ["-k", "passes"], 9),
        (f"import pytest\n@pytest.mark.skip\n{PASSES}def test_fails(): assert 0\n", [], 9),
    ],
    ids=["all run", "marked", "skips itself", "deselected", "beside a failure"],
)
def test_what_was_left_out_fails_in_ci(tmp_path: Path, text: str, arguments: list[str], status: int) -> None:
    (tmp_path / "test_one.py").write_text(text)
    (tmp_path / "test_other.py").write_text(PASSES)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "--rootdir",
        tmp_path,
        tmp_path,
        *arguments,
    ]
    environ = {name: value for name, value in os.environ.items() if name != "CI"}
    for more, wanted in (({}, int("assert 0" in text)), ({"CI": "true"}, status)):
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**environ, **more},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == wanted, done.stdout + done.stderr
        assert ("in CI no test may be" in done.stdout) == (wanted == 9)


# -- the watch ---------------------------------------------------------------------------------------------


def watched(script: Any, *arguments: str, user: int | None = None, **environ: str) -> Any:
    """Where a watch for `planted-…` saw one in a process that lives until the watch saw the process."""
    patterns, mark = (
        (re.compile("planted-[a-z]+"), re.compile("decoyed-([a-z]+)")),
        dict([script.MARK.split("=")]),
    )
    command = ["/bin/sh", "-c", "echo; read line", "sh", *arguments, "decoyed-here"]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with (
        script.Watch(*patterns) as watch,
        subprocess.Popen(command, **pipes, env={**mark, **environ}, user=user, cwd="/") as process,
    ):
        assert process.stdin and process.stdout
        process.stdout.readline()
        until(lambda: bool(watch.decoys))
        seen = watch.looks[str(process.pid)]
        until(lambda: watch.looks[str(process.pid)] > seen + 1)  # so a whole look is over
    assert watch.decoys == {"here"}
    return watch.found


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_watch_sees_arguments(script: Any) -> None:
    assert watched(script) == set()
    (found,) = watched(script, "password=planted-secret")
    assert found.startswith("in the arguments of a process: ")
    assert "password=*** decoyed-here" in found


@pytest.mark.parametrize(("user", "seen"), [(33, False), (65534, True)])
def test_the_watch_sees_the_environment_of_people(script: Any, user: int, seen: bool) -> None:
    """A service's user may have its secret there; who logs in may not."""
    own = os.geteuid()
    found = watched(script, user=user if own == 0 else None, PASSWORD="planted-secret")
    assert [words.partition(":")[0] for words in found] == (
        ["in the environment of a person's process"] if (seen if own == 0 else own >= 1000) else []
    )

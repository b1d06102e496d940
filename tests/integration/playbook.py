"""`ansible-playbook diagnose.yml` (or another playbook) as a person types it from the root of a clone, and what it left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from runbook.common import documents
from runbook.evidence import proc
from tests.lab.lab import ROOT, Lab

COMMAND = Path(sys.executable).with_name("ansible-playbook")
DEADLINE_SECONDS = 120

Variables = Mapping[str, Any]


class Diagnosis:
    """One run. `place` is where it writes: `reports/`, the host's `state/` and a `home/` of its own; runs
    that are given the same place meet each other's lock and cool-down there.

    Starts at once; `wait()` until it ended. Then: `status`, `lines` [(second, text)], `output`. `report(host)`
    and the like read what was written, each checked against its schema.
    """

    def __init__(
        self,
        inventory: Path | None,
        place: Path,
        *arguments: str,
        environment: Variables | None = None,
        playbook: str | Path = "diagnose.yml",
    ) -> None:
        self.reports = place / "reports"
        self.state = place / "state"
        self.home = place / "home"
        self.home.mkdir(exist_ok=True)
        self.lines: list[tuple[float, str]] = []
        self.status: int | None = None
        own = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        command = [str(COMMAND), *(["-i", str(inventory)] if inventory else []), str(playbook)]
        # As JSON: after `-e NAME=VALUE` a blank in a path would end the value.
        places = {"diagnose_reports": str(self.reports), "diagnose_state_directory": str(self.state)}
        command += ["-e", json.dumps(places)]
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            # Into a pipe Ansible's lines come in blocks otherwise, and when each was said is looked at here.
            env={**own, "PYTHONUNBUFFERED": "1", "HOME": str(self.home), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.lines.append((time.monotonic() - self._began, line.rstrip("\n")))

    def wait(self) -> Diagnosis:
        """The run when it has ended; after two minutes it is killed, and the test fails."""
        try:
            self.status = self._process.wait(DEADLINE_SECONDS)
        finally:
            self.end()
        return self

    def end(self) -> None:
        """Kill what is left of it; nothing where it ended by itself."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(5)

    @property
    def output(self) -> str:
        return "".join(f"{line}\n" for _, line in self.lines)

    @property
    def words(self) -> str:
        """The output with every run of blanks and line ends as one blank: for a text that may be wrapped."""
        return " ".join(self.output.split())

    def second_of(self, words: str) -> float:
        """When the first line that holds these words was printed, in seconds since the command was typed."""
        return next(second for second, line in self.lines if words in line)

    # -- what it wrote -------------------------------------------------------------------------------------

    @property
    def run(self) -> Path:
        """The directory of this run; `reports/latest` is that of the newest."""
        told = re.search(r"run (\S+), reports go to", self.output)
        assert told, self.output
        return self.reports / told.group(1)

    def document(self, name: str) -> dict[str, Any]:
        """A document of this run, valid."""
        loaded: dict[str, Any] = json.loads((self.run / name).read_text())
        documents.validate(loaded)
        return loaded

    def report(self, host: str = "web-1") -> dict[str, Any]:
        return self.document(f"hosts/{host}.json")

    def evidence(self, host: str = "web-1") -> dict[str, Any]:
        return self.document(f"evidence/{host}.json")

    def action(self, host: str = "web-1") -> dict[str, Any]:
        """The one action of a host's report."""
        (action,) = self.report(host)["actions"]
        assert isinstance(action, dict)
        return action

    def audit(self) -> list[dict[str, Any]]:
        """The lines of the audit log on the host, oldest first."""
        return audit_lines(self.state / "audit.log")


def diagnose(
    inventory: Path | None,
    place: Path,
    *arguments: str,
    environment: Variables | None = None,
    playbook: str | Path = "diagnose.yml",
) -> Diagnosis:
    """A run, from its start to its end."""
    return Diagnosis(inventory, place, *arguments, environment=environment, playbook=playbook).wait()


def audit_lines(path: Path) -> list[dict[str, Any]]:
    """An audit log's lines, oldest first; none where there is no log."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def inventory(
    lab: Lab, path: Path, apps: Mapping[str, Variables] | None = None, postgres: Variables | None = None
) -> Path:
    """Write the lab's inventory to `path` with other app hosts and other variables; the path.

    `apps`: name → variables that replace those of the lab's web-1; all of them are the one app of the lab.
    `postgres`: the same for db-1. A variable that is None is left out.
    """
    children = yaml.safe_load(lab.inventory.read_text())["all"]["children"]
    app, database = children["app"]["hosts"]["web-1"], children["postgres"]["hosts"]["db-1"]

    def merged(own: Variables, changes: Variables) -> dict[str, Any]:
        return {name: value for name, value in {**own, **changes}.items() if value is not None}

    hosts = {name: merged(app, changes) for name, changes in (apps or {"web-1": {}}).items()}
    groups = {"app": {"hosts": hosts}, "postgres": {"hosts": {"db-1": merged(database, postgres or {})}}}
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump({"all": {"children": groups}}))
    return path


def identities(lab: Lab) -> list[tuple[int, int]]:
    """(pid, start time in ticks) of every process of the app."""
    found = (proc.stat(pid) for pid in lab.app_pids())
    return sorted((one["pid"], one["start_ticks"]) for one in found if one)


@contextmanager
def untouched(lab: Lab) -> Iterator[None]:
    """Whatever happens inside: the app's processes are the same afterwards."""
    before = identities(lab)
    yield
    assert identities(lab) == before


def script(path: Path, text: str) -> str:
    """Write an executable shell script; its path."""
    path.write_text(f"#!/bin/sh\nset -eu\n{text}\n")
    path.chmod(0o700)
    return str(path)

"""A run's directory on the controller, and the progress lines. Shared by the action plugins."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Optional

import jsonschema  # noqa: F401 - here it is loaded once for the run; where it is used, once for each host
from ansible.errors import AnsibleActionFail
from ansible.utils.color import stringc
from ansible.utils.display import Display

from ..module_utils.runbook.common import documents
from ..module_utils.runbook.common.clock import rfc3339
from ..module_utils.runbook.common.documents import file_name
from ..module_utils.runbook.report.history import DAYS
from ..module_utils.runbook.report.words import plain
from ..module_utils.runbook.verdict.facts import Facts

EARLIER = 100  # runs that are looked through for the same cause; and in any case those of the days that count

FEW = 3  # up to so many hosts everything is shown as it happens; above, only what is not as it should be


class Run:
    """``reports/<run id>/``: evidence first, then what was done, then the reports.

    Every file is written whole or not at all, mode 0600, below directories of mode 0700.
    """

    def __init__(self, directory: str, started: float) -> None:
        self.path = Path(directory)
        self.started = started
        self.display = Display()

    @classmethod
    def create(cls, reports: str) -> Run:
        """A new run; ``reports`` is relative to where the command was typed."""
        now = time.time()
        run_id = time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime(now)) + f"-{os.urandom(2).hex()}"
        path = Path(reports).expanduser().absolute() / run_id
        try:
            path.mkdir(mode=0o700, parents=True)
            path.parent.chmod(0o700)
        except OSError as error:
            raise AnsibleActionFail(f"diagnose_reports: {path}: {error.strerror}") from error
        return cls(str(path), now)

    @classmethod
    def of(cls, task_vars: dict[str, Any]) -> Run:
        """The run that the first play created."""
        told = task_vars.get("ansible_facts", {}).get("runbook_run")
        if not told:
            raise AnsibleActionFail("no run was begun: start with a playbook of this collection")
        return cls(told["directory"], told["started"])

    @classmethod
    def begun(cls, task_vars: dict[str, Any]) -> Run:
        """The run that the first play created; a new one for a role in a play of somebody's own."""
        if task_vars.get("ansible_facts", {}).get("runbook_run"):
            return cls.of(task_vars)
        return cls.create(task_vars.get("diagnose_reports", "reports"))

    @property
    def id(self) -> str:
        """The name of the run."""
        return self.path.name

    @property
    def shown(self) -> str:
        """Where ``latest`` is, as a person at the controller types it."""
        latest, cwd = self.path.parent / "latest", Path.cwd()
        return str(latest.relative_to(cwd)) if latest.is_relative_to(cwd) else str(latest)

    def facts(self, **more: list[str]) -> dict[str, Any]:
        """What later tasks need to find the run again, and ``more``: hosts that one of them is meant for."""
        return {"runbook_run": {"directory": str(self.path), "started": self.started, **more}}

    def say(self, host: str, words: str) -> None:
        """One progress line: seconds since the run began, host, what happened."""
        self.display.display(plain(f"{time.time() - self.started:4.0f} s  {host}   {words}"))

    def write(self, name: str, document: dict[str, Any]) -> str:
        """Validate and write one of the documents with a schema; its SHA-256."""
        return documents.write(self.path / name, document)

    def note(self, name: str, value: dict[str, Any]) -> None:
        """Write a working note of the run (no schema)."""
        documents.write_text(self.path / name, json.dumps(value, indent=1))

    def load(self, name: str) -> Optional[dict[str, Any]]:
        """A document or note of this run; None when it was not written."""
        try:
            loaded: dict[str, Any] = json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return None
        return loaded

    def digest(self, name: str) -> str:
        """The SHA-256 of a file of this run."""
        return hashlib.sha256((self.path / name).read_bytes()).hexdigest()

    def hosts(self) -> dict[str, str]:
        """Every app host that this run was asked to read, reached or not, and the name of its database."""
        asked = [json.loads(path.read_text()) for path in (self.path / "evidence").glob("*.asked")]
        return {one["host"]: one["label"] for one in sorted(asked, key=lambda one: str(one["host"]))}

    def evidence_of(self, host: str) -> Optional[dict[str, Any]]:
        """The evidence of an app host; None where there is none."""
        return self.load(f"evidence/{file_name(host)}.json")

    def missed(self, host: str) -> Optional[str]:
        """Why a host gave no evidence; None where that is not known."""
        return (self.load(f"evidence/{file_name(host)}.missed") or {}).get("why")

    def database_of(self, label: str) -> Optional[dict[str, Any]]:
        """The evidence of the database that an app host belongs to."""
        return self.load(f"databases/{file_name(label)}.json")

    def was_read(self, label: str) -> bool:
        """Whether a database could be asked."""
        return (Facts(None, self.database_of(label)).connection or {}).get("ok") is True

    def earlier(self, host: str) -> list[dict[str, Any]]:
        """The reports of a host in the newest `EARLIER` runs before this one, and in all of the days that are
        counted; an unreadable one is left out."""
        runs = sorted(p.name for p in self.path.parent.iterdir() if p.is_dir() and not p.is_symlink())
        before = [name for name in runs if name < self.id]
        counted = time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime(self.started - DAYS * 86400))
        found = []
        for name in {*before[-EARLIER:], *(name for name in before if name >= counted)}:
            path = self.path.parent / name / "hosts" / f"{file_name(host)}.json"
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(path.read_text()))
        return found

    def notes(self, folder: str) -> dict[str, dict[str, Any]]:
        """The notes of a folder, by host."""
        return {path.stem: json.loads(path.read_text()) for path in (self.path / folder).glob("*.json")}

    def append(self, name: str, line: dict[str, Any]) -> None:
        """One line in a log beside the runs: when, who and in which run, and ``line``; ``audit.log``, ``rollouts.jsonl``."""
        line = {"at": rfc3339(time.time()), "who": who(), "run_id": self.id, **line}
        path = self.path.parent / name
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def publish(self) -> None:
        """Let ``latest`` point to this run."""
        link = self.path.parent / f".latest-{os.getpid()}"
        link.symlink_to(self.path.name)
        link.replace(self.path.parent / "latest")


def who() -> str:
    """The person at the controller, for locks and audit lines."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def coloured(screen: str, state: str) -> str:
    """The screen with its state words coloured; Ansible decides whether there are colours at all."""
    colors = {"HEALTHY": "green", "RESTORED": "green", "UNKNOWN": "yellow"}
    color = next((color for word, color in colors.items() if state.startswith(word)), "red")
    return screen.replace(state, stringc(state, color), 1)

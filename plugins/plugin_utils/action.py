"""What the action plugins of this collection have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Optional

from ansible.plugins.action import ActionBase


class Action(ActionBase):
    """Works in check mode too, and has changed nothing unless its answer says so."""

    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """What Ansible calls; the plugin's own work is ``answer``, from the variables of the task."""
        return {**super().run(tmp, task_vars), "changed": False, **self.answer(task_vars or {})}

    @abstractmethod
    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The result of the task."""


class OnController(Action):
    """Runs on the controller, whatever hosts there are."""

    _requires_connection = False


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are set to something."""
    return {key: value for key, value in arguments.items() if value not in (None, "", [])}


def no_answer(answer: dict[str, Any]) -> str:
    """Why a module gave no answer: the line that says most, a traceback's last, of everything else the first."""
    words = str(answer.get("module_stderr") or answer.get("msg") or answer.get("exception") or "")
    lines = [line.strip() for line in words.splitlines() if line.strip()] or ["no answer"]
    return lines[-1 if "Traceback (most recent call last)" in words else 0][:300]

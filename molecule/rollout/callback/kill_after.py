"""Kills the controller, all of it and at once, after a number of results of tasks on the hosts KILL_HOSTS."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

from runbook.evidence import proc


def kill(controller: int) -> None:
    """Kill a process and all that it started, whatever sessions they made of their own; ourselves last."""
    parents = {pid: info["ppid"] for pid in proc.pids() if (info := proc.stat(pid))}
    family = [controller]
    for above in family:
        family += [pid for pid, parent in parents.items() if parent == above]
    for pid in sorted(family, key=os.getpid().__eq__):
        with suppress(ProcessLookupError):  # it ended by itself
            os.kill(pid, signal.SIGKILL)


class CallbackModule(CallbackBase):
    """Counts results; with KILL_AFTER=0 it only writes how many there were to KILL_COUNT."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kill_after"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._seen = 0
        self._hosts = os.environ.get("KILL_HOSTS", "").split()
        self._after = int(os.environ.get("KILL_AFTER", "0"))

    def _count(self, result: Any, **_: Any) -> None:
        if result.host.get_name() not in self._hosts:
            return
        self._seen += 1
        Path(os.environ["KILL_COUNT"]).write_text(
            f"{self._seen} {result.host.get_name()}: {result.task.get_name()}"
        )
        if self._seen == self._after:
            kill(os.getpid())

    v2_runner_on_ok = v2_runner_on_failed = v2_runner_on_skipped = v2_runner_on_unreachable = _count

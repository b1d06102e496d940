"""The one start or restart, on the target: locked, audited, and proven by new processes and a login.

The lock is the kernel's (flock), so it ends with the process that holds it and nobody has to clear it
after a run that was killed; the file names its holder for whoever comes second.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Optional

from ..common.clock import rfc3339, seconds_of
from ..common.masking import Masker
from ..evidence import login, proc, process, settings

_POLL = 0.1  # seconds between two looks; there is no event for "a new process listens"
_COMMAND_SECONDS = 90.0


class Refused(Exception):
    """The action was not begun; the text says why and what would allow it."""


class Failed(Exception):
    """The action was begun and did not do what it should."""


def act(request: dict[str, Any]) -> dict[str, Any]:
    """Do what ``request`` asks (the arguments of the module ``service``); never raises for a refusal.

    Returns ``{result: done|failed|refused, why, before, after, seconds, login}``.
    """
    began = time.monotonic()
    state = process.state_directory(request.get("state_directory"))
    outcome: dict[str, Any] = {"result": "done", "why": "", "before": request["before"]}
    outcome.update(after=[], login=None)
    unit = process.systemd_unit(request.get("service"))
    app = settings.collect(request.get("environment_file"), unit, [])
    masker = Masker([request.get("login_password"), *app.secrets])
    try:
        with Lock(state, request["who"], request["run_id"]):
            try:
                _refuse_within_cooldown(state, request)
                _refuse_other_processes(request)
                _refuse_bad_configuration(request, masker)
                _run(request, masker)
                outcome["after"] = _wait_for_new_processes(request)
                outcome["login"] = prove(request)
                outcome["why"] = f"ready after {time.monotonic() - began:.1f} s"
                if not outcome["login"]["ok"]:
                    detail = outcome["login"]["detail"]
                    raise Failed(f"every process is new, and the login still fails: {detail}")
            except Failed as failed:
                outcome.update(result="failed", why=masker.text(str(failed)))
            except Refused as refused:
                outcome.update(result="refused", why=masker.text(str(refused)))
            finally:
                outcome["login"] = masker.document(outcome["login"])
                if outcome["result"] != "refused":
                    outcome["after"] = outcome["after"] or identities(request)[0]
                outcome["seconds"] = round(time.monotonic() - began, 3)
                _audit(state, request, outcome)
    except Refused as refused:
        outcome.update(result="refused", why=str(refused), seconds=round(time.monotonic() - began, 3))
    return outcome


class Lock:
    """This host's lock. Raises Refused, naming the holder, when somebody else has it for ``patience`` seconds."""

    def __init__(self, directory: Path, who: str, run_id: str, patience: float = 0.0) -> None:
        self._directory, self._who, self._run_id = directory, who, run_id
        self._deadline = time.monotonic() + patience
        self._handle: Optional[int] = None

    def __enter__(self) -> Lock:
        try:
            self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._handle = os.open(
                self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise Refused(
                f"{self._directory}: {error.strerror}; set diagnose_state_directory to one that can be written"
            ) from error
        try:
            self._take(self._handle)
        except BlockingIOError as error:
            holder = process.lock_holder(self._directory) or {}
            os.close(self._handle)
            raise Refused(
                f"{holder.get('who', 'somebody')} is acting on this host since {holder.get('since', 'just now')}"
                f" (run {holder.get('run_id', 'unknown')}); this run only read"
            ) from error
        os.fchmod(self._handle, 0o644)  # whatever the umask: everybody may see who acts
        own = proc.stat(os.getpid()) or {}
        words = {"who": self._who, "run_id": self._run_id, "since": rfc3339(time.time()), "pid": os.getpid()}
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, json.dumps({**words, "start_ticks": own.get("start_ticks")}).encode(), 0)
        return self

    def _take(self, handle: int) -> None:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= self._deadline:
                    raise
            time.sleep(_POLL)  # waiting inside flock would need a signal to end in time

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)


def _refuse_within_cooldown(state: Path, request: dict[str, Any]) -> None:
    last = process.last_action(state, _what(request))
    at = seconds_of((last or {}).get("at"))
    if not last or at is None:
        return
    ago = time.time() - at
    if 0 <= ago < request["cooldown"]:
        raise Refused(
            f"{last.get('action')} {ago:.0f} s ago by {last.get('who')} (run {last.get('run_id')},"
            f" {last.get('cause')}); the cool-down is {request['cooldown']:.0f} s (diagnose_cooldown)"
        )


def _what(request: dict[str, Any]) -> str:
    """What is acted on: the unit, or the program that restarts the app."""
    return str(request.get("service") or request["command"][0])


def _refuse_other_processes(request: dict[str, Any]) -> None:
    if _keys(identities(request)[0]) != _keys(request["before"]):
        raise Refused(
            "the processes are not those that the evidence was read from: something restarted them meanwhile; run it again"
        )


def _refuse_bad_configuration(request: dict[str, Any], masker: Masker) -> None:
    command = request.get("check_config_command")
    if not command:
        return
    status, words = call(command, 30.0)
    if status != 0:
        raise Refused(
            f"the configuration on disk is refused by {command[0]} (exit status {status}): {masker.text(words)[-300:]}"
        )


def _run(request: dict[str, Any], masker: Masker) -> None:
    command = (
        ["systemctl", request["action"], request["service"]] if request.get("service") else request["command"]
    )
    status, words = call(command, _COMMAND_SECONDS)
    if status != 0:
        raise Failed(f"{' '.join(command)}: exit status {status}: {masker.text(words)[-300:].strip()}")


def call(
    command: list[str], seconds: float, environ: Optional[dict[str, str]] = None, user: Optional[str] = None
) -> tuple[int, str]:
    """(exit status, the end of what it printed). Its output goes to a file: a child that it leaves behind
    may keep that open for ever, where a pipe would be waited for. ``user``: only root can give one."""
    identity: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=seconds,
                check=False,
                start_new_session=True,
                cwd="/",
                env=environ,
                **identity,
            )
            status = done.returncode
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{' '.join(command)}: not done within {seconds:.0f} s") from error
        except OSError as error:
            raise Failed(f"{command[0]}: {error.strerror}") from error
        output.seek(max(0, output.seek(0, os.SEEK_END) - 2000))
        return status, output.read().decode("utf-8", "replace")


def identities(request: dict[str, Any]) -> tuple[list[dict[str, int]], Optional[bool]]:
    """((pid, start_ticks) of every process of the service, whether anything listens on the login's port)."""
    port = login.port_of(request["login_url"])
    _, pids, listening = process.running(request.get("service"), request.get("pid_file"), port)
    alive = (one for one in map(proc.stat, pids) if one and one["state"] != "Z")
    return [{"pid": one["pid"], "start_ticks": one["start_ticks"]} for one in alive], listening


def _keys(rows: list[dict[str, Any]]) -> set[tuple[Any, Any]]:
    return {(row.get("pid"), row.get("start_ticks")) for row in rows}


def _wait_for_new_processes(request: dict[str, Any]) -> list[dict[str, int]]:
    """The new processes, once the port is listened on and not one old process is left."""
    deadline = time.monotonic() + request["ready_timeout"]
    old = _keys(request["before"])
    left: set[tuple[Any, Any]] = set()
    while time.monotonic() < deadline:
        now, listening = identities(request)
        left = old & _keys(now)
        if listening and now and not left:
            return now
        time.sleep(_POLL)
    words = f"pid {min(left)[0]} is still the old process" if left else "nothing listens on the login's port"
    raise Failed(f"not ready within {request['ready_timeout']:.0f} s: {words}")


def prove(request: dict[str, Any]) -> dict[str, Any]:
    """One login until the app is ready, then a whole round of them."""
    deadline = time.monotonic() + request["ready_timeout"]
    probe = login.Probe(request["login_url"], request.get("login_username"), request.get("login_password"))
    while time.monotonic() < deadline:
        first = probe.round(1)
        if first["ok"] or not set(first["by_status"]) <= {"refused", "reset", "503"}:
            break
        time.sleep(_POLL)
    attempts = request["login_attempts"] or max(3, 2 * len(identities(request)[0]))
    return {"kind": probe.kind, **probe.round(attempts)}


def _audit(state: Path, request: dict[str, Any], outcome: dict[str, Any]) -> None:
    pids = {key: [row.get("pid") for row in outcome[key]] for key in ("before", "after")}
    login_ok = bool(outcome["login"] and outcome["login"]["ok"])
    line = {"action": request["action"], "what": _what(request), "cause": request["cause"]}
    audit(state, request, outcome, {**line, **pids, "login_ok": login_ok})


def audit(state: Path, request: dict[str, Any], outcome: dict[str, Any], line: dict[str, Any]) -> None:
    """One line in this host's audit log, which everybody may read: when, who, in which run, what came of it."""
    who = {key: request[key] for key in ("who", "run_id")}
    line = {"at": rfc3339(time.time()), **who, **line, **{key: outcome[key] for key in ("result", "why")}}
    handle = os.open(
        state / "audit.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    os.fchmod(handle, 0o644)
    with os.fdopen(handle, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")

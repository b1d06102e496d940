"""An app's configuration brought into use on its host, or everything as it was: one transaction, on the target.

What is *loaded* decides: the values that the running processes tell, not what this run changed. The journal
beside the environment file is written before anything is touched and removed when all is proven. While it
is there the host is out of traffic and not done; whoever comes next, after a controller that was killed, a
lost connection or a power cut, goes on from it: to the values that he brings, or back to those that it keeps.
A mark beside it is there as long as a load balancer is to be told that the host is back.
"""

from __future__ import annotations

import contextlib
import grp
import http.client
import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional, TypeVar

from ..common.clock import rfc3339
from ..common.documents import write_whole
from ..common.masking import Masker
from ..common.settings import key_of, same
from ..evidence import login, new_connection, proc, process, settings, step2_pool
from ..evidence.wire import WireError
from .service import Failed, Lock, Refused, audit, call, prove

_HEADER = "# Ansible managed (role rollout of pool.runbook): what is edited here is overwritten.\n"
_POLL = 0.2  # seconds between two looks; no event tells that a service is ready, or a connection gone
_ASK, _CONNECT, _CHECK, _LOGIN, _RESTART = 2.0, 10.0, 30.0, 20.0, 120.0  # seconds for one of each
_MOST = 100  # logins that may find a dead connection before the host counts as ill
_DRAINED = "out of traffic"  # what /readyz says when nothing else keeps it from being ready
_WILL_PASS = {"200", "timeout", "503", "refused", "reset"}  # answers to a login that a cold or busy app gives
_HIDDEN = "(secret)"
# What the server gives to all pools together; others' sessions are visible to every role, by their owner.
_HEADROOM = """
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
             - coalesce(nullif(current_setting('reserved_connections', true), ''), '0')::int AS slots,
           (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND usesysid <> r.oid) AS others,
           r.rolconnlimit AS role_limit, d.datconnlimit AS database_limit,
           (SELECT count(*) FROM pg_stat_activity a WHERE a.datid = d.oid AND a.usesysid <> r.oid) AS others_here,
           (SELECT setting FROM pg_settings WHERE name = 'idle_session_timeout') AS idle_milliseconds
    FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()"""
_COUNTED = ("slots", "others", "others_here", "role_limit", "database_limit")

# What may break on the way, beside what the steps themselves find: a full disk, a missing directory, half an answer.
_BREAKS = (Failed, OSError, ValueError, http.client.HTTPException)

Request = dict[str, Any]
Values = dict[str, str]
Told = TypeVar("Told")


class Seen(NamedTuple):
    """The host as it is at one moment."""

    unit: dict[str, str]
    pid: int  # of the main process; 0 without one
    environ: Values  # that it was started with
    pools: list[dict[str, Any]]  # a row for each process with a status socket, see step2_pool
    journal: Optional[dict[str, Any]]
    texts: dict[str, Optional[str]]  # path → what is on disk
    mark: Optional[dict[str, Any]] = None  # who took it out of the balancer, and did not bring it back


# -- the values ------------------------------------------------------------------------------------------


def render(values: Mapping[str, Any]) -> str:
    """An environment file as systemd reads it. Raises Refused for what one line cannot hold."""
    for name, value in values.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or re.search(r"[\x00-\x1f]", str(value)):
            raise Refused(f"{name}: allowed are a variable's name, and a value of one line")
    quoted = {name: str(value).replace("\\", "\\\\").replace('"', '\\"') for name, value in values.items()}
    return _HEADER + "".join(f'{name}="{value}"\n' for name, value in sorted(quoted.items()))


def parse(texts: Iterable[Optional[str]]) -> Values:
    """The variables of environment files; a later one overrides."""
    return {n: e["value"] for text in texts for n, e in settings.parse(text or "", "").items()}


def idle_problems(values: Mapping[str, str], cut: float, server_cut: float) -> list[str]:
    """What of these values outlives a silence of ``cut`` seconds on the path, or ``server_cut`` on the server.

    0 is a cut that is not known.
    """
    lifetime, idle = float(values["POSTGRES_POOL_CONNECTION_LIFETIME"]), values["POSTGRES_KEEPALIVES_IDLE"]
    problems = []
    for name, seconds in ("rollout_idle_cut_seconds", cut), ("the server's idle_session_timeout", server_cut):
        if seconds and not 0 < lifetime < seconds:
            problems.append(
                f"postgres_pool_connection_lifetime is {lifetime:g}: allowed is more than 0 and less than"
                f" {seconds:g} s ({name})"
            )
    if cut and float(idle) >= cut:
        problems.append(
            f"postgres_keepalives_idle is {idle}: allowed is less than {cut:g} s (rollout_idle_cut_seconds)"
        )
    return problems


def _text(value: object) -> str:
    """As a person writes it: 7, not 7.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def pool_differences(status: Mapping[str, Any], values: Mapping[str, str]) -> list[tuple[str, str]]:
    """(variable, value of the running pool) where it is another than in ``values``.

    What was changed at run time for a while is passed over: the process itself takes it back.
    """
    told = {**{key: status[key] for key in ("host", "port", "database", "user")}, **status["config"]}
    for override in status["overrides"]:
        told.pop(key_of(override["name"]), None)
    wanted = {name: value for name, value in values.items() if name.startswith("POSTGRES_")}
    found = ((name, told.get(key_of(name)), value) for name, value in wanted.items())
    return [(name, _text(has)) for name, has, value in found if has is not None and not same(str(has), value)]


# -- looking ---------------------------------------------------------------------------------------------


def _unit(request: Request) -> dict[str, str]:
    """What systemd says of the service. Raises Failed without an answer, which is not the same as no process."""
    words = f"systemd tells nothing of {request['service']} within {_CHECK:g} s"
    return _await(lambda: process.systemd_unit(request["service"]), _CHECK, words)


def _look(request: Request) -> Seen:
    unit = _unit(request)
    pid = int(unit.get("MainPID") or 0)
    pids = process.service_pids(unit, None, []) if pid else []
    texts = {path: _read(path) for path, _ in _files(request)}
    journal, mark = (json.loads(_read(path) or "null") for path in (_journal(request), _mark(request)))
    pools = step2_pool.collect(pids, request["status_directories"], _ASK)["processes"]
    environ = (settings.environ(pid) if pid else None) or {}
    return Seen(unit, pid, environ, pools, journal, texts, mark)


def _journal(request: Request) -> str:
    return f"{request['environment_file']}.rollout"


def _mark(request: Request) -> str:
    return f"{request['environment_file']}.balancer"


def _read(path: str) -> Optional[str]:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _files(request: Request) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """(path, variables) of what all may read, and of the secrets."""
    return (
        (request["environment_file"], request["variables"]),
        (request["private_file"], request["secrets"]),
    )


def _wanted(request: Request) -> dict[str, Optional[str]]:
    return {path: render(values) for path, values in _files(request)}


def _values(request: Request) -> Values:
    return {name: str(value) for name, value in {**request["variables"], **request["secrets"]}.items()}


def _stale(request: Request, seen: Seen, values: Values) -> dict[tuple[str, str], list[int]]:
    """(name, what the process has) → the processes that were not started with, or have not, ``values``."""
    found: dict[tuple[str, str], list[int]] = {}
    if not seen.pid:
        return found
    kept = ((seen.journal or {}).get("previous") or {}).values()
    for name in {**parse(seen.texts.values()), **parse(kept), **_values(request), **values}:
        if seen.environ.get(name) != values.get(name):
            found.setdefault((name, _shown(request, name, seen.environ.get(name))), []).append(seen.pid)
    for row in seen.pools:
        for name, has in pool_differences(row["status"], values) if row["status"] else []:
            found.setdefault((name, has), []).append(row["pid"])
    ticks = (proc.stat(seen.pid) or {}).get("start_ticks", 0)
    for path in request["newer"]:
        # a second for clocks that are set in between, and for what a start itself writes
        if _newest(path) > proc.boot_time() + ticks / proc.TICKS + 1:
            found.setdefault((path, "older"), []).append(seen.pid)
    return found


def _newest(path: str) -> float:
    """When the file, or anything in the directory, was changed last; 0 where there is none."""
    there = (each for each in (Path(path), *Path(path).rglob("*")) if os.path.lexists(each))
    return max((each.lstat().st_mtime for each in there), default=0.0)


def _shown(request: Request, name: str, value: Optional[str]) -> str:
    return "nothing" if value is None else _HIDDEN if name in request["secrets"] else value


def _differs(request: Request, name: str, has: Optional[str], wanted: Optional[str], where: str) -> str:
    if name in request["secrets"]:
        return f"{name}, a secret, differs{where}"
    if name in request["newer"]:
        return f"{name} is newer than{where.replace(' in', '')}"
    return f"{name} is {_shown(request, name, has)}{where}, wanted {_shown(request, name, wanted)}"


def _owner(request: Request) -> tuple[int, int]:
    return 0o640, grp.getgrnam(request["group"]).gr_gid


def _differs_on_disk(request: Request, seen: Seen) -> bool:
    wanted = _wanted(request)
    if wanted != seen.texts or _halves(request):
        return True
    found = {(s.st_mode & 0o7777, s.st_gid, s.st_uid) for s in map(os.stat, wanted)}
    return found != {(*_owner(request), 0)}


def _ready(url: str) -> str:
    """Why it is not in traffic, in words; empty when it is."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_ASK + 3):
            return ""
    except urllib.error.HTTPError as error:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return str(json.loads(error.read(4096))["reason"])
        return f"{url} answers {error.code}"
    except (OSError, http.client.HTTPException) as error:
        return f"{url}: {getattr(error, 'reason', error)}"


# -- the plan: reads, and changes nothing ----------------------------------------------------------------


def plan(request: Request) -> dict[str, Any]:
    """What ``apply`` would do here and why, and what speaks against it; changes nothing.

    Returns ``{act, write, restart, changes, interrupted, problems, server, connections, slots, limits,
    others}``;
    ``write`` and ``restart`` are lists of words, ``changes`` is name → [running value, wanted value], ``limits``
    has ``[name, connections, how many of them others use]``.
    """
    values = _values(request)
    masker = Masker(request["secrets"].values())
    acting = process.lock_holder(process.state_directory(None))  # before the look: so it is never missed
    seen = _look(request)
    left = seen.journal or seen.mark or acting
    stale = _stale(request, seen, values)
    on_disk = parse(seen.texts.values())
    names = [n for n in sorted({**on_disk, **values}) if on_disk.get(n) != values.get(n)]
    write = [_differs(request, name, on_disk.get(name), values.get(name), "") for name in names]
    changed = {name: _shown(request, name, on_disk.get(name)) for name in names if on_disk}
    changed.update({name: has for name, has in stale if name not in request["newer"]})
    if not on_disk:  # one line for a new host; the diff has them all
        write = [f"there is no file yet, {len(values)} values are wanted"]
    elif not write and _differs_on_disk(request, seen):
        write = ["owner, rights, text that is no variable, or half a file of an interrupted run"]
    restart = [
        _differs(request, name, has, values.get(name), f" in pid {', '.join(map(str, pids))}")
        for (name, has), pids in sorted(stale.items())
    ]
    told: dict[str, Any] = {
        "act": bool(write or stale or left or not seen.pid),
        "write": write,
        "restart": restart,
        "start": not seen.pid,
        "changes": {name: [has, _shown(request, name, values.get(name))] for name, has in changed.items()},
        "interrupted": {key: left.get(key) for key in ("who", "run_id", "since", "step")} if left else None,
        "diff": _diff(request, seen),
        "server": f"{values['POSTGRES_HOST']}:{values['POSTGRES_PORT']}",
        "connections": request["workers"] * int(values["POSTGRES_POOL_MAX_CONNECTIONS"]),
        "slots": None,
        "limits": [],
        "others": None,
        "problems": [],
    }
    if seen.unit.get("LoadState") != "loaded":
        if not request["repair"]:
            told["problems"] = [f"{request['service']} is not on this host: playbooks/site.yml deploys it"]
        return told
    problems = _refused_by_the_app(request, values) + _refused_by_the_server(request, values, told)
    problems += [] if request["repair"] or seen.journal or acting else _ill(request, seen)
    if seen.mark and not request["into_traffic"]:
        problems.append(
            "rollout {run_id} by {who} took it out of the balancer: give rollout_into_traffic, or remove".format(
                **seen.mark
            )
            + f" {_mark(request)} when it is back"
        )
    told["problems"] = [masker.text(words) for words in problems]
    return told


def _diff(request: Request, seen: Seen) -> dict[str, str]:
    """As Ansible shows it; of the file that holds no secret."""
    path = request["environment_file"]
    texts = {"before": seen.texts[path] or "", "after": render(request["variables"])}
    return {**texts, "before_header": path, "after_header": path}


def _refused_by_the_app(request: Request, values: Values) -> list[str]:
    command = request["check_command"]
    if not command:
        return []
    environ = {"PATH": os.environ.get("PATH", os.defpath), **values}
    try:
        status, words = call(command, _CHECK, environ, request["group"] if os.geteuid() == 0 else None)
    except Failed as failed:
        return [str(failed)]
    return [f"the app refuses the values: {' '.join(words.split())}"] if status else []


def _refused_by_the_server(request: Request, values: Values, told: dict[str, Any]) -> list[str]:
    """One new connection with the new values; what it learns about the server goes into ``told``."""
    database, password = settings.database_of(values)
    deadline = time.monotonic() + _CONNECT
    data, connection = new_connection.reach(database or {}, password, deadline)
    if connection is None:
        error = data["error"] or {"text": "the server wants a password, and none is set"}
        return [f"a new connection with the new values fails: {error['text']}"]
    try:
        row = connection.query(new_connection.bounded(_HEADROOM, deadline - time.monotonic()))[0]
    except (WireError, IndexError) as error:
        return [f"the server does not tell its connection slots: {error}"]
    finally:
        connection.close()
    slots, others, here, of_role, of_database = (int(str(row[name])) for name in _COUNTED)
    told.update(slots=slots, others=others)
    limits = (("by the role's limit", of_role, 0), ("by the database's limit", of_database, here))
    told["limits"] = [[name, limit, used] for name, limit, used in limits if limit >= 0]
    server_cut = int(row["idle_milliseconds"] or 0) / 1000
    return idle_problems(values, request["idle_cut_seconds"], server_cut)


def _ill(request: Request, seen: Seen) -> list[str]:
    """What keeps this host from being called healthy."""
    if not seen.pid:
        return [f"not healthy: {request['service']} does not run"]
    mute = [row for row in seen.pools if row["error"]]
    problems = [f"pid {row['pid']} does not tell its pool: {row['error']}" for row in mute]
    problems.insert(0, _ready(request["ready_url"]))
    if request["probe"]:
        probe = login.Probe(request["login_url"], request["login_username"], request["login_password"])
        attempts = request["login_attempts"] or max(3, 2 * len(seen.pools))
        rounds = login.collect(probe, attempts, _MOST, time.monotonic() + _LOGIN)["rounds"]
        problems.append("" if rounds[-1]["ok"] else f"the login fails: {rounds[-1]['detail']}")
    return [f"not healthy: {words}" for words in problems if words]


# -- the transaction -------------------------------------------------------------------------------------


def mark(request: Request) -> dict[str, Any]:
    """Before the balancer is told that the host goes (``operation`` out), and after it was told that it is back."""
    if request["operation"] == "out":
        told = {"who": request["who"], "run_id": request["run_id"], "since": rfc3339(time.time())}
        write_whole(Path(_mark(request)), json.dumps({**told, "step": "the balancer"}), 0o600, 0)
    else:
        Path(_mark(request)).unlink(missing_ok=True)
    return {"result": request["operation"]}


def apply(request: Request) -> dict[str, Any]:
    """Bring the values into use and prove it, or undo it; never raises for either.

    Returns ``{result: unchanged|done|undone|refused, why, healthy, seconds, diff}``; ``healthy`` is whether the
    host was proven at the end, and is in traffic unless somebody else had taken it out.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a lost connection does not end this half way
    began, state = time.monotonic(), process.state_directory(None)
    masker = Masker(request["secrets"].values())
    outcome: dict[str, Any] = {"result": "unchanged", "why": "", "healthy": True}
    try:
        with Lock(state, request["who"], request["run_id"], _patience(request)):
            try:
                _transact(request, outcome)
            finally:
                outcome.update(why=masker.text(outcome["why"]), seconds=round(time.monotonic() - began, 3))
                if outcome["result"] != "unchanged":
                    what = {"action": "rollout", "what": request["environment_file"]}
                    audit(state, request, outcome, what)
    except (Refused, *_BREAKS) as refused:  # before anything was touched: later, what fails is undone
        result = "refused" if outcome["result"] == "unchanged" else outcome["result"]
        why, seconds = masker.text(str(refused)), round(time.monotonic() - began, 3)
        outcome.update(result=result, why=why, seconds=seconds)
    return outcome


def _patience(request: Request) -> float:
    """Seconds in which whoever has the lock is done, also with a change that he undoes."""
    start = 2 * _CHECK + _RESTART + 2 * request["ready_timeout"] + _LOGIN
    return _CONNECT + float(request["drain_seconds"] + request["drain_timeout"] + 2 * start)


def _transact(request: Request, outcome: dict[str, Any]) -> None:
    seen, values = _look(request), _values(request)
    stale = _stale(request, seen, values)
    write = _differs_on_disk(request, seen)
    outcome["diff"] = _diff(request, seen)
    if seen.pid and not (stale or seen.journal):
        if write:
            _write_all(request, _wanted(request))
            outcome.update(result="done", why="the file on disk was another; every process had the values")
        return
    journal = seen.journal or {
        "who": request["who"],
        "run_id": request["run_id"],
        "since": rfc3339(time.time()),
        "previous": _proven(request, seen),
        "in_traffic": not Path(request["drain_file"]).exists() if request["drain_file"] else True,
    }
    _step(request, journal, "drain")
    try:
        _drain(request, seen, journal)
        _step(request, journal, "write")
        _write_all(request, _wanted(request))
        _step(request, journal, "restart")
        main = _restart(request) if stale or not seen.pid else seen.pid
        _step(request, journal, "gate")
        _gate(request, values, main)
        _back(request, journal)
        outcome.update(result="done", why="every process has the values, the app is ready, the login works")
    except _BREAKS as failed:
        outcome.update(result="undone", why=str(failed))
        try:
            _undo(request, journal)
            _back(request, journal)
        except _BREAKS as worse:
            back = f"{outcome['why']}; and with its former values: {worse}; it stays out of traffic"
            outcome.update(healthy=False, why=back)


def _proven(request: Request, seen: Seen) -> dict[str, Optional[str]]:
    """The files that give what runs now: those on disk, unless the process was started with other values."""
    texts = dict(seen.texts)
    if not seen.pid:
        return texts
    for path, wanted in _files(request):
        on_disk = parse([texts[path]])
        if not on_disk or any(seen.environ.get(name) != value for name, value in on_disk.items()):
            names = {*on_disk, *wanted} & seen.environ.keys()
            texts[path] = render({name: seen.environ[name] for name in names})
    return texts


def _step(request: Request, journal: dict[str, Any], name: str) -> None:
    journal["step"] = name
    write_whole(Path(_journal(request)), json.dumps(journal), 0o600, 0)


def _drain(request: Request, seen: Seen, journal: dict[str, Any]) -> None:
    """Out of traffic: the app says that it is not ready, the balancer notices, what is under way ends."""
    drain_file = request["drain_file"]
    if drain_file:
        told = "out of traffic for rollout {run_id} by {who} since {since}\n".format(**journal)
        write_whole(Path(drain_file), told, 0o644, 0)
    if not seen.pid:
        return
    if drain_file and seen.environ.get("APP_DRAIN_FILE") == drain_file:
        words = f"/readyz still says that it is ready after {_CONNECT:g} s"
        _await(lambda: _ready(request["ready_url"]), _CONNECT, words)
    time.sleep(request["drain_seconds"])  # nothing on this host tells what a balancer has noticed
    port, deadline = login.port_of(request["ready_url"]), time.monotonic() + request["drain_timeout"]
    while _connections(port) and time.monotonic() < deadline:  # those left have the app's own time to stop
        time.sleep(_POLL)


def _back(request: Request, journal: dict[str, Any]) -> None:
    if journal["in_traffic"] and request["drain_file"]:
        Path(request["drain_file"]).unlink(missing_ok=True)
    Path(_journal(request)).unlink()


def _connections(port: int) -> int:
    table = proc.tcp_table(os.getpid()).values()
    return sum(row["state"] == "ESTAB" and row["local"].endswith(f":{port}") for row in table)


def _restart(request: Request) -> int:
    """The new main process."""
    call(["systemctl", "reset-failed", request["service"]], _CHECK)
    status, words = call(["systemctl", "restart", request["service"]], _RESTART)
    if status:
        told = " ".join(words.split())
        raise Failed(f"systemctl restart {request['service']}: {told}{_last_words(request)}")
    return int(_unit(request).get("MainPID") or 0)


def _gate(request: Request, values: Values, main: int) -> None:
    """Raises Failed unless every process has the values, its pool stands, the app is ready, the login works."""
    deadline = time.monotonic() + request["ready_timeout"]
    while True:
        seen = _look(request)
        if seen.pid != main or not main:
            raise Failed(f"the process that was started ended{_last_words(request)}")
        words = _not_yet(request, seen, values)
        if not words:
            break
        if time.monotonic() >= deadline:
            raise Failed(f"not ready within {request['ready_timeout']:g} s: {words}")
        time.sleep(_POLL)
    told = prove(request)
    while not told["ok"]:
        if time.monotonic() >= deadline or not _WILL_PASS.issuperset(told["by_status"]):
            raise Failed(f"the login fails: {told['detail']}")
        told = prove(request)


def _not_yet(request: Request, seen: Seen, values: Values) -> str:
    for (name, has), pids in _stale(request, seen, values).items():
        # what is wanted no more and still there is systemd's: it has a PATH, LANG and HOME of its own
        if name in values or name in request["newer"]:
            return f"pid {pids[0]} has {name} {has}"
    pools = [row["status"] for row in seen.pools if row["status"]]
    workers = int(values.get("APP_WORKERS", 1)) if request["status_sockets"] else 0
    if len(pools) < workers:
        return f"{len(pools)} of {workers} processes tell their pool"
    for status in pools:
        count, least = status["count"], status["config"]["min_connections"]
        if count["used"] + count["idle"] < least or not status["monitor"]["alive"]:
            return f"the pool of pid {status['pid']} has {count['idle']} of at least {least} connections"
    words = _ready(request["ready_url"])
    return "" if words == _DRAINED else words


def _undo(request: Request, journal: dict[str, Any]) -> None:
    """What ran before runs again, proven; Failed if it does not."""
    _step(request, journal, "undo")
    _write_all(request, journal["previous"])
    if not any(journal["previous"].values()):
        call(["systemctl", "stop", request["service"]], _RESTART)
        raise Failed("there are none, it is stopped")
    values, seen = parse(journal["previous"].values()), _look(request)
    main = _restart(request) if not seen.pid or _stale(request, seen, values) else seen.pid
    _gate(request, values, main)


def _last_words(request: Request) -> str:
    """The last line of the app's log."""
    lines = proc.end_of(Path(request["log"]), 2000).split("\n")
    return next((f"; the last line of its log: {line[:300]}" for line in reversed(lines) if line.strip()), "")


def _await(asked: Callable[[], Told], seconds: float, words: str) -> Told:
    """The first answer that says something. Raises Failed with ``words`` where none does in time."""
    deadline = time.monotonic() + seconds
    while not (told := asked()):
        if time.monotonic() >= deadline:
            raise Failed(words)
        time.sleep(_POLL)
    return told


def _halves(request: Request) -> list[Path]:
    """What `write_whole` leaves when it is killed; it may hold a secret."""
    drain = [request["drain_file"]] if request["drain_file"] else []
    whole = map(Path, (*(path for path, _ in _files(request)), _journal(request), _mark(request), *drain))
    return [half for path in whole for half in path.parent.glob(f".{path.name}.{'?' * 8}")]


def _write_all(request: Request, texts: Mapping[str, Optional[str]]) -> None:
    for half in _halves(request):
        half.unlink()
    for path, text in texts.items():
        if text is None:
            Path(path).unlink(missing_ok=True)
        else:
            write_whole(Path(path), text, *_owner(request))

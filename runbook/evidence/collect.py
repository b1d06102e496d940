"""One trip to one host: every view at once, each with its deadline, masked before it leaves.

The order of reading is what makes the evidence true: first what must not be disturbed (process, sockets
with the server's unread last words, the pool, the end of the log), then the login probe together with a
new connection, with the sockets watched while both run, then the log lines which the probe caused.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Optional

from ..common.clock import rfc3339, trip_seconds
from ..common.masking import Masker
from . import (
    login,
    new_connection,
    process,
    settings,
    sockets,
    step1_monitor,
    step2_pool,
    step4_leaks,
)
from .log import Follower, log_of
from .proc import join_address
from .threads import Looks

# Wall-clock seconds; the whole trip ends within TRIP_SECONDS whatever hangs, unless slower logins are asked for.
TRIP_SECONDS = trip_seconds(0.0)
_PROCESS, _SETTINGS, _SOCKETS, _POOL, _LOG, _SOURCE = 4.0, 2.0, 3.0, 2.0, 4.0, 5.0
_LOOK = 2.0
_CONNECT, _NODE, _DATABASE, _LOGIN = 6.0, 2.0, 8.0, 13.0
MOST_TEXT = 500  # characters of any one text in the evidence
MOST_QUERIES = 500  # sessions whose query is told; those that matter come first
_SECOND_LOOK = 2.2  # a second sample this much later tells a silent peer from a slow one

View = dict[str, Any]


class Job:
    """One collector in a thread of its own. ``view()`` waits until its deadline and never longer."""

    def __init__(self, seconds: float, collector: Callable[[], Optional[dict[str, Any]]]) -> None:
        self._began = time.monotonic()
        self._seconds = seconds
        self._done = threading.Event()
        self._view: View = {}
        threading.Thread(target=self._run, args=(collector,), daemon=True).start()

    def _run(self, collector: Callable[[], Optional[dict[str, Any]]]) -> None:
        try:
            data = collector()
            self._view = view(data, "" if data is not None else "not there")
        except Unread as unread:
            self._view = view(None, str(unread))
        except Exception as error:  # a collector that fails is a finding, never a failed run
            self._view = view(None, f"{type(error).__name__}: {error}"[:300])
        self._view["seconds"] = round(time.monotonic() - self._began, 3)
        self._done.set()

    def ends_within(self, seconds: float) -> bool:
        """Wait so long at most; whether it has ended."""
        return self._done.wait(seconds)

    def view(self) -> View:
        """The view: what was read, or why not, or that the deadline passed."""
        if self._done.wait(max(0.0, self._began + self._seconds - time.monotonic())):
            return self._view
        late = view(None, f"no answer within {self._seconds:.3g} s")
        return {**late, "state": "timeout", "seconds": round(self._seconds, 3)}


class Unread(Exception):
    """A view that could not be read, for a reason known beforehand."""


def view(data: Optional[dict[str, Any]], reason: str = "") -> View:
    """A view as every schema has it."""
    return {"state": "unknown" if data is None else "ok", "reason": reason, "seconds": 0.0, "data": data}


def read(request: dict[str, Any]) -> dict[str, Optional[dict[str, Any]]]:
    """Everything that one trip is asked for: ``{"host": document or None, "database": document or None}``.

    ``request["read_host"]`` (bool) asks for the host's views; ``request["database"]`` (a dict as
    ``read_database`` wants it, or None) for the database's. A database whose ``target`` is None is the one
    that the app's settings on disk name, read with the app's own role.
    """
    database = request.get("database")
    if not request["read_host"]:
        if database and not database["target"]:
            port = login.port_of(request["login_url"])
            unit, pids, _ = process.running(request.get("service"), request.get("pid_file"), port)
            config = settings.collect(request.get("environment_file"), unit, process.described(pids))
            if not config.database:
                raise Unread(f"the app's database is not known: {config.reason}")
            database = {**database, "target": config.database, "password": config.password}
        return {"host": None, "database": read_database(database) if database else None}
    early = Job(_DATABASE + 2, lambda: read_database(database)) if database and database["target"] else None
    late: list[Job] = []

    def settings_known(config: settings.Settings) -> None:
        if database and not early and config.database:
            wanted = {**database, "target": config.database, "password": config.password}
            late.append(Job(_DATABASE + 2, lambda: read_database(wanted)))

    host = read_host(request, settings_known)
    jobs = [job for job in (early, *late) if job]
    return {"host": host, "database": jobs[0].view()["data"] if jobs else None}


def read_host(request: dict[str, Any], settings_known: Callable[[settings.Settings], None]) -> dict[str, Any]:
    """The evidence document of one app host.

    ``request`` holds what the inventory says of the host: ``run_id``, ``host``, ``login_url``,
    ``login_username``, ``login_password``, ``login_attempts``, ``login_seconds`` (more of them make the trip as
    much longer), ``probe`` (bool), ``service``, ``pid_file``, ``log``, ``environment_file``, ``source`` (list), ``status_directories`` (list), ``state_directory``,
    ``window`` (seconds). None where nothing is set. ``settings_known`` is called as soon as the app's
    settings are.
    """
    began, wall = time.monotonic(), time.time()
    patience = trip_seconds(request.get("login_seconds") or 0.0) - TRIP_SECONDS
    end = began + TRIP_SECONDS + patience
    masker = Masker([request.get("login_password")])
    views: dict[str, View] = {}

    def job(seconds: float, collector: Callable[[], Optional[dict[str, Any]]]) -> Job:
        """No collector lasts longer than the trip, however late it begins."""
        return Job(max(0.0, min(seconds, end - time.monotonic())), collector)

    service, port = request.get("service"), login.port_of(request["login_url"])
    views["process"] = job(
        _PROCESS,
        lambda: process.collect(service, request.get("pid_file"), port, request.get("state_directory")),
    ).view()
    processes = (views["process"]["data"] or {}).get("processes", [])
    pids = [row["pid"] for row in processes]

    looks = Looks(pids, port)
    job(_LOOK, lambda: looks.look("before_login")).view()

    found: list[settings.Settings] = []

    def read_settings() -> Optional[dict[str, Any]]:
        unit = process.systemd_unit(service)
        found.append(settings.collect(request.get("environment_file"), unit, processes))
        if found[0].file is None and not found[0].live and not found[0].database:
            raise Unread(found[0].reason)
        return found[0].data()

    views["config"] = job(_SETTINGS, read_settings).view()
    config = found[0] if found else settings.Settings(None, views["config"]["reason"])
    for secret in config.secrets:
        masker.add(secret)
    settings_known(config)

    # Nothing may touch the app before this: the probe would make it read the last words away.
    watch: list[sockets.Watch] = []
    words: list[dict[str, Any]] = []

    def last_look() -> dict[str, Any]:
        watch[0].sample("after_login")
        words[0]["waits"] = watch[0].waits()
        return {}

    def first_look() -> dict[str, Any]:
        watch.append(sockets.Watch(pids, _peers(config.database)))
        watch[0].sample("before_login")
        words.append(watch[0].read())
        return {}

    looked = job(_SOCKETS, first_look)
    pool = job(_POOL + 1, lambda: step2_pool.collect(pids, request.get("status_directories") or [], _POOL))
    marked = job(_LOOK, lambda: {"log": _follow(request, service, pids)})
    source = job(_SOURCE, lambda: _source(request.get("source") or [], processes))
    first_view, views["pool"], followed = looked.view(), pool.view(), marked.view()
    asked = views["pool"]["data"]
    if asked and not asked["processes"]:  # read, and there is none: the other views decide
        gone = "".join(f"; {path}: {step2_pool.LEFT_BEHIND}" for path in asked["left_behind"])
        views["pool"].update(state="unknown", reason=f"the app has no status socket{gone}")
    rows = watch[0].samples[0]["sockets"] if words else []

    new = job(_CONNECT + 1, lambda: _connect(config, rows))
    left = min(_LOGIN + patience, end - 4 - time.monotonic())
    probed = time.monotonic() + left - 1  # the job's own deadline, less what it takes to say so
    probe = job(left, lambda: _login(request, processes, len(rows), probed))
    if not probe.ends_within(0.25):  # the moment is "while logins are under way"; there is no event for it
        job(_LOOK, lambda: looks.look("during_login")).view()
    if words:
        job(_SOCKETS, lambda: {"rows": watch[0].sample("during_login")}).view()
    if not probe.ends_within(_SECOND_LOOK):
        job(_LOOK, lambda: looks.look("during_login")).view()
    views["new_connection"], views["login"] = new.view(), probe.view()
    job(_LOOK, lambda: looks.look("after_login")).view()
    if asked:
        job(_POOL, lambda: step2_pool.look_again(asked["processes"], _POOL / 2)).view()
    if views["process"]["data"]:
        views["process"]["data"]["looks"] = looks.looks
    if words:
        if sockets.suspicious(rows) or sockets.suspicious(watch[0].samples[-1]["sockets"]):
            time.sleep(max(0.0, watch[0].started + _SECOND_LOOK - time.monotonic()))
        job(_SOCKETS, last_look).view()
    views["sockets"] = _sockets_view(watch, words, first_view, views["process"], config)
    follower: Optional[Follower] = (followed["data"] or {}).get("log")
    views["log"] = job(_LOG, lambda: _logged(follower)).view() if follower else followed
    stranger = _elsewhere(watch, views)
    if stranger:
        told = job(_NODE + 1, lambda: _node(config, stranger)).view()["data"]
        if told and (told["server"] or {}).get("in_recovery"):
            views["new_connection"]["data"]["live"] = told
    views["source"] = source.view()
    monitor = step1_monitor.monitor_facts(views["pool"]["data"], views["log"]["data"])
    known = any(monitor[key] is not None for key in ("alive", "started"))
    views["monitor"] = view(monitor) if known else view(None, "neither a status socket nor a log tells of it")
    document = {
        "schema": "runbook/host-evidence/1",
        "run_id": request["run_id"],
        "host": request["host"],
        "collected_at": rfc3339(wall),
        "seconds": round(time.monotonic() - began, 3),
        "views": {name: masker.document(one, MOST_TEXT) for name, one in views.items()},
    }
    return {**document, "masked": masker.count}


def read_database(request: dict[str, Any]) -> dict[str, Any]:
    """The evidence document of one database, over one connection.

    ``request``: ``run_id``, ``database`` (the name of the document), ``host`` (who reads it), ``target``
    (host, port, name, user, sslmode), ``password``, ``app_user`` (the app's role, whose effective settings
    and limits are asked; None: the target's own), ``command`` (words that run psql there; None: connect).
    """
    from . import step3_postgresql  # noqa: PLC0415 - one host of a fleet reads its database, the others do not

    began, wall = time.monotonic(), time.time()
    masker = Masker([request.get("password")])
    views = step3_postgresql.collect(
        request["target"],
        request.get("password"),
        _DATABASE,
        app_user=request.get("app_user"),
        command=request.get("command"),
    )
    activity = views["activity"]["data"]
    for number, session in enumerate(activity["sessions"] if activity else []):
        text = session["query"] if number < MOST_QUERIES else None
        session["query"] = text and masker.sql(text)[:300]
    document = {
        "schema": "runbook/database-evidence/1",
        "run_id": request["run_id"],
        "database": request["database"],
        "collected_from": request["host"],
        "collected_at": rfc3339(wall),
        "seconds": round(time.monotonic() - began, 3),
        "views": {name: masker.document(one) for name, one in views.items()},
    }
    return {**document, "masked": masker.count}


def _peers(database: Optional[dict[str, Any]]) -> list[str]:
    """``address:port`` of the database for every address that its name has."""
    if not database or database["host"].startswith("/"):
        return []
    addresses = new_connection.resolve(database["host"], database["port"], 2.0)
    return [join_address(address, database["port"]) for address in addresses]


def _connect(config: settings.Settings, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Tried with the settings; where those are not known, a knock at the one place that the app is connected to."""
    if config.database:
        data = new_connection.collect(config.database, config.password, _CONNECT)
        places = {join_address(address, data["port"]) for address in data["addresses"]}
        elsewhere = [row["peer"] for row in rows if row["state"] == "ESTAB" and row["peer"] not in places]
        if data["ok"] and elsewhere:
            data["live"] = _node(config, max(elsewhere, key=elsewhere.count))
        return data
    peers = {row["peer"] for row in rows}
    if len(peers) != 1:
        raise Unread(f"the app's database is not known: {config.reason}")
    host, _, port = peers.pop().rpartition(":")
    place = {"host": host.strip("[]"), "port": int(port), "name": "postgres", "user": ""}
    return new_connection.collect(place, None, _CONNECT)


def _elsewhere(watch: list[sockets.Watch], views: dict[str, View]) -> Optional[str]:
    """To whom most of the connections lead that do not lead where the settings say, if that may be a standby.

    A login was refused a write, and a new connection may write. Only then somebody is asked whom the settings
    do not name.
    """
    new, log = views["new_connection"]["data"], views["log"]["data"]
    others: dict[str, int] = watch[0].samples[0]["elsewhere"] if watch and watch[0].samples else {}
    if not (new and log and others) or new["live"] or not log["during_login"].get("read_only"):
        return None
    server = new["server"] or {}
    writable = server.get("in_recovery") is False and server.get("read_only") is False
    return max(others, key=lambda peer: others[peer]) if writable else None


def _node(config: settings.Settings, peer: str) -> dict[str, Any]:
    """What the server says of itself that the app is connected to, where its settings lead to another by now."""
    host, _, port = peer.rpartition(":")
    place = {**(config.database or {}), "host": host.strip("[]"), "port": int(port)}
    told = new_connection.collect(place, config.password, _NODE)
    return {"peer": peer, "server": told["server"], "error": told["error"] and told["error"]["text"]}


def _login(request: dict[str, Any], processes: list[dict[str, Any]], held: int, end: float) -> dict[str, Any]:
    if not request["probe"]:
        raise Unread("not probed in check mode; -e diagnose_probe_in_check=true allows it")
    user = request.get("login_username"), request.get("login_password")
    probe = login.Probe(request["login_url"], *user, request.get("login_seconds"))
    attempts = request.get("login_attempts") or max(3, 2 * len(processes))
    # Which process answers is chance: each may need as many logins as all of them have connections.
    return login.collect(probe, attempts, held * max(1, len(processes)), end)


def _source(named: list[str], processes: list[dict[str, Any]]) -> dict[str, Any]:
    roots = named or sorted({row["directory"] for row in processes} - {"/", "", None})
    if not roots:
        raise Unread("where the app's source lies is not known; name it in diagnose_source")
    return step4_leaks.collect(roots, _SOURCE - 0.5)


def _follow(request: dict[str, Any], service: Optional[str], pids: list[int]) -> Follower:
    path = request.get("log") or next(filter(None, map(log_of, pids[:1])), None)
    if not path and not service:
        words = "no log is named for this host, and its process writes into no file"
        raise Unread(f"{words}; name it in diagnose_log")
    try:
        return Follower(path, service, request.get("window") or 3600.0)
    except OSError as error:
        raise Unread(f"diagnose_log: {path}: {error.strerror}") from error


def _logged(follower: Follower) -> dict[str, Any]:
    try:
        return follower.data()
    except OSError as error:
        raise Unread(str(error)) from error


def _sockets_view(
    watch: list[sockets.Watch],
    words: list[dict[str, Any]],
    first: View,
    processes: View,
    config: settings.Settings,
) -> View:
    if not words:
        return first
    data = watch[0].data(words[0])
    if config.database and config.database["host"].startswith("/"):
        return view(None, "the app reaches PostgreSQL over a unix socket, which has no TCP state")
    if processes["data"] is None:
        return view(None, f"the processes are not known: {processes['reason']}")
    unreadable, pids = len(data["unreadable_pids"]), watch[0].pids
    denied = ""
    if unreadable and unreadable == len(pids):
        denied = f"no right to read the descriptors of {unreadable} processes"
    elif not pids and processes["data"]["listening"]:
        denied = "something listens, but whose process it is needs more rights"
    if denied:
        return view(None, f"{denied}; become the app's user")
    return {**view(data), "seconds": round(time.monotonic() - watch[0].started, 3)}

"""The judge against honest evidence: one incident of each kind, two at once, and what looks like one and is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import pytest

from runbook.common.documents import validate
from runbook.verdict.causes import CAUSES, IDS
from runbook.verdict.conditions.pool import pool_is_exhausted
from runbook.verdict.conditions.process import workers_busy
from runbook.verdict.facts import Facts
from runbook.verdict.judge import Verdict, judge
from runbook.verdict.steps import steps
from tests.unit import incidents
from tests.unit.incidents import (
    APP_PID,
    DATABASE_VIEWS,
    HOST_VIEWS,
    HOUR,
    TABLE,
    Expected,
    Incident,
    app_down,
    app_resources,
    app_stopped,
    at,
    authentication_failed,
    backends,
    connection,
    connection_leak,
    ended,
    fails,
    heals,
    healthy,
    hold,
    lock_contention,
    login_broken,
    login_round,
    metric_artefact,
    monitor_dead,
    no_connection,
    pool,
    pool_too_small,
    postgres_down,
    postgres_not_answering,
    postgres_restarted,
    postgres_starting,
    session,
    sessions_terminated,
    sessions_terminated_failing,
    slot_leak,
    sock,
    stale_configuration,
    status_document,
    under_tls,
    unread,
    view,
)

DATABASE_DOWN = tuple(DATABASE_VIEWS)


def seen(verdict: Verdict) -> Expected:
    return Expected(
        verdict.cause,
        verdict.restart_helps,
        tuple(verdict.contributing),
        verdict.confidence,
        verdict.action,
    )


# -- one at a time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_the_evidence_of_these_tests_is_what_a_collector_may_write(name: str) -> None:
    incident = TABLE[name][0]()
    validate(incident.host)
    validate(incident.database)


@pytest.mark.parametrize("name", TABLE)
def test_each_incident_has_its_cause(name: str) -> None:
    build, expected = TABLE[name]
    verdict = judge(*build())
    assert seen(verdict) == expected
    assert verdict.why, "a cause without a reason"
    assert all(answer.value is True and answer.text and answer.view for answer in verdict.why)
    assert verdict.next or verdict.cause == "healthy"
    assert verdict.why_action
    assert not verdict.fits
    assert all(cause in IDS and text for cause, text in verdict.why_not)


def test_the_first_reasons_against_are_those_people_take_it_for() -> None:
    assert [cause for cause, _ in judge(*slot_leak()).why_not][:4] == [
        *("connection_leak", "lock_contention", "postgres_down", "pool_too_small")
    ]


@pytest.mark.parametrize("name", [n for n, (_, e) in TABLE.items() if e.cause != "healthy"])
def test_what_comes_back_says_when_and_nothing_else_does(name: str) -> None:
    verdict = judge(*TABLE[name][0]())
    comes_back = {"slot_leak", "connection_leak", "app_resources", "nested_checkout", "fork_shared"}
    since = {
        "connection_leak": 400,
        "connections_kept": 400,
        "leaked_lock": 600,
        "leak_without_requests": 400,
    }  # the last one was taken, in s
    assert verdict.holds_seconds == (9 * HOUR - since.get(name, 0) if verdict.cause in comes_back else None)


def test_a_network_refusal_has_the_words_of_the_kernel() -> None:
    assert "Connection refused" in judge(*postgres_down()).why[0].text


# -- variants of one cause ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unreachable", "unresolved"])
def test_no_way_to_the_server_is_unreachable(kind: str) -> None:
    incident = no_connection(fails(healthy()), "tcp", kind=kind, text="No route to host")
    assert judge(*incident).cause == "postgres_unreachable"


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [("28P01", "server"), ("28000", "server"), ("3D000", "server"), (None, "tls"), (None, "unsupported")],
)
def test_every_refusal_of_the_apps_credentials(sqlstate: str | None, kind: str) -> None:
    incident = no_connection(hold(fails(healthy())), "auth", sqlstate, kind=kind)
    verdict = judge(*incident)
    assert (verdict.cause, verdict.restart_helps) == ("authentication_failed", False)


def test_a_refused_knock_says_nothing_of_credentials_that_nobody_could_read() -> None:
    incident = authentication_failed()
    incident.data("new_connection")["kind"] = "knock"
    assert judge(*incident).cause == "unknown"


def test_a_knock_that_is_answered_proves_that_the_server_runs_and_no_more() -> None:
    incident = slot_leak()
    incident.data("new_connection").update(kind="knock", phase="auth", server=None)
    verdict = judge(*incident)
    assert verdict.cause == "unknown"
    named = dict(verdict.why_not)
    assert {"postgres_down", "postgres_unreachable", "connection_slots_full"} <= named.keys()


def test_sessions_that_failed_at_first_and_healed_need_no_restart() -> None:
    verdict = judge(*sessions_terminated())
    assert (verdict.action, verdict.restart_helps) == ("none", False)


def test_an_app_whose_end_nobody_can_explain_is_not_started() -> None:
    incident = app_down()
    incident.data("process")["service"].update(stopped_by_person=None, kind="none", name=None)
    verdict = judge(*incident)
    assert (verdict.cause, verdict.restart_helps, verdict.action) == ("app_down", None, "open")


def test_the_next_step_of_a_lock_names_the_session_at_the_root() -> None:
    words = " ".join(judge(*lock_contention()).next)
    assert "88123" in words
    assert "pg_terminate_backend(pid)" in words
    assert f"backend_start = '{at(-HOUR)}'" in words, "a pid alone may be somebody else's by now"


def test_the_next_step_of_a_leak_names_the_line() -> None:
    assert "backend/services/lab.py:58" in judge(*slot_leak()).next[0]


# -- two at once -------------------------------------------------------------------------------------------


def with_stale_configuration(incident: Incident) -> Incident:
    incident.host["views"]["config"] = stale_configuration().host["views"]["config"]
    return incident


def with_dead_monitor(incident: Incident) -> Incident:
    incident.host["views"]["monitor"] = monitor_dead().host["views"]["monitor"]
    return incident


def with_app_down(incident: Incident) -> Incident:
    incident.host["views"]["process"] = app_stopped().host["views"]["process"]
    return incident


def with_lock(incident: Incident) -> Incident:
    lock = lock_contention()
    for name in ("activity", "locks", "limits"):
        incident.database["views"][name] = lock.database["views"][name]
    incident.host["views"]["sockets"] = lock.host["views"]["sockets"]
    return incident


def with_terminated_sessions(incident: Incident) -> Incident:
    incident.host["views"]["sockets"] = sessions_terminated().host["views"]["sockets"]
    return incident


@pytest.mark.parametrize(
    ("incident", "also", "cause", "contributing"),
    [
        (slot_leak, with_stale_configuration, "slot_leak", ["stale_configuration"]),
        (slot_leak, with_dead_monitor, "slot_leak", ["monitor_dead"]),
        (postgres_down, with_app_down, "postgres_down", ["app_down"]),
        (authentication_failed, with_app_down, "authentication_failed", ["app_down"]),
        (app_resources, with_lock, "app_resources", ["lock_contention"]),
        (lock_contention, with_stale_configuration, "lock_contention", ["stale_configuration"]),
        (stale_configuration, with_dead_monitor, "stale_configuration", ["monitor_dead"]),
        (metric_artefact, with_dead_monitor, "monitor_dead", ["metric_artefact"]),
    ],
)
def test_of_two_causes_the_higher_rank_is_the_cause_and_the_other_contributes(
    incident: Callable[[], Incident],
    also: Callable[[Incident], Incident],
    cause: str,
    contributing: list[str],
) -> None:
    verdict = judge(*also(incident()))
    assert verdict.cause == cause
    assert [name for name in verdict.contributing if name in contributing] == contributing
    assert verdict.contributing == sorted(verdict.contributing, key=IDS.index)
    assert cause not in verdict.contributing
    assert IDS.index(cause) < min(map(IDS.index, verdict.contributing))


@pytest.mark.parametrize("build", [login_broken, app_resources])
def test_dead_connections_are_not_why_a_login_fails_for_a_reason_of_its_own(
    build: Callable[[], Incident],
) -> None:
    """Sessions were terminated too, and a restart would not help: what fails does not speak of connections."""
    before, after = judge(*build()), judge(*with_terminated_sessions(build()))
    assert (after.cause, after.action) == (before.cause, before.action)
    assert "sessions_terminated" in dict(after.why_not)


@pytest.mark.parametrize("first", ["57P01", "57P02", "57P05", "25P03", "25P04"])
@pytest.mark.parametrize("second", ["57P01", "57P02", "57P05", "25P03", "25P04"])
def test_different_last_words_on_two_sockets(first: str, second: str) -> None:
    incident = backends(fails(healthy()))
    pairs = [ended(11, first), ended(12, second)]
    hold(incident, *(row for row, _ in pairs))
    incident.data("sockets")["last_words"] = [words for _, words in pairs]
    named = {
        **{"57P01": "sessions_terminated", "57P02": "postgres_crash_recovery"},
        **{"57P05": "idle_session_timeout", "25P03": "idle_in_transaction_timeout"},
        "25P04": "transaction_timeout",
    }
    wanted = sorted({named[first], named[second]}, key=IDS.index)
    verdict = judge(*incident)
    assert [verdict.cause, *(c for c in verdict.contributing if c in wanted)] == wanted


# -- unknown -----------------------------------------------------------------------------------------------


def test_without_any_evidence_everything_is_open() -> None:
    for nothing in (None, {}, [], "", 0, {"views": {}}, {"views": dict.fromkeys(HOST_VIEWS)}):
        verdict = judge(nothing, nothing)
        assert (verdict.cause, verdict.confidence, verdict.action) == ("unknown", "unknown", "open")
        assert verdict.restart_helps is None
        assert {cause for cause, _ in verdict.fits} == set(IDS) - {"healthy"}
        assert verdict.unread


def test_what_is_unread_says_what_it_would_decide() -> None:
    verdict = judge(*unread(slot_leak(), "activity", "server", "locks", "limits"))
    assert verdict.cause == "unknown"
    assert [cause for cause, _ in verdict.fits] == ["slot_leak"]
    (missing,) = [answer for answer in verdict.unread if answer.view == "activity"]
    assert missing.text.endswith("it would decide slot_leak")
    assert "no right to read it" in missing.text


def test_where_all_that_fits_agrees_the_action_is_decided_though_the_cause_is_not() -> None:
    verdict = judge(*unread(slot_leak(), "activity"))
    assert (verdict.cause, verdict.confidence) == ("unknown", "unknown")
    assert (verdict.restart_helps, verdict.action) == (True, "restart")


def test_where_none_that_fits_is_helped_no_restart_is_decided() -> None:
    verdict = judge(*unread(authentication_failed(), *DATABASE_DOWN, "sockets", "log"))
    assert (verdict.cause, verdict.restart_helps) == ("authentication_failed", False)
    incident = unread(lock_contention(), "log", "sockets", "activity", "locks", "limits")
    assert judge(*incident).cause == "unknown"
    assert judge(*incident).restart_helps is not True


def test_where_what_fits_does_not_agree_the_action_is_open() -> None:
    verdict = judge(*unread(slot_leak(), "sockets"))
    assert verdict.cause == "unknown"
    assert len(verdict.fits) > 1
    assert (verdict.restart_helps, verdict.action) == (None, "open")


@pytest.mark.parametrize("name", [n for n, (_, e) in TABLE.items() if e.cause != "healthy"])
def test_no_restart_is_decided_over_an_open_cause_unless_the_login_was_seen_to_fail(name: str) -> None:
    for lost in ("activity", "sockets", "process", "log", "new_connection"):
        verdict = judge(*unread(TABLE[name][0](), "login", lost))
        if verdict.cause == "unknown":
            assert verdict.action not in ("start", "restart")
            assert verdict.restart_helps is not True


def test_and_not_even_where_all_that_fits_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a table of two causes that a restart helps: whether anybody is locked out is still unread."""
    few = tuple(cause for cause in CAUSES if cause.id in ("slot_leak", "connection_leak"))
    monkeypatch.setattr("runbook.verdict.judge.CAUSES", few)
    told = judge(*unread(slot_leak(), "sockets"))
    assert (told.cause, told.restart_helps, told.action) == ("unknown", True, "restart")
    told = judge(*unread(slot_leak(), "sockets", "login"))
    assert (told.cause, told.restart_helps, told.action) == ("unknown", None, "open")


def test_an_open_cause_under_a_login_that_works_wants_no_action() -> None:
    verdict = judge(*unread(healthy(), "sockets"))
    assert (verdict.cause, verdict.restart_helps, verdict.action) == ("unknown", False, "none")


@pytest.mark.parametrize("name", ["login", "new_connection", "pool", "sockets", "process", "log", "activity"])
def test_green_needs_every_view(name: str) -> None:
    assert judge(*healthy()).cause == "healthy"
    incident = unread(healthy(), name)
    assert judge(*incident).cause != "healthy"
    document = incident.host if name in HOST_VIEWS else incident.database
    del document["views"][name]
    assert judge(*incident).cause != "healthy"


def test_green_needs_the_database() -> None:
    assert judge(healthy().host, None).cause != "healthy"


def test_green_needs_the_right_to_read_every_process_and_every_word() -> None:
    unreadable = healthy()
    unreadable.data("sockets")["unreadable_pids"] = [APP_PID]
    assert judge(*unreadable).cause != "healthy"
    denied = healthy()
    denied.data("sockets")["peek"] = {"state": "denied", "reason": "ptrace_scope is 1"}
    assert judge(*denied).cause != "healthy"


def test_green_needs_what_could_end_a_login_to_be_disproved() -> None:
    """Every view of `healthy` was read; that descriptors did not run out could not be."""
    incident = healthy()
    incident.data("process")["processes"][0].update(fds=None, readable=False)
    verdict = judge(*incident)
    assert verdict.cause == "unknown"
    assert [cause for cause, _ in verdict.fits] == ["app_resources"]


def test_a_misconfigured_probe_names_the_variable_and_decides_nothing() -> None:
    incident = healthy()
    words = "diagnose_login_url: http://127.0.0.1:8000/x answers 404"
    incident.data("login").update(misconfigured=words, rounds=[login_round("404")])
    verdict = judge(*incident)
    assert verdict.cause == "unknown"
    assert verdict.action != "restart"
    assert any("diagnose_login_url" in answer.text for answer in verdict.unread)


# -- what looks like a cause and is none ---------------------------------------------------------------------


def test_a_restart_of_the_server_that_the_pool_survived_is_not_the_cause() -> None:
    """The server was started five days ago, the app runs for thirty; today the login has a bug."""
    incident = login_broken()
    incident.data("process")["processes"][0]["started_at"] = at(-30 * 24 * HOUR)
    for place in (incident.data("server"), incident.data("new_connection")["server"]):
        place["postmaster_start"] = at(-5 * 24 * HOUR)
    verdict = judge(*incident)
    assert verdict.cause == "login_broken"
    assert verdict.action != "restart"


def test_a_restart_that_coincides_with_the_failure_is_the_cause() -> None:
    incident = postgres_restarted()
    heals(incident)
    verdict = judge(*incident)
    assert (verdict.cause, verdict.restart_helps) == ("postgres_restarted", False)


def test_a_server_that_has_just_finished_starting_is_no_hanging_proxy() -> None:
    """The new connection met 57P03, and a second later the database could be read."""
    incident = postgres_starting()
    incident.database["views"] = healthy().database["views"]
    verdict = judge(*incident)
    assert verdict.cause == "postgres_not_answering"
    assert verdict.restart_helps is False


def test_a_database_read_over_the_same_way_says_nothing_of_a_proxy() -> None:
    """D was read from the app's own host at the same address: that is not beyond the proxy."""
    incident = postgres_not_answering()
    incident.database["views"] = healthy().database["views"]
    incident.database["collected_from"] = incident.host["host"]
    verdict = judge(*incident)
    assert verdict.cause != "proxy_hang" or verdict.confidence != "decided"
    assert verdict.action != "restart"


def test_a_proxy_that_hangs_is_told_by_the_database_answering_on_its_own_host() -> None:
    incident = postgres_not_answering()
    incident.database["views"] = healthy().database["views"]
    incident.database["collected_from"] = "db-1"
    local = connection()
    local.update(host="/var/run/postgresql", address=None, addresses=[])
    incident.database["views"]["connection"] = view(local)
    assert judge(*incident).cause == "proxy_hang"


def test_a_first_query_that_waits_is_no_proof_of_pgbouncer() -> None:
    """SHOW POOLS was not read, and a server whose disk hangs does the same."""
    incident = no_connection(fails(healthy(), "timeout", seconds=5.0), "query", kind="timeout")
    verdict = judge(*incident)
    assert verdict.cause != "pgbouncer_queue" or verdict.confidence != "decided"


def test_sessions_of_another_host_do_not_hide_a_slot_leak() -> None:
    """web-2 runs the same app with the same role and is well; the server shows its five sessions."""
    incident = slot_leak()
    others = [session(900 + i, 41000 + i, client_address="10.0.4.18") for i in range(5)]
    verdict = judge(*backends(incident, *others))
    assert (verdict.cause, verdict.restart_helps) == ("slot_leak", True)


def test_sessions_are_joined_with_sockets_by_address_and_port() -> None:
    """One slot of twenty is still good: its socket and its session belong together, the others are web-2's."""
    incident = hold(slot_leak(), sock(11))
    others = [session(900 + i, 41000 + i, client_address="10.0.4.18") for i in range(5)]
    verdict = judge(*backends(incident, session(81, 40011), *others))
    assert verdict.cause == "slot_leak"


def test_a_long_report_of_another_host_is_no_slow_query_of_this_app() -> None:
    incident = login_broken()
    report = session(900, 41000, "active", client_address="10.0.4.18", query_start=at(-600))
    report.update(wait_event_type=None, wait_event=None)
    verdict = judge(*backends(incident, session(81, 40011), session(82, 40012), report))
    assert verdict.cause == "login_broken"


def test_a_process_without_connections_adds_no_slots() -> None:
    """A parent and two workers, ten slots each, all twenty held by living connections: nothing is lost."""
    incident = fails(healthy(), during={"pool_exhausted": 16, "login_error": 16})
    incident.data("config")["settings"]["POSTGRES_POOL_MAX_CONNECTIONS"]["value"] = "10"
    parent = incident.data("process")["processes"][0]
    workers = [{**parent, "pid": pid, "ppid": APP_PID} for pid in (4280, 4281)]
    incident.data("process")["processes"] = [parent, *workers]
    hold(incident, *(sock(fd, pid=4280 + fd % 2) for fd in range(11, 31)))
    backends(incident, *(session(80 + fd, 40000 + fd) for fd in range(11, 31)))
    assert judge(*incident).cause != "slot_leak"


def test_refused_writes_of_an_hour_ago_do_not_make_a_writable_server_read_only() -> None:
    incident = login_broken()
    incident.data("log")["counts"]["read_only"] = 9
    assert incident.data("log")["during_login"].get("read_only") is None
    assert judge(*incident).cause == "login_broken"


def on_a_standby(incident: Incident, refused: float) -> Incident:
    """A write of the app was refused there, seconds ago, and none while the probe ran."""
    for place in (incident.data("server"), incident.data("new_connection")["server"]):
        place.update(in_recovery=True, read_only=True)
    incident.data("log")["counts"]["read_only"] = 1
    incident.data("log")["last"]["read_only"] = at(-refused)
    return incident


@pytest.mark.parametrize("build", [login_broken, healthy])
def test_a_write_refused_an_hour_ago_does_not_make_a_reader_of_a_standby_a_writer(
    build: Callable[[], Incident],
) -> None:
    assert judge(*on_a_standby(build(), 3000.0)).cause == judge(*build()).cause


@pytest.mark.parametrize(("build", "cause"), [(login_broken, "login_broken"), (healthy, "wrong_node")])
def test_a_write_refused_a_moment_ago_counts_only_beside_a_login_that_works(
    build: Callable[[], Incident], cause: str
) -> None:
    """That one need not write: without credentials it only looks a user up."""
    verdict = judge(*on_a_standby(build(), 20.0))
    assert (verdict.cause, verdict.action) == (cause, "none")


def test_logins_that_healed_beside_connections_to_a_standby_need_no_restart() -> None:
    incident = incidents.name_moved()
    incident.data("log").update(during_login={"login_error": 3})  # it only reads there
    assert judge(*incident).action == "none"


@pytest.mark.parametrize(("refused", "action"), [(0, "none"), (3, "restart")])
def test_a_logout_that_a_standby_refuses_tells_what_the_next_login_will_meet(
    refused: int, action: str
) -> None:
    incident = incidents.name_moved()
    incident.data("login")["rounds"] = [{**incidents.login_round("200"), "logouts_failed": refused}]
    verdict = judge(*incident)
    assert (verdict.cause, verdict.action) == ("wrong_node", action)


def test_a_machine_that_slept_at_some_time_is_not_why_sessions_end_today() -> None:
    """The clocks tell how long it slept since it booted, and not when."""
    incident = under_tls(sessions_terminated_failing())
    incident.data("process")["clocks"]["suspended_seconds"] = 5400.0
    verdict = judge(*incident)
    assert (verdict.cause, verdict.action) == ("unknown", "restart")
    assert [name for name, _ in verdict.fits] == ["sessions_terminated", "host_suspended"]


def test_a_silence_of_long_ago_is_not_why_sessions_end_today() -> None:
    incident = incidents.stood_still(under_tls(sessions_terminated_failing()), 5400.0, ago=26 * HOUR)
    verdict = judge(*incident)
    assert (verdict.cause, verdict.action) == ("unknown", "restart")
    assert [name for name, _ in verdict.fits] == ["sessions_terminated"]


@pytest.mark.parametrize(("ago", "cause"), [(1500.0, "idle_cut"), (890.0, "host_suspended")])
def test_what_was_used_after_a_silence_was_not_cut_in_it(ago: float, cause: str) -> None:
    """The connections have been idle for 900 s."""
    assert judge(*incidents.stood_still(incidents.idle_cut(), 20.0, ago)).cause == cause


def test_a_leak_without_request_ids_names_the_line_that_keeps_what_it_took() -> None:
    verdict = judge(*incidents.leak_without_requests())
    assert "20 sessions idle for more than 30 s, at backend/services/lab.py:58" in verdict.why[0].text
    assert "backend/services/lab.py:58" in verdict.next[0]


def test_who_waits_behind_a_leaked_lock_is_not_who_keeps_it() -> None:
    """Without request ids: the one that idles in its transaction was taken elsewhere."""
    incident = incidents.leaked_lock()
    pids = [one["pid"] for one in incident.data("activity")["sessions"][1:]]
    holders = [{**incidents.holder(pid, 600.0, None), "backend_pid": pid, "request_id": None} for pid in pids]
    holders[-1]["site"] = "backend/services/batch.py:7"
    verdict = judge(*pool(incident, status_document(21, holders, [], maximum=30)))
    assert verdict.cause == "connection_leak"
    assert "backend/services/batch.py:7 (1 of 1)" in verdict.next[1]


@pytest.mark.parametrize(
    ("later", "told"),
    [
        ("epoll", ("connection_leak", "decided", "restart")),
        ("running", ("lock_contention", "likely", "none")),
    ],
)
def test_a_loop_that_takes_a_request_in_is_not_the_one_that_holds_a_lock(
    later: str, told: tuple[str, str, str]
) -> None:
    """Caught at it in one look, it waits in another; one that never does may be at work on the request."""
    incident = incidents.leaked_lock().copy()
    for look, call in zip(incident.data("process")["looks"], ["running", later, later]):
        look["threads"] = [{**look["threads"][0], "call": call, "state": "R"}, *look["threads"][1:]]
    verdict = judge(*incident)
    assert (verdict.cause, verdict.confidence, verdict.action) == told


@pytest.mark.parametrize("connected", [22, 5])
def test_a_leak_without_request_ids_is_open_while_requests_may_hold_the_connections(connected: int) -> None:
    """Coroutines that wait for a partner need no thread; and where nothing was looked at, nothing is known."""
    incident = incidents.leak_without_requests(connected)
    if connected == 5:
        incident.data("process")["looks"] = []
    verdict = judge(*incident)
    assert (verdict.cause, verdict.action) == ("unknown", "open")
    assert {"held_while_waiting", "connection_leak"} <= dict(verdict.fits).keys()


@pytest.mark.parametrize(
    "change", [{"state_change": at(-4)}, {"state": "active"}, {"query": "LISTEN changes"}], ids=str
)
def test_what_is_used_without_request_ids_is_no_leak(change: dict[str, Any]) -> None:
    incident = incidents.leak_without_requests()
    for one in incident.data("activity")["sessions"][1:]:
        one.update(change)
    assert "connection_leak" in dict(judge(*incident).why_not)


def test_a_thread_that_leaked_long_ago_and_now_waits_is_no_nested_checkout() -> None:
    """Without request ids the pool counts for a waiter what its thread took, for whatever request."""
    incident = incidents.leak_without_requests()
    status = incident.data("pool")["processes"][0]["status"]
    for index, one in enumerate(status["holders"]):
        one["tid"] = 7 + index % 2
    for index, one in enumerate(status["waiters"]):
        one.update(request_id=None, tid=7 + index, holds=10)
    assert judge(*incident).cause == "connection_leak"
    for one in status["holders"]:
        one["age"] = 20.0
    assert judge(*incident).cause == "nested_checkout"


@pytest.mark.parametrize("told", [True, False])
def test_threads_that_wait_for_a_lost_session_are_stuck_though_the_loop_comes_round(told: bool) -> None:
    """Endpoints in threads, and connections without keepalive that the server has forgotten."""
    incident = fails(healthy(), "timeout", seconds=5.0)
    if told:
        pool(incident, status_document(3, [], []))
    hold(incident, *(sock(fd) for fd in (11, 12, 13)))
    backends(incident, session(83, 40013))
    incident.database["collected_at"] = at(2)
    asking = [incidents.thread(fd - 10, "poll", fd) for fd in (11, 12)]
    verdict = judge(*incidents.looked(incident, incidents.thread(0, "epoll"), *asking, connected=2))
    assert (verdict.cause, verdict.confidence, verdict.action) == ("app_blocked", "decided", "restart")


@pytest.mark.parametrize(
    ("state", "halted", "not_accepted", "words", "step"),
    [
        ("T", (0, 1, 2), 8, "pid 4272, 4273, 4274 are stopped (state T)", "kill -CONT 4272 4273 4274"),
        ("T", (0, 1, 2), 0, "pid 4272, 4273, 4274 are stopped (state T)", "kill -CONT 4272 4273 4274"),
        ("T", (2,), 3, "pid 4274 is stopped (state T); 3 clients waited", "kill -CONT 4274"),
        ("t", (2,), 3, "pid 4274 is held by a debugger (state t); 3 clients waited", "TracerPid"),
        ("F", (0, 1, 2), 8, "4274 are frozen with the control group (state F)", "thaw odras"),
        # Where everybody is accepted at once it is somebody else who does not answer; as if a parent stands still.
        ("T", (2,), 0, "", ""),
        ("T", (0,), 3, "", ""),
    ],
)
def test_processes_that_may_not_run_are_why_nobody_is_answered(
    state: str, halted: tuple[int, ...], not_accepted: int, words: str, step: str
) -> None:
    verdict = judge(*incidents.supervised("timeout", state, *halted, not_accepted=not_accepted))
    assert (verdict.cause == "app_blocked") is bool(words)
    if words:
        assert any(words in answer.text for answer in verdict.why)
        assert words.partition(";")[0] in verdict.title
        assert step in verdict.next[0]
        assert verdict.action == "restart"


def test_a_thread_that_may_not_run_is_not_at_work() -> None:
    """One waits for a partner's answer, in a process that is stopped. Nor is a parent that waits for its workers."""
    facts = Facts(*incidents.supervised("timeout", "S"))
    assert workers_busy(facts).text == "1 thread at work elsewhere than with PostgreSQL, 0 free"
    facts = Facts(*incidents.supervised("timeout", "T", 1))
    assert workers_busy(facts).text == "0 threads at work elsewhere than with PostgreSQL, 0 free"


def test_who_is_at_work_in_a_call_without_a_name_is_told_so() -> None:
    incident = fails(healthy(), "timeout", seconds=5.0)
    incidents.looked(incident, incidents.thread(0, "call 999")).data("process")["processes"][0][
        "event_loop"
    ] = False
    words = "1 thread of pid 4272 at work elsewhere (1 in the kernel, call 999), 0 free"
    assert workers_busy(Facts(*incident)).text == words


def test_a_stopped_worker_beside_one_that_serves_is_named() -> None:
    """No login fails of it, and not all is well."""
    incident = incidents.supervised("200", "T", 2)
    pool(incident, status_document(0, [], []))
    silent = {"pid": APP_PID + 2, "status": None, "stacks": None, "error": "TimeoutError: timed out"}
    incident.data("pool")["processes"].append({**incident.data("pool")["processes"][0], **silent})
    verdict = judge(*incident)
    assert (verdict.cause, verdict.action) == ("unknown", "none")
    assert verdict.title == "no known cause fits; pid 4274 is stopped (state T)"
    assert "kill -CONT 4274" in verdict.next[0]
    words = "status socket of pid 4274: TimeoutError: timed out; pid 4274 is stopped (state T)"
    assert [words in answer.text for answer in verdict.unread] == [True]
    second = steps(Facts(*incident), verdict)[1]
    assert second["status"] == "warn"
    assert second["summary"].startswith(words)


def test_a_pool_is_not_raised_beyond_what_the_server_has() -> None:
    incident = pool_too_small()
    assert "the server has 77 slots free" in judge(*incident).next[0]
    incident.data("limits")["headroom"] = 0
    verdict = judge(*incident)
    assert verdict.cause == "pool_too_small"
    assert not [step for step in verdict.next if "raise the pool" in step]
    assert "no slot free" in verdict.next[0]


QUEUE_POOL = "sqlalchemy.exc.TimeoutError: QueuePool limit of size 5 overflow 15 reached"


@pytest.mark.parametrize(
    ("said", "used", "cause"),
    [
        (QUEUE_POOL, False, "unknown"),
        (QUEUE_POOL, True, "pool_too_small"),
        ("psycopg2.pool.PoolError: connection pool exhausted", False, "pool_too_small"),
    ],
)
def test_who_gave_up_waiting_for_what_nobody_used_made_room_for_new_sessions(
    said: str, used: bool, cause: str
) -> None:
    incident = incidents.fails(incidents.burst(), "timeout", {"pool_exhausted": 20}, seconds=5.0)
    incident.data("log")["samples"] = {"pool_exhausted": said}
    for look in incident.data("process")["looks"] if not used else []:
        look["threads"] = [{**one, "call": "futex", "inode": None, "to": None} for one in look["threads"]]
    for still_waiting in (0, 1):
        for one in incident.data("activity")["sessions"][1 : 1 + still_waiting]:  # the first is this run's
            one.update(state="idle in transaction", state_change=incidents.at(-29))
        verdict = judge(*incident)
        fitting = {name for name, _ in verdict.fits}
        open_ = cause == "unknown"
        if open_ or not still_waiting:  # where connections are used, one of them is held for long
            assert (verdict.cause, fitting >= {"nested_checkout", "pool_too_small"}) == (cause, open_)


def test_two_sessions_behind_different_roots_are_no_contention() -> None:
    """The login works, and two row locks are waited for an instant each."""
    incident = healthy()
    lock = {"wait_event_type": "Lock", "wait_event": "transactionid"}
    names = [session(81, 40011, "active", **lock), session(82, 40012, "active", **lock)]
    backends(incident, *names, session(83, 40013), session(84, 40014))
    blocked = [
        {"pid": 81, "blocked_by": [83], "seconds": 0.01},
        {"pid": 82, "blocked_by": [84], "seconds": 0.01},
    ]
    incident.data("locks").update(blocked=blocked, roots=[83, 84])
    assert judge(*incident).cause == "healthy"


def test_a_full_pool_that_nobody_waits_for_is_not_too_small() -> None:
    incident = login_broken()
    holders = pool_too_small().data("pool")["processes"][0]["status"]["holders"]
    verdict = judge(*pool(incident, status_document(20, holders, [])))
    assert verdict.cause == "login_broken"


@pytest.mark.parametrize("also", [with_dead_monitor, with_stale_configuration])
def test_what_cannot_end_a_login_is_not_the_cause_of_one_while_others_are_open(
    also: Callable[[Incident], Incident],
) -> None:
    """The rights were too few: what decides is unread, and the one thing seen is no reason to fail."""
    incident = also(unread(slot_leak(), "sockets", *DATABASE_VIEWS))
    verdict = judge(*incident)
    assert verdict.cause == "unknown"
    assert "slot_leak" in dict(verdict.fits)


def test_one_fresh_cut_on_one_connection_does_not_make_a_broken_login_an_idle_cut() -> None:
    """A bare FIN on a connection with an open request: `idle_cut` wants connections that were idle."""
    incident = login_broken()
    row, words = ended(11, None, "fin", idle=20.0)
    words["in_use"] = True
    hold(incident, row, sock(12))
    incident.data("sockets")["last_words"] = [words]
    verdict = judge(*backends(incident, session(82, 40012)))
    assert verdict.cause != "idle_cut" or verdict.confidence != "decided"


@pytest.mark.parametrize("healed", [True, False])
def test_cut_within_a_moment_of_its_last_answer_is_not_ruled_out(healed: bool) -> None:
    """Whether a connection idled is not known of one that was looked at too soon after it had worked."""
    incident = incidents.idle_cut()
    if healed:
        heals(incident, during=dict(incident.data("log")["during_login"]))
    for words in incident.data("sockets")["last_words"]:
        words["idle_seconds"] = 1.4
    verdict = judge(*incident)
    assert verdict.cause == "unknown"
    assert "idle_cut" in dict(verdict.fits)
    assert verdict.action == ("none" if healed else "restart")


def test_the_goodbye_of_a_forked_process_is_no_cut() -> None:
    """The parent holds the connections that a worker closed after the fork: they end with a bare FIN too."""
    incident = incidents.idle_cut()
    parent = incident.data("process")["processes"][0]
    incident.data("process")["processes"].append({**parent, "pid": 4812, "ppid": parent["pid"]})
    verdict = judge(*incident)
    assert verdict.cause == "unknown"
    assert "idle_cut" in dict(verdict.fits)
    for words in incident.data("sockets")["last_words"]:
        words["kind"] = "rst"  # which no goodbye leads to
    assert judge(*incident).cause == "idle_cut"


def test_a_login_that_waited_and_then_got_a_connection_does_not_speak_for_the_pool() -> None:
    """Who waits in a nested checkout gives up, and for a moment there is a connection for everybody."""
    incident = incidents.fails(incidents.burst(), "timeout", {"pool_exhausted": 20}, seconds=5.0)
    incident.data("login")["rounds"][-1] = incidents.login_round("200")
    verdict = judge(*incident)
    assert (verdict.cause, verdict.action) == ("pool_too_small", "none")
    for backend in incident.database["views"]["activity"]["data"]["sessions"]:
        backend.update(state="idle in transaction", state_change=incidents.at(-12))
    verdict = judge(*incident)
    assert (verdict.cause, verdict.action) == ("unknown", "none")
    assert "nested_checkout" in dict(verdict.fits)


def test_evidence_of_a_failure_that_healed_is_not_green() -> None:
    incident = heals(healthy(), during={"login_error": 3})
    verdict = judge(*incident)
    assert verdict.cause != "healthy"
    assert verdict.action == "none"


def test_the_same_failing_sessions_with_all_views_but_the_words() -> None:
    """Under TLS only the size of the words is known: several causes fit, and none is invented."""
    incident = sessions_terminated_failing()
    for words in incident.data("sockets")["last_words"]:
        words.update(kind="bytes", sqlstate=None, message=None)
    verdict = judge(*incident)
    assert verdict.cause not in ("sessions_terminated", "idle_session_timeout", "idle_cut")


# -- the conditions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_a_condition_has_one_of_three_values_and_says_which_view(name: str) -> None:
    facts = Facts(*TABLE[name][0]())
    for cause in CAUSES:
        for condition in cause.conditions:
            answer = condition(facts)
            assert answer.value in (True, False, None)
            assert answer.text
            assert answer.view in (*HOST_VIEWS, *DATABASE_VIEWS)


def test_under_tls_what_only_the_server_said_stays_open() -> None:
    """Nothing is guessed, but what a setting of 0 rules out; no restart where the login works again."""
    incident = under_tls(sessions_terminated())
    verdict = judge(*incident)
    assert (verdict.cause, verdict.restart_helps) == ("unknown", False)
    assert [name for name, words in verdict.fits if "TLS hides" in words] == ["sessions_terminated"]
    assert f"look in PostgreSQL's own log, near {at(-900)[11:19]} UTC" in verdict.next[0]
    assert "give this run the rights" not in " ".join(verdict.next)
    crashed = incident.copy()
    crashed.data("server")["checkpointer_start"] = at(-60)
    assert "postgres_crash_recovery" in dict(judge(*crashed).fits)
    for row in incident.data("server")["settings"]:
        if row["name"] == "idle_session_timeout":
            row["setting"] = "600000"
    assert "idle_session_timeout" in dict(judge(*incident).fits)


@pytest.mark.parametrize("found", [-30.0, 2.0])
@pytest.mark.parametrize("hide", ["under_tls", "denied"])
@pytest.mark.parametrize("cause", ["57P01", "57P02", "57P05", "25P03", "25P04"])
def test_the_apps_own_pool_reads_what_nobody_else_can(cause: str, hide: str, found: float) -> None:
    """Shortly before the run, or when the probe made it use the connections."""
    incident = {"under_tls": under_tls, "denied": denied}[hide](sessions_terminated())
    status = status_document(0, [], [])
    beat = {"seconds": 6.0, "ended_at": at(-3 * HOUR)}
    status["monitor"]["gap"], status["loop"]["gap"] = beat, {**beat, "ended_at": at(-9 * HOUR)}
    pool(incident, status)
    assert judge(*incident).cause == "unknown"
    told = {cause: at(found), "fin": at(found), "57P05": at(-900)}
    if found < 0:
        status["counters"]["dead_found_at"] = {**told, cause: at(found)}
    else:
        incident.data("pool")["processes"][0]["dead_found_at"] = {**told, cause: at(found)}
    validate(incident.host)
    validate(status)
    verdict = judge(*incident)
    assert verdict.confidence == "decided"
    assert (
        verdict.cause
        == {
            "57P01": "sessions_terminated",
            "57P02": "postgres_crash_recovery",
            "57P05": "idle_session_timeout",
            "25P03": "idle_in_transaction_timeout",
            "25P04": "transaction_timeout",
        }[cause]
    )
    assert any(f"the app's pool read on dead connections: {cause}" in why.text for why in verdict.why)


def test_what_the_pool_found_long_ago_says_nothing_of_these_connections() -> None:
    incident = pool(under_tls(sessions_terminated()), status_document(0, [], []))
    told = {"dead_found_at": {"57P01": at(-900)}}
    incident.data("pool")["processes"][0]["status"]["counters"].update(told)
    assert judge(*incident).cause == "unknown"


def after_logins(more: int, status: str = "401", gone: int = 0) -> Incident:
    """3 logins are served while two connections are open; so many more are open afterwards, and so many gone."""
    incident = incidents.healthy()
    incident.data("login")["rounds"] = [incidents.login_round(status, 3, ok=True)]
    first = [incidents.sock(fd) for fd in (11, 12)]
    later = [*first[gone:], *(incidents.sock(fd) for fd in range(21, 21 + more))]
    return incidents.hold(incident, *first, later=tuple(later))


@pytest.mark.parametrize(
    ("incident", "told"),
    [
        (after_logins(3), True),
        (after_logins(2), False),  # a pool that grew to serve three at once had one of the two in use as well
        (after_logins(0), False),
        (after_logins(3, gone=1), False),  # it was replaced
    ],
)
def test_logins_that_keep_their_connections_are_told_and_no_verdict_rests_on_it(
    incident: Incident, told: bool
) -> None:
    words = "3 more after the probe's logins, one for each, though some were open before"
    verdict = judge(*incident)
    assert verdict.cause == "healthy"
    assert any(words in why.text for why in verdict.why) is told
    incident.host["views"]["new_connection"] = incidents.view(None, "not read")
    verdict = judge(*incident)
    assert verdict.cause == "unknown"
    assert any(words in step for step in verdict.next) is told


def denied(incident: Incident) -> Incident:
    """The same without the right to read what lies unread in the app's sockets."""
    incident.data("sockets").update(last_words=[], peek={"state": "denied", "reason": "ptrace_scope is 1"})
    return incident


@pytest.mark.parametrize("hide", [under_tls, denied])
def test_a_crash_leaves_a_trace_where_its_words_cannot_be_read(hide: Callable[[Incident], Incident]) -> None:
    """The connections were ended 900 s ago."""
    incident = hide(incidents.crash_recovery())
    incident.data("server")["checkpointer_start"] = at(-880)
    verdict = judge(*incident)
    assert (verdict.cause, verdict.confidence, verdict.action) == (
        *("postgres_crash_recovery", "decided"),
        "restart",
    )
    healed = judge(*heals(incident, during={"server_closed": 3}))
    assert (healed.cause, healed.action) == ("postgres_crash_recovery", "none")


@pytest.mark.parametrize(
    ("hide", "ago"), [(under_tls, 60), (under_tls, 26 * HOUR), (denied, 2 * HOUR), (denied, 26 * HOUR)]
)
def test_a_crash_at_another_time_is_not_why_connections_are_dead(
    hide: Callable[[Incident], Incident], ago: float
) -> None:
    """26 h ago the app did not run."""
    incident = hide(sessions_terminated_failing())
    incident.data("server")["checkpointer_start"] = at(-ago)
    assert judge(*incident).cause == "unknown"


def test_without_the_right_to_read_the_words_the_log_may_have_them() -> None:
    incident = denied(sessions_terminated_failing())
    assert judge(*incident).cause == "unknown"
    incident.data("log")["during_login"]["terminated_by_administrator"] = 2
    assert judge(*incident).cause == "sessions_terminated"


@pytest.mark.parametrize(
    ("library", "said_at", "wanted"),
    [
        ("sqlalchemy", None, None),
        ("sqlalchemy", -20, True),
        ("sqlalchemy", -20 * HOUR, None),
        ("psycopg2.pool", None, False),
    ],
)
def test_a_pool_that_waits_says_that_it_is_exhausted_later_than_a_probe_lasts(
    library: str, said_at: Optional[float], wanted: Optional[bool]
) -> None:
    """So where logins hang, the newest word of the running process counts; psycopg2's own pool never waits."""
    incident = fails(healthy(), "timeout", seconds=5.0)
    incident.data("source")["pools"][0]["library"] = library
    if said_at is not None:
        incident.data("log")["last"]["pool_exhausted"] = at(said_at)
    assert pool_is_exhausted(Facts(*incident)).value is wanted


@pytest.mark.parametrize(("library", "later"), [("sqlalchemy", True), ("psycopg2.pool", False)])
def test_a_first_run_that_cannot_decide_yet_says_when_to_ask_again(library: str, later: bool) -> None:
    incident = fails(healthy(), "timeout", seconds=5.0)
    incident.data("source")["pools"][0]["library"] = library
    verdict = judge(*incident)
    assert verdict.cause == "unknown"
    assert verdict.next[0].startswith("run it again in half a minute") is later


# -- what the process runs with, and what it should ----------------------------------------------------------


def test_where_nothing_is_unread_no_rights_are_asked_for() -> None:
    incident = fails(healthy(), "503")
    verdict = judge(*incident)
    assert (verdict.cause, verdict.unread) == ("unknown", [])
    assert verdict.next[0].startswith("nothing is unread, and what was read disproves every known cause")
    assert judge(*unread(incident, "log")).next[0].startswith("give this run the rights")


def test_where_check_mode_forbade_the_probe_it_is_allowed_first() -> None:
    reason = "not probed in check mode; -e diagnose_probe_in_check=true allows it"
    verdict = judge(*unread(healthy(), "login", reason=reason))
    assert verdict.cause == "unknown"
    assert "-e diagnose_probe_in_check=true" in verdict.next[0]


@pytest.mark.parametrize(("age", "told"), [(20, True), (600, False)])
def test_an_app_that_was_started_a_moment_ago_is_told_so_where_logins_failed(age: int, told: bool) -> None:
    """Whether it ended is not proven by that; who reads it knows where to look."""
    incident = heals(healthy())
    process = incident.data("process")
    process["processes"][0]["started_at"] = at(-age)
    process["service"]["why"] = "odras.service is active; it ended by itself"
    verdict = judge(*incident)
    assert (verdict.cause, verdict.action) == ("unknown", "none")
    words = "the app was started 20 s before this run (odras.service is active; it ended by itself)"
    assert (words in verdict.title) is told


def test_an_app_without_a_monitor_has_none_that_is_well() -> None:
    incident = healthy()
    incident.data("log").update(whole_window=True)
    view = incident.host["views"]["pool"]
    view.update(state="unknown", data={"processes": [], "left_behind": []}, reason="no status socket")
    incident.data("log")["counts"].update(monitor_started=0, monitor_error=0, pool_status=0)
    unread_monitor = unread(incident, "monitor")
    verdict = judge(*unread_monitor)
    first = steps(Facts(*unread_monitor), verdict)[0]
    assert (first["status"], first["summary"].partition(",")[0]) == (
        "unknown",
        "the app has no status socket",
    )
    assert verdict.cause == "healthy"


def configured(value: str, **config: object) -> Incident:
    """A healthy app with a status socket: its pool has 20, the file says `value`."""
    incident = pool(healthy(), status_document(0, [], []))
    incident.data("config")["settings"]["POSTGRES_POOL_MAX_CONNECTIONS"]["value"] = value
    incident.data("config").update(config)
    return incident


def test_a_pool_that_runs_with_another_maximum_than_the_file_says_is_stale() -> None:
    verdict = judge(*configured("40"))
    assert verdict.cause == "stale_configuration"
    assert "is 40 in" in verdict.why[0].text
    assert "20 in the process" in verdict.why[0].text
    assert judge(*configured("20.0")).cause == "healthy"


def test_what_was_switched_at_run_time_is_not_stale() -> None:
    incident = configured("40")
    status = incident.data("pool")["processes"][0]["status"]
    status["overrides"] = [{"name": "max_connections", "value": "20", "was": "40", "reverts_in": 60.0}]
    assert judge(*incident).cause == "healthy"


def test_a_file_changed_after_the_start_leaves_open_what_runs_where_nothing_tells_it() -> None:
    incident = healthy()
    incident.data("config")["changed_at"] = at(-60)
    verdict = judge(*incident)
    assert (verdict.cause, verdict.confidence) == ("healthy", "decided")
    assert any("stale_configuration" in answer.text for answer in verdict.unread)


@pytest.mark.parametrize(
    ("build", "cause"), [(incidents.connections_kept, "connection_leak"), (incidents.burst, "pool_too_small")]
)
def test_a_maximum_that_was_raised_on_disk_alone_loses_no_slots(
    build: Callable[[], Incident], cause: str
) -> None:
    """What runs is as full as it may be, and the file says more: to whom it was too small has raised it there."""
    incident = build()
    assert judge(*incident).cause == cause
    incident.data("config")["settings"]["POSTGRES_POOL_MAX_CONNECTIONS"]["value"] = "60"
    incident.data("config")["changed_at"] = at(-60)
    assert judge(*incident).cause != "slot_leak"
    where = "environment of pid 4272"
    incident.data("config")["live"] = {"POSTGRES_POOL_MAX_CONNECTIONS": {"value": "20", "where": where}}
    for changed in (at(-60), None):  # when it was changed need not be known
        incident.data("config")["changed_at"] = changed
        verdict = judge(*incident)
        assert (verdict.cause, verdict.contributing) == (cause, ["stale_configuration"])


def test_one_full_pool_of_two_is_an_exhausted_pool() -> None:
    incident = connection_leak()
    rows = incident.data("pool")["processes"]
    rows.append({**rows[0], "pid": APP_PID + 1, "status": status_document(0, [], [])})
    verdict = judge(*incident)
    assert verdict.cause == "connection_leak"
    assert "20 of 40 used; all of them in 1 of 2 processes" in verdict.why[0].text


def test_a_number_without_a_time_is_believed_wrong_only_where_it_is_the_rest_to_the_maximum() -> None:
    incident = metric_artefact()
    line = incident.data("log")["pool_line"]
    line.update(at=None)
    assert judge(*incident).cause == "metric_artefact"
    line.update(active=19)
    assert judge(*incident).cause == "healthy"


# -- the next step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"source": "database"}, "ALTER DATABASE odras RESET idle_session_timeout"),
        ({"source": "global"}, "ALTER ROLE ALL RESET idle_session_timeout"),
        (
            {"source": "configuration file", "file": "/data/postgresql.auto.conf", "line": 3},
            "ALTER SYSTEM RESET idle_session_timeout",
        ),
        (
            {"source": "configuration file", "file": "/etc/postgresql/17/main/postgresql.conf", "line": 711},
            "set in /etc/postgresql/17/main/postgresql.conf:711",
        ),
    ],
    ids=lambda value: value["source"] if isinstance(value, dict) else "",
)
def test_the_setting_and_where_it_was_set(place: dict[str, Any], words: str) -> None:
    incident = incidents.idle_session_timeout().copy()
    row = {"name": "idle_session_timeout", "setting": "900000", "unit": "ms", **place}
    incident.data("server")["settings"] = [row]
    verdict = judge(*incident)
    assert verdict.cause == "idle_session_timeout"
    assert "idle_session_timeout is 900000 ms" in verdict.next[0]
    assert words in verdict.next[0]


@pytest.mark.parametrize("asked", ["default", "user", "database user"])
@pytest.mark.parametrize(
    ("database", "undo"),
    [
        (None, "ALTER ROLE odras_app RESET idle_session_timeout"),
        ("odras", "ALTER ROLE odras_app IN DATABASE odras RESET idle_session_timeout"),
    ],
)
def test_the_setting_of_the_role_whoever_the_server_was_asked_for(
    asked: str, database: str | None, undo: str
) -> None:
    """The database may be read without knowing the app's role: pg_settings then tells of another one."""
    incident = incidents.idle_session_timeout().copy()
    row = {"name": "idle_session_timeout", "setting": "0", "unit": "ms", "source": asked}
    own = {"role": "odras_app", "database": database, "name": "idle_session_timeout", "value": "15min"}
    others = [{**own, "role": "somebody", "value": "1h"}, {**own, "database": "another", "value": "2h"}]
    incident.data("server").update(settings=[row], role_settings=[own, *others])
    told = judge(*incident).next[0]
    assert "idle_session_timeout is 15min for odras_app in odras" in told
    assert undo in told


def test_what_holds_for_another_role_is_not_told_of_the_app() -> None:
    incident = incidents.idle_session_timeout().copy()
    row = {"name": "idle_session_timeout", "setting": "900000", "unit": "ms", "source": "user"}
    own = {"role": "somebody", "database": None, "name": "idle_session_timeout", "value": "15min"}
    incident.data("server").update(settings=[row], role_settings=[own])
    assert "find where idle_session_timeout is set" in judge(*incident).next[0]


def test_no_restart_for_a_stranger_who_has_the_slots() -> None:
    """The app's own role has leaked two; PostgreSQL 16 names roles with a right, which is nobody's limit."""
    incident = incidents.connection_slots_full().copy()
    said = 'remaining connection slots are reserved for roles with privileges of the "pg_use_reserved_connections" role'
    incident.data("new_connection")["error"]["message"] = said
    stranger = {"role": "reports", "database": "odras", "application_name": "r", "client_address": None}
    own = {"role": "odras_app", "database": "odras", "application_name": "a", "client_address": None}
    seen = backends(healthy(), incidents.session(1, 40003), incidents.session(2, 40004)).database["views"]
    incident.database["views"].update({name: seen[name] for name in ("server", "activity", "limits")})
    incident.data("limits")["by_role"] = [{**own, "count": 2}, {**stranger, "count": 90}]
    verdict = judge(*incident)
    assert (verdict.cause, verdict.action) == ("connection_slots_full", "none")
    assert "who has them: 90 by reports" in verdict.next[0]

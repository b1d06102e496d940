"""Pure parts of the observation: does a raised maximum fit, what the document says, and what a person reads."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from runbook.common import documents
from runbook.report.observation import headline, observation, observation_screen, sites, wanted_words
from runbook.verdict.headroom import Wanted, pool_of, too_many
from runbook.verdict.steps import debug_log, frequency

LIMITS: dict[str, Any] = {
    **{"max_connections": 100, "superuser_reserved_connections": 3, "reserved_connections": 0, "used": 17},
    "database_limit": -1,
    "role_limits": [{"role": "billing", "limit": -1}],
    "by_role": [
        {"role": "billing", "application_name": "billing@web-1:1", "database": "billing", "count": 10}
    ],
}


def pools(wanted: int, number: int = 4) -> list[Wanted]:
    return [Wanted(f"web-{i // 2}", "billing", 2, 10, wanted) for i in range(number)]


@pytest.mark.parametrize(
    ("wanted", "changes", "words"),
    [
        (22, {}, None),  # 4 x 22 - 8 open = 80, and there is room for 100 - 3 - 17
        (
            23,
            {},
            "the pools could open 84 more connections (web-0: 23 - 2 open + 23 - 2 open; web-1: 23 - 2 open + 23 -"
            " 2 open), and there is room for 80 (max_connections 100 - 3 reserved - 17 used); at most 22 each would"
            " fit",
        ),
        (
            22,
            {"role_limits": [{"role": "billing", "limit": 60}]},
            "room for 50 (the limit of role billing, 60 - 10 used); at most 14 each would fit",
        ),
        (
            22,
            {"database_limit": 40},
            "room for 30 (the limit of the database, 40 - 10 used); no more fit",
        ),
        (22, {"role_limits": [{"role": "another", "limit": 1}]}, None),
        (22, {"used": 200}, "room for 0 (max_connections 100 - 3 reserved - 200 used); no more fit"),
    ],
)
def test_a_raised_maximum_fits_or_the_sum_is_said(
    wanted: int, changes: dict[str, Any], words: str | None
) -> None:
    told = too_many(pools(wanted), {**LIMITS, **changes})
    assert (told is None) if words is None else (told is not None and words in told), told


def test_pools_that_are_not_raised_count_with_what_they_may_grow_to() -> None:
    others = [Wanted("web-9", "billing", 0, 70, 70)]
    told = too_many([*pools(10), *others], LIMITS)
    assert told is not None and "could open 102 more connections" in told and told.endswith("no more fit")


def test_a_pool_is_read_from_its_status() -> None:
    status = {"user": "billing", "count": {"used": 3, "idle": 2}, "config": {"max_connections": 20}}
    assert pool_of("web-1", status, 0) == Wanted("web-1", "billing", 5, 20, 20)
    assert pool_of("web-1", status, 30).wanted == 30


# -- the document and its screen ---------------------------------------------------------------------------

PLAN: dict[str, Any] = {
    "run_id": "2026-11-23T034107Z-0001",
    "host": "web-1",
    "seconds": 300.0,
    "wanted": {"monitor_interval": 10.0, "log_level": "DEBUG", "stacks": True, "max_connections": 30},
}
BEGUN: dict[str, Any] = {"at": "2026-11-23T03:41:07.000Z", "unread": []}
ROW: dict[str, Any] = {
    **{"site": "/srv/billing/db.py:57", "checkouts": 412, "refused": 0, "wait_seconds": 1.0},
    **{"longest_wait": 0.4, "returned": 404, "hold_seconds": 2.02, "longest_hold": 1.5},
}
HOLDER: dict[str, Any] = {
    **{"backend_pid": 88, "request_id": "login-7", "request_over": True, "site": "/srv/billing/db.py:57"},
    **{"thread": "AnyIO worker thread", "tid": 4279, "age": 212.0, "long_lived": None},
    "stack": "/srv/billing/web.py:12 in login\n/srv/billing/db.py:57 in find_user\n",
}
LOOK: dict[str, Any] = {
    "at": "2026-11-23T03:42:00.000Z",
    "pools": [{"pid": 4272, "used": 3, "maximum": 30, "waiting": 0}],
    "sockets": {"ESTAB": 5},
    "sessions": {"idle": 5},
}


def process(**changes: Any) -> dict[str, Any]:
    changed = [
        {"at": "2026-11-23T03:41:07.100Z", "event": "set", "change": "log_level INFO -> DEBUG"},
        {
            "at": "2026-11-23T03:46:07.100Z",
            "event": "reverted by itself",
            "change": "log_level DEBUG -> INFO",
        },
    ]
    own = {"pid": 4272, "same": True, "reverted": True, "error": None, "changes": changed, "counters": {}}
    return {**own, "samples": [deepcopy(ROW)], "holders": [HOLDER], **changes}


def ended(*rows: dict[str, Any]) -> dict[str, Any]:
    counts = {"acquired": 412, "returned": 404, "pool_status": 30}
    log = {"path": "/var/log/billing.log", "lines": 850, "counts": counts, "samples": {}}
    return {"processes": list(rows), "log": log, "unread": [], "masked": 2}


def made(*rows: dict[str, Any]) -> dict[str, Any]:
    document = observation(PLAN, BEGUN, [LOOK, {**LOOK, "sockets": {"ESTAB": 7}}], ended(*rows))
    documents.validate(document)
    return document


def test_what_was_seen_is_on_the_screen() -> None:
    document = made(process(), process(pid=4273))
    assert (document["outcome"], document["wrong"]) == ("observed", [])
    screen = observation_screen(document, "reports/latest/observations/web-1.json")
    for words in (
        "web-1   OBSERVED for 5 min 00 s   824 checkouts at 1 site, longest wait 0.4 s, 16 not returned",
        "log_level INFO -> DEBUG in pid 4272, 4273",
        "reverted by itself, the last at 03:46:07 UTC; the same processes as before",
        "824 checkouts, 16 NOT RETURNED; held 0.01 s, longest 1.5 s; waited 0 s, longest 0.4 s",
        "pid 4272: /srv/billing/db.py:57 for 3 min 32 s, request login-7 which is over",
        "/srv/billing/db.py:57 in find_user",
        "2 times: used 3; maximum 30; waiting 0; sockets 5 to 7 ESTAB; sessions 5 idle",
        "850 lines more: 412 acquired, 404 returned, 30 pool status",
    ):
        assert words in screen, screen
    assert max(map(len, screen.splitlines())) <= 100


def test_the_sites_of_several_processes_are_one_list() -> None:
    other = {**ROW, "site": "/srv/billing/web.py:9", "checkouts": 2000, "longest_wait": 3.0}
    first, second = sites(made(process(), process(pid=4273, samples=[dict(ROW), other])))
    assert (first["site"], second["checkouts"], second["longest_wait"]) == (other["site"], 824, 0.4)


@pytest.mark.parametrize(
    ("rows", "outcome", "words"),
    [
        ([process(error="the process is gone", same=False)], "failed", "pid 4272: the process is gone"),
        ([process(reverted=False)], "failed", "pid 4272 is not as it was"),
        ([], "failed", "no process of the app was found"),
        ([process(reverted=None, samples=[], holders=[])], "partly", "no process of the app has a status"),
    ],
)
def test_what_went_wrong_is_never_green(rows: list[dict[str, Any]], outcome: str, words: str) -> None:
    document = made(*rows)
    assert document["outcome"] == outcome
    screen = " ".join(observation_screen(document).split())
    assert words in screen, screen
    assert ("OBSERVED WELL" in screen) == (outcome == "failed")


def test_a_host_that_was_lost_meanwhile_says_so() -> None:
    document = observation(PLAN, BEGUN, [], None)
    documents.validate(document)
    assert document["outcome"] == "failed"
    assert "its processes switch back by themselves" in headline(document)


def test_the_wanted_values_in_words() -> None:
    assert wanted_words(PLAN["wanted"]) == "monitor interval 10 s, log level DEBUG, stacks on, maximum 30"


class _Open:
    confidence = "unknown"


def test_steps_5_and_6_tell_what_was_done() -> None:
    document = made(process(), process(pid=4273))
    assert frequency(_Open(), document) == (
        "ok",
        "every 10 s in pid 4272, 4273 for 300 s, back by itself: 30 pool status in the log",
    )
    status, words = debug_log(_Open(), document)
    assert (status, "412 acquired, 404 returned in the log" in words) == ("ok", True)
    assert debug_log(_Open(), made(process(reverted=False)))[0] == "fail"
    assert debug_log(_Open(), made(process(reverted=None)))[0] == "skipped"
    assert "observe.yml" in debug_log(_Open(), None)[1]

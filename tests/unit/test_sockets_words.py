"""The server's last words, from the bytes alone. Real sockets of real sessions: tests/integration."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook.common.documents import validate
from runbook.evidence.sockets import Watch, interpret
from tests.unit.incidents import healthy


def message(kind: bytes, payload: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(payload) + 4) + payload


def error(sqlstate: str, text: str = "terminating connection", severity: str = "FATAL") -> bytes:
    fields = (f"S{severity}", f"V{severity}", f"C{sqlstate}", f"M{text}", "Fpostgres.c", "L3275", "RProcess")
    return message(b"E", b"".join(field.encode() + b"\0" for field in fields) + b"\0")


NOTICE = message(b"N", b"SWARNING\0VWARNING\0C01000\0Mcollation version mismatch\0\0")
PARAMETER = message(b"S", b"TimeZone\0UTC\0")
READY = message(b"Z", b"I")
TLS = b"\x17\x03\x03\x00\x4a" + bytes(range(74))


def test_connections_to_the_node_of_before_are_told_beside_those_to_the_new_one() -> None:
    new, old, other = "10.0.4.9:5432", "10.0.4.8:5432", "10.0.4.30:6379"
    rows = [{"peer": peer, "state": "ESTAB"} for peer in (old, old, new, other)]
    rows.append({"peer": old, "state": "CLOSE-WAIT"})
    assert Watch([], [new])._to_database(rows) == ([rows[2]], {old: 2})
    # Nothing leads where the settings say: then these are the app's.
    assert Watch([], ["10.0.4.7:5432"])._to_database(rows) == ([*rows[:3], rows[4]], {old: 2, new: 1})
    assert Watch([], [])._to_database(rows) == ([*rows[:3], rows[4]], {})


@pytest.mark.parametrize("sqlstate", ["57P01", "57P02", "57P05", "25P03", "25P04", "57P03", "53300"])
def test_every_ending_is_told_by_its_code(sqlstate: str) -> None:
    words = interpret(error(sqlstate, "terminating connection due to something"))
    assert words == {
        "kind": "error",
        "sqlstate": sqlstate,
        "message": "terminating connection due to something",
        "bytes": len(error(sqlstate, "terminating connection due to something")),
    }


@pytest.mark.parametrize("before", [b"", NOTICE, PARAMETER, NOTICE + PARAMETER + READY, READY * 100])
def test_what_was_said_before_does_not_hide_it(before: bytes) -> None:
    assert interpret(before + error("57P01"))["sqlstate"] == "57P01"


def test_the_last_words_are_the_last_ones() -> None:
    """An error of a statement that nobody has read yet, then the end of the session."""
    unread = error("57014", "canceling statement due to statement timeout", "ERROR") + READY + error("57P01")
    words = interpret(unread)
    assert words["sqlstate"] == "57P01"
    assert words["bytes"] == len(unread)


def test_nothing_unread_is_a_bare_fin() -> None:
    assert interpret(b"") == {"kind": "fin", "sqlstate": None, "message": None, "bytes": 0}


@pytest.mark.parametrize(
    "unread", [TLS, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 40, b"E", b"E\0\0\0", b"\x15"]
)
def test_bytes_that_are_no_protocol_keep_only_their_size(unread: bytes) -> None:
    assert interpret(unread) == {"kind": "bytes", "sqlstate": None, "message": None, "bytes": len(unread)}


def test_messages_without_an_error_are_bytes() -> None:
    assert interpret(NOTICE + PARAMETER + READY)["kind"] == "bytes"


def test_a_translated_text_still_has_its_code() -> None:
    german = error("57P01", "Verbindung wird abgebrochen aufgrund von Anweisung des Administrators")
    assert interpret(german)["sqlstate"] == "57P01"


@pytest.mark.parametrize("kept", range(5, len(error("57P01"))))
def test_a_cut_message_says_what_it_can_and_invents_nothing(kept: int) -> None:
    words = interpret(error("57P01")[:kept])
    assert words["kind"] == "error"
    assert words["sqlstate"] in (None, "57P01")
    assert words["bytes"] == kept


@pytest.mark.parametrize("code", ["", "57P0", "57P011", "57p01", "..../", "5 P01"])
def test_what_is_no_code_is_none(code: str) -> None:
    assert interpret(error(code))["sqlstate"] is None


@given(
    st.binary(max_size=300) | st.lists(st.sampled_from([NOTICE, READY, TLS, error("57P05")])).map(b"".join)
)
def test_any_bytes_are_words_that_the_schema_knows(unread: bytes) -> None:
    words = interpret(unread)
    assert words["bytes"] == len(unread)
    assert words["kind"] in ("error", "bytes", "fin")
    assert (words["kind"] == "fin") == (not unread)
    assert words["sqlstate"] is None or len(words["sqlstate"]) == 5
    assert words["kind"] == "error" or words["message"] is None


def test_the_words_fit_the_schema() -> None:
    host = healthy().host
    place = {"pid": 1, "fd": 3, "local": "127.0.0.1:40000", "peer": "127.0.0.1:5432"}
    host["views"]["sockets"]["data"]["last_words"] = [
        {**place, **interpret(unread)} for unread in (b"", TLS, error("57P01"), error("57P01")[:20])
    ]
    validate(host)

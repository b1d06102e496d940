"""What was seen of one host while it was watched more closely: the document, and its screen. Pure."""

from __future__ import annotations

from typing import Any, Optional

from ..verdict.answers import count
from .words import duration, heading, plain, section

MOST_SITES, MOST_HELD, MOST_FRAMES = 8, 5, 12
# What an app without a status socket cannot be asked for.
NOT_SWITCHED = "monitor interval, debug log, stacks and maximum: no process of the app has a status socket"

Document = dict[str, Any]


def observation(
    plan: Document, begun: Document, looks: list[Document], ended: Optional[Document]
) -> Document:
    """The document of observation.schema.json. ``ended`` is None when the host was lost meanwhile.

    ``plan``: run_id, host, seconds, wanted. ``looks``: those of the host, each with ``sessions`` {state: number} of the app on the server, or None.
    """
    rows = ended["processes"] if ended else []
    switched = [row for row in rows if row["reverted"] is not None]
    wrong = [f"pid {row['pid']}: {row['error']}" for row in rows if row["error"]]
    wrong += [f"pid {row['pid']} is not as it was" for row in switched if row["reverted"] is False]
    if ended is None:
        wrong.append("it could not be read back; its processes switch back by themselves all the same")
    elif not rows:
        wrong.append("no process of the app was found")
    unread = [*begun["unread"], *(ended["unread"] if ended else [])]
    if not switched and not wrong:
        unread.insert(0, NOT_SWITCHED)
    return {
        "schema": "runbook/observation/1",
        **plan,
        "started": begun["at"],
        "outcome": "failed" if wrong else "observed" if switched else "partly",
        "wrong": wrong,
        "unread": unread,
        "processes": rows,
        "looks": looks,
        "log": ended["log"] if ended else None,
        "masked": ended["masked"] if ended else 0,
    }


def wanted_words(values: Document) -> str:
    """What is to be switched, in words."""
    words = {
        "monitor_interval": "monitor interval {:g} s",
        "log_level": "log level {}",
        "stacks": "stacks {}",
        "max_connections": "maximum {}",
    }
    shown = {True: "on", False: "off"}
    told = {name: shown[value] if isinstance(value, bool) else value for name, value in values.items()}
    return ", ".join(words[name].format(value) for name, value in told.items())


def sites(document: Document) -> list[Document]:
    """The rows of all processes by site, most checkouts first."""
    merged: dict[str, Document] = {}
    for row in (row for one in document["processes"] for row in one["samples"]):
        known = merged.setdefault(row["site"], {**dict.fromkeys(row, 0), "site": row["site"]})
        for name, value in row.items():
            if name.startswith("longest_"):
                known[name] = max(known[name], value)
            elif name != "site":
                known[name] += value
    return sorted(merged.values(), key=lambda row: (-row["checkouts"], row["site"]))


def headline(document: Document) -> str:
    """What was seen, in one clause."""
    found = sites(document)
    if document["outcome"] == "partly":
        return f"{count(len(document['looks']), 'look')} from outside; nothing could be switched"
    if not found:
        return document["wrong"][0] if document["wrong"] else "nobody borrowed a connection"
    waited = max(row["longest_wait"] for row in found)
    checkouts = sum(row["checkouts"] for row in found)
    words = f"{count(checkouts, 'checkout')} at {count(len(found), 'site')}, longest wait {duration(waited)}"
    kept = sum(max(0, row["checkouts"] - row["returned"]) for row in found)
    return f"{words}, {kept} not returned" if kept else words


def log_words(document: Document) -> str:
    """Which lines the log got, in one clause."""
    if not document["log"]:
        return "the log was not read"
    counts = document["log"]["counts"]
    by_number = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{number} {name.replace('_', ' ')}" for name, number in by_number]
    return f"{count(document['log']['lines'], 'line')} more: {', '.join(told) or 'none that is known'}"


def observation_screen(document: Document, saved: str = "") -> str:
    """What a person reads of it."""
    words = {"observed": "OBSERVED", "partly": "LOOKED AT, NOT SWITCHED", "failed": "NOT OBSERVED WELL"}
    state = f"{words[document['outcome']]} for {duration(document['seconds'])}"
    out = [*heading(f"{document['host']}   {state}   {headline(document)}"), ""]
    out += section("wrong", document["wrong"])
    out += section("did", _changes(document))
    found = sites(document)[:MOST_SITES]
    if found:
        out += section("sites", [line for row in found for line in (row["site"], f"  {_site(row)}")])
    out += section("held", _held(document))
    if document["looks"]:
        number = count(len(document["looks"]), "time")
        out += section("looks", [f"{number}: {looks_words(document['looks'])}"])
    out += section("log", [log_words(document)])
    out += section("unread", document["unread"])
    out += section("saved", [saved] if saved else [])
    return plain("\n".join(out) + "\n")


def _changes(document: Document) -> list[str]:
    switched = [row for row in document["processes"] if row["reverted"] is not None]
    if not switched:
        return []
    pids = ", ".join(str(row["pid"]) for row in switched)
    told = dict.fromkeys(
        event["change"] for row in switched for event in row["changes"] if event["event"] == "set"
    )
    lines = [f"{change} in pid {pids}" for change in told]
    back = [event for row in switched for event in row["changes"] if event["event"].startswith("reverted")]
    if back and not document["wrong"]:
        ways = " and ".join(sorted({event["event"] for event in back}))
        last = max(event["at"] for event in back)
        lines.append(f"{ways}, the last at {last[11:19]} UTC; the same processes as before")
    return lines


def _site(row: Document) -> str:
    refused = f", {row['refused']} refused" if row["refused"] else ""
    kept = row["checkouts"] - row["returned"]
    asked = max(1, row["checkouts"] + row["refused"])
    held = row["hold_seconds"] / max(1, row["returned"])
    return (
        f"{count(row['checkouts'], 'checkout')}{refused}{f', {kept} NOT RETURNED' if kept > 0 else ''};"
        f" held {duration(held)}, longest {duration(row['longest_hold'])};"
        f" waited {duration(row['wait_seconds'] / asked)}, longest {duration(row['longest_wait'])}"
    )


def _held(document: Document) -> list[str]:
    """Who held a connection at the end, the oldest first, with the stack of its checkout where it is known."""
    holders = [(row["pid"], one) for row in document["processes"] for one in row["holders"]]
    lines = []
    for pid, one in sorted(holders, key=lambda item: -item[1]["age"])[:MOST_HELD]:
        request = f", request {one['request_id']}" if one["request_id"] else ""
        over = " which is over" if one["request_over"] else ""
        lines.append(f"pid {pid}: {one['site']} for {duration(one['age'])}{request}{over}")
        lines += [f"  {frame}" for frame in (one["stack"] or "").splitlines()[-MOST_FRAMES:]]
    return lines


def looks_words(looks: list[Document]) -> str:
    """Lowest to highest of what was counted in the looks."""

    def span(numbers: list[int]) -> str:
        low, high = min(numbers), max(numbers)
        return str(low) if low == high else f"{low} to {high}"

    parts = []
    pools = [look["pools"] for look in looks if look["pools"]]
    for name in ("used", "maximum", "waiting") if pools else ():
        parts.append(f"{name} {span([sum(pool[name] for pool in one) for one in pools])}")
    for name in ("sockets", "sessions"):
        known = [look[name] for look in looks if look.get(name) is not None]
        states = sorted({state for one in known for state in one})
        told = ", ".join(f"{span([one.get(state, 0) for one in known])} {state}" for state in states)
        if known:
            parts.append(f"{name} {told or 0}")
    return "; ".join(parts) or "nothing could be counted"

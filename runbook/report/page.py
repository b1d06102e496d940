"""``page.html``: the report of one host for a browser, in one file that loads nothing. Pure."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from .screen import before, by_view, done, holds, state
from .words import duration, login_line, plain

TEMPLATE = Path(__file__).with_name("page.html.j2")


def page(report: dict[str, Any]) -> str:
    """The page of one host. Needs Jinja2, which the controller has; everything is escaped."""
    word = state(report)
    tone = "good" if word.startswith(("HEALTHY", "RESTORED")) else "open" if "UNKNOWN" in word else "bad"
    happened = [
        ("login", login_line(report["login_before"], report["login_after"])),
        *(("done", words) for words in done(report)),
        *(("holds", words) for words in holds(report)),
        *(("before", words) for words in before(report)),
        *(("also", words) for words in [", ".join(report["contributing"])] if words),
    ]
    text: str = _template().render(
        report=report,
        state=word,
        tone=tone,
        seconds=duration(report["seconds"]),
        happened=happened,
        why=by_view(report["why"]),
        unread=by_view(report["unread"]),
        fits=[(row["cause"], row["text"]) for row in report["fits"]],
        why_not=[(row["cause"], row["text"]) for row in report["why_not"]],
        steps=[(f"{s['step']} {s['name']}", f"{s['status']}: {s['summary']}") for s in report["steps"]],
    )
    return plain(text) + "\n"


@lru_cache(maxsize=1)
def _template() -> Any:
    # here, not above: `runbook show` prints a screen without the package
    from jinja2 import Environment  # noqa: PLC0415

    return Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE.read_text("utf-8"))

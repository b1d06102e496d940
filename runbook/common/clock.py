"""Times as the documents carry them: RFC 3339, UTC, with a Z; and the time that one trip may take."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Optional


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as ``2026-11-23T03:41:07.120Z``."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def trip_seconds(login_seconds: float) -> float:
    """Seconds within which one trip to a host ends, whatever hangs there: a slow login's, and those of all else."""
    return 15.0 + max(5.0, login_seconds)


def seconds_of(text: object) -> Optional[float]:
    """Seconds since the epoch of an RFC 3339 time in UTC; None when it is not one."""
    if not isinstance(text, str) or not text.endswith("Z"):
        return None
    whole, _, fraction = text[:-1].partition(".")
    try:
        # Python 3.9 reads fractions of three or six digits only, so they are read here.
        seconds = datetime.fromisoformat(whole).replace(tzinfo=timezone.utc).timestamp()
        return seconds + (float(f"0.{int(fraction):0{len(fraction)}d}") if fraction else 0.0)
    except (ValueError, OverflowError):
        return None

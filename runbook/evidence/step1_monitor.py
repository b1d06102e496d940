"""Step 1 of the guide: is the monitor running?

A start-up line in a log proves nothing about now, so two views say it: the heartbeat that the running
process tells over its status socket, and, where there is none, how old the monitor's newest line is.
This file names those facts; they are read with the views ``pool`` and ``log``.
"""

from __future__ import annotations

from typing import Any, Optional


def monitor_facts(pool: Optional[dict[str, Any]], log: Optional[dict[str, Any]]) -> dict[str, Any]:
    """What is known of the monitor.

    ``alive``: by heartbeat, None where no process tells one. ``started``: the log has a start-up line in
    what was read. ``lines``: how often the monitor reported there. ``newest``: time of its newest line.
    """
    beats = [
        monitor["alive"] is True
        for process in (pool or {}).get("processes", [])
        for monitor in [(process.get("status") or {}).get("monitor")]
        if isinstance(monitor, dict) and "alive" in monitor
    ]
    counts = (log or {}).get("counts", {})
    return {
        "alive": all(beats) if beats else None,
        "started": bool(counts.get("monitor_started")) if log else None,
        "lines": counts.get("pool_status", 0),
        "newest": (log or {}).get("last", {}).get("pool_status"),
    }

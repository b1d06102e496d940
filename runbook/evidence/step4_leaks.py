"""Step 4 of the guide: code that takes a connection and does not give it back."""

from __future__ import annotations

import time
from typing import Any

from ..leaks.search import search_paths


def collect(roots: list[str], deadline_seconds: float) -> dict[str, Any]:
    """The ``data`` of view ``source`` in host-evidence.schema.json: ``{roots, files, complete, findings, pools}``.

    The search is complete only if it read something, could read all it had to, and ended within
    ``deadline_seconds``.
    """
    result = search_paths(roots, deadline=time.monotonic() + deadline_seconds)
    return {
        "roots": roots,
        "files": result.files,
        "complete": result.complete and result.files > 0 and not result.unread,
        "findings": [finding.as_dict() for finding in result.findings],
        "pools": result.pools,
    }

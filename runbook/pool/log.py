"""Logging that is in the file at once, with time, level, logger and pid on every line."""

from __future__ import annotations

import logging
import sys
import time

FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s [%(process)d] %(message)s"


def configure_logging(level: str | int = "INFO") -> None:
    """Send all logging of this process to standard error, each line flushed as it is written.

    level: a name of the `logging` module ("DEBUG" also shows every acquisition and return of a connection)
    or its number; ValueError otherwise. Times are UTC. Replaces handlers that the root logger has.
    """
    formatter = logging.Formatter(FORMAT, datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)

"""Starts a program that lies among the tests, in the project's own environment."""

import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start(module: str) -> None:
    """Run `main()` of a module of tests/, by its dotted name; ends with its exit status."""
    python = ROOT / ".venv" / "bin" / "python"
    if sys.prefix == sys.base_prefix and python.exists():  # typed without `make` or an active environment
        os.execv(python, [str(python), *sys.argv])
    sys.path[0] = str(ROOT)
    sys.exit(importlib.import_module(module).main())

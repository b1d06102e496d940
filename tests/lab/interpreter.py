"""A Python for the application that its account can run.

Root's clone and root's Python often lie in root's home (0700), where `nobody` cannot go. Then what the
application needs of both is copied beside it; no permission of theirs is changed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tests.lab.account import Account

PROBE = "import fastapi, uvicorn"
NOT_NEEDED = ("site-packages", "test", "config-*", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo")


def interpreter(account: Account, target: Path, packages: tuple[str, ...]) -> Path:
    """The running Python where the account can use it, else a copy of it in `target` (made if needed).

    packages: distributions that the app imports; they and what they need are in the copy.
    """
    here = Path(sys.executable)
    if _works(here, account):
        return here
    copy = _copy(target, packages)
    account.own(target)
    if not _works(copy, account):
        raise RuntimeError(
            f"uid {account.uid} can run neither {here} nor its copy {copy}; use a virtual environment that "
            "every user may enter, or start the lab as an ordinary user"
        )
    return copy


def _works(python: Path, account: Account) -> bool:
    try:
        probe = subprocess.run(
            [str(python), "-c", PROBE],
            cwd="/",
            env={"LC_ALL": "C.UTF-8"},
            capture_output=True,
            timeout=60,
            check=False,
            **account.run_as(),
        )
    except PermissionError:
        return False
    return probe.returncode == 0


def _copy(target: Path, packages: tuple[str, ...]) -> Path:
    """bin, lib and the packages, laid out so that Python finds its prefix from its own place."""
    name = f"python{sysconfig.get_python_version()}"
    library = target / "lib"
    binary = target / "bin" / name
    binary.parent.mkdir(parents=True)
    shutil.copy2(Path(sys._base_executable).resolve(), binary)
    shutil.copytree(
        sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}),
        library / name,
        ignore=shutil.ignore_patterns(*NOT_NEEDED),
    )
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        shared = sysconfig.get_config_var("INSTSONAME")
        shutil.copy2(Path(sysconfig.get_config_var("LIBDIR")) / shared, library / shared)
    for package in _closure(packages):
        for file in distribution(package).files or ():
            if ".." not in file.parts and (source := Path(str(file.locate()))).is_file():
                place = library / name / "site-packages" / file
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, place)
    # Where Python is built with a shared library, its path inside the binary leads to the unreachable place.
    start = target / "python"
    start.write_text(
        f'#!/bin/sh\nLD_LIBRARY_PATH="{library}" exec "{binary}" "$@"\n',
    )
    start.chmod(0o755)
    return start


def _closure(names: tuple[str, ...]) -> set[str]:
    """The packages and what they need, as installed; optional extras are left out."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:  # needed on another platform or Python only
            continue
        found.add(name)
        waiting += [
            re.split(r"[^\w.-]", need, maxsplit=1)[0].lower() for need in needs if "extra ==" not in need
        ]
    return found

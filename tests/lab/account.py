"""Whose processes and files the lab's are.

PostgreSQL refuses to run as root, and the application should not. Started by root, both run as `nobody`
in a directory of their own; started by anybody else, they simply run as that user.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Account:
    """The user that the lab's processes run as."""

    uid: int
    gid: int
    dropped: bool  # True: we are root and step down to it

    def run_as(self) -> dict[str, Any]:
        """Arguments for `subprocess` that make the child run as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.dropped else {}

    def own(self, *paths: Path) -> None:
        """Give files and whole trees to this account; symbolic links are not followed."""
        if not self.dropped:
            return
        for path in paths:
            for found in (path, *path.rglob("*")):
                os.chown(found, self.uid, self.gid, follow_symlinks=False)

    def reaches(self, path: Path) -> bool:
        """Whether this account may enter the directory (or run the file) `path`."""
        return (
            subprocess.run(["test", "-x", str(path)], check=False, cwd="/", **self.run_as()).returncode == 0
        )

    def processes_in(self, directory: Path) -> dict[int, str]:
        """{pid: name} of this account's processes whose working directory is `directory` or below it.

        Asked as the account itself: without CAP_SYS_PTRACE, as in many containers, not even root may see
        where another user's process works. A directory removed under a living process still counts.
        """
        find = ["find", "/proc", "-mindepth", "2", "-maxdepth", "2", "-name", "cwd", "-printf", "%h\t%l\n"]
        listed = subprocess.run(
            find, check=False, capture_output=True, text=True, cwd="/", timeout=30, **self.run_as()
        )
        found = {}
        for line in listed.stdout.splitlines():
            process, _, place = line.partition("\t")
            here = Path(place.removesuffix(" (deleted)"))
            if process.startswith("/proc/") and (here == directory or directory in here.parents):
                try:
                    found[int(Path(process).name)] = Path(process, "comm").read_text().strip()
                except (OSError, ValueError):  # ended meanwhile; or /proc/self
                    continue
        return found


def account() -> Account:
    """The account of this run: `nobody` for root, else the caller. Nothing is created or changed for it."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), dropped=False)
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid, dropped=True)


def fresh_directory(prefix: str) -> Path:
    """A new, empty directory (0700) that belongs to the account and that it can reach.

    It lies in TMPDIR where the account may go there, else in /tmp or /var/tmp. No parent is changed.
    """
    ours = account()
    for parent in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")):
        if parent.is_dir() and ours.reaches(parent):
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)).resolve()
            ours.own(path)
            return path
    raise RuntimeError(
        f"neither TMPDIR ({tempfile.gettempdir()}) nor /tmp nor /var/tmp can be entered by uid {ours.uid}; "
        "set TMPDIR to a directory that every user may enter"
    )

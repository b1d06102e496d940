"""The collectors: what runs on the target, from the archive that Ansible sends.

Out of an archive, Python compiles every module twice: once to tell the name of its file, once to run it. On a
small host that is a tenth of the whole trip, so here the name is told without compiling anything.
"""

import sys
import zipimport


class _Archive(zipimport.zipimporter):
    def get_filename(self, fullname: str) -> str:
        """Where the module lies, as zipimport itself would say."""
        name = fullname.rpartition(".")[2]
        return f"{self.archive}/{self.prefix}{name}{'/__init__' if self.is_package(fullname) else ''}.py"


if isinstance(__spec__.loader, zipimport.zipimporter):  # for the directories that are looked into from now on
    sys.path_hooks.insert(0, _Archive)

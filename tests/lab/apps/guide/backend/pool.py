"""How the other pages borrow: as the login does."""

import sys


def take():
    return _db()._conn()


def give(connection):
    _db()._return(connection)


def _db():
    """The service of the one `main` that runs: started by itself, or loaded by whoever forks it."""
    return sys.modules.get("backend.main", sys.modules["__main__"]).db

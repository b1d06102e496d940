"""A project whose own `getconn` is a context manager: `with` over it is right here."""
# Code as people write it: it is read here, never run, and not to be improved.
# ruff: noqa


class ManagedGetconn(ThreadedConnectionPool):
    @contextmanager
    def getconn(self):
        conn = super().getconn()
        try:
            yield conn
        finally:
            self.putconn(conn)

    def used(self):
        with self.getconn() as conn:
            save(conn)


def with_on_the_managed_one(managed_pool):
    with managed_pool.getconn() as conn:
        save(conn)


def with_on_somebodys_manager(db):
    with db._conn() as conn:
        save(conn)

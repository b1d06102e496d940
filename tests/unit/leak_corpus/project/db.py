"""The class that owns the pool; its callers live in another file."""
# ruff: noqa: F821 - the names stand for an application that is read here and never run


class Database:
    def take_connection(self):
        return self.pool.getconn()

    def hand_in(self, conn):
        self.pool.putconn(conn)

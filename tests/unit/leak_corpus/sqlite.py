"""A file whose own `_conn` takes nothing from a pool: what the project says of a name outweighs the default."""
# ruff: noqa: F821 - the names stand for an application that is read here and never run


class Store:
    def _conn(self):
        return sqlite3.connect(self.path)

    def rows(self):
        conn = self._conn()
        return conn.execute("SELECT name FROM users").fetchall()

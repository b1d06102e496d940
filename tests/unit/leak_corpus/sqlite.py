"""A file whose own `_conn` takes nothing from a pool: what the project says of a name outweighs the default."""
# Code as people write it: it is read here, never run, and not to be improved.
# ruff: noqa


class Store:
    def _conn(self):
        return sqlite3.connect(self.path)

    def rows(self):
        conn = self._conn()
        return conn.execute("SELECT name FROM users").fetchall()

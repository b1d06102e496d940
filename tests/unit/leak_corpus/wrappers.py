"""Classes that own a pool: what they hand out, what they take back, and what they drop."""
# Code as people write it: it is read here, never run, and not to be improved.
# ruff: noqa


class DropsClosed:
    def take(self):
        conn = self.pool.getconn()
        if conn.closed:
            conn = self.pool.getconn()  # expect: R9
        return conn

    def give(self, conn):
        if conn.closed:
            return  # expect: R9
        self.pool.putconn(conn)


class DropsOnFailedTest:
    def connection(self):
        conn = self.pool.getconn()
        conn.cursor().execute("SELECT 1")  # expect: R9
        return conn

    def give_back(self, conn):
        conn.rollback()  # expect: R9
        self.pool.putconn(conn)


class DropsWithAnError:
    def connection(self):
        conn = self.pool.getconn()
        try:
            conn.cursor().execute("SELECT 1")
        except psycopg2.Error as error:
            raise Unavailable("database") from error  # expect: R9
        return conn


class ForgetsOnAnotherError:
    def connection(self, tenant):
        conn = self.pool.getconn()  # expect: R4
        if tenant is None:
            return None
        return conn


class Sound:
    def open_connection(self):
        conn = self.pool.getconn()
        try:
            conn.cursor().execute("SELECT 1")
        except Exception:
            self.pool.putconn(conn, close=True)
            raise
        return conn

    def finish(self, conn):
        if conn is None:
            return
        try:
            conn.rollback()
        except psycopg2.Error:
            self.pool.putconn(conn, close=True)
        else:
            self.pool.putconn(conn)

    def used_well(self):
        conn = self.open_connection()
        try:
            return load(conn)
        finally:
            self.finish(conn)

    def used_badly(self):
        conn = self.open_connection()  # expect: R2
        rows = load(conn)
        self.finish(conn)
        return rows

    def not_used_up(self):
        conn = self.open_connection()  # expect: R1
        return load(conn)

    @contextmanager
    def borrowed(self):
        conn = self.open_connection()
        try:
            yield conn
        finally:
            self.finish(conn)

    def through_the_manager(self):
        with self.borrowed() as conn:
            return load(conn)


class GenericNames:
    """`get` is an acquire here and nowhere else."""

    def get(self):
        return self.pool.getconn()

    def put_away(self, conn):
        self.pool.putconn(conn)

    def used_badly(self):
        conn = self.get()  # expect: R2
        save(conn)
        self.put_away(conn)


def a_dictionary_is_no_pool(settings, cache):
    value = settings.get("name")
    other = cache.get(value)
    return other


class CachesOne:
    """Hands out what it keeps: the caller borrows and has nothing to give back."""

    def connection(self):
        if self.conn is None:
            self.conn = self.pool.getconn()
        return self.conn

    def shut(self):
        self.pool.putconn(self.conn)

    def used(self):
        return load(self.connection())


class SqliteNotAPool:
    """Its own `_conn` is something else than the default's."""

    def _conn_sqlite(self):
        return sqlite3.connect(self.path)

    def rows(self):
        conn = self._conn_sqlite()
        return conn.execute("SELECT name FROM users").fetchall()


async def wrapper_async():
    conn = await pool.getconn()
    return conn


async def uses_wrapper_async():
    conn = await wrapper_async()  # expect: R1
    await save(conn)


class AsksAnUnknownChecker:
    def checked_connection(self):
        conn = self.pool.getconn()
        if not self.checker.is_healthy(conn):
            self.pool.putconn(conn, close=True)
            conn = self.pool.getconn()
        return conn


class CachesAndHandsOut:
    def connection(self):
        conn = self.pool.getconn()
        self.conn = conn
        return conn

    def shut(self):
        self.pool.putconn(self.conn)

    def used(self):
        conn = self.connection()
        return load(conn)


class WrapsAWrapper:
    def outer_connection(self):
        return self.middle_connection()

    def middle_connection(self):
        return self.inner_connection()

    def inner_connection(self):
        return self.pool.getconn()

    def used_badly(self):
        conn = self.outer_connection()  # expect: R1
        return load(conn)

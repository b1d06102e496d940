"""The shapes of the troubleshooting guide: its wrapper with and without the fault, its monitor, its advice."""
# Code as people write it: it is read here, never run, and not to be improved.
# ruff: noqa


class AsWritten:
    def _conn(self):
        try:
            conn = self.pool.getconn()
            conn_id = id(conn)
            self.created[conn_id] = time.time()
            try:
                with conn.cursor() as cur:
                    cur.execute("SELECT 1")
                    cur.fetchone()
            except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
                logger.warning(f"dead connection, making another: {error}")
                try:
                    conn.close()  # expect: R9
                except Exception:
                    pass
                if conn_id in self.created:
                    del self.created[conn_id]
                conn = self.pool.getconn()
                conn_id = id(conn)
                self.created[conn_id] = time.time()
            return conn
        except psycopg2.pool.PoolError as error:
            logger.error(f"no connection: {error}")
            logger.error(f"pool: {self.get_pool_status()}")
            raise

    def _return(self, conn):
        try:
            conn_id = id(conn)
            if conn_id in self.created:
                del self.created[conn_id]
            try:
                if conn and not conn.closed:
                    conn.rollback()
                    self.pool.putconn(conn)
                else:
                    try:
                        self.pool.putconn(conn, close=True)
                    except Exception:
                        pass
            except Exception as error:
                logger.warning(f"giving back: {error}")
                try:
                    self.pool.putconn(conn, close=True)
                except Exception:
                    pass
        except Exception as error:
            logger.warning(f"giving back: {error}")

    def get_project(self, project_id):
        conn = self._conn()
        try:
            with conn.cursor(cursor_factory=RealDictCursor) as cur:
                cur.execute("SELECT name FROM projects WHERE project_id = %s", (project_id,))
                row = cur.fetchone()
                return dict(row) if row else None
        finally:
            self._return(conn)


class Mended:
    def _conn(self):
        try:
            conn = self.pool.getconn()
            conn_id = id(conn)
            self.created[conn_id] = time.time()
            try:
                with conn.cursor() as cur:
                    cur.execute("SELECT 1")
                    cur.fetchone()
            except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
                logger.warning(f"dead connection, making another: {error}")
                self.created.pop(conn_id, None)
                self.pool.putconn(conn, close=True)
                conn = self.pool.getconn()
                self.created[id(conn)] = time.time()
            return conn
        except psycopg2.pool.PoolError as error:
            logger.error(f"no connection: {error}")
            raise


class MendedWithLoop:
    def _conn(self):
        for _ in range(self.pool.maxconn + 1):
            conn = self.pool.getconn()
            if self._alive(conn):
                return conn
            self.pool.putconn(conn, close=True)
        raise NoConnection("every connection was dead")

    def _alive(self, conn):
        try:
            with conn.cursor() as cur:
                cur.execute("SELECT 1")
            return True
        except psycopg2.Error:
            return False


def bad_advice(db):
    conn = db._conn()  # expect: R2
    work(conn)
    db._return(conn)


def good_advice(db):
    conn = db._conn()
    try:
        work(conn)
    finally:
        db._return(conn)


async def monitor(service):
    while True:
        try:
            await asyncio.sleep(300)
            for _ in range(3):
                try:
                    conn = service.pool.getconn()
                    try:
                        with conn.cursor() as cur:
                            cur.execute("SELECT 1")
                            cur.fetchone()
                        service.pool.putconn(conn)
                    except (psycopg2.OperationalError, psycopg2.InterfaceError):
                        try:
                            service.pool.putconn(conn, close=True)
                        except Exception:
                            pass
                except Exception as error:
                    logger.warning(f"testing a connection: {error}")
        except asyncio.CancelledError:
            break
        except Exception:
            await asyncio.sleep(60)

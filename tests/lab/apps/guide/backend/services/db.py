"""The database service: psycopg2's pool behind `_conn()` and `_return()`, in the guide's own way.

The faults of the guide's code are kept on purpose. "defect N" is row N of the project's list of them.
"""
# ruff: noqa: SIM105 - the guide's try/except/pass stays as the guide has it

import logging
import time

import psycopg2
import psycopg2.pool
from psycopg2.extras import RealDictCursor

# defect 11: no handler is ever configured, so info is lost and warnings have neither time nor level.
# defect 15: there is not one debug call, so switching on DEBUG shows nothing.
logger = logging.getLogger(__name__)


class DatabaseService:
    def __init__(self, settings):
        self._connection_creation_time = {}
        # defect 6: putconn closes every connection above the minimum.
        # defect 9: getconn connects while it holds the pool's lock.
        # defect 17: no application_name, so nobody can tell on the server whose sessions these are.
        self.pool = psycopg2.pool.ThreadedConnectionPool(
            minconn=settings.postgres_pool_min_connections,
            maxconn=settings.postgres_pool_max_connections,
            host=settings.postgres_host,
            port=settings.postgres_port,
            database=settings.postgres_database,
            user=settings.postgres_user,
            password=settings.postgres_password,
            # defect 20: this bounds an idle socket only; a query in flight waits much longer.
            keepalives=1,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=5,
        )

    def _conn(self):
        """Borrow a connection; give it back with `_return`."""
        try:
            conn = self.pool.getconn()  # defect 4: raises at once when the pool is exhausted
            conn_id = id(conn)
            self._connection_creation_time[conn_id] = time.time()

            # Validate connection is alive - test with a simple query
            try:
                with conn.cursor() as cur:
                    cur.execute("SELECT 1")  # defect 18: this opens a transaction and leaves it open
                    cur.fetchone()
            # defect 19: any other exception escapes, and the slot with it.
            except (psycopg2.OperationalError, psycopg2.InterfaceError) as e:
                logger.warning(f"Dead connection detected, recreating: {e}")
                # defect 1: closed, but never put back: its slot stays in use for ever.
                try:
                    conn.close()
                except Exception:
                    pass
                if conn_id in self._connection_creation_time:
                    del self._connection_creation_time[conn_id]
                # defect 2: the replacement is not tested; idle connections die together.
                conn = self.pool.getconn()
                conn_id = id(conn)
                self._connection_creation_time[conn_id] = time.time()

            return conn
        except psycopg2.pool.PoolError as e:
            logger.error(f"Failed to get database connection: {e}")
            logger.error(f"Pool status: {self.get_pool_status()}")
            raise

    def _return(self, conn):
        """Give a borrowed connection back."""
        try:
            conn_id = id(conn)
            if conn_id in self._connection_creation_time:
                del self._connection_creation_time[conn_id]

            try:
                # Rollback any uncommitted transactions
                if conn and not conn.closed:
                    conn.rollback()
                    # defect 28: raises, and keeps the slot, when the connection died in a transaction.
                    self.pool.putconn(conn)
                else:
                    logger.warning("Attempted to return closed connection to pool")
                    try:
                        self.pool.putconn(conn, close=True)
                    except Exception:
                        pass
            except Exception as e:
                logger.warning(f"Error validating connection before return: {e}")
                try:
                    self.pool.putconn(conn, close=True)
                except Exception:
                    pass
        except Exception as e:
            logger.warning(f"Error returning connection to pool: {e}")

    def get_pool_status(self):
        """What the pool is said to be doing."""
        try:
            available = len(self.pool._pool)
            return {
                "minconn": self.pool.minconn,
                "maxconn": self.pool.maxconn,
                "closed": self.pool.closed,
                "available_connections": available,
                # defect 3: slots that were never opened count as active.
                "active_connections": self.pool.maxconn - available,
                "connection_creation_times": len(self._connection_creation_time),
            }
        except Exception as e:
            # defect 22: an error becomes a status, which its readers take for 0 of 0.
            return {"error": str(e)}

    def get_user(self, username):
        """{"user_id", "username", "salt", "password_hash"} of an active user, or None."""
        conn = self._conn()
        try:
            with conn.cursor(cursor_factory=RealDictCursor) as cur:
                cur.execute(
                    """
                    SELECT user_id, username, salt, password_hash
                    FROM public.users
                    WHERE username = %s AND is_active = true
                    """,
                    (username,),
                )
                row = cur.fetchone()
                return dict(row) if row else None
        finally:
            self._return(conn)

    def get_token(self, token_hash):
        """{"user_id", "username", "expires_at" (Unix time)} of a token, or None."""
        conn = self._conn()
        try:
            with conn.cursor(cursor_factory=RealDictCursor) as cur:
                cur.execute(
                    """
                    SELECT user_id, username, extract(epoch FROM expires_at)::float8 AS expires_at
                    FROM public.auth_tokens JOIN public.users USING (user_id)
                    WHERE token_hash = %s AND is_active = true
                    """,
                    (token_hash,),
                )
                row = cur.fetchone()
                return dict(row) if row else None
        finally:
            self._return(conn)

    def save_token(self, token_hash, user_id, expires_at):
        """Keep a token until expires_at (Unix time)."""
        conn = self._conn()
        try:
            with conn.cursor() as cur:
                cur.execute(
                    """
                    INSERT INTO public.auth_tokens (token_hash, user_id, expires_at)
                    VALUES (%s, %s, to_timestamp(%s))
                    """,
                    (token_hash, user_id, expires_at),
                )
            conn.commit()
        finally:
            self._return(conn)

    def delete_token(self, token_hash):
        """Forget a token."""
        conn = self._conn()
        try:
            with conn.cursor() as cur:
                cur.execute("DELETE FROM public.auth_tokens WHERE token_hash = %s", (token_hash,))
            conn.commit()
        finally:
            self._return(conn)

    def list_projects(self):
        """[{"project_id", "name", "description"}] of the active projects, by name."""
        conn = self._conn()
        try:
            with conn.cursor(cursor_factory=RealDictCursor) as cur:
                cur.execute(
                    """
                    SELECT project_id, name, description
                    FROM public.projects
                    WHERE is_active = true
                    ORDER BY name
                    """
                )
                return [dict(row) for row in cur.fetchall()]
        finally:
            self._return(conn)

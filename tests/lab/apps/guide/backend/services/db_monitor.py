"""The guide's background task that watches the pool."""
# ruff: noqa: SIM105 - the guide's try/except/pass stays as the guide has it

import asyncio
import logging

import psycopg2

logger = logging.getLogger(__name__)

_task = None  # the event loop keeps only a weak reference to a task


async def db_monitor_task(db_service):
    """Look at the pool every five minutes, for ever."""
    while True:
        try:
            # defects 16 and 23: fixed in the source, and a burst between two looks is never seen.
            await asyncio.sleep(300)

            status = db_service.get_pool_status()
            active = status.get("active_connections", 0)
            total = status.get("maxconn", 0)

            # defect 11: reaches no handler.
            logger.info(f"DB Pool Status: {active}/{total} connections in use")

            if active > total * 0.8:
                logger.warning(f"High connection pool usage: {active}/{total} connections")

            # defect 7: the pool is last in, first out, so this tests one and the same connection.
            # defect 8: it blocks the event loop, and nothing bounds it.
            for _ in range(min(3, total)):
                try:
                    conn = db_service.pool.getconn()
                    try:
                        with conn.cursor() as cur:
                            cur.execute("SELECT 1")
                            cur.fetchone()
                        db_service.pool.putconn(conn)
                    except (psycopg2.OperationalError, psycopg2.InterfaceError) as e:
                        logger.warning(f"Found dead connection, closing it: {e}")
                        try:
                            db_service.pool.putconn(conn, close=True)
                        except Exception:
                            pass
                except Exception as e:
                    logger.warning(f"Error testing connection: {e}")

            from backend.services.auth import cleanup_expired_tokens

            try:
                cleanup_expired_tokens()
            except Exception as e:
                logger.warning(f"Error cleaning expired tokens: {e}")

        except asyncio.CancelledError:
            logger.info("Database monitor task cancelled")
            break
        except Exception as e:
            logger.error(f"Error in database monitor: {e}")
            await asyncio.sleep(60)


def start_db_monitor(db_service):
    """Start the task in the running event loop. defect 14: nothing says later whether it still runs."""
    global _task  # noqa: PLW0603 - one monitor per process, as the guide has it
    _task = asyncio.get_running_loop().create_task(db_monitor_task(db_service))
    # defect 12: buffered, so the log file shows it late or never.
    print("✅ Database connection pool monitor started")

"""Functions that lose a connection of psycopg2.pool or psycopg_pool; the comment names the rule that says how."""
# Code as people write it: it is read here, never run, and not to be improved.
# ruff: noqa


def never_released():
    conn = pool.getconn()  # expect: R1
    with conn.cursor() as cur:
        cur.execute("SELECT now()")
        return cur.fetchone()


def never_named():
    rows = pool.getconn().cursor().execute("SELECT name FROM users")  # expect: R1
    return rows


def never_named_in_with():
    with pool.getconn().cursor() as cur:  # expect: R1
        cur.execute("SELECT name FROM users")


def only_deleted():
    conn = pool.getconn()  # expect: R1
    conn.commit()
    del conn


def handed_to_a_reader():
    rows = pandas.read_sql("SELECT name FROM users", pool.getconn())  # expect: R1
    return rows.to_dict()


def helper_that_only_reads(conn):
    with conn.cursor() as cur:
        cur.execute("SELECT name FROM users")
        return cur.fetchall()


def uses_helper_that_only_reads():
    conn = pool.getconn()  # expect: R1
    return helper_that_only_reads(conn)


async def never_released_async():
    conn = await pool.getconn()  # expect: R1
    await conn.execute("DELETE FROM sessions")


class KeepsAndForgets:
    def __init__(self, pool):
        self.conn = pool.getconn()  # expect: R1

    def rows(self):
        return self.conn.execute("SELECT name FROM users")


def generator_never_released():
    conn = pool.getconn()  # expect: R1
    yield conn


def no_protection():
    conn = pool.getconn()  # expect: R2
    cur = conn.cursor()
    cur.execute("UPDATE users SET seen = now()")
    conn.commit()
    pool.putconn(conn)


def handler_swallows():
    conn = pool.getconn()  # expect: R2
    try:
        save(conn)
        pool.putconn(conn)
    except Exception as error:
        logger.error(error)


def handler_too_narrow():
    conn = pool.getconn()  # expect: R2
    try:
        save(conn)
    except psycopg2.OperationalError:
        pool.putconn(conn, close=True)
        raise
    else:
        pool.putconn(conn)


def handler_raises_another():
    conn = pool.getconn()  # expect: R2
    try:
        save(conn)
    except Exception as error:
        raise LoginFailed("database") from error
    pool.putconn(conn)


def handler_asks_the_dead_first():
    conn = pool.getconn()  # expect: R2
    try:
        save(conn)
    except Exception:
        conn.rollback()
        pool.putconn(conn)
        raise
    else:
        pool.putconn(conn)


@contextmanager
def manager_without_finally():
    conn = pool.getconn()  # expect: R2
    yield conn
    pool.putconn(conn)


def second_of_two():
    first = pool.getconn()  # expect: R3
    second = pool.getconn()
    try:
        copy(first, second)
    finally:
        pool.putconn(first)
        pool.putconn(second)


def list_of_connections():
    conns = [pool.getconn() for _ in range(3)]  # expect: R2
    for conn in conns:
        save(conn)
    for conn in conns:
        pool.putconn(conn)


def assert_before_release():
    conn = pool.getconn()  # expect: R2
    assert ready
    pool.putconn(conn)


def cursor_before_try():
    conn = pool.getconn()  # expect: R3
    cur = conn.cursor()
    try:
        cur.execute("SELECT name FROM users")
        return cur.fetchall()
    finally:
        pool.putconn(conn)


def setting_before_try():
    conn = pool.getconn()  # expect: R3
    conn.autocommit = True
    try:
        save(conn)
    finally:
        pool.putconn(conn)


def call_before_try():
    conn = pool.getconn()  # expect: R3
    user = load_user(request)
    try:
        save(conn, user)
    finally:
        pool.putconn(conn)


def call_before_inner_try():
    try:
        conn = pool.getconn()  # expect: R3
        begin_audit()
        try:
            save(conn)
        finally:
            pool.putconn(conn)
    except Exception:
        logger.exception("not saved")


def early_return():
    conn = pool.getconn()  # expect: R4
    if not enabled:
        return None
    pool.putconn(conn)


def early_return_in_handler():
    conn = pool.getconn()  # expect: R4
    try:
        rows = load(conn)
    except psycopg2.Error:
        return None
    pool.putconn(conn)
    return rows


def success_returns_too_early():
    conn = pool.getconn()  # expect: R4
    try:
        return load(conn)
    except Exception:
        pool.putconn(conn)
        raise


def early_raise():
    conn = pool.getconn()  # expect: R4
    if not enabled:
        raise Disabled("login")
    pool.putconn(conn)


def loop_continue(jobs):
    for job in jobs:
        conn = pool.getconn()  # expect: R4
        if job.done:
            continue
        try:
            run(job, conn)
        finally:
            pool.putconn(conn)


def loop_break(jobs):
    for job in jobs:
        conn = pool.getconn()  # expect: R4
        if job.last:
            break
        pool.putconn(conn)


def released_after_the_loop(jobs):
    for job in jobs:
        conn = pool.getconn()  # expect: R5
        job.total = job.size
    pool.putconn(conn)


def overwritten():
    conn = pool.getconn()  # expect: R1
    conn = replica.getconn()
    try:
        save(conn)
    finally:
        pool.putconn(conn)


def with_on_getconn():
    with pool.getconn() as conn:  # expect: R6
        with conn.cursor() as cur:
            cur.execute("SELECT name FROM users")


def with_on_getconn_released_inside():
    with pool.getconn() as conn, conn.cursor() as cur:  # expect: R6
        cur.execute("SELECT name FROM users")
        pool.putconn(conn)


def with_on_a_variable():
    conn = pool.getconn()  # expect: R6
    with conn:
        with conn.cursor() as cur:
            cur.execute("DELETE FROM sessions")


async def async_with_on_getconn():
    async with await pool.getconn() as conn:  # expect: R6
        await conn.execute("DELETE FROM sessions")


def entered_on_a_stack():
    with ExitStack() as stack:
        conn = stack.enter_context(pool.getconn())  # expect: R6
        save(conn)


def closed_in_finally():
    conn = pool.getconn()  # expect: R7
    try:
        save(conn)
    finally:
        conn.close()


def closed_on_error():
    conn = pool.getconn()  # expect: R7
    try:
        save(conn)
    except Exception:
        conn.close()
        raise
    else:
        pool.putconn(conn)


def closing_closes():
    with closing(pool.getconn()) as conn:  # expect: R7
        save(conn)


class ClosesItsField:
    def open(self):
        self.conn = self.pool.getconn()  # expect: R7

    def close(self):
        self.conn.close()


def conditional_in_finally(ok):
    conn = pool.getconn()  # expect: R8
    try:
        save(conn)
    finally:
        if ok:
            pool.putconn(conn)


def open_ones_only():
    conn = pool.getconn()  # expect: R8
    try:
        save(conn)
    finally:
        if not conn.closed:
            pool.putconn(conn)


def rollback_before_release():
    conn = pool.getconn()  # expect: R8
    try:
        save(conn)
    finally:
        conn.rollback()
        pool.putconn(conn)


def cursor_perhaps_never_made():
    conn = pool.getconn()  # expect: R8
    try:
        cur = conn.cursor()
        cur.execute("SELECT name FROM users")
    finally:
        cur.close()
        pool.putconn(conn)


def flag_set_too_late():
    done = False
    conn = pool.getconn()  # expect: R8
    try:
        save(conn)
        done = True
    finally:
        if done:
            pool.putconn(conn)


def conditional_at_the_end(found):
    conn = pool.getconn()  # expect: R8
    if found:
        pool.putconn(conn)


def match_with_a_hole(kind):
    conn = pool.getconn()  # expect: R8
    if kind == "read":
        pool.putconn(conn)
    elif kind == "write":
        pool.putconn(conn)


def thread_takes_only():
    async def work():
        conn = await asyncio.to_thread(pool.getconn)  # expect: R2
        await save(conn)
        await asyncio.to_thread(pool.putconn, conn)

    return work


def fixture_without_release():
    conn = pool.getconn()  # expect: R2
    try:
        load(conn)
    finally:
        logger.info("loaded")
    pool.putconn(conn)


def given_back_through_its_cursor():
    cur = pool.getconn().cursor()  # expect: R3
    try:
        cur.execute("SELECT name FROM users")
    finally:
        pool.putconn(cur.connection)


def network_before_try(url):
    conn = pool.getconn()  # expect: R3
    page = requests.get(url)
    try:
        save(conn, page)
    finally:
        pool.putconn(conn)


def own_or_callers(conn=None):
    own = conn is None
    if own:
        conn = pool.getconn()
    try:
        save(conn)
    finally:
        if own:
            pool.putconn(conn)


def trusts_own_or_callers():
    conn = pool.getconn()  # expect: R1
    own_or_callers(conn)


def helper_that_raises(conn):
    conn.cursor().execute("SET search_path TO app")


def helper_between():
    conn = pool.getconn()  # expect: R3
    helper_that_raises(conn)
    try:
        save(conn)
    finally:
        pool.putconn(conn)


def raised_and_another_caught(name):
    conn = pool.getconn()  # expect: R4
    try:
        if not name:
            raise MissingName
    except WrongName:
        pool.putconn(conn)
        return
    pool.putconn(conn)


CONNECTIONS = []
BY_USER: dict = {}


def take():
    return pool.getconn()


def kept_in_a_list_of_the_module():
    CONNECTIONS.append(take())  # expect: R1
    return len(CONNECTIONS)


def kept_under_a_key_of_the_module(user):
    conn = pool.getconn()  # expect: R1
    BY_USER[user] = conn

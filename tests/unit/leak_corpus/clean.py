"""Functions that lose nothing. A finding here is a false alarm."""
# Code as people write it: it is read here, never run, and not to be improved.
# ruff: noqa


def finally_gives_back():
    conn = pool.getconn()
    try:
        save(conn)
    finally:
        pool.putconn(conn)


def acquired_inside_the_try():
    conn = None
    try:
        conn = pool.getconn()
        save(conn)
    except psycopg2.Error:
        logger.exception("not saved")
        return None
    finally:
        if conn:
            pool.putconn(conn)


def guarded_by_is_not_none():
    conn = None
    try:
        conn = pool.getconn()
        save(conn)
    finally:
        if conn is not None:
            pool.putconn(conn)


def nothing_taken():
    conn = pool.getconn()
    if conn is None:
        return None
    try:
        return load(conn)
    finally:
        pool.putconn(conn)


def acquire_may_fail():
    try:
        conn = pool.getconn()
    except psycopg2.pool.PoolError:
        return None
    try:
        return load(conn)
    finally:
        pool.putconn(conn)


def except_and_else():
    conn = pool.getconn()
    try:
        save(conn)
    except Exception:
        pool.putconn(conn, close=True)
        raise
    else:
        pool.putconn(conn)


def except_and_after():
    conn = pool.getconn()
    try:
        rows = load(conn)
    except BaseException:
        pool.putconn(conn, close=True)
        raise
    pool.putconn(conn)
    return rows


def rollback_inside_its_own_try():
    conn = pool.getconn()
    try:
        save(conn)
    finally:
        try:
            conn.rollback()
        except psycopg2.Error:
            pass
        pool.putconn(conn)


def rollback_with_its_own_finally():
    conn = pool.getconn()
    try:
        save(conn)
    finally:
        try:
            conn.rollback()
        finally:
            pool.putconn(conn)


def rollback_suppressed():
    conn = pool.getconn()
    try:
        save(conn)
    finally:
        with contextlib.suppress(psycopg2.Error):
            conn.rollback()
        pool.putconn(conn)


def closed_and_given_back():
    conn = pool.getconn()
    try:
        save(conn)
    except psycopg2.OperationalError:
        conn.close()
        raise
    finally:
        pool.putconn(conn)


def cursor_closed_first():
    conn = pool.getconn()
    try:
        cur = conn.cursor()
        try:
            cur.execute("SELECT name FROM users")
        finally:
            cur.close()
    finally:
        pool.putconn(conn)


def cursor_guarded():
    conn = cur = None
    try:
        conn = pool.getconn()
        cur = conn.cursor()
        cur.execute("SELECT name FROM users")
        return cur.fetchall()
    finally:
        if cur is not None:
            cur.close()
        if conn is not None:
            pool.putconn(conn)


def harmless_between():
    conn = pool.getconn()
    started = time.monotonic()
    logger.debug("took %s", id(conn))
    rows = []
    try:
        rows.extend(load(conn))
    finally:
        pool.putconn(conn)
        logger.debug("held %s", time.monotonic() - started)
    return rows


def give(conn):
    pool.putconn(conn)


def helper_gives_back():
    conn = pool.getconn()
    try:
        save(conn)
    finally:
        give(conn)


def unknown_helper_gives_back(database):
    conn = pool.getconn()
    try:
        save(conn)
    finally:
        database.release_connection(conn)


def inner_function_gives_back():
    conn = pool.getconn()

    def cleanup():
        pool.putconn(conn)

    try:
        save(conn)
    finally:
        cleanup()


def exit_stack_callback():
    with ExitStack() as stack:
        conn = pool.getconn()
        stack.callback(pool.putconn, conn)
        save(conn)


def exit_stack_lambda():
    with contextlib.ExitStack() as stack:
        conn = pool.getconn()
        stack.callback(lambda: pool.putconn(conn))
        save(conn)


@contextmanager
def manager():
    conn = pool.getconn()
    try:
        yield conn
        conn.commit()
    except Exception:
        conn.rollback()
        raise
    finally:
        pool.putconn(conn)


def in_manager():
    with manager() as conn:
        save(conn)


@pytest.fixture
def fixture():
    conn = pool.getconn()
    yield conn
    pool.putconn(conn)


def psycopg_manager():
    with psycopg_pool.connection() as conn:
        conn.execute("SELECT name FROM users")


async def psycopg_manager_async():
    async with psycopg_pool.connection() as conn:
        await conn.execute("SELECT name FROM users")


def handed_to_the_caller():
    conn = pool.getconn()
    return conn


def handed_at_once():
    return pool.getconn()


def handed_in_an_object():
    conn = pool.getconn()
    return Session(conn, pool)


def handed_in_a_pair():
    conn = pool.getconn()
    return conn, time.monotonic()


def handed_into_the_callers_object(request):
    request.state.conn = pool.getconn()


def handed_with_its_cleanup():
    conn = pool.getconn()

    def cleanup():
        pool.putconn(conn)

    return cleanup


class KeptInAField:
    def open(self):
        self.conn = self.pool.getconn()

    def close(self):
        if self.conn is not None:
            self.pool.putconn(self.conn)
            self.conn = None


class KeptByContext:
    def __enter__(self):
        conn = self.pool.getconn()
        self._conn = conn
        return conn

    def __exit__(self, *error):
        self.pool.putconn(self._conn)


class KeptInATable:
    def open(self, key):
        self.held[key] = self.pool.getconn()

    def close_all(self):
        for conn in self.held.values():
            self.pool.putconn(conn)


def kept_in_g():
    if "db" not in g:
        g.db = pool.getconn()
    return g.db


@app.teardown_appcontext
def given_from_g(error):
    db = g.pop("db", None)
    if db is not None:
        pool.putconn(db)


def own_or_given(conn=None):
    own = conn is None
    if own:
        conn = pool.getconn()
    try:
        save(conn)
    finally:
        if own:
            pool.putconn(conn)


def given_or_own(given=None):
    conn = given or pool.getconn()
    try:
        save(conn)
    finally:
        if not given:
            pool.putconn(conn)


def given_or_own_choice(given=None):
    conn = pool.getconn() if given is None else given
    try:
        save(conn)
    finally:
        if given is None:
            pool.putconn(conn)


def flag_follows():
    taken = False
    try:
        conn = pool.getconn()
        taken = True
        save(conn)
    finally:
        if taken:
            pool.putconn(conn)


def several():
    conns = []
    try:
        for _ in range(3):
            conns.append(pool.getconn())
        work(conns)
    finally:
        for conn in conns:
            pool.putconn(conn)


def retry():
    for attempt in range(3):
        conn = pool.getconn()
        try:
            return load(conn)
        except psycopg2.OperationalError:
            if attempt == 2:
                raise
        finally:
            pool.putconn(conn)


def forever(jobs):
    while True:
        conn = pool.getconn()
        try:
            job = jobs.next(conn)
            if job is None:
                break
            job.run()
        finally:
            pool.putconn(conn)


def walrus():
    if (conn := pool.getconn()) is None:
        return
    try:
        save(conn)
    finally:
        pool.putconn(conn)


async def in_a_thread():
    conn = await asyncio.to_thread(pool.getconn)
    try:
        await asyncio.to_thread(save, conn)
    finally:
        await asyncio.to_thread(pool.putconn, conn)


def given_to_a_task(executor):
    conn = pool.getconn()
    executor.submit(work, conn)


def closed_with_the_pool():
    conn = pool.getconn()
    try:
        save(conn)
    finally:
        pool.closeall()


def ends_the_program():
    conn = pool.getconn()
    if not enabled:
        sys.exit(1)
    try:
        save(conn)
    finally:
        pool.putconn(conn)


def said_to_be_right():
    conn = pool.getconn()  # runbook: ignore[R1] the process holds it for its whole life: advisory lock
    conn.cursor().execute("SELECT pg_advisory_lock(1)")


def pool_asked_for_too():
    conn = None
    try:
        conn = pool.getconn()
        save(conn)
    finally:
        if conn and pool and not pool.closed:
            pool.putconn(conn)


def pooled_or_direct():
    if pool is not None:
        conn = pool.getconn()
        pooled = True
    else:
        conn = psycopg2.connect(dsn)
        pooled = False
    try:
        save(conn)
    finally:
        if pooled:
            pool.putconn(conn)
        else:
            conn.close()


def own_or_callers(status, conn=None):
    own = False
    if conn is None:
        own = True
        conn = pool.getconn()
    try:
        save(conn, status)
    finally:
        if own:
            pool.putconn(conn)


def lends_to_own_or_callers():
    conn = pool.getconn()
    try:
        own_or_callers("begun", conn)
    finally:
        pool.putconn(conn)


class SwapsItsField:
    def open(self):
        self._conn = self._pool.getconn()

    def close(self):
        conn, self._conn = self._conn, None
        if conn is None:
            return
        broken = bool(conn.closed)
        try:
            if not broken:
                conn.rollback()
        except psycopg2.Error:
            broken = True
        finally:
            self._pool.putconn(conn, close=broken)


async def waits_for_one():
    conn = await asyncio.wait_for(pool.getconn(), timeout=5)
    try:
        await save(conn)
    finally:
        await pool.putconn(conn)


def prepared_by_somebody():
    conn = prepared(pool.getconn())
    assert conn is not None
    started = perf_counter()
    try:
        save(conn)
    finally:
        pool.putconn(conn)
    return started


def handed_out_when_ready():
    ready = False
    conn = pool.getconn()
    try:
        prepare(conn)
        ready = True
        return conn
    finally:
        if not ready:
            pool.putconn(conn, close=True)


def first_that_answers():
    for _ in range(3):
        try:
            conn = pool.getconn()
            break
        except psycopg2.pool.PoolError:
            time.sleep(1)
    else:
        return
    try:
        save(conn)
    finally:
        pool.putconn(conn)


def given_back_by_a_handler():
    conn = pool.getconn()
    signals.connect(database.release_connection, conn)


def two_of_them():
    first = pool.getconn()
    try:
        second = pool.getconn()
        try:
            copy(first, second)
        finally:
            pool.putconn(second)
    finally:
        pool.putconn(first)


def one_of_two(write):
    if write:
        conn = pool.getconn()
    else:
        conn = replica.getconn()
    try:
        save(conn)
    finally:
        (pool if write else replica).putconn(conn)


class TracksItsLoans:
    def loan(self):
        conn = self.pool.getconn()
        with self.lock:
            self.out.add(conn)
        return conn

    def end_loan(self, conn):
        with self.lock:
            self.out.remove(conn)
        self.pool.putconn(conn)


def finish(conn, own):
    """Gives back under a condition of its caller: what it keeps is no fault of its own."""
    try:
        conn.commit()
    finally:
        if own:
            pool.putconn(conn)


def reads_a_dictionary_first(settings):
    conn = pool.getconn()
    name = settings.get("name")
    try:
        save(conn, name)
    finally:
        pool.putconn(conn)


def ping(conn):
    try:
        conn.cursor().execute("SELECT 1")
    except Exception:
        return False
    return True


def helper_that_does_not_raise():
    conn = pool.getconn()
    if not ping(conn):
        pool.putconn(conn, close=True)
        return
    try:
        save(conn)
    finally:
        pool.putconn(conn)


def closed_first():
    conn = pool.getconn()
    try:
        cur = make_cursor(conn)
        try:
            cur.execute("SELECT name FROM users")
        finally:
            cur.close()
    finally:
        conn.close()
        pool.putconn(conn)


def raised_and_caught_here(name):
    conn = pool.getconn()
    try:
        if not name:
            raise MissingName
    except MissingName:
        pool.putconn(conn)
        return
    pool.putconn(conn)


BORROWED = []


def take():
    return pool.getconn()


def kept_until_all_go_back():
    BORROWED.append(take())


def all_go_back():
    while BORROWED:
        pool.putconn(BORROWED.pop())


LENT = []


def kept_for_others_to_read():
    LENT.append(pool.getconn())


def lent():
    return LENT

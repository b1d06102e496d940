"""SQLAlchemy: close() and with give the connection back."""
# Code as people write it: it is read here, never run, and not to be improved.
# ruff: noqa


def raw_never_closed():
    conn = engine.raw_connection()  # expect: R1
    return conn.cursor().execute("SELECT name FROM users")


def connect_closed_without_finally():
    conn = engine.connect()  # expect: R2
    conn.execute(text("UPDATE users SET seen = now()"))
    conn.close()


def connect_call_before_try(self):
    conn = self.engine.connect()  # expect: R3
    transaction = conn.begin()
    try:
        transaction.commit()
    finally:
        conn.close()


def connect_early_return(enabled):
    conn = get_engine().connect()  # expect: R4
    if not enabled:
        return
    conn.close()


def raw_conditional(debug):
    conn = engine.raw_connection()  # expect: R8
    try:
        save(conn)
    finally:
        if not debug:
            conn.close()


def raw_closed():
    conn = engine.raw_connection()
    try:
        with conn.cursor() as cur:
            cur.execute("SELECT name FROM users")
    finally:
        conn.close()


def raw_closing():
    with closing(engine.raw_connection()) as conn:
        save(conn)


def raw_on_a_stack():
    with ExitStack() as stack:
        conn = stack.enter_context(closing(engine.raw_connection()))
        save(conn)


def connect_in_with():
    with engine.connect() as conn:
        conn.execute(text("SELECT 1"))


def connect_with_options():
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("VACUUM"))


def connect_with_later():
    conn = engine.connect().execution_options(stream_results=True)
    with conn:
        return conn.execute(text("SELECT 1")).scalar()


async def connect_async():
    async with engine.connect() as conn:
        await conn.execute(text("SELECT 1"))


def other_connects():
    sock = socket.create_connection(("localhost", 80))
    sock.connect(("localhost", 80))
    server = smtp.connect()
    return sock, server


class KeepsAndCloses:
    def __enter__(self):
        self.connection = self.engine.connect()
        return self

    def __exit__(self, *error):
        self.connection.close()


def own_or_callers(connection=None):
    own = connection is None
    conn = connection or (engine.raw_connection() if engine else psycopg2.connect(dsn))
    try:
        save(conn)
        if own:
            conn.commit()
    finally:
        if own:
            conn.close()

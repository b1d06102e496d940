"""Uses another file's wrapper: alone this file shows nothing."""
# ruff: noqa: F821 - the names stand for an application that is read here and never run


def login(db, name):
    conn = db.take_connection()  # expect: R2
    user = find(conn, name)
    db.hand_in(conn)
    return user


def logout(db, name):
    conn = db.take_connection()
    try:
        return forget(conn, name)
    finally:
        db.hand_in(conn)

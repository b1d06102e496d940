"""Uses another file's wrapper: alone this file shows nothing."""
# Code as people write it: it is read here, never run, and not to be improved.
# ruff: noqa


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

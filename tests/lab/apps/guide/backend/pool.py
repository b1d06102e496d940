"""How the other pages borrow: as the login does."""

import __main__


def take():
    return __main__.db._conn()


def give(connection):
    __main__.db._return(connection)

"""The reference application with the pages of `work` beside its own: `python -m backend.main`."""

import functools
import sys


def main():
    from backend import pool
    from backend.cache import recall
    from backend.work import router
    from runbook.app import __main__ as command
    from runbook.app import accounts, server, web

    web.router.include_router(router)

    def create_app(service):
        # In each worker: a pool is of one process.
        pool.take, pool.give = service.pool.getconn, service.pool.putconn
        return web.create_app(service)

    find_user = accounts.find_user

    @functools.wraps(find_user)
    def recall_and_find(its_pool, deadline, username):
        recall(username)
        return find_user(its_pool, deadline, username)

    server.create_app, accounts.find_user = create_app, recall_and_find
    return command.main(["serve"])


if __name__ == "__main__":
    sys.exit(main())

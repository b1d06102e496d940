"""Several workers: `python -m backend.serve backend.main` loads the app once, listens, and forks them.

Loading it only once saves memory and makes the start quick. A worker that ends is replaced.
"""

import importlib
import os
import signal
import socket
import sys

import uvicorn

WORKERS = 2


def main(name):
    module = importlib.import_module(name)
    listener = socket.create_server((module.settings.odras_host, module.settings.odras_port), backlog=2048)
    workers = set()

    def stop(*_):
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        for pid in workers:
            os.waitpid(pid, 0)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    while True:
        while len(workers) < WORKERS:
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                uvicorn.Server(uvicorn.Config(module.app, timeout_graceful_shutdown=5)).run([listener])
                os._exit(0)
            workers.add(pid)
        workers.discard(os.wait()[0])


if __name__ == "__main__":
    main(sys.argv[1])

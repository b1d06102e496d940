"""`python -m runbook.pool --check-config [--env-file FILE]`: may this configuration be started with?

Exit status 0 if so; 2 with one line per problem on standard error if not. Opens no connection.
"""

from __future__ import annotations

import argparse
import os
import sys

from .settings import Settings, SettingsError, read_environment_file


def main(arguments: list[str] | None = None) -> int:
    """Run the check; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m runbook.pool", description=__doc__)
    parser.add_argument("--check-config", action="store_true", required=True, help="check the settings")
    parser.add_argument(
        "--env-file", metavar="FILE", help="read them from this file (systemd's syntax), not the environment"
    )
    options = parser.parse_args(arguments)
    try:
        environ = read_environment_file(options.env_file) if options.env_file else os.environ
        settings = Settings.from_environment(environ)
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    print(
        f"valid: {settings.user}@{settings.host}:{settings.port}/{settings.database}, "
        f"{settings.min_connections} to {settings.max_connections} connections"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Settings from the environment, else from the file app.env beside `backend/`, else the defaults below."""

import os
from pathlib import Path

ENV_FILE = Path(__file__).resolve().parents[2] / "app.env"


class Settings:
    odras_host: str = "127.0.0.1"
    odras_port: int = 8000

    postgres_host: str = "127.0.0.1"
    postgres_port: int = 5432
    postgres_database: str = "odras"
    postgres_user: str = "odras_app"
    postgres_password: str = ""

    # Database Connection Pool Configuration
    postgres_pool_min_connections: int = 2
    postgres_pool_max_connections: int = 20
    # defect 4: nobody reads this; an exhausted pool raises at once.
    postgres_pool_connection_timeout: int = 30
    # defect 5: nobody reads this; a connection lives for ever.
    postgres_pool_connection_lifetime: int = 1800

    def __init__(self):
        file = _read(ENV_FILE)
        for name, default in vars(Settings).items():
            if name.startswith("_"):
                continue
            value = os.environ.get(name.upper(), file.get(name.upper()))
            if value is not None:
                setattr(self, name, type(default)(value))


def _read(path):
    """The KEY=VALUE lines of a file; {} if there is none."""
    if not path.exists():
        return {}
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}

"""Settings by their names, and whether two of them mean the same."""

from __future__ import annotations


def key_of(name: str) -> str:
    """POSTGRES_POOL_MAX_CONNECTIONS as a pool's status has it: max_connections."""
    return name.upper().removeprefix("POSTGRES_").removeprefix("POOL_").lower()


def same(one: str, other: str) -> bool:
    """Do two settings mean the same? 30 and 30.0 do."""
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other

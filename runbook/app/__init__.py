"""The reference application: people log in to it, over the pool of `runbook.pool`. See `__main__`."""

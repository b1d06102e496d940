"""The faults: each done for real, from outside, by a process that the diagnosis knows nothing of.

Add one by decorating a function in the file of the side that breaks: `app`, `network` or `server`.
"""

from tests.lab.faults import app, network, server
from tests.lab.faults.table import FAULTS, Fault, LabError, fault, wait_until

__all__ = ["FAULTS", "Fault", "LabError", "app", "fault", "network", "server", "wait_until"]

"""Pool Runbook: tells why nobody can log in, from evidence, and restarts only where that helps.

One room per place where its code runs: ``pool`` inside the application, ``evidence`` on the target,
``verdict`` and ``leaks`` anywhere, ``report`` on the controller. Nothing is imported here, because this
file travels to every target inside the Ansible module.
"""

__version__ = "0.1.0"

#!/usr/bin/python
"""Ansible module: what runs on a host and listens, as far as an inventory has to say it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: discover
short_description: Read a running app for its inventory stanza
description:
  - Finds the process behind a port, its service, user, log, pid file, settings and database.
  - Changes nothing, and tells no secret. Needs nothing but Python there.
author: The Pool Runbook authors
options:
  port: {description: The port of the app; 0 for every Python program that listens., type: int, default: 0}
"""
EXAMPLES = r"""
- name: Look at what listens on port 8000
  pool.runbook.discover:
    port: 8000
"""
RETURN = r"""
services:
  description: What was found, by port, see runbook/evidence/discover.py.
  returned: always
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.runbook.evidence.discover import discover

ARGUMENTS = {"port": {"type": "int", "default": 0}}


def main() -> None:
    """Look."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    port = module.params["port"]
    if not 0 <= port < 65536:
        module.fail_json(msg=f"discover_port is {port}: wanted is 1 to 65535, or 0 for all")
    module.exit_json(changed=False, services=discover(port or None))


if __name__ == "__main__":
    main()

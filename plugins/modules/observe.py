#!/usr/bin/python
"""Ansible module: switch the running processes of an app for a while, look at them, read back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: observe
short_description: Watch a running app more closely for a while
description:
  - Changes the monitor's interval, the pool's log level, the stacks and the maximum in every process that has
    a status socket, for a chosen time after which the processes change it back themselves.
  - Restarts nothing and writes to no file.
author: The Pool Runbook authors
options:
  step: {description: Which of the three trips this is., type: str, choices: [begin, look, end], required: true}
  values: {description: What is switched, by name., type: dict, default: {}}
  seconds: {description: For how long; of the last trip, how long it may wait., type: float, default: 0.0}
  begun: {description: What the first trip returned, for the last., type: dict, default: {}}
  peers: {description: Address and port of the database as the app's sockets have it., type: list, elements: str, default: []}
  login_url: {description: Where one logs in; its port finds the processes., type: str, required: true}
  login_password: {description: Masked in what was read., type: str}
  service: {description: The systemd unit of the app., type: str}
  pid_file: {description: Its pid file., type: path}
  log: {description: Its log file., type: path}
  environment_file: {description: Its environment file., type: path}
  status_directories: {description: Where status sockets are looked for., type: list, elements: path, default: []}
"""
EXAMPLES = r"""
- name: Log every acquisition and return for five minutes
  pool.runbook.observe:
    step: begin
    login_url: http://127.0.0.1:8000/api/auth/login
    values: {log_level: DEBUG}
    seconds: 300
"""
RETURN = r"""
observed: {description: What the trip saw., returned: always, type: dict}
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.runbook.act import observe

ARGUMENTS = {
    "step": {"type": "str", "choices": ["begin", "look", "end"], "required": True},
    "values": {"type": "dict", "default": {}},
    "seconds": {"type": "float", "default": 0.0},
    "begun": {"type": "dict", "default": {}},
    "peers": {"type": "list", "elements": "str", "default": []},
    "login_url": {"type": "str", "required": True},
    "login_password": {"type": "str", "no_log": True},
    "service": {"type": "str"},
    "pid_file": {"type": "path"},
    "log": {"type": "path"},
    "environment_file": {"type": "path"},
    "status_directories": {"type": "list", "elements": "path", "default": []},
}


def main() -> None:
    """Make one of the trips."""
    module = AnsibleModule(argument_spec=ARGUMENTS)
    trip = {"begin": observe.begin, "look": observe.look, "end": observe.end}[module.params["step"]]
    module.exit_json(changed=module.params["step"] == "begin", observed=trip(module.params))


if __name__ == "__main__":
    main()

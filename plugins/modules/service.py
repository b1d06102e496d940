#!/usr/bin/python
"""Ansible module: the one start or restart, locked, audited, and proven by a login."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service
short_description: Start or restart an app and prove the login
description:
  - Takes this host's lock, refuses within the cool-down and when the processes are not those that the
    evidence was read from, starts or restarts, waits until every process is a new one and the login works.
  - Writes one line to the audit log of this host, whatever happened.
author: The Pool Runbook authors
options:
  action: {description: What to do., type: str, choices: [start, restart], required: true}
  service: {description: The systemd unit., type: str}
  command: {description: The command to run where there is no unit., type: list, elements: str}
  check_config_command: {description: A command that accepts the app's configuration., type: list, elements: str}
  pid_file: {description: The app's pid file., type: path}
  environment_file: {description: The app's environment file; its secrets are masked., type: path}
  login_url: {description: Where one logs in., type: str, required: true}
  login_username: {description: A user to log in with., type: str}
  login_password: {description: Its password., type: str}
  login_attempts: {description: How many logins at once., type: int, default: 0}
  ready_timeout: {description: Seconds until the app must be ready., type: float, default: 60}
  cooldown: {description: Seconds between two actions on a host., type: float, default: 900}
  state_directory: {description: Where the lock and the audit log are., type: path}
  before: {description: The processes of the evidence., type: list, elements: dict, required: true}
  who: {description: Who does it., type: str, required: true}
  run_id: {description: In which run., type: str, required: true}
  cause: {description: For which cause., type: str, required: true}
"""
EXAMPLES = r"""
- name: Restart it
  pool.runbook.service:
    action: restart
    service: billing.service
    login_url: http://127.0.0.1:8000/api/auth/login
    state_directory: /var/lib/pool-runbook
    before: [{pid: 4272, start_ticks: 123456}]
    who: ops@bastion
    run_id: 2026-11-23T034107Z
    cause: slot_leak
"""
RETURN = r"""
act:
  description: "result (done, failed, refused), why, before, after, seconds, login (a round of the probe or none)."
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.runbook.act.service import act

ARGUMENTS = {
    "action": {"type": "str", "choices": ["start", "restart"], "required": True},
    "service": {"type": "str"},
    "command": {"type": "list", "elements": "str"},
    "check_config_command": {"type": "list", "elements": "str"},
    "pid_file": {"type": "path"},
    "environment_file": {"type": "path"},
    "login_url": {"type": "str", "required": True},
    "login_username": {"type": "str"},
    "login_password": {"type": "str", "no_log": True},
    "login_attempts": {"type": "int", "default": 0},
    "ready_timeout": {"type": "float", "default": 60.0},
    "cooldown": {"type": "float", "default": 900.0},
    "state_directory": {"type": "path"},
    "before": {"type": "list", "elements": "dict", "required": True},
    "who": {"type": "str", "required": True},
    "run_id": {"type": "str", "required": True},
    "cause": {"type": "str", "required": True},
}


def main() -> None:
    """Do it, and say what was done."""
    module = AnsibleModule(argument_spec=ARGUMENTS, required_one_of=[("service", "command")])
    result = act(module.params)
    module.exit_json(changed=result["result"] != "refused", act=result)


if __name__ == "__main__":
    main()

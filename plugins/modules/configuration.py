#!/usr/bin/python
"""Ansible module: bring an app's configuration into use on its host, proven, or undo it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: configuration
short_description: Bring an app's configuration into use, proven, or undo it
description:
  - Compares the values with what every running process of the unit has, says what would be done, and does it as one
    transaction. Out of traffic, write, restart, prove, back; or everything as it was.
  - What is loaded decides. A host on which this was interrupted is finished or undone by the next call.
author: The Pool Runbook authors
options:
  operation: {description: Say what would be done and what speaks against it; or do it. Out and back are said to the host before and after a balancer is., type: str, choices: [plan, out, apply, back], required: true}
  service: {description: The systemd unit., type: str, required: true}
  group: {description: The group that may read the files; also the user of the check., type: str, required: true}
  environment_file: {description: Where the variables are written., type: path, required: true}
  private_file: {description: Where the secrets are written., type: path, required: true}
  variables: {description: The app's environment., type: dict, required: true}
  secrets: {description: The secret part of it., type: dict, required: true}
  newer: {description: Files and directories that must be older than the process., type: list, elements: path, default: []}
  workers: {description: Processes with a pool., type: int, required: true}
  status_sockets: {description: Whether every one of them has a status socket., type: bool, required: true}
  status_directories: {description: Where those are., type: list, elements: path, required: true}
  check_command: {description: Accepts or refuses the environment that it is given., type: list, elements: str, default: []}
  drain_file: {description: While it exists, the app says that it is not ready., type: str, default: ""}
  drain_seconds: {description: How long a balancer takes to notice., type: float, required: true}
  drain_timeout: {description: Seconds for open connections to end., type: float, required: true}
  ready_url: {description: What answers 200 when the app is ready., type: str, required: true}
  ready_timeout: {description: Seconds until it must., type: float, required: true}
  login_url: {description: Where one logs in., type: str, required: true}
  login_username: {description: A user to log in with., type: str}
  login_password: {description: Its password., type: str}
  login_attempts: {description: How many logins at once., type: int, default: 0}
  probe: {description: Whether the plan may try the login., type: bool, default: true}
  repair: {description: Whether the host may be unhealthy or new., type: bool, default: false}
  into_traffic: {description: Whether a balancer can be told that the host is back., type: bool, default: false}
  idle_cut_seconds: {description: Silence after which something on the path drops a connection., type: float, default: 0}
  log: {description: The app's log., type: path, required: true}
  who: {description: Who does it., type: str, required: true}
  run_id: {description: In which run., type: str, required: true}
"""
EXAMPLES = r"""
- name: Bring the values into use
  pool.runbook.configuration:
    operation: apply
    service: billing.service
    group: billing
    environment_file: /etc/billing/billing.env
    private_file: /etc/billing/secrets.env
    variables: {POSTGRES_POOL_MAX_CONNECTIONS: "25"}
    secrets: {POSTGRES_PASSWORD: "{{ postgres_password }}"}
    workers: 2
    status_sockets: true
    status_directories: [/run/billing]
    drain_seconds: 5
    drain_timeout: 30
    ready_url: http://127.0.0.1:8000/readyz
    ready_timeout: 60
    login_url: http://127.0.0.1:8000/api/auth/login
    log: /var/log/billing/billing.log
    who: ops@bastion
    run_id: 2026-11-23T034107Z
"""
RETURN = r"""
told: {description: What would be done, or what was done., returned: always, type: dict}
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.runbook.act.configuration import apply, mark, plan
from ..module_utils.runbook.act.service import Failed, Refused

ARGUMENTS = {
    "operation": {"type": "str", "choices": ["plan", "out", "apply", "back"], "required": True},
    "service": {"type": "str", "required": True},
    "group": {"type": "str", "required": True},
    "environment_file": {"type": "path", "required": True},
    "private_file": {"type": "path", "required": True},
    "variables": {"type": "dict", "required": True},
    "secrets": {"type": "dict", "required": True, "no_log": True},
    "newer": {"type": "list", "elements": "path", "default": []},
    "workers": {"type": "int", "required": True},
    "status_sockets": {"type": "bool", "required": True},
    "status_directories": {"type": "list", "elements": "path", "required": True},
    "check_command": {"type": "list", "elements": "str", "default": []},
    "drain_file": {"type": "str", "default": ""},
    "drain_seconds": {"type": "float", "required": True},
    "drain_timeout": {"type": "float", "required": True},
    "ready_url": {"type": "str", "required": True},
    "ready_timeout": {"type": "float", "required": True},
    "login_url": {"type": "str", "required": True},
    "login_username": {"type": "str"},
    "login_password": {"type": "str", "no_log": True},
    "login_attempts": {"type": "int", "default": 0},
    "probe": {"type": "bool", "default": True},
    "repair": {"type": "bool", "default": False},
    "into_traffic": {"type": "bool", "default": False},
    "idle_cut_seconds": {"type": "float", "default": 0},
    "log": {"type": "path", "required": True},
    "who": {"type": "str", "required": True},
    "run_id": {"type": "str", "required": True},
}

WORK = {"plan": plan, "out": mark, "apply": apply, "back": mark}


def main() -> None:
    """Say it, or do it."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        asked = plan if module.check_mode else WORK[module.params["operation"]]
        told = asked(module.params)
    except (Refused, Failed) as refused:
        module.fail_json(msg=str(refused))
    changed = told["act"] and module.check_mode if "act" in told else told["result"] in ("done", "undone")
    module.exit_json(changed=bool(changed), diff=told.pop("diff", {}), told=told)


if __name__ == "__main__":
    main()

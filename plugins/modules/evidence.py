#!/usr/bin/python
"""Ansible module: read the evidence of one host, and of its database, in one trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: evidence
short_description: Read the evidence of a login incident
description:
  - Reads the login path, a new connection, the pool, sockets, processes, log, settings and source of an
    app host, and the sessions, locks and limits of its database, all at once, each with a deadline.
  - Changes nothing, and masks secrets on the target. Needs nothing but Python there.
author: The Pool Runbook authors
options:
  run_id: {description: The run that the evidence belongs to., type: str, required: true}
  host: {description: The name of the host in the inventory., type: str, required: true}
  read_host: {description: Whether the app's views are wanted., type: bool, default: true}
  login_url: {description: Where one logs in., type: str}
  login_username: {description: A user to log in with., type: str}
  login_password: {description: Its password., type: str}
  login_attempts: {description: How many logins at once; 0 for two a process and at least three., type: int, default: 0}
  login_seconds: {description: How long one login may take., type: float, default: 5.0}
  probe: {description: Whether the login may be tried., type: bool, default: true}
  service: {description: The systemd unit of the app., type: str}
  pid_file: {description: Its pid file., type: path}
  log: {description: Its log file., type: path}
  environment_file: {description: Its environment file., type: path}
  source: {description: Directories of its source., type: list, elements: path, default: []}
  status_directories: {description: Where status sockets are looked for., type: list, elements: path, default: []}
  state_directory: {description: Where the lock and the audit log of this host are., type: path}
  window: {description: Seconds of the log that matter., type: float, default: 3600}
  database:
    description: The database to read; none to read none.
    type: dict
    suboptions:
      label: {description: The name of its document., type: str, required: true}
      host: {description: Address or socket directory; unset for the one in the app's settings., type: str}
      port: {description: Its port., type: int, default: 5432}
      name: {description: The database., type: str}
      user: {description: The role to read it with., type: str}
      password: {description: Its password., type: str}
      app_user: {description: The app's role; its effective settings and limits are read., type: str}
      sslmode: {description: As libpq has it., type: str, default: prefer}
      command: {description: Words that run psql where the database is., type: list, elements: str, default: []}
"""
EXAMPLES = r"""
- name: Read everything
  pool.runbook.evidence:
    run_id: 2026-11-23T034107Z
    host: "{{ inventory_hostname }}"
    login_url: http://127.0.0.1:8000/api/auth/login
"""
RETURN = r"""
evidence:
  description: The documents, as the schemas host-evidence and database-evidence have them.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.runbook.evidence.collect import Unread, read

ARGUMENTS = {
    "run_id": {"type": "str", "required": True},
    "host": {"type": "str", "required": True},
    "read_host": {"type": "bool", "default": True},
    "login_url": {"type": "str"},
    "login_username": {"type": "str"},
    "login_password": {"type": "str", "no_log": True},
    "login_attempts": {"type": "int", "default": 0},
    "login_seconds": {"type": "float", "default": 5.0},
    "probe": {"type": "bool", "default": True},
    "service": {"type": "str"},
    "pid_file": {"type": "path"},
    "log": {"type": "path"},
    "environment_file": {"type": "path"},
    "source": {"type": "list", "elements": "path", "default": []},
    "status_directories": {"type": "list", "elements": "path", "default": []},
    "state_directory": {"type": "path"},
    "window": {"type": "float", "default": 3600.0},
    "database": {
        "type": "dict",
        "options": {
            "label": {"type": "str", "required": True},
            "host": {"type": "str"},
            "port": {"type": "int", "default": 5432},
            "name": {"type": "str"},
            "user": {"type": "str"},
            "password": {"type": "str", "no_log": True},
            "app_user": {"type": "str"},
            "sslmode": {"type": "str", "default": "prefer"},
            "command": {"type": "list", "elements": "str", "default": []},
        },
    },
}


def main() -> None:
    """Read, within the trip's own deadline."""
    needed = [("read_host", True, ("login_url",))]
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True, required_if=needed)
    request = dict(module.params)
    wanted = request["database"]
    if wanted:
        target = {key: wanted[key] for key in ("host", "port", "name", "user", "sslmode")}
        request["database"] = {
            **{key: request[key] for key in ("run_id", "host")},
            **{key: wanted[key] for key in ("password", "app_user", "command")},
            "database": wanted["label"],
            "target": target if wanted["host"] else None,
        }
    # A collector that hangs is in a daemon thread, which does not keep the interpreter.
    try:
        module.exit_json(changed=False, evidence=read(request))
    except Unread as unread:
        module.fail_json(msg=str(unread))


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Ansible module: does the running service have what is on disk? What is loaded decides, not what changed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: loaded
short_description: Ask whether a running service has its configuration and code
description:
  - Compares the environment of a unit's main process with the variables that it should have, and the times
    of its files with the time it was started. Changes nothing and tells names, never values.
author: The Pool Runbook authors
options:
  unit: {description: The systemd unit., type: str, required: true}
  variables: {description: What the process should have in its environment., type: dict, default: {}}
  files: {description: Files and directories that must be older than the process., type: list, elements: path, default: []}
"""
EXAMPLES = r"""
- name: Ask what the app runs with
  pool.runbook.loaded:
    unit: billing.service
    variables: {POSTGRES_POOL_MAX_CONNECTIONS: "20"}
    files: [/etc/systemd/system/billing.service]
"""
RETURN = r"""
known: {description: Whether systemd knows the unit., returned: always, type: bool}
running: {description: Whether the unit has a main process., returned: always, type: bool}
differs: {description: Names of variables and files that the process has not., returned: always, type: list, elements: str}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.runbook.evidence import proc, process, settings

ARGUMENTS = {
    "unit": {"type": "str", "required": True},
    "variables": {"type": "dict", "default": {}},
    "files": {"type": "list", "elements": "path", "default": []},
}


def differences(pid: int, variables: dict, files: list) -> list:
    """Names of the variables and files that process ``pid`` was not started with."""
    environ = settings.environ(pid) or {}
    names = sorted(name for name, value in variables.items() if environ.get(name) != str(value))
    told = proc.stat(pid) or {}
    started = proc.boot_time() + told.get("start_ticks", 0) / proc.TICKS
    for name in files:
        path = Path(name)
        # /proc tells whole ticks since a boot told in whole seconds: a second of doubt counts as newer
        if path.exists() and path.stat().st_mtime > started + 1:
            names.append(name)
    return names


def main() -> None:
    """Compare."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    unit = process.systemd_unit(module.params["unit"])
    main_pid = unit.get("MainPID", "0")
    pid = int(main_pid) if main_pid.isdigit() else 0
    differs = differences(pid, module.params["variables"], module.params["files"]) if pid else []
    module.exit_json(
        changed=False, known=unit.get("LoadState") == "loaded", running=bool(pid), differs=differs
    )


if __name__ == "__main__":
    main()

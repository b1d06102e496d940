"""Refuse, before anything is read or touched, what would end green on nothing or cannot fit; then begin the run."""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
from pathlib import Path
from typing import Any, Optional

import yaml
from ansible.errors import AnsibleActionFail, AnsibleUndefinedVariable
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.utils.vars import load_extra_vars

from ..plugin_utils.action import OnController
from ..plugin_utils.run import Run

URL = re.compile(r"https?://(?:[^/:@]+|\[[0-9a-fA-F:.]+\])(?::(?:[1-9]\d{0,4}))?/.*")
NOBODY = (
    "the inventory has no host in group app, so nothing would be diagnosed. Copy inventory.example to inventory.yml"
    " and name your app's host there, or give -i INVENTORY"
)
PREFIXES = ("diagnose_", "app_", "postgres_", "rollout_", "discover_")
ROLES = Path(__file__).resolve().parents[2] / "roles"


def options(role: str, entry: str) -> dict[str, Any]:
    """The variables of one entry point of a role of this collection, as its argument spec has them."""
    loaded = yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text())
    found: dict[str, Any] = loaded["argument_specs"][entry]["options"]
    return found


def known_variables() -> set[str]:
    """Every variable that the argument specs of this collection's roles know."""
    names: set[str] = set()
    for path in ROLES.glob("*/meta/argument_specs.yml"):
        for spec in yaml.safe_load(path.read_text())["argument_specs"].values():
            names |= set(spec.get("options", {}))
    return names


def missing_variables(host: str, variables: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """A line for each required variable that a host has not, or has with nothing in it."""
    lines = []
    for name, option in wanted.items():
        if option.get("required") and variables.get(name) in (None, "", []):
            state = "empty" if name in variables else "not set"
            place = "in the inventory, best from a vault" if option.get("no_log") else "in the inventory"
            lines.append(f"{host}: {name} is {state}: set it {place} ({option['description']})")
    return lines


def wrong_values(hosts: dict[str, Any], spec: dict[str, Any]) -> list[str]:
    """A line for each variable that is set to what its option does not allow, with the hosts that have it.

    ``hosts``: host -> its variables. All hosts at once: as a task for each it would be a third of a large run.
    """
    lines: dict[str, list[str]] = {}
    for host, variables in hosts.items():
        told = {}
        for name in (name for name in spec if name in variables):
            with contextlib.suppress(AnsibleUndefinedVariable):  # made of a role's defaults: the role says so
                told[name] = variables[name]
        for line in ArgumentSpecValidator({name: spec[name] for name in told}).validate(told).error_messages:
            lines.setdefault(_in_words(line, told, spec), []).append(host)
    return [
        f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}: {line}" for line, names in lines.items()
    ]


def _in_words(line: str, told: dict[str, Any], spec: dict[str, Any]) -> str:
    """Ansible's line on a value of the wrong type names neither the value nor the type that the user knows."""
    found = re.match(r"argument '(\w+)' is of type \w+ and we were unable to convert", line)
    if not found:
        return line
    name = found[1]
    value = "not shown here" if spec[name].get("no_log") else repr(told[name])
    return f"{name} is {value}: wanted is {spec[name]['type']} ({spec[name]['description']})"


def unknown_variables(names: set[str], known: set[str]) -> list[str]:
    """A line for each variable with one of our prefixes that no spec knows, the nearest name suggested."""
    lines = []
    for name in sorted(n for n in names - known if n.startswith(PREFIXES)):
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        lines.append(f"{name} is not a variable of this collection{meant}")
    return lines


@functools.cache
def defaults(role: str) -> dict[str, Any]:
    """The defaults of a role of this collection, as they are written."""
    loaded: dict[str, Any] = yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text())
    return loaded


def number(variables: dict[str, Any], name: str) -> int:
    """A whole number that a host's variables give, or the roles' defaults."""
    given = variables.get(name, {**defaults("app"), **defaults("postgres")}[name])
    try:
        return int(given)
    except (TypeError, ValueError):
        raise AnsibleActionFail(f"{name} is {given!r}: a whole number is wanted") from None


def connections_of(app: dict[str, Any]) -> int:
    """Connections that the pools of a host with these variables may open."""
    return number(app, "app_workers") * number(app, "postgres_pool_max_connections")


def slots_of(server: dict[str, Any]) -> int:
    """Connection slots that a server with these variables gives to the pools."""
    reserved = ("postgres_superuser_reserved_connections", "postgres_reserved_connections")
    return number(server, "postgres_max_connections") - sum(number(server, name) for name in reserved)


def connection_budget(apps: dict[str, dict[str, Any]], server: dict[str, Any]) -> Optional[str]:
    """What is wrong with hosts x processes x maximum against the server's slots; None when it fits.

    ``apps``: host → its variables. ``server``: the variables of the database's host.
    """
    parts = {host: connections_of(app) for host, app in apps.items()}
    slots, wanted = number(server, "postgres_max_connections"), sum(parts.values())
    if wanted <= slots_of(server):
        return None
    sums = ", ".join(f"{host} {share}" for host, share in sorted(parts.items()))
    return (
        f"the pools may open {wanted} connections (app_workers x postgres_pool_max_connections: {sums}), and the server"
        f" gives them {slots_of(server)} (postgres_max_connections {slots} - {slots - slots_of(server)} reserved)"
    )


def refuse(problems: list[str]) -> None:
    """Raises AnsibleActionFail with all of them, if there are any."""
    if problems:
        raise AnsibleActionFail("; ".join(problems))


class ActionModule(OnController):
    """Runs on the controller, once, whatever hosts the inventory has."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """With ``reports`` a run is begun there; with ``budget`` both roles have what they need, and the pools
        fit the server; with ``any_host`` no host need be in group app."""
        groups, hostvars = variables["groups"], variables["hostvars"]
        apps, servers = groups.get("app", []), groups.get("postgres", [])
        if self._task.args.get("any_host"):
            apps = sorted(set(groups.get("all", [])) - set(servers))
            if not apps:
                refuse(["the inventory has no host to look at; name one: -i web-1, (with the comma)"])
        if not apps:
            refuse([NOBODY])
        names = set(variables)
        for host in {*apps, *servers}:
            names |= set(hostvars[host])
        refuse(unknown_variables(names, known_variables()))
        for host in apps:
            url = str(hostvars[host].get("diagnose_login_url", "http://127.0.0.1/"))
            if not URL.fullmatch(url):
                refuse([f"{host}: diagnose_login_url is {url}; wanted is http(s)://HOST[:PORT]/PATH"])
        if self._task.args.get("budget"):
            self._check_provision(apps, servers, hostvars)
        reports = self._task.args.get("reports")
        if not reports:
            return {}
        meant = {*apps, *servers}.intersection(variables["ansible_play_hosts_all"])
        refuse(wrong_values({host: hostvars[host] for host in sorted(meant)}, options("diagnose", "main")))
        run = Run.create(reports)
        run.say("", f"run {run.id}, reports go to {reports}/latest")
        return {"ansible_facts": run.facts()}

    def _check_provision(
        self, apps: list[str], servers: list[str], hostvars: dict[str, dict[str, Any]]
    ) -> None:
        """Refuse what the roles would refuse only after other hosts were touched."""
        missing = []
        for hosts, entry in ((servers, "main"), (apps, "client")):
            wanted = options("postgres", entry)
            missing += [line for host in hosts for line in missing_variables(host, hostvars[host], wanted)]
        refuse(missing)
        refuse(wrong_values({host: hostvars[host] for host in servers}, options("postgres", "main")))
        lasting = [host for host in servers if boolean(hostvars[host].get("postgres_restart", False))]
        if lasting and "postgres_restart" not in load_extra_vars(self._loader):
            refuse(
                [
                    f"{', '.join(lasting)}: postgres_restart is set in the inventory, where it would allow a restart"
                    " in every run; give it to one: -e postgres_restart=true"
                ]
            )
        for server in servers:
            called = {server, str(hostvars[server].get("ansible_host"))}
            # By another name it is not known whose app it is; the rollout asks the server itself.
            own = [
                host for host in apps if len(servers) == 1 or hostvars[host].get("postgres_host") in called
            ]
            trouble = connection_budget({host: hostvars[host] for host in own}, hostvars[server])
            refuse([trouble] if trouble else [])

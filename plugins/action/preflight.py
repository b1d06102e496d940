"""Refuse, before anything is read or touched, what would end green on nothing or cannot fit; then begin the run."""

from __future__ import annotations

import contextlib
import difflib
import functools
import ipaddress
import re
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

from ansible.errors import AnsibleActionFail, AnsibleUndefinedVariable
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.yaml import yaml_load
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
# From, to: what the type of a number does not say. Beyond it a host throws an exception, waits without end, or is
# proven by no login at all. (app_port and app_workers are role app's own to refuse.)
BOUNDS: dict[str, tuple[float, float]] = {
    "diagnose_login_attempts": (0, 1000),
    "diagnose_login_seconds": (0.1, 60),
    "diagnose_window": (1, 31_536_000),
    "diagnose_idle_minutes": (0, 1440),
    "diagnose_observe_minutes": (0, 60),  # more the processes do not take, of this and the next two
    "diagnose_observe_monitor_interval": (0.1, 86_400),
    "diagnose_observe_maximum": (0, 1000),
    "diagnose_cooldown": (0, 31_536_000),
    "diagnose_ready_timeout": (1, 3600),
    "diagnose_database_port": (1, 65_535),
    "app_ready_timeout": (1, 3600),
    "rollout_drain_seconds": (0, 3600),
    "rollout_drain_timeout": (0, 3600),
    "rollout_idle_cut_seconds": (0, 604_800),
    "postgres_max_connections": (1, 262_143),  # as pg_settings has them, min_val and max_val
    "postgres_superuser_reserved_connections": (0, 262_143),
    "postgres_reserved_connections": (0, 262_143),
}
PLACE = "set it in the inventory or with -e"


def options(role: str, entry: str) -> dict[str, Any]:
    """The variables of one entry point of a role of this collection, as its argument spec has them."""
    loaded = yaml_load((ROLES / role / "meta" / "argument_specs.yml").read_text())
    found: dict[str, Any] = loaded["argument_specs"][entry]["options"]
    return found


def known_variables() -> set[str]:
    """Every variable that the argument specs of this collection's roles know."""
    names: set[str] = set()
    for path in ROLES.glob("*/meta/argument_specs.yml"):
        for spec in yaml_load(path.read_text())["argument_specs"].values():
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
    validators: dict[tuple[str, ...], ArgumentSpecValidator] = {}  # most hosts set the same variables
    for host, variables in hosts.items():
        told = {}
        for name in (name for name in spec if name in variables):
            with contextlib.suppress(AnsibleUndefinedVariable):  # made of a role's defaults: the role says so
                told[name] = variables[name]
        if tuple(told) not in validators:
            validators[tuple(told)] = ArgumentSpecValidator({name: spec[name] for name in told})
        checked = validators[tuple(told)].validate(told)
        wrong = [_in_words(line, told, spec) for line in checked.error_messages]
        for line in [*wrong, *_out_of_bounds(told), *_no_url(told)]:
            lines.setdefault(line, []).append(host)
    return [f"{_some(names)}: {line}" for line, names in lines.items()]


def _some(hosts: list[str]) -> str:
    return f"{', '.join(hosts[:5])}{' …' if len(hosts) > 5 else ''}"


def _out_of_bounds(told: dict[str, Any]) -> list[str]:
    lines = []
    for name, (low, high) in BOUNDS.items():
        # One that is not set, or is no number, which is said already.
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if not low <= float(told[name]) <= high:
                lines.append(f"{name} is {told[name]!r}: wanted is a number from {low} to {high}; {PLACE}")
    return lines


def _no_url(told: dict[str, Any]) -> list[str]:
    url = str(told.get("diagnose_login_url", "http://127.0.0.1/"))
    with contextlib.suppress(ValueError):  # a port above 65535, or an address that is none
        if URL.fullmatch(url) and urlsplit(url).port != 0:
            return []
    wanted = "http(s)://HOST[:PORT]/PATH, PORT from 1 to 65535"
    return [f"diagnose_login_url is {url}: wanted is {wanted}; {PLACE}"]


def half_logins(apps: dict[str, Any]) -> list[str]:
    """A line for the hosts with a user and no password, or the reverse: less would be proven than is meant."""
    halves = []
    for host, variables in apps.items():
        with contextlib.suppress(AnsibleUndefinedVariable):  # made of a role's defaults
            user, password = (variables.get(f"diagnose_login_{half}") for half in ("username", "password"))
            if bool(user) != bool(password):
                halves.append(host)
    names = "diagnose_login_username and diagnose_login_password"
    words = f"{names} go together, and one of them is empty or not set: set it, best from a vault"
    return [f"{_some(halves)}: {words}"] if halves else []


def wrong_networks(host: str, networks: Any) -> list[str]:
    """A line for each of a server's networks with which PostgreSQL would not start."""
    wanted = "postgres_app_networks wants a list of networks in CIDR form, for example [10.0.4.0/28]"
    if isinstance(networks, str):
        return [f"{host}: {networks} is no list: {wanted}"]
    return [f"{host}: {network} is no network: {wanted}" for network in networks if not _is_network(network)]


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return re.search(r"/\d+$", text) is not None  # Python knows more forms than PostgreSQL's access rules


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
    loaded: dict[str, Any] = yaml_load((ROLES / role / "defaults" / "main.yml").read_text())
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
        meant = sorted({*apps, *servers}.intersection(variables["ansible_play_hosts_all"]))
        told = {host: hostvars[host] for host in meant}
        wrong = wrong_values(told, options("diagnose", "main"))
        refuse(wrong + half_logins({host: told[host] for host in meant if host in apps}))
        if self._task.args.get("budget"):
            self._check_provision(apps, servers, hostvars)
        reports = self._task.args.get("reports")
        if not reports:
            return {}
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
        deployed = {**options("app", "main"), **options("rollout", "main")}
        refuse(wrong_values({host: hostvars[host] for host in apps}, deployed))
        for host in servers:
            refuse(wrong_networks(host, hostvars[host]["postgres_app_networks"]))
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

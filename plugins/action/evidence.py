"""One trip to a host: run the module there, and make the evidence safe on the controller."""

from __future__ import annotations

from typing import Any, Optional

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from ..module_utils.runbook.common.documents import InvalidDocument, file_name
from ..plugin_utils.run import Run

MODULE = "pool.runbook.evidence"


class ActionModule(ActionBase):
    """Never fails a host: what could not be read is a finding, and the last task fails the run."""

    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Read; the documents are in the run's directory, ``read`` says which there are."""
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        run, host = Run.of(variables), variables["inventory_hostname"]
        arguments = {key: value for key, value in self._task.args.items() if value not in (None, "", [])}
        fallback = bool(arguments.pop("fallback", False))
        arguments.update(run_id=run.id, host=host)
        if not (fallback or self._reads_database(host, variables)):
            arguments.pop("database", None)
        else:
            arguments["database"] = {k: v for k, v in arguments["database"].items() if v not in (None, "")}
        if not arguments.get("read_host") and "database" not in arguments:
            result.update(changed=False, skipped=True)
            return result
        if arguments.get("read_host"):
            run.note(
                f"evidence/{file_name(host)}.asked",
                {"host": host, "label": variables.get("diagnose_database", "main")},
            )
            run.say(
                host,
                "reading login, new connection, pool, sockets, process, log, settings, source (at most 20 s)",
            )
        try:
            answer = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=variables)
        except AnsibleConnectionFailure as error:
            self._missed(run, host, arguments, f"not reached: {error}")
            raise
        evidence = answer.get("evidence")
        if not isinstance(evidence, dict):
            words = answer.get("module_stderr") or answer.get("msg") or answer.get("exception") or "no answer"
            self._missed(run, host, arguments, _telling(str(words)))
            if answer.get("unreachable"):
                return answer
            evidence = {"host": None, "database": None}
        read = []
        try:
            if evidence["host"]:
                run.write(f"evidence/{file_name(host)}.json", evidence["host"])
                read.append("host")
                self._tell(run, host, evidence["host"])
            if evidence["database"]:
                label = evidence["database"]["database"]
                run.write(f"databases/{file_name(label)}.json", evidence["database"])
                read.append("database")
                connection = evidence["database"]["views"]["connection"]["data"] or {}
                error = connection.get("error") or {}
                words = (
                    "read: sessions, locks, limits"
                    if connection.get("ok")
                    else f"not readable: {error.get('text')}"
                )
                run.say(host, f"database {label} {words}")
                if str(error.get("sqlstate"))[:2] in (
                    "28",
                    "3D",
                ):  # it is there: it is the inventory that is wrong
                    self._missed(run, host, arguments, f"{error.get('text')}: are diagnose_database_* right?")
        except InvalidDocument as error:
            self._missed(run, host, arguments, f"its evidence does not fit the schema: {error}")
        result.update(changed=False, read=read)
        return result

    @staticmethod
    def _reads_database(host: str, variables: dict[str, Any]) -> bool:
        """One connection for each database, whatever the number of hosts: is this the host to open it?

        The first host of group postgres does, or the first app host where none is in this run.
        """
        groups, hostvars = variables["groups"], variables["hostvars"]
        label = variables.get("diagnose_database", "main")
        for group in (groups.get("postgres", []), groups["app"]):
            for name in variables["ansible_play_hosts_all"]:
                if name in group and hostvars[name].get("diagnose_database", "main") == label:
                    return host == name
        return False

    @staticmethod
    def _missed(run: Run, host: str, arguments: dict[str, Any], why: str) -> None:
        run.note(f"evidence/{file_name(host)}.missed", {"why": why})
        run.say(host, f"NOT READ: {why}")

    @staticmethod
    def _tell(run: Run, host: str, evidence: dict[str, Any]) -> None:
        """Which views were read, and what the login answered."""
        views = evidence["views"]
        login = views["login"]["data"]
        if login:
            first = login["rounds"][0]
            words = ", ".join(f"{status}: {times}" for status, times in sorted(first["by_status"].items()))
            run.say(host, f"login {words} (of {first['attempts']})")
        good = [name.replace("_", " ") for name, view in views.items() if view["state"] == "ok"]
        bad = [
            f"{name.replace('_', ' ')} ({view['reason'][:60]})"
            for name, view in views.items()
            if view["state"] != "ok"
        ]
        run.say(host, f"read: {', '.join(good)}" + (f"; not read: {', '.join(bad)}" if bad else ""))


def _telling(words: str) -> str:
    """The line that says most of why nothing came: a traceback's last, of everything else the first."""
    lines = [line.strip() for line in words.splitlines() if line.strip()] or ["no answer"]
    return lines[-1 if "Traceback (most recent call last)" in words else 0][:300]

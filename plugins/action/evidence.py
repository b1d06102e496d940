"""One trip to a host: run the module there, and make the evidence safe on the controller."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError

from ..module_utils.runbook.common.clock import trip_seconds
from ..module_utils.runbook.common.documents import InvalidDocument, file_name
from ..plugin_utils.action import Action, given, no_answer
from ..plugin_utils.run import Run

MODULE = "pool.runbook.evidence"
VIEWS = "login, new connection, pool, sockets, process, log, settings, source"


class ActionModule(Action):
    """Never fails a host: what could not be read is a finding, and the last task fails the run."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Read; the documents are in the run's directory, ``read`` says which there are."""
        run, host = Run.of(variables), variables["inventory_hostname"]
        arguments = given(self._task.args)
        fallback = bool(arguments.pop("fallback", False))
        arguments.update(run_id=run.id, host=host)
        if not (fallback or self._reads_database(host, variables)):
            arguments.pop("database", None)
        else:
            arguments["database"] = given(arguments["database"])
        if not arguments.get("read_host") and "database" not in arguments:
            return {"skipped": True}
        if arguments.get("read_host"):
            asked = {"host": host, "label": variables.get("diagnose_database", "main")}
            run.note(f"evidence/{file_name(host)}.asked", asked)
            seconds = trip_seconds(float(arguments["login_seconds"]))
            run.say(host, f"reading {VIEWS} (at most {seconds:g} s)")
        try:
            answer = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=variables)
        except AnsibleConnectionFailure as error:
            self._missed(run, host, str(error))
            raise
        except AnsibleError as error:  # no way to become that user, no place for temporary files
            words = " ".join(str(error).split())
            how = f" (as {self._task.become_user}; ansible_become_method says how, diagnose_user who)"
            answer = {"msg": f"{words}{how if self._task.become else ''}"}
        evidence = answer.get("evidence")
        if not isinstance(evidence, dict):
            self._missed(run, host, no_answer(answer))
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
                connection = evidence["database"]["views"]["connection"]["data"] or {}
                error = connection.get("error") or {}
                ok = connection.get("ok")
                again = "again, after a login hung, " * run.was_read(label)
                if again:
                    run.note(f"databases/{file_name(label)}.again", {"from": host, "ok": ok})
                if ok or not again:  # what was read once is not given up for nothing
                    run.write(f"databases/{file_name(label)}.json", evidence["database"])
                    read.append("database")
                words = "read: sessions, locks, limits" if ok else f"not readable: {error.get('text')}"
                run.say(host, f"database {label} {again}{words}")
                # It is there: it is the inventory that is wrong.
                if str(error.get("sqlstate"))[:2] in ("28", "3D"):
                    self._missed(run, host, f"{error.get('text')}: are diagnose_database_* right?")
        except InvalidDocument as error:
            self._missed(run, host, f"its evidence does not fit the schema: {error}")
        return {"read": read}

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
    def _missed(run: Run, host: str, why: str) -> None:
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
        told = [(name.replace("_", " "), view) for name, view in views.items()]
        good = [name for name, view in told if view["state"] == "ok"]
        bad = [f"{name} ({view['reason'][:60]})" for name, view in told if view["state"] != "ok"]
        run.say(host, f"read: {', '.join(good)}" + (f"; not read: {', '.join(bad)}" if bad else ""))

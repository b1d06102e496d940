"""Watch the running processes more closely for a while: the guide's steps 5 and 6, at run time."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Optional

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

from ..module_utils.runbook.common.documents import file_name
from ..module_utils.runbook.report.observation import (
    headline,
    looks_words,
    observation,
    observation_screen,
    wanted_words,
)
from ..module_utils.runbook.report.words import duration
from ..module_utils.runbook.verdict.facts import Facts, mapping
from ..module_utils.runbook.verdict.headroom import pool_of, too_many
from ..plugin_utils.action import Action, given, no_answer
from ..plugin_utils.judged import every
from ..plugin_utils.run import FEW, Run

MODULE = "pool.runbook.observe"
EVIDENCE = "pool.runbook.evidence"
PLAN = "observations/plan.json"
MINUTES = 5.0  # of observe.yml when nothing else is said
LOOKS = 5  # meanwhile
LOOK_SECONDS = 5.0  # between two of them at least
MOST_SCREENS = 5

Document = dict[str, Any]


class ActionModule(Action):
    """One step of it for each task: plan, begin, look, wait, end, report; the first and the last two run once."""

    def answer(self, variables: Document) -> Document:
        """What a later step needs is a note of the run."""
        run, step = Run.of(variables), self._task.args["step"]
        if step == "plan":
            self._plan(run, variables)
        elif step == "report":
            return self._report(run)
        elif not self._task.check_mode:
            plan = run.load(PLAN) or {"hosts": {}, "labels": [], "looks": 0}
            work = {"begin": self._begin, "look": self._look, "wait": self._wait, "end": self._end}[step]
            try:
                return {"changed": bool(work(run, plan, variables))}
            except (AnsibleActionFail, AnsibleConnectionFailure) as error:
                host = file_name(variables["inventory_hostname"])
                run.note(f"observations/{host}.failed", {"why": str(error)})
                raise
        return {}

    # -- once, before anything is switched -------------------------------------------------------------------

    def _plan(self, run: Run, variables: Document) -> None:
        """Whom to observe, and how. Nobody is touched yet."""
        arguments = self._task.args
        minutes = float(arguments["minutes"])
        if arguments.get("always"):
            minutes = minutes or MINUTES
        hosts = {
            host: seen
            for host, seen in (every(run) if minutes else ())
            if seen and (arguments.get("always") or seen.verdict.confidence != "decided")
        }
        values: Document = {
            "monitor_interval": float(arguments["monitor_interval"]),
            "log_level": arguments["log_level"],
            "stacks": bool(arguments["stacks"]),
        }
        labels = run.hosts()
        hostvars = variables["hostvars"]
        maxima = {host: int(hostvars[host].get("diagnose_observe_maximum", 0)) for host in labels}
        raised = {host: {"max_connections": maximum} for host, maximum in maxima.items() if maximum}
        plan = {
            "seconds": minutes * 60,
            "looks": max(1, min(LOOKS, int(minutes * 60 / LOOK_SECONDS))),
            "hosts": {host: {**values, **raised.get(host, {})} for host in hosts},
            "labels": sorted({labels[host] for host in hosts}),
        }
        for label in plan["labels"]:
            if any(host in raised for host in hosts if labels[host] == label):
                self._refuse_what_does_not_fit(run, variables, label, {h: maxima[h] for h in hosts})
        for host, seen in hosts.items():
            pids = [str(status["pid"]) for status in Facts(seen.host).pool or []]
            words = wanted_words(plan["hosts"][host])
            verb = "would switch" if self._task.check_mode else "switching"
            if pids:
                run.say(host, f"{verb} for {duration(minutes * 60)}: {words} in pid {', '.join(pids)}")
            else:
                words = "no process has a status socket: nothing to switch, it is looked at from outside"
                run.say(host, words)
        run.note(PLAN, plan)

    def _refuse_what_does_not_fit(
        self, run: Run, variables: Document, label: str, maxima: dict[str, int]
    ) -> None:
        """The pools of every host of this database count, also of those that are not observed."""
        hostvars, pools = variables["hostvars"], []
        apps = variables["groups"]["app"]
        for host in (h for h in apps if hostvars[h].get("diagnose_database", "main") == label):
            evidence = run.evidence_of(host)
            if evidence is None:
                raise AnsibleActionFail(
                    f"diagnose_observe_maximum: {host} was not read, so how many connections its pools may still"
                    " open is not known; leave out --limit, or see why it is not reached"
                )
            for status in Facts(evidence).pool or []:
                pools.append(pool_of(host, status, maxima.get(host, 0)))
        facts = Facts(None, run.database_of(label))
        if facts.limits is None:
            words = f"{facts.reason('limits')}, so the room is not known"
            raise AnsibleActionFail(f"diagnose_observe_maximum: {words}")
        trouble = too_many(pools, facts.limits)
        if trouble:
            raise AnsibleActionFail(f"diagnose_observe_maximum does not fit: {trouble}")

    # -- on the hosts ----------------------------------------------------------------------------------------

    def _module(self, variables: Document, name: str, **more: Any) -> Document:
        arguments = {**given(self._task.args["target"]), **more}
        if name == MODULE:
            arguments.pop("database", None)
        answer = self._execute_module(module_name=name, module_args=arguments, task_vars=variables)
        found = answer.get("observed") or answer.get("evidence")
        if not isinstance(found, dict):
            raise AnsibleActionFail(no_answer(answer))
        return found

    def _begin(self, run: Run, plan: Document, variables: Document) -> bool:
        host = variables["inventory_hostname"]
        if host not in plan["hosts"]:
            return False
        wanted = {"values": plan["hosts"][host], "seconds": plan["seconds"]}
        begun = self._module(variables, MODULE, step="begin", **wanted)
        run.note(f"observations/{file_name(host)}.begun", {**begun, "ends": time.time() + plan["seconds"]})
        for row in begun["processes"]:
            if row["error"]:
                run.say(host, f"pid {row['pid']} was not switched: {row['error']}")
        return any(row["socket"] and not row["error"] for row in begun["processes"])

    def _wait(self, run: Run, plan: Document, _: Document) -> None:
        """Until the middle of the look's share of the time, or its end; not when no process took the switch."""
        begun = [run.load(f"observations/{file_name(host)}.begun") for host in plan["hosts"]]
        ends = [one["ends"] for one in begun if one and not any(row["error"] for row in one["processes"])]
        if not ends:
            return
        look = self._task.args.get("look")
        share = (int(look) - 0.5) / plan["looks"] if look else 1.0
        until = max(ends) - plan["seconds"] * (1 - share)
        if share <= 1 and until > time.time():
            run.say("", f"observing: {duration(max(ends) - time.time())} left")
            time.sleep(max(0.0, until - time.time()))

    def _look(self, run: Run, plan: Document, variables: Document) -> None:
        """One look at the host, and at the database where this host is the one that reads it."""
        host, number = variables["inventory_hostname"], int(self._task.args["look"])
        if number > plan["looks"]:
            return
        for label in plan["labels"]:
            if (run.database_of(label) or {}).get("collected_from") == host:
                wanted = {"run_id": run.id, "host": host, "read_host": False}
                wanted["database"] = given(self._task.args["target"]["database"])
                told = self._module(variables, EVIDENCE, **wanted)["database"] or {}
                run.note(f"observations/looks/database-{file_name(label)}-{number}.json", told)
        if host in plan["hosts"]:
            evidence = run.evidence_of(host)
            peers = mapping(Facts(evidence).sockets).get("peers") or []
            told = self._module(variables, MODULE, step="look", peers=peers)
            run.note(f"observations/looks/{file_name(host)}-{number}.json", told)
            if len(plan["hosts"]) <= FEW:
                run.say(host, looks_words([told]))

    def _end(self, run: Run, plan: Document, variables: Document) -> None:
        """Read back, write the document, and show it."""
        host = variables["inventory_hostname"]
        begun = run.load(f"observations/{file_name(host)}.begun")
        if begun is None:
            return
        left = max(0.0, begun.pop("ends") - time.time())
        ended: Optional[Document] = None
        try:
            ended = self._module(variables, MODULE, step="end", begun=begun, seconds=left)
        except (AnsibleConnectionFailure, AnsibleActionFail) as error:
            run.say(host, f"NOT READ BACK: {error}; its processes switch back by themselves")
        wanted = {"run_id": run.id, "host": host, "seconds": plan["seconds"], "wanted": plan["hosts"][host]}
        document = observation(wanted, begun, self._looks(run, host, plan["looks"]), ended)
        name = f"observations/{file_name(host)}.json"
        run.write(name, document)
        told = {"action": "observe", "result": document["outcome"], "why": headline(document)}
        run.append("audit.log", {"host": host, **told})
        if len(plan["hosts"]) <= MOST_SCREENS:
            run.display.display("\n" + observation_screen(document, f"{run.shown}/{name}"))
        else:
            run.say(host, f"{document['outcome']}: {headline(document)}")

    def _looks(self, run: Run, host: str, most: int) -> list[Document]:
        """Every look at the host, with the app's sessions on the server at the same moment."""
        evidence, label = run.evidence_of(host), run.hosts()[host]
        looks = []
        for number in range(1, most + 1):
            look = run.load(f"observations/looks/{file_name(host)}-{number}.json")
            if look is None:
                continue
            database = run.load(f"observations/looks/database-{file_name(label)}-{number}.json")
            backends = Facts(evidence, database).backends
            states = Counter(str(session.get("state")) for session in backends or [])
            looks.append({**look, "sessions": None if backends is None else states})
        return looks

    # -- once, at the end ------------------------------------------------------------------------------------

    def _report(self, run: Run) -> Document:
        """Fails unless every host was observed, and is as it was."""
        run.publish()
        hosts, bad = run.hosts(), []
        for host in hosts:
            document = run.load(f"observations/{file_name(host)}.json")
            failed = run.load(f"observations/{file_name(host)}.failed")
            why = failed["why"] if failed else run.missed(host)
            if document is None and (why or not self._task.check_mode):
                bad.append(f"{host} {why or 'gave no observation'}")
            elif document and document["wrong"]:
                bad.append(f"{host} {'; '.join(document['wrong'])}")
        if not hosts:
            words = "no host of group app was part of this run, so nothing was observed"
            return {"failed": True, "msg": words}
        if bad:
            return {"failed": True, "msg": f"{len(bad)} of {len(hosts)}: {'; '.join(bad)}"}
        return {"run": str(run.path)}

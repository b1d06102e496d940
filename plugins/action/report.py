"""Write the reports, print the screen, and fail the run when any host is not well."""

from __future__ import annotations

import time
from typing import Any

from ..module_utils.runbook.common import documents
from ..module_utils.runbook.common.documents import file_name
from ..module_utils.runbook.report.build import build, login_round, unknown_service
from ..module_utils.runbook.report.page import page
from ..module_utils.runbook.report.screen import fleet_screen, screen, state
from ..module_utils.runbook.report.ticket import ticket
from ..module_utils.runbook.verdict.fleet import fleet
from ..plugin_utils.action import OnController
from ..plugin_utils.judged import Judged, every
from ..plugin_utils.run import Run, coloured

MOST_SCREENS = 5


class ActionModule(OnController):
    """Runs on the controller, once, as the last task."""

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Fails unless every host that was asked gave a report of ``healthy`` or ``restored``."""
        run = Run.of(variables)
        reports, missing, misnamed = [], {}, []
        for host, seen in every(run):
            if seen:
                reports.append(self._report(run, host, seen))
                wrong = unknown_service(seen.host)
                misnamed += [f"{host}: {wrong}"] if wrong else []
            else:
                missing[host] = run.missed(host) or "it gave no evidence"
        connections = len(list((run.path / "databases").glob("*")))  # a second reading leaves a note
        document = fleet(run.id, reports, sorted(missing), connections)
        run.write("fleet.json", document)
        run.publish()
        self._show(run, reports, missing, document)
        sick = [r for r in reports if r["outcome"] not in ("healthy", "restored")]
        bad = [f"{r['host']} {r['outcome']} ({r['cause']})" for r in sick] + misnamed
        bad += [f"{host} not reached" for host in missing]
        asked = {file_name(host) for host in run.hosts()}
        lost = sorted({path.stem for path in (run.path / "evidence").glob("*.missed")} - asked)
        bad += [f"{host} (database) not read" for host in lost]
        msg = f"{len(bad)} of {len(reports) + len(missing) + len(lost)}: {'; '.join(bad)}" if bad else ""
        if not reports and not missing:
            msg = "no host of group app was part of this run, so nothing was diagnosed (see --limit)"
        outcomes = {r["host"]: r["outcome"] for r in reports}
        return {"run": str(run.path), "outcomes": outcomes, **({"failed": True, "msg": msg} if msg else {})}

    @staticmethod
    def _report(run: Run, host: str, seen: Judged) -> dict[str, Any]:
        action = run.load(f"actions/{file_name(host)}.json")
        proof = action and action["login"] and login_round(action["login"], action["login"]["kind"])
        keys = ("action", "result", "why", "before", "after", "seconds")
        names = [f"evidence/{file_name(host)}.json"]
        if seen.database:
            names.append(f"databases/{file_name(seen.database['database'])}.json")
        report = build(
            seen.host,
            seen.database,
            seen.verdict,
            actions=[{key: action[key] for key in keys}] if action else [],
            proof=proof or None,
            evidence=[{"file": name, "sha256": run.digest(name)} for name in names],
            seconds=time.time() - run.started,
            earlier=run.earlier(host) if seen.verdict.cause != "healthy" else (),
            observed=run.load(f"observations/{file_name(host)}.json"),
        )
        run.write(f"hosts/{file_name(host)}.json", report)
        documents.write_text(run.path / file_name(host) / "ticket.md", ticket(report))
        documents.write_text(run.path / file_name(host) / "page.html", page(report))
        return report

    @staticmethod
    def _show(
        run: Run, reports: list[dict[str, Any]], missing: dict[str, str], document: dict[str, Any]
    ) -> None:
        saved = run.shown
        run.display.display("")
        if len(reports) + len(missing) > 1:
            run.display.display(fleet_screen(document, reports, missing))
        wanted = reports if len(reports) == 1 else [r for r in reports if state(r) != "HEALTHY"]
        alike: dict[tuple[str, str], dict[str, Any]] = {}  # one screen for all that it is the same for
        for report in wanted:
            # What was not read differs from host to host.
            own = report["host"] if report["cause"] == "unknown" else report["cause"]
            alike.setdefault((state(report), own), report)
        shown = list(alike.values())[:MOST_SCREENS]
        for report in shown:
            run.display.display(coloured(screen(report, saved), state(report)))
        if len(wanted) > len(shown):
            words = "like these" if len(shown) == len(alike) else "not all of them like these"
            more = f"{len(wanted) - len(shown)} more, {words}"
            run.display.display(f"{more}: runbook show {saved}/hosts/HOST.json\n")
        if len(reports) + len(missing) == 1:
            for host, why in missing.items():
                run.display.display(f"{host}   NOT REACHED   {why}; nothing is known about it\n")

"""Every fault in every app, made by one process and diagnosed by another: the matrix fault x cause.

    scripts/incidents                       three rounds of all single faults, in an order that the seed decides
    scripts/incidents --only black_hole     one fault; --app guide: in one app
    scripts/incidents --pairs               and, in the first round, two faults at once
    scripts/incidents --sample 600          one round: the reference app whole, of the others and of the pairs as
                                            many as fit into so many seconds, other ones with another seed
    scripts/incidents --pairs --lacking     what no earlier run has kept often enough
    scripts/incidents --record              write tests/evidence/CAUSE.json of what was decided right
    scripts/incidents --check               judge the kept evidence again; no root, no lab, no PostgreSQL

What came of it is added to bench/results/incidents.json, and the evidence to incidents.jsonl.xz beside it; of
each fault in each app the newest three rounds stay. A sample adds nothing. Ends non-zero when a verdict is
wrong, a restart was wrong or missed, or too few are decided. Needs root: each app gets a lab in a network,
process and IPC namespace of its own, where packets may be dropped and nothing is left behind.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from runbook.common import documents
from runbook.verdict.causes import CAUSES
from runbook.verdict.judge import judge
from tests.lab.faults import FAULTS, LabError
from tests.lab.faults.table import HIDDEN, MADE_LAST, PAIRS
from tests.lab.lab import ALONE, PACKAGES, ROOT, Lab

RESULTS = ROOT / "bench/results/incidents.json"
EVIDENCE = RESULTS.with_name("incidents.jsonl.xz")
RECORDED = ROOT / "tests/evidence"
OPEN = ROOT / "reports/incidents"  # the evidence of what is wrong or not decided, for `runbook explain`
# What knows us has to be decided always; of the foreign apps this share, and the rest never wrong.
OWN_APPS = ("reference",)
FOREIGN_SHARE = 0.8
# How a view that was not read says which causes it would decide. One that is no reason for a login to fail is not
# among them: it gives way to whatever is open above it.
DECIDES = "; it would decide "
GIVE_WAY = {"unknown", *(cause.id for cause in CAUSES if not cause.ends_logins)}
ROUNDS = 3  # of every single fault in every app; of a pair one will do
# What faults are made with, and the Debian package of each.
PROGRAMS = {"unshare": "util-linux", "ip": "iproute2", "nft": "nftables", "pgbouncer": "pgbouncer"}
BATCH = 15  # incidents in a row in one lab: its start (5 to 10 s) is little beside them
INCIDENT_SECONDS = 180  # one that takes longer is ended, and counts as wrong
UNSHARE = ("unshare", "--net", "--uts", "--ipc", "--pid", "--mount-proc", "--fork", "--kill-child")

Row = dict[str, Any]


class Case(NamedTuple):
    """One incident to be: faults (two for a pair) in an app."""

    round: int
    faults: tuple[str, ...]
    app: str

    @property
    def fault(self) -> str:
        """As the rows of the results name it."""
        return "+".join(self.faults)

    @property
    def as_made(self) -> list[str]:
        """The faults in the order in which they are made: the cause last, but for what has to come after it."""
        first, *others = self.faults
        return sorted([*others, first], key=MADE_LAST.__contains__)

    def __str__(self) -> str:
        return f"{self.fault} in {self.app}"


def cases(only: list[str], apps: list[str], rounds: int, pairs: bool) -> list[Case]:
    """All there are, round by round; the pairs in the first. Raises LabError for names that are not known."""
    for given, known, what in ((only, FAULTS, "fault"), (apps, PACKAGES, "app")):
        for name in given:
            if name not in known:
                raise LabError(f"no {what} {name!r}; there are: {', '.join(known)}")
    single: list[tuple[str, ...]] = [(name,) for name in FAULTS]
    return [
        Case(turn, faults, app)
        for turn in range(1, rounds + 1)
        for faults in single + (PAIRS if pairs and turn == 1 else [])
        for app in PACKAGES
        if (not only or set(only) & set(faults))
        and (not apps or app in apps)
        and all(not FAULTS[name].apps or app in FAULTS[name].apps for name in faults)
    ]


def batches(wanted: list[Case]) -> list[list[Case]]:
    """The cases in batches of one app each, for one lab after the other; in the order they are given in."""
    made: list[list[Case]] = []
    filling: dict[str, list[Case]] = {}
    for case in wanted:
        batch = filling.get(case.app)
        if batch is None or len(batch) == BATCH:
            batch = filling[case.app] = []
            made.append(batch)
        batch.append(case)
    return made


# -- one incident: inside the namespace --------------------------------------------------------------------


def identities(lab: Lab) -> list[list[int]]:
    """[pid, start time in ticks] of every process of the app."""
    found = []
    for pid in sorted(lab.app_pids()):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:  # ended meanwhile
            continue
        found.append([pid, int(stat.rpartition(")")[2].split()[19])])
    return found


def incident(lab: Lab, case: Case, place: Path) -> tuple[Row, str]:
    """Heal, break, diagnose; the row of the results without seed and commit, and the evidence's text.

    The diagnosis is told nothing but the inventory. Raises LabError when the fault could not be made.
    """
    shutil.rmtree(lab.directory / "state", ignore_errors=True)  # the cool-down of the last one is over
    lab.heal()
    began = time.monotonic()
    for name in case.as_made:
        made = subprocess.run(
            [sys.executable, ROOT / "scripts/lab", "--directory", lab.home, "break", name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INCIDENT_SECONDS,
            check=False,
        )
        if made.returncode:
            raise LabError(f"{name} was not made: {made.stderr.strip()[-2000:]}")
    before, broken = identities(lab), time.monotonic()
    reports = place / "reports"
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", lab.inventory, "diagnose.yml"]
    done = subprocess.run(
        [*command, "-e", json.dumps({"diagnose_reports": str(reports)})],
        cwd=ROOT,
        env={
            **{
                name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "LAB_"))
            },
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "HOME": str(place),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=INCIDENT_SECONDS,
        check=False,
    )
    seconds = round(time.monotonic() - broken, 2)
    after = identities(lab)
    run = reports / "latest"
    try:
        report = json.loads((run / "hosts/web-1.json").read_text())
        evidence = {
            "schema": "runbook/incident/1",
            "host": json.loads((run / "evidence/web-1.json").read_text()),
            "database": _load(run / "databases/main.json"),
        }
    except OSError as error:
        raise LabError(f"no report: {error}\n{done.stdout[-2000:]}{done.stderr[-600:]}") from error
    shutil.rmtree(reports)
    text = neutral(json.dumps(evidence, ensure_ascii=False, separators=(",", ":")), lab)
    row = {
        "fault": case.fault,
        "app": case.app,
        "cause": report["cause"],
        "confidence": report["confidence"],
        "contributing": report["contributing"],
        "unread": [one["text"] for one in report["unread"] if DECIDES in one["text"]],
        "outcome": report["outcome"],
        "restarted": _restarted(before, after),
        "login_after": lab.login() == 200,
        "seconds": seconds,
        "seconds_to_break": round(broken - began, 2),
        "evidence_sha256": hashed(text),
        "processes_before": before,
        "processes_after": after,
    }
    return row, text


def _load(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def neutral(text: str, lab: Lab) -> str:
    """The evidence without the places of this machine."""
    for place, word in ((lab.directory, "/srv/odras"), (ROOT, "/srv/runbook"), (Path(sys.prefix), "/usr")):
        text = text.replace(str(place), word)
    return text


def _restarted(before: list[list[int]], after: list[list[int]]) -> str:
    """A service was restarted when none of its processes is the same; a master may replace a worker by itself."""
    if not before:
        return "start" if after else "none"
    if not after:
        return "stop"
    return "none" if any(one in after for one in before) else "restart"


def work(app: str, home: Path) -> int:
    """A lab of this app; for every case that comes in on a line, a row goes out on one."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)
    hosts = home / "hosts"  # over this machine's own, which nobody else sees
    hosts.write_text("127.0.0.1 localhost\n")
    subprocess.run(["hostname", "web-1"], check=True, timeout=10)
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True, timeout=10)
    try:
        with Lab(home / "lab", app) as lab:
            print(json.dumps({"up": True}), flush=True)
            for line in sys.stdin:
                turn, faults, name = json.loads(line)
                try:
                    row, text = incident(lab, Case(turn, tuple(faults), name), home)
                    answer: Row = {"row": row, "evidence": text}
                except (LabError, OSError, RuntimeError, subprocess.SubprocessError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                print(json.dumps(answer), flush=True)
    except (LabError, RuntimeError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
    return 0


def as_init(app: str, home: Path) -> int:
    """Be process 1 of the namespace, which has to take leave of every orphan, and let a child work."""
    child = os.fork()
    if child == 0:
        return work(app, home)
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


# -- all of them: outside ----------------------------------------------------------------------------------


class Worker:
    """One app's lab in its own namespace, as a process that is given cases one by one."""

    def __init__(self, app: str) -> None:
        self.app = app
        self.home = Path(tempfile.mkdtemp(prefix="incidents-"))
        program = [sys.executable, str(ROOT / "scripts/incidents"), "--work", app, str(self.home)]
        self._process = subprocess.Popen(
            [*UNSHARE, *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, ALONE: "1"},
        )
        answer = self._answer()
        if "up" not in answer:
            self.end()
            raise LabError(f"the lab of {app} did not come up: {answer.get('error')}")

    def run(self, case: Case) -> Row:
        """{"row", "evidence"}, or {"error"} when nothing came of it."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(case) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"error": "the lab's process is gone", "gone": True}
        return self._answer()

    def _answer(self) -> Row:
        assert self._process.stdout
        timer = threading.Timer(2 * INCIDENT_SECONDS, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        answer: Row = json.loads(line) if line else {"error": "the lab's process ended", "gone": True}
        return answer

    def end(self) -> None:
        """End the namespace with all that is in it, and remove what it left on disk."""
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()  # and with it, by --kill-child, the namespace
            self._process.wait()
        state = self.home / "lab/state.json"
        if state.exists():  # it was killed: nothing runs any more, but its directory is there
            shutil.rmtree(json.loads(state.read_text())["directory"], ignore_errors=True)
        shutil.rmtree(self.home, ignore_errors=True)


class Harness:
    """Hands the cases to the apps' labs, some of them at a time, and keeps what comes back."""

    def __init__(self, seed: int, until: float) -> None:
        self.seed, self.until = seed, until
        self.rows: list[Row] = []
        self.evidence: dict[str, str] = {}
        self.errors: list[str] = []
        self.not_run: list[Case] = []
        self.interrupted = False
        self._lock = threading.Lock()
        self.commit = _commit()

    def run(self, wanted: list[Case], jobs: int) -> None:
        """All the cases, in batches of one app each; what the time does not allow is in `not_run`."""
        waiting = iter(batches(wanted))
        threads = [threading.Thread(target=self._batches, args=(waiting,)) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _batches(self, waiting: Iterator[list[Case]]) -> None:
        while True:
            with self._lock:
                batch = next(waiting, None)
            if batch is None:
                return
            self._batch(batch)

    def left_out(self, case: Case) -> bool:
        """Whether there is no time for it any more."""
        return self.interrupted or (time.monotonic() > self.until and not always(case))

    def _batch(self, batch: list[Case]) -> None:
        worker = None
        try:
            for place, case in enumerate(batch):
                if self.left_out(case):
                    self.not_run += batch[place:]
                    return
                worker = worker or Worker(case.app)
                answer = worker.run(case)
                if "row" not in answer and not answer.get("gone"):
                    print(f"again     {case}: {answer['error']}", flush=True)
                    answer = worker.run(case)
                self._keep(case, answer)
                if answer.get("gone"):
                    worker.end()
                    worker = None
        except LabError as error:
            self.errors.append(str(error))
            self.not_run += batch[place:]
        finally:
            if worker:
                worker.end()

    def told(self) -> tuple[str, bool]:
        """What came of it, in words; whether all is well. What a sample has no time for may be left out."""
        words, well = summary(self.rows)
        lines = [words]
        if self.not_run:
            lines.append(f"not run, {len(self.not_run)}: {', '.join(sorted(map(str, self.not_run)))}")
        lines += [f"not made: {error}" for error in self.errors]
        missed = any(map(always, self.not_run))
        return "\n".join(lines), bool(self.rows) and well and not self.errors and not missed

    def _keep(self, case: Case, answer: Row) -> None:
        with self._lock:
            if "row" not in answer:
                self.errors.append(f"{case}: {answer['error']}")
                print(f"NOT MADE  {case}: {answer['error']}", flush=True)
                return
            row = {**answer["row"], "round": case.round, "seed": self.seed, "commit": self.commit}
            self.rows.append(row)
            self.evidence[row["evidence_sha256"]] = answer["evidence"]
            print(told(row), flush=True)
            if trouble(row) or row["confidence"] != "decided":
                name = f"{row['fault']}-{row['app']}.json"
                print(f"        runbook explain {OPEN.relative_to(ROOT) / name}", flush=True)
                documents.write_text(OPEN / name, answer["evidence"])


def _commit() -> str:
    """What was tried: the commit, and whether anything but the results of earlier runs is changed."""
    words = []
    for told in (["describe", "--always"], ["status", "--porcelain", "--", ".", ":!bench/results"]):
        done = subprocess.run(
            ["git", "-C", ROOT, *told], capture_output=True, text=True, check=False, timeout=10
        )
        words.append(done.stdout.strip())
    return f"{words[0]}-dirty" if words[1] else words[0]


def told(row: Row) -> str:
    """One line on one incident."""
    wrong = trouble(row)
    words = f"{row['cause']} ({row['confidence']}), {row['restarted']}, login {row['login_after']}"
    return (
        f"{'WRONG ' if wrong else 'ok    '} {row['seconds']:5.1f} s  {row['app']:<10} {row['fault']:<30}"
        f" {words}{f'  <- {wrong}' if wrong else ''}"
    )


def wanted_of(row: Row) -> tuple[str, str]:
    """(cause, restart): of a pair those of the first, which has the higher rank."""
    return FAULTS[row["fault"].partition("+")[0]].wanted(row["app"])


def trouble(row: Row) -> str:
    """What is wrong with a row; empty when nothing is. Not decided is wrong for our own apps only."""
    cause, restart = wanted_of(row)
    if row["restarted"] != restart:
        return f"{row['restarted']} where {restart} was wanted"
    if restart != "none" and not row["login_after"]:
        return "the login fails after it"
    if row["outcome"] in ("healthy", "restored") and not row["login_after"]:
        return f"{row['outcome']}, and the login fails"
    if row["confidence"] != "unknown" and row["cause"] != cause:
        return f"wanted {cause}"
    if row["app"] in OWN_APPS and row["confidence"] != "decided" and cause != "unknown":
        return f"wanted {cause}, decided"
    if row["confidence"] != "decided" and not row["unread"]:
        return f"{row['confidence']}, and no view is named"
    named = {one for text in row["unread"] for one in text.partition(DECIDES)[2].split(", ")}
    if row["confidence"] == "unknown" and cause not in named | GIVE_WAY:
        return f"{row['confidence']}, and no view is named that would decide {cause}"
    return _lost(row)


def _lost(row: Row) -> str:
    """The other fault of a pair, where it is there still and can be read beside the cause, and was not told."""
    faults = tuple(row["fault"].split("+"))
    for name in set(faults[1:]) & set(MADE_LAST) if faults not in HIDDEN else ():
        beside = FAULTS[name].wanted(row["app"])[0]
        if beside not in row["contributing"]:
            return f"{beside} is not told beside it"
    return ""


def summary(rows: list[Row]) -> tuple[str, bool]:
    """The matrix fault x cause, and what is wrong with it; whether all is well."""
    lines = []
    for fault in dict.fromkeys(row["fault"] for row in sorted(rows, key=_rank)):
        here = [row for row in rows if row["fault"] == fault]
        causes = sorted({(row["cause"], row["confidence"]) for row in here})
        cells = [
            f"{cause}{'' if confidence == 'decided' else f' ({confidence})'}"
            f" {sum((row['cause'], row['confidence']) == (cause, confidence) for row in here)}"
            for cause, confidence in causes
        ]
        lines.append(f"  {fault:<38} {', '.join(cells)}{'   <- WRONG' if any(map(trouble, here)) else ''}")
    wrong_restarts = [r for r in rows if r["restarted"] not in ("none", wanted_of(r)[1])]
    missed = [r for r in rows if r["restarted"] == "none" != wanted_of(r)[1]]
    wrong = [row for row in rows if trouble(row)]
    foreign = [row for row in rows if row["app"] not in OWN_APPS and wanted_of(row)[0] != "unknown"]
    right = [r for r in foreign if r["cause"] == wanted_of(r)[0] and r["confidence"] == "decided"]
    enough = len(right) >= FOREIGN_SHARE * len(foreign)
    seconds = sorted(row["seconds"] for row in rows)
    middle = f", {seconds[len(seconds) // 2]:.1f} s in the middle" if rows else ""
    share = f"{len(right)} of {len(foreign)} decided in foreign apps" if foreign else "no foreign app"
    lines.append(
        f"{len(rows)} incidents{middle}: {len(wrong)} wrong; wrong restarts {len(wrong_restarts)},"
        f" missed restarts {len(missed)}; {share}{'' if enough else ', too few'}"
    )
    return "\n".join(lines), not wrong and enough


def _rank(row: Row) -> int:
    return list(FAULTS).index(row["fault"].partition("+")[0])


def hashed(text: str) -> str:
    """The name of an evidence in the rows: its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()


def kept() -> tuple[list[Row], dict[str, str]]:
    """(rows, the text of the evidence by its hash) of earlier runs; nothing where there was none."""
    if not RESULTS.exists():
        return [], {}
    with lzma.open(EVIDENCE, "rt", encoding="utf-8") as file:
        texts = [line.rstrip("\n") for line in file]
    return json.loads(RESULTS.read_text()), {
        hashlib.sha256(text.encode()).hexdigest(): text for text in texts
    }


def keep(harness: Harness) -> None:
    """Add this run to what is kept; of each fault in each app that there is the newest rounds stay."""
    rows, texts = kept()
    texts |= harness.evidence
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in (one for one in [*rows, *harness.rows] if one["evidence_sha256"] in texts):
        cells.setdefault((row["fault"], row["app"]), []).append(row)
    times = _rounds()
    rows = [row for cell in sorted(cells.keys() & times) for row in cells[cell][-times[cell] :]]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    lines = dict.fromkeys(texts[row["evidence_sha256"]] + "\n" for row in rows)
    EVIDENCE.write_bytes(lzma.compress("".join(lines).encode()))
    RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def _rounds() -> dict[tuple[str, str], int]:
    """(fault, app) of all that there are → how many rounds of it are kept: of a pair one."""
    all_ = cases([], [], 1, pairs=True)
    return {(case.fault, case.app): 1 if case.faults[1:] else ROUNDS for case in all_}


def record(harness: Harness) -> None:
    """tests/evidence/CAUSE.json of every fault that has the name of its cause, was decided right, and is taken
    as most apps take it."""
    RECORDED.mkdir(exist_ok=True)
    for row in harness.rows:
        fault = FAULTS.get(row["fault"])
        usual = fault and wanted_of(row) == (row["fault"], fault.restart)
        if usual and row["confidence"] == "decided" and not trouble(row):
            document = json.loads(harness.evidence[row["evidence_sha256"]])
            (RECORDED / f"{row['cause']}.json").write_text(documents.text_of(document))


def check() -> int:
    """Judge the kept evidence again: every row must come to what it came to, and none may be missing."""
    rows, texts = kept()
    wrong = [*again(rows, texts), *lacks(rows)]
    words, well = summary(rows)
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    told = f"{len(rows)} judged again: {len(wrong)} differ or are missing ({commits})"
    print("\n".join([words, *wrong, told]))
    return 1 if wrong or not well else 0


def again(rows: list[Row], texts: dict[str, str]) -> list[str]:
    """What is wrong with the rows that are kept, each judged again by its evidence; whatever else is missing."""
    return [words for row in rows for words in differs(row, texts.get(row["evidence_sha256"]))]


def differs(row: Row, text: str | None) -> list[str]:
    """What a row says that its evidence and its processes do not; and what is wrong with what they say."""
    name = f"{row['fault']} in {row['app']}, seed {row['seed']}, round {row['round']}"
    if text is None:
        return [f"{name}: its evidence is not kept"]
    document = json.loads(text)
    verdict = judge(document["host"], document["database"])
    then, now = (row["cause"], row["confidence"]), (verdict.cause, verdict.confidence)
    found = [f"{' '.join(then)} then, {' '.join(now)} now"] if then != now else []
    done = _restarted(row["processes_before"], row["processes_after"])
    if done != row["restarted"]:
        found.append(f"{row['restarted']} it says, {done} by its processes")
    if (done != "none") != (verdict.action in ("start", "restart")):
        found.append(f"done was {done}, and the verdict wants {verdict.action}")
    told = {"contributing": verdict.contributing, "unread": [one.text for one in verdict.unread]}
    wrong = trouble({**row, **told, "cause": now[0], "confidence": now[1], "restarted": done})
    return [f"{name}: {words}" for words in [*found, *([wrong] if wrong else [])]]


def lacks(rows: list[Row]) -> list[str]:
    """Which cases are kept less often than they should be."""
    made = _made(rows)
    return [
        f"{fault} in {app}: {made[fault, app]} of {times} rounds"
        for (fault, app), times in _rounds().items()
        if made[fault, app] < times
    ]


def lacking(wanted: list[Case], rows: list[Row]) -> list[Case]:
    """The cases without the rounds that are kept already."""
    made = _made(rows)
    return [case for case in wanted if case.round > made[case.fault, case.app]]


def _made(rows: list[Row]) -> Counter[tuple[str, str]]:
    return Counter((row["fault"], row["app"]) for row in rows)


def always(case: Case) -> bool:
    """What no sample leaves out: the single faults of our own app."""
    return case.app in OWN_APPS and len(case.faults) == 1


def sampled(wanted: list[Case], seed: int) -> list[Case]:
    """The single faults of our own app first, the rest after them, in the order of the seed."""
    random.Random(seed).shuffle(wanted)
    return sorted(wanted, key=lambda case: not always(case))


def main(arguments: list[str] | None = None) -> int:
    """The command line. 0 all is well; 1 something is wrong; 2 wrong usage; 3 it cannot be done here."""
    if sys.argv[1:2] == ["--work"]:
        return as_init(sys.argv[2], Path(sys.argv[3]))
    parser = argparse.ArgumentParser(
        "scripts/incidents", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], metavar="FAULT")
    parser.add_argument("--app", action="append", default=[], help=", ".join(PACKAGES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=int(time.time()) // 86400, help="default: the day")
    parser.add_argument("--jobs", type=int, default=4, help="labs at a time (4)")
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--lacking", action="store_true")
    parser.add_argument("--sample", type=float, metavar="SECONDS")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    if given.check:
        return check()
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)]
    if os.geteuid() != 0 or missing:
        print(
            "scripts/incidents: needs root, for a network of its own to drop packets in"
            + (f"; and on Debian: apt install {' '.join(missing)}" if missing else "")
            + "; `scripts/incidents --check` needs neither",
            file=sys.stderr,
        )
        return 3
    try:
        rounds = 1 if given.sample else given.rounds
        wanted = cases(given.only, given.app, rounds, given.pairs or bool(given.sample))
    except LabError as error:
        parser.error(str(error))
    if given.lacking:
        wanted = lacking(wanted, kept()[0])
    began = time.monotonic()
    harness = Harness(given.seed, began + (given.sample or float("inf")))

    def stop(*_: object) -> None:
        harness.interrupted = True  # the incident under way ends first, so that nothing is left behind

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    print(f"{len(wanted)} incidents, seed {given.seed}", flush=True)
    harness.run(sampled(wanted, given.seed), given.jobs)
    words, well = harness.told()
    print(f"\n{words}\n{time.monotonic() - began:.0f} s in all, seed {given.seed}")
    if not given.sample:
        keep(harness)
    if given.record:
        record(harness)
    return 0 if well else 1

"""The leak search: a labelled corpus, the door to files, the words, and texts nobody wrote."""

from __future__ import annotations

import ast
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from runbook.evidence.step4_leaks import collect
from runbook.leaks.search import Clock, Finding, Result, search_paths, search_source
from runbook.leaks.text import format_text

CORPUS = Path(__file__).parent / "leak_corpus"
SCHEMAS = Path(__file__).parents[2] / "runbook" / "common" / "schemas"
RULES = {"R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8", "R9"}
LABEL = re.compile(r"# expect: (R\d+)")
LEAK = "def f():\n    conn = pool.getconn()\n    conn.commit()\n"
NO_LEAK = (
    "def f():\n    conn = pool.getconn()\n    try:\n        pass\n    finally:\n        pool.putconn(conn)\n"
)


def labels(path: Path) -> set[tuple[int, str]]:
    lines = path.read_text().splitlines()
    return {(number, match[1]) for number, line in enumerate(lines, 1) if (match := LABEL.search(line))}


def functions(path: Path) -> list[tuple[str, int, int]]:
    """(qualified name, first line, last line) of the functions that are not inside another one."""
    found = []
    tree = ast.parse(path.read_text())
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for one in inner:
            if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found.append((f"{path.name}:{prefix}{one.name}", one.lineno, one.end_lineno or 0))
    return found


FOUND = {
    path: {(finding.line, finding.rule): finding for finding in search_source(path.read_text(), str(path))}
    for path in sorted([*CORPUS.glob("*.py"), *CORPUS.glob("manager/*.py")])
}
CASES = [(path, *function) for path in FOUND for function in functions(path)]


@pytest.mark.parametrize(("path", "name", "first", "last"), CASES, ids=[case[1] for case in CASES])
def test_corpus(path: Path, name: str, first: int, last: int) -> None:
    expected = {label for label in labels(path) if first <= label[0] <= last}
    found = {key: finding.path for key, finding in FOUND[path].items() if first <= key[0] <= last}
    assert set(found) == expected, found


def test_corpus_is_large_and_every_rule_occurs_in_it() -> None:
    every = [label for path in FOUND for label in labels(path)]
    leaky = {
        (path, name) for path, name, first, last in CASES for line, _ in labels(path) if first <= line <= last
    }
    assert {rule for _, rule in every} == RULES
    assert len(leaky) >= 50
    assert len(CASES) - len(leaky) >= 50
    # Nothing is found outside the functions.
    assert sorted(every) == sorted(key for found in FOUND.values() for key in found)


def test_finding_of_the_guides_wrapper() -> None:
    (finding,) = [one for one in FOUND[CORPUS / "guide.py"].values() if one.rule == "R9"]
    assert finding.function == "_conn"
    assert finding.acquire == "self.pool.getconn()"
    assert finding.text.startswith("conn.close()")
    start = ast.parse((CORPUS / "guide.py").read_text()).body[1].body[0].lineno  # type: ignore[attr-defined]
    acquired, raised, caught, closed, dropped = (start + offset for offset in (2, 6, 9, 12, 17))
    assert finding.line == closed
    assert finding.path == (
        f"taken in line {acquired}; line {raised} can raise; caught in line {caught}; closed in line {closed}; "
        f"the dead connection is dropped in line {dropped} and its slot stays taken"
    )
    assert finding.fix == "give the slot back on this way too: self.pool.putconn(conn, close=True)"


@pytest.mark.parametrize(
    ("rule", "path", "fix"),
    [
        ("R1", "taken in line 2; nothing gives it back", "pool.putconn(conn)"),
        ("R2", "taken in line 2; line 3 can raise; the release is not reached", "pool.putconn(conn)"),
        (
            "R3",
            "line 3 can raise; the try in line 4, which would give it back, has not begun",
            "right after line 2",
        ),
        ("R4", "the return in line 4 comes before the release", "pool.putconn(conn)"),
        (
            "R6",
            "`with` over the connection ends its transaction and gives nothing back",
            "pool.putconn(conn)",
        ),
        ("R7", "closed in line 6; it is closed and not given back", "pool.putconn(conn, close=True)"),
        (
            "R8",
            "the condition in line 6 does not hold; the release in line 7 is not reached",
            "unconditional",
        ),
    ],
)
def test_words(rule: str, path: str, fix: str) -> None:
    take, use, give = "def f(ok):\n    conn = pool.getconn()\n", "save(conn)", "pool.putconn(conn)"
    text = {
        "R1": take,
        "R2": f"{take}    {use}\n    {give}\n",
        "R3": f"{take}    begin()\n    try:\n        {use}\n    finally:\n        {give}\n",
        "R4": f"{take}    if ok:\n        return\n    {give}\n",
        "R6": f"def f():\n    with pool.getconn() as conn:\n        {use}\n",
        "R7": f"{take}    try:\n        {use}\n    finally:\n        conn.close()\n",
        "R8": f"{take}    try:\n        {use}\n    finally:\n        if ok:\n            {give}\n",
    }[rule]
    (finding,) = search_source(text, "app.py")
    assert finding.rule == rule
    assert path in finding.path
    assert fix in finding.fix


def test_match() -> None:
    """As text: a file with it is no Python 3.9, which the tools here check against."""
    text = (
        "def f(kind):\n    conn = pool.getconn()\n    match kind:\n"
        "        case 'read' | 'write':\n            pool.putconn(conn)\n"
    )
    (finding,) = search_source(text, "app.py")
    assert finding.rule == "R8"
    assert search_source(text + "        case _:\n            pool.putconn(conn)\n", "app.py") == []


def test_an_error_in_a_script_ends_it_and_leaks_nothing() -> None:
    script = "conn = pool.getconn()\nsave(conn)\n"
    assert search_source(script + "pool.putconn(conn)\n", "app.py") == []
    assert [(one.rule, one.function) for one in search_source(script, "app.py")] == [("R1", "<module>")]


def test_a_pool_to_which_close_gives_back() -> None:
    text = "def f():\n    conn = pool.getconn()\n    try:\n        save(conn)\n    finally:\n        conn.close()\n"
    assert [one.rule for one in search_source(text, "app.py")] == ["R7"]
    assert search_source("pool = ConnectionPool(dsn, close_returns=True)\n" + text, "app.py") == []


# Suppression


def test_a_comment_with_a_reason_suppresses_its_rule_only() -> None:
    def rules(comment: str) -> list[str]:
        return [
            one.rule for one in search_source(LEAK.replace("getconn()", "getconn()  # " + comment), "app.py")
        ]

    assert rules("runbook: ignore[R1] one for the life of the process") == []
    assert rules("runbook: ignore[R2, R1] one for the life of the process") == []
    assert rules("runbook: ignore[R2] one for the life of the process") == ["R1"]
    assert rules("runbook: ignore[R1]") == ["R1"]


def test_a_suppressed_rule_shows_the_next_one() -> None:
    text = (
        "def f(ok):\n    conn = pool.getconn()  # runbook: ignore[R4] ok is always false\n"
        "    if ok:\n        return\n    save(conn)\n    pool.putconn(conn)\n"
    )
    assert [one.rule for one in search_source(text, "app.py")] == ["R2"]


def test_a_comment_without_a_reason_is_told() -> None:
    (finding,) = search_source(LEAK.replace("getconn()", "getconn()  # runbook: ignore[R1]"), "app.py")
    assert "gives no reason, so it suppresses nothing" in finding.path


# Files


def rules_by_file(result: Result, root: Path) -> list[tuple[str, str]]:
    return [(str(Path(one.file).relative_to(root)), one.rule) for one in result.findings]


def test_a_wrapper_is_known_in_other_files() -> None:
    project = CORPUS / "project"
    service = project / "service.py"
    assert search_source(service.read_text(), str(service)) == []
    found = {(one.line, one.rule) for one in search_paths([project]).findings if one.file == str(service)}
    assert found == labels(service) != set()


def test_a_plain_name_means_something_only_in_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def creator():\n    return pool.getconn()\n")
    (tmp_path / "b.py").write_text(
        "def f(creator, pool):\n    pool.getconn_later(creator())\n    x = creator()\n"
    )
    assert search_paths([tmp_path]).findings == []
    (tmp_path / "c.py").write_text("class Db:\n    def connect(self):\n        return self.pool.getconn()\n")
    (tmp_path / "d.py").write_text("def f():\n    conn = psycopg2.connect(dsn)\n    return conn.status\n")
    assert search_paths([tmp_path]).findings == []
    (tmp_path / "e.py").write_text("def f(db):\n    conn = db.connect()\n    return conn.status\n")
    assert rules_by_file(search_paths([tmp_path]), tmp_path) == [("e.py", "R1")]


def test_a_file_that_only_connects_an_engine_is_searched(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def f():\n    conn = get_engine().connect()\n    conn.execute(query)\n")
    assert rules_by_file(search_paths([tmp_path]), tmp_path) == [("app.py", "R1")]


def test_the_corpus_reads_the_same_as_one_project() -> None:
    paths = sorted(CORPUS.glob("*.py"))
    found = {(one.file, one.line, one.rule) for one in search_paths(paths).findings}
    assert found == {(str(path), *label) for path in paths for label in labels(path)}


def test_a_projects_own_definition_outweighs_the_default(tmp_path: Path) -> None:
    (tmp_path / "a_user.py").write_text(
        "def f(store):\n    conn = store._conn()\n    return conn.execute('x').rows\n"
    )
    assert rules_by_file(search_paths([tmp_path]), tmp_path) == [("a_user.py", "R1")]
    (tmp_path / "store.py").write_text(
        "class Store:\n    def _conn(self):\n        return sqlite3.connect(self.path)\n"
    )
    assert rules_by_file(search_paths([tmp_path]), tmp_path) == []


def test_what_is_left_out(tmp_path: Path) -> None:
    left_out = ["site-packages", "node_modules", ".hidden", "__pycache__", "venv", "other"]
    for name in [*left_out, "app"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "leak.py").write_text(LEAK)
    (tmp_path / "other" / "pyvenv.cfg").write_text("home = /usr\n")
    (tmp_path / "notes.txt").write_text(LEAK)
    (tmp_path / "large.py").write_text(LEAK + "#" * 1024 * 1024)
    result = search_paths([tmp_path])
    assert rules_by_file(result, tmp_path) == [("app/leak.py", "R1")]
    assert (result.files, result.complete, result.unread) == (1, True, [])
    # Named, it is searched.
    named = tmp_path / "site-packages"
    assert rules_by_file(search_paths([named]), tmp_path) == [("site-packages/leak.py", "R1")]
    assert rules_by_file(search_paths([tmp_path / "notes.txt"]), tmp_path) == [("notes.txt", "R1")]


def test_links_and_devices_do_not_hold_it_up(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(LEAK)
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self.py").symlink_to("self.py")
    os.link(tmp_path / "app.py", tmp_path / "twin.py")
    os.mkfifo(tmp_path / "pipe.py")
    result = search_paths([tmp_path, tmp_path / "app.py"])
    assert rules_by_file(result, tmp_path) == [("app.py", "R1")]
    assert [Path(one.file).name for one in result.unread] == ["self.py"]


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n    pool.getconn()\n")
    (tmp_path / "bytes.py").write_bytes(b"pool.getconn()  # \xff\n")
    (tmp_path / "null.py").write_bytes(b"pool.getconn()\0\n")
    (tmp_path / "encoding.py").write_bytes(b"# coding: klingon\npool.getconn()\n")
    (tmp_path / "deep.py").write_text("pool.getconn()" + ".a" * 20_000)
    (tmp_path / "latin.py").write_bytes("# coding: latin-1\n# é\n".encode("latin-1") + LEAK.encode())
    (tmp_path / "mark.py").write_bytes(b"\xef\xbb\xbf" + LEAK.encode())
    result = search_paths([tmp_path, tmp_path / "absent"])
    assert rules_by_file(result, tmp_path) == [("latin.py", "R1"), ("mark.py", "R1")]
    reasons = {Path(one.file).name: one.reason for one in result.unread}
    assert reasons.keys() == {"broken.py", "bytes.py", "null.py", "encoding.py", "deep.py", "absent"}
    assert reasons["broken.py"].startswith("line 1: ")
    assert reasons["deep.py"] == "nested too deeply"
    assert reasons["absent"] == "No such file or directory"
    assert result.complete


def test_a_broken_file_that_names_no_acquire_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    assert search_paths([tmp_path]).unread == []


def test_a_function_too_large_to_follow_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app.py").write_text(NO_LEAK)
    assert search_paths([tmp_path]).unread == []
    monkeypatch.setattr("runbook.leaks.flow.BUDGET", 2)
    result = search_paths([tmp_path])
    assert [one.reason for one in result.unread] == ["line 2, f: too many paths to follow"]


def test_branches_do_not_multiply() -> None:
    """Only conditions about acquire or release are remembered: 60 others make one state, not 2 ** 60."""
    branches = "".join(f"    if a{number}:\n        b{number} = save(c)\n" for number in range(60))
    text = f"def f():\n    conn = pool.getconn()\n{branches}    pool.putconn(conn)\n"
    assert [one.rule for one in search_source(text, "app.py")] == ["R2"]


def test_first_files_are_searched_first(tmp_path: Path) -> None:
    (tmp_path / "backend").mkdir()
    for name in ("a.py", "b.py", "z.py"):
        (tmp_path / "backend" / name).write_text(LEAK)
    root = tmp_path / "backend"
    for first in ("z.py", "backend/z.py", str(root / "z.py")):
        result = search_paths([root], first=[first], max_files=1)
        assert rules_by_file(result, root) == [("z.py", "R1")]
        assert (result.files, result.complete) == (1, False)
    assert search_paths([root], first=["nowhere.py"], max_files=3).complete


def test_first_files_are_searched_where_the_tree_is_endless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(root: Path, clock: Clock, unread: list[object]) -> Iterator[Path]:
        while True:
            clock.check()
            yield root / "nothing.txt"

    (tmp_path / "app.py").write_text(LEAK)
    monkeypatch.setattr("runbook.leaks.search._below", endless)
    result = search_paths([tmp_path], first=["app.py"], deadline=time.monotonic() + 3)
    assert rules_by_file(result, tmp_path) == [("app.py", "R1")]
    assert not result.complete


def test_findings_are_sorted(tmp_path: Path) -> None:
    for name in ("b.py", "a.py"):
        (tmp_path / name).write_text(LEAK + LEAK)
    found = search_paths([tmp_path], first=["b.py"]).findings
    places = [(Path(one.file).name, one.line) for one in found]
    assert places == [("a.py", 2), ("a.py", 5), ("b.py", 2), ("b.py", 5)]


def test_a_large_tree_ends_near_the_deadline(tmp_path: Path) -> None:
    one = "".join(LEAK.replace("def f", f"def f{number}") for number in range(400))
    for number in range(60):
        (tmp_path / f"m{number}.py").write_text(one)
    for allowed in (1.0, 4.0, 16.0):  # a busy machine may not come through one file in a second
        started = time.monotonic()
        result = search_paths([tmp_path], deadline=started + allowed)
        seconds = time.monotonic() - started
        if result.findings:
            break
    assert not result.complete
    assert 0 < result.files < 60
    assert result.findings
    assert seconds < 2.5 * allowed
    passed = search_paths([tmp_path], deadline=started)
    assert (passed.files, passed.complete) == (0, False)


# Evidence and text


def source_schema() -> dict[str, object]:
    schema = json.loads((SCHEMAS / "host-evidence.schema.json").read_text())
    view = schema["properties"]["views"]["properties"]["source"]["properties"]["data"]
    return {**view, "$defs": schema["$defs"]}


def test_evidence_fits_its_schema() -> None:
    data = collect([str(CORPUS)], 60)
    Draft202012Validator(source_schema()).validate(data)
    assert data["roots"] == [str(CORPUS)]
    assert data["files"] == len(list(CORPUS.rglob("*.py")))
    assert data["complete"]
    assert {finding["rule"] for finding in data["findings"]} == RULES


def test_evidence_is_not_complete_where_something_was_not_read(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(NO_LEAK)
    assert collect([str(tmp_path)], 60)["complete"]
    (tmp_path / "broken.py").write_text("pool.getconn(\n")
    assert not collect([str(tmp_path)], 60)["complete"]
    assert not collect([str(tmp_path / "absent")], 60)["complete"]
    assert not collect([str(tmp_path)], 0)["complete"]


def test_no_literal_of_the_source_is_shown(tmp_path: Path) -> None:
    secret = "S3cr3t-in-the-source"
    (tmp_path / "app.py").write_text(
        f"def f():\n    conn = make('{secret}').getconn('{secret}'); x = \"{secret}\"\n    save(conn, '{secret}')\n"
        f"def g():\n    conn = pool.getconn()\n    ctx['{secret}'] = conn\n    if conn.name == '{secret}':\n        return\n"
    )
    result = search_paths([tmp_path])
    assert len(result.findings) == 1
    (tmp_path / "long.py").write_text(f'def f():\n    conn = pool.getconn("""{secret}\n""")\n')
    result = search_paths([tmp_path])
    assert len(result.findings) == 2
    assert secret not in repr(result) + format_text(result) + json.dumps(collect([str(tmp_path)], 60))


def test_text() -> None:
    result = Result(
        files=41,
        complete=True,
        findings=[
            Finding(
                file="backend/services/db.py",
                line=58,
                rule="R9",
                function="_conn",
                acquire="self.pool.getconn()",
                path="taken in line 46; line 52 can raise; caught in line 55; closed in line 58; the dead "
                "connection is dropped in line 65 and its slot stays taken",
                fix="give the slot back on this way too: self.pool.putconn(conn, close=True)",
                text="conn.close()",
            )
        ],
        unread=[],
    )
    assert format_text(result) == (
        "R9 backend/services/db.py:58 in _conn\n"
        "        conn.close()\n"
        "    way  taken in line 46; line 52 can raise; caught in line 55; closed in line 58; the dead\n"
        "         connection is dropped in line 65 and its slot stays taken\n"
        "    fix  give the slot back on this way too: self.pool.putconn(conn, close=True)\n"
        "\n"
        "1 finding (R9 1) in 41 files; complete\n"
    )


def test_text_says_what_was_not_searched(tmp_path: Path) -> None:
    (tmp_path / "broken\x1b[2J.py").write_text("pool.getconn(\n")
    (tmp_path / "more.py").write_text(LEAK)
    text = format_text(search_paths([tmp_path], max_files=1))
    assert "\x1b" not in text
    assert "not read" in text
    last = "0 findings in 1 file, 1 not read; NOT complete: the deadline or the bound on files came first"
    assert text.splitlines()[-1] == last


def test_text_of_the_corpus_is_at_most_100_columns_wide() -> None:
    lines = format_text(search_paths([CORPUS])).splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("R") for line in lines)


# Texts nobody wrote

LINES = st.sampled_from(
    [
        "conn = pool.getconn()",
        "conn = given or pool.getconn()",
        "conn = pool.getconn() if own else None",
        "conns.append(pool.getconn())",
        "conns = [pool.getconn() for _ in x]",
        "self.conn = pool.getconn()",
        "held['a'] = pool.getconn()",
        "conn = await pool.getconn()",
        "conn = engine.connect().execution_options(a=1)",
        "conn = asyncio.to_thread(pool.getconn)",
        "a, (b, *c) = conn, conns",
        "del conn, x[0], y.z",
        "conn += 1",
        "conn: int",
        "own = conn is None and not x",
        "cur = conn.cursor()",
        "cur.close()",
        "conn.close()",
        "conn.autocommit = True",
        "conn.rollback()",
        "save(conn)",
        "give(conn)",
        "pool.putconn(conn)",
        "pool.putconn(cur.connection, close=True)",
        "[pool.putconn(c) for c in conns]",
        "stack.callback(pool.putconn, conn)",
        "done = lambda: pool.putconn(conn)",
        "done()",
        "global conn",
        "return conn",
        "return",
        "return Session(conn)",
        "yield conn",
        "raise",
        "raise X(conn) from e",
        "break",
        "continue",
        "assert conn",
        "sys.exit()",
        "import x",
        "pass",
    ]
)
HEADS = st.sampled_from(
    [
        ["if conn:"],
        ["if (conn := pool.getconn()) is None:", "elif x or conn.closed:", "else:"],
        ["while True:"],
        ["while not own:", "else:"],
        ["for conn in conns:", "else:"],
        ["async for row in cur:"],
        ["try:", "finally:"],
        ["try:", "except Exception as e:", "else:", "finally:"],
        ["try:", "except (A, psycopg2.Error):"],
        ["try:", "except* ValueError:"],
        ["with pool.getconn() as conn, conn.cursor() as cur:"],
        ["with closing(conn) as c:"],
        ["with suppress(X), helper(conn):"],
        ["async with conn:"],
        ["def give(conn=None, *a, **k):"],
        ["async def inner():"],
        ["class C:"],
        ["@contextmanager\ndef m():"],
    ]
)


def indented(lines: list[str]) -> list[str]:
    return [f"    {part}" for line in lines for part in line.splitlines()]


BLOCKS = st.recursive(
    st.lists(LINES, min_size=1, max_size=4),
    lambda inner: st.lists(
        st.tuples(HEADS, st.lists(inner, min_size=4, max_size=4)).map(
            lambda pair: [line for head, body in zip(*pair) for line in [head, *indented(body)]]
        )
        | inner,
        min_size=1,
        max_size=4,
    ).map(lambda parts: [line for part in parts for line in part]),
    max_leaves=12,
)


def check_any(text: str) -> None:
    found = search_source(text, "any.py")
    assert found == search_source(text, "any.py") == sorted(found)
    count = len(re.split(r"\r\n|\r|\n", text))
    assert all(1 <= one.line <= count and one.rule in RULES and one.path and one.fix for one in found)
    format_text(Result(1, True, found, []))


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
@settings(deadline=None)
def test_no_text_raises(text: str) -> None:
    check_any(text)
    check_any(LEAK + text)


@given(BLOCKS)
@settings(deadline=None, max_examples=150)
def test_no_program_raises(lines: list[str]) -> None:
    text = "\n".join(["async def f(given, held, conns=()):", *indented(lines)])
    compile(text, "any.py", "exec", ast.PyCF_ONLY_AST)  # the programs are programs
    check_any(text)
    check_any("\n".join(lines))

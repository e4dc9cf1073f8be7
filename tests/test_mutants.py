"""The tool that breaks guards: it breaks what it says, and a guard that nobody misses is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .mutants import (
    ROOT,
    Edit,
    Finding,
    Guard,
    MisfitError,
    broken,
    guards_of,
    idle_names,
    replaced,
    row_of,
    rows_of,
)

pytestmark = pytest.mark.unmeasured

TEXT = "def f():\n    if a:\n        b()\n    return 1\n\n\ndef g():\n    return 2\n"


def test_lines_are_replaced_at_whatever_depth() -> None:
    assert replaced(TEXT, ["if a:", "    b()"], ["if c:", "    d()", "e()"]) == TEXT.replace(
        "    if a:\n        b()\n", "    if c:\n        d()\n    e()\n"
    )
    commented = TEXT.replace("return 2", "return 2  # the best")
    assert replaced(commented, ["return 2"], ["return 3"]) == TEXT.replace("return 2", "return 3")
    deeper = replaced(TEXT, ["        return 2"], ["        x = 3", "        return x"])
    assert deeper.endswith("def g():\n    x = 3\n    return x\n")
    assert replaced(TEXT, ["def g():", "    return 2"], []) == TEXT.partition("def g")[0]


@pytest.mark.parametrize("before", [["return 3"], ["b()", "return 1"], [""]])
def test_lines_that_do_not_stand_there_once_are_told(before: list[str]) -> None:
    with pytest.raises(MisfitError, match="times"):
        replaced(TEXT, before, ["pass"])


def test_what_is_broken_is_still_python() -> None:
    line = "from __future__ import annotations"
    edit = Edit("mongosession_wsgi/times.py", [line], [line.replace(" annotations", "")])
    with pytest.raises(SyntaxError):
        broken(Guard("a", "b", [], [edit]))


def test_a_row_is_meant_by_its_first_words() -> None:
    rows: dict[str, list[str]] = {"7.4.1": [], "a guess": [], "a guest": []}
    assert row_of("7.4.1", rows) == "7.4.1"
    assert row_of("a guess", rows) == "a guess"
    for key in ("a gue", "7.4.2"):
        with pytest.raises(MisfitError, match="rows"):
            row_of(key, rows)


def test_a_line_that_is_none_of_a_guard_is_told(tmp_path: Path) -> None:
    table = tmp_path / "table.diff"
    table.write_text("=== a\nhow: b\nrows: c\n@@ d.py\n-e\n+f\n\nno line\n")
    with pytest.raises(MisfitError, match="no line"):
        guards_of(table)
    table.write_text("# Title\n\n=== a\nhow: b\nrows: c; d\n@@ e.py\n f\n-g\n+h\n@@\n-i\n")
    (guard,) = guards_of(table)
    assert guard == Guard(
        "a",
        "b",
        ["c", "d"],
        [Edit("e.py", ["f", "g"], ["f", "h"]), Edit("e.py", ["i"], [])],
    )


def test_what_the_page_names_for_nothing_is_told() -> None:
    rows = {"1": ["a::b", "a::c"], "2": ["a::b"], "3": []}
    found = Finding(Guard("x", "y", [], []), ["1"], ["a::b"])
    assert found.verdict == "a::b"
    assert idle_names([found], rows) == [
        "1: a::c notices nothing",
        "2: none of its guards is broken here",
    ]
    assert Finding(Guard("x", "y", [], []), ["1"]).verdict == "NOBODY"
    assert all(rows_of().values()) is False


@pytest.mark.server
def test_a_guard_is_broken_and_a_test_notices() -> None:
    command = [sys.executable, "-m", "tests.mutants", "--only", "the cookie is HttpOnly", "--json"]
    done = subprocess.run(
        [*command, "--jobs", "1"], cwd=ROOT, capture_output=True, text=True, timeout=110
    )
    (found,) = json.loads(done.stdout)["guards"]
    assert "test_cookie.py::test_the_set_cookie_header" in found["noticed_by"]
    assert (done.returncode, found["error"]) == (0, None)
    assert "httponly=False" not in (ROOT / "mongosession_wsgi" / "cookie.py").read_text()

"""Break each guard behind docs/security.md, and see which test of its row notices.

`make mutants`, or `python -m tests.mutants [--jobs N] [--only WORDS] [--json]`. The guards, and how
each is broken, stand in `tests/mutants.diff`. Each is broken in a copy of the project, where the
tests run that the rows of the page name, and no others. The exit code is 1 if

- a guard was broken and no test noticed: a survivor;
- a row of the page names tests, and none of its guards is broken here;
- a row names a test that noticed nothing when the guards of that row were broken.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from textwrap import dedent
from typing import NamedTuple

from mongosession_wsgi.embedded import EmbeddedServer

from . import tool

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "security.md"
TABLE = ROOT / "tests" / "mutants.diff"
COPIED = ("mongosession_wsgi", "tests", "examples", "docs", "setup.cfg", "README.md", "SECURITY.md")
LONGEST_RUN = 300
"""The seconds after which a run of tests is ended, and counts as an error."""
LIBRARIES = (
    "bottle click falcon.testing flask flask_wtf greenlet hypothesis.strategies pymongo.encryption "
    "cryptography.hazmat.primitives.ciphers.aead cryptography.hazmat.primitives.kdf.hkdf webtest "
    "opentelemetry.instrumentation.pymongo opentelemetry.sdk.trace pyramid.config pyramid.scripting"
    " rich selenium.webdriver werkzeug.test yaml"
)
"""What takes the tests longest to import."""

_NAMED = re.compile(r"`((?:frameworks/)?test_\w+\.py)::(test_\w+)`")
_HEADS = ("| id |", "| what is ", "| who has ", "|---", "| | ")


class MisfitError(Exception):
    """A guard is not where it is said to be, or a row is not on the page."""


class Edit(NamedTuple):
    """Lines of a file, and the lines in their place."""

    path: str
    before: list[str]
    after: list[str]


class Guard(NamedTuple):
    """A guard, how it is broken, and the rows of the page that rest on it."""

    name: str
    how: str
    rows: list[str]
    edits: list[Edit]

    @property
    def words(self) -> str:
        """All that a guard can be chosen by."""
        return " ".join((self.name, self.how, *self.rows, *(edit.path for edit in self.edits)))


def guards_of(table: Path = TABLE) -> list[Guard]:
    """Read the guards, and how each is broken."""
    guards, path = [], ""
    for line in table.read_text().splitlines():
        kind, text = line[:1], line[1:]
        if line.startswith("=== "):
            guards.append(Guard(line[4:], "", [], []))
        elif line.startswith("how: "):
            guards[-1] = guards[-1]._replace(how=line[5:])
        elif line.startswith("rows: "):
            guards[-1].rows.extend(line[6:].split("; "))
        elif line.startswith("@@"):
            path = line[3:] or path
            guards[-1].edits.append(Edit(path, [], []))
        elif kind in " -+" and line:
            edit = guards[-1].edits[-1]
            edit.before.extend([text] if kind in " -" else [])
            edit.after.extend([text] if kind in " +" else [])
        elif line and kind != "#":
            raise MisfitError(f"{table.name}: {line!r} is no line of a guard")
    return guards


def rows_of(page: Path = PAGE) -> dict[str, list[str]]:
    """Return the tests that each row of the page names, by the text of its first cell."""
    rows: dict[str, list[str]] = {}
    for line in page.read_text().splitlines():
        if line.startswith("| ") and not line.startswith(_HEADS):
            name = line.strip("| ").partition(" | ")[0]
            if name in rows:
                raise MisfitError(f"two rows of the page are named {name}")
            rows[name] = [f"{file}::{test}" for file, test in _NAMED.findall(line)]
    return rows


def row_of(key: str, rows: dict[str, list[str]]) -> str:
    """Return the name of the row that a guard means, be it by its first words."""
    found = [key] if key in rows else [name for name in rows if name.startswith(key)]
    if len(found) != 1:
        raise MisfitError(f"{key!r} is the beginning of {len(found)} rows of the page")
    return found[0]


def broken(guard: Guard, root: Path = ROOT) -> dict[str, str]:
    """Return the files of a guard with the guard broken, by their paths."""
    texts: dict[str, str] = {}
    for edit in guard.edits:
        text = texts.get(edit.path) or (root / edit.path).read_text()
        try:
            texts[edit.path] = replaced(text, edit.before, edit.after)
        except MisfitError as error:
            raise MisfitError(f"{guard.name}: {error} in {edit.path}") from None
    for path, text in texts.items():
        compile(text, path, "exec")
    return texts


def replaced(text: str, before: list[str], after: list[str]) -> str:
    """Return a text with lines replaced that stand in it once, at whatever depth."""
    lines, wanted = text.splitlines(), plain(before)
    count = len(before)
    places = [at for at in range(len(lines)) if plain(lines[at : at + count]) == wanted]
    if len(places) != 1:
        raise MisfitError(f"{len(places)} times {wanted[0]!r}, not once")
    (at,) = places
    depth = depth_of(lines[at]) - depth_of(before[0])
    moved = [" " * depth + line if depth >= 0 else line[-depth:] for line in after]
    return "\n".join(lines[:at] + moved + lines[at + count :]) + "\n"


def depth_of(line: str) -> int:
    """Return how far a line is indented."""
    return len(line) - len(line.lstrip())


def plain(lines: list[str]) -> list[str]:
    """Return lines without their comments, and without the indentation that all of them have."""
    return dedent("\n".join(line.partition("  # ")[0] for line in lines)).split("\n")


MOTHER = f"""
import faulthandler, importlib, json, os, sys
from contextlib import suppress
import pytest

for name in {LIBRARIES!r}.split():
    with suppress(ImportError):
        importlib.import_module(name)

class Noticed:
    names = []
    def pytest_runtest_setup(self, item):
        if item.nodeid.partition("[")[0] in self.names:
            pytest.skip("it has noticed, by other parameters")
    def pytest_runtest_logreport(self, report):
        name = report.nodeid.partition("[")[0]
        if report.failed and name not in self.names:
            self.names.append(name)

answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later({LONGEST_RUN}, exit=True)
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        answer = [pytest.main(json.loads(line), [Noticed()]), Noticed.names]
        print(json.dumps(answer), file=answers, flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("[-1, []]", file=answers, flush=True)
"""
"""Run tests in a fork, of a process that has imported what they need and nothing of the project."""


class House:
    """A copy of the project, in which guards are broken one after the other."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        skipped = shutil.ignore_patterns("__pycache__", "bench", "pictures", "_static")
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=skipped)
            else:
                shutil.copy2(ROOT / name, folder / name)
        self._environ = os.environ | {"PYTHONPATH": str(folder), "MONGODB_URI": uri}
        self._environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        self._mother = self._begin()

    def _begin(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", MOTHER],
            cwd=self.folder,
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the process in which the tests run."""
        self._mother.communicate()

    def noticed(self, texts: dict[str, str], tests: Sequence[str]) -> list[str]:
        """Return which of these tests fail when the files have these texts."""
        paths = [self.folder / path for path in texts]
        before = [(path.read_bytes(), path.stat()) for path in paths]
        try:
            for path, text in zip(paths, texts.values(), strict=True):
                path.write_text(text)
            return self._failed(tests)
        finally:
            for path, (content, stat) in zip(paths, before, strict=True):
                path.write_bytes(content)
                os.utime(path, (stat.st_atime, stat.st_mtime))  # Its bytecode goes by that.

    def _failed(self, tests: Sequence[str]) -> list[str]:
        arguments = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
        arguments += ["--timeout=60", *(f"tests/{test}" for test in tests)]
        sent, answers = self._mother.stdin, self._mother.stdout
        assert sent is not None
        assert answers is not None
        print(json.dumps(arguments), file=sent, flush=True)
        answer = answers.readline()
        if not answer:
            code, self._mother = self._mother.wait(), self._begin()
            raise MisfitError(f"the process that runs the tests has ended, with {code}")
        code, names = json.loads(answer)
        if code not in (0, 1):
            raise MisfitError(f"the tests could not run:\n{self.log[-2000:]}")
        return [name.removeprefix("tests/") for name in names]

    @property
    def log(self) -> str:
        """The output of the last tests."""
        return (self.folder / "log").read_text()


@dataclass
class Finding:
    """What became of a guard that was broken."""

    guard: Guard
    rows: list[str]
    noticed: list[str] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """Say who noticed, in a line."""
        if self.error:
            return f"ERROR: {self.error}"
        if not self.noticed:
            return "NOBODY"
        return ", ".join(self.noticed)

    def as_json(self) -> dict[str, object]:
        """Return the finding for other programs to read."""
        return {
            "guard": self.guard.name,
            "broken": self.guard.how,
            "rows": self.rows,
            "noticed_by": self.noticed,
            "error": self.error,
            "seconds": round(self.seconds, 1),
        }


def examine(guard: Guard, house: House, rows: dict[str, list[str]]) -> Finding:
    """Break a guard, run the tests of its rows, and tell who noticed."""
    begun, finding = time.monotonic(), Finding(guard, [])
    try:
        finding.rows = [row_of(key, rows) for key in guard.rows]
        tests = dict.fromkeys(test for row in finding.rows for test in rows[row])
        finding.noticed = house.noticed(broken(guard, house.folder), list(tests))
    except (MisfitError, SyntaxError) as error:
        finding.error = str(error)
    finding.seconds = time.monotonic() - begun
    return finding


def run(guards: Sequence[Guard], rows: dict[str, list[str]], jobs: int) -> Iterator[Finding]:
    """Break the guards, each in one of as many copies as there are jobs; tell as they are done."""
    houses = SimpleQueue[House]()

    def one(guard: Guard) -> Finding:
        house = houses.get()
        try:
            return examine(guard, house, rows)
        finally:
            houses.put(house)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mutants-")))
        uri = os.environ.get("MONGODB_URI")
        if not uri:
            options = ["--enable-test-commands"]
            uri = stack.enter_context(EmbeddedServer(folder / "db", options=options)).uri
        for number in range(jobs):
            house = House(folder / f"house{number}", uri)
            stack.callback(house.close)
            houses.put(house)
        yield from _unbroken(houses, rows, guards)
        yield from stack.enter_context(ThreadPoolExecutor(jobs)).map(one, guards)


def _unbroken(
    houses: SimpleQueue[House], rows: dict[str, list[str]], guards: Sequence[Guard]
) -> Iterator[Finding]:
    """Run all tests with nothing broken first: what fails then would notice nothing."""
    house, begun = houses.get(), time.monotonic()
    names = {row_of(key, rows) for guard in guards for key in guard.rows}
    tests = list(dict.fromkeys(test for row in rows if row in names for test in rows[row]))
    finding = Finding(Guard("nothing", "not at all", [], []), [])
    for first in range(0, len(tests), 40):
        finding.noticed += house.noticed({}, tests[first : first + 40])
    houses.put(house)
    if finding.noticed:
        finding.error = f"these fail with nothing broken: {', '.join(finding.noticed)}"
        finding.seconds = time.monotonic() - begun
        yield finding


def idle_names(findings: Sequence[Finding], rows: dict[str, list[str]]) -> list[str]:
    """Return what the page names for nothing: rows without a guard, and tests that see nothing."""
    seen: dict[str, set[str]] = {}
    for finding in findings:
        for row in finding.rows:
            seen.setdefault(row, set()).update(finding.noticed)
    found = []
    for row, tests in rows.items():
        if tests and row not in seen:
            found.append(f"{row}: none of its guards is broken here")
        found += [
            f"{row}: {test} notices nothing" for test in tests if test not in seen.get(row, tests)
        ]
    return found


def table_of(finding: Finding) -> str:
    """Return the lines of a finding in the table."""
    mark = " " if finding.noticed and not finding.error else "!"
    guard = f"{finding.guard.name}; broken: {finding.guard.how}"
    return f"{mark} {guard:<100} {finding.seconds:6.1f} s\n      {finding.verdict}"


def main() -> int:
    """Break the guards, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="copies to break guards in at a time")
    parser.add_argument("--only", default="", help="guards that match, by their text or rows")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    arguments = parser.parse_args()
    guards = [guard for guard in guards_of() if re.search(arguments.only, guard.words)]
    rows, findings = rows_of(), list[Finding]()
    for finding in run(guards, rows, arguments.jobs):
        findings.append(finding)
        progress = f"[{len(findings)}/{len(guards)}]"
        print(progress, table_of(finding), file=sys.stderr if arguments.json else sys.stdout)
        sys.stdout.flush()
    survivors = [finding for finding in findings if finding.error or not finding.noticed]
    idle = [] if arguments.only else idle_names(findings, rows)
    if arguments.json:
        told = [finding.as_json() for finding in findings]
        print(json.dumps({"guards": told, "idle": idle}, indent=1))
    else:
        for line in idle:
            print("!", line)
        print(f"{len(findings)} guards broken, {len(survivors)} survivors, {len(idle)} idle names")
    return 1 if survivors or idle else 0


if __name__ == "__main__":
    tool.run(main, "mutants")

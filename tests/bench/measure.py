"""Measure: one contender at a time, a few requests each, in turn, again and again."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from secrets import token_hex
from statistics import median, quantiles
from typing import Any

from pymongo import MongoClient

from . import machine, seals
from .contenders import ROWS, SEALED_ROWS, SMALL, Contents, Row
from .contest import EVERYWHERE, SEALED, runs

ROOT = Path(__file__).parents[2]
KEYS = (1, 10, 100, 1000)
THREADS = (1, 4, 16, 64)
TURNS = 2
"""How often each contender has its turn in a round."""
AT_A_TIME = 16
"""The requests of one turn; of untouched ones, which take next to no time, there are more."""
UNTOUCHED_AT_A_TIME = 100
GROWING = ("floor", "ours", "Beaker, tuned", "Flask-Session, tuned", "Django")
PACKAGES = (
    "pymongo",
    "Werkzeug",
    "cryptography",
    "Beaker",
    "Flask",
    "Flask-Session",
    "Django",
    "django-mongodb-backend",
)

Tell = Callable[[str], None]
Figures = dict[str, Any]


class Process:
    """A child process, asked one thing at a time; all others wait meanwhile."""

    def __init__(self, uri: str, database: str, names: Sequence[str], *, counts: bool) -> None:
        self.database = database
        """Its contenders use those that are named so, with `_` and their number after it."""
        command = [sys.executable, "-m", "tests.bench.child", *(["--count"] if counts else [])]
        self._child = subprocess.Popen(
            [*command, uri, database, *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def ask(self, *order: Any) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(order) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            raise SystemExit(f"bench: the process that was asked {order} has ended")
        return json.loads(answer)

    def end(self) -> None:
        self._child.communicate()


@contextmanager
def started(
    uri: str, groups: Sequence[Sequence[str]], *, counts: bool = False
) -> Iterator[dict[str, Process]]:
    """Start processes on databases of their own, which are dropped in the end.

    What comes is the process of each contender that is installed.
    """
    processes: list[Process] = []
    with ExitStack() as stack:
        prefix = stack.enter_context(databases(uri))
        for number, names in enumerate(groups):
            processes.append(Process(uri, f"{prefix}_{number}", names, counts=counts))
            stack.callback(processes[-1].end)
        yield {name: process for process in processes for name in process.ask("names")}


@contextmanager
def databases(uri: str) -> Iterator[str]:
    """Yield what the names of databases are to begin with, which are dropped in the end."""
    prefix = f"bench_{token_hex(3)}"
    try:
        yield prefix
    finally:
        with MongoClient[Any](uri) as client:
            for name in client.list_database_names():
                if name.startswith(prefix):
                    client.drop_database(name)


def setting_of(uri: str) -> Figures:
    """Return the machine, the versions and the server."""
    with MongoClient[Any](uri) as client:
        server = name_of(client)
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine.description(),
        "load": machine.load(),
        "python": platform.python_version(),
        "server": server,
        "versions": {package: _installed(package) for package in PACKAGES},
    }


def timed(processes: dict[str, Process], rows: list[Row], rounds: int, tell: Tell) -> Figures:
    """Return, by row and contender, the microseconds of a request in each round."""
    found: Figures = {row.label: {} for row in rows}
    for number in range(rounds + 1):
        tell(f"time: round {number} of {rounds}")
        for row in rows:
            names = [name for name in processes if runs(name, row)]
            turns = TURNS if number else 1
            for name, spent in in_turns(processes, names, row, turns).items():
                if number:  # The first round only warms up.
                    cell = found[row.label].setdefault(name, {"cpu": [], "wall": []})
                    cell["cpu"].append(round(median(cpu for cpu, _ in spent), 2))
                    cell["wall"].append(round(median(wall for _, wall in spent), 2))
    return found


def in_turns(
    processes: dict[str, Process], names: list[str], row: Row, turns: int = TURNS
) -> dict[str, list[list[float]]]:
    """Return what the requests of each took that were answered in turn."""
    number = UNTOUCHED_AT_A_TIME if row.kind == "untouched" else AT_A_TIME
    spent: dict[str, list[list[float]]] = {name: [] for name in names}
    for turn in range(turns):
        for name in names if turn % 2 else reversed(names):
            spent[name] += processes[name].ask("run", name, row, number)
    return spent


def counted(uri: str, tell: Tell) -> Figures:
    """Return the commands and the bytes of each row, those of growing sessions, and the memory."""
    found: Figures = {"wire": {row.label: {} for row in ROWS}, "wire by keys": {}, "memory": {}}
    for name in EVERYWHERE:
        tell(f"commands, bytes, memory: {name}")
        with started(uri, [(name,)], counts=True) as processes:
            for process in processes.values():
                for row in ROWS:
                    if runs(name, row):
                        found["wire"][row.label][name] = process.ask("count", name, row)
                if name in GROWING:
                    found["wire by keys"][name] = {
                        keys: process.ask("count", name, _row_of(keys)) for keys in KEYS
                    }
                found["memory"][name] = process.ask("memory")
    return found


def sealed(uri: str, rounds: int, tell: Tell) -> Figures:
    """Return the time and the bytes of sealed sessions, beside others in the same process."""
    with started(uri, [SEALED]) as processes:
        if SEALED[-1] not in processes:
            return {}
        found = {"alone": seals.alone(), "time": timed(processes, SEALED_ROWS, rounds, tell)}
    with started(uri, [SEALED], counts=True) as processes:
        found["wire"] = {
            row.label: {name: one.ask("count", name, row) for name, one in processes.items()}
            for row in SEALED_ROWS
        }
    return found


def by_keys(processes: dict[str, Process], rounds: int, tell: Tell) -> Figures:
    """Return the microseconds of a request that sets one key, by the keys of its session."""
    names = [name for name in GROWING if name in processes]
    found: Figures = {name: {keys: [] for keys in KEYS} for name in names}
    for number in range(rounds + 1):
        tell(f"keys in a session: round {number} of {rounds}")
        for keys in KEYS:
            turns = TURNS if number else 1
            for name, spent in in_turns(processes, names, _row_of(keys), turns).items():
                if number:
                    found[name][keys].append(round(median(cpu for cpu, _ in spent), 2))
    return found


def threaded(processes: dict[str, Process], rounds: int, tell: Tell) -> Figures:
    """Return the requests a second of one process, and their CPU, by threads."""
    row = Row("read and set", SMALL)
    found: Figures = {}
    for number in range(rounds):
        for name, process in processes.items():
            if not runs(name, row):
                continue
            tell(f"threads: round {number + 1} of {rounds}, {name}")
            for threads in THREADS if name in ("floor", "ours") else (16,):
                spent = process.ask("threads", name, row, threads, max(2, 64 // threads))
                cell = found.setdefault(name, {}).setdefault(threads, {"rate": [], "cpu": []})
                cell["rate"].append(round(spent["rate"], 1))
                cell["cpu"].append(round(spent["cpu"], 2))
    return found


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of some rounds, and the quartiles below and above it."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, _, high = quantiles(values, method="inclusive")
    return median(values), low, high


def name_of(client: MongoClient[Any]) -> str:
    """Return the name and the release of a server."""
    built = client.admin.command("buildInfo")
    if "secantusVersion" in built:
        name = "SecantusDB" if is_embedded(client) else "secantus-mdb"
        return f"{name} {built['secantusVersion']}"
    is_java = client.admin.command("serverStatus").get("process") == "java"
    return "mongo-java-server" if is_java else f"MongoDB {built['version']}"


def is_embedded(client: MongoClient[Any]) -> bool:
    """Say whether a server is of the embedded kind, written in Python."""
    built = client.admin.command("buildInfo")
    return "secantusVersion" in built and "cc" not in built.get("buildEnvironment", {})


def _row_of(keys: int) -> Row:
    return Row("set", Contents(keys, SMALL.size))


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

"""Measure: one contender at a time, a few requests each, in turn, again and again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from secrets import token_hex, token_urlsafe
from statistics import median, quantiles
from typing import Any

from pymongo import MongoClient

from mongosession_wsgi.document import id_of

from .contenders import CONTENTS, KINDS, PROCESSES

ROOT = Path(__file__).parents[2]
AT_A_TIME = 100
KEYS = (1, 10, 100, 1000)
THREADS = (1, 4, 16, 64)
PACKAGES = ("pymongo", "Werkzeug", "Beaker", "Flask", "Flask-Session", "Django")

Tell = Callable[[str], None]


class Process:
    """A child process, asked one thing at a time; the others wait meanwhile."""

    def __init__(self, uri: str, database: str, names: tuple[str, ...]) -> None:
        command = [sys.executable, "-m", "tests.bench.child", uri, database, *names]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
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
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()


@contextmanager
def processes(uri: str) -> Iterator[dict[str, Process]]:
    """Start the contenders on databases of their own, which are dropped in the end."""
    prefix = f"bench_{token_hex(3)}"
    with ExitStack() as stack:
        started: dict[str, Process] = {}
        for number, names in enumerate(PROCESSES):
            process = Process(uri, f"{prefix}_{number}", names)
            stack.callback(process.end)
            started |= dict.fromkeys(names, process)
        started["prefix"] = prefix  # type: ignore[assignment]
        yield started
    with MongoClient[Any](uri) as client:
        for name in client.list_database_names():
            if name.startswith(prefix):
                client.drop_database(name)


def measure(uri: str, rounds: int, sessions: tuple[int, ...], tell: Tell) -> dict[str, Any]:
    """Return all figures of one run."""
    with processes(uri) as contenders:
        prefix: Any = contenders.pop("prefix")
        figures = {
            "setting": setting_of(uri) | {"rounds": rounds, "requests": rounds * AT_A_TIME},
            "wire": counted(contenders, tell),
            "time": timed(contenders, rounds, tell),
            "threads": threaded(contenders, tell),
            "keys": by_keys(contenders, rounds, tell),
            "sessions": by_sessions(uri, f"{prefix}_0_0", contenders["ours"], sessions, tell),
        }
        figures["memory"] = {
            ", ".join(names): contenders[names[0]].ask("memory") for names in PROCESSES
        }
    return figures


def setting_of(uri: str) -> dict[str, Any]:
    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    with MongoClient[Any](uri) as client:
        server = client.admin.command("buildInfo")
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "server": name_of(server),
        "versions": {package: installed(package) for package in PACKAGES},
    }


def name_of(server: Any) -> str:
    if "secantusVersion" not in server:
        return f"MongoDB {server['version']}"
    compiler = server.get("buildEnvironment", {}).get("cc")
    return f"SecantusDB {server['secantusVersion']}" + (f", {compiler}" if compiler else "")


def counted(contenders: dict[str, Process], tell: Tell) -> dict[str, Any]:
    wire: dict[str, Any] = {}
    for label, contents in CONTENTS.items():
        for kind in KINDS:
            tell(f"commands and bytes: {kind}, {label}")
            wire[f"{kind}, {label}"] = {
                name: process.ask("count", name, kind, contents)
                for name, process in contenders.items()
            }
    return wire


def timed(contenders: dict[str, Process], rounds: int, tell: Tell) -> dict[str, Any]:
    """Return the microseconds of a request, of this process's CPU and of the clock."""
    spent: dict[str, dict[str, list[list[float]]]] = {}
    for number in range(rounds + 1):
        tell(f"time: round {number} of {rounds}")
        for label, contents in CONTENTS.items():
            for kind in KINDS:
                row = spent.setdefault(f"{kind}, {label}", {})
                for name, process in contenders.items():
                    found = process.ask("run", name, kind, contents, AT_A_TIME)
                    if number:  # The first round only warms up.
                        row.setdefault(name, []).extend(found)
    return {row: {name: summed_up(of) for name, of in by.items()} for row, by in spent.items()}


def summed_up(spent: list[list[float]]) -> dict[str, float]:
    cpu = [one[0] * 1e6 for one in spent]
    low, _, high = quantiles(cpu)
    wall = median(one[1] * 1e6 for one in spent)
    return {"cpu": median(cpu), "low": low, "high": high, "wall": wall}


def threaded(contenders: dict[str, Process], tell: Tell) -> dict[str, Any]:
    """Return the requests a second that threads of one process answer, which read and set."""
    rates: dict[str, Any] = {}
    for name, process in contenders.items():
        if name not in ("bare", "Flask alone"):
            tell(f"threads: {name}")
            numbers = THREADS if name in ("ours", "floor") else (16,)
            contents = CONTENTS["3 keys"]
            rates[name] = {n: process.ask("threads", name, contents, n, 640) for n in numbers}
    return rates


def by_keys(contenders: dict[str, Process], rounds: int, tell: Tell) -> dict[str, Any]:
    """Return the CPU time of requests that read and set one key, by the keys of the session."""
    spent: dict[str, dict[int, list[list[float]]]] = {}
    for number in range(max(2, rounds // 3)):
        tell(f"keys per session: round {number + 1}")
        for keys in KEYS:
            for name in ("ours", "floor", "Beaker, tuned", "Flask-Session, tuned"):
                kind = "read+set" if keys > 1 else "set"
                found = contenders[name].ask("run", name, kind, (keys, 20), 10)
                spent.setdefault(name, {}).setdefault(keys, []).extend(found)
    return {n: {keys: summed_up(of)["cpu"] for keys, of in by.items()} for n, by in spent.items()}


def by_sessions(
    uri: str, database: str, ours: Process, sizes: tuple[int, ...], tell: Tell
) -> dict[str, Any]:
    """Return the time of requests that read, and that set, by the sessions in the collection."""
    found: dict[str, Any] = {}
    with MongoClient[Any](uri) as client:
        collection = client[database]["sessions"]
        for size in sizes:
            while (there := collection.estimated_document_count()) < size:
                tell(f"sessions in the collection: {there:,} of {size:,}")
                collection.insert_many(
                    [a_session() for _ in range(min(5000, size - there))], ordered=False
                )
            row = {}
            for kind in ("read", "set"):
                row[kind] = summed_up(ours.ask("run", "ours", kind, CONTENTS["3 keys"], 100))
            found[str(size)] = row
    return found


def a_session() -> dict[str, Any]:
    now = datetime.now(timezone.utc)
    moments = {"created_at": now, "seen_at": now, "expires_at": now + timedelta(days=14)}
    data = {"theme": "dark", "cart": [1, 2, 3]}
    return {"_id": id_of(token_urlsafe(32)), "v": 1, "data": data, "owner": None} | moments

"""A process that answers the requests of some contenders, when it is told to.

`python -m tests.bench.child [--count] URI DATABASE NAME...`; it reads an order a line, as JSON, and
prints an answer a line. With `--count` it counts, and is slower by that.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

from .contenders import Application, Contents, Row
from .contest import CONTENDERS
from .machine import memory_of
from .visitor import Visitor
from .wire import Wire


class Child:
    """What can be ordered of the process: every public method."""

    def __init__(self, uri: str, database: str, names: list[str], wire: Wire) -> None:
        self._apps: dict[str, Application] = {}
        for number, name in enumerate(names):
            try:
                self._apps[name] = CONTENDERS[name].make(uri, f"{database}_{number}")
            except ImportError as error:
                print(f"bench: {name} is left out: {error}", file=sys.stderr)
        self._wire = wire
        self._visitors: dict[tuple[str, Row], Visitor] = {}

    def names(self) -> list[str]:
        """Return the contenders that are installed."""
        return list(self._apps)

    def run(self, name: str, row: Any, number: int) -> list[list[float]]:
        """Answer some requests; return what each took."""
        visitor, spent = self._visitor(name, row), []
        for _ in range(number):
            visitor.prepare()
            spent.append(list(visitor.visit()))
        return spent

    def count(self, name: str, row: Any) -> dict[str, Any]:
        """Return what one request asks of MongoDB, on a connection that is there already."""
        visitor = self._visitor(name, row)
        for _ in range(2):  # The first ones may make connections and indexes.
            visitor.prepare()
            visitor.visit()
        visitor.prepare()
        with self._wire.counting():
            visitor.visit()
        return {
            "commands": self._wire.commands,
            "sent": self._wire.sent,
            "received": self._wire.received,
        }

    def threads(self, name: str, row: Any, threads: int, number: int) -> dict[str, float]:
        """Return the requests a second that so many threads answer, and the CPU of one."""
        visitors = [Visitor(self._apps[name], _row(row)) for _ in range(threads)]

        def visit(visitor: Visitor) -> list[float]:
            return [visitor.visit().cpu for _ in range(number)]

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(Visitor.prepare, visitors))
            list(pool.map(Visitor.visit, visitors))  # Each thread connects.
            begun = time.perf_counter()
            spent = [cpu for one in pool.map(visit, visitors) for cpu in one]
            rate = len(spent) / (time.perf_counter() - begun)
        return {"rate": rate, "cpu": median(spent)}

    def memory(self) -> int:
        """Return the most memory that this process has had, in KiB."""
        return memory_of(os.getpid(), "VmHWM")

    def held(self, name: str, row: Any, number: int) -> float:
        """Return the bytes that a request holds from when it is answered until it is closed."""
        visitor = self._visitor(name, row)
        visitor.prepare()
        visitor.held(number // 10 or 1)  # Fills the caches of the first time.
        return visitor.held(number)

    def _visitor(self, name: str, row: Any) -> Visitor:
        key = name, _row(row)
        if key not in self._visitors:
            self._visitors[key] = Visitor(self._apps[name], key[1])
        return self._visitors[key]


def _row(row: Any) -> Row:
    kind, contents = row
    return Row(kind, Contents(*contents))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A Ctrl-C is for the parent, which ends this.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    counts = sys.argv[1] == "--count"
    uri, database, *names = sys.argv[1 + counts :]
    wire = Wire()
    if counts:
        wire.install()
    child = Child(uri, database, names, wire)
    for line in sys.stdin:
        order, *arguments = json.loads(line)
        print(json.dumps(getattr(child, order)(*arguments)), flush=True)


if __name__ == "__main__":
    main()

"""What does a session cost? `python -m tests.bench`, or `make bench`.

Beside this package are measured: a handler written by hand (the floor), and the session stores that
Python has for MongoDB. Figures of one run are comparable; those of two runs only as ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from .. import tool
from ..servers.choice import SERVERS, at_hand
from ..servers.kept import UnavailableError
from . import explained, machine, memory, report, throughput
from .contenders import ROWS
from .contest import PROCESSES, TOGETHER
from .growth import by_sessions
from .measure import Figures, by_keys, counted, sealed, setting_of, started, threaded, timed

COMPARED = [row for row in ROWS if row.kind in ("untouched", "read", "set", "read and set")]
SIZES = (10_000, 100_000, 1_000_000)
CROWDED_SIZES = (10_000, 1_000_000, 10_000_000)


class Run:
    """One run: the server, and the parts to measure, each a method that returns figures."""

    def __init__(self, uri: str, server: str, rounds: int, *, is_full: bool) -> None:
        self._uri = uri
        self._server = server
        self._rounds = rounds
        self._is_full = is_full

    def floor(self) -> Figures:
        with started(self._uri, [TOGETHER]) as processes:
            return {"beside the floor": timed(processes, COMPARED, 4 * self._rounds, tell)}

    def sealed(self) -> Figures:
        return {"sealed": sealed(self._uri, 2 * self._rounds, tell)}

    def wire(self) -> Figures:
        return counted(self._uri, tell)

    def time(self) -> Figures:
        with started(self._uri, PROCESSES) as processes:
            return {
                "time": timed(processes, ROWS, self._rounds, tell),
                "cpu by keys": by_keys(processes, self._rounds, tell),
                "threads": threaded(processes, max(2, self._rounds // 4), tell),
            }

    def sessions(self) -> Figures:
        sizes = SIZES if self._is_full else SIZES[:2]
        return {"sessions": by_sessions(self._uri, sizes, self._rounds, tell)}

    def throughput(self) -> Figures:
        return {"throughput": throughput.measured(self._uri, 2 * self._rounds, tell)}

    def crowded(self) -> Figures:
        sizes = CROWDED_SIZES if self._is_full else CROWDED_SIZES[:2]
        return {"crowded": throughput.by_sessions(self._uri, sizes, 2 * self._rounds, tell)}

    def memory(self) -> Figures:
        return memory.measured(self._uri, tell)

    def database(self) -> Figures:
        size = 1_000_000 if self._is_full else 100_000
        with ExitStack() as stack:
            others = []
            for name in at_hand():
                if name != self._server:
                    with suppress(UnavailableError):
                        others.append(stack.enter_context(SERVERS[name]()))
            return {"database": explained.measured(self._uri, others, size, tell)}


SLOW_SERVERS_LEAVE_OUT = ("throughput", "crowded")
PARTS = (
    *("floor", "sealed", "wire", "time", "sessions", "memory", "database"),
    *SLOW_SERVERS_LEAVE_OUT,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.bench")
    parser.add_argument("--server", choices=SERVERS, help="start this one, without MONGODB_URI")
    parser.add_argument("--only", choices=PARTS, nargs="+", help="measure these parts alone")
    parser.add_argument("--rounds", type=int, default=6, help="of 32 requests a cell (6)")
    parser.add_argument("--full", action="store_true", help="up to ten million sessions stored")
    parser.add_argument("--report", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--again", action="store_true", help="the same, of the last figures")
    asked = parser.parse_args()
    try:
        figures = {} if asked.again else measured(asked)
    except UnavailableError as error:
        sys.exit(f"bench: {error}")
    if asked.report or asked.again:  # Parts that were not measured stay as they were.
        figures = report.merged(report.saved(), figures)
        report.write(figures)
    print(report.as_text(figures))


def measured(asked: argparse.Namespace) -> Figures:
    """Return the figures of the parts, and the setting of each."""
    figures: Figures = {"settings": {}}
    with server(asked.server) as (uri, name):
        run = Run(uri, name, asked.rounds, is_full=asked.full)
        # The embedded server is so slow that it alone would be measured.
        left_out = SLOW_SERVERS_LEAVE_OUT if name == "embedded" else ()
        usual = [part for part in PARTS if part not in left_out]
        for part in asked.only or usual:
            setting = setting_of(uri) | {"chosen": name, "rounds": asked.rounds}
            found = getattr(run, part)()
            figures |= found
            figures["settings"] |= dict.fromkeys(found, setting)
    as_read: Figures = json.loads(json.dumps(figures))
    return as_read


@contextmanager
def server(name: str | None) -> Iterator[tuple[str, str]]:
    """Yield the URI of the server, and the name of its kind: `yours` is that of `MONGODB_URI`.

    The clients have a core of their own, where Linux gives them one: a client that shares one with
    the server finds its caches full of the server's work, and that is measured as the client's.
    """
    uri = os.environ.get("MONGODB_URI")
    if uri and name is None:
        machine.run_on(machine.FIRST)
        yield uri, "yours"
        return
    machine.run_on(machine.OTHERS)
    name = name or "embedded"
    with SERVERS[name]() as uri:
        machine.run_on(machine.FIRST)
        yield uri, name


def tell(what: str) -> None:
    """Say what is being done, on one line if somebody watches."""
    begin, end = ("\r\x1b[K", "") if sys.stderr.isatty() else ("", "\n")
    print(f"{begin}{what} ...", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    tool.run(main, "bench")

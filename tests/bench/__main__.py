"""What does a session cost? `python -m tests.bench`, or `make bench`.

Beside this package are measured: a handler written by hand (the floor), and the session stores that
Python has for MongoDB. Figures of one run are comparable; those of two runs only as ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mongosession_wsgi.embedded import EmbeddedServer

from . import report
from .contenders import ROWS
from .contest import PROCESSES, TOGETHER
from .growth import by_sessions
from .measure import Figures, by_keys, counted, sealed, setting_of, started, threaded, timed

COMPARED = [row for row in ROWS if row.kind in ("untouched", "read", "set", "read and set")]
SIZES = (10_000, 100_000, 1_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.bench")
    parser.add_argument("--quick", action="store_true", help="only this package and the floor")
    parser.add_argument("--sealed", action="store_true", help="only sealed sessions and others")
    parser.add_argument("--rounds", type=int, default=6, help="of 32 requests a cell (6)")
    parser.add_argument("--full", action="store_true", help="up to a million sessions stored")
    parser.add_argument("--report", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--again", action="store_true", help="the same, of the last figures")
    asked = parser.parse_args()
    if asked.again:
        figures: Figures = json.loads(report.RESULTS.read_text())
    else:
        figures = measured(asked)
    print(_text_of(asked, figures))
    if asked.report or asked.again:
        report.write(figures)


def _text_of(asked: argparse.Namespace, figures: Figures) -> str:
    if asked.sealed:
        return report.sealed_text(figures)
    return report.quick_text(figures) if asked.quick else report.as_text(figures)


def measured(asked: argparse.Namespace) -> Figures:
    rounds: int = asked.rounds
    with server() as (uri, embedded):
        figures: dict[str, Any] = {
            "setting": setting_of(uri) | {"embedded": embedded, "rounds": rounds}
        }
        if asked.sealed or not asked.quick:
            figures["sealed"] = sealed(uri, 2 * rounds, tell)
        if not asked.sealed:
            with started(uri, [TOGETHER]) as processes:
                figures["beside the floor"] = timed(processes, COMPARED, 4 * rounds, tell)
        if not (asked.quick or asked.sealed):
            figures |= counted(uri, tell)
            with started(uri, PROCESSES) as processes:
                figures["time"] = timed(processes, ROWS, rounds, tell)
                figures["cpu by keys"] = by_keys(processes, rounds, tell)
                figures["threads"] = threaded(processes, max(2, rounds // 4), tell)
            sizes = SIZES if asked.full else SIZES[:2]
            figures["sessions"] = by_sessions(uri, sizes, rounds, tell)
    as_read: Figures = json.loads(json.dumps(figures))
    return as_read


@contextmanager
def server() -> Iterator[tuple[str, bool]]:
    """Yield the URI of the server, and whether it is embedded: unless `MONGODB_URI` names one.

    The clients have a core of their own, where Linux gives them one: a client that shares one with
    the server finds its caches full of the server's work, and that is measured as the client's.
    """
    core, *others = cores()
    uri = os.environ.get("MONGODB_URI")
    if uri:
        run_on([core])
        yield uri, False
        return
    run_on(others or [core])
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as embedded:
        run_on([core])
        yield embedded.uri, True


def cores() -> list[int]:
    """Return the processor's cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else [0]


def run_on(cores: Sequence[int]) -> None:
    """Have the processes that are started from now on run on these cores, and on no other."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, cores)


def tell(what: str) -> None:
    """Say what is being done, on one line if somebody watches."""
    begin, end = ("\r\x1b[K", "") if sys.stderr.isatty() else ("", "\n")
    print(f"{begin}{what} ...", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nbench: interrupted; nothing was written")

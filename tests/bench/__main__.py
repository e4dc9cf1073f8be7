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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mongosession_wsgi.embedded import EmbeddedServer

from . import report
from .measure import measure

RESULTS = Path(__file__).parents[2] / "docs" / "benchmarks.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.bench")
    parser.add_argument("--rounds", type=int, default=4, help="of 100 requests each (4)")
    parser.add_argument("--full", action="store_true", help="up to a million sessions stored")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--report", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--again", action="store_true", help="the report, of the last figures")
    asked = parser.parse_args()
    if asked.again:
        figures = json.loads(RESULTS.read_text())
    else:
        figures = figures_of(asked.rounds, full=asked.full)
    if asked.json:
        print(json.dumps(figures, indent=1))
    else:
        print(report.as_text(figures))
    if asked.report or asked.again:
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
        report.write(figures)


def figures_of(rounds: int, *, full: bool) -> dict[str, Any]:
    sessions = (10_000, 100_000, 1_000_000) if full else (10_000, 100_000)
    with ExitStack() as stack:
        uri = os.environ.get("MONGODB_URI")
        if not uri:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            uri = stack.enter_context(EmbeddedServer(Path(folder))).uri
        figures = measure(uri, rounds, sessions, tell)
    figures["setting"]["embedded"] = "MONGODB_URI" not in os.environ
    return figures


def tell(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what} ...", end="", file=sys.stderr, flush=True)
    else:
        print(what, file=sys.stderr)


if __name__ == "__main__":
    main()

"""Try every order of the commands of overlapping requests, and print which promises it breaks.

`python -m tests.explore` explores what `make explore` does, ten minutes to half an hour on two
cores; options such as `--sets pairs --kinds rotate,logout --starts member` choose. It ends with 1
if any promise is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any, NamedTuple

from .. import tool
from .catalogue import BY_NAME, STARTS
from .exploring import Finding, Report, explore
from .scenes import PLAN, SETS, engines, scenes_of
from .verdict import PROMISES


class Row(NamedTuple):
    """What was explored, and what came of it."""

    engine: str
    set: str
    report: Report


def run(options: argparse.Namespace) -> list[Row]:
    """Explore what the options say; show the progress on a terminal."""
    rows = []
    for name, engine in _chosen(options):
        scenes = list(scenes_of(name, options.starts, options.kinds))
        progress = _Progress(f"{engine}: {name}", len(scenes))
        report = explore(engine, scenes, options.jobs, progress.show)
        progress.clear()
        rows.append(Row(engine, name, report))
    return rows


def _chosen(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the sets and engines that are asked for; without a word on either, the plan."""
    if options.sets is None and options.engines is None:
        return [(name, engine) for name, engine in PLAN if engine in engines()]
    return [
        (name, engine)
        for engine in options.engines or engines()
        for name in options.sets or ("pairs", "faults", "triples")
    ]


class _Progress:
    """A line on stderr, if that is a terminal."""

    def __init__(self, what: str, scenes: int) -> None:
        self._what = what
        self._scenes = scenes
        self._is_shown = sys.stderr.isatty()

    def show(self, report: Report) -> None:
        broken = f", broken: {', '.join(sorted(report.broken))}" if report.broken else ""
        self._write(
            f"{self._what}: {report.scenes:,} of {self._scenes:,} meetings, "
            f"{report.orders:,} orders{broken}"
        )

    def clear(self) -> None:
        self._write("")

    def _write(self, line: str) -> None:
        if self._is_shown:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def table(rows: list[Row]) -> str:
    """Return the rows aligned, with their sums."""
    heads = ["engine", "set", "meetings", "orders", "seconds", "broken promises"]
    total = Report()
    cells = []
    for row in rows:
        total.add(row.report)
        cells.append([row.engine, row.set, *_figures(row.report)])
    cells.append(["all", "", *_figures(total)])
    widths = [max(len(line[place]) for line in [heads, *cells]) for place in range(len(heads))]
    return "\n".join(_line(line, widths) for line in [heads, *cells])


def _figures(report: Report) -> list[str]:
    return [
        f"{report.scenes:,}",
        f"{report.orders:,}",
        f"{report.seconds:.0f}",
        f"{len(report.broken)}",
    ]


def _line(cells: list[str], widths: list[int]) -> str:
    aligned = [
        cell.ljust(width) if place < 2 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(aligned).rstrip()


def findings(rows: list[Row]) -> dict[str, Finding]:
    """Return what was found of each promise, in all rows."""
    found: dict[str, Finding] = {}
    for row in rows:
        for promise, finding in row.report.broken.items():
            story = f"{row.engine}, {finding.story}"
            one = Finding(finding.orders, finding.scenes, finding.length, story)
            found.setdefault(promise, Finding()).add(one)
    return dict(sorted(found.items()))


def _as_json(rows: list[Row]) -> list[dict[str, Any]]:
    return [
        {
            "engine": row.engine,
            "set": row.set,
            "meetings": row.report.scenes,
            "orders": row.report.orders,
            "seconds": round(row.report.seconds, 1),
            "broken": {
                promise: {"orders": one.orders, "meetings": one.scenes, "story": one.story}
                for promise, one in sorted(row.report.broken.items())
            },
        }
        for row in rows
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.explore", description=__doc__)
    for name, known, default in (
        ("sets", SETS, None),
        ("engines", engines(), None),
        ("starts", STARTS, list(STARTS)),
        ("kinds", BY_NAME, list(BY_NAME)),
    ):
        parser.add_argument(
            f"--{name}",
            type=_list_of(list(known)),
            default=default,
            help=f"separated by commas, of: {', '.join(known)}",
        )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--json", action="store_true", help="print no table but its figures")
    parser.add_argument("--promises", action="store_true", help="print the promises, and end")
    return parser


def _list_of(known: list[str]) -> Any:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of: {', '.join(known)}")
        return names

    return parse


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.promises:
        print("\n".join(f"{name:20}{words}" for name, words in PROMISES.items()))
        return 0
    rows = run(options)
    found = findings(rows)
    if options.json:
        print(json.dumps(_as_json(rows), indent=2))
    else:
        for promise, finding in found.items():
            counts = f"{finding.orders:,} orders of {finding.scenes:,} meetings"
            print(f"{promise} is broken in {counts}. The shortest:\n{finding.story}\n")
        print(table(rows))
    return 1 if found else 0


if __name__ == "__main__":
    tool.run(main, "explore")

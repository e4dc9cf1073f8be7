"""The rows of the tables: what each part of a run has found, by contender."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from .bars import Bar, added, held_by_kind, sealed_bars_of, sealing, to
from .contest import CONTENDERS, TOGETHER, floor_of
from .measure import Figures, middle
from .tables import Rows, columns, spread

KIB, GB = 1024, 10**9
MANY = 10_000_000
"""The sessions whose working set is computed."""


def sessions_only(names: Sequence[str]) -> list[str]:
    """Return those of the names that have a session, and once."""
    return [name for name in names if CONTENDERS[name].alone != name and name != "ours, auto"]


def beside_rows(figures: Figures) -> Rows:
    return total_rows(figures, TOGETHER, "beside the floor")


def total_rows(figures: Figures, names: Sequence[str], table: str = "time") -> Rows:
    time = figures[table]
    return columns(time, names, lambda row, name: spread(middle(time[row][name]["cpu"])))


def added_rows(figures: Figures, names: Sequence[str]) -> Rows:
    return columns(
        figures["time"],
        sessions_only(names),
        lambda row, name: spread(added(figures, row, name)),
    )


def wall_rows(figures: Figures, names: Sequence[str]) -> Rows:
    time = figures["time"]
    return columns(
        time, sessions_only(names), lambda row, name: spread(middle(time[row][name]["wall"]))
    )


def wire_rows(figures: Figures, names: Sequence[str]) -> Rows:
    def cell(row: str, name: str) -> str:
        found = figures["wire"][row][name]
        number = len(found["commands"])
        return f"{number}: {found['sent']:,} + {found['received']:,}" if number else "0"

    return columns(figures["wire"], sessions_only(names), cell)


def thread_rows(figures: Figures) -> Rows:
    numbers = list(figures["threads"]["ours"])
    rows = [["threads", *numbers]]
    for name, by in figures["threads"].items():
        cells = (by.get(number) for number in numbers)
        rows.append([name, *("" if one is None else _rate(one) for one in cells)])
    return rows


def _rate(cell: Figures) -> str:
    return f"{middle(cell['rate'])[0]:,.0f} ({middle(cell['cpu'])[0]:.0f})"


def key_rows(figures: Figures) -> Rows:
    rows = [["keys", *figures["cpu by keys"]["ours"]]]
    for name, by in figures["cpu by keys"].items():
        wires = figures.get("wire by keys", {}).get(name, {})  # A part of its own.
        cells = [f"{middle(spent)[0]:.0f}{_bytes(wires.get(keys))}" for keys, spent in by.items()]
        rows.append([name, *cells])
    return rows


def _bytes(wire: Figures | None) -> str:
    return "" if wire is None else f"; {wire['sent'] + wire['received']:,}"


def session_rows(figures: Figures) -> Rows:
    rows = [["sessions", "read: CPU", "wall", "set: CPU", "wall"]]
    for size, by in figures["sessions"].items():
        cells = (middle(by[kind][of]) for kind in ("read", "set") for of in ("cpu", "wall"))
        rows.append([f"{int(size):,}", *map(spread, cells)])
    return rows


# Sealed sessions, in narrow tables.


def seal_cpu_rows(figures: Figures) -> Rows:
    rows = [["µs of CPU", "plain", "sealed", "more"]]
    for row, by in figures["sealed"]["time"].items():
        both = (middle(by[name]["cpu"])[0] for name in ("ours", "ours, sealed"))
        more = spread(middle(sealing(figures, row)))
        rows.append([row, *(f"{one:.0f}" for one in both), more])
    return rows


def seal_alone_rows(figures: Figures) -> Rows:
    parts = figures["sealed"]["alone"].items()
    return [["the seal alone", "µs of CPU"], *([what, f"{spent:.1f}"] for what, spent in parts)]


def seal_byte_rows(figures: Figures) -> Rows:
    rows = [["bytes", "plain", "sealed"]]
    for row, by in figures["sealed"]["wire"].items():
        wires = (by[name] for name in ("ours", "ours, sealed"))
        rows.append([row, *(f"{wire['sent'] + wire['received']:,}" for wire in wires)])
    return rows


def seal_bar_rows(figures: Figures) -> Rows:
    return [["more, of a find", "median", "at most", ""],
            *map(Bar.row, sealed_bars_of(figures))]  # fmt: skip


# Requests a second.


def rate_tables(figures: Figures, names: Sequence[str]) -> Iterator[tuple[str, Rows]]:
    """Yield a table for each kind of worker: requests a second, and their ratio to the floor's."""
    for worker, cells in _by_worker(figures):

        def cell(row: str, name: str, cells: Figures = cells) -> str:
            by = cells[row]
            rates, floor = by[name]["rate"], by[floor_of(name)]["rate"]
            rate = f"{median(rates):,.0f}"
            return rate if name == floor_of(name) else f"{rate} ({to(rates, floor):.2f})"

        yield worker, columns(cells, names, cell)


def percentile_tables(figures: Figures, names: Sequence[str]) -> Iterator[tuple[str, Rows]]:
    """Yield a table for each kind of worker: milliseconds of the median, 95th and 99th answer."""
    for worker, cells in _by_worker(figures):

        def cell(row: str, name: str, cells: Figures = cells) -> str:
            return " / ".join(f"{ms:.3g}" for ms in cells[row][name]["ms"])

        yield worker, columns(cells, names, cell)


def _by_worker(figures: Figures) -> Iterator[tuple[str, Figures]]:
    """Yield each kind of worker, and what was measured there, by request and connections."""
    for worker, by_number in figures["throughput"]["cells"].items():
        cells = {
            f"{kind}, {_connections(number)}": by
            for number, kinds in by_number.items()
            for kind, by in kinds.items()
        }
        yield worker, cells


def _connections(number: str) -> str:
    return "1 connection" if number == "1" else f"{number} connections"


def both_sides_rows(figures: Figures) -> Rows:
    """Return µs of CPU of the application and of the database, with threads and 8 connections."""
    rows = [["CPU of a request, in µs", "application", "database"]]
    for kind, by in figures["throughput"]["cells"].get("gthread", {}).get("8", {}).items():
        for name in by:
            if CONTENDERS[name].alone == "bare":
                application, database = by[name]["cpu"]
                told = f"{database:,}" if database else "not known"
                rows.append([f"{kind}: {name}", f"{application:,}", told])
    return rows


def crowded_rows(figures: Figures) -> Rows:
    rows = [["sessions", "floor", "ours", "ratio"]]
    for size, kinds in figures["crowded"].items():
        for kind, by in kinds.items():
            rates = by["floor"]["rate"], by["ours"]["rate"]
            shown = (f"{median(one):,.0f}" for one in rates)
            rows.append([f"{int(size):,}, {kind}", *shown, f"{to(rates[1], rates[0]):.2f}"])
    return rows


# Memory.


def held_rows(figures: Figures) -> Rows:
    by_kind = held_by_kind(figures)
    rows = [["KiB of a request", *by_kind]]
    for name in sessions_only(list(figures["held"])):
        rows.append([name, *(f"{of[name] / KIB:.1f}" for of in by_kind.values())])
    return rows


def worker_rows(figures: Figures) -> Rows:
    rows = [["MiB of a worker", "1 thread", "64 threads"]]
    for name, by in figures["workers"].items():
        if name != "ours, auto":
            rows.append([name, *(f"{by[threads] / KIB:.1f}" for threads in ("1", "64"))])
    return rows


def process_rows(figures: Figures) -> Rows:
    rows = [["a process of", "MiB"]]
    return rows + [[name, f"{kib / KIB:.1f}"] for name, kib in figures["memory"].items()]


# What the database does.


def examined_tables(figures: Figures) -> Iterator[tuple[str, Rows]]:
    """Yield a table for each server that tells what its commands examine."""
    for engine, verbs in figures["database"]["engines"].items():
        rows = [["request", "keys", "documents", "found"]]
        for verb, commands in (verbs or {}).items():
            for command, way, *numbers in commands:
                rows.append([f"{verb}: `{command}`, {way}", *map(str, numbers)])
        yield engine, rows


def grown_rows(figures: Figures) -> Rows:
    by_size = figures["database"]["grown"]
    rows = [["milliseconds, with", *(f"{int(size):,}" for size in by_size)]]
    for verb in next(iter(by_size.values())):
        rows.append([verb, *(f"{of[verb]:.1f}" for of in by_size.values())])
    return rows


def stored_rows(figures: Figures) -> Rows:
    stored, count = figures["database"]["stored"], figures["database"]["stored"]["count"]
    parts = {"documents": stored["size"]}
    parts |= {f"index `{name}`": size for name, size in (stored["indexSizes"] or {}).items()}
    parts["together"] = sum(parts.values())
    rows = [["bytes", f"of {count:,}", "of one", f"GB of {MANY // 10**6} million"]]
    for part, size in parts.items():
        each = size / count
        rows.append([part, f"{size:,}", f"{each:.0f}", f"{each * MANY / GB:.2f}"])
    return rows


def working_set(figures: Figures) -> float:
    """Return the bytes of the documents and indexes of very many sessions."""
    stored = figures["database"]["stored"]
    together: int = stored["size"] + sum((stored["indexSizes"] or {}).values())
    return together / stored["count"] * MANY

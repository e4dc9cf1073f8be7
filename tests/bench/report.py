"""What the figures say: as a table on a terminal, as a page of the site, and in the README."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from string import Template
from textwrap import fill
from typing import NamedTuple

from . import pictures
from .contest import CONTENDERS, EVERYWHERE, RIVALS, TOGETHER
from .measure import Figures, middle

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/benchmarks.json"
IN_COLUMNS = [name for name in EVERYWHERE if name not in ("bare", "ours, auto")]
FRAMEWORKS = ("Flask alone", "Django alone")

Rows = list[list[str]]


class Bar(NamedTuple):
    """A figure of one run that is to be at most so much; None where that is not asked."""

    what: str
    found: tuple[float, float, float]
    most: float | None

    @property
    def verdict(self) -> str:
        if self.most is None:
            return "for comparison"
        return "holds" if self.found[0] <= self.most else "does not hold"


def bars_of(figures: Figures) -> Iterator[Bar]:
    """Yield the ratios to the floor, round by round, so that a slow moment counts for both."""
    time = figures["beside the floor"]

    def ratio(kind: str, keys: int, floors: str, who: str = "ours") -> tuple[float, float, float]:
        mine, its = (time[f"{one}, {keys} keys"] for one in (kind, floors))
        pairs = zip(mine[who]["cpu"], its["floor"]["cpu"], strict=True)
        return middle([one / floor for one, floor in pairs])

    for keys in (3, 50):
        both = ratio("read and set", keys, "read and set")
        yield Bar(f"read, {keys} keys", ratio("read", keys, "read"), 1.15)
        yield Bar(f"read and set, {keys} keys", both, 1.15)
        yield Bar(f"only set, {keys} keys", ratio("set", keys, "read and set"), 0.6)
        alone = ratio("set", keys, "read and set", "floor")
        yield Bar(f"only set by the floor, {keys} keys", alone, None)
    rounds = zip(
        *(time["untouched"][name]["cpu"] for name in ("ours", "bare")),
        time["read, 3 keys"]["floor"]["cpu"],
        strict=True,
    )
    added = middle([(ours - alone) / floor for ours, alone, floor in rounds])
    yield Bar("untouched, beyond the bare application", added, 4 / 160)


def sealed_bars_of(figures: Figures) -> Iterator[Bar]:
    """Yield the CPU that a seal adds to a read, as a ratio to the find of the floor."""
    time = figures["sealed"]["time"]
    for row, most in (
        ("read, 3 keys", 25 / 160),
        ("read all, 3 keys", 25 / 160),
        ("read, 50 keys", 25 / 160),
        ("read all, 50 keys", 100 / 160),
    ):
        finds = time[row]["floor"]["cpu"]
        more = zip(_sealing(figures, row), finds, strict=True)
        yield Bar(row, middle([one / find for one, find in more]), most)


def _sealing(figures: Figures, row: str) -> list[float]:
    """Return the microseconds of CPU that a seal adds to a request, round by round."""
    time = figures["sealed"]["time"][row]
    pairs = zip(time["ours, sealed"]["cpu"], time["ours"]["cpu"], strict=True)
    return [one - other for one, other in pairs]


def added(figures: Figures, row: str, name: str) -> tuple[float, float, float]:
    """Return the CPU of a request beyond that of the same application without a session."""
    time = figures["time"]
    alone = time["untouched"][CONTENDERS[name].alone]["cpu"]
    return middle([one - of for one, of in zip(time[row][name]["cpu"], alone, strict=True)])


def quick_text(figures: Figures) -> str:
    return "\n\n".join(
        (
            _setting(figures),
            aligned(_total_rows(figures, "beside the floor", TOGETHER)),
            aligned(_bar_rows(figures)),
        )
    )


def sealed_text(figures: Figures) -> str:
    if not figures.get("sealed"):
        return "Sealed sessions need the package cryptography."
    parts = _setting(figures), *map(aligned, _sealed_tables(figures).values())
    return "\n\n".join(parts)


def as_text(figures: Figures) -> str:
    tables = {
        "CPU of the client, in microseconds, beside the floor": (
            _total_rows(figures, "beside the floor", TOGETHER)
        ),
        "CPU of the client, in microseconds, beyond the same application without a session": (
            _added_rows(figures)
        ),
        "Wall time, in microseconds": _wall_rows(figures),
        "MongoDB commands: bytes sent + received": _wire_rows(figures),
        "Requests a second (CPU in microseconds) by threads, read and set": _thread_rows(figures),
        "Keys in a session: CPU in microseconds, and bytes, to set one of them": _key_rows(figures),
        "Sessions in the collection: microseconds": _session_rows(figures),
        "Memory of a process, at most": _memory_rows(figures),
        "Bars": _bar_rows(figures),
        "Where another package costs less in the same framework": _loss_rows(figures),
    }
    if figures.get("sealed"):
        tables |= {f"Sealed: {name}": rows for name, rows in _sealed_tables(figures).items()}
    texts = [f"{title}\n{aligned(rows)}" for title, rows in tables.items()]
    return "\n\n".join((_setting(figures), *texts))


def write(figures: Figures) -> None:
    """Write the page, its pictures, the figures themselves, and the lines of the README."""
    text = json.dumps(figures, indent=1)
    RESULTS.write_text(re.sub(r"\s+(?=[^\[\]{}]*\])", " ", text) + "\n")
    for file, text in files_of(figures).items():
        file.write_text(text)
    readme = ROOT / "README.md"
    lines = f"<!-- bench -->\n{readme_of(figures)}\n<!-- /bench -->"
    text = re.sub("<!-- bench -->.*<!-- /bench -->", lines, readme.read_text(), flags=re.DOTALL)
    readme.write_text(text)


def files_of(figures: Figures) -> dict[Path, str]:
    """Return what is to be in the page and in its pictures."""
    files = {ROOT / f"docs/pictures/{name}.svg": of for name, of in pictures.of(figures, added)}
    return files | {ROOT / "docs/benchmarks.md": _page_of(figures)}


def readme_of(figures: Figures) -> str:
    """Return what the README's first screen says."""
    return (
        "![What a session adds to the CPU time of a request, here and in other session stores]"
        "(docs/pictures/bench-cpu.svg)\n\n"
        f"{_table(_readme_rows(figures))}\n\n"
        f"Measured side by side on {figures['setting']['date']} by `make bench`, without what the\n"
        "framework takes; Beaker and Flask-Session with their fastest options. All figures, and\n"
        "where others are cheaper, are in [docs/benchmarks.md](docs/benchmarks.md)."
    )


def _readme_rows(figures: Figures) -> Rows:
    kinds, large = ("read", "set", "read and set"), "set, 50 keys"
    rows = [["Commands, and µs of CPU", *kinds, "bytes to set one of 50 keys"]]

    def cell(row: str, name: str) -> str:
        number = len(figures["wire"][row][name]["commands"])
        return f"{number}, {added(figures, row, name)[0]:.0f} µs"

    for name, shown in pictures.DRAWN.items():
        cells = (cell(f"{kind}, 3 keys", name) for kind in kinds)
        rows.append([shown, *cells, f"{_bytes(figures, large, name):,}"])
    return rows


def _page_of(figures: Figures) -> str:
    template = Template(Path(__file__).with_name("page.md").read_text())
    return template.substitute(
        setting=fill(_setting(figures), 115),
        bars=_table(_bar_rows(figures)),
        losses=_table(_loss_rows(figures)),
        added=_table(_added_rows(figures)),
        total=_table(_total_rows(figures, "time", ("bare", "ours, auto", *IN_COLUMNS))),
        beside=_table(_total_rows(figures, "beside the floor", TOGETHER)),
        wall=_table(_wall_rows(figures)),
        wire=_table(_wire_rows(figures)),
        threads=_table(_thread_rows(figures)),
        keys=_table(_key_rows(figures)),
        sealed=_sealed_part(figures),
        sessions=_table(_session_rows(figures)),
        memory=_table(_memory_rows(figures)),
    )


def _sealed_part(figures: Figures) -> str:
    """Return the part of the page on sealed sessions, if they were measured."""
    if not figures.get("sealed"):
        return ""
    template = Template(Path(__file__).with_name("sealed.md").read_text())
    tables = {name: _table(rows) for name, rows in _sealed_tables(figures).items()}
    return template.substitute(tables) + "\n"


def _sealed_tables(figures: Figures) -> dict[str, Rows]:
    """Return narrow tables, by their names in the page: the CPU, the bytes, and the bars."""
    found = figures["sealed"]
    cpu, size = [["µs of CPU", "plain", "sealed", "more"]], [["bytes", "plain", "sealed"]]
    for row, by in found["time"].items():
        both = (middle(by[name]["cpu"])[0] for name in ("ours", "ours, sealed"))
        more = middle(_sealing(figures, row))
        cpu.append([row, *(f"{one:.0f}" for one in both), _spread(more)])
        wires = (found["wire"][row][name] for name in ("ours", "ours, sealed"))
        size.append([row, *(f"{wire['sent'] + wire['received']:,}" for wire in wires)])
    bars = [["more, of a find", "median", "at most", ""]]
    for bar in sealed_bars_of(figures):
        bars.append([bar.what, f"{bar.found[0]:.3f}", f"{bar.most:.3f}", bar.verdict])
    alone = [["the seal alone", "µs of CPU"]]
    alone += [[what, f"{spent:.1f}"] for what, spent in found["alone"].items()]
    return {"cpu": cpu, "bytes": size, "bars": bars, "alone": alone}


def _setting(figures: Figures) -> str:
    setting = figures["setting"]
    kind = "the embedded one, which is slow" if setting["embedded"] else "the one of MONGODB_URI"
    versions = ", ".join(f"{name} {found}" for name, found in setting["versions"].items())
    server = f"{setting['server']} ({kind})"
    if not server.startswith("MongoDB"):
        server += ", which speaks MongoDB's protocol and is not MongoDB"
    return (
        f"{setting['date']}, {setting['rounds']} rounds; {setting['machine']}; "
        f"Python {setting['python']}; {versions}; server {server}."
    )


def _bytes(figures: Figures, row: str, name: str) -> int:
    cell = figures["wire"][row][name]
    return int(cell["sent"] + cell["received"])


def _spread(found: tuple[float, float, float]) -> str:
    median, low, high = found
    return (
        f"{median:.1f} ±{(high - low) / 2:.1f}"
        if median < 10
        else (f"{median:.0f} ±{(high - low) / 2:.0f}")
    )


def _columns(
    figures: Figures, table: str, names: Sequence[str], cell: Callable[[str, str], str]
) -> Rows:
    shown = [name for name in names if any(name in by for by in figures[table].values())]
    rows = [["", *shown]]
    for row, by in figures[table].items():
        rows.append([row, *(cell(row, name) if name in by else "" for name in shown)])
    return rows


def _sessions_only(names: Sequence[str]) -> list[str]:
    return [name for name in names if name not in FRAMEWORKS]


def _total_rows(figures: Figures, table: str, names: Sequence[str]) -> Rows:
    time = figures[table]
    return _columns(
        figures, table, names, lambda row, name: _spread(middle(time[row][name]["cpu"]))
    )


def _added_rows(figures: Figures) -> Rows:
    return _columns(
        figures,
        "time",
        _sessions_only(IN_COLUMNS),
        lambda row, name: _spread(added(figures, row, name)),
    )


def _wall_rows(figures: Figures) -> Rows:
    time = figures["time"]
    return _columns(
        figures,
        "time",
        _sessions_only(IN_COLUMNS),
        lambda row, name: _spread(middle(time[row][name]["wall"])),
    )


def _wire_rows(figures: Figures) -> Rows:
    def cell(row: str, name: str) -> str:
        found = figures["wire"][row][name]
        number = len(found["commands"])
        return f"{number}: {found['sent']:,} + {found['received']:,}" if number else "0"

    return _columns(figures, "wire", _sessions_only(IN_COLUMNS), cell)


def _bar_rows(figures: Figures) -> Rows:
    rows = [["CPU, as a ratio", "median", "quartiles", "at most", ""]]
    for bar in bars_of(figures):
        median, low, high = (f"{value:.3f}" for value in bar.found)
        most = "" if bar.most is None else f"{bar.most:.3f}"
        rows.append([bar.what, median, f"{low} to {high}", most, bar.verdict])
    return rows


def _loss_rows(figures: Figures) -> Rows:
    """Return where another package costs less than this one in the same framework."""
    measures: list[tuple[str, str, Callable[[str, str], float], str]] = [
        ("µs of CPU", "time", lambda row, name: added(figures, row, name)[0], ",.1f"),
        ("commands", "wire", lambda row, name: len(figures["wire"][row][name]["commands"]), "d"),
        ("bytes", "wire", lambda row, name: _bytes(figures, row, name), ",d"),
    ]
    rows = [["request", "unit", "here", "", "there", ""]]
    for unit, table, measure, form in measures:
        for row, cells in figures[table].items():
            costs = {name: measure(row, name) for name in cells}
            for peer, rival in RIVALS.items():
                if peer in costs and costs[peer] < costs[rival]:
                    cost, less = (f"{costs[name]:{form}}" for name in (rival, peer))
                    rows.append([row, unit, rival, cost, peer, less])
    return rows


def _thread_rows(figures: Figures) -> Rows:
    numbers = list(figures["threads"]["ours"])
    rows = [["threads", *numbers]]
    for name, by in figures["threads"].items():
        cells = (by.get(number) for number in numbers)
        rows.append([name, *("" if one is None else _rate(one) for one in cells)])
    return rows


def _rate(cell: Figures) -> str:
    return f"{middle(cell['rate'])[0]:,.0f} ({middle(cell['cpu'])[0]:.0f})"


def _key_rows(figures: Figures) -> Rows:
    rows = [["keys", *figures["cpu by keys"]["ours"]]]
    for name, by in figures["cpu by keys"].items():
        wires = figures["wire by keys"][name]
        cells = [
            f"{middle(spent)[0]:.0f}; {wires[keys]['sent'] + wires[keys]['received']:,}"
            for keys, spent in by.items()
        ]
        rows.append([name, *cells])
    return rows


def _session_rows(figures: Figures) -> Rows:
    rows = [["sessions", "read: CPU", "wall", "set: CPU", "wall"]]
    for size, by in figures["sessions"].items():
        cells = (middle(by[kind][of]) for kind in ("read", "set") for of in ("cpu", "wall"))
        rows.append([f"{int(size):,}", *map(_spread, cells)])
    return rows


def _memory_rows(figures: Figures) -> Rows:
    rows = [["a process of", "MiB"]]
    return rows + [[name, f"{kib / 1024:.1f}"] for name, kib in figures["memory"].items()]


def aligned(rows: Rows) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _table(rows: Rows) -> str:
    head, *body = rows
    marks = ["---", *("--:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *body))

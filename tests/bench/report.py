"""What the figures say: as tables on a terminal, as a page of the site, and in the README."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from string import Template
from textwrap import fill

from . import pictures, rows
from .bars import added, bar_rows, loss_rows, rate_rows, size
from .measure import Figures
from .summary import lines
from .tables import FAMILIES, Rows, aligned, fold, folded_by_family, markdown

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/benchmarks.json"
WIDTH = 115
SERVERS = {
    "embedded": "the embedded one, which is slow",
    "java": "in memory, `make bench SERVER=java`",
    "rust": "a fast engine, `make bench SERVER=rust`",
    "yours": "the one of `MONGODB_URI`",
}

RATES = (
    "![Requests a second of whole pages, here and elsewhere, in % of a handler written by hand]"
    "(pictures/bench-rates.svg)"
)

Text = Callable[[Figures], str]


def _table(part: str, of: Callable[[Figures], Rows]) -> tuple[str, Text]:
    return part, lambda figures: markdown(of(figures))


def _fold(part: str, title: str, of: Callable[[Figures], Rows]) -> tuple[str, Text]:
    return part, lambda figures: fold([(title, of(figures))])


def _by_family(part: str, of: Callable[[Figures, list[str]], Rows]) -> tuple[str, Text]:
    return part, lambda figures: folded_by_family(lambda names: of(figures, list(names)))


def _by_worker(of: Callable[..., object]) -> tuple[str, Text]:
    """Fold a table for each framework and each kind of gunicorn's workers."""
    return "throughput", lambda figures: fold(
        (f"{family}, {worker}", table)
        for family, names in FAMILIES.items()
        for worker, table in of(figures, names)  # type: ignore[attr-defined]
    )


PLACES: dict[str, tuple[str, Text]] = {
    "summary": (
        "time",
        lambda figures: "\n".join(
            fill(one, WIDTH, subsequent_indent="  ") for one in lines(figures)
        ),
    ),
    "setting": ("time", lambda figures: fill(setting_of(figures, "time"), WIDTH)),
    "rates_picture": ("time", lambda figures: RATES if figures.get("throughput") else ""),
    "bars": _table("beside the floor", bar_rows),
    "rates": _table("throughput", rate_rows),
    "beside": _fold("beside the floor", "Microseconds of these rounds", rows.beside_rows),
    "losses": _table("time", loss_rows),
    "added": _by_family("time", rows.added_rows),
    "total": _by_family("time", rows.total_rows),
    "throughput": _by_worker(rows.rate_tables),
    "percentiles": _by_worker(rows.percentile_tables),
    "sides": _table("throughput", rows.both_sides_rows),
    "crowded": _table("crowded", rows.crowded_rows),
    "wire": _by_family("wire", rows.wire_rows),
    "wall": _by_family("time", rows.wall_rows),
    "threads": _fold("threads", "Requests a second, by threads", rows.thread_rows),
    "keys": _fold("cpu by keys", "CPU and bytes, by keys", rows.key_rows),
    "seal_cpu": _table("sealed", rows.seal_cpu_rows),
    "seal_alone": _table("sealed", rows.seal_alone_rows),
    "seal_bytes": _table("sealed", rows.seal_byte_rows),
    "seal_bars": _table("sealed", rows.seal_bar_rows),
    "sessions": _fold("sessions", "Microseconds, by sessions", rows.session_rows),
    "held": _table("held", rows.held_rows),
    "workers": _table("workers", rows.worker_rows),
    "memory": _fold("memory", "The most that a process had", rows.process_rows),
    "examined": ("database", lambda figures: fold(rows.examined_tables(figures))),
    "grown": _table("database", rows.grown_rows),
    "silent": ("database", lambda figures: _silent(figures)),
    "stored": _table("database", rows.stored_rows),
}
"""What stands in the page for a name: the part of a run that it needs, and the text."""

TERMINAL: dict[str, tuple[str, Callable[[Figures], Rows]]] = {
    "CPU of the client, in microseconds, beside the floor": ("beside the floor", rows.beside_rows),
    "Bars": ("beside the floor", bar_rows),
    "Requests a second, as ratios": ("throughput", rate_rows),
    "Requests a second by sessions": ("crowded", rows.crowded_rows),
    "CPU on both sides, gthread, 8 connections": ("throughput", rows.both_sides_rows),
    "Requests a second (CPU in microseconds) by threads, read and set": (
        "threads",
        rows.thread_rows,
    ),
    "Keys in a session: CPU in microseconds, and bytes, to set one": ("cpu by keys", rows.key_rows),
    "Sessions in the collection: microseconds": ("sessions", rows.session_rows),
    "Sealed: CPU": ("sealed", rows.seal_cpu_rows),
    "Sealed: the seal alone": ("sealed", rows.seal_alone_rows),
    "Sealed: bytes": ("sealed", rows.seal_byte_rows),
    "Sealed: bars": ("sealed", rows.seal_bar_rows),
    "What a request holds": ("held", rows.held_rows),
    "Workers of gunicorn": ("workers", rows.worker_rows),
    "Memory of a process, at most": ("memory", rows.process_rows),
    "Milliseconds of a command, by sessions": ("database", rows.grown_rows),
    "Many sessions": ("database", rows.stored_rows),
    "Where another package costs less in the same framework": ("time", loss_rows),
}
FAMILY_TABLES: dict[str, tuple[str, Callable[[Figures, list[str]], Rows]]] = {
    "CPU in microseconds, beyond the same application without a session": ("time", rows.added_rows),
    "Wall time, in microseconds": ("time", rows.wall_rows),
    "MongoDB commands: bytes sent + received": ("wire", rows.wire_rows),
}


def saved() -> Figures:
    """Return the figures that the page was made of."""
    figures: Figures = json.loads(RESULTS.read_text())
    return figures


def merged(saved: Figures, figures: Figures) -> Figures:
    """Return the figures of a run, and those saved of all that the run has not measured."""
    settings = saved["settings"] | figures.get("settings", {})
    return saved | figures | {"settings": settings}


def as_text(figures: Figures) -> str:
    """Return the tables of the parts that were measured."""
    tables = {title: of(figures) for title, (part, of) in TERMINAL.items() if figures.get(part)}
    for title, (part, of_names) in FAMILY_TABLES.items():
        if figures.get(part):
            for family, names in FAMILIES.items():
                tables[f"{family}: {title}"] = of_names(figures, names)
    if figures.get("throughput"):
        for family, names in FAMILIES.items():
            for worker, table in rows.rate_tables(figures, names):
                tables[f"{family}: requests a second (to the floor's), {worker}"] = table
    if figures.get("database"):
        for engine, table in rows.examined_tables(figures):
            tables[f"Keys and documents that {engine} examines"] = table
    texts = [f"{title}\n{aligned(table)}" for title, table in tables.items() if len(table) > 1]
    # The load is another for each part, and the first one says enough.
    settings = {
        setting_of(figures, part, brief=True): setting_of(figures, part)
        for part in reversed(figures["settings"])
    }
    return "\n\n".join([*settings.values(), *texts])


def write(figures: Figures) -> None:
    """Write the page, its pictures, the figures themselves, and the lines of the README."""
    readme = ROOT / "README.md"
    ours = f"<!-- bench -->\n{readme_of(figures)}\n<!-- /bench -->"
    whole = re.sub("<!-- bench -->.*<!-- /bench -->", ours, readme.read_text(), flags=re.DOTALL)
    results = re.sub(r"\s+(?=[^\[\]{}]*\])", " ", json.dumps(figures, indent=1)) + "\n"
    for file, text in (files_of(figures) | {readme: whole, RESULTS: results}).items():
        file.write_text(text)


def files_of(figures: Figures) -> dict[Path, str]:
    """Return what is to be in the page and in its pictures."""
    files = {ROOT / f"docs/pictures/{name}.svg": of for name, of in pictures.of(figures, added)}
    return files | {ROOT / "docs/benchmarks.md": page_of(figures)}


def page_of(figures: Figures) -> str:
    """Return the page: those sections of the template whose parts were measured."""
    sections = re.split(r"(?m)^(?=## )", Path(__file__).with_name("page.md").read_text())
    texts = (_section(figures, section) for section in sections)
    page = "".join(text for text in texts if text is not None)
    return re.sub("\n{3,}", "\n\n", page).rstrip() + "\n"


def _section(figures: Figures, section: str) -> str | None:
    """Fill a section of the page, and say where its part was measured, if elsewhere."""
    names = re.findall(r"(?<!\$)\$([a-z_]+)", section)
    parts = dict.fromkeys(PLACES[name][0] for name in names)
    if not all(figures.get(part) for part in parts):
        return None
    filled = Template(section).substitute({name: PLACES[name][1](figures) for name in names})
    others = dict.fromkeys(
        setting_of(figures, part, brief=True)
        for part in parts
        if setting_of(figures, part, brief=True) != setting_of(figures, "time", brief=True)
    )
    title, _, rest = filled.partition("\n")
    return "\n".join([title, *(f"\nMeasured at another time: {one}" for one in others), rest])


def setting_of(figures: Figures, part: str, *, brief: bool = False) -> str:
    """Say where and when a part was measured."""
    setting = figures["settings"][part]
    server = f"{setting['server']} ({SERVERS[setting['chosen']]})"
    if not server.startswith("MongoDB"):
        server += ", which speaks MongoDB's protocol and is not MongoDB"
    if brief:
        return f"{setting['date']}, {setting['rounds']} rounds; server {server}."
    versions = ", ".join(f"{name} {found}" for name, found in setting["versions"].items())
    return (
        f"{setting['date']}, {setting['rounds']} rounds; {setting['machine']}, load "
        f"{setting['load']} at the begin; Python {setting['python']}; {versions}; server {server}."
    )


def _silent(figures: Figures) -> str:
    engines = figures["database"]["engines"]
    silent = [engine for engine, verbs in engines.items() if verbs is None]
    return f"There is no `explain` in {' and '.join(silent)}." if silent else ""


def readme_of(figures: Figures) -> str:
    """Return what the README's first screen says."""
    setting = figures["settings"]["time"]
    chosen = setting["chosen"]
    command = f"make bench SERVER={chosen}" if chosen in ("java", "rust") else "make bench"
    return (
        "![What a session adds to the CPU time of a request, here and in other session stores]"
        "(docs/pictures/bench-cpu.svg)\n\n"
        f"{markdown(_readme_rows(figures))}\n\n"
        f"Measured side by side on {setting['date']} by `{command}`, without\n"
        "what the framework takes; Beaker and Flask-Session with their fastest options. All\n"
        "figures, and where others are cheaper, are in [docs/benchmarks.md](docs/benchmarks.md)."
    )


def _readme_rows(figures: Figures) -> Rows:
    kinds, large = ("read", "set", "read and set"), "set, 50 keys"
    table = [["Commands, and µs of CPU", *kinds, "bytes to set one of 50 keys"]]

    def cell(row: str, name: str) -> str:
        number = len(figures["wire"][row][name]["commands"])
        return f"{number}, {added(figures, row, name)[0]:.0f} µs"

    for name, shown in pictures.DRAWN.items():
        cells = (cell(f"{kind}, 3 keys", name) for kind in kinds)
        table.append([shown, *cells, f"{size(figures, large, name):,}"])
    return table

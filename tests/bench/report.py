"""What the figures say: as a table on a terminal, as a page of the site, and as a picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from .contenders import CONTENTS, KINDS, PEERS

ROOT = Path(__file__).parents[2]
PAGE = Path(__file__).with_name("page.md")
SHOWN = ("floor", "ours", *PEERS, "Django, our engine")
DRAWN = ("ours", "Beaker, tuned", "Flask-Session, tuned", "Django")
KINDS_DRAWN = ("read", "set", "read+set", "login")

Figures = dict[str, Any]


class Bar(NamedTuple):
    """A figure that is to be at most so much."""

    what: str
    found: float
    most: float
    unit: str = ""

    @property
    def verdict(self) -> str:
        return "holds" if self.found <= self.most else "does not hold"


def bars_of(figures: Figures) -> Iterator[Bar]:
    for label in CONTENTS:

        def cpu(kind: str, name: str, label: str = label) -> float:
            return float(figures["time"][f"{kind}, {label}"][name]["cpu"])

        both = cpu("read+set", "floor")
        yield Bar(f"a read, {label}", cpu("read", "ours") / cpu("read", "floor"), 1.15)
        yield Bar(f"only a write, {label}", cpu("set", "ours") / both, 0.6)
        yield Bar(f"read and set, {label}", cpu("read+set", "ours") / both, 1.15)
        added = cpu("untouched", "ours") - cpu("untouched", "bare")
        yield Bar(f"untouched, {label}", added, 4, " µs")


def losses_of(figures: Figures) -> Iterator[str]:
    """Yield where a peer costs less than this package does."""
    for row in figures["time"]:
        for name in PEERS:
            ours, peer = (figures["time"][row][who]["cpu"] for who in ("ours", name))
            if peer < ours:
                yield f"{row}: {name} takes {peer:.1f} µs of CPU, this {ours:.1f}"
            mine, theirs = (figures["wire"][row][who] for who in ("ours", name))
            if len(theirs["commands"]) < len(mine["commands"]):
                yield f"{row}: {name} sends {len(theirs['commands'])} commands"
            if _bytes(theirs) < _bytes(mine):
                yield f"{row}: {name} moves {_bytes(theirs):,} bytes, this {_bytes(mine):,}"


def as_text(figures: Figures) -> str:
    setting = figures["setting"]
    machine = f"{setting['date']}, {setting['machine']}, Python {setting['python']}"
    lines = [
        f"{machine}, server {_server(setting)}, {setting['requests']} requests a cell",
        "",
        "CPU of the client, in microseconds: the median of the requests",
    ]
    lines += _aligned(_cpu_rows(figures))
    lines += ["", "MongoDB commands, and bytes sent and received"]
    lines += _aligned(_wire_rows(figures))
    lines += ["", "Bars, as ratios to the floor"]
    lines += _aligned(_bar_rows(figures))
    lines += ["", "Where a peer costs less:", *(list(losses_of(figures)) or ["nowhere"])]
    return "\n".join(lines)


def write(figures: Figures) -> None:
    """Write the page, its picture, and the lines of the README."""
    (ROOT / "docs/pictures/bench-cpu.svg").write_text(picture_of(figures))
    (ROOT / "docs/benchmarks.md").write_text(page_of(figures))
    readme = ROOT / "README.md"
    lines = f"<!-- bench -->\n{readme_of(figures)}\n<!-- /bench -->"
    text = re.sub(r"<!-- bench -->.*<!-- /bench -->", lines, readme.read_text(), flags=re.DOTALL)
    readme.write_text(text)


def readme_of(figures: Figures) -> str:
    return (
        "![The client's CPU time of a request, here and in other session stores]"
        "(docs/pictures/bench-cpu.svg)\n\n"
        f"Measured side by side on {figures['setting']['date']} by `make bench`; all figures, and\n"
        "where others are cheaper, are in [docs/benchmarks.md](docs/benchmarks.md)."
    )


def page_of(figures: Figures) -> str:
    setting = figures["setting"]
    versions = ", ".join(f"{name} {found}" for name, found in setting["versions"].items())
    losses = "\n".join(f"- {loss}" for loss in losses_of(figures)) or "- Nowhere."
    return Template(PAGE.read_text()).substitute(
        date=setting["date"],
        machine=setting["machine"],
        python=setting["python"],
        server=_server(setting),
        versions=versions,
        requests=setting["requests"],
        bars=_table(_bar_rows(figures)),
        losses=losses,
        cpu=_table(_cpu_rows(figures)),
        wire=_table(_wire_rows(figures)),
        threads=_table(_thread_rows(figures)),
        keys=_table(_key_rows(figures)),
        sessions=_table(_session_rows(figures)),
        memory=_table(_memory_rows(figures)),
    )


def _server(setting: Figures) -> str:
    kind = "the embedded one, which is slow" if setting["embedded"] else "the one of MONGODB_URI"
    if setting["server"].startswith("MongoDB"):
        return f"{setting['server']} ({kind})"
    speaks = "which speaks MongoDB's protocol on MongoDB's storage engine and is not MongoDB"
    return f"{setting['server']} ({kind}), {speaks}"


def _bytes(wire: Figures) -> int:
    return int(wire["sent"] + wire["received"])


def _bar_rows(figures: Figures) -> list[list[str]]:
    rows = [["CPU", "found", "at most", ""]]
    for bar in bars_of(figures):
        rows.append([bar.what, f"{bar.found:.2f}{bar.unit}", f"{bar.most}{bar.unit}", bar.verdict])
    return rows


def _cpu_rows(figures: Figures) -> list[list[str]]:
    rows = [["", *SHOWN]]
    for row, by in figures["time"].items():
        rows.append([row, *(f"{by[name]['cpu']:.1f}" for name in SHOWN)])
    return rows


def _wire_rows(figures: Figures) -> list[list[str]]:
    rows = [["", *SHOWN]]
    for row, by in figures["wire"].items():
        cells = ((len(by[name]["commands"]), _bytes(by[name])) for name in SHOWN)
        rows.append([row, *(f"{commands}, {size:,}" for commands, size in cells)])
    return rows


def _thread_rows(figures: Figures) -> list[list[str]]:
    numbers = list(figures["threads"]["ours"])
    rows = [["threads", *map(str, numbers)]]
    for name, rates in figures["threads"].items():
        rows.append([name, *(f"{rates[n]:,.0f}" if n in rates else "" for n in numbers)])
    return rows


def _key_rows(figures: Figures) -> list[list[str]]:
    numbers = list(figures["keys"]["ours"])
    rows = [["keys", *map(str, numbers)]]
    for name, spent in figures["keys"].items():
        rows.append([name, *(f"{spent[n]:.0f}" for n in numbers)])
    return rows


def _session_rows(figures: Figures) -> list[list[str]]:
    rows = [["sessions", "a read: CPU", "wall", "a write: CPU", "wall"]]
    for size, by in figures["sessions"].items():
        cells = (by[kind][of] for kind in ("read", "set") for of in ("cpu", "wall"))
        rows.append([f"{int(size):,}", *(f"{cell:.0f}" for cell in cells)])
    return rows


def _memory_rows(figures: Figures) -> list[list[str]]:
    rows = [["in one process", "MiB"]]
    for names, kib in figures["memory"].items():
        rows.append([names, f"{kib / 1024:.0f}"])
    return rows


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    marks = ["---", *("--:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *body))


SVG = Template("""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 $height" role="img"
  aria-labelledby="title desc" font-family="system-ui, sans-serif" font-size="13">
<title id="title">CPU time of the client per request</title>
<desc id="desc">$desc</desc>
<style>
  text { fill: #1f2328 } .soft { fill: #59636e } .bar { fill: #9aa4ae } .ours { fill: #0a6b4a }
  line { stroke: #0a6b4a; stroke-width: 2; stroke-dasharray: 3 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .soft { fill: #9198a1 } .bar { fill: #59636e } .ours { fill: #5fd3a3 }
    line { stroke: #5fd3a3 }
  }
</style>
<text x="0" y="16" font-weight="600">CPU time of the client per request, in microseconds</text>
<text x="0" y="35" class="soft">Less is better. The dashed line is a handler written by hand.</text>
$groups</svg>
""")
GROUP = Template('<text x="0" y="$y" font-weight="600">$kind</text>\n')
BAR = Template(
    '<text x="0" y="$text_y">$name</text>\n'
    '<rect x="160" y="$y" width="$width" height="15" rx="2" class="$kind"/>\n'
    '<text x="$end" y="$text_y">$value</text>\n'
)
LINE = Template('<line x1="$x" x2="$x" y1="$top" y2="$bottom"/>\n')


def picture_of(figures: Figures) -> str:
    """Draw the kinds of requests that matter most, for sessions of three keys."""
    label = next(iter(CONTENTS))
    spent = {kind: figures["time"][f"{kind}, {label}"] for kind in KINDS if kind in KINDS_DRAWN}
    scale = 490 / max(by[name]["cpu"] for by in spent.values() for name in DRAWN)
    y, groups, told = 62, "", []
    for kind, by in spent.items():
        groups += GROUP.substitute(y=y, kind=kind)
        top = y + 7
        for name in DRAWN:
            y += 21
            cpu = by[name]["cpu"]
            groups += BAR.substitute(
                name="mongosession-wsgi" if name == "ours" else name,
                kind="ours" if name == "ours" else "bar",
                y=y - 12,
                text_y=y,
                width=f"{cpu * scale:.0f}",
                end=f"{cpu * scale + 167:.0f}",
                value=f"{cpu:.0f}",
            )
            told.append(f"{kind}, {name}: {cpu:.0f}")
        floor = 160 + by["floor"]["cpu"] * scale
        groups += LINE.substitute(x=f"{floor:.0f}", top=top, bottom=y + 5)
        y += 34
    return SVG.substitute(height=y - 10, groups=groups, desc="; ".join(told))

"""The figures as pictures: SVG, for light and dark pages, and for as wide as a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import log10
from string import Template
from typing import NamedTuple

from .bars import to
from .contest import RIVALS, floor_of
from .measure import Figures, middle

DRAWN = {
    "ours": "mongosession-wsgi",
    "Beaker, tuned": "Beaker",
    "Flask, ours": "ours, in Flask",
    "Flask-Session, tuned": "Flask-Session",
    "Django, ours": "ours, in Django",
    "Django": "Django",
}
WIDTH, NAMES, ROOM = 480, 142, 270
"""The whole, the column of the names, and the longest bar."""

Added = Callable[[Figures, str, str], tuple[float, float, float]]

PICTURE = Template("""\
<svg xmlns="http://www.w3.org/2000/svg" width="$width" viewBox="0 0 $width $height" role="img"
  aria-labelledby="title desc" font-family="system-ui, sans-serif" font-size="13">
<title id="title">$title</title>
<desc id="desc">$desc</desc>
<style>
  text { fill: #1f2328 } .soft { fill: #59636e } .line, .axis { stroke: #818b98 }
  .bar { fill: #9aa4ae } .ours { fill: #0a6b4a } .line { stroke-width: 2 }
  .floor { stroke: #1f2328; stroke-width: 2 }
  .line.ours { stroke: #0a6b4a; stroke-width: 3 } text.ours { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .soft { fill: #9198a1 } .bar { fill: #59636e } .ours { fill: #5fd3a3 }
    .line, .axis { stroke: #656c76 } .floor { stroke: #f0f6fc }
    .line.ours { stroke: #5fd3a3 }
  }
</style>
<text x="0" y="16" font-weight="600">$title</text>
<text x="0" y="34" class="soft">$subtitle</text>
$drawn</svg>
""")
GROUP = Template('<text x="0" y="$y" font-weight="600">$name</text>\n')
BAR = Template(
    '<text x="0" y="$baseline">$name</text>\n'
    '<rect x="$begin" y="$y" width="$width" height="14" rx="2" class="$kind"/>\n'
    '<text x="$end" y="$baseline">$value</text>\n'
)
FLOOR = Template('<line x1="$x" x2="$x" y1="$top" y2="$bottom" class="floor"/>\n')
LINE = Template(
    '<polyline points="$points" class="line $kind" style="fill: none"/>\n'
    '<text x="$x" y="$y" class="$kind">$name</text>\n'
)


class Group(NamedTuple):
    """The bars of one kind of request, and where ours would be at the floor."""

    name: str
    values: dict[str, float]
    floor: float


def of(figures: Figures, added: Added) -> Iterator[tuple[str, str]]:
    """Yield every picture, after its name."""
    names = [name for name in DRAWN if name in figures["memory"]]

    def group(row: str, value: Callable[[str, str], float]) -> Group:
        return Group(row, {name: value(row, name) for name in names}, value(row, "floor"))

    def moved(row: str, name: str) -> float:
        cell = figures["wire"][row][name]
        return float(cell["sent"] + cell["received"])

    kinds = ("read", "set", "read and set")
    times = [group(f"{kind}, 3 keys", lambda *of: added(figures, *of)[0]) for kind in kinds]
    large = ("read, 50 keys", "set, 50 keys", "nested change, 50 keys", "log out, 50 keys")
    yield (
        "bench-cpu",
        bars(
            "What a session adds to a request: µs of the client’s CPU",
            "Less is better. The mark: a handler written by hand.",
            times,
        ),
    )
    yield (
        "bench-bytes",
        bars(
            "Bytes between the application and MongoDB",
            "Sent and received. The mark: a handler written by hand.",
            [group(row, moved) for row in large],
        ),
    )
    if figures.get("throughput"):
        yield "bench-rates", rates(figures)
    yield "bench-keys", growth(figures, [name for name in names if name in figures["cpu by keys"]])


def rates(figures: Figures) -> str:
    """Draw requests a second with threads and 8 connections, as shares of the floor's."""
    cells = figures["throughput"]["cells"]["gthread"]["8"]

    def share(kind: str, name: str) -> float:
        return 100 * to(cells[kind][name]["rate"], cells[kind][floor_of(name)]["rate"])

    return bars(
        "Requests a second, in % of a handler written by hand",
        "More is better. The mark: by hand, in the same framework.",
        [
            Group(f"a page: {kind}", {name: share(kind, name) for name in DRAWN if name in by}, 100)
            for kind, by in cells.items()
        ],
        across_all=True,
    )


def bars(title: str, subtitle: str, groups: Iterable[Group], *, across_all: bool = False) -> str:
    """Draw bars, and a mark at the floor: across the first, or across all of a group."""
    groups = list(groups)
    scale = ROOM / max(value for group in groups for value in group.values.values())
    y, drawn = 60, ""
    for group in groups:
        drawn += GROUP.substitute(y=y, name=group.name)
        top = y + 6
        x = round(NAMES + group.floor * scale)
        bottom = top + 20 * (len(group.values) if across_all else 1)
        mark = FLOOR.substitute(x=x, top=top, bottom=bottom)
        drawn += mark if across_all else ""  # Behind the bars and their values.
        for name, value in group.values.items():
            y += 20
            drawn += BAR.substitute(
                name=DRAWN[name],
                kind="bar" if name in RIVALS else "ours",
                begin=NAMES,
                y=y - 11,
                baseline=y,
                width=round(value * scale),
                end=round(NAMES + value * scale + 6),
                value=f"{value:,.0f}",
            )
        drawn += "" if across_all else mark
        y += 30
    told = "; ".join(
        f"{group.name}: {DRAWN[name]} {value:,.0f}"
        for group in groups
        for name, value in group.values.items()
    )
    return PICTURE.substitute(
        width=WIDTH, height=y - 12, title=title, subtitle=subtitle, drawn=drawn, desc=told
    )


def growth(figures: Figures, names: list[str]) -> str:
    """Draw the CPU of setting one key by the keys of the session, both on logarithmic scales."""
    spent = {name: figures["cpu by keys"][name] for name in names}
    values = {
        name: {int(keys): middle(found)[0] for keys, found in by.items()}
        for name, by in spent.items()
    }
    left, right, top, bottom, drawn = 46, 325, 62, 262, ""
    low = log10(min(min(by.values()) for by in values.values())) - 0.05
    high = log10(max(max(by.values()) for by in values.values())) + 0.05
    most = log10(max(max(by) for by in values.values()))

    def place(keys: int, value: float) -> tuple[int, int]:
        across = log10(keys) / most * (right - left)
        return round(left + across), round(bottom - (log10(value) - low) / (high - low) * 200)

    for keys in values["ours"]:
        x = place(keys, 10**low)[0]
        drawn += f'<text x="{x}" y="{bottom + 20}" text-anchor="middle">{keys:,}</text>\n'
    for tick in (100, 200, 500, 1000, 2000, 5000, 10000):
        if low <= log10(tick) <= high:
            y = place(1, tick)[1]
            drawn += f'<path d="M{left} {y}H{right}" class="axis" stroke-opacity=".35"/>\n'
            drawn += f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{tick:,}</text>\n'
    drawn += f'<path d="M{left} {top}V{bottom}H{right}" class="axis" fill="none"/>\n'
    label_y = 0
    for name, by in sorted(values.items(), key=lambda item: -max(item[1].values())):
        points = [place(keys, value) for keys, value in by.items()]
        label_y = max(points[-1][1] + 4, label_y + 16)
        drawn += LINE.substitute(
            points=" ".join(f"{x},{y}" for x, y in points),
            kind="soft" if name in RIVALS else "ours",
            x=right + 8,
            y=label_y,
            name=DRAWN[name],
        )
    told = "; ".join(
        f"{DRAWN[name]}, {keys:,} keys: {value:,.0f}"
        for name, by in values.items()
        for keys, value in by.items()
    )
    return PICTURE.substitute(
        width=WIDTH,
        height=bottom + 30,
        title="Setting one key: µs of the client’s CPU",
        subtitle="By the number of keys in the session; both scales are logarithmic.",
        drawn=drawn,
        desc=told,
    )

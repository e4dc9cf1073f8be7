"""What this package wants to keep, as ratios, and where another package costs less."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from .contest import CONTENDERS, RIVALS
from .measure import Figures, middle
from .tables import Rows

FASTER = {"read": 0.97, "set": 0.92, "read and set": 0.95}
"""The least requests a second, to those of the floor."""
FLASK_SESSIONS = ("Flask-Session", "Flask-Session, tuned")


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

    def row(self) -> list[str]:
        found, low, high = self.found
        most = "" if self.most is None else f"{self.most:.3f}"
        return [self.what, f"{found:.3f} ±{(high - low) / 2:.3f}", most, self.verdict]


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
        more = zip(sealing(figures, row), finds, strict=True)
        yield Bar(row, middle([one / find for one, find in more]), most)


def sealing(figures: Figures, row: str) -> list[float]:
    """Return the microseconds of CPU that a seal adds to a request, round by round."""
    time = figures["sealed"]["time"][row]
    pairs = zip(time["ours, sealed"]["cpu"], time["ours"]["cpu"], strict=True)
    return [one - other for one, other in pairs]


def bar_rows(figures: Figures) -> Rows:
    rows = (bar.row() for bar in bars_of(figures))
    return [["CPU, to the floor's", "median", "at most", ""], *rows]


class Rate(NamedTuple):
    """Ratios of requests a second, by worker and number of connections, that are to be so high."""

    what: str
    found: dict[str, float]
    least: float

    @property
    def verdict(self) -> str:
        held = sum(one >= self.least for one in self.found.values())
        if held == len(self.found):
            return "holds"
        return f"holds in {held} of {len(self.found)}" if held else "does not hold"

    def row(self) -> list[str]:
        where = min(self.found, key=lambda one: self.found[one])
        lowest = f"{self.found[where]:.2f} ({where})"
        return [self.what, f"{median(self.found.values()):.2f}", lowest, f"{self.least:.2f}",
                self.verdict]  # fmt: skip


def rates_of(figures: Figures) -> Iterator[Rate]:
    """Yield the ratios to the floor, and in Flask to the faster of Flask-Session's options."""
    for kind, least in FASTER.items():
        yield Rate(f"{kind}, to the floor", ratios(figures, kind, "ours", ("floor",)), least)
    for kind in FASTER:
        found = ratios(figures, kind, "Flask, ours", FLASK_SESSIONS)
        if found:
            yield Rate(f"{kind}, in Flask, to Flask-Session", found, 1)


def ratios(figures: Figures, kind: str, name: str, others: tuple[str, ...]) -> dict[str, float]:
    """Return a contender's requests a second to those of the fastest of others, in each cell."""
    found = {}
    for worker, by_number in figures["throughput"]["cells"].items():
        for number, kinds in by_number.items():
            cells = kinds[kind]
            if name in cells and all(other in cells for other in others):
                found[f"{worker}, {number}"] = min(
                    to(cells[name]["rate"], cells[other]["rate"]) for other in others
                )
    return found


def to(rates: list[float], others: list[float]) -> float:
    """Return the median of the ratios turn by turn: a slow moment counts for both."""
    return median(one / other for one, other in zip(rates, others, strict=True))


def rate_rows(figures: Figures) -> Rows:
    head = ["as a ratio", "median", "lowest", "least", ""]
    return [head, *(rate.row() for rate in rates_of(figures))]


def added(figures: Figures, row: str, name: str) -> tuple[float, float, float]:
    """Return the CPU of a request beyond that of the same application without a session."""
    time = figures["time"]
    alone = time["untouched"][CONTENDERS[name].alone]["cpu"]
    return middle([one - of for one, of in zip(time[row][name]["cpu"], alone, strict=True)])


def size(figures: Figures, row: str, name: str) -> int:
    """Return the bytes of a request, sent and received."""
    cell = figures["wire"][row][name]
    return int(cell["sent"] + cell["received"])


class Loss(NamedTuple):
    """A request that costs more here than there, in some unit."""

    request: str
    unit: str
    rival: str
    cost: str
    peer: str
    less: str


def costs_of(figures: Figures) -> Iterator[tuple[str, str, dict[str, dict[str, float]]]]:
    """Yield what is compared: a unit, the form of its figures, and those by row and contender."""
    time, wire = figures["time"], figures.get("wire", {})  # A run may leave parts out.
    spent = {row: {name: added(figures, row, name)[0] for name in by} for row, by in time.items()}
    yield "µs of CPU", ",.1f", spent
    commands = {
        row: {name: float(len(of["commands"])) for name, of in by.items()}
        for row, by in wire.items()
    }
    yield "commands", ".0f", commands
    sizes = {
        row: {name: float(size(figures, row, name)) for name in by} for row, by in wire.items()
    }
    yield "bytes", ",.0f", sizes
    if "held" in figures:
        yield "bytes held", ",.0f", held_by_kind(figures)


def held_by_kind(figures: Figures) -> dict[str, dict[str, float]]:
    """Return the bytes that a request holds beyond the same application without a session."""
    found: dict[str, dict[str, float]] = {}
    for name, by in figures["held"].items():
        alone = CONTENDERS[name].alone
        if name != alone:
            for kind, held in by.items():
                found.setdefault(kind, {})[name] = held - figures["held"][alone]["untouched"]
    return found


def losses_of(figures: Figures) -> list[Loss]:
    """Return where another package costs less than this one in the same framework."""
    return [
        Loss(row, unit, rival, f"{costs[rival]:{form}}", peer, f"{costs[peer]:{form}}")
        for unit, form, cells in costs_of(figures)
        for row, costs in cells.items()
        for peer, rival in RIVALS.items()
        if peer in costs and costs[peer] < costs[rival]
    ]


def compared(figures: Figures) -> int:
    """Return how many times another package was compared with this one."""
    cells = [cells for _, _, by in costs_of(figures) for cells in by.values()]
    return sum(peer in costs for costs in cells for peer in RIVALS)


def loss_rows(figures: Figures) -> Rows:
    rows = [["request", "here", "there"]]
    for one in losses_of(figures):
        here, there = f"{one.rival} {one.cost}", f"{one.peer} {one.less}"
        rows.append([f"{one.request}: {one.unit}", here, there])
    return rows if len(rows) > 1 else [*rows, ["none", "", ""]]

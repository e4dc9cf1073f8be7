"""What a session costs, in a few sentences with the figures of a run."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from .bars import FASTER, FLASK_SESSIONS, added, compared, held_by_kind, losses_of, ratios, size
from .measure import Figures
from .rows import GB, KIB, working_set

BEAKER, FLASK, DJANGO = "Beaker, tuned", "Flask-Session, tuned", "Django"


def summary(figures: Figures) -> list[str]:
    """Return the sentences, as far as their parts were measured."""
    parts = {
        "time": (_read, _set),
        "throughput": (_rates,),
        "held": (_memory,),
        "database": (_database,),
    }
    sentences = [line(figures) for key, lines in parts.items() if key in figures for line in lines]
    return [*sentences, _losses(figures)]


def _read(figures: Figures) -> str:
    return f"**A page that reads** its session takes {_costs(figures, 'read, 3 keys')}."


def _set(figures: Figures) -> str:
    names = ("ours", BEAKER, FLASK, DJANGO)
    here, beaker, flask, django = (f"{size(figures, 'set, 50 keys', name):,}" for name in names)
    return (
        f"**A page that sets** a key takes {_costs(figures, 'set, 3 keys')}. To set one of 50 keys "
        f"moves {here} bytes here, {beaker} with Beaker, {flask} with Flask-Session, and {django} "
        "in Django: all of them."
    )


def _costs(figures: Figures, row: str) -> str:
    """Return the CPU of a request in words, here and elsewhere."""

    def cost(name: str) -> str:
        return f"{added(figures, row, name)[0]:,.0f}"

    number = len(figures["wire"][row]["ours"]["commands"])
    commands = "one command" if number == 1 else f"{number} commands"
    return (
        f"{commands} and {cost('ours')} µs of a worker's CPU; {cost('floor')} if written by hand, "
        f"{cost(BEAKER)} with Beaker; in Flask {cost('Flask, ours')}, and {cost(FLASK)} with "
        f"Flask-Session; in Django {cost('Django, ours')}, and {cost(DJANGO)} with its own"
    )


def _rates(figures: Figures) -> str:
    read, set_ = (
        f"{_middle(ratios(figures, kind, 'ours', ('floor',))):.0%}" for kind in ("read", "set")
    )
    flask = [_middle(ratios(figures, kind, "Flask, ours", FLASK_SESSIONS)) for kind in FASTER]
    django = [_middle(ratios(figures, kind, "Django, ours", (DJANGO,))) for kind in FASTER]
    return (
        f"**Requests a second** behind gunicorn: {read} of those of a handler written by hand, for "
        f"a page that reads; {set_} for a page that sets. In Flask {_range(flask)} times those "
        f"with Flask-Session, in Django {_range(django)} times those with its own sessions."
    )


def _middle(found: dict[str, float]) -> float:
    return median(found.values())


def _range(found: list[float]) -> str:
    low, high = f"{min(found):.2f}", f"{max(found):.2f}"
    return low if low == high else f"{low} to {high}"


def _memory(figures: Figures) -> str:
    workers, read = figures["workers"], held_by_kind(figures)["read"]

    def worker(name: str) -> str:
        return f"{workers[name]['64'] / KIB:.0f}"

    return (
        f"**Memory**: a session that is read takes {read['ours'] / KIB:.1f} KiB of a request, "
        f"and {read[BEAKER] / KIB:.1f} with Beaker. A worker of Flask with 64 threads has "
        f"{worker('Flask, ours')} MiB, and {worker(FLASK)} with Flask-Session."
    )


def _database(figures: Figures) -> str:
    return (
        "**The database** finds each session by an index, and examines that one document, however "
        f"many there are. Ten million sessions of 3 keys take {working_set(figures) / GB:.1f} GB "
        "with their indexes."
    )


def _losses(figures: Figures) -> str:
    number = len(losses_of(figures))
    if not number:
        return "**Nobody is cheaper** in any row of this page."
    return (
        f"**Others are cheaper** in {number} of {compared(figures)} comparisons: "
        "[here they are](#where-others-cost-less)."
    )


def lines(figures: Figures) -> Iterator[str]:
    """Yield the sentences as items of a list."""
    for sentence in summary(figures):
        yield f"- {sentence}"

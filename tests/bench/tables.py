"""Tables: aligned on a terminal; as Markdown in a page, open or folded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .contest import CONTENDERS, EVERYWHERE
from .measure import Figures

Rows = list[list[str]]

FAMILIES = {
    title: [name for name in EVERYWHERE if CONTENDERS[name].alone == alone]
    for title, alone in (
        ("Without a framework", "bare"),
        ("In Flask", "Flask alone"),
        ("In Django", "Django alone"),
    )
}
"""The contenders that are compared with each other: a table of all would fit no page."""


def aligned(rows: Rows) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown(rows: Rows) -> str:
    head, *body = rows
    marks = ["---", *("--:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *body))


def fold(tables: Iterable[tuple[str, Rows]]) -> str:
    """Return tables that open at a click on their titles; those without a row are left out.

    GitHub and the site both know the HTML element. Markdown begins anew after its empty lines.
    """
    return "\n\n".join(
        f"<details>\n<summary>{title}</summary>\n\n{markdown(rows)}\n\n</details>"
        for title, rows in tables
        if len(rows) > 1
    )


def folded_by_family(rows_of: Callable[[Sequence[str]], Rows]) -> str:
    return fold((title, rows_of(names)) for title, names in FAMILIES.items())


def columns(
    cells: Figures,
    names: Sequence[str],
    cell: Callable[[str, str], str],
    first: str = "",
) -> Rows:
    """Return a column for each contender that has a cell in any of the rows."""
    shown = [name for name in names if any(name in by for by in cells.values())]
    rows = [[first, *shown]] if shown else [[first]]
    for row, by in cells.items():
        found = [cell(row, name) if name in by else "" for name in shown]
        if any(found):
            rows.append([row, *found])
    return rows


def spread(found: tuple[float, float, float]) -> str:
    """Return a median, and half of the distance between the quartiles."""
    median, low, high = found
    digits = 1 if median < 10 else 0
    return f"{median:.{digits}f} ±{(high - low) / 2:.{digits}f}"

"""The directive `moves`: the commit as a table, and as a picture, made from the code itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any, get_args

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from mongosession_wsgi.life import MOVES, Move
from mongosession_wsgi.visit import Known, Outcome, State

KNOWN: tuple[type[Any], ...] = get_args(Known)
WORDS = {
    "NotLooked": "not looked",
    "Record": "a session",
    "Mark": "a mark",
    "Nothing": "nothing",
    "Failure": "a failure",
}
"""What the columns are called: what a request knows to be stored."""
NOTHING_TO_DO = "nothing to do"

STYLE = """role="img" aria-labelledby="picture-moves" fill="none" stroke="currentColor"
  stroke-width="1.4" font-family="system-ui, sans-serif" font-size="13" text-anchor="middle\""""
LEFT, TOP, WIDTH, HEIGHT, GAP = 116, 48, 116, 54, 6


def name_of(move: Move | None) -> str:
    """Return the name of a move, as words."""
    return NOTHING_TO_DO if move is None else move.__name__.replace("_", " ")


def line_of(thing: Any) -> str:
    """Return the first line of a docstring."""
    return (thing.__doc__ or "").strip().partition("\n\n")[0].partition("\n")[0]


def cells() -> Iterator[tuple[State, list[Move | None]]]:
    """Return the rows of the table, with a None for each empty cell."""
    for state in State:
        yield state, [MOVES[state].get(known) for known in KNOWN]


def table() -> Iterator[str]:
    """Return the table in Markdown: each cell has a move's name and what it does."""
    yield "| | " + " | ".join(WORDS[known.__name__] for known in KNOWN) + " |"
    yield "|---" * (len(KNOWN) + 1) + "|"
    for state, row in cells():
        told = [
            NOTHING_TO_DO if move is None else f"**{name_of(move)}**: {line_of(move)}"
            for move in row
        ]
        yield f"| **{state.name.lower()}** | " + " | ".join(told) + " |"


def definitions(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Return a list of words and what each means, in Markdown."""
    for word, meaning in pairs:
        yield f"- **{word}**: {meaning}"


def picture() -> str:
    """Return the table as an SVG that is a part of the page, in the colours of the page."""
    width = LEFT + len(KNOWN) * (WIDTH + GAP)
    height = TOP + len(State) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {STYLE}>',
        '<title id="picture-moves">The commit: what is done, by state and by knowledge</title>',
    ]
    for column, known in enumerate(KNOWN):
        x = LEFT + column * (WIDTH + GAP) + WIDTH / 2
        parts.append(_text(x, TOP - 16, WORDS[known.__name__], "lane"))
    for line, (state, row) in enumerate(cells()):
        y = TOP + line * (HEIGHT + GAP)
        parts.append(_text(LEFT / 2, y + HEIGHT / 2 + 4, state.name.lower(), "lane"))
        for column, move in enumerate(row):
            parts.append(_cell(LEFT + column * (WIDTH + GAP), y, move))
    return "\n".join([*parts, "</svg>"])


def _cell(x: float, y: float, move: Move | None) -> str:
    if move is None:
        return f'<rect class="state" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="5"/>'
    kind = "bad" if move.__name__ == "fail" else "code"
    return (
        f'<g><title>{escape(line_of(move))}</title><rect class="{kind}" x="{x}" y="{y}" '
        f'width="{WIDTH}" height="{HEIGHT}" rx="5"/>'
        f"{_text(x + WIDTH / 2, y + HEIGHT / 2 + 4, name_of(move), kind)}</g>"
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'


class Moves(SphinxDirective):
    """Show the table, its picture, or the words of its edges: the argument says which of them."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        what = self.arguments[0]
        if what == "picture":
            caption = self.parse_content_to_nodes()
            opening = f'<figure class="picture"><div>{picture()}</div><figcaption>'
            return [
                nodes.raw("", opening, format="html"),
                *caption,
                nodes.raw("", "</figcaption></figure>", format="html"),
            ]
        lines = {
            "table": table,
            "states": lambda: definitions((one.name.lower(), one.value) for one in State),
            "known": lambda: definitions((WORDS[one.__name__], line_of(one)) for one in KNOWN),
            "outcomes": lambda: definitions((one.name.lower(), one.value) for one in Outcome),
        }[what]
        return self.parse_text_to_nodes("\n".join(lines()))


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("moves", Moves)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""The directive `picture`: an SVG of docs/pictures within the page, in the colours of the page."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

PICTURES = Path(__file__).parent.parent / "pictures"


class Picture(SphinxDirective):
    """Show `docs/pictures/NAME.svg`; the content is its caption.

    It becomes a part of the page, not an image of it, so that it is light or dark as the page is.
    """

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        svg = PICTURES / f"{self.arguments[0]}.svg"
        self.env.note_dependency(svg)
        opening = f'<figure class="picture"><div>{svg.read_text()}</div><figcaption>'
        caption = self.parse_content_to_nodes()
        return [
            nodes.raw("", opening, format="html"),
            *caption,
            nodes.raw("", "</figcaption></figure>", format="html"),
        ]


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

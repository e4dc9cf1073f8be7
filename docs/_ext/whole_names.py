"""Names stay whole: where a line of a page may be broken within code, and where not.

Sphinx puts each word of inline code into a `span` of its own, and docs/_static/site.css breaks no
`span`. A word that is longer than a line of a phone is cut into several here, at its joints.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

LINE = 36
"""How many characters of code stand in a line of a phone, about."""
_WORD = re.compile(rf'<span class="pre">([^<]{{{LINE},}})</span>')
_JOINT = re.compile(r"(?<=::)|(?<=[/(\[=,])(?=[\w\"'])")


def parts_of(word: str) -> list[str]:
    """Split a word at its joints; the name of a test, which is a sentence, between its words."""
    parts = _JOINT.split(word)
    if not parts[-1].startswith("test_"):
        return parts
    return [*parts[:-1], *re.split(r"(?<=_)", parts[-1])]


def cut(match: re.Match[str]) -> str:
    """Return a word as pieces, each as long as fits into a line."""
    pieces = [""]
    for part in parts_of(match[1]):
        if pieces[-1] and len(pieces[-1] + part) > LINE:
            pieces.append("")
        pieces[-1] += part
    return "<wbr>".join(f'<span class="pre">{piece}</span>' for piece in pieces)


def cut_long_words(
    _app: Sphinx, _page: str, _template: str, context: dict[str, str], _doctree: nodes.Node
) -> None:
    if "body" in context:
        context["body"] = _WORD.sub(cut, context["body"])


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("html-page-context", cut_long_words)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

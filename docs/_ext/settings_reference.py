"""The directive `settings`: every field of `Settings`, as a part of a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from mongosession_wsgi.settings import Settings


class SettingsReference(SphinxDirective):
    """List every setting, with an anchor of its own; its type is what its parser says it reads."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(_entries()))


def _entries() -> Iterator[str]:
    for field in fields(Settings):
        if field.metadata:
            row = field.metadata
            yield f":::{{confval}} {row['key']}"
            yield f":type: {row['parse'].__doc__.removeprefix('Read ').rstrip('.')}"
            if row["told"] is not None:
                yield f":default: `{row['told']}`"
            yield f"\n{row['doc']}\n:::\n"


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("settings", SettingsReference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

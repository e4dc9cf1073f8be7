"""The directive `settings`: every field of `Settings`, as a part of a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from datetime import timedelta
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from mongosession_wsgi.settings import Settings

WHERE_NOT_GIVEN = {"session_expires": Settings().idle, "session_secure": "auto"}
"""What it comes to that a setting is not given, where the code has a None for that."""


class SettingsReference(SphinxDirective):
    """List every setting, with an anchor of its own; its type is what its parser says it reads."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(_entries()))


def _entries() -> Iterator[str]:
    for field in fields(Settings):
        if field.metadata:
            key, parse, doc = (field.metadata[name] for name in ("key", "parse", "doc"))
            yield f":::{{confval}} {key}"
            yield f":type: {parse.__doc__.removeprefix('Read ').rstrip('.')}"
            default = WHERE_NOT_GIVEN.get(key, field.default)
            if default is not None:
                yield f":default: `{_shown(default)}`"
            yield f"\n{doc}\n:::\n"


def _shown(default: Any) -> str:
    if isinstance(default, timedelta):
        return f"{default.days} days"
    return str(default).lower() if isinstance(default, bool) else str(default)


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("settings", SettingsReference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

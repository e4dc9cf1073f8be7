"""How the site is made: `make docs`."""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

from sphinx.application import Sphinx

from mongosession_wsgi import __version__

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs" / "_ext"))

_SETUP = ConfigParser(interpolation=None)
_SETUP.read(ROOT / "setup.cfg")
ADDRESS = _SETUP.get("metadata", "url", fallback="").rstrip("/")
"""The address of the repository, or nothing as long as its owner has filled none in."""
OUTSIDE = {
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "licence": "LICENSE",
    "reporting": "SECURITY.md",
}
"""The pages that are files outside of docs/, where a repository's host looks for them."""

project = "mongosession-wsgi"
project_copyright = "the mongosession_wsgi authors. MIT licensed"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "moves",
    "pictures",
    "settings_reference",
    "whole_names",
]
exclude_patterns = ["_ext", "_static", "pictures"]

# Every reference must lead somewhere. Names of other packages do not: a build needs no network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!mongosession_wsgi\b).*")]
nitpick_ignore = [  # For adapters, not for users.
    ("py:class", "mongosession_wsgi.times.Times"),
    ("py:class", "mongosession_wsgi.visit.Visit"),
]

myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 3
myst_html_meta = {
    "description lang=en": "Server-side sessions for Flask, Django, Pyramid, Falcon, Bottle and "
    "any other WSGI application, kept in MongoDB. Not for ASGI, so not for FastAPI and Starlette."
}

default_role = "code"  # Our docstrings have `this` for code.
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

copybutton_prompt_text = "$ "

pygments_dark_style = "github-dark"
html_theme = "furo"
html_title = "mongosession-wsgi"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
_BRAND = ("brand-primary", "brand-content", "brand-visited", "api-name", "api-pre-name")
html_theme_options: dict[str, object] = {
    f"{mode}_css_variables": {f"color-{name}": colour for name in _BRAND}
    for mode, colour in (("light", "#0a6b4a"), ("dark", "#5fd3a3"))
}
if ADDRESS:
    html_theme_options |= {
        "source_repository": f"{ADDRESS}/",
        "source_branch": "HEAD",
        "source_directory": "docs/",
    }


def bring_in(_app: Sphinx, docname: str, content: list[str]) -> None:
    """Put files from outside of docs/ into their pages, and lead links to the pages of the site."""
    text = content[0]
    if docname in OUTSIDE:
        file = ROOT / OUTSIDE[docname]
        text = file.read_text()
        if not file.suffix:
            text = f"# Licence\n\n```text\n{text}```\n"
        text = re.sub(r"\]\((?:docs/)?(?=[\w/]+\.md)", "](/", text)
    for page, name in OUTSIDE.items():
        text = re.sub(rf"\]\((\.\./|/)*{name}\)", f"](/{page}.md)", text)
    content[0] = text.replace("](../mongosession_wsgi/)", f"]({ADDRESS or '/api.md'})")


def setup(app: Sphinx) -> None:
    app.connect("source-read", bring_in)

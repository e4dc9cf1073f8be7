"""How the site is made: `make docs`."""

import sys
from pathlib import Path

from mongosession_wsgi import __version__

sys.path.append(str(Path(__file__).parent / "_ext"))

project = "mongosession-wsgi"
project_copyright = "the mongosession_wsgi authors. MIT licensed"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "moves",
    "pictures",
    "settings_reference",
]
exclude_patterns = ["_ext", "_static", "pictures"]

# Every reference must lead somewhere. Names of other packages do not: a build needs no network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!mongosession_wsgi\b).*")]
nitpick_ignore = [("py:class", "mongosession_wsgi.times.Times")]  # For adapters, not for users.

myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 3

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
html_theme_options = {
    f"{mode}_css_variables": {f"color-{name}": colour for name in _BRAND}
    for mode, colour in (("light", "#0a6b4a"), ("dark", "#5fd3a3"))
}

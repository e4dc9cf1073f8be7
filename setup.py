"""What setup.cfg cannot say: the links of the package's page on an index.

The address of the repository is `url` in setup.cfg. Without an address, there are no such links.
"""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
PAGES = {
    "Source": "",
    "Documentation": "/blob/HEAD/docs/index.md",
    "Changelog": "/blob/HEAD/CHANGELOG.md",
    "Issues": "/issues",
}


def address() -> str:
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    return config.get("metadata", "url", fallback="").rstrip("/")


def absolute(markdown: str, url: str) -> str:
    """Make the relative links and pictures of a page absolute: an index shows the page alone."""
    markdown = re.sub(r"(!\[[^]]*\]\()(?!https?:|#)", rf"\1{url}/raw/HEAD/", markdown)
    return re.sub(r"((?<!!)\[[^]!]*\]\()(?!https?:|#)", rf"\1{url}/blob/HEAD/", markdown)


def links() -> dict[str, object]:
    url = address()
    if not url:
        return {}
    return {
        "project_urls": {name: url + path for name, path in PAGES.items()},
        "long_description": absolute((ROOT / "README.md").read_text("utf-8"), url),
    }


setup(**links())

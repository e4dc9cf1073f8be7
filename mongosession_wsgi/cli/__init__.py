"""The command `mongosession`; without its packages, a sentence says how to install them."""

from __future__ import annotations

import sys

_PARTS = {"click", "rich"}


def main() -> None:
    """Run the command, or say which packages to install."""
    try:
        from .commands import run
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _PARTS:
            raise
        sys.exit(
            "mongosession: the command needs click and rich; pip install 'mongosession-wsgi[cli]'"
        )
    sys.exit(run())

"""The command `mongosession`, for whoever has not installed what it is made of too."""

from __future__ import annotations

import sys

_PARTS = {"click", "rich"}


def main() -> None:
    """Run the command, or say what to install for it."""
    try:
        from .commands import run
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _PARTS:
            raise
        sys.exit(
            "mongosession: the command needs click and rich; pip install 'mongosession-wsgi[cli]'"
        )
    sys.exit(run())

"""The command `mongosession`; without its packages, a sentence says how to install them."""

from __future__ import annotations

import signal
import sys

_INTERRUPTED = 130
"""The exit code after a Ctrl-C."""
_PARTS = {"click", "rich"}


def main() -> None:
    """Run the command, or say which packages to install."""
    try:
        code = _ran()
    except KeyboardInterrupt:  # Of the imports: a command that runs has words for it.
        code = _INTERRUPTED
    finally:  # The driver's end would print a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _ran() -> int:
    try:
        from .commands import run
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _PARTS:
            raise
        sys.exit(
            "mongosession: the command needs click and rich; pip install 'mongosession-wsgi[cli]'"
        )
    return run()

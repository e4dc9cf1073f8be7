"""What the commands of make have in common: a Ctrl-C ends each with one line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

INTERRUPTED = 130
"""The exit code after a Ctrl-C, as shells have it."""


def run(main: Callable[[], int | None], name: str) -> NoReturn:
    """Run a command, and end with its code; after a Ctrl-C with one line, and no traceback."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


@contextmanager
def for_the_parent() -> Iterator[None]:
    """Leave Ctrl-C to this process: those that it forks meanwhile take no notice of one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

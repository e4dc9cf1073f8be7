"""Measure coverage in the processes of pytest and of the command, and in no server."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

import mongosession_wsgi

_NAME = "COVERAGE_PROCESS_CONFIG"

MEASURED: dict[str, str] = {}
"""The variables by which a process measures itself; empty without coverage."""


def measure_no_more() -> None:
    """Keep new processes from measuring themselves: a server would take twice as long."""
    if _NAME in os.environ:
        MEASURED[_NAME] = os.environ.pop(_NAME)


@contextmanager
def paused() -> Iterator[None]:
    """Measure nothing for a while, so that pytest finds the tests in half of the time.

    The package is imported before, for its imports are to be measured.
    """
    measuring = _measuring()
    if measuring is None:
        yield
        return
    for module in walk_packages(mongosession_wsgi.__path__, "mongosession_wsgi."):
        if not module.name.endswith("__main__"):
            with suppress(ImportError):  # Of an extra that is not installed.
                import_module(module.name)
    measuring.stop()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The package is imported already, as it is to be.
            measuring.start()
        measure_no_more()  # The start has asked new processes to.


def save() -> None:
    """Save what was measured so far, and measure no more."""
    measuring = _measuring()
    if measuring is not None:
        measuring.stop()
        measuring.save()


def _measuring() -> Any:
    """Return what measures this process, if anything does."""
    if "coverage" not in sys.modules:
        return None
    return sys.modules["coverage"].Coverage.current()

"""Measure coverage in the processes of pytest and of the command, and in no server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

import mongosession_wsgi

_NAME = "COVERAGE_PROCESS_CONFIG"

_tracer = sys.gettrace()
"""What coverage measures this process with; None without, and in a Python that needs no tracer."""

MEASURED: dict[str, str] = {}
"""The variables by which a process measures itself; empty without coverage."""


def measure_no_more() -> None:
    """Keep new processes from measuring themselves: a server would take twice as long."""
    if _NAME in os.environ:
        MEASURED[_NAME] = os.environ.pop(_NAME)


def import_all() -> None:
    """Import the package, for its imports are to be measured."""
    for module in walk_packages(mongosession_wsgi.__path__, "mongosession_wsgi."):
        if not module.name.endswith("__main__"):
            with suppress(ImportError):  # Of an extra that is not installed.
                import_module(module.name)


@contextmanager
def paused() -> Iterator[None]:
    """Measure nothing in this thread for a while: pytest itself takes half of the time then."""
    with _traced_by(None):
        yield


@contextmanager
def resumed() -> Iterator[None]:
    """Measure for a while again, within a pause."""
    with _traced_by(_tracer):
        yield


@contextmanager
def _traced_by(tracer: Any) -> Iterator[None]:
    if _tracer is None:
        yield
        return
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        yield
    finally:
        sys.settrace(before)


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

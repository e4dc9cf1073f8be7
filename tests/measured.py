"""Measure coverage in the processes of pytest and of the command, and in no server."""

from __future__ import annotations

import os

_NAME = "COVERAGE_PROCESS_CONFIG"

MEASURED: dict[str, str] = {}
"""The variables by which a process measures itself; empty without coverage."""


def measure_no_more() -> None:
    """Keep new processes from measuring themselves: a server would take twice as long."""
    if _NAME in os.environ:
        MEASURED[_NAME] = os.environ.pop(_NAME)

"""Hold the promises of section 6 of the contract against an order.

Was each change of a document one that its author may make? Did each request that was answered do
what its answer promises? And did each see what was there?
"""

from __future__ import annotations

from collections.abc import Iterator

from . import deeds, duties, sights
from .history import History
from .verdict import Broken

RULES = [*deeds.RULES, *duties.RULES, *sights.RULES]


def broken_by(history: History) -> Iterator[Broken]:
    """Say which promises an order has broken."""
    for rule in RULES:
        yield from rule(history)

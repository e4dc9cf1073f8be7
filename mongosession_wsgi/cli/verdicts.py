"""What a look at a store finds."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Verdict(Enum):
    """What a finding means."""

    GOOD = "ok"
    NOTE = "note"
    WRONG = "WRONG"


class Finding(NamedTuple):
    """One thing that was looked at, and what came of it."""

    what: str
    verdict: Verdict
    words: str
    error: BaseException | None = None
    """The error of ours whose cause has more words."""

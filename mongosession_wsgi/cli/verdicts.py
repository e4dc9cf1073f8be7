"""The findings of a health check, and their verdicts."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Verdict(Enum):
    """The meaning of a finding for an operator."""

    GOOD = "ok"
    NOTE = "note"
    WRONG = "WRONG"


class Finding(NamedTuple):
    """The result of one look: its subject, a verdict, and words."""

    what: str
    verdict: Verdict
    words: str
    error: BaseException | None = None
    """The error of ours, if the look failed; its cause has the driver's words."""

"""Who is measured, and who shares a process with whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import peers
from .contenders import ROWS, Application, Floor, Row, bare, ours, ours_auto, ours_sealed


class Contender(NamedTuple):
    """An application that is measured; `alone` names the same one without any session.

    A peer is another package's session: it competes with `rival`, ours in the same framework.
    """

    name: str
    make: Callable[[str, str], Application]
    alone: str
    rival: str | None = None


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("bare", bare, "bare"),
        Contender("floor", Floor, "bare"),
        Contender("ours", ours, "bare"),
        Contender("ours, auto", ours_auto, "bare"),
        Contender("ours, sealed", ours_sealed, "bare"),
        Contender("Beaker", peers.beaker, "bare", "ours"),
        Contender("Beaker, tuned", peers.beaker_tuned, "bare", "ours"),
        Contender("Flask alone", peers.flask_alone, "Flask alone"),
        Contender("Flask, ours", peers.flask_ours, "Flask alone"),
        Contender("Flask-Session", peers.flask_session, "Flask alone", "Flask, ours"),
        Contender("Flask-Session, tuned", peers.flask_session_tuned, "Flask alone", "Flask, ours"),
        Contender("Django alone", peers.django_alone, "Django alone"),
        Contender("Django, ours", peers.django_ours, "Django alone"),
        Contender("Django", peers.django, "Django alone", "Django, ours"),
    )
}
RIVALS = {name: of.rival for name, of in CONTENDERS.items() if of.rival is not None}
"""What every peer is compared with."""
TOGETHER = ("bare", "floor", "ours", "ours, auto")
"""Those whose figures are compared by ratios have one process; every other has its own."""
SEALED = ("floor", "ours", "ours, sealed")
"""The same for sealed sessions, which have tables of their own."""
EVERYWHERE = [name for name in CONTENDERS if name != "ours, sealed"]
"""Those who are in all other tables."""
PROCESSES = [TOGETHER, *((name,) for name in EVERYWHERE if name not in TOGETHER)]


def runs(name: str, row: Row) -> bool:
    """Say whether a contender's figure of this row is not that of another row or contender."""
    differs = CONTENDERS[name].alone != name and name != "ours, auto"
    return differs or row == ROWS[0]

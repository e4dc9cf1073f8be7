"""Who is measured, and who shares a process with whom."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
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
    needs: str = "mongosession_wsgi"

    @property
    def is_installed(self) -> bool:
        """Whether the package that the contender needs is here."""
        return find_spec(self.needs) is not None


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("bare", bare, "bare"),
        Contender("floor", Floor, "bare"),
        Contender("ours", ours, "bare"),
        Contender("ours, auto", ours_auto, "bare"),
        Contender("ours, sealed", ours_sealed, "bare", needs="cryptography"),
        Contender("Beaker", peers.beaker, "bare", "ours", "beaker"),
        Contender("Beaker, tuned", peers.beaker_tuned, "bare", "ours", "beaker"),
        *(
            Contender(name, make, "Flask alone", rival, needs)
            for name, make, rival, needs in (
                ("Flask alone", peers.flask_alone, None, "flask"),
                ("Flask, floor", peers.flask_floor, None, "flask"),
                ("Flask, ours", peers.flask_ours, None, "flask"),
                ("Flask-Session", peers.flask_session, "Flask, ours", "flask_session"),
                ("Flask-Session, tuned", peers.flask_session_tuned, "Flask, ours", "flask_session"),
            )
        ),
        *(
            Contender(name, make, "Django alone", rival, "django_mongodb_backend")
            for name, make, rival in (
                ("Django alone", peers.django_alone, None),
                ("Django, floor", peers.django_floor, None),
                ("Django, ours", peers.django_ours, None),
                ("Django", peers.django, "Django, ours"),
            )
        ),
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
FLOORS = {"bare": "floor", "Flask alone": "Flask, floor", "Django alone": "Django, floor"}
"""The floor of each framework, by the application without a session."""
PROCESSES = [TOGETHER, *((name,) for name in EVERYWHERE if name not in TOGETHER)]


def floor_of(name: str) -> str:
    """Return the handler written by hand in a contender's framework."""
    return FLOORS[CONTENDERS[name].alone]


def runs(name: str, row: Row) -> bool:
    """Say whether a contender's figure of this row is not that of another row or contender."""
    differs = CONTENDERS[name].alone != name and name != "ours, auto"
    return differs or row == ROWS[0]

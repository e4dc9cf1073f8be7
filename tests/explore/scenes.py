"""Which requests are tried together: pairs, pairs with a fault, triples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

from mongosession_wsgi import MongoStore, SettingsError

from .catalogue import BY_NAME, DANGEROUS, STARTS
from .engine import DOCUMENTDB, MONGODB, STANDALONE, YIELDING, Manner
from .orders import Scene
from .world import SETTINGS

SETS = {
    "pairs": "every order of two requests",
    "faults": "every order of two requests, with every single fault in one of them",
    "some faults": "the same of two requests of those that begin and end sessions",
    "triples": "every order of three requests of those that begin and end sessions",
    "triple faults": "every order of three of those, with every single fault",
}
PLAN = [
    *(("pairs", engine) for engine in ("mongodb", "yielding", "documentdb", "sealed", "limited")),
    ("faults", "mongodb"),
    *(("some faults", engine) for engine in ("standalone", "documentdb", "sealed", "limited")),
]
"""The sets that are explored where nobody chooses, and the engines.

They take ten minutes to half an hour of two cores.

Triples take hours, and are for who chooses a start and some kinds.
"""


class Engine(NamedTuple):
    """A server's manners, and the settings of the application that uses it."""

    manner: Manner
    settings: Mapping[str, Any] = {}


def engines() -> dict[str, Engine]:
    """Return the engines, and what the product's settings allow of them."""
    known = {
        "mongodb": Engine(MONGODB),
        "standalone": Engine(STANDALONE),
        "documentdb": Engine(DOCUMENTDB),
        "yielding": Engine(YIELDING),
        "sealed": Engine(MONGODB, {"session_sealed": "true"}),
        "limited": Engine(MONGODB, {"session_limit": "2"}),
    }
    return {name: engine for name, engine in known.items() if _is_allowed(engine)}


def _is_allowed(engine: Engine) -> bool:
    try:
        MongoStore(SETTINGS | dict(engine.settings))
    except SettingsError:
        return False
    return True


def scenes_of(name: str, starts: Iterable[str], kinds: Sequence[str]) -> Iterator[Scene]:
    """Return the scenes of a set."""
    faulty = name.endswith("faults")
    if name not in ("pairs", "faults"):
        kinds = [kind for kind in kinds if kind in DANGEROUS]
    for start in starts:
        yield from _meetings(start, kinds, 3 if "triple" in name else 2, faulty=faulty)


def _meetings(start: str, kinds: Sequence[str], count: int, *, faulty: bool) -> Iterator[Scene]:
    """Return all meetings of so many requests, with every choice of an old or a new token.

    Where an old token is there, that all bring the new one is what another start has.
    """
    known = STARTS[start].tokens
    bringing = [(kind, token) for token in known for kind in kinds]
    for meeting in combinations_with_replacement(bringing, count):
        names, tokens = zip(*meeting, strict=True)
        if len(known) == 1 or "old" in tokens:
            yield Scene(start, names, tokens, faulty)


def kinds_named(names: Iterable[str]) -> list[str]:
    """Return these kinds, or all; raise `KeyError` for one that is not known."""
    return [BY_NAME[name].name for name in names] or list(BY_NAME)

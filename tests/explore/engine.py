"""Stop requests before each of their commands, and let them go on in an order that somebody chose.

This module is the only place that knows how the product reaches its server and its time.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol, TypeVar

import bson
from bson.codec_options import CodecOptions
from pymongo.errors import AutoReconnect, DuplicateKeyError, NetworkTimeout, PyMongoError

from mongosession_wsgi.testing.memory import Client, Collection
from mongosession_wsgi.testing.operators import CODEC, as_stored, updated
from mongosession_wsgi.testing.requests import NOW

T = TypeVar("T")
Documents = dict[str, bytes]

TIMEOUT = 5.0
"""The seconds that the driver gives a command, and the store all commands of a commit."""
MOST_STEPS = 120
"""The steps after which requests are taken to go on for ever."""


def id_of(token: str) -> str:
    """Return the public id of a token, as section 2 of the contract defines it."""
    return urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).rstrip(b"=").decode()


# What may happen to a command.


class Way(Enum):
    """How a command goes; every way but the first is a fault.

    A process that dies before a command is one that has died after the command before it.
    """

    WELL = "is carried out"
    LOST = "is lost, the connection breaks"
    LATE = "is lost, the time is up"
    UNANSWERED = "is carried out, but the connection breaks before the answer"
    UNHEARD = "is carried out, but the time is up before the answer"
    TWICE = "is carried out twice, and the second answer counts"
    DYING = "is carried out, and the process dies"
    BEATEN = "answers 0, because an update hits the document at the same moment"


_NOT_CARRIED_OUT = {Way.LOST, Way.LATE, Way.BEATEN}
_UPDATES = {"update_one", "update_many", "find_one_and_update", "replace_one"}
_REPEATED_BY_DRIVERS = _UPDATES - {"update_many"} | {"insert_one", "delete_one"}
_TELLS_WHAT_WAS = "find_one_and_update"
"""The command whose answer cannot be had from what is stored afterwards."""


@dataclass(frozen=True)
class Manner:
    """The manners of an engine, as far as they differ."""

    name: str
    has_key_pattern: bool = True
    """Whether the error of a duplicate key says which index."""
    deletes_are_beaten: bool = False
    """Whether `delete_one` answers 0 and deletes nothing where an update comes at the same time."""
    scans_yield: bool = False
    """Whether other commands may come between the documents of one command on several."""
    answers_again: bool = True
    """Whether a repeated write is known by its number, and answered as the first time."""
    repeats_swaps: bool = False
    """Whether a repeated swap is carried out twice, and the second answer counts."""


MONGODB = Manner("MongoDB")
YIELDING = Manner("MongoDB, yielding", scans_yield=True)
STANDALONE = Manner("MongoDB, standalone", answers_again=False)
DOCUMENTDB = Manner(
    "DocumentDB",
    has_key_pattern=False,
    deletes_are_beaten=True,
    answers_again=False,
    repeats_swaps=True,
)


class Effect(NamedTuple):
    """What a step touched and wrote; None stands for everything."""

    touched: frozenset[str] | None
    written: frozenset[str] | None

    def meets(self, other: Effect) -> bool:
        """Say whether the order of the two steps may matter."""
        return _common(self.written, other.touched) or _common(other.written, self.touched)


NOTHING: frozenset[str] = frozenset()
EVERYTHING = Effect(None, None)
LOCAL = Effect(NOTHING, NOTHING)


def _common(some: frozenset[str] | None, others: frozenset[str] | None) -> bool:
    if some is None:
        return True  # Time has passed: whoever goes on, reads another clock.
    return bool(some) if others is None else not some.isdisjoint(others)


class Command:
    """A command that somebody is about to send."""

    __slots__ = ("_known", "act", "filter", "ids", "name")

    def __init__(self, name: str, filter: dict[str, Any], act: Callable[[], Any]) -> None:
        self.name = name
        self.filter = filter
        self.act = act
        self.ids = _ids_of(filter)
        """The documents that it can touch; None if it looks through all."""
        self._known: dict[Any, tuple[Outcome, Changes]] = {}

    @property
    def is_write(self) -> bool:
        return self.name not in ("find", "count")

    def carry_out(self, server: Server) -> tuple[Outcome, Changes]:
        """Do what it does; what it did to the same documents before, it does again."""
        documents = server.documents
        if self.ids is None:
            key: Any = tuple(documents.items())
        else:
            key = tuple(documents.get(id_) for id_ in self.ids)
        known = self._known.get(key)
        if known is None:
            before = dict(documents)
            outcome = Outcome.of(lambda: server.carry_out(self.act))
            if isinstance(outcome.value, list) and self.name in ("update_one", "update_many"):
                outcome.key = len(outcome.value)  # Of what was there before, nobody is told.
            known = self._known[key] = outcome, changes_between(before, documents)
        else:
            for id_, _, after in known[1]:
                if after is None:
                    del documents[id_]
                else:
                    documents[id_] = after
        return known


def _ids_of(filter: dict[str, Any]) -> frozenset[str] | None:
    match filter.get("_id"):
        case str() as id_:
            return frozenset((id_,))
        case {"$in": list() as ids}:
            return frozenset(ids)
    return None


class Wait(NamedTuple):
    """What somebody sleeps, in seconds, while they wait for another."""

    seconds: float


class Tick(NamedTuple):
    """A moment at which time has passed, or at which the server deletes what has expired."""

    words: str
    act: Callable[[], Changes]


Pending = Command | Wait | Tick
Changes = tuple[tuple[str, bytes | None, bytes | None], ...]
"""The ids of documents, and what was under them before and after."""


def changes_between(before: Documents, after: Documents) -> Changes:
    if before == after:
        return ()
    return tuple(
        (id_, before.get(id_), after.get(id_))
        for id_ in sorted(before.keys() | after.keys())
        if before.get(id_) != after.get(id_)
    )


class Outcome:
    """The answer to a command, or the error that it raises."""

    __slots__ = ("error", "key", "value")

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self.value = value
        self.error = error
        self.key: Any = tuple(value) if isinstance(value, list) else value
        """What tells it from other outcomes."""
        if error is not None:
            self.key = type(error)

    @classmethod
    def of(cls, act: Callable[[], Any]) -> Outcome:
        try:
            return cls(act())
        except (PyMongoError, NotImplementedError) as error:
            return cls(error=error)

    def get(self) -> Any:
        if self.error is not None:
            raise self.error.with_traceback(None)
        return self.value


NOTHING_SAID = Outcome()
BROKEN = Outcome(error=AutoReconnect("connection closed"))
TIMED_OUT = Outcome(error=NetworkTimeout("timed out"))


class Sender(Protocol):
    """Who sends commands, and is stopped before each of them."""

    def ask(self, pending: Pending) -> Any:
        """Stop before a command, until it has been answered; return the answer."""


class Server(Client):
    """A server that asks, before each command of an actor, how it is to go."""

    def __init__(self, manner: Manner) -> None:
        super().__init__()
        self.manner = manner
        self.options.timeout = TIMEOUT
        self.acting: Sender | None = None

    def get_collection(self, name: str, *, codec_options: CodecOptions[Any], **_: Any) -> Any:
        return _Sessions(self, name, codec_options)

    def hold(self, documents: Documents) -> None:
        """Hold these documents and no others."""
        self.documents.clear()
        self.documents.update(documents)

    def run(self, name: str, filter: dict[str, Any], act: Callable[[], T]) -> T:
        if self.acting is None:
            return self.carry_out(act)
        answer: T = self.acting.ask(Command(name, filter, act))
        return answer

    def carry_out(self, act: Callable[[], T]) -> T:
        """Do what a command does, and answer as this engine answers."""
        try:
            return act()
        except DuplicateKeyError as error:
            if self.manner.has_key_pattern:
                raise
            raise DuplicateKeyError("a key is there", 11000, None) from error


class _Sessions(Collection):
    """A collection whose commands on several documents may be as many steps."""

    database: Server

    def find(self, filter: dict[str, Any], *rest: Any, **options: Any) -> Any:
        if not self._yields(filter):
            return super().find(filter, *rest, **options)
        found = self._piecemeal("find", filter, lambda id_: self.database.documents[id_])
        aside = Client()
        aside.documents = found
        return aside.get_collection(self.name, codec_options=self.codec_options).find({}, **options)

    def _update(
        self, name: str, filter: dict[str, Any], update: dict[str, Any], most: int | None
    ) -> list[tuple[bytes, bytes]]:
        if most is not None or not self._yields(filter):
            return super()._update(name, filter, update, most)
        before = self._piecemeal(name, filter, lambda id_: self._updated(id_, update))
        return [(was, self.database.documents[id_]) for id_, was in before.items()]

    def delete_many(self, filter: dict[str, Any]) -> Any:
        if not self._yields(filter):
            return super().delete_many(filter)
        gone = self._piecemeal("delete_many", filter, self.database.documents.pop)
        return SimpleNamespace(deleted_count=len(gone))

    def _yields(self, filter: dict[str, Any]) -> bool:
        return self.database.manner.scans_yield and not isinstance(filter.get("_id"), str)

    def _updated(self, id_: str, update: dict[str, Any]) -> bytes:
        before = self.database.documents[id_]
        document = updated(bson.decode(before, CODEC), as_stored(update))
        self.database.documents[id_] = bson.encode(document)
        return before

    def _piecemeal(
        self, name: str, filter: dict[str, Any], use: Callable[[str], bytes]
    ) -> dict[str, bytes]:
        """Do to each document that matches what `use` does, and stop before each of them."""
        used: dict[str, bytes] = {}
        while True:
            known = frozenset(used)

            def act(known: frozenset[str] = known) -> tuple[str, bytes] | None:
                for document in self._matching(filter):
                    if document["_id"] not in known:
                        return document["_id"], use(document["_id"])
                return None

            found = self.database.run(name, filter, act)
            if found is None:
                return used
            used[found[0]] = found[1]


# What a step does.


def take(server: Server, command: Command, way: Way) -> tuple[Outcome, Changes]:
    """Let a command go this way; return the answer that its sender gets, and what it changed."""
    outcome, changes = (NOTHING_SAID, ()) if way in _NOT_CARRIED_OUT else command.carry_out(server)
    match way:
        case Way.LOST | Way.UNANSWERED:
            return BROKEN, changes
        case Way.LATE | Way.UNHEARD:
            return TIMED_OUT, changes
        case Way.BEATEN:
            return Outcome(0), changes
    return outcome, changes


def effect_of(pending: Pending, way: Way, changes: Changes) -> Effect:
    """Return what a step touched and wrote."""
    if not isinstance(pending, Command):
        return EVERYTHING
    if way in (Way.LOST, Way.LATE):
        return LOCAL
    if way is Way.BEATEN:
        return Effect(pending.ids, pending.ids)
    return Effect(pending.ids, frozenset(change[0] for change in changes) if changes else NOTHING)


def ways_of(command: Command, manner: Manner) -> tuple[Way, ...]:
    """Return the faults that a command may meet.

    The answer of a swap is lost only to a driver that cannot ask for it again. What is repeated
    without a loss, though engines know it by its number, is repeated here all the same.
    """
    if not command.is_write:
        return (Way.LOST, Way.LATE, Way.DYING)
    ways = [Way.LOST, Way.LATE, Way.UNANSWERED, Way.UNHEARD, Way.TWICE, Way.DYING]
    is_swap = command.name == _TELLS_WHAT_WAS
    if command.name not in _REPEATED_BY_DRIVERS or (is_swap and not manner.repeats_swaps):
        ways.remove(Way.TWICE)
    if is_swap and manner.answers_again:
        ways.remove(Way.UNANSWERED)
    return tuple(ways)


def is_beaten(command: Command, others: list[Pending | None]) -> bool:
    """Say whether a delete may lose against an update that comes at the same moment."""
    if command.name != "delete_one":
        return False
    return any(
        isinstance(other, Command) and other.name in _UPDATES and other.ids == command.ids
        for other in others
    )


# Time and chance.


class Time:
    """The time of an order: it moves when somebody waits, or lets it pass."""

    def __init__(self) -> None:
        self.begin()

    def begin(self, now: datetime | None = None) -> None:
        self.now = now or NOW
        self.passed = 0.0

    def __call__(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return self.passed

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.passed += seconds


@contextmanager
def in_place_of(replaced: dict[Any, Any]) -> Iterator[None]:
    """Put other functions in place of these, wherever a module of the product has imported them."""
    found = [
        (module, name, value)
        for module in list(sys.modules.values())
        if module.__name__.startswith("mongosession_wsgi")
        for name, value in vars(module).items()
        if callable(value) and any(value is one for one in replaced)
    ]
    for module, name, value in found:
        setattr(module, name, replaced[value])
    try:
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)


def of_chance_and_time(
    token: Callable[[], str], wait: Callable[[float], None], monotonic: Callable[[], float]
) -> dict[Any, Any]:
    """Return what stands for the functions by which the product draws, waits and measures."""
    return {
        secrets.token_urlsafe: lambda _=None: token(),
        time.sleep: wait,
        time.monotonic: monotonic,
    }

"""Look through all sessions, end many of them, and find out whether all is well with them.

Nothing here is called for a request. What may be long is yielded piece by piece, so that a million
sessions need no more memory than one batch; data leaves MongoDB only where it is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

import bson
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from .. import document
from ..errors import StoreError
from ..store import FORM, MARK, MongoStore, expired_by, explaining, utc_now

AT_A_TIME = 200
"""The sessions that one command ends: few enough for an interruption to come soon."""
_READ_AT_A_TIME = 1000
"""MongoDB would send 16 MiB at once."""

_SESSION = FORM | {"_id": {"$type": "string"}}
_SIZE = {"$bsonSize": "$$ROOT"}
_SUMMARY = {"owner": 1, "created_at": 1, "seen_at": 1, "expires_at": 1, "size": _SIZE}

SIZES = (256, 1024, 4096, 16384, 65536, 262144, 1048576)
AGES = tuple(
    timedelta(minutes=minutes)
    for minutes in (1, 10, 60, 24 * 60, 7 * 24 * 60, 14 * 24 * 60, 30 * 24 * 60)
)


class Summary(NamedTuple):
    """What is known of a session without its data; `size` is in bytes."""

    id: str
    owner: str | None
    created_at: datetime
    seen_at: datetime
    expires_at: datetime
    size: int


@dataclass(frozen=True)
class Selection:
    """Which of the live sessions: those to which everything applies that is not None."""

    owner: str | None = None
    idle_for: timedelta | None = None
    larger_than: int | None = None

    def conditions(self, now: datetime) -> dict[str, Any]:
        """Return what a live session has to match."""
        conditions: dict[str, Any] = _SESSION | {"expires_at": {"$gt": now}}
        if self.owner is not None:
            conditions["owner"] = self.owner
        if self.idle_for is not None:
            conditions["seen_at"] = {"$lte": now - self.idle_for}
        if self.larger_than is not None:
            conditions["$expr"] = {"$gt": [_SIZE, self.larger_than]}
        return conditions


@dataclass
class Statistics:
    """How many sessions there are, and of what kinds.

    Of the live ones, `sizes` counts those below each of `SIZES` and, last, those above all; `ages`
    since they were created and `idle` since they were last used, the same by `AGES`.
    """

    live: int = 0
    expired: int = 0
    logged_in: int = 0
    bytes: int = 0
    largest: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    ages: Counter[int] = field(default_factory=Counter)
    idle: Counter[int] = field(default_factory=Counter)

    @property
    def anonymous(self) -> int:
        return self.live - self.logged_in


class Administration:
    """Look after all sessions of a store; every method raises `StoreError` if MongoDB fails."""

    def __init__(self, store: MongoStore, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.store = store
        self._clock = clock

    def count(self, selection: Selection) -> int:
        """Return how many live sessions are selected."""
        return self._counted(selection.conditions(self._clock()))

    def count_expired(self) -> int:
        """Return how many documents `purge` would delete."""
        return self._counted(expired_by(self._clock()))

    def sessions(self, selection: Selection, *, newest: int = 0) -> Generator[Summary, None, None]:
        """Iterate over the selected live sessions, in no order; or the `newest` by their use."""
        conditions = selection.conditions(self._clock())
        with explaining():
            found = self.store.collection.find(conditions, _SUMMARY, batch_size=_READ_AT_A_TIME)
            if newest:
                found = found.sort("seen_at", -1).limit(newest)
            with found:
                for raw in found:
                    summary = _summary(raw)
                    if summary is not None:
                        yield summary

    def session(self, id: str) -> Summary | None:
        """Return what is known of the live session of this public id, or None."""
        raw = self._found(id, _SUMMARY)
        return None if raw is None else _summary(raw)

    def data(self, id: str) -> dict[str, Any] | None:
        """Return what the application keeps in the live session of this public id, or None."""
        raw = self._found(id, None)
        record = None if raw is None else document.decode(bytes(raw.raw))
        return record.data if isinstance(record, document.Record) else None

    def end(self, selection: Selection) -> Iterator[int]:
        """End the selected sessions batch by batch; yield how many each batch ended.

        One that is used in the meantime, so that it is selected no more, lives on. Where nothing
        but an owner is asked for, the sessions end too that are just being regenerated.
        """
        begun = self._clock()
        conditions = selection.conditions(begun)
        # Later looks leave those alone that began since, or there would be no end of them.
        yield from self._deleted(conditions, conditions | {"created_at": {"$lte": begun}})
        if selection.idle_for is None and selection.larger_than is None:
            marks = MARK | {"owner": {"$exists": True}, "expires_at": {"$gt": begun}}
            if selection.owner is not None:
                marks["owner"] = selection.owner
            for id_ in list(self._ids(marks)):
                yield self.store.revoke(id_)

    def purge(self) -> Iterator[int]:
        """Delete what has expired, batch by batch; yield how many each batch deleted."""
        expired = expired_by(self._clock())
        yield from self._deleted(expired, expired)

    def statistics(self) -> Statistics:
        """Count the sessions; MongoDB does it, and sends only the counts."""
        now = self._clock()
        statistics = Statistics(expired=self.count_expired())
        stages = _counting(Selection().conditions(now), now)
        with explaining(), self.store.collection.aggregate(stages, allowDiskUse=True) as groups:
            for group in groups:
                kind, count = group["_id"], group["count"]
                statistics.live += count
                statistics.logged_in += count * kind["logged_in"]
                statistics.bytes += group["bytes"]
                statistics.largest = max(statistics.largest, group["largest"])
                statistics.sizes[kind["size"]] += count
                statistics.ages[kind["age"]] += count
                statistics.idle[kind["idle"]] += count
        return statistics

    def _found(self, id: str, projection: dict[str, Any] | None) -> RawBSONDocument | None:
        this = {"_id": id}
        live = Selection().conditions(self._clock())
        with explaining():
            # The id comes first: the embedded server searches by the first index it meets.
            return self.store.collection.find_one(this | live | this, projection)

    def _counted(self, conditions: dict[str, Any]) -> int:
        with explaining():
            return self.store.collection.count_documents(conditions)

    def _ids(self, conditions: dict[str, Any]) -> Generator[Any, None, None]:
        find = self.store.collection.find
        with explaining(), find(conditions, ["_id"], batch_size=_READ_AT_A_TIME) as found:
            for raw in found:
                yield raw["_id"]

    def _deleted(self, conditions: dict[str, Any], later: dict[str, Any]) -> Iterator[int]:
        """Delete what matches; look again for what matches `later`, until nothing does.

        One look misses a session that is regenerated under way, to an id where it has been
        already; and it ends where a connection breaks, or with an election.
        """
        deleted = 1
        while deleted:
            deleted = 0
            try:
                for count in self._deleted_at_a_look(conditions):
                    deleted += count
                    yield count
            except StoreError:
                if not deleted:
                    raise
            else:
                conditions = later

    def _deleted_at_a_look(self, conditions: dict[str, Any]) -> Iterator[int]:
        # Closed here, also by an interruption: no cursor can be once its client is.
        with closing(self._ids(conditions)) as found:
            for ids in _batches(found):
                yield self.store.delete(ids, conditions)


def _batches(ids: Iterable[Any]) -> Iterator[list[Any]]:
    remaining = iter(ids)
    while batch := list(islice(remaining, AT_A_TIME)):
        yield batch


def _counting(conditions: dict[str, Any], now: datetime) -> list[dict[str, Any]]:
    """Return the stages that count sessions by kind; there are few kinds, however many sessions."""
    ages = [round(age.total_seconds() * 1000) for age in AGES]
    kind = {
        "logged_in": {"$cond": [{"$eq": ["$owner", None]}, 0, 1]},
        "size": _bucket("$size", SIZES),
        "age": _bucket({"$subtract": [now, "$created_at"]}, ages),
        "idle": _bucket({"$subtract": [now, "$seen_at"]}, ages),
    }
    moments = {"owner": 1, "created_at": 1, "seen_at": 1, "size": _SIZE}
    counts = {"count": {"$sum": 1}, "bytes": {"$sum": "$size"}, "largest": {"$max": "$size"}}
    return [{"$match": conditions}, {"$project": moments}, {"$group": {"_id": kind} | counts}]


def _bucket(value: Any, bounds: Iterable[int]) -> dict[str, Any]:
    """Return the expression for the number of the first of `bounds` that a value is below."""
    below = enumerate(bounds)
    branches = [{"case": {"$lt": [value, bound]}, "then": number} for number, bound in below]
    return {"$switch": {"branches": branches, "default": len(branches)}}


def _summary(raw: RawBSONDocument) -> Summary | None:
    """Return what is known; None for what only a look at its values shows to be no session."""
    try:
        found = bson.decode(raw.raw, codec_options=document.CODEC)
    except BSONError:
        return None
    record = document.read(found | {"v": document.VERSION, "data": {}})
    if not isinstance(record, document.Record):
        return None
    moments = (record.created_at, record.seen_at, record.expires_at)
    return Summary(record.id, record.owner, *moments, found["size"])

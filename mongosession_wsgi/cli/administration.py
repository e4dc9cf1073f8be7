"""Look through all sessions, and end many of them.

No request calls this module. Long results are yielded piece by piece, so that a million sessions
need no more memory than one batch. Data leaves MongoDB only on demand.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure, PyMongoError

from .. import document
from ..document import ANY_ID, MOVED, SESSION, expired_by
from ..errors import StoreError
from ..failures import NOT_ALLOWED, explaining
from ..indexes import OURS
from ..store import MongoStore, utc_now
from ..times import Times
from .judging import Index, old_indexes

_OLD_NAME = "expires_at_1"
"""The name of the TTL index that version 1 made."""
AT_A_TIME = 200
"""The sessions that one command ends: few enough for a quick interruption."""
_READ_AT_A_TIME = 1000
"""MongoDB would send 16 MiB at once."""

_SESSION = SESSION | {"_id": ANY_ID | {"$regex": "^[A-Za-z0-9_-]{43}$"}}
"""The condition met by every session, where no id is asked for; the TTL index has the range."""
_SIZE = {"$bsonSize": "$$ROOT"}
SIZED: dict[str, Any] = {"v": 1, "size": _SIZE}
"""A projection with the size of a document."""
_NAMES = ("owner", "label", "remember", "created_at", "seen_at", "expires_at")
_OUTLINE = dict.fromkeys(_NAMES, 1) | {"v": 1}
REFUSED = {NOT_ALLOWED, 8000}
"""The codes of errors: not allowed to this user, not in this tier of Atlas."""
_NO_LACK = REFUSED | {18, 50, 11601, 16500}
"""The codes of errors of a server that can run the command: not allowed, too late, too busy."""

SIZES = (256, 1024, 4096, 16384, 65536, 262144, 1048576)
AGES = tuple(
    timedelta(minutes=minutes)
    for minutes in (1, 10, 60, 24 * 60, 7 * 24 * 60, 14 * 24 * 60, 30 * 24 * 60)
)


class NotAllowedError(StoreError):
    """The user of the database may not run a command."""


class Summary(NamedTuple):
    """A session without its data."""

    id: str
    owner: str | None
    created_at: datetime
    seen_at: datetime
    expires_at: datetime
    size: int | None
    """In bytes; None if the server does not tell it."""
    label: str | None = None
    remembered: bool = False
    sealed: bool = False


@dataclass(frozen=True)
class Selection:
    """A choice among the live sessions; None leaves a condition out."""

    owner: str | None = None
    idle_for: timedelta | None = None
    larger_than: int | None = None

    def conditions(self, now: datetime) -> dict[str, Any]:
        """Return the filter of the selected live sessions."""
        # The owner comes first: the embedded server searches by the first index it meets.
        owner = {} if self.owner is None else {"owner": self.owner}
        conditions: dict[str, Any] = owner | _SESSION | owner | {"expires_at": {"$gt": now}}
        if self.idle_for is not None:
            conditions["seen_at"] = {"$lte": now - self.idle_for}
        if self.larger_than is not None:
            conditions["$expr"] = {"$gt": [_SIZE, self.larger_than]}
        return conditions


@dataclass
class Statistics:
    """The numbers of sessions, by kind.

    `sizes` counts the live sessions below each of `SIZES` and, last, those above all. `ages` does
    the same by `AGES` for the time since the creation, `idle` for the time since the last use.
    `sized` is False if the server tells no sizes.
    """

    live: int = 0
    expired: int = 0
    logged_in: int = 0
    sealed: int = 0
    sized: bool = True
    bytes: int = 0
    largest: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    ages: Counter[int] = field(default_factory=Counter)
    idle: Counter[int] = field(default_factory=Counter)

    @property
    def anonymous(self) -> int:
        return self.live - self.logged_in


class Administration:
    """Look after all sessions of a store; every method raises `StoreError` if MongoDB fails.

    A look finds the sessions that are live by `times`, the settings of the application, or by
    their stored expiry if those are not known. Ending goes by the stored expiry alone, because
    longer times would bring a session back.
    """

    def __init__(
        self,
        store: MongoStore,
        *,
        clock: Callable[[], datetime] = utc_now,
        times: Times | None = None,
    ) -> None:
        self.store = store
        self._clock = clock
        self._times = times

    # Looking.

    def count(self, selection: Selection) -> int:
        """Return how many sessions `end` would end."""
        return self._counted(selection.conditions(self._clock()))

    def count_ids(self, ids: Sequence[str]) -> int:
        """Return how many of these ids are of sessions that live, if by now under a new id."""
        among, live = {"_id": {"$in": ids}}, {"expires_at": {"$gt": self._clock()}}
        kinds = {"$or": [SESSION, MOVED | {"ended": {"$exists": False}}]}
        return self._counted(among | live | kinds)

    def count_expired(self) -> int:
        """Return how many documents `purge` would delete."""
        return self._counted(expired_by(self._clock()))

    def sessions(self, selection: Selection, *, newest: int = 0) -> Generator[Summary, None, None]:
        """Iterate over the selected live sessions, in no order; or the `newest` by their use."""
        conditions = self._live(selection, self._clock())
        try:
            with closing(self._outlines(conditions, newest)) as outlines:
                for raw in outlines:
                    summary = _summary(raw, self._times)
                    if summary is not None:
                        yield summary
        except StoreError as error:
            if selection.larger_than is not None and _is_lack(error.__cause__):
                words = "This server cannot select sessions by their size: it has no $bsonSize"
                raise StoreError(words) from error.__cause__
            raise

    def session(self, id: str) -> Summary | None:
        """Return the live session of this public id without its data, or None."""
        conditions = self._live_one(id)
        with closing(self._outlines(conditions)) as outlines:
            raw = next(outlines, None)
        found = None if raw is None else _summary(raw, self._times)
        if found is None or found.size is not None:
            return found
        with explaining():
            whole = self.store.collection.find_one(conditions)
        return None if whole is None else found._replace(size=len(whole.raw))

    def whole(self, id: str) -> tuple[Summary, dict[str, Any]] | None:
        """Return the live session of this public id with its data, or None.

        The data of a sealed session is empty here.
        """
        with explaining():
            raw = self.store.collection.find_one(self._live_one(id))
        found = None if raw is None else _summary(raw, self._times)
        if raw is None or found is None:
            return None
        found = found._replace(size=len(raw.raw))
        if found.sealed:
            return found, {}
        record = document.decode(bytes(raw.raw))
        return (found, record.data) if isinstance(record, document.Record) else None

    def statistics(self) -> Statistics:
        """Count the sessions; MongoDB does it, and sends only the counts."""
        now = self._clock()
        statistics = Statistics(expired=self.count_expired())
        stages = _counting(self._live(Selection(), now), now)
        try:
            with explaining(), self.store.collection.aggregate(stages) as groups:
                for group in groups:
                    _add_group(statistics, group)
        except StoreError as error:
            if not _is_lack(error.__cause__):
                raise
            return self._counted_here(now)
        return statistics

    def doubt(self) -> str | None:
        """Return a doubt about the names if the database or the collection does not exist.

        None if both exist, or if this user may not know. An empty answer would not tell.
        """
        collection = self.store.collection
        database = collection.database
        try:
            names = database.list_collection_names(authorizedCollections=True)
            if collection.name in names:
                return None
            if not names and database.name not in database.client.list_database_names():
                return f"MongoDB has no database {database.name}; is the name right?"
        except PyMongoError:
            return None
        return f"{database.name} has no collection {collection.name}; is the name right?"

    # Indexes.

    def indexes(self) -> list[Index] | None:
        """Return the indexes of the collection; None if this user may not list them."""
        try:
            with explaining():
                return [dict(index) for index in self.store.collection.list_indexes()]
        except StoreError as error:
            if not _is_refusal(error.__cause__):
                raise
            return None

    def old_index(self) -> str | None:
        """Return the name of a TTL index over all documents, as version 1 made it, or None.

        An index of another name was made by somebody else, and stays if documents of theirs expire
        by it.
        """
        others = {"$nor": [OURS], "expires_at": {"$type": "date"}}
        for name in old_indexes(self.indexes() or []):
            with explaining():
                if name == _OLD_NAME or self.store.collection.find_one(others, ["_id"]) is None:
                    return name
        return None

    def drop_index(self, name: str) -> None:
        """Drop an index. Raises `NotAllowedError` if this user may not."""
        try:
            with explaining():
                self.store.collection.drop_index(name)
        except StoreError as error:
            if not _is_refusal(error.__cause__):
                raise
            raise NotAllowedError(str(error)) from error.__cause__

    # Ending.

    def end(self, selection: Selection) -> Iterator[int]:
        """End the selected sessions batch by batch; yield the number of each batch.

        A session lives on if a use in the meantime takes it out of the selection. A selection by
        owner alone, or of all, also ends sessions that are given a new token meanwhile.
        """
        begun = self._clock()
        conditions = selection.conditions(begun)
        # Later looks leave sessions alone that began since; else the looks might never end.
        later = conditions | {"created_at": {"$lte": begun}}
        yield from self._over_and_over(self.store.end, conditions, later)
        if selection.idle_for is None and selection.larger_than is None:
            for id_ in self._moving(selection.owner, begun):
                yield self.store.revoke(id_)

    def purge(self) -> Iterator[int]:
        """Delete expired documents batch by batch; yield the number of each batch."""
        expired = expired_by(self._clock())
        yield from self._over_and_over(self.store.delete, expired, expired)

    # Steps of the methods above.

    def _live(self, selection: Selection, now: datetime) -> dict[str, Any]:
        conditions = selection.conditions(now)
        return conditions if self._times is None else conditions | _live_by(self._times, now)

    def _live_one(self, id: str) -> dict[str, Any]:
        this = {"_id": id}
        # The id comes first: the embedded server searches by the first index it meets.
        return this | self._live(Selection(), self._clock()) | this

    def _outlines(
        self, conditions: dict[str, Any], newest: int = 0
    ) -> Generator[RawBSONDocument, None, None]:
        """Yield matching documents without data; without sizes, too, if the server tells none."""
        options: dict[str, Any] = {"batch_size": _READ_AT_A_TIME}
        if newest:
            options |= {"sort": [("seen_at", -1)], "limit": newest}
        for projection in (_OUTLINE | SIZED, _OUTLINE):
            found = self.store.find(conditions, projection=projection, **options)
            try:
                first = next(found, None)
            except StoreError as error:
                if projection is _OUTLINE or not _is_lack(error.__cause__):
                    raise
                continue
            if first is not None:
                yield first
                yield from found
            return

    def _counted_here(self, now: datetime) -> Statistics:
        """Count the sessions in this process, for a server that can't count them by kind."""
        statistics = Statistics(expired=self.count_expired())
        ages = [age.total_seconds() for age in AGES]
        for one in self.sessions(Selection()):
            statistics.live += 1
            statistics.logged_in += one.owner is not None
            statistics.sealed += one.sealed
            statistics.ages[bisect_right(ages, (now - one.created_at).total_seconds())] += 1
            statistics.idle[bisect_right(ages, (now - one.seen_at).total_seconds())] += 1
            if one.size is None:
                statistics.sized = False
                continue
            statistics.bytes += one.size
            statistics.largest = max(statistics.largest, one.size)
            statistics.sizes[bisect_right(SIZES, one.size)] += 1
        return statistics

    def _counted(self, conditions: dict[str, Any]) -> int:
        with explaining():
            return self.store.collection.count_documents(conditions)

    def _ids(self, conditions: dict[str, Any]) -> Generator[Any, None, None]:
        found = self.store.find(conditions, projection=["_id"], batch_size=_READ_AT_A_TIME)
        for raw in found:
            yield raw["_id"]

    def _moving(self, owner: str | None, begun: datetime) -> list[str]:
        """Return the ids of marks whose sessions go on under an unknown id.

        A session that is given one new token after the other has many marks, and the last counts.
        """
        marks = MOVED | {"owner": {"$exists": True}, "expires_at": {"$gt": begun}}
        if owner is not None:
            marks["owner"] = owner
        found = self.store.find(marks, projection=["successor"])
        successors = {raw["_id"]: raw.get("successor") for raw in found}
        return [id_ for id_, successor in successors.items() if successor not in successors]

    def _over_and_over(
        self,
        remove: Callable[[list[Any], dict[str, Any]], int],
        conditions: dict[str, Any],
        later: dict[str, Any],
    ) -> Iterator[int]:
        """Remove matching documents, then look again for `later` until nothing matches.

        A single look misses sessions that move, under way, to an id that was passed already. A
        broken connection or an election ends a look early.
        """
        removed = 1
        while removed:
            removed = 0
            try:
                # Closed here, also by an interruption: a client that is closed closes no cursor.
                with closing(self._ids(conditions)) as found:
                    for ids in _batches(found):
                        count = remove(ids, conditions)
                        removed += count
                        yield count
            except StoreError:
                if not removed:
                    raise
            else:
                conditions = later


def _live_by(times: Times, now: datetime) -> dict[str, Any]:
    """Return the filter of sessions that neither their idle time nor their lifetime has ended."""
    kinds: list[dict[str, Any]] = [
        {"remember": kind} if idle is None else {"remember": kind, "seen_at": {"$gt": now - idle}}
        for kind, idle in times.idle.items()
    ]
    young = [] if times.lifetime is None else [{"created_at": {"$gt": now - times.lifetime}}]
    return {"$and": [{"$or": kinds}, *young]}


def _batches(ids: Iterable[Any]) -> Iterator[list[Any]]:
    remaining = iter(ids)
    while batch := list(islice(remaining, AT_A_TIME)):
        yield batch


def _counting(conditions: dict[str, Any], now: datetime) -> list[dict[str, Any]]:
    """Return the stages that count sessions by kind; the kinds are few, however many sessions."""
    ages = [round(age.total_seconds() * 1000) for age in AGES]
    kind = {
        "logged_in": {"$cond": [{"$eq": ["$owner", None]}, 0, 1]},
        "sealed": {"$cond": [{"$eq": ["$v", document.SEALED]}, 1, 0]},
        "size": _bucket("$size", SIZES),
        "age": _bucket({"$subtract": [now, "$created_at"]}, ages),
        "idle": _bucket({"$subtract": [now, "$seen_at"]}, ages),
    }
    moments = {"v": 1, "owner": 1, "created_at": 1, "seen_at": 1, "size": _SIZE}
    counts = {"count": {"$sum": 1}, "bytes": {"$sum": "$size"}, "largest": {"$max": "$size"}}
    return [{"$match": conditions}, {"$project": moments}, {"$group": {"_id": kind} | counts}]


def _bucket(value: Any, bounds: Iterable[int]) -> dict[str, Any]:
    """Return the expression for the number of the first of `bounds` above a value."""
    below = enumerate(bounds)
    branches = [{"case": {"$lt": [value, bound]}, "then": number} for number, bound in below]
    return {"$switch": {"branches": branches, "default": len(branches)}}


def _add_group(statistics: Statistics, group: RawBSONDocument) -> None:
    """Add the sessions of one kind, as MongoDB has counted them."""
    kind, count = group["_id"], group["count"]
    statistics.live += count
    statistics.logged_in += count * kind["logged_in"]
    statistics.sealed += count * kind["sealed"]
    statistics.ages[kind["age"]] += count
    statistics.idle[kind["idle"]] += count
    if not group.get("largest"):  # Some servers leave expressions out, and tell no size.
        statistics.sized = False
        return
    statistics.bytes += group["bytes"]
    statistics.largest = max(statistics.largest, group["largest"])
    statistics.sizes[kind["size"]] += count


def _is_refusal(error: BaseException | None) -> bool:
    """Say whether the database, or the tier of Atlas, does not allow a command."""
    return isinstance(error, OperationFailure) and error.code in REFUSED


def _is_lack(error: BaseException | None) -> bool:
    """Say whether a server refused a command because it lacks a feature."""
    return isinstance(error, OperationFailure) and not error.timeout and error.code not in _NO_LACK


def _summary(raw: RawBSONDocument, times: Times | None = None) -> Summary | None:
    """Read a document without its data; None if its values show that it is no session."""
    found = document.fields_of(bytes(raw.raw))
    record = document.outline(found)
    if not isinstance(record, document.Record):
        return None
    size = found.get("size")
    return Summary(
        id=record.id,
        owner=record.owner,
        created_at=record.created_at,
        seen_at=record.seen_at,
        expires_at=record.expires_at if times is None else times.end_of(record),
        size=int(size) if isinstance(size, int | float) else None,
        label=record.label,
        remembered=record.remember is True,
        sealed=record.version == document.SEALED,
    )

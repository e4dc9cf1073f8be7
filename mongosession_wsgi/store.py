"""The store: the verbs of one session, and of many sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from . import audit, document
from .collection import SessionCollection
from .commands import Documents
from .document import Mark, Record
from .errors import StoreError, warn
from .failures import explaining
from .life import Life
from .session import Session, visit_of
from .settings import Settings
from .times import Times
from .visit import Outcome, Visit

if TYPE_CHECKING:
    from bson.raw_bson import RawBSONDocument
    from pymongo import MongoClient
    from pymongo.collection import Collection

AT_A_TIME = 1000
"""The most sessions for one command."""


class Store(Protocol):
    """The needs of a request; `testing` has the tests for every store."""

    def open(self, token: str | None, times: Times | None = None) -> Session:
        """Return the session of a request with `token`, not loaded, without I/O.

        The application of a middleware gets a `Session`, and no subclass that a store returns.
        """

    def flush(self, session: Session) -> Outcome:
        """Write the session's changes, and return the outcome for the cookie."""

    def destroy(self, session: Session) -> bool:
        """Delete the session; False, and a `SessionWarning`, after a failure."""


@dataclass(frozen=True)
class SessionInfo:
    """The facts of one live session; `size` is in bytes, moments are aware UTC."""

    id: str
    owner: str | None
    created_at: datetime
    seen_at: datetime
    expires_at: datetime
    size: int
    data: dict[str, Any] = field(repr=False)
    label: str | None = None
    remembered: bool = False
    sealed: bool = False


utc_now: Callable[[], datetime] = partial(datetime.now, timezone.utc)


class MongoStore:
    """Keep sessions in one MongoDB collection.

    `settings` is the flat mapping of `mongodb_*` and `session_*` keys; raises `SettingsError`.
    Each process makes a client on first use, so a store may be older than a fork. A given `client`
    is used unchanged, and `close` leaves the client open. `clock` returns the current moment as an
    aware datetime.

    Every method but the constructor raises `StoreError` if MongoDB fails.
    """

    def __init__(
        self,
        settings: Mapping[str, Any] | Settings,
        *,
        client: MongoClient[Any] | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.settings: Settings = Settings.parse(settings)
        times = Times.of(self.settings)
        self._times: Callable[[], Times] = lambda: times
        self._clock = clock
        self._sessions = SessionCollection(self.settings, client)
        limit, seals = self.settings.limit, self.settings.sealed
        self._life = Life(self._sessions, clock, limit=limit, seals=seals)

    # The life of one session.

    def open(self, token: str | None, times: Times | None = None) -> Session:
        """Return the session of a request with `token`, not loaded, without I/O.

        `times` say when the session dies, if a framework has settings of its own.
        """
        seals = self.settings.sealed
        return Session(Visit(token, self._life.look, times or self._times(), seals=seals))

    def follow(self, times: Callable[[], Times]) -> None:
        """Have `times` say when sessions die, by a framework's settings of the moment.

        Requests of a framework bring their times along; `retrieve` and `sessions` do not.
        """
        self._times = times

    def create(self, data: Mapping[str, Any] | None = None) -> Session:
        """Return a new session, stored already, even if empty."""
        session = self.open(None)
        session.update(data or {})
        self._life.begin(visit_of(session))
        return session

    def retrieve(self, token: str) -> Session | None:
        """Return the live session of `token`, or None; raises `TypeError` unless it is a str."""
        session = self.open(_checked("token", token))
        return session if session.id else None

    def flush(self, session: Session) -> Outcome:
        """Write the session's changes, and return the outcome for the cookie.

        A session ended since `open` stays ended, and nothing is written. Raises `SessionDataError`
        for data that MongoDB cannot hold; the stored session stays the same.
        """
        return self._life.commit(visit_of(session))

    def destroy(self, session: Session) -> bool:
        """Delete the session; False, and a `SessionWarning`, if the database failed."""
        session.destroy()
        try:
            self.flush(session)
        except StoreError as error:
            warn(f"A session could not be destroyed and may still be live: {error}")
            return False
        return True

    # All sessions.

    @property
    def collection(self) -> Collection[RawBSONDocument]:
        """The collection of the process, with undecoded documents, for `document.decode`."""
        return self._sessions.raw

    @property
    def client(self) -> MongoClient[Any]:
        """The client of the process, perhaps still without a server."""
        return self._sessions.documents.database.client

    def sessions(self, owner: str | None = None) -> Iterator[SessionInfo]:
        """Iterate over the live sessions, of an owner or of all, the newest `seen_at` first.

        Raises `TypeError` unless the owner is a str.
        """
        return self._listed(None if owner is None else _checked("owner", owner))

    def find(self, conditions: dict[str, Any], **options: Any) -> Iterator[RawBSONDocument]:
        """Iterate over the documents that match, undecoded; `options` are those of the driver."""
        with explaining():
            found = self.collection.find(conditions, **options)
        return self._sessions.each(found)

    def revoke(self, id: str) -> int:
        """End the session of a public id; return the number of live sessions ended, 0 or 1.

        If the session got a new token within the last minute, the session under the new token ends,
        even before its insert. A login in its place stays. Raises `TypeError` unless the id is a
        str.
        """
        this = _checked("id", id)
        count = self._life.end_chain(this)
        if count is None:  # The text may be a visitor's own, or a token by mistake.
            audit.say("revoke", "nothing to end was found by an id", count=0)
            return 0
        audit.say("revoke", "a session was ended by its id", id=this, count=count)
        return count

    def revoke_all(self, owner: str, keep: str | None = None) -> int:
        """End all sessions of `owner` except `keep`, an id; return how many were live.

        Sessions stored before the call end, also under the new tokens of rotations meanwhile. The
        kept session may rotate too. A login after the call stays. Raises `TypeError` unless owner
        and id are str.
        """
        owner = _checked("owner", owner)
        if keep is not None:
            keep = _checked("keep", keep)
        count, is_over = 0, False
        try:
            for ended in self._ended(owner, keep):
                count += ended
            is_over = True
        finally:
            if count or is_over:
                audit.say("revoke", "sessions of an owner were ended", owner=owner, count=count)
        return count

    def end(self, ids: Sequence[str], conditions: dict[str, Any]) -> int:
        """End the live sessions among `ids` that match the conditions still; return how many."""
        return self._life.end_all(ids, conditions)

    def delete(self, ids: Sequence[str], conditions: dict[str, Any]) -> int:
        """Delete the documents of `ids`, if they still match the conditions; return how many.

        If the connection breaks in the midst, the number is of documents gone after the last try.
        """
        among, tries = {"_id": {"$in": ids}}, 0
        # The narrowest condition comes first: the embedded server takes the first index it meets.
        selected = among | conditions | among

        def delete(sessions: Documents) -> int:
            nonlocal tries
            tries += 1
            deleted = sessions.delete_many(selected).deleted_count
            return deleted if tries == 1 else len(ids) - sessions.count_documents(among)

        return self._sessions.attempt(delete)

    def purge(self) -> int:
        """Delete expired documents, for a server without a TTL monitor; return how many.

        If the connection breaks in the midst, the number is of the last try alone.
        """
        expired = document.expired_by(self._clock())
        return self._sessions.attempt(lambda them: them.delete_many(expired).deleted_count)

    def ensure_indexes(self) -> None:
        """Make the indexes: TTL on `expires_at`, and `owner`.

        An application with the right to make indexes needs no call: each process makes them
        around the first insert.
        """
        self._sessions.ensure_indexes()

    def close(self) -> None:
        """Close the own client of the process; the next use makes another."""
        self._sessions.close()

    def _listed(self, owner: str | None) -> Iterator[SessionInfo]:
        now = self._clock()
        live = document.SESSION | {"expires_at": {"$gt": now}}
        if owner is not None:
            live["owner"] = owner
        # A sort in the server's memory has a limit, unless the disk helps; one owner needs no help.
        sort: dict[str, Any] = {"sort": [("seen_at", -1)], "allow_disk_use": owner is None or None}
        times = self._times()
        for raw in self.find(live, **sort):
            record = document.decode(bytes(raw.raw))
            if isinstance(record, Record):
                end = times.end_of(record)
                if end > now:
                    yield _info(record._replace(expires_at=end), len(raw.raw))

    def _ended(self, owner: str, keep: str | None) -> Iterator[int]:
        """End the sessions found, then those moved in the meantime; yield the counts."""
        life = self._life
        found = list(life.of_owner(owner))
        marks = {one.id: one for one in found if isinstance(one, Mark)}
        kept = self._kept(keep, marks)
        live = [one.id for one in found if isinstance(one, Record) and one.id not in kept]
        count = 0
        for batch in _batches(live):
            ended = life.end_all(batch)
            count += ended
            yield ended
        moving = _loose_ends(marks, kept, found)
        if count < len(live):  # Some were given a new token just now, or ended by somebody else.
            moving += chain.from_iterable(map(life.moved, _batches(live)))
        yield from (life.end_chain(id_) or 0 for id_ in moving)

    def _kept(self, keep: str | None, marks: Mapping[str, Mark]) -> set[str | None]:
        """Return the ids of the kept session, before and after rotations.

        A server may read an owner's sessions at more than one moment, and show a kept session both
        before and after a rotation. So a look follows, for a mark that is not among those found.
        """
        kept: set[str | None] = {None}
        while keep is not None and keep not in kept:
            kept.add(keep)
            mark = marks.get(keep)
            # A login proves anew who somebody is, and its session is another.
            keep = mark.followed(past_logins=False) if mark else self._life.rotated(keep)
        return kept


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[first : first + AT_A_TIME] for first in range(0, len(ids), AT_A_TIME))


def _loose_ends(
    marks: Mapping[str, Mark], kept: set[str | None], found: Sequence[Record | Mark]
) -> list[str]:
    """Return the ids of the marks whose sessions were not found: they are about to be stored.

    A login's mark is among them, because the session before the login may be about to be put back.
    """
    there = kept | {one.id for one in found} | {None}
    return [id_ for id_, mark in marks.items() if id_ not in kept and mark.successor not in there]


def _checked(name: str, value: object) -> str:
    """Return a text as it is stored; a text with a lone surrogate never is, and finds nothing.

    Refuse anything but a str, such as a query operator from a form or a JSON body.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name}: must be a str, not {type(value).__name__}")
    stored = document.text_of(value)
    return stored if stored.encode(errors="ignore").decode() == stored else ""


def _info(record: Record, size: int) -> SessionInfo:
    return SessionInfo(
        id=record.id,
        owner=record.owner,
        created_at=record.created_at,
        seen_at=record.seen_at,
        expires_at=record.expires_at,
        size=size,
        data=record.data if record.version == document.PLAIN else {},
        label=record.label,
        remembered=record.remember is True,
        sealed=record.version == document.SEALED,
    )

"""The store: the verbs of one session, and what concerns many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any, Protocol

from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.collection import Collection

from . import audit, document
from .collection import Documents, SessionCollection
from .document import Mark, Record
from .errors import StoreError, warn
from .failures import explaining
from .life import Life
from .session import Session, visit_of
from .settings import Settings
from .times import Times
from .visit import Outcome, Visit

AT_A_TIME = 1000
"""The sessions that one command ends or reads."""


class Store(Protocol):
    """What a request needs of a store; the tests that one must pass are in `testing`."""

    def open(self, token: str | None, times: Times | None = None) -> Session:
        """Return the session that a request with `token` has, not loaded; do no I/O."""

    def flush(self, session: Session) -> Outcome:
        """Write the session's changes, and say what that means for its cookie."""

    def destroy(self, session: Session) -> bool:
        """Delete the session; False, and a `SessionWarning`, if that failed."""


@dataclass(frozen=True)
class SessionInfo:
    """What is known of one live session; `size` is in bytes, moments are aware UTC."""

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
    The client is made on first use in each process, so that a store may be made before a fork. A
    `client` that is passed in is used as it is, and left open by `close`. `clock` returns the
    current moment as an aware datetime.

    Every method but the constructor raises `StoreError` if MongoDB fails.
    """

    def __init__(
        self,
        settings: Mapping[str, Any] | Settings,
        *,
        client: MongoClient[Any] | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.settings = Settings.parse(settings)
        times = Times.of(self.settings)
        self._times: Callable[[], Times] = lambda: times
        self._clock = clock
        self._sessions = SessionCollection(self.settings, client)
        self._life = Life(self._sessions, clock, self.settings.limit)

    # The life of one session.

    def open(self, token: str | None, times: Times | None = None) -> Session:
        """Return the session that a request with `token` has, not loaded; do no I/O.

        `times` say when it dies, if a framework has settings of its own for that.
        """
        seals = self.settings.sealed
        return Session(Visit(token, self._life.look, times or self._times(), seals=seals))

    def follow(self, times: Callable[[], Times]) -> None:
        """Have `times` say when sessions die, by the settings of a framework at that moment.

        Requests of a framework bring their times along; `retrieve` and `sessions` do not.
        """
        self._times = times

    def create(self, data: Mapping[str, Any] | None = None) -> Session:
        """Return a new session that is stored already, also if it is empty."""
        session = self.open(None)
        session.update(data or {})
        self._life.begin(visit_of(session))
        return session

    def retrieve(self, token: str) -> Session | None:
        """Return the live session of `token`, or None."""
        session = self.open(token)
        return session if session.id else None

    def flush(self, session: Session) -> Outcome:
        """Write the session's changes, and say what that means for its cookie.

        A session that was ended since it was opened stays ended: nothing is written then. Raises
        `SessionDataError`, with the stored session as it was, for what MongoDB cannot hold.
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
        """This process's collection, its documents undecoded, for `document.decode` to read."""
        return self._sessions.raw

    @property
    def client(self) -> MongoClient[Any]:
        """This process's client, which may not have found a server yet."""
        return self._sessions.documents.database.client

    def sessions(self, owner: str | None = None) -> Iterator[SessionInfo]:
        """Iterate over the live sessions, of one owner or of all, the newest `seen_at` first.

        Raises `TypeError` for an owner that is no str.
        """
        if owner is not None:
            _check("owner", owner)
        return self._listed(owner)

    def revoke(self, id: str) -> int:
        """End the session of this public id; return how many live ones that were, 0 or 1.

        If it was given a new token within the last minute, the session that goes on ends, even one
        that is still to be stored; a login in its place stays. Raises `TypeError` for an id that is
        no str.
        """
        _check("id", id)
        count = self._life.end_chain(id) or 0
        audit.say("revoke", "a session was ended by its id", id=id, count=count)
        return count

    def revoke_all(self, owner: str, keep: str | None = None) -> int:
        """End all sessions of `owner` but the one whose id is `keep`; return how many were live.

        Those end that are there when it begins, and whatever they are regenerated to meanwhile;
        the kept one may go on under a new token too. A login that begins later is not undone.
        Raises `TypeError` for an owner or an id that is no str.
        """
        _check("owner", owner)
        if keep is not None:
            _check("keep", keep)
        count = self._revoke_all(owner, keep)
        audit.say("revoke", "sessions of an owner were ended", owner=owner, count=count)
        return count

    def end(self, ids: Sequence[str], conditions: dict[str, Any]) -> int:
        """End those of `ids` that are live and match the conditions still; return how many."""
        return self._life.end_all(ids, conditions)

    def delete(self, ids: Sequence[str], conditions: dict[str, Any]) -> int:
        """Delete those of `ids` that match the conditions still; return how many.

        Where the connection breaks in the midst, that is how many are not there any more when the
        command has been repeated.
        """
        among, tries = {"_id": {"$in": ids}}, 0
        # What narrows most comes first: the embedded server searches by the first index it meets.
        selected = among | conditions | among

        def delete(sessions: Documents) -> int:
            nonlocal tries
            tries += 1
            deleted = sessions.delete_many(selected).deleted_count
            return deleted if tries == 1 else len(ids) - sessions.count_documents(among)

        return self._sessions.attempt(delete)

    def purge(self) -> int:
        """Delete what has expired, for a server without a TTL monitor; return how many."""
        expired = document.expired_by(self._clock())
        return self._sessions.attempt(lambda them: them.delete_many(expired).deleted_count)

    def ensure_indexes(self) -> None:
        """Make the indexes: TTL on `expires_at`, and `owner`.

        Not needed for an application that may make them itself: it does, once per process, around
        its first insert.
        """
        self._sessions.ensure_indexes()

    def close(self) -> None:
        """Close this process's own client; the next use makes another."""
        self._sessions.close()

    def _listed(self, owner: str | None) -> Iterator[SessionInfo]:
        now = self._clock()
        live = document.SESSION | {"expires_at": {"$gt": now}}
        if owner is not None:
            live["owner"] = owner
        # A server that sorts in memory may have little of it; the sort of one owner needs none.
        sort: dict[str, Any] = {"sort": [("seen_at", -1)], "allow_disk_use": owner is None or None}
        times = self._times()
        with explaining(), self.collection.find(live, **sort) as found:
            for raw in found:
                record = document.decode(bytes(raw.raw))
                if isinstance(record, Record):
                    end = times.end_of(record)
                    if end > now:
                        yield _info(record._replace(expires_at=end), len(raw.raw))

    def _revoke_all(self, owner: str, keep: str | None) -> int:
        """End what is there, and then whatever some of that has become in the meantime."""
        life = self._life
        found = list(life.of_owner(owner))
        marks = {one.id: one for one in found if isinstance(one, Mark) and not one.by_login}
        kept = {keep}
        while keep in marks and marks[keep].successor not in kept:
            keep = marks[keep].successor
            kept.add(keep)
        live = [one.id for one in found if isinstance(one, Record) and one.id not in kept]
        batches = [live[first : first + AT_A_TIME] for first in range(0, len(live), AT_A_TIME)]
        count = sum(map(life.end_all, batches))
        there = {one.id for one in found}
        moving = [
            id_
            for id_, mark in marks.items()
            if id_ not in kept and mark.successor not in there | kept
        ]
        if count < len(live):  # Some were given a new token just now, or ended by somebody else.
            moving += [id_ for batch in batches for id_ in life.moved(batch)]
        return count + sum(life.end_chain(id_) or 0 for id_ in moving)


def _check(name: str, value: object) -> None:
    """Refuse what is no str: an operator of a query, from a form or a JSON body, or nobody."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: must be a str, not {type(value).__name__}")


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

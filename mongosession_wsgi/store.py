"""The only module that speaks to MongoDB."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from enum import Enum
from secrets import token_urlsafe
from threading import Lock
from time import monotonic
from typing import Any, Protocol, TypeVar
from weakref import finalize

import pymongo
from bson.codec_options import CodecOptions
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo import IndexModel, MongoClient, ReadPreference, WriteConcern
from pymongo.collection import Collection
from pymongo.errors import (
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
)

from . import document
from .document import Changes, Mark, Record
from .errors import SessionDataError, SettingsError, StoreError, logger, warn
from .session import Session, State
from .settings import Settings

T = TypeVar("T")
_Sessions = Collection[dict[str, Any]]
_RAW = CodecOptions(document_class=RawBSONDocument)

_MARK_TIME = timedelta(seconds=60)
_RENEW_AT_LEAST_EVERY = timedelta(minutes=5)
_NO_TIME = 0.001
_AT_A_TIME = 10_000
_TOO_LARGE = {10334, 17419, 17420}
_TRANSIENT = {6, 7, 89, 91, 134, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436}
"""The errors that the specification of retryable reads of MongoDB's drivers has repeated."""
_LOGIN_REFUSED = 18
NOT_ALLOWED = 13
"""The code of an error: the user may not do that."""

# BSON's numbers for types: shorter than their names in a command that most requests send.
_STRING, _OBJECT, _ARRAY, _DATE, _NULL = 2, 3, 4, 9, 10
FORM = {
    "v": document.VERSION,
    "data": {"$type": _OBJECT, "$not": {"$type": _ARRAY}},
    "owner": {"$type": [_STRING, _NULL]},
    "created_at": {"$type": _DATE},
    "seen_at": {"$type": _DATE},
    "expires_at": {"$type": _DATE},
}
"""What every session matches, and no mark; other documents of the collection are left alone."""
MARK = {"v": document.VERSION, "data": {"$exists": False}, "expires_at": {"$type": _DATE}}
"""What the mark of a session that was regenerated away matches."""


class Outcome(Enum):
    """What `flush` made of a session, as far as its cookie is concerned."""

    KEPT = "the browser's cookie is as good as before"
    RENEWED = "the session lives longer than the browser was told"
    CREATED = "it has a new token"
    DESTROYED = "it is no more"


class Store(Protocol):
    """What a request needs of a store; the tests that one must pass are in `testing`."""

    def open(self, token: str | None) -> Session:
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


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


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
        database = self.settings.database
        if database is None:
            raise SettingsError(
                "mongodb_session_db: missing; name the database that is to hold the sessions"
            )
        self._database = database
        self._client = client
        self._clock = clock
        self._idle = self.settings.idle
        self._pause = min(self._idle / 10, _RENEW_AT_LEAST_EVERY)
        self._collections: dict[int, _Sessions] = {}
        self._indexed: set[int] = set()
        self._indexing: dict[int, Lock] = {}

    # The life of one session.

    def open(self, token: str | None) -> Session:
        """Return the session that a request with `token` has, not loaded; do no I/O."""
        return Session(token, self.load)

    def create(self, data: Mapping[str, Any] | None = None) -> Session:
        """Return a new session that is stored already, also if it is empty."""
        session = self.open(None)
        session.update(data or {})
        with self._deadline(monotonic()):
            self._insert(session, session.contents(), token_urlsafe(32))
        return session

    def retrieve(self, token: str) -> Session | None:
        """Return the live session of `token`, or None."""
        session = self.open(token)
        return session if session.id else None

    def load(self, token: str) -> Record | Mark | None:
        """Return what stands under the id of `token`, unless it is expired or not of our form."""
        id_ = document.id_of(token)
        try:
            found = self._attempt(lambda sessions: _found(sessions, id_))
            if found is None:
                return None
            record = document.read(found)
        except BSONError:
            record = None
        if record is None:
            logger.warning("The document %s is not of our form: it is no session, and stays.", id_)
            return None
        return record if record.expires_at > self._clock() else None

    def flush(self, session: Session) -> Outcome:
        """Write the session's changes, and say what that means for its cookie.

        A session that was ended since it was opened stays ended: nothing is written then. Raises
        `SessionDataError`, with the stored session as it was, for what MongoDB cannot hold.
        """
        if session.state is State.ENDED and session.mark is not None:
            return self._log_in_again(session, session.mark)
        if session.state in (State.UNTOUCHED, State.ENDED):
            return Outcome.KEPT
        changes = session.changes()
        if session.state is State.OPEN and not (changes.any or self._is_renewal_due(session)):
            return Outcome.KEPT
        if session.failure is not None:
            raise session.failure
        begun = monotonic()
        if session.state is State.OPEN and session.claim is not None:
            outcome = self._update(session, session.claim, changes)
            if outcome is not None:
                return outcome
        with self._deadline(begun):
            if session.state is State.DESTROYED:
                return self._end(session, changes)
            if session.claim is None:
                return self._start(session, changes)
            if session.state is State.REGENERATED:
                return self._regenerate(session, session.claim)
            return self._explore(session)

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
        return _raw(self._sessions())

    def sessions(self, owner: str | None = None) -> Iterator[SessionInfo]:
        """Iterate over the live sessions, of one owner or of all, the newest `seen_at` first."""
        live = self._live() if owner is None else self._live(owner=owner)
        newest_first = [("seen_at", -1)]
        with (
            explaining(),
            self.collection.find(live, sort=newest_first, allow_disk_use=True) as found,
        ):
            for raw in found:
                record = _decoded(raw)
                if isinstance(record, Record):
                    yield _info(record, len(raw.raw))

    def revoke(self, id: str) -> int:
        """End the session of this public id; return how many live ones that were, 0 or 1.

        If it was regenerated within the last minute, its successor ends, even one that is still
        to be stored.
        """
        return self._revoke(id, keep=None)

    def revoke_all(self, owner: str, keep: str | None = None) -> int:
        """End all sessions of `owner` but the one whose id is `keep`; return how many were live.

        Those end that are there when it begins: a login at the same time is not undone.
        """
        live = self._live(owner=owner, _id={"$ne": keep})
        ids = self._attempt(lambda sessions: [one["_id"] for one in sessions.find(live, ["_id"])])
        live = self._live()
        ended = sum(
            self.delete(ids[first : first + _AT_A_TIME], live)
            for first in range(0, len(ids), _AT_A_TIME)
        )
        return ended + sum(self._revoke(mark.id, keep) for mark in self._marks(owner))

    def delete(self, ids: Sequence[str], conditions: dict[str, Any]) -> int:
        """Delete those of `ids` that match the conditions still; return how many.

        Where the connection breaks in the midst, that is how many are not there any more when the
        command has been repeated.
        """
        among, tries = {"_id": {"$in": ids}}, 0
        # What narrows most comes first: the embedded server searches by the first index it meets.
        selected = among | conditions | among

        def delete(sessions: _Sessions) -> int:
            nonlocal tries
            tries += 1
            deleted = sessions.delete_many(selected).deleted_count
            return deleted if tries == 1 else len(ids) - sessions.count_documents(among)

        return self._attempt(delete)

    def purge(self) -> int:
        """Delete what has expired, for a server without a TTL monitor; return how many."""
        expired = expired_by(self._clock())
        return self._attempt(lambda sessions: sessions.delete_many(expired).deleted_count)

    def ensure_indexes(self) -> None:
        """Make the indexes: TTL on `expires_at`, and `owner`.

        Not needed for an application that may make them itself: it does, once per process, before
        its first insert.
        """
        indexes = [IndexModel("expires_at", expireAfterSeconds=0), IndexModel("owner")]
        self._attempt(lambda sessions: sessions.create_indexes(indexes))

    def close(self) -> None:
        """Close this process's own client; the next use makes another."""
        collection = self._collections.pop(os.getpid(), None)
        if collection is not None and self._client is None:
            collection.database.client.close()

    # What flush is made of.

    def _update(self, session: Session, token: str, changes: Changes) -> Outcome | None:
        """Write the difference. The session must be live, there is no upsert: None if it is not."""
        now, record = self._clock(), session.record
        live: dict[str, Any] = {
            "_id": document.id_of(token) if record is None else record.id,
            "v": document.VERSION,
            "data": {"$type": _OBJECT},
            "expires_at": {"$gt": now},
        }
        if record is None:
            live["created_at"], expires_at = self._of_unknown_age(now)
        else:
            record = self._used(record, now, changes.until)
            expires_at = record.expires_at
        update = document.update_of(changes, now, expires_at)
        if self._attempt(lambda sessions: sessions.update_one(live, update).matched_count):
            renewed = record is None or self._is_renewal_due(session)
            session.settle(changes, record, token)
            return Outcome.RENEWED if renewed else Outcome.KEPT
        return None

    def _explore(self, session: Session) -> Outcome:
        """Find out why no live session was there to be written to, and do what is to be done then.

        One that was looked at before has been ended since. Of one that was not, nothing is known
        yet: it may be gone, regenerated away, or so old that its expiry has to be computed.
        """
        if session.loaded:
            session.end()
            return Outcome.KEPT
        session.load()
        return self.flush(session)

    def _regenerate(self, session: Session, token: str) -> Outcome:
        """Swap the session for a mark, and store its latest data under a new token.

        Of several requests that do so at once, one finds the session; and with the first command
        the old token is dead, whatever becomes of the second.
        """
        id_, new_token = document.id_of(token), token_urlsafe(32)
        marking = document.marking(
            self._clock() + _MARK_TIME,
            document.id_of(new_token),
            goes_on=session.login_owner is None,
        )
        live = self._live(_id=id_)
        found = self._once(lambda sessions: _raw(sessions).find_one_and_update(live, marking))
        record = _decoded(found)
        if found is None or not isinstance(record, Record):
            return self._explore(session)
        try:
            session.rebase(record)
            return self._insert(session, session.contents(), new_token, record)
        except SessionDataError:
            unended = {"_id": id_, "ended": {"$exists": False}} | MARK
            self._attempt(lambda sessions: _raw(sessions).replace_one(unended, found))
            raise

    def _log_in_again(self, session: Session, mark: Mark) -> Outcome:
        """Log in where an earlier regeneration has failed between its two commands.

        Any other request with the token of a mark is dropped; this one too, unless the time of
        the earlier one is up, and what it was to store is not there.
        """
        if session.login_owner is None or mark.successor is None:
            return Outcome.KEPT
        longest = self._sessions().database.client.options.timeout
        begun_at = mark.expires_at - _MARK_TIME
        if longest is None or self._clock() - begun_at <= timedelta(seconds=longest):
            return Outcome.KEPT
        with self._deadline(monotonic()):
            if not self._forestall(mark.successor):
                return Outcome.KEPT
            return self._insert(session, session.contents(), token_urlsafe(32))

    def _start(self, session: Session, changes: Changes) -> Outcome:
        """Store a session that is new, unless it is still empty."""
        if changes.assigned or session.login_owner is not None:
            return self._insert(session, changes, token_urlsafe(32))
        session.settle(changes, None, None)
        return Outcome.KEPT

    def _end(self, session: Session, changes: Changes) -> Outcome:
        """Delete the session, and store as a new one what was set since."""
        token, deleted = session.claim, False
        if token is not None:
            id_ = document.id_of(token)
            deleted = self._deleted(id_)
            if not deleted and (self._end_mark(id_) or session.record is not None):
                session.end()  # Somebody else has ended it in the meantime.
                return Outcome.KEPT
        if changes.assigned or session.login_owner is not None:
            return self._insert(session, changes, token_urlsafe(32))
        session.settle(changes, None, None)
        return Outcome.DESTROYED if deleted else Outcome.KEPT

    def _insert(
        self,
        session: Session,
        contents: Changes,
        token: str,
        predecessor: Record | None = None,
    ) -> Outcome:
        """Store a new session; unless it is a login, it goes on with its predecessor's life."""
        now = self._clock()
        record = Record(
            id=document.id_of(token),
            data={},
            owner=session.login_owner,
            created_at=now,
            seen_at=now,
            expires_at=self._expiry(now, now, contents.until),
        )
        if predecessor is not None and session.login_owner is None:
            record = self._used(predecessor, now, contents.until)._replace(id=record.id)
        stored = RawBSONDocument(document.document_of(record, contents))
        self._ensure_indexes_once()
        inserted = self._attempt(lambda sessions: _inserted(sessions, stored))
        if not inserted and isinstance(self.load(token), Mark):
            session.end()  # Revoked between the two commands of a regeneration.
            return Outcome.KEPT
        session.settle(contents, record, token)
        return Outcome.CREATED

    def _deleted(self, id: str) -> bool:
        """Delete a live session; what a repeated command does not find, the first one deleted."""
        live, tries = self._live(_id=id), 0

        def delete(sessions: _Sessions) -> int:
            nonlocal tries
            tries += 1
            return sessions.delete_one(live).deleted_count

        return bool(self._attempt(delete)) or tries > 1

    # Marks: what is left of sessions that were regenerated away.

    def _revoke(self, id: str, keep: str | None) -> int:
        """End a session, or what it was regenerated to, unless that is the one to keep."""
        if id == keep:
            return 0
        if self._deleted(id):
            return 1
        mark = self._end_mark(id)
        if mark is None or not mark.goes_on or mark.successor in (None, keep):
            return 0
        if self._forestall(mark.successor):
            return 0
        return self._revoke(mark.successor, keep)

    def _marks(self, owner: str) -> list[Mark]:
        """Return the marks whose successor is, or is to be, a session of this owner."""
        marks = {"owner": owner} | MARK
        found = self._attempt(lambda sessions: list(_raw(sessions).find(marks)))
        return [mark for mark in map(_decoded, found) if isinstance(mark, Mark)]

    def _end_mark(self, id: str) -> Mark | None:
        """Note on a mark that its session must not be put back; return the mark."""
        mark = MARK | {"_id": id, "expires_at": {"$gt": self._clock()}}
        ended = {"$set": {"ended": True}}
        found = self._attempt(lambda sessions: _raw(sessions).find_one_and_update(mark, ended))
        ended_mark = _decoded(found)
        return ended_mark if isinstance(ended_mark, Mark) else None

    def _forestall(self, id: str) -> bool:
        """End a session that is still to be inserted; False if it is there already."""
        tombstone = RawBSONDocument(document.tombstone(id, self._clock() + _MARK_TIME))
        return self._attempt(lambda sessions: _inserted(sessions, tombstone))

    # When a session dies.

    def _expiry(
        self, now: datetime, created_at: datetime, until: datetime | None = None
    ) -> datetime:
        idle_until = until or now + self._idle
        if self.settings.lifetime is None:
            return idle_until
        return min(idle_until, created_at + self.settings.lifetime)

    def _used(self, record: Record, now: datetime, until: datetime | None) -> Record:
        """Return `record` after a use of its session; no moment moves back unless it is to."""
        expires_at = self._expiry(now, record.created_at, until)
        if until is None:
            expires_at = max(expires_at, record.expires_at)
        return record._replace(seen_at=max(now, record.seen_at), expires_at=expires_at)

    def _of_unknown_age(self, now: datetime) -> tuple[dict[str, Any], datetime | None]:
        """Return the `created_at` that a session must have to be given a new expiry unseen.

        Only one that is too young for its lifetime to matter has an expiry that needs no look at
        it. Where the lifetime is no longer than the idle time, no expiry ever moves.
        """
        idle, lifetime = self._idle, self.settings.lifetime
        if lifetime is None:
            return {"$type": _DATE}, now + idle
        if lifetime <= idle:
            return {"$type": _DATE}, None
        return {"$gt": now + idle - lifetime}, now + idle

    def _is_renewal_due(self, session: Session) -> bool:
        """Say whether a session is to live longer though it was only read."""
        if session.record is None:
            return False
        return self._clock() - session.record.seen_at >= self._pause

    def _live(self, **conditions: Any) -> dict[str, Any]:
        # What narrows most comes first: the embedded server searches by the first index it meets.
        return conditions | FORM | {"expires_at": {"$gt": self._clock()}} | conditions

    # How MongoDB is spoken to.

    def _sessions(self) -> _Sessions:
        """Return this process's collection; a client must not be used on both sides of a fork."""
        pid = os.getpid()
        collection = self._collections.get(pid)
        if collection is None:
            made = self._connected()
            # Two threads may come here at once; the client of one is closed, unused.
            collection = self._collections.setdefault(pid, made)
            if collection is not made and self._client is None:
                made.database.client.close()
        return collection

    def _connected(self) -> _Sessions:
        settings = self.settings
        try:
            client = self._own_client() if self._client is None else self._client
        except (PyMongoError, ValueError, TypeError) as error:
            # What the driver quotes, here or in a traceback, may be a part of the password.
            reason = re.sub('"[^"]*"', '"…"', str(error))
            raise StoreError(
                "The mongodb_* settings describe no connection; check mongodb_host, where a user "
                f"name and a password within a URI must be percent-encoded. {reason}"
            ) from None
        return client.get_database(self._database).get_collection(
            settings.collection,
            codec_options=document.CODEC,
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority"),
        )

    def _own_client(self) -> MongoClient[Any]:
        client: MongoClient[Any] = MongoClient(**self.settings.client_options)
        finalize(self, _close_in_its_process, client, os.getpid())
        return client

    def _deadline(self, begun: float) -> AbstractContextManager[None]:
        """Give what is done within it what is left, since `begun`, of a single command's time.

        The driver bounds each command by itself; this is for several that serve one request.
        """
        timeout = self._sessions().database.client.options.timeout
        left = None if timeout is None else max(timeout - (monotonic() - begun), _NO_TIME)
        return pymongo.timeout(left)

    def _attempt(self, command: Callable[[_Sessions], T]) -> T:
        """Run a command that may be repeated, and repeat it if the connection broke.

        The driver repeats writes too, but not on a standalone server.
        """
        begun = monotonic()
        try:
            return self._once(command)
        except StoreError as error:
            if not _may_pass(error.__cause__):
                raise
        with self._deadline(begun):
            return self._once(command)

    def _once(self, command: Callable[[_Sessions], T]) -> T:
        """Run a command; what the driver raises becomes an error of ours."""
        sessions = self._sessions()
        try:
            return command(sessions)
        except PyMongoError as error:
            if isinstance(error, DocumentTooLarge) or getattr(error, "code", None) in _TOO_LARGE:
                raise document.too_large("The session with what this request sets") from error
            raise StoreError(explained(error)) from error

    def _ensure_indexes_once(self) -> None:
        """Make the indexes before this process's first insert, while other threads wait."""
        pid = os.getpid()
        if pid in self._indexed:
            return
        turn = self._indexing.setdefault(pid, Lock())
        # Whose turn does not come in time has no time left for its insert either.
        timeout = self._sessions().database.client.options.timeout
        if turn.acquire(timeout=-1 if timeout is None else timeout):
            try:
                if pid not in self._indexed:
                    self._ensure_indexes_if_allowed()
                    self._indexed.add(pid)
            finally:
                turn.release()

    def _ensure_indexes_if_allowed(self) -> None:
        try:
            self.ensure_indexes()
        except StoreError as error:
            reason = error.__cause__
            if not isinstance(reason, OperationFailure) or reason.code == _LOGIN_REFUSED:
                raise
            logger.warning(
                "The indexes of the sessions could not be made, so expired ones pile up and the "
                "sessions of an owner are found slowly; sessions work. MongoDB says: %s",
                reason,
            )


def expired_by(now: datetime) -> dict[str, Any]:
    """Return what a document of ours matches, session or mark, whose time is up."""
    return {"v": document.VERSION, "expires_at": {"$lte": now}}


def _close_in_its_process(client: MongoClient[Any], pid: int) -> None:
    if os.getpid() == pid:
        client.close()


def _may_pass(error: BaseException | None) -> bool:
    """Say whether a command that failed like this may be repeated with a hope."""
    if isinstance(error, ConnectionFailure):
        return not error.timeout
    return isinstance(error, OperationFailure) and error.code in _TRANSIENT


def _found(sessions: _Sessions, id_: str) -> dict[str, Any] | None:
    """Return the document of this id.

    A plain command, because the cursor that `find_one` makes for it costs a client an eighth of
    the time of a read. What it lacks of `find_one` is a second try, and `_attempt` gives that.
    The server keeps no cursor: there is one such document at most, and it is in the first batch.
    """
    find: dict[str, Any] = {"find": sessions.name, "filter": {"_id": id_}}
    if sessions.read_concern.level is not None:
        find["readConcern"] = sessions.read_concern.document
    reply = sessions.database.command(find, codec_options=sessions.codec_options)
    batch: list[dict[str, Any]] = reply["cursor"]["firstBatch"]
    return batch[0] if batch else None


def _inserted(sessions: _Sessions, new: RawBSONDocument) -> bool:
    """Insert a document; False if its id is taken, be it by this very command, repeated."""
    try:
        sessions.insert_one(new)
    except DuplicateKeyError as error:
        if (error.details or {}).get("keyPattern") != {"_id": 1}:
            raise
        return False
    return True


def _raw(sessions: _Sessions) -> Collection[RawBSONDocument]:
    return sessions.with_options(codec_options=_RAW)


def _decoded(found: RawBSONDocument | None) -> Record | Mark | None:
    return None if found is None else document.decode(bytes(found.raw))


def _info(record: Record, size: int) -> SessionInfo:
    return SessionInfo(
        id=record.id,
        owner=record.owner,
        created_at=record.created_at,
        seen_at=record.seen_at,
        expires_at=record.expires_at,
        size=size,
        data=record.data,
    )


@contextmanager
def explaining() -> Iterator[None]:
    """Turn what the driver raises into an error of ours."""
    try:
        yield
    except PyMongoError as error:
        raise StoreError(explained(error)) from error


def explained(error: PyMongoError) -> str:
    """Say what an operator can do; the driver's words follow as the cause."""
    code = error.code if isinstance(error, OperationFailure) else None
    # After the first refusal, the driver has only a text of its own to say so.
    if code == _LOGIN_REFUSED or "uthentication failed" in str(error):
        return (
            "MongoDB refused the login; check mongodb_username, mongodb_password and "
            "mongodb_db_name, the database that knows them"
        )
    if code == NOT_ALLOWED:
        return "MongoDB does not allow this user to do that; grant it readWrite on the database"
    if error.timeout:
        return "MongoDB did not answer in time; check that it runs and that mongodb_host is right"
    return f"MongoDB failed ({type(error).__name__})"

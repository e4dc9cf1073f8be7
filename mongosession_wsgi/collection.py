"""This process's client: its deadline, its two tries, the indexes, and the driver's errors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from time import monotonic
from typing import Any, TypeVar
from weakref import finalize

import pymongo
from bson.codec_options import CodecOptions
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
from .errors import SettingsError, StoreError, logger
from .settings import Settings

T = TypeVar("T")
Documents = Collection[dict[str, Any]]
"""The collection of the sessions, its documents decoded as `document.CODEC` says."""

NOT_ALLOWED = 13
"""The code of an error: the user may not do that."""
_LOGIN_REFUSED = 18
_TOO_LARGE = {10334, 17419, 17420}
_TRANSIENT = {6, 7, 89, 91, 134, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436}
"""The errors that the specification of retryable reads of MongoDB's drivers has repeated."""
_NO_TIME = 0.001
RAW = CodecOptions(document_class=RawBSONDocument)


class SessionCollection:
    """The collection that holds the sessions, over a client of this process.

    The client is made on first use in each process, so that the object may be made before a fork.
    A `client` that is passed in is used as it is, and left open by `close`. Raises `SettingsError`
    if the settings name no database; every method raises `StoreError` if MongoDB fails.
    """

    def __init__(self, settings: Settings, client: MongoClient[Any] | None = None) -> None:
        if settings.database is None:
            raise SettingsError(
                "mongodb_session_db: missing; name the database that is to hold the sessions"
            )
        self._settings = settings
        self._database = settings.database
        self._client = client
        self._collections: dict[int, Documents] = {}
        self._indexed: set[int] = set()
        self._indexing: dict[int, Lock] = {}

    @property
    def documents(self) -> Documents:
        """This process's collection; a client must not be used on both sides of a fork."""
        pid = os.getpid()
        collection = self._collections.get(pid)
        if collection is None:
            made = self._connected()
            # Two threads may come here at once; the client of one is closed, unused.
            collection = self._collections.setdefault(pid, made)
            if collection is not made and self._client is None:
                made.database.client.close()
        return collection

    @property
    def raw(self) -> Collection[RawBSONDocument]:
        """This process's collection, its documents undecoded."""
        return self.documents.with_options(codec_options=RAW)

    def attempt(self, command: Callable[[Documents], T]) -> T:
        """Run a command that may be repeated, and repeat it if the connection broke.

        The driver repeats writes too, but not on a standalone server.
        """
        begun = monotonic()
        try:
            return self.once(command)
        except StoreError as error:
            if not _may_pass(error.__cause__):
                raise
        with self.deadline(begun):
            return self.once(command)

    def once(self, command: Callable[[Documents], T]) -> T:
        """Run a command; what the driver raises becomes an error of ours."""
        documents = self.documents
        try:
            return command(documents)
        except PyMongoError as error:
            if isinstance(error, DocumentTooLarge) or getattr(error, "code", None) in _TOO_LARGE:
                raise document.too_large("The session with what this request sets") from error
            raise StoreError(explained(error)) from error

    def deadline(self, begun: float) -> AbstractContextManager[None]:
        """Give what is done within it what is left, since `begun`, of a single command's time.

        The driver bounds each command by itself; this is for several that serve one request.
        """
        timeout = self.documents.database.client.options.timeout
        left = None if timeout is None else max(timeout - (monotonic() - begun), _NO_TIME)
        return pymongo.timeout(left)

    def ensure_indexes(self) -> None:
        """Make the indexes: TTL on `expires_at`, and `owner`."""
        indexes = [IndexModel("expires_at", expireAfterSeconds=0), IndexModel("owner")]
        self.attempt(lambda documents: documents.create_indexes(indexes))

    def ensure_indexes_in_passing(self) -> None:
        """Make the indexes before this process's first insert, while other threads wait."""
        pid = os.getpid()
        if pid in self._indexed:
            return
        turn = self._indexing.setdefault(pid, Lock())
        # Whose turn does not come in time has no time left for its insert either.
        timeout = self.documents.database.client.options.timeout
        if turn.acquire(timeout=-1 if timeout is None else timeout):
            try:
                if pid not in self._indexed:
                    self._ensure_indexes_if_allowed()
                    self._indexed.add(pid)
            finally:
                turn.release()

    def close(self) -> None:
        """Close this process's own client; the next use makes another."""
        collection = self._collections.pop(os.getpid(), None)
        if collection is not None and self._client is None:
            collection.database.client.close()

    def _connected(self) -> Documents:
        settings = self._settings
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
        client: MongoClient[Any] = MongoClient(**self._settings.client_options)
        finalize(self, _close_in_its_process, client, os.getpid())
        return client

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


def find(documents: Documents, id: str) -> dict[str, Any] | None:
    """Return the document of this id.

    A plain command, because the cursor that `find_one` makes for it costs a client an eighth of
    the time of a read. What it lacks of `find_one` is a second try, and `attempt` gives that.
    The server keeps no cursor: there is one such document at most, and it is in the first batch.
    """
    command: dict[str, Any] = {"find": documents.name, "filter": {"_id": id}}
    if documents.read_concern.level is not None:
        command["readConcern"] = documents.read_concern.document
    reply = documents.database.command(command, codec_options=documents.codec_options)
    batch: list[dict[str, Any]] = reply["cursor"]["firstBatch"]
    return batch[0] if batch else None


def update(documents: Documents, selected: dict[str, Any], change: dict[str, Any]) -> bool:
    """Change the document that is selected, and say whether there was one.

    A plain command too: `update_one` takes a fifth more of a client's time, and 46 bytes. The
    second try of `attempt` stands in for the driver's; a change of ours is harmless the second
    time, because it sets values and moves moments forward.
    """
    reply = documents.database.command(
        {
            "update": documents.name,
            "updates": [{"q": selected, "u": change}],
            "writeConcern": documents.write_concern.document,
        },
        codec_options=documents.codec_options,
    )
    for error in (*reply.get("writeErrors", ()), *filter(None, [reply.get("writeConcernError")])):
        raise OperationFailure(error.get("errmsg", ""), error.get("code"), error)
    return bool(reply["n"])


def insert(documents: Documents, new: RawBSONDocument) -> bool:
    """Insert a document; False if its id is taken, be it by this very command, repeated.

    MongoDB names the index that has refused, which may be a unique one of somebody else; other
    engines name none.
    """
    try:
        documents.insert_one(new)
    except DuplicateKeyError as error:
        if (error.details or {}).get("keyPattern", {"_id": 1}) != {"_id": 1}:
            raise
        return False
    return True


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


def _close_in_its_process(client: MongoClient[Any], pid: int) -> None:
    if os.getpid() == pid:
        client.close()


def _may_pass(error: BaseException | None) -> bool:
    """Say whether a command that failed like this may be repeated with a hope."""
    if isinstance(error, ConnectionFailure):
        return not error.timeout
    return isinstance(error, OperationFailure) and error.code in _TRANSIENT

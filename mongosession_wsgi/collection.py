"""This process's client: its deadline, its two tries, and the collection that it leads to."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import Any, TypeVar
from weakref import finalize

import pymongo
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient, ReadPreference, WriteConcern
from pymongo.collection import Collection
from pymongo.errors import (
    ConfigurationError,
    DocumentTooLarge,
    DuplicateKeyError,
    NotPrimaryError,
    OperationFailure,
)

from . import connecting, document, indexes
from .errors import SettingsError, StoreError
from .failures import (
    RAISED_BY_THE_DRIVER,
    LookUpTimeoutError,
    explaining,
    failure_of,
    may_be_repeated,
    may_pass,
    remedy_of,
)
from .settings import Settings

T = TypeVar("T")
Documents = Collection[dict[str, Any]]
"""The collection of the sessions, its documents decoded as `document.CODEC` says."""

_TOO_LARGE = {10334, 17419, 17420}
_NO_TIME = 0.001
_MOMENT = 1.0
"""Seconds that `close` waits for a thread that is about to end."""
RAW = CodecOptions(document_class=RawBSONDocument)
"""Leaves documents undecoded."""
_TIMEOUT_IN_URI = re.compile("[?&;]timeoutms=([0-9]+)", re.IGNORECASE)
_SECRET = re.compile("password|mechanismprop")
_QUOTED = re.compile("\"([^\"]*)\"|'([^']*)'")
_SHORTEST_PART = 4
"""The characters of a part of a password that is looked for anywhere, and not in quotes alone."""


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
        self._made: dict[int, Documents] = {}
        self._making: dict[int, Future[Documents]] = {}
        self._is_direct = False
        self._indexes = indexes.InPassing()

    @property
    def documents(self) -> Documents:
        """This process's collection; a client must not be used on both sides of a fork."""
        documents = self._made.get(os.getpid())
        return self._first_use() if documents is None else documents

    @property
    def raw(self) -> Collection[RawBSONDocument]:
        """This process's collection, its documents undecoded."""
        documents = self.documents
        if self._is_direct:
            with self.deadline(monotonic()):
                _demand_the_primary(documents)
        return documents.with_options(codec_options=RAW)

    @property
    def timeout(self) -> float | None:
        """The seconds that one command may take; None for no limit."""
        seconds: float | None = self.documents.database.client.options.timeout
        return seconds or None

    def attempt(self, command: Callable[[Documents], T], size: int = 0) -> T:
        """Run a command that may be repeated, and repeat it if the connection broke.

        The driver repeats writes too, but not on a standalone server. `size` is that of `once`.
        """
        begun, documents = monotonic(), self._made.get(os.getpid())
        try:
            if documents is None or self._is_direct:
                return self.once(command, size)
            return _run(documents, command, size)
        except StoreError as error:
            if not may_be_repeated(error.__cause__):
                raise
        with self.deadline(begun):
            return self.once(command, size)

    def once(self, command: Callable[[Documents], T], size: int = 0) -> T:
        """Run a command; what the driver raises becomes an error of ours.

        `size` is the number of bytes that the command makes a document have, where that is known:
        any refusal of more than MongoDB holds is a `SessionDataError`, whatever the server's words.
        """
        # What is done before the command takes of its time.
        with self.deadline(monotonic()):
            documents = self.documents
            if self._is_direct:
                _demand_the_primary(documents)
            return _run(documents, command, size)

    def deadline(self, begun: float) -> AbstractContextManager[None]:
        """Give what is done within it what is left, since `begun`, of a single command's time.

        The driver bounds each command by itself; this is for several that serve one request. An
        application's own `pymongo.timeout` around it counts, if that ends sooner.
        """
        timeout = self.timeout
        if timeout is None:
            return nullcontext()
        return pymongo.timeout(max(timeout - (monotonic() - begun), _NO_TIME))

    def ensure_indexes(self) -> None:
        """Make the indexes that are missing, TTL and `owner`, however long that takes."""
        indexes.ensure(self.documents)
        self._indexes.finish()

    def ensure_indexes_in_passing(self) -> None:
        """Have a thread make the indexes; to be called when an insert has been acknowledged.

        That happens once per process. What fails for a reason that may pass is tried again by calls
        of the next seconds and minutes. No caller waits for it, or gets an error.
        """
        documents = self.documents
        if isinstance(documents.database.client, MongoClient):
            self._indexes.try_if_due(documents)

    def wait_for_indexes(self, seconds: float) -> None:
        """Wait for the thread that makes the indexes, if there is one."""
        self._indexes.wait(seconds)

    def close(self) -> None:
        """Close this process's own client; the next use makes another."""
        pid = os.getpid()
        self._making.pop(pid, None)
        documents = self._made.pop(pid, None)
        if documents is not None and self._client is None:
            documents.database.client.close()
        self._indexes.wait(_MOMENT)

    # The making of the client.

    def _first_use(self) -> Documents:
        """Make this process's client, or wait while it is made for the request of another thread.

        A thread of its own makes it, for the names of servers may have to be looked up. A client
        that comes too late for this request is there for the next one.
        """
        pid = os.getpid()
        if self._client is not None:
            return self._made.setdefault(pid, self._collection_of(self._client))
        mine: Future[Documents] = Future()
        making = self._making.setdefault(pid, mine)
        if making is mine:
            self._begin_making(pid, mine)
        wait([making], self._patience())
        if not making.done():
            raise self._no_client(LookUpTimeoutError("mongodb_host was not looked up in time"))
        error = making.exception()
        if error is not None:
            raise self._no_client(error)
        return making.result()

    def _begin_making(self, pid: int, making: Future[Documents]) -> None:
        def make() -> Documents:
            try:
                made = self._collection_of(self._own_client())
            except BaseException:
                self._making.pop(pid, None)  # The next request tries it again.
                raise
            if self._making.get(pid) is making:
                self._made[pid] = made
            else:  # It was closed before it was there.
                made.database.client.close()
            return made

        try:
            connecting.begin(making, make, lambda late: late.database.client.close())
        except RuntimeError as error:  # There is no thread to be had.
            self._making.pop(pid, None)
            making.set_exception(error)

    def _own_client(self) -> MongoClient[Any]:
        """Make a client that begins to look for its servers, so that all that can fail does."""
        options = {**self._settings.client_options, "connect": True}
        try:
            client: MongoClient[Any] = MongoClient(**options, **connecting.OPTIONS)
        except ConfigurationError as error:  # A driver of the future may not know such an option.
            if not any(name in str(error) for name in connecting.OPTIONS):
                raise
            client = MongoClient(**options)
        finalize(self, _close_in_its_process, client, os.getpid())
        return client

    def _collection_of(self, client: MongoClient[Any]) -> Documents:
        self._is_direct = bool(client.options.direct_connection)
        return client.get_database(self._database).get_collection(
            self._settings.collection,
            codec_options=document.CODEC,
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority"),
        )

    def _patience(self) -> float | None:
        """Return the seconds that a request waits for the client, before it can be asked."""
        left = connecting.remaining()
        if left is not None:
            return max(left, 0)
        options = self._settings.client_options
        found = _TIMEOUT_IN_URI.search(",".join(_hosts(options)))
        milliseconds = options.get("timeoutms", found and found[1])
        return int(milliseconds or 0) / 1000 or None

    def _no_client(self, error: BaseException) -> StoreError:
        """Return the error of ours for one while the client was made, without any secret."""
        if not isinstance(error, RAISED_BY_THE_DRIVER):
            raise error
        words = _without_secrets(str(error), self._settings.client_options)
        sentence = remedy_of(error) or (
            "The mongodb_* settings describe no connection; check mongodb_host, where a user name "
            "and a password within a URI must be percent-encoded"
        )
        failure = StoreError(f"{sentence}. {words}")
        # A traceback shows the cause, so its text is no place for a part of a password either.
        failure.__cause__ = error if words == str(error) else ConfigurationError(words)
        return failure


def find(documents: Documents, id: str) -> dict[str, Any] | None:
    """Return the document of this id.

    A plain command, because the cursor that `find_one` makes for it costs a client an eighth of
    the time of a read. What it lacks of `find_one` is a second try, and `attempt` gives that.
    The server keeps no cursor: there is one such document at most, and it is in the first batch.
    """
    command: dict[str, Any] = {"find": documents.name, "filter": {"_id": id}}
    if documents.read_concern.level is not None:
        command["readConcern"] = documents.read_concern.document
    # The driver's own would be another one.
    if documents.database.client.options.direct_connection:
        command["$readPreference"] = ReadPreference.PRIMARY.document
    reply = documents.database.command(command, codec_options=documents.codec_options)
    batch: list[dict[str, Any]] = reply["cursor"]["firstBatch"]
    return batch[0] if batch else None


def update(documents: Documents, selected: dict[str, Any], change: dict[str, Any]) -> bool:
    """Change the document that is selected, and say whether there was one.

    The driver's own method, because a write needs the number that the driver gives it: without the
    number, a first try that was held up somewhere could be carried out after a later write.
    """
    return bool(documents.update_one(selected, change).matched_count)


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


def _run(documents: Documents, command: Callable[[Documents], T], size: int) -> T:
    try:
        return command(documents)
    except RAISED_BY_THE_DRIVER as error:
        if _is_too_large(error, size):
            raise document.too_large("The session with what this request sets") from error
        raise failure_of(error) from error


def _is_too_large(error: Exception, size: int) -> bool:
    """Say whether a document was refused for its size, which engines say in words of their own."""
    if isinstance(error, DocumentTooLarge) or getattr(error, "code", None) in _TOO_LARGE:
        return True
    is_unknown = isinstance(error, OperationFailure) and not may_pass(error)
    return is_unknown and size > document.MAX_SIZE and remedy_of(error) is None


def _demand_the_primary(documents: Documents) -> None:
    """Refuse a member that is not the primary; wait until that is known.

    The driver takes a direct connection for the wish to read from just this member, and a logout
    may not have come there yet.
    """
    with explaining():
        if not documents.database.client.is_primary:
            raise NotPrimaryError("the member that mongodb_host names is not primary")


def _close_in_its_process(client: MongoClient[Any], pid: int) -> None:
    if os.getpid() == pid:
        client.close()


# No secrets.


def _without_secrets(words: str, options: Mapping[str, Any]) -> str:
    """Return the driver's words without anything that may be a part of a password.

    The driver quotes what it does not understand of a URI, and where that is not percent-encoded,
    a part of the password may be taken for the name of a host or of a database.
    """
    uris = [host for host in _hosts(options) if "://" in host]
    secrets = [str(value) for name, value in options.items() if _SECRET.search(name)]
    quoted = (found[1] or found[2] for found in _QUOTED.finditer(words))
    hidden = {text for text in quoted if text and any(text in one for one in secrets + uris)}
    for uri in uris:
        user = uri.partition("://")[2].rpartition("@")[0]
        secrets += [user, *re.split("[:/?#@,&=]", user.partition(":")[2])]
    hidden |= {text for text in secrets if len(text) >= _SHORTEST_PART}
    for text in sorted(hidden, key=len, reverse=True):
        words = words.replace(text, "…")
    return words


def _hosts(options: Mapping[str, Any]) -> list[str]:
    host = options.get("host", ())
    return [host] if isinstance(host, str) else list(host)

"""The collection of the sessions: the client of a process, its deadline and its repetitions."""

from __future__ import annotations

import _thread
import atexit
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import Context
from functools import partial
from math import inf
from time import monotonic, sleep
from typing import Any, TypeVar
from weakref import WeakSet, finalize

import pymongo
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient, ReadPreference, WriteConcern
from pymongo.collection import Collection
from pymongo.errors import (
    ConfigurationError,
    DocumentTooLarge,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
)

from . import commands, connecting, document, indexes
from .commands import Documents, IdleSessions
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
from .settings import Settings, check_uri, hosts_of, is_secret, uri_options

T = TypeVar("T")

_TOO_LARGE = {10334, 17419, 17420}
_NO_TIME = 0.001
_MOMENT = 1.0
"""Seconds that `close` waits for a server, and for the end of a thread."""
_PAUSE = 0.05
"""Seconds between the later tries of a command."""
_MOST_REPETITIONS = 2
"""Where no time ends them: a primary that steps down may refuse twice."""
_NOT_TRIED = re.compile("username|password|auth|event_listeners|auto_encryption|connect$")
"""The options of a login, those by which others would notice a trial, and the one of the trial."""
_FILES = {"tlscafile", "tlscertificatekeyfile", "tlscrlfile"}
RAW = CodecOptions(document_class=RawBSONDocument)
"""Leaves documents undecoded."""
_QUOTED = re.compile("\"([^\"]*)\"|'([^']*)'")
_SHORTEST_PART = 4
"""The length from which a part of a password is hidden anywhere, and not in quotes alone."""
_USED: WeakSet[SessionCollection] = WeakSet()
"""The collections that have made a client, to be closed as Python ends."""


class SessionCollection:
    """Run commands on the collection of the sessions, by a client of this process.

    Each process makes its client on first use, so the object may be made before a fork. A `client`
    that is passed in is used unchanged, and left open by `close`. The constructor raises
    `SettingsError` if the settings name no database, and `TypeError` for a `client` that is none;
    the rest raises `StoreError` if MongoDB fails.
    """

    def __init__(self, settings: Settings, client: MongoClient[Any] | None = None) -> None:
        if settings.database is None:
            raise SettingsError(
                "mongodb_session_db: missing; name the database that is to hold the sessions"
            )
        _check_client(client)
        if client is None:
            _check_options(settings.client_options)
        self._settings = settings
        self._database = settings.database
        self._client = client
        self._made: dict[int, Documents] = {}
        self._making: dict[int, Future[Documents]] = {}
        self._endings: dict[int, finalize[..., SessionCollection]] = {}
        """By the identity of a client, because clients of the same hosts are equal."""
        self._is_direct = False
        self._timeout: float | None = None
        self._indexes = indexes.InPassing()
        self._idle: dict[int, IdleSessions] = {}

    @property
    def documents(self) -> Documents:
        """The collection by the client of this process; no client lives through a fork."""
        documents = self._made.get(os.getpid())
        return self._first_use() if documents is None else documents

    @property
    def raw(self) -> Collection[RawBSONDocument]:
        """The collection by the client of this process, its documents undecoded."""
        documents = self.documents
        if self._is_direct:
            with self.deadline(monotonic()):
                _demand_the_primary(documents)
        return documents.with_options(codec_options=RAW)

    @property
    def timeout(self) -> float | None:
        """The seconds that one command may take; None for no limit."""
        if self._timeout is None:  # The first client tells.
            _ = self.documents
        return None if self._timeout == inf else self._timeout

    def attempt(self, command: Callable[[Documents], T], size: int = 0) -> T:
        """Run a harmless-to-repeat command, and repeat it while connections break.

        That goes on until the time is up; without a limit, or if the one member that may be asked
        is no primary, there are two repetitions. The driver repeats writes too, but not on a
        standalone server. For `size` see `once`.
        """
        begun, documents = monotonic(), self._made.get(os.getpid())
        around = connecting.timeout_around()
        is_longer = around is not None and not 0 < around <= (self._timeout or 0)
        try:
            if documents is None or self._is_direct or is_longer or connecting.BOUND.get():
                return self.once(command, size)
            return _run(documents, command, size)
        except StoreError as error:
            if not may_be_repeated(error.__cause__):
                raise
        with self.deadline(begun):
            return self._repeated(command, size)

    def _repeated(self, command: Callable[[Documents], T], size: int) -> T:
        tries = 0
        while True:
            try:
                return self.once(command, size)
            except StoreError as error:
                tries += 1
                goes_on = tries < _MOST_REPETITIONS or self._comes_to_an_end(error.__cause__)
                if not (goes_on and may_be_repeated(error.__cause__)):
                    raise
            sleep(_PAUSE)

    def _comes_to_an_end(self, error: BaseException | None) -> bool:
        """Say whether there is a limit of time, and another member that may be the primary."""
        is_alone = self._is_direct and isinstance(error, NotPrimaryError)
        return self.timeout is not None and not is_alone

    def find(self, id: str) -> dict[str, Any] | None:
        """Return the document of this id."""
        idle = self._idle_sessions()
        return self.attempt(lambda them: commands.find(them, idle, id))

    def update(self, selected: dict[str, Any], change: dict[str, Any]) -> bool:
        """Change the document that is selected, and say whether there was one."""
        return self.attempt(commands.update(self._idle_sessions(), selected, change))

    def insert(self, new: RawBSONDocument) -> bool:
        """Store a document; False if the id is taken, be it by the same command before."""
        return self.attempt(commands.insert(self._idle_sessions(), new), len(new.raw))

    def once(self, command: Callable[[Documents], T], size: int = 0) -> T:
        """Run a command, and turn the driver's errors into ours.

        `size` is the length of the document in the command, in bytes: if MongoDB holds no such
        document, each refusal is a `SessionDataError`, whatever the words of the server.
        """
        # The client and the look at the member take of the command's time.
        with self.deadline(monotonic()), connecting.unbound():
            documents = self.documents
            if self._is_direct:
                _demand_the_primary(documents)
            return _run(documents, command, size)

    def each(self, cursor: Iterable[T]) -> Iterator[T]:
        """Iterate over what a cursor finds; each step takes the time of a command at most.

        A cursor that is left early is closed by a thread of the driver, and not here: the garbage
        collector may end this generator while this thread holds the locks of the driver.
        """
        found, end = iter(cursor), object()
        while True:
            with explaining(), self.deadline(monotonic()), connecting.unbound():
                one = next(found, end)
            if one is end:
                return
            yield one  # type: ignore[misc]

    def deadline(self, begun: float) -> AbstractContextManager[None]:
        """Give the commands within the time of a single command, which has begun at `begun`.

        The driver bounds each command by itself, and a request may need several. A
        `pymongo.timeout` of the application around the deadline counts if its end is sooner.
        """
        timeout = self.timeout
        if timeout is None:
            return nullcontext()
        return pymongo.timeout(max(timeout - (monotonic() - begun), _NO_TIME))

    def ensure_indexes(self) -> None:
        """Make the missing indexes, TTL and `owner`, however long the server takes."""
        with connecting.unbound():
            documents = self.documents
            try:
                indexes.ensure(documents)
            except StoreError as error:
                if not may_be_repeated(error.__cause__):
                    raise
                indexes.ensure(documents)
        self._indexes.finish()

    def ensure_indexes_in_passing(self) -> None:
        """Have a thread make the indexes, once per process; to be called after an insert.

        A failure that may pass leads to another try at calls of the next seconds and minutes. No
        caller waits, and none gets an error.
        """
        if os.getpid() not in self._indexes.over:
            documents = self.documents
            if isinstance(documents.database.client, MongoClient):
                self._indexes.try_if_due(documents)

    def close(self) -> None:
        """Close this process's own client; the next use makes another."""
        pid = os.getpid()
        self._making.pop(pid, None)
        idle = self._idle.pop(pid, deque())
        if (documents := self._made.pop(pid, None)) is not None:
            with pymongo.timeout(_MOMENT), connecting.unbound():
                with suppress(*RAISED_BY_THE_DRIVER):
                    commands.end(documents, idle)
                self._end(documents)
        self._indexes.wait(_MOMENT)

    def _idle_sessions(self) -> IdleSessions:
        return self._idle.setdefault(os.getpid(), deque())

    # The making of the client.

    def _first_use(self) -> Documents:
        """Make the client of this process, or wait while another request has the client made.

        The making has a thread to itself, because names of servers may have to be looked up. A
        client that comes too late for this request is there for the next.
        """
        pid = os.getpid()
        if self._client is not None:
            return self._made.setdefault(pid, self._collection_of(self._client))
        if sys.is_finalizing():  # No thread begins any more.
            raise self._no_client(NetworkTimeout("Python is about to end"))
        mine: Future[Documents] = Future()
        try:
            making = self._making.setdefault(pid, mine)
            if making is mine:
                self._begin_making(pid, mine)
        except BaseException:  # Of the handler of a signal: the next request makes another try.
            if self._making.get(pid) is mine:
                del self._making[pid]
            mine.cancel()
            raise
        wait([making], self._patience())
        if making.cancelled() or not making.done():
            raise self._no_client(self._too_late())
        error = making.exception()
        if error is not None:
            raise self._no_client(error)
        return making.result()

    def _begin_making(self, pid: int, making: Future[Documents]) -> None:
        def make() -> Documents:
            try:
                made = self._collection_of(self._own_client())
            except BaseException:
                self._making.pop(pid, None)  # The next request makes another try.
                raise
            if self._making.get(pid) is making:
                self._made[pid] = made
            else:  # The store was closed meanwhile.
                self._end(made)
            return made

        try:
            # The driver's threads may inherit a context, and with it the time limit of this request
            # (Python 3.14).
            connecting.begin(making, partial(Context().run, make), self._end)
        except RuntimeError as error:  # There is no thread to be had.
            self._making.pop(pid, None)
            making.set_exception(error)

    def _own_client(self) -> MongoClient[Any]:
        """Make a client and let the driver start its threads, so that failures come at once.

        A client whose threads could not be started would look for its servers never again.
        """
        options = {**self._settings.client_options, "connect": True}
        check_uri(hosts_of(options))
        try:
            client: MongoClient[Any] = MongoClient(**options, **connecting.OPTIONS)
        except ConfigurationError as error:  # A future driver may not know the option.
            if not any(name in str(error) for name in connecting.OPTIONS):
                raise
            client = MongoClient(**options)
        self._endings[id(client)] = ending = finalize(self, _close_garbage, client, os.getpid())
        ending.atexit = False
        _USED.add(self)
        return client

    def _end(self, documents: Documents) -> None:
        """Close the client of a collection, once; a client that was passed in stays open."""
        client = documents.database.client
        ending = self._endings.pop(id(client), None)
        if ending is not None and ending.detach():
            _close(client)

    def _collection_of(self, client: MongoClient[Any]) -> Documents:
        self._is_direct = bool(client.options.direct_connection)
        self._timeout = client.options.timeout or inf
        return client.get_database(self._database).get_collection(
            self._settings.collection,
            codec_options=document.CODEC,
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority"),
        )

    def _patience(self) -> float | None:
        """Return the seconds that a request waits for a client: the `timeoutMS` of its settings."""
        left = connecting.remaining()
        if left is not None:
            return max(left, 0)
        options = self._settings.client_options
        in_uri = dict(uri_options(hosts_of(options))).get("timeoutms")
        with suppress(ValueError):  # A bad value fails at once, as the client is made.
            return float(options.get("timeoutms", in_uri) or 0) / 1000 or None
        return None

    def _too_late(self) -> PyMongoError:
        """Return the error for a client that is not there in time, most likely for its name."""
        if any(host.startswith("mongodb+srv") for host in hosts_of(self._settings.client_options)):
            return LookUpTimeoutError("mongodb_host was not looked up in time")
        return NetworkTimeout("the client was not ready in time")

    def _no_client(self, error: BaseException) -> StoreError:
        """Return our error for an error of the driver's constructor, without any secret."""
        if not isinstance(error, RAISED_BY_THE_DRIVER):
            raise error
        words = _without_secrets(str(error), self._settings.client_options)
        sentence = remedy_of(error) or (
            "The mongodb_* settings describe no connection; check mongodb_host, where a user name "
            "and a password within a URI must be percent-encoded"
        )
        failure = StoreError(f"{sentence}. {words}")
        # A traceback shows the cause, so the text of the cause must hide secrets too.
        failure.__cause__ = error if words == str(error) else ConfigurationError(words)
        return failure


def _run(documents: Documents, command: Callable[[Documents], T], size: int) -> T:
    try:
        return command(documents)
    except (*RAISED_BY_THE_DRIVER, DocumentTooLarge) as error:
        if _is_too_large(error, size):
            raise document.too_large("The session with what this request sets") from error
        raise failure_of(error) from error


def _is_too_large(error: Exception, size: int) -> bool:
    """Say whether a server refuses a document for its size; engines differ in their words."""
    if isinstance(error, DocumentTooLarge) or getattr(error, "code", None) in _TOO_LARGE:
        return True
    is_unknown = isinstance(error, OperationFailure) and not may_pass(error)
    return is_unknown and size > document.MAX_SIZE and remedy_of(error) is None


def _demand_the_primary(documents: Documents) -> None:
    """Raise `StoreError` unless the member of a direct connection is the primary.

    The driver takes a direct connection for the wish to read from a secondary too, where the last
    logout may be still to come. Waits until the state of the member is known.
    """
    with explaining():
        if not documents.database.client.is_primary:
            raise NotPrimaryError("the member that mongodb_host names is not primary")


def _check_options(options: Mapping[str, Any]) -> None:
    """Have the driver say which settings do not go together, without a connection.

    A URI, a login and a file of certificates may come later, and fail at first use.
    """
    if any("://" in host for host in hosts_of(options)) or not _FILES.isdisjoint(options):
        return
    tried = {name: value for name, value in options.items() if not _NOT_TRIED.match(name)}
    try:
        MongoClient(**tried, connect=False).close()
    except (ConfigurationError, ValueError, TypeError) as error:
        words = _without_secrets(str(error), options)
        raise SettingsError(f"The mongodb_* settings do not go together: {words}") from None


def _check_client(client: object) -> None:
    """Refuse an asynchronous client, whose writes nobody would wait for, and what is no client."""
    if client is None or isinstance(client, MongoClient):
        return
    names = " ".join(one.__name__ for one in type(client).__mro__)
    # A database has attributes of any name.
    if not hasattr(client, "get_database") or re.search("Async|Motor|Database", names):
        raise TypeError(f"client: must be a MongoClient, not {type(client).__name__}")


def _close(client: MongoClient[Any]) -> None:
    """Close a client; a server that is to forget its sessions is waited for but a moment."""
    with pymongo.timeout(_MOMENT):
        client.close()


def _close_garbage(client: MongoClient[Any], pid: int) -> None:
    """Close the client of a store that nobody has closed, in a thread of its own.

    The garbage collector calls this in the midst of anything, also while the driver holds locks
    that the close needs, or while Python changes a context variable. `threading` has locks, too.
    """
    if os.getpid() == pid:
        with suppress(RuntimeError):  # No thread is to be had.
            _thread.start_new_thread(_close, (client,))


@atexit.register
def _close_all() -> None:
    for collection in tuple(_USED):
        collection.close()


# No secrets.


def _without_secrets(words: str, options: Mapping[str, Any]) -> str:
    """Return the driver's words without the parts of passwords.

    The driver quotes what is wrong with a URI. Where a password is not percent-encoded, the driver
    may take a part of the password for the name of a host or of a database.
    """
    uris = [host for host in hosts_of(options) if "://" in host]
    secrets = [str(value) for name, value in options.items() if is_secret(name)]
    quoted = (found[1] or found[2] for found in _QUOTED.finditer(words))
    hidden = {text for text in quoted if text and any(text in one for one in secrets + uris)}
    for uri in uris:
        user = uri.partition("://")[2].rpartition("@")[0]
        secrets += [user, *re.split("[:/?#@,&=]", user.partition(":")[2])]
    hidden |= {text for text in secrets if len(text) >= _SHORTEST_PART}
    for text in sorted(hidden, key=len, reverse=True):
        words = words.replace(text, "…")
    return words

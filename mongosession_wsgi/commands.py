"""The commands of most requests, sent without the driver's methods for them.

`find_one`, `update_one` and `insert_one` take a client an eighth more time. What counts of the
driver's writes is the number of each: a server carries out one write of a session and number,
however often it comes, so a first try that was held up somewhere is never carried out after a later
write. The rules are those of MongoDB's specification of retryable writes. A find needs no number;
but the driver would make a session for it, and end it again, in a sixteenth of its time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import Any, TypeAlias

from bson.errors import BSONError
from bson.int64 import Int64
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient, ReadPreference
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import (
    DuplicateKeyError,
    NetworkTimeout,
    OperationFailure,
    WriteConcernError,
    WriteError,
    WTimeoutError,
)

from . import document
from .failures import may_be_repeated

IdleSessions: TypeAlias = deque[tuple[ClientSession, float]]
"""The driver's sessions with no command under way, and the moments since when they are idle.

None goes back to the driver, which counts the writes of its sessions by itself. Each process has
sessions of its own: two processes would give the same numbers.
"""

_NUMBERS = count(1 << 40)
"""Above those that the driver, which counts from 0, gave to earlier writes of a session."""
_REUSE = 60.0
"""The most seconds that a session was idle; a server forgets idle sessions after 30 minutes."""
_TO_THE_PRIMARY = {"$readPreference": ReadPreference.PRIMARY.document}
"""What a direct connection needs, or the driver would put primaryPreferred there."""
_REPLIES = document.CODEC.with_options(unicode_decode_error_handler="replace")
"""A server may cut the words of a refusal in the midst of a letter."""
_KINDS: dict[Any, type[OperationFailure]] = {64: WTimeoutError, 11000: DuplicateKeyError}
"""The driver's errors for some codes."""

Documents = Collection[dict[str, Any]]
"""The collection of the sessions, its documents decoded as `document.CODEC` says."""


def find(documents: Documents, idle: IdleSessions, id: str) -> dict[str, Any] | None:
    """Return the document of this id.

    The server keeps no cursor, because the only document of an id is in the first batch.
    """
    command: dict[str, Any] = {"find": documents.name, "filter": {"_id": id}}
    if documents.read_concern.level is not None:
        command["readConcern"] = documents.read_concern.document
    database = documents.database
    client = database.client
    if client.options.direct_connection:
        command |= _TO_THE_PRIMARY
    session = _session_of(client, idle)
    try:
        reply = database.command(command, codec_options=documents.codec_options, session=session)
    except (OperationFailure, BSONError):
        _give_back(session, idle)
        raise
    _give_back(session, idle)
    batch: list[dict[str, Any]] = reply["cursor"]["firstBatch"]
    return batch[0] if batch else None


def update(idle: IdleSessions, selected: dict[str, Any], change: dict[str, Any]) -> Write:
    """Return the command that changes the document that is selected; False without one."""
    operations = {"updates": [{"q": selected, "u": change}]}
    return Write(
        idle, "update", operations, lambda them: them.update_one(selected, change).matched_count
    )


def insert(idle: IdleSessions, new: RawBSONDocument) -> Callable[[Documents], bool]:
    """Return the command that stores a document; False if the id is taken.

    MongoDB names the index that refuses the document, and a unique index of somebody else raises
    `DuplicateKeyError`. Other engines name no index.
    """

    def by_the_driver(documents: Documents) -> bool:
        documents.insert_one(new)
        return True

    write = Write(idle, "insert", {"documents": [new]}, by_the_driver)

    def unless_taken(documents: Documents) -> bool:
        try:
            return write(documents)
        except DuplicateKeyError as error:
            if (error.details or {}).get("keyPattern", {"_id": 1}) != {"_id": 1}:
                raise
            return False

    return unless_taken


class Write:
    """A write of one document, to be called until an answer comes, and carried out once."""

    __slots__ = ("_by_the_driver", "_idle", "_name", "_number", "_operations", "_session")

    def __init__(
        self,
        idle: IdleSessions,
        name: str,
        operations: dict[str, Any],
        by_the_driver: Callable[[Documents], int],
    ) -> None:
        self._idle = idle
        self._name = name
        self._operations = operations
        self._by_the_driver = by_the_driver
        self._session: ClientSession | None = None
        self._number: Int64

    def __call__(self, documents: Documents) -> bool:
        """Carry the write out, and say whether it has found or stored a document."""
        client, session = documents.database.client, self._session
        if session is None or session.client is not client:
            self._session = session = _session_of(client, self._idle)
            self._number = Int64(next(_NUMBERS))
        if session is None:
            return bool(self._by_the_driver(documents))
        try:
            was_written = self._send(documents, session)
        except OperationFailure as error:
            if not may_be_repeated(error):
                _give_back(session, self._idle)
            raise
        _give_back(session, self._idle)
        return was_written

    def _send(self, documents: Documents, session: ClientSession) -> bool:
        command: dict[str, Any] = {
            self._name: documents.name,
            "txnNumber": self._number,
            "writeConcern": documents.write_concern.document,
            **self._operations,
        }
        database = documents.database
        options = database.client.options
        if options.direct_connection:
            command |= _TO_THE_PRIMARY
        try:
            reply = database.command(command, codec_options=_REPLIES, session=session)
        except NetworkTimeout:
            if options.timeout is not None:
                raise
            # The time of the connection is up, and the write has no limit.
            reply = database.command(command, codec_options=_REPLIES, session=session)
        if reply.get("writeErrors") or reply.get("writeConcernError"):
            raise _error_of(reply)
        return bool(reply.get("n"))


def _session_of(client: MongoClient[Any], idle: IdleSessions) -> ClientSession | None:
    """Return a session for one command at a time; None where the servers know no numbers."""
    try:
        session, since = idle.pop()
    except IndexError:
        return _new_session(client)
    if session.client is client and monotonic() - since < _REUSE:
        return session
    idle.clear()  # The others have been idle for longer.
    return _new_session(client)


def _give_back(session: ClientSession | None, idle: IdleSessions) -> None:
    """Take note of a session with no command under way, because the server has answered."""
    if session is not None:
        idle.append((session, monotonic()))


def _new_session(client: MongoClient[Any]) -> ClientSession | None:
    return client.start_session(causal_consistency=False) if _knows_numbers(client) else None


def _knows_numbers(client: object) -> bool:
    """Say whether the servers of a client know a second try of a write by its number."""
    # The tests of an application may have a stand-in for a client.
    if not isinstance(client, MongoClient) or not client.options.retry_writes:
        return False
    seen = client.topology_description
    servers = seen.server_descriptions().values()
    has_sessions = seen.logical_session_timeout_minutes is not None
    return has_sessions and any(one.retryable_writes_supported for one in servers)


def _error_of(reply: dict[str, Any]) -> OperationFailure:
    """Return the driver's error for a write that was refused, or not acknowledged by a majority."""
    refused = reply.get("writeErrors")
    found = refused[0] if refused else reply["writeConcernError"]
    code, labels = found.get("code"), reply.get("errorLabels", [])
    kind = _KINDS.get(code, WriteError if refused else WriteConcernError)
    return kind(found.get("errmsg"), code, {**found, "errorLabels": labels})

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
from functools import lru_cache
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
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    ProtocolError,
    WriteConcernError,
    WriteError,
    WTimeoutError,
)
from pymongo.topology_description import TopologyDescription

from . import document
from .failures import may_be_repeated

IdleSessions: TypeAlias = deque[tuple[ClientSession, float]]
"""The driver's sessions with no command under way, and the moments since when they are idle.

None goes back to the driver, which counts the writes of its sessions by itself. Each process has
sessions of its own: two processes would give the same numbers.
"""

_NUMBERS = count(1 << 40)
"""Above those that the driver, which counts from 0, gave to earlier writes of a session."""
_PAUSE_OF_UNKNOWN = 60.0
"""The most seconds that a session may be idle while no server is known, as in an outage."""
_TO_THE_PRIMARY = {"$readPreference": ReadPreference.PRIMARY.document}
"""What a direct connection needs, or the driver would put primaryPreferred there."""
_REPLIES = document.CODEC.with_options(unicode_decode_error_handler="replace")
"""A server may cut the words of a refusal in the midst of a letter."""
_DUPLICATE = 11000
_KINDS: dict[Any, type[OperationFailure]] = {64: WTimeoutError, _DUPLICATE: DuplicateKeyError}
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
        batch: list[dict[str, Any]] = reply["cursor"]["firstBatch"][:1]
    except (OperationFailure, BSONError) as error:
        if _is_answer(error):
            _give_back(session, idle)
        raise
    except (LookupError, TypeError) as error:  # A `session.get` takes one for a missing key.
        raise ProtocolError("the answer to a find has no documents") from error
    _give_back(session, idle)
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
        is_first = session is None or session.client is not client
        if is_first:
            self._session = session = _session_of(client, self._idle)
            self._number = Int64(next(_NUMBERS))
        # By the driver's method, a write without a number hides that no majority may have it.
        if session is None and (not isinstance(client, MongoClient) or client.options.retry_writes):
            return bool(self._by_the_driver(documents))
        try:
            was_written = self._send(documents, session)
        except OperationFailure as error:
            # A try before, without an answer, may be under way still.
            if is_first and _is_answer(error) and not may_be_repeated(error):
                _give_back(session, self._idle)
            raise
        _give_back(session, self._idle)
        return was_written

    def _send(self, documents: Documents, session: ClientSession | None) -> bool:
        command: dict[str, Any] = {
            self._name: documents.name,
            "writeConcern": documents.write_concern.document,
            **self._operations,
        }
        if session is not None:
            command["txnNumber"] = self._number
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


def end(documents: Documents, idle: IdleSessions) -> None:
    """Have the server forget idle sessions, which it would remember for half an hour."""
    if idle:
        ids = [session.session_id for session, _ in idle]
        documents.database.client.admin.command("endSessions", ids)


def _session_of(client: object, idle: IdleSessions) -> ClientSession | None:
    """Return a session for one command; None where no server is known, or none knows numbers."""
    # The tests of an application may have a stand-in for a client.
    if not isinstance(client, MongoClient) or not client.options.retry_writes:
        return None
    seen = client.topology_description
    pause = _longest_pause(seen)
    try:
        session, since = idle.pop()
    except IndexError:
        pass
    else:
        if session.client is client and monotonic() - since < pause:
            return session
        idle.clear()  # The others have been idle for longer.
    is_new = pause and seen.has_known_servers
    return client.start_session(causal_consistency=False) if is_new else None


@lru_cache(maxsize=16)
def _longest_pause(seen: TopologyDescription) -> float:
    """Return for how many seconds a session may be idle; 0 where the servers know no numbers.

    A server forgets an idle session after some minutes. The driver, too, leaves out the last one.
    """
    known, minutes = seen.known_servers, seen.logical_session_timeout_minutes
    if not known:
        return _PAUSE_OF_UNKNOWN
    if minutes is None or not any(one.retryable_writes_supported for one in known):
        return 0.0
    return max(minutes - 1.0, 0.5) * 60


def _give_back(session: ClientSession | None, idle: IdleSessions) -> None:
    """Take note of a session with no command under way, because the server has answered."""
    if session is not None:
        idle.append((session, monotonic()))


def _is_answer(error: Exception) -> bool:
    """Say whether the server has said so; the driver may give up a command by itself."""
    return not isinstance(error, ExecutionTimeout)


def _error_of(reply: dict[str, Any]) -> OperationFailure:
    """Return the driver's error for a write that was refused, or not acknowledged by a majority."""
    refused, doubt = reply.get("writeErrors"), reply.get("writeConcernError")
    if refused and doubt and refused[0].get("code") == _DUPLICATE:
        refused = None  # A try before has stored the document, and a majority may not have it yet.
    found: Any = refused[0] if refused else doubt
    code, labels = found.get("code"), reply.get("errorLabels", [])
    kind = _KINDS.get(code, WriteError if refused else WriteConcernError)
    return kind(found.get("errmsg"), code, {**found, "errorLabels": labels})

"""The commands of most requests, find and update, sent without the driver's methods for them.

`find_one` and `update_one` take a client an eighth more time. What counts of `update_one` is the
number that it gives to a write: a server carries out one write of a session and number, however
often it comes, so a first try that was held up somewhere is never carried out after a later write.
The rules are those of MongoDB's specification of retryable writes.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from time import monotonic
from typing import Any, TypeAlias

from bson.int64 import Int64
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
"""The driver's sessions with no update under way, and the moments since when they are idle.

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


def find(documents: Documents, id: str) -> dict[str, Any] | None:
    """Return the document of this id.

    The server keeps no cursor, because the only document of an id is in the first batch.
    """
    command: dict[str, Any] = {"find": documents.name, "filter": {"_id": id}}
    if documents.read_concern.level is not None:
        command["readConcern"] = documents.read_concern.document
    database = documents.database
    if database.client.options.direct_connection:
        command |= _TO_THE_PRIMARY
    reply = database.command(command, codec_options=documents.codec_options)
    batch: list[dict[str, Any]] = reply["cursor"]["firstBatch"]
    return batch[0] if batch else None


class Update:
    """An update of one document, to be called until an answer comes, and carried out once."""

    __slots__ = ("_change", "_idle", "_number", "_selected", "_session")

    def __init__(
        self, idle: IdleSessions, selected: dict[str, Any], change: dict[str, Any]
    ) -> None:
        self._idle = idle
        self._selected = selected
        self._change = change
        self._session: ClientSession | None = None
        self._number: Int64

    def __call__(self, documents: Documents) -> bool:
        """Change the document that is selected, and say whether there was one."""
        client, session = documents.database.client, self._session
        if session is None or session.client is not client:
            self._session = session = _session_of(client, self._idle)
            self._number = Int64(next(_NUMBERS))
        if session is None:
            return bool(documents.update_one(self._selected, self._change).matched_count)
        try:
            was_there = self._send(documents, session)
        except OperationFailure as error:
            if not may_be_repeated(error):
                self._idle.append((session, monotonic()))
            raise
        self._idle.append((session, monotonic()))
        return was_there

    def _send(self, documents: Documents, session: ClientSession) -> bool:
        command: dict[str, Any] = {
            "update": documents.name,
            "txnNumber": self._number,
            "writeConcern": documents.write_concern.document,
            "updates": [{"q": self._selected, "u": self._change}],
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
            # The time of the connection is up, and the update has no limit.
            reply = database.command(command, codec_options=_REPLIES, session=session)
        if reply.get("writeErrors") or reply.get("writeConcernError"):
            raise _error_of(reply)
        return bool(reply.get("n"))


def _session_of(client: MongoClient[Any], idle: IdleSessions) -> ClientSession | None:
    """Return a session for one update at a time; None where the servers know no numbers."""
    try:
        session, since = idle.pop()
    except IndexError:
        return _new_session(client)
    if session.client is client and monotonic() - since < _REUSE:
        return session
    idle.clear()  # The others have been idle for longer.
    return _new_session(client)


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

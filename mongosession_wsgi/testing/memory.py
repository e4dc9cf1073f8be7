"""A store without a server: the same store, on a collection in the memory of the process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from threading import RLock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import bson
from bson.codec_options import CodecOptions
from pymongo.errors import DuplicateKeyError, OperationFailure

from ..document import MAX_SIZE
from ..settings import Settings
from ..store import MongoStore, utc_now
from .operators import CODEC, Document, as_stored, matches, updated

if TYPE_CHECKING:
    from pymongo import MongoClient

T = TypeVar("T")
_TOO_LARGE = 10334


class MemoryStore(MongoStore):
    """Keep sessions in the memory of the process, for the tests of an application.

    The store is a `MongoStore`; a collection in memory stands in for MongoDB. The collection knows
    the operators of a session's commands, and raises `NotImplementedError` for any other.
    """

    def __init__(
        self,
        settings: Mapping[str, Any] | Settings | None = None,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        if not isinstance(settings, Settings):
            settings = {"mongodb_session_db": "memory"} | dict(settings or {})
        super().__init__(settings, client=cast("MongoClient[Any]", Client()), clock=clock)


class Client:
    """Be the client, the database and the server of one collection, as far as a store needs them.

    Every command on documents goes through `run`: a subclass may override `run` to delay, refuse or
    repeat commands, for tests of a store against a server's manners.
    """

    def __init__(self) -> None:
        self.client: Client = self
        self.database: Client = self
        self.options: SimpleNamespace = SimpleNamespace(timeout=None, direct_connection=False)
        self.read_concern: SimpleNamespace = SimpleNamespace(level=None)
        self.documents: dict[str, bytes] = {}
        self.lock: AbstractContextManager[Any] = RLock()

    def get_database(self, _: str) -> Client:
        return self

    def get_collection(self, name: str, *, codec_options: CodecOptions[Any], **_: Any) -> Any:
        return Collection(self, name, codec_options)

    def command(
        self,
        command: Document,
        *,
        codec_options: CodecOptions[Any],
        session: None = None,  # noqa: ARG002
    ) -> Document:
        sessions = self.get_collection(command["find"], codec_options=codec_options)
        return {"cursor": {"firstBatch": sessions.find(command["filter"])}}

    def run(self, name: str, filter: Document, act: Callable[[], T]) -> T:  # noqa: ARG002
        """Carry out the command `name` on the documents of `filter`, by a call of `act`."""
        with self.lock:
            return act()


class Collection:
    """Keep the documents of a client's sessions, and change them by atomic commands."""

    def __init__(self, client: Client, name: str, codec_options: CodecOptions[Any]) -> None:
        self.database: Client = client
        self.name: str = name
        self.full_name: str = name
        self.codec_options: CodecOptions[Any] = codec_options
        self.read_concern: SimpleNamespace = client.read_concern

    def with_options(self, codec_options: CodecOptions[Any]) -> Any:
        return self.database.get_collection(self.name, codec_options=codec_options)

    def list_indexes(self) -> Iterable[Document]:
        return ()

    def create_index(self, _: str, **__: Any) -> None: ...

    def find(self, filter: Document, _: Any = None, *, sort: Any = (), **__: Any) -> list[Any]:
        def act() -> list[bytes]:
            found = self._matching(filter)
            for field, direction in reversed(sort):
                found.sort(key=lambda document: document[field], reverse=direction < 0)
            return [self.database.documents[document["_id"]] for document in found]

        raw = self.database.run("find", filter, act)
        return [bson.decode(one, self.codec_options) for one in raw]

    def count_documents(self, filter: Document) -> int:
        return self.database.run("count", filter, lambda: len(self._matching(filter)))

    def insert_one(self, document: Any) -> None:
        documents, id_ = self.database.documents, document["_id"]

        def act() -> None:
            if id_ in documents:
                raise DuplicateKeyError("it is there", 11000, {"keyPattern": {"_id": 1}})
            documents[id_] = bytes(document.raw)

        self.database.run("insert_one", {"_id": id_}, act)

    def replace_one(self, filter: Document, replacement: Any) -> Any:
        def act() -> int:
            found = self._matching(filter)[:1]
            for document in found:
                self.database.documents[document["_id"]] = bytes(replacement.raw)
            return len(found)

        return SimpleNamespace(matched_count=self.database.run("replace_one", filter, act))

    def update_one(self, filter: Document, update: Document) -> Any:
        found = self._update("update_one", filter, update, 1)
        return SimpleNamespace(matched_count=len(found))

    def update_many(self, filter: Document, update: Document) -> Any:
        found = self._update("update_many", filter, update, None)
        return SimpleNamespace(matched_count=len(found))

    def find_one_and_update(
        self, filter: Document, update: Document, *, return_document: bool = False
    ) -> Any:
        pairs = self._update("find_one_and_update", filter, update, 1)
        return bson.decode(pairs[0][return_document], self.codec_options) if pairs else None

    def delete_many(self, filter: Document) -> Any:
        def act() -> int:
            found = self._matching(filter)
            for document in found:
                del self.database.documents[document["_id"]]
            return len(found)

        return SimpleNamespace(deleted_count=self.database.run("delete_many", filter, act))

    def _matching(self, filter: Document) -> list[Document]:
        wanted, documents = as_stored(filter), self.database.documents
        if isinstance(filter.get("_id"), str):
            raw = [documents[id_] for id_ in (filter["_id"],) if id_ in documents]
        else:
            raw = list(documents.values())
        decoded = (bson.decode(document, CODEC) for document in raw)
        return [document for document in decoded if matches(document, wanted)]

    def _update(
        self, name: str, filter: Document, update: Document, most: int | None
    ) -> list[tuple[bytes, bytes]]:
        """Update matching documents; return each from before and from after."""
        documents = self.database.documents

        def act() -> list[tuple[bytes, bytes]]:
            pairs = []
            for document in self._matching(filter)[:most]:
                after = bson.encode(updated(document, as_stored(update)))
                if len(after) > MAX_SIZE:
                    raise OperationFailure("the document is too large", _TOO_LARGE)
                pairs.append((documents[document["_id"]], after))
                documents[document["_id"]] = after
            return pairs

        return self.database.run(name, filter, act)

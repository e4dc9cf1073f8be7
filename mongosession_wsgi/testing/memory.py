"""A store without a server: the same store, on a collection that this process keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from threading import RLock
from types import SimpleNamespace
from typing import Any, cast

import bson
from bson.codec_options import CodecOptions
from pymongo import MongoClient
from pymongo.errors import DuplicateKeyError, OperationFailure

from ..document import MAX_SIZE
from ..settings import Settings
from ..store import MongoStore, utc_now
from .operators import CODEC, Document, as_stored, matches, updated

_TOO_LARGE = 10334


class MemoryStore(MongoStore):
    """Keep sessions in the memory of this process, for the tests of an application.

    All that `MongoStore` does, it does; only what MongoDB does is done here, and no more of that
    than a session needs: anything else raises `NotImplementedError`.
    """

    def __init__(
        self,
        settings: Mapping[str, Any] | Settings | None = None,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        if not isinstance(settings, Settings):
            settings = {"mongodb_session_db": "memory"} | dict(settings or {})
        super().__init__(settings, client=cast("MongoClient[Any]", _Client()), clock=clock)


class _Client:
    """What a store uses of a client, of a database and of a collection; there is one of each."""

    def __init__(self) -> None:
        self.client = self.database = self
        self.options = SimpleNamespace(timeout=None)
        self.read_concern = SimpleNamespace(level=None)
        self.write_concern = SimpleNamespace(document={})
        self.documents: dict[str, bytes] = {}
        self.lock = RLock()

    def get_database(self, _: str) -> _Client:
        return self

    def get_collection(self, name: str, *, codec_options: CodecOptions[Any], **_: Any) -> Any:
        return _Collection(self, name, codec_options)

    def command(self, command: Document, *, codec_options: CodecOptions[Any]) -> Document:
        if "update" in command:
            sessions = _Collection(self, command["update"], codec_options)
            (statement,) = command["updates"]
            return {"n": sessions.update_one(statement["q"], statement["u"]).matched_count}
        sessions = _Collection(self, command["find"], codec_options)
        return {"cursor": {"firstBatch": sessions.find(command["filter"])}}


class _Found(list[Any]):
    """What a cursor has, all of it at once."""

    def __enter__(self) -> _Found:
        return self

    def __exit__(self, *_: object) -> None: ...


class _Collection:
    """The few commands of a collection that keep sessions, each of them atomic."""

    def __init__(self, client: _Client, name: str, codec_options: CodecOptions[Any]) -> None:
        self.database = client
        self.name = name
        self.codec_options = codec_options
        self.read_concern = client.read_concern
        self.write_concern = client.write_concern

    def with_options(self, codec_options: CodecOptions[Any]) -> _Collection:
        return _Collection(self.database, self.name, codec_options)

    def create_indexes(self, _: Iterable[Any]) -> None: ...

    def find(self, filter: Document, _: Any = None, *, sort: Any = (), **__: Any) -> _Found:
        with self.database.lock:
            found = self._matching(filter)
            for field, direction in reversed(sort):
                found.sort(key=lambda document: document[field], reverse=direction < 0)
            raw = [self.database.documents[document["_id"]] for document in found]
        return _Found(bson.decode(one, self.codec_options) for one in raw)

    def insert_one(self, document: Any) -> None:
        with self.database.lock:
            if document["_id"] in self.database.documents:
                raise DuplicateKeyError("it is there", 11000, {"keyPattern": {"_id": 1}})
            self.database.documents[document["_id"]] = bytes(document.raw)

    def replace_one(self, filter: Document, replacement: Any) -> None:
        with self.database.lock:
            for document in self._matching(filter)[:1]:
                self.database.documents[document["_id"]] = bytes(replacement.raw)

    def update_one(self, filter: Document, update: Document) -> Any:
        return SimpleNamespace(matched_count=int(self._update(filter, update) is not None))

    def find_one_and_update(self, filter: Document, update: Document) -> Any:
        before = self._update(filter, update)
        return None if before is None else bson.decode(before, self.codec_options)

    def update_many(self, filter: Document, update: Document) -> Any:
        with self.database.lock:
            found = self._matching(filter)
            for document in found:
                self._update({"_id": document["_id"]}, update)
        return SimpleNamespace(matched_count=len(found))

    def delete_many(self, filter: Document) -> Any:
        with self.database.lock:
            found = self._matching(filter)
            for document in found:
                del self.database.documents[document["_id"]]
        return SimpleNamespace(deleted_count=len(found))

    def count_documents(self, filter: Document) -> int:
        return len(self._matching(filter))

    def _matching(self, filter: Document) -> list[Document]:
        wanted, documents = as_stored(filter), self.database.documents
        with self.database.lock:
            if isinstance(filter.get("_id"), str):
                raw = [documents[id_] for id_ in (filter["_id"],) if id_ in documents]
            else:
                raw = list(documents.values())
        decoded = (bson.decode(document, CODEC) for document in raw)
        return [document for document in decoded if matches(document, wanted)]

    def _update(self, filter: Document, update: Document) -> bytes | None:
        with self.database.lock:
            for document in self._matching(filter)[:1]:
                before = self.database.documents[document["_id"]]
                after = bson.encode(updated(document, as_stored(update)))
                if len(after) > MAX_SIZE:
                    raise OperationFailure("the document is too large", _TOO_LARGE)
                self.database.documents[document["_id"]] = after
                return before
        return None

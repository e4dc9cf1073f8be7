"""The indexes of the sessions: their options, their equivalents, and the time of their making."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from threading import Lock, Thread
from time import monotonic
from typing import Any

import pymongo
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from . import connecting, document
from .errors import StoreError, logger
from .failures import NOT_ALLOWED, explaining, may_pass

Listed = Mapping[str, Any]
"""An index as MongoDB lists it."""

OURS: dict[str, Any] = {"_id": document.ANY_ID, "v": {"$gte": 1, "$lte": 2}}
"""The documents of ours, sessions and marks of all versions, sealed or not.

For a partial index, MongoDB 4.4 takes little more than comparisons, Amazon DocumentDB no types.
"""
_TTL: dict[str, Any] = {"expireAfterSeconds": 0, "partialFilterExpression": OURS}
INDEXES: dict[str, dict[str, Any]] = {"expires_at": _TTL, "owner": {}}
"""The options of each index, by its field."""

_NOT_OPTIONS = {"v", "key", "name", "ns", "background"}
_IN_THE_WAY = {85, 86}
"""The codes of errors: an index of the same key or name has other options."""
_NOT_FOR_THIS_USER = {NOT_ALLOWED, 8000}
OVER_ALL = "expires_at_over_all"
"""The name of the TTL index on a server without partial indexes."""
_REFUSED = (
    "The indexes of the sessions could not be made, so expired ones pile up and the sessions of an "
    "owner are found slowly; sessions work. %s. MongoDB says: %s"
)
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0


class InPassing:
    """Makes the indexes in a thread, once in each process, while visitors go on."""

    def __init__(self) -> None:
        self.over: set[int] = set()
        """The processes, by their ids, in which no further try has any sense."""
        self._tries: dict[int, _Tries] = {}

    @property
    def thread(self) -> Thread | None:
        """The thread of the last try in this process."""
        tries = self._tries.get(os.getpid())
        return None if tries is None else tries.thread

    def try_if_due(self, documents: Collection[Any]) -> None:
        """Begin to make the indexes, unless a try is under way or the next is due later."""
        tries = self._of_this_process()
        if monotonic() < tries.next_at or not tries.turn.acquire(blocking=False):
            return
        # The thread has no reference to the store, which may be closed or forgotten meanwhile. It
        # has a context of its own: it may inherit the time limit of this request (Python 3.14).
        tries.thread = Thread(
            target=Context().run,
            args=[tries.make, documents],
            name="mongosession indexes",
            daemon=True,
        )
        try:
            tries.thread.start()
        except RuntimeError:  # No thread is to be had.
            tries.thread = None
            tries.put_off()
            tries.turn.release()

    def finish(self) -> None:
        """Note that no further try has any sense in this process."""
        self.over.add(os.getpid())

    def wait(self, seconds: float) -> None:
        """Wait for the end of a try."""
        if self.thread is not None:
            self.thread.join(seconds)

    def _of_this_process(self) -> _Tries:
        pid = os.getpid()
        return self._tries.get(pid) or self._tries.setdefault(pid, _Tries(self.finish))


class _Tries:
    """The tries of one process, at most one of them under way."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self.turn = Lock()
        self.thread: Thread | None = None
        self.next_at = 0.0
        self._finish = finish
        self._pause = _FIRST_PAUSE

    def make(self, documents: Collection[Any]) -> None:
        """Try to make the indexes; a refusal that cannot pass is a warning, and the last try."""
        self.put_off()
        try:
            ensure(documents)
            self._finish()
        except StoreError as error:
            if not may_pass(error.__cause__):
                self._finish()
                logger.warning(_REFUSED, error, error.__cause__)
        finally:
            self.turn.release()

    def put_off(self) -> None:
        """Let the next try wait, each time for longer."""
        self.next_at = monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


def ensure(documents: Collection[Any]) -> None:
    """Make the missing indexes; an equivalent counts, whatever its name.

    Tries both before it raises `StoreError` for a refusal.
    """
    with explaining():
        listed = _listed(documents)
    refusals = []
    for field in INDEXES:
        if not any(does_the_same(one, field) for one in listed):
            try:
                _make(documents, field, listed)
            except StoreError as error:
                refusals.append(error)
    if refusals:
        raise max(refusals, key=lambda refusal: may_pass(refusal.__cause__))
    for one in listed:
        if is_over_all_documents(one) and one["name"] != OVER_ALL:
            logger.warning(
                "The index %s is over all documents of %s, as version 1 made it, so MongoDB "
                "deletes others' documents too when their expires_at is past. To replace the "
                "index, run: mongosession init",
                one["name"],
                documents.full_name,
            )


def does_the_same(listed: Listed, field: str) -> bool:
    """Say whether an index is equivalent to ours on a field.

    So are an index of the same options, whatever its name, and the TTL index of version 1. MongoDB
    deletes by a hidden TTL index too, and finds an owner's sessions by an index without the
    documents that have no owner.
    """
    if list(listed["key"].items()) != [(field, 1)]:
        return False
    options = _options_of(listed)
    options.pop("hidden" if field == "expires_at" else "sparse", None)
    return options == INDEXES[field] or (field == "expires_at" and is_over_all_documents(listed))


def is_over_all_documents(listed: Listed) -> bool:
    """Say whether an index is a TTL index as of version 1, for all documents of the collection."""
    is_on_expiry = list(listed["key"].items()) == [("expires_at", 1)]
    return is_on_expiry and _options_of(listed) == {"expireAfterSeconds": 0}


def _options_of(listed: Listed) -> dict[str, Any]:
    return {
        name: value
        for name, value in listed.items()
        if name not in _NOT_OPTIONS and value is not False and value is not None
    }


def _listed(documents: Collection[Any]) -> list[Listed]:
    """Return the indexes of a collection; none if the user may not list them."""
    try:
        return list(documents.list_indexes())
    except OperationFailure as error:
        if may_pass(error):
            raise
        return []


def _make(documents: Collection[Any], field: str, listed: Iterable[Listed]) -> None:
    try:
        _create(documents, field, INDEXES[field])
    except StoreError as error:
        refusal = error.__cause__
        code = getattr(refusal, "code", None)
        if code in _IN_THE_WAY:
            raise StoreError(_conflict(documents, field, listed)) from refusal
        if field != "expires_at" or may_pass(refusal) or code in _NOT_FOR_THIS_USER:
            raise
        _make_over_all_documents(documents, refusal)


def _as_long_as_it_takes() -> AbstractContextManager[None]:
    """Lift the client's limit, for an index of a large collection, but none of the application's.

    The search for a server has a limit of its own.
    """
    return nullcontext() if connecting.timeout_around() else pymongo.timeout(0)


def _create(documents: Collection[Any], field: str, options: dict[str, Any]) -> None:
    with explaining(), _as_long_as_it_takes():
        documents.create_index(field, **options)


def _make_over_all_documents(documents: Collection[Any], refusal: BaseException | None) -> None:
    """Make a TTL index over all documents, for a server without partial ones, if all are ours."""
    with explaining(), _as_long_as_it_takes():
        other = documents.find_one({"$nor": [OURS]}, ["_id"])
    if other is not None:
        raise StoreError(
            "This server makes no TTL index of a part of a collection, and one of all of "
            f"{documents.full_name} would delete what is not ours, such as {other['_id']!r}; give "
            "sessions a collection of their own (mongodb_session_coll), or run now and then: "
            "mongosession purge"
        ) from refusal
    _create(documents, "expires_at", {"expireAfterSeconds": 0, "name": OVER_ALL})


def _conflict(documents: Collection[Any], field: str, listed: Iterable[Listed]) -> str:
    names = [
        repr(one["name"])
        for one in listed
        if one["name"] == f"{field}_1" or list(one["key"].items()) == [(field, 1)]
    ]
    return (
        f"The index on {field} cannot be made: {' and '.join(names) or 'another one'} of "
        f"{documents.full_name} is in its way, and does something else. Drop that, if nobody needs "
        "it, and run: mongosession init"
    )

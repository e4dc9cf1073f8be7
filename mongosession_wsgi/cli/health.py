"""Find out whether all is well between this machine and its sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from enum import Enum
from secrets import token_urlsafe
from time import perf_counter
from typing import Any, NamedTuple

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure, PyMongoError

from .. import document
from ..errors import StoreError
from ..store import NOT_ALLOWED, MongoStore, explained, utc_now

_LONGEST_LAG = timedelta(minutes=5)
"""The TTL monitor comes by every minute; it is behind if what is expired waits much longer."""
_LARGEST_DIFFERENCE = timedelta(seconds=10)
"""Well below the minute that the mark of a regenerated session lasts."""
_NO_COLLECTION = 26
_MAKE = "make it with: mongosession init"

_Indexes = dict[str, dict[str, Any]]
"""The indexes of a collection, each by its first key."""


class Verdict(Enum):
    """What a finding means."""

    GOOD = "ok"
    NOTE = "note"
    WRONG = "WRONG"


class Finding(NamedTuple):
    """One thing that was looked at, and what came of it."""

    what: str
    verdict: Verdict
    words: str


class Health:
    """Look at a store from all sides; what fails is a finding, and nothing is changed for good."""

    def __init__(self, store: MongoStore, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._store = store
        self._clock = clock

    def findings(self) -> Iterator[Finding]:
        """Look, and yield what is found as it is found; nothing more where no server answers."""
        server = self._finding("server", self._server)
        yield server
        if server.verdict is Verdict.WRONG:
            return
        yield self._finding("topology", self._topology)
        yield self._finding("write concern", self._write_concern)
        yield self._finding("index on expires_at", lambda: self._index(_on_expires_at))
        yield self._finding("index on owner", lambda: self._index(_on_owner))
        yield self._finding("expired sessions", self._expired_sessions)
        yield self._finding("clock", self._clock_difference)
        yield self._finding("round trip", self._round_trip)

    def _finding(self, what: str, look: Callable[[], tuple[Verdict, str]]) -> Finding:
        try:
            return Finding(what, *look())
        except StoreError as error:
            return Finding(what, Verdict.WRONG, str(error))
        except PyMongoError as error:
            return Finding(what, Verdict.WRONG, explained(error))

    def _server(self) -> tuple[Verdict, str]:
        collection = self._store.collection
        client = collection.database.client
        version = client.server_info()["version"]
        address = client.address
        where = "" if address is None else f" at {address[0]}:{address[1]}"
        collection.find_one({"_id": ""})  # Whose refusal tells a wrong password.
        return Verdict.GOOD, f"MongoDB {version}{where}, sessions in {collection.full_name}"

    def _topology(self) -> tuple[Verdict, str]:
        hello = self._hello()
        if hello.get("msg") == "isdbgrid":
            return Verdict.GOOD, "sharded cluster"
        if "setName" in hello:
            members = len(hello.get("hosts", ())) + len(hello.get("passives", ()))
            return Verdict.GOOD, f"replica set {hello['setName']}, members with data: {members}"
        return Verdict.NOTE, "a single server: while it is down, nobody has a session"

    def _write_concern(self) -> tuple[Verdict, str]:
        found = self._store.collection.write_concern.document
        return Verdict.GOOD, ", ".join(f"{name}: {value}" for name, value in found.items())

    def _index(self, judge: Callable[[_Indexes], tuple[Verdict, str]]) -> tuple[Verdict, str]:
        try:
            indexes = list(self._store.collection.list_indexes())
        except OperationFailure as error:
            if error.code == NOT_ALLOWED:
                return Verdict.NOTE, "not looked at: this user lacks the action listIndexes"
            if error.code != _NO_COLLECTION:
                raise
            indexes = []
        # The first key counts; an index with more serves as well.
        return judge({next(iter(index["key"])): dict(index) for index in reversed(indexes)})

    def _expired_sessions(self) -> tuple[Verdict, str]:
        """Look how long the oldest waits for the TTL monitor, by the clock that this one has."""
        now = self._hello()["localTime"]
        expired = {"v": document.VERSION, "expires_at": {"$type": "date", "$lte": now}}
        raw = self._store.collection.find_one(expired, ["expires_at"], sort=[("expires_at", 1)])
        if raw is None:
            return Verdict.GOOD, "none waits for the TTL monitor"
        found = bson.decode(raw.raw, codec_options=document.CODEC)
        lag = now - found["expires_at"].replace(tzinfo=None)
        waits = f"the oldest has waited for the TTL monitor for {round(lag.total_seconds())} s"
        if lag <= _LONGEST_LAG:
            return Verdict.GOOD, waits
        return (
            Verdict.WRONG,
            f"{waits}: it is off or behind (ttlMonitorEnabled); mongosession purge does its work",
        )

    def _clock_difference(self) -> tuple[Verdict, str]:
        before = self._clock()
        there = self._hello()["localTime"].replace(tzinfo=before.tzinfo)
        after = self._clock()
        difference = there - (before + (after - before) / 2)
        where = "ahead of" if difference > timedelta() else "behind"
        words = f"the server's is {abs(difference).total_seconds():.3f} s {where} this one"
        if abs(difference) < _LARGEST_DIFFERENCE:
            return Verdict.GOOD, words
        return Verdict.WRONG, f"{words}: sessions die too early or late; set both by NTP"

    def _round_trip(self) -> tuple[Verdict, str]:
        """Live the life of a session; it is inserted by hand, because a store makes indexes too."""
        store, token, times = self._store, token_urlsafe(32), []
        begun = perf_counter()

        def took(step: str) -> None:
            nonlocal begun
            times.append(f"{step} {(perf_counter() - begun) * 1000:.1f} ms")
            begun = perf_counter()

        store.collection.insert_one(self._throw_away(token))
        took("insert")
        try:
            session = store.retrieve(token)
            took("read")
            if session is None:
                return Verdict.WRONG, "a session that was stored was not found"
            session["check"] = "changed"
            store.flush(session)
            took("change")
        finally:
            ended = store.revoke(document.id_of(token))
        took("end")
        if not ended:
            return Verdict.WRONG, "a session that was stored was gone before it was ended"
        return Verdict.GOOD, ", ".join(times)

    def _throw_away(self, token: str) -> RawBSONDocument:
        now = self._clock()
        moments = {"created_at": now, "seen_at": now, "expires_at": now + timedelta(minutes=1)}
        record = document.Record(document.id_of(token), data={}, owner=None, **moments)
        contents = document.Changes({}, frozenset(), False, {})
        return RawBSONDocument(document.document_of(record, contents))

    def _hello(self) -> dict[str, Any]:
        client = self._store.collection.database.client
        return client.admin.command("hello")


def _on_expires_at(indexes: _Indexes) -> tuple[Verdict, str]:
    index = indexes.get("expires_at")
    if index is None:
        return Verdict.WRONG, f"missing, so expired sessions pile up; {_MAKE}"
    after = index.get("expireAfterSeconds")
    if after is None:
        return Verdict.WRONG, f"{index['name']} is no TTL index; drop it, and {_MAKE}"
    if after != 0:
        return (
            Verdict.WRONG,
            f"{index['name']} deletes {after} seconds too late; drop it, and {_MAKE}",
        )
    return Verdict.GOOD, f"{index['name']}, TTL"


def _on_owner(indexes: _Indexes) -> tuple[Verdict, str]:
    index = indexes.get("owner")
    if index is None:
        return Verdict.WRONG, f"missing, so an owner's sessions are found slowly; {_MAKE}"
    return Verdict.GOOD, str(index["name"])

"""Find out whether all is well between this machine and its sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from secrets import token_urlsafe
from time import perf_counter
from typing import TYPE_CHECKING, Any

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.errors import InvalidOperation, OperationFailure, PyMongoError

from .. import document
from ..errors import SessionError, StoreError
from ..failures import explained, explaining
from ..store import MongoStore, utc_now
from . import judging
from .administration import REFUSED, SIZED, Administration
from .judging import Hint, Judged
from .verdicts import Finding, Verdict

if TYPE_CHECKING:
    from pymongo import MongoClient

_LONGEST_LAG = timedelta(minutes=5)
"""The TTL monitor comes by every minute; much longer waits mean that the monitor is behind."""
_LARGEST_DIFFERENCE = timedelta(seconds=10)
"""Well below the minute of the mark of a regenerated session."""
_SAMPLE = 1000
"""The sessions that are asked for their form; the form has no index."""
_NO_SUCH_COMMAND = {59, 115}


class Health:
    """Look at a store from all sides; a failure is a finding, and no change stays.

    `reach` raises `StoreError` if no server can be reached; `hint` returns the command line of a
    subcommand.
    """

    def __init__(
        self,
        store: MongoStore,
        *,
        clock: Callable[[], datetime] = utc_now,
        reach: Callable[[MongoStore], None] = lambda _: None,
        hint: Hint = lambda name: f"mongosession {name}",
    ) -> None:
        self._store = store
        self._clock = clock
        self._reach = reach
        self._hint = hint
        self._greeting = "hello"
        self._sized = True
        """Whether the server tells sizes, as the round trip has found out."""

    def findings(self) -> Iterator[Finding]:
        """Look, and yield each finding at once; nothing more if no server answers."""
        for found in self._findings("server", self._server):
            yield found
            if found.verdict is Verdict.WRONG:
                return
        yield from self._findings("collection", self._collection, "listCollections")
        yield from self._findings("topology", self._topology, "hello")
        yield from self._findings("write concern", self._write_concern)
        yield from self._index_findings()
        yield from self._findings("expired sessions", self._expired_sessions, "hello")
        yield from self._findings("sealed sessions", self._sealed_sessions)
        yield from self._findings("clock", self._clock_difference, "hello")
        yield from self._findings("round trip", self._round_trip)
        yield from self._findings("sizes", self._sizes)

    def _findings(
        self, what: str, look: Callable[[], Iterable[Judged]], needs: str = ""
    ) -> list[Finding]:
        """Return what a look finds; any error of it is the last finding.

        `needs` is the command of a look that sessions themselves can do without.
        """
        found = []
        try:
            for verdict, words in look():
                found.append(Finding(what, verdict, words))
        except Exception as error:  # noqa: BLE001 - Other servers answer in unforeseen ways.
            found.append(_finding_of(what, error, needs))
        return found

    def _server(self) -> Iterator[Judged]:
        with explaining():
            self._reach(self._store)
            collection = self._store.collection
            collection.find_one({"_id": ""})  # A wrong password is refused here.
        client = collection.database.client
        try:
            version = f"MongoDB {client.server_info()['version']}"
        except (OperationFailure, KeyError):
            version = "a server that does not tell its version"
        yield (
            Verdict.GOOD,
            f"{version} at {_addresses(client)}, sessions in {collection.full_name}",
        )

    def _collection(self) -> Iterator[Judged]:
        doubt = Administration(self._store).doubt()
        if doubt is not None:
            yield Verdict.NOTE, doubt

    def _topology(self) -> Iterator[Judged]:
        hello = self._hello()
        if hello.get("msg") == "isdbgrid":
            yield Verdict.GOOD, "sharded cluster"
        elif hello.get("secondary"):
            yield (
                Verdict.WRONG,
                (
                    f"a secondary of the replica set {hello.get('setName')}, which takes no "
                    "writes: name the members in mongodb_host, without directConnection"
                ),
            )
        elif "setName" in hello:
            members = len(hello.get("hosts", ())) + len(hello.get("passives", ()))
            yield Verdict.GOOD, f"replica set {hello['setName']}, members with data: {members}"
        else:
            yield Verdict.NOTE, "a single server: while it is down, nobody has a session"
        if self._greeting != "hello":
            yield Verdict.NOTE, "an old or other server, without the command hello"

    def _write_concern(self) -> Iterator[Judged]:
        found = self._store.collection.write_concern.document
        yield Verdict.GOOD, ", ".join(f"{name}: {value}" for name, value in found.items())

    def _index_findings(self) -> Iterator[Finding]:
        def listed() -> list[dict[str, Any]]:
            return [dict(index) for index in self._store.collection.list_indexes()]

        first = self._findings(
            "index on expires_at",
            lambda: judging.on_expires_at(listed(), self._hint),
            "listIndexes",
        )
        yield from first
        yield from self._findings(
            "index on owner", lambda: judging.on_owner(listed(), self._hint), "listIndexes"
        )
        if not any(found.error for found in first):
            yield from self._findings("other indexes", lambda: judging.others(listed()))

    def _expired_sessions(self) -> Iterator[Judged]:
        """Look how long the oldest expired session waits, by the clock of the TTL monitor."""
        now = _moment(self._hello().get("localTime")) or self._clock()
        expired = document.OURS | {"expires_at": {"$type": "date", "$lte": now}}
        raw = self._store.collection.find_one(expired, ["expires_at"], sort=[("expires_at", 1)])
        if raw is None:
            yield Verdict.GOOD, "none waits for the TTL monitor"
            return
        found = document.opened(bson.decode(raw.raw, codec_options=document.CODEC))
        lag = now - found["expires_at"]
        waits = f"the oldest has waited for the TTL monitor for {round(lag.total_seconds())} s"
        if lag <= _LONGEST_LAG:
            yield Verdict.GOOD, waits
        else:
            yield (
                Verdict.WRONG,
                (
                    f"{waits}: it is off or behind (ttlMonitorEnabled), or this server has none; "
                    f"{self._hint('purge')} does its work"
                ),
            )

    def _sealed_sessions(self) -> Iterator[Judged]:
        """Look at the sessions that expire last, which their index finds; say nothing of none."""
        live = document.SESSION | {"expires_at": {"$gt": self._clock()}}
        latest = {"sort": [("expires_at", -1)], "limit": _SAMPLE}
        forms = [raw["v"] for raw in self._store.collection.find(live, {"v": 1}, **latest)]
        count, wanted = forms.count(document.SEALED), self._store.settings.sealed
        if not (count or (wanted and forms)):
            return
        words = f"{count:,} of {len(forms):,}"
        if len(forms) == _SAMPLE:
            words += ", of the sessions that expire last"
        if wanted and count < len(forms):
            ending = f"{self._hint('revoke')} --all"
            yield (
                Verdict.NOTE,
                f"{words}; each other stays so until its next login, and {ending} ends all",
            )
        else:
            yield Verdict.GOOD, words
        if find_spec("cryptography") is None:
            yield (
                Verdict.NOTE,
                (
                    "this Python has no cryptography, and an application that runs in it answers "
                    "503 to their visitors; pip install 'mongosession-wsgi[sealed]'"
                ),
            )

    def _clock_difference(self) -> Iterator[Judged]:
        before = self._clock()
        there = _moment(self._hello().get("localTime"))
        after = self._clock()
        if there is None:
            yield Verdict.NOTE, "not looked at: this server does not tell its time"
            return
        difference = there - (before + (after - before) / 2)
        where = "ahead of" if difference > timedelta() else "behind"
        words = f"the server's is {abs(difference).total_seconds():.3f} s {where} this one"
        if abs(difference) < _LARGEST_DIFFERENCE:
            yield Verdict.GOOD, words
        else:
            yield Verdict.WRONG, f"{words}: sessions die too early or late; set both by NTP"

    def _round_trip(self) -> Iterator[Judged]:
        """Live the life of a session, inserted by hand because a store would make indexes."""
        store, token, took = self._store, token_urlsafe(32), _Stopwatch()
        id_ = document.id_of(token)
        store.collection.insert_one(self._throw_away(id_))
        took("insert")
        try:
            self._sized = self._tells_size(id_)
            took()
            session = store.retrieve(token)
            took("read")
            if session is None:
                yield Verdict.WRONG, "a session that was stored was not found"
                return
            session["check"] = "changed"
            store.flush(session)
            took("change")
        finally:
            ended = store.revoke(id_)
            took("end")
            # Nobody else knows this id, so nothing needs the mark of its end.
            store.collection.delete_many({"_id": id_})
        if ended:
            yield Verdict.GOOD, ", ".join(took.times)
        else:
            yield Verdict.WRONG, "a session that was stored was gone before it was ended"

    def _throw_away(self, id_: str) -> RawBSONDocument:
        now = self._clock()
        moments = {"created_at": now, "seen_at": now, "expires_at": now + timedelta(minutes=1)}
        session = {"_id": id_, "v": document.PLAIN, "data": {}, "owner": None} | moments
        return RawBSONDocument(bson.encode(session, codec_options=document.CODEC))

    def _tells_size(self, id_: str) -> bool:
        try:
            found = self._store.collection.find_one({"_id": id_}, SIZED)
        except OperationFailure:
            return False
        return found is not None and "size" in found

    def _sizes(self) -> Iterator[Judged]:
        if not self._sized:
            yield (
                Verdict.NOTE,
                (
                    "this server does not tell the size of a document ($bsonSize): list and stats "
                    "leave sizes out, and list --larger-than cannot be had"
                ),
            )

    def _hello(self) -> dict[str, Any]:
        """Return the server's answer to `hello`, or to the old name of the command."""
        admin = self._store.collection.database.client.admin
        try:
            return admin.command(self._greeting)
        except OperationFailure as error:
            if error.code not in _NO_SUCH_COMMAND or self._greeting != "hello":
                raise
        self._greeting = "isMaster"
        return admin.command(self._greeting)


class _Stopwatch:
    """Notes how long each step has taken since the one before."""

    def __init__(self) -> None:
        self.times: list[str] = []
        self._begun = perf_counter()

    def __call__(self, step: str = "") -> None:
        if step:
            self.times.append(f"{step} {(perf_counter() - self._begun) * 1000:.1f} ms")
        self._begun = perf_counter()


def _finding_of(what: str, error: Exception, needs: str) -> Finding:
    """Return the finding for a failed look; sessions can do without the command `needs`."""
    code = error.code if isinstance(error, OperationFailure) else None
    if isinstance(error, PyMongoError):
        explanation = StoreError(explained(error))
        explanation.__cause__ = error
        error = explanation
    if needs and code in REFUSED:
        words = f"not looked at: this user may not run {needs}"
        return Finding(what, Verdict.NOTE, words, error)
    if needs and code in _NO_SUCH_COMMAND:
        return Finding(what, Verdict.NOTE, f"not looked at: this server has no {needs}", error)
    if isinstance(error, SessionError):
        return Finding(what, Verdict.WRONG, str(error), error)
    verdict = Verdict.NOTE if needs else Verdict.WRONG
    return Finding(what, verdict, f"this look failed: {type(error).__name__}: {error}", error)


def _moment(told: Any) -> datetime | None:
    """Return the time that a server tells; some servers tell milliseconds since 1970."""
    match told:
        case datetime():
            return told.replace(tzinfo=timezone.utc)
        case int() | float():
            return datetime.fromtimestamp(told / 1000, timezone.utc)
    return None


def _addresses(client: MongoClient[Any]) -> str:
    """Return the addresses of a client's servers; several mongos have no single address."""
    try:
        address = client.address
        addresses = [] if address is None else [_written(address)]
    except InvalidOperation:
        addresses = sorted(map(_written, client.nodes))
    return ", ".join(addresses) or "an address that is not known"


def _written(address: tuple[str, int | None]) -> str:
    """Return an address as people write it; a UNIX socket has no port."""
    host, port = address
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

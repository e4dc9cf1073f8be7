"""What the command asks of MongoDB, where a process of its own would be in the way of a test."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import bson
import pytest
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient, monitoring
from pymongo.collection import Collection

from mongosession_wsgi import MongoStore, StoreError
from mongosession_wsgi.cli import administration, health
from mongosession_wsgi.cli.administration import Administration, Selection
from mongosession_wsgi.cli.health import Finding, Health, Verdict
from mongosession_wsgi.document import id_of
from mongosession_wsgi.embedded import EmbeddedServer
from mongosession_wsgi.times import Times

from .conftest import Clock
from .proxy import Proxy, before, command_of

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
HOURS = partial(timedelta, 0, 0, 0, 0, 0)
LIVE = {"data": {"$exists": True}}
SUMMARY = {
    "_id": id_of("one"),
    "v": 1,
    "owner": "alice",
    "created_at": NOW,
    "seen_at": NOW,
    "expires_at": NOW,
    "size": 200,
}
LEAST = {
    "resource": {"db": "shop", "collection": "sessions"},
    "actions": ["find", "insert", "update", "remove", "createIndex"],
}
"""The privileges of docs/deployment.md."""


def filled(store: MongoStore, stored: Collection[Any], count: int) -> None:
    """Store many sessions, by few commands."""
    store.create({"number": 0})
    like = stored.find_one()
    assert like is not None
    stored.insert_many([like | {"_id": id_of(str(number))} for number in range(1, count)])


class Cutter(Proxy):
    """Cuts the connection at each of some commands, in order."""

    cut_at: list[str] = []  # noqa: RUF012

    def fault_for(self, message: bytes) -> Any:
        if self.cut_at and command_of(message) == self.cut_at[0]:
            self.cut_at = self.cut_at[1:]
            self.struck += 1
            return lambda link, message: False
        return super().fault_for(message)


@pytest.fixture
def cutter(client: MongoClient[Any]) -> Iterator[Cutter]:
    with before(client, Cutter) as cutter:
        yield cutter


@pytest.fixture
def through(cutter: Cutter, settings: dict[str, Any], clock: Clock) -> Iterator[Administration]:
    """An administration that speaks to the server through the proxy."""
    store = MongoStore(settings | {"mongodb_host": cutter.uri}, clock=clock)
    yield Administration(store, clock=clock)
    store.close()


# Ending many.


def test_a_session_that_is_regenerated_under_way_does_not_escape(
    store: MongoStore,
    stored: Collection[Any],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(administration, "AT_A_TIME", 2)
    filled(store, stored, 10)
    thief = store.create({"stolen": True})
    ending = Administration(store, clock=clock).end(Selection())
    ended = next(ending)
    assert thief.token is not None
    thief.regenerate()
    store.flush(thief)
    clock.advance(seconds=61)  # So that no mark tells of it any more.
    newcomer = store.create({"begun": "since"})
    ended += sum(ending)
    assert ended == 11
    assert stored.distinct("_id", LIVE) == [newcomer.id]


@pytest.mark.parametrize("cut_at", [["getMore"], ["update"], ["update", "getMore"]])
def test_a_look_that_breaks_off_is_followed_by_another(
    through: Administration,
    cutter: Cutter,
    store: MongoStore,
    stored: Collection[Any],
    cut_at: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(administration, "AT_A_TIME", 20)
    monkeypatch.setattr(administration, "_READ_AT_A_TIME", 100)
    filled(store, stored, 210)
    cutter.cut_at = cut_at
    assert sum(through.end(Selection())) == 210
    assert cutter.struck == len(cut_at)
    assert not stored.count_documents(LIVE)


def test_a_server_that_stays_away_is_an_error_that_follows_what_was_ended(
    cutter: Cutter,
    settings: dict[str, Any],
    store: MongoStore,
    stored: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(administration, "AT_A_TIME", 2)
    filled(store, stored, 5)
    through = MongoStore(settings | {"mongodb_host": cutter.uri, "mongodb_timeout_ms": 1000})
    ending = Administration(through).end(Selection(idle_for=timedelta()))
    assert next(ending) == 2
    cutter.refuse()
    with pytest.raises(StoreError):
        next(ending)
    assert stored.count_documents(LIVE) == 3
    through.close()


def test_marks_whose_time_is_up_are_not_looked_at(
    store: MongoStore, stored: Collection[Any], clock: Clock
) -> None:
    session = store.create({"a": 1})
    session.regenerate()
    store.flush(session)
    mark = stored.find_one({"data": {"$exists": False}})
    clock.advance(seconds=61)
    assert list(Administration(store, clock=clock).end(Selection())) == [1]
    assert stored.find_one() == mark


# Looking.


@pytest.mark.parametrize(
    ("remember", "times", "expires_in"),
    [
        (None, Times(HOURS(3), HOURS(9), None), 2),
        (None, Times(HOURS(1), HOURS(9), None), 0),
        (True, Times(HOURS(1), HOURS(3), None), 2),
        (True, Times(HOURS(9), HOURS(1), None), 0),
        (False, Times(HOURS(1), HOURS(1), None), 24),
        (None, Times(HOURS(90), HOURS(90), None), 24),
        (None, Times(HOURS(9), HOURS(9), HOURS(3)), 1),
        (None, Times(HOURS(9), HOURS(9), HOURS(2)), 0),
    ],
)
def test_a_look_goes_by_the_times_of_the_application(
    store: MongoStore,
    stored: Collection[Any],
    clock: Clock,
    remember: bool | None,
    times: Times,
    expires_in: int,
) -> None:
    """One session, created two hours ago and used an hour ago, that is stored for a day."""
    now, id_ = clock(), id_of("one")
    moments = {"created_at": now - HOURS(2), "seen_at": now - HOURS(1)}
    terms = {} if remember is None else {"remember": remember}
    session = {"_id": id_, "v": 1, "data": {}, "owner": None, "expires_at": now + HOURS(24)}
    stored.insert_one(session | moments | terms)
    looking = Administration(store, clock=clock, times=times)
    found = [one.expires_at for one in looking.sessions(Selection())]
    assert found == ([now + HOURS(expires_in)] if expires_in else [])
    assert looking.statistics().live == len(found)
    assert bool(looking.session(id_)) == bool(looking.whole(id_)) == bool(found)
    assert looking.count(Selection()) == 1
    assert list(looking.end(Selection())) == [1]


@pytest.mark.parametrize(
    ("other", "value"),
    [
        ("seen_at", bson.DatetimeMS(2**60)),
        ("created_at", bson.DatetimeMS(-(2**60))),
        ("_id", 7),
    ],
)
def test_what_is_no_session_on_a_closer_look_is_left_out(other: str, value: Any) -> None:
    raw = RawBSONDocument(bson.encode(SUMMARY | {other: value}))
    assert administration._summary(raw) is None


def test_a_text_that_is_none_is_left_out_too() -> None:
    encoded = bson.encode(SUMMARY)
    assert administration._summary(RawBSONDocument(encoded)) is not None
    broken = encoded.replace(b"alice", b"al\xffce")
    assert administration._summary(RawBSONDocument(broken)) is None


def test_data_is_sent_only_where_it_is_asked_for(settings: dict[str, Any]) -> None:
    sent: list[bytes] = []

    class Replies(monitoring.CommandListener):
        def started(self, event: monitoring.CommandStartedEvent) -> None: ...

        def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
            sent.append(repr(event.reply).encode())

        def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

    uri, database = settings["mongodb_host"], settings["mongodb_session_db"]
    with MongoClient[Any](uri, event_listeners=[Replies()]) as client:
        store = MongoStore({"mongodb_session_db": database}, client=client)
        session = store.create({"word": "xyzzy"})
        assert session.id is not None
        looking = Administration(store)
        assert [one.id for one in looking.sessions(Selection())] == [session.id]
        found = looking.session(session.id)
        assert found is not None
        assert looking.statistics().live == 1
        assert b"xyzzy" not in b"".join(sent)
        assert looking.whole(session.id) == (found, {"word": "xyzzy"})
        assert b"xyzzy" in sent[-1]
        assert list(looking.sessions(Selection())) == [found]


# Health.


def findings(store: MongoStore, **clock: Any) -> dict[str, Finding]:
    return {found.what: found for found in Health(store, **clock).findings()}


@pytest.mark.parametrize(("hours", "where"), [(1, "behind this one"), (-1, "ahead of this one")])
def test_a_clock_that_is_wrong_is_told(
    store: MongoStore, clock: Clock, hours: int, where: str
) -> None:
    now = datetime.now(timezone.utc)
    assert findings(store)["clock"].verdict is Verdict.GOOD
    found = findings(store, clock=lambda: now + timedelta(hours=hours))["clock"]
    assert found.verdict is Verdict.WRONG
    assert where in found.words


def test_sealed_sessions_that_this_python_could_not_open_are_told(
    store: MongoStore, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sealing = MongoStore(settings | {"session_sealed": True})
    sealing.create()
    found = [one for one in Health(store).findings() if one.what == "sealed sessions"]
    assert [(one.verdict, one.words) for one in found] == [(Verdict.GOOD, "1 of 1")]
    monkeypatch.setattr(health, "find_spec", lambda _: None)
    monkeypatch.setattr(health, "_SAMPLE", 1)
    found = [one for one in Health(store).findings() if one.what == "sealed sessions"]
    assert [one.verdict for one in found] == [Verdict.GOOD, Verdict.NOTE]
    assert found[0].words == "1 of 1, of the sessions that expire last"
    assert "pip install 'mongosession-wsgi[sealed]'" in found[1].words
    sealing.close()


@pytest.mark.server
def test_all_is_well_for_a_user_with_no_more_rights_than_it_must_have(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, MongoClient[Any](server.uri) as client:
        admin = client.admin
        admin.command("createRole", "least", privileges=[LEAST], roles=[])
        less = LEAST | {"actions": ["find"]}
        admin.command("createRole", "reader", privileges=[less], roles=[])
        for user, role in (("shop", "least"), ("guest", "reader")):
            admin.command("createUser", user, pwd="pw", roles=[role])
    with EmbeddedServer(tmp_path, options=["--auth"]) as server:
        login = {"mongodb_password": "pw", "mongodb_db_name": "admin"}
        login |= {"mongodb_host": server.uri, "mongodb_session_db": "shop"}
        store = MongoStore(login | {"mongodb_username": "shop"})
        store.ensure_indexes()
        found = findings(store)
        assert found["index on owner"].verdict is Verdict.NOTE
        assert "listIndexes" in found["index on expires_at"].words
        assert Verdict.WRONG not in {one.verdict for one in found.values()}
        store.close()
        store = MongoStore(login | {"mongodb_username": "guest"})
        found = findings(store)
        assert found["round trip"].verdict is Verdict.WRONG
        assert "grant it readWrite" in found["round trip"].words
        store.close()

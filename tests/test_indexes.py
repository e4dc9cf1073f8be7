"""The indexes: equivalents, conflicts, and visitors who notice nothing of their making."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo import MongoClient, _csot, monitoring
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from mongosession_wsgi import MongoStore, StoreError, indexes
from mongosession_wsgi.cli import judging
from mongosession_wsgi.cli.verdicts import Verdict
from mongosession_wsgi.collection import SessionCollection
from mongosession_wsgi.embedded import EmbeddedServer
from mongosession_wsgi.indexes import INDEXES, OURS, does_the_same
from mongosession_wsgi.testing.memory import MemoryStore

from .conftest import Clock
from .pretender import Answer, Pretender
from .proxy import Proxy
from .test_collection import (  # noqa: F401
    LONGEST,
    Made,
    a_failure,
    failure_of,
    made,
    no_threads,
    with_users,
)

ENDS = 91
"""The code of an error: the server is about to end."""
TTL = INDEXES["expires_at"]
LISTED = {"v": 2, "key": {"expires_at": 1}, "name": "some", **TTL}


def on(stored: Collection[Any]) -> dict[str, dict[str, Any]]:
    """Return the indexes that there are, by the first field that each is on."""
    return {next(iter(one["key"])): dict(one) for one in stored.list_indexes()}


def passed(collection: SessionCollection) -> threading.Thread | None:
    """Let a visitor pass, and wait for the thread that they have started."""
    collection.ensure_indexes_in_passing()
    collection._indexes.wait(LONGEST)
    return collection._indexes.thread


# Their options.


def test_both_are_made(made: Made, stored: Collection[Any]) -> None:  # noqa: F811
    made().ensure_indexes()
    found = on(stored)
    assert found.keys() == {"_id", "expires_at", "owner"}
    assert found["expires_at"]["expireAfterSeconds"] == 0
    assert found["expires_at"]["partialFilterExpression"] == OURS
    made().ensure_indexes()
    assert on(stored) == found


def test_the_ttl_index_is_of_all_that_is_ours_and_of_nothing_else(
    store: MongoStore, stored: Collection[Any], clock: Clock
) -> None:
    session = store.create({"a": 1})
    session.login("alice")
    store.flush(session)
    store.create()
    store.revoke("x" * 43)
    ours = {one["_id"] for one in stored.find()}
    assert len(ours) == 3, "two sessions and a mark"
    past = clock.now
    foreign: list[dict[str, Any]] = [
        {"_id": "yoga", "expires_at": past, "paid": 99},
        {"_id": "boxing", "expires_at": past, "owner": "anna", "data": {"room": 2}},
        {"_id": "dance", "v": "draft", "expires_at": past},
        {"_id": "swimming", "v": 3, "expires_at": past},
        {"_id": "chess", "v": 0, "expires_at": past},
        {"_id": "go", "v": None, "expires_at": past},
        {"_id": 5, "v": 1, "expires_at": past},
        {"_id": "{}", "v": 1, "expires_at": past},
        {"v": 1, "expires_at": past},
    ]
    stored.insert_many(foreign)
    assert {one["_id"] for one in stored.find(OURS)} == ours
    for version in (1, 2):
        stored.insert_one({"_id": f"{version}" * 43, "v": version, "expires_at": past})
    assert stored.count_documents(OURS) == len(ours) + 2, "marks of both versions"


# Equivalents and conflicts.


@pytest.mark.parametrize(
    ("index", "field", "counts"),
    [
        (LISTED, "expires_at", True),
        (LISTED | {"key": {"expires_at": 1.0}, "unique": False, "ns": "a.b"}, "expires_at", True),
        (LISTED, "owner", False),
        (LISTED | {"expireAfterSeconds": 1}, "expires_at", False),
        (LISTED | {"partialFilterExpression": {"v": 1}}, "expires_at", False),
        (LISTED | {"partialFilterExpression": None}, "expires_at", True),
        (LISTED | {"key": {"expires_at": -1}}, "expires_at", False),
        (LISTED | {"key": {"expires_at": 1, "v": 1}}, "expires_at", False),
        ({"key": {"expires_at": 1}, "name": "x"}, "expires_at", False),
        ({"key": {"owner": 1}, "name": "x"}, "owner", True),
        ({"key": {"owner": 1}, "name": "x", "unique": True}, "owner", False),
        ({"key": {"owner": 1}, "name": "x", "sparse": True}, "owner", True),
        ({"key": {"owner": 1}, "name": "x", "sparse": True, "unique": True}, "owner", False),
        ({"key": {"owner": 1}, "name": "x", "hidden": True}, "owner", False),
        (LISTED | {"hidden": True}, "expires_at", True),
        (LISTED | {"sparse": True}, "expires_at", False),
        ({"key": {"owner": "hashed"}, "name": "x"}, "owner", False),
    ],
    ids=str,
)
def test_an_index_counts_by_what_it_does(index: dict[str, Any], field: str, counts: bool) -> None:
    assert does_the_same(index, field) == counts


@pytest.mark.parametrize("field", INDEXES)
def test_an_index_of_another_name_counts(
    made: Made,  # noqa: F811
    stored: Collection[Any],
    field: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stored.create_index(field, name="by_hand", **INDEXES[field])
    made().ensure_indexes()
    found = on(stored)
    assert found[field]["name"] == "by_hand"
    assert found.keys() == {"_id", *INDEXES}
    assert len(list(stored.list_indexes())) == 3
    assert caplog.text == ""


def test_what_check_is_content_with_is_not_in_the_way(
    made: Made,  # noqa: F811
    stored: Collection[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    stored.create_index("owner", sparse=True)
    assert [verdict for verdict, _ in judging.on_owner([*stored.list_indexes()], str)] == [
        Verdict.GOOD
    ]
    made().ensure_indexes()
    assert on(stored).keys() == {"_id", *INDEXES}
    assert passed(made()) is not None
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["expires_at_1", "another"])
def test_the_ttl_index_of_version_1_counts_and_is_told_of_and_stays(
    made: Made,  # noqa: F811
    stored: Collection[Any],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stored.create_index("expires_at", name=name, expireAfterSeconds=0)
    before = on(stored)["expires_at"]
    collection = made()
    for _ in range(2):
        passed(collection)
    assert on(stored)["expires_at"] == before
    assert on(stored).keys() == {"_id", *INDEXES}
    (line,) = [one.getMessage() for one in caplog.records]
    assert name in line
    assert "mongosession init" in line


def test_an_index_in_the_way_is_named_and_the_other_is_made(
    made: Made,  # noqa: F811
    stored: Collection[Any],
) -> None:
    stored.create_index("expires_at", expireAfterSeconds=9999)
    with pytest.raises(StoreError) as caught:
        made().ensure_indexes()
    assert "'expires_at_1'" in str(caught.value)
    assert "mongosession init" in str(caught.value)
    assert isinstance(caught.value.__cause__, OperationFailure)
    assert "owner" in on(stored)
    stored.drop_indexes()
    stored.create_index("owner", unique=True)
    with pytest.raises(StoreError, match="'owner_1'"):
        made().ensure_indexes()
    assert "expires_at" in on(stored)


@pytest.mark.parametrize("others", [False, True])
def test_a_server_that_makes_no_partial_index(
    made: Made,  # noqa: F811
    proxy: Proxy,
    stored: Collection[Any],
    caplog: pytest.LogCaptureFixture,
    others: bool,
) -> None:
    def without(command: dict[str, Any], ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        asked = command.get("indexes", ())
        return a_failure(67) if any("partialFilterExpression" in one for one in asked) else ask()

    stored.insert_one({"_id": "yoga" if others else "i" * 43, "v": 0 if others else 1})
    collection = made(proxy.uri)
    proxy.rewrite(without)
    if others:
        with pytest.raises(StoreError, match=r"such as 'yoga'.*mongodb_session_coll.*purge"):
            collection.ensure_indexes()
        assert on(stored).keys() == {"_id", "owner"}
    else:
        for _ in range(2):
            collection.ensure_indexes()
        assert on(stored)["expires_at"]["expireAfterSeconds"] == 0
        assert on(stored).keys() == {"_id", *INDEXES}
        assert caplog.text == ""


def test_a_user_who_may_make_indexes_and_not_list_them(
    made: Made,  # noqa: F811
    with_users: EmbeddedServer,  # noqa: F811
) -> None:
    for _ in range(2):
        made(with_users.uri, username="blind", password="hunter2").ensure_indexes()


def test_an_index_may_take_longer_than_a_visitor_waits(
    mongodb_uri: str, database: str, stored: Collection[Any]
) -> None:
    limits: dict[str, float] = {}

    class Listener(monitoring.CommandListener):
        def started(self, event: monitoring.CommandStartedEvent) -> None:
            limits[event.command_name] = event.command.get("maxTimeMS", 0)

        def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

        def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

    settings = {"mongodb_session_db": database}
    with MongoClient[Any](mongodb_uri, timeoutMS=5000, event_listeners=[Listener()]) as client:
        client.admin.command("ping")
        MongoStore(settings, client=client).ensure_indexes()
    assert limits["listIndexes"] <= 5000
    assert limits["createIndexes"] == 0
    assert on(stored).keys() == {"_id", *INDEXES}


@pytest.fixture
def after_the_list(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Have a fault happen between the list of the indexes and the making of the first."""

    def after_the_list(happen: Callable[[], None]) -> None:
        def listed(_: Any) -> list[Any]:
            happen()
            return []

        monkeypatch.setattr(indexes, "_listed", listed)

    return after_the_list


def test_a_server_that_goes_down_is_not_waited_for_as_long_as_an_index(
    made: Made,  # noqa: F811
    proxy: Proxy,
    after_the_list: Callable[[Callable[[], None]], None],
) -> None:
    collection = made(proxy.uri, server_selection_timeout_ms=500)
    after_the_list(proxy.refuse)
    failure_of(collection.ensure_indexes)


def test_a_timeout_of_the_application_counts_for_an_index_too(
    made: Made,  # noqa: F811
    proxy: Proxy,
    after_the_list: Callable[[Callable[[], None]], None],
) -> None:
    collection = made(proxy.uri)
    after_the_list(proxy.silent)
    with pymongo.timeout(0.5):
        assert "in time" in str(failure_of(collection.ensure_indexes, LONGEST / 3))


@pytest.mark.parametrize("command", ["listIndexes", "createIndexes"])
def test_a_server_that_ends_for_a_moment_is_asked_once_more(
    made: Made,  # noqa: F811
    pretender: Pretender,
    stored: Collection[Any],
    command: str,
) -> None:
    collection = made(pretender.uri, retry_reads=False)
    codes = iter([ENDS])
    pretender.refuses = lambda name, asked: next(codes, None) if name == command else None
    collection.ensure_indexes()
    assert on(stored).keys() == {"_id", *INDEXES}
    tries = []

    def refuse(name: str, _: Answer) -> int | None:
        if name != command:
            return None
        tries.append(name)
        return ENDS

    stored.drop_indexes()
    pretender.refuses = refuse
    failure_of(collection.ensure_indexes)
    assert len(tries) == (2 if command == "listIndexes" else 2 * len(INDEXES))


# When they are made.


def test_the_first_insert_of_a_process_has_them_made_once(
    settings: dict[str, Any], stored: Collection[Any]
) -> None:
    store = MongoStore(settings)
    store.retrieve("x" * 43)
    assert store._sessions._indexes.thread is None
    store.create()
    store._sessions._indexes.wait(LONGEST)
    assert on(stored).keys() == {"_id", *INDEXES}
    stored.drop_indexes()
    store.create()
    store._sessions._indexes.wait(LONGEST)
    assert on(stored).keys() == {"_id"}
    store.close()


def test_indexes_that_somebody_made_are_not_looked_for_again(made: Made) -> None:  # noqa: F811
    collection = made()
    collection.ensure_indexes()
    assert passed(collection) is None


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let an index take until this is set."""
    done, ensure = threading.Event(), indexes.ensure

    def slowly(documents: Any) -> None:
        done.wait(LONGEST)
        ensure(documents)

    monkeypatch.setattr(indexes, "ensure", slowly)
    yield done
    done.set()


def test_no_visitor_waits_for_them(
    settings: dict[str, Any], stored: Collection[Any], building: threading.Event
) -> None:
    store = MongoStore(settings)
    for _ in range(3):
        assert store.retrieve(store.create({"a": 1}).token or "") == {"a": 1}
    assert on(stored).keys() == {"_id"}
    building.set()
    store._sessions._indexes.wait(LONGEST)
    assert on(stored).keys() == {"_id", *INDEXES}
    store.close()


@pytest.mark.parametrize(("code", "times"), [(91, 2), (13, 1)])
def test_they_are_tried_again_only_if_the_connection_broke(
    made: Made,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    times: int,
) -> None:
    tried: list[object] = []

    def refuse(documents: object) -> None:
        tried.append(documents)
        raise StoreError("refused") from OperationFailure("refused", code)

    monkeypatch.setattr(indexes, "ensure", refuse)
    with pytest.raises(StoreError):
        made().ensure_indexes()
    assert len(tried) == times


def test_the_time_of_a_request_does_not_end_their_making(
    made: Made,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From Python 3.14 on, a thread may inherit the context of the call that starts the thread."""
    limits: list[float | None] = []

    class Inheriting(threading.Thread):
        def start(self) -> None:
            self.run = partial(copy_context().run, self.run)  # type: ignore[method-assign]
            super().start()

    monkeypatch.setattr(indexes, "Thread", Inheriting)
    monkeypatch.setattr(indexes, "ensure", lambda _: limits.append(_csot.get_timeout()))
    with pymongo.timeout(LONGEST):
        passed(made())
    assert limits == [None]


def test_one_thread_makes_them(made: Made, building: threading.Event) -> None:  # noqa: F811
    collection = made()
    collection.ensure_indexes_in_passing()
    first = collection._indexes.thread
    collection._indexes._of_this_process().next_at = 0
    collection.ensure_indexes_in_passing()
    assert collection._indexes.thread is first
    building.set()


PASSING = [16500, 50, 11600, 91, 189, 10107, 112, 64, 18]
FINAL = [13, 8000, 67, 4321]


@pytest.mark.parametrize("command", ["createIndexes", "listIndexes"])
@pytest.mark.parametrize("code", PASSING)
def test_what_fails_for_a_passing_reason_is_tried_again_later(
    made: Made,  # noqa: F811
    proxy: Proxy,
    stored: Collection[Any],
    caplog: pytest.LogCaptureFixture,
    code: int,
    command: str,
) -> None:
    collection = made(proxy.uri, retry_reads="false")
    proxy.rewrite(lambda asked, ask: a_failure(code) if command in asked else ask())
    first = passed(collection)
    proxy.forward()
    assert passed(collection) is first, "not at once"
    collection._indexes._of_this_process().next_at = 0
    assert passed(collection) is not first
    assert on(stored).keys() == {"_id", *INDEXES}
    assert caplog.text == ""


@pytest.mark.parametrize("code", FINAL)
def test_a_refusal_is_one_warning(
    made: Made,  # noqa: F811
    proxy: Proxy,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    collection = made(proxy.uri)
    proxy.rewrite(lambda asked, ask: a_failure(code) if "createIndexes" in asked else ask())
    for _ in range(3):
        passed(collection)
        collection._indexes._of_this_process().next_at = 0
    (line,) = [one.getMessage() for one in caplog.records]
    assert "indexes of the sessions could not be made" in line
    assert "sessions work" in line


def test_of_two_failures_one_that_may_pass_is_tried_again(
    made: Made,  # noqa: F811
    proxy: Proxy,
    stored: Collection[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def of_owner(command: dict[str, Any], ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        asked = command.get("indexes", ())
        return a_failure(16500) if any("owner" in one["key"] for one in asked) else ask()

    stored.create_index("expires_at", expireAfterSeconds=9999)
    collection = made(proxy.uri)
    proxy.rewrite(of_owner)
    passed(collection)
    assert caplog.text == ""
    proxy.forward()
    collection._indexes._of_this_process().next_at = 0
    passed(collection)
    assert "owner" in on(stored)
    assert len(caplog.records) == 1
    assert "'expires_at_1'" in caplog.text


def test_the_pause_grows_up_to_minutes() -> None:
    tries, pauses = indexes._Tries(lambda: None), []
    for _ in range(12):
        before = tries.next_at
        tries.put_off()
        pauses.append(tries._pause)
        assert tries.next_at > before
    assert pauses[:3] == [2, 4, 8]
    assert pauses[-1] == 300


def test_without_a_thread_they_are_made_later(
    made: Made,  # noqa: F811
    stored: Collection[Any],
) -> None:
    collection = made()
    collection.documents.insert_one({"_id": "i" * 43})
    with no_threads(of="mongosession"):
        assert passed(collection) is None
    collection._indexes._of_this_process().next_at = 0
    passed(collection)
    assert on(stored).keys() == {"_id", *INDEXES}


def test_a_database_that_is_down_is_no_matter_of_the_thread(
    made: Made,  # noqa: F811
    proxy: Proxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    collection = made(proxy.uri, timeout_ms=500)
    collection.documents.insert_one({"_id": "i" * 43})
    proxy.refuse()
    passed(collection)
    assert caplog.text == ""


def test_a_store_that_is_closed_meanwhile(
    settings: dict[str, Any], building: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    store = MongoStore(settings)
    store.create()
    thread = store._sessions._indexes.thread
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mongosession_wsgi.collection._MOMENT", 0.01)
        store.close()
    building.set()
    assert thread is not None
    thread.join(LONGEST)
    assert not thread.is_alive()
    assert caplog.text == ""


def test_a_store_in_memory_needs_none() -> None:
    store = MemoryStore()
    store.create({"a": 1})
    store.ensure_indexes()
    assert store._sessions._indexes.thread is None


LEAVING = """
import os, sys, threading
from mongosession_wsgi import MongoStore

store = MongoStore({"mongodb_host": sys.argv[1], "mongodb_session_db": sys.argv[2]})
store.create()
if os.fork() == 0:
    store.create()
    assert any(one.name == "mongosession indexes" for one in [store._sessions._indexes.thread])
    store._sessions._indexes.wait(30)
    os._exit(0)
assert os.wait()[1] == 0
print(len(list(store.sessions())))
"""


@pytest.mark.parametrize("is_down", [False, True])
def test_a_process_ends_as_ever_while_they_are_made(
    proxy: Proxy,
    database: str,
    is_down: bool,
) -> None:
    if is_down:
        proxy.rewrite(lambda asked, ask: {} if "listIndexes" in asked else ask())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LEAVING, proxy.uri, database],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("2\n", "")

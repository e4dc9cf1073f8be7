"""The store's verbs, by themselves."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import bson
import pytest
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.collection import Collection

from mongosession_wsgi import MongoStore, Session, SessionInfo, SessionWarning, StoreError
from mongosession_wsgi.document import Mark, Record, decode, id_of
from mongosession_wsgi.session import visit_of
from mongosession_wsgi.testing import MemoryStore, memory

from .conftest import Clock
from .pretender import Pretender
from .proxy import before, command_of


def test_create_retrieve_flush_destroy(store: MongoStore, stored: Collection[Any]) -> None:
    token = store.create({"a": 1}).token
    assert token is not None
    session = store.retrieve(token)
    assert session is not None
    assert session.token == token
    assert session.id == id_of(token) == stored.find_one()["_id"]
    assert not session.new
    session["a"] = 2
    store.flush(session)
    assert store.retrieve(token) == {"a": 2}
    assert store.destroy(session) is True
    assert store.retrieve(token) is None


def test_an_empty_session_can_be_created(store: MongoStore) -> None:
    session = store.create()
    assert session.id is not None
    assert session == {}
    assert store.retrieve(session.token or "") is not None


def test_neither_an_id_nor_garbage_opens_a_session(store: MongoStore) -> None:
    assert store.retrieve(store.create({"a": 1}).id or "") is None
    assert store.retrieve("") is None
    assert store.retrieve("é" * 43) is None


def test_moments_are_aware_utc(store: MongoStore, clock: Clock) -> None:
    session = store.retrieve(store.create({"a": 1}).token or "")
    assert session is not None
    assert session.created_at == clock.now
    assert session.expires_at == clock.now + timedelta(days=14)
    assert session.created_at.tzinfo is timezone.utc


def test_sessions_are_listed_by_when_they_were_seen(store: MongoStore, clock: Clock) -> None:
    ids: list[str | None] = []
    for owner in ("alice", "bob", "alice", None):
        session = store.open(None)
        session["number"] = len(ids)
        if owner:
            session.login(owner)
        store.flush(session)
        ids.append(session.id)
        clock.advance(seconds=1)
    assert [info.id for info in store.sessions()] == ids[::-1]
    assert [info.id for info in store.sessions("alice")] == [ids[2], ids[0]]
    info = next(store.sessions("bob"))
    assert isinstance(info, SessionInfo)
    assert (info.owner, info.data) == ("bob", {"number": 1})
    assert info.created_at == info.seen_at == clock.now - timedelta(seconds=3)
    assert info.expires_at == info.created_at + timedelta(days=14)
    assert info.size > 100
    assert "number" not in repr(info)


def test_only_live_sessions_are_listed(store: MongoStore, clock: Clock) -> None:
    old = store.create({"old": True})
    clock.advance(days=13)
    new = store.create({"new": True})
    marked = store.create({"marked": True})
    marked.regenerate()
    store.flush(marked)
    assert {info.id for info in store.sessions()} == {old.id, new.id, marked.id}
    clock.advance(days=1)
    assert {info.id for info in store.sessions()} == {new.id, marked.id}


def test_revoking_ends_one_or_all_of_an_owner(store: MongoStore) -> None:
    sessions = []
    for owner in ("alice", "alice", "alice", "bob"):
        session = store.open(None)
        session.login(owner)
        store.flush(session)
        sessions.append(session)
    assert store.revoke(sessions[0].id) == 1
    assert store.revoke(sessions[0].id) == 0
    assert store.revoke("nobody") == 0
    assert store.revoke_all("alice", keep=sessions[1].id) == 1
    assert store.revoke_all("alice") == 1
    assert [info.owner for info in store.sessions()] == ["bob"]


def test_a_text_that_nobody_can_store_finds_nothing(store: MongoStore) -> None:
    session = store.create({"a": 1})
    lone = "\ud800"
    assert store.retrieve(lone * 43) is None
    assert list(store.sessions(lone)) == []
    assert (store.revoke(lone), store.revoke_all(lone, keep=lone)) == (0, 0)
    assert [info.id for info in store.sessions()] == [session.id]


def test_purge_deletes_what_has_expired_and_nothing_else(
    store: MongoStore, stored: Collection[Any], clock: Clock
) -> None:
    store.create({"old": True})
    stored.insert_one({"_id": "foreign", "expires_at": clock.now + timedelta(days=1)})
    clock.advance(days=14)
    store.create({"new": True})
    assert store.purge() == 1
    assert store.purge() == 0
    assert stored.count_documents({}) == 2


# Documents of another form.


def document(token: str, now: datetime, **other: Any) -> dict[str, Any]:
    form = {
        "_id": id_of(token),
        "v": 1,
        "data": {"a": 1},
        "owner": None,
        "created_at": now,
        "seen_at": now,
        "expires_at": now + timedelta(days=1),
    } | other
    return {key: value for key, value in form.items() if value is not ...}


@pytest.mark.parametrize(
    "other",
    [
        {"v": 2}, {"v": ...}, {"v": "1"},
        {"data": [1]}, {"data": "x"}, {"data": None},
        {"created_at": "yesterday"}, {"created_at": ...}, {"expires_at": 4102444800},
        {"expires_at": ...}, {"expires_at": "never"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("use", ["read", "write", "login", "destroy", "revoke"])
def test_a_document_of_another_form_is_no_session_and_left_alone(
    store: MongoStore,
    stored: Collection[Any],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    other: dict[str, Any],
    use: str,
) -> None:
    token = "t" * 43
    stored.insert_one(document(token, clock.now, **other))
    before = stored.find_one({"_id": id_of(token)})
    session = store.open(token)
    if use == "read":
        assert session == {}
        assert session.new
        assert f"{id_of(token)} is not of our form" in caplog.text
    elif use == "write":
        session["b"] = 2
    elif use == "login":
        session.login("alice")
    elif use == "destroy":
        session.destroy()
    else:
        assert store.revoke(id_of(token)) == 0
    store.flush(session)
    assert stored.find_one({"_id": id_of(token)}) == before
    assert token not in caplog.text


@pytest.mark.parametrize("other", [{"owner": 5}, {"owner": ...}, {"seen_at": "x"}], ids=str)
def test_a_document_with_a_wrong_owner_or_moment_is_no_session(
    store: MongoStore, stored: Collection[Any], clock: Clock, other: dict[str, Any]
) -> None:
    token = "t" * 43
    stored.insert_one(document(token, clock.now, **other))
    assert store.retrieve(token) is None
    assert list(store.sessions()) == []


@pytest.mark.parametrize("moment", ["created_at", "seen_at", "expires_at"])
def test_a_moment_at_the_end_of_time_is_one(
    settings: dict[str, Any], store: MongoStore, stored: Collection[Any], clock: Clock, moment: str
) -> None:
    never = datetime(9999, 12, 31, tzinfo=timezone.utc)
    token = "t" * 43
    stored.insert_one(document(token, clock.now, owner="alice", **{moment: never}))
    assert store.retrieve(token) == {"a": 1}
    assert [one.owner for one in store.sessions()] == ["alice"]
    with closing(MongoStore(settings | {"session_limit": 2}, clock=clock)) as limited:
        session = limited.open(token)
        session.login("alice")
        limited.flush(session)
        assert session.owner == "alice"


@pytest.mark.parametrize("other", [{"v": True}, {"v": "1"}, {"v": 3}], ids=str)
def test_another_version_is_no_session(clock: Clock, other: dict[str, Any]) -> None:
    assert decode(bson.encode(document("t" * 43, clock.now, **other))) is None


def test_a_successor_that_is_no_id_makes_no_mark(clock: Clock) -> None:
    mark = {"_id": "a", "v": 1, "expires_at": clock.now}
    assert isinstance(decode(bson.encode(mark | {"successor": "b"})), Mark)
    assert decode(bson.encode(mark | {"successor": {"$gt": ""}})) is None


def test_a_text_that_is_no_utf_8_keeps_no_other_session_of_the_owner(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = memory.Collection.find

    def spoil(self: Any, *args: Any, **options: Any) -> list[Any]:
        found: list[Any] = find(self, *args, **options)
        return [RawBSONDocument(one.raw.replace(b"QQQQ", b"\xff\xfe\xff\xfe")) for one in found]

    store = MemoryStore({"session_limit": 2}, clock=clock)
    for label in ("QQQQ", "tablet"):
        session = store.open(None)
        session.login("alice", label=label)
        store.flush(session)
    monkeypatch.setattr(memory.Collection, "find", spoil)
    session = store.open(None)
    session.login("alice")
    store.flush(session)
    assert store.revoke_all("alice") == 2


def test_a_moment_beyond_python_can_be_read(clock: Clock) -> None:
    raw = bson.encode(document("t" * 43, clock.now, data={"when": DatetimeMS(2**60)}))
    record = decode(raw)
    assert isinstance(record, Record)
    assert record.data == {"when": DatetimeMS(2**60)}


def test_bytes_that_are_no_bson_are_no_session() -> None:
    assert decode(b"\x05\0\0\0") is None


# The client.


def test_a_client_that_is_passed_in_is_used_as_it_is(
    settings: dict[str, Any], mongodb_uri: str, database: str
) -> None:
    mine: MongoClient[Any]
    with MongoClient(mongodb_uri, appname="mine") as mine:
        store = MongoStore({"mongodb_session_db": database}, client=mine)
        session = store.create({"a": 1})
        store.close()
        assert mine.admin.command("ping")["ok"] == 1
        assert store.retrieve(session.token or "") == {"a": 1}


def test_a_closed_store_can_be_used_again(store: MongoStore) -> None:
    token = store.create({"a": 1}).token or ""
    store.close()
    assert store.retrieve(token) == {"a": 1}


FORKING = """
import os, sys
from mongosession_wsgi import MongoStore
store = MongoStore({"mongodb_host": sys.argv[1], "mongodb_session_db": sys.argv[2]})
token = store.create({"a": 1}).token
children = []
for number in range(4):
    pid = os.fork()
    if pid == 0:
        session = store.open(token)
        session[str(number)] = number
        store.flush(session)
        assert store.retrieve(token)["a"] == 1
        store.close()
        os._exit(0)
    children.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
assert store.retrieve(token) == {"a": 1, "0": 0, "1": 1, "2": 2, "3": 3}
"""


def test_a_store_is_used_on_both_sides_of_a_fork(mongodb_uri: str, database: str) -> None:
    root = Path(__file__).parent.parent
    # The driver's threads are the point of the test. Python 3.12 and newer warn of them.
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *warnings, "-c", FORKING, mongodb_uri, database],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# Errors.


def test_a_bad_uri_fails_at_first_use_without_its_password() -> None:
    store = MongoStore(
        {"mongodb_session_db": "x", "mongodb_host": "mongodb://me:p@ss/hunter2@host/db"}
    )
    with pytest.raises(StoreError, match="percent-encoded") as caught:
        store.create()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_database_that_is_down_is_a_store_error(settings: dict[str, Any]) -> None:
    down = {"mongodb_host": "127.0.0.1", "mongodb_port": "9", "mongodb_timeout_ms": "200"}
    store = MongoStore({"mongodb_session_db": "x"} | down)
    with pytest.raises(StoreError, match="did not answer in time"):
        store.create()
    with pytest.warns(SessionWarning, match="could not be destroyed"):
        assert store.destroy(store.open("t" * 43)) is False
    store.close()


OP_COMPRESSED = 2012


class Spoiling(Pretender):
    """Damages so many answers to finds and writes."""

    spoilt: Callable[[bytes], bytes]
    times = 0

    def fault_for(self, message: bytes) -> Any:
        if command_of(message) not in {"find", "update", "findAndModify", "delete"}:
            return super().fault_for(message)
        if self.times < 1:
            return None
        self.times -= 1
        return lambda link, message: link.answer(self.spoilt(link.ask(message)))


@pytest.fixture
def spoiling(client: MongoClient[Any]) -> Iterator[Spoiling]:
    with before(client, Spoiling) as spoiling:
        yield spoiling


def visit(store: MongoStore, token: str | None, use: Callable[[Session], object]) -> None:
    session = store.open(token)
    use(session)
    store.flush(session)


def cut(answer: bytes) -> bytes:
    """Leave the header and two bytes."""
    return struct.pack("<i", 18) + answer[4:18]


def of_another_type(answer: bytes) -> bytes:
    """Give the last element, and so no document, a type that is none."""
    at = answer.rindex(b"\1ok\0")
    return answer[:at] + b"\x7f" + answer[at + 1 :]


def compressed(answer: bytes) -> bytes:
    """Say that what follows is compressed by zlib."""
    code, size = struct.pack("<i", OP_COMPRESSED), struct.pack("<i", len(answer) - 16)
    body = answer[4:12] + code + answer[12:16] + size + b"\2no zlib"
    return struct.pack("<i", 4 + len(body)) + body


@pytest.mark.parametrize("spoilt", [cut, of_another_type, compressed])
@pytest.mark.parametrize(
    "use",
    [
        lambda session: session.get("a"),
        lambda session: session.update(b=2),
        lambda session: session.login("alice"),
        lambda session: session.destroy(),
    ],
    ids=["read", "write", "login", "destroy"],
)
def test_a_damaged_answer_is_a_store_error(
    settings: dict[str, Any],
    store: MongoStore,
    spoiling: Spoiling,
    spoilt: Callable[[bytes], bytes],
    use: Callable[[Session], object],
) -> None:
    session = store.create({"a": 1})
    with closing(MongoStore(settings | {"mongodb_host": spoiling.uri})) as there:
        there.retrieve("x")
        spoiling.spoilt, spoiling.times = spoilt, 9
        with pytest.raises(StoreError, match="damaged"):
            visit(there, session.token, use)
        spoiling.times = 0


def test_an_answer_that_is_damaged_once_is_asked_for_again(
    settings: dict[str, Any], store: MongoStore, spoiling: Spoiling
) -> None:
    session = store.create({"a": 1})
    with closing(MongoStore(settings | {"mongodb_host": spoiling.uri})) as there:
        there.retrieve("x")
        spoiling.spoilt, spoiling.times = of_another_type, 1
        assert there.open(session.token) == {"a": 1}


def test_a_document_that_cannot_be_decoded_is_no_session(
    settings: dict[str, Any],
    store: MongoStore,
    spoiling: Spoiling,
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = store.open(None)
    session.login("alice", label="QQQQ")
    store.flush(session)
    with closing(MongoStore(settings | {"mongodb_host": spoiling.uri})) as there:
        there.retrieve("x")
        spoiling.spoilt = lambda answer: answer.replace(b"QQQQ", b"\xff\xfe\xff\xfe")
        spoiling.times = 9
        assert there.open(session.token).new
    assert f"{session.id} is not of our form" in caplog.text
    assert store.open(session.token).owner == "alice"


def test_an_answer_without_documents_is_no_missing_key(
    pretender: Pretender, there: MongoStore, store: MongoStore
) -> None:
    """`session.get` takes a `KeyError` for one."""
    session = store.create({"a": 1})
    pretender.changes["find"] = lambda answer: {"ok": 1.0}
    with pytest.raises(StoreError):
        there.open(session.token).get("a")


def test_an_expiry_that_is_said_holds_also_an_earlier_one(store: MongoStore, clock: Clock) -> None:
    token = store.create({"a": 1}).token or ""
    soon = clock.now + timedelta(minutes=5)
    for change in (False, True):
        session = store.retrieve(token)
        assert session is not None
        visit_of(session).live_until(soon)
        if change:
            session["a"] = 2
        store.flush(session)
        assert session.expires_at == soon
        assert (store.retrieve(token) or session).expires_at == soon
    session.regenerate()
    visit_of(session).live_until(soon)
    store.flush(session)
    clock.advance(minutes=6)
    assert store.retrieve(session.token or "") is None


def test_an_expiry_that_is_said_is_bound_by_the_lifetime(store: MongoStore, clock: Clock) -> None:
    session = store.open(None)
    session["a"] = 1
    visit_of(session).live_until(clock.now + timedelta(days=1000))
    store.flush(session)
    assert session.expires_at == clock.now + timedelta(days=30)
    session["a"] = 2
    store.flush(session)
    assert session.expires_at == clock.now + timedelta(days=30)

"""The duties of every store: the data of a session, and the times."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import bson
import pytest

from ..errors import SessionDataError
from ..store import MongoStore
from .requests import NOW, Clock, at, change, reopened, seen

VALUES: list[Any] = [None, True, 0, 2**63 - 1, 0.5, "é", b"\0", [1, [2]], {"a": {"$b.c": 1}}]
VALUES += [NOW, UUID(int=1), bson.ObjectId("0" * 24), bson.Decimal128("1.10")]
KEYS = ["", "a.b", "$x", "_id", "a\0b", "%2E", "é", "data", "owner"]
REFUSED: list[Any] = [{1}, object, 2**63, "\ud800", {1: 2}, [{"a": {"b": 1j}}]]


class Contents:
    """Requests in sequence."""

    @pytest.mark.parametrize("value", VALUES, ids=repr)
    def test_a_value_comes_back(self, store: MongoStore, value: Any) -> None:
        found = reopened(store, store.create({"a": value}))["a"]
        assert isinstance(found, type(value))
        assert found == value

    @pytest.mark.parametrize("key", KEYS, ids=ascii)
    def test_a_key_comes_back_and_can_be_removed(self, store: MongoStore, key: str) -> None:
        token = store.create({key: 1, "other": 2}).token
        assert at(store, token) == {key: 1, "other": 2}
        change(store, token, lambda session: session.__setitem__(key, 3))
        assert at(store, token) == {key: 3, "other": 2}
        change(store, token, lambda session: session.pop(key))
        assert at(store, token) == {"other": 2}

    @pytest.mark.parametrize("value", REFUSED, ids=ascii)
    def test_what_cannot_be_stored_changes_nothing(self, store: MongoStore, value: Any) -> None:
        token = store.create({"a": [1]}).token
        with pytest.raises(SessionDataError):
            change(store, token, lambda session: session["a"].append(value))
        assert at(store, token) == {"a": [1]}

    def test_a_token_is_never_adopted(self, store: MongoStore) -> None:
        session = store.open("t" * 43)
        session["a"] = 1
        store.flush(session)
        assert session.token not in (None, "t" * 43)
        assert store.retrieve("t" * 43) is None
        assert store.retrieve(session.id or "") is None

    def test_a_change_without_a_look_keeps_the_rest(self, store: MongoStore) -> None:
        token = store.create({"a": 1, "b": 2}).token
        session = store.open(token)
        session["b"] = 3
        store.flush(session)
        assert at(store, token) == {"a": 1, "b": 3}

    def test_a_nested_change_is_written(self, store: MongoStore) -> None:
        token = store.create({"a": {"b": [1]}}).token
        change(store, token, lambda session: session["a"]["b"].append(2))
        assert at(store, token) == {"a": {"b": [1, 2]}}

    def test_clearing_leaves_an_empty_session(self, store: MongoStore) -> None:
        token = store.create({"a": 1}).token
        change(store, token, lambda session: session.clear())
        assert at(store, token) == {}

    def test_an_idle_session_dies(self, store: MongoStore, clock: Clock) -> None:
        token = store.create({"a": 1}).token
        slow = seen(store, token)
        clock.advance(days=14)
        assert store.retrieve(token or "") is None
        slow["a"] = 2
        store.flush(slow)
        assert list(store.sessions()) == []

    def test_use_renews_but_not_beyond_the_lifetime(self, store: MongoStore, clock: Clock) -> None:
        session = store.create({"a": 1})
        for _ in range(4):
            clock.advance(days=7)
            store.flush(seen(store, session.token))
        assert reopened(store, session).expires_at == NOW + timedelta(days=30)

    def test_an_expiry_never_moves_back(self, store: MongoStore, clock: Clock) -> None:
        session = store.create({"a": 1})
        clock.advance(days=-1)
        change(store, session.token, lambda session: session.__setitem__("a", 2))
        assert reopened(store, session).expires_at == NOW + timedelta(days=14)

    def test_a_login_keeps_what_is_nobodys(self, store: MongoStore, clock: Clock) -> None:
        session = store.create({"cart": 1})
        clock.advance(days=1)
        change(store, session.token, lambda session: session.login("alice"))
        (info,) = store.sessions("alice")
        assert (info.data, info.created_at) == ({"cart": 1}, clock.now)

    def test_a_login_drops_what_is_somebody_elses(self, store: MongoStore) -> None:
        session = store.create({"cart": 1})
        session.login("alice")
        store.flush(session)
        change(store, session.token, lambda session: session.login("bob"))
        assert [(info.owner, info.data) for info in store.sessions()] == [("bob", {})]

    def test_the_live_sessions_are_listed(self, store: MongoStore, clock: Clock) -> None:
        ids = []
        for number in range(3):
            clock.advance(hours=1)
            ids.append(store.create({"n": number}).id)
        assert [info.id for info in store.sessions()] == ids[::-1]
        clock.advance(days=14)
        assert list(store.sessions()) == []
        assert store.purge() == 3
        assert store.purge() == 0

    def test_an_owners_sessions_are_revoked(self, store: MongoStore) -> None:
        for owner in ("alice", "alice", "alice", "bob"):
            session = store.open(None)
            session.login(owner)
            store.flush(session)
        kept, other, _ = (info.id for info in store.sessions("alice"))
        assert [store.revoke(other), store.revoke(other)] == [1, 0]
        assert store.revoke_all("alice", keep=kept) == 1
        assert {info.owner for info in store.sessions()} == {"alice", "bob"}

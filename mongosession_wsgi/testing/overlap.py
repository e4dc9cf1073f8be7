"""The duties of every store: requests that overlap."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from ..store import MongoStore
from .requests import Clock, at, seen


class Overlap:
    """Requests of a session under way at the same time."""

    def test_overlapping_changes_of_other_keys_survive(self, store: MongoStore) -> None:
        token = store.create({"a": 1, "b": 1, "c": 1}).token
        one, two, reader = (seen(store, token) for _ in range(3))
        one["a"] = 2
        two["b"] = 2
        del two["c"]
        for session in (one, two, reader):
            store.flush(session)
        assert at(store, token) == {"a": 2, "b": 2}

    def test_parallel_changes_of_other_keys_survive(self, store: MongoStore) -> None:
        token, gate = store.create().token, Barrier(8)

        def set_one(key: str) -> None:
            session = seen(store, token)
            session[key] = 1
            gate.wait()
            store.flush(session)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(set_one, "abcdefgh"))
        assert at(store, token) == dict.fromkeys("abcdefgh", 1)

    def test_an_ended_session_is_not_revived(self, store: MongoStore) -> None:
        for end in (store.destroy, lambda session: store.revoke(session.id or "")):
            token = store.create({"a": 1}).token
            slow, last = seen(store, token), seen(store, token)
            end(last)
            slow["a"] = 2
            store.flush(slow)
            assert store.retrieve(token or "") is None
            assert list(store.sessions()) == []

    def test_what_is_set_after_the_end_is_a_new_session(self, store: MongoStore) -> None:
        session = store.create({"a": 1})
        old = session.token
        session.destroy()
        session["b"] = 2
        store.flush(session)
        assert session.token not in (None, old)
        assert [info.data for info in store.sessions()] == [{"b": 2}]

    def test_clearing_what_was_just_stored_leaves_the_keys_of_others(
        self, store: MongoStore
    ) -> None:
        session = store.create({"mine": 1})
        other = store.open(session.token)
        other["theirs"] = 2
        store.flush(other)
        session.clear()
        store.flush(session)
        assert at(store, session.token) == {"theirs": 2}

    def test_a_new_token_ends_the_old_one(self, store: MongoStore, clock: Clock) -> None:
        session = store.create({"a": 1})
        old = session.token
        late, writer = seen(store, old), seen(store, old)
        writer["b"] = 2
        store.flush(writer)
        session.regenerate()
        store.flush(session)
        late["a"] = 3
        blind = store.open(old)
        blind["a"] = 4
        for dropped in (late, blind):
            store.flush(dropped)
        assert at(store, session.token) == {"a": 1, "b": 2}
        assert store.retrieve(old or "") is None
        assert len(list(store.sessions())) == 1
        clock.advance(seconds=61)
        assert store.retrieve(old or "") is None

    def test_of_two_logins_at_once_both_are_logged_in(self, store: MongoStore) -> None:
        token = store.create({"a": 1}).token
        requests = [seen(store, token) for _ in range(3)]
        for session, owner in zip(requests, ("alice", "alice", "bob"), strict=True):
            session.login(owner)
            store.flush(session)
        found = sorted((info.owner or "", info.data) for info in store.sessions())
        assert found == [("alice", {"a": 1}), ("alice", {"a": 1}), ("bob", {})]

    def test_a_logout_follows_a_new_token(self, store: MongoStore) -> None:
        session = store.create({"a": 1})
        logout = seen(store, session.token)
        session.regenerate()
        store.flush(session)
        assert store.destroy(logout)
        assert list(store.sessions()) == []

    def test_an_owners_sessions_end_under_every_token(self, store: MongoStore) -> None:
        session = store.open(None)
        session.login("alice")
        store.flush(session)
        first = session.id
        for _ in range(3):
            session.regenerate()
            store.flush(session)
        assert store.revoke_all("alice", keep=first) == 0
        assert store.revoke_all("alice") == 1
        assert list(store.sessions()) == []

"""The duties of every store: logins as people know them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from ..session import Session
from ..store import MongoStore
from .requests import NOW, Clock, change, reopened

AUDIT = "mongosession_wsgi.audit"
FORTNIGHT, MONTH = timedelta(days=14), timedelta(days=30)


def logged_in(store: MongoStore, owner: str = "alice", **how: Any) -> Session:
    """Return a session after the login of a browser without a cookie."""
    session = store.open(None)
    session.login(owner, **how)
    store.flush(session)
    return session


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[Any, ...]]:
    """Return event, id and owner of the lines of the audit log since the last call."""
    records = [vars(record) for record in caplog.records if record.name == AUDIT]
    caplog.clear()
    return [(one["session_event"], one["session_id"], one["session_owner"]) for one in records]


class Logins:
    """Logins that are remembered, labelled, limited, and told to the audit log."""

    @pytest.mark.parametrize(("remember", "idle"), [(False, FORTNIGHT), (True, MONTH)])
    def test_a_login_is_remembered_or_not(
        self, store: MongoStore, clock: Clock, remember: bool, idle: timedelta
    ) -> None:
        token = logged_in(store, remember=remember).token
        session = store.retrieve(token or "")
        assert session is not None
        assert (session.remembered, session.expires_at) == (remember, NOW + idle)
        (info,) = store.sessions("alice")
        assert (info.remembered, info.expires_at) == (remember, NOW + idle)
        clock.advance(days=14)
        assert (store.retrieve(token or "") is not None) is remember
        clock.advance(days=16)
        assert store.retrieve(token or "") is None

    @pytest.mark.parametrize("look", [False, True])
    def test_a_change_keeps_a_session_remembered(
        self, store: MongoStore, clock: Clock, look: bool
    ) -> None:
        token = logged_in(store, remember=True).token
        clock.advance(days=1)
        session = store.open(token)
        assert not look or session.remembered
        session["a"] = 1
        store.flush(session)
        found = reopened(store, session)
        assert (found["a"], found.remembered) == (1, True)
        clock.advance(days=15)
        assert store.retrieve(token or "") is not None

    def test_the_next_login_says_anew_whether_to_remember(self, store: MongoStore) -> None:
        session = logged_in(store, remember=True)
        change(store, session.token, lambda session: session.login("alice"))
        assert [info.remembered for info in store.sessions()] == [False]

    def test_a_new_token_keeps_label_and_kind(self, store: MongoStore) -> None:
        session = logged_in(store, remember=True, label="Firefox")
        change(store, session.token, lambda session: session.regenerate())
        (info,) = store.sessions("alice")
        assert info.id != session.id
        assert (info.label, info.remembered) == ("Firefox", True)

    @pytest.mark.parametrize(
        ("label", "stored"),
        [
            pytest.param(None, None, id="none"),
            pytest.param("", None, id="empty"),
            pytest.param("Ω" * 200, "Ω" * 200, id="long"),
            pytest.param("x" * 201, "x" * 200, id="too long"),
            pytest.param("\0\n", "\0\n", id="control characters"),
        ],
    )
    def test_a_label_is_stored_beside_the_data(
        self, store: MongoStore, label: str | None, stored: str | None
    ) -> None:
        session = logged_in(store, label=label)
        assert reopened(store, session).label == stored
        assert [(info.label, info.data) for info in store.sessions("alice")] == [(stored, {})]

    def test_the_label_is_that_of_the_last_login(self, store: MongoStore) -> None:
        session = logged_in(store, label="Firefox")
        for label in ("Chrome", None):
            session.login("alice", label=label)
            store.flush(session)
            assert [info.label for info in store.sessions()] == [label]

    def test_logins_beyond_the_limit_end_the_oldest(
        self, make_limited_store: Callable[[Callable[[], datetime]], MongoStore], clock: Clock
    ) -> None:
        store = make_limited_store(clock)
        sessions = []
        for _ in range(4):
            clock.advance(seconds=1)
            sessions.append(logged_in(store))
            logged_in(store, "bob")
        live = {info.id for info in store.sessions("alice")}
        assert live == {session.id for session in sessions[2:]}
        first, second, *others = (store.retrieve(session.token or "") for session in sessions)
        assert (first, second) == (None, None)
        assert None not in others
        assert len(list(store.sessions("bob"))) == 2
        store.close()

    def test_the_audit_log_tells_of_logins(
        self, store: MongoStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, AUDIT)
        session = logged_in(store, label="Firefox\nlogin: nobody")
        ids, tokens = [session.id], [str(session.token)]
        session.regenerate()
        store.flush(session)
        ids.append(session.id)
        tokens.append(str(session.token))
        assert store.retrieve(tokens[0]) is None
        assert store.destroy(session)
        store.revoke(tokens[1])
        store.revoke_all("alice")
        text = caplog.text
        assert said(caplog) == [
            ("login", ids[0], "alice"),
            ("regenerate", ids[1], "alice"),
            ("stale", ids[0], None),
            ("logout", ids[1], "alice"),
            ("revoke", None, None),
            ("revoke", None, "alice"),
        ]
        assert not any(token in text for token in tokens)
        assert "\nlogin: nobody" not in text

    def test_the_audit_log_tells_nothing_of_a_login_that_is_not_stored(
        self, store: MongoStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        session = logged_in(store)
        late = store.open(session.token)
        assert late.owner == "alice"
        store.revoke(session.id or "")
        caplog.set_level(logging.INFO, AUDIT)
        late.login("alice")
        store.flush(late)
        assert said(caplog) == []
        assert list(store.sessions()) == []

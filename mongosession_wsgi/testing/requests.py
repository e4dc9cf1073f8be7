"""The words of a store's tests: a clock, and requests that look and change."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from ..session import Session
from ..store import MongoStore

NOW = datetime(2100, 1, 1, 12, tzinfo=timezone.utc)
"""Far ahead, or the TTL monitor of a real server would delete the sessions of the tests."""


class Clock:
    """The time of a test; only the test moves the time."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now: datetime = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **span: float) -> None:
        self.now += timedelta(**span)


def seen(store: MongoStore, token: str | None) -> Session:
    """Return the session of a request, after a look."""
    session = store.open(token)
    assert len(session) >= 0
    return session


def at(store: MongoStore, token: str | None) -> dict[str, Any] | None:
    session = store.retrieve(token or "")
    return None if session is None else session.copy()


def reopened(store: MongoStore, session: Session) -> Session:
    return seen(store, session.token)


def change(store: MongoStore, token: str | None, make: Callable[[Session], Any]) -> None:
    session = seen(store, token)
    make(session)
    store.flush(session)

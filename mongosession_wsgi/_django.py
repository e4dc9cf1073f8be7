"""The store of a Django project, by the settings of its moment."""

from __future__ import annotations

from datetime import timedelta
from functools import cache, lru_cache
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed

from .cookie import TOKEN
from .document import Mark
from .errors import SettingsError, StoreError
from .session import Session, visit_of
from .settings import Settings
from .store import MongoStore
from .times import Times
from .visit import Failure, State


@cache
def mongo_store() -> MongoStore:
    """Return the store that `settings.MONGOSESSION` describes. Raises `SettingsError`."""
    given: dict[str, Any] = getattr(settings, "MONGOSESSION", {})
    for key in Settings.keys("cookie") & given.keys():
        raise SettingsError(f"{key}: has no effect in MONGOSESSION; see Django's SESSION_…")
    store = MongoStore({**given, "session_lifetime": given.get("session_lifetime") or "none"})
    store.follow(lambda: _times(settings.SESSION_COOKIE_AGE, store.settings.lifetime))
    return store


def opened(session_key: str | None, age: float) -> Session:
    """Return the session of a key, not loaded; it dies `age` seconds after the last save."""
    store = mongo_store()
    token = session_key if TOKEN.fullmatch(session_key or "") else None
    return store.open(token, _times(age, store.settings.lifetime))


def ended(session: Session) -> Session:
    """Return a session after a logout."""
    session.destroy()
    stored(session)
    return session


def stored(session: Session) -> None:
    """Store the changes of a session; a failure is noted, for no second try in this request."""
    try:
        mongo_store().flush(session)
    except StoreError as error:
        visit_of(session).known = Failure(error)
        raise


def is_over(session: Session) -> bool:
    """Say whether another request has ended or moved a session, so that nothing is stored."""
    visit = visit_of(session)
    return visit.state is State.ENDED or type(visit.known) is Mark


@lru_cache(maxsize=256)
def _times(age: float, lifetime: timedelta | None) -> Times:
    idle = timedelta(seconds=age)
    return Times(idle, idle, lifetime)


def _forget_the_store(*, setting: str, **_: object) -> None:
    if setting == "MONGOSESSION":
        mongo_store.cache_clear()


setting_changed.connect(_forget_the_store)
if settings.configured:
    mongo_store()  # Wrong settings are for the start of a project to tell, not for its users.

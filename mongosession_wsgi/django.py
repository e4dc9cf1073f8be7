"""The session engine for Django: `SESSION_ENGINE = "mongosession_wsgi.django"`."""

from __future__ import annotations

from copy import copy, deepcopy
from datetime import datetime, timedelta, timezone
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth import BACKEND_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.base import SessionBase, UpdateError

from ._django import ended, is_over, mongo_store, opened, stored
from .document import Mark, Record, Token
from .errors import SessionDataError
from .session import Session, visit_of
from .settings import LONGEST_COOKIE
from .visit import Failure, State

__all__ = ["SessionStore", "mongo_store"]

_SAME_LOGIN = timedelta(minutes=1)
"""Two logins by a user within this time are a double click: the key stays, as in Django."""


class SessionStore(SessionBase):
    """A session for Django, stored as every session of ours; the key is the token.

    Django works on a plain copy of the data. A save writes the difference to the loaded data.
    """

    def __init__(self, session_key: str | None = None) -> None:
        super().__init__(session_key)
        self._stored = mongo_store().open(None)
        self._label: str | None = None
        self._logs_in = False
        self._lost_its_user = False

    @property
    def id(self) -> str | None:
        """The public id, safe to log and to list; None until saved."""
        return self._stored.id if self._found() else None

    @property
    def owner(self) -> str | None:
        """Who is logged in: the primary key of Django's user, or None."""
        owner = self.get(SESSION_KEY)
        return None if owner is None else str(owner)

    @property
    def label(self) -> str | None:
        """The device, as the application calls it; to be set before a login."""
        record = visit_of(self._stored).record
        return self._label or (record.label if record else None)

    @label.setter
    def label(self, label: str | None) -> None:
        self._label = label

    @property
    def created_at(self) -> datetime | None:
        """When the session was created or last logged in, in UTC; None until saved."""
        return self._stored.created_at if self._found() else None

    @property
    def remembered(self) -> bool:
        """Whether the stored session is of a user whose cookie outlives the browser."""
        return self._found() and self._stored.remembered

    @property
    def modified(self) -> bool:
        """Whether the session was changed, also within a value, unless another request ended it."""
        known = visit_of(self._stored).known
        if type(known) is Failure or (self.session_key is not None and is_over(self._stored)):
            return False
        if type(known) is not Record:
            return self._modified
        try:
            return self._modified or visit_of(self._updated()).was_changed
        except SessionDataError:  # Changed to a value that MongoDB cannot hold.
            return True

    @modified.setter
    def modified(self, modified: bool) -> None:
        self._modified = modified

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if key == SESSION_KEY:
            # A login. The receivers of Django's signal may ask for the new key.
            self._logs_in = True
            self._write()

    async def aset(self, key: str, value: Any) -> None:
        await sync_to_async(self.__setitem__)(key, value)

    def exists(self, session_key: str | None) -> bool:
        session = self._opened(session_key)
        del session_key  # No collector of local variables is to see the token.
        return session.id is not None

    def load(self) -> dict[str, Any]:
        if type(visit_of(self._stored).known) is not Failure:
            self._stored = opened(self.session_key, self._age_without_data())
        # The key of a mark stays, or else Django expires the cookie of the mark's successor.
        if self._stored.id is None and type(visit_of(self._stored).known) is not Mark:
            self._session_key = None
        return self._stored.copy()

    def create(self) -> None:
        self._label = self.label
        self._session_cache = getattr(self, "_session_cache", {})
        self._session_key = None
        self._write()

    def save(self, must_create: bool = False) -> None:
        """Store the changes. Callers never make a key of their own: no `CreateError`."""
        if must_create:
            self.create()
        else:
            self._write()
        if is_over(self._stored):
            raise UpdateError("The session was ended by another request.")

    def delete(self, session_key: str | None = None) -> None:
        """End the session under a key, but none that has replaced it; a logout is `flush()`."""
        key = Token(session_key or self.session_key or "")
        del session_key
        session = self._known(key)
        if session.id is not None:
            ended(session)
        if key == self.session_key:
            self._stored = session
            visit_of(session).state = State.ENDED  # A later save brings nothing back.

    def clear(self) -> None:
        if not hasattr(self, "_session_cache"):
            self._stored = self._opened(self.session_key)  # The save looks what there is to end.
        super().clear()

    def flush(self) -> None:
        key = Token(self.session_key or "")
        self._stored = ended(self._known(key))
        super().clear()
        # If another request has logged in meanwhile, Django must not expire the login's cookie.
        self._session_key = key if type(visit_of(self._stored).known) is Mark else None

    async def aflush(self) -> None:
        await sync_to_async(self.flush)()

    def cycle_key(self) -> None:
        if self._found() and not visit_of(self._stored).token:  # This request has deleted it.
            self._session_key = None
        elif self._found():
            self._stored.regenerate()
        self._write()
        self.modified = True

    async def acycle_key(self) -> None:
        await sync_to_async(self.cycle_key)()

    def __deepcopy__(self, memo: dict[int, Any]) -> SessionStore:
        """Return another object for the same session, with a copy of the data in hand."""
        copied = copy(self)
        if hasattr(self, "_session_cache"):
            copied._session_cache = deepcopy(self._session_cache, memo)
        copied._stored = copied._opened(self.session_key)
        return copied

    @classmethod
    def clear_expired(cls) -> None:
        mongo_store().purge()

    def _known(self, session_key: str | None) -> Session:
        """Return the session of a key, with its owner and data if this request has loaded it."""
        visit = visit_of(self._stored)
        is_loaded = visit.token == session_key and type(visit.known) is Record
        return self._stored if is_loaded else self._opened(session_key)

    def _opened(self, session_key: str | None) -> Session:
        return opened(session_key, self.get_session_cookie_age())

    def _age_without_data(self) -> float:
        """Return the age before the data are loaded; the longest, if the data decide the age."""
        if hasattr(self, "_session_cache"):
            return self.get_session_cookie_age()
        self._session_cache, self.accessed = {}, False
        try:
            age = self.get_session_cookie_age()
        finally:
            del self._session_cache
        asks_data, self.accessed = self.accessed, True
        return LONGEST_COOKIE.total_seconds() if asks_data else age

    def _found(self) -> bool:
        """Have Django load the data, unless it has, and say whether a session was found."""
        self.keys()
        return self.session_key is not None

    def _updated(self) -> Session:
        """Return the stored session with exactly the contents of Django's copy by now."""
        for key in self._stored.keys() - self.keys():
            del self._stored[key]
            self._lost_its_user = self._lost_its_user or key == SESSION_KEY
        self._stored.update(self.items())
        return self._stored

    def _write(self) -> None:
        known = visit_of(self._stored).known
        if type(known) is Failure:
            raise known.error
        if not self._found():
            self._stored = mongo_store().create() if self.is_empty() else self._opened(None)
            self.modified = True
        if (owner := self.owner) is not None and self._is_login(owner):
            self._take_up(owner)
            is_same = owner == self._stored.owner
            self._stored.login(owner, label=self.label if is_same else self._label)
        session = self._updated()
        if owner is None and self._lost_its_user and session.owner is not None:
            session.destroy()  # A logout by hand: `clear()`, or `del` of Django's key.
            self._updated()
        moment = self.get_expiry_date().astimezone(timezone.utc)
        visit_of(session).live_until(moment, self._kind())
        stored(session)
        if not is_over(session):
            self._session_key, self._session_cache = session.token, session.copy()
            if self.session_key is None:  # Nothing was set since a logout by hand.
                self._write()

    def _is_login(self, owner: str) -> bool:
        """Say whether to log in: another user, or the same user again after some time."""
        logs_in, self._logs_in = self._logs_in, False
        if owner != self._stored.owner:
            return True
        since = self._stored.created_at
        return logs_in and since is not None and datetime.now(timezone.utc) - since > _SAME_LOGIN

    def _kind(self) -> bool | None:
        """Return the kind of idle time (see `Record.remember`), by Django's words for it."""
        # Without `set_expiry`, and Django's own way of counting, the moment ends an idle time.
        is_of_django = type(self).get_expiry_date is SessionBase.get_expiry_date
        if not is_of_django or self.get("_session_expiry"):
            return False
        lasts = self.owner is not None and not self.get_expire_at_browser_close()
        return True if lasts else None

    def _take_up(self, owner: str) -> None:
        """For a login, go on with a session after another login or rotation has moved it.

        Of another user's session, keep what this request has set, as Django's copy has all.
        """
        if self._stored.owner not in (None, owner):
            set_here = visit_of(self._updated()).draft.difference().assigned
            kept = {*set_here, BACKEND_SESSION_KEY}  # The backend may be the same for both.
            self._session_cache = {key: self[key] for key in self.keys() & kept}
        if visit_of(self._stored).state is State.ENDED:
            session, changes = self._opened(self.session_key), visit_of(self._updated()).draft
            if session.id is None and type(visit_of(session).known) is Mark:
                self._session_cache = {key: self[key] for key in changes.difference().assigned}
                self._stored = session

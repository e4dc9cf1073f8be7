"""Flask's `session`, kept in MongoDB: `app.session_interface = MongoSessionInterface(settings)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, cast
from weakref import WeakKeyDictionary

import flask
from flask import Flask, Request, Response, g
from flask.sessions import SessionInterface, SessionMixin

from ._flask import PASSED, SESSION, FlaskExchange, FlaskExchanges, refuse
from .exchange import Exchanges, session_around
from .session import Session, visit_of
from .store import Store
from .visit import State, Visit

_PERMANENT = "_permanent"


def _fact(compute: Callable[[Visit], bool]) -> Any:
    """Return a property for a computed flag of Flask; assignments have no effect."""
    return property(lambda self: compute(visit_of(self)), lambda *_: None)


class MongoSession(Session, SessionMixin):  # type: ignore[override]
    """The session of a request as Flask knows it, with every member of `Session`."""

    accessed: bool = _fact(lambda visit: visit.state is not State.UNTOUCHED)
    modified: bool = _fact(lambda visit: visit.was_changed)
    _exchange: FlaskExchange | None = None
    _is_to_last = False  # Whether this request has made the session permanent.

    @property
    def permanent(self) -> bool:
        """Whether the cookie outlives the browser; the session is remembered, in our words."""
        return self.remembered or bool(self.get(_PERMANENT))

    @permanent.setter
    def permanent(self, value: bool) -> None:
        if value and self._visit.kind is True:  # Often said before each request: no change.
            self._remember(True)
        else:
            self[_PERMANENT] = bool(value)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if key == _PERMANENT:
            self._remember(bool(value))

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        if key == _PERMANENT:
            self._remember(False)

    def _remember(self, remember: bool) -> None:
        self._is_to_last, visit = remember, self._visit
        if visit.login is None:
            visit.idle_as(remember or None)
        else:
            visit.login = visit.login._replace(remember=remember or None)

    def login(self, owner: str, *, remember: bool = False, label: str | None = None) -> None:
        """Log in as `Session.login` does; a remembered session is a permanent session."""
        remember = remember or self._is_to_last
        super().login(owner, remember=remember, label=label)
        if remember:
            super().__setitem__(_PERMANENT, True)
        if g and self._visit.secrets:  # Flask-WTF keeps a copy of the token in `g`.
            g.pop(self._visit.secrets[0], None)

    def destroy(self) -> None:
        """End the session; what is set afterwards, `permanent` too, starts a new session."""
        super().destroy()
        self._is_to_last = False

    def clear(self) -> None:
        """End the session, as a logout does."""
        self.destroy()


session: MongoSession = cast("MongoSession", flask.session)
"""Flask's `session`, as type checkers are to see it."""


class MongoSessionInterface(SessionInterface):
    """Keep `flask.session` in MongoDB, with the behaviour of Flask's own session.

    `settings` is the flat mapping of `mongodb_*` and `session_*` keys; without an argument the keys
    are looked up in `app.config`, in upper case. Flask's own settings and hooks count where ours
    say nothing. `store` replaces the store made of the settings. Raises `SettingsError`.
    """

    session_class = MongoSession

    def __init__(
        self, settings: Mapping[str, Any] | None = None, *, store: Store | None = None
    ) -> None:
        if isinstance(settings, Flask):
            raise TypeError(
                "settings must be a mapping, not an application; if the settings are in "
                "app.config, write MongoSessionInterface().init_app(app)"
            )
        if settings is not None or store is not None:
            Exchanges(settings or {}, store)  # To fail now, not at the first request.
        self._settings, self._store = settings, store
        self._exchanges: WeakKeyDictionary[Flask, FlaskExchanges] = WeakKeyDictionary()
        self._lock = Lock()

    def init_app(self, app: Flask) -> None:
        """Be the interface of `app`; raises `SettingsError` now, not at the first request."""
        app.session_interface = self
        self._exchanges_of(app)

    def open_session(self, app: Flask, request: Request | None = None) -> MongoSession:
        """Return the session of `request`, not loaded; do no I/O."""
        if request is None:  # Called on the class.
            raise TypeError("app.session_interface: must be MongoSessionInterface(), not the class")
        around, exchange = session_around(request.environ), None
        if around is not None:
            visit = visit_of(around)
        else:  # No middleware of ours is around the application.
            exchange = FlaskExchange(self._exchanges_of(app), request.environ)
            visit = exchange.visit
        opened = request.__dict__[SESSION] = self.session_class(visit)
        opened._exchange = exchange
        # Neither the token of Flask-WTF nor the idle time is handed on by a login.
        visit.secrets = app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token"), _PERMANENT
        return opened

    def save_session(self, app: Flask, session: Any, response: Response) -> None:
        """Store the session before `response` goes out; raises `StoreError`, for Flask to log."""
        exchange: FlaskExchange | None = session._exchange
        if exchange is None:
            return
        status = response.status
        if visit_of(session) is not exchange.visit:  # After an error: the response is Flask's 500.
            refuse(app, response)
        elif exchange.is_handshake and status.startswith("2"):  # The view has taken the socket.
            exchange.close()
        else:
            exchange.commit(status)
            if response.direct_passthrough:  # The server may send a file by itself.
                setattr(g, PASSED, exchange)
            elif response.is_streamed:
                response.response = exchange.watched(response.response)
            else:
                response.call_on_close(exchange.close)
        if not exchange.is_untouched:
            exchange.add_headers(response)

    def _exchanges_of(self, app: Flask) -> FlaskExchanges:
        found = self._exchanges.get(app)
        if found is None:
            with self._lock:
                if (found := self._exchanges.get(app)) is None:
                    found = FlaskExchanges(self, app, self._settings, self._store)
                    self._exchanges[app] = found
        return found

"""Flask's `session`, kept in MongoDB: `app.session_interface = MongoSessionInterface(settings)`."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from flask import Flask, Request, Response, request
from flask.sessions import SessionInterface, SessionMixin
from flask.signals import got_request_exception, request_tearing_down
from werkzeug.exceptions import ServiceUnavailable

from .cookie import CookiePolicy
from .document import Record
from .errors import StoreError
from .exchange import RETRY_AFTER, Exchange, session_around
from .session import Session, visit_of
from .settings import LONGEST_COOKIE, Settings
from .store import MongoStore, Store
from .visit import NOTHING, Failure, Outcome, State, Visit

_KEY = "mongosession.flask"
_OURS = {field.metadata["key"] for field in fields(Settings) if field.metadata}


class _Exchange(Exchange):
    """An exchange whose cookie lasts longer than the browser only if the session is permanent."""

    def cookie_after(self, outcome: Outcome) -> str | None:
        if not (type(self.visit.known) is Record and self.session.get("_permanent")):
            self.cookie = replace(self.cookie, max_age=None)
        elif outcome is Outcome.KEPT and self.visit.state is State.OPEN:
            outcome = Outcome.RENEWED  # Flask sends it with every response.
        return super().cookie_after(outcome)


def _fact(compute: Callable[[Session], bool]) -> Any:
    """Return a property for what Flask has a flag for; what is assigned to it is not needed."""
    return property(lambda self: compute(self.data), lambda *_: None)


class MongoSession(UserDict[str, Any], SessionMixin):
    """The session of a request as Flask knows it. Every member of `Session` is one of it too."""

    data: Session  # type: ignore[assignment]
    new = _fact(lambda session: session.new)
    accessed = _fact(lambda session: visit_of(session).state is not State.UNTOUCHED)
    modified = _fact(
        lambda session: (
            visit_of(session).state is State.REGENERATED or visit_of(session).has_changes
        )
    )
    copy = Session.copy  # type: ignore[assignment]

    def __init__(self, session: Session, exchange: _Exchange | None) -> None:
        self.data = session
        self.exchange = exchange

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "_permanent":
            visit_of(
                self.data
            ).read()  # It decides on the cookie; and what is stored is not stored again.
        self.data[key] = value

    def clear(self) -> None:
        """End the session, as a logout does; what is set afterwards starts a new one."""
        self.data.destroy()


class MongoSessionInterface(SessionInterface):
    """Give `flask.session` the behaviour that Flask promises, and keep it in MongoDB.

    `settings` is the flat mapping of `mongodb_*` and `session_*` keys; without it they are those
    of `app.config`, in upper case. Flask's own settings of the cookie count where these say
    nothing. `store` replaces the one that is made of them. Raises `SettingsError`.
    """

    def __init__(
        self, settings: Mapping[str, Any] | None = None, *, store: Store | None = None
    ) -> None:
        self._settings, self._store = settings, store
        self._parts: tuple[Store, CookiePolicy] | None = None
        if settings is not None:
            self._made_of(settings)  # To fail now, and not at the first request.

    def open_session(self, app: Flask, request: Request) -> MongoSession:
        """Return the session of `request`, not loaded; do no I/O."""
        session, exchange = session_around(request.environ), None
        if session is None:  # An outer middleware of ours has not put it there.
            self._parts = self._parts or self._made_of(self._settings_of(app))
            exchange = _Exchange(*self._parts, request.environ)
            session = exchange.session
        request.environ[_KEY] = opened = MongoSession(session, exchange)
        return opened

    def save_session(self, app: Flask, session: Any, response: Response) -> None:
        """Store the session before `response` goes out; raises `StoreError`, for Flask to log."""
        exchange: _Exchange | None = session.exchange
        if exchange is None:
            return
        if session.data is exchange.session:
            exchange.commit(response.status)
            response.call_on_close(exchange.close)
        else:  # It was raised, and this is the 500 that Flask has made of it.
            _refuse(app, response)
        response.headers[:] = exchange.headers(list(response.headers))

    def _settings_of(self, app: Flask) -> dict[str, Any]:
        name = self.get_cookie_name(app)
        flasks = {
            "session_name": None if name == app.default_config["SESSION_COOKIE_NAME"] else name,
            "session_secure": self.get_cookie_secure(app) or None,
            "session_is_http_only": self.get_cookie_httponly(app),
            "session_same_site": self.get_cookie_samesite(app),
            "session_domain": self.get_cookie_domain(app) or None,
            "session_path": self.get_cookie_path(app),
            "session_partitioned": app.config.get("SESSION_COOKIE_PARTITIONED"),
            "session_expires": min(app.permanent_session_lifetime, LONGEST_COOKIE),
        }
        config = {key.lower(): value for key, value in app.config.items() if key.isupper()}
        ours = {key: config[key] for key in config if key.startswith("mongodb_") or key in _OURS}
        return {**flasks, **(self._settings or ours)}

    def _made_of(self, settings: Mapping[str, Any]) -> tuple[Store, CookiePolicy]:
        parsed = Settings.parse(settings)
        return self._store or MongoStore(parsed), CookiePolicy(parsed)


def _refuse(app: Flask, response: Response) -> None:
    """Make a 503 of the page of an error; the application's page, if it has one for that."""
    page = app.make_response(app.handle_http_exception(ServiceUnavailable()))
    response.status_code, response.response = 503, page.response
    response.headers.update(page.headers)
    response.headers.update({"Retry-After": f"{RETRY_AFTER}", "Cache-Control": "no-store"})


@got_request_exception.connect
def _give_up(_: Flask, exception: BaseException) -> None:
    """Have the page of an error, and the hooks after it, find a session that does not fail."""
    session = request.environ.get(_KEY)
    if session is None:
        return
    visit = visit_of(session.data)
    if type(visit.known) is Failure or isinstance(exception, StoreError):
        session.data = Session(Visit(None, lambda _: NOTHING, visit.times))
        del request.environ[_KEY]


@request_tearing_down.connect
def _abandon(_: Flask, exc: BaseException | None) -> None:
    session = request.environ.get(_KEY)
    if exc is not None and session is not None and session.exchange:
        session.exchange.abandon()

"""A request to Flask: the settings and hooks of the moment, and the end of a failed request."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from weakref import ref

from flask import Flask, Response, g, request
from flask import globals as contexts
from flask.sessions import SessionInterface
from flask.signals import got_request_exception
from werkzeug.exceptions import ServiceUnavailable

from .cookie import CookiePolicy
from .errors import SettingsError, StoreError
from .exchange import OF_THE_PAGE, REFUSAL, Exchange, beside, is_handshake
from .session import visit_of
from .settings import LONGEST_COOKIE, Settings, span
from .store import MongoStore, Store
from .times import Times
from .visit import NOTHING, Failure, Nothing, Outcome, State, Visit

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_CONTEXT: Any = vars(contexts).get("request_ctx", contexts.app_ctx)
"""The context of the request; from Flask 3.2 on there is no other than that of the application."""
SESSION = "mongosession_wsgi.session"
"""The name of the session among the attributes of Flask's request."""
FAILED, PASSED = "mongosession_wsgi.failed", "mongosession_wsgi.passed"
"""The names in `g` of the exchange of a request that failed, and of one whose response goes to the
server as it is."""
_OURS = Settings.keys("cookie", "store")
_HOOKS = {
    "get_cookie_name": "session_name",
    "get_cookie_secure": "session_secure",
    "get_cookie_httponly": "session_is_http_only",
    "get_cookie_samesite": "session_same_site",
    "get_cookie_domain": "session_domain",
    "get_cookie_path": "session_path",
    "get_cookie_partitioned": "session_partitioned",
}
"""Flask's hooks for the cookie, and our keys for the returned values."""
_CONFIG = (
    *("SESSION_COOKIE_NAME", "SESSION_COOKIE_SECURE", "SESSION_COOKIE_HTTPONLY"),
    *("SESSION_COOKIE_SAMESITE", "SESSION_COOKIE_DOMAIN", "SESSION_COOKIE_PATH"),
    *("APPLICATION_ROOT", "SESSION_COOKIE_PARTITIONED"),
)
"""The settings behind the hooks, unless a subclass overrides a hook."""


class FlaskExchanges:
    """An application's share of an interface: the store, and the cookies and times of now.

    Our own settings are read once; Flask's settings and the hooks whenever they count.
    """

    def __init__(
        self, interface: Any, app: Flask, settings: Mapping[str, Any] | None, store: Store | None
    ) -> None:
        self.interface = interface
        # An application outlives its requests; the interface may outlive the application.
        self.app: Callable[[], Any] = ref(app)
        given = settings or _settings_in(app.config)
        self._settings, self.store = beside(Settings.parse(given), store)
        self._given = {key: value for key, value in given.items() if value not in (None, "")}
        self._lifetime: Any = None
        self._times = lru_cache(maxsize=256)(self._times_of)
        self._hooks = {one: getattr(interface, one) for one in _HOOKS if hasattr(interface, one)}
        self._are_plain = all(
            getattr(hook, "__func__", None) is getattr(SessionInterface, name)
            for name, hook in self._hooks.items()
        )
        self._policy = lru_cache(maxsize=256)(self._policy_of)
        self.times()
        if self._are_plain:  # To fail now; other hooks may need a request.
            self.cookies()
        if isinstance(self.store, MongoStore):
            self.store.follow(self.times)
        app.teardown_request_funcs.setdefault(None, []).insert(0, _at_end_of_request)
        app.teardown_appcontext_funcs.insert(0, _at_end_of_context)

    def cookies(self) -> CookiePolicy:
        """Return the cookies by Flask's settings and hooks of now."""
        app = self.app()
        if self._are_plain:
            return self._policy(*map(app.config.get, _CONFIG))
        return self._policy(*[hook(app) for hook in self._hooks.values()])

    def times(self) -> Times:
        """Return the idle times and the longest life of now."""
        app = self.app()
        if app is not None:
            self._lifetime = app.permanent_session_lifetime
        return self._times(self._lifetime)

    def _policy_of(self, *_: Any) -> CookiePolicy:
        app = self.app()
        # Flask before 3.1 has no hook for `partitioned`.
        flasks = {"session_partitioned": app.config.get("SESSION_COOKIE_PARTITIONED")}
        flasks |= {_HOOKS[name]: hook(app) for name, hook in self._hooks.items()}
        if flasks["session_name"] == Flask.default_config["SESSION_COOKIE_NAME"]:
            del flasks["session_name"]  # Flask's default says nothing.
        flasks["session_secure"] = flasks["session_secure"] or None
        # As Werkzeug writes them: a domain without a port, a path without other letters.
        flasks["session_domain"] = re.sub(r":\d*$", "", str(flasks["session_domain"] or ""))
        path = quote(str(flasks["session_path"] or "/"), safe="%!$&'()*+,/:=@")
        flasks["session_path"] = path if path.startswith("/") else "/"  # As browsers take it.
        # Only the cookie of a permanent session outlives the browser.
        return CookiePolicy(replace(Settings.parse(flasks | self._given), max_age=None))

    def _times_of(self, lifetime: Any) -> Times:
        settings = self._settings
        if isinstance(lifetime, timedelta):
            lifetime = min(lifetime, LONGEST_COOKIE)
        try:
            flasks = settings.idle if lifetime is None else min(span(lifetime), LONGEST_COOKIE)
        except ValueError as error:
            raise SettingsError(f"PERMANENT_SESSION_LIFETIME: must be {error}") from None
        idle = settings.max_age or flasks
        remember = settings.remember if "remember" in settings.said else idle
        return Times(idle, remember, settings.lifetime)


class FlaskExchange(Exchange):
    """An exchange whose cookie lasts longer than the browser only if the session is permanent."""

    __slots__ = ("_of", "context", "is_handshake")

    def __init__(self, of: FlaskExchanges, environ: WSGIEnvironment) -> None:
        super().__init__(of.store, of.cookies(), environ, of.times())
        self._of = of
        self.is_handshake: bool = is_handshake(environ)
        self.context: int = _context_now()

    def commit(self, status: str) -> None:
        """Store the session, by the settings of now, which a hook may just have changed."""
        visit = self.visit
        if visit.state is not State.UNTOUCHED:
            visit.times = self._of.times()
            if visit.kind is None and visit.draft.data.get("_permanent"):
                visit.idle_as(True)  # Version 1 stored permanent sessions without a kind.
        super().commit(status)
        # A change moves the expiry, also where the stored session was not due for a renewal.
        is_live = visit.state is State.OPEN and type(visit.known) is not Nothing
        if self._set_cookie is None and visit.changed and is_live:
            self._set_cookie = self.cookie_after(Outcome.RENEWED)

    def cookie_after(self, outcome: Outcome) -> str | None:
        """Return the Set-Cookie header for the browser, if it needs a cookie now."""
        visit, of = self.visit, self._of
        if outcome is Outcome.RENEWED:
            # The write was acknowledged, which proves the token to be still good.
            if visit.kind is not True and not visit.changed_kind:
                return None
            outcome = Outcome.CREATED
        session = of.interface.session_class(visit)
        if outcome is Outcome.CREATED and not of.interface.should_set_cookie(of.app(), session):
            return None
        cookies = of.cookies()
        if cookies is not self._cookies:  # A hook has just changed the settings.
            self._cookies, self.cookie = cookies, cookies.cookie_for(request.environ)
        return super().cookie_after(outcome)

    def add_headers(self, response: Response) -> None:
        """Give the response our headers; to append them costs less than to set all anew."""
        before = list(response.headers)
        after = self.headers(before)
        if after[: len(before)] == before:
            for name, value in after[len(before) :]:
                response.headers.add(name, value)
        else:
            response.headers[:] = after


def _settings_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return our settings in the configuration of an application, where keys are in upper case."""
    lower = {key.lower(): value for key, value in config.items() if key.isupper()}
    return {key: lower[key] for key in lower if key.startswith("mongodb_") or key in _OURS}


def refuse(app: Flask, response: Response) -> None:
    """Make the page of an error a 503: the application's own page, if it has a page for 503."""
    page = app.make_response(app.handle_http_exception(ServiceUnavailable()))
    response.status_code, response.response = 503, page.response
    for name in OF_THE_PAGE:
        response.headers.pop(name, None)
    response.headers.update(page.headers, **REFUSAL)


@got_request_exception.connect
def _give_up(_: Flask, exception: BaseException) -> None:
    """Have the page of an error, and the hooks after it, find a session without a failure."""
    if (session := request.__dict__.get(SESSION)) is None:
        return
    setattr(g, FAILED, session._exchange)
    visit = visit_of(session)
    if type(visit.known) is Failure or isinstance(exception, StoreError):
        session._visit = Visit(None, lambda _: NOTHING, visit.times)


def _context_now() -> int:
    """Return the identity of the context of the request; a copy of it is another context."""
    try:
        return id(_CONTEXT._get_current_object())
    except RuntimeError:  # Without one, as in a test.
        return 0


def _at_end_of_request(exc: BaseException | None) -> None:
    """Carry out a logout though the request has failed, without a response."""
    if exc is None:
        return
    exchange = getattr(request.__dict__.get(SESSION), "_exchange", None)
    # A copy of the context may have failed, which ends no request.
    if exchange is not None and exchange.context == _context_now():
        exchange.abandon()


def _at_end_of_context(exc: BaseException | None) -> None:
    """Do what nothing else has done for the exchange noted in `g`.

    A response that is passed to the server as it is does not say when it ends. A function for the
    end of the request may have failed, so that ours was not called.
    """
    if exc is None:
        if PASSED in g:
            g.get(PASSED).close()
    elif (failed := g.get(FAILED)) is not None:
        failed.abandon()

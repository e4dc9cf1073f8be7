"""A plugin for Bottle: a handler that names a `session` argument gets the session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from inspect import signature
from threading import Lock
from typing import TYPE_CHECKING, Any

from bottle import Bottle, PluginError, Route, request  # type: ignore[import-untyped]

from .exchange import KEY
from .middleware import SessionMiddleware
from .session import Session
from .store import Store

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class MongoSessionPlugin:
    """Give the handlers of a Bottle application the session of their request.

    `settings` is the flat mapping of `mongodb_*` and `session_*` keys, also `app.config`; `store`
    replaces the store made of the settings. Without settings, a `SessionMiddleware` has to be
    around the application. `keyword` is the name of the argument.
    """

    name = "mongosession"
    api = 2

    def __init__(
        self,
        settings: Mapping[str, Any] | None = None,
        *,
        store: Store | None = None,
        keyword: str = "session",
    ) -> None:
        if settings is None and store is not None:
            raise TypeError("A store needs settings beside it: those of the cookie.")
        self._settings = settings
        self._store = store
        self._keyword = keyword

    def setup(self, app: Bottle) -> None:
        """Put our middleware around `app`, if there are settings; raises `SettingsError`.

        Bottle calls this method at `app.install`. A plugin wraps handlers, but a session is to be
        stored after hooks and error pages have used it, and before the first header. Changes of
        the settings until the first request count.
        """
        if any(isinstance(plugin, MongoSessionPlugin) for plugin in app.plugins):
            raise PluginError("This application has a MongoSessionPlugin already.")
        if self._settings is not None:
            app.wsgi = _Configured(app.wsgi, self._settings, self._store)

    def apply(self, callback: Callable[..., Any], route: Route) -> Callable[..., Any]:
        """Return `callback` with the session filled in, if its arguments name a session."""
        if self._keyword not in _arguments_of(route.callback):
            return callback

        def with_session(*args: Any, **kwargs: Any) -> Any:
            kwargs[self._keyword] = _session()
            return callback(*args, **kwargs)

        return with_session


class _Configured:
    """Our middleware, checked at once, and made of the settings at the first request."""

    def __init__(
        self, app: WSGIApplication, settings: Mapping[str, Any], store: Store | None
    ) -> None:
        self._make = partial(SessionMiddleware, app, settings, store=store)
        self._make()
        self._made: SessionMiddleware | None = None
        self._lock = Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._made is None:
            with self._lock:
                self._made = self._made or self._make()
        return self._made(environ, start_response)


def _arguments_of(callback: Callable[..., Any]) -> Iterable[str]:
    try:
        return signature(callback).parameters
    except ValueError:  # A builtin, such as `time.ctime`.
        return ()


def _session() -> Session:
    session = request.environ.get(KEY)
    if not isinstance(session, Session):
        raise PluginError(
            "This request has no session. The application that the server calls needs a "
            "MongoSessionPlugin with settings too, or a SessionMiddleware around it."
        )
    return session

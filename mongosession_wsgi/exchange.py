"""The session's part of a request and a response: from Cookie to Set-Cookie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from werkzeug.wsgi import ClosingIterator

from .cookie import Cookie, CookiePolicy
from .errors import StoreError, warn
from .headers import Headers, keep_cookie_private, make_private, vary_on_cookie
from .session import Session, unopened, visit_of
from .settings import Settings
from .store import MongoStore, Store
from .times import Times
from .visit import Failure, Nothing, Outcome, State, Visit

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

KEY = "mongosession"
"""The key of the session in the `environ`."""
EXCHANGE = "mongosession_wsgi.exchange"

UNAVAILABLE = "The session store is unavailable. Please try again in a moment."
"""The words of a 503 to a visitor whose session could be neither loaded nor stored."""
REFUSAL = {"Retry-After": "5", "Cache-Control": "no-store"}
"""The headers of a 503, whoever makes the page; the visitor tries again after five seconds."""
OF_THE_PAGE = (
    *("Accept-Ranges", "Content-Disposition", "Content-Encoding", "Content-Range"),
    *("ETag", "Last-Modified"),
)
"""The headers of a page that do not fit a 503 in its place."""
_FILLED_TOO_LATE = (
    "A session was first filled after its response had begun. It is not stored, because the "
    "browser can get no cookie; fill it before the first item."
)


class Exchanges:
    """Make the exchange of each request, where settings, cookie and store meet.

    `settings` is the flat mapping of `mongodb_*` and `session_*` keys; `store` replaces the store
    made of the settings. Raises `SettingsError`, and `TypeError` for a `store` without the verbs.
    """

    def __init__(self, settings: Mapping[str, Any] | Settings, store: Store | None = None) -> None:
        self.settings: Settings
        self.store: Store
        self.settings, self.store = beside(Settings.parse(settings), store)
        self.cookies: CookiePolicy = CookiePolicy(self.settings)
        times = Times.of(self.settings)
        if isinstance(self.store, MongoStore) and times != Times.of(self.store.settings):
            self.store.follow(lambda: times)
        self.open: Callable[[WSGIEnvironment], Exchange] = partial(
            Exchange, self.store, self.cookies, times=times
        )
        """Return the exchange of the request with an environ, without I/O."""


def beside(settings: Settings, store: Store | None) -> tuple[Settings, Store]:
    """Return a store, and the settings with the times valid beside the store.

    Where the settings do not say a time, the time of a given store counts. Raises `TypeError` for
    a `store` without the verbs.
    """
    if store is None:
        return settings, MongoStore(settings)
    if isinstance(store, type) or not hasattr(store, "flush"):
        name = f"the class {store.__name__}" if isinstance(store, type) else type(store).__name__
        raise TypeError(f"store must be a store, such as MongoStore(settings), not {name}")
    others: Settings | None = getattr(store, "settings", None)
    if others is not None:
        times = {
            name: getattr(others, name)
            for name in ("max_age", "remember", "lifetime")
            if name not in settings.said
        }
        settings = replace(settings, **times, said=settings.said | others.said)
    return settings, store


def session_around(environ: WSGIEnvironment) -> Session | None:
    """Return the session of a middleware of ours around the current call.

    An earlier pass of the same environ may have left a session behind; such a session is over.
    """
    exchange = environ.get(EXCHANGE)
    return exchange.session if exchange is not None and exchange.is_running else None


def is_handshake(environ: WSGIEnvironment) -> bool:
    """Say whether a request begins a WebSocket, so that the application may take the socket over.

    See RFC 6455, section 4.2.1; a proxy may send `Upgrade` alone with every request. Some servers
    shake hands themselves, and pass the socket on.
    """
    asked: str = environ.get("HTTP_UPGRADE", "")
    is_asked = asked.lower() == "websocket" and "HTTP_SEC_WEBSOCKET_KEY" in environ
    return is_asked or "wsgi.websocket" in environ


class _Opening:
    """Opens the visit of a request at the first use of its session; many a request has none.

    Neither the session nor this knows the exchange. In a cycle, what a session holds would stay in
    memory until the garbage collector comes, which takes its time from other requests.
    """

    __slots__ = ("_came_with", "_cookie", "_store", "_times", "visit")

    def __init__(self, store: Store, cookie: Cookie, came_with: str, times: Times | None) -> None:
        self._store = store
        self._cookie = cookie
        self._came_with = came_with
        self._times = times
        self.visit: Visit | None = None

    def __call__(self) -> Visit:
        if self.visit is None:
            token = self._cookie.read(self._came_with)
            visit = visit_of(self._store.open(token, self._times))
            if self.visit is None:  # Another thread of the request may have been sooner.
                self.visit = visit
        return self.visit


class Exchange:
    """Open the session of a request's cookie, and tell the browser of its fate.

    A middleware, or the adapter of a framework, knows the parts of a response and the moment of the
    first header. Either calls `commit` before the first header, then `headers`, and at the end
    `close`; or `abandon`, if the request fails before the commit. An adapter for a framework with
    rules of its own for the cookie overrides `cookie_after`.
    """

    __slots__ = (
        "_begins",
        "_committed",
        "_cookies",
        "_has_failed",
        "_host",
        "_opening",
        "_scheme",
        "_set_cookie",
        "_store",
        "cookie",
        "is_running",
        "session",
    )

    def __init__(
        self,
        store: Store,
        cookies: CookiePolicy,
        environ: WSGIEnvironment,
        times: Times | None = None,
    ) -> None:
        self._store = store
        self._cookies = cookies
        # The environ itself would be a cycle, and keep uploads until the garbage collector comes.
        self._scheme: str = environ.get("wsgi.url_scheme", "")
        self._host: str | None = environ.get("HTTP_HOST") or environ.get("SERVER_NAME")
        self._committed = self._begins = self._has_failed = False
        self._set_cookie: str | None = None
        # Whether the application is at work just now, perhaps calling another middleware of ours.
        self.is_running: bool = False
        self.cookie: Cookie = cookies.cookie_for(environ)
        came_with = environ.get("HTTP_COOKIE", "")
        self._opening = _Opening(store, self.cookie, came_with, times)
        self.session: Session = unopened(self._opening)
        # Where an application looks, and where other parts of ours do.
        environ[KEY], environ[EXCHANGE] = self.session, self

    @property
    def visit(self) -> Visit:
        """The visit beneath the session."""
        return self._opening.visit or self._opening()

    @property
    def is_untouched(self) -> bool:
        """Whether the application has not used the session so far."""
        visit = self._opening.visit
        return visit is None or visit.state is State.UNTOUCHED

    def commit(self, status: str) -> None:
        """Store the session, before the first header of a response with a status goes out.

        A response of 5xx has failed: only `destroy()` is carried out. If another response takes the
        place of a committed response, the session stays the same. Raises `SessionDataError`, and
        `StoreError`, even where the framework has caught the error and made a 500.
        """
        self._has_failed, visit = status.startswith("5"), self._opening.visit
        if visit is None or visit.state is State.UNTOUCHED or self._committed:
            return
        if status.startswith("500") and type(visit.known) is Failure:
            raise visit.known.error
        if self._has_failed:
            visit.discard()
        try:
            outcome = self._store.flush(self.session)
        except StoreError as error:  # No second try in the same request.
            visit.state, visit.known = State.ENDED, Failure(error)
            raise
        self._begins = outcome is Outcome.CREATED
        if outcome is not Outcome.KEPT and outcome is not Outcome.ENDED:
            self._set_cookie = self.cookie_after(outcome)
        self._committed = True

    def headers(self, headers: Headers) -> Headers:
        """Return the application's headers, or a list of them and of ours."""
        if self.is_untouched:
            return headers
        headers = list(headers)
        vary_on_cookie(headers)
        if self._set_cookie is not None:
            if self._begins:
                make_private(headers)
            else:
                keep_cookie_private(headers)
            headers.append(("Set-Cookie", self._set_cookie))
        return headers

    def abandon(self) -> None:
        """Give up a request failed before the commit; only `destroy()` is carried out."""
        visit = self._opening.visit
        if visit is None or type(visit.known) is Failure:
            return
        if visit.state is State.DESTROYED and not self._store.destroy(self.session):
            visit.state = State.ENDED  # No second try in the same request.

    def discard(self) -> None:
        """Give up the changes since the commit, and until the end: the response has failed too."""
        self._has_failed = True

    def watched(self, body: Iterable[Any]) -> Any:
        """Return the streamed body of a framework's response; its `close` closes the exchange too.

        A body that raises has failed.
        """

        def items() -> Iterator[Any]:
            try:
                for item in body:  # noqa: UP028 -- `yield from` would close `body` a first time.
                    yield item
            except GeneratorExit:
                raise
            except BaseException:
                self.discard()
                raise

        def close() -> None:
            with closing(self):
                getattr(body, "close", lambda: None)()

        return ClosingIterator(items(), close)

    def close(self) -> None:
        """Write the changes after the commit, if the browser has a cookie for the session."""
        visit = self._opening.visit
        if visit is None:
            return
        if self._has_failed:
            visit.discard()
        if visit.state is State.DESTROYED:
            begins = visit.begins
            visit.discard()
            self._store.flush(self.session)
            if begins:
                warn(_FILLED_TOO_LATE)
        elif visit.state is State.REGENERATED:
            warn(
                "A session was logged in or regenerated after its response had begun. This and "
                "what else was changed since is lost, because the browser can get no new token."
            )
        elif visit.state is State.OPEN and visit.has_changes:
            self._write_late(visit)

    def _write_late(self, visit: Visit) -> None:
        if visit.record is None:
            visit.look()
        if visit.record is not None:
            self._store.flush(self.session)
        elif type(visit.known) is Nothing:
            warn(_FILLED_TOO_LATE)

    def cookie_after(self, outcome: Outcome) -> str | None:
        """Return the Set-Cookie header for the browser, if any."""
        if outcome is Outcome.DESTROYED:
            return self.cookie.expire()
        cookie, visit = self.cookie, self.visit
        if visit.kind is True:  # Remembered: the cookie outlives the browser.
            cookie = _lasting(cookie, visit.times.remember)
        if outcome is Outcome.RENEWED and cookie.max_age is None and not visit.changed_kind:
            return None
        return self._cookies.issue(cookie, visit.token, self._scheme, self._host)


@lru_cache(maxsize=256)
def _lasting(cookie: Cookie, max_age: timedelta) -> Cookie:
    """Return a cookie with a Max-Age; cached, because a copy takes microseconds."""
    return replace(cookie, max_age=max_age)

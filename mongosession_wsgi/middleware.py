"""The WSGI protocol and the commit: the way of a request through this package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from enum import Enum
from typing import TYPE_CHECKING, Any

from .caching import Headers, keep_cookie_private, vary_on_cookie
from .cookie import Cookie, CookiePolicy
from .errors import StoreError, logger, warn
from .session import Session, State
from .settings import Settings
from .store import MongoStore, Outcome

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

KEY = "mongosession"
"""Where an application finds its session in the `environ`."""

_UNAVAILABLE = b"The session store is unavailable. Please try again in a moment.\n"
_UNAVAILABLE_HEADERS = [
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Retry-After", "5"),
    ("Cache-Control", "no-store"),
    ("Vary", "Cookie"),
]


class SessionMiddleware:
    """Give every request to `app` its session, and store it before the response goes out.

    `settings` is the flat mapping of `mongodb_*` and `session_*` keys; keys of other owners in it
    are ignored. `store` replaces the one that is made of the settings. Raises `SettingsError`.
    """

    def __init__(
        self,
        app: WSGIApplication,
        settings: Mapping[str, Any] | Settings,
        *,
        store: MongoStore | None = None,
    ) -> None:
        parsed = Settings.parse(settings)
        self._app = app
        self._cookies = CookiePolicy(parsed)
        self._store = MongoStore(parsed) if store is None else store

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if isinstance(environ.get(KEY), Session):  # An outer middleware of ours has put it there.
            return self._app(environ, start_response)
        cookie = self._cookies.cookie_for(environ)
        session = environ[KEY] = self._store.open(cookie.read(environ))
        response = _Response(self._store, session, self._cookies, cookie, environ, start_response)
        try:
            response.body = body = self._app(environ, response.start)
            if response.started and _is_whole(body, environ):
                response.commit()
                return body
            return response
        except StoreError as error:
            with closing(response):
                return [response.refuse(error)]
        except BaseException:
            with closing(response):
                response.abandon()
                raise


class _Phase(Enum):
    HELD = "the server has not heard of the response yet"
    COMMITTED = "the session is stored, and the server has the headers"
    ABANDONED = "the request failed; nothing is to be stored any more"


class _Response:
    """The response on its way, held back until its session is stored."""

    __slots__ = (
        "_cookie",
        "_cookies",
        "_environ",
        "_held",
        "_phase",
        "_session",
        "_set_cookie",
        "_start_response",
        "_store",
        "_write",
        "body",
    )

    def __init__(
        self,
        store: MongoStore,
        session: Session,
        cookies: CookiePolicy,
        cookie: Cookie,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> None:
        self._store = store
        self._session = session
        self._cookies = cookies
        self._cookie = cookie
        self._environ = environ
        self._start_response = start_response
        self._phase = _Phase.HELD
        self._held: tuple[str, Headers] | None = None
        self._set_cookie: str | None = None
        self._write: Callable[[bytes], object]
        self.body: Iterable[bytes] = ()

    @property
    def started(self) -> bool:
        return self._held is not None

    def start(
        self, status: str, headers: Headers, exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        """Be the application's `start_response` (PEP 3333): hold back what the server is to get."""
        if self._phase is _Phase.COMMITTED:
            return self._start_response(status, self._with_ours(headers), exc_info)
        if self._held is not None and exc_info is None:
            raise AssertionError("start_response was called again without exc_info (PEP 3333)")
        self._held = status, list(headers)
        return self.write

    def write(self, data: bytes) -> None:
        self.commit()
        self._write(data)

    def __iter__(self) -> Iterator[bytes]:
        try:
            for item in self.body:
                self.commit()
                yield item
            self.commit()
        except StoreError as error:
            yield self.refuse(error)
        except BaseException:
            self.abandon()
            raise

    def close(self) -> None:
        close, self.body = getattr(self.body, "close", None), ()
        try:
            if close is not None:
                close()
        finally:
            if self._phase is _Phase.COMMITTED:
                self._store_late_changes()
            else:
                self.abandon()

    def commit(self) -> None:
        """Store the session, then hand the headers to the server: once, and in this order."""
        if self._phase is _Phase.COMMITTED:
            return
        if self._held is None:
            raise AssertionError("the application did not call start_response (PEP 3333)")
        status, headers = self._held
        if status.startswith("500") and self._session.failure is not None:
            raise self._session.failure  # Which the framework has caught and made a 500 of.
        if status.startswith("5"):
            self._session.discard()
        outcome = self._store.flush(self._session)
        self._set_cookie = self._cookie_after(outcome)
        self._phase = _Phase.COMMITTED
        self._write = self._start_response(status, self._with_ours(headers))

    def abandon(self) -> None:
        """Give up a request that failed before its commit; only `destroy()` is carried out."""
        if self._phase is _Phase.HELD:
            self._phase = _Phase.ABANDONED
            if self._session.state is State.DESTROYED:
                self._store.destroy(self._session)

    def refuse(self, error: StoreError) -> bytes:
        """Answer 503 for a request whose session could not be loaded or stored; return the body."""
        if self._phase is _Phase.COMMITTED:
            raise error
        self._phase = _Phase.ABANDONED
        logger.error("Answered 503: %s", error, exc_info=error)
        self._start_response("503 Service Unavailable", list(_UNAVAILABLE_HEADERS))
        return b"" if self._environ["REQUEST_METHOD"] == "HEAD" else _UNAVAILABLE

    def _cookie_after(self, outcome: Outcome) -> str | None:
        """Return the Set-Cookie header that the browser needs now, if any."""
        token = self._session.claim
        if outcome is Outcome.DESTROYED:
            return self._cookie.expire()
        renewed = outcome is Outcome.RENEWED and self._cookie.max_age is not None
        if token is not None and (renewed or outcome is Outcome.CREATED):
            return self._cookies.issue(self._cookie, token, self._environ)
        return None

    def _with_ours(self, headers: Headers) -> Headers:
        """Return the application's headers and ours, in a list of its own."""
        headers = list(headers)
        if self._session.state is not State.UNTOUCHED:
            vary_on_cookie(headers)
        if self._set_cookie is not None:
            keep_cookie_private(headers)
            headers.append(("Set-Cookie", self._set_cookie))
        return headers

    def _store_late_changes(self) -> None:
        """Write what was changed after the commit, if the browser has a cookie for it."""
        session = self._session
        if session.state is State.DESTROYED:
            session.discard()
            self._store.flush(session)
        elif session.state is State.REGENERATED:
            warn(
                "A session was logged in or regenerated after its response had begun. This and "
                "what else was changed since is lost, because the browser can get no new token."
            )
        elif session.state is State.OPEN and session.changes().any:
            if session.id is not None:
                self._store.flush(session)
            elif session.state is State.OPEN:
                warn(
                    "A session was first filled after its response had begun. It is not stored, "
                    "because the browser can get no cookie; fill it before the first item."
                )


def _is_whole(body: Iterable[bytes], environ: WSGIEnvironment) -> bool:
    """Say whether the server is to have `body` itself: to count it, or to send it as a file."""
    wrapper = environ.get("wsgi.file_wrapper")
    return hasattr(body, "__len__") or (isinstance(wrapper, type) and isinstance(body, wrapper))

"""The WSGI protocol and the commit: the way of a request through this package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from enum import Enum
from typing import TYPE_CHECKING, Any

from .cookie import CookiePolicy
from .errors import StoreError, logger
from .exchange import RETRY_AFTER, UNAVAILABLE, Exchange
from .headers import Headers
from .session import Session
from .settings import Settings
from .store import MongoStore, Store

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

KEY = "mongosession"
"""Where an application finds its session in the `environ`."""

_UNAVAILABLE_HEADERS = [
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Retry-After", f"{RETRY_AFTER}"),
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
        store: Store | None = None,
    ) -> None:
        parsed = Settings.parse(settings)
        self._app = app
        self._cookies = CookiePolicy(parsed)
        self._store: Store = MongoStore(parsed) if store is None else store

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if KEY in environ and isinstance(environ[KEY], Session):  # By an outer one of ours.
            return self._app(environ, start_response)
        exchange = Exchange(self._store, self._cookies, environ)
        environ[KEY] = exchange.session
        response = _Response(exchange, environ, start_response)
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
        "_environ",
        "_exchange",
        "_held",
        "_phase",
        "_start_response",
        "_write",
        "body",
    )

    def __init__(
        self, exchange: Exchange, environ: WSGIEnvironment, start_response: StartResponse
    ) -> None:
        self._exchange = exchange
        self._environ = environ
        self._start_response = start_response
        self._phase = _Phase.HELD
        self._held: tuple[str, Headers] | None = None
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
            return self._start_response(status, self._exchange.headers(headers), exc_info)
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
                self._exchange.close()
            else:
                self.abandon()

    def commit(self) -> None:
        """Store the session, then hand the headers to the server: once, and in this order."""
        if self._phase is _Phase.COMMITTED:
            return
        if self._held is None:
            raise AssertionError("the application did not call start_response (PEP 3333)")
        status, headers = self._held
        self._exchange.commit(status)
        self._phase = _Phase.COMMITTED
        self._write = self._start_response(status, self._exchange.headers(headers))

    def abandon(self) -> None:
        """Give up a request that failed before its commit; only `destroy()` is carried out."""
        if self._phase is _Phase.HELD:
            self._phase = _Phase.ABANDONED
            self._exchange.abandon()

    def refuse(self, error: StoreError) -> bytes:
        """Answer 503 for a request whose session could not be loaded or stored; return the body."""
        if self._phase is _Phase.COMMITTED:
            raise error
        self._phase = _Phase.ABANDONED
        logger.error("Answered 503: %s", error, exc_info=error)
        self._start_response("503 Service Unavailable", list(_UNAVAILABLE_HEADERS))
        return b"" if self._environ["REQUEST_METHOD"] == "HEAD" else f"{UNAVAILABLE}\n".encode()


def _is_whole(body: Iterable[bytes], environ: WSGIEnvironment) -> bool:
    """Say whether the server is to have `body` itself: to count it, or to send it as a file."""
    wrapper = environ.get("wsgi.file_wrapper")
    return hasattr(body, "__len__") or (isinstance(wrapper, type) and isinstance(body, wrapper))

"""The WSGI protocol and the commit: the way of a request through the package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import StoreError, logger
from .exchange import (
    EXCHANGE,
    REFUSAL,
    UNAVAILABLE,
    Exchange,
    Exchanges,
    is_handshake,
    session_around,
)
from .headers import Headers
from .settings import Settings
from .store import Store

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


T = TypeVar("T")

_END: Any = object()
_OF_SEQUENCES = (list.__iter__, tuple.__iter__)
_WRAPPER = "wsgi.file_wrapper"
_TEXT = [("Content-Type", "text/plain; charset=utf-8"), ("Vary", "Cookie")]


class SessionMiddleware:
    """Give every request to `app` its session, and store it before the response goes out.

    `settings` is the flat mapping of `mongodb_*` and `session_*` keys; other keys are ignored.
    `store` replaces the store made of the settings. Raises `SettingsError`.
    """

    def __init__(
        self,
        app: WSGIApplication,
        settings: Mapping[str, Any] | Settings,
        *,
        store: Store | None = None,
    ) -> None:
        self._app = app
        self._exchanges = Exchanges(settings, store)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if EXCHANGE in environ and session_around(environ) is not None:
            return self._app(environ, start_response)  # An outer middleware of ours commits.
        exchange = self._exchanges.open(environ)
        response = _Response(exchange, environ, start_response)
        exchange.is_running = True
        try:
            response.body = body = self._app(environ, response.start)
            if response.held is not None and (type(body) is list or _is_whole(body, environ)):
                response.commit()
                return body
            return response
        except StoreError as error:
            with closing(response):
                return [response.refuse(error)]
        except BaseException as error:
            with closing(response):
                # Some WebSocket's handlers end so, after they took the socket over.
                if isinstance(error, StopIteration) and is_handshake(environ):
                    response.leave()
                response.abandon()
                raise
        finally:
            exchange.is_running = False


class _FileWrapper:
    """A server's `wsgi.file_wrapper` that is a function, as of uWSGI, and the last body made."""

    __slots__ = ("_own", "made")

    def __init__(self, own: Callable[..., Iterable[bytes]]) -> None:
        self._own = own
        self.made: Iterable[bytes] = _END

    def __call__(self, *arguments: Any) -> Iterable[bytes]:
        self.made = self._own(*arguments)
        return self.made


class _Phase(Enum):
    HELD = "the server has not heard of the response yet"
    COMMITTED = "the session is stored, and the server has the headers"
    ABANDONED = "the request failed; nothing is to be stored any more"
    LEFT = "the application took the socket over, and answers by itself"


class _Response:
    """A response on the way, held back until the session is stored."""

    __slots__ = (
        "_environ",
        "_exchange",
        "_failure",
        "_phase",
        "_start_response",
        "_write",
        "body",
        "held",
    )

    def __init__(
        self, exchange: Exchange, environ: WSGIEnvironment, start_response: StartResponse
    ) -> None:
        self._exchange = exchange
        self._environ = environ
        self._start_response = start_response
        self._phase = _Phase.HELD
        # The error that has the response end as a failure, though the application may go on.
        self._failure: BaseException | None = None
        # The status and the headers from the application, until the server has them.
        self.held: tuple[str, Headers] | None = None
        self._write: Callable[[bytes], object]
        self.body: Iterable[bytes] = ()
        wrapper = environ.get(_WRAPPER)
        if wrapper is not None and not isinstance(wrapper, (type, _FileWrapper)):
            environ[_WRAPPER] = _FileWrapper(wrapper)

    def start(
        self, status: str, headers: Headers, exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        """Be the application's `start_response` (PEP 3333): hold back the status and headers."""
        if self._phase is _Phase.COMMITTED:
            if status.startswith("5"):
                self.abandon()
            return self._start_response(status, self._exchange.headers(headers), exc_info)
        if self.held is not None and exc_info is None:
            raise AssertionError("start_response was called again without exc_info (PEP 3333)")
        if exc_info is not None:
            error = exc_info[1]  # Uncaught, where a framework makes a 500 of the error.
            is_uncaught = status.startswith("500") and isinstance(error, StoreError)
            self._failure = error if is_uncaught else None
        self.held = status, list(headers)
        return self.write

    def write(self, data: bytes) -> None:
        self.commit()
        self._write(data)

    def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call the application, which may call another middleware of ours within."""
        self._exchange.is_running = True
        try:
            return call(*arguments)
        finally:
            self._exchange.is_running = False

    def __iter__(self) -> Iterator[bytes]:
        try:
            items = self.run(iter, self.body)
            while (item := self.run(next, items, _END)) is not _END:
                self.commit()
                yield item
            if self.held is None and is_handshake(self._environ):
                self.leave()
            else:
                self.commit()
        except StoreError as error:
            yield self.refuse(error)
        except GeneratorExit:
            raise
        except BaseException:
            self.abandon()
            raise

    def close(self) -> None:
        close, self.body, self._failure = getattr(self.body, "close", None), (), None
        try:
            if close is not None:
                self.run(close)
        finally:
            if self._phase is _Phase.COMMITTED:
                self._exchange.close()
            else:
                self.abandon()

    def commit(self) -> None:
        """Store the session, then hand the headers to the server: once, and in this order."""
        if self._phase is _Phase.COMMITTED:
            return
        if self._failure is not None:
            raise self._failure
        if self.held is None:
            raise AssertionError("the application did not call start_response (PEP 3333)")
        status, headers = self.held
        exchange = self._exchange
        if not exchange.is_untouched:
            try:
                exchange.commit(status)
            except BaseException as error:
                self._failure = error  # An application may swallow the errors of `write`.
                raise
            headers = exchange.headers(headers)
        elif status.startswith("5"):
            exchange.discard()
        self._phase, self.held = _Phase.COMMITTED, None
        self._write = self._start_response(status, headers)

    def leave(self) -> None:
        """Store the changes of a live session by an application that took the socket over."""
        if self._phase is _Phase.HELD:
            self._phase = _Phase.LEFT
            try:
                self._exchange.close()
            except StoreError as error:  # Nobody could be answered.
                logger.error("What a WebSocket has changed is lost: %s", error, exc_info=error)

    def abandon(self) -> None:
        """Give up a failed request's changes, or those since the commit; carry out `destroy()`."""
        if self._phase is _Phase.COMMITTED:
            self._exchange.discard()
        elif self._phase is not _Phase.LEFT:
            self._phase = _Phase.ABANDONED
            self._exchange.abandon()

    def refuse(self, error: StoreError) -> bytes:
        """Answer 503 for a request whose session could not be loaded or stored; return the body."""
        self.abandon()
        if self._phase is _Phase.COMMITTED:
            raise error
        logger.error("Answered 503: %s", error, exc_info=error)
        self._start_response("503 Service Unavailable", [*_TEXT, *REFUSAL.items()])
        return b"" if self._environ["REQUEST_METHOD"] == "HEAD" else f"{UNAVAILABLE}\n".encode()


def _is_whole(body: Iterable[bytes], environ: WSGIEnvironment) -> bool:
    """Say whether the server gets the `body` itself, to count items or to send a file."""
    wrapper = environ.get(_WRAPPER)
    if isinstance(wrapper, _FileWrapper) and body is wrapper.made:
        return True
    if isinstance(wrapper, type) and isinstance(body, wrapper):
        return True
    return getattr(type(body), "__iter__", None) in _OF_SEQUENCES and not hasattr(body, "close")

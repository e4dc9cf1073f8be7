"""Connections in time: a call that cannot be interrupted has a thread of its own.

The look-up of a name is a call of the operating system, and no timeout of the driver ends such a
call. Each new connection looks a name up: the first, and any later by which the driver's pool grows
or replaces a connection that was idle for too long.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from threading import BoundedSemaphore, Thread
from typing import Any, TypeVar

from pymongo.client_session import ClientSession

from .failures import LookUpTimeoutError

try:
    from pymongo import _csot
    from pymongo._csot import TIMEOUT
    from pymongo.synchronous.pool import Connection, Pool
except ImportError:  # Neither is public. Without them, look-ups take the time that they take.
    OPTIONS: dict[str, Any] = {}

    def remaining() -> float | None:
        """Return the seconds that are left to the command of this thread; None for no limit."""
        return None

    def timeout_around() -> float | None:
        """Return the seconds of the `pymongo.timeout` around the call, as if it had no limit."""
        return 0

else:

    def remaining() -> float | None:
        """Return the seconds that are left to the command of this thread; None for no limit."""
        return _csot.remaining()

    timeout_around = TIMEOUT.get
    """Return the seconds of the `pymongo.timeout` around the call, 0 for no limit, or None.

    Where there is one, the driver forgets the client's own.
    """

    class _PatientPool(Pool):
        """A pool whose new connections are waited for in time, and no longer."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._threads = BoundedSemaphore(_MOST_THREADS)

        def connect(self, *args: Any, **kwargs: Any) -> Connection:
            """Make a connection, or raise an error when the time of the command is up."""
            left, connect = remaining(), super().connect
            if left is None:
                return connect(*args, **kwargs)

            def make() -> Connection:
                try:
                    return connect(*args, **kwargs)
                finally:
                    self._leave()

            if not self._threads.acquire(timeout=max(left, 0)):
                raise LookUpTimeoutError("no connection in time")
            try:
                made: futures.Future[Connection] = futures.Future()
                begin(made, make, lambda connection: connection.close_conn(None))
            except RuntimeError:  # No thread is to be had.
                return make()
            except BaseException:  # Of the handler of a signal.
                self._leave()
                raise
            return result_of(made, left + _GRACE)

        def _leave(self) -> None:
            with suppress(ValueError):  # The thread had begun, and has left already.
                self._threads.release()

    OPTIONS = {"_pool_class": _PatientPool}

_HOME_OF_SESSIONS = sys.modules[ClientSession.__module__]
BOUND: ContextVar[Any] = getattr(_HOME_OF_SESSIONS, "_SESSION", ContextVar("_", default=None))
"""The session that the application has bound; not public, and older drivers have none."""

T = TypeVar("T")

_MOST_THREADS = 2
"""The threads of a pool that connect at the same time; the driver has the same limit."""
_GRACE = 0.05
"""Seconds by which the driver's own error, with more words, may come first."""


@contextmanager
def unbound() -> Iterator[None]:
    """Run commands outside of a session or a transaction of the application's own.

    By `ClientSession.bind`, the driver would take that for any command, and by any client.
    """
    token = BOUND.set(None)
    try:
        yield
    finally:
        BOUND.reset(token)


def begin(
    future: futures.Future[T],
    make: Callable[[], T],
    discard: Callable[[T], object],
) -> None:
    """Call `make` in a daemon thread, and put the result or the error into the future.

    The result of a future that was cancelled meanwhile is discarded. Raises `RuntimeError` if there
    is no thread to be had.
    """

    def run() -> None:
        try:
            made = make()
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            with suppress(futures.InvalidStateError):
                future.set_exception(error)
            return
        try:
            future.set_result(made)
        except futures.InvalidStateError:
            discard(made)

    Thread(target=copy_context().run, args=[run], name="mongosession connect", daemon=True).start()


def result_of(future: futures.Future[T], seconds: float) -> T:
    """Wait so many seconds for a result, then give the result up for good."""
    try:
        return future.result(seconds)
    except futures.TimeoutError:
        if not future.cancel():  # The result came at the last moment, or `make` raised the error.
            return future.result()
        raise LookUpTimeoutError("no connection in time") from None
    finally:
        future.cancel()

"""One request and its response, as far as the session is concerned: from cookie to Set-Cookie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .cookie import CookiePolicy
from .errors import warn
from .headers import Headers, keep_cookie_private, vary_on_cookie
from .session import State
from .store import Outcome, Store

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


UNAVAILABLE = "The session store is unavailable. Please try again in a moment."
"""What a visitor is told whose session could be neither loaded nor stored, with a 503."""
RETRY_AFTER = 5
"""The seconds after which he is to try again."""


class Exchange:
    """Open the session that a request's cookie stands for, and tell its browser what became of it.

    What a response is made of, and when its first header goes out, is for a middleware to know, or
    for the adapter of a framework. Either calls `commit` before, then `headers`, and at the end
    `close`; or `abandon`, if the request fails before its commit. An adapter whose framework has
    rules of its own for the cookie overrides `cookie_after`.
    """

    __slots__ = (
        "_committed",
        "_cookies",
        "_environ",
        "_set_cookie",
        "_store",
        "cookie",
        "session",
    )

    def __init__(self, store: Store, cookies: CookiePolicy, environ: WSGIEnvironment) -> None:
        self._store = store
        self._cookies = cookies
        self._environ = environ
        self._committed = False
        self._set_cookie: str | None = None
        self.cookie = cookies.cookie_for(environ)
        self.session = store.open(self.cookie.read(environ))

    def commit(self, status: str) -> None:
        """Store the session, before the first header of a response with this status goes out.

        A response of 5xx has failed: only `destroy()` is carried out. If another response takes the
        place of one that was committed, the session stays as it is. Raises `StoreError`, also where
        the framework has caught one and made a 500 of it, and `SessionDataError`.
        """
        session = self.session
        if session.state is State.UNTOUCHED or self._committed:
            return
        if status.startswith("500") and session.failure is not None:
            raise session.failure
        if status.startswith("5"):
            session.discard()
        self._set_cookie = self.cookie_after(self._store.flush(session))
        self._committed = True

    def headers(self, headers: Headers) -> Headers:
        """Return the application's headers and ours, in a list of its own."""
        headers = list(headers)
        if self.session.state is not State.UNTOUCHED:
            vary_on_cookie(headers)
        if self._set_cookie is not None:
            keep_cookie_private(headers)
            headers.append(("Set-Cookie", self._set_cookie))
        return headers

    def abandon(self) -> None:
        """Give up a request that failed before its commit; only `destroy()` is carried out."""
        if self.session.state is State.DESTROYED:
            self._store.destroy(self.session)

    def close(self) -> None:
        """Write what was changed after the commit, if the browser has a cookie for it."""
        session = self.session
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

    def cookie_after(self, outcome: Outcome) -> str | None:
        """Return the Set-Cookie header that the browser needs now, if any."""
        token = self.session.claim
        if outcome is Outcome.DESTROYED:
            return self.cookie.expire()
        renewed = outcome is Outcome.RENEWED and self.cookie.max_age is not None
        if token is not None and (renewed or outcome is Outcome.CREATED):
            return self._cookies.issue(self.cookie, token, self._environ)
        return None

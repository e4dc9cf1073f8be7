"""Take forms only from the shop's own pages, and not from another site (CSRF)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

REFUSAL = "Another site has sent this form. Open the shop, and send the form from there."


def own_forms_only(app: WSGIApplication) -> WSGIApplication:
    """Put a middleware around `app` that answers 403 to a form from elsewhere."""

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not is_from_elsewhere(environ):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [REFUSAL.encode()]

    return checked


def is_from_elsewhere(environ: WSGIEnvironment) -> bool:
    """Say whether a page of another site has the browser send a request.

    Today's browsers say so in Sec-Fetch-Site; older browsers name the site in Origin. A client
    without both headers is no browser, so that no other site can send with the visitor's cookie.
    """
    if environ["REQUEST_METHOD"] in ("GET", "HEAD", "OPTIONS"):
        return False
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site:
        return site not in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    return origin is not None and urlsplit(origin).netloc != environ.get("HTTP_HOST")

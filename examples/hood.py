"""The Bottle shop, with a panel beside the shop: what sessions do under the hood.

Run this shop in its folder: gunicorn hood:app
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any

from bottle import request
from bottle_shop import app as shop
from bottle_shop import store
from browser import sha256_of
from own_forms import own_forms_only
from panel import masked, panel
from promises import GATE, PROMISES, Step, Tab, is_expired
from wiretap import COOKIE, Answer, listen

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from pymongo.collection import Collection

OWN_COOKIE = "under_the_hood"
"""The cookie of the panel, which knows a browser also after the session has ended."""

REQUESTS = 3
"""The number of a browser's last requests that the panel shows."""


class Hood:
    """Put the panel on each page of `shop`, and act out the promises of the buttons.

    The notes on a browser's requests are in MongoDB, too: the page after a form may come from
    another process.
    """

    def __init__(self, shop: WSGIApplication) -> None:
        self._shop = shop

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        cookies = cookies_of(environ)
        browser = cookies.get(OWN_COOKIE) or secrets.token_hex(16)
        promise = PROMISES.get(environ["PATH_INFO"].removeprefix("/promises/"))
        if promise is not None and environ["REQUEST_METHOD"] == "POST":
            answer = self._act_out(promise, browser, environ)
        else:
            answer = listen(self._shop, environ)
            self._note(browser, environ, answer)
        headers, body = list(answer.headers), answer.body
        if b"</body>" in body:
            html = self._panel(browser, token_after(answer, cookies))
            body = body.replace(b"</body>", html.encode() + b"</body>")
            headers = [(name, value) for name, value in headers if name != "Content-Length"]
            headers.append(("Content-Length", str(len(body))))
        if OWN_COOKIE not in cookies:
            attributes = "HttpOnly; Path=/; SameSite=Lax"
            headers.append(("Set-Cookie", f"{OWN_COOKIE}={browser}; {attributes}"))
        start_response(answer.status, headers)
        return [body]

    def _act_out(
        self, promise: Callable[[Tab], Iterator[Step]], browser: str, environ: WSGIEnvironment
    ) -> Answer:
        """Act out a promise with the browser's session, and note the steps for the next page."""
        tab = Tab(self._shop, environ, environ.get("HTTP_COOKIE", ""))
        told = {"title": promise.__doc__, "steps": [step.as_dict() for step in promise(tab)]}
        changes: dict[str, Any] = {"told": told}
        headers = [("Location", "/"), ("Content-Length", "0")]
        if tab.set_cookie is not None:
            headers.append(("Set-Cookie", tab.set_cookie))
            changes["cookie"] = masked(tab.set_cookie)
        self._browsers.update_one({"_id": browser}, {"$set": changes}, upsert=True)
        return Answer("303 See Other", headers, b"", [])

    def _note(self, browser: str, environ: WSGIEnvironment, answer: Answer) -> None:
        """Note the commands of a request, for the panel of the page or of the next page."""
        cookie = answer.set_cookie and masked(answer.set_cookie)
        noted = {
            "line": f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}",
            "status": answer.status,
            "cookie": cookie,
            "commands": [command._asdict() for command in answer.commands],
        }
        change: dict[str, Any] = {"$push": {"requests": {"$each": [noted], "$slice": -REQUESTS}}}
        if cookie is not None:
            change["$set"] = {"cookie": cookie}
        self._browsers.update_one({"_id": browser}, change, upsert=True)

    @property
    def _browsers(self) -> Collection[dict[str, Any]]:
        return store.collection.database["browsers"]

    def _panel(self, browser: str, token: str | None) -> str:
        """Return the panel for a page of the browser; show the steps of a promise once."""
        notes = self._browsers.find_one_and_update({"_id": browser}, {"$unset": {"told": ""}}) or {}
        sessions = store.collection.database["sessions"]
        document = sessions.find_one({"_id": sha256_of(token)}) if token else None
        return panel(
            cookie=notes.get("cookie") if token else None,
            document=document,
            requests=notes.get("requests", []),
            told=notes.get("told"),
        )


def cookies_of(environ: WSGIEnvironment) -> dict[str, str]:
    pairs = (pair.strip().partition("=") for pair in environ.get("HTTP_COOKIE", "").split(";"))
    return {name: value for name, _, value in pairs}


def token_after(answer: Answer, cookies: dict[str, str]) -> str | None:
    """Return the token of the browser after an answer, None if there is none."""
    if answer.set_cookie is None:
        return next((value for name, value in cookies.items() if name.endswith(COOKIE)), None)
    return None if is_expired(answer) else answer.set_cookie.partition(";")[0].partition("=")[2]


def slow(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Have a request with a gate wait there, between the handler's end and the commit."""

    @wraps(handler)
    def waiting(*arguments: Any, **named: Any) -> Any:
        try:
            return handler(*arguments, **named)
        finally:
            if (gate := request.environ.get(GATE)) is not None:
                gate.wait()

    return waiting


shop.install(slow)
app = own_forms_only(Hood(shop))

"""The session of a test client: look at the data, or give the client another session."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.cookies import SimpleCookie
from types import MappingProxyType
from typing import Any

from werkzeug.test import create_environ

from ..exchange import Exchanges
from ..session import Session
from ..store import MongoStore


@contextmanager
def session_of(client: Any, store: MongoStore) -> Iterator[Session]:
    """Open the session of a test client; after the block, store the session and set the cookie.

    `client` is Werkzeug's or Flask's test client, WebTest's `TestApp`, a client of httpx or
    Starlette, or the environ of requests to come, a dict. Of `store`, which the application uses
    too, come the settings of the cookie. What raises within the block leaves all as it was. Raises
    `TypeError` for other clients, and `ValueError` for one that would never send the cookie back.

        with session_of(client, store) as session:
            session.login("alice")
            session["cart"] = ["Assam"]
    """
    if _has_an_interface_of_ours(client):
        with client.session_transaction() as session:
            yield session
        return
    jar, exchanges = _jar_of(client), Exchanges(store.settings, store)
    environ = create_environ(base_url=jar.base_url, environ_overrides=jar.peer)
    cookie = exchanges.cookies.cookie_for(environ)
    if cookie.secure and jar.way_out is not None and environ["wsgi.url_scheme"] == "http":
        raise ValueError(
            f"session_of: the session's cookie is Secure at {jar.base_url}, so that this client, "
            f"as a browser, never sends it back; {jar.way_out}, or set session_secure to false"
        )
    token = jar.get(cookie.name)
    if token is not None:
        environ["HTTP_COOKIE"] = f"{cookie.name}={token}"
    exchange = exchanges.open(environ)
    yield exchange.session
    exchange.commit("200 OK")
    for header, value in exchange.headers([]):
        if header == "Set-Cookie":
            jar.set(cookie.name, SimpleCookie(value)[cookie.name].value, value)


def _has_an_interface_of_ours(client: Any) -> bool:
    """Say whether a client belongs to a Flask application with a session of ours."""
    interface = getattr(getattr(client, "application", None), "session_interface", None)
    return type(interface).__module__.startswith("mongosession_wsgi.")


def _jar_of(client: Any) -> _Jar:
    if isinstance(client, dict):
        return _OfEnviron(client)
    if hasattr(client, "cookiejar"):
        return _OfWebTest(client)
    if hasattr(client, "get_cookie"):
        return _OfWerkzeug(client)
    if hasattr(client, "base_url") and hasattr(getattr(client, "cookies", None), "jar"):
        return _OfHttpx(client)
    raise TypeError(
        f"session_of: a {type(client).__name__} is no test client that is known; give the environ "
        "of its requests, and hand on the Cookie header that is then in it"
    )


class _Jar(ABC):
    """The cookies of a client; an empty value deletes a cookie."""

    base_url = "http://localhost/"
    peer: Mapping[str, str] = MappingProxyType({})
    """What the environ of its requests says of where they come from."""
    way_out: str | None = None
    """How to have it send a Secure cookie; None where it sends each anyway."""

    @abstractmethod
    def get(self, name: str) -> str | None: ...

    @abstractmethod
    def set(self, name: str, value: str, header: str) -> None: ...


def _base_url(environ: dict[str, Any]) -> str:
    scheme, host = environ.get("wsgi.url_scheme", "http"), environ.get("HTTP_HOST", "localhost")
    return f"{scheme}://{host}/"


class _OfWerkzeug(_Jar):
    def __init__(self, client: Any) -> None:
        self._client = client

    def get(self, name: str) -> str | None:
        cookie = self._client.get_cookie(name)
        return None if cookie is None else str(cookie.value)

    def set(self, name: str, value: str, header: str) -> None:  # noqa: ARG002
        if value:
            self._client.set_cookie(name, value)
        else:
            self._client.delete_cookie(name)


class _OfWebTest(_Jar):
    way_out = 'write TestApp(app, extra_environ={"wsgi.url_scheme": "https", ...})'

    def __init__(self, client: Any) -> None:
        self._client = client
        self.base_url = _base_url(client.extra_environ)

    def get(self, name: str) -> str | None:
        value = self._client.cookies.get(name)
        return None if value is None else str(value)

    def set(self, name: str, value: str, header: str) -> None:  # noqa: ARG002
        for cookie in self._cookies(name):
            self._client.cookiejar.clear(cookie.domain, cookie.path, name)
        if value:
            self._client.set_cookie(name, value)
            for cookie in self._cookies(name):
                cookie.value = value  # WebTest puts values into quotes.

    def _cookies(self, name: str) -> list[Any]:
        return [cookie for cookie in self._client.cookiejar if cookie.name == name]


class _OfEnviron(_Jar):
    def __init__(self, environ: dict[str, Any]) -> None:
        self._environ = environ
        self.base_url = _base_url(environ)

    def get(self, name: str) -> str | None:
        morsel = self._cookies().get(name)
        return None if morsel is None else morsel.value

    def set(self, name: str, value: str, header: str) -> None:  # noqa: ARG002
        cookies = self._cookies()
        cookies.pop(name, None)
        if value:
            cookies[name] = value
        self._environ["HTTP_COOKIE"] = cookies.output(attrs=[], header="", sep=";").strip()

    def _cookies(self) -> SimpleCookie:
        return SimpleCookie(self._environ.get("HTTP_COOKIE", ""))


class _OfHttpx(_Jar):
    way_out = 'give it base_url="https://testserver"'

    def __init__(self, client: Any) -> None:
        self._client = client
        self.base_url = str(client.base_url) or self.base_url
        transport = getattr(client, "_transport", None)
        # An address; Starlette's client has a word in its place.
        peer = getattr(transport, "remote_addr", None) or getattr(transport, "client", [None])[0]
        self.peer = {"REMOTE_ADDR": peer} if peer else {}

    def get(self, name: str) -> str | None:
        found = [cookie.value for cookie in self._client.cookies.jar if cookie.name == name]
        return found[0] if found else None

    def set(self, name: str, value: str, header: str) -> None:  # noqa: ARG002
        httpx = sys.modules[type(self._client.cookies).__module__.partition(".")[0]]
        response = httpx.Response(
            200,
            headers=[("Set-Cookie", header)],
            request=httpx.Request("GET", self.base_url),
        )
        self._client.cookies.extract_cookies(response)

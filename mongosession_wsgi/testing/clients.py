"""The session of a test client: look at the data, or give the client another session."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from types import MappingProxyType, SimpleNamespace
from typing import Any
from urllib.request import Request

from werkzeug.test import create_environ

from ..cookie import Cookie
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
    jar, exchanges = _jar_of(client, store.settings.domain), Exchanges(store.settings, store)
    environ = create_environ(base_url=jar.base_url, environ_overrides=jar.peer)
    cookie = exchanges.cookies.cookie_for(environ)
    if cookie.secure and jar.way_out is not None and environ["wsgi.url_scheme"] == "http":
        raise ValueError(
            f"session_of: the session's cookie is Secure at {jar.base_url}, so that this client, "
            f"as a browser, never sends it back; {jar.way_out}, or set session_secure to false"
        )
    token = jar.get(cookie)
    if token is not None:
        environ["HTTP_COOKIE"] = f"{cookie.name}={token}"
    exchange = exchanges.open(environ)
    yield exchange.session
    exchange.commit("200 OK")
    for header, value in exchange.headers([]):
        if header == "Set-Cookie":
            jar.set(cookie, exchange.visit.token, value)


def _has_an_interface_of_ours(client: Any) -> bool:
    """Say whether a client belongs to a Flask application with a session of ours."""
    interface = getattr(getattr(client, "application", None), "session_interface", None)
    return type(interface).__module__.startswith("mongosession_wsgi.")


def _jar_of(client: Any, domain: str | None) -> _Jar:
    if isinstance(client, dict):
        return _OfEnviron(client)
    if hasattr(client, "cookiejar"):
        return _OfWebTest(client)
    if hasattr(client, "get_cookie"):
        return _OfWerkzeug(client, domain)
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
    def get(self, cookie: Cookie) -> str | None: ...

    @abstractmethod
    def set(self, cookie: Cookie, value: str, header: str) -> None: ...


def _base_url(environ: dict[str, Any]) -> str:
    scheme, host = environ.get("wsgi.url_scheme", "http"), environ.get("HTTP_HOST", "localhost")
    return f"{scheme}://{host}/"


class _OfWerkzeug(_Jar):
    def __init__(self, client: Any, domain: str | None) -> None:
        self._client = client
        if domain is not None:
            self.base_url = f"http://{domain.removeprefix('.')}/"

    def get(self, cookie: Cookie) -> str | None:
        found = self._client.get_cookie(cookie.name, cookie.domain or "localhost", cookie.path)
        return None if found is None else str(found.value)

    def set(self, cookie: Cookie, value: str, header: str) -> None:  # noqa: ARG002
        place = {"domain": cookie.domain or "localhost", "path": cookie.path}
        if value:
            self._client.set_cookie(cookie.name, value, origin_only=cookie.domain is None, **place)
        else:
            self._client.delete_cookie(cookie.name, **place)


class _OfWebTest(_Jar):
    way_out = 'write TestApp(app, extra_environ={"wsgi.url_scheme": "https", ...})'

    def __init__(self, client: Any) -> None:
        self._client = client
        self.base_url = _base_url(client.extra_environ)

    def get(self, cookie: Cookie) -> str | None:
        value = self._client.cookies.get(cookie.name)
        return None if value is None else str(value)

    def set(self, cookie: Cookie, value: str, header: str) -> None:
        jar = self._client.cookiejar
        for one in [one for one in jar if one.name == cookie.name]:
            jar.clear(one.domain, one.path, one.name)
        if value:  # The jar is to keep the cookie where the jar keeps those of the application.
            answer = Message()
            answer["Set-Cookie"] = header
            request = Request(self.base_url)  # noqa: S310 -- nobody opens the address.
            jar.extract_cookies(SimpleNamespace(info=lambda: answer), request)


class _OfEnviron(_Jar):
    def __init__(self, environ: dict[str, Any]) -> None:
        self._environ = environ
        self.base_url = _base_url(environ)

    def get(self, cookie: Cookie) -> str | None:
        return cookie.read(self._environ.get("HTTP_COOKIE", ""))

    def set(self, cookie: Cookie, value: str, header: str) -> None:  # noqa: ARG002
        pairs = [pair.strip() for pair in self._environ.get("HTTP_COOKIE", "").split(";")]
        kept = [pair for pair in pairs if pair and pair.partition("=")[0] != cookie.name]
        ours = [f"{cookie.name}={value}"] if value else []
        self._environ["HTTP_COOKIE"] = "; ".join(kept + ours)


class _OfHttpx(_Jar):
    way_out = 'give it base_url="https://testserver"'

    def __init__(self, client: Any) -> None:
        self._client = client
        self.base_url = str(client.base_url) or self.base_url
        transport = getattr(client, "_transport", None)
        # An address; Starlette's client has a word in its place.
        peer = getattr(transport, "remote_addr", None) or getattr(transport, "client", [None])[0]
        self.peer = {"REMOTE_ADDR": peer} if peer else {}

    def get(self, cookie: Cookie) -> str | None:
        found = [one.value for one in self._client.cookies.jar if one.name == cookie.name]
        return found[0] if found else None

    def set(self, cookie: Cookie, value: str, header: str) -> None:  # noqa: ARG002
        httpx = sys.modules[type(self._client.cookies).__module__.partition(".")[0]]
        response = httpx.Response(
            200,
            headers=[("Set-Cookie", header)],
            request=httpx.Request("GET", self.base_url),
        )
        self._client.cookies.extract_cookies(response)

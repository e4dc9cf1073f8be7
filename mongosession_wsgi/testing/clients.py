"""The session of a test client: look at the data, or give the client another session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.cookies import SimpleCookie
from typing import Any, Protocol

from werkzeug.test import create_environ

from ..exchange import Exchanges
from ..session import Session
from ..store import MongoStore


@contextmanager
def session_of(client: Any, store: MongoStore) -> Iterator[Session]:
    """Open the session of a test client; after the block, store the session and set the cookie.

    `client` is Werkzeug's or Flask's test client, WebTest's `TestApp`, or the environ of requests
    to come, a dict. Of `store`, which the application uses too, come the settings of the cookie.
    What raises within the block leaves all as it was. Raises `TypeError` for other clients.

        with session_of(client, store) as session:
            session.login("alice")
            session["cart"] = ["Assam"]
    """
    if _has_an_interface_of_ours(client):
        with client.session_transaction() as session:
            yield session
        return
    jar, exchanges = _jar_of(client), Exchanges(store.settings, store)
    environ = create_environ(base_url=jar.base_url)
    name = exchanges.cookies.cookie_for(environ).name
    token = jar.get(name)
    if token is not None:
        environ["HTTP_COOKIE"] = f"{name}={token}"
    exchange = exchanges.open(environ)
    yield exchange.session
    exchange.commit("200 OK")
    for header, value in exchange.headers([]):
        if header == "Set-Cookie":
            jar.set(name, SimpleCookie(value)[name].value)


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
    raise TypeError(
        f"session_of: a {type(client).__name__} is no test client that is known; give the environ "
        "of its requests, and hand on the Cookie header that is then in it"
    )


class _Jar(Protocol):
    """The cookies of a client; an empty value deletes a cookie."""

    base_url: str

    def get(self, name: str) -> str | None: ...

    def set(self, name: str, value: str) -> None: ...


def _base_url(environ: dict[str, Any]) -> str:
    scheme, host = environ.get("wsgi.url_scheme", "http"), environ.get("HTTP_HOST", "localhost")
    return f"{scheme}://{host}/"


class _OfWerkzeug:
    def __init__(self, client: Any) -> None:
        self._client = client
        self.base_url = "http://localhost/"

    def get(self, name: str) -> str | None:
        cookie = self._client.get_cookie(name)
        return None if cookie is None else str(cookie.value)

    def set(self, name: str, value: str) -> None:
        if value:
            self._client.set_cookie(name, value)
        else:
            self._client.delete_cookie(name)


class _OfWebTest:
    def __init__(self, client: Any) -> None:
        self._client = client
        self.base_url = _base_url(client.extra_environ)

    def get(self, name: str) -> str | None:
        value = self._client.cookies.get(name)
        return None if value is None else str(value)

    def set(self, name: str, value: str) -> None:
        for cookie in self._cookies(name):
            self._client.cookiejar.clear(cookie.domain, cookie.path, name)
        if value:
            self._client.set_cookie(name, value)
            for cookie in self._cookies(name):
                cookie.value = value  # WebTest puts values into quotes.

    def _cookies(self, name: str) -> list[Any]:
        return [cookie for cookie in self._client.cookiejar if cookie.name == name]


class _OfEnviron:
    def __init__(self, environ: dict[str, Any]) -> None:
        self._environ = environ
        self.base_url = _base_url(environ)

    def get(self, name: str) -> str | None:
        morsel = self._cookies().get(name)
        return None if morsel is None else morsel.value

    def set(self, name: str, value: str) -> None:
        cookies = self._cookies()
        cookies.pop(name, None)
        if value:
            cookies[name] = value
        self._environ["HTTP_COOKIE"] = cookies.output(attrs=[], header="", sep=";").strip()

    def _cookies(self) -> SimpleCookie:
        return SimpleCookie(self._environ.get("HTTP_COOKIE", ""))

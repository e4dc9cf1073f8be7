"""A browser for tests: it calls a WSGI application in this process, under `wsgiref.validate`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any
from wsgiref.validate import validator

from mongosession_wsgi import Session

from .commands import RECORDER

KEY = "mongosession"
COOKIE = f"mongosession={'t' * 43}"
"""A cookie with a token of which nobody knows."""
DOWN = {
    "mongodb_session_db": "down",
    "mongodb_host": "127.0.0.1",
    "mongodb_port": "9",
    "mongodb_timeout_ms": "100",
}
"""The settings of a database that is not there."""
HANDSHAKE = {
    "HTTP_UPGRADE": "websocket",
    "HTTP_CONNECTION": "Upgrade",
    "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
}
"""The headers by which a WebSocket begins (RFC 6455, section 1.3)."""


@dataclass
class Response:
    """What came back; `commands` is what MongoDB was asked for it, by name."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes
    commands: list[str]

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None

    @property
    def cookie(self) -> str | None:
        """The Set-Cookie header."""
        return self.header("Set-Cookie")

    @property
    def token(self) -> str | None:
        """The token that the response hands out; "" where the cookie is expired."""
        return None if self.cookie is None else self.cookie.split(";")[0].partition("=")[2]


def environ_of(path: str = "/", /, **extra: Any) -> dict[str, Any]:
    """Return the environ of a plain request from this machine to itself."""
    path, _, query = path.partition("?")
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    } | extra


def conforming(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Put `app` under the validator that stands between it and our middleware.

    The validator wants every key without a dot to hold a str, so the session goes around it.
    """

    def validated(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        session = environ[KEY]

        def with_session(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            environ[KEY] = session
            return app(environ, start_response)

        hidden = {key: value for key, value in environ.items() if key != KEY}
        return validator(with_session)(hidden, start_response)

    return validated


@dataclass
class Browser:
    """Calls `app` as a server does, and keeps the session cookie as a browser does."""

    app: Callable[..., Iterable[bytes]]
    cookie: str = ""
    """The Cookie header that the next request sends."""
    environ: dict[str, Any] = field(default_factory=dict)
    """What every request of this browser has in its environ."""

    def get(self, path: str = "/", /, **extra: Any) -> Response:
        environ = environ_of(path, **(self.environ | extra))
        if self.cookie:
            environ.setdefault("HTTP_COOKIE", self.cookie)
        with RECORDER.request() as commands:
            response = call(validator(self.app), environ)
        response.commands = [event.command_name for event in commands]
        self.keep(response)
        return response

    def keep(self, response: Response) -> None:
        """Store or drop the cookie, as the response says."""
        for header in response.all("Set-Cookie"):
            for name, morsel in SimpleCookie(header).items():
                self.cookie = "" if morsel["max-age"] == "0" else f"{name}={morsel.value}"

    @property
    def token(self) -> str:
        return self.cookie.partition("=")[2]


def call(app: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> Response:
    """Call `app` as PEP 3333 says that a server does, and read its whole response."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    written: list[bytes] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        assert not started or exc_info, "start_response a second time without exc_info"
        started[:] = [(status, headers)]
        return written.append

    body = app(environ, start_response)
    try:
        written.extend(body)
    finally:
        if hasattr(body, "close"):
            body.close()
    status, headers = started[0]
    return Response(status, headers, b"".join(written), [])


def on_session(use: Callable[[Session], Any]) -> Callable[..., Iterable[bytes]]:
    """Return an application that only `use`s its session, and answers what that gives."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer = use(environ[KEY])
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"" if answer is None else str(answer).encode()]

    return conforming(app)

"""A browser that takes the time: it calls a WSGI application, and keeps its cookie."""

from __future__ import annotations

import gc
import io
import time
import tracemalloc
from http.cookies import SimpleCookie
from typing import Any, NamedTuple

from .contenders import HELD, Application, Row

NEEDS_A_NEW_SESSION = ("log in", "log out")


class Spent(NamedTuple):
    """Microseconds of a request: of the CPU for this thread, and by the clock."""

    cpu: float
    wall: float


class Visitor:
    """Sends requests of one kind to an application."""

    def __init__(self, app: Application, row: Row) -> None:
        self._app = app
        self._row = row
        self._cookie = ""

    def prepare(self) -> None:
        """Have the session that the next request is to find."""
        if self._row.kind == "first visit":
            self._cookie = ""
        elif not self._cookie or self._row.kind in NEEDS_A_NEW_SESSION:
            self._cookie = ""
            self._send("fill")

    def visit(self) -> Spent:
        return self._send(self._row.kind)

    def held(self, number: int) -> float:
        """Answer so many requests, keep all that is left of them, and return the bytes of each.

        The environ is there before, so it counts only by what has been added to it.
        """
        environs = [self._environ(self._row.kind) | {HELD: None} for _ in range(number)]
        kept: list[Any] = []
        gc.collect()
        tracemalloc.start()
        try:
            for environ in environs:
                kept.append(self._app(environ, lambda *_: None))
            gc.collect()
            return tracemalloc.get_traced_memory()[0] / number
        finally:
            tracemalloc.stop()
            for body in kept:
                getattr(body, "close", lambda: None)()

    def _environ(self, kind: str) -> dict[str, Any]:
        return environ_of(f"/{kind}", self._cookie) | {"bench.contents": self._row.contents}

    def _send(self, kind: str) -> Spent:
        environ = self._environ(kind)
        started: list[Any] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
            started[:] = [status, headers]

        wall, cpu = time.perf_counter(), time.thread_time()
        body = self._app(environ, start_response)
        for _ in body:
            pass
        if hasattr(body, "close"):
            body.close()
        spent = Spent((time.thread_time() - cpu) * 1e6, (time.perf_counter() - wall) * 1e6)
        if not started[0].startswith("200"):
            raise SystemExit(f"bench: {kind} was answered {started[0]}")
        for name, value in started[1]:
            if name.lower() == "set-cookie":
                ((key, morsel),) = SimpleCookie(value).items()
                self._cookie = f"{key}={morsel.value}"
        return spent


def environ_of(path: str, cookie: str) -> dict[str, Any]:
    """Return the environ of a browser's request, as a server behind a TLS proxy makes it."""
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "bench",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "50000",
        "HTTP_HOST": "shop.example.org",
        "HTTP_X_FORWARDED_FOR": "203.0.113.7",
        "HTTP_X_FORWARDED_PROTO": "https",
        "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "HTTP_ACCEPT": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "HTTP_ACCEPT_LANGUAGE": "en-US,en;q=0.5",
        "HTTP_ACCEPT_ENCODING": "gzip, deflate, br, zstd",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    return environ | ({"HTTP_COOKIE": f"theme=dark; {cookie}"} if cookie else {})

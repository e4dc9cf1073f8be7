"""A process that answers the requests of some contenders, in the order that it is told.

`python -m tests.bench.child URI DATABASE NAME...`; it reads one order a line, and prints an answer.
"""

from __future__ import annotations

import io
import json
import logging
import resource
import socket
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.cookies import SimpleCookie
from typing import Any

from pymongo import monitoring

from .contenders import CONTENDERS, Application


class Wire(monitoring.CommandListener):
    """Counts what this thread has asked of MongoDB; the driver's own threads do not count."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.commands: list[str] = []
        self.sent = self.received = 0
        send, receive = socket.socket.sendall, socket.socket.recv_into
        wire = self

        def sendall(self: socket.socket, data: Any, *args: Any) -> None:
            if threading.get_ident() == wire.thread:
                wire.sent += len(data)
            return send(self, data, *args)

        def recv_into(self: socket.socket, *args: Any) -> int:
            number = receive(self, *args)
            if threading.get_ident() == wire.thread:
                wire.received += number
            return number

        socket.socket.sendall, socket.socket.recv_into = sendall, recv_into  # type: ignore[method-assign,assignment]

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.commands.append(event.command_name)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


class Visitor:
    """Sends requests to an application, and keeps its cookie as a browser does."""

    def __init__(self, app: Application, contents: tuple[int, int]) -> None:
        self._app, self._contents = app, contents
        self._cookie = ""
        self._filled = False

    def prepare(self, kind: str) -> None:
        """Have the session that a request of this kind is to find."""
        if kind == "first visit":
            self._cookie, self._filled = "", False
        elif not self._filled:
            self._cookie = ""
            self.request("fill")
            self._filled = True

    def request(self, kind: str) -> tuple[float, float]:
        """Send a request; return the seconds of this thread and of the clock that it took."""
        environ = environ_of(kind, self._cookie, self._contents)
        started: list[Any] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
            started[:] = [status, headers]

        cpu, wall = time.thread_time(), time.perf_counter()
        body = self._app(environ, start_response)
        for _ in body:
            pass
        if hasattr(body, "close"):
            body.close()
        spent = time.thread_time() - cpu, time.perf_counter() - wall
        if not started[0].startswith("200"):
            raise SystemExit(f"{kind}: {started[0]}")
        self._keep(started[1])
        self._filled = self._filled and kind != "logout"
        return spent

    def _keep(self, headers: list[tuple[str, str]]) -> None:
        for name, value in headers:
            if name.lower() == "set-cookie":
                ((key, morsel),) = SimpleCookie(value).items()
                self._cookie = f"{key}={morsel.value}"


def environ_of(kind: str, cookie: str, contents: tuple[int, int]) -> dict[str, Any]:
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": f"/{kind}",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "443",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "HTTP_ACCEPT": "text/html",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "bench.contents": contents,
    }
    return environ | ({"HTTP_COOKIE": f"theme=dark; {cookie}"} if cookie else {})


class Child:
    def __init__(self, uri: str, database: str, names: list[str]) -> None:
        self._apps = {
            name: CONTENDERS[name](uri, f"{database}_{number}") for number, name in enumerate(names)
        }
        self._visitors: dict[Any, Visitor] = {}

    def run(self, name: str, kind: str, contents: list[int], number: int) -> list[list[float]]:
        """Answer some requests; return what each took of this thread's time, and of the clock's."""
        visitor, spent = self._visitor(name, contents), []
        for _ in range(number):
            visitor.prepare(kind)
            spent.append(list(visitor.request(kind)))
        return spent

    def count(self, name: str, kind: str, contents: list[int]) -> dict[str, Any]:
        """Return what one request asks of MongoDB, and the bytes that go there and come back."""
        visitor = self._visitor(name, contents)
        for _ in range(2):  # The first one may make connections and indexes.
            visitor.prepare(kind)
            visitor.request(kind)
        visitor.prepare(kind)
        WIRE.commands, WIRE.sent, WIRE.received = [], 0, 0
        visitor.request(kind)
        return {"commands": WIRE.commands, "sent": WIRE.sent, "received": WIRE.received}

    def threads(self, name: str, contents: list[int], threads: int, number: int) -> float:
        """Return how many requests a second this many threads answer that read and set."""
        visitors = [Visitor(self._apps[name], (contents[0], contents[1])) for _ in range(threads)]
        with ThreadPoolExecutor(threads) as pool:

            def visit(visitor: Visitor) -> None:
                for _ in range(number // threads):
                    visitor.prepare("read+set")
                    visitor.request("read+set")

            list(pool.map(visit, visitors))  # Connects.
            begun = time.perf_counter()
            list(pool.map(visit, visitors))
            return threads * (number // threads) / (time.perf_counter() - begun)

    def memory(self) -> int:
        """Return the most memory that this process had, in KiB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def _visitor(self, name: str, contents: list[int]) -> Visitor:
        pair = (contents[0], contents[1])
        return self._visitors.setdefault((name, pair), Visitor(self._apps[name], pair))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    WIRE = Wire()
    monitoring.register(WIRE)
    child = Child(sys.argv[1], sys.argv[2], sys.argv[3:])
    for line in sys.stdin:
        order, *arguments = json.loads(line)
        print(json.dumps(getattr(child, order)(*arguments)), flush=True)

"""Many browsers at once, in one thread and cheaply: each asks, waits for the answer, asks again.

Their requests are bytes that are ready to be sent, and an answer is searched for no more than its
end. What this process takes of the machine is thus little beside the measured application.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Iterable, Iterator
from itertools import cycle

from .visitor import environ_of

LONGEST_WAIT = 20.0
"""Seconds without any answer after which something hangs."""
_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_COOKIE = re.compile(rb"\r\nset-cookie: *([^;\r]+)", re.IGNORECASE)


def request_of(kind: str, cookie: str = "") -> bytes:
    """Return the bytes of a browser's request, as a proxy with TLS hands it on."""
    names = {
        name[5:].replace("_", "-").title(): value
        for name, value in environ_of("", cookie).items()
        if name.startswith("HTTP_")
    }
    lines = [f"GET /{kind.replace(' ', '%20')} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in names.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Browser:
    """A connection to an application, opened anew after the server has closed it."""

    def __init__(self, port: int, requests: Iterable[bytes]) -> None:
        self._port = port
        self._requests: Iterator[bytes] = cycle(requests)
        self._got, self._is_over = b"", True
        self.begun = 0.0
        self.socket = socket.socket()

    def ask(self) -> None:
        """Send the next request; the time of a connection, if one is needed, is part of it."""
        self.begun, self._got = time.perf_counter(), b""
        if self._is_over:
            self.socket.close()
            self.socket = socket.create_connection(("127.0.0.1", self._port), LONGEST_WAIT)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._is_over = False
        self.socket.sendall(next(self._requests))

    def hear(self) -> bytes | None:
        """Read the bytes of now; return the head of an answer if that is whole, or else None."""
        data = self.socket.recv(65536)
        self._got += data
        head, end, body = self._got.partition(_END)
        if data and not (end and is_whole(head, body)):
            return None
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"bench: an application answered {self._got[:200]!r}")
        self._is_over = not data or _CLOSES.search(head) is not None
        return head

    def rest(self) -> None:
        """Close a connection that the server has closed, before another one may have its number."""
        if self._is_over:
            self.close()

    def close(self) -> None:
        self.socket.close()


def is_whole(head: bytes, body: bytes) -> bool:
    """Say whether a body is all that its head announces; one without a length comes in chunks."""
    length = _LENGTH.search(head)
    return body.endswith(b"0" + _END) if length is None else len(body) >= int(length[1])


class Crowd:
    """Some browsers of one application, each with requests of its own."""

    def __init__(self, port: int, requests: Iterable[Iterable[bytes]]) -> None:
        self._browsers = [Browser(port, of) for of in requests]
        self._waiting = selectors.DefaultSelector()

    def __enter__(self) -> Crowd:
        """Connect all browsers, and let each ask once."""
        try:
            self.ask(seconds=0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.close()
        for browser in self._browsers:
            browser.close()

    def ask(self, seconds: float, most: int = 1_000_000) -> tuple[float, list[float]]:
        """Ask for so long, and wait for the last answers; return the time, and that of each answer.

        Every browser asks at least once, and none begins anew after `most` answers of all.
        """
        times: list[float] = []
        begun = now = time.perf_counter()
        for browser in self._browsers:
            self._send(browser)
        while self._waiting.get_map():
            for browser in self._ready():
                if browser.hear() is None:
                    continue
                now = time.perf_counter()
                times.append(now - browser.begun)
                self._waiting.unregister(browser.socket)
                browser.rest()
                if now < begun + seconds and len(times) < most:
                    self._send(browser)
        return now - begun, times

    def _send(self, browser: Browser) -> None:
        browser.ask()
        self._waiting.register(browser.socket, selectors.EVENT_READ, browser)

    def _ready(self) -> list[Browser]:
        ready = self._waiting.select(LONGEST_WAIT)
        if not ready:
            raise SystemExit(f"bench: no answer for {LONGEST_WAIT:.0f} seconds")
        return [key.data for key, _ in ready]


def cookie_of(port: int) -> str:
    """Return the cookie of a new session, filled by the application."""
    browser = Browser(port, [request_of("fill")])
    browser.ask()
    head = None
    while head is None:
        head = browser.hear()
    browser.close()
    found = _COOKIE.search(head)
    if found is None:
        raise SystemExit("bench: an application set no cookie")
    return found[1].decode()

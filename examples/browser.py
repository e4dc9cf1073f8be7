"""A browser that goes shopping, for the demo and the tests."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from http.cookiejar import Cookie, CookieJar
from typing import NamedTuple
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, ProxyHandler, build_opener


class Page(NamedTuple):
    """What a page of the shop says."""

    visits: int
    owner: str | None
    cart: dict[str, int]
    sets_cookie: bool = False


class Browser:
    """A browser with cookies of its own, or with a copy of those of another."""

    def __init__(self, url: str, cookies: Iterable[Cookie] = ()) -> None:
        self.url = url
        self.cookies = CookieJar()
        for cookie in cookies:
            self.cookies.set_cookie(cookie)
        self._opener = build_opener(ProxyHandler({}), HTTPCookieProcessor(self.cookies))

    @property
    def cookie(self) -> Cookie | None:
        return next(iter(self.cookies), None)

    @property
    def token(self) -> str:
        return (self.cookie and self.cookie.value) or ""

    def get(self) -> Page:
        return self._open("/", None)

    def post(self, path: str, **form: str) -> Page:
        """Send a form; return the page that the shop then leads to."""
        return self._open(path, urlencode(form).encode())

    def _open(self, path: str, form: bytes | None) -> Page:
        with self._opener.open(self.url + path, form, timeout=20) as response:
            text = response.read().decode()
            sets_cookie = "Set-Cookie" in response.headers
        visits = re.search(r'id="visits">(\d+)<', text)
        owner = re.search(r'id="owner">(.*?)<', text)
        lines = re.findall(r'data-item="(.*?)" data-count="(\d+)"', text)
        return Page(
            int(visits[1]) if visits else 0,
            html.unescape(owner[1]) if owner else None,
            {html.unescape(item): int(count) for item, count in lines},
            sets_cookie,
        )

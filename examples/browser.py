"""A browser that goes shopping, for the demo and the tests."""

from __future__ import annotations

import html
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from contextlib import closing
from hashlib import sha256
from http.client import HTTPConnection
from http.cookiejar import Cookie, CookieJar
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPCookieProcessor, ProxyHandler, Request, build_opener


class Page(NamedTuple):
    """What a page of the shop says."""

    visits: int
    owner: str | None
    cart: dict[str, int]
    sets_cookie: bool = False


class Device(NamedTuple):
    """A line of the page of the devices."""

    id: str
    name: str
    is_this: bool


class Devices(NamedTuple):
    """What the page of the devices says, and the secret in its form."""

    notice: str | None
    devices: list[Device]
    csrf: str


class Browser:
    """A browser with cookies of its own, or with a copy of those of another."""

    def __init__(self, url: str, cookies: Iterable[Cookie] = (), user_agent: str = "") -> None:
        self.url = url
        self.cookies = CookieJar()
        for cookie in cookies:
            self.cookies.set_cookie(cookie)
        self._opener = build_opener(ProxyHandler({}), HTTPCookieProcessor(self.cookies))
        self._opener.addheaders = [("User-Agent", user_agent)]

    @property
    def cookie(self) -> Cookie | None:
        """The cookie of the session, if the browser has one."""
        ours = (cookie for cookie in self.cookies if cookie.name.endswith("mongosession"))
        return next(ours, None)

    @property
    def token(self) -> str:
        return (self.cookie and self.cookie.value) or ""

    def get(self) -> Page:
        return self._open("/", None)

    def post(self, path: str, **form: str) -> Page:
        """Send a form; return the page that the shop then leads to."""
        return self._open(path, urlencode(form).encode())

    def begin(self, path: str, **form: str) -> Callable[[], int]:
        """Send a form but for its last byte; return what sends that, and tells the status."""
        body, address = urlencode(form).encode(), urlsplit(self.url)
        request = Request(self.url + path, body, {"Content-Length": str(len(body))})
        request.add_header("Content-Type", "application/x-www-form-urlencoded")
        self.cookies.add_cookie_header(request)
        connection = HTTPConnection(address.netloc, timeout=20)
        connection.putrequest("POST", path)
        for name, value in request.header_items():
            connection.putheader(name, value)
        connection.endheaders(body[:-1])

        def end() -> int:
            with closing(connection):
                connection.send(body[-1:])
                response = connection.getresponse()
                self.cookies.extract_cookies(response, request)
                return response.status

        return end

    def devices(self) -> Devices:
        return _devices(self.read("/devices")[0])

    def sign_out(self, which: str) -> Devices:
        """Press the button of a device, by its id, or that of the "others"."""
        form = {"csrf": self.devices().csrf, "end": which}
        return _devices(self.read("/devices", urlencode(form).encode())[0])

    def _open(self, path: str, form: bytes | None) -> Page:
        text, sets_cookie = self.read(path, form)
        visits = re.search(r'id="visits">(\d+)<', text)
        owner = re.search(r'id="owner">(.*?)<', text)
        lines = re.findall(r'data-item="(.*?)" data-count="(\d+)"', text)
        return Page(
            int(visits[1]) if visits else 0,
            html.unescape(owner[1]) if owner else None,
            {html.unescape(item): int(count) for item, count in lines},
            sets_cookie,
        )

    def read(self, path: str, form: bytes | None = None) -> tuple[str, bool]:
        """Return the text of a page, and whether it sets the cookie of the session."""
        with self._opener.open(self.url + path, form, timeout=20) as response:
            headers = response.headers.get_all("Set-Cookie", [])
            sets_cookie = any("mongosession" in header.partition("=")[0] for header in headers)
            return response.read().decode(), sets_cookie


def sha256_of(token: str) -> str:
    """Return the id under which the session of a token is stored."""
    return urlsafe_b64encode(sha256(token.encode()).digest()).decode().rstrip("=")


_DEVICE = r'<li( aria-current="true")?>.*?<h2>(.*?)</h2>.*?name="end" value="(.*?)"'


def _devices(text: str) -> Devices:
    csrf = re.search(r'name="csrf" value="(.*?)"', text)
    notice = re.search(r'role="status">(.*?)<', text)
    rows = re.findall(_DEVICE, text, re.DOTALL)
    return Devices(
        notice[1] if notice else None,
        [Device(id_, html.unescape(name), bool(this)) for this, name, id_ in rows],
        csrf[1] if csrf else "",
    )

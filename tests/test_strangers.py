"""What strangers send: cookies of every kind, tokens that are not theirs, and shared caches."""

from __future__ import annotations

import logging
import re
import secrets
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import bson
import pytest
from pymongo import MongoClient
from pymongo.collection import Collection

from mongosession_wsgi import (
    MongoStore,
    Session,
    SessionDataError,
    SessionMiddleware,
    StoreError,
)
from mongosession_wsgi.collection import SessionCollection
from mongosession_wsgi.document import id_of
from mongosession_wsgi.headers import keep_cookie_private, make_private, vary_on_cookie
from mongosession_wsgi.session import visit_of

from . import fuzz
from .conftest import Clock
from .wsgi import KEY, Browser, Response, call, conforming, environ_of, on_session

HTTPS = {"wsgi.url_scheme": "https"}


def greet(session: Session) -> str:
    return f"user {session.get('user', '-')}, new {session.new}"


KNOWN, UNKNOWN = b"user alice, new False", b"user -, new True"


class Door:
    """A middleware, a live session of alice behind it, and strangers in front of it.

    In a header, NAME stands for the name of the cookie, and TOKEN for the token of alice.
    """

    def __init__(
        self, settings: dict[str, Any], store: MongoStore, scheme: dict[str, Any], name: str
    ) -> None:
        self.app = SessionMiddleware(on_session(greet), settings, store=store)
        self.scheme = scheme
        self.name = name
        token = store.create({"user": "alice"}).token
        assert token is not None
        self.token = token

    def filled(self, header: str) -> str:
        return header.replace("NAME", self.name).replace("TOKEN", self.token)

    def answers(self, header: str | None, path: str = "/") -> Response:
        extra = {} if header is None else {"HTTP_COOKIE": self.filled(header)}
        return Browser(self.app, environ=self.scheme).get(self.filled(path), **extra)


@pytest.fixture(scope="module")
def common(mongodb_uri: str, client: MongoClient[Any]) -> Iterator[MongoStore]:
    """A store for all tests that leave in it what they find."""
    database = f"test_{secrets.token_hex(4)}"
    store = MongoStore({"mongodb_host": mongodb_uri, "mongodb_session_db": database})
    store.ensure_indexes()
    yield store
    store.close()
    client.drop_database(database)


@pytest.fixture(scope="module", params=["custom name", "prefixed name"])
def door(request: pytest.FixtureRequest, common: MongoStore) -> Door:
    if request.param == "custom name":
        return Door({"session_name": "sid"}, common, {}, "sid")
    return Door({}, common, HTTPS, "__Host-mongosession")


# Cookies.

NO_SESSION = {
    "absent": None,
    "empty": "",
    "a space": " ",
    "no =": "NAME",
    "no = but a token": "TOKEN",
    "no name": "=TOKEN",
    "no name but =": "=NAME=TOKEN",
    "no value": "NAME=",
    "no value, two =": "NAME==TOKEN",
    "another name": "other=TOKEN",
    "a longer name": "xNAME=TOKEN",
    "a name that goes on": "NAMEx=TOKEN",
    "a space before =": "NAME =TOKEN",
    "a space after =": "NAME= TOKEN",
    "one character long": "NAME=TOKENx",
    "quoted": 'NAME="TOKEN"',
    "an unterminated quote": 'NAME="TOKEN',
    "an octal escape": 'NAME="\\164TOKEN"',
    "a bare octal escape": "NAME=\\164TOKEN",
    "percent-encoded": "NAME=%41TOKEN",
    "NUL after it": "NAME=TOKEN\0",
    "NUL before it": "NAME=\0TOKEN",
    "CR LF": "NAME=TOKEN\r\nSet-Cookie: a=b",
    "LF": "NAME=TOKEN\n",
    "0xFF in our value": "NAME=\xffTOKEN",
    "0xFF as our value": "NAME=\xff",
    "a lone UTF-8 continuation": "NAME=TOKEN\x80",
    "a code point over 255": "NAME=TOKEN\u0142",
    "a surrogate": "NAME=TOKEN\udcff",
    "digits of another script": "NAME=" + "\u0663" * 43,
    "fullwidth letters": "NAME=" + "\uff41" * 43,
    "comma-joined": "NAME=TOKEN,NAME=TOKEN",
    "comma-joined, ours second": "a=b,NAME=TOKEN",
    "comma-joined, ours first": "NAME=TOKEN, a=b",
    "JSON": 'NAME={"$gt": ""}',
    "JSON with another key": 'NAME={"$ne": "TOKEN"}',
    "an operator in the name": "NAME[$ne]=TOKEN",
    "an operator, encoded": "NAME%5B%24ne%5D=TOKEN",
    "padding": "NAME=TOKEN=",
    "8 KB": "NAME=" + "A" * 8192,
    "64 KB": "NAME=" + "A" * 65536,
    "64 KB of tokens": "NAME=" + "TOKEN" * 1524,
    "a regular expression": "NAME=" + "." * 43,
    "a different cookie per comma": "NAME=TOKEN;NAME=" + "B" * 43,
    "our name after U+00A0": "\xa0NAME=TOKEN",
    "our name after U+00A0, second": "a=b;\xa0NAME=TOKEN",
    "our name after U+2003": "\u2003NAME=TOKEN",
    "our name after a vertical tab": "\vNAME=TOKEN",
    "our name after LF": "a=b\nNAME=TOKEN",
    "the name twice, with other values": "NAME=TOKEN; NAME=" + "A" * 43,
    "the name twice, the first malformed": "NAME=x; NAME=TOKEN",
    "the name twice, the last empty": "NAME=TOKEN; NAME=",
    "the name a thousand times, with other values": "; ".join(
        f"NAME={number:043}" for number in range(1000)
    ),
    "100 000 semicolons": ";" * 100_000,
    "100 000 semicolons, spaces and our name": "; NAME" * 100_000,
}
STILL_OURS = {
    "alone": "NAME=TOKEN",
    "between others": "a=b; NAME=TOKEN; c=d",
    "without spaces": "a=b;NAME=TOKEN;c=d",
    "after a space": " NAME=TOKEN",
    "before spaces": "NAME=TOKEN  ; a=b",
    "after a TAB": "a=b;\tNAME=TOKEN",
    "after empty ones": ";;; ;NAME=TOKEN;;",
    "0xFF in another cookie": "a=\xff; NAME=TOKEN",
    "0xFF in another's name": "\xff=a; NAME=TOKEN",
    "a lone UTF-8 continuation in another": "a=\x80\xbf; NAME=TOKEN; b=\xc3",
    "a code point over 255 in another": "a=\u0142\U0001f36a; NAME=TOKEN",
    "a surrogate in another": "a=\udcff; NAME=TOKEN",
    "NUL in another": "a=\0; NAME=TOKEN",
    "CR LF in another": "a=b\r\nc; NAME=TOKEN",
    "an unterminated quote in another": 'a="b; NAME=TOKEN',
    "JSON in another": 'a={"$gt": ""}; NAME=TOKEN',
    "an operator beside it": "NAME[$ne]=x; NAME=TOKEN",
    "the name twice, alike": "NAME=TOKEN; NAME=TOKEN",
    "the name a thousand times, alike": "; ".join(["NAME=TOKEN"] * 1000),
    "the name with a prefix of U+00A0 too": "\xa0NAME=x; NAME=TOKEN",
    "$Version=1": "$Version=1; NAME=TOKEN; $Path=/",
    "no = beside it": "NAME; NAME=TOKEN",
    "no name beside it": "=NAME=x; NAME=TOKEN",
    "8 KB in another": "a=" + "A" * 8192 + "; NAME=TOKEN",
    "64 KB in another": "a=" + "A" * 65536 + "; NAME=TOKEN",
    "after 5000 cookies": "; ".join(f"c{number}=1" for number in range(5000)) + "; NAME=TOKEN",
    "after 100 000 semicolons": ";" * 100_000 + "NAME=TOKEN",
}


def named(headers: Mapping[str, Any]) -> list[Any]:
    return [pytest.param(header, id=tried) for tried, header in headers.items()]


def is_as_for_nobody(response: Response) -> bool:
    """Say whether nothing of what was sent came back, and MongoDB was asked for nothing."""
    return (response.status, response.body, response.commands) == ("200 OK", UNKNOWN, []) and (
        response.headers == [("Content-Type", "text/plain; charset=utf-8"), ("Vary", "Cookie")]
    )


@pytest.mark.parametrize("header", named(NO_SESSION))
def test_no_session_and_no_command(door: Door, header: str | None) -> None:
    assert is_as_for_nobody(door.answers(header))


@pytest.mark.parametrize("header", named(STILL_OURS))
def test_ours_still_works(door: Door, header: str) -> None:
    response = door.answers(header)
    assert (response.status, response.body, response.commands) == ("200 OK", KNOWN, ["find"])
    assert response.headers == [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Vary", "Cookie"),
    ]


CUTS: list[Callable[[str], str]] = [
    lambda token: token[1:],
    lambda token: token[:-1],
    lambda token: token[:-2] + "+/",
    lambda token: token[:-1] + "=",
    lambda token: token[:-1] + ".",
    lambda token: token[:21] + " " + token[22:],
    lambda token: token[:-1] + "\xff",
    lambda token: token[:-1] + "\n",
    lambda token: token[:-1] + "\u0142",
]


@pytest.mark.parametrize("cut", CUTS)
def test_only_43_base64url_characters_are_a_token(door: Door, cut: Callable[[str], str]) -> None:
    assert is_as_for_nobody(door.answers(f"NAME={cut(door.token)}"))


def test_the_name_in_another_case_is_another_cookie(door: Door) -> None:
    for name in {door.name.upper(), door.name.lower(), door.name.title()} - {door.name}:
        assert is_as_for_nobody(door.answers(f"{name}=TOKEN"))
        assert door.answers(f"{name}=x; NAME=TOKEN").body == KNOWN


def test_a_token_in_the_query_string_is_none(door: Door) -> None:
    assert is_as_for_nobody(door.answers(None, path="/?NAME=TOKEN&sid=TOKEN"))


def test_a_cookie_of_development_is_none_over_https(common: MongoStore) -> None:
    door = Door({}, common, HTTPS, "mongosession")
    assert is_as_for_nobody(door.answers("NAME=TOKEN"))
    assert is_as_for_nobody(door.answers("__Secure-mongosession=TOKEN"))


def test_the_name_twice_with_other_values_is_a_warning(
    common: MongoStore, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door({"session_name": "sid"}, common, {}, "sid")
    door.answers("NAME=TOKEN; NAME=TOKEN")
    assert caplog.messages == []
    for _ in range(3):
        assert is_as_for_nobody(door.answers(f"NAME=TOKEN; NAME={'B' * 43}"))
    (message,) = caplog.messages
    assert f"several cookies named {door.name}" in message
    assert door.token not in message
    assert "BBB" not in message


@pytest.mark.parametrize("seed", range(4))
def test_no_header_that_is_made_up_is_misread(seed: int) -> None:
    rows = fuzz.run(2000, seed)
    assert sum(row.headers for row in rows) == 2000
    assert all(row.tokens and row.middleware for row in rows)
    assert [row.examples for row in rows if row.faults] == []


# Tokens of nobody.


def sign_in(session: Session) -> None:
    session["user"] = "mallory"


def ended(how: str, store: MongoStore, clock: Clock) -> str:
    """Return a token that looks right, and is that of no live session."""
    if how == "unknown":
        return "A" * 43
    session = store.create({"user": "alice"})
    token, id_ = session.token, session.id
    assert token is not None
    assert id_ is not None
    if how == "the stored id":
        return id_
    if how == "expired":
        clock.advance(days=14)
    elif how == "destroyed":
        assert store.destroy(session)
    elif how == "revoked":
        assert store.revoke(id_) == 1
    elif how.startswith("regenerated"):
        session.regenerate()
        store.flush(session)
        clock.advance(seconds=59 if how == "regenerated just now" else 60)
    return token


HOWS = ["unknown", "the stored id", "expired", "destroyed", "revoked", "regenerated"]


@pytest.mark.parametrize("use", [sign_in, lambda s: (s.get("user"), sign_in(s))])
@pytest.mark.parametrize("how", HOWS)
def test_a_token_that_is_not_live_is_never_adopted(
    settings: dict[str, Any],
    store: MongoStore,
    stored: Collection[Any],
    clock: Clock,
    how: str,
    use: Callable[[Session], Any],
) -> None:
    token = ended(how, store, clock)
    before = stored.find_one({"_id": id_of(token)})
    seen = Browser(SessionMiddleware(on_session(greet), settings, store=store))
    seen.cookie = f"mongosession={token}"
    response = seen.get()
    assert (response.status, response.body) == ("200 OK", UNKNOWN)
    assert response.cookie is None

    browser = Browser(SessionMiddleware(on_session(use), settings, store=store))
    browser.cookie = f"mongosession={token}"
    new_token = browser.get().token
    assert new_token is not None
    assert re.fullmatch("[A-Za-z0-9_-]{43}", new_token)
    assert new_token not in (token, id_of(token))
    assert stored.find_one({"_id": id_of(new_token)})["data"] == {"user": "mallory"}
    assert stored.find_one({"_id": id_of(token)}) == before
    assert stored.find_one({"_id": token}) is None or how == "the stored id"


def test_what_a_token_sets_that_was_regenerated_just_now_is_dropped(
    settings: dict[str, Any], store: MongoStore, stored: Collection[Any], clock: Clock
) -> None:
    token = ended("regenerated just now", store, clock)
    browser = Browser(SessionMiddleware(on_session(sign_in), settings, store=store))
    browser.cookie = f"mongosession={token}"
    response = browser.get()
    assert (response.status, response.cookie) == ("200 OK", None)
    assert stored.count_documents({"data.user": "mallory"}) == 0


@pytest.mark.parametrize("how", HOWS)
def test_a_token_that_is_not_live_ends_nothing(
    settings: dict[str, Any],
    store: MongoStore,
    stored: Collection[Any],
    clock: Clock,
    how: str,
) -> None:
    token = ended(how, store, clock)
    before = list(stored.find())
    browser = Browser(SessionMiddleware(on_session(Session.destroy), settings, store=store))
    browser.cookie = f"mongosession={token}"
    response = browser.get()
    assert (response.status, response.cookie) == ("200 OK", None)
    marks = ("ended",)  # A mark may note that its session must not be put back.
    after = [{k: v for k, v in one.items() if k not in marks} for one in stored.find()]
    assert after == [{k: v for k, v in one.items() if k not in marks} for one in before]


# Shared caches.


class SharedCache:
    """A cache between many browsers and one application, as RFC 9111 allows it to be at its worst.

    It stores every response that it may, heuristically too, and honours Vary and Cache-Control.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._stored: list[tuple[dict[str, Any], Response]] = []

    def get(self, **environ: Any) -> Response:
        request = environ_of(**environ)
        fresh = self._find(request)
        if fresh is not None and not self._must_ask(fresh):
            return fresh
        if fresh is not None:
            request = environ_of(**environ, HTTP_IF_NONE_MATCH='"page"')
        response = call(self._app, request)
        if fresh is not None and response.status.startswith("304"):
            # RFC 9111, section 4.3.4: the stored response, with the headers that came now.
            names = {name for name, _ in response.headers}
            kept = [(name, value) for name, value in fresh.headers if name not in names]
            return Response(fresh.status, kept + response.headers, fresh.body, [])
        self._store(request, response)
        return response

    def _find(self, request: dict[str, Any]) -> Response | None:
        for before, response in self._stored:
            varies = [name.strip() for name in ",".join(response.all("Vary")).split(",")]
            keys = ["HTTP_" + name.upper().replace("-", "_") for name in varies if name]
            if "*" not in varies and all(before.get(key) == request.get(key) for key in keys):
                return response
        return None

    def _store(self, request: dict[str, Any], response: Response) -> None:
        controls = directives_of(response)
        if "no-store" in controls and "must-understand" not in controls:
            return
        if "" in controls.get("private", ()):
            return
        names = {
            name.strip()
            for directive in ("private", "no-cache")
            for value in controls.get(directive, ())
            for name in value.split(",")
        }
        kept = [(name, value) for name, value in response.headers if name.lower() not in names]
        self._stored.append((request, Response(response.status, kept, response.body, [])))

    @staticmethod
    def _must_ask(response: Response) -> bool:
        controls = directives_of(response)
        return "" in controls.get("no-cache", ()) or "0" in controls.get("max-age", ())


class Cdn(SharedCache):
    """A cache that heeds a header for caches of its kind in place of Cache-Control (RFC 9213)."""

    def __init__(self, app: Callable[..., Iterable[bytes]], targeted: str) -> None:
        super().__init__(app)
        self._targeted = targeted

    def _store(self, request: dict[str, Any], response: Response) -> None:
        own = [("Cache-Control", value) for value in response.all(self._targeted)]
        if own:
            rest = [header for header in response.headers if header[0].lower() != "cache-control"]
            response = replace(response, headers=rest + own)
        super()._store(request, response)


def directives_of(response: Response) -> dict[str, list[str]]:
    """Return the values of each directive of Cache-Control, "" where it has none."""
    found: dict[str, list[str]] = {}
    line = ",".join(response.all("Cache-Control")).lower()
    for name, quoted, plain in re.findall(r'([a-z-]+)(?:=(?:"([^"]*)"|([^\s,]*)))?', line):
        found.setdefault(name, []).append(quoted or plain)
    return found


def page(headers: list[tuple[str, str]]) -> Callable[..., Iterable[bytes]]:
    """Return an application with a page that may be revalidated, and a session for newcomers."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[KEY].get("visits")
        if environ.get("HTTP_IF_NONE_MATCH"):
            start_response("304 Not Modified", list(headers))
            return []
        environ[KEY].setdefault("visits", 1)
        start_response("200 OK", [("Content-Type", "text/plain"), *headers])
        return [b"page"]

    return conforming(app)


CACHED = {
    "nothing": [],
    "public": [("Cache-Control", "public, max-age=60")],
    "max-age alone": [("Cache-Control", "max-age=60")],
    "s-maxage": [("Cache-Control", "s-maxage=60, max-age=0")],
    "in capitals": [("CACHE-CONTROL", "PUBLIC, MAX-AGE=60")],
    "on two lines": [("Cache-Control", "public"), ("Cache-Control", "max-age=60")],
    "no-cache": [("Cache-Control", "no-cache")],
    "no-cache of another field": [("Cache-Control", 'no-cache="X"')],
    "private of a field": [("Cache-Control", 'private="X"')],
    "private of a field, in capitals": [("Cache-Control", 'Private="X-A, X-B", max-age=60')],
    "private": [("Cache-Control", "private")],
    "no-store": [("Cache-Control", "no-store")],
    "no-store that is not meant": [("Cache-Control", "no-store, must-understand, max-age=60")],
    "an empty line": [("Cache-Control", "")],
}
VARIES = {
    "no Vary": [],
    "Vary: Accept-Encoding": [("Vary", "Accept-Encoding")],
    "vary: cookie": [("vary", "cookie")],
    "Vary: *": [("Vary", "*")],
    "two Vary": [("Vary", "Accept"), ("Vary", "Accept-Encoding")],
    "an empty Vary": [("Vary", "")],
}


@pytest.mark.parametrize("vary", named(VARIES))
@pytest.mark.parametrize("control", named(CACHED))
def test_a_shared_cache_never_hands_one_browser_the_cookie_of_another(
    common: MongoStore,
    control: list[tuple[str, str]],
    vary: list[tuple[str, str]],
) -> None:
    cache = SharedCache(SessionMiddleware(page([*control, *vary]), {}, store=common))
    first = cache.get()
    assert first.token
    others = [cache.get() for _ in range(3)]
    assert first.token not in {other.token for other in others}
    for response in (first, *others):
        varies = ",".join(response.all("Vary")).lower().replace(" ", "").split(",")
        assert varies.count("cookie") + varies.count("*") == 1


def test_a_shared_cache_never_hands_one_browser_the_page_of_another(common: MongoStore) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = greet(environ[KEY]).encode()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Cache-Control", "public")])
        return [body]

    cache = SharedCache(SessionMiddleware(conforming(app), {}, store=common))
    cookie = f"mongosession={common.create({'user': 'alice'}).token}"
    assert cache.get(HTTP_COOKIE=cookie).body == KNOWN
    assert cache.get().body == UNKNOWN
    assert cache.get(HTTP_COOKIE=cookie).body == KNOWN


TARGETED = [
    *("CDN-Cache-Control", "Cloudflare-CDN-Cache-Control", "Vercel-CDN-Cache-Control"),
    *("Netlify-CDN-Cache-Control", "Akamai-Cache-Control", "X-LiteSpeed-Cache-Control"),
    *("Surrogate-Control", "Edge-Control", "X-Accel-Expires", "cdn-cache-control"),
]


@pytest.mark.parametrize("targeted", TARGETED)
def test_a_cdn_never_hands_one_browser_the_cookie_of_another(
    common: MongoStore, targeted: str
) -> None:
    headers = [("Cache-Control", "public"), (targeted, "max-age=600")]
    cache = Cdn(SessionMiddleware(page(headers), {}, store=common), targeted)
    first = cache.get()
    assert first.token
    assert first.token not in {cache.get().token for _ in range(3)}
    assert (targeted, "max-age=600") in cache.get(HTTP_COOKIE=f"mongosession={first.token}").headers


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], [("Vary", "Cookie")]),
        ([("Vary", "Accept")], [("Vary", "Accept, Cookie")]),
        ([("vary", "ACCEPT, Origin")], [("vary", "ACCEPT, Origin, Cookie")]),
        ([("Vary", "Cookie")], [("Vary", "Cookie")]),
        ([("VARY", "accept,COOKIE")], [("VARY", "accept,COOKIE")]),
        ([("Vary", "*")], [("Vary", "*")]),
        ([("Vary", "Accept, *")], [("Vary", "Accept, *")]),
        ([("Vary", "")], [("Vary", "Cookie")]),
        ([("Vary", "X-Cookie")], [("Vary", "X-Cookie, Cookie")]),
        ([("Vary", "Cookies")], [("Vary", "Cookies, Cookie")]),
        (
            [("Vary", "Accept"), ("A", "b"), ("Vary", "Origin")],
            [("Vary", "Accept, Cookie"), ("A", "b"), ("Vary", "Origin")],
        ),
        (
            [("Vary", "Accept"), ("vary", "cookie")],
            [("Vary", "Accept"), ("vary", "cookie")],
        ),
        ([("Vary", "Accept"), ("Vary", "*")], [("Vary", "Accept"), ("Vary", "*")]),
    ],
)
def test_vary_names_the_cookie_once(
    before: list[tuple[str, str]], after: list[tuple[str, str]]
) -> None:
    headers = list(before)
    for _ in range(2):
        vary_on_cookie(headers)
        assert headers == after


OURS = 'no-cache="Set-Cookie"'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["private"]),
        (["private"], ["private"]),
        (["PRIVATE, max-age=60"], ["PRIVATE, max-age=60"]),
        (["no-store"], ["no-store"]),
        (["no-cache, No-Store"], ["no-cache, No-Store"]),
        (["max-age=60", "private"], ["max-age=60", "private"]),
        (["public"], [f"public, {OURS}"]),
        (["public", "max-age=60"], [f"public, {OURS}", "max-age=60"]),
        (["no-cache"], [f"no-cache, {OURS}"]),
        (['private="X"'], [f'private="X", {OURS}']),
        (["private=X"], [f"private=X, {OURS}"]),
        (['no-cache="X"'], [f'no-cache="X", {OURS}']),
        (['public, no-cache="X, set-cookie"'], ['public, no-cache="X, set-cookie"']),
        (['ext="private"'], [f'ext="private", {OURS}']),
        (["no-store, must-understand"], [f"no-store, must-understand, {OURS}"]),
        ([""], [OURS]),
    ],
)
def test_cache_control_keeps_the_cookie_private(before: list[str], after: list[str]) -> None:
    headers = [("Cache-Control", value) for value in before]
    for _ in range(2):
        keep_cookie_private(headers)
        assert headers == [("Cache-Control", value) for value in after]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], "private"),
        ([""], "private"),
        ([" , ,"], "private"),
        (["public"], "private"),
        (["public, max-age=60"], "private, max-age=60"),
        (["max-age=60"], "private, max-age=60"),
        (["PUBLIC , Max-Age=60"], "private, Max-Age=60"),
        (["s-maxage=600, max-age=60, immutable"], "private, max-age=60, immutable"),
        (['S-MaxAge="600"'], "private"),
        (
            ["public", "s-maxage=600", "stale-while-revalidate=9"],
            "private, stale-while-revalidate=9",
        ),
        (["private"], "private"),
        (["max-age=0, Private"], "private, max-age=0"),
        (["private, public"], "private"),
        (['private="X, Y", max-age=60'], "private, max-age=60"),
        (["no-cache, proxy-revalidate"], "private, no-cache, proxy-revalidate"),
        (['no-cache="X, public"'], 'private, no-cache="X, public"'),
        (['ext="a, \\", public", public'], 'private, ext="a, \\", public"'),
        (["no-store"], "no-store"),
        (["No-Store, public"], "No-Store, public"),
        (["must-understand, no-store, public"], "private, must-understand, no-store"),
        (["must-understand"], "private, must-understand"),
        (['no-cache="X, public'], 'private, no-cache="X, public'),
        (['"'], 'private, "'),
    ],
)
def test_a_response_that_begins_a_session_is_private(before: list[str], after: str) -> None:
    headers = [("A", "b"), *(("cache-Control", value) for value in before), ("Vary", "Cookie")]
    for _ in range(2):
        make_private(headers)
        assert ", ".join(v for name, v in headers if name.lower() == "cache-control") == after
        assert [header for header in headers if header[0] in "AVary"] == [
            ("A", "b"),
            ("Vary", "Cookie"),
        ]


@pytest.mark.parametrize("protect", [make_private, keep_cookie_private])
@pytest.mark.parametrize("control", [[], [("Cache-Control", "no-store")]])
def test_no_header_for_certain_caches_stays_beside_a_cookie(
    protect: Callable[[Any], None], control: list[tuple[str, str]]
) -> None:
    kept = [("X-Cache-Control-Note", "a"), ("Surrogate-Key", "b"), ("Expires", "c"), *control]
    headers = kept + [(name.upper(), "max-age=600") for name in TARGETED]
    protect(headers)
    assert headers[: len(kept)] == kept
    assert [name for name, _ in headers[len(kept) :]] == ["Cache-Control"] * (not control)


def test_a_long_header_is_read_in_linear_time() -> None:
    for value in ('"\\' * 500_000, 'a"' * 500_001, "," * 1_000_000, "public," * 200_000):
        make_private([("Cache-Control", value)])


@pytest.mark.parametrize("broken", ['"', "=", ",", 'a="', "private*=x''%ff", "no-cache=\\", "\xff"])
def test_a_cache_control_that_is_broken_gets_ours_too(broken: str) -> None:
    headers = [("Cache-Control", broken)]
    keep_cookie_private(headers)
    assert headers == [("Cache-Control", f"{broken}, {OURS}")]


def test_the_name_of_cache_control_has_any_case() -> None:
    headers = [("A", "b"), ("cache-CONTROL", "public")]
    keep_cookie_private(headers)
    assert headers == [("A", "b"), ("cache-CONTROL", f"public, {OURS}")]


@pytest.mark.parametrize("control", named(CACHED))
def test_the_applications_own_headers_are_never_changed(
    common: MongoStore, control: list[tuple[str, str]]
) -> None:
    own = [("Content-Type", "text/plain"), ("Vary", "Accept"), *control]
    before = list(own)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[KEY].setdefault("visits", 1)
        start_response("200 OK", own)
        return [b"page"]

    middleware = SessionMiddleware(conforming(app), {}, store=common)
    answers = [Browser(middleware).get() for _ in range(2)]
    assert own == before
    assert [len(answer.all("Set-Cookie")) for answer in answers] == [1, 1]
    assert {answer.header("Vary") for answer in answers} == {"Accept, Cookie"}


# The token is a secret.


def test_the_token_is_in_the_cookie_and_nowhere_else(
    settings: dict[str, Any],
    store: MongoStore,
    stored: Collection[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    uses: list[Callable[[Session], Any]] = [
        lambda session: session.update(user="alice", cart=[]),
        repr,
        lambda session: (session["user"], repr(session), f"{session}", session.id),
        lambda session: session["cart"].append(1),
        lambda session: session.login("alice"),
        lambda session: session.regenerate(),
        lambda session: (session.copy(), session.owner, vars(type(session)).keys()),
        lambda session: session.update(user="bob"),
    ]
    use = uses[0]
    browser = Browser(
        SessionMiddleware(on_session(lambda session: use(session)), settings, store=store)
    )
    tokens: set[str] = set()
    for use in uses:  # noqa: B007 (the application uses it)
        response = browser.get()
        tokens.add(browser.token)
        shown = [value for name, value in response.headers if name != "Set-Cookie"]
        assert not any(
            token in text for token in tokens for text in [*shown, response.body.decode()]
        )
    assert len(tokens) == 3
    store.ensure_indexes()
    dump = "".join(repr(one) for one in stored.find()) + repr(list(store.sessions()))
    binary = b"".join(bson.encode(one) for one in stored.find())
    assert id_of(browser.token) in dump
    commands = [one for one in caplog.records if one.name == "pymongo.command"]
    assert any(id_of(browser.token) in one.getMessage() for one in commands)
    for token in tokens:
        assert token not in dump
        assert token.encode() not in binary
        assert token not in caplog.text
        assert not any(token in repr(vars(record)) for record in caplog.records)


def raise_data_error(session: Session) -> None:
    session["cart"] = {"price": object()}


def raise_data_error_late(session: Session) -> None:
    session["cart"].append(object())


def raise_store_error(session: Session) -> None:
    session["user"]


def unreachable(settings: dict[str, Any]) -> MongoStore:
    """Return a store whose server refuses: nothing listens on port 1."""
    return MongoStore(
        settings | {"mongodb_host": "127.0.0.1", "mongodb_port": 1, "mongodb_timeout_ms": 50}
    )


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (raise_data_error, SessionDataError),
        (raise_data_error_late, SessionDataError),
        (raise_store_error, StoreError),
        (lambda session: session.update(a=1), StoreError),
        (lambda session: session.destroy(), StoreError),
        (lambda session: session.regenerate(), StoreError),
    ],
)
def test_no_traceback_shows_the_token(
    settings: dict[str, Any],
    store: MongoStore,
    caplog: pytest.LogCaptureFixture,
    use: Callable[[Session], Any],
    error: type[Exception],
) -> None:
    caplog.set_level(logging.DEBUG)
    token = store.create({"user": "alice", "cart": []}).token
    assert token is not None
    seen: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            use(environ[KEY])
        except error:
            seen.append(traceback.format_exc())
            raise
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    broken = unreachable(settings) if error is StoreError else store
    browser = Browser(SessionMiddleware(conforming(app), settings, store=broken))
    browser.cookie = f"mongosession={token}"
    try:
        response = browser.get()
    except error:
        seen.append(traceback.format_exc())
    else:
        assert response.status == "503 Service Unavailable"
        assert response.cookie is None
        seen += [repr(response.headers), response.body.decode()]
    broken.close()
    assert seen
    assert token not in "".join(seen) + caplog.text


def test_repr_shows_no_token_in_any_state(store: MongoStore) -> None:
    session = store.create({"user": "alice"})
    token = session.token
    assert token is not None
    shown = [repr(session), repr(store.open(token)), repr(store.retrieve(token)), f"{session!s}"]
    session.regenerate()
    shown.append(repr(session))
    store.flush(session)
    shown += [repr(session), repr(visit_of(session).record), repr(visit_of(session).token)]
    session.destroy()
    shown.append(repr(session))
    store.flush(session)
    shown.append(repr(session))
    assert not any(token in one for one in shown)


# Tokens are never the same.


class Unasked(SessionCollection):
    """Sends no command, and says of each that it was carried out."""

    def attempt(self, command: Callable[[Any], Any], size: int = 0) -> Any:
        return True

    def ensure_indexes_in_passing(self) -> None: ...


class Unstored(MongoStore):
    """Makes tokens, and leaves out what is to be done with them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._life._sessions = Unasked(self.settings)


@pytest.mark.unmeasured
def test_ten_thousand_tokens_are_all_different() -> None:
    store = Unstored({"mongodb_session_db": "x"})
    tokens = {store.create().token or "" for _ in range(10_000)}
    assert len(tokens) == 10_000
    assert all(re.fullmatch("[A-Za-z0-9_-]{43}", token) for token in tokens)
    assert {len(set(place)) for place in zip(*tokens, strict=True)} == {64, 16}
    store.close()


FORKING = """
import json, os
from tests.test_strangers import Unstored

def tokens():
    return [store.create().token for _ in range(500)]

store = Unstored({"mongodb_session_db": "x"})
found = tokens()
pipes = []
for _ in range(4):
    reading, writing = os.pipe()
    if os.fork() == 0:
        with os.fdopen(writing, "w") as file:
            json.dump(tokens(), file)
        os._exit(0)
    os.close(writing)
    pipes.append(reading)
found += tokens()
for reading in pipes:
    with os.fdopen(reading) as file:
        found += json.load(file)
    os.wait()
print(len(found), len(set(found)))
"""


def test_no_two_processes_of_a_fork_make_the_same_token() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKING],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("3000 3000\n", "")

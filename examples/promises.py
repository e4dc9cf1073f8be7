"""Act out the promises of the sessions, with the visitor's own session and the shop itself.

Each promise is a function, and yields the steps as they happen. A slow request waits at the `GATE`
in its environ: after the handler's end, before the commit of the session.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from html import unescape
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from wiretap import Answer, Command, listen

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

GATE = "demo.gate"
LONGEST_WAIT = 10.0
PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) Version/18.6 Mobile Safari/604.1"


class Gate:
    """A place for a slow request to wait, until another thread opens the gate."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def wait(self) -> None:
        self.reached.set()
        self.opened.wait(LONGEST_WAIT)


class Step(NamedTuple):
    """A step of a promise: actor, action, result, whether the result is right, and commands."""

    who: str
    does: str
    shows: str
    is_right: bool
    commands: list[Command]

    def as_dict(self) -> dict[str, Any]:
        """Return the step as MongoDB can keep it."""
        return self._asdict() | {"commands": [command._asdict() for command in self.commands]}


class Tab:
    """A tab of a browser, with its cookie; `environ` is a request of the same browser."""

    def __init__(self, shop: WSGIApplication, environ: WSGIEnvironment, cookie: str = "") -> None:
        self._shop = shop
        self._environ = environ
        self.cookie = cookie
        self.set_cookie: str | None = None
        """The last Set-Cookie header of a session, if there was any."""

    def get(self, path: str = "/") -> Answer:
        return self._take(listen(self._shop, self._request("GET", path, {})))

    def post(self, path: str, **form: str) -> Answer:
        return self._take(listen(self._shop, self._request("POST", path, form)))

    def post_slowly(self, path: str, **form: str) -> Callable[[], Answer]:
        """Send a form, and return once the request waits; call the result to open the gate."""
        gate, answers = Gate(), list[Answer]()
        request = self._request("POST", path, form) | {GATE: gate}
        thread = threading.Thread(target=lambda: answers.append(listen(self._shop, request)))
        thread.start()
        gate.reached.wait(LONGEST_WAIT)

        def go_on() -> Answer:
            gate.opened.set()
            thread.join()
            return self._take(answers[0])

        return go_on

    def on_phone(self) -> Tab:
        """Return a tab of another device, without a cookie."""
        return Tab(self._shop, self._environ | {"HTTP_USER_AGENT": PHONE})

    def _request(self, method: str, path: str, form: Mapping[str, str]) -> WSGIEnvironment:
        body = urlencode(form).encode()
        return self._environ | {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "CONTENT_TYPE": "application/x-www-form-urlencoded",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_COOKIE": self.cookie,
            "wsgi.input": BytesIO(body),
        }

    def _take(self, answer: Answer) -> Answer:
        """Keep the cookie of an answer, as a browser does."""
        if answer.set_cookie is not None:
            self.set_cookie = answer.set_cookie
            self.cookie = "" if is_expired(answer) else answer.set_cookie.partition(";")[0]
        return answer


def slow_click(tab: Tab) -> Iterator[Step]:
    """A slow click loses to a sign-out"""
    go_on = tab.post_slowly("/cart", item="Assam")
    yield Step("Tab 1", "adds an Assam", "nothing is stored yet: the request is slow", True, [])
    out = tab.post("/logout")
    yield Step("Tab 2", "signs out", "the session is deleted", is_expired(out), out.commands)
    late = go_on()
    shows = "stores nothing, and gets no cookie"
    yield Step("Tab 1", "goes on", shows, late.set_cookie is None, late.commands)
    after = tab.get()
    yield Step("Both", "look again", "the cart is gone", cart_of(after) == {}, after.commands)


def two_tabs(tab: Tab) -> Iterator[Step]:
    """Two tabs change different things at once"""
    before = tab.get()
    go_on = tab.post_slowly("/cart", item="Assam")
    yield Step("Tab 1", "adds an Assam", "nothing is stored yet: the request is slow", True, [])
    between = tab.get()
    counted = visits_of(between) == visits_of(before) + 1
    yield Step("Tab 2", "opens the shop", "the visit is counted", counted, between.commands)
    late = go_on()
    yield Step("Tab 1", "goes on", "sends the cart, and nothing else", True, late.commands)
    after, teas = tab.get(), cart_of(before)
    kept = visits_of(after) == visits_of(between) + 1
    kept = kept and cart_of(after) == teas | {"Assam": teas.get("Assam", 0) + 1}
    yield Step("Both", "look again", "neither change is lost", kept, after.commands)


def double_click(tab: Tab) -> Iterator[Step]:
    """A double click on “Sign in” leaves nobody outside"""
    before = tab.get()
    name = owner_of(before) or "Alice"
    clicks = [tab.post_slowly("/login", name=name) for _ in range(2)]
    yield Step("Click 1", f"signs in as {name}", "is under way", True, [])
    yield Step("Click 2", "sends the same", "is under way too, with the same cookie", True, [])
    for number, go_on in enumerate(clicks, 1):
        answer = go_on()
        has_token = answer.set_cookie is not None
        yield Step(f"Click {number}", "goes on", "gets a new token", has_token, answer.commands)
    after = tab.get()
    is_in = (owner_of(after), cart_of(after)) == (name, cart_of(before))
    yield Step("Browser", "looks again", "is signed in, with the cart", is_in, after.commands)


def another_device(tab: Tab) -> Iterator[Step]:
    """Another device of yours signs this one out"""
    owner = owner_of(tab.get()) or "Alice"
    here, phone = tab.post("/login", name=owner), tab.on_phone()
    yield Step("Browser", f"signs in as {owner}", "is signed in", True, here.commands)
    there = phone.post("/login", name=owner)
    yield Step("Phone", f"signs in as {owner}", "is signed in", True, there.commands)
    csrf = re.search(r'name="csrf" value="(.*?)"', text_of(phone.get("/devices")))
    out = phone.post("/devices", csrf=csrf[1] if csrf else "", end="others")
    told = re.search(r"[1-9]\d* devices? signed out", text_of(phone.get("/devices"))) is not None
    yield Step("Phone", "signs out elsewhere", "ends the browser's session", told, out.commands)
    after = tab.get()
    is_out = owner_of(after) is None
    yield Step("Browser", "looks again", "is signed out", is_out, after.commands)
    phone.post("/logout")


PROMISES = {
    promise.__name__.replace("_", "-"): promise
    for promise in (slow_click, two_tabs, double_click, another_device)
}
"""The promises by their names in addresses; a docstring is a title."""


def is_expired(answer: Answer) -> bool:
    """Say whether an answer has the browser forget its cookie."""
    return "Max-Age=0" in (answer.set_cookie or "")


def text_of(page: Answer) -> str:
    return page.body.decode()


def visits_of(page: Answer) -> int:
    found = re.search(r'id="visits">(\d+)<', text_of(page))
    return int(found[1]) if found else 0


def owner_of(page: Answer) -> str | None:
    found = re.search(r'id="owner">(.*?)<', text_of(page))
    return unescape(found[1]) if found else None


def cart_of(page: Answer) -> dict[str, int]:
    lines = re.findall(r'data-item="(.*?)" data-count="(\d+)"', text_of(page))
    return {unescape(item): int(count) for item, count in lines}

"""Where somebody is signed in: the page of the Bottle shop, and the revocations behind it."""

from __future__ import annotations

import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen
from wsgiref.validate import validator

import pytest
from pymongo import MongoClient
from pymongo.collection import Collection
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from examples.browser import Browser
from examples.device_name import device_name
from mongosession_wsgi import MongoStore, Session
from mongosession_wsgi.document import id_of

from . import wsgi
from .commands import RECORDER
from .proxy import Proxy, command_of
from .test_browser import cart, in_chromium, profile, submit, text
from .test_examples import ROOT, SERVERS, post, served
from .test_readme import MADE_UP

LONGEST_WAIT = 20.0
RECIPE = ROOT / "docs" / "devices.md"
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, "
CHROME = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/139.0.0.0"
USER_AGENTS = {
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:142.0) Gecko/20100101 Firefox/142.0": (
        "Firefox on Windows"
    ),
    "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0": (
        "Firefox on Linux"
    ),
    "Mozilla/5.0 (Android 15; Mobile; rv:142.0) Gecko/142.0 Firefox/142.0": "Firefox on Android",
    f"{IPHONE}like Gecko) FxiOS/142.0 Mobile/15E148 Safari/605.1.15": "Firefox on iPhone",
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {CHROME} Safari/537.36": "Chrome on Windows",
    f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {CHROME} Safari/537.36": "Chrome on Mac",
    f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {CHROME} Safari/537.36": "Chrome on ChromeOS",
    f"Mozilla/5.0 (Linux; Android 10; K) {CHROME} Mobile Safari/537.36": "Chrome on Android",
    f"{IPHONE}like Gecko) CriOS/139.0.7258.76 Mobile/15E148 Safari/604.1": "Chrome on iPhone",
    f"Mozilla/5.0 (X11; Linux x86_64) {CHROME.replace('Chrome', 'HeadlessChrome')} Safari/537.36": (
        "Chrome on Linux"
    ),
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {CHROME} Safari/537.36 Edg/139.0.0.0": (
        "Edge on Windows"
    ),
    f"Mozilla/5.0 (Linux; Android 10; HD1913) {CHROME} Mobile Safari/537.36 EdgA/139.0.0.0": (
        "Edge on Android"
    ),
    f"{IPHONE}like Gecko) Version/18.0 EdgiOS/139.0.3405.86 Mobile/15E148 Safari/604.1": (
        "Edge on iPhone"
    ),
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {CHROME} Safari/537.36 OPR/121.0.0.0": (
        "Opera on Windows"
    ),
    f"Mozilla/5.0 (Linux; Android 10; K) {CHROME} Mobile Safari/537.36 OPR/90.0.0.0": (
        "Opera on Android"
    ),
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) "
    "SamsungBrowser/28.0 Chrome/130.0.0.0 Mobile Safari/537.36": "Samsung Internet on Android",
    f"{IPHONE}like Gecko) Version/18.6 Mobile/15E148 Safari/604.1": "Safari on iPhone",
    "Mozilla/5.0 (iPad; CPU OS 16_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/16.6 Mobile/15E148 Safari/604.1": "Safari on iPad",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Safari/605.1.15": "Safari on Mac",
    f"Mozilla/5.0 {CHROME} (compatible; Googlebot/2.1; +http://www.google.com/bot.html)": "A robot",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)": "A robot",
    "curl/8.5.0": "curl",
    "python-requests/2.32.5": "A device",
    "Mozilla/5.0 (Windows NT 10.0; WOW64; Trident/7.0; rv:11.0) like Gecko": "A browser on Windows",
    "": "A device",
    "\xff\x00\r\n\ud800": "A device",
    "<script>alert(1)</script>": "A device",
    "<b>Firefox/1</b> Windows": "Firefox on Windows",
    "x" * 65536 + " Firefox/142.0": "A device",
    "Version/" * 8192: "A device",
}


@pytest.mark.parametrize(("user_agent", "name"), USER_AGENTS.items(), ids=range(len(USER_AGENTS)))
def test_a_device_is_known_by_a_few_words(user_agent: str, name: str) -> None:
    assert device_name(user_agent) == name


# The page, under gunicorn.


@pytest.fixture(scope="module")
def url(mongodb_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the Bottle shop, where requests can be held open."""
    log = tmp_path_factory.mktemp("shop") / "log"
    with served([*SERVERS["gunicorn"], "tests.gated_shop:app"], mongodb_uri, log) as url:
        yield url
    said = log.read_text()
    assert not re.search("warning|error|traceback", said, re.IGNORECASE), said


@pytest.fixture
def owner() -> str:
    """Somebody whom no other test knows."""
    return f"Alice {secrets.token_hex(4)}"


@pytest.fixture
def shops(client: MongoClient[Any]) -> Collection[Any]:
    """The sessions of the shop."""
    return client["mongosession_shop"]["sessions"]


def signed_in(url: str, owner: str, user_agent: str = "curl/8.5.0") -> Browser:
    browser = Browser(url, user_agent=user_agent)
    browser.post("/login", name=owner)
    return browser


def html_of(browser: Browser) -> str:
    return browser.read("/devices")[0]


def test_the_page_shows_the_devices_of_one_owner_this_one_first(url: str, owner: str) -> None:
    laptop = signed_in(url, owner, next(iter(USER_AGENTS)))
    signed_in(url, f"{owner}'s sister")
    signed_in(url, owner)
    shown = [(device.name, device.is_this) for device in laptop.devices().devices]
    assert shown == [("Firefox on Windows", True), ("curl", False)]
    assert f"on {'2 devices'}" in html_of(laptop)


def test_only_who_is_logged_in_has_a_link_and_a_page(url: str, owner: str) -> None:
    browser = Browser(url)
    assert 'href="/devices"' not in browser.read("/")[0]
    assert 'id="visits"' in html_of(browser), "it leads to the shop"
    browser.post("/login", name=owner)
    assert 'href="/devices"' in browser.read("/")[0]
    cookie = {"Cookie": f"mongosession={browser.token}"}
    with urlopen(Request(f"{url}/devices", headers=cookie)) as page:
        assert (page.headers["Cache-Control"], page.headers["Vary"]) == ("no-store", "Cookie")


@pytest.mark.parametrize(
    ("ago", "words"),
    [
        (timedelta(), "Active in the last few minutes"),
        (timedelta(minutes=9), "Active in the last few minutes"),
        (timedelta(minutes=10), "Last active 10 minutes ago"),
        (timedelta(minutes=59), "Last active 59 minutes ago"),
        (timedelta(hours=1), "Last active 1 hour ago"),
        (timedelta(hours=23), "Last active 23 hours ago"),
        (timedelta(days=1), "Last active 1 day ago"),
        (timedelta(days=9), "Last active 9 days ago"),
        (timedelta(minutes=-5), "Active in the last few minutes"),
    ],
    ids=str,
)
def test_when_a_device_was_active_is_told_in_words(
    url: str, owner: str, shops: Collection[Any], ago: timedelta, words: str
) -> None:
    other, this = signed_in(url, owner), signed_in(url, owner)
    seen_at = datetime.now(timezone.utc) - ago
    shops.update_one({"_id": id_of(other.token)}, {"$set": {"seen_at": seen_at}})
    assert re.findall(r"<p>(.*ctive.*)</p>", html_of(this)) == ["Active now", words]


def test_what_others_have_written_is_escaped(url: str, owner: str, shops: Collection[Any]) -> None:
    hostile = '</h2><script>alert("1")</script>'
    browser = signed_in(url, owner + hostile, "<b>Firefox/1.0</b> Windows")
    assert "<b>" not in html_of(browser)
    shops.update_one({"owner": owner + hostile}, {"$set": {"label": hostile}})
    assert "<script" not in html_of(browser)
    assert browser.devices().devices[0].name == hostile


def test_a_session_that_knows_no_device_is_a_device(
    url: str, owner: str, shops: Collection[Any]
) -> None:
    browser = signed_in(url, owner)
    shops.update_one({"owner": owner}, {"$unset": {"label": ""}})
    assert [device.name for device in browser.devices().devices] == ["A device"]


# What its buttons do.


def test_one_device_is_signed_out(url: str, owner: str) -> None:
    phone, laptop = signed_in(url, owner), signed_in(url, owner)
    this, other = laptop.devices().devices
    notice, left, _ = laptop.sign_out(other.id)
    assert (notice, left) == ("1 device signed out.", [this])
    assert laptop.devices().notice is None, "it is told once"
    assert phone.get()[1:3] == (None, {})
    assert laptop.get().owner == owner


def test_every_other_device_is_signed_out(url: str, owner: str) -> None:
    others = [signed_in(url, owner) for _ in range(3)]
    sister = signed_in(url, f"{owner}'s sister")
    laptop = signed_in(url, owner)
    notice, left, _ = laptop.sign_out("others")
    assert (notice, [device.is_this for device in left]) == ("3 devices signed out.", [True])
    assert "everywhere else" not in html_of(laptop)
    assert [other.get().owner for other in others] == [None] * 3
    assert sister.get().owner == f"{owner}'s sister"


def test_signing_out_this_device_is_a_logout(url: str, owner: str) -> None:
    laptop, phone = signed_in(url, owner), signed_in(url, owner)
    this, csrf = laptop.devices().devices[0], laptop.devices().csrf
    status, headers = post(f"{url}/devices", laptop.token, csrf=csrf, end=this.id)
    assert (status, urlsplit(headers["Location"]).path) == (303, "/")
    assert "Max-Age=0" in headers["Set-Cookie"]
    assert laptop.get().owner is None
    assert phone.get().owner == owner


@pytest.mark.parametrize("which", ["another's", "an ended one", "nonsense", ""])
def test_what_is_not_a_session_of_the_owner_is_not_ended(
    url: str, owner: str, which: str, shops: Collection[Any]
) -> None:
    laptop, bob = signed_in(url, owner), signed_in(url, f"{owner}'s brother")
    ids = {"another's": bob.devices().devices[0].id, "nonsense": '{"$gt": ""}'}
    if which == "an ended one":
        phone = signed_in(url, owner)
        ids[which] = laptop.devices().devices[1].id
        phone.post("/logout")
    notice, left, _ = laptop.sign_out(ids.get(which, ""))
    assert notice == "No device was signed out: it had been already."
    assert [device.is_this for device in left] == [True]
    assert bob.get().owner == f"{owner}'s brother"


@pytest.mark.parametrize("csrf", ["none", "empty", "another's", "not ASCII", "of before a login"])
@pytest.mark.parametrize("end", ["another", "this", "others"])
def test_a_form_that_is_not_ours_ends_nothing(url: str, owner: str, csrf: str, end: str) -> None:
    laptop, phone = signed_in(url, owner), signed_in(url, owner)
    forged = {"empty": "", "another's": phone.devices().csrf, "not ASCII": "é€"}
    forged["of before a login"] = laptop.devices().csrf
    laptop.post("/login", name=owner)
    this, other = laptop.devices().devices
    form = {"csrf": forged[csrf]} if csrf in forged else {}
    which = {"another": other.id, "this": this.id}.get(end, end)
    assert post(f"{url}/devices", laptop.token, end=which, **form)[0] == 403
    assert laptop.devices().notice is None
    assert (laptop.get().owner, phone.get().owner) == (owner, owner)


def test_a_click_on_a_device_that_was_signed_out_leads_to_the_shop(url: str, owner: str) -> None:
    laptop, phone = signed_in(url, owner), signed_in(url, owner)
    csrf = phone.devices().csrf
    laptop.sign_out("others")
    status, headers = post(f"{url}/devices", phone.token, csrf=csrf, end="others")
    assert (status, urlsplit(headers["Location"]).path) == (303, "/")
    assert laptop.get().owner == owner


def test_get_ends_nothing(url: str, owner: str) -> None:
    laptop, phone = signed_in(url, owner), signed_in(url, owner)
    laptop.read(f"/devices?end=others&csrf={laptop.devices().csrf}")
    assert phone.get().owner == owner


# In real browsers.


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with profile(tmp_path / "laptop") as browser:
        yield browser


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    user_agent = f"Mozilla/5.0 (Linux; Android 10; K) {CHROME} Mobile Safari/537.36"
    with profile(tmp_path / "phone", f"--user-agent={user_agent}") as browser:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": True},
        )
        yield browser


def sign_in(browser: webdriver.Chrome, url: str, owner: str) -> None:
    browser.get(url)
    browser.find_element(By.ID, "name").send_keys(owner)
    submit(browser, "form[action='/login'] button")
    submit(browser, "a[href='/devices']")


def names(browser: webdriver.Chrome) -> list[str]:
    return [found.text for found in browser.find_elements(By.CSS_SELECTOR, ".devices h2")]


@contextmanager
def under_way(browser: webdriver.Chrome) -> Iterator[None]:
    """Have a request of the page at work, which has changed its session, and is to commit it."""
    with socket.create_server(("127.0.0.1", 0)) as gates:
        gates.settimeout(LONGEST_WAIT)
        browser.execute_script(
            "window.answer = fetch('/cart?gate=' + arguments[0], {"
            " method: 'POST', body: new URLSearchParams({item: 'Oolong'}), redirect: 'manual'})",
            gates.getsockname()[1],
        )
        with gates.accept()[0]:
            yield
    browser.execute_async_script("window.answer.then(arguments[0])")


@in_chromium
def test_one_browser_signs_the_other_out(
    laptop: webdriver.Chrome, phone: webdriver.Chrome, url: str, owner: str
) -> None:
    for browser in (phone, laptop):
        sign_in(browser, url, owner)
    assert names(laptop) == ["Chrome on Linux", "Chrome on Android"]
    assert text(laptop, "[aria-current] .this") == "This device"
    token = phone.get_cookie("mongosession") or {}
    with under_way(phone):
        submit(laptop, "li:not([aria-current]) button")
        assert text(laptop, "[role=status]") == "1 device signed out."
        assert names(laptop) == ["Chrome on Linux"]
    laptop.refresh()
    assert names(laptop) == ["Chrome on Linux"], "the request that was under way revives nothing"
    assert phone.get_cookie("mongosession") == token, "and gets no cookie"

    submit(phone, "nav a")
    assert not phone.find_elements(By.ID, "owner")
    assert cart(phone) == {}
    submit(laptop, "[aria-current] button")
    assert not laptop.find_elements(By.ID, "owner")


@in_chromium
def test_the_page_is_used_by_keyboard_alone(laptop: webdriver.Chrome, url: str, owner: str) -> None:
    phone = signed_in(url, owner)
    sign_in(laptop, url, owner)
    reached = []
    while "Sign out everywhere else" not in reached:
        ActionChains(laptop).send_keys(Keys.TAB).perform()
        focused = laptop.switch_to.active_element
        reached.append(focused.accessible_name)
        assert focused.value_of_css_property("outline-style") == "solid"
    assert reached == [
        "Back to The tea shop",
        "Sign out Chrome on Linux. Active now",
        "Sign out curl. Active in the last few minutes",
        "Sign out everywhere else",
    ]
    submit(laptop, "button:focus")
    assert text(laptop, "[role=status]") == "1 device signed out."
    assert phone.get().owner is None


@in_chromium
def test_the_page_is_read_and_touched_on_a_small_phone(
    phone: webdriver.Chrome, url: str, owner: str
) -> None:
    signed_in(url, owner, next(iter(USER_AGENTS)))
    sign_in(phone, url, owner)
    root = phone.find_element(By.TAG_NAME, "html")
    assert root.get_property("scrollWidth") == root.get_property("clientWidth") == 320
    buttons = phone.find_elements(By.TAG_NAME, "button")
    assert len(buttons) == 3
    assert all(min(button.size.values()) >= 44 for button in buttons)


# The revocations behind it: what was there when they began, and nothing else, however they go.


@pytest.fixture
def distant(settings: dict[str, Any], proxy: Proxy, store: MongoStore) -> Iterator[MongoStore]:
    """A store whose commands pass the proxy, and find the indexes made by the other one."""
    distant = MongoStore(settings | {"mongodb_host": proxy.uri})
    distant.ensure_indexes()
    yield distant
    distant.close()


def log_in(store: MongoStore, owner: str = "alice") -> Session:
    session = store.open(None)
    session.login(owner)
    store.flush(session)
    return session


def is_live(store: MongoStore, session: Session) -> bool:
    return store.retrieve(session.token or "") is not None


def at(proxy: Proxy, name: str, then: Callable[[], object], *, cut: bool = False) -> None:
    """Do `then` when the next command of this name is at the proxy: before it is passed on.

    Or, to `cut` the connection, after the server has carried it out; its answer is lost.
    """

    def fault(link: Any, message: bytes) -> bool:
        if command_of(message) != name:
            proxy._switch(fault, once=True)
            return link.answer(link.ask(message))
        if not cut:
            then()
            return link.answer(link.ask(message))
        link.ask(message)
        then()
        return False

    proxy._switch(fault, once=True)


def test_a_login_on_its_way_is_not_undone_by_a_revocation_of_all(
    store: MongoStore, distant: MongoStore, proxy: Proxy
) -> None:
    log_in(store)
    ended: list[int] = []
    at(proxy, "insert", lambda: ended.append(store.revoke_all("alice")))
    login = log_in(distant)
    assert ended == [1]
    assert is_live(store, login)
    assert store.revoke_all("alice") == 1, "it is there now"
    assert not is_live(store, login)


@pytest.mark.parametrize("cut", [False, True], ids=["unbroken", "cut"])
def test_a_revocation_of_all_on_its_way_ends_no_login_since(
    store: MongoStore, distant: MongoStore, proxy: Proxy, cut: bool
) -> None:
    before, since = [log_in(store) for _ in range(3)], []
    at(proxy, "update", lambda: since.append(log_in(store)), cut=cut)
    assert distant.revoke_all("alice") == 3
    assert not any(is_live(store, session) for session in before)
    assert [is_live(store, session) for session in since] == [True]


@pytest.mark.parametrize("name", ["find", "update"])
@pytest.mark.parametrize("keep", [False, True], ids=["all", "all but one"])
def test_a_revocation_of_all_that_is_cut_goes_on_and_tells_how_many(
    store: MongoStore, distant: MongoStore, proxy: Proxy, name: str, keep: bool
) -> None:
    sessions = [log_in(store) for _ in range(4)]
    sister = log_in(store, "alice's sister")
    at(proxy, name, lambda: None, cut=True)
    kept = sessions[:1] if keep else []
    ended = distant.revoke_all("alice", keep=sessions[0].id if keep else None)
    assert ended == 4 - len(kept)
    assert [session for session in sessions if is_live(store, session)] == kept
    assert is_live(store, sister)


def test_one_that_is_cut_is_one(store: MongoStore, distant: MongoStore, proxy: Proxy) -> None:
    session = log_in(store)
    at(proxy, "update", lambda: None, cut=True)
    assert distant.revoke(session.id or "") == 1
    assert not is_live(store, session)


def test_of_logins_and_revocations_at_once_each_login_is_live_or_counted(
    store: MongoStore,
) -> None:
    gate = threading.Barrier(8)

    def race(place: int) -> Session | int:
        gate.wait(LONGEST_WAIT)
        return store.revoke_all("alice") if place < 2 else log_in(store)

    with ThreadPoolExecutor(8) as threads:
        for _ in range(10):
            came = list(threads.map(race, range(8)))
            logins = [one for one in came if isinstance(one, Session)]
            ended = sum(one for one in came if isinstance(one, int))
            live = sum(is_live(store, login) for login in logins)
            assert ended + live == 6
            assert store.revoke_all("alice") == live


@pytest.mark.parametrize("count", [1, 30])
def test_the_work_of_a_revocation_of_all_is_bounded(store: MongoStore, count: int) -> None:
    for _ in range(count):
        log_in(store)
    with RECORDER.request() as commands:
        assert store.revoke_all("alice") == count
    RECORDER.scattered.clear()  # The sessions of an owner may be on every shard.
    assert [event.command_name for event in commands] == ["find", "update"]


# The recipe.


def test_the_recipe_for_ones_own_page_works(settings: dict[str, Any], store: MongoStore) -> None:
    recipe, page = re.findall(r"^```python\n(.*?)^```", RECIPE.read_text(), re.DOTALL | re.M)
    assert len([line for line in recipe.splitlines() if line.strip()]) <= 35
    names: dict[str, Any] = {}
    exec(recipe.replace(MADE_UP, repr(settings)) + page, names)
    laptop, phone, bob = [wsgi.Browser(names["app"]) for _ in range(3)]
    for browser, owner in (laptop, "alice"), (phone, "alice"), (bob, "bob"):
        send(browser, "/login", name=owner)
    shown = send(laptop, "/devices").body.decode()
    assert shown.count("<h2>") == 2
    csrf = re.search(r'name="csrf" value="(.*?)"', shown)
    assert csrf is not None
    for which in (id_of(bob.token), id_of(phone.token)):
        assert send(laptop, "/devices", csrf=csrf[1], end=which).status == "303 See Other"
    assert {info.id for info in store.sessions()} == {id_of(laptop.token), id_of(bob.token)}
    assert send(bob, "/devices", csrf=csrf[1], end="others").status == "403 Forbidden"
    send(phone, "/login", name="alice")
    send(laptop, "/devices", csrf=csrf[1], end="others")
    assert [info.id for info in store.sessions("alice")] == [id_of(laptop.token)]
    send(laptop, "/devices", csrf=csrf[1], end=id_of(laptop.token))
    assert (laptop.cookie, list(store.sessions("alice"))) == ("", [])
    assert send(laptop, "/devices").status == "403 Forbidden"
    names["store"].close()


def send(browser: wsgi.Browser, path: str, **form: str) -> wsgi.Response:
    """Send a form, or get the page if there is none; a page of all sessions names no one id."""
    body = urlencode(form).encode()
    environ = wsgi.environ_of(
        path,
        REQUEST_METHOD="POST" if form else "GET",
        CONTENT_TYPE="application/x-www-form-urlencoded",
        CONTENT_LENGTH=str(len(body)),
        HTTP_COOKIE=browser.cookie,
    )
    response = wsgi.call(validator(browser.app), environ | {"wsgi.input": BytesIO(body)})
    browser.keep(response)
    return response

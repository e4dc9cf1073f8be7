"""Logging in and out: the sites of docs/logins.md, pasted into a folder and used by browsers."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import pytest
from pymongo import MongoClient
from selenium.webdriver.common.by import By

from mongosession_wsgi import MongoStore
from mongosession_wsgi.document import id_of

from .test_browser import in_chromium, profile, submit, text
from .test_examples import SERVERS, served

pytestmark = pytest.mark.server

PAGE = (Path(__file__).parent.parent / "docs" / "logins.md").read_text()
MEMBERS = re.search(r"^<!-- file: members.py -->\n```python\n(.*?)^```", PAGE, re.S | re.M)
SITES = dict(re.findall(r"^## ([\w ]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.S | re.M))
SITES.pop("What all frameworks share")
RIGHT = {"name": "alice", "password": "correct horse"}
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0"
LONGEST_LABEL = 200
# A hash that is safe takes up to a second of a busy machine.
CHEAP_HASHES = """
from functools import partial
generate_password_hash = partial(generate_password_hash, method="pbkdf2:sha256:1")
"""
CHEAP_HASHERS = 'PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],'


class Answer(NamedTuple):
    """The answer to one request, wherever it leads."""

    status: int
    place: str
    """The path that a redirect leads to, or nothing."""
    cookie: str | None
    """The Set-Cookie header of the session."""
    text: str


class Visitor:
    """A browser with the session's cookie, which follows no redirect."""

    def __init__(self, url: str, device: str = FIREFOX) -> None:
        self.host, self.device, self.jar = urlsplit(url).netloc, device, ""

    @property
    def id(self) -> str:
        """The public id of the session."""
        return id_of(self.jar.partition("=")[2])

    def send(self, method: str, path: str, *, headers: Any = None, **form: str) -> Answer:
        connection = HTTPConnection(self.host, timeout=20)
        sent = {"User-Agent": self.device, "Cookie": self.jar} | (headers or {})
        if method == "POST":
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request(method, path, urlencode(form) if form else None, sent)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        (cookie,) = response.headers.get_all("Set-Cookie") or [None]
        if cookie:
            self.jar = "" if "Max-Age=0" in cookie else cookie.partition(";")[0]
        place = urlsplit(response.headers.get("Location") or "").path
        return Answer(response.status, place, cookie, text)

    def get(self, path: str) -> Answer:
        return self.send("GET", path)

    def post(self, path: str, **form: str) -> Answer:
        return self.send("POST", path, **form)

    def logs_in(self, **form: str) -> Answer:
        answer = self.post("/login", **RIGHT | form)
        assert answer.status in (302, 303), answer
        return answer

    @property
    def is_in(self) -> bool:
        answer = self.get("/")
        assert answer.status in (200, 302, 303)
        return answer.status == 200


class Site(NamedTuple):
    """A site of the page at work: its address, its store, and its log."""

    name: str
    url: str
    store: MongoStore
    log: Path

    def visitor(self, device: str = FIREFOX) -> Visitor:
        return Visitor(self.url, device)

    @property
    def owner(self) -> str:
        """The owner of Alice's sessions; in Django the primary key."""
        return "1" if self.name == "Django" else "alice"

    def labels(self) -> list[str | None]:
        return [info.label for info in self.store.sessions(self.owner)]

    def audit(self) -> list[str]:
        """Return the events of the audit log so far."""
        return re.findall(r"^INFO:mongosession_wsgi\.audit:(\w+): ", self.log.read_text(), re.M)


@pytest.fixture(scope="module", params=SITES)
def site(
    request: pytest.FixtureRequest,
    mongodb_uri: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """A site of the page, pasted as the page says, and served by gunicorn."""
    folder = tmp_path_factory.mktemp("site")
    database = f"logins_{secrets.token_hex(4)}"
    assert MEMBERS is not None
    members, hello = MEMBERS[1], SITES[request.param]
    host = f'"mongodb_host": "{mongodb_uri}"'
    for said, ours in (
        ('"mongodb_session_db": "myapp"', f'"mongodb_session_db": "{database}", {host}'),
        ("\nSETTINGS = ", f"\n{CHEAP_HASHES}\nSETTINGS = "),
    ):
        assert said in members
        members = members.replace(said, ours)
    (folder / "members.py").write_text(members)
    hello = hello.replace(
        "\nsettings.configure(\n", f"\nsettings.configure(\n    {CHEAP_HASHERS}\n"
    )
    (folder / "hello.py").write_text(hello)
    with MongoClient[Any](mongodb_uri) as client:
        client.drop_database(database)
        # A single worker, in whose memory the passwords are.
        (folder / "gunicorn.conf.py").write_text("threads = 4\ncontrol_socket_disable = True\n")
        command = [*SERVERS["gunicorn"], "--config", str(folder / "gunicorn.conf.py")]
        command += ["--chdir", str(folder), "hello:app"]
        with served(command, mongodb_uri, folder / "log") as url:
            store = MongoStore({"mongodb_session_db": database, "mongodb_host": mongodb_uri})
            yield Site(request.param, url, store, folder / "log")
            store.close()
        client.drop_database(database)
    said = (folder / "log").read_text().replace("WARNING:django.request:", "")  # 403 and 405.
    assert not re.search("warning:|error|traceback", said, re.IGNORECASE), said


@pytest.fixture(autouse=True)
def _nobody_is_in(site: Site) -> None:
    site.store.revoke_all(site.owner)


def test_each_framework_has_a_site() -> None:
    assert [*SITES] == ["Plain WSGI", "Bottle", "Django", "Falcon", "Flask", "Pyramid"]


def test_a_stranger_is_led_to_the_login_and_starts_no_session(site: Site) -> None:
    stranger = site.visitor()
    for path in "/", "/password":
        answer = stranger.get(path)
        assert (answer.status in (302, 303), answer.place) == (True, "/login")
    for path in "/end", "/password":
        answer = stranger.post(path, end="others", password="swordfish")
        assert (answer.status in (302, 303), answer.place) == (True, "/login")
    form = stranger.get("/login")
    assert form.status == 200
    assert '<input name="remember" type="checkbox">' in form.text
    assert stranger.post("/logout").status in (302, 303)
    assert stranger.jar == ""
    assert list(site.store.sessions()) == []


def test_a_wrong_password_is_no_login(site: Site) -> None:
    stranger = site.visitor()
    wrong = {"password": "wrong"}, {"name": "mallory"}, {"name": "mallory", "password": ""}
    for form in (*wrong, {"name": ""}):
        answer = stranger.post("/login", **RIGHT | form)
        assert (answer.status, answer.cookie) == (403, None)
        assert "Wrong name or password." in answer.text
    assert list(site.store.sessions()) == []


def test_a_login_is_labelled_and_remembered_if_the_box_is_ticked(site: Site) -> None:
    for form, lasts in ({"remember": "on"}, True), ({}, False):
        alice = site.visitor()
        cookie = str(alice.logs_in(**form).cookie)
        assert ("Max-Age" in cookie) is lasts
        assert alice.is_in
        info = next(iter(site.store.sessions(site.owner)))
        assert (info.id, info.label, info.remembered) == (alice.id, FIREFOX, lasts)


def test_a_label_is_shown_escaped_and_cut(site: Site) -> None:
    alice = site.visitor("<script>alert(1)</script>" + "x" * 500)
    alice.logs_in()
    shown = alice.get("/").text
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert [len(label or "") for label in site.labels()] == [LONGEST_LABEL]


def test_a_logout_is_a_post(site: Site) -> None:
    alice = site.visitor()
    alice.logs_in(remember="on")
    assert alice.get("/logout").status in (404, 405)
    assert alice.is_in
    token = alice.jar
    answer = alice.post("/logout")
    assert (answer.status in (302, 303), answer.place) == (True, "/")
    assert "Max-Age=0" in str(answer.cookie)
    assert site.labels() == []
    alice.jar = token
    assert not alice.is_in


def test_a_logout_with_a_token_just_replaced_is_one(site: Site) -> None:
    alice = site.visitor()
    alice.logs_in()
    other_tab = site.visitor()
    other_tab.jar = alice.jar
    alice.logs_in()
    assert other_tab.post("/logout").status in (302, 303)
    assert site.labels() == []
    assert not alice.is_in


def test_forms_of_other_sites_are_refused(site: Site) -> None:
    alice = site.visitor()
    alice.logs_in()
    forms = {"/login": RIGHT, "/logout": {}, "/end": {"end": "others"}, "/password": RIGHT}
    for headers in {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://elsewhere.example"}:
        for path, form in forms.items():
            answer = alice.send("POST", path, headers=headers, **form)
            assert (answer.status, answer.cookie) == (403, None)
    assert alice.is_in
    # The connection is kept, as by a browser, and not by a proxy.
    headers = {"Sec-Fetch-Site": "same-origin", "Origin": site.url, "Connection": "keep-alive"}
    assert alice.send("POST", "/logout", headers=headers).status in (302, 303)
    assert not alice.is_in


def made_old(site: Site, visitor: Visitor) -> None:
    """Let a login be one of eleven minutes ago."""
    long_ago = datetime.now(timezone.utc) - timedelta(minutes=11)
    sessions = site.store.collection
    assert sessions.update_one({"_id": visitor.id}, {"$set": {"created_at": long_ago}})


def test_an_old_login_has_to_be_made_anew_before_the_password_is_changed(site: Site) -> None:
    alice = site.visitor()
    alice.logs_in()
    assert alice.get("/password").status == 200
    made_old(site, alice)
    before = alice.id
    for method in "POST", "GET":
        answer = alice.send(method, "/password", password="swordfish")
        assert (answer.status in (302, 303), answer.place) == (True, "/login")
    assert alice.is_in, "nobody is logged out by the question"
    assert alice.get("/login").status == 200
    assert alice.post("/login", name="alice", password="swordfish").status == 403
    assert alice.get("/password").place == "/login"
    assert alice.logs_in().place == "/password", "and back"
    assert alice.id != before
    assert alice.get("/password").status == 200
    assert alice.logs_in().place == "/", "just once"
    assert len(site.labels()) == 1


def test_a_changed_password_ends_all_other_sessions(site: Site) -> None:
    laptop, phone = site.visitor("laptop"), site.visitor("phone")
    for visitor in laptop, phone:
        visitor.logs_in()
    thief = site.visitor()
    thief.jar = laptop.jar
    answer = laptop.post("/password", password="swordfish")
    assert (answer.status in (302, 303), answer.place) == (True, "/")
    try:
        assert site.labels() == ["laptop"]
        assert laptop.is_in
        assert not phone.is_in
        assert not thief.is_in, "a copy of the cookie has ended, too"
        assert phone.post("/login", **RIGHT).status == 403
    finally:
        laptop.post("/login", name="alice", password="swordfish")
        laptop.post("/password", password=RIGHT["password"])
    assert phone.logs_in().place == "/"


def test_a_fourth_device_ends_the_first(site: Site) -> None:
    devices = [site.visitor(f"device {number}") for number in range(4)]
    for device in devices:
        device.logs_in()
    assert sorted(map(str, site.labels())) == ["device 1", "device 2", "device 3"]
    assert [device.is_in for device in devices] == [False, True, True, True]


def test_the_devices_are_shown_and_ended(site: Site) -> None:
    laptop, phone, tablet = (site.visitor(name) for name in ("laptop", "phone", "tablet"))
    for visitor in laptop, phone, tablet:
        visitor.logs_in()
    shown = laptop.get("/").text
    assert shown.count('name="end"') == 4
    assert "laptop (this device)" in shown
    assert "phone, logged in" in shown
    assert laptop.post("/end", end=phone.id).status in (302, 303)
    assert [visitor.is_in for visitor in (laptop, phone, tablet)] == [True, False, True]
    laptop.post("/end", end="others")
    assert [visitor.is_in for visitor in (laptop, phone, tablet)] == [True, False, False]
    assert "Max-Age=0" in str(laptop.post("/end", end=laptop.id).cookie)
    assert site.labels() == []


def test_the_session_of_somebody_else_is_not_ended(site: Site) -> None:
    alice = site.visitor()
    alice.logs_in()
    bob = site.store.open(None)
    bob.login("bob")
    site.store.flush(bob)
    for which in str(bob.id), "nonsense", "":
        assert alice.post("/end", end=which).status in (302, 303)
    assert [info.id for info in site.store.sessions("bob")] == [bob.id]
    assert alice.is_in
    assert site.store.revoke_all("bob") == 1


def test_the_audit_log_tells_of_all_this(site: Site) -> None:
    alice, others = site.visitor("laptop \x9b2J\xad"), [site.visitor() for _ in range(3)]
    before = len(site.audit())
    alice.logs_in()
    alice.post("/logout")
    for visitor in others:
        visitor.logs_in()
    others[0].post("/end", end=others[1].id)
    alice.logs_in()
    alice.post("/end", end="others")
    logins = ["login", "logout", "login", "login", "login", "revoke", "login", "revoke"]
    said = [event for event in site.audit()[before:] if event != "regenerate"]  # By Django.
    assert said == logins
    text = site.log.read_text()
    assert f"owner '{site.owner}', session '{alice.id}'" in text
    for visitor in (alice, *others):
        assert visitor.jar.partition("=")[2] not in text
    assert not re.search(r"[^\x20-\x7e\n]", text)


def test_the_page_says_what_gunicorn_prints(site: Site) -> None:
    alice = site.visitor("curl/8.5.0")
    before = len(site.log.read_text())
    alice.logs_in(remember="on")
    alice.post("/logout")
    said = re.findall("^INFO.*", site.log.read_text()[before:], re.M)
    (told,) = re.findall(r"^```text\n(INFO.*?)```", PAGE, re.S | re.M)
    if site.name == "Plain WSGI":
        assert [re.sub("'[^']{43}'", "'3Qp…'", line) for line in said] == told.splitlines()


@in_chromium
@pytest.mark.parametrize("site", ["Plain WSGI"], indirect=True)
def test_a_person_logs_in_changes_the_password_and_logs_out(site: Site, tmp_path: Path) -> None:
    with profile(tmp_path) as chromium:
        chromium.get(f"{site.url}/password")
        for name, typed in RIGHT.items():
            chromium.find_element(By.NAME, name).send_keys(typed)
        chromium.find_element(By.NAME, "remember").click()
        submit(chromium, "button")
        assert "You are alice." in text(chromium, "p")
        assert "(this device)" in text(chromium, "li")
        remembered = chromium.get_cookie("mongosession") or {}
        assert remembered["expiry"] > time.time() + 29 * 86400
        submit(chromium, "a")
        chromium.find_element(By.NAME, "password").send_keys(RIGHT["password"])
        submit(chromium, "button")
        assert "You are alice." in text(chromium, "p")
        renewed = chromium.get_cookie("mongosession") or {}
        assert renewed["value"] != remembered["value"]
        submit(chromium, "form[action='/logout'] button")
        assert chromium.get_cookie("mongosession") is None
        assert text(chromium, "button") == "Log in"
        assert site.labels() == []

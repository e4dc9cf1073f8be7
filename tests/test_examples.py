"""The example shops under the servers that people deploy with, the demo's panel, and its end."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPMessage
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

import pytest
from pymongo import MongoClient

from examples.browser import Browser, sha256_of
from mongosession_wsgi.embedded import EmbeddedServer

from .load import WAITRESS_NOISE

pytestmark = [pytest.mark.server, pytest.mark.unmeasured]

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SHOPS = sorted(path.stem for path in EXAMPLES.glob("*_shop.py"))
SERVERS = {
    "gunicorn": ["gunicorn", "--bind", "127.0.0.1:0"],
    "gunicorn --preload": ["gunicorn", "--bind", "127.0.0.1:0", "--preload"],
    "waitress": ["waitress", "--listen", "127.0.0.1:0"],
}
# Pyramid, and WebOb which it is made of, import what is deprecated by now.
WARNINGS = [
    *("-W", "error"),
    *("-W", "ignore:'cgi' is deprecated:DeprecationWarning"),
    *("-W", "ignore:pkg_resources is deprecated:UserWarning"),
    *("-W", "ignore:Deprecated call to `pkg_resources:DeprecationWarning"),
]


# All under gunicorn, and each under one of the others.
SERVED = [(shop, "gunicorn") for shop in SHOPS]
SERVED += zip(SHOPS, cycle(["gunicorn --preload", "waitress"]), strict=False)


@pytest.fixture(scope="module", params=SERVED, ids=" in ".join)
def url(
    request: pytest.FixtureRequest, mongodb_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a shop, served in its own folder as its docstring says."""
    shop, name = request.param
    log = tmp_path_factory.mktemp("shop") / "log"
    with served([*SERVERS[name], f"{shop}:app"], mongodb_uri, log) as url:
        yield url
    said = re.sub(WAITRESS_NOISE, "", log.read_text())
    assert not re.search("warning|error|traceback", said, re.IGNORECASE), said
    assert said.count("Booting worker") == (2 if "gunicorn" in name else 0)


@contextmanager
def served(command: list[str], mongodb_uri: str, log: Path) -> Iterator[str]:
    """Run a server in the folder of the shops, with warnings as errors; yield its address."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, *WARNINGS, "-m", *command],
            cwd=EXAMPLES,
            env=environment(MONGODB_URI=mongodb_uri),
            stdout=output,
            stderr=output,
        )
    try:
        yield address_in(log, server)
    finally:
        server.terminate()
        server.wait()


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | more


def address_in(log: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait until the server says where it listens."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        time.sleep(0.02)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


def post(
    url: str, token: str, headers: Mapping[str, str] | None = None, /, **form: str
) -> tuple[int, HTTPMessage]:
    """Send a form by hand; return the answer's status and headers, wherever it leads to."""
    address = urlsplit(url)
    connection = HTTPConnection(address.netloc, timeout=20)
    own = {
        "Content-Type": "application/x-www-form-urlencoded",
        "Cookie": f"mongosession={token}",
    }
    connection.request("POST", address.path, urlencode(form), own | dict(headers or {}))
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, response.headers


def test_visits_are_counted(url: str) -> None:
    alice = Browser(url)
    assert [alice.get().visits for _ in range(4)] == [1, 2, 3, 4]


def test_a_change_inside_the_cart_is_kept(url: str) -> None:
    alice = Browser(url)
    for tea in ("Oolong", "Earl Grey", "Oolong", "Oolong"):
        alice.post("/cart", item=tea)
    assert alice.get().cart == {"Oolong": 3, "Earl Grey": 1}


def test_two_browsers_have_two_sessions(url: str) -> None:
    alice, bob = Browser(url), Browser(url)
    alice.post("/cart", item="Assam")
    assert bob.post("/cart", item="Sencha").cart == {"Sencha": 1}
    assert alice.get().cart == {"Assam": 1}


def test_a_login_changes_the_token_and_keeps_the_cart(url: str) -> None:
    alice = Browser(url)
    alice.post("/cart", item="Assam")
    old = Browser(url, alice.cookies)
    page = alice.post("/login", name=" Zoë <b>&amp; ")
    assert page[:3] == (2, "Zoë <b>&amp;", {"Assam": 1})
    assert alice.token != old.token
    assert old.get() == (1, None, {}, False)
    assert alice.get()[:3] == (3, "Zoë <b>&amp;", {"Assam": 1})


def test_a_logout_expires_the_cookie_and_ends_the_session(url: str) -> None:
    alice = Browser(url)
    alice.post("/cart", item="Assam")
    alice.post("/login", name="alice")
    status, headers = post(f"{url}/logout", alice.token)
    assert (status, urlsplit(headers["Location"]).path) == (303, "/")
    assert re.match(r'mongosession=(|"");', headers["Set-Cookie"])
    assert "Max-Age=0" in headers["Set-Cookie"]
    ended = alice.token
    assert alice.get()[:3] == (1, None, {})
    assert alice.token != ended


@pytest.mark.parametrize("form", [("/cart", "item", "Coffee"), ("/login", "name", " ")])
def test_a_form_that_makes_no_sense_changes_nothing(url: str, form: tuple[str, str, str]) -> None:
    alice, (path, field, value) = Browser(url), form
    alice.get()
    status, headers = post(url + path, alice.token, **{field: value})
    assert (status, headers["Set-Cookie"]) == (400, None)
    assert alice.get()[:3] == (2, None, {})


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://elsewhere.example"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
    ],
    ids=str,
)
def test_a_form_from_elsewhere_is_refused(url: str, headers: dict[str, str]) -> None:
    alice = Browser(url)
    alice.post("/cart", item="Assam")
    forms = {"cart": {"item": "Assam"}, "login": {"name": "Mallory"}, "logout": {}}
    for path, form in forms.items():
        status, answer = post(f"{url}/{path}", alice.token, headers, **form)
        assert (status, answer["Set-Cookie"]) == (403, None)
    assert alice.get()[:3] == (2, None, {"Assam": 1})


def test_a_form_of_the_shops_own_page_is_taken(url: str) -> None:
    alice = Browser(url)
    alice.get()
    for said in ({"Sec-Fetch-Site": "same-origin", "Origin": url}, {"Origin": url}):
        headers = {"Connection": "keep-alive"} | said  # As a browser, and no proxy, has it.
        assert post(f"{url}/cart", alice.token, headers, item="Assam")[0] == 303
    assert alice.get().cart == {"Assam": 2}


def test_an_address_that_is_not_there_has_a_page_of_the_shop(url: str) -> None:
    with pytest.raises(HTTPError) as caught, urlopen(f"{url}/nothing"):
        pass
    with caught.value as answer:
        assert (answer.code, answer.headers["Set-Cookie"]) == (404, None)
        assert answer.headers["Content-Type"].lower() == "text/html; charset=utf-8"
        assert "There is no such page" in answer.read().decode()


def test_a_cookie_outlives_the_browser_only_where_the_visitor_is_remembered(url: str) -> None:
    alice = Browser(url)
    alice.get()
    for form, lasts in ({"remember": "on"}, True), ({}, False):
        alice.post("/login", name="alice", **form)
        assert alice.cookie is not None
        assert (alice.cookie.expires is not None) == lasts
        assert alice.get().owner == "alice"


def sessions_of(client: MongoClient[Any], name: str) -> list[dict[str, Any]]:
    """Return the stored sessions of an owner, the earliest login first."""
    return list(client["mongosession_shop"]["sessions"].find({"owner": name}).sort("created_at"))


def test_the_form_has_a_box_for_remembering(url: str) -> None:
    assert '<input type="checkbox" name="remember">' in Browser(url).read("/")[0]


def test_a_login_names_the_device_and_says_whether_to_remember_it(
    url: str, client: MongoClient[Any]
) -> None:
    owner = f"alice {secrets.token_hex(4)}"
    user_agent = "Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0"
    forms: list[dict[str, str]] = [{"remember": "on"}, {}]
    for form in forms:
        Browser(url, user_agent=user_agent).post("/login", name=owner, **form)
    found = sessions_of(client, owner)
    assert [one["label"] for one in found] == ["Firefox on Linux"] * 2
    assert [one.get("remember") for one in found] == [True, None]
    assert not any("device" in one["data"] for one in found)


@pytest.mark.parametrize(
    "said", ["\x9b\xff", "é" * 600, None], ids=["no UTF-8", "too much", "nothing"]
)
def test_whatever_a_browser_says_of_itself_its_owner_can_log_in(
    url: str, client: MongoClient[Any], said: str | None
) -> None:
    owner = f"alice {secrets.token_hex(4)}"
    headers = {} if said is None else {"User-Agent": said}
    assert post(f"{url}/login", "", headers, name=owner)[0] == 303
    assert [one["label"] for one in sessions_of(client, owner)] == ["A device"]


def test_what_was_added_is_told_once(url: str) -> None:
    alice, told = Browser(url), "Earl Grey is in your cart."
    alice.get()
    assert post(f"{url}/cart", alice.token, item="Earl Grey")[0] == 303
    assert told in alice.read("/")[0]
    assert told not in alice.read("/")[0]


def test_the_shops_say_sign_in_and_sign_out() -> None:
    for path in [*EXAMPLES.glob("*.html"), *EXAMPLES.glob("*.py")]:
        assert not re.search(r"\b[Ll]og(ged)? (in|out)\b", path.read_text()), path


def test_each_framework_has_a_shop_of_at_most_60_lines() -> None:
    frameworks = ["bottle", "django", "falcon", "flask", "plain", "pyramid"]
    assert [shop.removesuffix("_shop") for shop in SHOPS] == frameworks
    for shop in SHOPS:
        assert len((EXAMPLES / f"{shop}.py").read_text().splitlines()) <= 60


# The panel beside the shop.


@pytest.fixture(scope="module")
def hood(mongodb_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the shop with the panel, as the demo serves it."""
    log = tmp_path_factory.mktemp("hood") / "log"
    with served([*SERVERS["gunicorn"], "hood:app"], mongodb_uri, log) as url:
        yield url
    said = log.read_text()
    assert not re.search("warning|error|traceback", said, re.IGNORECASE), said


def test_the_panel_shows_cookie_document_and_commands(hood: str) -> None:
    alice = Browser(hood)
    assert "<b>insert</b> a new session" in alice.read("/")[0]
    alice.post("/cart", item="Assam")
    page = alice.read("/")[0]
    assert f"mongosession={alice.token[:6]}…" in page
    assert "HttpOnly" in page
    assert sha256_of(alice.token) in page
    assert "POST /cart" in page
    assert "<b>update</b> sets data.added, data.cart, seen_at, expires_at" in page


def test_the_panel_shows_no_token(hood: str, client: MongoClient[Any]) -> None:
    alice = Browser(hood)
    alice.post("/login", name="Alice")
    alice.post("/promises/another-device")
    assert alice.token not in alice.read("/")[0]
    assert alice.token not in repr(list(client["mongosession_shop"]["browsers"].find()))


def test_the_panel_of_a_browser_without_a_session_says_so(hood: str) -> None:
    with pytest.raises(HTTPError) as caught, urlopen(f"{hood}/nothing"):
        pass
    with caught.value as answer:
        page = answer.read().decode()
    assert "no cookie" in page
    assert "Nothing is stored: this browser has no session." in page
    assert "No command: this request has nothing to ask MongoDB." in page


@pytest.mark.parametrize("owner", [None, "<b>Zoë</b>"])
@pytest.mark.parametrize(
    ("promise", "last"),
    [
        ("slow-click", "look again: the cart is gone"),
        ("two-tabs", "look again: neither change is lost"),
        ("double-click", "looks again: is signed in, with the cart"),
        ("another-device", "looks again: is signed out"),
    ],
)
def test_a_promise_is_acted_out_and_told_once(
    hood: str, promise: str, last: str, owner: str | None
) -> None:
    alice = Browser(hood)
    alice.post("/cart", item="Oolong")
    if owner is not None:
        alice.post("/login", name=owner)
    told = alice.read(f"/promises/{promise}", b"")[0]
    assert last in told
    assert told.count('class="right"') >= 4
    assert 'class="wrong"' not in told
    assert last not in alice.read("/")[0]
    after = {
        "slow-click": (None, {}),
        "two-tabs": (owner, {"Oolong": 1, "Assam": 1}),
        "double-click": (owner or "Alice", {"Oolong": 1}),
        "another-device": (None, {}),
    }
    assert alice.get()[1:3] == after[promise]


def test_a_promise_is_not_acted_out_for_another_site(hood: str) -> None:
    alice = Browser(hood)
    alice.post("/login", name="Alice")
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert post(f"{hood}/promises/slow-click", alice.token, headers)[0] == 403
    assert alice.get().owner == "Alice"


# The demo.


def demo(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the demo whose data is in `folder` to its end."""
    examples = shutil.copytree(EXAMPLES, folder / "examples", dirs_exist_ok=True)
    return subprocess.run(
        [sys.executable, "-W", "error", str(examples / "demo.py"), *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def said_at_last(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of the errors. On a new Python there is a line about uv before."""
    lines = done.stderr.splitlines()
    assert all("by uv" in line for line in lines[:-1])
    return lines[-1]


def test_the_demo_uses_the_mongodb_that_is_named(mongodb_uri: str, tmp_path: Path) -> None:
    done = demo(tmp_path, "--once", MONGODB_URI=mongodb_uri)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Using the MongoDB of MONGODB_URI" in done.stdout
    assert not (tmp_path / ".demo").exists()


def test_a_second_demo_in_the_folder_says_so(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / ".demo"):
        done = demo(tmp_path, MONGODB_URI="")
    assert done.returncode == 1
    assert said_at_last(done).startswith("Another embedded server runs on the folder ")


def test_a_demo_that_cannot_keep_its_data_says_so(tmp_path: Path) -> None:
    (tmp_path / ".demo").write_text("")
    done = demo(tmp_path, MONGODB_URI="")
    assert done.returncode == 1
    assert re.search(
        "^The embedded server cannot keep .*: a file is in the way\n$", done.stderr, re.M
    )
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("moment", "number", "status"),
    [
        ("Starting a MongoDB", signal.SIGINT, 130),
        ("Starting gunicorn", signal.SIGINT, 130),
        ("POST /login", signal.SIGTERM, 143),
        ("until Ctrl-C", signal.SIGINT, 0),
    ],
)
def test_the_demo_leaves_nothing_running(
    moment: str, number: signal.Signals, status: int, tmp_path: Path
) -> None:
    examples = shutil.copytree(EXAMPLES, tmp_path / "examples")  # Its data goes beside it.
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(examples / "demo.py")],
        env=environment(DEMO_MARK=str(tmp_path), MONGODB_URI=""),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as demo:
        try:
            said = "".join(lines_until(moment, demo))
            os.killpg(demo.pid, number)  # As a terminal does, which tells the whole group.
            said += demo.communicate(timeout=30)[0]
            assert demo.returncode == status, said
            assert "Traceback" not in said
            assert "✗" not in said
            assert gone_within(5, str(tmp_path))
        finally:
            for pid in marked(str(tmp_path)):
                os.kill(pid, signal.SIGKILL)


def lines_until(moment: str, demo: subprocess.Popen[str]) -> Iterator[str]:
    for line in iter(demo.stdout.readline if demo.stdout else str, ""):
        yield line
        if moment in line:
            return


def gone_within(seconds: float, mark: str) -> bool:
    deadline = time.monotonic() + seconds
    while marked(mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def marked(mark: str) -> list[int]:
    """Return the processes with `mark` in their environment, which all of a demo's inherit."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # It has ended, or it is another user's.
            if f"DEMO_MARK={mark}\0".encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
    return found

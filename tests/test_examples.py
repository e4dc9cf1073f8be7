"""The example shops under the servers that people deploy with, and the demo's end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPMessage
from itertools import product
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from examples.browser import Browser

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


@pytest.fixture(scope="module", params=product(SHOPS, SERVERS), ids=" in ".join)
def url(
    request: pytest.FixtureRequest, mongodb_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a shop, served in its own folder as its docstring says."""
    shop, name = request.param
    log = tmp_path_factory.mktemp("shop") / "log"
    with served([*SERVERS[name], f"{shop}:app"], mongodb_uri, log) as url:
        yield url
    said = log.read_text()
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


def post(url: str, token: str, **form: str) -> tuple[int, HTTPMessage]:
    """Send a form by hand; return the answer's status and headers, wherever it leads to."""
    address = urlsplit(url)
    connection = HTTPConnection(address.netloc, timeout=20)
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "Cookie": f"mongosession={token}",
    }
    connection.request("POST", address.path, urlencode(form), headers)
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


def test_each_framework_has_a_shop_of_at_most_60_lines() -> None:
    frameworks = ["bottle", "django", "falcon", "flask", "plain", "pyramid"]
    assert [shop.removesuffix("_shop") for shop in SHOPS] == frameworks
    for shop in SHOPS:
        assert len((EXAMPLES / f"{shop}.py").read_text().splitlines()) <= 60


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
        env=environment(DEMO_MARK=str(tmp_path)),
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

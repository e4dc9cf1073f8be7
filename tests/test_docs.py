"""The site says what is true: every block of code on its pages runs.

A page has a process of its own, because a page may do what a process does only once, such as to
configure Django.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from configparser import RawConfigParser
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import yaml
from flask import Flask
from flask.sessions import SecureCookieSession

from mongosession_wsgi import MongoStore, SessionMiddleware
from mongosession_wsgi.flask import MongoSession, MongoSessionInterface
from mongosession_wsgi.flask import session as flask_session
from mongosession_wsgi.settings import DRIVER_DEFAULTS, Settings
from mongosession_wsgi.testing import MemoryStore

from .forked import Forks
from .wsgi import Browser, call, environ_of

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LOGGED_IN = {"csrf": "x" * 43, "device": "Firefox on Windows"}
CART = [{"item": "Assam", "count": 2}, {"item": "Sencha", "count": 1}]
PYTEST_WARNINGS = RawConfigParser()
PYTEST_WARNINGS.read(ROOT / "setup.cfg")


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    """The line of the page on which the text begins."""
    file: str | None
    """The name that it is to be saved under, if the page says so just above it."""


def blocks(page: Path) -> Iterator[Block]:
    fence = r"^(?:<!-- file: (?P<file>\S+) -->\n+)?```(?P<language>\w+)\n(?P<text>.*?)^```$"
    text = page.read_text()
    for match in re.finditer(fence, text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, match.start("text")) + 1
        yield Block(match["language"], match["text"], line, match["file"])


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


def pages_with(*languages: str) -> list[Path]:
    return [page for page in PAGES if any(block.language in languages for block in blocks(page))]


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    warnings = PYTEST_WARNINGS["tool:pytest"]["filterwarnings"].split("\n")
    filters = [f"-W{line}" for line in warnings if line and not line.startswith("#")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with closing(Forks(environment, __name__, "run", *filters)) as forks:
        yield forks


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_the_python_of_a_page_runs(
    page: Path, mongodb_uri: str, database: str, tmp_path: Path, forks: Forks
) -> None:
    arguments = [str(page), mongodb_uri, database]
    done = forks.run(arguments, os.environ, tmp_path, "", 100)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", pages_with("ini", "yaml"), ids=name_of)
def test_the_settings_of_a_page_are_settings(page: Path) -> None:
    for block in blocks(page):
        for settings in settings_in(block):
            Settings.parse(settings)


def settings_in(block: Block) -> Iterator[dict[str, Any]]:
    if block.language == "yaml":
        yield yaml.safe_load(block.text)
    elif block.language == "ini":
        config = RawConfigParser()
        config.read_string(block.text)
        yield from (dict(section) for section in config.values())


def test_the_driver_defaults_that_are_told_are_those_of_the_code() -> None:
    text = (DOCS / "settings.md").read_text()
    table = text.partition("<!-- driver defaults -->")[2].partition("<!-- /driver defaults -->")[0]
    told = re.findall(r"^\| `mongodb_(\w+)` \| (\S+) \|", table, re.MULTILINE)
    assert {name.replace("_", ""): value for name, value in told} == {
        name: str(value).lower() for name, value in DRIVER_DEFAULTS.items()
    }


@pytest.mark.parametrize(
    ("data", "owner", "size"),
    [
        ({}, None, 140),
        (LOGGED_IN, "4711", 234),
        (LOGGED_IN | {"cart": CART}, "4711", 316),
        (LOGGED_IN | {"cart": CART * 5}, "4711", 600),
    ],
)
def test_a_session_has_the_size_that_is_told(
    store: MongoStore, data: dict[str, Any], owner: str | None, size: int
) -> None:
    session = store.create(data)
    if owner is not None:
        session.login(owner)
        store.flush(session)
    (info,) = store.sessions()
    assert info.size == size
    assert re.search(rf"\| {size} \|$", (DOCS / "scaling.md").read_text(), re.MULTILINE)


def test_each_decision_has_a_number_a_day_and_a_status() -> None:
    text = (DOCS / "decisions.md").read_text()
    status = r"\n\n20\d\d-\d\d-\d\d · (?:in force\b|replaced by decision \d+).*\n\n"
    numbers = re.findall(rf"^## (\d+)\. .+{status}", text, re.MULTILINE)
    assert numbers == [str(number) for number in range(1, text.count("\n## ") + 1)]


def test_the_recipes_do_what_they_say() -> None:
    recipes: dict[str, Any] = {}
    (text,) = (it.text for it in blocks(DOCS / "frameworks/wsgi.md") if it.file == "recipes.py")
    exec(text, recipes)
    store = MemoryStore()
    session = store.create()
    recipes["flash"](session, "Saved")
    assert recipes["flashed"](session) == ["Saved"]
    assert recipes["flashed"](session) == []
    token = recipes["csrf_token"](session)
    assert token == recipes["csrf_token"](session) != session.token
    assert not recipes["is_forged"](session, token)
    for forged in ("", "é", token[:-1], recipes["csrf_token"](store.create())):
        assert recipes["is_forged"](session, forged)
    session.login("alice")
    assert recipes["is_forged"](session, token), "a login changes the token"


def moving(part: str) -> str:
    """Return the block with `part` of the page on moving."""
    (text,) = (block.text for block in blocks(DOCS / "moving.md") if part in block.text)
    return text


@pytest.mark.parametrize("cause", ["page", "MongoDB"])
def test_a_login_is_taken_over_again_if_the_first_request_failed(cause: str) -> None:
    recipe: dict[str, Any] = {}
    exec(moving("def take_over("), recipe)
    down = {"mongodb_host": "mongodb://127.0.0.1:9", "mongodb_timeout_ms": 50}
    store = MemoryStore()
    stores = [store if cause == "page" else MongoStore(down | {"mongodb_session_db": "x"}), store]
    statuses = iter(["503 Service Unavailable" if cause == "page" else "200 OK", "200 OK"])

    class Old(dict[str, Any]):
        delete = dict.clear

    def shop(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(next(statuses), [("Content-Type", "text/plain")])
        return [str(environ["mongosession"].owner).encode()]

    first, second = (
        recipe["end_old"](SessionMiddleware(recipe["take_over"](shop), {}, store=one))
        for one in stores
    )
    old = Old(user="alice")
    visitor = {"HTTP_COOKIE": "beaker.session.id=1", "beaker.session": old}
    assert call(first, environ_of(**visitor)).status.startswith("503")
    assert old
    answer = call(second, environ_of(**visitor))
    assert (answer.body, old) == (b"alice", {})
    assert answer.cookie is not None
    stores[0].close()


def test_a_login_in_flask_is_taken_over_again_if_the_first_page_failed() -> None:
    ours = MongoSessionInterface({}, store=MemoryStore())
    recipe: dict[str, Any] = {"Flask": Flask, "MongoSessionInterface": lambda _: ours}
    recipe["__name__"] = __name__
    exec(moving("def take_over_login("), recipe)
    app, old = recipe["app"], Flask("old")
    app.secret_key = old.secret_key = "of the tests"
    statuses = iter([500, 200])
    app.add_url_rule("/", "page", lambda: (str(flask_session.owner), next(statuses)))
    with old.test_client() as client, client.session_transaction() as session:
        session["user"] = "alice"
    cookie = client.get_cookie("session")
    browser = app.test_client()
    browser.set_cookie("session", cookie.value if cookie else "")
    assert [browser.get("/").text for _ in range(2)] == ["alice"] * 2
    assert browser.get_cookie("session") is None


def test_each_name_that_jinja_takes_from_our_session_is_told() -> None:
    page = (DOCS / "moving.md").read_text()
    (told,) = re.findall(r"If you have a key (.*?), write", page, re.DOTALL)
    of_flask = set(dir(SecureCookieSession))
    ours = {name for name in dir(MongoSession) if name[0] != "_"} - of_flask
    assert set(re.findall(r"`(\w+)`", told)) == ours | {"new"}


# What follows runs in the process of a page.


def run() -> None:
    """Run the Python of a page, block by block in one module, and visit each application in it."""
    page, uri, database = Path(sys.argv[1]), *sys.argv[2:]
    sys.path.append(os.getcwd())  # For the files that a page has.
    DRIVER_DEFAULTS["host"] = uri  # For the pages name no host, which is to be the tests' server.
    module = sys.modules["page"] = ModuleType("page")
    del module.__spec__  # Python 3.15 warns of a specification that names no loader.
    namespace = vars(module)
    visited: dict[str, Any] = {}
    for block in blocks(page):
        if block.language != "python":
            continue
        text = re.sub(r"(?i)(mongodb_session_db\W+)myapp\w*", rf"\1{database}", block.text)
        text = text.replace("mongodb://localhost", uri)
        if block.file:
            Path(block.file).write_text(text)
        exec(compile("\n" * (block.line - 1) + text, page, "exec"), namespace)
        for name in {"app", "application"} & namespace.keys():
            if namespace[name] is not visited.get(name):
                visited[name] = namespace[name]
                assert Browser(namespace[name]).get().status < "500"

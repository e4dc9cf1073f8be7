"""The README says what is true: its code runs, its table is the code's, its transcript is real."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mongosession_wsgi import MongoStore, SessionMiddleware, __version__
from mongosession_wsgi.settings import Settings

from .wsgi import Browser, Response

README = Path(__file__).parent.parent / "README.md"
FIRST_PAGES = [README, README.parent / "docs" / "index.md"]
PAGES = [*README.parent.glob("*.md"), *README.parent.glob("docs/**/*.md")]
MADE_UP = '{"mongodb_session_db": "myapp"}'


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def app(settings: dict[str, Any]) -> SessionMiddleware:
    """The whole application of the README, on the server of the tests."""
    (source,) = (block for block in blocks("python") if "app = " in block)
    assert len(source.splitlines()) <= 15
    namespace: dict[str, Any] = {}
    exec(source.replace(MADE_UP, repr(settings)), namespace)
    return namespace["app"]


def test_the_other_code_runs(settings: dict[str, Any], store: MongoStore) -> None:
    session = store.create()
    names = {"environ": {"mongosession": session}, "session": session, "MongoStore": MongoStore}
    for block in blocks("python"):
        if "app = " not in block:
            exec(block.replace(MADE_UP, repr(settings)), names)


def test_the_transcript_is_what_comes_back(app: SessionMiddleware) -> None:
    (transcript,) = (block for block in blocks("console") if "curl -i" in block)
    browser = Browser(app)
    for told in re.split(r"^\$ curl .*\n", transcript, flags=re.MULTILINE)[1:]:
        assert masked(told) == masked(as_text(browser.get()))


def as_text(response: Response) -> str:
    headers = "".join(f"{name}: {value}\n" for name, value in response.headers)
    return f"HTTP/1.1 {response.status}\n{headers}\n{response.body.decode()}"


def masked(text: str) -> str:
    return re.sub(r"(mongosession=)[\w-]{43}", r"\1TOKEN", text)


def settings_table() -> str:
    """Return the table of the settings, as the code has it."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for row in (field.metadata for field in fields(Settings) if field.metadata):
        default = "–" if row["told"] is None else f"`{row['told']}`"
        rows.append(f"| `{row['key']}` | {default} | {row['doc']} |")
    return "\n".join(rows)


def test_the_table_of_settings_is_that_of_the_code() -> None:
    written = re.search(r"<!-- settings -->\n(.*?)\n<!-- /settings -->", README.read_text(), re.S)
    assert written is not None
    assert written[1] == settings_table()


@pytest.mark.parametrize("page", FIRST_PAGES, ids=lambda page: page.name)
def test_a_first_page_says_the_version_and_what_most_people_come_for(page: Path) -> None:
    text = page.read_text()
    assert f"Version {__version__} · " in text
    needed = ("| [Flask]", "| [Django]", "ASGI", "FastAPI", "Starlette", "\n## Install\n")
    places = [text.index(word) for word in needed]
    assert places == sorted(places)
    assert places[-1] == text.index("\n## "), "all of it stands before the first heading"


def test_the_version_is_that_of_the_changelog_and_of_the_classifier() -> None:
    changelog = (README.parent / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(\d[^]]*)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert versions[0] == __version__
    finished = re.fullmatch(r"[1-9]\d*\.\d+\.\d+", __version__) is not None
    status = "5 - Production/Stable" if finished else "4 - Beta"
    assert f"Development Status :: {status}\n" in (README.parent / "setup.cfg").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_are_named_are_there(page: Path) -> None:
    for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", page.read_text()):
        assert f"def {name}(" in (README.parent / "tests" / file).read_text(), name

"""The filter of PasteDeploy, as an INI file names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from paste.deploy import loadapp
from pyramid.config import Configurator

from mongosession_wsgi import SettingsError
from mongosession_wsgi.cli.connection import read
from mongosession_wsgi.paste import make_filter_app
from mongosession_wsgi.settings import Settings

from ..wsgi import Browser, conforming, on_session

APP = f"paste.app_factory = {__name__}:make_app"
FILTER = "use = egg:mongosession-wsgi"
PIPELINE = "[pipeline:main]\npipeline = session app"
Load = Callable[..., Any]


def make_app(global_conf: dict[str, str], **local_conf: str) -> Callable[..., Iterable[bytes]]:
    def count(session: Any) -> int:
        session["n"] = session.get("n", 0) + 1
        return int(session["n"])

    return on_session(count)


def make_pyramid(global_conf: dict[str, str], **settings: str) -> Callable[..., Iterable[bytes]]:
    def view(request: Any) -> int:
        request.session["n"] = request.session.get("n", 0) + 1
        return int(request.session["n"])

    with Configurator(settings=settings) as config:
        config.add_view(view, renderer="string")
    return conforming(config.make_wsgi_app())


@pytest.fixture
def load(tmp_path: Path, settings: dict[str, Any]) -> Load:
    """Load an application from a file of these sections; `{database}` is the settings of one."""
    database = "\n".join(f"{key} = {value}" for key, value in settings.items())

    def load(*sections: str, **global_conf: str) -> Any:
        path = tmp_path / "site.ini"
        path.write_text("\n\n".join(sections).format(database=database))
        return loadapp(f"config:{path}", global_conf=global_conf)

    return load


@pytest.mark.also_sealed
@pytest.mark.parametrize(
    "sections",
    [
        (PIPELINE, f"[app:app]\n{APP}", f"[filter:session]\n{FILTER}\n{{database}}"),
        (f"[app:main]\n{APP}\nfilter-with = session", f"[filter:session]\n{FILTER}\n{{database}}"),
        (
            f"[filter-app:main]\n{FILTER}\nnext = app\n{{database}}",
            f"[app:app]\n{APP}",
        ),
        (
            "[DEFAULT]\n{database}",
            f"[app:main]\n{APP}\nfilter-with = session",
            f"[filter:session]\n{FILTER}",
        ),
    ],
    ids=["pipeline", "filter-with", "filter-app", "default"],
)
def test_an_application_gets_its_session(sections: list[str], load: Load) -> None:
    browser = Browser(load(*sections))
    assert [browser.get().body for _ in range(3)] == [b"1", b"2", b"3"]
    assert browser.get().commands == ["find", "update"]


def test_settings_are_text_and_a_section_can_override_the_defaults(load: Load) -> None:
    app = load(
        "[DEFAULT]\n{database}\nsession_name = theirs\nsession_is_http_only = false",
        f"[app:main]\n{APP}\nfilter-with = session",
        f"[filter:session]\n{FILTER}\nset session_name = sid\nsession_expires = 2 hours\n"
        "session_secure = true\nmongodb_timeout_ms = 3000\nmongodb_username =",
    )
    cookie = str(Browser(app).get().cookie)
    assert cookie.startswith("sid=")
    assert "Max-Age=7200" in cookie
    assert "Secure" in cookie
    assert "HttpOnly" not in cookie


@pytest.mark.parametrize(
    "lines",
    [
        "set mongodb_session_db = shop\nset session_expires = 14 days",
        "mongodb_session_db = shop\nset mongodb_session_db = other",
        "get mongodb_session_db = the_db\nset the_db = of_this_section",
        "mongodb_session_db = shop\nsession_expires = 14 days",
    ],
)
@pytest.mark.parametrize("shared", ["", "session_expires = 1 hour\nmongodb_session_db = shared"])
def test_the_command_reads_what_the_application_reads(
    load: Load, tmp_path: Path, lines: str, shared: str
) -> None:
    app = load(
        f"[DEFAULT]\nthe_db = taken\n{shared}",
        f"[app:main]\n{APP}\nfilter-with = session",
        f"[filter:session]\n{FILTER}\n{lines}",
    )
    told = Settings.parse(read(tmp_path / "site.ini", "filter:session"))
    assert told == app._exchanges.store.settings


def test_a_server_may_give_the_settings(load: Load, settings: dict[str, Any]) -> None:
    sections = PIPELINE, f"[app:app]\n{APP}", f"[filter:session]\n{FILTER}"
    assert Browser(load(*sections, **settings)).get().body == b"1"


@pytest.mark.parametrize(
    ("setting", "named"),
    [("session_nmae = x", "session_name"), ("session_secure = perhaps", "session_secure")],
)
def test_bad_settings_are_refused_when_the_file_is_loaded(
    setting: str, named: str, load: Load
) -> None:
    with pytest.raises(SettingsError, match=named):
        load(
            f"[app:main]\n{APP}\nfilter-with = session",
            f"[filter:session]\n{FILTER}\n{{database}}\n{setting}",
        )


def test_the_database_has_to_be_named(load: Load) -> None:
    with pytest.raises(SettingsError, match="mongodb_session_db: missing"):
        load(f"[app:main]\n{APP}\nfilter-with = session", f"[filter:session]\n{FILTER}")


def test_a_pyramid_application_below_the_filter_has_its_session(load: Load) -> None:
    app = load(
        PIPELINE,
        f"[app:app]\npaste.app_factory = {__name__}:make_pyramid\n"
        "pyramid.includes = mongosession_wsgi.pyramid\n{database}",
        f"[filter:session]\n{FILTER}\nsession_name = outer\n{{database}}",
    )
    browser = Browser(app)
    answers = [browser.get() for _ in range(2)]
    assert [one.body for one in answers] == [b"1", b"2"]
    assert [one.commands for one in answers] == [["insert"], ["find", "update"]]
    assert str(answers[0].cookie).startswith("outer=")


def test_without_global_settings_it_works_too(settings: dict[str, Any]) -> None:
    assert Browser(make_filter_app(make_app({}), None, **settings)).get().body == b"1"

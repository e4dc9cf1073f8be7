"""The Bottle plugin, in applications as their authors write them."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bottle import Bottle, PluginError, abort, redirect, request, response

from mongosession_wsgi import (
    MongoStore,
    Session,
    SessionMiddleware,
    SessionWarning,
    SettingsError,
    StoreError,
)
from mongosession_wsgi.bottle import MongoSessionPlugin

from ..wsgi import COOKIE, DOWN, Browser, conforming


class App(Bottle):
    """A Bottle application with the validator between it and our middleware."""

    def wsgi(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return conforming(super().wsgi)(environ, start_response)


@pytest.fixture
def app(settings: dict[str, Any], store: MongoStore) -> App:
    app = App()
    app.install(MongoSessionPlugin(settings, store=store))
    return app


@pytest.fixture
def browser(app: App) -> Browser:
    return Browser(app)


def count(session: Session) -> str:
    session["visits"] = session.get("visits", 0) + 1
    return str(session["visits"])


def bodies(browser: Browser, *paths: str) -> list[str]:
    return [browser.get(path).body.decode() for path in paths]


# Who is given a session.


@pytest.mark.also_sealed
def test_a_handler_that_names_a_session_gets_it(app: App, browser: Browser) -> None:
    app.get("/")(count)
    assert bodies(browser, "/", "/", "/") == ["1", "2", "3"]


def test_it_is_the_one_in_the_environ(app: App, browser: Browser) -> None:
    app.get("/")(lambda session: str(session is request.environ["mongosession"]))
    assert bodies(browser, "/") == ["True"]


def test_a_handler_that_names_none_costs_nothing(app: App, browser: Browser) -> None:
    app.get("/set")(count)
    app.get("/")(lambda: "as ever")
    browser.get("/set")
    plain = browser.get("/")
    assert (plain.body, plain.commands, plain.header("Vary")) == (b"as ever", [], None)


def test_a_builtin_may_be_a_handler(app: App, browser: Browser) -> None:
    app.get("/")(str)
    assert browser.get().status == "200 OK"


def test_naming_the_session_without_using_it_costs_nothing(app: App, browser: Browser) -> None:
    app.get("/set")(count)
    app.get("/")(lambda session: "as ever")
    browser.get("/set")
    plain = browser.get("/")
    assert (plain.body, plain.commands, plain.header("Vary")) == (b"as ever", [], None)


def test_the_session_comes_beside_what_is_in_the_path(app: App, browser: Browser) -> None:
    @app.get("/<first>/<second:int>")
    def page(first: str, second: int, *, session: Session) -> str:
        session["seen"] = [first, second]
        return repr(session["seen"])

    assert bodies(browser, "/tea/2") == ["['tea', 2]"]


def test_a_handler_that_was_decorated_is_still_known_by_its_arguments(
    app: App, browser: Browser
) -> None:
    def shouting(handler: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(handler)
        def shouted(*args: Any, **kwargs: Any) -> str:
            return handler(*args, **kwargs).upper()

        return shouted

    app.get("/")(shouting(lambda session: f"visit {count(session)}"))
    assert bodies(browser, "/", "/") == ["VISIT 1", "VISIT 2"]


def test_a_handler_may_close_over_functions_of_its_own(app: App, browser: Browser) -> None:
    """Bottle's own look at a handler's arguments takes such a function for the handler."""

    def shown(visits: str) -> str:
        return f"visit {visits}"

    app.get("/")(lambda session: shown(count(session)))
    assert bodies(browser, "/") == ["visit 1"]


def test_a_route_that_skips_the_plugin_has_an_argument_of_its_own(
    app: App, browser: Browser
) -> None:
    @app.get("/concerts/<session>", skip=["mongosession"])
    def concert(session: str) -> str:
        return session

    assert bodies(browser, "/concerts/jam") == ["jam"]


def test_the_argument_may_have_another_name(settings: dict[str, Any], store: MongoStore) -> None:
    app = App()
    app.install(MongoSessionPlugin(settings, store=store, keyword="s"))
    app.get("/")(lambda s, session="mine": count(s) + session)
    assert bodies(Browser(app), "/", "/") == ["1mine", "2mine"]


# What becomes of it.


@pytest.mark.parametrize("stop", [lambda: redirect("/", 303), lambda: abort(404, "Not here.")])
def test_a_redirect_or_a_refusal_stores_what_was_set(
    app: App, browser: Browser, stop: Callable[[], None], store: MongoStore
) -> None:
    app.get("/")(lambda session: (count(session), stop()))
    found = browser.get("/")
    assert found.status[:3] in ("303", "404")
    assert store.retrieve(browser.token) == {"visits": 1}


@pytest.mark.parametrize("fail", [lambda: abort(500, "No."), lambda: 1 / 0])
def test_a_failure_stores_nothing(app: App, browser: Browser, fail: Callable[[], object]) -> None:
    app.get("/")(count)
    app.get("/fails")(lambda session: (count(session), fail()))
    browser.get("/")
    assert browser.get("/fails").status == "500 Internal Server Error"
    assert bodies(browser, "/") == ["2"]


def test_hooks_and_error_pages_take_part(app: App, browser: Browser, store: MongoStore) -> None:
    app.add_hook("before_request", lambda: request.environ["mongosession"].update(before=1))
    app.add_hook("after_request", lambda: request.environ["mongosession"].update(after=1))
    app.error(404)(lambda error: count(request.environ["mongosession"]))
    assert browser.get("/nowhere").body == b"1"
    assert store.retrieve(browser.token) == {"before": 1, "after": 1, "visits": 1}


def test_what_a_generator_sets_before_its_first_item_gets_a_cookie(
    app: App, browser: Browser, store: MongoStore
) -> None:
    @app.get("/<when>")
    def stream(when: str, session: Session) -> Iterator[str]:
        if when == "early":
            session["early"] = True
        yield "one"
        session["late"] = True
        yield "two"

    with pytest.warns(SessionWarning, match="first filled after"):
        assert browser.get("/late").body == b"onetwo"
    assert browser.token == ""
    browser.get("/early")
    assert store.retrieve(browser.token) == {"early": True, "late": True}


@pytest.mark.also_sealed
def test_logging_in_and_out(app: App, browser: Browser) -> None:
    app.post("/login")(lambda session: session.login("alice"))
    app.post("/logout")(lambda session: session.destroy())
    app.get("/")(lambda session: str(session.owner))
    assert browser.get("/login", REQUEST_METHOD="POST").token
    assert bodies(browser, "/") == ["alice"]
    assert browser.get("/logout", REQUEST_METHOD="POST").token == ""
    assert bodies(browser, "/") == ["None"]


def test_the_cookies_and_headers_of_the_application_stay(app: App, browser: Browser) -> None:
    @app.get("/")
    def page(session: Session) -> str:
        response.set_cookie("theme", "dark")
        response.set_header("Cache-Control", "no-store")
        return count(session)

    found = browser.get("/")
    assert sorted(value.partition("=")[0] for value in found.all("Set-Cookie")) == [
        "mongosession",
        "theme",
    ]
    assert found.header("Cache-Control") == "no-store"


def test_head_is_answered_without_a_body(app: App, browser: Browser) -> None:
    app.get("/")(count)
    found = browser.get("/", REQUEST_METHOD="HEAD")
    assert (found.body, found.header("Content-Length")) == (b"", "1")
    assert bodies(browser, "/") == ["2"]


@pytest.mark.server  # For seconds of waiting or of work.
def test_an_outage_is_a_503() -> None:
    app = App()
    app.install(MongoSessionPlugin(DOWN))
    app.get("/")(count)
    app.get("/plain")(lambda session: "as ever")
    browser = Browser(app, COOKIE)
    refused = browser.get("/")
    assert (refused.status, refused.cookie) == ("503 Service Unavailable", None)
    assert browser.get("/plain").status == "200 OK"


def fail_in_the_store(*_: object, **__: object) -> None:
    raise StoreError("MongoDB is down")


def test_an_uncaught_error_of_the_store_is_a_503_without_a_use_of_the_session(
    app: App, browser: Browser
) -> None:
    app.get("/")(fail_in_the_store)
    app.get("/hook")(lambda: "never sent")
    app.add_hook("after_request", lambda: request.path == "/hook" and fail_in_the_store())
    for path in ("/", "/hook"):
        refused = browser.get(path)
        assert refused.status == "503 Service Unavailable"
        assert refused.header("Retry-After") == "5"


def test_a_logout_is_carried_out_whatever_else_of_a_store_fails(
    app: App, browser: Browser, store: MongoStore
) -> None:
    app.get("/")(count)
    app.get("/logout")(lambda session: fail_in_the_store(session.destroy()))
    browser.get("/")
    browser.get("/logout")
    assert store.retrieve(browser.token) is None


# How it is installed.


def test_within_our_middleware_it_needs_no_settings(
    settings: dict[str, Any], store: MongoStore
) -> None:
    app = Bottle()
    app.install(MongoSessionPlugin())
    app.get("/")(count)
    browser = Browser(SessionMiddleware(conforming(app), settings, store=store))
    assert bodies(browser, "/", "/") == ["1", "2"]


def test_within_our_middleware_its_own_settings_do_not_count(
    settings: dict[str, Any], store: MongoStore
) -> None:
    app = App()
    app.install(MongoSessionPlugin(DOWN))
    app.get("/")(count)
    browser = Browser(SessionMiddleware(app, settings, store=store))
    assert bodies(browser, "/", "/") == ["1", "2"]


def test_the_settings_may_be_those_of_bottle(settings: dict[str, Any], tmp_path: Path) -> None:
    lines = ["[bottle]", *(f"{key} = {value}" for key, value in settings.items()), "[shop]", "a=b"]
    file = tmp_path / "shop.ini"
    file.write_text("\n".join(lines))
    app = App()
    app.config.load_config(str(file))
    app.install(MongoSessionPlugin(app.config))
    app.get("/")(count)
    assert bodies(Browser(app), "/") == ["1"]
    made: Any = app.wsgi
    made._made._exchanges.store.close()


def test_what_is_changed_in_the_settings_before_the_first_request_counts(
    settings: dict[str, Any], store: MongoStore
) -> None:
    app = App()
    app.config.load_dict(settings)
    app.install(MongoSessionPlugin(app.config, store=store))
    app.get("/")(count)
    app.config["session_expires"] = "2 hours"
    browser = Browser(app)
    assert "Max-Age=7200;" in str(browser.get().cookie)
    (info,) = store.sessions()
    assert info.expires_at - info.seen_at == timedelta(hours=2)


def test_wrong_settings_are_refused_when_the_plugin_is_installed() -> None:
    app = App()
    app.config["session_expires"] = "soon"
    with pytest.raises(SettingsError, match="session_expires"):
        app.install(MongoSessionPlugin(app.config))
    with pytest.raises(TypeError, match="class MongoStore"):
        App().install(MongoSessionPlugin({}, store=MongoStore))  # type: ignore[arg-type]


def test_an_application_that_is_mounted_shares_the_session(
    app: App, browser: Browser, settings: dict[str, Any]
) -> None:
    admin = Bottle()
    admin.install(MongoSessionPlugin())
    admin.get("/")(lambda session: f"admin {count(session)}")
    reports = Bottle()
    reports.install(MongoSessionPlugin(settings))
    reports.get("/")(lambda session: f"reports {count(session)}")
    app.get("/")(count)
    app.mount("/admin/", admin)
    app.mount("/reports", reports.wsgi)
    assert bodies(browser, "/", "/admin/", "/reports/", "/") == ["1", "admin 2", "reports 3", "4"]


def merged(settings: dict[str, Any]) -> Bottle:
    """Bottle takes the routes of what it mounts, and never calls the application itself."""
    inner, outer = Bottle(), Bottle()
    inner.install(MongoSessionPlugin(settings))
    inner.get("/")(count)
    outer.mount("/", inner)
    return outer


def without_settings(settings: dict[str, Any]) -> Bottle:
    app = Bottle()
    app.install(MongoSessionPlugin())
    app.get("/")(count)
    return app


def on_a_route(settings: dict[str, Any]) -> Bottle:
    app = Bottle()
    app.get("/", apply=[MongoSessionPlugin(settings)])(count)
    return app


@pytest.mark.parametrize("made", [merged, without_settings, on_a_route])
def test_without_a_session_the_error_says_what_to_do(
    made: Callable[[dict[str, Any]], Bottle], settings: dict[str, Any]
) -> None:
    log = io.StringIO()
    failed = Browser(made(settings)).get("/", **{"wsgi.errors": log})
    assert failed.status == "500 Internal Server Error"
    assert "needs a MongoSessionPlugin with settings" in log.getvalue()


def test_one_application_has_one(app: App, settings: dict[str, Any]) -> None:
    with pytest.raises(PluginError, match="already"):
        app.install(MongoSessionPlugin(settings, keyword="another"))


def test_what_cannot_work_is_refused_at_once(store: MongoStore) -> None:
    with pytest.raises(TypeError, match="settings"):
        MongoSessionPlugin(store=store)
    with pytest.raises(SettingsError, match="mongodb_session_db"):
        Bottle().install(MongoSessionPlugin({}))

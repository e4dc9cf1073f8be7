"""`req.context.session`: by a component of the application alone, or within our middleware."""

from __future__ import annotations

import gc
import gzip
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any
from weakref import ref

import falcon
import falcon.asgi
import pytest
from falcon.testing import TestClient
from pymongo.collection import Collection

from mongosession_wsgi import (
    MongoStore,
    SessionDataError,
    SessionMiddleware,
    SettingsError,
    StoreError,
)
from mongosession_wsgi.exchange import REFUSAL
from mongosession_wsgi.falcon import SessionComponent

from ..wsgi import COOKIE, DOWN, Browser, call, conforming, environ_of

Use = Callable[[falcon.Request, falcon.Response], Any]


class Page:
    """Uses the session, and answers what that gives."""

    def __init__(self, use: Use) -> None:
        self._use = use

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        answer = self._use(req, resp)
        if answer is not None:
            resp.text = str(answer)


def app_of(component: Any, *others: Any, **pages: Use) -> falcon.App[Any, Any]:
    app = falcon.App(middleware=[component, *others])
    for name, use in pages.items():
        app.add_route("/" if name == "index" else f"/{name}", Page(use))
    return app


def set_n(req: falcon.Request, resp: falcon.Response) -> None:
    req.context.session["n"] = 1


def get_n(req: falcon.Request, resp: falcon.Response) -> str:
    return str(req.context.session.get("n"))


@pytest.fixture
def component(settings: dict[str, Any], store: MongoStore) -> SessionComponent:
    return SessionComponent(settings, store=store)


@pytest.mark.also_sealed
@pytest.mark.parametrize(
    ("use", "commands"),
    [
        (lambda session: None, []),
        (lambda session: session.get("n"), ["find"]),
        (lambda session: session.update(a=1, b=2), ["update"]),
        (lambda session: session["list"].append(1), ["find", "update"]),
        (lambda session: session.login("alice"), ["findAndModify", "insert"]),
        (lambda session: session.destroy(), ["delete"]),
    ],
)
def test_a_request_costs_no_more_commands_than_in_plain_wsgi(
    use: Callable[[Any], Any], commands: list[str], component: SessionComponent
) -> None:
    browser = Browser(
        app_of(
            component,
            fill=lambda req, resp: req.context.session.update(n=1, list=[]),
            use=lambda req, resp: use(req.context.session),
        )
    )
    assert browser.get("/fill").commands == ["insert"]
    assert browser.get("/use").commands == commands


def test_what_a_responder_sets_the_next_request_reads(component: SessionComponent) -> None:
    browser = Browser(app_of(component, index=get_n, set=set_n))
    answer = browser.get("/set")
    assert answer.header("Cache-Control") == "private"
    assert answer.header("Vary") == "Cookie"
    assert "HttpOnly" in str(answer.cookie)
    assert browser.get().body == b"1"


def test_only_a_response_that_used_the_session_varies_on_the_cookie(
    component: SessionComponent,
) -> None:
    def own(req: falcon.Request, resp: falcon.Response) -> str:
        resp.append_header("Vary", "Accept")
        resp.set_cookie("theme", "dark")
        resp.cache_control = ["public", "max-age=60"]
        resp.set_header("CDN-Cache-Control", "max-age=60")
        return get_n(req, resp)

    def set_own(req: falcon.Request, resp: falcon.Response) -> None:
        own(req, resp)
        set_n(req, resp)

    app = app_of(component, index=lambda *_: "untouched", own=own, set=set_own)
    assert Browser(app, COOKIE).get().header("Vary") is None
    answer = Browser(app, COOKIE).get("/own")
    assert answer.header("Vary") == "Accept, Cookie"
    assert answer.header("CDN-Cache-Control") == "max-age=60"
    answer = Browser(app).get("/set")
    assert sorted(cookie.partition("=")[0] for cookie in answer.all("Set-Cookie")) == [
        "mongosession",
        "theme",
    ]
    assert answer.header("Cache-Control") == "private, max-age=60"
    assert answer.header("CDN-Cache-Control") is None


@pytest.mark.also_sealed
def test_a_stream_reads_and_changes_the_session(component: SessionComponent) -> None:
    def stream(req: falcon.Request, resp: falcon.Response) -> None:
        session = req.context.session
        session["n"] = session.get("n", 0) + 1

        def items() -> Iterator[bytes]:
            yield str(session["n"]).encode()
            session["late"] = session.get("late", 0) + 10

        resp.stream = items()

    browser = Browser(
        app_of(component, index=stream, late=lambda req, resp: req.context.session["late"])
    )
    assert [browser.get().body for _ in range(2)] == [b"1", b"2"]
    assert browser.get("/late").body == b"20"


@pytest.mark.parametrize("ends", [False, True])
def test_late_changes_of_a_stream_that_raises_are_dropped(
    component: SessionComponent, stored: Collection[Any], ends: bool
) -> None:
    def stream(req: falcon.Request, resp: falcon.Response) -> None:
        session = req.context.session
        session["n"] = 2

        def items() -> Iterator[bytes]:
            yield b"begun"
            session["n"] = 3
            if ends:
                session.destroy()
            raise RuntimeError("no more")

        resp.stream = items()

    browser = Browser(app_of(component, index=set_n, stream=stream))
    browser.get()
    with pytest.raises(RuntimeError, match="no more"):
        browser.get("/stream")
    assert [document["data"] for document in stored.find()] == ([] if ends else [{"n": 2}])


def test_a_file_is_handed_to_the_server_as_it_is(component: SessionComponent) -> None:
    files: list[object] = []

    def file(req: falcon.Request, resp: falcon.Response) -> None:
        set_n(req, resp)
        resp.set_stream(io.BytesIO(b"tea"), 3)

    def wrapper(file: Any, size: int) -> list[bytes]:
        files.append(file)
        return [file.read()]

    answer = Browser(app_of(component, index=file)).get(**{"wsgi.file_wrapper": wrapper})
    assert (answer.body, answer.header("Content-Length")) == (b"tea", "3")
    assert answer.token
    assert [type(file) for file in files] == [io.BytesIO]


def test_what_other_components_do_to_the_session_counts(component: SessionComponent) -> None:
    class Counting:
        def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
            req.context.session["requests"] = req.context.session.get("requests", 0) + 1

        def process_response(self, req: Any, resp: Any, resource: Any, succeeded: bool) -> None:
            req.context.session["responses"] = req.context.session.get("responses", 0) + 1

    browser = Browser(
        app_of(component, Counting(), index=lambda req, resp: sorted(req.context.session.items()))
    )
    browser.get()
    assert browser.get().body == b"[('requests', 2), ('responses', 1)]"


def test_a_component_that_completes_the_response_keeps_the_session(
    component: SessionComponent,
) -> None:
    class Closed:
        def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
            set_n(req, resp)
            resp.complete = True

    assert Browser(app_of(component, Closed())).get().token


def test_a_component_that_fails_before_ours_is_no_matter(component: SessionComponent) -> None:
    class Broken:
        def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
            raise falcon.HTTPForbidden

    app = falcon.App(middleware=list[Any]([Broken(), component]))
    assert Browser(app).get().status == "403 Forbidden"


# Requests that fail.


def broken(error: Exception) -> Use:
    def use(req: falcon.Request, resp: falcon.Response) -> None:
        req.context.session["n"] = 2
        raise error

    return use


@pytest.mark.parametrize(
    ("error", "status", "n"),
    [
        (falcon.HTTPSeeOther("/"), "303 See Other", b"2"),
        (falcon.HTTPBadRequest(), "400 Bad Request", b"2"),
        (falcon.HTTPInternalServerError(), "500 Internal Server Error", b"1"),
        (ZeroDivisionError(), "500 Internal Server Error", b"1"),
    ],
)
def test_the_status_tells_whether_a_request_failed(
    error: Exception, status: str, n: bytes, component: SessionComponent
) -> None:
    browser = Browser(app_of(component, index=get_n, set=set_n, fail=broken(error)))
    browser.get("/set")
    assert browser.get("/fail").status == status
    assert browser.get().body == n


def test_a_handled_error_is_no_failure(component: SessionComponent) -> None:
    def handle(req: Any, resp: falcon.Response, error: Exception, params: Any) -> None:
        resp.status = falcon.HTTP_422

    app = app_of(component, index=get_n, fail=broken(ZeroDivisionError()))
    app.add_error_handler(ZeroDivisionError, handle)
    browser = Browser(app)
    assert browser.get("/fail").status.startswith("422")
    assert browser.get().body == b"2"


def test_a_logout_is_carried_out_though_the_request_fails(component: SessionComponent) -> None:
    def logout(req: falcon.Request, resp: falcon.Response) -> None:
        req.context.session.destroy()
        raise ZeroDivisionError

    def logout_in_vain(req: falcon.Request, resp: falcon.Response) -> None:
        req.context.session.destroy()
        resp.media = object()

    app = app_of(component, index=get_n, set=set_n, logout=logout, vain=logout_in_vain)
    browser = Browser(app)
    browser.get("/set")
    before = browser.cookie
    assert "Max-Age=0" in str(browser.get("/logout").cookie)
    assert Browser(app, before).get().body == b"None"
    browser.get("/set")
    assert browser.get("/vain").status.startswith("500")
    assert browser.get().body == b"None"


def test_a_logout_is_carried_out_whatever_else_of_a_store_fails(
    component: SessionComponent,
) -> None:
    def logout(req: falcon.Request, resp: falcon.Response) -> None:
        req.context.session.destroy()
        raise StoreError("of another store")

    browser = Browser(app_of(component, index=get_n, set=set_n, logout=logout))
    browser.get("/set")
    before = browser.cookie
    browser.get("/logout")
    assert Browser(browser.app, before).get().body == b"None"


def test_one_environ_may_pass_through_twice(component: SessionComponent) -> None:
    passes: list[int] = []

    def use(req: falcon.Request, resp: falcon.Response) -> None:
        req.context.session["n"] = req.context.session.get("n", 0) + 1
        passes.append(1)
        if len(passes) == 1:
            raise ZeroDivisionError

    def hand_on(req: Any, resp: Any, error: Exception, params: Any) -> None:
        raise error

    inner = app_of(component, index=get_n, use=use)
    inner.add_error_handler(ZeroDivisionError, hand_on)

    def again(environ: dict[str, Any], start_response: Any) -> Any:
        try:
            return inner(environ, start_response)
        except ZeroDivisionError:
            return inner(environ, start_response)

    browser = Browser(again)
    assert browser.get("/use").commands == ["insert"]
    assert browser.get().body == b"1"


def test_a_second_pass_that_never_reaches_ours_has_no_cookie(component: SessionComponent) -> None:
    class Cache:
        passes = 0

        def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
            self.passes += 1
            resp.complete = self.passes == 2

    app = falcon.App(middleware=list[Any]([Cache(), component]))
    app.add_route("/", Page(set_n))
    environ = environ_of()
    assert call(app, environ).cookie
    again = call(app, environ)
    assert (again.cookie, again.header("Vary")) == (None, None)


def test_media_that_cannot_be_serialized_change_nothing(component: SessionComponent) -> None:
    def use(req: falcon.Request, resp: falcon.Response) -> None:
        req.context.session["n"] = 2
        resp.media = object()

    browser = Browser(app_of(component, index=get_n, set=set_n, media=use))
    browser.get("/set")
    answer = browser.get("/media")
    assert answer.status == "500 Internal Server Error"
    assert "Cookie" in str(answer.header("Vary"))
    assert browser.get().body == b"1"


def test_what_cannot_be_stored_fails_the_request(component: SessionComponent) -> None:
    def bad(req: falcon.Request, resp: falcon.Response) -> None:
        with pytest.raises(SessionDataError):
            req.context.session["set"] = {1}
        req.context.session.setdefault("list", []).append({1})

    browser = Browser(app_of(component, index=get_n, bad=bad))
    answer = browser.get("/bad")
    assert (answer.status, answer.cookie) == ("500 Internal Server Error", None)
    assert "Cookie" in str(answer.header("Vary"))


def test_a_request_leaves_its_environ_to_no_garbage_collector(component: SessionComponent) -> None:
    class Upload: ...

    def use(req: falcon.Request, resp: falcon.Response) -> None:
        req.env["upload"] = Upload()
        uploads.append(ref(req.env["upload"]))
        set_n(req, resp)

    uploads: list[ref[Upload]] = []
    app = app_of(component, index=use)
    gc.disable()
    try:
        call(app, environ_of())
        assert uploads[0]() is None
    finally:
        gc.enable()


# MongoDB down.


def fail_in_the_store(*_: object) -> None:
    raise StoreError("MongoDB is down")


@pytest.mark.parametrize("path", ["/", "/set"])
def test_an_uncaught_error_of_the_store_is_a_503_without_a_use_of_the_session(
    path: str, settings: dict[str, Any], store: MongoStore, caplog: pytest.LogCaptureFixture
) -> None:
    def use(req: falcon.Request, resp: falcon.Response) -> None:
        set_n(req, resp)
        fail_in_the_store()

    alone = app_of(SessionComponent(settings, store=store), index=fail_in_the_store, set=use)
    within = app_of(SessionComponent(), index=fail_in_the_store, set=use)
    for app in (alone, SessionMiddleware(conforming(within), settings, store=store)):
        caplog.clear()
        answer = Browser(app).get(path, **{"wsgi.errors": (errors := io.StringIO())})
        assert (answer.status, answer.cookie) == ("503 Service Unavailable", None)
        assert answer.header("Retry-After") == "5"
        assert "StoreError: MongoDB is down" in errors.getvalue()
        assert [one.levelno for one in caplog.records] == [logging.ERROR]


def test_a_503_has_no_header_of_another_503(component: SessionComponent) -> None:
    def note(req: falcon.Request, resp: falcon.Response, error: Any, params: Any) -> None:
        error.headers["X-Visitor"] = req.path
        raise error

    app = app_of(component, index=fail_in_the_store, other=fail_in_the_store)
    app.add_error_handler(falcon.HTTPServiceUnavailable, note)
    Browser(app).get("/other")
    assert REFUSAL == {"Retry-After": "5", "Cache-Control": "no-store"}


def test_an_error_of_the_store_that_is_caught_is_for_the_application(
    component: SessionComponent,
) -> None:
    def use(req: falcon.Request, resp: falcon.Response) -> None:
        try:
            fail_in_the_store()
        except StoreError:
            req.log_error("no matter")

    assert Browser(app_of(component, index=use)).get().status == "200 OK"


def use_down(*others: object) -> falcon.App[Any, Any]:
    return app_of(
        SessionComponent(DOWN),
        *others,
        index=get_n,
        set=set_n,
        logout=lambda req, resp: req.context.session.destroy(),
        untouched=lambda *_: "fine",
    )


@pytest.mark.parametrize("path", ["/", "/set", "/logout"])
@pytest.mark.server  # For seconds of waiting or of work.
def test_mongodb_down_is_a_503(path: str, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[bool] = []

    class Watching:
        def process_response(self, req: Any, resp: Any, resource: Any, succeeded: bool) -> None:
            seen.append(succeeded)

    app = falcon.App(middleware=list[Any]([Watching(), SessionComponent(DOWN)]))
    app.add_route("/", Page(get_n))
    app.add_route("/set", Page(set_n))
    app.add_route("/logout", Page(lambda req, resp: req.context.session.destroy()))
    answer = Browser(app, COOKIE).get(path)
    assert answer.status == "503 Service Unavailable"
    assert answer.header("Retry-After") == "5"
    assert answer.header("Cache-Control") == "no-store"
    assert "Cookie" in str(answer.header("Vary"))
    assert b"session store is unavailable" in answer.body
    assert answer.cookie is None
    errors = [one for one in caplog.records if one.name == "mongosession_wsgi"]
    assert [one.levelno for one in errors] == [logging.ERROR]
    assert "t" * 43 not in caplog.text
    assert seen == [False]


def test_the_503_has_no_header_of_the_body_that_it_replaces(
    component: SessionComponent, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise StoreError("is down")

    def compressed(req: falcon.Request, resp: falcon.Response) -> None:
        set_n(req, resp)
        resp.data = gzip.compress(b"page")
        resp.set_header("Content-Encoding", "gzip")
        resp.etag = "page"

    monkeypatch.setattr(store, "flush", fail)
    answer = Browser(app_of(component, index=compressed)).get()
    assert b"session store is unavailable" in answer.body
    assert (answer.header("Content-Encoding"), answer.header("ETag")) == (None, None)


def test_a_page_that_does_not_use_the_session_is_served() -> None:
    assert Browser(use_down(), COOKIE).get("/untouched").body == b"fine"


@pytest.mark.server  # For seconds of waiting or of work.
def test_the_application_may_have_an_answer_for_it() -> None:
    def handle(req: Any, resp: falcon.Response, error: Exception, params: Any) -> None:
        resp.status = falcon.HTTP_503
        resp.text = "back soon"

    app = use_down()
    app.add_error_handler(StoreError, handle)
    answer = Browser(app, COOKIE).get()
    assert (answer.status, answer.body) == ("503 Service Unavailable", b"back soon")
    app.add_error_handler(falcon.HTTPServiceUnavailable, handle)
    assert Browser(app, COOKIE).get("/set").body == b"back soon"


# Within our middleware, and settings.


@pytest.mark.parametrize("arguments", [[], ["settings"]])
def test_within_our_middleware_it_hands_on_the_session(
    arguments: list[str], settings: dict[str, Any], store: MongoStore
) -> None:
    inner = app_of(SessionComponent(*[settings for _ in arguments]), index=get_n, set=set_n)
    browser = Browser(SessionMiddleware(conforming(inner), settings, store=store))
    assert browser.get("/set").commands == ["insert"]
    answer = browser.get()
    assert (answer.body, answer.commands) == (b"1", ["find"])
    assert answer.all("Vary") == ["Cookie"]


def test_an_application_within_another_leaves_the_commit_to_it(
    settings: dict[str, Any], store: MongoStore
) -> None:
    inner = app_of(SessionComponent(settings), index=set_n)

    def mount(req: falcon.Request, resp: falcon.Response) -> None:
        resp.data = b"".join(inner(req.env, lambda *_: lambda data: None))
        req.context.session["m"] = 2

    browser = Browser(
        app_of(
            SessionComponent(settings, store=store),
            index=mount,
            all=lambda req, resp: sorted(req.context.session.items()),
        )
    )
    # The inner one reads its path from the environ too: both have a page at "/".
    assert browser.get().commands == ["insert"]
    assert browser.get("/all").body == b"[('m', 2), ('n', 1)]"


def test_without_settings_and_without_a_middleware_it_says_what_is_missing() -> None:
    app = app_of(SessionComponent(), index=get_n)
    answer = Browser(app).get(**{"wsgi.errors": (errors := io.StringIO())})
    assert answer.status == "500 Internal Server Error"
    assert "give SessionComponent the settings" in errors.getvalue()


def test_bad_settings_are_refused_at_once() -> None:
    with pytest.raises(SettingsError, match="mongodb_session_db"):
        SessionComponent({})
    with pytest.raises(SettingsError, match="session_nmae"):
        SessionComponent({"mongodb_session_db": "myapp", "session_nmae": "x"})


def test_it_refuses_to_be_part_of_an_asgi_application(component: SessionComponent) -> None:
    with pytest.raises(falcon.errors.CompatibilityError):
        falcon.asgi.App(middleware=list[Any]([component]))


def test_falcons_own_client(component: SessionComponent, stored: Collection[Any]) -> None:
    client = TestClient(app_of(component, index=get_n, set=set_n), headers={"Host": "localhost"})
    result = client.simulate_get("/set")
    (cookie,) = result.cookies.values()
    assert (cookie.name, cookie.http_only, cookie.path) == ("mongosession", True, "/")
    assert client.simulate_get("/", cookies={cookie.name: cookie.value}).text == "1"
    assert client.simulate_get("/").text == "None"
    assert stored.count_documents({}) == 1

"""Pyramid's `request.session`: what ISession promises, and a commit after all that may touch it."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from pymongo.collection import Collection
from pyramid import testing
from pyramid.authentication import SessionAuthenticationHelper
from pyramid.config import Configurator
from pyramid.csrf import SessionCSRFStoragePolicy, get_csrf_token
from pyramid.events import NewResponse
from pyramid.exceptions import ConfigurationConflictError
from pyramid.httpexceptions import HTTPBadRequest, HTTPInternalServerError, HTTPSeeOther
from pyramid.interfaces import ISession
from pyramid.request import Request
from pyramid.response import FileResponse, Response
from pyramid.router import default_execution_policy
from pyramid.scripting import prepare
from pyramid.security import forget, remember
from pyramid.tweens import EXCVIEW
from pyramid_retry import RetryableException
from webtest import TestApp
from zope.interface.verify import verifyObject

from mongosession_wsgi import (
    MongoStore,
    SessionDataError,
    SessionMiddleware,
    SettingsError,
    StoreError,
)
from mongosession_wsgi.pyramid import MongoSession

from ..wsgi import COOKIE, DOWN, KEY, Browser, conforming

Use = Callable[[Request], Any]


def view_of(use: Use) -> Callable[[Any, Request], Response]:
    """Return a view that answers what `use` gives."""

    def view(context: Any, request: Request) -> Response:
        answer = use(request)
        return answer if isinstance(answer, Response) else Response(f"{answer}")

    return view


class Site:
    """A Pyramid application that is being configured, and then a browser of it."""

    def __init__(self, settings: dict[str, Any], store: MongoStore | None = None) -> None:
        self.config = Configurator(settings=settings)
        self.config.include("mongosession_wsgi.pyramid")
        if store is not None:
            self.config.set_mongosession_store(store)

    def browser(self, cookie: str = "", **views: Use) -> Browser:
        return Browser(self.app(**views), cookie)

    def app(self, **views: Use) -> Any:
        for name, use in views.items():
            self.config.add_route(name, "/" if name == "index" else f"/{name}")
            self.config.add_view(view_of(use), route_name=name)
        return self.config.make_wsgi_app()


@pytest.fixture
def site(settings: dict[str, Any], store: MongoStore) -> Site:
    return Site(settings, store)


def set_n(request: Request) -> None:
    request.session["n"] = 1


def get_n(request: Request) -> str:
    return str(request.session.get("n"))


def show(request: Request) -> list[Any]:
    return sorted(request.session.items())


@pytest.mark.also_sealed
@pytest.mark.parametrize(
    ("use", "commands"),
    [
        (lambda session: None, []),
        (lambda session: session.get("n"), ["find"]),
        (lambda session: session.update(a=1, b=2), ["update"]),
        (lambda session: session["list"].append(1), ["find", "update"]),
        (lambda session: session.clear(), ["update"]),
        (lambda session: session.login("alice"), ["findAndModify", "insert"]),
        (lambda session: session.invalidate(), ["delete"]),
        (lambda session: session.changed(), []),
        (lambda session: session.new_csrf_token(), ["update"]),
        (lambda session: session.flash("hello"), ["find", "update"]),
        (lambda session: session.pop_flash(), ["find"]),
    ],
)
def test_a_request_costs_no_more_commands_than_in_plain_wsgi(
    use: Callable[[Any], Any], commands: list[str], site: Site
) -> None:
    browser = site.browser(
        fill=lambda request: request.session.update(n=1, list=[]),
        use=lambda request: use(request.session),
    )
    assert browser.get("/fill").commands == ["insert"]
    assert browser.get("/use").commands == commands


def test_what_a_view_sets_the_next_request_reads(site: Site) -> None:
    browser = site.browser(index=get_n, set=set_n, untouched=lambda request: "")
    answer = browser.get("/set")
    assert answer.header("Cache-Control") == "private"
    assert answer.header("Vary") == "Cookie"
    assert "HttpOnly" in str(answer.cookie)
    assert browser.get().body == b"1"
    assert browser.get("/untouched").header("Vary") is None


# The promises of ISession.


@pytest.fixture
def session(store: MongoStore) -> MongoSession:
    """A session that is live."""
    return MongoSession(store.retrieve(store.create({"n": 1}).token))


@pytest.fixture(params=["new", "live"])
def any_session(request: pytest.FixtureRequest, store: MongoStore) -> MongoSession:
    token = None if request.param == "new" else store.create().token
    return MongoSession(store.open(token))


def test_it_is_an_isession(any_session: MongoSession) -> None:
    assert verifyObject(ISession, any_session)


def test_created_is_a_number_of_seconds(any_session: MongoSession, clock: Any) -> None:
    assert type(any_session.created) is int
    assert abs(any_session.created - clock().timestamp()) < 600
    assert any_session.created == any_session.created


def test_created_is_when_the_session_was_created(store: MongoStore, clock: Any) -> None:
    clock.advance(days=-1)
    session = MongoSession(store.retrieve(store.create().token))
    assert (session.created, session.new) == (int(clock().timestamp()), False)


@pytest.mark.also_sealed
def test_it_is_a_dict(session: MongoSession) -> None:
    assert (dict(session), session["n"], session.get("m"), "n" in session) == (
        {"n": 1},
        1,
        None,
        True,
    )
    assert (list(session), len(session), bool(session)) == (["n"], 1, True)
    assert session == {"n": 1}
    session |= {"m": 2}  # type: ignore[misc]
    assert sorted(session.items()) == [("m", 2), ("n", 1)]
    assert sorted(session.copy()) == ["m", "n"]
    assert type(session.copy()) is dict
    assert (session.setdefault("m", 3), session.pop("m"), session.pop("m", None)) == (2, 2, None)
    assert (session.popitem(), list(session.keys()), list(session.values())) == (("n", 1), [], [])
    with pytest.raises(KeyError):
        session["n"]
    with pytest.raises(SessionDataError):
        session["n"] = {1}
    session.update({"a": 1}, b=2)
    del session["a"]
    session.clear()
    assert dict(session) == {}
    assert session.changed() is None


def test_what_it_shows_of_itself_has_no_token(session: MongoSession) -> None:
    assert session.token not in repr(session)
    assert "new" not in repr(session)


def test_members_of_ours_are_there(session: MongoSession) -> None:
    session.login("alice")
    session.regenerate()
    assert session.owner == "alice"
    assert len(session.id) == len(session.token) == 43
    assert session.expires_at - session.created_at == timedelta(days=14)
    session.destroy()
    assert (session.new, session.id) == (True, None)


def test_it_can_be_merged_and_copied(session: MongoSession) -> None:
    for data in session | {"m": 2}, {"n": 0, "m": 2} | session:
        assert (type(data), data) == (dict, {"n": 1, "m": 2})
    for copied in copy.copy(session), copy.deepcopy(session):
        assert (type(copied), copied) == (dict, {"n": 1})


def test_a_login_may_be_remembered_and_have_a_label(
    session: MongoSession, store: MongoStore
) -> None:
    session.login("alice", remember=True, label="Firefox")
    assert (session.remembered, session.label) == (True, "Firefox")
    store.flush(session)
    (info,) = store.sessions("alice")
    assert (info.remembered, info.label) == (True, "Firefox")


@pytest.mark.parametrize("name", ["nmae", "end", "data", "touch", "idle_as", "exchange"])
def test_other_names_are_attribute_errors(name: str, session: MongoSession) -> None:
    with pytest.raises(AttributeError):
        getattr(session, name)


@pytest.mark.also_sealed
def test_flash_messages_queue_up(any_session: MongoSession) -> None:
    for message in ("one", "two", "one"):
        any_session.flash(message)
    for once in ("one", {"two": 2}, "one", {"two": 2}):
        any_session.flash(once, "once", allow_duplicate=False)
    assert any_session["_f_"] == any_session.peek_flash() == ["one", "two", "one"]
    assert any_session.peek_flash("once") == ["one", {"two": 2}]
    assert any_session.pop_flash() == ["one", "two", "one"]
    assert any_session.pop_flash() == any_session.peek_flash() == []
    assert sorted(any_session) == ["_f_once"]


def test_a_flash_message_is_shown_once(site: Site) -> None:
    browser = site.browser(
        index=lambda request: request.session.pop_flash(),
        set=lambda request: request.session.flash("Saved."),
    )
    for _ in range(2):
        browser.get("/set")
    assert [browser.get().body for _ in range(2)] == [b"['Saved.', 'Saved.']", b"[]"]


def test_a_csrf_token_stays_until_there_is_a_new_one(any_session: MongoSession) -> None:
    token = any_session.get_csrf_token()
    assert token == any_session.get_csrf_token() == any_session["_csrft_"]
    assert len(token) == 40
    assert any_session.new_csrf_token() == any_session.get_csrf_token() != token


@pytest.mark.also_sealed
def test_an_invalidated_session_ends_and_another_begins(
    site: Site, stored: Collection[Any]
) -> None:
    def invalidate(request: Request) -> None:
        request.session.invalidate()
        assert (request.session.new, dict(request.session)) == (True, {})
        request.session["m"] = 2

    browser = site.browser(index=show, set=set_n, invalidate=invalidate)
    browser.get("/set")
    before = browser.cookie
    browser.get("/invalidate")
    assert browser.cookie != before
    assert browser.get().body == b"[('m', 2)]"
    assert Browser(browser.app, before).get().body == b"[]"
    assert stored.count_documents({}) == 1


# What Pyramid brings.


@pytest.mark.parametrize("policy", [None, SessionCSRFStoragePolicy()])
def test_views_are_protected_by_the_csrf_token(policy: Any, site: Site) -> None:
    if policy is not None:
        site.config.set_csrf_storage_policy(policy)
    site.config.set_default_csrf_options(require_csrf=True)
    browser = site.browser(index=get_csrf_token, set=set_n)
    token = browser.get().body.decode()
    post = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "0"}
    assert browser.get("/set", **post).status.startswith("400")
    assert browser.get("/set", HTTP_X_CSRF_TOKEN=token, **post).status == "200 OK"
    assert browser.get().body.decode() == token


@pytest.mark.also_sealed
@pytest.mark.parametrize("policy", [None, SessionCSRFStoragePolicy(key="other")])
def test_a_csrf_token_does_not_survive_a_login(policy: Any, site: Site) -> None:
    if policy is not None:
        site.config.set_csrf_storage_policy(policy)

    def login(request: Request) -> str:
        request.session.login("alice")
        return get_csrf_token(request)

    browser = site.browser(index=get_csrf_token, login=login, set=set_n, all=show)
    browser.get("/set")
    known = browser.get().body
    fresh = browser.get("/login").body
    assert fresh != known
    assert browser.get().body == fresh
    assert b"('n', 1)" in browser.get("/all").body


def test_a_csrf_token_does_not_survive_a_login_by_the_environ(site: Site) -> None:
    browser = site.browser(
        index=get_csrf_token, login=lambda request: request.environ[KEY].login("alice")
    )
    known = browser.get().body
    browser.get("/login")
    assert browser.get().body != known


class HelpedPolicy:
    """A security policy as Pyramid's documentation has it."""

    def __init__(self) -> None:
        self.helper = SessionAuthenticationHelper()
        self.remember, self.forget = self.helper.remember, self.helper.forget

    def identity(self, request: Request) -> str | None:
        return self.helper.authenticated_userid(request)

    authenticated_userid = identity

    def permits(self, request: Request, context: Any, permission: str) -> bool:
        return self.identity(request) is not None


class OwnerPolicy(HelpedPolicy):
    """One that makes use of the owner."""

    def __init__(self) -> None: ...

    def identity(self, request: Request) -> str | None:
        return request.session.owner

    authenticated_userid = identity

    def remember(self, request: Request, userid: str, **kw: Any) -> list[tuple[str, str]]:
        request.session.login(userid)
        return []

    def forget(self, request: Request, **kw: Any) -> list[tuple[str, str]]:
        request.session.invalidate()
        return []


@pytest.mark.also_sealed
@pytest.mark.parametrize("policy", [HelpedPolicy, OwnerPolicy])
def test_a_security_policy_remembers_and_forgets(policy: Callable[[], Any], site: Site) -> None:
    site.config.set_security_policy(policy())
    browser = site.browser(
        index=lambda request: request.authenticated_userid,
        login=lambda request: HTTPSeeOther("/", headers=remember(request, "alice")),
        logout=lambda request: HTTPSeeOther("/", headers=forget(request)),
    )
    seen = []
    for path in ("/login", "/logout"):
        assert browser.get(path).status == "303 See Other"
        seen.append(browser.get().body)
    assert seen == [b"alice", b"None"]


def test_the_debug_toolbar_shows_the_session(settings: dict[str, Any], store: MongoStore) -> None:
    more = {"pyramid.includes": "pyramid_debugtoolbar", "debugtoolbar.active_panels": "session"}
    site = Site(settings | more, store)
    html = "<html><body>{}</body></html>".format
    app = site.app(index=lambda request: html(get_n(request)), set=set_n, fail=broken(OSError()))
    client = TestApp(app, {"REMOTE_ADDR": "127.0.0.1"})
    client.get("/set")
    page = client.get("/")
    assert "<body>1<" in page.text
    assert "pDebugToolbar" in page.text
    toolbar = client.get(page.html.find(id="pShowToolBarButton")["href"])
    assert "mongosession_wsgi.pyramid" in toolbar.text
    assert "OSError" in client.get("/fail", status=500).text
    assert "<body>1<" in client.get("/").text


# The commit comes after all that may touch the session.


def count_in(name: str) -> Use:
    def count(request: Request) -> None:
        request.session[name] = request.session.get(name, 0) + 1

    return count


def counting_tween(handler: Any, registry: Any) -> Any:
    def tween(request: Request) -> Response:
        count_in("on the way in")(request)
        response = handler(request)
        count_in("on the way out")(request)
        return response

    return tween


@pytest.mark.parametrize("explicit", [False, True])
def test_changes_count_wherever_they_are_made(
    explicit: bool, settings: dict[str, Any], store: MongoStore
) -> None:
    tween = f"{__name__}.counting_tween"
    site = Site(settings | ({"pyramid.tweens": f"{tween} {EXCVIEW}"} if explicit else {}), store)
    site.config.add_tween(tween)
    site.config.add_subscriber(lambda event: count_in("subscriber")(event.request), NewResponse)

    def view(request: Request) -> None:
        request.add_response_callback(lambda request, _: count_in("callback")(request))
        request.add_finished_callback(count_in("finished"))

    browser = site.browser(index=view, all=show)
    answers = [browser.get(path) for path in ("/", "/", "/all")]
    assert [one.commands for one in answers] == [["insert"], ["find", "update"], ["find", "update"]]
    assert answers[-1].body == (
        b"[('callback', 2), ('finished', 2), ('on the way in', 3), ('on the way out', 2), "
        b"('subscriber', 2)]"
    )


def test_a_cookie_of_the_application_stands_beside_ours(site: Site) -> None:
    def view(request: Request) -> None:
        set_n(request)
        request.add_response_callback(lambda _, response: response.set_cookie("theme", "dark"))

    cookies = site.browser(index=view).get().all("Set-Cookie")
    assert [cookie.partition("=")[0] for cookie in cookies] == ["theme", "mongosession"]


def test_a_stream_fills_the_session_with_its_first_item(site: Site) -> None:
    closed = []

    class Stream:
        def __init__(self, session: MongoSession) -> None:
            self._session = session

        def __iter__(self) -> Iterator[bytes]:
            self._session["n"] = self._session.get("n", 0) + 1
            yield f"{self._session['n']}".encode()
            self._session["late"] = self._session.get("late", 0) + 10

        def close(self) -> None:
            closed.append(self)

    browser = site.browser(
        index=lambda request: Response(app_iter=Stream(request.session)),
        late=lambda request: request.session["late"],
    )
    assert [browser.get().body for _ in range(2)] == [b"1", b"2"]
    assert browser.get("/late").body == b"20"
    assert len(closed) == 2


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_file_is_handed_to_the_server_as_it_is(site: Site) -> None:
    def file(request: Request) -> Response:
        set_n(request)
        return FileResponse(__file__, request)

    site.config.add_static_view("static", str(Path(__file__).parent))
    app = site.app(file=file)
    for path, has_cookie in ("/file", True), (f"/static/{Path(__file__).name}", False):
        request = Request.blank(path, {"wsgi.file_wrapper": FileWrapper})
        _, headers, body = request.call_application(app)
        assert type(body) is FileWrapper
        body.close()
        assert ("Set-Cookie" in dict(headers)) == has_cookie


def test_a_static_view_and_a_head_request(site: Site) -> None:
    site.config.add_static_view("static", str(Path(__file__).parent))
    browser = site.browser(index=set_n)
    file = browser.get(f"/static/{Path(__file__).name}")
    assert (file.body, file.commands) == (Path(__file__).read_bytes(), [])
    assert file.header("Vary") in (None, "Accept-Encoding")
    answer = browser.get(REQUEST_METHOD="HEAD")
    assert (answer.body, answer.commands) == (b"", ["insert"])


# Subrequests.


@pytest.mark.parametrize("use_tweens", [False, True])
def test_a_copy_of_the_request_has_the_same_session(use_tweens: bool, site: Site) -> None:
    def outer(request: Request) -> None:
        count_in("before")(request)
        copy = request.copy()
        copy.path_info = "/inner"
        request.invoke_subrequest(copy, use_tweens=use_tweens)
        count_in("after")(request)

    browser = site.browser(index=outer, inner=count_in("inner"), all=show)
    assert browser.get().commands == ["insert"]
    assert browser.get().commands == ["find", "update"]
    assert browser.get("/all").body == b"[('after', 2), ('before', 2), ('inner', 2)]"


@pytest.mark.parametrize("use_tweens", [False, True])
def test_a_subrequest_with_cookies_of_its_own_has_the_session_of_these(
    use_tweens: bool, site: Site, stored: Collection[Any]
) -> None:
    def inner(request: Request) -> None:
        count_in("inner")(request)
        request.add_response_callback(lambda request, _: count_in("callback")(request))

    def outer(request: Request) -> str:
        blank = Request.blank("/inner", headers={"Cookie": request.headers.get("Cookie", "")})
        subresponse = request.invoke_subrequest(blank, use_tweens=use_tweens)
        assert subresponse.vary == ("Cookie",)
        count_in("outer")(request)
        return subresponse.headers.get("Set-Cookie", "")

    browser = site.browser(index=outer, inner=inner, all=show)
    first = browser.get()
    assert first.commands == ["insert", "insert"]
    assert b"mongosession=" in first.body
    assert browser.token not in first.body.decode()
    assert stored.count_documents({}) == 2
    assert browser.get().body == b""
    assert browser.get("/all").body == b"[('callback', 1), ('inner', 1), ('outer', 2)]"


@pytest.mark.also_sealed
def test_the_late_changes_of_a_subrequest_count_too(site: Site) -> None:
    def inner(request: Request) -> None:
        set_n(request)
        request.add_finished_callback(lambda request: request.session.update(late=1))

    def outer(request: Request) -> None:
        request.invoke_subrequest(
            Request.blank("/inner", headers={"Cookie": request.headers["Cookie"]})
        )

    browser = site.browser(index=outer, inner=inner, set=set_n, all=show)
    browser.get("/set")
    browser.get()
    assert browser.get("/all").body == b"[('late', 1), ('n', 1)]"


def test_a_subrequest_may_be_made_again_with_its_environ(
    site: Site, stored: Collection[Any]
) -> None:
    def fails(request: Request) -> None:
        request.session["n"] = 2
        raise ZeroDivisionError

    def outer(request: Request) -> str:
        blank = Request.blank("/fails")
        with pytest.raises(ZeroDivisionError):
            request.invoke_subrequest(blank)
        again = Request(blank.environ)
        again.path_info = "/inner"
        return request.invoke_subrequest(again).headers["Set-Cookie"]

    browser = site.browser(index=outer, inner=set_n, fails=fails)
    assert browser.get().body.startswith(b"mongosession=")
    assert [document["data"] for document in stored.find()] == [{"n": 1}]


def test_a_copy_of_such_a_subrequest_has_its_session(site: Site, stored: Collection[Any]) -> None:
    def inner(request: Request) -> None:
        set_n(request)
        copy = request.copy()
        copy.path_info = "/get"
        assert request.invoke_subrequest(copy).text == "1"
        request.session["m"] = 2

    browser = site.browser(
        index=lambda request: request.invoke_subrequest(Request.blank("/inner")),
        inner=inner,
        get=get_n,
    )
    assert browser.get().commands == ["insert"]
    assert stored.find_one()["data"] == {"n": 1, "m": 2}


def test_a_script_may_look_at_a_session_which_is_not_stored(
    site: Site, stored: Collection[Any]
) -> None:
    with prepare(registry=site.app(index=set_n).registry) as script:
        script["request"].session["n"] = 1
        assert script["request"].session == {"n": 1}
    assert stored.count_documents({}) == 0


def test_a_subrequest_that_fails_changes_nothing_but_its_logout_counts(
    site: Site, store: MongoStore
) -> None:
    tokens = {name: store.create({"n": 1}).token for name in ("fail", "logout", "page")}

    def outer(request: Request) -> None:
        for name in ("fail", "logout"):
            blank = Request.blank(f"/{name}", headers={"Cookie": f"mongosession={tokens[name]}"})
            with pytest.raises(ZeroDivisionError):
                request.invoke_subrequest(blank)
        blank = Request.blank("/page", headers={"Cookie": f"mongosession={tokens['page']}"})
        assert request.invoke_subrequest(blank, use_tweens=True).status_int == 500

    def logout(request: Request) -> None:
        request.session.invalidate()
        raise ZeroDivisionError

    browser = site.browser(
        index=outer,
        fail=broken(ZeroDivisionError()),
        logout=logout,
        page=broken(HTTPInternalServerError()),
    )
    assert browser.get().status == "200 OK"
    assert {name: store.retrieve(token) for name, token in tokens.items()} == {
        "fail": {"n": 1},
        "logout": None,
        "page": {"n": 1},
    }


# More than one attempt.


class Attempts:
    """A view that is done at the third attempt only."""

    def __init__(self, *, touches_at_last: bool = True) -> None:
        self.sessions: list[MongoSession] = []
        self._touches_at_last = touches_at_last

    def __call__(self, request: Request) -> None:
        attempt = request.environ.get("retry.attempt")
        if attempt < 2 or self._touches_at_last:
            self.sessions.append(request.session)
            assert sorted(request.session) == []
            request.session[f"attempt {attempt}"] = attempt
        if attempt < 2:
            request.session.login("mallory")
            raise RetryableException


@pytest.mark.parametrize("squashed", [False, True])
@pytest.mark.parametrize("included_first", [False, True])
def test_a_failed_attempt_leaves_no_trace(
    squashed: bool, included_first: bool, settings: dict[str, Any], store: MongoStore, stored: Any
) -> None:
    first = {"pyramid.includes": "pyramid_retry"} if included_first else {}
    site = Site(settings | first, store)
    site.config.include("pyramid_retry")
    if squashed:
        site.config.add_exception_view(
            lambda exc, request: Response("conflict", 409), context=RetryableException
        )
    attempts = Attempts()
    browser = site.browser(
        index=attempts, all=lambda request: (request.session.owner, show(request))
    )
    answer = browser.get()
    assert (answer.status, answer.commands) == ("200 OK", ["insert"])
    assert len(attempts.sessions) == 3
    assert browser.get("/all").body == b"(None, [('attempt 2', 2)])"
    assert stored.count_documents({}) == 1


def test_an_attempt_that_does_not_touch_the_session_stores_nothing(
    site: Site, stored: Collection[Any]
) -> None:
    site.config.include("pyramid_retry")
    answer = site.browser(index=Attempts(touches_at_last=False)).get()
    assert (answer.status, answer.commands, answer.cookie) == ("200 OK", [], None)
    assert stored.count_documents({}) == 0


@pytest.mark.also_sealed
def test_a_live_session_is_loaded_anew_for_each_attempt(site: Site, store: MongoStore) -> None:
    site.config.include("pyramid_retry")
    token = store.create({"n": 1}).token

    def view(request: Request) -> str:
        request.session["n"] += 1
        if request.environ["retry.attempt"] == 0:
            other = store.retrieve(token)
            other["n"] = 10
            store.flush(other)
            raise RetryableException
        return str(request.session["n"])

    answer = site.browser(f"mongosession={token}", index=view).get()
    assert (answer.body, answer.commands.count("find")) == (b"11", 3)
    assert store.retrieve(token) == {"n": 11}


def test_an_attempt_after_a_regenerated_token_was_found_stores_nothing(
    site: Site, store: MongoStore, stored: Collection[Any]
) -> None:
    site.config.include("pyramid_retry")
    session = store.create({"n": 1})
    token = session.token
    session.regenerate()
    store.flush(session)
    attempts = Attempts()
    answer = site.browser(f"mongosession={token}", index=attempts).get()
    assert (answer.status, answer.cookie, len(attempts.sessions)) == ("200 OK", None, 3)
    assert stored.count_documents({"data": {"$exists": True}}) == 1


def test_when_every_attempt_fails_nothing_is_stored_but_a_logout_counts(
    site: Site, store: MongoStore
) -> None:
    site.config.include("pyramid_retry")

    def logout(request: Request) -> None:
        request.session.invalidate()
        raise RetryableException

    token = store.create({"n": 1}).token
    browser = site.browser(
        f"mongosession={token}", fail=broken(RetryableException()), logout=logout
    )
    for path in ("/fail", "/logout"):
        assert store.retrieve(token) == {"n": 1}
        with pytest.raises(RetryableException):
            browser.get(path)
    assert store.retrieve(token) is None


@pytest.mark.parametrize("autocommit", [False, True])
def test_an_execution_policy_of_the_application_stays(
    autocommit: bool, settings: dict[str, Any], store: MongoStore
) -> None:
    config = Configurator(settings=settings, autocommit=autocommit)
    config.include("mongosession_wsgi.pyramid")
    config.set_mongosession_store(store)

    def policy(environ: dict[str, Any], router: Any) -> Response:
        response = default_execution_policy(environ, router)
        response.headers["X-Policy"] = "theirs"
        return response

    config.set_execution_policy(policy)
    config.add_view(view_of(set_n))
    answer = Browser(config.make_wsgi_app()).get()
    assert (answer.header("X-Policy"), bool(answer.token)) == ("theirs", True)


# Requests that fail.


def broken(error: Exception) -> Use:
    def use(request: Request) -> None:
        request.session["n"] = 2
        raise error

    return use


@pytest.mark.parametrize(
    ("error", "status", "n"),
    [
        (HTTPSeeOther("/"), "303 See Other", b"2"),
        (HTTPBadRequest(), "400 Bad Request", b"2"),
        (HTTPInternalServerError(), "500 Internal Server Error", b"1"),
    ],
)
def test_the_status_tells_whether_a_request_failed(
    error: Exception, status: str, n: bytes, site: Site
) -> None:
    browser = site.browser(index=get_n, set=set_n, fail=broken(error))
    browser.get("/set")
    assert browser.get("/fail").status == status
    assert browser.get().body == n


def test_an_exception_changes_nothing_unless_a_view_makes_an_answer_of_it(site: Site) -> None:
    def page(exc: Exception, request: Request) -> Response:
        request.session["seen"] = type(exc).__name__
        return Response("sorry", 422)

    site.config.add_exception_view(page, context=LookupError)
    browser = site.browser(
        index=show, set=set_n, fail=broken(ZeroDivisionError()), page=broken(LookupError())
    )
    browser.get("/set")
    with pytest.raises(ZeroDivisionError):
        browser.get("/fail")
    assert browser.get().body == b"[('n', 1)]"
    assert browser.get("/page").status.startswith("422")
    assert browser.get().body == b"[('n', 2), ('seen', 'LookupError')]"


@pytest.mark.parametrize("where", ["callback", "subscriber"])
def test_what_fails_after_the_view_changes_nothing_either(
    where: str, site: Site, store: MongoStore
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    def view(request: Request) -> None:
        request.session["n"] = 2
        if where == "callback":
            request.add_response_callback(fail)

    if where == "subscriber":
        site.config.add_subscriber(fail, NewResponse)
    token = store.create({"n": 1}).token
    with pytest.raises(ZeroDivisionError):
        site.browser(f"mongosession={token}", index=view).get()
    assert store.retrieve(token) == {"n": 1}


def test_a_logout_is_carried_out_though_the_request_fails(site: Site, store: MongoStore) -> None:
    def logout(request: Request) -> None:
        request.session.invalidate()
        raise ZeroDivisionError

    token = store.create({"n": 1}).token
    with pytest.raises(ZeroDivisionError):
        site.browser(f"mongosession={token}", logout=logout).get("/logout")
    assert store.retrieve(token) is None


# MongoDB down.


@pytest.mark.parametrize("path", ["/", "/set", "/logout"])
@pytest.mark.parametrize("catching_all", [False, True])
@pytest.mark.server  # For seconds of waiting or of work.
def test_mongodb_down_is_a_503(
    path: str, catching_all: bool, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(DOWN)
    if catching_all:
        site.config.add_exception_view(lambda exc, request: Response("oh", 500), context=Exception)
    answer = site.browser(
        COOKIE, index=get_n, set=set_n, logout=lambda request: request.session.invalidate()
    ).get(path)
    assert answer.status == "503 Service Unavailable"
    assert answer.header("Retry-After") == "5"
    assert answer.header("Cache-Control") == "no-store"
    assert b"session store is unavailable" in answer.body
    assert answer.cookie is None
    errors = [one for one in caplog.records if one.name == "mongosession_wsgi"]
    assert [one.levelno for one in errors] == [logging.ERROR]
    assert "t" * 43 not in caplog.text


def test_a_page_that_does_not_use_the_session_is_served() -> None:
    assert Site(DOWN).browser(COOKIE, index=lambda request: "fine").get().body == b"fine"


@pytest.mark.server  # For seconds of waiting or of work.
def test_an_exception_view_may_have_an_answer_for_it() -> None:
    site = Site(DOWN)
    site.config.add_exception_view(
        lambda exc, request: Response("back soon", 503), context=StoreError
    )
    answer = site.browser(COOKIE, index=get_n).get()
    assert (answer.status, answer.body) == ("503 Service Unavailable", b"back soon")


@pytest.mark.server  # For seconds of waiting or of work.
def test_a_subrequest_that_finds_mongodb_down_raises_in_the_view() -> None:
    def outer(request: Request) -> str:
        for path in ("/", "/set"):
            with pytest.raises(StoreError):
                request.invoke_subrequest(Request.blank(path, headers={"Cookie": COOKIE}))
        return "fine"

    assert Site(DOWN).browser(index=get_n, set=set_n, outer=outer).get("/outer").body == b"fine"


# Within our middleware, and settings.


def test_within_our_middleware_it_hands_on_the_session(
    site: Site, settings: dict[str, Any], store: MongoStore
) -> None:
    site.config.include("pyramid_retry")
    app = site.app(index=Attempts(), all=show)
    browser = Browser(SessionMiddleware(conforming(app), settings, store=store))
    assert browser.get().commands == ["insert"]
    answer = browser.get("/all")
    assert (answer.body, answer.commands) == (b"[('attempt 2', 2)]", ["find"])
    assert answer.all("Vary") == ["Cookie"]


def test_an_application_within_another_leaves_the_commit_to_it(
    settings: dict[str, Any], store: MongoStore
) -> None:
    inner = Site(settings, store).app(index=set_n)

    def mount(request: Request) -> Response:
        count_in("m")(request)
        return request.copy().get_response(inner)

    browser = Site(settings, store).browser(index=mount, all=show)
    assert browser.get().commands == ["insert"]
    assert browser.get("/all").body == b"[('m', 1), ('n', 1)]"


def test_the_settings_are_those_of_the_registry_in_text(settings: dict[str, Any]) -> None:
    more = {"session_name": "sid", "session_expires": "2 hours", "session_secure": "true"}
    config = Configurator(settings={"pyramid.includes": "mongosession_wsgi.pyramid"})
    config.add_settings({**settings, **more})
    config.add_view(view_of(set_n))
    cookie = str(Browser(config.make_wsgi_app()).get().cookie)
    assert cookie.startswith("sid=")
    assert "Max-Age=7200" in cookie
    assert "Secure" in cookie


@pytest.mark.parametrize(
    ("settings_", "named"),
    [
        ({}, "mongodb_session_db"),
        ({"mongodb_session_db": "myapp", "session_nmae": "x"}, "session_name"),
        ({"mongodb_session_db": "myapp", "session.type": "ext:memcached"}, "session.type"),
    ],
)
def test_bad_settings_are_refused_when_the_application_is_made(
    settings_: dict[str, str], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        Site(settings_).app()


def test_a_store_of_the_application_needs_no_database_in_the_settings(store: MongoStore) -> None:
    assert Site({}, store).browser(index=set_n).get().commands == ["insert"]


def test_two_stores_are_a_conflict(site: Site, store: MongoStore) -> None:
    site.config.set_mongosession_store(store)
    with pytest.raises(ConfigurationConflictError):
        site.app()


def test_without_pyramid_retry_it_works_too(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], store: MongoStore
) -> None:
    monkeypatch.setitem(sys.modules, "pyramid_retry", None)
    assert Site(settings, store).browser(index=set_n).get().token


def test_a_test_without_an_application_has_a_session(settings: dict[str, Any]) -> None:
    with testing.testConfig(settings=settings) as config:
        config.include("mongosession_wsgi.pyramid")
        request = Request.blank("/")
        request.registry = config.registry
        request.session["tea"] = "Assam"
        assert dict(request.session) == {"tea": "Assam"}

"""`flask.session`: what Flask promises of it, and what its extensions build on it."""

from __future__ import annotations

import copy
import gc
import gzip
import io
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlencode
from uuid import UUID
from wsgiref.validate import validator

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    copy_current_request_context,
    flash,
    g,
    get_flashed_messages,
    redirect,
    render_template_string,
    request,
    request_finished,
    stream_with_context,
)
from flask.testing import FlaskClient
from markupsafe import Markup
from pymongo import MongoClient
from pymongo.collection import Collection

from mongosession_wsgi import (
    MongoStore,
    SessionDataError,
    SessionMiddleware,
    SessionWarning,
    SettingsError,
    StoreError,
)
from mongosession_wsgi.flask import MongoSession, MongoSessionInterface, session

from ..conftest import Clock
from ..wsgi import COOKIE, DOWN, HANDSHAKE, Browser, conforming, environ_of, on_session
from ..wsgi import Response as Answer


class Client(FlaskClient):
    """Flask's test client, which keeps cookies; it closes each response, as a server does."""

    def open(self, *args: Any, **options: Any) -> Any:
        return super().open(*args, **({"buffered": True} | options))


def flask_app(interface: MongoSessionInterface | None, **config: Any) -> Flask:
    app = Flask("shop")
    app.config.update(config)
    if interface is not None:
        app.session_interface = interface
    app.wsgi_app = validator(app.wsgi_app)  # type: ignore[assignment]
    app.test_client_class = Client
    return app


@pytest.fixture
def app(settings: dict[str, Any], store: MongoStore) -> Flask:
    return flask_app(MongoSessionInterface(settings, store=store), SECRET_KEY="for extensions")


@pytest.fixture
def visitor(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def browser(app: Flask) -> Browser:
    return Browser(app)


def on(app: Flask, path: str = "/", **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Serve a view at `path` that may return anything; what is no response becomes text."""

    def register(view: Callable[..., Any]) -> Callable[..., Any]:
        def text() -> Any:
            answer = view()
            return answer if isinstance(answer, Response | str | tuple) else str(answer)

        app.add_url_rule(path, f"view of {path}", text, **options)
        return view

    return register


def post(browser: Browser, path: str, **form: str) -> Answer:
    body = urlencode(form).encode()
    return browser.get(
        path,
        REQUEST_METHOD="POST",
        CONTENT_TYPE="application/x-www-form-urlencoded",
        CONTENT_LENGTH=str(len(body)),
        **{"wsgi.input": io.BytesIO(body)},
    )


# The session of a request.


def test_what_a_view_sets_the_next_request_reads(app: Flask, visitor: FlaskClient) -> None:
    on(app, "/set")(lambda: session.update(user="alice", n=1))
    on(app)(lambda: sorted(session.items()))
    visitor.get("/set")
    assert visitor.get("/").text == "[('n', 1), ('user', 'alice')]"
    assert app.test_client().get("/").text == "[]"


@pytest.mark.also_sealed
@pytest.mark.parametrize(
    ("use", "commands"),
    [
        (lambda: "untouched", []),
        (lambda: session.get("n"), ["find"]),
        (lambda: session.update(a=1, b=2, c=3), ["update"]),
        (lambda: session.update(n=session["n"] + 1), ["find", "update"]),
        (lambda: session["cart"].append("tea"), ["find", "update"]),
        (lambda: session.clear(), ["delete"]),
        (lambda: session.regenerate(), ["findAndModify", "insert"]),
        (lambda: session.login("bob"), ["findAndModify", "insert"]),
        (lambda: session.__setattr__("permanent", True), ["find", "update"]),
        (lambda: flash("Hello"), ["find", "update"]),
    ],
)
def test_a_request_costs_no_more_commands_than_in_plain_wsgi(
    use: Callable[[], Any], commands: list[str], app: Flask, browser: Browser
) -> None:
    on(app, "/fill")(lambda: session.update(n=1, cart=[]))
    on(app)(use)
    assert browser.get("/fill").commands == ["insert"]
    assert browser.get().commands == commands


@pytest.mark.also_sealed
def test_a_nested_change_counts_without_modified(app: Flask, visitor: FlaskClient) -> None:
    on(app)(lambda: session.setdefault("cart", {}).setdefault("tea", []).append(1))
    on(app, "/cart")(lambda: session["cart"])
    visitor.get("/")
    visitor.get("/")
    assert visitor.get("/cart").text == "{'tea': [1, 1]}"


def test_new_accessed_and_modified_are_facts(app: Flask, visitor: FlaskClient) -> None:
    seen: list[Any] = []

    def note() -> None:
        mine: Any = session._get_current_object()  # type: ignore[attr-defined]
        seen.append((mine.accessed, mine.modified))

    @on(app)
    def _() -> None:
        note()
        session["cart"] = [*session.get("cart", ()), 1]
        note()
        seen.append(session.new)

    @on(app, "/read")
    def _() -> None:
        session.modified = session.accessed = False
        "cart" in session  # noqa: B015
        note()
        session["cart"].append(1)
        note()

    @on(app, "/renew")
    def _() -> None:
        session.get("cart")
        session.regenerate()
        note()

    visitor.get("/")
    visitor.get("/")
    assert seen == [(False, False), (True, True), True, (False, False), (True, True), False]
    seen.clear()
    visitor.get("/read")
    assert seen == [(True, False), (True, True)]
    seen.clear()
    visitor.get("/renew")
    assert seen == [(True, True)]


@pytest.mark.parametrize(
    ("use", "modified"),
    [
        (lambda: "untouched", False),
        (lambda: session.get("n"), False),
        (lambda: session.update(n=2), True),
        (lambda: session["list"].append(1), True),
        (lambda: session["list"].append({1}), True),  # This cannot be stored.
        (lambda: session.login("alice"), True),
        (lambda: session.clear(), True),
        (lambda: session.__setattr__("permanent", True), True),
    ],
)
@pytest.mark.parametrize("status", [200, 500])
def test_modified_says_what_the_request_did_also_after_the_commit(
    use: Callable[[], Any], modified: bool, status: int, app: Flask, visitor: FlaskClient
) -> None:
    at_teardown: list[bool] = []
    app.teardown_request(lambda _: at_teardown.append(session.modified))
    on(app, "/fill")(lambda: session.update(n=1, list=[]))
    on(app)(lambda: (str(use()), status))
    visitor.get("/fill")
    with visitor:
        visitor.get("/")
        assert session.modified is modified
    assert at_teardown[0] is True
    assert set(at_teardown[1:]) == {modified}


def test_a_page_varies_on_the_cookie_only_if_it_used_the_session(
    app: Flask, browser: Browser
) -> None:
    on(app)(lambda: "x" in session)
    on(app, "/len")(lambda: len(session))
    on(app, "/plain")(lambda: render_template_string("{{ request.path }}"))
    on(app, "/own")(lambda: Response(str("x" in session), headers={"Vary": "Accept"}))
    assert browser.get().header("Vary") == "Cookie"
    assert browser.get("/len").header("Vary") == "Cookie"
    assert browser.get("/plain").header("Vary") is None
    assert browser.get("/own").header("Vary") == "Accept, Cookie"


def test_a_page_that_begins_a_session_is_private(app: Flask, browser: Browser) -> None:
    public = {"Cache-Control": "public, max-age=60", "CDN-Cache-Control": "max-age=60"}
    on(app)(lambda: Response(str(session.setdefault("a", 1)), headers=public))
    answer = browser.get()
    assert answer.header("Cache-Control") == "private, max-age=60"
    assert answer.header("CDN-Cache-Control") is None
    answer = browser.get()
    assert answer.header("Cache-Control") == "public, max-age=60"
    assert answer.header("CDN-Cache-Control") == "max-age=60"


def test_templates_and_the_hooks_after_a_view_reach_the_session(
    app: Flask, visitor: FlaskClient
) -> None:
    @app.after_request
    def count(response: Response) -> Response:
        session["n"] = session.get("n", 0) + 1
        return response

    on(app)(lambda: render_template_string("{{ session.n }}"))
    assert [visitor.get("/").text for _ in range(3)] == ["", "1", "2"]


def test_it_has_the_members_of_our_session(app: Flask, browser: Browser) -> None:
    on(app, "/login", methods=["POST"])(lambda: session.login("alice"))

    @on(app)
    def _() -> str:
        mine = session._get_current_object()  # type: ignore[attr-defined]
        assert isinstance(mine, MongoSession)
        assert isinstance(mine.created_at, datetime)
        assert mine.token == browser.token
        assert mine.token not in repr(session)
        assert type(session.copy()) is dict
        mine |= {"b": 2}  # type: ignore[misc]
        assert mine == {"a": 1, "b": 2}
        return f"{session.owner} {session.id}"

    on(app, "/set")(lambda: session.update(a=1))
    browser.get("/set")
    before = browser.token
    post(browser, "/login")
    assert browser.token != before
    answer = browser.get().body.decode()
    assert answer.startswith("alice ")
    assert len(answer) == len("alice ") + 43


def test_it_can_be_merged_and_copied(app: Flask, visitor: FlaskClient) -> None:
    @on(app)
    def _() -> None:
        session["a"] = [1]
        mine = session._get_current_object()  # type: ignore[attr-defined]
        assert session | {"b": 2} == {"b": 2} | mine == {"a": [1], "b": 2}
        for data in copy.copy(mine), copy.deepcopy(mine), session.copy():
            assert (type(data), data) == (dict, {"a": [1]})

    assert visitor.get("/").status_code == 200


@pytest.mark.parametrize("name", ["nmae", "end", "data", "touch", "idle_as", "exchange"])
def test_other_names_are_attribute_errors(name: str, app: Flask, visitor: FlaskClient) -> None:
    on(app)(lambda: hasattr(session, name))
    assert visitor.get("/").text == "False"


def test_a_login_may_have_a_label(app: Flask, browser: Browser, store: MongoStore) -> None:
    on(app, "/login")(lambda: session.login("alice", label="Firefox"))
    on(app)(lambda: session.label)
    browser.get("/login")
    assert browser.get().body == b"Firefox"
    assert [info.label for info in store.sessions("alice")] == ["Firefox"]


@pytest.mark.also_sealed
@pytest.mark.parametrize(
    ("value", "back"),
    [
        ((1, 2), [1, 2]),
        (Markup("<b>"), "<b>"),
        (b"\xff", b"\xff"),
        (UUID(int=7), UUID(int=7)),
        (
            datetime(2024, 2, 29, 12, 30, 15, 999000, tzinfo=timezone(timedelta(hours=1))),
            datetime(2024, 2, 29, 11, 30, 15, 999000, tzinfo=timezone.utc),
        ),
        ({"a": {"b": None}}, {"a": {"b": None}}),
    ],
)
def test_what_comes_back_as_what(value: Any, back: Any, app: Flask, visitor: FlaskClient) -> None:
    got: list[Any] = []
    on(app, "/set")(lambda: session.update(value=value))
    on(app)(lambda: got.append(session["value"]))
    visitor.get("/set")
    visitor.get("/")
    assert got == [back]
    assert type(got[0]) is type(back)


def test_what_no_session_can_hold_is_refused_where_it_is_assigned(
    app: Flask, visitor: FlaskClient
) -> None:
    @on(app)
    def _() -> None:
        with pytest.raises(SessionDataError, match="total"):
            session["total"] = {1, 2}

    assert visitor.get("/").status_code == 200


# Logging out.


def test_clear_ends_the_session(app: Flask, browser: Browser, stored: Collection[Any]) -> None:
    on(app, "/set")(lambda: session.update(user="alice"))
    on(app, "/logout")(lambda: session.clear())
    on(app)(lambda: session.get("user"))
    browser.get("/set")
    old = browser.cookie
    assert "Max-Age=0" in str(browser.get("/logout").cookie)
    assert stored.count_documents({}) == 0
    assert Browser(app, old).get().body == b"None"


@pytest.mark.also_sealed
def test_the_login_of_flasks_tutorial_gets_a_new_token(app: Flask, browser: Browser) -> None:
    @on(app, "/login")
    def _() -> None:
        session.clear()
        session["user_id"] = 1

    on(app, "/set")(lambda: session.update(cart=[1]))
    on(app)(lambda: session.copy())
    browser.get("/set")
    before = browser.cookie
    browser.get("/login")
    assert browser.cookie != before
    assert browser.get().body == b"{'user_id': 1}"
    assert Browser(app, before).get().body == b"{}"


# The cookie.


def test_permanent_decides_how_long_the_cookie_lasts(app: Flask, browser: Browser) -> None:
    app.permanent_session_lifetime = timedelta(hours=3)

    @on(app)
    def _() -> bool:
        session["a"] = 1
        if "permanent" in request.args:
            session.permanent = request.args["permanent"] == "yes"
        return session.permanent

    assert "Max-Age" not in str(browser.get().cookie)
    answer = browser.get("/?permanent=yes")
    assert "Max-Age=10800;" in str(answer.cookie)
    assert answer.header("Cache-Control") == "private"
    assert browser.get().body == b"True"
    answer = browser.get("/?permanent=no")
    assert answer.cookie, "the browser is to forget it when it is closed"
    assert "Max-Age" not in answer.cookie
    assert "Expires" not in answer.cookie
    answer = browser.get()
    assert (answer.body, answer.cookie) == (b"False", None)


def test_the_cookie_of_a_permanent_session_follows_an_acknowledged_write(
    app: Flask, browser: Browser, clock: Clock
) -> None:
    n = iter(range(100))
    on(app, "/start")(lambda: session.update(_permanent=True, n=next(n)))
    on(app, "/set")(lambda: session.update(n=next(n)))
    on(app, "/change")(lambda: session.update(n=session["n"] + next(n)))
    on(app)(lambda: session["n"])
    assert "Max-Age" in str(browser.get("/start").cookie)
    assert browser.get().cookie is None, "it is not due for a renewal"
    answer = browser.get("/set")
    assert (answer.commands, "Max-Age" in str(answer.cookie)) == (["update"], True)
    answer = browser.get("/change")
    assert (answer.commands, "Max-Age" in str(answer.cookie)) == (["find", "update"], True)
    clock.advance(minutes=6)
    answer = browser.get()
    assert (answer.commands, "Max-Age" in str(answer.cookie)) == (["find", "update"], True)
    app.config["SESSION_REFRESH_EACH_REQUEST"] = False
    clock.advance(minutes=6)
    assert browser.get().cookie is None
    assert browser.get("/set").cookie, "Flask sends it after a change all the same"


@pytest.mark.parametrize("minutes", [0, 6])
def test_a_slow_page_does_not_set_the_cookie_from_before_a_login(
    minutes: int, app: Flask, browser: Browser, clock: Clock
) -> None:
    meanwhile: list[Callable[[], Any]] = []

    @on(app)
    def _() -> str:
        seen = str(session["n"])
        while meanwhile:
            meanwhile.pop()()
        return seen

    on(app, "/start")(lambda: session.update(_permanent=True, n=1))
    on(app, "/login")(lambda: session.login("alice", remember=True))
    browser.get("/start")
    clock.advance(minutes=minutes)
    other = Browser(app, browser.cookie)
    meanwhile.append(lambda: other.get("/login"))
    assert browser.get().cookie is None
    assert other.token != browser.token
    assert other.get().body == b"1"


def test_what_was_permanent_before_a_clear_is_so_no_more(app: Flask, browser: Browser) -> None:
    app.before_request(lambda: session.__setattr__("permanent", True))

    @on(app, "/login")
    def _() -> bool:
        session.clear()
        session.login("alice")
        return session.permanent

    answer = browser.get("/login")
    assert (answer.body, "Max-Age" in str(answer.cookie)) == (b"False", False)


@pytest.mark.also_sealed
def test_a_permanent_session_is_a_remembered_one(
    app: Flask, browser: Browser, store: MongoStore
) -> None:
    on(app, "/fill")(lambda: session.update(n=1))
    on(app, "/last")(lambda: session.__setattr__("permanent", True))
    on(app, "/login")(lambda: session.login("alice", remember="remember" in request.args))
    on(app, "/forget")(lambda: session.pop("_permanent"))
    on(app)(lambda: str((session.permanent, "_permanent" in session)))

    def state() -> tuple[str, list[bool]]:
        return browser.get().body.decode(), [info.remembered for info in store.sessions()]

    browser.get("/fill")
    assert state() == ("(False, False)", [False])
    browser.get("/last")
    assert state() == ("(True, True)", [True])
    assert "Max-Age" not in str(browser.get("/login").cookie)
    assert state() == ("(False, False)", [False])
    assert "Max-Age" in str(browser.get("/login?remember").cookie)
    assert state() == ("(True, True)", [True])
    browser.get("/forget")
    assert state() == ("(False, False)", [False])


@pytest.mark.parametrize("is_within", [False, True])
def test_permanent_may_change_its_mind_again_and_again(
    app: Flask, browser: Browser, store: MongoStore, *, is_within: bool
) -> None:
    if is_within:
        inner = conforming(partial(Flask.wsgi_app, app))
        app.wsgi_app = SessionMiddleware(inner, {}, store=store)  # type: ignore[method-assign]
    modified = []

    @on(app)
    def _() -> None:
        session.permanent = "lasts" in request.args

    app.teardown_request(lambda _: modified.append(session.modified))
    for query in ("lasts", "ends", "lasts", "ends", "lasts", "ends"):
        cookie = browser.get(f"/?{query}").cookie
        assert ("Max-Age" in str(cookie)) is (query == "lasts")
        assert cookie is not None
    assert is_within or all(modified)  # The middleware stores after Flask has ended the request.


@pytest.mark.parametrize("token", ["", "A" * 43], ids=["no cookie", "a dead one"])
@pytest.mark.parametrize("fails", [True, False])
def test_a_login_that_fails_sends_no_cookie(
    app: Flask, browser: Browser, token: str, *, fails: bool
) -> None:
    """A dead token, or none, would take the place of what the browser has got meanwhile."""

    @on(app)
    def _() -> None:
        session.clear()
        session.permanent = True
        if fails:
            session["user"] = 7
            raise KeyError
        del session["_permanent"]

    app.config["PROPAGATE_EXCEPTIONS"] = False
    browser.cookie = f"mongosession={token}" if token else ""
    assert browser.get().cookie is None


@pytest.mark.parametrize(
    ("config", "cookie"),
    [
        ({"SESSION_COOKIE_DOMAIN": "example.com:443"}, "Domain=example.com;"),
        ({"APPLICATION_ROOT": "/café"}, "Path=/caf%C3%A9;"),
        ({"SESSION_COOKIE_PATH": "/a;b"}, "Path=/a%3Bb;"),
        ({"APPLICATION_ROOT": "shop"}, "Path=/;"),
        ({"PERMANENT_SESSION_LIFETIME": timedelta(days=999_999)}, "Max-Age=34560000;"),
    ],
)
def test_what_flask_takes_is_taken(app: Flask, config: dict[str, Any], cookie: str) -> None:
    app.config.update(config)
    on(app)(lambda: session.update(_permanent=True))
    assert cookie in Browser(app).get().cookie + ";"  # type: ignore[operator]


@pytest.mark.parametrize("order", [["permanent", "login"], ["login", "permanent"]])
@pytest.mark.parametrize("before", ["", "/fill", "/last"])
def test_a_login_of_a_permanent_session_is_remembered_in_any_order(
    before: str, order: list[str], app: Flask, browser: Browser, store: MongoStore
) -> None:
    on(app, "/fill")(lambda: session.update(n=1))
    on(app, "/last")(lambda: session.update(_permanent=True))
    acts = {
        "permanent": lambda: session.__setattr__("permanent", True),
        "login": lambda: session.login("alice"),
    }
    on(app, "/login")(lambda: [acts[act]() for act in order])
    if before:
        browser.get(before)
    assert "Max-Age" in str(browser.get("/login").cookie)
    (info,) = store.sessions("alice")
    assert info.remembered
    assert info.data["_permanent"] is True
    assert browser.get("/fill").commands == ["update"], "its token tells the idle time"


def test_a_permanent_session_that_begins_after_a_logout_costs_no_look(
    app: Flask, browser: Browser
) -> None:
    @on(app, "/login")
    def _() -> None:
        session.clear()
        session["user_id"] = 1
        session.permanent = "remember" in request.args

    answer = browser.get("/login?remember")
    assert (answer.commands, "Max-Age" in str(answer.cookie)) == (["insert"], True)
    answer = browser.get("/login")
    assert (answer.commands, "Max-Age" in str(answer.cookie)) == (["delete", "insert"], False)


def test_what_another_application_remembers_stays_so(
    app: Flask, browser: Browser, settings: dict[str, Any], store: MongoStore
) -> None:
    login = SessionMiddleware(on_session(lambda s: s.login("alice", remember=True)), settings,
                              store=store)  # fmt: skip
    on(app)(lambda: session.permanent)
    on(app, "/set")(lambda: session.update(n=session.get("n", 0) + 1))
    other = Browser(login)
    other.get()
    browser.cookie = other.cookie
    answer = browser.get()
    assert (answer.body, answer.commands) == (b"True", ["find"])
    assert "Max-Age" in str(browser.get("/set").cookie)


def test_a_permanent_session_of_version_1_becomes_a_remembered_one(
    app: Flask, browser: Browser, stored: Collection[Any], store: MongoStore
) -> None:
    on(app, "/last")(lambda: session.update(_permanent=True))
    on(app)(lambda: session.permanent)
    browser.get("/last")
    stored.update_one({}, {"$unset": {"remember": 1}})
    assert "Max-Age" in str(browser.get().cookie)
    assert [info.remembered for info in store.sessions()] == [True]
    assert browser.get().commands == ["find"]


@pytest.mark.also_sealed
def test_permanent_costs_no_write_where_it_is_already(app: Flask, browser: Browser) -> None:
    @app.before_request
    def always() -> None:
        session.permanent = True

    on(app)(lambda: session.get("a"))
    assert browser.get().commands == ["insert"]
    assert browser.get().commands == ["find"]


def test_permanent_before_each_request_costs_no_look(
    app: Flask, browser: Browser, store: MongoStore
) -> None:
    @app.before_request
    def keep() -> None:
        session.permanent = True

    on(app, "/set")(lambda: session.update(value=request.args["value"]))
    on(app, "/idle")(lambda: None)
    assert browser.get("/set?value=1").commands == ["insert"]
    assert browser.get("/set?value=2").commands == ["update"]
    assert browser.get("/idle").commands == ["find"]  # The token may say what was once so.
    (known,) = store.sessions()
    assert store.revoke(known.id) == 1
    answer = browser.get("/set?value=3")  # A session begins, and is permanent as well.
    assert (answer.commands, "Max-Age" in str(answer.cookie)) == (
        ["update", "find", "insert"],
        True,
    )
    (known,) = store.sessions()
    assert known.remembered


@pytest.mark.parametrize("anew", ["/first", "/permanent"])
def test_no_longer_permanent_reaches_the_browser_whatever_the_token_says(
    app: Flask, browser: Browser, store: MongoStore, anew: str
) -> None:
    on(app, "/first")(lambda: session.update(a=1))
    on(app, "/permanent")(lambda: session.update(a=2, _permanent=True))

    @on(app, "/passing")
    def _() -> None:
        session["a"] = 3
        session.permanent = False

    for path in (anew, "/passing", "/permanent"):
        browser.get(path)
    (known,) = store.sessions()
    assert known.remembered
    cookie = browser.get("/passing").cookie
    assert cookie is not None, "else the browser keeps the lasting cookie"
    assert "Max-Age" not in str(cookie)
    (known,) = store.sessions()
    assert not known.remembered
    assert browser.get("/passing").cookie is None


@pytest.mark.parametrize("begins_permanent", [True, False])
def test_the_last_word_on_permanent_counts(
    begins_permanent: bool, app: Flask, browser: Browser, store: MongoStore
) -> None:
    """Also where a request says nothing else, and the token tells how the session began."""

    @on(app)
    def _() -> None:
        session.permanent = "permanent" in request.args
        if "set" in request.args:
            session["n"] = 1

    browser.get("/?set&permanent" if begins_permanent else "/?set")
    for path, is_permanent in (("/", False), ("/?permanent", True), ("/", False)):
        browser.get(path)
        assert [info.remembered for info in store.sessions()] == [is_permanent]


def test_an_ended_permanent_session_gets_no_cookie(
    app: Flask, browser: Browser, store: MongoStore
) -> None:
    @on(app)
    def _() -> None:
        session.permanent = True
        store.revoke(session.id or "")
        session["a"] = 1

    on(app, "/set")(lambda: session.update(b=1))
    browser.get("/set")
    assert browser.get().cookie is None


def test_the_lifetime_of_flask_is_the_idle_time(
    settings: dict[str, Any], stored: Collection[Any]
) -> None:
    app = flask_app(MongoSessionInterface(settings), PERMANENT_SESSION_LIFETIME=3600)
    on(app)(lambda: session.update(a=1))
    Browser(app).get()
    (document,) = stored.find()
    assert document["expires_at"] - document["seen_at"] == timedelta(hours=1)


@pytest.mark.parametrize("permanent", [True, False])
def test_the_lifetime_of_flask_is_that_of_now(
    permanent: bool, app: Flask, browser: Browser, store: MongoStore, clock: Clock
) -> None:
    on(app, "/set")(lambda: session.update(a=1, _permanent=permanent))
    on(app)(lambda: session.get("a"))
    app.permanent_session_lifetime = timedelta(days=20)
    browser.get("/set")
    clock.advance(days=19)
    assert [info.data["a"] for info in store.sessions()] == [1], "the store knows it too"
    assert store.retrieve(browser.token)
    assert browser.get().body == b"1"
    clock.advance(hours=2)
    app.permanent_session_lifetime = timedelta(hours=1)
    assert not list(store.sessions())
    assert browser.get().body == b"None"


def test_what_a_hook_says_of_the_lifetime_counts_in_the_same_request(
    app: Flask, browser: Browser, store: MongoStore, clock: Clock
) -> None:
    @app.before_request
    def five_minutes() -> None:
        session.permanent = True
        app.permanent_session_lifetime = timedelta(minutes=5)

    on(app)(lambda: session.update(n=session.get("n", 0) + 1))
    for _ in range(2):
        assert "Max-Age=300;" in str(browser.get().cookie)
        (info,) = store.sessions()
        assert info.expires_at - clock() == timedelta(minutes=5)


def test_the_times_of_a_given_store_come_before_the_lifetime_of_flask(
    settings: dict[str, Any], clock: Clock
) -> None:
    times = {"session_expires": "2 hours", "session_remember": "5 days"}
    store = MongoStore(settings | times, clock=clock)
    app = flask_app(MongoSessionInterface(store=store), PERMANENT_SESSION_LIFETIME=60)

    @on(app)
    def _() -> None:
        session["a"] = 1
        session.permanent = "permanent" in request.args

    Browser(app).get()
    assert [info.expires_at - clock() for info in store.sessions()] == [timedelta(hours=2)]
    assert f"Max-Age={5 * 24 * 3600};" in str(Browser(app).get("/?permanent").cookie)
    store.close()


def test_session_remember_is_the_idle_time_of_permanent_sessions(settings: dict[str, Any]) -> None:
    app = flask_app(
        MongoSessionInterface(settings | {"session_remember": "30 days"}),
        PERMANENT_SESSION_LIFETIME=60,
    )
    on(app)(lambda: session.update(_permanent=True))
    assert f"Max-Age={30 * 24 * 3600};" in str(Browser(app).get().cookie)


@pytest.mark.parametrize("lifetime", [0, "soon", timedelta(-1)])
def test_a_bad_lifetime_is_refused(lifetime: Any, settings: dict[str, Any]) -> None:
    app = flask_app(None, PERMANENT_SESSION_LIFETIME=lifetime)
    with pytest.raises(
        (SettingsError, TypeError), match=r"PERMANENT_SESSION_LIFETIME|timedelta seconds"
    ):
        MongoSessionInterface(settings).init_app(app)


def test_the_lifetime_of_flask_may_be_longer_than_that_of_any_cookie(
    settings: dict[str, Any],
) -> None:
    interface = MongoSessionInterface(settings)
    app = flask_app(interface, PERMANENT_SESSION_LIFETIME=timedelta(days=3650))
    on(app)(lambda: session.update(_permanent=True))
    assert f"Max-Age={400 * 24 * 3600};" in str(Browser(app).get().cookie)


def test_session_expires_comes_before_the_lifetime_of_flask(settings: dict[str, Any]) -> None:
    app = flask_app(MongoSessionInterface(settings | {"session_expires": "2 hours"}))

    @on(app)
    def _() -> None:
        session["a"] = 1
        session.permanent = "permanent" in request.args

    assert "Max-Age" not in str(Browser(app).get().cookie)
    assert "Max-Age=7200;" in str(Browser(app).get("/?permanent").cookie)


def test_the_settings_may_be_in_the_config_of_the_application(
    settings: dict[str, Any], stored: Collection[Any]
) -> None:
    config = {key.upper(): value for key, value in settings.items()}
    others = {"SESSION_TYPE": "redis", "SESSION_PROTECTION": "strong", "SESSION_REDIS": object()}
    app = flask_app(MongoSessionInterface(), SESSION_NAME="sid", **config, **others)
    on(app)(lambda: session.update(a=1))
    assert str(Browser(app).get().cookie).startswith("sid=")
    assert stored.count_documents({}) == 1


def test_flasks_own_settings_of_the_cookie_count(settings: dict[str, Any]) -> None:
    app = flask_app(
        MongoSessionInterface(settings),
        SESSION_COOKIE_NAME="sid",
        SESSION_COOKIE_DOMAIN="example.com",
        SESSION_COOKIE_PATH="/shop",
        SESSION_COOKIE_HTTPONLY=False,
        SESSION_COOKIE_SECURE=True,
        SESSION_COOKIE_SAMESITE="Strict",
        SESSION_COOKIE_PARTITIONED=True,
    )
    on(app)(lambda: session.update(a=1))
    name, *attributes = str(Browser(app).get().cookie).split("; ")
    assert name.startswith("sid=")
    assert sorted(attributes) == [
        "Domain=example.com",
        "Partitioned",
        "Path=/shop",
        "SameSite=Strict",
        "Secure",
    ]


def test_what_flask_leaves_at_its_default_is_left_to_us(settings: dict[str, Any]) -> None:
    app = flask_app(MongoSessionInterface(settings), APPLICATION_ROOT="/shop")
    on(app)(lambda: session.update(a=1))
    answer = Browser(app, environ={"wsgi.url_scheme": "https", "HTTP_HOST": "example.com"}).get()
    name, *attributes = str(answer.cookie).split("; ")
    assert name.startswith("__Secure-mongosession=")
    assert sorted(attributes) == ["HttpOnly", "Path=/shop", "SameSite=Lax", "Secure"]


def test_a_name_among_the_defaults_of_an_application_is_no_default_of_flask(
    settings: dict[str, Any],
) -> None:
    class Shop(Flask):
        default_config = Flask.default_config | {"SESSION_COOKIE_NAME": "shop_sid"}  # type: ignore[assignment, operator]

    app = Shop("shop")
    app.session_interface = MongoSessionInterface(settings)
    on(app)(lambda: session.update(a=1))
    assert str(Browser(app).get().cookie).startswith("shop_sid=")


def test_our_settings_come_before_those_of_flask(settings: dict[str, Any]) -> None:
    interface = MongoSessionInterface(settings | {"session_name": "ours"})
    app = flask_app(interface, SESSION_COOKIE_NAME="theirs")
    on(app)(lambda: session.update(a=1))
    assert str(Browser(app).get().cookie).startswith("ours=")


@pytest.mark.parametrize(
    "bad", [{}, {"mongodb_session_db": "a", "session_nmae": "x"}, {"session_expires": "soon"}]
)
def test_bad_settings_are_refused_at_once(bad: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        MongoSessionInterface(bad)


def test_bad_settings_in_the_config_are_refused_at_the_first_request() -> None:
    app = flask_app(MongoSessionInterface(), TESTING=True, MONGODB_SESION_DB="myapp")
    with pytest.raises(SettingsError, match="did you mean mongodb_session_db"):
        app.test_client().get("/")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"MONGODB_SESION_DB": "myapp"}, "mongodb_session_db"),
        ({"MONGODB_SESSION_DB": "a", "SESSION_COOKIE_NAME": "__Host-x", "APPLICATION_ROOT": "/x"},
         "session_name"),
        ({"MONGODB_SESSION_DB": "a", "SESSION_COOKIE_DOMAIN": "http://x"}, "session_domain"),
    ],
)  # fmt: skip
def test_init_app_refuses_bad_settings_at_once(config: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        MongoSessionInterface().init_app(flask_app(None, **config))


def test_init_app_makes_it_the_interface(settings: dict[str, Any]) -> None:
    app = flask_app(None, **{key.upper(): value for key, value in settings.items()})
    sessions = MongoSessionInterface()
    sessions.init_app(app)
    assert app.session_interface is sessions


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([Flask("shop")], r"init_app\(app\)"),
        ([MongoStore({"mongodb_session_db": "a"})], "mapping"),
    ],
)
def test_wrong_arguments_say_so(arguments: list[Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        MongoSessionInterface(*arguments)
    with pytest.raises(TypeError, match="class MongoStore"):
        MongoSessionInterface(store=MongoStore)  # type: ignore[arg-type]


def test_a_class_in_place_of_an_interface_is_told_so() -> None:
    app = flask_app(MongoSessionInterface, TESTING=True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be MongoSessionInterface\(\), not the class"):
        app.test_client().get("/")


def test_one_interface_serves_several_applications(mongodb_uri: str, database: str) -> None:
    sessions = MongoSessionInterface()

    def create_app(name: str, **config: Any) -> Flask:
        app = flask_app(
            sessions,
            MONGODB_HOST=mongodb_uri,
            MONGODB_SESSION_DB=database,
            MONGODB_SESSION_COLL=name,
            SESSION_COOKIE_NAME=f"{name}_sid",
            **config,
        )
        on(app)(lambda: session.update(n=session.get("n", 0) + 1))
        on(app, "/n")(lambda: session["n"])
        return app

    one, two = create_app("one"), create_app("two", PERMANENT_SESSION_LIFETIME=60)
    for name, app in {"one": one, "two": two, "one ": one}.items():
        browser = Browser(app)
        assert str(browser.get().cookie).startswith(f"{name.strip()}_sid=")
        browser.get()
        assert browser.get("/n").body == b"2"
    client: MongoClient[Any]
    with MongoClient(mongodb_uri) as client:
        assert client[database]["one"].count_documents({}) == 2
        assert client[database]["two"].count_documents({}) == 1
    application = weakref.ref(two)
    del two, app, browser
    gc.collect()
    assert application() is None, "the interface does not keep an application"
    assert len(sessions._exchanges) == 1


def test_two_first_requests_at_once_share_a_store(settings: dict[str, Any]) -> None:
    app, sessions = Flask("shop"), MongoSessionInterface(settings)
    made = []

    class Waiting:
        """A lock that another request had until now, which has made what it is for."""

        def __enter__(self) -> None:
            sessions._lock = Lock()
            made.append(sessions._exchanges_of(app))

        def __exit__(self, *_: object) -> None: ...

    sessions._lock = Waiting()  # type: ignore[assignment]
    assert sessions._exchanges_of(app) is made[0]


# The hooks of the interface.


class ByTenant(MongoSessionInterface):
    """One cookie for each host, and none for the addresses of an API."""

    def get_cookie_name(self, app: Flask) -> str:
        return f"sid_{request.host.partition('.')[0]}"

    def get_cookie_domain(self, app: Flask) -> str:
        return request.host

    def should_set_cookie(self, app: Flask, session: Any) -> bool:
        return "api" not in request.path


def test_the_hooks_are_asked_for_each_request(settings: dict[str, Any], store: MongoStore) -> None:
    app = flask_app(ByTenant(settings, store=store))
    on(app)(lambda: session.update(n=session.get("n", 0) + 1))
    on(app, "/api")(lambda: session.update(n=1, _permanent=True))
    for tenant in ("red", "blue", "red"):
        https = {"wsgi.url_scheme": "https", "HTTP_HOST": f"{tenant}.example"}
        browser = Browser(app, environ=https)
        name, *attributes = str(browser.get().cookie).split("; ")
        assert name.startswith(f"sid_{tenant}=")
        assert f"Domain={tenant}.example" in attributes
        assert browser.get().commands == ["find", "update"]
        assert browser.get("/api").cookie is None
    assert {info.data["n"] for info in store.sessions()} == {1}


def test_a_hook_that_always_wants_a_cookie_gets_none_for_a_token_that_may_be_dead(
    settings: dict[str, Any], store: MongoStore
) -> None:
    class Always(MongoSessionInterface):
        def should_set_cookie(self, app: Flask, session: Any) -> bool:
            return True

    app = flask_app(Always(settings, store=store))
    on(app, "/set")(lambda: session.update(n=1, _permanent=True))
    on(app)(lambda: session["n"])
    browser = Browser(app)
    assert browser.get("/set").cookie
    assert browser.get().cookie is None


def test_what_flask_says_of_the_cookie_counts_when_it_is_sent(app: Flask) -> None:
    @app.before_request
    def strict() -> None:
        app.config["SESSION_COOKIE_SAMESITE"] = "Strict"

    on(app)(lambda: session.update(a=1))
    assert "SameSite=Strict" in str(Browser(app).get().cookie)
    app.before_request_funcs.clear()
    app.config["SESSION_COOKIE_SAMESITE"] = None
    assert "SameSite=Lax" in str(Browser(app).get().cookie)


def test_a_logout_expires_the_cookie_that_the_settings_name(app: Flask, browser: Browser) -> None:
    on(app, "/set")(lambda: session.update(a=1))
    on(app)(lambda: session.clear())
    app.config["SESSION_COOKIE_NAME"] = "sid"
    app.config["SESSION_COOKIE_PATH"] = "/shop"
    browser.get("/set")
    cookie = str(browser.get().cookie)
    assert cookie.startswith("sid=;")
    assert "Path=/shop" in cookie


def test_false_is_no_domain(settings: dict[str, Any]) -> None:
    app = flask_app(MongoSessionInterface(settings), SESSION_COOKIE_DOMAIN=False)
    on(app)(lambda: session.update(a=1))
    assert "Domain" not in str(Browser(app).get().cookie)


# What is built on sessions: messages, tests, streams, blueprints, contexts.


@pytest.mark.also_sealed
def test_messages_are_flashed_once(app: Flask, visitor: FlaskClient) -> None:
    @on(app, "/flash")
    def _() -> None:
        flash("Welcome")
        flash("Oops", "error")

    on(app, "/all")(lambda: get_flashed_messages(with_categories=True))
    on(app, "/errors")(lambda: get_flashed_messages(category_filter=["error"]))
    visitor.get("/flash")
    assert visitor.get("/all").text == "[['message', 'Welcome'], ['error', 'Oops']]"
    assert visitor.get("/all").text == "[]"
    visitor.get("/flash")
    assert visitor.get("/errors").text == "['Oops']"


def test_a_message_is_there_in_the_request_that_flashed_it(app: Flask) -> None:
    with app.test_request_context():
        assert not session.modified
        flash("Zap")
        assert session.modified
        assert get_flashed_messages(with_categories=True) == [("message", "Zap")]


def test_a_test_opens_and_saves_a_session_itself(app: Flask, visitor: FlaskClient) -> None:
    on(app)(lambda: session["foo"])
    with visitor.session_transaction() as before:
        assert (before.new, len(before)) == (True, 0)
        before["foo"] = [42]
    assert visitor.get("/").text == "[42]"
    with visitor.session_transaction() as after:
        assert after == {"foo": [42]}
        after.clear()
    assert visitor.get_cookie("mongosession") is None


def test_a_test_looks_into_the_session_after_a_request(app: Flask, visitor: FlaskClient) -> None:
    on(app)(lambda: session.update(user="alice"))
    on(app, "/other")(lambda: "untouched")
    with visitor:
        visitor.get("/")
        assert session["user"] == "alice"
        visitor.get("/other")
        assert session["user"] == "alice"


def test_a_transaction_leaves_the_context_of_the_last_request(
    app: Flask, visitor: FlaskClient
) -> None:
    with visitor:
        visitor.get("/none")
        mine = request._get_current_object()  # type: ignore[attr-defined]
        with visitor.session_transaction():
            assert request._get_current_object() is mine  # type: ignore[attr-defined]


def test_a_redirect_finds_what_was_set_before_it(app: Flask, visitor: FlaskClient) -> None:
    @on(app, "/login", methods=["POST"])
    def _() -> Any:
        session["user"] = "alice"
        return redirect("/")

    on(app)(lambda: session["user"])
    assert visitor.post("/login", follow_redirects=True).text == "alice"


@pytest.mark.also_sealed
def test_a_stream_reads_and_changes_the_session(app: Flask, browser: Browser) -> None:
    @on(app)
    def _() -> Response:
        session["n"] = session.get("n", 0) + 1

        def stream() -> Iterator[str]:
            yield str(session["n"])
            session["late"] = session.get("late", 0) + 10

        return Response(stream_with_context(stream()))

    on(app, "/late")(lambda: session["late"])
    assert [browser.get().body for _ in range(2)] == [b"1", b"2"]
    assert browser.get("/late").body == b"20"


@pytest.mark.parametrize("ends", [False, True])
def test_late_changes_of_a_stream_that_raises_are_dropped(
    app: Flask, browser: Browser, stored: Collection[Any], ends: bool
) -> None:
    @on(app)
    def _() -> Response:
        session["n"] = 1

        def stream() -> Iterator[str]:
            yield "begun"
            session["late"] = 1
            if ends:
                session.destroy()
            raise RuntimeError("no more")

        return Response(stream_with_context(stream()))

    on(app, "/begin")(lambda: session.update(begun=True))
    browser.get("/begin")
    with pytest.raises(RuntimeError, match="no more"):
        browser.get()
    found = [document["data"] for document in stored.find({"v": 1})]
    assert found == ([] if ends else [{"begun": True, "n": 1}])


def test_a_stream_is_closed_once_and_the_session_stored_if_that_fails(
    app: Flask, browser: Browser, stored: Collection[Any]
) -> None:
    closed: list[int] = []

    class Stream:
        def __iter__(self) -> Iterator[bytes]:
            yield from (b"one", b"two")

        def close(self) -> None:
            closed.append(1)
            session["late"] = True
            raise OSError("disk full")

    stream = Stream()

    @on(app)
    def _() -> Response:
        session["n"] = 1
        stream.close = copy_current_request_context(stream.close)  # type: ignore[method-assign]
        return Response(stream)

    with pytest.raises(OSError, match="disk full"):
        browser.get()
    assert closed == [1]
    assert stored.find_one()["data"] == {"n": 1, "late": True}


def test_a_file_is_handed_to_the_server_as_it_is(app: Flask, browser: Browser) -> None:
    from flask import send_file

    @on(app)
    def _() -> Response:
        session["n"] = 1
        return send_file(io.BytesIO(b"tea"), "text/plain")

    answer = browser.get()
    assert answer.body == b"tea"
    assert browser.token


@pytest.mark.parametrize("kind", ["a file", "a stream"])
@pytest.mark.parametrize("logs_out", [False, True])
def test_late_changes_beside_what_is_passed_to_the_server_as_it_is_are_written(
    app: Flask, browser: Browser, stored: Collection[Any], kind: str, logs_out: bool
) -> None:
    from flask import send_file

    def late(_: object = None) -> None:
        if request.path == "/":
            session.clear() if logs_out else session.update(late=2)

    def items() -> Iterator[bytes]:
        yield b"tea"
        late()

    @on(app)
    def _() -> Response:
        if kind == "a file":
            return send_file(io.BytesIO(b"tea"), "text/plain")
        return Response(stream_with_context(items()), direct_passthrough=True)

    if kind == "a file":
        app.teardown_request(late)
    on(app, "/set")(lambda: session.update(n=1))
    browser.get("/set")
    assert browser.get().body == b"tea"
    assert [one["data"] for one in stored.find()] == [{"n": 1, "late": 2}] * (not logs_out)


def test_a_late_change_that_fails_keeps_no_function_of_the_application_from_its_work(
    app: Flask, visitor: FlaskClient, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flask import send_file

    given_back: list[object] = []

    @app.teardown_request
    def late(_: object) -> None:
        if request.path == "/":
            session["late"] = 2
            monkeypatch.setattr(store, "flush", fail)

    def fail(_: object) -> None:
        raise StoreError("MongoDB is down")

    app.teardown_appcontext(given_back.append)
    on(app)(lambda: send_file(io.BytesIO(b"tea"), "text/plain"))
    on(app, "/set")(lambda: session.update(n=1))
    visitor.get("/set")
    given_back.clear()
    with pytest.raises(StoreError):
        visitor.get("/")
    assert given_back == [None]


def test_blueprints_and_async_views_share_the_session(app: Flask, visitor: FlaskClient) -> None:
    pytest.importorskip("asgiref", reason="Flask needs it for async views")
    cart = Blueprint("cart", __name__, url_prefix="/cart")

    @cart.get("/")
    async def add() -> str:
        session["cart"] = [*session.get("cart", ()), "tea"]
        return str(len(session["cart"]))

    app.register_blueprint(cart)
    on(app)(lambda: session["cart"])
    assert [visitor.get("/cart/").text for _ in range(2)] == ["1", "2"]
    assert visitor.get("/").text == "['tea', 'tea']"


def test_a_context_within_a_context_leaves_the_outer_session_alone(
    app: Flask, browser: Browser
) -> None:
    @on(app)
    def _() -> int:
        session["n"] = session.get("n", 0) + 1
        with app.test_request_context():
            session["n"] = 100
        with app.request_context(request.environ):
            session.get("n")
        return session["n"]

    assert [browser.get().body for _ in range(2)] == [b"1", b"2"]


def test_an_application_needs_no_secret_key(settings: dict[str, Any]) -> None:
    app = flask_app(MongoSessionInterface(settings))
    on(app)(lambda: session.update(a=1))
    assert Browser(app).get().status == "200 OK"


def test_a_middleware_of_ours_around_it_does_the_commit(
    settings: dict[str, Any], store: MongoStore
) -> None:
    app = Flask("inner")
    app.session_interface = MongoSessionInterface(settings)
    app.wsgi_app = SessionMiddleware(conforming(app.wsgi_app), settings, store=store)

    @on(app)
    def _() -> int:
        assert session == request.environ["mongosession"]
        session["n"] = session.get("n", 0) + 1
        return session["n"]

    browser = Browser(app)
    assert [browser.get().body for _ in range(2)] == [b"1", b"2"]
    answer = browser.get()
    assert answer.commands == ["find", "update"]
    assert answer.all("Vary") == ["Cookie"]


def test_permanent_means_remembered_within_a_middleware_too(
    settings: dict[str, Any], store: MongoStore
) -> None:
    app = Flask("inner")
    app.session_interface = MongoSessionInterface(settings)
    lasting = settings | {"session_remember": "3 days"}
    app.wsgi_app = SessionMiddleware(conforming(app.wsgi_app), lasting, store=store)
    on(app)(lambda: session.update(n=session.get("n", 0) + 1, _permanent=True))
    browser = Browser(app)
    assert f"Max-Age={3 * 24 * 3600};" in str(browser.get().cookie)
    assert [info.remembered for info in store.sessions()] == [True]


# Requests that fail.


def failing(app: Flask) -> None:
    on(app, "/set")(lambda: session.update(n=1))
    on(app)(lambda: session.get("n"))

    @on(app, "/break")
    def _() -> None:
        session["n"] = 2
        raise ZeroDivisionError

    @on(app, "/break/logout")
    def _() -> None:
        session.clear()
        raise ZeroDivisionError

    on(app, "/500")(lambda: (str(session.update(n=3)), 500))
    on(app, "/400")(lambda: (str(session.update(n=4)), 400))


@pytest.mark.parametrize("path", ["/break", "/500"])
def test_a_failed_request_changes_nothing(path: str, app: Flask, browser: Browser) -> None:
    failing(app)
    browser.get("/set")
    assert browser.get(path).status == "500 INTERNAL SERVER ERROR"
    assert browser.get().body == b"1"


def test_a_failed_request_sets_no_cookie_of_a_permanent_session(
    app: Flask, browser: Browser
) -> None:
    on(app, "/set")(lambda: session.update(n=1, _permanent=True))
    on(app)(lambda: (str(session["n"]), 500))
    on(app, "/login")(lambda: (str(session.login("alice", remember=True)), 500))
    browser.get("/set")
    assert browser.get().cookie is None
    assert browser.get("/login").cookie is None


def test_a_request_that_is_refused_may_change_the_session(app: Flask, browser: Browser) -> None:
    failing(app)
    assert browser.get("/400").status == "400 BAD REQUEST"
    assert browser.get().body == b"4"


def test_the_page_of_an_error_sees_the_session_and_changes_nothing(
    app: Flask, browser: Browser
) -> None:
    failing(app)

    @app.errorhandler(500)
    def page(error: Exception) -> tuple[str, int]:
        session["seen"] = True
        return f"broken at {session['n']}", 500

    browser.get("/set")
    assert browser.get("/break").body == b"broken at 2"
    assert browser.get().body == b"1"


def test_a_handled_error_is_no_failure(app: Flask, browser: Browser) -> None:
    failing(app)
    app.register_error_handler(ZeroDivisionError, lambda error: ("try another number", 422))
    browser.get("/set")
    assert browser.get("/break").status.startswith("422")
    assert browser.get().body == b"2"


def test_a_logout_is_carried_out_though_the_request_fails(app: Flask, browser: Browser) -> None:
    failing(app)
    browser.get("/set")
    old = browser.cookie
    assert "Max-Age=0" in str(browser.get("/break/logout").cookie)
    assert Browser(app, old).get().body == b"None"


def test_a_logout_is_carried_out_though_the_error_is_passed_on(
    app: Flask, visitor: FlaskClient, stored: Collection[Any]
) -> None:
    failing(app)
    app.testing = True
    visitor.get("/set")
    with pytest.raises(ZeroDivisionError):
        visitor.get("/break")
    assert [one["data"] for one in stored.find()] == [{"n": 1}]
    with pytest.raises(ZeroDivisionError):
        visitor.get("/break/logout")
    assert stored.count_documents({}) == 0


class Interruption(BaseException):
    """What ends a request and is no error, as the timeouts of gevent and gunicorn are."""


@pytest.mark.parametrize("testing", [True, False])
@pytest.mark.parametrize("error", [Interruption, StoreError("of another store")])
def test_a_logout_is_carried_out_whatever_ends_the_request(
    error: Any, testing: bool, app: Flask, visitor: FlaskClient, stored: Collection[Any]
) -> None:
    app.testing = testing

    @on(app)
    def _() -> None:
        session.clear()
        raise error

    on(app, "/set")(lambda: session.update(n=1))
    visitor.get("/set")
    with suppress(Interruption, StoreError):
        assert visitor.get("/").status_code == 503
    assert stored.count_documents({}) == 0


def test_a_logout_is_carried_out_though_the_end_of_the_request_fails_too(
    app: Flask, visitor: FlaskClient, stored: Collection[Any]
) -> None:
    @on(app)
    def _() -> str:
        session.clear()
        g.is_broken = True
        return "out"

    def fail(response: Any) -> Any:
        if "is_broken" in g:
            raise ConnectionError
        return response

    app.after_request(fail)
    app.teardown_request(fail)
    on(app, "/set")(lambda: session.update(n=1))
    visitor.get("/set")
    with pytest.raises(ConnectionError):
        visitor.get("/")
    assert stored.count_documents({}) == 0


def test_a_thread_that_fails_with_a_copy_of_the_context_fails_no_request(
    app: Flask, browser: Browser
) -> None:
    @on(app)
    def _() -> str:
        session.clear()
        flash("Bye")

        @copy_current_request_context
        def send_a_mail() -> None:
            raise ConnectionError

        def work() -> None:
            with suppress(ConnectionError):
                send_a_mail()

        thread = Thread(target=work)
        thread.start()
        thread.join()
        return "out"

    on(app, "/set")(lambda: session.update(n=1))
    on(app, "/messages")(get_flashed_messages)
    browser.get("/set")
    assert browser.get().cookie is not None
    assert browser.get("/messages").body == b"['Bye']"


def nested(app: Flask, kind: str) -> None:
    """Fail in a context within that of the request."""
    if kind == "an application context":
        with app.app_context():
            raise ConnectionError
    elif kind == "another application":
        on(other := flask_app(app.session_interface, TESTING=True))(lambda: 1 / 0)  # type: ignore[arg-type]
        other.test_client().get("/")
    else:
        copy_current_request_context(lambda: [].pop())()


@pytest.mark.parametrize("logs", ["in", "out"])
@pytest.mark.parametrize(
    "kind", ["an application context", "another application", "a copy of the context"]
)
def test_a_context_that_fails_within_the_request_fails_no_request(
    app: Flask, browser: Browser, kind: str, logs: str
) -> None:
    @on(app)
    def _() -> str:
        session.clear()
        if logs == "in":
            session["tea"] = "Assam"
            session.login("alice")
        with suppress(ConnectionError, ZeroDivisionError, IndexError):
            nested(app, kind)
        return "on we go"

    on(app, "/set")(lambda: session.update(n=1))
    on(app, "/who")(lambda: f"{session.owner} {dict(session)}")
    browser.get("/set")
    assert browser.get().cookie is not None
    who = b"alice {'tea': 'Assam'}" if logs == "in" else b"None {}"
    assert browser.get("/who").body == who


def test_what_cannot_be_stored_fails_the_request(app: Flask, browser: Browser) -> None:
    failing(app)
    on(app, "/bad")(lambda: session.setdefault("list", []).append({1}))
    browser.get("/set")
    assert browser.get("/bad").status.startswith("500")
    assert browser.get().body == b"1"


# MongoDB down.


def down(**config: Any) -> Flask:
    app = flask_app(MongoSessionInterface(DOWN), SECRET_KEY="for extensions", **config)
    on(app)(lambda: session.get("user"))
    on(app, "/write")(lambda: session.update(user="alice"))
    on(app, "/logout")(lambda: session.clear())
    on(app, "/untouched")(lambda: "fine")
    return app


def refused(answer: Answer) -> bytes:
    assert answer.status == "503 SERVICE UNAVAILABLE"
    assert answer.header("Retry-After") == "5"
    assert answer.header("Cache-Control") == "no-store"
    assert answer.header("Vary") == "Cookie"
    assert answer.cookie is None
    assert int(str(answer.header("Content-Length"))) == len(answer.body)
    return answer.body


@pytest.mark.parametrize("path", ["/", "/write", "/logout"])
@pytest.mark.parametrize("cookie", [COOKIE, ""])
@pytest.mark.server  # For seconds of waiting or of work.
def test_mongodb_down_is_a_503(path: str, cookie: str, caplog: pytest.LogCaptureFixture) -> None:
    answer = Browser(down(), cookie).get(path)
    if cookie or path == "/write":
        refused(answer)
        errors = [one for one in caplog.records if one.levelno >= logging.ERROR]
        assert [one.getMessage() for one in errors] == [f"Exception on {path} [GET]"]
    else:
        assert answer.status == "200 OK", "it needs no database"
    assert "t" * 43 not in caplog.text


def test_a_page_that_does_not_use_the_session_is_served() -> None:
    assert Browser(down(), COOKIE).get("/untouched").body == b"fine"


@pytest.mark.parametrize("path", ["/", "/write"])
@pytest.mark.server  # For seconds of waiting or of work.
def test_the_application_may_have_a_page_for_it(path: str) -> None:
    app = down()

    @app.errorhandler(503)
    def page(error: Exception) -> tuple[str, int]:
        return f"Back soon, {session.get('user', 'visitor')}.", 503

    app.register_error_handler(500, lambda error: (f"Broken, {session.get('user')}", 200))
    assert refused(Browser(app, COOKIE).get(path)) == b"Back soon, visitor."


def test_the_503_has_no_header_of_the_body_that_it_replaces(
    app: Flask, store: MongoStore, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise StoreError("is down")

    monkeypatch.setattr(store, "flush", fail)
    on(app)(lambda: session.update(user="alice"))

    @app.after_request
    def compress(response: Response) -> Response:
        response.set_data(gzip.compress(response.get_data()))
        response.headers["Content-Encoding"] = "gzip"
        response.add_etag()
        return response

    answer = browser.get()
    assert b"Service Unavailable" in answer.body
    assert (answer.header("Content-Encoding"), answer.header("ETag")) == (None, None)


@pytest.mark.server  # For seconds of waiting or of work.
def test_a_hook_that_uses_the_session_does_not_hide_it() -> None:
    app = down()

    @app.after_request
    def hook(response: Response) -> Response:
        session.pop("note", None)
        return response

    @on(app, "/other")
    def _() -> None:
        with pytest.raises(StoreError):
            session.get("user")
        raise ZeroDivisionError

    refused(Browser(app, COOKIE).get())
    refused(Browser(app, COOKIE).get("/untouched"))
    refused(Browser(app, COOKIE).get("/other"))


@pytest.mark.server  # For seconds of waiting or of work.
def test_a_page_that_catches_the_error_goes_on_without_a_session() -> None:
    app = down()
    app.register_error_handler(StoreError, lambda error: "no session, but a page")
    answer = Browser(app, COOKIE).get()
    assert (answer.status, answer.body) == ("200 OK", b"no session, but a page")
    refused(Browser(app, COOKIE).get("/write"))


@pytest.mark.parametrize("path", ["/", "/write"])
@pytest.mark.server  # For seconds of waiting or of work.
def test_a_page_for_every_error_is_the_page_for_it_too(path: str) -> None:
    app = down()
    app.register_error_handler(Exception, lambda error: (f"oops, {session.get('user')}", 500))
    assert refused(Browser(app, COOKIE).get(path)) == b"oops, None"


@pytest.mark.parametrize("path", ["/", "/write"])
@pytest.mark.server  # For seconds of waiting or of work.
def test_a_test_is_handed_the_error_itself(path: str) -> None:
    visitor = down(TESTING=True).test_client()
    visitor.set_cookie("mongosession", "t" * 43)
    with pytest.raises(StoreError):
        visitor.get(path)
    with pytest.raises(StoreError), visitor.session_transaction() as mine:
        mine["user"] = "alice"


@pytest.mark.server  # For seconds of waiting or of work.
def test_a_middleware_of_ours_around_it_answers_503_itself() -> None:
    app = Flask("inner")
    app.session_interface = MongoSessionInterface(DOWN)
    on(app)(lambda: session.get("user"))
    app.wsgi_app = SessionMiddleware(conforming(app.wsgi_app), DOWN)
    assert Browser(app, COOKIE).get().status == "503 Service Unavailable"


# Flask-Login and Flask-WTF.


@pytest.fixture
def members(app: Flask) -> Flask:
    """An application with logins, by Flask-Login."""
    login = pytest.importorskip("flask_login")
    manager = login.LoginManager(app)

    class User(login.UserMixin):  # type: ignore[name-defined]
        id = "alice"

    manager.user_loader(lambda name: User() if name == "alice" else None)
    on(app)(lambda: login.current_user.get_id())
    on(app, "/fresh")(lambda: login.login_fresh())
    on(app, "/set")(lambda: session.update(cart=["tea"]))
    on(app, "/cart")(lambda: session.get("cart"))

    @on(app, "/login", methods=["POST"])
    def _() -> None:
        session.login("alice")
        login.login_user(User(), remember="remember" in request.form)

    @on(app, "/logout", methods=["POST"])
    def _() -> None:
        session.clear()
        login.logout_user()

    on(app, "/logout/only", methods=["POST"])(lambda: login.logout_user())
    app.add_url_rule("/members", view_func=login.login_required(members_only))
    return app


def members_only() -> str:
    return "welcome"


@pytest.mark.also_sealed
def test_flask_login_logs_in_and_out(
    members: Flask, browser: Browser, stored: Collection[Any]
) -> None:
    browser.get("/set")
    before = browser.token
    assert browser.get("/members").status.startswith("401")
    post(browser, "/login")
    assert browser.token != before
    assert browser.get("/members").body == b"welcome"
    assert browser.get("/cart").body == b"['tea']"
    assert [one["owner"] for one in stored.find({"data": {"$exists": True}})] == ["alice"]
    post(browser, "/logout")
    assert browser.get().body == b"None"
    assert stored.count_documents({"data": {"$exists": True}}) == 0


def test_logout_user_alone_keeps_the_rest_of_the_session(members: Flask, browser: Browser) -> None:
    post(browser, "/login")
    browser.get("/set")
    post(browser, "/logout/only")
    assert browser.get().body == b"None"
    assert browser.get("/cart").body == b"['tea']"


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
def test_remember_me_outlives_the_session(members: Flask, clock: Clock) -> None:
    visitor = members.test_client()
    visitor.post("/login", data={"remember": "yes"})
    assert visitor.get("/fresh").text == "True"
    clock.advance(days=31)
    assert visitor.get("/").text == "alice"
    assert visitor.get("/fresh").text == "False"
    visitor.post("/logout")
    assert visitor.get_cookie("remember_token") is None
    assert visitor.get("/").text == "None"


@pytest.mark.parametrize(("mode", "user"), [("basic", "alice"), ("strong", "None")])
def test_session_protection(mode: str, user: str, members: Flask) -> None:
    members.config["SESSION_PROTECTION"] = mode
    visitor = members.test_client()
    visitor.post("/login")
    assert visitor.get("/fresh").text == "True"
    other = {"User-Agent": "another browser"}
    assert visitor.get("/", headers=other).text == user
    assert visitor.get("/fresh", headers=other).text == "False"


@pytest.mark.server  # For seconds of waiting or of work.
def test_flask_login_does_not_hide_that_mongodb_is_down() -> None:
    login = pytest.importorskip("flask_login")
    app = down()
    login.LoginManager(app).user_loader(lambda name: None)
    on(app, "/user")(lambda: login.current_user.get_id())
    refused(Browser(app, COOKIE).get("/user"))


def test_flask_wtf_finds_its_token_in_the_session(app: Flask) -> None:
    wtf = pytest.importorskip("flask_wtf")
    csrf = pytest.importorskip("flask_wtf.csrf")
    csrf.CSRFProtect(app)

    class Form(wtf.FlaskForm):  # type: ignore[name-defined]
        pass

    on(app)(lambda: csrf.generate_csrf())
    on(app, "/form", methods=["POST"])(lambda: Form().validate_on_submit())
    alice, mallory = app.test_client(), app.test_client()
    token = alice.get("/").text
    assert alice.post("/form", data={"csrf_token": token}).text == "True"
    assert alice.post("/form").status_code == 400
    mallory.get("/")
    assert mallory.post("/form", data={"csrf_token": token}).status_code == 400


@pytest.mark.also_sealed
def test_a_csrf_token_does_not_survive_a_login(app: Flask) -> None:
    wtf = pytest.importorskip("flask_wtf")
    pytest.importorskip("flask_wtf.csrf").CSRFProtect(app)
    page = "{{ csrf_token() }}"

    @on(app, "/login", methods=["POST"])
    def _() -> str:
        assert wtf.FlaskForm().validate_on_submit()  # It makes a token for its own page.
        session.login("alice")
        return render_template_string(page)

    on(app)(lambda: render_template_string(page))
    on(app, "/set")(lambda: session.update(cart=["tea"]))
    on(app, "/pay", methods=["POST"])(lambda: session["cart"])
    visitor = app.test_client()
    visitor.get("/set")
    known = visitor.get("/").text
    fresh = visitor.post("/login", data={"csrf_token": known}).text
    assert visitor.post("/pay", data={"csrf_token": known}).status_code == 400
    assert visitor.post("/pay", data={"csrf_token": fresh}).text == "['tea']"
    assert visitor.post("/pay", data={"csrf_token": visitor.get("/").text}).text == "['tea']"


def test_the_csrf_token_may_have_another_name(app: Flask, browser: Browser) -> None:
    app.config["WTF_CSRF_FIELD_NAME"] = "other"
    on(app, "/set")(lambda: session.update(other="s", csrf_token="t"))
    on(app, "/login")(lambda: session.login("alice"))
    on(app)(lambda: sorted(session))
    browser.get("/set")
    browser.get("/login")
    assert browser.get().body == b"['csrf_token']"


def test_a_login_in_a_transaction_of_the_test_client(app: Flask, visitor: FlaskClient) -> None:
    on(app)(lambda: session.owner)
    with visitor.session_transaction() as mine:
        mine.login("alice")  # type: ignore[attr-defined]
    assert visitor.get("/").text == "alice"


# WebSockets.


def test_a_view_that_took_the_socket_over_begins_no_session(
    app: Flask, browser: Browser, stored: Collection[Any]
) -> None:
    class Taken(Response):
        """What flask-sock returns: under gunicorn its call ends in StopIteration."""

        def __call__(self, environ: Any, start_response: Any) -> Any:
            raise StopIteration

    @on(app, "/chat", websocket=True)
    def _() -> Response:
        session["last"] = "hello"
        return Taken()

    on(app, "/set")(lambda: session.update(n=1))
    on(app)(lambda: sorted(session))
    handshake = HANDSHAKE | {"HTTP_UPGRADE": "WebSocket"}

    def chat() -> None:
        environ = environ_of("/chat", **handshake)
        if browser.cookie:
            environ["HTTP_COOKIE"] = browser.cookie
        with pytest.raises(StopIteration):
            Flask.wsgi_app(app, environ, lambda *_: None)

    with pytest.warns(SessionWarning, match="no cookie"):
        chat()
    assert stored.count_documents({}) == 0
    browser.get("/set")
    chat()
    assert browser.get().body == b"['last', 'n']"


def test_a_handshake_that_is_refused_is_an_ordinary_request(app: Flask, browser: Browser) -> None:
    @on(app, "/chat", websocket=True)
    def _() -> Any:
        flash("Log in first.")
        return redirect("/")

    on(app)(lambda: get_flashed_messages())
    browser.get("/chat", **HANDSHAKE)
    assert browser.get().body == b"['Log in first.']"


def test_upgrade_alone_is_no_handshake(app: Flask, browser: Browser) -> None:
    """Some proxies send the header with each request."""
    on(app, "/set")(lambda: session.update(n=1))
    on(app, "/out")(lambda: session.clear())
    on(app)(lambda: sorted(session))
    assert browser.get("/set", HTTP_UPGRADE="websocket").cookie is not None
    assert browser.get().body == b"['n']"
    assert "Max-Age=0" in str(browser.get("/out", HTTP_UPGRADE="websocket").cookie)


def test_an_answer_that_takes_the_place_of_a_committed_one_keeps_its_cookie(
    app: Flask, browser: Browser
) -> None:
    @on(app)
    def fill() -> str:
        session["a"] = 1
        return ""

    @on(app, "/read")
    def read() -> str:
        return str(session.get("a"))

    def broken(sender: Flask, **_: Any) -> None:
        raise RuntimeError("after the commit")

    with request_finished.connected_to(broken, app):
        assert browser.get().status.startswith("500")
    assert browser.get("/read").body == b"1"

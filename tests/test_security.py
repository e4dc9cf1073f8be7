"""What docs/security.md says, where no other test says it: each is named by a row of that page."""

from __future__ import annotations

import logging
import os
import random
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from traceback import walk_tb
from typing import Any

import bson
import falcon
import flask
import pytest
from pymongo import MongoClient, monitoring
from pyramid.config import Configurator
from pyramid.response import Response as PyramidResponse

from mongosession_wsgi import MongoStore, Session, SessionMiddleware, StoreError
from mongosession_wsgi.document import Token, id_of
from mongosession_wsgi.exchange import UNAVAILABLE
from mongosession_wsgi.falcon import SessionComponent
from mongosession_wsgi.flask import MongoSessionInterface
from mongosession_wsgi.seal import Seal
from mongosession_wsgi.session import visit_of
from mongosession_wsgi.testing import MemoryStore
from mongosession_wsgi.testing.requests import Clock
from mongosession_wsgi.visit import Outcome

from . import mutants
from .scripted import Scene, refused
from .wsgi import COOKIE, DOWN, KEY, Browser, Response, conforming, on_session

Use = Callable[[Session], Any]
HTTPS = {"wsgi.url_scheme": "https"}


@pytest.fixture
def scene(clock: Clock) -> Scene:
    return Scene(clock)


def log_in(owner: str, **terms: Any) -> Use:
    return lambda session: session.login(owner, **terms)


def rotate(session: Session) -> None:
    session.regenerate()


def log_out(session: Session) -> None:
    session.destroy()


# Tokens.


@pytest.mark.parametrize("sealed", [False, True])
def test_a_token_is_256_bits_of_the_operating_systems_generator(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    given: set[str] = set()

    def urandom(size: int) -> bytes:
        found = real(size)
        given.add(urlsafe_b64encode(found).decode()[:42])
        return found

    real = os.urandom
    monkeypatch.setattr(os, "urandom", urandom)
    monkeypatch.setattr(random, "_urandom", urandom)
    scene, tokens = Scene(clock, session_sealed=sealed), set[str]()
    for act in (lambda session: session.update(a=1), log_in("alice"), rotate):
        for remember in (False, True):
            before = scene.stored({"b": 1}, owner="alice", remember=remember)
            tokens |= {before, str(scene.request(before, act).token)}
    # 42 characters are 252 bits; two of the last one's six say what kind of session it is.
    assert {token[:42] for token in tokens} <= given
    assert len({token[:42] for token in tokens}) == len(tokens) == 10
    assert {len(token) for token in tokens} == {43}


def test_a_cookie_holds_a_token_and_nothing_else(scene: Scene) -> None:
    app = SessionMiddleware(
        on_session(lambda session: session.login("alice", label="Firefox")), {}, store=scene.store
    )
    browser, tokens = Browser(app), []
    for _ in range(3):
        tokens.append(browser.get().token)
        name, _, value = browser.cookie.partition("=")
        assert name == "mongosession"
        assert re.fullmatch("[A-Za-z0-9_-]{43}", value)
    assert len(set(tokens)) == 3


# Times.

EXPIRED: dict[str, tuple[bool, Use]] = {
    "set": (False, lambda session: session.update(b=2)),
    "set after a look": (True, lambda session: session.update(b=2)),
    "rotate": (False, rotate),
    "rotate after a look": (True, rotate),
    "log alice in": (False, log_in("alice")),
    "log bob in": (False, log_in("bob")),
    "log out": (False, log_out),
    "log out after a look": (True, log_out),
}


@pytest.mark.parametrize("what", EXPIRED)
def test_a_session_whose_stored_expiry_has_come_is_found_by_no_command(
    clock: Clock, what: str
) -> None:
    scene = Scene(clock, session_expires="1 hour")
    token = scene.stored({"a": 1}, owner="alice")
    # By the settings of now the session would live for two weeks; the stored expiry counts.
    scene.store = scene.another()
    reads, act = EXPIRED[what]
    before = dict(scene.server.documents)
    session = scene.store.open(token)
    if reads:
        assert session["a"] == 1
    clock.advance(hours=1)
    act(session)
    scene.store.flush(session)
    assert {id_: scene.server.documents.get(id_) for id_ in before} == before
    assert all("a" not in data for _, data in scene.live())
    assert scene.store.retrieve(token) is None


def test_an_expired_session_is_neither_listed_nor_ended(scene: Scene, clock: Clock) -> None:
    token = scene.stored({"a": 1}, owner="alice")
    clock.advance(days=14)
    before = dict(scene.server.documents)
    assert list(scene.store.sessions()) == list(scene.store.sessions("alice")) == []
    assert scene.store.revoke(id_of(token)) == 0
    assert scene.store.revoke_all("alice") == 0
    assert scene.server.documents == before


SHORTENED = {
    "idle": ({"session_expires": "1 hour"}, False, 2),
    "remembered": ({"session_remember": "1 hour"}, True, 2),
    "lifetime": ({"session_lifetime": "1 hour"}, False, 2),
    "lifetime of a remembered one": ({"session_lifetime": "1 hour"}, True, 2),
}


@pytest.mark.parametrize("what", SHORTENED)
def test_a_time_that_is_shortened_ends_what_is_stored(clock: Clock, what: str) -> None:
    settings, remember, hours = SHORTENED[what]
    for act in (
        lambda session: session.get("a"),
        lambda session: session.update(b=2),
        rotate,
        log_in("bob"),
    ):
        scene = Scene(clock)
        token = scene.stored({"a": 1}, owner="alice", remember=remember)
        clock.advance(hours=hours)
        scene.store = scene.another(**settings)
        session = scene.request(token, act)
        assert session.get("a") is None
        assert [data for _, data in scene.live() if "a" in data] == []
        assert scene.store.retrieve(token) is None


def test_a_remembered_session_lives_as_long_as_session_remember_says(
    scene: Scene, clock: Clock
) -> None:
    kinds = {
        remember: scene.stored({"a": 1}, owner="alice", remember=remember)
        for remember in (False, True)
    }
    clock.advance(days=14)
    assert scene.store.retrieve(kinds[False]) is None
    remembered = scene.store.retrieve(kinds[True])
    assert remembered is not None
    assert remembered.remembered
    clock.advance(days=15, hours=23)
    assert scene.store.retrieve(kinds[True]) == {"a": 1}
    clock.advance(hours=1)
    assert scene.store.retrieve(kinds[True]) is None


def test_only_a_remembered_session_has_a_cookie_that_outlives_the_browser() -> None:
    store = MemoryStore()
    for terms, max_age in (({}, None), ({"remember": True}, str(30 * 24 * 60 * 60))):
        app = SessionMiddleware(on_session(log_in("alice", **terms)), {}, store=store)
        assert attribute(Browser(app).get(), "Max-Age") == max_age


def attribute(response: Response, name: str) -> str | None:
    found = re.search(f"; {name}=([^;]*)", response.cookie or "")
    return found[1] if found else None


# How many sessions one owner has.


def test_a_login_beyond_the_limit_ends_the_oldest_one(clock: Clock) -> None:
    scene = Scene(clock, session_limit=2)
    tokens = []
    for number in range(4):
        clock.advance(minutes=1)
        tokens.append(scene.stored({"n": number}, owner="alice"))
        scene.stored({"n": number}, owner="bob")
        scene.stored({"n": "nobody's"})
    assert [data["n"] for _, data in scene.live("alice")] == [2, 3]
    assert [data["n"] for _, data in scene.live("bob")] == [2, 3]
    assert len(scene.live()) == 8
    assert scene.store.retrieve(tokens[0]) is None
    assert scene.store.retrieve(tokens[3]) == {"n": 3}


def test_nobody_passes_the_limit_by_rotating_at_the_moment_of_a_login(clock: Clock) -> None:
    scene = Scene(clock, session_limit=1)
    thief = scene.stored({"a": 1}, owner="alice")
    clock.advance(minutes=1)
    scene.server.plan("insert_one", before=lambda: scene.stored({"b": 1}, owner="alice"))
    session = scene.store.open(thief)
    rotate(session)
    assert scene.store.flush(session) is Outcome.ENDED
    assert scene.live() == [("alice", {"b": 1})]


# Who is asked for.

NO_TEXT: list[Any] = [None, {"$ne": ""}, {"$gt": ""}, re.compile(""), b"alice", 5, ["alice"], True]


@pytest.mark.parametrize("value", NO_TEXT, ids=repr)
def test_an_operator_in_place_of_an_owner_or_an_id_reaches_no_database(
    scene: Scene, value: Any
) -> None:
    scene.stored({"a": 1}, owner="alice")
    with pytest.raises(TypeError, match="must be a str"):
        scene.store.revoke(value)
    with pytest.raises(TypeError, match="must be a str"):
        scene.store.revoke_all(value)
    if value is not None:
        with pytest.raises(TypeError, match="must be a str"):
            list(scene.store.sessions(value))
        with pytest.raises(TypeError, match="must be a str"):
            scene.store.revoke_all("alice", keep=value)
    assert scene.commands() == []
    assert len(scene.live()) == 1


def test_a_login_takes_a_text_for_an_owner_and_nothing_else(scene: Scene) -> None:
    session = scene.store.open(None)
    for value in (*NO_TEXT, ""):
        with pytest.raises(ValueError, match="owner: must"):
            session.login(value)
    assert session.owner is None


def test_two_applications_with_a_collection_each_share_no_session(
    settings: dict[str, Any],
) -> None:
    here, there = MongoStore(settings), MongoStore(settings | {"mongodb_session_coll": "others"})
    token = here.create({"user": "alice"}).token or ""
    assert there.retrieve(token) is None
    assert here.retrieve(token) == {"user": "alice"}
    here.close()
    there.close()


# What a login leaves behind.


def test_a_login_leaves_the_data_of_another_owner_behind(scene: Scene) -> None:
    for owner, act, stays in (
        ("alice", log_in("alice"), True),
        (None, log_in("alice"), True),
        ("bob", log_in("alice"), False),
        ("bob", lambda session: (session.get("a"), session.login("alice")), False),
        ("bob", lambda session: (session["a"], session.update(b=2), session.login("alice")), False),
        (None, lambda session: (session.destroy(), session.login("alice")), False),
    ):
        token = scene.stored({"a": 1}, **({"owner": owner} if owner else {}))
        session = scene.store.open(token)
        act(session)
        assert (session.get("a") == 1) is stays
        scene.store.flush(session)
        assert session.token != token
        assert scene.store.retrieve(token) is None
        assert scene.store.retrieve(str(session.token)) == ({"a": 1} if stays else {})


def of_flask() -> tuple[Any, str]:
    wtf = pytest.importorskip("flask_wtf.csrf")
    app = flask.Flask("shop")
    app.secret_key = "not a secret, as everybody can read it here"
    app.session_interface = MongoSessionInterface({}, store=MemoryStore())
    for name, view in {
        "form": wtf.generate_csrf,
        "login": lambda: str(flask.session.login("alice")),  # type: ignore[attr-defined]
        "secret": lambda: flask.session.get("csrf_token", ""),
    }.items():
        app.add_url_rule(f"/{name}", name, view)
    return app.wsgi_app, "/secret"


def of_pyramid() -> tuple[Any, str]:
    with Configurator(settings={}) as config:
        config.include("mongosession_wsgi.pyramid")
        config.set_mongosession_store(MemoryStore())
        for name, use in {
            "form": lambda request: request.session.get_csrf_token(),
            "login": lambda request: request.session.login("alice"),
            "secret": lambda request: request.session.get("_csrft_", ""),
        }.items():
            config.add_route(name, f"/{name}")
            view = lambda request, use=use: PyramidResponse(f"{use(request) or ''}")  # noqa: E731
            config.add_view(view, route_name=name)
    return config.make_wsgi_app(), "/secret"


@pytest.mark.parametrize("make", [of_flask, of_pyramid])
def test_a_csrf_token_from_before_a_login_is_not_one_after_it(
    make: Callable[[], tuple[Any, str]],
) -> None:
    app, secret = make()
    browser = Browser(app)
    planted = browser.get("/form").body
    assert planted
    before = browser.get(secret).body
    assert before
    browser.get("/login")
    assert browser.get("/form").body != planted
    assert browser.get(secret).body not in (b"", before)


# Shared caches.

LETS_IT_BE_STORED = ["public", "public, max-age=60", "max-age=60", "s-maxage=600, immutable", ""]


@pytest.mark.parametrize("control", LETS_IT_BE_STORED)
def test_a_page_that_begins_a_session_is_private(control: str) -> None:
    acts: list[Use] = [lambda session: session.update(a=1), log_in("alice"), rotate]

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        acts.pop(0)(environ[KEY])
        headers = [("Content-Type", "text/plain"), ("Cache-Control", control)]
        start_response("200 OK", [*headers, ("CDN-Cache-Control", "max-age=600")])
        return [b"page"]

    browser = Browser(SessionMiddleware(conforming(app), {}, store=MemoryStore()))
    for _ in range(3):
        response = browser.get()
        assert response.token
        directives = re.split(" *, *", response.header("Cache-Control") or "")
        assert directives[0] == "private"
        assert not [one for one in directives if one.startswith(("public", "s-maxage"))]
        assert response.header("CDN-Cache-Control") is None
        assert response.header("Vary") == "Cookie"


# What a visitor is told, and what is logged.


def read(environ: dict[str, Any]) -> str:
    return str(environ[KEY].get("user"))


def plain(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    answer = read(environ).encode()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer]


def down_plain() -> Any:
    return SessionMiddleware(plain, DOWN)


def down_flask() -> Any:
    app = flask.Flask("outage")
    app.session_interface = MongoSessionInterface(DOWN)
    app.get("/")(lambda: str(flask.session.get("user")))
    return app


def down_falcon() -> Any:
    class Page:
        def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
            response.context = None
            request.context.session["user"] = "alice"

    app = falcon.App(middleware=[SessionComponent(DOWN)])
    app.add_route("/", Page())
    return app


def down_pyramid() -> Any:
    with Configurator(settings=DOWN) as config:
        config.include("mongosession_wsgi.pyramid")
        config.add_route("page", "/")
        config.add_view(
            lambda request: PyramidResponse(str(request.session.get("user"))), route_name="page"
        )
    return config.make_wsgi_app()


INSIDE = re.compile("127.0.0.1|mongo|refused|errno|topology|traceback|pymongo|timeout|t{43}", re.I)
"""What a visitor is not to read: hosts, settings, and the words of the driver."""


@pytest.mark.parametrize("make", [down_plain, down_flask, down_falcon, down_pyramid])
@pytest.mark.server  # For seconds of waiting or of work.
def test_an_outage_tells_a_visitor_nothing_of_the_inside(
    make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    response = Browser(make(), COOKIE).get()
    assert response.status.startswith("503 ")
    assert response.cookie is None
    assert response.body
    assert not INSIDE.search(response.body.decode())
    assert not [value for name, value in response.headers if INSIDE.search(value)]
    if make in (down_plain, down_pyramid):
        assert response.body.decode() == f"{UNAVAILABLE}\n"
    assert INSIDE.search(caplog.text)  # An operator is told what a visitor is not.
    assert "t" * 43 not in caplog.text


class Events(logging.Handler):
    """The lines and the records of the audit log."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def events(self) -> list[tuple[str, str | None]]:
        """Return what happened since the last question, and to whom."""
        found = [(one.session_event, one.session_owner) for one in self.records]
        self.records.clear()
        return found


@pytest.fixture
def events() -> Iterator[Events]:
    logger, events = logging.getLogger("mongosession_wsgi.audit"), Events()
    logger.addHandler(events)
    logger.setLevel(logging.INFO)
    yield events
    logger.removeHandler(events)
    logger.setLevel(logging.NOTSET)


def test_what_becomes_of_logins_is_logged(clock: Clock, events: Events) -> None:
    scene = Scene(clock, session_limit=2)
    first = scene.stored({"a": 1}, owner="alice")
    assert events.events() == [("login", "alice")]
    second = str(scene.request(first, rotate).token)
    (record,) = events.records
    assert (record.session_id, record.session_previous_id) == (id_of(second), id_of(first))
    assert events.events() == [("regenerate", "alice")]
    scene.request(first, lambda session: session.get("a"))
    assert events.events() == [("stale", None)]
    scene.request(second, lambda session: (session.get("a"), session.destroy()))
    assert events.events() == [("logout", "alice")]
    ids = []
    for _ in range(3):
        clock.advance(seconds=1)
        ids.append(id_of(scene.stored({}, owner="bob")))
    assert events.events() == [*[("login", "bob")] * 3, ("limit", "bob")]
    assert scene.store.revoke(ids[2]) == 1
    assert scene.store.revoke_all("bob") == 1
    assert [record.session_count for record in events.records] == [1, 1]
    assert events.events() == [("revoke", None), ("revoke", "bob")]


@pytest.mark.parametrize("act", [log_in("alice"), rotate, log_out])
def test_nothing_is_logged_that_the_database_has_not_acknowledged(
    scene: Scene, events: Events, act: Use
) -> None:
    token = scene.stored({"a": 1}, owner="alice")
    events.records.clear()
    last = "delete_many" if act is log_out else "insert_one"
    scene.server.plan(last, error=refused())
    with pytest.raises(StoreError):
        scene.request(token, act)
    assert events.events() == []


def test_no_revocation_is_logged_that_the_database_has_not_acknowledged(
    scene: Scene, events: Events
) -> None:
    token = scene.stored({"a": 1}, owner="alice")
    events.records.clear()
    scene.server.plan("update_many", error=refused())
    with pytest.raises(StoreError):
        scene.store.revoke_all("alice")
    scene.server.plan("find_one_and_update", error=refused())
    with pytest.raises(StoreError):
        scene.store.revoke(id_of(token))
    assert events.events() == []


def test_the_audit_log_has_no_token_no_data_and_no_line_of_a_visitor(
    scene: Scene, events: Events
) -> None:
    forger, device = "al\nlogin: forged", "Fire\r\nfox\x1b[2J"
    tokens = [scene.stored({"diagnosis": "gout, of both feet"}, owner=forger, label=device)]
    for act in (
        rotate,
        log_in(forger, label=device),
        rotate,
        lambda session: session.get("diagnosis"),
    ):
        tokens.append(scene.request(tokens[-1], act).token or tokens[-1])
    scene.request(tokens[0], lambda session: session.get("diagnosis"))
    scene.request(tokens[-1], log_out)
    tokens.append(scene.stored({"diagnosis": "gout, of both feet"}, owner=forger, label=device))
    scene.store.revoke_all(forger)
    assert {event for event, _ in ((one.session_event, 0) for one in events.records)} == {
        *("login", "regenerate", "stale", "logout", "revoke")
    }
    for record in events.records:
        line = logging.Formatter().format(record)
        assert line.isprintable()
        assert line.isascii()
        shown = line + repr(vars(record))
        assert "of both feet" not in shown
        assert "diagnosis" not in shown
        assert not [token for token in tokens if token in shown]
    assert any("Fire" in record.getMessage() for record in events.records)


def test_the_audit_log_is_silent_unless_it_is_asked_for(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    scene.request(scene.stored({"a": 1}, owner="alice"), log_out)
    assert caplog.records == []


# A collector of local variables.


def spoil(session: Session) -> None:
    session["list"].append(object())


@pytest.mark.parametrize(
    ("use", "store"),
    [
        (lambda session: session.get("a"), "down"),
        (lambda session: session.update(a=1), "down"),
        (lambda session: session.update(a=1), "down, and nobody was there before"),
        (lambda session: (session.clear(), session.login("alice")), "refuses"),
        (rotate, "down"),
        (log_in("alice"), "down"),
        (log_out, "down"),
        (spoil, "up"),
        (lambda session: (spoil(session), session.regenerate()), "up"),
        (lambda session: (spoil(session), session.login("alice")), "up"),
        (lambda session: 1 / len(session["list"]), "up"),
    ],
)
@pytest.mark.server  # For seconds of waiting or of work.
def test_no_frame_of_ours_shows_a_token_to_a_collector_of_local_variables(
    use: Use, store: str
) -> None:
    memory = MemoryStore()
    token = memory.create({"list": []}).token or ""
    other = memory if store == "up" else MongoStore(DOWN)
    if store == "refuses":
        scene = Scene(Clock())
        token, other = scene.stored({"list": []}), scene.store
        scene.server.plan("insert_one", error=refused())
    flush, caught, tokens = other.flush, list[BaseException](), {token}

    def watched(session: Session) -> Outcome:
        with noting(caught):
            try:
                return flush(session)
            finally:
                tokens.add(str(visit_of(session).new_token))

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with noting(caught):
            use(environ[KEY])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    other.flush = watched  # type: ignore[method-assign]
    cookie = "" if "nobody" in store else f"mongosession={token}"
    browser = Browser(SessionMiddleware(conforming(app), {}, store=other), cookie)
    with suppress(Exception), noting(caught):
        browser.get()
    assert caught
    for error in caught:
        for name, local in locals_of_ours(error):
            shown = re.sub("'HTTP_COOKIE': '[^']*'", "", repr(local))
            assert not [token for token in tokens if token in shown], name
    other.close()


@contextmanager
def noting(errors: list[BaseException]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        errors.append(error)
        raise


def locals_of_ours(error: BaseException | None) -> Iterator[tuple[str, Any]]:
    """Yield the local variables of our frames, of an error and of those that led to it."""
    while error is not None:
        for frame, _ in walk_tb(error.__traceback__):
            if frame.f_globals["__name__"].startswith("mongosession_wsgi"):
                yield from frame.f_locals.items()
        error = error.__cause__ or error.__context__


# What the server is asked for.


class Commands(monitoring.CommandListener):
    """The commands of a client, as they were sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.sent.append(event.command)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


def test_every_write_waits_for_a_majority_and_every_read_asks_the_primary(
    mongodb_uri: str, settings: dict[str, Any]
) -> None:
    commands = Commands()
    uri = f"{mongodb_uri}/?w=1&readPreference=secondaryPreferred&directConnection=true"
    with MongoClient[Any](uri, event_listeners=[commands]) as client:
        store = MongoStore(settings, client=client)
        token = store.create({"a": 1}).token
        for act in (
            lambda session: session.get("a"),
            lambda session: session.update(b=2),
            log_in("alice"),
            rotate,
        ):
            session = store.open(token)
            act(session)
            store.flush(session)
            token = session.token
        kept, _ = store.create(), list(store.sessions("alice"))
        store.revoke_all("alice")
        store.revoke(kept.id or "")
        last = store.create()
        store.purge()
        assert store.destroy(last)
    writes = [one for one in commands.sent if next(iter(one)) in WRITES]
    reads = [one for one in commands.sent if next(iter(one)) == "find"]
    assert {next(iter(one)) for one in writes} == WRITES
    assert {str(one.get("writeConcern")) for one in writes} == {"{'w': 'majority'}"}
    assert len(reads) > 3
    modes = {one.get("$readPreference", {"mode": "primary"})["mode"] for one in reads}
    # A driver that is connected to one member alone asks it as the primary, or else the member.
    assert modes <= {"primary", "primaryPreferred"}


WRITES = {"insert", "update", "delete", "findAndModify"}


# Sealed sessions.

SECRETS: dict[str, Any] = {
    "card number": "4111 1111 1111",
    "diagnosis": ["gout, of both feet"],
    "allowance": {"monthly rent": 900},
}


@pytest.fixture
def sealed(clock: Clock) -> Scene:
    return Scene(clock, session_sealed=True)


def document_of(scene: Scene, token: str) -> dict[str, Any]:
    return bson.decode(scene.server.documents[id_of(token)])


def put(scene: Scene, token: str, **fields: Any) -> None:
    id_ = id_of(token)
    scene.server.documents[id_] = bson.encode(document_of(scene, token) | fields)


def test_the_database_holds_no_name_and_no_value_of_a_sealed_session(sealed: Scene) -> None:
    token = sealed.stored(SECRETS, owner="alice", label="Firefox")
    sealed.request(token, lambda session: session.update(watchword="carpe diem"))
    sealed.request(token, lambda session: session["diagnosis"].append("anaemia"))
    token = str(sealed.request(token, rotate).token)
    dump = b"".join(sealed.server.documents.values())
    words = ["card number", "4111 1111", "diagnosis", "gout, of", "allowance", "monthly rent"]
    words += ["watchword", "carpe diem", "anaemia"]
    assert not [word for word in words if word.encode() in dump]
    assert token.encode() not in dump
    (info,) = sealed.store.sessions()
    assert (info.sealed, info.data, info.owner, info.label) == (True, {}, "alice", "Firefox")
    assert sealed.store.retrieve(token) == SECRETS | {
        "watchword": "carpe diem",
        "diagnosis": ["gout, of both feet", "anaemia"],
    }


def life_of(scene: Scene, secrets: dict[str, Any]) -> str:
    """Let a visitor store secrets, change and remove some, and log in; return their token."""
    first, *_, last = secrets
    token = scene.stored(secrets, owner="alice", label="Firefox")
    scene.request(token, lambda session: session.update({first: secrets[last]}))
    scene.request(token, lambda session: session.pop(last))
    scene.request(token, log_out)
    token = scene.stored({first: secrets[last]})
    return str(scene.request(token, log_in("bob", remember=True)).token)


def seen_without_a_cookie(scene: Scene) -> list[Any]:
    """Return all that the documents tell, with a word for what is random by construction."""
    told: list[Any] = []
    for number, raw in enumerate(scene.server.documents.values()):
        fields = bson.decode(raw)
        assert fields.keys() <= OPENLY | {"data"}, "a field that nobody has thought of"
        data = fields.pop("data", {})
        ids = {name: f"id {number}" for name in ("_id", "successor") if name in fields}
        told.append(fields | ids)
        told.append(
            [
                (len(name), len(value) if isinstance(value, bytes) else value)
                for name, value in data.items()
            ]
        )
    return told


OPENLY = {"_id", "v", "owner", "label", "remember", "created_at", "seen_at", "expires_at"}
OPENLY |= {"successor", "login", "ended"}
"""The fields of sessions and marks beside the data."""


def test_who_has_the_database_and_the_source_but_no_cookie_gets_no_data(clock: Clock) -> None:
    """Two visitors with other secrets of the same sizes leave the same behind, but for chance."""
    secrets = [
        {"card": "4111 1111", "diagnosis": ["gout"], "n": 1},
        {"iban": "GB33 BUKB", "addresses": ["Kent"], "z": 7},
    ]
    scenes = [Scene(clock, session_sealed=True) for _ in secrets]
    tokens = [life_of(scene, one) for scene, one in zip(scenes, secrets, strict=True)]
    assert seen_without_a_cookie(scenes[0]) == seen_without_a_cookie(scenes[1])
    for scene in scenes:
        dump = b"".join(scene.server.documents.values())
        assert not [
            word for word in (*tokens, "4111", "BUKB", "card", "iban") if word.encode() in dump
        ]
        sessions = [
            one for one in map(bson.decode, scene.server.documents.values()) if "data" in one
        ]
        opened = [
            Seal(Token(guess)).open(one["data"])
            for one in sessions
            for guess in guesses_of(scene, one)
        ]
        assert len(opened) > 10
        assert set(opened) == {None}
        assert [info.data for info in scene.another().sessions()] == [{}]
    for scene, token, one in zip(scenes, tokens, secrets, strict=True):
        assert scene.another().retrieve(token) == {next(iter(one)): [*one.values()][-1]}


def test_the_same_look_tells_two_visitors_apart_whose_sessions_are_not_sealed(
    clock: Clock,
) -> None:
    scenes = [Scene(clock) for _ in range(2)]
    for scene, secret in zip(scenes, ("4111", "5111"), strict=True):
        life_of(scene, {"card": secret, "kept": secret})
    assert seen_without_a_cookie(scenes[0]) != seen_without_a_cookie(scenes[1])


def guesses_of(scene: Scene, document: dict[str, Any]) -> Iterator[str]:
    """Yield what an attacker finds beside a sealed session, as what its token might be."""
    yield ""
    for word in [*scene.server.documents, *document["data"], "alice", "bob", "Firefox"]:
        yield word
        yield id_of(Token(word))
    for value in document["data"].values():
        yield urlsafe_b64encode(value[:32]).decode()[:43]
        yield urlsafe_b64encode(value[-32:]).decode()[:43]


def test_only_the_token_tells_how_a_name_is_stored(sealed: Scene) -> None:
    names = [
        set(document_of(sealed, sealed.stored({"card": "4111", "note": 1}))["data"])
        for _ in range(2)
    ]
    assert [len(one) for one in names] == [2, 2]
    assert names[0].isdisjoint(names[1])
    assert all(re.fullmatch("[A-Za-z0-9_-]{22}", name) for one in names for name in one)
    token = sealed.stored({"card": "4111"})
    before = set(document_of(sealed, token)["data"])
    sealed.request(token, lambda session: session.update(card="5111"))
    assert set(document_of(sealed, token)["data"]) == before


def test_the_same_value_is_never_sealed_alike(sealed: Scene) -> None:
    token, values = sealed.stored({"card": "4111", "copy": "4111"}), list[bytes]()
    for number in range(20):
        values += document_of(sealed, token)["data"].values()
        sealed.request(token, lambda session, n=number: session.update(card=n, copy=n))  # type: ignore[misc]
        sealed.request(token, lambda session: session.update(card="4111", copy="4111"))
    assert len(values) == len({value[:12] for value in values}) == 40
    # What two values have in common would show, if a nonce were used twice.
    for one, other in combinations(values, 2):
        alike = [a == b for a, b in zip(one[12:], other[12:], strict=False)]
        assert sum(alike) < len(alike) / 2


def moved(data: dict[str, bytes]) -> dict[str, bytes]:
    (one, other) = data
    return {one: data[other], other: data[one]}


def copied(data: dict[str, bytes]) -> dict[str, bytes]:
    return dict.fromkeys(data, next(iter(data.values())))


def renamed(data: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name[:-1]}_": value for name, value in data.items()}


def altered(data: dict[str, bytes]) -> dict[str, bytes]:
    return {name: value[:-1] + bytes([value[-1] ^ 1]) for name, value in data.items()}


def cut(data: dict[str, bytes]) -> dict[str, bytes]:
    return {name: value[:20] for name, value in data.items()}


def in_plain(data: dict[str, bytes]) -> dict[str, bytes]:
    return {name: bson.encode({"role": "admin"}) for name in data}


@pytest.mark.parametrize("change", [moved, copied, renamed, altered, cut, in_plain])
def test_a_sealed_value_that_was_changed_makes_no_session(
    sealed: Scene, change: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    token = sealed.stored({"role": "guest", "name": "al"}, owner="alice")
    put(sealed, token, data=change(document_of(sealed, token)["data"]))
    before = dict(sealed.server.documents)
    session = sealed.store.open(token)
    assert session.copy() == {}
    assert (session.new, session.owner) == (True, None)
    assert "not of our form" in caplog.text
    sealed.store.flush(session)
    assert sealed.server.documents == before


@pytest.mark.parametrize("act", [lambda session: session.get("role"), rotate, log_out])
def test_no_plain_document_takes_the_place_of_a_sealed_one(
    sealed: Scene, act: Use, caplog: pytest.LogCaptureFixture
) -> None:
    token = sealed.stored({"role": "guest"}, owner="alice")
    put(sealed, token, v=1, data={"role": "admin"})
    before = dict(sealed.server.documents)
    session = sealed.request(token, act)
    assert session.get("role") is None
    assert session.owner is None
    assert "not of our form" in caplog.text
    assert sealed.server.documents == before


def test_a_sealed_value_opens_in_no_other_session(sealed: Scene) -> None:
    rich, poor = (sealed.stored({"credit": credit}, owner="alice") for credit in (900, 1))
    put(sealed, poor, data=document_of(sealed, rich)["data"])
    assert sealed.store.retrieve(poor) is None or sealed.store.open(poor).copy() == {}
    # Nor under the name that the other session has for it.
    sealed.server.documents.clear()
    rich, poor = (sealed.stored({"credit": credit}, owner="alice") for credit in (900, 1))
    ((name, _),) = document_of(sealed, poor)["data"].items()
    put(sealed, poor, data={name: next(iter(document_of(sealed, rich)["data"].values()))})
    assert sealed.store.open(poor).copy() == {}


def test_who_writes_to_the_database_can_put_an_older_sealed_value_back(sealed: Scene) -> None:
    """A limit that the page names: a value says of its name and its session, not of its moment."""
    token = sealed.stored({"credit": 900})
    older = document_of(sealed, token)["data"]
    sealed.request(token, lambda session: session.update(credit=1))
    put(sealed, token, data=older)
    assert sealed.store.retrieve(token) == {"credit": 900}


def test_the_second_click_on_log_in_has_no_sealed_data_of_the_first(
    sealed: Scene, clock: Clock
) -> None:
    """A limit that the page names: what the first login sealed, the old token does not open."""
    token = sealed.stored({"cart": ["tea"]})
    second = sealed.store.open(token)
    second.login("alice")
    second["voucher"] = 5
    sealed.request(token, log_in("alice"))
    assert sealed.store.flush(second) is Outcome.CREATED
    assert sealed.store.retrieve(str(second.token)) == {"voucher": 5}
    assert len(list(sealed.store.sessions("alice"))) == 2


# The page itself.


def test_every_row_that_is_met_names_a_test_that_is_there() -> None:
    rows = mutants.rows_of()
    for line in mutants.PAGE.read_text().splitlines():
        if "| **met" in line:
            assert rows[line.strip("| ").partition(" | ")[0]], line
    named = {test for tests in rows.values() for test in tests}
    assert len(named) > 80
    for test in named:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (Path(__file__).parent / file).read_text(), test


def test_every_guard_is_where_make_mutants_breaks_it() -> None:
    rows, broken = mutants.rows_of(), set[str]()
    for guard in mutants.guards_of():
        assert mutants.broken(guard)
        broken |= {mutants.row_of(key, rows) for key in guard.rows}
    assert broken == {row for row, tests in rows.items() if tests}

"""The tests that every store must pass: the stores here do, and broken ones do not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import bson
import pytest
from bson.raw_bson import RawBSONDocument
from flask import Flask
from flask import session as flask_session
from webtest import TestApp
from werkzeug.test import Client

from mongosession_wsgi import MongoStore, SessionDataError, SessionMiddleware
from mongosession_wsgi.flask import MongoSessionInterface
from mongosession_wsgi.testing import MemoryStore, session_of
from mongosession_wsgi.testing.conformance import StoreConformance

from .wsgi import Browser, conforming

ROOT = Path(__file__).parent.parent
RAW = RawBSONDocument(bson.encode({"_id": "a"}))
TestApp.__test__ = False  # It is no test, whatever its name.


class TestMongoStore(StoreConformance):
    @pytest.fixture
    def make_store(self, settings: dict[str, Any]) -> Callable[[Any], MongoStore]:
        return lambda clock: MongoStore(settings, clock=clock)

    @pytest.fixture
    def make_limited_store(self, settings: dict[str, Any]) -> Callable[[Any], MongoStore]:
        return lambda clock: MongoStore(settings | {"session_limit": 2}, clock=clock)


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def make_store(self) -> Callable[[Any], MongoStore]:
        return lambda clock: MemoryStore(clock=clock)

    @pytest.fixture
    def make_limited_store(self) -> Callable[[Any], MongoStore]:
        return lambda clock: MemoryStore({"session_limit": 2}, clock=clock)


BROKEN = """
import pytest

from mongosession_wsgi import audit
from mongosession_wsgi.document import Token
from mongosession_wsgi.testing import MemoryStore
from mongosession_wsgi.testing.conformance import StoreConformance
from mongosession_wsgi.testing.requests import NOW
from mongosession_wsgi.visit import NOTHING, Outcome


class Reviving(MemoryStore):
    def flush(self, session):
        outcome = super().flush(session)
        if outcome is Outcome.ENDED:
            self._life._insert(session._visit, session._visit.draft)
        return outcome


class Overwriting(MemoryStore):
    def flush(self, session):
        visit = session._visit
        visit.draft.replaces = visit.came
        return super().flush(session)


class Undying(MemoryStore):
    def open(self, token, times=None):
        clock, self._life._clock = self._life._clock, lambda: NOW
        session = super().open(token, times)
        try:
            session.id
        finally:
            self._life._clock = clock
        return session


class Adopting(MemoryStore):
    def flush(self, session):
        if session._visit.came_with and session.new:
            session._visit._new_token = Token(session._visit.came_with)
        return super().flush(session)


class Regenerating(MemoryStore):
    def flush(self, session):
        visit = session._visit
        if visit.state.name == "REGENERATED" and visit.record:
            return visit.take(self._life._insert(visit, visit.draft, visit.record))
        return super().flush(session)


class Forgetful(MemoryStore):
    def revoke_all(self, owner, keep=None):
        return super().revoke_all(owner)


class Unremembering(MemoryStore):
    def flush(self, session):
        visit = session._visit
        visit.login = visit.login and visit.login._replace(remember=None)
        return super().flush(session)


class Nameless(MemoryStore):
    def flush(self, session):
        visit = session._visit
        visit.login = visit.login and visit.login._replace(label=None)
        return super().flush(session)


class Crowded(MemoryStore):
    def __init__(self, settings=None, **more):
        super().__init__(**more)


class Hasty(MemoryStore):
    def flush(self, session):
        if session._visit.login:
            audit.say("login", "not yet", id=session.id, owner=session.owner)
        return super().flush(session)


class Talkative(MemoryStore):
    def flush(self, session):
        outcome = super().flush(session)
        if outcome is Outcome.CREATED:
            audit.say("login", "with the token", id=session.id, label=session.token)
        return outcome


class Conformance(StoreConformance):
    @pytest.fixture
    def make_store(self):
        return lambda clock: self.broken(clock=clock)

    @pytest.fixture
    def make_limited_store(self):
        return lambda clock: self.broken({"session_limit": 2}, clock=clock)


class TestUnremembering(Conformance):
    broken = Unremembering


class TestNameless(Conformance):
    broken = Nameless


class TestCrowded(Conformance):
    broken = Crowded


class TestHasty(Conformance):
    broken = Hasty


class TestTalkative(Conformance):
    broken = Talkative


class TestReviving(Conformance):
    broken = Reviving


class TestOverwriting(Conformance):
    broken = Overwriting


class TestUndying(Conformance):
    broken = Undying


class TestAdopting(Conformance):
    broken = Adopting


class TestRegenerating(Conformance):
    broken = Regenerating


class TestForgetful(Conformance):
    broken = Forgetful
"""


@pytest.mark.server
def test_broken_stores_do_not_pass(tmp_path: Path) -> None:
    (tmp_path / "test_broken.py").write_text(BROKEN)
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(tmp_path)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    failed = set(re.findall(r"^FAILED test_broken.py::Test(\w+)::(\w+)", done.stdout, re.MULTILINE))
    assert {
        ("Reviving", "test_an_ended_session_is_not_revived"),
        ("Overwriting", "test_overlapping_changes_of_other_keys_survive"),
        ("Overwriting", "test_parallel_changes_of_other_keys_survive"),
        ("Undying", "test_an_idle_session_dies"),
        ("Adopting", "test_a_token_is_never_adopted"),
        ("Regenerating", "test_a_new_token_ends_the_old_one"),
        ("Regenerating", "test_a_logout_follows_a_new_token"),
        ("Forgetful", "test_an_owners_sessions_are_revoked"),
        ("Unremembering", "test_a_login_is_remembered_or_not"),
        ("Unremembering", "test_a_new_token_keeps_label_and_kind"),
        ("Nameless", "test_a_label_is_stored_beside_the_data"),
        ("Nameless", "test_the_label_is_that_of_the_last_login"),
        ("Crowded", "test_logins_beyond_the_limit_end_the_oldest"),
        ("Hasty", "test_the_audit_log_tells_nothing_of_a_login_that_is_not_stored"),
        ("Talkative", "test_the_audit_log_tells_of_logins"),
    } <= failed
    assert "error" not in done.stdout.splitlines()[-1]


def test_what_a_memory_store_does_not_know_raises() -> None:
    sessions: Any = MemoryStore().collection
    sessions.insert_one(RAW)
    with pytest.raises(NotImplementedError, match=r"\$regex"):
        sessions.find({"_id": {"$regex": "a"}})
    with pytest.raises(NotImplementedError, match=r"\$inc"):
        sessions.update_one({"_id": "a"}, {"$inc": {"v": 1}})


def test_a_memory_store_holds_no_more_than_mongodb() -> None:
    store = MemoryStore()
    session = store.create({"a": "x" * 15_000_000})
    session["b"] = "x" * 2_000_000
    with pytest.raises(SessionDataError, match="16 MiB"):
        store.flush(session)


def count(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    session = environ["mongosession"]
    session["visits"] = session.get("visits", 0) + 1
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{session.owner} {session['visits']}".encode()]


SETTINGS = {"session_name": "sid", "session_secure": "auto"}


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore(SETTINGS)


@pytest.fixture
def app(memory: MemoryStore) -> Any:
    return validator(SessionMiddleware(conforming(count), SETTINGS, store=memory))


def use(client: Any, visit: Callable[[], str], store: MemoryStore) -> None:
    """Look at the session of a client, give it another, and end it."""
    with session_of(client, store) as session:
        assert session.new
        assert session == {}
    assert visit() == "None 1"
    with session_of(client, store) as session:
        assert session == {"visits": 1}
        session["visits"] = 41
        session.login("alice")
    assert visit() == "alice 42"
    with pytest.raises(ZeroDivisionError), session_of(client, store) as session:
        session["visits"] = 1 // 0
    with session_of(client, store) as session:
        assert (session.owner, session["visits"]) == ("alice", 42)
        session.destroy()
    assert list(store.sessions()) == []
    assert visit() == "None 1"


def test_werkzeugs_client(app: Any, memory: MemoryStore) -> None:
    client = Client(app)
    use(client, lambda: client.get("/", buffered=True).text, memory)


def test_webtests_client(app: Any, memory: MemoryStore) -> None:
    client = TestApp(app, lint=False)
    use(client, lambda: str(client.get("/").text), memory)


OVER_TLS = {"HTTP_HOST": "shop.example.com", "wsgi.url_scheme": "https"}


@pytest.mark.parametrize(
    "attributes",
    [
        {"session_path": "/shop"},
        {"session_domain": "example.com"},
        {"session_partitioned": True},
        {"session_name": "sid"},
    ],
)
def test_the_attributes_of_the_cookie_count(attributes: dict[str, Any]) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["mongosession"].regenerate()
        return count(environ, start_response)

    one, another = MemoryStore(attributes), MemoryStore(attributes)
    client = Client(SessionMiddleware(app, attributes, store=one))
    url = "https://shop.example.com" if "session_domain" in attributes else None
    use(client, lambda: client.get("/shop/", url, buffered=True).text, one)
    webtest = TestApp(SessionMiddleware(app, attributes, store=another), extra_environ=OVER_TLS)
    use(webtest, lambda: str(webtest.get("/shop/").text), another)


def test_the_cookies_beside_ours_stay_as_they_are(memory: MemoryStore) -> None:
    environ = {"HTTP_COOKIE": 'prefs={"dark":true}; sid=stale;name="a b"'}
    with session_of(environ, memory) as session:
        session["n"] = 1
        token = session.token
    assert environ["HTTP_COOKIE"] == f'prefs={{"dark":true}}; name="a b"; sid={token}'
    with session_of(environ, memory) as session:
        assert session == {"n": 1}
        session.destroy()
    assert environ["HTTP_COOKIE"] == 'prefs={"dark":true}; name="a b"'


def test_a_plain_environ(app: Any, memory: MemoryStore) -> None:
    environ = {"HTTP_COOKIE": "other=1"}
    browser = Browser(app)

    def visit() -> str:
        browser.cookie = environ["HTTP_COOKIE"]
        body = browser.get().body.decode()
        environ["HTTP_COOKIE"] = browser.cookie
        return body

    use(environ, visit, memory)


def test_flasks_client_with_a_session_of_ours(memory: MemoryStore) -> None:
    app = Flask("shop")
    app.session_interface = MongoSessionInterface(SETTINGS, store=memory)

    @app.get("/")
    def visit() -> str:
        flask_session["visits"] = flask_session.get("visits", 0) + 1
        return f"{flask_session.owner} {flask_session['visits']}"  # type: ignore[attr-defined]

    client = app.test_client()
    use(client, lambda: client.get("/").text, memory)


def test_flasks_client_within_the_middleware(memory: MemoryStore) -> None:
    app = Flask("shop")
    app.wsgi_app = SessionMiddleware(count, SETTINGS, store=memory)  # type: ignore[method-assign]
    client = app.test_client()
    use(client, lambda: client.get("/", buffered=True).text, memory)


@pytest.mark.parametrize("url", ["http://localhost", "https://testserver"])
def test_the_client_of_httpx(url: str, app: Any, memory: MemoryStore) -> None:
    httpx = pytest.importorskip("httpx")
    with httpx.Client(transport=httpx.WSGITransport(app=app), base_url=url) as client:
        use(client, lambda: str(client.get("/").text), memory)


def test_starlettes_client(memory: MemoryStore) -> None:
    starlette, a2wsgi = (pytest.importorskip(name) for name in ("starlette.testclient", "a2wsgi"))
    app = a2wsgi.WSGIMiddleware(SessionMiddleware(count, SETTINGS, store=memory))
    client = starlette.TestClient(app, base_url="https://testserver")
    use(client, lambda: str(client.get("/").text), memory)
    for host in "localhost", "testserver":
        refuses(starlette.TestClient(app, base_url=f"http://{host}"), memory)


def refuses(client: Any, store: MemoryStore) -> None:
    with (
        pytest.raises(ValueError, match=r"never sends it back; .*https"),
        session_of(client, store),
    ):
        pass


def test_a_client_that_never_sends_the_cookie_back_is_told_so(
    app: Any, memory: MemoryStore
) -> None:
    refuses(TestApp(app, extra_environ={"HTTP_HOST": "example.com"}), memory)
    over_tls = {"HTTP_HOST": "example.com", "wsgi.url_scheme": "https"}
    client = TestApp(app, extra_environ=over_tls, lint=False)
    use(client, lambda: str(client.get("/").text), memory)
    insecure = MemoryStore(SETTINGS | {"session_secure": False})
    with session_of(TestApp(app, extra_environ={"HTTP_HOST": "example.com"}), insecure):
        pass


def test_a_client_of_httpx_that_never_sends_it_back_is_told_so(
    app: Any, memory: MemoryStore
) -> None:
    httpx = pytest.importorskip("httpx")
    transport = httpx.WSGITransport(app=app)
    with httpx.Client(transport=transport, base_url="http://testserver") as client:
        refuses(client, memory)


def test_another_client_is_refused(memory: MemoryStore) -> None:
    with pytest.raises(TypeError, match="object"), session_of(object(), memory):
        pass

"""What a request did and knows, as the adapters of frameworks rely on it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from mongosession_wsgi import Session, SessionMiddleware
from mongosession_wsgi.session import visit_of
from mongosession_wsgi.testing import MemoryStore
from mongosession_wsgi.times import Times
from mongosession_wsgi.visit import NotLooked

from .wsgi import Browser, on_session


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


def opened(store: MemoryStore, **data: Any) -> Session:
    """Return a session with this data, as the next request has it, not loaded."""
    return store.open(store.create(data).token)


def test_what_is_set_anew_after_a_login_stays_also_if_it_is_what_was_there(
    memory: MemoryStore,
) -> None:
    session = opened(memory, secret="s", cart=[1])
    assert session["secret"] == "s"
    visit_of(session).secrets = ("secret",)
    session.login("alice")
    session["secret"] = "s"
    memory.flush(session)
    stored = memory.retrieve(str(session.token))
    assert stored == {"secret": "s", "cart": [1]}


def remembered(memory: MemoryStore, use: Callable[[Session], Any]) -> str:
    """Return the Set-Cookie header for a remembered session, after `use`."""
    browser = Browser(SessionMiddleware(on_session(lambda s: s.login("a", remember=True)), {},
                                        store=memory))  # fmt: skip
    assert "Max-Age" in str(browser.get().cookie)
    browser.app = SessionMiddleware(on_session(use), {}, store=memory)
    return str(browser.get().cookie)


@pytest.mark.parametrize("look", [True, False])
def test_a_session_that_begins_after_a_logout_is_not_remembered(
    look: bool, memory: MemoryStore
) -> None:
    def log_out(session: Session) -> None:
        if look:
            assert session.remembered
        session.destroy()
        session["a"] = 1

    assert "Max-Age" not in remembered(memory, log_out)
    (info,) = memory.sessions()
    assert not info.remembered


def test_a_session_that_begins_after_a_logout_may_be_remembered_without_a_look(
    memory: MemoryStore,
) -> None:
    session = memory.open("t" * 43)
    session.destroy()
    visit_of(session).idle_as(remember=True)
    session["a"] = 1
    assert type(visit_of(session).known) is NotLooked
    memory.flush(session)
    (info,) = memory.sessions()
    assert info.remembered


@pytest.mark.parametrize(
    ("use", "changed"),
    [
        (lambda session: session.get("a"), False),
        (lambda session: session.update(a=2), True),
        (lambda session: session["list"].append(1), True),
        (lambda session: session.login("alice"), True),
        (lambda session: session.regenerate(), True),
        (lambda session: session.destroy(), True),
    ],
)
@pytest.mark.parametrize("fails", [True, False])
def test_whether_a_session_was_changed_is_known_before_and_after_its_commit(
    use: Callable[[Session], Any], changed: bool, fails: bool, memory: MemoryStore
) -> None:
    session = opened(memory, a=1, list=[])
    use(session)
    visit = visit_of(session)
    assert visit.was_changed is changed
    if fails:
        visit.discard()
    memory.flush(session)
    assert visit.was_changed is changed


def test_a_store_asks_at_each_use_when_a_framework_has_sessions_die() -> None:
    now = datetime.now(timezone.utc)
    store = MemoryStore(clock=lambda: now)
    idle = timedelta(days=20)
    store.follow(lambda: Times(expires=idle, remember=idle, lifetime=None))
    token = str(store.create({"a": 1}).token)
    now += timedelta(days=15)
    assert store.retrieve(token) == {"a": 1}
    assert [info.data for info in store.sessions()] == [{"a": 1}]
    idle = timedelta(days=10)
    assert store.retrieve(token) is None
    assert not list(store.sessions())


@pytest.mark.parametrize("settings", [{"session_expires": "30 minutes"}, {}])
@pytest.mark.parametrize("of_store", [{"session_expires": "30 minutes"}, {}])
def test_a_store_and_the_settings_beside_it_have_the_same_times(
    settings: dict[str, Any], of_store: dict[str, Any]
) -> None:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    store = MemoryStore(of_store, clock=lambda: now)
    app = SessionMiddleware(on_session(lambda s: s.update(a=1)), settings, store=store)
    cookie = str(Browser(app).get().cookie)
    said = settings or of_store
    assert ("Max-Age=1800;" in cookie) == bool(said)
    (info,) = store.sessions()
    assert info.expires_at - now == (timedelta(minutes=30) if said else timedelta(days=14))


@pytest.mark.parametrize(
    ("of_store", "settings", "expected"),
    [
        (
            {"session_expires": "1 hour", "session_remember": "3 days"},
            {"session_expires": "2 hours", "session_lifetime": "4 days"},
            Times(timedelta(hours=2), timedelta(days=3), timedelta(days=4)),
        ),
        (  # What is said counts, also if it is the default.
            {"session_remember": "3 days", "session_lifetime": "none"},
            {"session_remember": "30 days", "session_lifetime": "30 days"},
            Times(timedelta(days=14), timedelta(days=30), timedelta(days=30)),
        ),
    ],
)
def test_the_settings_beside_a_store_say_when_its_sessions_die(
    of_store: dict[str, Any], settings: dict[str, Any], expected: Times
) -> None:
    store = MemoryStore(of_store)
    SessionMiddleware(on_session(lambda _: None), settings, store=store)
    assert visit_of(store.open(None)).times == expected


@pytest.mark.parametrize("store", [MemoryStore, {"mongodb_password": "hunter2"}, "memory"])
def test_what_is_no_store_is_refused(store: Any) -> None:
    with pytest.raises(TypeError, match="store must be a store, such as") as caught:
        SessionMiddleware(on_session(lambda _: None), {}, store=store)
    assert "hunter2" not in str(caught.value)

"""Stories that Hypothesis makes up: requests of several browsers, interleaved freely.

What happens is compared with the model of the contract in `model.py`, after every step; and a draft
with plain dicts. A failure is shrunk to the shortest story that shows it. `STORIES=20000` in the
environment asks for more stories than the suite has time for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta, timezone
from typing import Any, TypeAlias, TypeVar

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as how
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)
from pymongo import MongoClient

from mongosession_wsgi import MongoStore, Session, SessionMiddleware, life
from mongosession_wsgi.document import CODEC, REMEMBERED, SEALED, Token, by_key, id_of, opened
from mongosession_wsgi.seal import Seal
from mongosession_wsgi.testing.memory import Client

from .conftest import Clock
from .model import About, Asking, Cookie, Login, Model, Rules, Stored
from .test_overlap import NAME, OpenRequest
from .wsgi import Response

T = TypeVar("T")
Use: TypeAlias = Callable[[Session], object]

STORIES = int(os.environ.get("STORIES", 0))
LONGEST = 0 if STORIES else 600
"""Seconds after which a test hangs; a failure is shrunk for minutes."""
TICK = timedelta(milliseconds=1)

DEPLOYMENTS: list[tuple[dict[str, str], Rules]] = [
    ({}, Rules()),
    (
        {"session_expires": "1 day", "session_remember": "3 days", "session_lifetime": "10 days"}
        | {"session_limit": "2"},
        Rules(timedelta(1), timedelta(3), timedelta(10), limit=2, is_explicit=True),
    ),
    (
        {"session_expires": "20s", "session_remember": "50s", "session_lifetime": "80s"},
        Rules(timedelta(0, 20), timedelta(0, 50), timedelta(0, 80), is_explicit=True),
    ),
    (
        {"session_remember": "60 days", "session_lifetime": "none", "session_limit": "2"},
        Rules(remember=timedelta(60), lifetime=None, limit=2),
    ),
    ({"session_sealed": "true"}, Rules(is_sealed=True)),
]
"""Settings, and what they say of a session's life."""

OWNERS = ["alice", "bob"]
KEYS = st.sampled_from(["a", "b", "c.d"])
VALUES = st.integers(0, 9)
WHATS = st.sampled_from(["set", "append", "get", "delete", "clear"])
USES = st.lists(st.tuples(WHATS, KEYS, VALUES), max_size=2)
LOGINS = st.builds(
    Login,
    st.sampled_from(OWNERS),
    st.sampled_from([None, None, True]),
    st.sampled_from([None, "x"]),
)
MOVES = st.sampled_from(["regenerate", "destroy"]) | LOGINS
ASKED = st.tuples(st.sampled_from([0, 0, 0, 1]), st.booleans(), USES, st.none() | MOVES)
SPANS = [20, 59, 60, 301, 86_400, 8 * 86_400, 14 * 86_400]

Opened: TypeAlias = tuple[int, OpenRequest, Asking]
"""The browser, its request, and what the model has of that."""


class Story(RuleBasedStateMachine):
    """Browsers that send requests, which are open until they commit or fail."""

    requests = Bundle("requests")

    def __init__(self, client: Any, database: str, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.settings = [{"mongodb_session_db": database} | more for more, _ in DEPLOYMENTS]
        self.stores = [MongoStore(one, client=client, clock=clock) for one in self.settings]
        aware = CODEC.with_options(tz_aware=True, tzinfo=timezone.utc)
        self.stored = self.stores[0].collection.with_options(aware)
        self.stored.delete_many({})
        self.deployed = 0
        self.model = Model(clock)
        self.cookies = ["", ""]
        self.sent: list[OpenRequest] = []

    @property
    def store(self) -> MongoStore:
        return self.stores[self.deployed]

    @property
    def today(self) -> Rules:
        return DEPLOYMENTS[self.deployed][1]

    @initialize(deployed=st.sampled_from(range(len(DEPLOYMENTS))))
    def deploy(self, deployed: int) -> None:
        """Begin with some settings, and with a session for each browser."""
        self.deployed = deployed
        for browser in range(len(self.cookies)):
            asking = Asking(None, self.today, data={"a": browser}, about=About.WRITE)
            assert self.model.commit(asking) is Cookie.NEW
            token = self.store.create({"a": browser}).token
            assert token is not None
            self.model.answered(token)
            self.cookies[browser] = token

    @rule(target=requests, asked=st.lists(ASKED, min_size=1, max_size=3))
    def open(self, asked: list[tuple[int, bool, list[Any], Any]]) -> MultipleResults[Opened]:
        """Open requests: of which browser, whether they read, what they use, and how they move."""
        opened = [self._opened(browser) for browser, *_ in asked]
        for one, (_, is_reading, uses, move) in zip(opened, asked, strict=True):
            if is_reading:
                self.read(one)
            for what, key, value in uses:
                self.use(one, what, key, value)
            if move is not None:
                self.move(one, move)
        return multiple(*opened)

    @rule(request=requests)
    def read(self, request: Opened) -> None:
        _, real, asking = request
        asking.touch()
        self.model.look(asking)
        assert real.session.copy() == asking.data

    @rule(request=requests, what=WHATS, key=KEYS, value=VALUES)
    def use(self, request: Opened, what: str, key: str, value: int) -> None:
        _, real, asking = request
        asking.touch()
        session, model = real.session, self.model
        match what:
            case "get":
                assert session.get(key) == model.get(asking, key)
            case "set":
                session[key] = asking.data[key] = value
            case "append":
                mine, theirs = session.setdefault(key, []), model.get(asking, key)
                if theirs is None:
                    theirs = asking.data[key] = []
                if isinstance(theirs, list):
                    mine.append(value)
                    theirs.append(value)
            case "delete":
                session.pop(key, None)
                model.delete(asking, key)
            case "clear":
                session.clear()
                model.clear(asking)

    @rule(request=requests, move=MOVES)
    def move(self, request: Opened, move: str | Login) -> None:
        """Regenerate, destroy, or log in."""
        _, real, asking = request
        asking.touch()
        if isinstance(move, Login):
            real.session.login(move.owner, remember=bool(move.remember), label=move.label)
            self.model.log_in(asking, move)
        else:
            getattr(real.session, move)()
            getattr(self.model, move)(asking)

    @rule(request=consumes(requests), is_failing=st.sampled_from([False, False, False, True]))
    def commit(self, request: Opened, is_failing: bool) -> None:
        browser, real, asking = request
        self.clock.now += TICK  # No two sessions are of the same moment.
        if is_failing:
            self._answered(browser, asking, real.fail(), self.model.fail(asking))
        else:
            self._answered(browser, asking, real.commit(), self.model.commit(asking))
        real.close()

    @rule(
        during=requests,
        seconds=st.sampled_from(SPANS),
        is_purged=st.sampled_from([False, False, True]),
    )
    def wait(self, during: Opened, seconds: int, is_purged: bool) -> None:
        self.clock.now += timedelta(seconds=seconds)
        if is_purged:
            self.store.purge()
            self.model.purge()

    @rule(during=requests, deployed=st.sampled_from(range(len(DEPLOYMENTS))))
    def redeploy(self, during: Opened, deployed: int) -> None:
        """Let requests from now on meet other settings; those that are open keep theirs."""
        self.deployed = deployed
        self.compare()

    @rule(during=requests, number=st.integers(0, 9))
    def revoke(self, during: Opened, number: int) -> None:
        """Revoke a session by its id, or by the id that it had."""
        known = [*self.model.sessions, *self.model.marks]
        if known:
            token = known[number % len(known)]
            assert self.store.revoke(id_of(token)) == (self.model.end_chain(token) or 0)
            self.compare()

    @rule(during=requests, owner=st.sampled_from(OWNERS), number=st.integers(0, 9))
    def revoke_all(self, during: Opened, owner: str, number: int) -> None:
        """End all sessions of an owner, often but one, which may have another id by now."""
        known = [None, None, *self.model.sessions, *self.model.marks]
        keep = known[number % len(known)]
        found = self.store.revoke_all(owner, keep=None if keep is None else id_of(keep))
        assert found == self.model.end_all(owner, keep)
        self.compare()

    def compare(self) -> None:
        """Hold what is stored, and what is listed, against the model."""
        model, today = self.model, self.today
        standing = {id_of(t): (t, one) for t, one in model.sessions.items() if model.standing(t)}
        sessions, marks = {}, {}
        for found in self.stored.find({"expires_at": {"$gt": self.clock.now}}):
            id_ = found.pop("_id")
            if "data" in found:
                token, _ = standing.get(id_, ("", None))
                sessions[id_] = _read(found, token)
            elif "successor" in found:
                marks[id_] = found
            else:
                told = found.keys() - {"owner"}
                assert told == {"v", "expires_at", "ended"}, "a tombstone tells more"
        expected = {id_: one for id_, (_, one) in standing.items()}
        assert sessions == expected, "what is stored is not what should be"
        self._compare_marks(marks)
        listed = {
            info.id: (info.data, info.owner, info.label, info.remembered or None, info.expires_at)
            for info in self.store.sessions()
        }
        assert listed == {
            id_of(token): (
                {} if one.is_sealed else one.data,
                one.owner,
                one.label,
                one.remember,
                today.end(one),
            )
            for token, one in model.all_live(today)
        }, "what is listed is not what is live"

    def _compare_marks(self, marks: dict[str, dict[str, Any]]) -> None:
        expected = {
            id_of(token): mark for token, mark in self.model.marks.items() if self.model.mark(token)
        }
        assert marks.keys() == expected.keys(), "the marks are not those that should be"
        for id_, found in marks.items():
            mark = expected[id_]
            assert found["expires_at"] == mark.until
            if mark.successor is not None:
                assert found["successor"] == id_of(mark.successor)
            assert found.keys() <= {"v", "expires_at", "successor", "owner", "login", "ended"}
            assert found.get("owner") == (mark.owner if mark.goes_on else None)

    def teardown(self) -> None:
        for request in self.sent:
            request.close()

    def _opened(self, browser: int) -> Opened:
        token, store = self.cookies[browser], self.store
        settings = self.settings[self.deployed]
        request = OpenRequest(
            lambda app: SessionMiddleware(app, settings, store=store),
            f"{NAME}={token}" if token else "",
        )
        self.sent.append(request)
        return browser, request, Asking(token or None, self.today)

    def _answered(self, browser: int, asking: Asking, response: Response, expected: Cookie) -> None:
        token, begun = response.token, self.model.begun
        match expected:
            case Cookie.KEPT:
                assert token is None, "the browser's cookie was changed"
            case Cookie.EXPIRED:
                assert token == "", "the browser was not told to forget its cookie"
                self.cookies[browser] = ""
            case Cookie.AGAIN:
                assert token == asking.token, "the browser was not told that its cookie lives on"
            case Cookie.NEW:
                assert token, "the browser got no token of its new session"
                assert begun is not None
                assert self.model.is_new(token)
                assert _max_age(response) == asking.rules.max_age(begun)
                self.model.answered(token)
                self.cookies[browser] = token
        self.compare()


def _read(found: dict[str, Any], token: str) -> Stored | None:
    """Return a document as the model would have it; None for a seal that does not open."""
    is_sealed = found.pop("v") == SEALED
    data = Seal(Token(token)).open(found["data"]) if is_sealed else by_key(found["data"])
    data = data and {key: opened(value) for key, value in data.items()}
    return None if data is None else Stored(**found | {"data": data, "is_sealed": is_sealed})


def _max_age(response: Response) -> str | None:
    parts = (part.strip().partition("=") for part in (response.cookie or "").split(";"))
    return next((value for name, _, value in parts if name == "Max-Age"), None)


def _tell(stories: int, client: Any, database: str, clock: Clock) -> None:
    run_state_machine_as_test(
        lambda: Story(client, database, clock),  # type: ignore[arg-type]
        settings=how(
            max_examples=stories,
            stateful_step_count=30,
            deadline=None,
            derandomize=not STORIES,
            database=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no login wait for one that is stored just now: here, nothing happens meanwhile."""
    monkeypatch.setattr(life, "_WAITS", ())


@pytest.mark.unmeasured
@pytest.mark.timeout(LONGEST)
@pytest.mark.server  # For seconds of waiting or of work.
def test_whatever_happens_in_whatever_order_is_as_the_contract_says(clock: Clock) -> None:
    _tell(STORIES or 100, Client(), "memory", clock)


@pytest.mark.unmeasured
@pytest.mark.server
@pytest.mark.timeout(LONGEST)
def test_a_server_keeps_to_the_same_stories(
    client: MongoClient[Any], database: str, clock: Clock
) -> None:
    _tell(STORIES // 30 or 6, client, database, clock)


# Stories that went wrong once.


class Patient(Client):
    """A memory that carries out a hundred commands, and no more: who needs them runs in circles."""

    def run(self, name: str, filter: dict[str, Any], act: Callable[[], T]) -> T:
        self.commands = getattr(self, "commands", 0) + 1
        assert self.commands <= 100, "it runs in circles"
        return super().run(name, filter, act)


class Told:
    """Requests of one visitor that are told one after the other."""

    def __init__(self, clock: Clock, **settings: str) -> None:
        self.clock = clock
        self.client: Any = Patient()
        self.deploy(**settings)

    def deploy(self, **settings: str) -> None:
        """Go on with other settings, on what is stored."""
        self.settings = {"mongodb_session_db": "memory"} | settings
        self.store = MongoStore(self.settings, client=self.client, clock=self.clock)

    def open(self, token: str | None, *uses: Use, reading: bool = False) -> OpenRequest:
        request = OpenRequest(
            lambda app: SessionMiddleware(app, self.settings, store=self.store),
            f"{NAME}={token}" if token else "",
        )
        if reading:
            request.session.copy()
        for use in uses:
            use(request.session)
        return request

    def send(self, token: str | None, *uses: Use) -> str:
        """Send a request and return the token of the cookie that it is answered with."""
        token = self.answer(self.open(token, *uses))
        assert token, "there is no cookie"
        return token

    def answer(self, request: OpenRequest) -> str | None:
        """Commit a request, and return what its cookie says, if there is one."""
        response = request.commit()
        request.close()
        return response.token

    def data(self, token: str) -> dict[str, Any] | None:
        session = self.store.retrieve(token)
        return None if session is None else session.copy()


def _set(session: Session) -> None:
    session["a"] = 1


def _log_in(session: Session) -> None:
    session.login("alice")


def _log_in_for_long(session: Session) -> None:
    session.login("alice", remember=True)


@pytest.mark.parametrize("use", [Session.regenerate, _set], ids=["regenerates", "sets"])
def test_the_cookie_of_a_remembered_session_that_is_over_remembers_nobody(
    clock: Clock, use: Use
) -> None:
    told = Told(clock)
    old = told.send(None, _log_in_for_long)
    told.store.revoke(id_of(old))
    new = told.send(old, _set, use)
    (info,) = told.store.sessions()
    assert (info.id, info.remembered) == (id_of(new), False)
    assert not new.endswith(REMEMBERED)


@pytest.mark.parametrize("end", ["logout", "revocation"])
def test_the_end_of_a_session_whose_successor_has_expired_comes_to_an_end(
    clock: Clock, end: str
) -> None:
    told = Told(clock, session_expires="20s")
    old = told.send(None, _log_in)
    told.send(old, Session.regenerate)
    clock.advance(seconds=30)
    if end == "logout":
        assert told.answer(told.open(old, Session.destroy)) is None
    else:
        assert told.store.revoke(id_of(old)) == 0
    assert list(told.store.sessions()) == []


def test_a_login_with_an_old_token_brings_back_nothing_that_was_ended(clock: Clock) -> None:
    told = Told(clock)
    old = told.send(None, _set, _log_in)
    slow = told.open(old, _log_in, reading=True)
    new = told.send(old, Session.regenerate)
    assert told.answer(told.open(new, Session.destroy)) == ""
    assert told.data(told.answer(slow) or "") == {}


@pytest.mark.parametrize("forget", [Session.clear, Session.destroy], ids=["clear", "destroy"])
def test_a_second_login_that_forgets_the_data_brings_none_along(clock: Clock, forget: Use) -> None:
    told = Told(clock)
    old = told.send(None, _set)
    first = told.send(old, _log_in)
    second = told.send(old, forget, _log_in)
    assert (told.data(first), told.data(second)) == ({"a": 1}, {})


def test_a_request_does_not_bring_back_a_session_that_died_by_new_times(clock: Clock) -> None:
    told = Told(clock)
    token = told.send(None, _set)
    told.deploy(session_expires="1h")
    used, late = (told.open(token, Session.clear, reading=True) for _ in range(2))
    clock.advance(hours=1)
    assert told.answer(late) is None
    told.deploy(session_expires="2h")
    assert told.data(token) == {"a": 1}
    assert told.answer(used) is None
    assert told.data(token) == {"a": 1}

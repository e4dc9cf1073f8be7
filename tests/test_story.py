"""Stories that Hypothesis makes up: requests of several browsers, interleaved freely.

What happens is compared with a model of the contract, after every step. A failure is shrunk to the
shortest story that shows it.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as how
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    multiple,
    rule,
    run_state_machine_as_test,
)
from pymongo.collection import Collection

from mongosession_wsgi import MongoStore, SessionMiddleware
from mongosession_wsgi.document import id_of, unescape

from .conftest import Clock
from .test_overlap import NAME, OpenRequest

IDLE, LIFETIME = timedelta(days=14), timedelta(days=30)
MARK, RENEWAL = timedelta(seconds=60), timedelta(minutes=5)


# The model.


@dataclass
class Stored:
    """A session as it is stored."""

    data: dict[str, Any]
    owner: str | None
    created_at: datetime
    seen_at: datetime
    expires_at: datetime


@dataclass
class Asking:
    """A request: what it saw of its session, what it made of that, and what it is about to do."""

    token: str | None
    has_looked: bool = False
    saw: Stored | None = None
    data: dict[str, Any] = field(default_factory=dict)
    is_wiped: bool = False
    """Whether its data is all that is to stay, whatever others have written."""
    about_to: str = "nothing"
    login: str | None = None

    def wipe(self) -> None:
        self.data, self.is_wiped = {}, True

    def changes(self) -> tuple[dict[str, Any], set[str]]:
        """Return what it set and what it deleted, next to what it saw."""
        before = {} if self.saw is None or self.is_wiped else self.saw.data
        assigned = {
            key: value
            for key, value in self.data.items()
            if key not in before or before[key] != value
        }
        return assigned, set(before) - set(self.data)


class Model:
    """Sessions as the contract has them. Requests are compared by what they leave stored."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sessions: dict[str, Stored] = {}
        self.marks: dict[str, datetime] = {}
        self.begun: Stored | None = None
        """The session that the last commit began; its token is the browser's next cookie."""

    def live(self, token: str | None) -> Stored | None:
        session = self.sessions.get(token or "")
        return session if session and session.expires_at > self.clock.now else None

    def is_marked(self, token: str | None) -> bool:
        return self.marks.get(token or "", self.clock.now) > self.clock.now

    # What an application does.

    def look(self, request: Asking) -> None:
        if request.has_looked or request.is_wiped or request.token is None:
            return
        self._learn(request)

    def get(self, request: Asking, key: str) -> Any:
        if key not in request.data:
            self.look(request)
        return request.data.get(key)

    def delete(self, request: Asking, key: str) -> None:
        if self.get(request, key) is not None:
            self.look(request)
            del request.data[key]

    def clear(self, request: Asking) -> None:
        if request.has_looked or request.token is None:
            request.data.clear()
        else:
            request.wipe()

    def log_in(self, request: Asking, owner: str) -> None:
        if request.data:
            self.look(request)
        of = request.saw.owner if request.saw and request.about_to != "destroy" else None
        if (request.login or of) not in (None, owner):
            request.wipe()
        request.login = owner

    # The commit.

    def commit(self, request: Asking) -> str | None:
        """Store the request's changes; return what becomes of the cookie: "new", "" or None."""
        self.begun = None
        if request.about_to in ("nothing", "stop"):
            return None
        if request.about_to == "destroy":
            return self._destroy(request)
        assigned, removed = request.changes()
        session = self.live(request.token)
        if request.about_to == "write" and not (assigned or removed or request.is_wiped):
            saw = request.saw
            if saw is None or self.clock.now - saw.seen_at < RENEWAL:
                return None
        if request.token is None:
            return self.begin(request, assigned)
        if session is None:
            if request.has_looked:
                return None
            self._learn(request)
            return self.commit(request)
        is_anothers = request.login is not None and session.owner not in (None, request.login)
        kept = {} if request.is_wiped or is_anothers else session.data
        session.data = {k: v for k, v in kept.items() if k not in removed} | deepcopy(assigned)
        self._renew(session)
        if request.about_to == "write":
            return None
        del self.sessions[request.token]
        self.marks[request.token] = self.clock.now + MARK
        if request.login is not None:
            return self.begin(request, session.data)
        self.begun = session
        return "new"

    def fail(self, request: Asking) -> str | None:
        """Answer 500: only a destroy is carried out."""
        request.data, request.login = {}, None
        return self.commit(request) if request.about_to == "destroy" else None

    def _learn(self, request: Asking) -> None:
        request.has_looked = True
        session = self.live(request.token)
        if session is not None:
            assigned, _ = request.changes()
            request.saw = deepcopy(session)
            request.data = assigned if request.is_wiped else deepcopy(session.data) | assigned
            return
        if self.is_marked(request.token):
            request.about_to = "stop"
        request.token = None

    def _destroy(self, request: Asking) -> str | None:
        session = self.live(request.token)
        if session is not None:
            del self.sessions[request.token or ""]
        elif request.saw is not None or self.is_marked(request.token):
            return None
        return self.begin(request, request.data) or ("" if session else None)

    def begin(self, request: Asking, data: dict[str, Any]) -> str | None:
        if not data and request.login is None:
            return None
        now = self.clock.now
        self.begun = Stored(deepcopy(data), request.login, now, now, now + IDLE)
        return "new"

    def _renew(self, session: Stored) -> None:
        session.seen_at = self.clock.now
        session.expires_at = max(
            session.expires_at, min(self.clock.now + IDLE, session.created_at + LIFETIME)
        )


# The stories.

KEYS = st.sampled_from(["a", "b", "c.d"])
VALUES = st.integers(0, 9)
WHATS = st.sampled_from(["set", "append", "get", "delete", "clear"])
USES = st.lists(st.tuples(WHATS, KEYS, VALUES), max_size=2)
ASKED = st.tuples(st.sampled_from([0, 0, 0, 1]), st.booleans(), USES)


Opened = tuple[int, OpenRequest, Asking]
"""The browser, its request, and what the model has of that."""


class Story(RuleBasedStateMachine):
    """Browsers that send requests, which are open until they commit or fail."""

    requests = Bundle("requests")

    def __init__(
        self, settings: dict[str, Any], store: MongoStore, stored: Collection[Any], clock: Clock
    ) -> None:
        super().__init__()
        stored.delete_many({})
        self.settings, self.store, self.stored, self.clock = settings, store, stored, clock
        self.model = Model(clock)
        self.cookies = ["", ""]
        self.sent: list[OpenRequest] = []
        for browser in range(len(self.cookies)):  # Each comes with a session.
            expected = self.model.begin(Asking(None), {"a": browser})
            self._answered(browser, store.create({"a": browser}).token, expected)

    @rule(target=requests, asked=st.lists(ASKED, min_size=1, max_size=3))
    def open(self, asked: list[tuple[int, bool, list[Any]]]) -> MultipleResults[Opened]:
        """Open requests: of which browser, whether they read, and what they use then."""
        opened = [self._opened(browser) for browser, _, _ in asked]
        for one, (_, is_reading, uses) in zip(opened, asked, strict=True):
            if is_reading:
                self.read(one)
            for what, key, value in uses:
                self.use(one, what, key, value)
        return multiple(*opened)

    @rule(request=requests)
    def read(self, request: Opened) -> None:
        _, real, asking = request
        self._touch(asking)
        self.model.look(asking)
        assert real.session.copy() == asking.data

    @rule(
        request=requests,
        what=WHATS,
        key=KEYS,
        value=VALUES,
    )
    def use(self, request: Opened, what: str, key: str, value: int) -> None:
        _, real, asking = request
        self._touch(asking)
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

    @rule(request=requests, what=st.sampled_from(["regenerate", "destroy", "alice", "bob"]))
    def regenerate_destroy_or_log_in(self, request: Opened, what: str) -> None:
        _, real, asking = request
        self._touch(asking)
        if what == "destroy":
            real.session.destroy()
            if asking.about_to != "stop":
                asking.about_to, asking.login = "destroy", None
                asking.wipe()
            return
        if what == "regenerate":
            real.session.regenerate()
        else:
            real.session.login(what)
            self.model.log_in(asking, what)
        if asking.about_to == "write":
            asking.about_to = "regenerate"

    @rule(request=consumes(requests), is_failing=st.sampled_from([False, False, False, True]))
    def commit(self, request: Opened, is_failing: bool) -> None:
        browser, real, asking = request
        if is_failing:
            self._answered(browser, real.fail().token, self.model.fail(asking))
        else:
            self._answered(browser, real.commit().token, self.model.commit(asking))
        real.close()

    @rule(
        during=requests,
        span=st.sampled_from([timedelta(seconds=59), MARK, RENEWAL, timedelta(days=8), IDLE, IDLE]),
        is_purged=st.sampled_from([False, False, True]),
    )
    def wait(self, during: Opened, span: timedelta, is_purged: bool) -> None:
        self.clock.now += span
        if is_purged:
            self.store.purge()

    @rule(during=requests, number=st.integers(0, 5))
    def revoke(self, during: Opened, number: int) -> None:
        live = [token for token in self.model.sessions if self.model.live(token)]
        if live:
            token = live[number % len(live)]
            del self.model.sessions[token]
            assert self.store.revoke(id_of(token)) == 1
            self.compare()

    def compare(self) -> None:
        """Hold what is stored against the model."""
        sessions, marks = {}, {}
        for found in self.stored.find({"expires_at": {"$gt": self.clock.now}}):
            if "data" in found:
                found["data"] = {unescape(name): value for name, value in found["data"].items()}
                sessions[found["_id"]] = Stored(*(found[each.name] for each in fields(Stored)))
            else:
                marks[found["_id"]] = found["expires_at"]
        model = self.model
        live = {id_of(token): model.live(token) for token in model.sessions if model.live(token)}
        assert sessions == live, "what is stored is not what should be"
        until = {
            id_of(token): model.marks[token] for token in model.marks if model.is_marked(token)
        }
        assert marks == until, "the marks are not those that should be"

    def teardown(self) -> None:
        for request in self.sent:
            request.close()

    def _opened(self, browser: int) -> Opened:
        token = self.cookies[browser]
        request = OpenRequest(
            lambda app: SessionMiddleware(app, self.settings, store=self.store),
            f"{NAME}={token}" if token else "",
        )
        self.sent.append(request)
        return browser, request, Asking(token or None)

    def _touch(self, asking: Asking) -> None:
        if asking.about_to == "nothing":
            asking.about_to = "write"

    def _answered(self, browser: int, cookie: str | None, expected: str | None) -> None:
        begun = self.model.begun
        if expected == "new":
            assert cookie, "the browser got no token of its new session"
            assert begun is not None
            assert cookie not in self.model.sessions | self.model.marks
            self.model.sessions[cookie] = begun
        else:
            assert cookie == expected, "the browser's cookie was changed"
        if cookie is not None:
            self.cookies[browser] = cookie
        self.compare()


@pytest.mark.timeout(900)
def test_whatever_happens_in_whatever_order_is_as_the_contract_says(
    settings: dict[str, Any], store: MongoStore, stored: Collection[Any], clock: Clock
) -> None:
    run_state_machine_as_test(
        lambda: Story(settings, store, stored, clock),
        settings=how(
            max_examples=300,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )

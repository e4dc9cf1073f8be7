"""Requests of one session that overlap: nothing lost, nobody revived.

Most tests hold requests open at their commit and let them commit in a chosen order, in one thread:
what a request does to its session happens at the commit, so that this shows every order there is.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import permutations
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from mongosession_wsgi import (
    MongoStore,
    Session,
    SessionDataError,
    SessionMiddleware,
    SessionWarning,
    life,
)
from mongosession_wsgi.document import id_of

from . import races
from .conftest import Clock
from .races import LONGEST_WAIT, answer_of, asked, two_processes
from .wsgi import KEY, Response, conforming, environ_of

Use = Callable[[Session], Any]
NAME = "mongosession"
BEFORE = {"user": "alice", "cart": ["egg"], "count": 1}


class OpenRequest:
    """A request that waits at its commit: until it is told to, it has not answered.

    Its application is a generator, so that whatever is done to `session` before `commit` is what
    the application does before its first item, and what is done until `close` comes late.
    """

    def __init__(self, middleware: Callable[..., SessionMiddleware], cookie: str) -> None:
        self.session: Session
        self.on_header: Callable[[], object] = lambda: None
        """What happens elsewhere at the moment at which the server gets the headers."""
        self._status = "200 OK"
        self._is_closed = False
        self._started: list[tuple[str, list[tuple[str, str]]]] = []
        environ = environ_of(**({"HTTP_COOKIE": cookie} if cookie else {}))
        self._body: Any = validator(middleware(conforming(self._app)))(
            environ, self._start_response
        )
        self._items = iter(self._body)

    def commit(self) -> Response:
        """Send the first item, and the headers before it."""
        items = [next(self._items)]
        status, headers = self._started[-1]
        return Response(status, headers, b"".join(items), [])

    def fail(self, status: str = "500 Internal Server Error") -> Response:
        """Answer with an error page instead."""
        self._status = status
        return self.commit()

    def close(self) -> None:
        """Send the rest, and end the response; do nothing if it has ended."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            for _ in self._items:
                pass
        finally:
            self._body.close()

    def _app(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.session = environ[KEY]
        return self._answer(start_response)

    def _answer(self, start_response: Any) -> Iterator[bytes]:
        start_response(self._status, [("Content-Type", "text/plain; charset=utf-8")])
        yield b"answer"

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        self._started.append((status, headers))
        self.on_header()
        return lambda data: None


class Visit:
    """A browser with a live session, whose requests are held open."""

    def __init__(
        self, settings: dict[str, Any], store: MongoStore, stored: Collection[Any], token: str
    ) -> None:
        self.settings = settings
        self.store = store
        self.token = token
        self.id = id_of(token)
        self._stored = stored
        self._open: list[OpenRequest] = []

    def request(
        self, use: Use | None = None, *, reading: bool = False, store: MongoStore | None = None
    ) -> OpenRequest:
        """Open a request that looks at its session, if `reading`, and then does `use`."""
        request = OpenRequest(
            lambda app: SessionMiddleware(app, self.settings, store=store or self.store),
            f"{NAME}={self.token}",
        )
        self._open.append(request)
        if reading:
            assert request.session.copy()
        if use is not None:
            use(request.session)
        return request

    def data(self, token: str | None = None) -> dict[str, Any] | None:
        """Return what a request that comes now finds; None without a live session."""
        session = self.store.retrieve(token or self.token)
        return None if session is None else session.copy()

    def document(self) -> dict[str, Any]:
        """Return the session as it is stored."""
        found = self._stored.find_one({"_id": self.id})
        assert found is not None
        return dict(found)

    def all_live(self) -> list[dict[str, Any]]:
        return [info.data for info in self.store.sessions()]

    def close(self) -> None:
        for request in self._open:
            request.close()


@pytest.fixture
def visit(settings: dict[str, Any], store: MongoStore, stored: Collection[Any]) -> Iterator[Visit]:
    session = store.create(BEFORE)
    assert session.token is not None
    visit = Visit(settings, store, stored, session.token)
    yield visit
    visit.close()


def _commit(*requests: OpenRequest) -> list[Response]:
    return [request.commit() for request in requests]


def _unchanged(response: Response) -> bool:
    """Say whether a response went out as the application made it, without a cookie."""
    return response.status == "200 OK" and response.body == b"answer" and response.cookie is None


in_both_orders = pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "reversed"])
reading_or_not = pytest.mark.parametrize("reading", [True, False], ids=["having read", "unread"])


# 6.1: changes of different keys all survive; of the same key, the last commit wins, whole.


@pytest.mark.parametrize("order", list(permutations(range(3))))
@reading_or_not
def test_changes_of_different_keys_all_survive(
    visit: Visit, order: tuple[int, ...], reading: bool
) -> None:
    requests = [
        visit.request(lambda session: session.update(new=1), reading=reading),
        visit.request(lambda session: session.update(count=2), reading=reading),
        visit.request(lambda session: session["cart"].append("ham")),
    ]
    responses = _commit(*[requests[place] for place in order])
    assert all(_unchanged(response) for response in responses)
    assert visit.data() == {"user": "alice", "cart": ["egg", "ham"], "count": 2, "new": 1}


@in_both_orders
@reading_or_not
def test_of_the_same_key_the_last_commit_wins_whole(
    visit: Visit, order: tuple[int, int], reading: bool
) -> None:
    values = [{"only": "first"}, {"also": "second"}]
    requests = [
        visit.request(lambda s, value=value: s.update(key=value), reading=reading)  # type: ignore[misc]
        for value in values
    ]
    _commit(*[requests[place] for place in order])
    assert visit.data() == BEFORE | {"key": values[order[1]]}


@in_both_orders
def test_nested_changes_of_one_key_are_not_merged(visit: Visit, order: tuple[int, int]) -> None:
    requests = [
        visit.request(lambda session: session["cart"].append("ham")),
        visit.request(lambda session: session["cart"].append("jam")),
    ]
    _commit(*[requests[place] for place in order])
    assert visit.data() == BEFORE | {"cart": ["egg", ["ham", "jam"][order[1]]]}


@in_both_orders
def test_a_key_that_one_deletes_and_one_sets_is_as_the_last_left_it(
    visit: Visit, order: tuple[int, int]
) -> None:
    requests = [
        visit.request(lambda session: session.pop("count")),
        visit.request(lambda session: session.update(count=2)),
    ]
    _commit(*[requests[place] for place in order])
    rest = {"user": "alice", "cart": ["egg"]}
    assert visit.data() == [rest | {"count": 2}, rest][order[1] == 0]


@in_both_orders
def test_deleting_one_key_leaves_another_that_is_set(visit: Visit, order: tuple[int, int]) -> None:
    requests = [
        visit.request(lambda session: session.pop("count")),
        visit.request(lambda session: session.update(new=1)),
    ]
    _commit(*[requests[place] for place in order])
    assert visit.data() == {"user": "alice", "cart": ["egg"], "new": 1}


@in_both_orders
def test_clearing_what_was_read_leaves_the_keys_that_others_add(
    visit: Visit, order: tuple[int, int]
) -> None:
    requests = [
        visit.request(lambda session: session.clear(), reading=True),
        visit.request(lambda session: session.update(new=1)),
    ]
    _commit(*[requests[place] for place in order])
    assert visit.data() == {"new": 1}


def test_clearing_without_a_look_replaces_all_that_is_there_at_the_commit(visit: Visit) -> None:
    clearing = visit.request(lambda session: (session.clear(), session.update(fresh=1)))
    before = visit.request(lambda session: session.update(before=1))
    after = visit.request(lambda session: session.update(after=1))
    _commit(before, clearing, after)
    assert visit.data() == {"fresh": 1, "after": 1}


@in_both_orders
def test_every_str_is_a_key_that_survives_overlap(visit: Visit, order: tuple[int, int]) -> None:
    strange = [
        "",
        "a.b",
        "a",
        "$x",
        "x$",
        "_id",
        "\0",
        "a\0b",
        "%",
        "%2E",
        "0",
        "data",
        "é",
        "\U0001f95a",
    ]
    halves = strange[::2], strange[1::2]
    requests = [
        visit.request(lambda s, half=half: s.update({key: key for key in half}))  # type: ignore[misc]
        for half in halves
    ]
    _commit(*[requests[place] for place in order])
    assert visit.data() == BEFORE | {key: key for key in strange}


# 6.2: a request that only read never undoes another's write.


@in_both_orders
@pytest.mark.parametrize("minutes", [0, 10], ids=["", "and renewing"])
def test_reading_undoes_no_write(
    visit: Visit, clock: Clock, order: tuple[int, int], minutes: int
) -> None:
    clock.advance(minutes=minutes)
    requests = [
        visit.request(lambda session: list(session.items()), reading=True),
        visit.request(lambda session: (session.pop("count"), session["cart"].append("ham"))),
    ]
    _commit(*[requests[place] for place in order])
    assert visit.data() == {"user": "alice", "cart": ["egg", "ham"]}
    assert visit.document()["seen_at"] == clock.now if minutes else True


def test_putting_back_what_was_read_undoes_no_write(visit: Visit) -> None:
    reader = visit.request(lambda session: session.update(session.copy()))
    _commit(visit.request(lambda session: session.update(count=2)), reader)
    assert visit.data() == BEFORE | {"count": 2}


# 6.3: ending wins, whoever ends, and whatever the request is about to do.

ENDINGS: dict[str, Callable[[Visit, Clock, Collection[Any]], Any]] = {
    "logout": lambda visit, clock, stored: _commit(visit.request(lambda s: s.destroy())),
    "logout having read": lambda visit, clock, stored: _commit(
        visit.request(lambda s: (s.copy(), s.destroy()))
    ),
    "regeneration": lambda visit, clock, stored: _commit(visit.request(lambda s: s.regenerate())),
    "login": lambda visit, clock, stored: _commit(visit.request(lambda s: s.login("alice"))),
    "revoke": lambda visit, clock, stored: visit.store.revoke(visit.id),
    "expiry": lambda visit, clock, stored: clock.advance(days=14),
    "expiry and purge": lambda visit, clock, stored: (
        clock.advance(days=14),
        visit.store.purge(),
    ),
    "TTL deletion": lambda visit, clock, stored: (
        clock.advance(days=14),
        stored.delete_one({"_id": visit.id}),
    ),
}
USES: dict[str, Use] = {
    "reads": lambda session: session.copy(),
    "sets": lambda session: session.update(late=1),
    "changes a list": lambda session: session["cart"].append("late"),
    "deletes": lambda session: session.pop("count", None),
    "clears": lambda session: session.clear(),
    "regenerates": lambda session: session.regenerate(),
    "sets and regenerates": lambda session: (session.update(late=1), session.regenerate()),
    "logs in": lambda session: session.login("late"),
}
WRITES = ["sets", "changes a list", "deletes", "clears"]
after_any_ending = pytest.mark.parametrize("end", ENDINGS)


FOLLOWED = {("regeneration", "logs in"), ("login", "logs in")}
"""What a request still does where its session goes on under a new token: see 6.4."""


@pytest.mark.parametrize(
    ("end", "use"), [(end, use) for end in ENDINGS for use in USES if (end, use) not in FOLLOWED]
)
def test_a_session_that_was_ended_in_mid_request_stays_ended(
    visit: Visit, clock: Clock, stored: Collection[Any], end: str, use: str
) -> None:
    request = visit.request(reading=True)
    clock.advance(minutes=10)  # So that a mere reader is about to renew.
    ENDINGS[end](visit, clock, stored)
    before = list(stored.find(sort=["_id"]))
    USES[use](request.session)
    response = request.commit()
    assert _unchanged(response)
    assert response.header("Vary") == "Cookie"
    assert list(stored.find(sort=["_id"])) == before
    assert visit.data() is None
    USES[use](request.session)
    request.close()
    assert list(stored.find(sort=["_id"])) == before


@after_any_ending
@pytest.mark.parametrize("use", WRITES)
def test_a_session_ends_whatever_was_written_before(
    visit: Visit, clock: Clock, stored: Collection[Any], end: str, use: str
) -> None:
    _commit(visit.request(USES[use], reading=True))
    ENDINGS[end](visit, clock, stored)
    assert visit.data() is None


@pytest.mark.parametrize("end", ["logout", "revoke", "expiry and purge", "TTL deletion"])
def test_destroying_what_is_gone_is_no_error_and_no_cookie(
    visit: Visit, clock: Clock, stored: Collection[Any], end: str
) -> None:
    request = visit.request(reading=True)
    ENDINGS[end](visit, clock, stored)
    request.session.destroy()
    assert _unchanged(request.commit())
    assert visit.all_live() == []


@pytest.mark.parametrize("end", [end for end in ENDINGS if end != "regeneration"])
def test_what_is_set_after_destroying_what_is_ended_starts_nothing(
    visit: Visit,
    clock: Clock,
    stored: Collection[Any],
    end: str,
) -> None:
    request = visit.request(reading=True)
    ENDINGS[end](visit, clock, stored)
    live = visit.all_live()
    request.session.destroy()
    request.session["late"] = 1
    assert _unchanged(request.commit())
    assert visit.all_live() == live


@pytest.mark.parametrize("reading", [True, False], ids=["having read", "unread"])
def test_logout_wins_over_every_request_that_is_under_way(visit: Visit, reading: bool) -> None:
    under_way = [visit.request(use, reading=True) for use in USES.values()]
    (logout,) = _commit(visit.request(lambda session: session.destroy(), reading=reading))
    assert logout.token == ""
    assert all(_unchanged(response) for response in _commit(*under_way))
    assert visit.data() is None
    assert visit.all_live() == []


def test_what_is_set_after_destroy_is_safe_from_requests_of_the_old_session(visit: Visit) -> None:
    slow = visit.request(lambda session: session.update(late=1), reading=True)
    anew = visit.request(lambda session: (session.destroy(), session.update(fresh=1)))
    first, second = _commit(anew, slow)
    assert _unchanged(second)
    assert visit.data(first.token) == {"fresh": 1}
    assert visit.all_live() == [{"fresh": 1}]


def test_two_logouts_at_once_are_one(visit: Visit) -> None:
    requests = [visit.request(lambda session: session.destroy(), reading=True) for _ in range(2)]
    assert [response.token for response in _commit(*requests)] == ["", None]
    assert visit.all_live() == []


def test_revoking_all_of_an_owner_wins_over_requests_that_are_under_way(visit: Visit) -> None:
    (login,) = _commit(visit.request(lambda session: session.login("alice")))
    assert login.token
    visit.token = login.token
    under_way = [visit.request(use, reading=True) for use in USES.values()]
    assert visit.store.revoke_all("alice") == 1
    assert all(_unchanged(response) for response in _commit(*under_way))
    assert visit.all_live() == []


def test_a_session_that_is_kept_from_a_revocation_of_all_goes_on(visit: Visit) -> None:
    (login,) = _commit(visit.request(lambda session: session.login("alice")))
    assert login.token
    visit.token = login.token
    under_way = visit.request(lambda session: session.update(late=1), reading=True)
    assert visit.store.revoke_all("alice", keep=id_of(login.token)) == 0
    _commit(under_way)
    assert visit.data() == BEFORE | {"late": 1}


def test_a_purge_in_mid_request_spares_what_lives(visit: Visit, clock: Clock) -> None:
    clock.advance(days=13)
    request = visit.request(lambda session: session.update(late=1), reading=True)
    assert visit.store.purge() == 0
    _commit(request)
    assert visit.data() == BEFORE | {"late": 1}


# A request that has not looked at its session writes without a read.


@pytest.mark.parametrize("end", ["logout", "revoke", "expiry", "TTL deletion"])
def test_a_blind_write_to_what_is_gone_starts_a_new_session_with_just_its_keys(
    visit: Visit, clock: Clock, stored: Collection[Any], end: str
) -> None:
    request = visit.request(lambda session: session.update(late=1))
    ENDINGS[end](visit, clock, stored)
    (response,) = _commit(request)
    assert response.token
    assert response.token != visit.token
    assert visit.data(response.token) == {"late": 1}
    assert visit.data() is None
    assert visit.all_live() == [{"late": 1}]


@pytest.mark.parametrize("end", ["logout", "revoke", "expiry", "TTL deletion"])
def test_a_blind_change_without_a_key_starts_nothing_where_the_session_is_gone(
    visit: Visit, clock: Clock, stored: Collection[Any], end: str
) -> None:
    requests = [
        visit.request(lambda session: session.clear()),
        visit.request(lambda session: session.regenerate()),
    ]
    ENDINGS[end](visit, clock, stored)
    assert all(_unchanged(response) for response in _commit(*requests))
    assert visit.all_live() == []


@pytest.mark.parametrize("end", ["regeneration", "login"])
@pytest.mark.parametrize(
    "use",
    [
        USES["sets"],
        USES["clears"],
        USES["regenerates"],
        USES["sets and regenerates"],
        lambda session: (session.clear(), session.update(late=1)),
    ],
)
def test_a_blind_change_of_what_was_regenerated_away_is_dropped(
    visit: Visit, clock: Clock, stored: Collection[Any], end: str, use: Use
) -> None:
    request = visit.request(use)
    ENDINGS[end](visit, clock, stored)
    without_note = {"ended": False}
    before = list(stored.find({}, without_note, sort=["_id"]))
    assert _unchanged(request.commit())
    request.close()
    assert list(stored.find({}, without_note, sort=["_id"])) == before
    assert visit.all_live() == [BEFORE]


# 6.4: a token that was regenerated away reads as empty, and sets no cookie, for 60 seconds.


def test_a_mark_without_data_stands_for_a_token_that_was_regenerated_away(
    visit: Visit, clock: Clock
) -> None:
    (response,) = _commit(visit.request(lambda session: session.regenerate()))
    assert visit.document() == {
        "_id": visit.id,
        "v": 1,
        "owner": None,
        "successor": id_of(response.token or ""),
        "expires_at": clock.now + timedelta(seconds=60),
    }


def test_the_mark_of_a_login_says_nothing_of_who_logged_in(visit: Visit, clock: Clock) -> None:
    (response,) = _commit(visit.request(lambda session: session.login("alice")))
    assert visit.document() == {
        "_id": visit.id,
        "v": 1,
        "successor": id_of(response.token or ""),
        "expires_at": clock.now + timedelta(seconds=60),
    }


@pytest.mark.parametrize("seconds", [0, 59])
@pytest.mark.parametrize(
    "use",
    [
        USES["sets"],
        USES["clears"],
        USES["sets and regenerates"],
    ],
)
def test_a_late_request_with_a_regenerated_token_sees_nothing_and_changes_nothing(
    visit: Visit, clock: Clock, stored: Collection[Any], seconds: int, use: Use
) -> None:
    _commit(visit.request(lambda session: session.regenerate()))
    clock.advance(seconds=seconds)
    before = list(stored.find(sort=["_id"]))
    request = visit.request()
    session = request.session
    assert session.copy() == {}
    assert (session.id, session.token, session.owner, session.new) == (None, None, None, True)
    use(session)
    assert _unchanged(request.commit())
    request.close()
    assert list(stored.find(sort=["_id"])) == before


def test_the_mark_is_never_moved(visit: Visit, clock: Clock) -> None:
    slow = [visit.request(use, reading=True) for use in USES.values()]
    _commit(visit.request(lambda session: session.regenerate()))
    mark = visit.document()
    clock.advance(seconds=30)
    _commit(*slow, *[visit.request(use) for use in [USES["sets"], USES["regenerates"]]])
    assert visit.document() == mark


def test_after_the_mark_a_regenerated_token_is_no_session(visit: Visit, clock: Clock) -> None:
    _commit(visit.request(lambda session: session.regenerate()))
    clock.advance(seconds=60)
    reader, writer = visit.request(), visit.request(lambda session: session.update(late=1))
    assert reader.session.copy() == {}
    assert reader.session.id is None
    unchanged, started = _commit(reader, writer)
    assert _unchanged(unchanged)
    assert started.token not in (None, visit.token)
    assert visit.data(started.token) == {"late": 1}


def test_a_purge_removes_marks_when_their_time_has_come_and_not_before(
    visit: Visit, clock: Clock, stored: Collection[Any]
) -> None:
    _commit(visit.request(lambda session: session.regenerate()))
    clock.advance(seconds=59)
    assert visit.store.purge() == 0
    clock.advance(seconds=1)
    assert visit.store.purge() == 1
    assert stored.count_documents({}) == 1


# 6.4, [2]: a logout by a token that was replaced follows the session; a login is a login.

ROTATIONS: dict[str, Use] = {
    "rotation": lambda session: session.regenerate(),
    "the same owner's login": lambda session: session.login("alice"),
}
LOGOUTS: dict[str, Use] = {
    "logout": lambda session: session.destroy(),
    "logout, then a new session": lambda session: (session.destroy(), session.update(new=1)),
    "logout, then a login": lambda session: (session.destroy(), session.login("carol")),
}


@pytest.fixture
def alice(visit: Visit) -> Visit:
    """A visit of Alice, who has logged in."""
    (response,) = _commit(visit.request(lambda session: session.login("alice")))
    visit.token = response.token or ""
    return visit


@in_both_orders
@reading_or_not
@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("logout", LOGOUTS)
def test_a_logout_and_a_rotation_at_once_end_the_session(
    alice: Visit, order: tuple[int, int], reading: bool, rotation: str, logout: str
) -> None:
    requests = [
        alice.request(ROTATIONS[rotation], reading=reading),
        alice.request(LOGOUTS[logout], reading=reading),
    ]
    answers = dict(zip(order, _commit(*[requests[place] for place in order]), strict=True))
    live = [(info.owner, info.data) for info in alice.store.sessions()]
    expected: dict[str, list[tuple[str | None, dict[str, Any]]]] = {
        "logout": [],
        "logout, then a new session": [(None, {"new": 1})],
        "logout, then a login": [("carol", {})],
    }
    if order == (1, 0) and not reading and rotation != "rotation":
        live.remove(("alice", {}))  # A login by a token that was not looked at and is dead by now.
    assert live == expected[logout]
    assert answers[1].cookie is not None
    assert (answers[1].token == "") == (logout == "logout")


@pytest.mark.parametrize("times", [1, 3])
def test_a_logout_follows_several_rotations(alice: Visit, times: int) -> None:
    first = alice.token
    for _ in range(times):
        (response,) = _commit(alice.request(lambda session: session.regenerate()))
        alice.token = response.token or ""
    alice.token = first
    (logout,) = _commit(alice.request(lambda session: session.destroy()))
    assert logout.token == ""
    assert alice.all_live() == []


@pytest.mark.parametrize("logout", ["logout", "logout, then a new session"])
@pytest.mark.parametrize("owner", [None, "bob"])
def test_a_logout_by_the_token_from_before_somebody_elses_login_ends_nothing(
    visit: Visit, owner: str | None, logout: str
) -> None:
    if owner is not None:
        (bob,) = _commit(visit.request(lambda session: session.login(owner)))
        visit.token = bob.token or ""
    late = visit.request(LOGOUTS[logout])
    (login,) = _commit(visit.request(lambda session: session.login("alice")))
    assert _unchanged(late.commit())
    assert [info.id for info in visit.store.sessions()] == [id_of(login.token or "")]


@reading_or_not
@pytest.mark.parametrize("owner", ["alice", "bob"])
def test_a_double_click_on_log_in_leaves_nobody_outside(
    visit: Visit, owner: str, reading: bool
) -> None:
    requests = [
        visit.request(lambda session: session.login("alice"), reading=reading),
        visit.request(lambda s: (s.login(owner), s.update(mine=1)), reading=reading),
    ]
    first, second = _commit(*requests)
    assert first.token
    assert second.token not in (None, first.token)
    assert visit.data(first.token) == BEFORE
    assert visit.data(second.token) == (BEFORE if owner == "alice" else {}) | {"mine": 1}
    assert sorted(info.owner or "" for info in visit.store.sessions()) == ["alice", owner]


def test_a_login_by_a_token_that_was_rotated_away_has_the_owners_data(alice: Visit) -> None:
    late = alice.request(lambda session: session.login("alice"))
    (rotation,) = _commit(alice.request(lambda s: (s.update(new=1), s.regenerate())))
    (login,) = _commit(late)
    assert alice.data(login.token) == alice.data(rotation.token) == BEFORE | {"new": 1}


# 6.5: of several requests that regenerate one session at once, one wins.

REGENERATIONS: list[Use] = [
    lambda session: session.regenerate(),
    lambda session: session.login("alice"),
    lambda session: session.login("bob"),
]


@reading_or_not
def test_of_several_regenerations_the_first_to_commit_wins(
    visit: Visit, stored: Collection[Any], reading: bool
) -> None:
    requests = [
        visit.request(lambda session: session.regenerate(), reading=reading) for _ in range(3)
    ]
    won, *others = _commit(*requests)
    assert won.token
    assert all(_unchanged(response) for response in others)
    assert visit.data() is None
    assert visit.data(won.token) == BEFORE
    (info,) = visit.store.sessions()
    assert info.id == id_of(won.token)
    assert stored.count_documents({}) == 2


@pytest.mark.parametrize("order", list(permutations(range(3))))
@reading_or_not
def test_of_a_regeneration_and_logins_each_login_is_one(
    visit: Visit, order: tuple[int, ...], reading: bool
) -> None:
    requests = [visit.request(use, reading=reading) for use in REGENERATIONS]
    responses = _commit(*[requests[place] for place in order])
    won = responses[0]
    assert visit.data(won.token) == BEFORE
    for place, response in zip(order, responses, strict=True):
        assert bool(response.token) == (place > 0 or response is won)
    owners = sorted(info.owner or "" for info in visit.store.sessions())
    assert owners == (["", "alice", "bob"] if order[0] == 0 else ["alice", "bob"])


@in_both_orders
def test_what_overlapping_requests_wrote_before_goes_over_to_the_new_session(
    visit: Visit, order: tuple[int, int]
) -> None:
    regenerating = visit.request(
        lambda session: (session.update(mine=1), session.pop("count"), session.regenerate()),
        reading=True,
    )
    requests = [
        visit.request(lambda session: session.update(first=1)),
        visit.request(lambda session: session["cart"].append("ham")),
    ]
    _commit(*[requests[place] for place in order])
    (response,) = _commit(regenerating)
    assert visit.data(response.token) == {
        "user": "alice",
        "cart": ["egg", "ham"],
        "first": 1,
        "mine": 1,
    }


def test_a_login_drops_the_data_of_another_owner_whoever_wrote_it_last(visit: Visit) -> None:
    (alice,) = _commit(visit.request(lambda session: session.login("alice")))
    assert alice.token
    visit.token = alice.token
    bob = visit.request(lambda session: (session.login("bob"), session.update(mine=1)))
    _commit(visit.request(lambda session: session.update(secret=1)))
    (response,) = _commit(bob)
    assert visit.data(response.token) == {"mine": 1}


@in_both_orders
def test_of_logout_and_login_at_once_the_first_to_commit_wins(
    visit: Visit, order: tuple[int, int]
) -> None:
    requests = [
        visit.request(lambda session: session.destroy(), reading=True),
        visit.request(lambda session: session.login("alice"), reading=True),
    ]
    won, lost = _commit(*[requests[place] for place in order])
    assert _unchanged(lost)
    assert visit.data() is None
    if order[0] == 0:
        assert won.token == ""
        assert visit.all_live() == []
    else:
        assert won.token
        assert visit.all_live() == [BEFORE]


# Revoked between the two commands of a regeneration.


class _PausingStore(MongoStore):
    """Does something else, once, where a session is about to be inserted."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        begun = self._life._begun

        def pause(*args: Any) -> Any:
            meanwhile, self.meanwhile = self.meanwhile, lambda: None
            meanwhile()
            return begun(*args)

        commits: Any = self._life
        commits._begun = pause


def pausing_store(visit: Visit) -> _PausingStore:
    assert isinstance(visit.store, _PausingStore)
    return visit.store


@pytest.fixture
def pausing(visit: Visit, settings: dict[str, Any], clock: Clock) -> Iterator[Visit]:
    """A visit of Alice, who has logged in, and whose requests pause at an insert."""
    (response,) = _commit(visit.request(lambda session: session.login("alice")))
    store = _PausingStore(settings, clock=clock)
    store.ensure_indexes()
    alice = Visit(settings, store, visit._stored, response.token or "")
    yield alice
    alice.close()
    store.close()


REVOCATIONS: dict[str, Callable[[Visit], int]] = {
    "revoke": lambda visit: visit.store.revoke(visit.id),
    "revoke all": lambda visit: visit.store.revoke_all("alice"),
}
each_revocation = pytest.mark.parametrize("revocation", REVOCATIONS)


@each_revocation
@reading_or_not
def test_a_session_that_is_revoked_while_it_regenerates_ends(
    pausing: Visit, revocation: str, reading: bool
) -> None:
    pausing_store(pausing).meanwhile = lambda: REVOCATIONS[revocation](pausing)
    request = pausing.request(lambda session: session.regenerate(), reading=reading)
    assert _unchanged(request.commit())
    assert pausing.all_live() == []


@each_revocation
@pytest.mark.parametrize("times", [1, 3])
def test_a_session_that_was_regenerated_is_revoked_by_the_id_that_it_had(
    pausing: Visit, revocation: str, times: int
) -> None:
    token = pausing.token
    for _ in range(times):
        (response,) = _commit(pausing.request(lambda session: session.regenerate()))
        pausing.token = response.token or ""
    pausing.token = token
    assert REVOCATIONS[revocation](pausing) == 1
    assert pausing.all_live() == []
    assert REVOCATIONS[revocation](pausing) == 0


def test_the_session_that_is_kept_may_regenerate_meanwhile(pausing: Visit) -> None:
    kept: list[int] = []
    pausing_store(pausing).meanwhile = lambda: kept.append(
        pausing.store.revoke_all("alice", keep=pausing.id)
    )
    (response,) = _commit(pausing.request(lambda session: session.regenerate()))
    assert kept == [0]
    assert pausing.store.revoke_all("alice", keep=id_of(response.token or "")) == 0
    assert pausing.all_live() == [BEFORE]


def test_the_session_that_is_kept_may_have_regenerated_before(pausing: Visit) -> None:
    for _ in range(3):
        (response,) = _commit(pausing.request(lambda session: session.regenerate()))
        pausing.token = response.token or ""
    assert pausing.store.revoke_all("alice", keep=id_of(pausing.token)) == 0
    assert pausing.data() == BEFORE


@each_revocation
def test_a_login_while_its_old_session_is_revoked_stands(pausing: Visit, revocation: str) -> None:
    pausing_store(pausing).meanwhile = lambda: REVOCATIONS[revocation](pausing)
    (response,) = _commit(pausing.request(lambda session: session.login("alice")))
    assert pausing.data(response.token) == BEFORE


@pytest.mark.parametrize("end", ["logout", *REVOCATIONS])
def test_a_session_that_ended_while_its_regeneration_failed_is_not_put_back(
    pausing: Visit, end: str
) -> None:
    def meanwhile() -> None:
        if end == "logout":
            _commit(pausing.request(lambda session: session.destroy()))
        else:
            REVOCATIONS[end](pausing)

    pausing_store(pausing).meanwhile = meanwhile
    other = pausing.request(lambda session: session.update(other="x" * 9_000_000))
    request = pausing.request(
        lambda session: (session.update(large="x" * 9_000_000), session.regenerate())
    )
    _commit(other)
    with pytest.raises(SessionDataError, match="16 MiB"):
        request.commit()
    assert pausing.all_live() == []


# A regeneration that stops between its two commands.


class _CrashError(BaseException):
    pass


class _CrashingStore(_PausingStore):
    """Dies where a session is about to be inserted."""

    def meanwhile(self) -> object:  # type: ignore[override]
        raise _CrashError


@pytest.mark.parametrize("use", REGENERATIONS)
def test_a_crash_between_the_commands_of_a_regeneration_leaves_no_live_session(
    visit: Visit, settings: dict[str, Any], clock: Clock, stored: Collection[Any], use: Use
) -> None:
    crashing = _CrashingStore(settings, clock=clock)
    late = visit.request(lambda session: session.update(late=1), reading=True)
    request = visit.request(use, store=crashing)
    with pytest.raises(_CrashError):
        request.commit()
    crashing.close()
    assert visit.data() is None
    assert visit.all_live() == []
    assert _unchanged(late.commit())
    assert _unchanged(visit.request(lambda session: session.update(late=1)).commit())
    assert stored.count_documents({}) == 1


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between looks for a login that is stored just now; nobody sleeps."""
    waits: list[float] = []
    monkeypatch.setattr(life, "sleep", waits.append)
    return waits


@reading_or_not
def test_a_login_that_crashed_can_be_tried_again_at_once(
    visit: Visit, settings: dict[str, Any], clock: Clock, reading: bool, waits: list[float]
) -> None:
    crashing = _CrashingStore(settings, clock=clock)
    with pytest.raises(_CrashError):
        visit.request(lambda session: session.login("alice"), store=crashing).commit()
    crashing.close()
    again = visit.request(lambda s: (reading and s.copy(), s.login("alice"), s.update(fresh=1)))
    response = again.commit()
    assert 0 < sum(waits) < 0.5
    assert visit.data(response.token) == {"fresh": 1}
    assert [info.owner for info in visit.store.sessions()] == ["alice"]


def test_a_slow_login_and_another_try_are_both_logged_in(
    visit: Visit, settings: dict[str, Any], clock: Clock, waits: list[float]
) -> None:
    slow = _PausingStore(settings, clock=clock)
    slow.ensure_indexes()
    retried: list[Response] = []
    slow.meanwhile = lambda: retried.extend(
        _commit(visit.request(lambda session: session.login("alice")))
    )
    first = visit.request(lambda session: session.login("alice"), store=slow).commit()
    assert waits
    assert visit.data(first.token) == BEFORE
    assert visit.data(retried[0].token) == {}
    slow.close()


def test_a_login_finds_the_data_of_one_that_is_stored_while_it_waits(
    visit: Visit, settings: dict[str, Any], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = _PausingStore(settings, clock=clock)
    slow.ensure_indexes()
    go_on, is_waiting = threading.Event(), threading.Event()
    slow.meanwhile = lambda: go_on.wait(LONGEST_WAIT)
    done = threading.Event()
    monkeypatch.setattr(life, "sleep", lambda _: (is_waiting.set(), done.wait(LONGEST_WAIT)))
    first = visit.request(lambda session: session.login("alice"), store=slow)
    second = visit.request(lambda session: session.login("alice"))

    def commit_first() -> Response:
        response = first.commit()
        done.set()
        return response

    with ThreadPoolExecutor(2) as threads:
        slowly = threads.submit(commit_first)
        while visit.data() is not None:  # Until the mark of the first stands.
            assert not slowly.done()
        at_once = threads.submit(second.commit)
        assert is_waiting.wait(LONGEST_WAIT)
        go_on.set()
        responses = slowly.result(LONGEST_WAIT), at_once.result(LONGEST_WAIT)
    assert [visit.data(response.token) for response in responses] == [BEFORE, BEFORE]
    slow.close()


def test_a_failed_request_with_the_token_of_a_mark_logs_nobody_in(
    visit: Visit, settings: dict[str, Any], clock: Clock
) -> None:
    crashing = _CrashingStore(settings, clock=clock)
    with pytest.raises(_CrashError):
        visit.request(lambda session: session.login("alice"), store=crashing).commit()
    crashing.close()
    assert visit.request(lambda session: session.login("alice")).fail().cookie is None
    assert visit.all_live() == []


@pytest.fixture
def refuse(client: MongoClient[Any]) -> Iterator[Callable[..., None]]:
    """Make the server refuse the next commands of a name."""

    def refuse(command: str, *, times: int, code: int) -> None:
        try:
            client.admin.command(
                "configureFailPoint",
                "failCommand",
                mode={"times": times},
                data={"failCommands": [command], "errorCode": code},
            )
        except OperationFailure as error:
            pytest.skip(f"this server makes no failures on demand: {error}")

    yield refuse
    with suppress(OperationFailure):
        client.admin.command("configureFailPoint", "failCommand", mode="off")


@pytest.mark.parametrize("use", REGENERATIONS)
def test_a_server_that_refuses_the_second_command_of_a_regeneration_leaves_no_live_session(
    visit: Visit, refuse: Callable[..., None], use: Use
) -> None:
    request = visit.request(use)
    refuse("insert", times=1, code=8000)
    response = request.commit()
    assert response.status.startswith("503")
    assert response.cookie is None
    assert visit.data() is None
    assert visit.all_live() == []


def test_a_regeneration_whose_data_cannot_be_stored_leaves_the_session_as_it_was(
    visit: Visit,
) -> None:
    stored = visit.document()
    other = visit.request(lambda session: session.update(other="x" * 9_000_000))
    request = visit.request(
        lambda session: (session.update(large="x" * 9_000_000), session.regenerate())
    )
    _commit(other)
    with pytest.raises(SessionDataError, match="16 MiB"):
        request.commit()
    assert visit.document()["data"].keys() == stored["data"].keys() | {"other"}
    _commit(visit.request(lambda session: session.pop("other"), reading=True))
    assert visit.data() == BEFORE


# 4, Renewal: an expiry never moves back, nor past the lifetime.


def test_no_activity_extends_a_session_past_its_lifetime(visit: Visit, clock: Clock) -> None:
    born = clock.now
    for day in range(29):
        clock.now = born + timedelta(days=day + 1)
        use: Use = [
            lambda session: session.copy(),
            lambda session: session.update(day=day),  # noqa: B023
            lambda session: (session.copy(), session.update(day=day)),  # noqa: B023
            lambda session: (session.clear(), session.update(day=day)),  # noqa: B023
            lambda session: session.regenerate(),
        ][day % 5]
        (response,) = _commit(visit.request(use))
        visit.token = response.token or visit.token
        (info,) = visit.store.sessions()
        assert info.created_at == born
        assert info.expires_at == min(clock.now + timedelta(days=14), born + timedelta(days=30))
    clock.now = born + timedelta(days=30)
    assert visit.data() is None


def test_a_login_restarts_the_lifetime(visit: Visit, clock: Clock) -> None:
    clock.advance(days=10)
    _commit(visit.request(lambda session: session.copy()))
    clock.advance(days=10)
    (response,) = _commit(visit.request(lambda session: session.login("alice")))
    (info,) = visit.store.sessions()
    assert info.id == id_of(response.token or "")
    assert info.created_at == clock.now
    assert info.expires_at == clock.now + timedelta(days=14)


@pytest.mark.parametrize("reading", [True, False], ids=["having read", "unread"])
@pytest.mark.parametrize("lifetime", ["20 days", "14 days", "1 day"])
def test_a_late_request_does_not_extend_the_lifetime(
    settings: dict[str, Any], clock: Clock, stored: Collection[Any], lifetime: str, reading: bool
) -> None:
    settings |= {"session_lifetime": lifetime}
    store = MongoStore(settings, clock=clock)
    session = store.create(BEFORE)
    end = clock.now + timedelta(days=int(lifetime.split()[0]))
    visit = Visit(settings, store, stored, session.token or "")
    clock.now = end - timedelta(minutes=10)
    if lifetime == "20 days":
        used = {"expires_at": end, "seen_at": clock.now - timedelta(days=1)}
        stored.update_one({"_id": visit.id}, {"$set": used})
    open_late = visit.request(lambda session: session.update(late=1), reading=reading)
    clock.now = end - timedelta(minutes=1)
    _commit(open_late)
    assert visit.data() == BEFORE | {"late": 1}
    assert visit.document()["expires_at"] == end
    clock.now = end
    _commit(visit.request(lambda session: session.copy()))
    assert visit.data() is None
    visit.close()
    store.close()


@pytest.fixture
def behind(settings: dict[str, Any], clock: Clock) -> Iterator[MongoStore]:
    """A store on another machine, whose clock is an hour behind."""
    store = MongoStore(settings, clock=lambda: clock.now - timedelta(hours=1))
    yield store
    store.close()


@reading_or_not
@in_both_orders
def test_a_request_with_a_slow_clock_moves_nothing_back(
    visit: Visit, clock: Clock, behind: MongoStore, reading: bool, order: tuple[int, int]
) -> None:
    clock.advance(days=1)
    requests = [
        visit.request(lambda session: session.update(right=1), reading=reading),
        visit.request(lambda session: session.update(slow=1), reading=reading, store=behind),
    ]
    _commit(*[requests[place] for place in order])
    found = visit.document()
    assert found["data"].keys() == BEFORE.keys() | {"right", "slow"}
    assert found["seen_at"] == clock.now
    assert found["expires_at"] == clock.now + timedelta(days=14)


def test_a_regeneration_with_a_slow_clock_moves_nothing_back(
    visit: Visit, clock: Clock, behind: MongoStore
) -> None:
    clock.advance(days=1)
    _commit(visit.request(lambda session: session.copy()))
    _commit(visit.request(lambda session: session.regenerate(), store=behind))
    (info,) = visit.store.sessions()
    assert info.created_at == clock.now - timedelta(days=1)
    assert info.expires_at == clock.now + timedelta(days=14)
    assert info.seen_at == clock.now


def test_a_request_that_took_long_moves_nothing_back(visit: Visit, clock: Clock) -> None:
    slow = visit.request(lambda session: session.update(slow=1), reading=True)
    clock.advance(days=2)
    _commit(visit.request(lambda session: session.update(quick=1)))
    _commit(slow)
    assert visit.document()["seen_at"] == clock.now
    assert visit.document()["expires_at"] == clock.now + timedelta(days=14)


# Late changes: after the commit, until the response is closed.


@reading_or_not
def test_late_changes_of_different_keys_all_survive(visit: Visit, reading: bool) -> None:
    requests = [visit.request(reading=reading) for _ in range(2)]
    for number, request in enumerate(requests):
        request.session[f"early{number}"] = 1
    _commit(*requests)
    for number, request in enumerate(requests):
        request.session[f"late{number}"] = 1
        request.session["cart"].append(number)
    for request in requests:
        request.close()
    assert visit.data() == BEFORE | {
        **dict.fromkeys(["early0", "late0", "early1", "late1"], 1),
        "cart": ["egg", 1],
    }


@after_any_ending
@pytest.mark.parametrize("early", [True, False], ids=["having written", "having read"])
def test_late_changes_of_a_session_that_was_ended_are_dropped(
    visit: Visit,
    clock: Clock,
    stored: Collection[Any],
    end: str,
    early: bool,
) -> None:
    request = visit.request(reading=not early)
    if early:
        request.session["early"] = 1
    request.commit()
    ENDINGS[end](visit, clock, stored)
    before = list(stored.find(sort=["_id"]))
    request.session["late"] = 1
    if early and end not in ("regeneration", "login"):
        # It has never looked at its session, and finds only now that there is none.
        with pytest.warns(SessionWarning, match="not stored"):
            request.close()
    else:
        request.close()
    assert list(stored.find(sort=["_id"])) == before


def test_a_late_destroy_wins_over_late_changes(visit: Visit) -> None:
    logout, slow = visit.request(reading=True), visit.request(reading=True)
    _commit(logout, slow)
    logout.session.destroy()
    slow.session["late"] = 1
    logout.close()
    slow.close()
    assert visit.all_live() == []


# Requests that fail.


def test_a_request_that_fails_undoes_no_others_write(visit: Visit) -> None:
    failing = visit.request(lambda session: session.update(count=0, mine=1), reading=True)
    _commit(visit.request(lambda session: session.update(count=2)))
    assert failing.fail().cookie is None
    assert visit.data() == BEFORE | {"count": 2}


def test_a_failed_request_that_regenerates_ends_nothing(visit: Visit) -> None:
    failing = visit.request(lambda session: session.login("alice"), reading=True)
    failing.fail()
    assert visit.data() == BEFORE


def test_a_failed_logout_wins_all_the_same(visit: Visit) -> None:
    slow = visit.request(lambda session: session.update(late=1), reading=True)
    assert visit.request(lambda session: session.destroy()).fail().token == ""
    assert _unchanged(slow.commit())
    assert visit.all_live() == []


# Threads of one process.


def _commit_at_once(*requests: OpenRequest) -> list[Response]:
    gate = threading.Barrier(len(requests))

    def commit(request: OpenRequest) -> Response:
        gate.wait(LONGEST_WAIT)
        return request.commit()

    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(commit, requests))


@reading_or_not
def test_changes_of_eight_threads_all_survive(visit: Visit, reading: bool) -> None:
    keys = [f"key{number}" for number in range(8)]
    requests = [
        visit.request(lambda session, key=key: session.update({key: key}), reading=reading)  # type: ignore[misc]
        for key in keys
    ]
    assert all(_unchanged(response) for response in _commit_at_once(*requests))
    assert visit.data() == BEFORE | {key: key for key in keys}


@reading_or_not
def test_of_eight_threads_that_regenerate_one_wins(visit: Visit, reading: bool) -> None:
    requests = [
        visit.request(lambda session: session.regenerate(), reading=reading) for _ in range(8)
    ]
    tokens = [response.token for response in _commit_at_once(*requests) if response.token]
    assert len(tokens) == 1
    assert visit.all_live() == [BEFORE]
    assert visit.data(tokens[0]) == BEFORE


@reading_or_not
def test_eight_threads_that_log_in_are_all_logged_in(visit: Visit, reading: bool) -> None:
    requests = [
        visit.request(lambda session: session.login("alice"), reading=reading) for _ in range(8)
    ]
    tokens = {response.token for response in _commit_at_once(*requests)}
    assert len(tokens) == 8
    assert {id_of(token or "") for token in tokens} == {info.id for info in visit.store.sessions()}


def test_a_logout_among_eight_threads_that_write_wins(visit: Visit) -> None:
    writers = [visit.request(USES["sets"], reading=True) for _ in range(7)]
    logout = visit.request(lambda session: session.destroy(), reading=True)
    gone, *others = _commit_at_once(logout, *writers)
    assert gone.token == ""
    assert all(_unchanged(response) for response in others)
    assert visit.all_live() == []


# Two processes.


@dataclass
class Held:
    """A request to another process, which waits there for what to do."""

    connection: socket.socket
    gate: socket.socket

    def goes_on(self, steps: str = "") -> dict[str, Any]:
        """Let the request do `steps` and answer."""
        with self.gate, self.connection:
            self.gate.sendall(f"{steps}\n".encode())
            return answer_of(self.connection)


@dataclass
class Workers:
    """Two processes of gunicorn, and a store of the same sessions."""

    address: tuple[str, int]
    store: MongoStore

    def hold_two(self, token: str, steps: str) -> tuple[Held, Held]:
        """Return requests that wait in different processes, having done `steps`.

        Which process takes a connection is chance, so many are sent, and the others let go.
        """
        with socket.create_server(("127.0.0.1", 0)) as gates:
            gates.settimeout(LONGEST_WAIT)
            path = f"/?{steps}gate={gates.getsockname()[1]}"
            held: dict[int, Held] = {}
            while len(held) < 2:
                sent = [asked(self.address, path, token) for _ in range(6)]
                by_port = {connection.getsockname()[1]: connection for connection in sent}
                for _ in sent:
                    gate, _ = gates.accept()
                    caller = json.loads(gate.makefile().readline())
                    request = Held(by_port[caller["port"]], gate)
                    if held.setdefault(caller["process"], request) is not request:
                        request.goes_on()
            first, second = held.values()
            return first, second

    def live(self) -> list[dict[str, Any]]:
        return [info.data for info in self.store.sessions()]


@pytest.fixture(scope="module")
def gunicorn(mongodb_uri: str, client: MongoClient[Any]) -> Iterator[Workers]:
    database = f"test_{secrets.token_hex(4)}"
    store = MongoStore({"mongodb_host": mongodb_uri, "mongodb_session_db": database})
    with two_processes(mongodb_uri, database) as address:
        yield Workers(address, store)
    store.close()
    client.drop_database(database)


@pytest.fixture
def workers(gunicorn: Workers) -> Iterator[Workers]:
    yield gunicorn
    for info in gunicorn.store.sessions():
        gunicorn.store.revoke(info.id)


@in_both_orders
@pytest.mark.parametrize("steps", ["", "read&"], ids=["unread", "having read"])
def test_changes_of_two_processes_all_survive(
    workers: Workers, order: tuple[int, int], steps: str
) -> None:
    token = workers.store.create(BEFORE).token or ""
    held = workers.hold_two(token, steps)
    answers = [held[place].goes_on(f"set=key{place}:{place}") for place in order]
    assert [answer["cookie"] for answer in answers] == [None, None]
    assert answers[0]["process"] != answers[1]["process"]
    assert workers.live() == [BEFORE | {"key0": "0", "key1": "1"}]


@in_both_orders
def test_a_logout_in_one_process_wins_over_a_write_in_another(
    workers: Workers, order: tuple[int, int]
) -> None:
    token = workers.store.create(BEFORE).token or ""
    held = workers.hold_two(token, "read&")
    steps = ["destroy", "set=late:1"]
    answers = {place: held[place].goes_on(steps[place]) for place in order}
    assert "Max-Age=0" in answers[0]["cookie"]
    assert answers[1]["status"] == 200
    assert answers[1]["cookie"] is None
    assert workers.live() == []


@in_both_orders
@pytest.mark.parametrize("steps", ["", "read&"], ids=["unread", "having read"])
def test_of_logins_in_two_processes_the_first_to_commit_has_the_data(
    workers: Workers, order: tuple[int, int], steps: str
) -> None:
    token = workers.store.create(BEFORE).token or ""
    held = workers.hold_two(token, steps)
    answers = [held[place].goes_on(f"login=user{place}") for place in order]
    assert all(answer["cookie"] for answer in answers)
    found = {info.owner: info.data for info in workers.store.sessions()}
    assert found == {f"user{order[0]}": BEFORE, f"user{order[1]}": {}}


@in_both_orders
@pytest.mark.parametrize("steps", ["", "read&"], ids=["unread", "having read"])
def test_a_write_in_one_process_counts_before_a_login_in_another_and_not_after(
    workers: Workers, order: tuple[int, int], steps: str
) -> None:
    token = workers.store.create(BEFORE).token or ""
    held = workers.hold_two(token, steps)
    asked_for = ["set=mine:1", "login=alice"]
    answers = {place: held[place].goes_on(asked_for[place]) for place in order}
    assert answers[0]["cookie"] is None
    assert answers[1]["cookie"]
    assert workers.live() == [BEFORE | ({"mine": "1"} if order[0] == 0 else {})]
    assert workers.store.retrieve(token) is None


# What went wrong in other session stores.


def test_the_seeds_logout_undone_by_a_slow_request(visit: Visit) -> None:
    slow = visit.request(lambda session: session.update(page=1), reading=True)
    _commit(visit.request(lambda session: session.destroy()))
    _commit(slow)
    assert visit.data() is None


def test_the_seeds_updates_of_different_keys_lost(visit: Visit) -> None:
    requests = [
        visit.request(lambda session: session.update(a=1), reading=True),
        visit.request(lambda session: session.update(b=2), reading=True),
    ]
    _commit(*requests)
    assert visit.data() == BEFORE | {"a": 1, "b": 2}


def test_the_seeds_old_data_back_under_the_old_id_after_destroy(visit: Visit) -> None:
    (response,) = _commit(
        visit.request(lambda session: (session.destroy(), session.update(a=1)), reading=True)
    )
    assert response.token not in (None, "", visit.token)
    assert visit.data() is None
    assert visit.data(response.token) == {"a": 1}


def test_racks_deleted_session_that_an_overlapping_request_brings_back(visit: Visit) -> None:
    """Rack CVE-2025-46336."""
    overlapping = [visit.request(use, reading=True) for use in USES.values()]
    visit.store.revoke(visit.id)
    _commit(*overlapping)
    assert visit.all_live() == []


@pytest.mark.parametrize("end", ENDINGS)
def test_the_deleted_session_that_a_touch_brings_back(
    visit: Visit, clock: Clock, stored: Collection[Any], end: str
) -> None:
    """connect-mongo #471, express-session #632."""
    touching = visit.request(reading=True)
    clock.advance(minutes=10)
    ENDINGS[end](visit, clock, stored)
    before = list(stored.find(sort=["_id"]))
    _commit(touching)
    assert list(stored.find(sort=["_id"])) == before


def test_connect_mongos_touch_that_fails_after_a_ttl_deletion(
    visit: Visit, clock: Clock, stored: Collection[Any]
) -> None:
    """connect-mongo #459."""
    touching = visit.request(reading=True)
    clock.advance(minutes=10)
    stored.delete_one({"_id": visit.id})
    (response,) = _commit(touching)
    assert _unchanged(response)


def test_fibers_id_that_the_client_chose(visit: Visit, stored: Collection[Any]) -> None:
    """Fiber CVE-2024-38513, with and without a look at the session."""
    visit.token = "chosen-by-the-client-" + "x" * 22
    requests = [visit.request(lambda session: session.update(a=1)), visit.request()]
    requests[1].session.setdefault("a", 1)
    tokens = {response.token for response in _commit(*requests)}
    assert visit.token not in tokens
    assert stored.find_one({"_id": id_of(visit.token)}) is None
    assert visit.data() is None


def test_beakers_old_session_that_lives_on_after_regeneration(visit: Visit) -> None:
    _commit(visit.request(lambda session: session.regenerate(), reading=True))
    assert visit.data() is None


@in_both_orders
def test_connect_rediss_deep_merge_of_overlapping_sessions(
    visit: Visit, order: tuple[int, int]
) -> None:
    """connect-redis 6.1.0: a nested key that one request removed was back."""
    _commit(visit.request(lambda session: session.update(form={"a": 1, "b": 2})))
    requests = [
        visit.request(lambda session: session["form"].pop("a")),
        visit.request(lambda session: session["form"].update(c=3)),
    ]
    _commit(*[requests[place] for place in order])
    forms = [{"b": 2}, {"a": 1, "b": 2, "c": 3}]
    assert visit.data() == BEFORE | {"form": forms[order[1]]}


def test_scss_deadline_that_regenerating_resets(visit: Visit, clock: Clock) -> None:
    born = clock.now
    for _ in range(3):
        clock.advance(days=9)
        (response,) = _commit(visit.request(lambda session: session.regenerate()))
        assert response.token
        visit.token = response.token
    (info,) = visit.store.sessions()
    assert info.created_at == born
    assert info.expires_at == born + timedelta(days=30)


def test_springs_last_access_that_a_late_request_moves_back(
    visit: Visit, clock: Clock, behind: MongoStore
) -> None:
    """spring-session #1280."""
    late = visit.request(lambda session: session.update(late=1), reading=True, store=behind)
    clock.advance(minutes=10)
    _commit(visit.request(reading=True), late)
    assert visit.document()["seen_at"] == clock.now


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_springs_simultaneous_logins_that_pass_the_limit(
    settings: dict[str, Any], clock: Clock, stored: Collection[Any], order: tuple[int, ...]
) -> None:
    """Spring's maximumSessions, 2015 to today."""
    store = MongoStore(settings | {"session_limit": "2"}, clock=clock)
    store.ensure_indexes()
    visit = Visit(settings, store, stored, store.create(BEFORE).token or "")
    logins = [visit.request(lambda session: session.login("alice")) for _ in range(4)]
    tokens = []
    for place in order:
        clock.advance(seconds=1)
        tokens.append(logins[place].commit().token or "")
    assert [info.id for info in store.sessions("alice")] == [id_of(tokens[3]), id_of(tokens[2])]
    visit.close()
    store.close()


@reading_or_not
def test_express_sessions_redirect_that_is_answered_before_the_save(
    visit: Visit, reading: bool
) -> None:
    """express-session: whoever follows a redirect at its first header finds what was written."""
    found = []
    request = visit.request(lambda session: session.update(form="sent"), reading=reading)
    request.on_header = lambda: found.append(visit.data())
    request.commit()
    assert found == [BEFORE | {"form": "sent"}]


@pytest.mark.parametrize("use", REGENERATIONS)
def test_a_redirect_after_a_login_finds_the_new_session(visit: Visit, use: Use) -> None:
    found = []
    request = visit.request(use)
    request.on_header = lambda: found.append((visit.data(), visit.all_live()))
    request.commit()
    assert found == [(None, [BEFORE])]


# Races, which nobody holds.


def _race(uri: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.races", *options],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"MONGODB_URI": uri},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.timeout(400)
def test_many_rounds_of_races_lose_and_revive_nothing(mongodb_uri: str) -> None:
    raced = _race(mongodb_uri, "--rounds", "40")
    print(raced.stdout)
    assert raced.returncode == 0, raced.stdout + raced.stderr
    assert raced.stderr == ""
    assert "\033" not in raced.stdout
    head, *rows, summary = raced.stdout.splitlines()
    assert len(rows) == len(races.STORIES)
    assert {len(row) for row in rows} == {len(head)}
    assert all(row.endswith("0         0") for row in rows)
    assert summary.startswith("40 rounds in ")


def test_races_that_find_a_fault_end_with_one(
    mongodb_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def a_story_that_goes_wrong(track: races.Track) -> Iterator[races.Fault]:
        yield races.Fault.REVIVED

    monkeypatch.setattr(races, "STORIES", [a_story_that_goes_wrong])
    monkeypatch.setenv("MONGODB_URI", mongodb_uri)
    assert races.main(["--rounds", "3", "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["raced"], row["rounds"], row["revived"]) == ("a story that goes wrong", 3, 3)

"""The commit, cell by cell: what each state comes to with each knowledge, without a socket."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from itertools import product
from typing import Any, NamedTuple, get_args

import bson
import pytest
from pymongo.errors import DuplicateKeyError
from werkzeug.local import LocalProxy

from mongosession_wsgi import Session, SessionDataError, StoreError, life
from mongosession_wsgi.document import REMEMBERED, Mark, Record, id_of
from mongosession_wsgi.life import MOVES
from mongosession_wsgi.session import visit_of
from mongosession_wsgi.testing.requests import Clock
from mongosession_wsgi.visit import NOT_LOOKED, Failure, Known, Nothing, NotLooked, Outcome, State

from .scripted import Scene, refused

UNTOUCHED, OPEN, REGENERATED, DESTROYED, ENDED = State
KEPT, RENEWED, CREATED = Outcome.KEPT, Outcome.RENEWED, Outcome.CREATED


@pytest.fixture
def scene(clock: Clock) -> Scene:
    return Scene(clock)


# The 25 cells.


class Cell(NamedTuple):
    """What a commit comes to."""

    commands: list[str]
    outcome: Outcome | type[StoreError]
    known: type[Known]
    stored: dict[str, Any]


SWAP, END, DELETE = "find_one_and_update", "find_one_and_update", "delete_many"
WAS, LEFT = {"old": {"a": 1}}, {"old": "mark", "other": {"a": 1}}
CELLS = {
    (UNTOUCHED, NotLooked): Cell([], KEPT, NotLooked, WAS),
    (UNTOUCHED, Record): Cell([], KEPT, Record, WAS),
    (UNTOUCHED, Mark): Cell([], KEPT, Mark, LEFT),
    (UNTOUCHED, Nothing): Cell([], KEPT, Nothing, {}),
    (UNTOUCHED, Failure): Cell([], KEPT, Failure, WAS),
    (OPEN, NotLooked): Cell(["update_one"], RENEWED, NotLooked, {"old": {"a": 1, "b": 2}}),
    (OPEN, Record): Cell(["update_one"], KEPT, Record, {"old": {"a": 1, "b": 2}}),
    (OPEN, Mark): Cell([], KEPT, Mark, LEFT),
    (OPEN, Nothing): Cell(["insert_one"], CREATED, Record, {"new": {"b": 2}}),
    (OPEN, Failure): Cell([], StoreError, Failure, WAS),
    (REGENERATED, NotLooked): Cell(
        [SWAP, "insert_one"], CREATED, Record, {"old": "mark", "new": {"a": 1, "b": 2}}
    ),
    (REGENERATED, Record): Cell(
        [SWAP, "insert_one"], CREATED, Record, {"old": "mark", "new": {"a": 1, "b": 2}}
    ),
    (REGENERATED, Mark): Cell([], Outcome.ENDED, Mark, LEFT),
    (REGENERATED, Nothing): Cell(["insert_one"], CREATED, Record, {"new": {"b": 2}}),
    (REGENERATED, Failure): Cell([], StoreError, Failure, WAS),
    (DESTROYED, NotLooked): Cell([DELETE], Outcome.DESTROYED, Nothing, {}),
    (DESTROYED, Record): Cell([DELETE], Outcome.DESTROYED, Nothing, {}),
    (DESTROYED, Mark): Cell(
        [END, END],
        Outcome.DESTROYED,
        Nothing,
        {"old": "mark", "other": "tombstone"},
    ),
    (DESTROYED, Nothing): Cell([], KEPT, Nothing, {}),
    (DESTROYED, Failure): Cell([], StoreError, Failure, WAS),
    (ENDED, NotLooked): Cell([], KEPT, NotLooked, WAS),
    (ENDED, Record): Cell([], KEPT, Record, WAS),
    (ENDED, Mark): Cell([], KEPT, Mark, LEFT),
    (ENDED, Nothing): Cell([], KEPT, Nothing, {}),
    (ENDED, Failure): Cell([], KEPT, Failure, WAS),
}


def regenerated(session: Session) -> None:
    session.regenerate()


def knowing(scene: Scene, known: type[Known]) -> Session:
    """Return the session of a request that knows this of what is stored."""
    token = "t" * 43 if known is Nothing else scene.stored({"a": 1})
    if known is Mark:
        scene.request(token, regenerated)
    session = scene.store.open(token)
    if known is Failure:
        scene.server.plan("find", error=refused())
        with pytest.raises(StoreError):
            len(session)
    elif known is not NotLooked:
        assert len(session) == (known is Record)
    scene.server.forget()
    return session


def act(session: Session, state: State) -> None:
    """Have an application bring its session into a state; each but one has set a key."""
    visit = visit_of(session)
    if state is UNTOUCHED:
        visit.state = UNTOUCHED
        return
    session["b"] = 2
    if state is REGENERATED:
        session.regenerate()
    elif state is DESTROYED:
        session.destroy()
    elif state is ENDED:
        visit.discard()
    assert visit.state is state


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
@pytest.mark.parametrize(
    ("state", "known"), CELLS, ids=lambda one: getattr(one, "__name__", getattr(one, "name", ""))
)
def test_a_cell(clock: Clock, state: State, known: type[Known], sealed: bool) -> None:
    scene = Scene(clock, session_sealed=sealed)
    cell, session = CELLS[state, known], knowing(scene, known)
    stored = cell.stored
    if sealed and isinstance(stored.get("other"), dict):  # Only its own token opens it.
        stored = stored | {"other": "sealed"}
    act(session, state)
    visit = visit_of(session)
    assert type(visit.known) is known
    if isinstance(cell.outcome, Outcome):
        assert scene.store.flush(session) is cell.outcome
    else:
        with pytest.raises(cell.outcome, match="does not allow"):
            scene.store.flush(session)
    assert scene.commands() == cell.commands
    assert type(visit.known) is cell.known
    assert scene.shown(visit) == stored
    if cell.commands:  # What was stored is not stored again, and what opens it is the new token.
        assert scene.store.flush(session) is KEPT
        assert scene.commands() == []
        assert session.token == (None if cell.known is Nothing else visit.token)


def test_every_cell_has_a_test_and_every_state_a_row() -> None:
    assert set(CELLS) == set(product(State, get_args(Known)))
    assert set(MOVES) == set(State)
    assert {known for row in MOVES.values() for known in row} <= set(get_args(Known))


def test_a_cell_without_a_move_is_nothing_to_do() -> None:
    idle = {place for place, cell in CELLS.items() if cell.outcome is KEPT and not cell.commands}
    empty = {place for place in CELLS if place[1] not in MOVES[place[0]]}
    assert idle - empty == {(DESTROYED, Nothing)}
    assert empty - idle == set()


# A session that is open.


def committed(scene: Scene, session: Session) -> tuple[list[str], Outcome]:
    scene.server.forget()
    outcome = scene.store.flush(session)
    return scene.commands(), outcome


def test_a_session_that_nobody_read_or_changed_costs_nothing(scene: Scene) -> None:
    for token in (scene.stored({"a": 1}), None, "t" * 43):
        session = scene.store.open(token)
        visit_of(session).touch()
        assert committed(scene, session) == ([], KEPT)


def test_a_session_that_was_read_costs_nothing_more(scene: Scene) -> None:
    session = scene.store.open(scene.stored({"a": [1]}))
    assert session["a"] == [1]
    assert committed(scene, session) == ([], KEPT)


def test_a_renewal_is_written_when_it_is_due(scene: Scene, clock: Clock) -> None:
    token = scene.stored({"a": 1})
    clock.advance(minutes=5)
    session = scene.store.open(token)
    assert session["a"] == 1
    assert committed(scene, session) == (["update_one"], RENEWED)
    assert session.expires_at == clock.now + timedelta(days=14)
    assert committed(scene, session) == ([], KEPT)


def test_the_times_of_now_are_told_and_hold(scene: Scene, clock: Clock) -> None:
    token = scene.stored({"a": 1})
    shorter = scene.another(session_expires="1 day")
    session = shorter.open(token)
    assert session.expires_at == clock.now + timedelta(days=1)
    assert [info.expires_at for info in shorter.sessions()] == [clock.now + timedelta(days=1)]
    clock.advance(days=1)
    assert shorter.retrieve(token) is None
    assert list(shorter.sessions()) == []


def test_an_expiry_that_was_said_is_written_without_a_change(scene: Scene, clock: Clock) -> None:
    session = scene.store.open(scene.stored({"a": 1}))
    visit_of(session).live_until(clock.now + timedelta(minutes=5))
    assert committed(scene, session) == (["update_one"], RENEWED)
    assert session.expires_at == clock.now + timedelta(minutes=5)
    assert committed(scene, session) == ([], KEPT)


def test_another_kind_of_idle_time_is_written_without_a_change(scene: Scene, clock: Clock) -> None:
    session = scene.store.open(scene.stored({"a": 1}))
    visit_of(session).idle_as(True)
    assert committed(scene, session) == (["update_one"], RENEWED)
    assert session.remembered
    assert session.expires_at == clock.now + timedelta(days=30)
    assert committed(scene, session) == ([], KEPT)


def test_a_session_that_was_seen_and_has_ended_is_not_written(scene: Scene) -> None:
    for end in (scene.store.revoke, lambda id_: scene.server.documents.pop(id_)):
        session = scene.store.open(scene.stored({"a": 1}))
        session["b"] = len(session)
        end(str(session.id))
        assert committed(scene, session) == (["update_one", "find"], Outcome.ENDED)
        assert scene.live() == []
        assert committed(scene, session) == ([], KEPT)


def test_a_default_gives_way_to_a_moment_that_was_said_meanwhile(
    scene: Scene, clock: Clock
) -> None:
    """Django says a moment at each save, of the default kind unless a view said `set_expiry`."""
    token = scene.stored({"a": 1})
    session = scene.store.open(token)
    session["a"] = len(session) + 1
    visit_of(session).live_until(clock.now + timedelta(days=14), None)
    said = clock.now + timedelta(minutes=30)
    scene.request(token, lambda other: visit_of(other).live_until(said))
    scene.store.flush(session)
    found = scene.store.open(token)
    assert (found, found.expires_at) == ({"a": 2}, said)


@pytest.mark.parametrize("sets", [False, True])
def test_a_moment_that_was_said_meanwhile_holds(scene: Scene, clock: Clock, sets: bool) -> None:
    token = scene.stored({"a": 1})
    for soon in (timedelta(minutes=30), timedelta(minutes=25)):
        clock.advance(minutes=6)
        said = clock.now + soon
        session = scene.store.open(token)
        assert len(session) == 1
        scene.request(token, lambda other, said=said: visit_of(other).live_until(said))  # type: ignore[misc]
        if sets:
            session["a"] = soon.seconds
        scene.store.flush(session)
        found = scene.store.open(token)
        assert found.get("a") == (soon.seconds if sets else 1)
        assert found.expires_at == said


def test_keys_set_without_a_look_begin_a_session_where_none_is(scene: Scene) -> None:
    session = scene.store.open("t" * 43)
    session["b"] = 2
    assert committed(scene, session) == (["update_one", "find", "insert_one"], CREATED)
    assert scene.shown(visit_of(session)) == {"new": {"b": 2}}


def test_keys_set_without_a_look_are_dropped_where_a_mark_is(scene: Scene) -> None:
    token = scene.stored({"a": 1})
    scene.request(token, regenerated)
    session = scene.store.open(token)
    session["b"] = 2
    assert committed(scene, session) == (["update_one", "find"], KEPT)
    assert scene.shown(visit_of(session)) == LEFT


@pytest.mark.parametrize("days", [17, 29])
def test_keys_set_without_a_look_near_the_lifetimes_end(
    scene: Scene, clock: Clock, days: int
) -> None:
    token = scene.stored({"a": 1})
    for _ in range(days):
        clock.advance(days=1)
        scene.request(token, lambda session: session.update(a=1))
    session = scene.store.open(token)
    session["b"] = 2
    assert committed(scene, session) == (["update_one", "find", "update_one"], KEPT)
    assert session.expires_at == session.created_at + timedelta(days=30)  # type: ignore[operator]
    assert session == {"a": 1, "b": 2}


def test_a_key_of_a_remembered_session_is_set_without_a_look(scene: Scene, clock: Clock) -> None:
    token = scene.stored({"a": 1}, owner="alice", remember=True)
    assert token.endswith(REMEMBERED)
    session = scene.store.open(token)
    session["b"] = 2
    assert committed(scene, session) == (["update_one"], RENEWED)
    assert session.expires_at == clock.now + timedelta(days=30)


def test_a_failed_look_fails_no_request_that_changed_nothing(scene: Scene) -> None:
    session = knowing(scene, Failure)
    assert committed(scene, session) == ([], KEPT)


def test_a_failed_look_of_the_commit_fails_the_request(scene: Scene) -> None:
    session = scene.store.open("t" * 43)
    session["b"] = 2
    scene.server.plan("find", error=refused())
    with pytest.raises(StoreError):
        scene.store.flush(session)
    assert type(visit_of(session).known) is Failure
    with pytest.raises(StoreError):
        session.get("a")


# A session that is given a new token.


def logged_in(scene: Scene, token: str | None, owner: str, *, seen: bool) -> Session:
    session = scene.store.open(token)
    if seen:
        len(session)
    session.login(owner)
    return session


def test_a_rotation_goes_on_with_the_sessions_life(scene: Scene, clock: Clock) -> None:
    token = scene.stored({"a": 1}, owner="alice", remember=True, label="Firefox")
    before = scene.store.retrieve(token)
    assert before is not None
    clock.advance(days=1)
    session = scene.request(token, regenerated)
    assert (session.owner, session.label, session.remembered) == ("alice", "Firefox", True)
    assert session.created_at == before.created_at
    assert session.expires_at == before.created_at + timedelta(days=30)  # type: ignore[operator]
    assert (session.token or "").endswith(REMEMBERED)


@pytest.mark.parametrize("seen", [False, True])
def test_a_login_takes_over_what_nobody_owns(scene: Scene, clock: Clock, seen: bool) -> None:
    session = logged_in(scene, scene.stored({"a": 1}), "alice", seen=seen)
    clock.advance(days=1)
    assert committed(scene, session) == ([SWAP, "insert_one"], CREATED)
    assert scene.shown(visit_of(session)) == {"old": "mark", "new": {"a": 1}}
    assert (session.owner, session.created_at) == ("alice", clock.now)


def test_a_login_of_the_same_owner_is_said_on_the_mark(scene: Scene) -> None:
    token = scene.stored({"a": 1}, owner="alice")
    session = logged_in(scene, token, "alice", seen=False)
    # Only a look tells that the mark is to say so.
    assert committed(scene, session) == ([SWAP, "find", SWAP, "insert_one"], CREATED)
    assert scene.shown(visit_of(session)) == {"old": "mark", "new": {"a": 1}}
    session = logged_in(scene, session.token, "alice", seen=True)
    assert committed(scene, session) == ([SWAP, "insert_one"], CREATED)


def test_a_login_drops_what_another_owner_set_after_a_clear(scene: Scene) -> None:
    session = scene.store.open(scene.stored({"a": 1}, owner="alice"))
    session.clear()
    session["b"] = 2
    session.login("bob")
    scene.store.flush(session)
    assert scene.live() == [("bob", {})]


@pytest.mark.parametrize("seen", [False, True])
def test_a_login_keeps_nothing_of_another_owner(scene: Scene, seen: bool) -> None:
    token = scene.stored({"a": 1}, owner="alice")
    session = logged_in(scene, token, "bob", seen=seen)
    session["b"] = 2
    assert committed(scene, session) == ([SWAP, "insert_one"], CREATED)
    assert scene.live() == [("bob", {"b": 2})]
    mark = scene.server.documents[id_of(token)]
    assert b"bob" not in mark
    assert b"alice" not in mark


@pytest.mark.parametrize("token", [None, "t" * 43])
def test_a_login_needs_no_session(scene: Scene, token: str | None) -> None:
    session = logged_in(scene, token, "alice", seen=False)
    looks = [] if token is None else [SWAP, "find"]
    assert committed(scene, session) == ([*looks, "insert_one"], CREATED)
    assert scene.live() == [("alice", {})]


def test_a_rotation_needs_a_session_or_something_to_store(scene: Scene) -> None:
    session = scene.store.open("t" * 43)
    session.regenerate()
    assert committed(scene, session) == ([SWAP, "find"], KEPT)
    session["a"] = 1
    assert committed(scene, session) == (["insert_one"], CREATED)


@pytest.mark.parametrize("login", [False, True])
def test_a_session_that_was_seen_and_has_ended_gets_no_new_token(scene: Scene, login: bool) -> None:
    session = scene.store.open(scene.stored({"a": 1}))
    assert session["a"] == 1
    scene.store.revoke(str(session.id))
    if login:
        session.login("alice")
    else:
        session.regenerate()
    assert committed(scene, session) == ([SWAP, "find"], Outcome.ENDED)
    assert scene.live() == []


def test_of_two_rotations_at_once_one_wins(scene: Scene) -> None:
    token = scene.stored({"a": 1})
    late = scene.store.open(token)
    assert late["a"] == 1
    scene.request(token, regenerated)
    late.regenerate()
    assert committed(scene, late) == ([SWAP, "find"], Outcome.ENDED)
    assert scene.live() == [(None, {"a": 1})]


@pytest.mark.parametrize("seen", [False, True])
def test_a_rotation_by_a_replaced_token_stores_nothing(scene: Scene, seen: bool) -> None:
    token = scene.stored({"a": 1})
    scene.request(token, regenerated)
    late = scene.store.open(token)
    if seen:
        assert late == {}
    late["b"] = 2
    late.regenerate()
    assert scene.store.flush(late) is Outcome.ENDED
    assert scene.live() == [(None, {"a": 1})]


def test_a_rotation_takes_what_others_have_written_meanwhile(scene: Scene) -> None:
    token = scene.stored({"a": [1], "b": 1, "c": 1})
    session = scene.store.open(token)
    session["a"].append(2)
    del session["c"]
    session.regenerate()
    scene.request(token, lambda other: other.update(b=2, d=2))
    scene.store.flush(session)
    assert scene.live() == [(None, {"a": [1, 2], "b": 2, "d": 2})]


def test_what_only_looks_like_a_session_is_left_alone(scene: Scene) -> None:
    token = scene.stored({"a": 1})
    before = bson.decode(scene.server.documents[id_of(token)]) | {"label": 5}
    scene.put(**{"id": before.pop("_id")} | before)
    session = scene.store.open(token)
    session.regenerate()
    assert committed(scene, session) == ([SWAP, "replace_one"], KEPT)
    assert bson.decode(scene.server.documents[id_of(token)]) == {"_id": id_of(token)} | before


@pytest.mark.parametrize("login", [False, True])
def test_a_session_that_is_dead_by_the_times_of_now_gets_no_new_token(
    scene: Scene, clock: Clock, login: bool
) -> None:
    token = scene.stored({"a": 1})
    clock.advance(hours=2)
    session = scene.another(session_expires="1 hour").open(token)
    if login:
        session.login("alice")
    else:
        session.regenerate()
    commands, outcome = committed(scene, session)
    assert commands == [SWAP, *(["insert_one"] if login else [])]
    assert outcome is (CREATED if login else KEPT)
    assert scene.live() == ([("alice", {})] if login else [])


@pytest.mark.parametrize("seen", [False, True])
def test_a_swap_is_undone_if_its_session_cannot_be_stored(scene: Scene, seen: bool) -> None:
    token = scene.stored({"a": [1]})
    session = scene.store.open(token)
    if seen:
        session["a"].append({1})
    else:
        session["b"] = hidden = [1]
        hidden.append({1})  # type: ignore[arg-type]
    session.regenerate()
    with pytest.raises(SessionDataError):
        scene.store.flush(session)
    assert scene.commands()[-2:] == [SWAP, "replace_one"]
    assert scene.shown(visit_of(session)) == {"old": {"a": [1]}}


def test_a_swap_is_undone_if_a_value_raises_an_error_of_its_own(scene: Scene) -> None:
    """As a lazy text does, where the framework has taken the language of the request away."""
    language = ContextVar("language", default="en")
    token = scene.stored({"a": 1})
    session = scene.store.open(token)
    session["text"] = LocalProxy(lambda: {"en": "Welcome"}[language.get()])
    session.login("alice")
    language.set("xx")
    with pytest.raises(KeyError):
        scene.store.flush(session)
    assert scene.commands()[-2:] == [SWAP, "replace_one"]
    assert scene.store.retrieve(token) == {"a": 1}


def test_a_swap_is_not_undone_once_the_session_has_ended(scene: Scene) -> None:
    ends: list[Callable[[str], object]] = [
        lambda token: scene.store.revoke(id_of(token)),
        lambda token: scene.store.revoke_all("alice"),
        lambda token: scene.request(token, lambda other: other.destroy()),
    ]
    for end in ends:
        token = scene.stored({"a": 1}, owner="alice")
        session = scene.store.open(token)
        session["b"] = hidden = [1]
        hidden.append({1})  # type: ignore[arg-type]
        session.regenerate()
        scene.server.plan(SWAP, after=partial(end, token))
        with pytest.raises(SessionDataError):
            scene.store.flush(session)
        assert scene.live() == []


def test_a_session_that_was_put_back_is_not_put_back_again_over_another_rotation(
    scene: Scene,
) -> None:
    token = scene.stored({"a": 1}, owner="alice")
    session = scene.store.open(token)
    session["b"] = hidden = [1]
    hidden.append({1})  # type: ignore[arg-type]
    session.regenerate()
    scene.server.plan(
        "replace_one", loses="answer", after=lambda: scene.request(token, regenerated)
    )
    with pytest.raises(SessionDataError):
        scene.store.flush(session)
    assert scene.server.all_done
    assert scene.store.retrieve(token) is None
    assert scene.live() == [("alice", {"a": 1})]


# A login by a token that is replaced.


def of_mark(scene: Scene, owner: str | None = "alice") -> str:
    """Return a token whose session has got another one, by a login or by a rotation."""
    token = scene.stored({"a": 1})
    scene.request(token, lambda session: session.login(owner) if owner else session.regenerate())
    scene.server.forget()
    return token


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize(("owner", "brought"), [("alice", {"a": 1}), ("bob", {})])
def test_a_login_by_a_replaced_token_is_a_login(
    scene: Scene, owner: str, brought: dict[str, Any], seen: bool
) -> None:
    session = logged_in(scene, of_mark(scene), owner, seen=seen)
    session["b"] = 2
    looks = [] if seen else [SWAP, "find"]
    assert committed(scene, session) == ([*looks, "find", "insert_one"], CREATED)
    assert scene.live() == sorted([("alice", {"a": 1}), (owner, brought | {"b": 2})], key=str)
    assert session.owner == owner


def test_a_login_by_the_token_of_a_rotation_brings_what_is_the_same_owners(scene: Scene) -> None:
    for theirs in ("alice", "bob"):
        token = scene.stored({"a": 1}, owner="alice")
        scene.request(token, regenerated)
        session = logged_in(scene, token, theirs, seen=True)
        scene.store.flush(session)
        assert session == ({"a": 1} if theirs == "alice" else {})


def test_a_login_brings_what_went_on_through_several_tokens(scene: Scene) -> None:
    token = of_mark(scene)
    (info,) = scene.store.sessions("alice")
    assert info.data == {"a": 1}
    moved = logged_in(scene, token, "alice", seen=True)
    scene.store.flush(moved)
    scene.request(moved.token, regenerated)
    session = logged_in(scene, moved.token, "alice", seen=True)
    assert committed(scene, session) == (["find", "insert_one"], CREATED)
    assert session == {"a": 1}


def test_a_login_waits_for_the_one_that_is_being_stored(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = scene.stored({"a": 1})
    second = scene.store.open(token)
    waits: list[float] = []

    def begin_second() -> None:
        scene.server._is_aside = False
        monkeypatch.setattr(life, "sleep", store_first)
        second.login("alice")
        scene.store.flush(second)

    def store_first(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            scene.server.documents |= late

    late: dict[str, bytes] = {}
    first = logged_in(scene, token, "alice", seen=False)
    scene.store.flush(first)
    # The first one's insert is under way still when the second one looks.
    late[str(first.id)] = scene.server.documents.pop(str(first.id))
    begin_second()
    assert second == {"a": 1}
    assert len(waits) == 2


def test_a_login_does_not_wait_for_ever(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(life, "sleep", waits.append)
    token = of_mark(scene)
    scene.server.documents.pop(next(scene.store.sessions()).id)
    session = logged_in(scene, token, "alice", seen=True)
    commands, outcome = committed(scene, session)
    assert outcome is CREATED
    # The last look is for a session that was put back.
    assert commands == ["find"] * (len(waits) + 1) + ["find", "insert_one"]
    assert 0.1 < sum(waits) < 0.5
    assert scene.live() == [("alice", {})]


def test_a_login_takes_over_a_session_that_was_put_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "sleep", lambda _: None)
    token = scene.stored({"a": 1})
    image = scene.server.documents[id_of(token)]
    scene.request(token, lambda session: session.login("alice"))
    scene.server.documents.pop(next(scene.store.sessions()).id)  # It could not be stored.
    second = logged_in(scene, token, "alice", seen=True)
    scene.server.documents[id_of(token)] = image
    assert committed(scene, second)[1] is CREATED
    assert scene.shown(visit_of(second)) == {"old": "mark", "new": {"a": 1}}


@pytest.mark.parametrize("what", ["tombstone", "expired", "foreign", "itself"])
def test_a_login_waits_for_nothing_that_will_not_come(
    scene: Scene, clock: Clock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(life, "sleep", waits.append)
    token = of_mark(scene)
    id_ = next(scene.store.sessions()).id
    if what == "tombstone":
        scene.store.revoke(id_)
    elif what == "expired":
        short = scene.another(session_expires=timedelta(seconds=10))
        clock.advance(seconds=11)
        scene.store = short
    elif what == "foreign":
        scene.put(id_, v=9)
    else:
        scene.put(id_, v=1, expires_at=clock.now + timedelta(days=1), successor=id_)
    session = logged_in(scene, token, "alice", seen=True)
    scene.store.flush(session)
    assert scene.live("alice")[-1] == ("alice", {})
    assert (waits == []) == (what != "foreign")


# A logout.


@pytest.mark.parametrize("seen", [False, True])
def test_what_is_set_after_a_logout_is_a_new_session(scene: Scene, seen: bool) -> None:
    session = scene.store.open(scene.stored({"a": 1}, owner="alice"))
    if seen:
        len(session)
    session.destroy()
    session["b"] = 2
    assert committed(scene, session) == ([DELETE, "insert_one"], CREATED)
    assert scene.live() == [(None, {"b": 2})]
    session = scene.store.open(session.token)
    session.destroy()
    session.login("alice")
    assert committed(scene, session) == ([DELETE, "insert_one"], CREATED)
    assert scene.live() == [("alice", {})]


def test_a_logout_of_what_is_not_there_says_nothing_to_the_browser(scene: Scene) -> None:
    session = scene.store.open("t" * 43)
    session.destroy()
    assert committed(scene, session) == ([DELETE, "find"], KEPT)
    session = scene.store.open(scene.stored({"a": 1}))
    len(session)
    scene.request(session.token, lambda other: other.destroy())
    session.destroy()
    assert committed(scene, session) == ([DELETE, "find"], Outcome.ENDED)


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_logout_follows_rotations(scene: Scene, seen: bool, times: int) -> None:
    token = scene.stored({"a": 1}, owner="alice")
    session, latest = scene.store.open(token), token
    if seen:
        len(session)
    for _ in range(times):
        latest = str(scene.request(latest, regenerated).token)
    session.destroy()
    commands, outcome = committed(scene, session)
    assert outcome is Outcome.DESTROYED
    # Linear: a command for each mark, and one for the session.
    assert commands == [DELETE, "find"] + [END] * (times + 1)
    assert scene.live() == []
    assert scene.store.retrieve(latest) is None


def test_a_logout_follows_the_same_owners_login_and_no_other(scene: Scene) -> None:
    for first, second, ends in (
        ("alice", "alice", True),
        ("alice", "bob", False),
        (None, "alice", False),
    ):
        for put_first in (False, True):
            token = scene.stored({"a": 1}, **({"owner": first} if first else {}))
            session = scene.store.open(token)
            if put_first:
                len(session)
            scene.request(token, lambda other, owner=second: other.login(owner))  # type: ignore[misc]
            session.destroy()
            outcome = scene.store.flush(session)
            assert outcome is (Outcome.DESTROYED if ends else Outcome.ENDED)
            assert [owner for owner, _ in scene.live()] == ([] if ends else [second])
            scene.server.documents.clear()


def test_a_logout_forestalls_a_session_that_is_still_to_be_stored(scene: Scene) -> None:
    token = scene.stored({"a": 1}, owner="alice")
    session = scene.store.open(token)
    session.regenerate()
    scene.server.plan(
        "insert_one", before=lambda: scene.request(token, lambda other: other.destroy())
    )
    assert committed(scene, session) == ([SWAP, "insert_one", "find"], Outcome.ENDED)
    assert scene.live() == []
    assert scene.store.retrieve(str(session.token)) is None


def test_a_logout_by_a_replaced_token_may_log_in(scene: Scene) -> None:
    for owner, stays in (("alice", []), (None, [("alice", {"a": 1})])):
        token = scene.stored({"a": 1}, **({"owner": owner} if owner else {}))
        scene.request(token, lambda other: other.login("alice"))
        session = scene.store.open(token)
        session.destroy()
        session.login("carol")
        assert committed(scene, session)[1] is CREATED
        assert scene.live() == [*stays, ("carol", {})]
        scene.server.documents.clear()


# Ending by an id.


def test_a_revocation_follows_rotations_and_no_login(scene: Scene) -> None:
    for act, count in ((regenerated, 1), (lambda session: session.login("alice"), 0)):
        token = scene.stored({"a": 1}, owner="alice")
        scene.request(token, act)
        scene.server.forget()
        assert scene.store.revoke(id_of(token)) == count
        assert len(scene.live()) == 1 - count
        assert scene.store.revoke(id_of(token)) == 0
        scene.server.documents.clear()


@pytest.mark.parametrize("times", [1, 10, 50])
def test_a_revocation_costs_no_more_than_there_are_marks(scene: Scene, times: int) -> None:
    first = latest = scene.stored({"a": 1}, owner="alice")
    for _ in range(times):
        latest = str(scene.request(latest, regenerated).token)
    scene.server.forget()
    assert scene.store.revoke(id_of(first)) == 1
    assert len(scene.commands()) == times + 1
    scene.server.documents.clear()
    latest = scene.stored({"a": 1}, owner="alice")
    for _ in range(times):
        latest = str(scene.request(latest, regenerated).token)
    scene.server.forget()
    assert scene.store.revoke_all("alice") == 1
    assert len(scene.commands()) == 2


@pytest.mark.parametrize("times", [0, 1, 3])
@pytest.mark.parametrize("loses", ["command", "answer"])
def test_a_revocation_is_counted_though_an_answer_is_lost(
    scene: Scene, times: int, loses: str
) -> None:
    first = latest = scene.stored({"a": 1}, owner="alice")
    for _ in range(times):
        latest = str(scene.request(latest, regenerated).token)
    scene.server.forget()
    scene.server.plan(times + 1, loses=loses)
    assert scene.store.revoke(id_of(first)) == 1
    looks = ["find"] if loses == "answer" else []
    assert scene.commands() == [END] * (times + 2) + looks
    assert scene.live() == []
    assert scene.store.revoke(id_of(first)) == 0


@pytest.mark.parametrize("seals_first", [False, True])
def test_a_revocation_follows_rotations_from_one_form_to_the_other(
    clock: Clock, seals_first: bool
) -> None:
    scene = Scene(clock, session_sealed=seals_first)
    token = scene.stored({"a": 1}, owner="alice")
    revoker, scene.store = scene.store, scene.another(session_sealed=not seals_first)
    scene.request(token, regenerated)
    assert revoker.revoke(id_of(token)) == 1
    assert scene.live() == []


def test_revoking_all_ends_what_is_rotated_meanwhile(scene: Scene) -> None:
    token = scene.stored({"a": 1}, owner="alice")
    kept = scene.stored({"k": 1}, owner="alice")

    def rotate_both() -> None:
        nonlocal token, kept
        token = str(scene.request(token, regenerated).token)
        kept = str(scene.request(kept, regenerated).token)

    scene.server.plan("update_many", before=rotate_both)
    assert scene.store.revoke_all("alice", keep=id_of(kept)) == 1
    assert scene.live() == [("alice", {"k": 1})]
    assert scene.store.retrieve(kept) is not None


@pytest.mark.parametrize("times", [1, 3])
def test_the_session_that_is_kept_is_followed_through_its_rotations(
    scene: Scene, times: int
) -> None:
    first = latest = scene.stored({"k": 1}, owner="alice")
    for _ in range(times):
        latest = str(scene.request(latest, regenerated).token)
    scene.stored({"a": 1}, owner="alice")
    assert scene.store.revoke_all("alice", keep=id_of(first)) == 1
    assert scene.live() == [("alice", {"k": 1})]
    assert scene.store.retrieve(latest) is not None


def test_revoking_all_leaves_a_login_alone_that_begins_later(scene: Scene) -> None:
    token = scene.stored({"a": 1}, owner="alice")
    scene.server.plan(
        "update_many", before=lambda: scene.request(token, lambda other: other.login("alice"))
    )
    assert scene.store.revoke_all("alice") == 0
    assert scene.live() == [("alice", {"a": 1})]


@pytest.mark.parametrize("between", ["swap and insert", "insert and answer"])
def test_revoking_all_forestalls_a_rotation_between_its_two_commands(
    scene: Scene, between: str
) -> None:
    session = scene.store.open(scene.stored({"a": 1}, owner="alice"))
    session.regenerate()
    counts: list[int] = []

    def revoke() -> None:
        counts.append(scene.store.revoke_all("alice"))

    if between == "swap and insert":
        scene.server.plan("insert_one", before=revoke)
    else:
        scene.server.plan("insert_one", after=revoke, loses="answer")
    scene.store.flush(session)
    assert counts == [0 if between == "swap and insert" else 1]
    assert scene.live() == []


@pytest.mark.parametrize("loses", ["command", "answer"])
def test_a_logout_that_forestalls_counts_though_an_answer_is_lost(
    scene: Scene, clock: Clock, loses: str
) -> None:
    old, new = "o" * 43, "n" * 43
    later = clock.now + timedelta(seconds=60)
    scene.put(id_of(old), v=1, expires_at=later, successor=id_of(new), owner="alice")
    session = scene.store.open(old)
    session.destroy()
    scene.server.plan("insert_one", loses=loses)
    assert scene.store.flush(session) is Outcome.DESTROYED
    assert scene.server.all_done
    assert scene.at(id_of(new)) == "tombstone"


def test_a_logout_counts_though_the_server_carries_it_out_twice(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = scene.stored({"a": 1}, owner="alice")
    scene.request(token, regenerated)
    once = scene.server.run

    def twice(name: str, filter: dict[str, Any], act: Callable[[], Any]) -> Any:
        if name == END:
            once(name, filter, act)
        return once(name, filter, act)

    monkeypatch.setattr(scene.server, "run", twice)
    session = scene.store.open(token)
    session.destroy()
    assert scene.store.flush(session) is Outcome.DESTROYED
    assert scene.live() == []


def test_a_second_logout_does_not_take_the_end_of_the_first_for_its_own(scene: Scene) -> None:
    token = scene.stored({"a": 1}, owner="alice")
    scene.request(token, regenerated)
    for outcome in (Outcome.DESTROYED, Outcome.ENDED):
        session = scene.store.open(token)
        session.destroy()
        assert scene.store.flush(session) is outcome


@pytest.mark.parametrize("loses", ["command", "answer"])
def test_revoking_all_ends_what_is_rotated_before_a_second_try(scene: Scene, loses: str) -> None:
    token = scene.stored({"a": 1}, owner="alice")
    scene.stored({"b": 1}, owner="alice")
    # A rotation finds nothing any more where only the answer is lost.
    scene.server.plan("update_many", after=lambda: scene.request(token, regenerated), loses=loses)
    assert scene.store.revoke_all("alice") == 2
    assert scene.live() == []


def test_a_batch_of_ended_sessions_does_not_count_what_moved_before_a_second_try(
    scene: Scene,
) -> None:
    token, other = (scene.stored({}, owner="alice") for _ in range(2))
    scene.server.plan(
        "update_many", before=lambda: scene.request(token, regenerated), loses="command"
    )
    assert scene.store.end([id_of(token), id_of(other)], {}) == 1


@pytest.mark.parametrize("owner", ["alice", None])
def test_revoking_all_ends_a_session_that_is_about_to_be_put_back(
    scene: Scene, owner: str | None
) -> None:
    session = scene.store.open(scene.stored({"a": 1}, owner="alice"))
    assert session.owner == "alice"
    session["bad"] = [bad := []]
    bad.append(object())
    session.regenerate() if owner is None else session.login(owner)
    scene.server.plan("replace_one", before=lambda: scene.store.revoke_all("alice"))
    with pytest.raises(SessionDataError, match="bad"):
        scene.store.flush(session)
    assert scene.server.all_done
    assert scene.live() == []


@pytest.mark.parametrize("what", ["tombstone", "expired", "foreign", "list", "nothing", "mark"])
def test_what_is_no_live_session_is_not_ended_and_left_alone(
    scene: Scene, clock: Clock, what: str
) -> None:
    token = "t" * 43
    id_, later = id_of(token), clock.now + timedelta(days=1)
    if what == "tombstone":
        scene.put(id_, v=1, expires_at=later, ended=True)
    elif what == "expired":
        scene.put(id_, v=1, data={}, owner="alice", created_at=clock.now,
                  seen_at=clock.now, expires_at=clock.now)  # fmt: skip
    elif what == "foreign":
        scene.put(id_, user="alice")
    elif what == "list":
        scene.put(id_, v=1, data=[1], owner="alice", created_at=clock.now,
                  seen_at=clock.now, expires_at=later)  # fmt: skip
    elif what == "mark":  # An expired one, which leads nowhere any more.
        other = scene.stored({"a": 1}, owner="alice")
        scene.put(id_, v=1, expires_at=clock.now, successor=id_of(other), owner="alice")
    before = dict(scene.server.documents)
    assert scene.store.revoke(id_) == 0
    session = scene.store.open(token)
    session.destroy()
    assert scene.store.flush(session) is KEPT
    session = scene.store.open(token)
    assert session == {}
    assert session.new
    session.regenerate()
    assert scene.store.flush(session) is KEPT
    assert scene.server.documents == before


# The two commands that can be answered otherwise than they were carried out.


def test_a_swap_whose_answer_is_lost_names_our_own_new_id(scene: Scene) -> None:
    for act, data in (
        (lambda session: session.get("a") and session.regenerate(), {"a": 1, "b": 2}),
        (lambda session: session.login("alice"), {"b": 2}),
    ):
        session = scene.store.open(scene.stored({"a": 1}))
        act(session)
        session["b"] = 2
        scene.server.plan(SWAP, loses="answer")
        assert scene.store.flush(session) is CREATED
        assert scene.at(str(session.id)) == data


def test_a_rotation_whose_data_is_lost_with_the_answer_says_so(scene: Scene) -> None:
    session = scene.store.open(scene.stored({"a": 1}))
    session.regenerate()
    scene.server.plan(SWAP, loses="answer")
    with pytest.raises(StoreError, match="answer of MongoDB to a regeneration was lost"):
        scene.store.flush(session)
    assert scene.live() == []


@pytest.mark.parametrize("details", [None, {}, {"keyPattern": {"_id": 1}}])
def test_a_refused_duplicate_may_be_our_own_or_a_tombstone(
    scene: Scene, details: dict[str, Any] | None
) -> None:
    refusal = DuplicateKeyError("it is there", 11000, details)
    session = scene.store.open(None)
    session["a"] = 1
    scene.server.plan("insert_one", loses="answer")
    scene.server.plan("insert_one", error=refusal)
    assert scene.store.flush(session) is CREATED
    assert scene.server.all_done
    assert scene.live() == [(None, {"a": 1})]


@pytest.mark.parametrize(
    ("details", "words"),
    [
        (None, "a unique index on the collection that is not ours"),
        ({"keyPattern": {"data.mail": 1}}, "unique index that is not ours"),
    ],
)
@pytest.mark.parametrize("login", [False, True])
def test_a_unique_index_of_somebody_else_is_named(
    scene: Scene, details: dict[str, Any] | None, words: str, login: bool
) -> None:
    session = scene.store.open(None)
    session["a"] = 1
    if login:
        session.login("alice")
    scene.server.plan("insert_one", error=DuplicateKeyError("mail", 11000, details))
    with pytest.raises(StoreError, match=words):
        scene.store.flush(session)


# One fault in one request, and everything else in between.

Act = Callable[[Session], object]
REQUESTS: dict[str, Act] = {
    "set": lambda session: session.update(b=2),
    "read and set": lambda session: session.update(b=session.get("a")),
    "rotate": regenerated,
    "read and rotate": lambda session: (session.get("a"), session.regenerate()),
    "log bob in": lambda session: session.login("bob"),
    "log alice in": lambda session: session.login("alice"),
    "log out": lambda session: session.destroy(),
    "read and log out": lambda session: (session.get("a"), session.destroy()),
}
OTHERS: dict[str, Callable[[Scene, str], object]] = {
    "nothing": lambda scene, token: None,
    "set": lambda scene, token: scene.request(token, lambda other: other.update(c=3)),
    "rotate": lambda scene, token: scene.request(token, regenerated),
    "log carol in": lambda scene, token: scene.request(token, lambda other: other.login("carol")),
    "log alice in": lambda scene, token: scene.request(token, lambda other: other.login("alice")),
    "log out": lambda scene, token: scene.request(token, lambda other: other.destroy()),
    "revoke": lambda scene, token: scene.store.revoke(id_of(token)),
    "revoke all": lambda scene, token: scene.store.revoke_all("alice"),
}
FAULTS = [
    (mine, other, loses, at)
    for mine, other, loses in product(REQUESTS, OTHERS, ("command", "answer"))
    for at in range(1, {"set": 1, "rotate": 2, "log out": 1}.get(mine, 2) + 1)
]


@pytest.mark.parametrize(("mine", "other", "loses", "at"), FAULTS)
def test_one_fault_and_everything_else_in_between(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, mine: str, other: str, loses: str, at: int
) -> None:
    monkeypatch.setattr(life, "sleep", lambda _: None)
    token = scene.stored({"a": 1}, owner="alice")
    others: list[Any] = []
    scene.server.plan(at, loses=loses, after=lambda: others.append(OTHERS[other](scene, token)))
    session, outcome, failed = scene.store.open(token), None, ""
    try:
        REQUESTS[mine](session)
        outcome = scene.store.flush(session)
    except StoreError as error:
        failed = str(error)
    # Nobody but that answer had the data.
    assert not failed or ((mine, loses) == ("rotate", "answer") and "answer" in failed)
    assert scene.server.all_done
    live = scene.live()
    # The session that was there, under whatever token it goes on.
    old = [owner for owner, data in live if data.get("a") == 1]
    if other in ("log out", "revoke", "revoke all") or "log out" in mine:
        # Ending is final, but for a login, which brings what is the same owner's.
        assert old in ([], ["alice"] if "log alice in" in (mine, other) else [])
    else:
        assert len(old) <= 1 + ("log alice in" in (mine, other))
    if mine.startswith("log") and mine.endswith("in"):
        # Nobody who logs in stands outside afterwards.
        assert outcome is CREATED
        assert session.owner in [owner for owner, _ in live]
    if other.startswith("log") and other.endswith("in") and "log out" not in mine:
        assert others[0].owner in [owner for owner, _ in live]
    if outcome is CREATED:
        assert scene.store.retrieve(str(session.token)) == session.copy()
    if "log out" in mine and other == "nothing":
        assert outcome is Outcome.DESTROYED
    opened = scene.store.retrieve(token)
    if opened is not None:  # Then nobody has ended it or moved it, and no change is lost.
        assert mine in ("set", "read and set")
        assert other in ("nothing", "set")
        assert opened["b"] == {"set": 2, "read and set": 1}[mine]
        assert opened.get("c") == (3 if other == "set" else None)
    elif other == "set" and visit_of(others[0]).known is NOT_LOOKED and old:
        assert [data for _, data in live] == [{"a": 1, "c": 3}]

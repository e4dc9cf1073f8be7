"""The most sessions of one owner: `session_limit`, also where logins overlap."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from pymongo import MongoClient, monitoring

from mongosession_wsgi import MongoStore, Session, SessionMiddleware, life
from mongosession_wsgi.testing import MemoryStore
from mongosession_wsgi.testing.requests import Clock
from mongosession_wsgi.visit import Outcome

from .scripted import Scene
from .wsgi import Browser, on_session

SWAP = "find_one_and_update"


@pytest.fixture
def scene(clock: Clock) -> Scene:
    return Scene(clock, session_limit=2)


def log_in(session: Session, owner: str = "alice") -> None:
    session.login(owner)


def devices(scene: Scene, owner: str = "alice") -> list[Any]:
    """Return which devices of an owner are logged in."""
    return sorted(data["device"] for _, data in scene.live(owner))


def logged_in(scene: Scene, device: object, **login: Any) -> str:
    """Log in with a device, a second after what was before."""
    scene.clock.advance(seconds=1)
    return scene.stored({"device": device}, **({"owner": "alice"} | login))


# One login after the other.


def test_a_login_beyond_the_limit_ends_who_logged_in_longest_ago(scene: Scene) -> None:
    tokens = [logged_in(scene, device) for device in range(5)]
    assert devices(scene) == [3, 4]
    assert [scene.store.retrieve(token) is not None for token in tokens] == [False] * 3 + [True] * 2


def test_a_login_counts_and_not_a_use(scene: Scene) -> None:
    first, _ = logged_in(scene, 1), logged_in(scene, 2)
    scene.clock.advance(days=1)
    scene.request(first, lambda session: session.update(seen=True))
    first = str(scene.request(first, lambda session: session.regenerate()).token)
    logged_in(scene, 3)
    assert devices(scene) == [2, 3]
    assert scene.store.retrieve(first) is None


def test_a_login_again_counts_once(scene: Scene) -> None:
    first, _ = logged_in(scene, 1), logged_in(scene, 2)
    for _ in range(3):
        scene.clock.advance(seconds=1)
        first = str(scene.request(first, log_in).token)
    assert devices(scene) == [1, 2]
    logged_in(scene, 3)
    assert devices(scene) == [1, 3]


@pytest.mark.parametrize("back", [5, 20, 86400])
def test_a_login_after_the_clock_was_set_back_counts_as_the_newest(scene: Scene, back: int) -> None:
    """So does one on a machine whose clock is behind that of others."""
    for device in range(3):
        logged_in(scene, device)
    scene.clock.advance(seconds=-back)
    for device in range(3, 6):
        token = logged_in(scene, device)
        assert scene.store.retrieve(token) is not None
    assert devices(scene) == [4, 5]


def test_others_are_left_alone(scene: Scene) -> None:
    for owner in ("alice", "bob", None):
        for device in range(3):
            scene.clock.advance(seconds=1)
            scene.stored({"device": device}, **({"owner": owner} if owner else {}))
    assert devices(scene, "alice") == devices(scene, "bob") == [1, 2]
    assert len([owner for owner, _ in scene.live() if owner is None]) == 3


def test_only_live_sessions_count(scene: Scene) -> None:
    shorter = scene.another(session_limit=2, session_expires="1 hour")
    active = logged_in(scene, 1)
    logged_in(scene, 2)
    # Stored for 14 days, the second one is dead by the settings of now.
    scene.clock.advance(minutes=50)
    scene.store = shorter
    scene.request(active, lambda session: session.update(seen=True))
    scene.clock.advance(minutes=50)
    logged_in(scene, 3)
    assert devices(scene) == [1, 3]


def test_without_a_limit_nothing_ends(clock: Clock) -> None:
    for limit in ({}, {"session_limit": "none"}, {"session_limit": ""}):
        scene = Scene(clock, **limit)
        for device in range(20):
            logged_in(scene, device)
        assert devices(scene) == list(range(20))


def test_who_is_ended_is_out_and_stays_out(scene: Scene) -> None:
    token = logged_in(scene, 1)
    slow, blind = scene.store.open(token), scene.store.open(token)
    assert slow["device"] == 1
    for device in (2, 3):
        logged_in(scene, device)
    slow["late"] = True
    assert scene.store.flush(slow) is Outcome.ENDED
    blind["late"] = True
    scene.store.flush(blind)
    assert devices(scene) == [2, 3]
    assert scene.store.retrieve(token) is None


# What it costs.


def test_the_commands_of_a_login(scene: Scene) -> None:
    def commands(token: str | None, act: Callable[[Session], object] = log_in) -> list[str]:
        scene.clock.advance(seconds=1)
        scene.server.forget()
        scene.request(token, act)
        return scene.commands()

    assert commands(scene.stored({"device": 0})) == [SWAP, "insert_one", "find"]
    assert commands(scene.stored({"device": 0})) == [SWAP, "insert_one", "find"]
    assert commands(scene.stored({"device": 0})) == [SWAP, "insert_one", "find", "update_many"]
    assert commands(None) == ["insert_one", "find", "update_many"]
    token = scene.stored({"device": 0})
    assert commands(token, lambda session: session.update(a=1)) == ["update_one"]
    assert commands(token, lambda session: session.regenerate()) == [SWAP, "insert_one"]


class Commands(monitoring.CommandListener):
    def __init__(self) -> None:
        self.names: list[str] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.names.append(event.command_name)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


def test_the_commands_of_a_login_to_a_real_server(mongodb_uri: str, database: str) -> None:
    sent = Commands()
    settings = {"mongodb_session_db": database, "session_limit": "1", "session_name": "sid"}
    with MongoClient[Any](mongodb_uri, event_listeners=[sent]) as client:
        store = MongoStore(settings, client=client)
        store.ensure_indexes()
        store.create()
        costs = []
        for _ in range(2):
            token = store.create({"a": 1}).token
            session = store.open(token)
            sent.names.clear()
            session.login("alice")
            store.flush(session)
            costs.append([name for name in sent.names if name != "hello"])
        assert costs == [
            ["findAndModify", "insert", "find"],
            ["findAndModify", "insert", "find", "update"],
        ]
        assert [info.id for info in store.sessions("alice")] == [session.id]


# Logins that overlap.


@pytest.mark.parametrize("seconds", [0, 1], ids=["at one moment", "one after the other"])
@pytest.mark.parametrize("others", [1, 2, 3])
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_logins_within_a_login(
    scene: Scene, at: int, place: str, others: int, seconds: int
) -> None:
    tokens = [logged_in(scene, device) for device in range(2)]
    came = scene.stored({"device": "mine"})
    made: list[Session] = []

    def others_log_in() -> None:
        for number in range(others):
            scene.clock.advance(seconds=seconds)
            made.append(
                scene.request(
                    None,
                    lambda s, n=number: (s.login("alice"), s.update(device=f"{n}")),  # type: ignore[misc]
                )
            )

    scene.clock.advance(seconds=1)
    scene.server.plan(at, **{place: others_log_in})
    session = scene.store.open(came)
    session.login("alice")
    outcome = scene.store.flush(session)
    assert len(made) == others
    live = [info.id for info in scene.store.sessions("alice")]
    assert len(live) == 2
    assert not any(scene.store.retrieve(token) for token in tokens)
    everyone = sorted(
        (one.created_at.timestamp(), str(one.id))
        for one in [*made, *([session] if outcome is Outcome.CREATED else [])]
        if one.created_at
    )
    assert outcome in (Outcome.CREATED, Outcome.ENDED)
    assert {id_ for _, id_ in everyone[-2:]} == set(live)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("mine", ["rotate", "log in"])
def test_a_rotation_that_meets_a_login(scene: Scene, mine: str, at: int, place: str) -> None:
    """The session that rotates is the oldest, and for a moment stored nowhere."""
    oldest = logged_in(scene, 1)
    logged_in(scene, 2)

    def rotate() -> None:
        scene.request(oldest, lambda session: session.regenerate())

    scene.clock.advance(seconds=1)
    if mine == "rotate":
        scene.server.plan(at, **{place: lambda: logged_in(scene, 3)})
        rotate()
    else:
        scene.server.plan(at, **{place: rotate})
        scene.request(None, lambda session: (session.login("alice"), session.update(device=3)))
    if scene.server.all_done:
        assert devices(scene) == [2, 3]


def test_a_login_that_others_have_passed_sets_no_cookie(scene: Scene) -> None:
    app = SessionMiddleware(on_session(log_in), {"session_name": "sid"}, store=scene.store)
    browser = Browser(app)

    def others_log_in() -> None:
        for device in (1, 2):
            logged_in(scene, device)

    scene.server.plan("insert_one", before=others_log_in)
    response = browser.get()
    assert (response.status, response.cookie) == ("200 OK", None)
    assert devices(scene) == [1, 2]


def test_a_login_that_another_has_ended_before_its_look_sets_no_cookie(scene: Scene) -> None:
    app = SessionMiddleware(on_session(log_in), {"session_name": "sid"}, store=scene.store)
    browser = Browser(app)

    def others_log_in() -> None:
        scene.clock.advance(seconds=1)
        for device in (1, 2):
            logged_in(scene, device)

    scene.server.plan("insert_one", after=others_log_in)
    response = browser.get()
    assert (response.status, response.cookie) == ("200 OK", None)
    assert devices(scene) == [1, 2]


@pytest.mark.parametrize("loses", ["command", "answer"])
@pytest.mark.parametrize("other", ["nothing", "log in", "revoke all"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_one_fault_in_a_login(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, at: int, other: str, loses: str
) -> None:
    monkeypatch.setattr(life, "sleep", lambda _: None)
    for device in range(2):
        logged_in(scene, device)
    came = scene.stored({"device": "mine"})
    scene.clock.advance(seconds=1)
    acts = {
        "nothing": lambda: None,
        "log in": lambda: logged_in(scene, "other"),
        "revoke all": lambda: scene.store.revoke_all("alice"),
    }
    scene.server.plan(at, loses=loses, after=acts[other])
    session = scene.store.open(came)
    len(session)
    session.login("alice")
    outcome = scene.store.flush(session)
    assert scene.server.all_done
    live = [info.id for info in scene.store.sessions("alice")]
    assert len(live) <= 2
    if other != "revoke all":
        assert len(live) == 2
        assert outcome is Outcome.CREATED
    if outcome is Outcome.CREATED and other != "revoke all":
        assert session.id in live
    assert scene.store.retrieve(came) is None


@pytest.mark.parametrize("limit", [1, 3])
def test_logins_at_once_in_many_threads(limit: int) -> None:
    store, gate = MemoryStore({"session_limit": str(limit)}), Barrier(8)

    def request(_: int) -> Session:
        session = store.open(store.create({"a": 1}).token)
        session.login("alice")
        gate.wait()
        store.flush(session)
        return session

    for _ in range(5):
        with ThreadPoolExecutor(8) as threads:
            sessions = list(threads.map(request, range(8)))
        live = {info.id for info in store.sessions("alice")}
        assert len(live) == limit
        assert live <= {session.id for session in sessions}


def test_a_login_is_as_new_as_itself_and_not_as_its_session(scene: Scene) -> None:
    came = scene.stored({"device": 9})
    scene.clock.advance(days=1)
    for device in range(2):
        logged_in(scene, device)
    scene.clock.advance(seconds=1)
    session = scene.request(came, log_in)
    assert devices(scene) == [1, 9]
    assert session.created_at == scene.clock.now

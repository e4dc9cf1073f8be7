"""What an application sees of its session: the names, the identity, and what shows no token."""

from __future__ import annotations

import copy
import secrets
import sys
from base64 import urlsafe_b64decode
from collections.abc import Callable, MutableMapping
from enum import Enum
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import pytest

import mongosession_wsgi
from mongosession_wsgi import Session, SessionDataError, SessionMiddleware, StoreError
from mongosession_wsgi.document import REMEMBERED, SEALED_TOKEN, Token, id_of, new_token
from mongosession_wsgi.session import visit_of
from mongosession_wsgi.testing.requests import Clock
from mongosession_wsgi.visit import Known, State, Visit

from .scripted import Scene, refused
from .test_draft import Turnstile
from .wsgi import environ_of

PACKAGE = str(Path(mongosession_wsgi.__file__).parent)


@pytest.fixture
def scene(clock: Clock) -> Scene:
    return Scene(clock)


# The names.

MEMBERS = {"id", "token", "new", "owner", "created_at", "expires_at", "label", "remembered"}
ACTS = {"regenerate", "login", "destroy", "copy"}


def test_a_session_has_the_names_of_a_mapping_and_of_the_contract(scene: Scene) -> None:
    mapping = {name for name in dir(MutableMapping) if not name.startswith("_")}
    session = scene.store.open(None)
    assert {name for name in dir(session) if not name.startswith("_")} == mapping | MEMBERS | ACTS
    assert not hasattr(session, "__dict__")
    with pytest.raises(AttributeError):
        session.user = "alice"  # type: ignore[attr-defined]


# The mapping.


@pytest.mark.parametrize("sealed", [False, True])
def test_what_makes_a_plain_dict(clock: Clock, sealed: bool) -> None:
    scene = Scene(clock, session_sealed=sealed)
    session = scene.store.open(scene.stored({"a": 1, "b": [1]}))
    made = [
        session | {"a": 2},
        {"a": 0, "c": 3} | session,
        session.copy(),
        copy.copy(session),
        copy.deepcopy(session),
        dict(session),
        {**session},
    ]
    assert [type(one) for one in made] == [dict] * len(made)
    assert made[0] == {"a": 2, "b": [1]}
    assert made[1] == {"a": 1, "b": [1], "c": 3}
    assert made[2] == made[3] == made[4] == session == {"a": 1, "b": [1]}
    assert made[3]["b"] is session["b"]
    assert made[4]["b"] is not session["b"]
    made[4]["b"].append(2)
    assert session["b"] == [1]
    assert visit_of(session).has_changes is False
    session |= {"a": 2}
    assert isinstance(session, Session)
    assert session == {"a": 2, "b": [1]}
    wrong: Any
    for wrong in ([1], None, "a"):
        with pytest.raises(TypeError):
            session | wrong
        with pytest.raises(TypeError):
            wrong | session
    memo: dict[int, Any] = {}
    assert copy.deepcopy([session, session], memo)[0] == session


def test_a_repr_names_the_id_and_the_keys_and_no_token(scene: Scene) -> None:
    token = scene.stored({"password": "hunter2"})
    session = scene.store.open(token)
    assert repr(session) == "<Session, not loaded>"
    assert session["password"] == "hunter2"
    assert repr(session) == f"<Session {id_of(token)} with ['password']>"
    session = scene.store.open(None)
    session["a"] = 1
    assert repr(session) == "<Session new with ['a']>"


# Who it is, before and after the commit.

BEGINNINGS: dict[str, Callable[[Session], object]] = {
    "set": lambda session: session.update(a=1),
    "log in": lambda session: session.login("alice"),
    "log in, remembered": lambda session: session.login("alice", remember=True),
    "set and log in": lambda session: (session.update(a=1), session.login("alice")),
    "log in twice": lambda session: (session.login("bob"), session.token, session.login("alice")),
    "set, regenerate": lambda session: (session.update(a=1), session.regenerate()),
    "end, set": lambda session: (session.destroy(), session.update(a=1)),
    "end, log in": lambda session: (session.destroy(), session.login("alice")),
    "clear, set": lambda session: (session.clear(), session.update(a=1)),
}
MOVES = {
    "regenerate": lambda session: session.regenerate(),
    **{name: act for name, act in BEGINNINGS.items() if name not in ("set", "clear, set")},
}


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("act", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize("came", [None, "t" * 43])
def test_a_new_session_has_the_token_that_the_commit_stores(
    clock: Clock, came: str | None, act: Callable[[Session], object], sealed: bool
) -> None:
    scene = Scene(clock, session_sealed=sealed)
    session = scene.store.open(came)
    assert (session.id, session.token, session.new) == (None, None, True)
    act(session)
    is_stored_as_said(scene, session, came)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("act", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("seen", [False, True])
def test_a_session_with_a_new_token_has_the_one_that_the_commit_stores(
    clock: Clock, seen: bool, act: Callable[[Session], object], sealed: bool
) -> None:
    scene = Scene(clock, session_sealed=sealed)
    came = scene.stored({"cart": 1})
    session = scene.store.open(came)
    if seen:
        assert (session.id, session.token, session.new) == (id_of(came), came, False)
        assert type(session.token) is str
    act(session)
    is_stored_as_said(scene, session, came)


def is_stored_as_said(scene: Scene, session: Session, came: str | None) -> None:
    told = token = session.token
    assert told is not None
    assert type(told) is str
    assert told != came
    assert session.id == id_of(told)
    assert session.token == token
    scene.store.flush(session)
    assert (session.token, session.id) == (told, id_of(told))
    assert scene.store.retrieve(told) == session.copy()
    assert [info.id for info in scene.store.sessions()] == [session.id]
    assert came is None or scene.store.retrieve(came) is None


def test_a_login_is_known_before_it_is_stored(scene: Scene) -> None:
    session = scene.store.open(scene.stored({"a": 1}))
    session.login("alice", remember=True, label="Firefox")
    assert (session.owner, session.label, session.remembered) == ("alice", "Firefox", True)
    assert scene.commands() == ["find"]
    scene.store.flush(session)
    again = scene.store.retrieve(str(session.token))
    assert again is not None
    assert (again.owner, again.label, again.remembered) == ("alice", "Firefox", True)


@pytest.mark.parametrize("came", [True, False])
def test_a_login_has_a_token_that_nobody_knew_before(scene: Scene, came: bool) -> None:
    session = scene.store.open(scene.stored({"a": 1}) if came else None)
    session["b"] = 1
    session.regenerate()
    before = session.token
    session.login("alice", remember=True)
    assert session.token not in (None, before)
    assert (session.token or "").endswith(REMEMBERED)
    scene.store.flush(session)
    assert scene.store.retrieve(str(before)) is None


def test_a_login_keeps_nothing_of_another_owner_from_its_line_on(scene: Scene) -> None:
    session = scene.store.open(scene.stored({"a": 1}, owner="alice"))
    assert session["a"] == 1
    session.login("bob")
    assert session == {}
    session["b"] = 2
    scene.store.flush(session)
    assert scene.live() == [("bob", {"b": 2})]


@pytest.mark.parametrize("seen", [False, True])
def test_a_login_leaves_a_frameworks_secrets_behind(scene: Scene, seen: bool) -> None:
    session = scene.store.open(scene.stored({"csrf": "known", "cart": 1}))
    visit_of(session).secrets = ("csrf", "other")
    if seen:
        assert session["csrf"] == "known"
    session.login("alice")
    session["other"] = "new"
    assert "csrf" not in session
    scene.store.flush(session)
    assert scene.live() == [("alice", {"cart": 1, "other": "new"})]


def test_a_new_session_has_no_moments_and_no_owner(scene: Scene) -> None:
    for session in (scene.store.open(None), scene.store.open("t" * 43)):
        session["a"] = 1
        names = ("owner", "created_at", "expires_at", "label")
        assert [getattr(session, name) for name in names] == [None] * 4
        assert session.remembered is False
        session.destroy()
        assert [getattr(session, name) for name in names] == [None] * 4
        assert session.token is None


def test_a_token_of_a_session_that_is_not_stored_opens_nothing(scene: Scene) -> None:
    session = scene.store.open(scene.stored({"a": 1}))
    assert session["a"] == 1
    session.login("alice")
    told = session.token
    scene.store.revoke(id_of(visit_of(session).token))
    scene.store.flush(session)
    assert scene.store.retrieve(str(told)) is None


# The arguments of a login.


@pytest.mark.parametrize("owner", [None, 5, b"alice", "", "\ud800", {"$ne": ""}, ["alice"]])
def test_an_owner_is_a_text(scene: Scene, owner: Any) -> None:
    session = scene.store.open(None)
    with pytest.raises(SessionDataError, match="owner"):
        session.login(owner)
    assert scene.store.flush(session).name == "KEPT"
    assert scene.live() == []


@pytest.mark.parametrize("label", [5, b"Firefox", "\ud800", ["Firefox"], {"$set": 1}])
def test_a_label_is_a_text(scene: Scene, label: Any) -> None:
    with pytest.raises(SessionDataError, match="label"):
        scene.store.open(None).login("alice", label=label)


def test_remember_and_label_are_named(scene: Scene) -> None:
    with pytest.raises(TypeError):
        scene.store.open(None).login("alice", True)  # type: ignore[misc]
    session: Any = scene.store.open(None)
    with pytest.raises(TypeError):
        session.login()
    with pytest.raises(TypeError):
        session.login("alice", device="Firefox")


class Text(str):
    """A text of an application, such as a framework's lazy or safe one."""


class Role(str, Enum):
    """Owners that are members of an enumeration; their `str` is another text than they are."""

    ADMIN = "admin"


@pytest.mark.parametrize(
    ("label", "stored"),
    [(None, None), ("", None), ("Firefox", "Firefox"), ("é" * 200, "é" * 200),
     ("é" * 201, "é" * 200), ("x" * 10_000, "x" * 200), (Text("Firefox"), "Firefox")],
    ids=["none", "empty", "short", "200", "201", "long", "of a kind of str"],
)  # fmt: skip
def test_a_label_is_cut(scene: Scene, label: str | None, stored: str | None) -> None:
    session = scene.store.open(None)
    session.login(Text("alice"), label=label)
    assert session.label == stored
    assert type(session.owner) is str
    scene.store.flush(session)
    (info,) = scene.store.sessions("alice")
    assert (info.owner, info.label) == ("alice", stored)


def test_an_owner_of_an_enumeration_is_the_text_that_it_is(scene: Scene) -> None:
    for _ in range(2):
        scene.stored({"a": 1}, owner=Role.ADMIN, label=Role.ADMIN)
    kept, _ = scene.store.sessions(Role.ADMIN)
    assert (kept.owner, kept.label) == ("admin", "admin")
    assert scene.store.revoke_all(Role.ADMIN, keep=Text(kept.id)) == 1
    assert scene.store.revoke(Text(kept.id)) == 1
    assert scene.live() == []


@pytest.mark.parametrize(("remember", "is_remembered"), [(True, True), (1, True), (0, False)])
def test_remember_is_true_or_not(scene: Scene, remember: Any, is_remembered: bool) -> None:
    session = scene.store.open(None)
    session.login("alice", remember=remember)
    scene.store.flush(session)
    (info,) = scene.store.sessions()
    assert info.remembered is is_remembered


# The token.


def test_a_token_is_32_bytes_of_the_systems_own_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def urandom(count: int) -> bytes:
        asked.append(count)
        return b"\xfb" * count

    monkeypatch.setattr(secrets, "token_bytes", urandom)
    token = new_token()
    assert asked == [32]
    assert urlsafe_b64decode(f"{token}=") == b"\xfb" * 32


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_token_says_of_what_kind_its_session_is(remembered: bool, sealed: bool) -> None:
    tokens = {new_token(remembered=remembered, sealed=sealed) for _ in range(200)}
    assert len(tokens) == 200
    for token in tokens:
        assert type(token) is Token
        assert len(token) == 43
        assert len(urlsafe_b64decode(f"{token}=")) == 32
        assert token.endswith(REMEMBERED) is remembered
        assert token.endswith(SEALED_TOKEN) is sealed
    # All of the 256 bits differ, and those that are spare do not.
    raw = [urlsafe_b64decode(f"{token}=") for token in tokens]
    for index in range(32):
        assert len({one[index] for one in raw}) > 80


def test_the_spare_bits_of_a_token_do_not_open_its_session(scene: Scene) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    token = scene.stored({"a": 1})
    for last in alphabet.replace(token[-1], ""):
        assert scene.store.retrieve(token[:-1] + last) is None
    assert scene.store.retrieve(token) == {"a": 1}


def test_no_repr_shows_a_token() -> None:
    token = new_token()
    for shown in (repr(token), repr([token]), f"{token!r}", "%r" % token, ascii(token)):  # noqa: UP031
        assert token[:8] not in shown
    assert f"{token}" == token
    assert type(str(token)) is str


# What a request knows.


def test_a_read_beside_a_value_that_cannot_be_stored_is_no_look(scene: Scene) -> None:
    session = scene.store.open(scene.stored({"user": "alice"}))
    session["draft"] = draft = [1]
    draft.append({1})  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(SessionDataError, match="draft"):
            session.get("user")
    draft.pop()
    assert session == {"user": "alice", "draft": [1]}


def test_a_change_in_the_midst_of_an_iteration_raises_as_that_of_a_dict(scene: Scene) -> None:
    token = scene.stored({"a": 1, "b": 2, "c": 3})
    for is_changed in (False, True):
        for each in (Session.keys, Session.items, Session.__iter__):
            session = scene.store.open(token)
            if is_changed:
                session["a"] = 2
            found = iter(each(session))  # type: ignore[operator]
            next(found)
            del session["c"]
            with pytest.raises(RuntimeError, match="changed size during iteration"):
                next(found)


def test_the_first_of_two_threads_asks_for_both(scene: Scene) -> None:
    session, found, looks = scene.store.open(scene.stored({"a": [1]})), list[Any](), list[Visit]()
    other = Thread(target=lambda: found.append(session["a"]))
    visit = visit_of(session)
    visit.draft.turn = turn = Turnstile(visit.draft.turn, other)
    look = visit._look

    def slowly(visit: Visit) -> Known:
        looks.append(visit)
        turn.wait_for_the_other()
        return look(visit)

    visit._look = slowly
    found.append(session["a"])
    other.join()
    assert found[0] is found[1]
    assert looks == [visit]


def test_a_key_that_is_set_while_another_thread_looks_is_kept(scene: Scene) -> None:
    session = scene.store.open(scene.stored({"a": 1}))
    session["b"] = 2
    other = Thread(target=lambda: session.__setitem__("c", 3))
    visit = visit_of(session)
    visit.draft.turn = turn = Turnstile(visit.draft.turn, other)
    look = visit._look

    def slowly(visit: Visit) -> Known:
        turn.wait_for_the_other()
        return look(visit)

    visit._look = slowly
    assert session["a"] == 1
    other.join()
    assert session == {"a": 1, "b": 2, "c": 3}


def test_a_store_that_failed_is_not_asked_again(scene: Scene) -> None:
    session = scene.store.open("t" * 43)
    scene.server.plan("find", error=refused())
    errors = []
    for act in (
        lambda: session["a"],
        lambda: session.id,
        lambda: session.owner,
        lambda: session.pop("a"),
        lambda: session.expires_at,
        lambda: session.copy(),
    ):
        with pytest.raises(StoreError) as caught:
            act()
        errors.append(caught.value)
    assert len(set(errors)) == 1
    assert scene.commands() == ["find"]


def test_a_restarted_visit_knows_nothing(scene: Scene) -> None:
    token = scene.stored({"a": 1})
    session = scene.store.open(token)
    session["b"] = session["a"]
    session.login("alice", remember=True)
    visit = visit_of(session)
    visit.restart()
    assert (visit.state, visit.token) == (State.UNTOUCHED, token)
    assert scene.store.flush(session).name == "KEPT"
    assert session == {"a": 1}
    assert session.owner is None


# What a traceback may show: error collectors store the `repr` of every local variable.

USES: dict[str, Callable[[Session], object]] = {
    "read": lambda session: session.get("a"),
    "id": lambda session: session.id,
    "set": lambda session: session.update(a=1),
    "log in": lambda session: session.login("alice", remember=True),
    "set and log in": lambda session: (session.login("alice"), session.update(a=1)),
    "regenerate": lambda session: session.regenerate(),
    "log out": lambda session: session.destroy(),
}


def frames_of(error: BaseException | None) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and the variables of our own frames, of an error and its causes."""
    found = []
    while error is not None:
        trace: TracebackType | None = error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            if code.co_filename.startswith(PACKAGE) and "testing" not in code.co_filename:
                found.append((code.co_qualname if sys.version_info >= (3, 11) else code.co_name,
                              dict(trace.tb_frame.f_locals)))  # fmt: skip
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return found


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_no_variable_of_ours_shows_a_token(
    clock: Clock, use: Callable[[Session], object], sealed: bool
) -> None:
    at = 1
    while errors_of_a_failed_command(at, use, Scene(clock, session_sealed=sealed)):
        at += 1
    assert at > 1


def errors_of_a_failed_command(at: int, use: Callable[[Session], object], scene: Scene) -> bool:
    """Fail a command of a request, look at its errors; False if there is no such command."""
    token = scene.stored({"a": 1})
    raised: list[BaseException] = []
    secrets_of_it = [token]

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            use(environ["mongosession"])
        except StoreError as error:
            raised.append(error)
            raise
        start_response("200 OK", [])
        return []

    def flush(session: Session) -> Any:
        try:
            return type(scene.store).flush(scene.store, session)
        except StoreError as error:
            secrets_of_it.extend(filter(None, [visit_of(session)._new_token]))
            raised.append(error)
            raise

    scene.store.flush = flush  # type: ignore[method-assign]
    scene.server.plan(at, error=refused())
    middleware = SessionMiddleware(app, {"session_name": "sid"}, store=scene.store)
    environ = environ_of("/", HTTP_COOKIE=f"sid={token}")
    statuses: list[str] = []
    middleware(environ, lambda status, *_: statuses.append(status))  # type: ignore[arg-type,return-value]
    assert statuses == ["503 Service Unavailable" if raised else "200 OK"]
    frames = [frame for error in raised for frame in frames_of(error)]
    assert not raised or len({name for name, _ in frames}) >= 4
    for name, variables in frames:
        for variable, value in variables.items():
            # The header is the visitor's own, and a server's log of a request has it, too.
            if variable not in ("environ", "header"):
                for secret in secrets_of_it:
                    assert secret not in repr(value), f"{name}: {variable}"
    for error in raised:
        assert token not in f"{error!r} {error} {error.__cause__!r}"
    return bool(raised)

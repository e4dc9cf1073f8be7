"""What a request asks of MongoDB: how many commands, and how many bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from pymongo import MongoClient

from mongosession_wsgi import MongoStore, Session, SessionMiddleware
from mongosession_wsgi.testing.requests import Clock

from .commands import RECORDER, size_of
from .scripted import Scene
from .wsgi import Browser, call, environ_of, on_session

NAME = "mongosession"
MESSAGE = 17
"""How many bytes more an update takes on the wire, as an OP_MSG, than as a document."""


class Row(NamedTuple):
    """One row of the table: a request that uses its session so, and what that costs."""

    request: str
    use: Callable[[Session], Any]
    commands: list[str]
    cookie: str = "live"
    limit: int | None = None
    """The `session_limit`, of an owner with two sessions."""


def _three_keys(session: Session) -> None:
    session["a"] = 1
    session["b"] = 2
    session["c"] = 3


def _read_and_set(session: Session) -> None:
    session["seen"] = session["user"]


def _set(session: Session) -> None:
    session["a"] = 1


def _log_in(session: Session) -> None:
    session.login("alice")


def _log_in_for_long(session: Session) -> None:
    session.login("alice", remember=True, label="Firefox on Windows")


_SWAP = ["findAndModify", "insert"]

TABLE = [
    Row("untouched, with a live cookie", lambda session: None, []),
    Row("reads", lambda session: session["user"], ["find"]),
    Row("sets one key, reading nothing", _set, ["update"]),
    Row("sets three keys", _three_keys, ["update"]),
    Row("reads and sets", _read_and_set, ["find", "update"]),
    Row("sets, without a cookie", _set, ["insert"], cookie="none"),
    Row("malformed cookie, reads", lambda session: session.get("user"), [], cookie="malformed"),
    Row("login(), reading nothing", _log_in, ["findAndModify", "insert"]),
    Row("login(), remembered and labelled", _log_in_for_long, ["findAndModify", "insert"]),
    Row("login(), without a cookie", _log_in, ["insert"], cookie="none"),
    Row("login(), within session_limit", _log_in, ["findAndModify", "insert", "find"], limit=3),
    Row("login(), that ends another", _log_in, [*_SWAP, "find", "update"], limit=2),
    Row("remembered, sets one key", _set, ["update"], cookie="remembered"),
    Row("remembered, reads", lambda session: session.remembered, ["find"], cookie="remembered"),
    Row("regenerate(), reading nothing", lambda s: s.regenerate(), ["findAndModify", "insert"]),
    Row("destroy(), reading nothing", lambda session: session.destroy(), ["delete"]),
]


@pytest.mark.also_sealed
def test_a_request_costs_the_commands_of_the_table(
    settings: dict[str, Any], store: MongoStore, client: MongoClient[Any]
) -> None:
    measured = []
    for row in TABLE:
        store.revoke_all("alice")
        cookie = _cookies(store)[row.cookie]
        limited = settings | {"session_limit": row.limit}
        asked = MongoStore(limited, client=client) if row.limit else store
        app = SessionMiddleware(on_session(row.use), settings, store=asked)
        response = Browser(app, cookie=cookie).get()
        assert response.status == "200 OK"
        measured.append(row._replace(commands=response.commands))
        if row.limit:  # The sessions of an owner may be on every shard.
            assert len(RECORDER.scattered) == len(row.commands) - 2
            RECORDER.scattered.clear()
    print(_shown(measured))
    assert measured == TABLE


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.request)
def test_a_request_costs_the_same_in_a_store_without_a_server(clock: Clock, row: Row) -> None:
    scene = Scene(clock, session_limit=row.limit or "none")
    cookie = _cookies(scene.store)[row.cookie]
    app = SessionMiddleware(on_session(row.use), {"session_name": NAME}, store=scene.store)
    scene.server.forget()
    assert Browser(app, cookie=cookie).get().status == "200 OK"
    words = {"find_one_and_update": "findAndModify"}
    sent = [words.get(name, name.partition("_")[0]) for name in scene.server.commands]
    assert sent == row.commands


def _cookies(store: MongoStore) -> dict[str, str]:
    """Store two sessions of Alice, and return the cookies that a row names."""
    for _ in range(2):
        _stored(store, "alice")
    return {
        "live": f"{NAME}={_stored(store)}",
        "remembered": f"{NAME}={_stored(store, 'bob', remember=True)}",
        "malformed": f"{NAME}=no-token",
        "none": "",
    }


def _stored(store: MongoStore, owner: str | None = None, *, remember: bool = False) -> str:
    """Store a session, and return its token."""
    session = store.open(None)
    session["user"] = "alice"
    if owner is not None:
        session.login(owner, remember=remember)
    store.flush(session)
    return str(session.token)


def _shown(rows: list[Row]) -> str:
    width = max(len(row.request) for row in rows)
    lines = [f"{'request':{width}}  commands"]
    lines += [
        f"{row.request:{width}}  {len(row.commands)}  {', '.join(row.commands)}" for row in rows
    ]
    return "\n" + "\n".join(line.rstrip() for line in lines)


@pytest.mark.parametrize(
    "change",
    [
        lambda session: session.update(key17="y" * 20),
        lambda session: (session["key17"], session.update(key17="y" * 20)),
        lambda session: (session.copy(), session.update(key17="y" * 20)),
    ],
    ids=["reading nothing", "having read the key", "having read all"],
)
def test_changing_one_key_of_a_large_session_sends_that_key(
    settings: dict[str, Any], store: MongoStore, change: Callable[[Session], Any]
) -> None:
    large = {f"key{number}": "x" * 100 for number in range(50)}
    session = store.create(large)
    app = SessionMiddleware(on_session(change), settings, store=store)

    with RECORDER.request() as commands:
        call(app, environ_of(HTTP_COOKIE=f"{NAME}={session.token}"))

    sent = {event.command_name: size_of(event) + MESSAGE for event in commands}
    print(f"\nbytes sent: {sent}")
    assert sent["update"] < 620
    assert sum(sent.values()) < 1000
    assert session.token is not None
    again = store.retrieve(session.token)
    assert again is not None
    assert again.copy() == large | {"key17": "y" * 20}


def test_a_nested_change_sends_the_key_that_it_is_in(
    settings: dict[str, Any], store: MongoStore
) -> None:
    session = store.create({f"key{number}": [str(number) * 100] for number in range(50)})
    app = SessionMiddleware(on_session(lambda s: s["key7"].append("!")), settings, store=store)

    with RECORDER.request() as commands:
        call(app, environ_of(HTTP_COOKIE=f"{NAME}={session.token}"))

    assert [event.command_name for event in commands] == ["find", "update"]
    assert list(commands[1].command["updates"][0]["u"]["$set"]) == ["data.key7"]


def test_reading_all_of_a_session_writes_nothing(
    settings: dict[str, Any], store: MongoStore
) -> None:
    session = store.create({"cart": [{"price": 1}], "seen": {"pages": ["/"]}})
    app = SessionMiddleware(on_session(lambda s: s.copy()), settings, store=store)
    response = Browser(app, cookie=f"{NAME}={session.token}").get()
    assert response.commands == ["find"]

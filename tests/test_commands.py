"""What a request asks of MongoDB: how many commands, and how many bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from mongosession_wsgi import MongoStore, Session, SessionMiddleware

from .commands import RECORDER, size_of
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


def _three_keys(session: Session) -> None:
    session["a"] = 1
    session["b"] = 2
    session["c"] = 3


def _read_and_set(session: Session) -> None:
    session["seen"] = session["user"]


def _set(session: Session) -> None:
    session["a"] = 1


TABLE = [
    Row("untouched, with a live cookie", lambda session: None, []),
    Row("reads", lambda session: session["user"], ["find"]),
    Row("sets one key, reading nothing", _set, ["update"]),
    Row("sets three keys", _three_keys, ["update"]),
    Row("reads and sets", _read_and_set, ["find", "update"]),
    Row("sets, without a cookie", _set, ["insert"], cookie="none"),
    Row("malformed cookie, reads", lambda session: session.get("user"), [], cookie="malformed"),
    Row("login(), reading nothing", lambda s: s.login("alice"), ["findAndModify", "insert"]),
    Row("regenerate(), reading nothing", lambda s: s.regenerate(), ["findAndModify", "insert"]),
    Row("destroy(), reading nothing", lambda session: session.destroy(), ["delete"]),
]


def test_a_request_costs_the_commands_of_the_table(
    settings: dict[str, Any], store: MongoStore
) -> None:
    measured = []
    for row in TABLE:
        cookies = {
            "live": f"{NAME}={store.create({'user': 'alice'}).token}",
            "malformed": f"{NAME}=no-token",
            "none": "",
        }
        app = SessionMiddleware(on_session(row.use), settings, store=store)
        response = Browser(app, cookie=cookies[row.cookie]).get()
        assert response.status == "200 OK"
        measured.append(row._replace(commands=response.commands))
    print(_shown(measured))
    assert measured == TABLE


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

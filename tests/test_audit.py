"""The audit log: what it says of logins, when, and what can never be in it."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import queue
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymongo.collection import Collection

from mongosession_wsgi import MongoStore, StoreError, store
from mongosession_wsgi.document import id_of
from mongosession_wsgi.testing.requests import Clock

from .scripted import Scene, refused

NAME = "mongosession_wsgi.audit"
FIELDS = ("event", "id", "owner", "previous_id", "label", "count")


class Heard(logging.Handler):
    """Keep what the audit log says; `at` is what was stored at each line."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene
        self.records: list[logging.LogRecord] = []
        self.commands: list[list[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.commands.append(self.scene.server.commands.copy())

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    @property
    def last(self) -> dict[str, Any]:
        """The fields of the last line that have a value."""
        record = vars(self.records[-1])
        fields = {name: record[f"session_{name}"] for name in FIELDS}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def events(self) -> list[str]:
        events = [vars(record)["session_event"] for record in self.records]
        self.records.clear()
        return events


@pytest.fixture
def scene(clock: Clock) -> Scene:
    return Scene(clock)


@pytest.fixture
def heard(scene: Scene) -> Any:
    logger, handler = logging.getLogger(NAME), Heard(scene)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


# What is said of each event.


def test_a_login(scene: Scene, heard: Heard) -> None:
    came = scene.stored({"cart": "x"})
    session = scene.request(came, lambda session: session.login("alice", label="Firefox"))
    where = f"session '{session.id}', previous '{id_of(came)}'"
    assert heard.lines == [f"login: a visitor logged in (owner 'alice', {where}, label 'Firefox')"]
    assert heard.last == {
        "event": "login",
        "id": session.id,
        "owner": "alice",
        "previous_id": id_of(came),
        "label": "Firefox",
    }
    assert heard.records[0].levelno == logging.INFO
    assert heard.commands == [["find_one_and_update", "insert_one"]]


@pytest.mark.parametrize("came", [None, "t" * 43])
def test_a_login_where_no_session_was_has_no_previous_one(
    scene: Scene, heard: Heard, came: str | None
) -> None:
    session = scene.request(came, lambda session: session.login("alice"))
    assert heard.last == {"event": "login", "id": session.id, "owner": "alice"}
    assert heard.lines == [f"login: a visitor logged in (owner 'alice', session '{session.id}')"]


def test_a_rotation(scene: Scene, heard: Heard) -> None:
    came = scene.stored({"a": 1}, owner="alice")
    heard.records.clear()
    session = scene.request(came, lambda session: session.regenerate())
    assert heard.last == {
        "event": "regenerate",
        "id": session.id,
        "owner": "alice",
        "previous_id": id_of(came),
    }


def test_a_logout(scene: Scene, heard: Heard) -> None:
    came = scene.stored({"a": 1}, owner="alice")
    heard.records.clear()
    scene.request(came, lambda session: (len(session), session.destroy()))
    assert heard.last == {"event": "logout", "id": id_of(came), "owner": "alice"}
    assert heard.commands[-1][-1] == "delete_many"


def test_a_logout_that_did_not_look_knows_no_owner(scene: Scene, heard: Heard) -> None:
    came = scene.stored({"a": 1}, owner="alice")
    scene.request(came, lambda session: session.destroy())
    assert heard.last == {"event": "logout", "id": id_of(came)}
    assert heard.lines[-1] == f"logout: a session was destroyed (session '{id_of(came)}')"


def test_revocations_are_a_line_for_each_call(scene: Scene, heard: Heard) -> None:
    one, two = (scene.stored({}, owner="alice") for _ in range(2))
    heard.records.clear()
    scene.store.revoke(id_of(one))
    assert heard.last == {"event": "revoke", "id": id_of(one), "count": 1}
    scene.store.revoke_all("alice")
    assert heard.last == {"event": "revoke", "owner": "alice", "count": 1}
    scene.store.revoke(id_of(two))
    assert heard.last == {"event": "revoke", "count": 0}
    assert heard.lines[-1] == "revoke: nothing to end was found by an id (count 0)"
    assert heard.events == ["revoke"] * 3


def test_a_token_in_place_of_an_id_is_not_said(scene: Scene, heard: Heard) -> None:
    token = scene.stored({"a": 1}, owner="alice")
    for given in (token, "a text of a visitor", "t" * 43):
        assert scene.store.revoke(given) == 0
        assert given not in f"{heard.lines[-1]} {vars(heard.records[-1])!r}"


@pytest.mark.parametrize("fails_at", [2, 3])
def test_a_revocation_that_fails_in_the_midst_says_how_many_have_ended(
    scene: Scene, heard: Heard, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    monkeypatch.setattr(store, "AT_A_TIME", 2)
    for _ in range(5):
        scene.stored({}, owner="alice")
    heard.records.clear()
    scene.server.plan(fails_at, error=refused())
    with pytest.raises(StoreError):
        scene.store.revoke_all("alice")
    ended = 2 * (fails_at - 2)
    assert len(scene.live("alice")) == 5 - ended
    said = {"event": "revoke", "owner": "alice", "count": ended}
    assert [heard.last] == [said] if ended else heard.lines == []


def test_a_limit(clock: Clock, scene: Scene, heard: Heard) -> None:
    scene.store = scene.another(session_limit=1)
    scene.stored({}, owner="alice")
    clock.advance(seconds=1)
    heard.records.clear()
    scene.stored({}, owner="alice")
    assert heard.last == {"event": "limit", "owner": "alice", "count": 1}
    assert heard.events == ["login", "limit"]
    clock.advance(seconds=1)
    scene.stored({}, owner="bob")
    assert heard.events == ["login"]


STALE: dict[str, Callable[[Any], object]] = {
    "read": lambda session: session.get("a"),
    "id": lambda session: session.id,
    "set": lambda session: session.update(b=1),
    "read and set": lambda session: (session.get("a"), session.update(b=1)),
    "regenerate": lambda session: session.regenerate(),
    "log in": lambda session: session.login("alice"),
    "read and log in": lambda session: (session.get("a"), session.login("alice")),
    "log out": lambda session: session.destroy(),
    "read and log out": lambda session: (session.get("a"), session.destroy()),
}


@pytest.mark.parametrize("use", STALE, ids=str)
@pytest.mark.parametrize("by", ["regenerate", "log in"])
def test_a_token_that_was_replaced(scene: Scene, heard: Heard, use: str, by: str) -> None:
    came = scene.stored({"a": 1}, owner="alice")
    scene.request(came, STALE[by])
    heard.records.clear()
    scene.request(came, STALE[use])
    first = vars(heard.records[0])
    assert (first["session_event"], first["session_id"]) == ("stale", id_of(came))
    follows = {"log in": ["login"], "log out": ["logout"]}.get(use.removeprefix("read and "), [])
    assert heard.events == ["stale", *follows]


# What is not said.

SILENT: dict[str, Callable[[Any], object]] = {
    "nothing": lambda session: None,
    "read": lambda session: session.get("a"),
    "set": lambda session: session.update(b=1),
    "clear": lambda session: session.clear(),
}


@pytest.mark.parametrize("act", SILENT.values(), ids=SILENT)
@pytest.mark.parametrize("came", [True, False])
def test_nothing_is_said_of_what_is_no_login(
    scene: Scene, heard: Heard, act: Callable[[Any], object], came: bool
) -> None:
    scene.request(scene.stored({"a": 1}) if came else None, act)
    assert heard.events == []


@pytest.mark.parametrize("came", [None, "t" * 43])
def test_nothing_is_said_of_what_ended_or_moved_no_session(
    scene: Scene, heard: Heard, came: str | None
) -> None:
    scene.request(came, lambda session: session.destroy())
    scene.request(came, lambda session: (session.update(a=1), session.regenerate()))
    assert heard.events == []


def test_nothing_is_said_of_what_was_ended_first(scene: Scene, heard: Heard) -> None:
    for act in (lambda session: session.regenerate(), lambda session: session.login("bob"),
                lambda session: session.destroy()):  # fmt: skip
        came = scene.stored({"a": 1}, owner="alice")
        session = scene.store.open(came)
        assert session["a"] == 1
        scene.store.revoke(id_of(came))
        heard.records.clear()
        act(session)
        scene.store.flush(session)
        assert heard.events == []


EVENTS: dict[str, Callable[[Scene, str], object]] = {
    "login": lambda scene, token: scene.request(token, lambda session: session.login("alice")),
    "new login": lambda scene, token: scene.request(None, lambda session: session.login("alice")),
    "regenerate": lambda scene, token: scene.request(token, lambda session: session.regenerate()),
    "logout": lambda scene, token: scene.request(token, lambda session: session.destroy()),
    "revoke": lambda scene, token: scene.store.revoke(id_of(token)),
    "revoke all": lambda scene, token: scene.store.revoke_all("alice"),
    "stale": lambda scene, token: scene.request(token, lambda session: session.get("a")),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("loses", ["", "answer"])
def test_nothing_is_said_before_the_database_has_acknowledged_it(
    scene: Scene, heard: Heard, event: str, loses: str
) -> None:
    """Whichever command fails: no line says what that command was to do."""
    for at in range(1, 9):
        token = scene.stored({"a": 1}, owner="alice")
        if event == "stale":
            scene.request(token, lambda session: session.regenerate())
        scene.server.forget()
        heard.records.clear()
        # An answer that is lost is asked for again, twice where there is no limit of time.
        for number in range(at, at + 3):
            scene.server.plan(number, error=None if loses else refused(), loses=loses)
        try:
            EVENTS[event](scene, token)
        except StoreError:
            assert heard.events == []
        finally:
            all_done = scene.server.all_done
            scene.server._plans.clear()
            scene.server.documents.clear()
        if not all_done and at > 1:
            break
    else:
        pytest.fail("there are more commands than that")


@pytest.mark.parametrize("loses", ["", "answer"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_nothing_is_said_of_a_limit_before_the_others_have_ended(
    clock: Clock, scene: Scene, heard: Heard, at: int, loses: str
) -> None:
    scene.store = scene.another(session_limit=1)
    scene.stored({}, owner="alice")
    token = scene.stored({"a": 1})
    clock.advance(seconds=1)
    heard.records.clear()
    for number in range(at, at + 3):  # A lost answer is asked for again, twice without a limit.
        scene.server.plan(number, error=None if loses else refused(), loses=loses)
    if (at, loses) == (2, "answer"):  # The duplicate that the second insert meets tells enough.
        scene.request(token, lambda session: session.login("alice"))
        assert heard.events == ["login", "limit"]
    else:
        with pytest.raises(StoreError):
            scene.request(token, lambda session: session.login("alice"))
        assert heard.events == ["login"] * (at > 2)


def test_it_is_silent_unless_it_is_asked_for(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Heard(scene)
    logging.getLogger(NAME).addHandler(handler)
    try:
        for event in EVENTS.values():
            event(scene, scene.stored({"a": 1}, owner="alice"))
        assert not logging.getLogger(NAME).isEnabledFor(logging.INFO)
    finally:
        logging.getLogger(NAME).removeHandler(handler)
    assert handler.records == caplog.records == []


def test_each_line_is_true_in_the_database_when_it_is_said(
    settings: dict[str, Any], stored: Collection[Any]
) -> None:
    """Another client looks at the real server at the moment of each line."""
    seen: list[tuple[str, list[str]]] = []

    class Looks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            owned = stored.find({"owner": "alice"}, sort=[("created_at", 1)])
            live = [one["_id"] for one in owned if "data" in one]
            seen.append((vars(record)["session_event"], live))

    logger, handler = logging.getLogger(NAME), Looks()
    store = MongoStore(settings | {"session_limit": 2})
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        sessions = [store.open(None) for _ in range(3)]
        for session in sessions:
            session.login("alice")
            store.flush(session)
        ids = [session.id for session in sessions]
        sessions[1].regenerate()
        store.flush(sessions[1])
        moved = sessions[1].id
        store.destroy(sessions[1])
        store.revoke(str(ids[2]))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        store.close()
    assert [event for event, _ in seen] == [
        *("login", "login", "login", "limit", "regenerate", "logout", "revoke")
    ]
    assert [{*live} for _, live in seen] == [
        {ids[0]},
        {ids[0], ids[1]},
        {ids[0], ids[1], ids[2]},
        {ids[1], ids[2]},
        {moved, ids[2]},
        {ids[2]},
        set(),
    ]


# What a visitor wrote.

HOSTILE = [
    "a\nlogin: a visitor logged in (owner 'admin')",
    "a\r\n2026-01-01 INFO login",
    "\x1b[2J\x1b[31mred\x07",
    "\x00\x08\x7f\x85\x9b",
    "\u2028\u2029\u202e\u200b\ufeff",
    "%s %(levelname)s {owner} ${x}",
    "'), (\"",
    "é😀",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_a_visitor_wrote_begins_no_line_and_moves_no_cursor(
    scene: Scene, heard: Heard, text: str
) -> None:
    token = str(scene.request(None, lambda one: one.login(text, label=text)).token)
    token = str(scene.request(token, lambda one: one.regenerate()).token)
    scene.request(token, lambda one: (len(one), one.destroy()))
    scene.store.revoke(text)
    scene.store.revoke_all(text)
    assert len(heard.lines) == 5
    for line in heard.lines:
        assert line.isascii()
        assert line.isprintable()
        assert len(line.splitlines()) == 1
        assert line.startswith(("login: ", "regenerate: ", "logout: ", "revoke: "))
    # A formatter of JSON has its own way to write them, and gets them as they are.
    assert vars(heard.records[0])["session_owner"] == text
    assert vars(heard.records[0])["session_label"] == text


def test_neither_tokens_nor_data_are_said(clock: Clock) -> None:
    scene = Scene(clock, session_limit=2)
    heard = Heard(scene)
    logger = logging.getLogger(NAME)
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    try:
        secrets: list[str] = []
        for event in list(EVENTS.values()) * 2:
            token = scene.stored({"hush": "swordfish"}, owner="alice")
            session = scene.request(token, lambda one: one.update(more="swordfish"))
            moved = event(scene, token)
            secrets += filter(None, [token, session.token, getattr(moved, "token", None)])
            clock.advance(seconds=1)
    finally:
        logger.removeHandler(heard)
        logger.setLevel(logging.NOTSET)
    assert {vars(record)["session_event"] for record in heard.records} == {
        "login", "regenerate", "logout", "revoke", "limit", "stale"
    }  # fmt: skip
    for record in heard.records:
        said = f"{record.getMessage()} {vars(record)!r}"
        assert "hush" not in said
        assert "swordfish" not in said
        assert not any(secret in said for secret in secrets)


# The recipes of the docs.

PAGE = (Path(__file__).parent.parent / "docs" / "audit.md").read_text()
RECIPES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def json_lines() -> logging.Formatter:
    """Return the formatter of the page, without its configuration of the logger."""
    names: dict[str, Any] = {}
    exec(RECIPES[0].partition("logging.config.dictConfig(")[0], names)
    formatter: logging.Formatter = names["JsonLines"]()
    return formatter


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_json_line_is_one_line_whatever_a_visitor_wrote(
    scene: Scene, heard: Heard, text: str
) -> None:
    session = scene.request(None, lambda one: one.login(text, label=text))
    line = json_lines().format(heard.records[-1])
    assert line.isascii()
    assert line.isprintable()
    told = json.loads(line)
    assert told.pop("time").endswith("+00:00")
    assert told == {"event": "login", "id": session.id, "owner": text, "label": text}


def test_a_json_line_says_what_the_page_says(scene: Scene, heard: Heard) -> None:
    for event in EVENTS.values():
        event(scene, scene.stored({"a": 1}, owner="alice"))
    formatter = json_lines()
    told = [json.loads(formatter.format(record)) for record in heard.records]
    assert {line["event"] for line in told} == {"login", "regenerate", "logout", "revoke"}
    counts = [line["count"] for line in told if line["event"] == "revoke"]
    assert counts == [1, len(EVENTS) - 2]


def test_the_page_has_every_event_and_every_field() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", PAGE, re.MULTILINE))
    assert set(table) == {"login", "regenerate", "logout", "revoke", "limit", "stale"}
    for name in FIELDS:
        assert f"session_{name}" in PAGE


ACT = """
from mongosession_wsgi.testing import MemoryStore

store = MemoryStore()
session = store.open(None)
session.login("alice", label="Firefox\\nlogin")
store.flush(session)
store.destroy(session)
"""


def run_as_written(*recipes: str) -> list[dict[str, Any]]:
    """Run recipes in a process of their own, and a login and a logout after; return the output."""
    script = "\n".join([*recipes, ACT])
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def events_of(told: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(one["event"], one.get("owner"), one.get("label")) for one in told]


EVENTS_TOLD = [("login", "alice", "Firefox\nlogin"), ("logout", "alice", None)]


def test_the_recipe_of_json_lines_prints_them() -> None:
    assert events_of(run_as_written(RECIPES[0])) == EVENTS_TOLD


def test_the_recipe_of_shipping_sends_every_line_to_the_collector() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        collector.settimeout(20)
        ours = RECIPES[1].replace('("127.0.0.1", 514)', repr(collector.getsockname()))
        assert ours != RECIPES[1]
        printed = run_as_written(RECIPES[0], ours)
        came = [collector.recv(65536) for _ in EVENTS_TOLD]
    assert all(line.startswith(b"<14>{") for line in came)
    sent = [json.loads(line.removeprefix(b"<14>").rstrip(b"\0")) for line in came]
    assert events_of(sent) == events_of(printed) == EVENTS_TOLD
    assert [one["id"] for one in sent] == [one["id"] for one in printed]


def test_nothing_is_shipped_while_a_visitor_waits(scene: Scene) -> None:
    """The queue of the recipe takes a line at once, even while the collector takes none."""
    gate, sent = threading.Event(), threading.Event()

    class Slow(logging.handlers.SysLogHandler):
        def __init__(self, address: object) -> None:
            logging.Handler.__init__(self)

        def emit(self, record: logging.LogRecord) -> None:
            gate.wait(20)
            sent.set()

        def close(self) -> None:
            logging.Handler.close(self)

    logger = logging.getLogger(NAME)
    before = logger.handlers.copy()
    recipe = RECIPES[1].replace("atexit.register(listener.stop)", "")
    names: dict[str, Any] = {
        "JsonLines": json_lines,
        "QueueHandler": logging.handlers.QueueHandler,
        "QueueListener": logging.handlers.QueueListener,
        "SysLogHandler": Slow,
        "logging": logging,
        "queue": queue,
    }
    try:
        logger.setLevel(logging.INFO)
        exec(recipe[recipe.index("collector = ") :], names)
        scene.request(None, lambda one: one.login("alice"))
        assert not sent.is_set()
    finally:
        gate.set()
        names["listener"].stop()
        logger.handlers[:] = before
        logger.setLevel(logging.NOTSET)
    assert sent.is_set()

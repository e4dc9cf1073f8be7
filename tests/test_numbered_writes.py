"""An update or an insert is a plain command with a number, repeated at will, carried out once.

A look is a plain command too, without a number, in the same sessions of the driver's.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import (
    DuplicateKeyError,
    ExecutionTimeout,
    WriteConcernError,
    WriteError,
    WTimeoutError,
)

from mongosession_wsgi import MongoStore, StoreError, commands
from mongosession_wsgi.document import id_of

from .commands import RECORDER
from .pretender import Answer, Pretender, written
from .proxy import Proxy, command_of, without_time_left

STEPS_DOWN, NO_PRIMARY, NO_DISK, TAKEN, NOT_REACHED = 189, 10107, 14031, 11000, 6


@pytest.fixture
def there(there: MongoStore) -> MongoStore:
    """The store that speaks to the pretender, with its client made."""
    there.retrieve("x")
    return there


def token_in(store: MongoStore) -> str:
    token = store.create({"a": 0}).token
    assert token is not None
    return token


def change(store: MongoStore, token: str, value: Any = 1) -> None:
    session = store.open(token)
    session["a"] = value
    store.flush(session)


def commands_of(act: Callable[[], object]) -> list[dict[str, Any]]:
    with RECORDER.request() as asked:
        act()
    return [dict(one.command) for one in asked]


def updates_of(act: Callable[[], object]) -> list[dict[str, Any]]:
    return [one for one in commands_of(act) if "update" in one]


def place_of(update: dict[str, Any]) -> tuple[bytes, int]:
    return bytes(update["lsid"]["id"]), update["txnNumber"]


def test_updates_are_numbered_in_one_session(store: MongoStore) -> None:
    token = token_in(store)
    (first,) = updates_of(lambda: change(store, token))
    (second,) = updates_of(lambda: change(store, token, 2))
    assert second["lsid"] == first["lsid"]
    assert second["txnNumber"] > first["txnNumber"]


def test_the_second_try_has_the_number_of_the_first(
    pretender: Pretender, there: MongoStore, store: MongoStore
) -> None:
    token = token_in(store)
    pretender.cut_after_request(once=True)
    first, second = updates_of(lambda: change(there, token))
    assert place_of(first) == place_of(second)
    (third,) = updates_of(lambda: change(there, token, 2))
    assert place_of(third)[0] == place_of(first)[0]


def test_looks_updates_and_inserts_share_a_session(store: MongoStore) -> None:
    def use() -> None:
        token = token_in(store)
        change(store, token)
        store.retrieve(token)

    inserted, updated, looked = commands_of(use)
    assert inserted["lsid"] == updated["lsid"] == looked["lsid"]
    assert inserted["txnNumber"] < updated["txnNumber"]
    assert "txnNumber" not in looked


def test_a_look_under_way_has_its_session_to_itself(
    pretender: Pretender, there: MongoStore, store: MongoStore
) -> None:
    token, asked = token_in(store), []

    def look(answer: Answer) -> Answer:
        del pretender.changes["find"]
        asked.extend(commands_of(lambda: there.retrieve("y")))
        return answer

    pretender.changes["find"] = look
    asked.extend(commands_of(lambda: there.retrieve(token)))
    within, around = (bytes(one["lsid"]["id"]) for one in asked)
    assert within != around
    assert len(there._sessions._idle[os.getpid()]) == 2


@pytest.mark.parametrize(
    ("code", "is_idle"), [(NO_DISK, True), (None, False)], ids=["refused", "cut"]
)
def test_the_session_of_a_look_is_idle_only_after_an_answer(
    pretender: Pretender, there: MongoStore, code: int | None, is_idle: bool
) -> None:
    idle = there._sessions._idle[os.getpid()]
    (before,) = idle
    if code is None:
        pretender.cut_after_request(once=True)
        there.retrieve("y")
    else:
        pretender.refuses = lambda name, asked: code if name == "find" else None
        with pytest.raises(StoreError):
            there.retrieve("y")
    (after,) = idle
    assert (after[0] is before[0]) is is_idle


def test_the_second_try_of_an_insert_has_the_number_of_the_first(
    pretender: Pretender, there: MongoStore, stored: Collection[Any]
) -> None:
    pretender.cut_after_request(once=True)
    created: list[Any] = []
    first, second = commands_of(lambda: created.append(there.create({"a": 1})))
    assert "insert" in first
    assert place_of(first) == place_of(second)
    found = stored.find_one({"_id": created[0].id})
    assert found is not None
    assert found["data"] == {"a": 1}


class Postponing(Proxy):
    """Holds the first update back, so that the client has to ask again."""

    held: bytes | None = None

    def __init__(self, server: tuple[str, int]) -> None:
        self.hangs_up = threading.Event()
        self.hangs_up.set()
        super().__init__(server)

    def fault_for(self, message: bytes) -> Any:
        if self.held is None and command_of(message) == "update":
            self.held = without_time_left(message)
            return lambda link, message: not self.hangs_up.wait(10)
        return super().fault_for(message)


def test_a_first_try_that_was_held_up_changes_nothing_later(
    client: MongoClient[Any], settings: dict[str, Any], store: MongoStore
) -> None:
    assert client.address is not None
    proxy, token = Postponing(client.address), token_in(store)
    there = MongoStore(settings | {"mongodb_host": proxy.uri})
    change(there, token, 1)
    change(store, token, 2)
    assert proxy.held is not None
    with socket.create_connection(client.address) as late:
        late.sendall(proxy.held)
        assert late.recv(4)
    assert store.open(token)["a"] == 2
    there.close()
    proxy.close()


def test_a_primary_that_steps_down_is_asked_until_there_is_another(
    pretender: Pretender, there: MongoStore, store: MongoStore
) -> None:
    token, answers = token_in(store), iter([_with(STEPS_DOWN)])
    pretender.changes["update"] = lambda answer: next(answers, lambda same: same)(answer)
    refusals = iter([None, NO_PRIMARY])
    pretender.refuses = lambda name, asked: next(refusals, None) if name == "update" else None
    tried = updates_of(lambda: change(there, token))
    assert [place_of(one) for one in tried] == [place_of(tried[0])] * 3
    assert store.open(token)["a"] == 1


def _with(code: int) -> Callable[[Answer], Answer]:
    """Return what makes an answer one that no majority has acknowledged."""
    unsure = {"code": code, "errmsg": "pretended"}
    return lambda answer: answer | {"writeConcernError": unsure}


def _refusal(code: int) -> Answer:
    return {"ok": 0.0, "code": code, "errmsg": "pretended"}


def _refused(code: int) -> Callable[[Answer], Answer]:
    refused = {"index": 0, "code": code, "errmsg": "pretended"}
    return lambda answer: answer | {"n": 0, "writeErrors": [refused]}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (_with(100), WriteConcernError),
        (_with(64), WTimeoutError),
        (_refused(NO_DISK), WriteError),
        (_refused(TAKEN), DuplicateKeyError),
        (lambda answer: _with(64)(_refused(TAKEN)(answer)), WTimeoutError),
        (lambda answer: _with(64)(_refused(NO_DISK)(answer)), WriteError),
    ],
)
def test_an_answer_may_hold_an_error_of_the_driver(
    pretender: Pretender,
    there: MongoStore,
    store: MongoStore,
    answer: Callable[[Answer], Answer],
    error: type[Exception],
) -> None:
    token = token_in(store)
    pretender.changes["update"] = answer
    with pytest.raises(StoreError) as caught:
        change(there, token)
    assert type(caught.value.__cause__) is error
    del pretender.changes["update"]
    change(there, token, 2)


@pytest.mark.parametrize("retries", [True, False])
def test_a_duplicate_without_a_majority_is_not_stored(
    pretender: Pretender, settings: dict[str, Any], retries: bool
) -> None:
    options = {"mongodb_retry_writes": retries, "mongodb_host": pretender.uri}
    there = MongoStore(settings | options)
    there.retrieve("x")
    pretender.changes["insert"] = lambda answer: _with(64)(_refused(TAKEN)(answer))
    with pytest.raises(StoreError):
        there.create({"a": 1})
    there.close()


def test_updates_at_the_same_time_have_a_session_each(
    pretender: Pretender, there: MongoStore, store: MongoStore
) -> None:
    tokens = [token_in(store), token_in(store)]
    change(there, tokens[0])  # From here on, a session is idle.
    together, places = threading.Barrier(2), []

    def meet(answer: Answer) -> Answer:
        together.wait(10)
        return answer

    pretender.changes["update"] = meet

    def act(token: str) -> None:
        (update,) = updates_of(lambda: change(there, token, 2))
        places.append(place_of(update))

    threads = [threading.Thread(target=act, args=[token]) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (first, first_number), (second, second_number) = places
    assert first != second
    assert first_number != second_number


def test_a_child_has_sessions_of_its_own(settings: dict[str, Any], store: MongoStore) -> None:
    there, token = MongoStore(settings), token_in(store)
    (before,) = updates_of(lambda: change(there, token))
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        try:
            (update,) = updates_of(lambda: change(there, token, 2))
            os.write(writes, place_of(update)[0])
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writes)
    with os.fdopen(reads, "rb") as told:
        of_the_child = told.read()
    assert len(of_the_child) == 16
    assert of_the_child != place_of(before)[0]
    there.close()


def test_a_session_that_was_idle_for_long_is_not_used_again(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = token_in(store)
    (first,) = updates_of(lambda: change(store, token))
    later = monotonic() + 28 * 60
    monkeypatch.setattr(commands, "monotonic", lambda: later)
    (second,) = updates_of(lambda: change(store, token, 2))
    assert second["lsid"] == first["lsid"]
    monkeypatch.setattr(commands, "monotonic", lambda: later + 29 * 60)
    (third,) = updates_of(lambda: change(store, token, 3))
    assert third["lsid"] != first["lsid"]


def test_a_client_that_is_made_anew_has_sessions_of_its_own(
    settings: dict[str, Any], store: MongoStore
) -> None:
    there, token = MongoStore(settings), token_in(store)
    (first,) = updates_of(lambda: change(there, token))
    there.close()
    (second,) = updates_of(lambda: change(there, token, 2))
    assert second["lsid"] != first["lsid"]
    there.close()


def test_a_store_that_is_closed_between_two_tries_asks_by_its_next_client(
    pretender: Pretender, there: MongoStore, store: MongoStore
) -> None:
    token = token_in(store)

    def close(answer: Answer) -> Answer:
        del pretender.changes["update"]
        there.close()
        return _refusal(STEPS_DOWN)

    pretender.changes["update"] = close
    first, second = updates_of(lambda: change(there, token))
    assert second["lsid"] != first["lsid"]


def test_a_session_of_a_client_that_was_closed_is_left(
    store: MongoStore, client: MongoClient[Any]
) -> None:
    token = token_in(store)
    of_another = client.start_session()
    update = commands.update(
        deque([(of_another, monotonic())]), {"_id": id_of(token)}, {"$set": {"data.a": 1}}
    )
    (asked,) = updates_of(lambda: store._sessions.attempt(update))
    assert asked["lsid"] != of_another.session_id


GONE = {
    "retries": (),
    "is a set": ("setName", "hosts", "me", "primary", "setVersion", "electionId"),
    "has sessions": ("logicalSessionTimeoutMinutes",),
}
"""What a server does not say of itself that does not do so."""


def pretend_not(pretender: Pretender, does: str) -> None:
    def without(answer: Answer) -> Answer:
        return {k: v for k, v in answer.items() if k not in (*GONE[does], "topologyVersion")}

    pretender.changes = dict.fromkeys(("hello", "isMaster", "ismaster"), without)


@pytest.mark.parametrize("does", GONE)
def test_a_server_that_knows_no_numbers_gets_none(
    pretender: Pretender,
    settings: dict[str, Any],
    store: MongoStore,
    stored: Collection[Any],
    does: str,
) -> None:
    pretend_not(pretender, does)
    options = {"mongodb_retry_writes": does != "retries", "mongodb_host": pretender.uri}
    there, token = MongoStore(settings | options), token_in(store)
    (update,) = updates_of(lambda: change(there, token))
    assert "txnNumber" not in update
    found = stored.find_one({"_id": id_of(token)})
    assert found is not None
    assert found["data"] == {"a": 1}
    there.close()


@pytest.mark.parametrize("does", ["is a set", "has sessions"])
def test_a_server_that_comes_back_without_numbers_gets_none(
    pretender: Pretender, there: MongoStore, store: MongoStore, does: str
) -> None:
    token = token_in(store)
    change(there, token)
    pretend_not(pretender, does)
    pretender.refuses = lambda name, asked: 20 if "txnNumber" in asked else None
    before = there.client.topology_description
    pretender.cut_idle()
    while there.client.topology_description is before or not _is_known(there):
        there.retrieve(token)
    looked, updated = commands_of(lambda: [there.retrieve(token), change(there, token, 2)])
    (inserted,) = commands_of(lambda: there.create({"a": 1}))
    assert not any("txnNumber" in one for one in (looked, updated, inserted))
    assert store.open(token)["a"] == 2


def _is_known(store: MongoStore) -> bool:
    return store.client.topology_description.has_known_servers


def test_sessions_are_kept_while_no_server_is_known(
    pretender: Pretender, there: MongoStore, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = token_in(store)
    (before,) = updates_of(lambda: change(there, token))
    nobody = there.client.topology_description.reset()
    monkeypatch.setattr(MongoClient, "topology_description", nobody)
    (after,) = updates_of(lambda: change(there, token, 2))
    assert after["lsid"] == before["lsid"]
    there._sessions._idle.clear()
    (by_the_driver,) = updates_of(lambda: change(there, token, 3))
    assert by_the_driver["txnNumber"] < after["txnNumber"]


def test_a_store_that_is_closed_ends_its_sessions(
    pretender: Pretender, settings: dict[str, Any]
) -> None:
    ended: list[Any] = []
    pretender.refuses = lambda name, asked: ended.extend(asked.get("endSessions", ()))
    with MongoClient[Any](pretender.uri) as of_the_application:
        of_the_application.admin.command("ping")
        there = MongoStore(settings, client=of_the_application)
        (asked,) = commands_of(lambda: there.retrieve("x"))
        there.close()
        assert [one["id"] for one in ended] == [asked["lsid"]["id"]]
        there.close()
        assert len(ended) == 1


@pytest.mark.parametrize("broken", ["closed", "silent"])
def test_a_store_is_closed_also_without_a_server(
    pretender: Pretender, settings: dict[str, Any], broken: str
) -> None:
    with MongoClient[Any](pretender.uri) as of_the_application:
        there = MongoStore(settings, client=of_the_application)
        there.retrieve("x")
        there.retrieve("x")
        assert there._sessions._idle[os.getpid()]
        if broken == "closed":
            of_the_application.close()
        else:
            pretender.silent()
        there.close()
        pretender.forward()


@pytest.mark.parametrize("gives_up", [False, True], ids=["the server", "the driver"])
def test_the_session_of_a_write_is_idle_only_if_no_try_is_without_an_answer(
    pretender: Pretender,
    there: MongoStore,
    store: MongoStore,
    monkeypatch: pytest.MonkeyPatch,
    gives_up: bool,
) -> None:
    token, idle = token_in(store), there._sessions._idle[os.getpid()]
    if gives_up:

        def command(*_: Any, **__: Any) -> None:
            raise ExecutionTimeout("operation would exceed time limit", 50)

        monkeypatch.setattr(Database, "command", command)
    else:
        pretender.cut_after_request(once=True)
        tries = iter([None, NO_DISK])
        pretender.refuses = lambda name, asked: next(tries, None) if name == "update" else None
    with pytest.raises(StoreError):
        change(there, token)
    assert not idle


def test_an_update_stays_out_of_the_transaction_of_the_application(store: MongoStore) -> None:
    token = token_in(store)
    with store.client.start_session() as session, session.start_transaction():
        (update,) = updates_of(lambda: change(store, token))
        assert update["lsid"] != session.session_id
        assert "autocommit" not in update


@pytest.fixture
def short(
    pretender: Pretender, settings: dict[str, Any], store: MongoStore
) -> Iterator[MongoStore]:
    """A store with a second for each command."""
    options = {"mongodb_host": pretender.uri, "mongodb_timeout_ms": 1000}
    short = MongoStore(settings | options)
    short.retrieve("x")
    yield short
    short.close()


def test_an_update_is_repeated_until_its_time_is_up(
    pretender: Pretender, short: MongoStore, store: MongoStore
) -> None:
    token = token_in(store)
    pretender.changes["update"] = lambda answer: _refusal(NOT_REACHED)
    with RECORDER.request() as asked, pytest.raises(StoreError):
        change(short, token)
    assert len(asked) > 3
    assert len({place_of(dict(one.command)) for one in asked}) == 1


def test_an_update_without_a_limit_is_tried_three_times(
    pretender: Pretender, settings: dict[str, Any], store: MongoStore
) -> None:
    token, options = token_in(store), {"mongodb_timeout_ms": 0, "mongodb_host": pretender.uri}
    there = MongoStore(settings | options)
    there.retrieve("x")
    pretender.changes["update"] = lambda answer: _refusal(NOT_REACHED)
    with RECORDER.request() as asked, pytest.raises(StoreError):
        change(there, token)
    assert len(asked) == 3
    there.close()


def test_a_connection_that_is_silent_is_replaced_where_nothing_else_has_a_limit(
    client: MongoClient[Any], settings: dict[str, Any], store: MongoStore
) -> None:
    assert client.address is not None
    token, proxy = token_in(store), Postponing(client.address)
    with MongoClient[Any](f"{proxy.uri}&socketTimeoutMS=500") as patient:
        there = MongoStore(settings, client=patient)
        there.retrieve("x")
        proxy.hangs_up.clear()
        first, second = updates_of(lambda: change(there, token))
        proxy.hangs_up.set()
    assert place_of(first) == place_of(second)
    assert store.open(token)["a"] == 1
    proxy.close()


def test_a_look_is_repeated_too(pretender: Pretender, short: MongoStore, store: MongoStore) -> None:
    token, codes = token_in(store), iter([NOT_REACHED] * 4)
    pretender.refuses = lambda name, asked: next(codes, None) if name == "find" else None
    with RECORDER.request() as asked:
        assert short.open(token)["a"] == 0
    assert [one.command_name for one in asked] == ["find"] * 5


@pytest.mark.parametrize("refuses", [False, True])
def test_a_label_says_what_may_be_repeated(
    pretender: Pretender, there: MongoStore, store: MongoStore, refuses: bool
) -> None:
    token = token_in(store)
    labels = {"errorLabels": ["RetryableWriteError"]}

    def once(answer: Answer) -> Answer:
        del pretender.changes["update"]
        return (_refusal(90) if refuses else _with(90)(answer)) | labels

    pretender.changes["update"] = once
    assert len(updates_of(lambda: change(there, token))) == 2
    assert store.open(token)["a"] == 1


def test_a_session_is_idle_only_after_the_last_try(
    pretender: Pretender, there: MongoStore, store: MongoStore
) -> None:
    token, other = token_in(store), token_in(store)
    change(there, other)
    idle = there._sessions._idle[os.getpid()]
    assert len(idle) == 1

    def refused(answer: Answer) -> Answer:
        pretender.changes["update"] = looked
        return _refused(NOT_REACHED)(answer)

    def looked(answer: Answer) -> Answer:
        del pretender.changes["update"]
        assert not idle
        return answer

    pretender.changes["update"] = refused
    change(there, token, 2)
    assert "update" not in pretender.changes
    assert len(idle) == 1


def test_a_session_with_a_final_refusal_is_idle(
    pretender: Pretender, there: MongoStore, store: MongoStore
) -> None:
    token = token_in(store)
    (before,) = updates_of(lambda: change(there, token))
    pretender.refuses = lambda name, asked: NO_DISK if name == "update" else None
    with pytest.raises(StoreError):
        change(there, token, 2)
    pretender.refuses = lambda name, asked: None
    (after,) = updates_of(lambda: change(there, token, 3))
    assert after["lsid"] == before["lsid"]


def test_a_duplicate_that_no_majority_has_is_not_stored(
    pretender: Pretender, there: MongoStore, store: MongoStore
) -> None:
    """A try before has stored it, as a server says that knows no numbers."""
    store.create()
    pretender.changes["insert"] = lambda answer: _with(64)(_refused(TAKEN)(answer))
    with pytest.raises(StoreError, match="Too few members"):
        there.create({"a": 1})


class Cutting(Pretender):
    """Refuses updates in words that end in the midst of a letter."""

    def fault_for(self, message: bytes) -> Any:
        if command_of(message) != "update":
            return super().fault_for(message)
        whole = written(message, _refused(TAKEN)({"ok": 1.0, "errmsg": "pretended"}))
        return lambda link, message: link.answer(whole.replace(b"pretended", b"pretende\xc3"))


def test_words_that_are_cut_in_a_letter_are_read(
    client: MongoClient[Any], settings: dict[str, Any], store: MongoStore
) -> None:
    assert client.address is not None
    token, cutting = token_in(store), Cutting(client.address)
    there = MongoStore(settings | {"mongodb_host": cutting.uri})
    with pytest.raises(StoreError) as caught:
        change(there, token)
    assert type(caught.value.__cause__) is DuplicateKeyError
    there.close()
    cutting.close()


@pytest.mark.parametrize("empty", [{"writeErrors": []}, {"writeConcernError": None}])
def test_an_empty_list_of_errors_is_none(
    pretender: Pretender, there: MongoStore, store: MongoStore, empty: Answer
) -> None:
    token = token_in(store)
    pretender.changes["update"] = lambda answer: answer | empty
    assert len(updates_of(lambda: change(there, token))) == 1

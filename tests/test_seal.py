"""Sealed sessions: what only a visitor's token opens."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bson
import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.collection import Collection

from mongosession_wsgi import (
    MongoStore,
    Session,
    SessionDataError,
    SettingsError,
    StoreError,
    life,
)
from mongosession_wsgi.document import MAX_SIZE, SEALED, Token, new_token, version_of
from mongosession_wsgi.embedded import EmbeddedServer
from mongosession_wsgi.seal import Seal
from mongosession_wsgi.testing import MemoryStore
from mongosession_wsgi.testing.conformance import StoreConformance
from mongosession_wsgi.testing.requests import Clock
from mongosession_wsgi.visit import Outcome

from .commands import RECORDER
from .scripted import Scene

TOKEN = Token("A" * 42 + "C")
SEAL = Seal(TOKEN)
OTHER = Seal(Token("B" * 42 + "C"))
SEALS = {"session_sealed": "true"}


def sealed(values: dict[str, Any], seal: Seal = SEAL) -> dict[str, bytes]:
    return seal.fields(values)


# The seal alone.


KNOWN = {
    "sx3y7IvT3QRlvQMmlNlaIQ": bytes.fromhex(
        "00000000000000000000000050958d2cf9f8ce49782e7d7e2bfb246ec754856ebb29f8b8714eb1e7f759bbaf"
        "2c8e33bd01"
    )
}
"""A user named alice under `TOKEN`, sealed without this package: `openssl kdf` for the keys,
`openssl dgst -mac HMAC` for the name, AES-GCM for the document, with a nonce of zeros."""


def test_the_known_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another answer would make all stored sessions unreadable by a new release."""
    monkeypatch.setattr(os, "urandom", bytes)
    assert sealed({"user": "alice"}) == KNOWN
    assert SEAL.open(KNOWN) == {"user": "alice"}


@pytest.mark.parametrize("key", ["", "a.b", "$x", "_id", "a\0b", "%2E", "é", "\U0001f95a"])
def test_every_key_comes_back(key: str) -> None:
    stored = sealed({key: [1, {"b": None}]})
    assert SEAL.open(stored) == {key: [1, {"b": None}]}
    assert set("".join(stored)).isdisjoint(".$\0")


def test_nothing_opens_with_another_token_name_or_session() -> None:
    stored = sealed({"user": "alice", "role": "admin"})
    assert OTHER.open(stored) is None
    swapped = dict(zip(stored, reversed(stored.values()), strict=True))
    assert SEAL.open(swapped) is None
    assert SEAL.open({OTHER.name("user"): stored[SEAL.name("user")]}) is None


def test_no_bit_can_be_changed_and_no_byte_left_out() -> None:
    ((name, value),) = sealed({"user": "alice"}).items()
    for place in range(len(value)):
        changed = value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]
        assert SEAL.open({name: changed}) is None
        assert SEAL.open({name: value[:place]}) is None


@pytest.mark.server  # For seconds of waiting or of work.
def test_no_nonce_comes_twice() -> None:
    stored = sealed({str(number): number for number in range(10_000)})
    nonces = {value[:12] for value in stored.values()}
    nonces |= {value[:12] for _ in range(10_000) for value in sealed({"n": 1}).values()}
    assert len(nonces) == 20_000


def test_a_large_value_comes_back() -> None:
    large = {"large": b"x" * (15 * 1024 * 1024)}
    assert SEAL.open(sealed(large)) == large
    assert SEAL.open({}) == {}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inner),
    max_leaves=5,
)


@how(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=5))
@pytest.mark.server  # For seconds of waiting or of work.
def test_many_open_as_each_does(values: dict[str, Any]) -> None:
    stored = sealed(values)
    assert SEAL.open(stored) == values
    for name, value in stored.items():
        opened = SEAL.open({name: value})
        assert opened is not None
        assert opened.items() <= values.items()


# Every promise, with a seal.


class TestSealedMongoStore(StoreConformance):
    @pytest.fixture
    def make_store(self, settings: dict[str, Any]) -> Callable[[Any], MongoStore]:
        return lambda clock: _Looking(settings | SEALS, clock=clock)


class TestSealedMemoryStore(StoreConformance):
    @pytest.fixture
    def make_store(self) -> Callable[[Any], MongoStore]:
        return lambda clock: _LookingInMemory(SEALS, clock=clock)


class _Opening:
    """Knows the tokens of what it stored, for tests that look at the data of a listing."""

    tokens: dict[str, str]

    def flush(self, session: Session) -> Any:
        outcome = super().flush(session)  # type: ignore[misc]
        self.__dict__.setdefault("tokens", {})[session.id or ""] = session.token or ""
        return outcome

    def create(self, data: Any = None) -> Session:
        session: Session = super().create(data)  # type: ignore[misc]
        self.__dict__.setdefault("tokens", {})[session.id or ""] = session.token or ""
        return session

    def sessions(self, owner: str | None = None) -> Any:
        for info in super().sessions(owner):  # type: ignore[misc]
            assert info.sealed
            assert info.data == {}
            found = self.retrieve(self.tokens[info.id])  # type: ignore[attr-defined]
            info.data.update(found.copy())
            yield info


class _Looking(_Opening, MongoStore):
    pass


class _LookingInMemory(_Opening, MemoryStore):
    pass


@pytest.fixture
def store(settings: dict[str, Any]) -> Any:
    store = MongoStore(settings | SEALS)
    store.ensure_indexes()
    yield store
    store.close()


def test_a_blind_write_is_one_command_and_one_key_of_fifty_is_sent_alone(
    store: MongoStore, stored: Collection[Any]
) -> None:
    session = store.create({f"key{number}": "x" * 100 for number in range(50)})
    before = stored.find_one({"_id": session.id})
    assert before is not None
    blind = store.open(session.token)
    blind["key17"] = "y"
    with RECORDER.request() as commands:
        store.flush(blind)
    assert [event.command_name for event in commands] == ["update"]
    after = stored.find_one({"_id": session.id})
    assert after is not None
    assert len(before["data"].items() - after["data"].items()) == 1
    assert store.retrieve(session.token or "") == {
        f"key{number}": "y" if number == 17 else "x" * 100 for number in range(50)
    }


def test_a_read_of_one_key_of_fifty_opens_one(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = store.create({f"key{number}": number for number in range(50)})
    opened: list[int] = []
    really = Seal.open
    monkeypatch.setattr(
        Seal, "open", lambda s, values: (opened.append(len(values)), really(s, values))[1]
    )
    found = store.retrieve(session.token or "")
    assert found is not None
    assert found["key7"] == 7
    assert "nothing" not in found
    assert opened == [1]


def test_nested_changes_removals_and_clearing_are_kept(store: MongoStore) -> None:
    token = store.create({"cart": [1], "gone": 1, "kept": 2}).token or ""
    session = store.open(token)
    session["cart"].append(2)
    del session["gone"]
    store.flush(session)
    assert store.retrieve(token) == {"cart": [1, 2], "kept": 2}
    session = store.open(token)
    assert len(session) == 2
    session.clear()
    store.flush(session)
    assert store.retrieve(token) == {}


@pytest.mark.parametrize("blind", [True, False])
def test_a_regeneration_seals_anew(store: MongoStore, stored: Collection[Any], blind: bool) -> None:
    first = store.create({"cart": [1]})
    names = set((stored.find_one({"_id": first.id}) or {})["data"])
    session = store.open(first.token)
    if not blind:
        assert session["cart"] == [1]
    session.login("alice", remember=True)
    store.flush(session)
    assert version_of(session.token or "") == SEALED
    assert store.retrieve(session.token or "") == {"cart": [1]}
    assert names.isdisjoint((stored.find_one({"_id": session.id}) or {})["data"])


def test_both_forms_live_side_by_side(settings: dict[str, Any], store: MongoStore) -> None:
    plain = MongoStore(settings)
    for writer, reader in ((plain, store), (store, plain)):
        session = writer.create({"a": 1})
        token, is_sealed = session.token or "", writer is store
        other = reader.open(token)
        other["b"] = 2
        with RECORDER.request() as commands:
            reader.flush(other)
        assert [event.command_name for event in commands] == ["update"]
        assert writer.retrieve(token) == reader.retrieve(token) == {"a": 1, "b": 2}
        (info,) = (one for one in reader.sessions() if one.id == session.id)
        assert (info.sealed, info.data) == ((True, {}) if is_sealed else (False, {"a": 1, "b": 2}))
        other = reader.open(token)
        other.regenerate()
        reader.flush(other)
        assert writer.retrieve(other.token or "") == {"a": 1, "b": 2}
        assert (version_of(other.token or "") == SEALED) == (reader is store)
    plain.close()


def test_what_a_seal_makes_too_large_is_refused_and_the_session_stays(clock: Clock) -> None:
    scene = Scene(clock)
    sealing = scene.another(**SEALS)
    large = b"x" * (MAX_SIZE - 200)
    token = scene.stored({"large": large})  # As large as a plain session can be.
    session = sealing.open(token)
    session.regenerate()
    with pytest.raises(SessionDataError, match="16 MiB"):
        sealing.flush(session)
    assert scene.store.retrieve(token) == {"large": large}
    token = str(sealing.create({"large": large[:-200]}).token)
    blind = sealing.open(token)
    blind["more"] = "y" * 200
    with pytest.raises(SessionDataError, match="16 MiB"):
        sealing.flush(blind)
    assert sealing.retrieve(token) == {"large": large[:-200]}


def test_without_the_extra_nobody_becomes_anonymous(
    store: MongoStore, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = store.create({"user": "alice"}).token or ""

    def missing(_: Token) -> Seal:
        raise StoreError("A sealed session needs cryptography")

    monkeypatch.setattr(life, "_seal_class", lambda: missing)
    without = MongoStore(settings)
    with pytest.raises(StoreError, match="needs cryptography"):
        dict(without.open(token))
    without.close()


def test_the_setting_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(SettingsError, match=r"sealed"):
        MongoStore({"mongodb_session_db": "x"} | SEALS)


def test_a_value_that_does_not_open_makes_the_session_none(
    store: MongoStore, stored: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    session = store.create({"a": 1, "b": 2})
    token, id_ = session.token or "", session.id or ""
    document = stored.find_one({"_id": id_})
    assert document is not None
    names = list(document["data"])
    stored.update_one({"_id": id_}, {"$set": {f"data.{names[0]}": document["data"][names[1]]}})
    before = stored.find_one({"_id": id_})
    found = store.open(token)
    with pytest.raises(KeyError):
        found["a"]
    assert found == {}
    assert found.new
    assert caplog.messages == [
        f"The document {id_} is not of our form: it is no session, and stays."
    ]
    changed = store.open(token)
    changed["a"] = 3
    assert "b" not in changed
    assert changed.new
    assert changed == {"a": 3}
    assert changed.id != id_
    rotated = store.open(token)
    rotated.regenerate()
    store.flush(rotated)
    after = stored.find_one({"_id": id_})
    assert after == before
    login = store.open(token)
    login.login("alice")
    assert store.flush(login) is Outcome.CREATED
    again = store.retrieve(login.token)
    assert again is not None
    assert again.owner == "alice"
    assert stored.find_one({"_id": id_}) == before


@pytest.mark.parametrize("key", [None, 1, ("a",), "\ud800"], ids=ascii)
def test_no_key_of_a_session_is_no_key_of_a_sealed_session(store: MongoStore, key: Any) -> None:
    session = store.open(store.create({"a": 1}).token)
    assert session.get(key) is None
    assert key not in session
    assert session.pop(key, 2) == 2
    with pytest.raises(KeyError):
        del session[key]
    with pytest.raises(SessionDataError):
        session.setdefault(key, 3)
    assert session == {"a": 1}


SECRETS = ("creditcard", "4111111111111111", "inmostname", "deepestvalue", "streetname",
           "Fleet Street")  # fmt: skip
PLACES = ("documents and indexes", "files and logs", "log of the driver", "commands")


def use_of(store: MongoStore) -> tuple[Session, Session]:
    """Store the secrets by all kinds of commands, and fail to; return the sessions."""
    session = store.create(
        {"creditcard": "4111111111111111", "nested": {"inmostname": ["deepestvalue"]}}
    )
    blind = store.open(session.token)
    blind["streetname"] = "Fleet Street"
    store.flush(blind)
    login = store.open(session.token)
    login.login("alice", label="Firefox")
    store.flush(login)
    login["nested"]["inmostname"].append(object())
    with pytest.raises(SessionDataError):
        store.flush(login)
    return session, login


def left_behind(folder: Path, log: pytest.LogCaptureFixture, **sealing: Any) -> dict[str, bytes]:
    """Return all that a store with secret names and values leaves behind, by the place."""
    log.set_level(logging.DEBUG)
    with EmbeddedServer(folder) as server:
        store = MongoStore({"mongodb_host": server.uri, "mongodb_session_db": "shop"} | sealing)
        store.ensure_indexes()
        with RECORDER.request() as commands:
            session, login = use_of(store)
        store.close()
        told = log.text.encode()
        with MongoClient[Any](server.uri) as client:
            dumped = [
                bson.encode(one)
                for name in client.list_database_names()
                for collection in client[name].list_collections()
                for among in [client[name][collection["name"]]]
                for one in [collection, *among.list_indexes(), *among.find()]
            ]
    assert session.token is not None
    files = (path.read_bytes() for path in folder.rglob("*") if path.is_file())
    sent = (bson.encode(event.command) for event in commands)
    found = dict(
        zip(PLACES, (b"".join(dumped), b"".join(files), told, b"".join(sent)), strict=True)
    )
    for place, bytes_there in found.items():
        assert b"alice" in bytes_there, f"{place}: where is the owner?"
        assert session.token.encode() not in bytes_there
        assert str(login.token).encode() not in bytes_there
    return found


def shown_in(found: bytes) -> set[str]:
    """Return the secrets that stand there in any form that is no encryption."""
    return {
        secret
        for secret in SECRETS
        for form in (
            secret.encode(),
            base64.b64encode(secret.encode()).rstrip(b"=")[:-1],
            secret.encode().hex().encode(),
            secret.encode("utf-16-le"),
            secret.encode()[::-1],
        )
        if form in found
    }


@pytest.mark.server  # For seconds of waiting or of work.
def test_the_database_its_log_and_the_drivers_log_show_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = left_behind(tmp_path, caplog, **SEALS)
    assert {place: shown_in(bytes_there) for place, bytes_there in found.items()} == {
        place: set() for place in PLACES
    }


@pytest.mark.server  # For seconds of waiting or of work.
def test_the_same_search_finds_everything_of_a_session_that_is_not_sealed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = left_behind(tmp_path, caplog)
    assert {place: shown_in(bytes_there) for place, bytes_there in found.items()} == {
        place: set(SECRETS) for place in PLACES
    }


def test_a_token_tells_its_form() -> None:
    for remembered in (True, False):
        assert version_of(new_token(remembered=remembered, sealed=True)) == SEALED
        assert version_of(new_token(remembered=remembered)) != SEALED

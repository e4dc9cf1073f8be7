"""What a session holds: every key and value that it takes, and what it says to the others."""

from __future__ import annotations

import decimal
import enum
from collections import Counter, OrderedDict, UserString, namedtuple
from collections.abc import Iterator
from contextlib import suppress
from datetime import date, datetime, timedelta, timezone
from typing import Any
from unittest.mock import MagicMock, Mock
from uuid import UUID

import bson
import pytest
from bson.dbref import DBRef
from bson.int64 import Int64
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from pymongo.collection import Collection
from werkzeug.local import LocalProxy

from mongosession_wsgi import MongoStore, Session, SessionDataError, document
from mongosession_wsgi.document import MAX_SIZE, escape, form, unescape
from mongosession_wsgi.session import visit_of

Point = namedtuple("Point", "x y")
UTC_NOON = datetime(2026, 1, 2, 12, 0, 0, 123000, tzinfo=timezone.utc)


class Color(enum.IntEnum):
    RED = 1


def nested(levels: int, value: Any = "deep") -> Any:
    for _ in range(levels):
        value = [value]
    return value


def kept(store: MongoStore, data: dict[str, Any]) -> dict[str, Any]:
    """Return `data` as the next request reads it."""
    token = store.create(data).token
    assert token is not None
    session = store.retrieve(token)
    assert session is not None
    return session.copy()


KEYS = ["", "a.b", ".", "$x", "$", "_id", "nul\0", "%", "%2E", "100%", "é☃", "0", "data.x"]


@pytest.mark.parametrize("key", KEYS)
def test_every_str_is_a_key_at_every_level(store: MongoStore, key: str) -> None:
    data = {key: {key: [{key: 1}]}, "other": 2}
    assert kept(store, data) == data


@given(st.text())
def test_escaped_keys_come_back(key: str) -> None:
    name = escape(key)
    assert unescape(name) == key
    assert name
    assert "." not in name
    assert "\0" not in name
    assert not name.startswith("$")


def test_two_keys_are_never_the_same_name() -> None:
    keys = ["", "%", "%25", "a.b", "a%2Eb", "$a", "%24a", "\0", "%00"]
    assert len({escape(key) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**63 - 1, -(2**63), 1.5, float("inf"), "", "é\0☃",
        b"", b"\xff\0", UTC_NOON, UUID(int=7), [], {}, [None, [1, {"a": []}]], {"a": {"b": {}}},
        bson.ObjectId("0" * 24), bson.Decimal128("1.10"), bson.Int64(5), bson.Binary(b"x", 128),
        bson.Regex("a", "i"), bson.Timestamp(1, 2), bson.MinKey(), bson.MaxKey(), bson.Code("f()"),
        bson.Code("f()", {"a": [1]}), DBRef("coll", 1, "db", more=[{"a": 1}]),
        {"$ref": "not a DBRef", "$id": 1}, {"at": [UTC_NOON, {"at": UTC_NOON}]},
        bson.Code("f()", {"at": UTC_NOON}), DBRef("coll", 1, at=[UTC_NOON]),
        datetime.max.replace(microsecond=999000, tzinfo=timezone.utc),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_what_bson_holds_comes_back(store: MongoStore, value: Any) -> None:
    data = {"top": value, "nested": [{"in": value}]}
    assert kept(store, data) == data


def test_ninety_levels_come_back(store: MongoStore) -> None:
    assert kept(store, {"top": nested(90)}) == {"top": nested(90)}
    shared = nested(80)
    data = {"top": [shared, nested(9, shared)]}
    assert kept(store, data) == data


def test_a_value_in_several_places_counts_with_its_levels_in_each(store: MongoStore) -> None:
    shared = nested(80)
    within = DBRef("coll", 1, x=shared)
    for value in (
        [shared, nested(10, shared)],
        [shared, [shared, [nested(8, shared)]]],
        [[within], nested(20, [within])],
        [shared := [within], nested(20, shared)],
    ):
        with pytest.raises(SessionDataError, match="more than 90 levels"):
            store.create({"top": value})


@pytest.mark.parametrize(
    ("value", "back"),
    [
        ((1, (2,)), [1, [2]]),
        (Point(1, 2), [1, 2]),
        (datetime(2026, 1, 2, 12), datetime(2026, 1, 2, 12, tzinfo=timezone.utc)),
        (
            datetime(2026, 1, 2, 12, 0, 0, 123999, timezone(timedelta(hours=2))),
            datetime(2026, 1, 2, 10, 0, 0, 123000, timezone.utc),
        ),
        (OrderedDict(a=1), {"a": 1}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (bson.SON([("b", 1), ("a", 2)]), {"b": 1, "a": 2}),
        (Markup("<b>"), "<b>"),
        (Color.RED, 1),
    ],
)
def test_what_comes_back_plain(store: MongoStore, value: Any, back: Any) -> None:
    found = kept(store, {"top": value})["top"]
    assert found == back
    assert type(found) is type(back)


@pytest.mark.parametrize("nested", [False, True])
def test_an_int_of_64_bits_comes_back_as_an_int_inside_of_other_types(
    store: MongoStore, nested: bool
) -> None:
    big: Any = [2**40] if nested else 2**40
    data = {"ref": DBRef("coll", big, more=big), "code": bson.Code("f()", {"x": big})}
    found = kept(store, data)
    ref, code = found["ref"], found["code"]
    for back in (ref.id, ref.more, code.scope["x"]):
        assert back == big
        assert type(back[0] if nested else back) is int


def hello(name: str = "Tee") -> str:
    return f"Hello, {name}"


def lazy_texts() -> Iterator[Any]:
    """Yield texts that are made when somebody looks at them, of each library that is here."""
    yield UserString("Hello, Tee")
    yield LocalProxy(hello)
    with suppress(ImportError):
        from babel.support import LazyProxy

        yield LazyProxy(hello, enable_cache=False)
    with suppress(ImportError):
        from flask_babel.speaklater import LazyString

        yield LazyString(hello, name="Tee")
    with suppress(ImportError):
        from django.utils.functional import SimpleLazyObject, lazystr

        yield lazystr("Hello, Tee")
        yield SimpleLazyObject(hello)


@pytest.mark.parametrize("text", [*lazy_texts()], ids=lambda text: type(text).__name__)
def test_a_lazy_text_is_stored_as_a_text(store: MongoStore, text: Any) -> None:
    found = kept(store, {"top": text, "_flashes": [("message", text)]})
    assert found == {"top": "Hello, Tee", "_flashes": [["message", "Hello, Tee"]]}
    assert type(found["top"]) is type(found["_flashes"][0][1]) is str


@pytest.mark.parametrize("value", [Mock(), MagicMock(), str, Markup])
def test_what_only_has_the_methods_of_a_text_is_refused(value: Any) -> None:
    with pytest.raises(SessionDataError, match=r"top: a session cannot hold a "):
        form("top", value)


RECURSIVE: list[Any] = []
RECURSIVE.append(RECURSIVE)
NOT_HELD = [
    ({1}, "set"),
    (frozenset(), "frozenset"),
    (decimal.Decimal(1), "Decimal"),
    (date(2026, 1, 1), "date"),
    (timedelta(1), "timedelta"),
    (object(), "object"),
    (bytearray(b"x"), "bytearray"),
    (range(3), "range"),
    (1j, "complex"),
    (iter([]), "list_iterator"),
    (2**63, "64 bits"),
    (-(2**63) - 1, "64 bits"),
    ("\ud800", "surrogate"),
    (RECURSIVE, "90"),
    (nested(91), "90"),
    (datetime.max.replace(tzinfo=timezone(-timedelta(hours=1))), "range"),
    (LocalProxy(lambda: 1), "LocalProxy"),
    (bson.Binary(b"x", 4), "read again"),
    (bson.Code("f()", {"a": bson.Binary(b"x", 4)}), "read again"),
    (DBRef("coll", bson.Binary(b"x", 4)), "read again"),
    (DBRef("coll", 1, more=[bson.Binary(b"x", 4)]), "read again"),
    (DBRef("coll", {1}), "set"),
    (DBRef("coll", nested(90)), "90"),
    (bson.Code("f()", {"a": nested(90)}), "90"),
]


@pytest.mark.parametrize(("value", "word"), NOT_HELD, ids=lambda value: str(type(value)))
def test_anything_else_is_refused_where_it_is_assigned(
    store: MongoStore, value: Any, word: str
) -> None:
    session = store.open(None)
    session["cart"] = "before"
    with pytest.raises(SessionDataError, match=rf"cart.*{word}"):
        session["cart"] = value
    assert session["cart"] == "before"
    with pytest.raises(SessionDataError, match=r"cart\[0\]\.price"):
        session["cart"] = [{"price": value}]


@pytest.mark.parametrize(("value", "word"), NOT_HELD, ids=lambda value: str(type(value)))
def test_a_nested_change_to_anything_else_is_found_at_the_commit(
    store: MongoStore, stored: Collection[Any], value: Any, word: str
) -> None:
    session = store.create({"a": 1, "cart": [{"price": 1}]})
    before = list(stored.find())
    session["a"] = 2
    session["cart"][0]["price"] = value
    with pytest.raises(SessionDataError, match=rf"cart\[0\]\.price.*{word}|cart: .*{word}"):
        store.flush(session)
    assert list(stored.find()) == before


def test_an_int64_is_an_int_from_the_start(store: MongoStore, stored: Collection[Any]) -> None:
    session = store.open(store.create({"who": "alice", "one": 1}).token)
    job = session["job"] = {"count": Int64(5), "log": []}
    store.flush(session)
    assert session["who"] == "alice"  # The first look: what is stored by now is underneath.
    job["log"].append("late")
    session["one"] = Int64(1)
    store.flush(session)
    assert stored.find_one()["data"]["job"] == {"count": 5, "log": ["late"]}
    changed = visit_of(session).draft.difference()
    assert not changed.assigned


class Rows(dict[str, Any]):
    """A dict that makes its values at each look."""

    def __init__(self, number: int) -> None:
        super().__init__(rows=None)
        self.number = number

    def items(self) -> Any:
        return [("rows", [self.number, self.number])]


def test_values_that_are_made_at_each_look_are_not_mixed_up(store: MongoStore) -> None:
    session = store.create({"made": [Rows(number) for number in range(9)]})
    again = store.retrieve(session.token or "")
    assert again is not None
    assert again["made"] == [{"rows": [number, number]} for number in range(9)]


def test_moments_are_aware_where_a_test_has_replaced_the_class(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OfAllMoments(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, datetime)

    class Frozen(datetime, metaclass=OfAllMoments):
        """What tools that stop the clock put in place of `datetime`."""

    moment = datetime(2026, 1, 2, tzinfo=timezone.utc)
    session = store.create({"since": moment, "all": [moment]})
    monkeypatch.setattr(document, "datetime", Frozen)
    again = store.retrieve(session.token or "")
    assert again is not None
    assert (again["since"], again["all"]) == (moment, [moment])


@pytest.mark.parametrize("key", [1, None, b"a", ("a",), Color.RED])
def test_only_str_are_keys(store: MongoStore, key: Any) -> None:
    session = store.open(None)
    with pytest.raises(SessionDataError, match=f"str, not {type(key).__name__}"):
        session[key] = 1
    with pytest.raises(SessionDataError, match=rf"a\[.*str, not {type(key).__name__}"):
        session["a"] = {key: 1}
    with pytest.raises(SessionDataError, match=r"\\ud800.*surrogate"):
        session["\ud800"] = 1


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [0, {"b": {1}}]}, "top.a[1].b:"),
        ({"a b": {1}}, "top['a b']:"),
        ({"": {1}}, "top['']:"),
        ([[{1}]], "top[0][0]:"),
        (bson.Code("f()", {"x": 2**63}), "top.x: this int does not fit into 64 bits"),
        (bson.Code("f()", {"x": "\ud800"}), "top.x: this str has a lone surrogate"),
        (DBRef("coll", 2**63), "top['$id']: this int does not fit into 64 bits"),
    ],
)
def test_the_error_names_the_path(value: Any, path: str) -> None:
    with pytest.raises(SessionDataError) as caught:
        form("top", value)
    assert str(caught.value).startswith(path)


def test_the_error_does_not_show_the_value(store: MongoStore) -> None:
    class Secret:
        def __repr__(self) -> str:
            return "hunter2"

    with pytest.raises(SessionDataError) as caught:
        store.open(None)["a"] = [Secret()]
    assert "hunter2" not in str(caught.value)


# Sixteen MiB.


def test_a_value_of_16_mib_is_refused_where_it_is_assigned(store: MongoStore) -> None:
    with pytest.raises(SessionDataError, match=r"big: .*16 MiB"):
        store.open(None)["big"] = bytes(MAX_SIZE)


def test_a_session_of_more_than_16_mib_is_refused_at_the_commit(
    store: MongoStore, stored: Collection[Any]
) -> None:
    session = store.create({"half": bytes(MAX_SIZE // 2)})
    session["other"] = bytes(MAX_SIZE // 2)
    with pytest.raises(SessionDataError, match="16 MiB"):
        store.flush(session)
    assert list(stored.find_one()["data"]) == ["half"]
    blind = store.open(session.token)
    blind["other"] = bytes(MAX_SIZE // 2)
    with pytest.raises(SessionDataError, match="16 MiB"):
        store.flush(blind)
    with pytest.raises(SessionDataError, match="16 MiB"):
        store.create({"a": bytes(MAX_SIZE // 2), "b": bytes(MAX_SIZE // 2)})


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize(
    "new", [{"a": bytes(9 * 2**20), "b": bytes(9 * 2**20)}, {"k" * 17 * 2**20: 1}], ids=[2, 1]
)
def test_a_change_of_more_than_16_mib_is_refused_by_the_driver(
    store: MongoStore, stored: Collection[Any], new: dict[str, Any], *, looks: bool
) -> None:
    session = store.open(store.create({"n": 1}).token)
    assert not looks or session["n"] == 1

    def change() -> None:
        session.update(new)
        store.flush(session)

    with pytest.raises(SessionDataError, match="16 MiB"):
        change()
    assert stored.find_one()["data"] == {"n": 1}


def test_a_login_that_would_make_a_session_too_large_leaves_it(
    store: MongoStore, stored: Collection[Any]
) -> None:
    token = store.create({"half": bytes(MAX_SIZE // 2)}).token
    before = stored.find_one()
    session = store.open(token)
    session["other"] = bytes(MAX_SIZE // 2)
    session.regenerate()
    with pytest.raises(SessionDataError, match="16 MiB"):
        store.flush(session)
    assert stored.find_one() == before
    assert stored.count_documents({}) == 1


def test_just_under_16_mib_is_held(store: MongoStore) -> None:
    room = MAX_SIZE - 300
    assert len(kept(store, {"big": bytes(room)})["big"]) == room


# The mapping.


def test_the_newest_key_is_popped_first(store: MongoStore) -> None:
    session = store.open(store.create({"a": 1, "b": 2}).token)
    session["c"] = 3
    assert [session.popitem() for _ in range(3)] == [("c", 3), ("b", 2), ("a", 1)]
    with pytest.raises(KeyError, match="empty"):
        session.popitem()


def test_a_session_is_a_complete_mapping(store: MongoStore) -> None:
    session = store.open(store.create({"a": 1, "b": [1]}).token)
    assert session == {"a": 1, "b": [1]}
    assert session != {"a": 1}
    assert len(session) == 2
    assert list(session) == ["a", "b"]
    assert session.copy() == {"a": 1, "b": [1]}
    assert type(session.copy()) is dict
    assert session.pop("a") == 1
    with pytest.raises(KeyError):
        session["a"]
    with pytest.raises(KeyError):
        del session["a"]
    session |= {"c": 3}
    assert session.setdefault("c", 4) == 3
    assert session.popitem() in [("b", [1]), ("c", 3)]
    session.clear()
    assert not session
    assert 3 not in session


def test_repr_reads_nothing_and_shows_no_token_and_no_value(store: MongoStore) -> None:
    token = store.create({"secret": "hunter2"}).token
    session = store.open(token)
    assert repr(session) == "<Session, not loaded>"
    assert session["secret"]
    assert repr(session) == f"<Session {session.id} with ['secret']>"
    assert repr(store.open(None)) == "<Session new with []>"


def test_numbers_of_another_type_are_a_change(store: MongoStore, stored: Collection[Any]) -> None:
    session = store.create({"a": 1, "b": float("nan")})
    session["a"] = True
    session["b"] = float("nan")
    assert list(visit_of(session).draft.difference().assigned) == ["a"]


def test_a_value_changed_by_another_thread_during_the_commit_is_a_change_of_the_next(
    store: MongoStore, stored: Collection[Any]
) -> None:
    session = store.create({"cart": [1]})
    session["cart"].append(2)
    draft = visit_of(session).draft
    changes = draft.difference()
    session["cart"].append(3)
    draft.settle(changes)
    assert draft.difference().assigned == {"cart": [1, 2, 3]}


def test_a_session_keeps_the_object_that_it_was_given(store: MongoStore) -> None:
    cart: list[int] = []
    session: Session = store.create()
    session["cart"] = cart
    store.flush(session)
    cart.append(1)
    store.flush(session)
    found = store.retrieve(session.token or "")
    assert found == {"cart": [1]}

"""The draft of a session's data, as a pure value: nothing here has a store."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from datetime import datetime, timedelta, timezone
from threading import Event, Thread, current_thread
from typing import Any

import pytest
from bson.dbref import DBRef
from bson.int64 import Int64
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from mongosession_wsgi import SessionDataError, document
from mongosession_wsgi.document import Changes, Token
from mongosession_wsgi.draft import UNCHANGED, Draft, SealedData
from mongosession_wsgi.seal import Seal

SEAL = Seal(Token("t" * 43))
Prints = dict[str, bytes]


def of(data: dict[str, Any]) -> Draft:
    """Return the draft of a request that has loaded these data."""
    return Draft().rebased(data, replaces=False)


# What counts as a change.


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, 2), (1, True), (0, False), (1, 1.0), (0.0, -0.0), (1, Int64(2)), ("1", 1), (b"a", "a"),
     ([1], [1, 2]), ([1], [True]), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), (None, 0), ("", None)],
)  # fmt: skip
def test_another_value_is_a_change(before: Any, after: Any) -> None:
    draft = of({"a": before, "b": 1})
    draft.set("a", after)
    assert set(draft.difference().assigned) == {"a"}
    assert draft.difference().assigned["a"] == after


@pytest.mark.parametrize(
    ("before", "again"),
    [(1, 1), (float("nan"), float("nan")), ([1], (1,)), ("é", "é"), ({"a": [1]}, {"a": [1]})],
)
def test_the_same_value_is_none(before: Any, again: Any) -> None:
    draft = of({"a": before})
    draft.set("a", again)
    assert draft.difference() is UNCHANGED


def test_what_is_set_and_put_back_is_no_change() -> None:
    draft = of({"a": 1, "b": [1]})
    draft.set("a", 2)
    draft.get("b").append(2)
    draft.set("c", 3)
    draft.delete("c")
    draft.set("a", 1)
    draft.get("b").pop()
    assert draft.difference() is UNCHANGED


def test_a_nested_change_is_one_and_looking_is_none() -> None:
    stored = {"a": {"b": [1]}, "c": [1]}
    draft = of(stored)
    assert draft.get("a")["b"] == draft.get("c")
    assert draft.difference() is UNCHANGED
    draft.get("a")["b"].append(2)
    changes = draft.difference()
    assert (changes.assigned, changes.removed) == ({"a": {"b": [1, 2]}}, set())
    draft.settle(changes)
    assert draft.difference() is UNCHANGED
    draft.get("a")["b"].append(3)
    assert set(draft.difference().assigned) == {"a"}


def test_an_object_in_hand_counts_after_a_write_too() -> None:
    draft = of({"a": [1]})
    draft.set("a", mine := [1, 2])
    draft.settle(draft.difference())
    mine.append(3)
    changes = draft.difference()
    assert changes.assigned == {"a": [1, 2, 3]}
    # What was in hand before something else was stored is no measure of it.
    draft.settle(changes)
    draft.delete("a")
    draft.settle(draft.difference())
    draft.set("a", 5)
    draft.settle(draft.difference())
    draft.set("a", [1, 2, 3])
    assert draft.difference().assigned == {"a": [1, 2, 3]}


def test_what_cannot_be_stored_is_refused_where_it_is_set_or_found() -> None:
    draft = of({"a": [1]})
    with pytest.raises(SessionDataError):
        draft.set("b", {1})
    assert draft.difference() is UNCHANGED
    draft.get("a").append({1})
    for ask in (draft.difference, draft.contents, lambda: draft.rebased({}, replaces=False)):
        with pytest.raises(SessionDataError, match=r"a\[1\]"):
            ask()


def test_a_missing_key_is_a_key_error() -> None:
    for act in (Draft.get, Draft.delete):
        with pytest.raises(KeyError):
            act(of({"a": 1}), "b")


# A draft is rebased.


def test_an_object_that_an_application_holds_goes_on_to_count() -> None:
    draft = of({"mine": [1], "theirs": [1]})
    mine, theirs = draft.get("mine"), draft.get("theirs")
    draft = draft.rebased({"mine": [1], "theirs": [2]}, replaces=False)
    assert draft.get("mine") is mine
    mine.append(2)
    theirs.append(3)  # In vain: somebody else has stored another list since.
    assert draft.difference().assigned == {"mine": [1, 2]}
    assert draft.data == {"mine": [1, 2], "theirs": [2]}


def test_a_draft_that_replaces_keeps_what_was_set_and_nothing_else() -> None:
    draft = of({"a": 1})
    draft.set("b", 2)
    draft = draft.rebased({"a": 1, "c": 3}, replaces=True)
    assert draft.data == {"b": 2}
    assert draft.difference() == Changes({"b": 2}, replaces=True)


def test_dropped_keys_are_left_behind_wherever_they_are() -> None:
    for stored in ({"csrf": "old", "a": 1}, {"a": 1}):
        draft = Draft()
        draft.set("csrf", "mine")
        draft.set("b", 2)
        draft.drop(["csrf", "token"])
        assert draft.rebased(stored, replaces=False).contents().assigned == {"a": 1, "b": 2}
        draft.set("csrf", "new")
        assert draft.rebased(stored, replaces=False).contents().assigned == (
            {"a": 1, "b": 2, "csrf": "new"}
        )


def test_a_change_leaves_the_stored_data_as_they_are() -> None:
    stored = {"a": 1, "b": 2}
    draft = of(stored)
    assert draft.data is stored
    draft.set("a", 2)
    draft.delete("b")
    draft.clear()
    draft.wipe()
    assert stored == {"a": 1, "b": 2}


def test_what_a_login_left_behind_is_not_removed_once_more() -> None:
    draft = of({"csrf": "old", "a": 1, "b": [1]})
    draft.drop(["csrf"])
    draft.delete("a")
    draft.settle(draft.contents())
    assert draft.difference() is UNCHANGED
    draft.get("b").append(2)
    assert draft.difference() == Changes({"b": [1, 2]}, prints=draft.difference().prints)


# A sealed session.


def sealed(data: dict[str, Any], spoil: Callable[[], None] = lambda: None) -> Draft:
    """Return the draft of a request that has loaded these data, sealed."""
    return Draft().rebased(SealedData(SEAL.fields(data), SEAL, spoil), replaces=False)


def test_a_sealed_value_is_opened_when_it_is_asked_for() -> None:
    draft = sealed({"a": 1, "b": [1]})
    assert draft.data == {}
    assert draft.has("a")
    assert not draft.has("c")
    assert draft.data == {"a": 1}
    draft.get("b").append(2)
    assert set(draft.difference().assigned) == {"b"}
    assert draft.complete() == {"a": 1, "b": [1, 2]}


def test_a_sealed_value_is_compared_with_what_replaces_it() -> None:
    draft = sealed({"a": 1, "b": 2, "c": 3})
    draft.set("a", 2)
    draft.delete("a")
    draft.set("b", 2)
    draft.set("c", 4)
    changes = draft.difference()
    assert (changes.assigned, changes.removed) == ({"c": 4}, {"a"})


def test_sealed_keys_keep_their_order_whichever_is_opened_first() -> None:
    for changed in ({}, {"b": 5}, {"new": 6}, {"b": 5, "new": 6}):
        draft = sealed({"a": 1, "b": 2, "c": 3})
        for key in "cb":
            draft.get(key)
        for key, value in changed.items():
            draft.set(key, value)
        assert list(draft.complete().items()) == list(({"a": 1, "b": 2, "c": 3} | changed).items())


def test_a_sealed_key_that_is_removed_and_set_again_is_the_newest() -> None:
    for asked in ("", "b"):
        draft = sealed({"a": 1, "b": 2, "c": 3})
        draft.has(asked)
        draft.delete("a")
        draft.set("a", 9)
        assert list(draft.complete()) == ["b", "c", "a"]


def test_a_dropped_key_is_left_behind_sealed_or_not() -> None:
    for look in (lambda draft: draft.complete(), lambda draft: draft.has("csrf")):
        draft = sealed({"csrf": "old", "a": 1})
        draft.drop(["csrf"])
        look(draft)
        assert not draft.has("csrf")
        assert draft.contents().assigned == {"a": 1}


def test_many_values_are_opened_one_by_one_into_the_same_dict() -> None:
    """A copy for each would take a time that grows with the square of their number."""
    draft = sealed({f"key{n}": n for n in range(9)})
    draft.set("key0", "new")
    first = draft.data
    for n in range(1, 9):
        draft.set(f"key{n}", "new")
        assert draft.data is first


def test_a_value_that_does_not_open_spoils_the_session() -> None:
    spoilt: list[bool] = []
    draft = sealed({"a": 1, "b": 2}, lambda: spoilt.append(True))
    draft._sealed[SEAL.name("a")] = SEAL.fields({"b": 2})[SEAL.name("b")]  # type: ignore[index]
    with pytest.raises(KeyError):
        draft.get("a")
    assert spoilt == [True]
    assert draft.complete() == {}


def test_an_object_that_was_set_is_watched_on_though_others_have_written() -> None:
    draft, mine = of({"a": []}), list[int]()
    draft.set("a", mine)
    draft = draft.rebased({"a": [], "b": 1}, replaces=False)
    mine.append(1)
    assert draft.difference().assigned == {"a": [1]}


def test_a_value_is_opened_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {"a": [{"x%2Ey": 1}], "b": [{"%": 2}], "c": 3}
    opened = document.opened
    asked: list[Any] = []

    def noted(value: Any) -> Any:
        asked.append(deepcopy(value))
        return opened(value)

    monkeypatch.setattr(document, "opened", noted)
    draft = of(stored)
    assert draft.get("c") == 3
    assert not asked
    assert draft.get("a") == [{"x.y": 1}]
    assert asked[0] == [{"x%2Ey": 1}]
    assert [{"%": 2}] not in asked
    assert draft.difference() is UNCHANGED
    assert draft.contents().assigned == {"a": [{"x%2Ey": 1}], "b": [{"%": 2}], "c": 3}


def test_the_same_value_is_none_also_in_another_form() -> None:
    draft = of({"a": [{"x%2Ey": 1}], "b": 1})
    draft.set("a", [{"x.y": 1}])
    draft.set("b", 2)
    assert draft.difference().assigned == {"b": 2}


def test_an_object_in_another_form_is_kept_too() -> None:
    draft = of({"a": [{"x%2Ey": 1}]})
    mine = draft.get("a")
    draft = draft.rebased({"a": [{"x%2Ey": 1}]}, replaces=False)
    assert draft.get("a") is mine


@pytest.mark.parametrize("name", ["a.b", "$x", "100%", "%2e", "%41", ""])
def test_a_name_that_another_program_stored_in_another_way_is_no_change(name: str) -> None:
    draft = of({"a": [{name: 1}], "b": 1})
    mine = draft.get("a")
    assert draft.difference() is UNCHANGED
    draft = draft.rebased({"a": [{name: 1}], "b": 2}, replaces=False)
    assert draft.get("a") is mine
    draft = of({"a": {name: 1}})
    draft.set("a", {document.unescape(name): 1})
    assert draft.difference() is UNCHANGED


def test_what_others_have_changed_is_opened_once() -> None:
    draft = of({"a": {"p": {"%25": 1}}})
    draft.get("a")
    draft = draft.rebased({"a": {"p": {"%25": 2}}}, replaces=False)
    assert draft.get("a") == {"p": {"%": 2}}


def test_a_value_that_another_program_nested_too_deep_is_refused_where_it_is_asked_for() -> None:
    deep: Any = []
    for _ in range(94):
        deep = [deep, {"%25": 1}]
    draft = of({"a": deep, "b": 1})
    for _ in range(2):
        with pytest.raises(SessionDataError, match="levels deep"):
            draft.get("a")
    assert draft.difference() is UNCHANGED
    assert draft.get("b") == 1


def test_a_value_that_is_asked_for_during_the_first_change_is_opened_once() -> None:
    asks, found = Event(), list[Any]()

    class Slow(dict[str, Any]):
        def copy(self) -> dict[str, Any]:
            copied = dict(self)
            asks.set()
            other.join(0.05)  # It waits, or else it would be done.
            return copied

    draft = of(Slow({"a": {"x%2Ey": 1}}))

    def ask() -> None:
        asks.wait(10)
        found.append(draft.get("a"))

    other = Thread(target=ask)
    other.start()
    draft.set("b", 2)
    other.join()
    assert found == [{"x.y": 1}]
    assert draft.get("a") is found[0]
    assert draft.difference().assigned == {"b": 2}


@pytest.mark.parametrize("value", [5, -1, 2**40])
def test_an_int_that_another_program_stored_in_64_bits_is_no_change(value: int) -> None:
    def stored() -> dict[str, Any]:
        return {"a": [{"n": Int64(value)}], "b": {"n": Int64(value)}, "c": DBRef("x", Int64(value))}

    draft = of(stored())
    mine = [draft.get(key) for key in "abc"]
    draft.set("b", {"n": value})
    assert draft.difference() is UNCHANGED
    draft = draft.rebased(stored(), replaces=False)
    assert draft.get("a") is mine[0]
    draft = of(stored())
    draft.set("a", [{"n": value}])
    assert draft.difference() is UNCHANGED


def test_a_stored_moment_is_the_same_in_every_zone() -> None:
    def noon(hours: int) -> datetime:
        return datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=hours)))

    draft = of({})
    draft.set("at", noon(1))
    draft.settle(draft.difference())
    draft.set("at", noon(1))
    assert draft.difference() is UNCHANGED
    draft.set("at", noon(0))
    assert draft.difference().assigned == {"at": noon(0)}
    draft.set("at", noon(1).astimezone(timezone.utc))
    assert draft.difference() is UNCHANGED


def test_a_value_takes_the_place_of_one_that_has_too_many_levels_for_us() -> None:
    deep: list[Any] = []
    for _ in range(document.MAX_DEPTH + 1):
        deep = [deep]
    draft = of({"a": deep})
    draft.set("a", [1])
    assert draft.difference().assigned == {"a": [1]}


def test_two_threads_are_handed_the_same_object(monkeypatch: pytest.MonkeyPatch) -> None:
    draft, opened = of({"a": [{"%": 1}]}), document.opened
    found: list[Any] = []
    other = Thread(target=lambda: found.append(draft.get("a")))

    def slowly(value: Any) -> Any:
        if other.ident is None:
            other.start()
            other.join(0.05)  # It waits, or else it would be done.
        return opened(value)

    monkeypatch.setattr(document, "opened", slowly)
    found.append(draft.get("a"))
    other.join()
    assert found[0] is found[1]
    assert found[0] == [{"": 1}]


class Turnstile:
    """The lock of a draft, which lets another thread come to it while it is held."""

    def __init__(self, lock: Any, other: Thread) -> None:
        self._lock = lock
        self._other = other
        self._came = Event()

    def __enter__(self) -> None:
        if current_thread() is self._other:
            self._came.set()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait_for_the_other(self) -> None:
        if self._other.ident is None:
            self._other.start()
            assert self._came.wait(10)


def test_the_first_changes_of_two_threads_both_count() -> None:
    class Stored(dict[str, Any]):
        def copy(self) -> dict[str, Any]:
            turn.wait_for_the_other()
            return dict(self)

    draft = Draft(Stored(a=1))
    turn = Turnstile(draft.turn, Thread(target=lambda: draft.set("b", 2)))
    draft.turn = turn
    draft.set("c", 3)
    turn._other.join()
    assert draft.difference().assigned == {"b": 2, "c": 3}


ASKS: list[Callable[[Draft], Any]] = [lambda one: one.get("a"), lambda one: one.complete()["a"]]


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("asks", ASKS)
def test_two_threads_find_the_same_sealed_value(
    ask: Callable[[Draft], Any], asks: Callable[[Draft], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    draft, found, opened = sealed({"a": 1, "b": 2}), list[Any](), Seal.open

    def slowly(self: Seal, values: dict[str, bytes]) -> Any:
        turn.wait_for_the_other()
        return opened(self, values)

    turn = Turnstile(draft.turn, Thread(target=lambda: found.append(asks(draft))))
    draft.turn = turn
    monkeypatch.setattr(Seal, "open", slowly)
    found.append(ask(draft))
    turn._other.join()
    assert found == [1, 1]


# Everything at once, against plain dicts.

KEYS = st.sampled_from(["a", "b", "c", "d.e", ""])
NAMES = st.sampled_from(["x", "y.z", "%2E", "$", ""])
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(width=16) | st.text(max_size=2)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)


class Model(RuleBasedStateMachine):
    """A draft, and beside it two dicts: what this request took for stored, and what it has now.

    Their values are bytes, because two values are the same if their bytes are. A third dict is
    what MongoDB has, which others change too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draft = Draft()
        self.loaded = False
        self.replaces = False
        self.dropped: set[str] = set()
        self.stored: dict[str, Any] = {}
        self.base: Prints = {}
        self.now: Prints = {}
        self.held: dict[str, Any] = {}

    def found(self) -> dict[str, Any]:
        """Return what is stored as a request gets it."""
        return deepcopy(self.stored)

    @initialize(stored=st.dictionaries(KEYS, VALUES))
    def begin(self, stored: dict[str, Any]) -> None:
        self.stored = {key: document.form(key, value) for key, value in stored.items()}

    # What an application does.

    @rule(key=KEYS, value=VALUES)
    def set(self, key: str, value: Any) -> None:
        self.draft.set(key, value)
        self.held[key] = value
        self.now[key] = document.encode(key, value)

    @precondition(lambda self: self.loaded)
    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        assert self.draft.has(key) == (key in self.now)
        if key in self.now:
            self.draft.delete(key)
            del self.now[key]
            self.held.pop(key, None)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        if key in self.now and (self.loaded or key in self.draft.data):
            value = self.held[key] = self.draft.get(key)
            assert document.encode(key, value) == self.now[key]

    @rule(key=KEYS, value=SCALARS)
    def change_in_place(self, key: str, value: Any) -> None:
        found = self.held.get(key)
        if isinstance(found, list | dict) and found is self.draft.data.get(key):
            if isinstance(found, list):
                found.append(value)
            else:
                found["z"] = value
            self.now[key] = document.encode(key, found)

    @precondition(lambda self: self.loaded)
    @rule()
    def clear(self) -> None:
        self.draft.clear()
        self.now, self.held = {}, {}

    @rule()
    def wipe(self) -> None:
        self.draft.wipe()
        self.base, self.now, self.held = {}, {}, {}
        self.replaces = self.loaded = True

    @rule(keys=st.lists(KEYS, min_size=1, max_size=2))
    def drop(self, keys: list[str]) -> None:
        self.draft.drop(keys)
        self.dropped |= set(keys)
        self.now = {key: value for key, value in self.now.items() if key not in self.dropped}
        self.held = {key: value for key, value in self.held.items() if key not in self.dropped}
        # Even a value that is set anew and equals the stored value is a change from then on.
        self.base = {key: value for key, value in self.base.items() if key not in self.dropped}

    # What others do, and what the store does.

    @rule(key=KEYS, value=VALUES)
    def others_set(self, key: str, value: Any) -> None:
        self.stored[key] = document.form(key, value)

    @rule(key=KEYS)
    def others_delete(self, key: str) -> None:
        self.stored.pop(key, None)

    @rule()
    def look(self) -> None:
        changed = {key: value for key, value in self.now.items() if self.base.get(key) != value}
        removed = self.base.keys() - self.now.keys()
        there = {} if self.replaces else prints_of_forms(self.stored)
        self.base = {key: value for key, value in there.items() if key not in self.dropped}
        kept = {key: value for key, value in self.base.items() if key not in removed}
        self.draft = self.draft.rebased(self.found(), replaces=self.replaces)
        self.now, self.loaded = kept | changed, True
        for key, held in self.held.items():
            # Nobody has changed it: the object in an application's hands is the session's still.
            if isinstance(held, list | dict) and self.draft.data.get(key) is not held:
                assert key not in self.now or document.encode(key, held) != self.now[key]

    @rule()
    def write(self) -> None:
        if self.dropped:  # By a login, which stores the data as those of a new session.
            self.become_another()
            return
        changes = self.draft.difference()
        assert (changes is UNCHANGED) == (self.now == self.base and not self.replaces)
        assert changes.replaces == self.replaces
        if changes.replaces:
            self.stored = {}
        for key in changes.removed:
            self.stored.pop(key, None)
        self.stored |= deepcopy(changes.assigned)
        if not self.replaces:
            assert set(changes.assigned) == {
                key for key, value in self.now.items() if self.base.get(key) != value
            }
            assert changes.removed == self.base.keys() - self.now.keys()
        self.settle(changes)

    def become_another(self) -> None:
        if not self.loaded:
            self.look()
        contents = self.draft.contents()
        assert set(contents.assigned) == set(self.now)
        assert not contents.removed
        self.stored = deepcopy(contents.assigned)
        self.settle(contents)

    def settle(self, changes: Changes) -> None:
        for key in changes.assigned:
            assert document.encode_form(key, self.stored[key]) == self.now[key]
        self.draft.settle(changes)
        assert self.draft.difference() is UNCHANGED
        self.base, self.replaces = dict(self.now), False

    def teardown(self) -> None:
        if self.loaded:
            found = {key: self.draft.get(key) for key in self.draft.complete()}
            assert {key: document.encode(key, value) for key, value in found.items()} == self.now


def prints_of_forms(stored: dict[str, Any]) -> Prints:
    return {key: document.encode_form(key, form) for key, form in stored.items()}


class SealedModel(Model):
    """The same, where MongoDB holds the data of a sealed session."""

    def found(self) -> dict[str, Any]:
        return SealedData(
            SEAL.fields(self.stored), SEAL, spoil=lambda: pytest.fail("a value does not open")
        )


RUNS = settings(max_examples=60, stateful_step_count=25, report_multiple_bugs=False)
TestModel: Any = Model.TestCase
TestModel.settings = RUNS
TestSealedModel: Any = SealedModel.TestCase
TestSealedModel.settings = RUNS

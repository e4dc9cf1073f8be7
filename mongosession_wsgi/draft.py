"""The data of a session in one request: as stored, as of now, and the difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, KeysView
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from threading import RLock
from typing import TYPE_CHECKING, Any

from . import document
from .document import Changes
from .errors import SessionDataError

if TYPE_CHECKING:
    from .seal import Seal

_EXACT = frozenset((type(None), bool, int, str, bytes))
"""The types whose values are equal just if their bytes are, unlike -0.0 and nan."""
UNCHANGED = Changes({})
"""The difference between equal data."""
_MISSING = object()
"""No value is this object."""


class SealedData(dict[str, bytes]):
    """The data of a sealed session, by their stored names; opened values are taken out."""

    def __init__(self, values: dict[str, bytes], seal: Seal, spoil: Callable[[], None]) -> None:
        super().__init__(values)
        self.seal = seal
        self._spoil = spoil
        self.names = dict.fromkeys(values)

    def open(self, values: dict[str, bytes]) -> dict[str, Any]:
        """Open values; a value that does not open makes the document no session any more."""
        found = self.seal.open(values)
        if found is None:
            self.clear()
            self._spoil()
        return found or {}

    def in_order(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return data in the order in which they are stored; what is not stored comes last."""
        if len(self) == len(self.names):  # Nothing was taken out before.
            return data
        keys = {self.seal.name(key): key for key in data}
        stored = [keys[name] for name in self.names if name in keys]
        return {key: data[key] for key in (*stored, *data)}


class Draft:
    """Data with the changes of one request so far, without I/O.

    No flag marks a value as changed. A value that was set, or handed to the application, may have
    changed, so it is compared with what is stored: by the bytes for MongoDB, if need be.
    """

    __slots__ = (
        "_prints", "_sealed", "_stored", "_touched", "data", "dropped", "replaces", "turn",
    )  # fmt: skip

    def __init__(self, stored: dict[str, Any] | None = None) -> None:
        self._stored: dict[str, Any] = {} if stored is None else stored
        # The very dict of the stored data, until the first change.
        self.data: dict[str, Any] = self._stored
        # The keys that were set or removed since, in this order.
        self._touched: dict[str, None] = {}
        # The bytes of the stored values handed to the application.
        self._prints: dict[str, bytes] = {}
        # Whether all stored data goes, known or not.
        self.replaces: bool = False
        # The keys whose stored values a login leaves behind.
        self.dropped: frozenset[str] = frozenset()
        # Held while data are loaded or leave their stored form, or a key changes. Of one draft: a
        # lock of all would stay held in a process that is forked meanwhile.
        self.turn: AbstractContextManager[Any] = RLock()
        # The stored values still sealed, because nobody has asked for them.
        self._sealed: SealedData | None = None

    def get(self, key: str) -> Any:
        """Return a value; take note of the bytes of a value that can change in place."""
        if (sealed := self._sealed) is not None:
            self._open(sealed, key)
        value = self.data[key]
        return value if type(value) in document.IMMUTABLE else self._handed_out(key)

    def has(self, key: object) -> bool:
        """Say whether a key has a value."""
        if (sealed := self._sealed) is not None:
            self._open(sealed, key)
        return key in self.data

    def complete(self) -> dict[str, Any]:
        """Return all of the data by the keys; what nobody has asked for is in stored form."""
        with self.turn:
            if (sealed := self._sealed) is not None:
                self.data = sealed.in_order(self._take(sealed, sealed) | self.data)
                self._sealed = None
        return self.data

    def keys(self) -> KeysView[str]:
        """Return the keys; a change in the midst of an iteration raises, as that of a dict does."""
        with self.turn:
            self.complete()
            return self._own_data().keys()

    def set(self, key: str, value: Any) -> None:
        """Set a value. Raises `SessionDataError` if MongoDB cannot hold the value."""
        document.check(key, value)
        with self.turn:
            if self._sealed is not None:
                self._open(self._sealed, key)
            self._own_data()[key] = value
            self._touched[key] = None

    def delete(self, key: str) -> None:
        """Remove a key; raises `KeyError` for a missing key."""
        with self.turn:
            if self._sealed is not None:
                self._open(self._sealed, key)
            del self._own_data()[key]
            if self._sealed is not None:  # Set again, the key is the newest.
                self._sealed.names.pop(self._sealed.seal.name(key), None)
            self._touched[key] = None

    def clear(self) -> None:
        """Remove every key."""
        self._touched |= dict.fromkeys(self.complete())
        self.data = {}

    def wipe(self) -> None:
        """Forget all data, also the stored data that nobody has looked at."""
        self._stored, self._prints, self._sealed = {}, {}, None
        self.data, self._touched = {}, {}
        self.replaces = True

    def drop(self, keys: Iterable[str]) -> None:
        """Leave these keys behind, as they are stored and as they are now."""
        self.dropped |= frozenset(keys)
        self.data = {key: value for key, value in self.data.items() if key not in self.dropped}
        # A value set anew counts as a change, even where the stored value is equal.
        self._stored = {key: one for key, one in self._stored.items() if key not in self.dropped}

    def forget(self) -> None:
        """Forget the stored data, which turned out to be no session, and keep the changes."""
        self.data = {key: self.data[key] for key in self.difference().assigned}
        self._touched = dict.fromkeys(self.data)
        self._stored, self._prints, self._sealed = {}, {}, None

    def difference(self) -> Changes:
        """Return the changes. Raises `SessionDataError` for a value that MongoDB cannot hold."""
        if self.replaces:
            return self.contents()
        if not (self._touched or self._prints):
            return UNCHANGED
        keys = self._touched | dict.fromkeys(self._prints)
        removed = frozenset([key for key in keys if key in self._stored and key not in self.data])
        return self._changed([(key, self.data[key]) for key in keys if key in self.data], removed)

    def contents(self) -> Changes:
        """Return all of the data, as the changes from nothing to a new session."""
        if self._sealed is not None:
            self.complete()
        assigned: dict[str, Any] = {}
        prints: dict[str, bytes] = {}
        with self.turn:
            for key, value in list(self.data.items()):
                if type(value) in document.IMMUTABLE or self._is_in_stored_form(key, value):
                    assigned[key] = value  # Checked by `set` already, or before it was stored.
                else:
                    assigned[key] = form = document.form(key, value)
                    prints[key] = document.encode_form(key, form)
        return Changes(assigned, frozenset(), True, prints)

    def rebased(self, stored: dict[str, Any], *, replaces: bool) -> Draft:
        """Return this request's changes as changes of the data stored by now.

        If the draft `replaces`, all stored data goes.
        """
        if not (self.data or self._stored or self.dropped or replaces):
            if isinstance(stored, SealedData):
                self._sealed = stored
            else:
                self.data = self._stored = stored
            return self
        changes, draft = self.difference(), Draft()
        draft.replaces, draft.dropped = replaces, self.dropped
        if replaces:
            stored = {}
        elif isinstance(stored, SealedData):
            stored = draft._opened(stored, self._prints.keys() | self._touched)
        draft._take_over(self, changes, stored)
        return draft

    def _take_over(self, before: Draft, changes: Changes, stored: dict[str, Any]) -> None:
        """Put `changes` of the draft from before on top of the data stored by now."""
        stored = {key: value for key, value in stored.items() if key not in self.dropped}
        # Where nobody else changed a value, the application keeps the object in its hands.
        in_hand = (before._prints | before._touched).keys() & before.data.keys() & stored.keys()
        self._prints = {
            key: encoded
            for key in in_hand - changes.assigned.keys()
            if (encoded := before._print(key)) == _print_of(key, stored[key])
        }
        self._stored = stored | {key: before.data[key] for key in self._prints}
        kept = {key: value for key, value in self._stored.items() if key not in changes.removed}
        self.data = kept | {key: before.data[key] for key in changes.assigned}
        self._touched = dict.fromkeys((*changes.assigned, *changes.removed))

    def _is_in_stored_form(self, key: str, value: Any) -> bool:
        """Say whether a value that can change in place was not handed to the application yet."""
        return key not in self._prints and value is self._stored.get(key)

    def _handed_out(self, key: str) -> Any:
        """Return a value that can change in place: to all threads the same object."""
        with self.turn:
            value = self.data[key]
            if self._is_in_stored_form(key, value):
                value = document.opened(value)
                # Not the bytes that are stored: another program may have written them otherwise.
                encoded = document.encode(key, value)
                self.data[key] = value
                self._prints[key] = encoded
            return value

    def _print(self, key: str) -> bytes:
        """Return the bytes of an unchanged value."""
        return self._prints.get(key) or document.encode(key, self.data[key])

    def _own_data(self) -> dict[str, Any]:
        """Return the data in a dict that is not that of the stored data."""
        if self.data is self._stored:
            self.data = self._stored.copy()
        return self.data

    def _opened(self, sealed: SealedData, keys: AbstractSet[str]) -> dict[str, Any]:
        """Return the values of some keys, and keep the values of the others sealed."""
        names = {sealed.seal.name(key) for key in keys | self.dropped} & sealed.keys()
        self._sealed = sealed
        return sealed.open({name: sealed.pop(name) for name in names}) if names else {}

    def _open(self, sealed: SealedData, key: object) -> None:
        """Open the value of a key, if still sealed."""
        with self.turn:
            if key in self.data or not isinstance(key, str):
                return
            name = sealed.seal.name(key)
            if name in sealed:
                for opened, value in self._take(sealed, {name: sealed.pop(name)}).items():
                    self.data.setdefault(opened, value)

    def _take(self, sealed: SealedData, values: dict[str, bytes]) -> dict[str, Any]:
        """Open stored values; return those that are not left behind."""
        opened = sealed.open(values)
        for key in self.dropped & opened.keys():
            del opened[key]
        self._stored.update(opened)
        return opened

    def settle(self, changes: Changes) -> None:
        """Take note of `changes`, a difference of the draft, as stored."""
        if changes.replaces:
            self._stored, self._prints, self._touched, self.replaces = {}, {}, {}, False
        self._stored = self._stored.copy()
        for key in changes.removed | changes.assigned.keys():
            for keys in (self._stored, self._prints, self._touched):
                keys.pop(key, None)
        self._stored |= {key: self.data.get(key) for key in changes.assigned}
        self._prints |= changes.prints

    def _changed(self, items: list[tuple[str, Any]], removed: frozenset[str]) -> Changes:
        """Return the changes among some items, together with the removed keys."""
        assigned: dict[str, Any] = {}
        prints: dict[str, bytes] = {}
        for key, value in items:
            was, kind = self._stored.get(key, _MISSING), type(value)
            if was is _MISSING and kind in document.IMMUTABLE:
                assigned[key] = value  # Checked by `set` already.
            elif kind in _EXACT and kind is type(was):
                if value != was:
                    assigned[key] = value
            elif (form := self._form_of(key, value, was, prints)) is not _MISSING:
                assigned[key] = form
        return Changes(assigned, removed, False, prints) if assigned or removed else UNCHANGED

    def _form_of(self, key: str, value: Any, was: Any, prints: dict[str, bytes]) -> Any:
        """Return a changed value in stored form, its bytes added to `prints`; else `_MISSING`."""
        form = document.form(key, value)
        encoded = document.encode_form(key, form)
        if was is not _MISSING and encoded == (self._prints.get(key) or _print_of(key, was)):
            return _MISSING
        prints[key] = encoded
        return form


def _print_of(key: str, stored: Any) -> bytes:
    """Return the bytes of a stored value as we would write it; another program may not have.

    A value that we would refuse, for it has too many levels, is like none of ours.
    """
    try:
        return document.encode(key, document.opened(stored))
    except SessionDataError:
        return b""

"""The data of a session in one request: what is stored, what it is now, and the difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from . import document
from .document import Changes

if TYPE_CHECKING:
    from .seal import Seal

_EXACT = frozenset((type(None), bool, int, str, bytes))
"""The types of which two values are equal just if their bytes are, unlike -0.0 and nan."""
UNCHANGED = Changes({})
"""The difference where there is none."""


class SealedData(dict[str, bytes]):
    """The data of a sealed session, by their stored names; what was opened is taken out."""

    def __init__(self, values: dict[str, bytes], seal: Seal, spoil: Callable[[], None]) -> None:
        super().__init__(values)
        self.seal = seal
        self._spoil = spoil

    def open(self, values: dict[str, bytes]) -> dict[str, Any]:
        """Open values; if one of them is not what was sealed, the session is none any more."""
        found = self.seal.open(values)
        if found is None:
            self.clear()
            self._spoil()
        return found or {}


class Draft:
    """Data with the changes that a request has made of it so far; nothing here does I/O.

    No flag says that a value was changed. What an application was handed and may have changed in
    place is compared, by the bytes that MongoDB would hold, with what it was.
    """

    __slots__ = ("_prints", "_sealed", "_stored", "data", "dropped", "replaces")

    def __init__(self, stored: dict[str, Any] | None = None) -> None:
        self._stored = {} if stored is None else stored
        # The very dict of what is stored, until the first change.
        self.data = self._stored
        # The bytes of those stored values that were handed out.
        self._prints: dict[str, bytes] = {}
        # Whether all that is stored goes, whatever it may be.
        self.replaces = False
        # The keys whose stored values a login leaves behind.
        self.dropped: frozenset[str] = frozenset()
        # The stored values that are sealed, and that nobody has asked for yet.
        self._sealed: SealedData | None = None

    def get(self, key: str) -> Any:
        """Return a value; if it can be changed in place, take note of what it was."""
        if self._sealed is not None:
            self._open(key)
        value = self.data[key]
        may_change = type(value) not in document.IMMUTABLE
        if may_change and key not in self._prints and value is self._stored.get(key):
            self._prints[key] = document.encode(key, value)
        return value

    def has(self, key: object) -> bool:
        """Say whether there is a value."""
        if self._sealed is not None and isinstance(key, str):
            self._open(key)
        return key in self.data

    def complete(self) -> dict[str, Any]:
        """Return all of the data, whatever was sealed of them opened."""
        if self._sealed is not None:
            sealed, self._sealed = self._sealed, None
            self._take(sealed, sealed)
        return self.data

    def set(self, key: str, value: Any) -> None:
        """Set a value. Raises `SessionDataError` for one that cannot be stored."""
        document.check(key, value)
        if self._sealed is not None:
            self._open(key)
        if self.data is self._stored:
            self.data = self._stored.copy()
        self.data[key] = value

    def delete(self, key: str) -> None:
        """Remove a key; raises `KeyError` where it is not."""
        if self._sealed is not None:
            self._open(key)
        if self.data is self._stored:
            self.data = self._stored.copy()
        del self.data[key]

    def clear(self) -> None:
        """Remove every key."""
        self.complete()
        self.data = {}

    def wipe(self) -> None:
        """Forget all data, also what is stored and was never looked at."""
        self._stored, self._prints, self._sealed = {}, {}, None
        self.data = {}
        self.replaces = True

    def drop(self, keys: Iterable[str]) -> None:
        """Leave these keys behind, as they are stored and as they are now."""
        self.dropped |= frozenset(keys)
        self.data = {key: value for key, value in self.data.items() if key not in self.dropped}
        # A value that is set anew counts as a change, also if it equals the stored one.
        self._stored = {key: one for key, one in self._stored.items() if key not in self.dropped}

    def forget(self) -> None:
        """Forget what is stored, which turned out to be no session, and keep what was set."""
        self.data = {key: self.data[key] for key in self.difference().assigned}
        self._stored, self._prints, self._sealed = {}, {}, None

    def difference(self) -> Changes:
        """Return what was changed. Raises `SessionDataError` for what cannot be stored."""
        if self.data is self._stored and not self._prints:
            return UNCHANGED
        return self._against({} if self.replaces else self._stored)

    def contents(self) -> Changes:
        """Return all of the data, as the changes that make a new session of it."""
        if self._sealed is not None:
            self.complete()
        return self._against({})._replace(replaces=True)

    def rebased(self, stored: dict[str, Any], *, replaces: bool) -> Draft:
        """Return this request's changes as changes of what is stored by now.

        If the draft `replaces`, all that is stored goes.
        """
        is_sealed = isinstance(stored, SealedData)
        if not (self.data or self._stored or self.dropped or replaces or is_sealed):
            self.data = self._stored = stored
            return self
        changes = self.difference()
        draft = Draft()
        if isinstance(stored, SealedData) and not replaces:
            stored = draft._opened(stored, {*self._prints, *changes.assigned, *changes.removed})
        draft.replaces, draft.dropped = replaces, self.dropped
        if draft.replaces:
            stored = {}
        elif self.dropped:
            stored = {key: value for key, value in stored.items() if key not in self.dropped}
        # Where nobody else changed a value, the object stays that the application has in hand.
        held = {
            key: self.data[key]
            for key, known in self._prints.items()
            if key in self.data
            and key not in changes.assigned
            and key in stored
            and document.encode(key, stored[key]) == known
        }
        draft._stored = stored | held
        draft._prints = {key: self._prints[key] for key in held}
        kept = {key: draft._stored[key] for key in draft._stored if key not in changes.removed}
        draft.data = kept | {key: self.data[key] for key in changes.assigned}
        return draft

    def _opened(self, sealed: SealedData, keys: AbstractSet[str]) -> dict[str, Any]:
        """Return the values of some keys, and keep those of the others sealed."""
        names = {sealed.seal.name(key) for key in keys | self.dropped} & sealed.keys()
        self._sealed = sealed
        return sealed.open({name: sealed.pop(name) for name in names})

    def _open(self, key: str) -> None:
        """Open the value of a key, if it is sealed still."""
        sealed = self._sealed
        if sealed is not None and key not in self.data:
            name = sealed.seal.name(key)
            if name in sealed:
                self._take(sealed, {name: sealed.pop(name)})

    def _take(self, sealed: SealedData, values: dict[str, bytes]) -> None:
        """Open values, as they are stored and as they are now."""
        opened = sealed.open(values)
        if self.data is not self._stored:
            self.data = opened | self.data
        self._stored.update(opened)
        for key in self.dropped & opened.keys():
            del self.data[key], self._stored[key]

    def settle(self, changes: Changes) -> None:
        """Take note that `changes`, a difference of this draft, are stored now."""
        stored = {} if changes.replaces else self._stored.copy()
        for key in changes.removed:
            stored.pop(key, None)
        for key in changes.assigned:
            stored[key] = self.data.get(key)
            self._prints.pop(key, None)
        self._stored, self.replaces = stored, False
        self._prints |= changes.prints

    def _against(self, stored: dict[str, Any]) -> Changes:
        """Return what makes the data of `stored`.

        A value that is the same object and was not handed out is unchanged; any other is compared.
        """
        assigned: dict[str, Any] = {}
        prints: dict[str, bytes] = {}
        for key, value in list(self.data.items()):
            if key not in stored:
                if type(value) in document.IMMUTABLE:
                    assigned[key] = value  # Which was checked when it was assigned.
                    continue
            elif value is stored[key] and key not in self._prints:
                continue
            elif type(value) in _EXACT and type(value) is type(stored[key]):
                if value != stored[key]:
                    assigned[key] = value
                continue
            form = document.form(key, value)
            encoded = document.encode_form(key, form)
            if key not in stored or encoded != self._print_of(key, stored):
                assigned[key], prints[key] = form, encoded
        removed = frozenset(stored.keys() - self.data.keys())
        if not (assigned or removed or self.replaces):
            return UNCHANGED
        return Changes(assigned, removed, self.replaces, prints)

    def _print_of(self, key: str, stored: dict[str, Any]) -> bytes:
        return self._prints.get(key) or document.encode(key, stored[key])

"""What an application sees: a mapping with an identity. Nothing here knows MongoDB."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import datetime
from enum import Enum
from typing import Any

from . import document
from .document import Changes, Mark, Record
from .errors import SessionDataError, StoreError

_UNCHANGED = Changes({}, frozenset(), False, {})


class State(Enum):
    """What happened to a session in its request."""

    UNTOUCHED = "the application has not looked at it"
    OPEN = "read or changed; which of the two, a comparison with what was loaded tells"
    REGENERATED = "it gets a new token at the commit"
    DESTROYED = "it ends at the commit; what is set since starts a new one"
    ENDED = "over: nothing of it is written any more"


class Session(MutableMapping[str, Any]):
    """The session of one request: a dict that MongoDB keeps, loaded on first need.

    Keys are any str. Values are what BSON holds: None, bool, int (64 bit), float, str, bytes,
    datetime, UUID, list, dict and the types of the `bson` package. Anything else raises
    `SessionDataError` where it is assigned. Changes inside of a list or a dict count.

    Every use may raise `StoreError`, if it is the first that needs the database.
    """

    __slots__ = (
        "_base",
        "_came",
        "_came_with",
        "_data",
        "_load",
        "_prints",
        "_replaces",
        "_until",
        "claim",
        "failure",
        "loaded",
        "login_owner",
        "mark",
        "record",
        "state",
    )

    def __init__(self, token: str | None, load: Callable[[str], Record | Mark | None]) -> None:
        # For the store. An application has the properties below instead.
        self.state = State.UNTOUCHED
        # The token that came with the request or was issued, unless it is known not to be live.
        self.claim = self._came_with = token
        # Whether the store was asked what it has of the session, or need not be; what it then had,
        # and what it had in its place; and why it could not say, which is not tried again.
        self.loaded = token is None
        self.record: Record | None = None
        self.mark: Mark | None = None
        self.failure: StoreError | None = None
        # Who logged in during this request.
        self.login_owner: str | None = None

        self._load = load
        self._came = False
        self._until: datetime | None = None
        self._data: dict[str, Any] = {}
        # What is known to be stored, and the bytes of those values of it that were handed out.
        # It is the very dict of the data until that is changed.
        self._base: dict[str, Any] = {}
        self._prints: dict[str, bytes] = {}
        self._replaces = False

    # The mapping.

    def __getitem__(self, key: str) -> Any:
        self._touch()
        if key not in self._data:
            self._read()
        value = self._data[key]
        if type(value) not in document.IMMUTABLE and key not in self._prints:
            self._take_print(key, value)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self._touch()
        document.check(key, value)
        self._unshare()
        self._data[key] = value

    def __delitem__(self, key: str) -> None:
        self._touch()
        self._read()
        self._unshare()
        del self._data[key]

    def __contains__(self, key: object) -> bool:
        self._touch()
        if key not in self._data:
            self._read()
        return key in self._data

    def __iter__(self) -> Iterator[str]:
        self._touch()
        self._read()
        return iter(self._data)

    def __len__(self) -> int:
        self._touch()
        self._read()
        return len(self._data)

    def __ior__(self, other: Mapping[str, Any]) -> Session:
        self.update(other)
        return self

    def __repr__(self) -> str:
        if not (self.loaded or self._replaces):
            return "<Session, not loaded>"
        return f"<Session {self.record.id if self.record else 'new'} with {sorted(self._data)}>"

    def clear(self) -> None:
        """Remove every key; on a session that was not looked at, without reading it."""
        self._touch()
        if self.loaded:
            self._data = {}
        else:
            self._wipe()

    def copy(self) -> dict[str, Any]:
        """Return the session's data as a plain dict; the values are the session's own."""
        return dict(self)

    # The identity.

    @property
    def id(self) -> str | None:
        """The public id, safe to log and to list; None until stored."""
        record = self._identity()
        return record.id if record else None

    @property
    def token(self) -> str | None:
        """The secret that opens this session, None until stored.

        For handing to a client by other means than the cookie; never log or store it.
        """
        return self.claim if self._identity() else None

    @property
    def new(self) -> bool:
        """Whether no live session came with the request."""
        self._identity()
        return self.state is State.DESTROYED or not self._came

    @property
    def owner(self) -> str | None:
        """The application's name for who is logged in, or None."""
        if self.login_owner is not None:
            return self.login_owner
        record = self._identity()
        return record.owner if record else None

    @property
    def created_at(self) -> datetime | None:
        """When the session was created or last logged in, in UTC; None while new."""
        record = self._identity()
        return record.created_at if record else None

    @property
    def expires_at(self) -> datetime | None:
        """When the session dies unless it is used before, in UTC; None while new."""
        record = self._identity()
        return record.expires_at if record else None

    # What an application can make of it.

    def regenerate(self) -> None:
        """Move the data under a new token at the commit; the old token is dead from then on.

        Call it when privileges change, against session fixation (OWASP ASVS 5.0, 7.2.4).
        """
        self._touch()
        if self.state is State.OPEN:
            self.state = State.REGENERATED

    def login(self, owner: str) -> None:
        """Make this the session of `owner`, under a new token and with its lifetime restarted.

        Data of another owner is dropped, that of an anonymous visitor is kept. Raises
        `SessionDataError` if `owner` is no str.
        """
        if not isinstance(owner, str):
            raise SessionDataError(f"owner: must be a str, not {type(owner).__name__}")
        document.encode("owner", owner)
        self._touch()
        if self._data:
            self._read()  # Whose the data is decides whether it stays.
        if self._owner_so_far() not in (None, owner):
            self._wipe()
        self.login_owner = owner
        self.regenerate()

    def destroy(self) -> None:
        """End the session at the commit and forget its data.

        What is set afterwards in the same request starts a new session.
        """
        self._touch()
        if self.state is not State.ENDED:
            self.state = State.DESTROYED
            self.login_owner = None
            self._wipe()

    # What a store is told, and tells.

    def load(self) -> None:
        """Ask the store what it has of the session, once."""
        if self.loaded or self.claim is None:
            return
        if self.failure is not None:
            raise self.failure
        try:
            found = self._load(self.claim)
        except StoreError as error:
            self.failure = error
            raise
        self.loaded = True
        if isinstance(found, Record):
            self.rebase(found)
            return
        self.claim = None  # Never adopted: what is set gets a token of ours.
        if isinstance(found, Mark):
            self.mark = found
            self.end()

    def rebase(self, record: Record) -> None:
        """Take `record` for what is stored, and this request's changes for changes of it."""
        if self.login_owner is None and not (self._data or self._base or self._replaces):
            self.record, self._came, self.loaded = record, True, True
            self._base = self._data = record.data
            return
        changes = self.changes()
        self._replaces = changes.replaces or (
            self.login_owner is not None and record.owner not in (None, self.login_owner)
        )
        self.record = record
        self._came = self.loaded = True
        # Where nobody else changed a value, the object stays that the application has in hand.
        held = {
            key: self._data[key]
            for key, known in self._prints.items()
            if key in self._data
            and key not in changes.assigned
            and key in record.data
            and document.encode(key, record.data[key]) == known
        }
        assigned = {key: self._data[key] for key in changes.assigned}
        self._base = {} if self._replaces else record.data | held
        self._prints = {key: self._prints[key] for key in held}
        kept = {key: self._base[key] for key in self._base if key not in changes.removed}
        self._data = kept | assigned

    def live_until(self, moment: datetime) -> None:
        """Have the session die at `moment`, an aware datetime, not after the idle time from now on.

        For the adapter of a framework that says so whenever it saves, as Django does. It may be
        earlier than before, and is bound by `session_lifetime`.
        """
        self._identity()
        self._until = moment

    def changes(self) -> Changes:
        """Return what the request changed. Raises `SessionDataError` for what cannot be stored."""
        if self._data is self._base and not (self._prints or self._until):
            return _UNCHANGED
        return document.difference(
            self._data, self._base, self._prints, replaces=self._replaces, until=self._until
        )

    def contents(self) -> Changes:
        """Return all of the data, as the changes that make a new session of it."""
        return document.difference(self._data, {}, {}, until=self._until)

    def settle(self, changes: Changes, record: Record | None, token: str | None) -> None:
        """Take note that `changes` are stored, under `token`; `record` is None if never loaded."""
        base = {} if changes.replaces else self._base.copy()
        for key in changes.removed:
            del base[key]
        for key in changes.assigned:
            base[key] = self._data.get(key)
            self._prints.pop(key, None)
        self._base = base
        self._prints |= changes.prints
        self.record, self.claim = record, token
        self._replaces, self.login_owner, self._until = False, None, None
        self.state = State.OPEN

    def end(self) -> None:
        """Take note that the session is over: nothing of it is written any more."""
        self.state = State.ENDED

    def discard(self) -> None:
        """Give up every change of this request, all but `destroy()`."""
        self.login_owner = self._until = None
        if self.state is State.DESTROYED:
            self._wipe()
        elif self.state is not State.UNTOUCHED:
            self.end()

    def restart(self) -> None:
        """Forget all that this request saw and did, for another attempt at it."""
        Session.__init__(self, self._came_with, self._load)

    def _touch(self) -> None:
        if self.state is State.UNTOUCHED:
            self.state = State.OPEN

    def _unshare(self) -> None:
        if self._data is self._base:
            self._data = self._base.copy()

    def _read(self) -> None:
        if not self._replaces:
            self.load()

    def _identity(self) -> Record | None:
        self._touch()
        if self.state in (State.DESTROYED, State.ENDED):
            return None
        self.load()
        return self.record

    def _owner_so_far(self) -> str | None:
        if self.login_owner is not None or self.record is None or self.state is State.DESTROYED:
            return self.login_owner
        return self.record.owner

    def _take_print(self, key: str, value: Any) -> None:
        if value is self._base.get(key):
            self._prints[key] = document.encode(key, value)

    def _wipe(self) -> None:
        self._data, self._base, self._prints = {}, {}, {}
        self._replaces = True

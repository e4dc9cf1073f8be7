"""The application's view: a mapping with an identity, and without a word of MongoDB."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from copy import deepcopy
from datetime import datetime
from operator import attrgetter
from typing import Any

from . import document
from .document import Record
from .errors import SessionDataError
from .visit import Login, Nothing, State, Visit

_LONGEST_LABEL = 200


class Session(MutableMapping[str, Any]):
    """The session of one request: a dict that MongoDB keeps, loaded on first need.

    Keys are any str. Values are what BSON holds: None, bool, int (64 bit), float, str, bytes,
    datetime, UUID, list, dict and the types of the `bson` package. Anything else raises
    `SessionDataError` where it is assigned. Changes inside of a list or a dict count.

    Every use may raise `StoreError`, if it is the first that needs the database.
    """

    __slots__ = ("_open", "_visit")

    _open: Callable[[], Visit]

    def __init__(self, visit: Visit) -> None:
        self._visit = visit

    def __getattr__(self, name: str) -> Any:
        if name != "_visit":
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(text, name=name, obj=self)
        self._visit = visit = self._open()
        return visit

    # The mapping.

    def __getitem__(self, key: str) -> Any:
        draft = self._visit.draft
        return (draft if key in draft.data else self._visit.read()).get(key)

    def __setitem__(self, key: str, value: Any) -> None:
        visit = self._visit
        visit.touch()
        with visit.draft.turn:  # A look by another thread may put another draft in place.
            visit.draft.set(key, value)

    def __delitem__(self, key: str) -> None:
        self._visit.read().delete(key)

    def __contains__(self, key: object) -> bool:
        self._visit.touch()
        return key in self._visit.draft.data or self._visit.read().has(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._visit.read().keys())

    def __len__(self) -> int:
        return len(self._visit.read().complete())

    def __ior__(self, other: Mapping[str, Any]) -> Session:
        self.update(other)
        return self

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return self.copy() | dict(other) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return dict(other) | self.copy() if isinstance(other, Mapping) else NotImplemented

    def __copy__(self) -> dict[str, Any]:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return deepcopy(self.copy(), memo)

    def __repr__(self) -> str:
        visit = self._visit
        visit.touch()  # A page may show the text, which tells visitors with a session apart.
        record, data = visit.record, sorted(visit.draft.data)
        if record is None and not (visit.draft.replaces or type(visit.known) is Nothing):
            return "<Session, not loaded>"
        return f"<Session {record.id if record else 'new'} with {data}>"

    def clear(self) -> None:
        """Remove every key; without a look so far, without reading the session."""
        visit = self._visit
        visit.touch()
        if type(visit.known) is Record or type(visit.known) is Nothing:
            visit.draft.clear()
        else:
            visit.draft.wipe()

    def popitem(self) -> tuple[str, Any]:
        """Remove the newest key, as a dict does, and return key and value; else `KeyError`."""
        for key in reversed(self._visit.read().complete()):
            return key, self.pop(key)
        raise KeyError("popitem: the session is empty")

    def copy(self) -> dict[str, Any]:
        """Return the session's data as a plain dict; the values are the session's own."""
        return dict(self)

    # The identity.

    @property
    def id(self) -> str | None:
        """The public id, safe to log and to list.

        After `login()` or `regenerate()`, and in a new session once something is set, the id is
        the one that the commit will store. None in a new session before.
        """
        token = self.token
        return None if token is None else document.id_of(token)

    @property
    def token(self) -> str | None:
        """The secret of the session, known at the same moments as `id`.

        For handing to a client by other means than the cookie, or for making a CSRF token. Never
        log or store the token. A new token is live from the commit on. If the commit stores
        nothing, because somebody has ended the session first, the token never opens anything.
        """
        visit = self._visit
        record = None if visit.state is State.REGENERATED and visit.login else self._record()
        if visit.will_be_new:
            return str(visit.new_token)
        return str(visit.token) if record else None

    @property
    def new(self) -> bool:
        """Whether no live session came with the request."""
        self._record()
        return self._visit.state is State.DESTROYED or not self._visit.came

    @property
    def owner(self) -> str | None:
        """The application's name for who is logged in, or None."""
        if self._visit.login is None:
            self._record()
        return self._visit.owner

    @property
    def created_at(self) -> datetime | None:
        """When the session was created or last logged in, in UTC; None while new."""
        record = self._record()
        return record.created_at if record else None

    @property
    def expires_at(self) -> datetime | None:
        """When the session dies unless it is used before, in UTC; None while new."""
        record = self._record()
        return record.expires_at if record else None

    @property
    def label(self) -> str | None:
        """The words of the login on the device, or None."""
        login, record = self._visit.login, self._record()
        if login is not None:
            return login.label
        return record.label if record else None

    @property
    def remembered(self) -> bool:
        """Whether the login asked to be remembered, so that the cookie outlives the browser."""
        record = self._record()
        return (record is not None or self._visit.login is not None) and self._visit.kind is True

    # The actions.

    def regenerate(self) -> None:
        """Move the data under a new token at the commit; the old token is dead from then on.

        Call it when privileges change, against session fixation (OWASP ASVS 5.0, 7.2.4).
        """
        self._visit.regenerate()

    def login(self, owner: str, *, remember: bool = False, label: str | None = None) -> None:
        """Make this the session of `owner`, under a new token and with its lifetime restarted.

        Data of another owner is dropped; that of an anonymous visitor is kept, but for the CSRF
        token of a framework. With `remember` the idle time is `session_remember`, and the cookie
        outlives the browser. `label` says something of the device, in plain sight of the owner
        and of the operator; it is cut after 200 characters.

        Raises `SessionDataError` if `owner` is no str or empty, or `label` no str.
        """
        self._visit.log_in(Login(_text("owner", owner), bool(remember) or None, _label(label)))

    def destroy(self) -> None:
        """End the session at the commit and forget its data.

        What is set afterwards in the same request starts a new session.
        """
        self._visit.destroy()

    def _record(self) -> Record | None:
        visit = self._visit
        visit.touch()
        if visit.state is not State.DESTROYED and visit.state is not State.ENDED:
            visit.look()
        return visit.record


visit_of: Callable[[Session], Visit] = attrgetter("_visit")
"""Return the visit beneath a session, for stores and adapters; applications need none."""


def unopened(open: Callable[[], Visit]) -> Session:
    """Return a session whose visit is opened at the first use."""
    session = Session.__new__(Session)
    session._open = open
    return session


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise SessionDataError(f"{name}: must be a str, not {type(value).__name__}")
    if not value:
        raise SessionDataError(f"{name}: must not be empty")
    document.encode(name, value)
    return document.text_of(value)


def _label(label: Any) -> str | None:
    return None if label is None or label == "" else _text("label", label)[:_LONGEST_LABEL]

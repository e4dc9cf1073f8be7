"""The contract as a model: sessions in plain dicts, requests that commit one after the other.

`test_story.py` holds the package against this model. Nothing here imports the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

MARK = timedelta(seconds=60)
RENEWAL = timedelta(minutes=5)


@dataclass(frozen=True)
class Rules:
    """The settings of a deployment that say when a session dies."""

    expires: timedelta = timedelta(days=14)
    remember: timedelta = timedelta(days=30)
    lifetime: timedelta | None = timedelta(days=30)
    limit: int | None = None
    is_explicit: bool = False
    """Whether `session_expires` was given, so that every cookie has a Max-Age."""
    is_sealed: bool = False

    def idle(self, session: Stored) -> timedelta:
        """Return the time without a request after which the session dies."""
        return self.remember if session.remember else self.expires

    def end(self, session: Stored) -> datetime:
        """Return when the session dies: the earliest of three moments."""
        end = min(session.expires_at, session.seen_at + self.idle(session))
        return end if self.lifetime is None else min(end, session.created_at + self.lifetime)

    def expiry(self, session: Stored, now: datetime) -> datetime:
        """Return the moment that a use of the session now moves its expiry to."""
        end = now + self.idle(session)
        return end if self.lifetime is None else min(end, session.created_at + self.lifetime)

    def is_fixed(self, session: Stored) -> bool:
        """Say whether the expiry stands from the beginning, so that no use has to move it."""
        return self.lifetime is not None and self.lifetime <= self.idle(session)

    def is_renewal_due(self, session: Stored, now: datetime) -> bool:
        return now - session.seen_at >= min(self.idle(session) / 10, RENEWAL)

    def max_age(self, session: Stored) -> str | None:
        """Return the Max-Age of the session's cookie."""
        if session.remember:
            return str(int(self.remember.total_seconds()))
        return str(int(self.expires.total_seconds())) if self.is_explicit else None


@dataclass
class Stored:
    """A session as it is stored."""

    data: dict[str, Any]
    owner: str | None
    created_at: datetime
    seen_at: datetime
    expires_at: datetime
    label: str | None = None
    remember: bool | None = None
    is_sealed: bool = False


@dataclass
class Mark:
    """What stands for a minute under a token that a rotation or a login has replaced."""

    until: datetime
    owner: str | None
    """Whose session it was."""
    goes_on: bool
    """Whether the session in its place is the same owner's."""
    by_login: bool
    successor: str | None = None
    """The token of the session in its place; None where that one was over before it began."""


@dataclass(frozen=True)
class Login:
    """What an application says with `login()`."""

    owner: str
    remember: bool | None = None
    label: str | None = None


class About(Enum):
    """What a request is about to do with its session."""

    NOTHING = "it has not looked at the session"
    WRITE = "it writes what it has changed"
    MOVE = "it gives the session a new token"
    END = "it ends the session"


class Cookie(Enum):
    """What a response does with the browser's cookie."""

    KEPT = "nothing"
    NEW = "the token of a new session"
    AGAIN = "the same token, for longer"
    EXPIRED = "the browser is to forget it"


@dataclass
class Asking:
    """A request: what it saw of its session, what it made of that, and what it is about to do."""

    token: str | None
    rules: Rules
    has_looked: bool = False
    saw: Stored | None = None
    mark: Mark | None = None
    data: dict[str, Any] = field(default_factory=dict)
    is_wiped: bool = False
    """Whether its data is all that is to stay, whatever others have written."""
    about: About = About.NOTHING
    login: Login | None = None

    @property
    def is_blind(self) -> bool:
        return self.token is not None and not self.has_looked

    @property
    def finds_nothing(self) -> bool:
        return not self.is_blind and self.saw is None and self.mark is None

    def touch(self) -> None:
        if self.about is About.NOTHING:
            self.about = About.WRITE

    def wipe(self) -> None:
        self.data, self.is_wiped = {}, True

    def changes(self) -> tuple[dict[str, Any], set[str]]:
        """Return what it set and what it deleted, next to what it saw."""
        before = {} if self.saw is None or self.is_wiped else self.saw.data
        assigned = {
            key: value
            for key, value in self.data.items()
            if key not in before or before[key] != value
        }
        return assigned, set(before) - set(self.data)

    def on_top_of(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return `data` with the changes of this request."""
        assigned, removed = self.changes()
        kept = {} if self.is_wiped else data
        return {k: v for k, v in kept.items() if k not in removed} | deepcopy(assigned)


class Model:
    """Sessions as the contract has them. Requests are compared by what they leave stored."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.clock = clock
        self.sessions: dict[str, Stored] = {}
        self.marks: dict[str, Mark] = {}
        self.forestalled: set[str] = set()
        """The tokens of sessions that were ended by others: the place is taken for a minute."""
        self.begun: Stored | None = None
        """The session that the last commit began; its token is the browser's next cookie."""
        self._left: Mark | None = None
        """The mark whose successor has just begun."""

    def standing(self, token: str | None) -> Stored | None:
        """Return the session of a token unless its stored expiry has come."""
        session = self.sessions.get(token or "")
        return session if session and session.expires_at > self.clock() else None

    def live(self, token: str | None, rules: Rules) -> Stored | None:
        session = self.standing(token)
        return session if session and rules.end(session) > self.clock() else None

    def all_live(self, rules: Rules) -> Iterator[tuple[str, Stored]]:
        for token, session in self.sessions.items():
            if self.live(token, rules):
                yield token, session

    def mark(self, token: str | None) -> Mark | None:
        mark = self.marks.get(token or "")
        return mark if mark and mark.until > self.clock() else None

    def is_new(self, token: str) -> bool:
        return token not in self.sessions | self.marks and token not in self.forestalled

    def answered(self, token: str) -> None:
        """Take note of the token of the session that has just begun."""
        assert self.begun is not None
        self.sessions[token] = self.begun
        if self._left is not None:
            self._left.successor = token

    # What an application does.

    def look(self, request: Asking) -> None:
        if request.is_blind and not request.is_wiped:
            self._learn(request)

    def get(self, request: Asking, key: str) -> Any:
        if key not in request.data:
            self.look(request)
        return request.data.get(key)

    def delete(self, request: Asking, key: str) -> None:
        if self.get(request, key) is not None:
            self.look(request)
            del request.data[key]

    def clear(self, request: Asking) -> None:
        if request.saw is not None or request.finds_nothing:
            request.data.clear()
        else:
            request.wipe()

    def regenerate(self, request: Asking) -> None:
        if request.about is About.WRITE:
            request.about = About.MOVE

    def log_in(self, request: Asking, login: Login) -> None:
        if request.data:
            self.look(request)
        of = request.saw.owner if request.saw and request.about is not About.END else None
        if (request.login.owner if request.login else of) not in (None, login.owner):
            request.wipe()
        request.login = login
        self.regenerate(request)

    def destroy(self, request: Asking) -> None:
        request.about, request.login = About.END, None
        request.wipe()

    # The commit.

    def commit(self, request: Asking) -> Cookie:
        """Store the request's changes, and say what becomes of the browser's cookie."""
        self.begun = self._left = None
        match request.about:
            case About.WRITE:
                return self._write(request)
            case About.MOVE:
                return self._move(request)
            case About.END:
                return self._end(request)
        return Cookie.KEPT

    def fail(self, request: Asking) -> Cookie:
        """Answer 500: only a destroy is carried out."""
        request.data, request.login = {}, None
        return self.commit(request) if request.about is About.END else Cookie.KEPT

    def _write(self, request: Asking) -> Cookie:
        if request.finds_nothing:
            return self._begin(request, request.data)
        assigned, removed = request.changes()
        is_changed = bool(assigned or removed or request.is_wiped)
        if request.is_blind:
            if not is_changed:
                return Cookie.KEPT
            if self._needs_a_look(request):
                self._learn(request)
                return self._write(request)
        due = request.is_blind
        if request.saw is not None:
            due = request.rules.is_renewal_due(request.saw, self.clock())
        session = self.live(request.token, request.rules)
        if session is None or not (is_changed or due):
            return Cookie.KEPT
        session.data = request.on_top_of(session.data)
        if request.is_blind and request.rules.is_fixed(session):
            session.seen_at = self.clock()
        else:
            self._renew(session, request.rules)
        has_age = due and request.rules.max_age(session) is not None
        return Cookie.AGAIN if has_age else Cookie.KEPT

    def _needs_a_look(self, request: Asking) -> bool:
        """Say whether a change has to look first: the session is gone, or near its longest life."""
        session, rules = self.live(request.token, request.rules), request.rules
        if session is None:
            return True
        if rules.lifetime is None or rules.is_fixed(session):
            return False
        return session.created_at + rules.lifetime <= self.clock() + rules.idle(session)

    def _move(self, request: Asking) -> Cookie:
        if request.finds_nothing:
            return self._begin(request, request.data)
        if request.mark is not None:
            return self._log_in_anew(request, request.mark)
        session = self.live(request.token, request.rules)
        if session is None:
            return self._move_what_is_dead(request)
        return self._replace(request, session)

    def _move_what_is_dead(self, request: Asking) -> Cookie:
        mark, left = self.mark(request.token), self._bury(request)
        if request.saw is not None:
            # Ended since: final, unless somebody proves who they are where it has moved.
            return self._log_in_anew(request, mark) if mark else Cookie.KEPT
        if left is None:
            self._learn(request)
            return self._move(request)
        request.has_looked = True
        return self._begin(request, request.data, left if left.successor is None else None)

    def _bury(self, request: Asking) -> Mark | None:
        """Make a mark of a session that is dead by the times of now but not deleted yet."""
        login, session = request.login, self.standing(request.token)
        if session is None or (login and request.is_blind and login.owner == session.owner):
            return None
        goes_on = login is None or bool(request.saw and login.owner == request.saw.owner)
        left = self._mark(request, session, goes_on=goes_on)
        if session.remember and login is None:
            left.successor = "nowhere"  # Nobody has asked for the session that begins, to be kept.
        return left

    def _replace(self, request: Asking, session: Stored) -> Cookie:
        login = request.login
        goes_on = login is None or login.owner == session.owner
        left = self._mark(request, session, goes_on=goes_on)
        is_anothers = login is not None and session.owner not in (None, login.owner)
        data = request.on_top_of({} if is_anothers else session.data)
        if login is not None:
            return self._begin(request, data, left)
        moved = replace(session, data=data, expires_at=request.rules.end(session))
        self._renew(moved, request.rules)
        return self._store(request, moved, left)

    def _mark(self, request: Asking, session: Stored, *, goes_on: bool) -> Mark:
        token, until = request.token or "", self.clock() + MARK
        del self.sessions[token]
        self.marks[token] = Mark(until, session.owner, goes_on, request.login is not None)
        return self.marks[token]

    def _log_in_anew(self, request: Asking, mark: Mark) -> Cookie:
        """Log in with a token that was replaced: the session is one of its own."""
        if request.login is None:
            return Cookie.KEPT
        session = self._goes_on_in(mark, request.rules)
        if session is None or session.owner != request.login.owner:
            data = request.on_top_of({})
        elif session.is_sealed:  # The token of another session does not open it.
            data = request.data
        else:
            data = request.on_top_of(session.data)
        return self._begin(request, data)

    def _end(self, request: Asking) -> Cookie:
        if request.finds_nothing:
            return self._begin(request, request.data)
        if request.mark is not None:
            return self._end_what_goes_on(request, request.mark)
        if self.standing(request.token):
            del self.sessions[request.token or ""]
            return self._after_end(request)
        mark = self.mark(request.token)
        if mark is not None:
            return self._end_what_goes_on(request, mark)
        if request.saw is not None:
            return Cookie.KEPT
        return self._begin(request, request.data)

    def _end_what_goes_on(self, request: Asking, mark: Mark) -> Cookie:
        if mark.goes_on and self.end_chain(request.token or "", past_logins=True) is not None:
            return self._after_end(request)
        return self._log_in_anew(request, mark)

    def _after_end(self, request: Asking) -> Cookie:
        if request.data or request.login:
            return self._begin(request, request.data)
        return Cookie.EXPIRED

    def _begin(self, request: Asking, data: dict[str, Any], left: Mark | None = None) -> Cookie:
        login, now = request.login, self.clock()
        if not data and login is None:
            return Cookie.KEPT
        new = Stored(deepcopy(data), None, now, now, now)
        if login is not None:
            new.owner, new.label, new.remember = login.owner, login.label, login.remember
        new.expires_at = request.rules.expiry(new, now)
        return self._store(request, new, left)

    def _store(self, request: Asking, new: Stored, left: Mark | None) -> Cookie:
        limit, new.is_sealed = request.rules.limit, request.rules.is_sealed
        if limit is not None and new.owner is not None:
            theirs = {t: s for t, s in self.all_live(request.rules) if s.owner == new.owner}
            latest = sorted([*theirs.values(), new], key=lambda one: one.created_at)[-limit:]
            for token, session in theirs.items():
                if not any(session is one for one in latest):
                    self._end_by_others(token)
            if not any(new is one for one in latest):
                return Cookie.KEPT
        self.begun, self._left = new, left
        return Cookie.NEW

    def _learn(self, request: Asking) -> None:
        request.has_looked = True
        session = self.live(request.token, request.rules)
        if session is None:
            request.mark = self.mark(request.token)
            return
        if request.login is not None and session.owner not in (None, request.login.owner):
            request.is_wiped = True
        assigned, _ = request.changes()
        request.saw = deepcopy(session)
        request.data = assigned if request.is_wiped else deepcopy(session.data) | assigned

    def _renew(self, session: Stored, rules: Rules) -> None:
        session.seen_at = self.clock()
        session.expires_at = max(session.expires_at, rules.expiry(session, self.clock()))

    def _goes_on_in(self, mark: Mark, rules: Rules) -> Stored | None:
        """Return the live session that a mark leads to, through further ones."""
        following: Mark | None = mark
        while following is not None:
            mark, following = following, self.mark(following.successor)
        return self.live(mark.successor, rules)

    # What others do.

    def end_chain(self, token: str, *, past_logins: bool = False) -> int | None:
        """End the session of a token, or the one that goes on in its place.

        Return how many were live, and None if nothing was there to be ended.
        """
        first = token
        while True:
            if self.standing(token):
                self._end_by_others(token)
                return 1
            mark = self.mark(token)
            if mark is None:
                if token == first or token in self.forestalled or token in self.sessions:
                    return None
                self.forestalled.add(token)
                return 0
            if mark.successor is not None:  # The end is noted on it, and stands as long.
                mark.until = self.clock() + MARK
            if mark.successor is None or not mark.goes_on or (mark.by_login and not past_logins):
                return None
            token = mark.successor

    def end_all(self, owner: str, keep: str | None) -> int:
        """End all sessions of an owner but one, and what is left of them; return how many."""
        marks = {
            token: mark
            for token, mark in self.marks.items()
            if self.mark(token) and mark.owner == owner and mark.goes_on and not mark.by_login
        }
        kept = {keep}
        while keep in marks:
            keep = marks[keep].successor
            kept.add(keep)
        live = [
            token
            for token, session in self.sessions.items()
            if self.standing(token) and session.owner == owner and token not in kept
        ]
        passed = {*live, *marks, *kept}
        for token in live:
            self._end_by_others(token)
        for token, mark in marks.items():
            if token not in kept and mark.successor not in passed:
                self.end_chain(token)
        return len(live)

    def purge(self) -> None:
        for token in list(self.sessions):
            if not self.standing(token):
                del self.sessions[token]

    def _end_by_others(self, token: str) -> None:
        del self.sessions[token]
        self.forestalled.add(token)

"""One request's state and knowledge of its session, without I/O: the store answers a look.

The table in `life` says the rest: the moves of a commit, by state and knowledge.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from . import document
from .document import Changes, Mark, Record, Token
from .draft import UNCHANGED, Draft
from .errors import SessionDataError, StoreError
from .times import Times

if TYPE_CHECKING:
    from .seal import Seal


class State(Enum):
    """The actions of an application on the session of a request."""

    UNTOUCHED = "the application has not looked at it"
    OPEN = "read or changed; a comparison with what was loaded tells which of the two"
    REGENERATED = "the session gets a new token at the commit"
    DESTROYED = "the session ends at the commit; what is set since starts a new one"
    ENDED = "over: nothing of the session is written any more"


class NotLooked(NamedTuple):
    """Nobody has looked yet under the token."""


class Nothing(NamedTuple):
    """No session stands under the token, or no token came."""


class Failure(NamedTuple):
    """The look under the token failed, and the store is not asked again."""

    error: StoreError


Known: TypeAlias = NotLooked | Record | Mark | Nothing | Failure
NOT_LOOKED, NOTHING = NotLooked(), Nothing()


class Login(NamedTuple):
    """A login to be carried out at the commit."""

    owner: str
    remember: bool | None = None
    label: str | None = None


class Outcome(Enum):
    """The result of a commit, as far as the cookie is concerned."""

    KEPT = "the browser's cookie is as good as before"
    RENEWED = "the session lives longer than the browser was told"
    CREATED = "the session has a new token"
    DESTROYED = "the session is no more"
    ENDED = "somebody else has ended the session, and the browser keeps what it has"
    LOOK = "no session was there to be changed, and it is known now what stands in its place"


class Step(NamedTuple):
    """The result of a move; `Visit.take` makes the step count."""

    outcome: Outcome
    known: Known
    stored: Changes | None = None
    """The changes of the draft stored by the move."""
    draft: Draft | None = None
    """The draft by now, where the move made another."""


class Visit:
    """The actions of one request on the session, and the knowledge of the stored state."""

    __slots__ = (
        "__weakref__",
        "_look",
        "_new_token",
        "came",
        "came_with",
        "changed",
        "changed_kind",
        "draft",
        "known",
        "login",
        "remember",
        "seal",
        "seals",
        "secrets",
        "state",
        "times",
        "token",
        "until",
    )

    def __init__(
        self,
        token: str | None,
        look: Callable[[Visit], Known],
        times: Times,
        *,
        seals: bool = False,
    ) -> None:
        self._look = look
        # When the session dies, by the settings of now.
        self.times: Times = times
        # The keys of a framework's secrets in the data; a login leaves them behind.
        self.secrets: tuple[str, ...] = ()
        # Whether a new session is to be sealed.
        self.seals: bool = seals
        # The seal of the session of the token, once needed.
        self.seal: Seal | None = None
        self.came_with: str | None = token
        self.state: State = State.UNTOUCHED
        # The token of the session, as far as is known: from the cookie, or issued by a commit.
        # Empty without a session.
        self.token: Token = Token(token or "")
        self.known: Known = NOT_LOOKED if token else NOTHING
        self.draft: Draft = Draft()
        # Whether a live session came with the request.
        self.came: bool = False
        # Whether an earlier commit of the request had changes to store, or gave them up.
        self.changed: bool = False
        # Whether such a commit has given the session another kind of idle time.
        self.changed_kind: bool = False
        # The login of the request.
        self.login: Login | None = None
        # The moment of the session's death, if said by the application.
        self.until: datetime | None = None
        # The kind of idle time (see `Record.remember`), if the application says the kind.
        self.remember: tuple[bool | None] | None = None
        self._new_token: Token | None = None

    def restart(self) -> None:
        """Forget all looks and actions of the request, for another attempt."""
        secrets = self.secrets
        Visit.__init__(self, self.came_with, self._look, self.times, seals=self.seals)
        self.secrets = secrets

    # The actions of the application.

    def touch(self) -> None:
        """Take note of a use by the application."""
        if self.state is State.UNTOUCHED:
            self.state = State.OPEN

    def look(self) -> None:
        """Ask the store, once, for the session of the token. Raises `StoreError`."""
        with self.draft.turn:  # The first of several threads asks.
            known = self.known
            if type(known) is NotLooked:
                self.learn(self._look(self))
            elif type(known) is Failure:
                raise known.error

    def learn(self, known: Known) -> None:
        """Take `known` for the stored state, and rebase the request's changes on top.

        A moment of death of the kind that was stored gives way to the kind said by another request.
        """
        was = self.known
        if type(known) is Record:
            self.came = True
            self.draft = self.rebased(known)  # Raises for a change that cannot be stored.
            if not self.came:  # A sealed value has not opened.
                known = NOTHING
            elif type(was) is Record and self.remember == (was.remember,) != (known.remember,):
                self.until = self.remember = None
        self.known = known
        if type(known) is Nothing and self.login is None:
            if self._new_token and self._new_token.endswith(document.REMEMBERED):
                self._new_token = None  # It was for the session that did not come.
        elif type(known) is Failure:
            raise known.error

    def rebased(self, record: Record) -> Draft:
        """Return the draft on top of a record; a login keeps no data of another owner."""
        draft, login = self.draft, self.login
        is_anothers = login is not None and record.owner not in (None, login.owner)
        return draft.rebased(record.data, replaces=draft.replaces or is_anothers)

    def read(self) -> Draft:
        """Return the draft, complete: loaded, unless no stored data would stay."""
        if self.state is State.UNTOUCHED:
            self.touch()
        if type(self.known) is not Record and not self.draft.replaces:
            self.look()
        return self.draft

    def regenerate(self) -> None:
        """Have the session get a new token at the commit."""
        self.touch()
        if self.state is State.OPEN:
            self.state = State.REGENERATED

    def log_in(self, login: Login) -> None:
        """Have the session get a new token and a new owner at the commit."""
        self.touch()
        if self.draft.data and self.state is not State.DESTROYED:
            self.look()  # The owner before decides whether the data stays.
        if self.owner not in (None, login.owner):
            self.draft.wipe()
        self.draft.drop(self.secrets)
        self.login, self.remember, self._new_token = login, None, None
        self.regenerate()

    def destroy(self) -> None:
        """Have the session end at the commit, and forget the data."""
        self.state, self.login, self._new_token = State.DESTROYED, None, None
        self.until = self.remember = None
        self.draft.wipe()

    def spoil(self) -> None:
        """Take note of a document that turned out not to be of our form."""
        self.known, self.came = NOTHING, False
        self.draft.forget()

    def discard(self) -> None:
        """Give up every change of a failed request, all but `destroy()`."""
        self.login = self.until = self.remember = None
        if self.state is State.DESTROYED:
            self.draft.wipe()
        elif self.state is not State.UNTOUCHED:
            self.changed = self.changed or self.state is State.REGENERATED
            self.state = State.ENDED

    def live_until(self, moment: datetime, remember: bool | None = False) -> None:
        """Have the session die at `moment`, an aware datetime; this is a change to be stored.

        The moment may be earlier than before, and is bound by `session_lifetime`. It counts from
        now on, unless it is only the end of an idle time (see `Record.remember`).
        """
        self._look_at_what_stays()
        self.until, self.remember = moment, (remember,)

    def idle_as(self, remember: bool | None) -> None:
        """Give the session the idle time of another kind (see `Record.remember`)."""
        self.touch()
        if self.kind is not remember:  # The token's kind needs no look.
            self._look_at_what_stays()
        if self.kind is not remember or type(self.known) is NotLooked:
            self.until, self.remember = None, (remember,)

    def _look_at_what_stays(self) -> None:
        self.touch()
        if self.state is not State.DESTROYED:
            self.look()

    # The knowledge of the session.

    @property
    def has_changes(self) -> bool:
        """Whether there is something to write: data, or when the session is to die."""
        changes_times = self.remember is not None and self.changes_times
        return changes_times or self.draft.difference() is not UNCHANGED

    @property
    def changes_times(self) -> bool:
        """Whether there is another kind of idle time to write, or a moment of death."""
        if self.remember is None:
            return False
        if self.until is not None:
            return True
        if type(self.known) is Record:
            return self.remember[0] is not self.known.remember
        return type(self.known) is not NotLooked or self.state is State.DESTROYED

    @property
    def was_changed(self) -> bool:
        """Whether the application changed the session in this request, stored by now or not."""
        at_work = self.state is State.REGENERATED or self.state is State.DESTROYED
        try:
            return self.changed or at_work or self.has_changes
        except SessionDataError:  # Changed to a value that MongoDB cannot hold.
            return True

    @property
    def record(self) -> Record | None:
        """The stored session, if known; None for a session that is over."""
        known = self.known
        over = self.state is State.DESTROYED or self.state is State.ENDED
        return None if over or type(known) is not Record else known

    @property
    def owner(self) -> str | None:
        """Who is logged in, as far as is known."""
        if self.login is not None:
            return self.login.owner
        return self.record.owner if self.record else None

    @property
    def kind(self) -> bool | None:
        """The session's kind of idle time, as far as is known (see `Record.remember`)."""
        if self.remember is not None:
            return self.remember[0]
        if self.login is not None:
            return self.login.remember
        if self.state is State.DESTROYED or type(self.known) is Nothing:
            return None  # A session that begins, or none, whatever the cookie was good for.
        if type(self.known) is Record:
            return self.known.remember
        return True if self.token.endswith(document.REMEMBERED) else None

    @property
    def new_token(self) -> Token:
        """The token of a new session, if the commit will store one; always the same token."""
        if self._new_token is None:
            self._new_token = document.new_token(remembered=self.kind is True, sealed=self.seals)
        return self._new_token

    @property
    def will_be_new(self) -> bool:
        """Whether the commit is to store the session under a new token, as far as is known."""
        if self.login is not None:
            return True
        if self.state is State.REGENERATED and type(self.known) is not Nothing:
            return type(self.known) is not Mark
        return self.begins and (self.state is State.DESTROYED or type(self.known) is Nothing)

    @property
    def begins(self) -> bool:
        """Whether a new session has something to store."""
        return bool(self.draft.data) or self.login is not None

    # The result of a commit.

    def take(self, step: Step) -> Outcome:
        """Make a step of the commit count, here and nowhere else. Return the outcome."""
        if step.draft is not None:
            self.draft = step.draft
        if step.stored is not None:
            self.draft.settle(step.stored)
            new = step.outcome is Outcome.CREATED or step.outcome is Outcome.DESTROYED
            if self.remember is not None and self.until is None and self.changes_times:
                self.changed = self.changed_kind = True
            self.changed = self.changed or new or step.stored is not UNCHANGED
            self.state = State.OPEN
            self.login = self.until = self.remember = None
        match step.outcome:
            case Outcome.LOOK:
                self.learn(step.known)
            case Outcome.ENDED:
                self.known, self.state = step.known, State.ENDED
            case Outcome.CREATED:
                self.known, self.token = step.known, self._new_token or self.token
                self._new_token = None
                self.seal = None
            case Outcome.DESTROYED:
                self.known, self.token = step.known, Token()
            case _:
                self.known = step.known
        return step.outcome

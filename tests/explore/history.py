"""Read an order afterwards: which sessions were live when, who ended them, what follows what."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from enum import Enum
from functools import cached_property
from typing import Any, NamedTuple

import bson

from mongosession_wsgi import MongoStore

from .engine import MONGODB, Command, Server, Time, Way
from .world import Heir, Step, Visit, World


class Form(Enum):
    """What stands under an id at one moment."""

    LIVE = "a live session"
    EXPIRED = "a session whose time is up"
    MARK = "the mark of a session that was given a new token"
    STONE = "what keeps an ended session from coming back"
    NONE = "nothing"


class View(NamedTuple):
    """What a visitor finds under a token at one moment, and what an operator reads there."""

    form: Form
    data: dict[str, Any]
    owner: str | None
    moments: tuple[datetime, ...]
    """When it was created, last seen, and when it expires."""

    @property
    def is_live(self) -> bool:
        return self.form is Form.LIVE


NOTHING_THERE = View(Form.NONE, {}, None, ())


class Birth(NamedTuple):
    """That a request stored a session that was not live before."""

    step: Step
    id: str
    visit: Visit


class End(NamedTuple):
    """That a session that was live before a step was not live after it."""

    step: Step
    id: str
    visit: Visit


class Views:
    """Open documents as a visitor does, by the product's own `retrieve`; each only once."""

    def __init__(self, world: World) -> None:
        self._server = Server(MONGODB)
        self._time = Time()
        self._store = MongoStore(world.settings, client=self._server, clock=self._time)  # type: ignore[arg-type]
        self._seen: dict[tuple[str, bytes, datetime], View] = {}

    @property
    def remembered(self) -> int:
        return len(self._seen)

    def forget(self) -> None:
        self._seen.clear()

    def of(self, token: str, id_: str, raw: bytes | None, now: datetime) -> View:
        if raw is None:
            return NOTHING_THERE
        known = self._seen.get((id_, raw, now))
        if known is None:
            known = self._seen[id_, raw, now] = self._look(token, id_, raw, now)
        return known

    def _look(self, token: str, id_: str, raw: bytes, now: datetime) -> View:
        self._time.now = now
        self._server.documents = {id_: raw}
        session = self._store.retrieve(token)
        document = bson.decode(raw)
        moments = tuple(
            document[name].replace(tzinfo=timezone.utc)
            for name in ("created_at", "seen_at", "expires_at")
            if name in document
        )
        if session is not None:
            return View(Form.LIVE, session.copy(), session.owner, moments)
        if "data" in document:
            return View(Form.EXPIRED, {}, document.get("owner"), moments)
        if moments[-1] <= now or "successor" not in document:  # A tombstone leads nowhere.
            return NOTHING_THERE
        return View(Form.MARK, {}, document.get("owner"), moments)


_UNTOLD = {Way.UNANSWERED, Way.UNHEARD, Way.TWICE}


def names(step: Step, id_: str | None) -> bool:
    """Say whether a command names a document."""
    return isinstance(step.pending, Command) and id_ in (step.pending.ids or ())


def _is_swap(end: End) -> bool:
    """Say whether a request ended its own session to go on under a new token."""
    visit = end.visit
    if visit.id != end.id or visit.local.destroys or not visit.local.rotates:
        return False
    return not any(visit.is_within(call, end.step) for call in visit.local.calls)


class History:
    """One order, as it was."""

    def __init__(self, world: World, views: Views) -> None:
        self.world = world
        self.visits = list(world.visits)
        self.steps = list(world.steps)
        self.start = world.start
        self._states = list(world.states)
        self._views = views
        self._seen: dict[tuple[str, int], View] = {}
        self._live: dict[int, list[str]] = {}
        self._find_births_and_ends()

    @property
    def ended_at(self) -> int:
        """The number of the last state."""
        return len(self.steps)

    @property
    def now(self) -> datetime:
        """The moment at which it was over."""
        return self._states[-1][1]

    def view(self, id_: str | None, number: int) -> View:
        """Return what stands under an id after so many steps."""
        if id_ is None:
            return NOTHING_THERE
        found = self._seen.get((id_, number))
        if found is None:
            found = self._plain(id_, number)
            if found.form is Form.MARK and not self._is_mark(id_, number):
                found = found._replace(form=Form.STONE)
            self._seen[id_, number] = found
        return found

    def live(self, number: int) -> list[str]:
        """Return the ids of all live sessions after so many steps."""
        if number not in self._live:
            documents = self._states[number][0]
            self._live[number] = [id_ for id_ in documents if self.view(id_, number).is_live]
        return self._live[number]

    def owned(self, owner: str, number: int) -> list[str]:
        """Return the ids of an owner's live sessions after so many steps."""
        return [id_ for id_ in self.live(number) if self.view(id_, number).owner == owner]

    def name(self, id_: str) -> str:
        """Return what a session is called: whoever drew its token, and a number."""
        return self.world.names.get(id_, "an unknown session")

    def looks(self, visit: Visit, until: int | None = None) -> list[Step]:
        """Return the steps in which a request met what stands under its own token."""
        return [
            step
            for step in visit.steps
            if names(step, visit.id)
            and step.way not in (Way.LOST, Way.LATE)
            and (until is None or step.number < until)
        ]

    def forms(self, visit: Visit, until: int | None = None) -> list[Form]:
        """Return what a request met under its own token, look by look, as far as it was told."""
        return [
            self.view(visit.id, look.number).form
            for look in self.looks(visit, until)
            if look.way not in _UNTOLD and not self._has_missed(look, visit)
        ]

    def _has_missed(self, look: Step, visit: Visit) -> bool:
        """Say whether a command was for other sessions than the live one that was there.

        A login that has not looked takes no session of the same owner, and is not told of it.
        """
        if not isinstance(look.pending, Command) or look.changes:
            return False
        owner = look.pending.filter.get("owner")
        is_of_others = isinstance(owner, dict) and "$ne" in owner
        return is_of_others and self.view(visit.id, look.number).is_live

    def ends_of(self, id_: str | None, until: int | None = None) -> list[End]:
        return [
            end for end in self.ends if end.id == id_ and (until is None or end.step.number < until)
        ]

    def births_by(self, visit: Visit) -> list[Birth]:
        return [birth for birth in self.births if birth.visit is visit]

    def swap_by(self, visit: Visit) -> End | None:
        """Return the step by which a request itself ended the session that it came with."""
        ends_of = self.ends_of(visit.id)
        return next((end for end in ends_of if end.visit is visit and _is_swap(end)), None)

    @cached_property
    def heirs(self) -> list[Heir]:
        """Under which ids sessions went on; a session of its own that a login stored is none."""
        found = list(self.start.heirs)
        for birth in self.births:
            visit, swap = birth.visit, self.swap_by(birth.visit)
            if swap is None or visit.id is None:
                continue
            before, owner = self.view(visit.id, swap.step.number).owner, visit.local.logs_in
            is_login = owner is not None
            found.append(Heir(visit.id, birth.id, is_login, not is_login or owner == before))
        return found

    @cached_property
    def siblings(self) -> list[Heir]:
        """The sessions that logins with the tokens of marks stored, after whose first login."""
        return [
            Heir(birth.visit.id, birth.id, True, True)
            for birth in self.births
            if birth.visit.id is not None
            and birth.visit.local.logs_in is not None
            and self.swap_by(birth.visit) is None
        ]

    def heirs_of(self, id_: str, *, logins: bool, siblings: bool = False) -> set[str]:
        """Return under which ids a session went on; `logins` of the same owner count or not."""
        edges = self.heirs + (self.siblings if siblings else [])
        found, left = set(), [id_]
        while left:
            old = left.pop()
            if old not in found:
                found.add(old)
                left += [
                    heir.new
                    for heir in edges
                    if heir.old == old and (not heir.is_login or (logins and heir.same_owner))
                ]
        return found

    def successors_of(self, id_: str) -> list[str]:
        """Return where a session goes on, or a login follows it, whoever logged in."""
        found: list[str] = []
        left = [id_]
        while left:
            old = left.pop()
            new = [heir.new for heir in self.heirs if heir.old == old and heir.new not in found]
            found += new
            left += new
        return found

    def is_followed(self, id_: str | None) -> bool:
        """Say whether what goes on from a mark is the same session, or the same owner's."""
        if any(heir.old == id_ for heir in self.start.heirs):
            return any(heir.old == id_ and heir.same_owner for heir in self.start.heirs)
        swaps = [end for end in self.ends_of(id_) if _is_swap(end)]
        if not swaps:
            return False
        owner, before = swaps[-1].visit.local.logs_in, self.view(id_, swaps[-1].step.number).owner
        return owner in (None, before)

    def is_before(self, one: Step, other: Step) -> bool:
        """Say whether one step came before another in every order that this one stands for."""
        return bool(self._causes[other.number] >> one.number & 1)

    @cached_property
    def _causes(self) -> list[int]:
        causes: list[int] = []
        for step in self.steps:
            found = 1 << step.number
            for earlier in self.steps[: step.number]:
                if earlier.visit is step.visit or earlier.effect.meets(step.effect):
                    found |= causes[earlier.number]
            causes.append(found)
        return causes

    def _is_mark(self, id_: str, number: int) -> bool:
        """Say whether what stands there is left of a session that was given a new token."""
        if any(heir.old == id_ for heir in self.start.heirs):
            return True
        return any(_is_swap(end) for end in self.ends_of(id_, number))

    def _find_births_and_ends(self) -> None:
        self.births: list[Birth] = []
        self.ends: list[End] = []
        for step in self.steps:
            for id_ in self._changed(step):
                was, is_ = (self._plain(id_, step.number + later) for later in (0, 1))
                if is_.is_live and not was.is_live:
                    self.births.append(Birth(step, id_, step.visit))
                elif was.is_live and not is_.is_live:
                    self.ends.append(End(step, id_, step.visit))

    def _changed(self, step: Step) -> Iterator[str]:
        """Return the ids under which something changed, be it but the time."""
        (_, before), (documents, after) = self._states[step.number : step.number + 2]
        if before != after:
            return iter(documents)
        return iter([change[0] for change in step.changes])

    def _plain(self, id_: str, number: int) -> View:
        documents, now = self._states[number]
        return self._views.of(self.world.tokens.get(id_, ""), id_, documents.get(id_), now)

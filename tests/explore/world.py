"""Let visitors and operators of one application act at the same time, step by step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from mongosession_wsgi import MongoStore, SessionMiddleware

from .engine import (
    MOST_STEPS,
    NOTHING_SAID,
    Changes,
    Command,
    Documents,
    Effect,
    Outcome,
    Pending,
    Server,
    Tick,
    Time,
    Wait,
    Way,
    effect_of,
    id_of,
    is_beaten,
    of_chance_and_time,
    take,
    ways_of,
)
from .script import COOKIE, MOST_ALIVE, Call, Kind, Local, Play, Script, _Node, application

SETTINGS = {
    "mongodb_session_db": "explored",
    "session_name": COOKIE,
    "session_secure": "false",
    # So that a renewal is told to the browser, which is one more way to do harm.
    "session_expires": "2 hours",
}


class Heir(NamedTuple):
    """That a session goes on under another id, or that a login follows it there."""

    old: str
    new: str
    is_login: bool
    same_owner: bool


@dataclass
class Start:
    """What is stored when an order begins, and which tokens its requests may bring."""

    name: str
    words: str
    documents: Documents = field(default_factory=dict)
    tokens: Mapping[str, str | None] = field(default_factory=dict)
    """The tokens by what they are called: the new one, and the old one from before it."""
    heirs: tuple[Heir, ...] = ()
    now: datetime | None = None


class Step(NamedTuple):
    """What one request did at one point of an order, and what was there before and after."""

    number: int
    visit: Visit
    pending: Pending
    way: Way
    outcome: Outcome
    changes: Changes
    effect: Effect


class _Saved(NamedTuple):
    """A point of an order."""

    taken: int
    time: tuple[datetime, float]
    patient: Visit | None
    visits: list[tuple[Any, ...]]


class Choice(NamedTuple):
    """Whose turn it is, and how their command goes."""

    name: str
    way: Way


class Visit:
    """A request in an order; what can be seen of it is in `local`."""

    def __init__(self, name: str, kind: Kind, token: str | None, world: World) -> None:
        self.name = name
        self.kind = kind
        self.token = token
        self.id = None if token is None else world.id_of(token)
        self.steps: list[Step] = []
        self.has_died = False
        self.is_repeating = False
        """Whether its command has been carried out once, and will be again."""
        self._script = world.script(name, kind, token)
        self._node: _Node = self._script.begin()
        self.local: Local = self._node.local
        self.pending: Pending | None = self.local.pending

    def resume(self, outcome: Outcome) -> None:
        """Take note of an answer."""
        self._node = self._script.after(self._node, outcome)
        self.local = self._node.local
        self.pending = self.local.pending

    def save(self) -> tuple[Any, ...]:
        return self._node, self.pending, len(self.steps), self.has_died, self.is_repeating

    def restore(self, saved: tuple[Any, ...]) -> None:
        self._node, self.pending, count, self.has_died, self.is_repeating = saved
        self.local = self._node.local
        del self.steps[count:]

    def die(self) -> None:
        self.has_died, self.pending = True, None

    def moment(self, steps: int) -> int:
        """Return the number of the state in which so many of its commands had been answered."""
        if not steps:
            return 0
        answered = [step.number for step in self.steps if step.way is not Way.TWICE]
        return answered[steps - 1] + 1

    def is_within(self, call: Call, step: Step) -> bool:
        """Say whether it took a step while it asked something of the store itself."""
        if step.number < self.moment(call.begun):
            return False
        return call.ended is None or step.number < self.moment(call.ended)

    @property
    def responded_at(self) -> int | None:
        return None if self.local.responded is None else self.moment(self.local.responded)

    @property
    def cookie(self) -> str | None:
        """The token that the response sets, "" where it expires the cookie."""
        return self.local.cookie

    @property
    def is_answered(self) -> bool:
        return not self.has_died and self.local.is_answered

    @property
    def faults(self) -> set[Way]:
        return {step.way for step in self.steps if step.way is not Way.WELL}


class World:
    """One store over one server, in which orders are tried one after the other."""

    def __init__(self, server: Server, settings: Mapping[str, Any] | None = None) -> None:
        self.server = server
        self.settings = SETTINGS | dict(settings or {})
        self.time = Time()
        self.store = MongoStore(self.settings, client=server, clock=self.time)  # type: ignore[arg-type]
        self.app: Any = SessionMiddleware(application, self.settings, store=self.store)
        self.limit: int | None = getattr(self.store.settings, "limit", None)
        self.tokens: dict[str, str] = {}
        """The token of each id that was ever drawn."""
        self.names: dict[str, str] = {}
        self._ids: dict[str, str] = {}
        self._scripts: dict[Any, Script] = {}
        self._alive: OrderedDict[int, _Node] = OrderedDict()
        self.remembered = 0
        """How many places in scripts are remembered."""
        self._alone: Play | None = None
        self.reset(Start("empty", ""))

    # Orders.

    def reset(self, start: Start) -> None:
        """Begin anew, with what is stored at this start."""
        self.server.hold(start.documents)
        self.time.begin(start.now)
        self.start = start
        self.visits: list[Visit] = []
        self.steps: list[Step] = []
        self.states: list[tuple[Documents, datetime]] = [(start.documents, self.time.now)]
        self._patient: Visit | None = None
        """Who waits while all others stand still."""

    def begin(self, kinds: Iterable[Kind], tokens: Iterable[str | None]) -> None:
        """Let the requests begin, and stop before their first commands."""
        named = zip("ABCDEFGH", kinds, tokens, strict=False)
        self.visits = [Visit(name, kind, token, self) for name, kind, token in named]

    def save(self) -> _Saved:
        """Return what is to be known of this point, so that an order may go another way from it."""
        time = self.time.now, self.time.passed
        return _Saved(len(self.steps), time, self._patient, [one.save() for one in self.visits])

    def restore(self, saved: _Saved) -> None:
        """Go back to a point of this order."""
        del self.steps[saved.taken :], self.states[saved.taken + 1 :]
        self.server.hold(self.states[-1][0])
        self.time.now, self.time.passed = saved.time
        self._patient = saved.patient
        for visit, one in zip(self.visits, saved.visits, strict=True):
            visit.restore(one)

    def choices(self, *, faulty: bool) -> list[Choice]:
        """Return the steps that can be taken now; those with a fault only if it may be `faulty`."""
        waiting = [self._patient] if self._patient else [v for v in self.visits if self._may_go(v)]
        found = [Choice(visit.name, Way.WELL) for visit in waiting]
        for visit in waiting:
            command = visit.pending
            if not isinstance(command, Command):
                continue
            if self.server.manner.deletes_are_beaten:
                others = [other.pending for other in waiting if other is not visit]
                if is_beaten(command, others):
                    found.append(Choice(visit.name, Way.BEATEN))
            if faulty and not visit.is_repeating:
                found += [Choice(visit.name, way) for way in ways_of(command, self.server.manner)]
        return found

    def take(self, choice: Choice) -> Effect:
        """Take a step; return what it touched and wrote."""
        visit = next(one for one in self.visits if one.name == choice.name)
        pending, way = visit.pending, choice.way
        assert pending is not None
        before, number = self.states[-1][0], len(self.steps)
        outcome, changes = self._answer(visit, pending, way)
        effect = effect_of(pending, way, changes)
        step = Step(number, visit, pending, way, outcome, changes, effect)
        self.steps.append(step)
        visit.steps.append(step)
        self.states.append((dict(self.server.documents) if changes else before, self.time.now))
        self._go_on(visit, way, outcome)
        if visit.pending is None or (
            isinstance(pending, Command) and not isinstance(visit.pending, Wait)
        ):
            self._patient = None
        return effect

    @property
    def is_over(self) -> bool:
        return all(visit.pending is None for visit in self.visits)

    @property
    def is_endless(self) -> bool:
        return len(self.steps) >= MOST_STEPS

    def _may_go(self, visit: Visit) -> bool:
        if isinstance(visit.pending, Tick):
            return not any(other.local.is_committing and other.pending for other in self.visits)
        return visit.pending is not None

    def _answer(self, visit: Visit, pending: Pending, way: Way) -> tuple[Outcome, Changes]:
        match pending:
            case Command():
                return take(self.server, pending, way)
            case Tick():
                return NOTHING_SAID, pending.act()
            case Wait(seconds):
                if not visit.steps or visit.steps[-1].number == len(self.steps) - 1:
                    self._patient = visit
                self.time.pass_by(seconds)
        return NOTHING_SAID, ()

    def _go_on(self, visit: Visit, way: Way, outcome: Outcome) -> None:
        visit.is_repeating = way is Way.TWICE
        if way is Way.DYING:
            visit.die()
        elif way is not Way.TWICE:
            visit.resume(outcome)

    # Requests outside of an order.

    def run_alone(self, name: str, kind: Kind, token: str | None, drawn: int = 0) -> Play:
        """Let a request do all that it does, with nobody in its way; `drawn` tokens are taken."""
        self._alone = play = Play(self, name, kind, token)
        play.drawn = drawn
        try:
            play.run()
        finally:
            self._alone = None
        return play

    # What is remembered.

    def script(self, name: str, kind: Kind, token: str | None) -> Script:
        key = name, kind.name, token
        if key not in self._scripts:
            self._scripts[key] = Script(self, name, kind, token)
        return self._scripts[key]

    def keep_alive(self, node: _Node) -> _Node:
        """Keep a request where it stands, and let go of the one that was kept longest."""
        self.remembered += 1
        if node.local.pending is None:
            node.play = None
            return node
        self._alive[id(node)] = node
        if len(self._alive) > MOST_ALIVE:
            _, oldest = self._alive.popitem(last=False)
            if oldest.play is not None:
                oldest.play.end()
                oldest.play = None
        return node

    def forget(self) -> None:
        """Forget what the requests of former orders did."""
        for node in self._alive.values():
            if node.play is not None:
                node.play.end()
        self._alive.clear()
        self._scripts.clear()
        self.remembered = 0

    # What the product draws and measures.

    def replacements(self) -> dict[Any, Any]:
        """Return what stands for the product's functions of chance and time in this world."""
        return of_chance_and_time(self._draw, self._wait, self.time.monotonic)

    def know(self, name: str) -> str:
        """Return the token that is called so, and remember it."""
        # The last letter says whether the session is remembered, and whether it is sealed.
        for letter in "DCBA":
            token = name.ljust(42, "_") + letter
            id_ = self.id_of(token)
            self.tokens[id_] = token
            self.names[id_] = name
        return token

    def id_of(self, token: str) -> str:
        if token not in self._ids:
            self._ids[token] = id_of(token)
        return self._ids[token]

    def _draw(self) -> str:
        play = self.server.acting or self._alone
        assert isinstance(play, Play)
        return play.draw()

    def _wait(self, seconds: float) -> None:
        """Stand for `time.sleep`: others go on, or this one waits in vain for them."""
        if self.server.acting is None:
            self.time.pass_by(seconds)
        else:
            self.server.acting.ask(Wait(seconds))

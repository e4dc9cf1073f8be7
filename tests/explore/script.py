"""What a request does, by the answers that it got so far: run once, and remembered.

A request is the product's own code, in a greenlet that stops before each command. What it does
next depends on nothing but the answers to its commands and the moments at which they came. So an
order that gives it the answers that another order gave need not run it again.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from greenlet import GreenletExit, getcurrent, greenlet  # type: ignore[import-untyped]

from mongosession_wsgi import Session

from .engine import NOTHING_SAID, Outcome, Pending

if TYPE_CHECKING:
    from .world import World

COOKIE = "sid"
GONE = "(gone)"
"""What stands for the value of a key that is removed."""
MOST_ALIVE = 300
"""The requests that are kept in the midst of what they do, to go on from there."""


class PlannedError(Exception):
    """What an application raises on purpose."""


@dataclass(frozen=True)
class Kind:
    """A kind of request: what the application does, or what an operator does instead."""

    name: str
    words: str
    use: Callable[[Play], object] = lambda play: None
    late: Callable[[Play], object] | None = None
    status: str = "200 OK"
    main: Callable[[Play], object] | None = None
    fails: bool = False
    """Whether the request fails by what its application does."""


class Op(NamedTuple):
    """What an application did to its session."""

    verb: str
    key: Any = None
    value: Any = None


class Seen(NamedTuple):
    """What an application saw of its session."""

    steps: int
    """How many commands of the request had been answered."""
    ops: int
    """How many things it had done to the session itself."""
    data: dict[str, Any]
    owner: str | None


class Call(NamedTuple):
    """What an application or an operator asked of the store itself."""

    verb: str
    target: str | None
    keep: str | None
    begun: int
    """How many commands of the request had been answered by then."""
    ended: int | None = None
    result: Any = None


class Local:
    """All that can be seen of a request from outside, after so many answers."""

    def __init__(self, play: Play) -> None:
        self.kind = play.kind
        self.pending = play.pending
        self.ops = tuple(play.ops)
        self.seen = tuple(play.seen)
        self.calls = tuple(play.calls)
        self.status = play.status
        self.cookie = play.cookie
        """The token that the response sets, "" where it expires the cookie."""
        self.responded = play.responded
        """How many commands had been answered when the response went out."""
        self.is_committing = play.is_committing
        """Whether its application is done, so that there is a limit to the time that is left."""
        self.error = play.error
        self.ops_in_time = self.ops[: play.ops_in_time]
        """What it did before its commit."""

    @cached_property
    def fails(self) -> bool:
        """Whether it fails by what its application does."""
        spoils = any(op.verb == "spoil" for op in self.ops)
        return self.kind.fails and (spoils or "spoil" not in self.kind.name)

    @cached_property
    def is_answered(self) -> bool:
        """Whether its response, or its operator, said that all went well."""
        if self.error is not None or self.pending is not None:
            return False
        return self.kind.main is not None or (self.status or "").startswith("2")

    @cached_property
    def destroys(self) -> bool:
        return any(op.verb == "destroy" for op in self.ops_in_time)

    @cached_property
    def fresh_ops(self) -> tuple[Op, ...]:
        """What it did in time, and after it destroyed the session if it did."""
        verbs = [op.verb for op in self.ops_in_time]
        last = len(verbs) - verbs[::-1].index("destroy") if "destroy" in verbs else 0
        return self.ops_in_time[last:]

    @cached_property
    def logs_in(self) -> str | None:
        """Who logged in, in time for the response."""
        return next((op.value for op in reversed(self.fresh_ops) if op.verb == "login"), None)

    @cached_property
    def rotates(self) -> bool:
        return any(op.verb in ("regenerate", "login") for op in self.fresh_ops)


class Play:
    """A request, or what an operator does, as it runs; and what its application may do."""

    def __init__(self, world: World, name: str, kind: Kind, token: str | None) -> None:
        self.world = world
        self.name = name
        self.kind = kind
        self.token = token
        self.id = None if token is None else world.id_of(token)
        self.session: Session
        self.steps = 0
        self.drawn = 0
        self.pending: Pending | None = None
        self.ops: list[Op] = []
        self.ops_in_time: int | None = None
        self.seen: list[Seen] = []
        self.calls: list[Call] = []
        self.status: str | None = None
        self.cookie: str | None = None
        self.responded: int | None = None
        self.is_committing = False
        self.error: BaseException | None = None
        self._is_over = False
        self._greenlet = greenlet(self.run)

    # How it runs.

    def begin(self) -> None:
        """Run up to the first command."""
        self._switch()

    def resume(self, outcome: Outcome) -> None:
        """Hand it the answer to its command, and run up to the next."""
        self.pending = None
        self.steps += 1
        self._switch(outcome)

    def ask(self, pending: Pending) -> Any:
        """Stop before a command, until it has been answered; called from within."""
        if self._is_over:
            raise GreenletExit
        self.pending = pending
        return getcurrent().parent.switch().get()

    def end(self) -> None:
        """Let go of what is still under way; it sends no command any more."""
        self._is_over = True
        if not self._greenlet.dead:
            self._enter(lambda: self._greenlet.throw(GreenletExit))

    def run(self) -> None:
        """Do all that it does, without a stop where the server does not ask for one."""
        try:
            (self.kind.main or _request)(self)
        except (Exception, GreenletExit) as error:  # noqa: BLE001 - It is told with the order.
            self.error = error

    def draw(self) -> str:
        """Return a token that tells who has drawn it."""
        self.drawn += 1
        return self.world.know(f"{self.name}{self.drawn}")

    def _switch(self, *outcome: Outcome) -> None:
        self._enter(lambda: self._greenlet.switch(*outcome))

    def _enter(self, go: Callable[[], object]) -> None:
        self.world.server.acting = self
        try:
            go()
        finally:
            self.world.server.acting = None

    # What an application does to its session.

    def read(self) -> dict[str, Any]:
        data = self.session.copy()
        self.seen.append(Seen(self.steps, len(self.ops), data, self.session.owner))
        return data

    def set(self, key: str = "", value: Any = None) -> None:
        """Set a key: one that no other request sets, if none is named."""
        key = key or f"of {self.name}"
        value = f"by {self.name}" if value is None else value
        self.session[key] = value
        self.ops.append(Op("set", key, value))

    def append(self) -> None:
        cart = self.session.get("cart")
        if not isinstance(cart, list):
            self.set("cart", [self.name])
            return
        cart.append(self.name)
        self.ops.append(Op("set", "cart", list(cart)))

    def delete(self, key: str) -> None:
        if self.session.pop(key, None) is not None:
            self.ops.append(Op("delete", key))

    def clear(self) -> None:
        keys = list(self.session) if self.seen else None
        self.session.clear()
        self.ops.append(Op("clear", value=keys))

    def login(self, owner: str, **options: Any) -> None:
        self.session.login(owner, **options)
        self.ops.append(Op("login", value=owner))

    def regenerate(self) -> None:
        self.session.regenerate()
        self.ops.append(Op("regenerate"))

    def destroy(self) -> None:
        self.session.destroy()
        self.ops.append(Op("destroy"))

    def spoil(self) -> None:
        """Put into a list what cannot be stored, which shows only at the commit."""
        cart = self.session.get("cart")
        if isinstance(cart, list):
            cart.append(object())
            self.ops.append(Op("spoil"))

    def call(self, verb: str, target: str | None, keep: str | None = None) -> Any:
        """Ask something of the store itself, and note what came of it."""
        store, was_committing = self.world.store, self.is_committing
        place = len(self.calls)
        self.calls.append(Call(verb, target, keep, self.steps))
        self.is_committing = True
        match verb:
            case "revoke":
                result: Any = store.revoke(str(target))
            case "revoke_all":
                result = store.revoke_all(str(target), keep=keep)
            case "sessions":
                result = sorted(info.id for info in store.sessions(target))
            case _:
                result = getattr(store, verb)()
        self.calls[place] = self.calls[place]._replace(ended=self.steps, result=result)
        self.is_committing = was_committing
        return result


class _Node:
    """Where a request stands after some answers."""

    __slots__ = ("local", "next", "play", "said", "source")

    def __init__(self, play: Play, source: _Node | None, said: _Said) -> None:
        self.local = Local(play)
        self.source = source
        self.said = said
        """The answer that led here from the node that it comes from, and its moment."""
        self.next: dict[Any, _Node] = {}
        self.play: Play | None = play


class _Said(NamedTuple):
    outcome: Outcome
    now: datetime
    passed: float


class Script:
    """A request with one token, and what it does by the answers that it gets."""

    def __init__(self, world: World, name: str, kind: Kind, token: str | None) -> None:
        self._world = world
        self._play: Callable[[], Play] = lambda: Play(world, name, kind, token)
        self._roots: dict[datetime, _Node] = {}

    def begin(self) -> _Node:
        now = self._world.time.now
        if now not in self._roots:
            play = self._play()
            play.begin()
            said = _Said(NOTHING_SAID, now, self._world.time.passed)
            self._roots[now] = self._world.keep_alive(_Node(play, None, said))
        return self._roots[now]

    def after(self, node: _Node, outcome: Outcome) -> _Node:
        """Return where a request stands once its command is answered."""
        time = self._world.time
        key = outcome.key, time.now, time.passed
        found = node.next.get(key)
        if found is None:
            play = node.play or self._again(node)
            node.play = None
            play.resume(outcome)
            said = _Said(outcome, time.now, time.passed)
            found = node.next[key] = self._world.keep_alive(_Node(play, node, said))
        return found

    def _again(self, node: _Node) -> Play:
        """Run a request once more, up to where it stood."""
        way: list[_Said] = []
        place: _Node | None = node
        while place is not None:
            way.append(place.said)
            place = place.source
        time = self._world.time
        now, passed = time.now, time.passed
        play = self._play()
        for number, said in enumerate(reversed(way)):
            time.now, time.passed = said.now, said.passed
            if number:
                play.resume(said.outcome)
            else:
                play.begin()
        time.now, time.passed = now, passed
        return play


# One request.


def _request(play: Play) -> None:
    """Be a server: call the application, and take its response."""

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        play.status = status
        play.cookie = next((_token(value) for key, value in headers if key == "Set-Cookie"), None)
        play.responded = play.steps
        return lambda data: None

    body = play.world.app(_environ(play), start_response)
    try:
        for _ in body:
            pass
    finally:
        if hasattr(body, "close"):
            body.close()


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Do what the kind of a request says, to the session that the middleware gives it."""
    play: Play = environ["explore.play"]
    play.session = environ["mongosession"]
    kind = play.kind
    try:
        kind.use(play)
    finally:
        play.ops_in_time = len(play.ops)
        play.is_committing = True
    start_response(kind.status, [("Content-Type", "text/plain")])
    return [b""] if kind.late is None else _body(play, kind.late)


def _body(play: Play, late: Callable[[Play], object]) -> Iterator[bytes]:
    yield b""
    late(play)
    yield b""


def _environ(play: Play) -> dict[str, Any]:
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "explore.play": play,
    }
    if play.token:
        environ["HTTP_COOKIE"] = f"{COOKIE}={play.token}"
    return environ


def _token(header: str) -> str:
    pair, _, attributes = header.partition(";")
    return "" if "Max-Age=0" in attributes else pair.partition("=")[2]

"""A store without a socket, whose server does at a command what a test's script says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import bson
from pymongo.errors import AutoReconnect, OperationFailure

from mongosession_wsgi import MongoStore, Session
from mongosession_wsgi.document import CODEC, SEALED, Mark, Token, decode, id_of
from mongosession_wsgi.seal import Seal
from mongosession_wsgi.testing.memory import Client
from mongosession_wsgi.testing.requests import Clock
from mongosession_wsgi.visit import Visit

T = TypeVar("T")


def nothing() -> None: ...


@dataclass
class Plan:
    """What happens at one command: a command of this name, or the command of this number."""

    where: str | int
    before: Callable[[], object] = nothing
    after: Callable[[], object] = nothing
    loses: str = ""
    """What the connection breaks before: the "command", or its "answer"."""
    error: Exception | None = None


class Scripted(Client):
    """Be a server that notes its commands, and carries out each plan once."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[str] = []
        self._plans: list[Plan] = []
        self._is_aside = False

    def plan(self, where: str | int, **what: Any) -> None:
        """Plan for the next command of a name, or for the command of a number, counted from 1."""
        self._plans.append(Plan(where, **what))

    @property
    def all_done(self) -> bool:
        """Whether every plan was carried out."""
        return not self._plans

    def forget(self) -> None:
        """Forget the commands that a test made to arrange its scene."""
        self.commands.clear()

    def run(self, name: str, filter: dict[str, Any], act: Callable[[], T]) -> T:
        if self._is_aside:
            return super().run(name, filter, act)
        self.commands.append(name)
        here = (name, len(self.commands))
        plan = next((one for one in self._plans if one.where in here), None)
        if plan is None:
            return super().run(name, filter, act)
        self._plans.remove(plan)
        self._aside(plan.before)
        if plan.error is not None:
            raise plan.error
        answer = None if plan.loses == "command" else super().run(name, filter, act)
        self._aside(plan.after)
        if plan.loses:
            raise AutoReconnect("the connection broke")
        return cast("T", answer)

    def _aside(self, act: Callable[[], object]) -> None:
        """Do what somebody else does; those commands are not noted, and no plan is for them."""
        self._is_aside = True
        try:
            act()
        finally:
            self._is_aside = False


def refused() -> OperationFailure:
    """Return an error that no second try follows."""
    return OperationFailure("not allowed", 13)


class Scene:
    """A store on a scripted server, and what a test says and asks of both."""

    def __init__(self, clock: Clock, **settings: Any) -> None:
        self.clock = clock
        self.server = Scripted()
        self.store = self.another(**settings)

    def another(self, **settings: Any) -> MongoStore:
        """Return a store with other settings, on the same documents."""
        named = {"mongodb_session_db": "memory"} | settings
        return MongoStore(named, client=cast("Any", self.server), clock=self.clock)

    def stored(self, data: dict[str, Any] | None = None, **login: Any) -> str:
        """Store a session, logged in if an owner is given; return its token."""
        session = self.store.open(None)
        session.update(data or {})
        if login:
            session.login(**login)
        self.store.flush(session)
        self.server.forget()
        return str(session.token)

    def request(self, token: str | None, act: Callable[[Session], object]) -> Session:
        """Have another request do something with the session of a token."""
        session = self.store.open(token)
        act(session)
        self.store.flush(session)
        return session

    def commands(self) -> list[str]:
        """Return the commands since the last question."""
        commands = self.server.commands.copy()
        self.server.forget()
        return commands

    def put(self, id: str, **fields: Any) -> None:
        """Store a document as it is."""
        self.server.documents[id] = bson.encode({"_id": id} | fields, codec_options=CODEC)

    def shown(self, visit: Visit) -> dict[str, Any]:
        """Return what is stored: the `old` id, that came, the `new` id of the visit, and others.

        A session is shown as its data, and all else as a word.
        """
        tokens = {id_of(token): token for token in (visit.came_with, visit.token) if token}
        names = {id_of(visit.token): "new"} if visit.token else {}
        names |= {id_of(visit.came_with): "old"} if visit.came_with else {}
        return {
            names.get(id_, "other"): self.at(id_, tokens.get(id_)) for id_ in self.server.documents
        }

    def at(self, id_: str, token: str | None = None) -> Any:
        """Return the data of the session that stands under an id, or a word for something else."""
        if id_ not in self.server.documents:
            return "nothing"
        known = decode(self.server.documents[id_])
        if known is None:
            return "foreign"
        if isinstance(known, Mark):
            return "mark" if known.successor else "tombstone"
        if known.version == SEALED:
            return "sealed" if token is None else Seal(Token(token)).open(known.data)
        return known.data

    def live(self, owner: str | None = None) -> list[tuple[str | None, dict[str, Any]]]:
        """Return the owner and the data of each live session, in an order of their own."""
        found = [(info.owner, info.data) for info in self.store.sessions(owner)]
        return sorted(found, key=str)

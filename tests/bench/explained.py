"""What a request costs the database: the keys and documents examined, as the server explains.

Each command is explained just before it is sent, when the sessions are still as it finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from secrets import token_hex
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from pymongo import MongoClient, monitoring
from pymongo.errors import OperationFailure

from mongosession_wsgi import MongoStore
from mongosession_wsgi.session import Session

from .contenders import SMALL, data_of
from .growth import fill_up
from .measure import Figures, databases, is_embedded, name_of

STORED = 1000
"""The sessions in the collection beside those that are asked for."""
MORE, REPEATS = 20, 7
"""How many times more sessions there are the second time, and how often each verb is timed."""
THEIRS = 3
"""The sessions of one owner."""
INDEXED = ("_id", "owner")
"""The fields that our commands select by, and that have an index."""


class Examined(NamedTuple):
    """How a server finds the documents of one command."""

    command: str
    way: str
    """An index scan or a scan of the collection, in the server's word."""
    keys: int
    documents: int
    found: int


class Explainer(monitoring.CommandListener):
    """Has the commands of a store explained by another client."""

    def __init__(self, client: MongoClient[Any]) -> None:
        self._client = client
        self._sees_one_condition = is_embedded(client)
        self._examined: list[Examined] | None = None

    @contextmanager
    def watching(self) -> Iterator[list[Examined]]:
        examined: list[Examined] = []
        self._examined = examined
        try:
            yield examined
        finally:
            self._examined = None

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        selected = selected_by(event.command)
        if self._examined is None or selected is None:
            return
        if self._sees_one_condition:
            # The embedded server explains no filter of several conditions as it runs the filter.
            field = next((one for one in INDEXED if one in selected), None)
            selected = {field: selected[field]} if field else {}
        collection = event.command[event.command_name]
        explained = self._client[event.database_name].command(
            {"explain": {"find": collection, "filter": selected}, "verbosity": "executionStats"}
        )
        stats = explained["executionStats"]
        numbers = stats["totalKeysExamined"], stats["totalDocsExamined"], stats["nReturned"]
        way = way_of(explained["queryPlanner"]["winningPlan"])
        self._examined.append(Examined(event.command_name, way, *numbers))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


def selected_by(command: Any) -> dict[str, Any] | None:
    """Return the filter of a command; None for one that selects nothing, such as an insert."""
    for name in ("updates", "deletes"):
        for one in command.get(name, ()):
            return dict(one["q"])
    found = command.get("filter", command.get("query"))
    return None if found is None else dict(found)


def way_of(plan: Any) -> str:
    """Return the innermost stage of a plan, with the index if it takes one."""
    plan = plan.get("queryPlan", plan)
    while "inputStage" in plan:
        plan = plan["inputStage"]
    index = plan.get("indexName")
    return f"{plan['stage']} of `{index}`" if index else str(plan["stage"])


def explained(uri: str) -> dict[str, list[Examined]] | None:
    """Return how each command of each verb is carried out; None if the server does not tell."""
    with databases(uri) as database, MongoClient[Any](uri) as client:
        if not tells(client):
            return None
        explainer = Explainer(client)
        with MongoClient[Any](uri, event_listeners=[explainer]) as listened:
            store = MongoStore({"mongodb_session_db": database}, client=listened)
            store.ensure_indexes()
            fill_up(client[database]["sessions"], STORED, lambda _: None)
            found = {}
            for name, act in verbs(store).items():
                with explainer.watching() as found[name]:
                    act()
            return found


def tells(client: MongoClient[Any]) -> bool:
    """Say whether a server explains commands at all."""
    try:
        client.admin.command({"explain": {"find": "sessions"}})
    except OperationFailure:
        return False
    return True


def verbs(store: MongoStore) -> dict[str, Callable[[], object]]:
    """Return what is done with sessions, by names; the sessions are stored already."""

    def session(owner: str | None = None) -> Session:
        """Return a stored session, as a request opens it."""
        new = store.open(None)
        new.update(data_of(SMALL))
        if owner is not None:
            new.login(owner)
        store.flush(new)
        return store.open(new.token)

    def change(session: Session, act: Callable[[Session], object]) -> Callable[[], object]:
        def changed() -> None:
            act(session)
            store.flush(session)

        return changed

    def read_and_set(session: Session) -> None:
        session["key000"] = session["key001"]

    revoked = session().id or ""
    alice, bob = token_hex(4), token_hex(4)
    for owner in (alice, bob):
        for _ in range(THEIRS):
            session(owner)
    return {
        "read": change(session(), lambda one: one["key000"]),
        "set": change(session(), lambda one: one.update(key000="new")),
        "read and set": change(session(), read_and_set),
        "log in": change(session(), lambda one: one.login("carol")),
        "regenerate": change(session(), Session.regenerate),
        "log out": change(session(), Session.destroy),
        "revoke": lambda: store.revoke(revoked),
        "sessions(owner)": lambda: list(store.sessions(alice)),
        "revoke_all": lambda: store.revoke_all(bob),
    }


def grown(uri: str, tell: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each verb, by how many other sessions there are.

    A server may do otherwise than it explains, and a scan takes the longer, the more there are.
    """
    found = {}
    with databases(uri) as database, MongoClient[Any](uri) as client:
        store = MongoStore({"mongodb_session_db": database}, client=client)
        store.ensure_indexes()
        for size in (STORED, MORE * STORED):
            fill_up(client[database]["sessions"], size, tell)
            spent: dict[str, list[float]] = {}
            for _ in range(REPEATS):
                for name, act in verbs(store).items():
                    begun = perf_counter()
                    act()
                    spent.setdefault(name, []).append((perf_counter() - begun) * 1000)
            found[str(size)] = {name: round(median(of), 2) for name, of in spent.items()}
    return found


def stored(uri: str, size: int, tell: Callable[[str], None]) -> Figures:
    """Return the bytes of so many sessions and of their indexes, as the server counts them."""
    with databases(uri) as database, MongoClient[Any](uri) as client:
        store = MongoStore({"mongodb_session_db": database}, client=client)
        store.ensure_indexes()
        sessions = client[database]["sessions"]
        fill_up(sessions, size, tell)
        stats = client[database].command("collStats", sessions.name)
        return {name: stats.get(name) for name in ("count", "size", "indexSizes")}


def measured(uri: str, others: Sequence[str], size: int, tell: Callable[[str], None]) -> Figures:
    """Return the explanations of this server and of others, and the size of many sessions here."""
    engines: Figures = {}
    for one in (uri, *others):
        with MongoClient[Any](one) as client:
            name = name_of(client)
        tell(f"what {name} examines")
        engines[name] = explained(one)
    return {"engines": engines, "grown": grown(uri, tell), "stored": stored(uri, size, tell)}

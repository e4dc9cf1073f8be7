"""Send very many requests through one process, and print what the process holds at each tenth.

`python -m tests.soak --requests 1000000` sends requests of all kinds from parallel threads, with
faults now and then. Of ten requests, nine are kept in memory, some of them sealed, and one goes
over a socket to the server of `MONGODB_URI` or to an embedded one; `--server java` starts a
mongo-java-server instead, and `--server none` does without. The exit status is 1 if resident
memory, descriptors, threads or connections grow after the second tenth, or if a request is
answered as none should be.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import resource
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from pymongo import MongoClient
from pymongo.errors import AutoReconnect, NetworkTimeout, OperationFailure

from mongosession_wsgi import MongoStore, Session, SessionError, SessionMiddleware
from mongosession_wsgi.document import id_of
from mongosession_wsgi.testing.memory import Client
from mongosession_wsgi.testing.requests import Clock

from . import tool
from .explore.exploring import quietly
from .proxy import Proxy, before
from .races import SERVERS
from .servers.java import UnavailableError
from .wsgi import KEY, call, environ_of

T = TypeVar("T")

THREADS = 4
BROWSERS = 40
"""The cookies that the requests bring; several threads may bring one at the same moment."""
PARTS = 100
"""After each of so many parts the threads stand still, and the stores close their clients."""
FAULT_EVERY = 400
"""Of so many commands in memory, or requests to a server, one meets a fault."""
STEP = 2.0
"""The seconds by which time moves for each request; by time, too, sessions end."""
SETTINGS = {
    "session_name": "sid",
    "session_secure": "false",
    "session_expires": "5 minutes",
    "session_remember": "10 minutes",
    "session_lifetime": "1 hour",
    "session_limit": "3",
}
SLACK = {"memory": 8 * 1024 * 1024, "descriptors": 12, "threads": 8, "connections": 4}
"""What may come and go: a connection for each thread, with two ends more within the proxy."""
LONGEST_WAIT = 60.0


# What is held.


class Held(NamedTuple):
    """What a process holds at a moment; `memory` is resident, in bytes."""

    memory: int
    descriptors: int
    threads: int
    connections: int


@dataclass
class Row:
    """What so many requests have left behind, and how they were answered."""

    requests: int
    seconds: float
    held: Held
    answers: Counter[str] = field(default_factory=Counter)


def grown(rows: Sequence[Row]) -> list[str]:
    """Return what grows after the second row, by name."""
    later = [row.held for row in rows[1:]]
    return [
        name
        for name, slack in SLACK.items()
        if later and max(getattr(held, name) for held in later) > getattr(later[0], name) + slack
    ]


def _resident() -> int:
    """Return the resident memory of this process; where the system tells no more, the most yet."""
    with suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# The applications.


class FaultyClient(Client):
    """A memory whose commands fail now and then, carried out or not."""

    def run(self, name: str, filter: dict[str, Any], act: Callable[[], T]) -> T:
        if random.randrange(FAULT_EVERY):
            return super().run(name, filter, act)
        if random.randrange(2):
            super().run(name, filter, act)
        raise random.choice(
            (
                AutoReconnect("connection closed"),
                NetworkTimeout("timed out"),
                OperationFailure("not primary", 10107),
                OperationFailure("refused", 13),
            )
        )


def memory_client() -> Any:
    return FaultyClient()


class PlannedError(Exception):
    """What the application raises on purpose."""


def _appends(session: Session) -> None:
    cart = session.setdefault("cart", [])
    cart[:-9] = []
    cart.append("egg")


def _fails(session: Session) -> None:
    session["a"] = "lost"
    raise PlannedError


def _logs_out_and_in(session: Session) -> None:
    session.destroy()
    session.login("bob")


def _is_refused(session: Session) -> None:
    session["a"] = {1, 2}


USES: list[Callable[[Session], Any]] = [
    lambda session: None,
    lambda session: session.get("a"),
    lambda session: session.update(a=random.random()),
    lambda session: session.update({"b.c": [1], "$d": {"e": "f"}, "": b"g" * 200}),
    _appends,
    lambda session: session.pop("a", None),
    lambda session: session.clear(),
    lambda session: session.login("alice", label="phone"),
    lambda session: (session.copy(), session.login("bob", remember=True)),
    lambda session: session.regenerate(),
    lambda session: (session.copy(), session.regenerate()),
    lambda session: session.destroy(),
    _logs_out_and_in,
    _is_refused,
    _fails,
]
"""What applications do with a session; an untouched one costs least, and comes first."""


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Do what the environ says, and answer in one of the ways of WSGI."""
    use, way = environ["soak.use"], environ["soak.way"]
    session = environ[KEY]
    if way != "late":
        use(session)
    headers = [("Content-Type", "text/plain")]
    write = start_response("500 Broken" if way == "broken" else "200 OK", headers)
    if way == "write":
        write(b"written")
    if way in ("late", "stream"):
        return _items(use if way == "late" else lambda session: None, session)
    return [b"answer"]


def _items(use: Callable[[Session], Any], session: Session) -> Iterator[bytes]:
    yield b"first"
    use(session)
    yield b"last"


WAYS = [*["list"] * 6, "stream", "write", "late", "broken"]


class Shop:
    """An application, its store, and the cookies of its visitors."""

    def __init__(self, store: MongoStore, clock: Clock, proxy: Proxy | None = None) -> None:
        self.store = store
        self._clock = clock
        self._proxy = proxy
        self._app = SessionMiddleware(application, SETTINGS, store=store)
        self._cookies = [""] * BROWSERS
        self._strike = [
            lambda proxy: proxy.cut_after_request(once=True),
            lambda proxy: proxy.cut_reply_after(20, once=True),
            lambda proxy: proxy.reset(once=True),
            lambda proxy: proxy.garbage(once=True),
            lambda proxy: proxy.cut_idle(),
        ]

    def request(self) -> str:
        """Send a request of some kind, or do what an operator does; return what came of it."""
        self._clock.advance(seconds=STEP)
        if self._proxy is not None and not random.randrange(FAULT_EVERY):
            random.choice(self._strike)(self._proxy)
        try:
            if random.randrange(50):
                return self._visit()
            self._operate()
        except (PlannedError, SessionError) as error:
            return type(error).__name__
        return "by an operator"

    def _visit(self) -> str:
        browser = random.randrange(BROWSERS)
        token = self._cookies[browser]
        header = random.choice((f"sid={token}",) * 12 + ("", "sid=short", f"sid={'x' * 43}; a=b"))
        way = {"soak.use": random.choice(USES), "soak.way": random.choice(WAYS)}
        response = call(self._app, environ_of(HTTP_COOKIE=header) | way)
        if response.token is not None:
            self._cookies[browser] = response.token
        return response.status[:3]

    def _operate(self) -> None:
        do, token = random.randrange(5), random.choice(self._cookies)
        if do == 0:
            self.store.revoke(id_of(token))
        elif do == 1:
            self.store.revoke_all(random.choice(("alice", "bob")), keep=id_of(token))
        elif do == 2:
            list(self.store.sessions(random.choice(("alice", None))))
        else:
            self.store.purge()


EXPECTED = {"200", "500", "503", "by an operator", "PlannedError", "StoreError", "SessionDataError"}
"""How requests may be answered: as the application says, or as a fault does."""


# The soak.


class Soak:
    """Some shops, and the threads that send requests to them."""

    def __init__(self, shops: Sequence[tuple[int, Shop]], proxy: Proxy | None = None) -> None:
        self._shops = [shop for weight, shop in shops for _ in range(weight)]
        self._proxy = proxy

    def run(self, requests: int, tell: Callable[[Row], None] = lambda row: None) -> list[Row]:
        """Send so many requests; `tell` the row of each tenth, and return all rows."""
        rows: list[Row] = []
        answers, begun = Counter[str](), time.monotonic()
        with quietly(), ThreadPoolExecutor(THREADS) as threads:
            for part in range(1, PARTS + 1):
                for some in threads.map(
                    self._send, [max(requests // PARTS // THREADS, 1)] * THREADS
                ):
                    answers += some
                if part % (PARTS // 10) == 0:
                    held = self._held()
                    seconds = time.monotonic() - begun
                    rows.append(Row(answers.total(), seconds, held, Counter(answers)))
                    tell(rows[-1])
                for shop in set(self._shops):
                    shop.store.close()
        return rows

    def _send(self, count: int) -> Counter[str]:
        return Counter(random.choice(self._shops).request() for _ in range(count))

    def _held(self) -> Held:
        """Return what the process holds, once threads and connections that end have ended."""
        gc.collect()
        found, since = self._open(), time.monotonic()
        deadline = since + LONGEST_WAIT
        while self._proxy is not None and time.monotonic() < min(since + 0.5, deadline):
            time.sleep(0.05)
            if (now := self._open()) != found:
                found, since = now, time.monotonic()
        return Held(_resident(), *found)

    def _open(self) -> tuple[int, int, int]:
        connections = self._proxy.connections if self._proxy is not None else 0
        return len(os.listdir("/dev/fd")), threading.active_count(), connections


@contextmanager
def soak_on(uri: str | None) -> Iterator[Soak]:
    """Yield a soak of three shops; without a URI of a server, of two in memory."""
    clock = Clock()
    memory = {"mongodb_session_db": "memory"} | SETTINGS
    with ExitStack() as stack:
        stores = [
            MongoStore(memory | {"session_sealed": sealed}, client=memory_client(), clock=clock)
            for sealed in ("false", "true")
        ]
        shops = [(7, Shop(stores[0], clock)), (2, Shop(stores[1], clock))]
        proxy = None
        if uri is not None:
            client: MongoClient[Any] = stack.enter_context(MongoClient(uri))
            database = f"soak_{secrets.token_hex(4)}"
            stack.callback(client.drop_database, database)
            client.admin.command("ping")
            proxy = stack.enter_context(before(client, Proxy))
            place = {"mongodb_session_db": database, "mongodb_host": proxy.uri}
            store = MongoStore(memory | place, clock=clock)
            stack.callback(store.close)
            store.ensure_indexes()
            shops.append((1, Shop(store, clock, proxy)))
        yield Soak(shops, proxy)


# The table.

HEADS = ("requests", "seconds", "memory MiB", "descriptors", "threads", "connections")


def line_of(row: Row) -> str:
    held = row.held
    cells = [f"{row.requests:,}", f"{row.seconds:.0f}", f"{held.memory / 1024**2:.1f}"]
    cells += [str(held.descriptors), str(held.threads), str(held.connections)]
    return "  ".join(f"{cell:>{len(head)}}" for cell, head in zip(cells, HEADS, strict=True))


def verdict(rows: Sequence[Row]) -> list[str]:
    """Return what is wrong, in words; nothing if all is flat and every answer was due."""
    wrong = [f"The {name} grow." if name != "memory" else "Memory grows." for name in grown(rows)]
    strange = {answer: n for answer, n in rows[-1].answers.items() if answer not in EXPECTED}
    return wrong + [f"{n:,} requests ended in {answer}." for answer, n in strange.items()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--server", choices=[*SERVERS, "none"], help="in place of MONGODB_URI")
    options = parser.parse_args(arguments)
    try:
        with ExitStack() as stack:
            uri = None if options.server else os.environ.get("MONGODB_URI")
            if uri is None and options.server != "none":
                uri = stack.enter_context(SERVERS[options.server or "embedded"]())
            soak = stack.enter_context(soak_on(uri))
            print("  ".join(HEADS), flush=True)
            rows = soak.run(options.requests, lambda row: print(line_of(row), flush=True))
    except UnavailableError as error:
        print(f"Skipped: {error}")
        return 0
    answers = ", ".join(f"{n:,} {answer}" for answer, n in sorted(rows[-1].answers.items()))
    print(f"Answers: {answers}.")
    wrong = verdict(rows)
    print("\n".join(wrong or ["All is flat from the second tenth on."]))
    return 1 if wrong else 0


if __name__ == "__main__":
    tool.run(main, "soak")

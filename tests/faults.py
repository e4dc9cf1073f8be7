"""Break a real server in every way that one machine allows, and see what each page makes of it.

`python -m tests.faults` starts servers of its own and breaks them under every page; then it kills
one so many times in the midst of writing (`--cycles 100`), and counts what a hundred faults leave
behind. It prints a table, and ends with 1 if any cell is not as it must be. The cells are also
tests, in `test_faults.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from mongosession_wsgi import MongoStore, Session, SessionMiddleware, StoreError
from mongosession_wsgi.document import id_of
from mongosession_wsgi.embedded import EmbeddedServer

from . import tool
from .proxy import Proxy
from .wsgi import KEY, Browser, Response, conforming

TIMEOUT = 5.0
"""The package's own `timeoutMS`, in seconds.

The driver looks at its clock every half second while it waits for a server. With this timeout that
is the tenth that the contract allows; with a shorter one it would be more.
"""
SECOND_CHANCE = 3.0
"""The least timeout of a fault that one repetition mends, for that waits for a heartbeat first."""
ALLOWANCE = 0.25
"""Seconds that a busy machine may take to let a thread run whose time has come."""
LONGEST_WAIT = 60.0
"""Seconds after which something hangs, rather than being slow."""
DATABASE = "faults"
CROWD = 20
POOL = 4

_SECRET = re.compile(r"(?<![\w-])[\w-]{43}(?![\w-])")


# What is broken.


class Server(Enum):
    """The servers that the faults need, as options of the embedded one."""

    REPLICA_SET = ("--enable-test-commands", "--sync-on-commit")
    STANDALONE = ("--enable-test-commands", "--sync-on-commit", "--standalone")
    WITH_USERS = ("--auth",)


class Rig:
    """A server, a proxy in front of it, and a client that looks at what is stored."""

    def __init__(self, kind: Server, folder: Path, timeout: float) -> None:
        self.timeout = timeout
        self.server = EmbeddedServer(folder)
        self._login: dict[str, Any] = {}
        if kind is Server.WITH_USERS:
            self._make_users()
        self.server.options = kind.value
        self.server.start()
        self.proxy = Proxy(("127.0.0.1", self.server.port))
        self.client: MongoClient[Any] = MongoClient(
            self.server.uri, tz_aware=True, serverMonitoringMode="poll", **self._login
        )
        self.stored = self.client[DATABASE]["sessions"]
        settings = {"mongodb_host": self.server.uri, "mongodb_session_db": DATABASE}
        self.store = MongoStore(settings, client=self.client)

    def settings(self, timeout: float, **more: Any) -> dict[str, Any]:
        """Return the settings of an application that speaks to the server through the proxy."""
        return {
            "mongodb_host": self.proxy.uri,
            "mongodb_timeout_ms": str(round(timeout * 1000)),
            "mongodb_session_db": DATABASE,
            **more,
        }

    def begin(self) -> str:
        """Return the token of a new session that has something in it."""
        token = self.store.create({"base": 1}).token
        assert token is not None
        return token

    def age_mark(self, token: str, seconds: float) -> None:
        """Make the mark of a session that was regenerated away so much older."""
        mark = {"_id": id_of(token), "data": {"$exists": False}}
        earlier = {"$subtract": ["$expires_at", round(seconds * 1000)]}
        self.stored.update_one(mark, [{"$set": {"expires_at": earlier}}])

    def close(self) -> None:
        self.proxy.close()
        self.client.close()
        self.server.kill()

    def _make_users(self) -> None:
        client: MongoClient[Any]
        with self.server, MongoClient(self.server.uri) as client:
            resource = {"db": DATABASE, "collection": ""}
            allowed = {"resource": resource, "actions": ["find", "insert", "update", "remove"]}
            client.admin.command("createRole", "noIndexes", privileges=[allowed], roles=[])
            roles = {"root": "root", "indexer": "root", "indexless": "noIndexes"}
            for user, role in roles.items():
                client.admin.command("createUser", user, pwd=f"{user}-password", roles=[role])
        self._login = {"username": "root", "password": "root-password"}


Strike = Callable[[Rig], AbstractContextManager[None]]


@contextmanager
def _killed(rig: Rig) -> Iterator[None]:
    rig.server.kill()
    yield
    rig.server.start()


@contextmanager
def _killed_and_restarted(rig: Rig) -> Iterator[None]:
    rig.server.kill()
    rig.server.start()
    yield


@contextmanager
def _stopped(rig: Rig) -> Iterator[None]:
    os.kill(rig.server.pid, signal.SIGSTOP)
    try:
        # The signal may come later than the next command, and to one thread after the other.
        wait_until(lambda: _has_stopped(rig.server.pid))
        yield
    finally:
        os.kill(rig.server.pid, signal.SIGCONT)


def _has_stopped(pid: int) -> bool:
    """Say whether all threads of a process stand still; True where no kernel tells."""
    states = [one.read_text() for one in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(state.rpartition(")")[2].split()[0] == "T" for state in states)


def _delayed(share: float) -> Strike:
    """Return a delay of every command by so much of the timeout."""
    return lambda rig: _by_proxy(lambda proxy: proxy.delay(rig.timeout * share))(rig)


def _delayed_a_little(rig: Rig) -> AbstractContextManager[None]:
    return _by_proxy(lambda proxy: proxy.delay(0.05))(rig)


@contextmanager
def _nothing(_: Rig) -> Iterator[None]:
    yield


def _by_proxy(switch: Callable[[Proxy], None]) -> Strike:
    """Return the fault that the proxy makes; it must meet something."""

    @contextmanager
    def strike(rig: Rig) -> Iterator[None]:
        struck = rig.proxy.struck
        switch(rig.proxy)
        try:
            yield
        finally:
            rig.proxy.forward()
        assert rig.proxy.struck > struck, "the fault met nothing"

    return strike


def _by_server(mode: Any, **data: Any) -> Strike:
    """Return the fault that the server's `failCommand` makes."""
    commands = ["find", "insert", "update", "delete", "findAndModify"]
    failing = {"failCommands": commands, **data}

    @contextmanager
    def strike(rig: Rig) -> Iterator[None]:
        rig.client.admin.command("configureFailPoint", "failCommand", mode=mode, data=failing)
        try:
            yield
        finally:
            rig.client.admin.command("configureFailPoint", "failCommand", mode="off")

    return strike


# What must become of a page.


class Outcome(Enum):
    """How a page may end, as far as its visitor can tell."""

    WORKS = "200, and done"
    FAILS = "503, and nothing is changed"
    UNKNOWN = "503, but the server may have done it, or a part of it: its answer was lost"
    REPEATED = "200, and done, with the first command sent twice"
    WITHOUT = "200, and logged in without the data, which were in the answer that was lost"


@dataclass(frozen=True)
class Page:
    """What an application does with its session, and what is stored after that, by outcome."""

    name: str
    use: Callable[[Session, str], object] | None
    commands: tuple[str, ...]
    done: str
    unknown: tuple[str, ...] = ()
    undone: str = "kept"
    cookie: str = ""
    is_first_visit: bool = False

    def allowed(self, outcome: Outcome) -> tuple[str, ...]:
        """Return what may be stored afterwards."""
        match outcome:
            case Outcome.FAILS:
                return (self.undone,)
            case Outcome.UNKNOWN:
                return (self.undone, *self.unknown)
            case Outcome.WITHOUT:
                return self.unknown
        return (self.done,)


def _write(session: Session, mark: str) -> None:
    session["mark"] = mark


UNTOUCHED = Page("without session", None, (), "kept")
READS = Page("reads", lambda session, mark: session.copy(), ("find",), "kept")
WRITES = Page("writes", _write, ("update",), "written", ("written",))
LOGS_IN = Page(
    "logs in",
    lambda session, mark: session.login(mark),
    ("findAndModify", "insert"),
    "moved",
    ("ended", "moved"),
    cookie="set",
)
LOGS_OUT = Page(
    "logs out", lambda session, mark: session.destroy(), ("delete",), "gone", ("gone",), "kept", "x"
)
FIRST_VISIT = Page(
    "first visit", _write, ("insert",), "stored", ("stored",), "none", "set", is_first_visit=True
)
PAGES = [UNTOUCHED, READS, WRITES, LOGS_IN, LOGS_OUT, FIRST_VISIT]


class When(Enum):
    """When a fault strikes, and for how long."""

    LASTING = "all pages are visited at once while it lasts"
    EACH_PAGE = "again before every page"
    BETWEEN = "after every page has loaded its session, and before any commits"


@dataclass(frozen=True)
class Fault:
    """A way to break what is between an application and its data, and what is to come of it."""

    name: str
    strike: Strike
    outcome: Outcome = Outcome.FAILS
    when: When = When.LASTING
    but: Mapping[str, Outcome] = field(default_factory=dict)
    """Pages with another outcome."""
    server: Server = Server.REPLICA_SET
    settings: Mapping[str, str] = field(default_factory=dict)
    mended: Mapping[str, str] = field(default_factory=dict)
    """The settings with which it works again, where only they can mend it."""
    is_cold: bool = False
    """The application has not spoken to the server before."""
    crowd: int = 0
    """So many more readers hold the pool before the pages are visited."""
    log: str = ""
    """What every ERROR in the log must tell the operator."""

    def timeout(self, rig: Rig) -> float:
        return max(rig.timeout, SECOND_CHANCE if self.when is When.EACH_PAGE else 0)

    def outcome_of(self, page: Page) -> Outcome:
        return self.but.get(page.name, Outcome.WORKS if page is UNTOUCHED else self.outcome)


def _faults_of_a_command(name: str, **data: Any) -> list[Fault]:
    once = Fault(
        f"failCommand {name}, once",
        _by_server({"times": 1}, **data),
        Outcome.REPEATED,
        When.EACH_PAGE,
    )
    return [once, Fault(f"failCommand {name}, always", _by_server("alwaysOn", **data))]


def _user(name: str, password: str | None = None) -> dict[str, str]:
    password = password or f"{name}-password"
    return {"mongodb_username": name, "mongodb_password": password, "mongodb_db_name": "admin"}


_READ_BEFORE = {READS.name: Outcome.WORKS}
_LOST_ONCE = _by_proxy(lambda proxy: proxy.cut_after_request(once=True))

FAULTS = [
    Fault("server down at start", _killed, is_cold=True, log="MongoDB closes the connection"),
    Fault("killed between load and commit", _killed, when=When.BETWEEN, but=_READ_BEFORE),
    Fault("killed and restarted", _killed_and_restarted, Outcome.WORKS),
    Fault("stopped, then continued", _stopped, Outcome.UNKNOWN, log="did not answer in time"),
    Fault("refuses connections", _by_proxy(Proxy.refuse), log="nothing listens"),
    Fault("accepts, says nothing", _by_proxy(Proxy.silent), log="did not answer in time"),
    Fault("delays by a tenth", _delayed(0.1), Outcome.WORKS),
    Fault(
        "delays by more than timeoutMS",
        _delayed(1.5),
        Outcome.UNKNOWN,
        log="did not answer in time",
    ),
    Fault(
        "cut in mid-reply, once",
        _by_proxy(lambda proxy: proxy.cut_reply_after(20, once=True)),
        Outcome.REPEATED,
        When.EACH_PAGE,
    ),
    Fault(
        "cut in mid-reply, always",
        _by_proxy(lambda proxy: proxy.cut_reply_after(20)),
        Outcome.UNKNOWN,
    ),
    Fault("answer lost, once", _LOST_ONCE, Outcome.REPEATED, When.EACH_PAGE),
    Fault("answer lost, always", _by_proxy(Proxy.cut_after_request), Outcome.UNKNOWN),
    Fault(
        "answer lost, once, standalone",
        _LOST_ONCE,
        Outcome.REPEATED,
        When.EACH_PAGE,
        {LOGS_IN.name: Outcome.WITHOUT},
        Server.STANDALONE,
    ),
    Fault(
        "reset, once",
        _by_proxy(lambda proxy: proxy.reset(once=True)),
        Outcome.REPEATED,
        When.EACH_PAGE,
    ),
    Fault("reset, always", _by_proxy(Proxy.reset)),
    Fault("garbage, once", _by_proxy(lambda proxy: proxy.garbage(once=True)), when=When.EACH_PAGE),
    Fault("garbage, always", _by_proxy(Proxy.garbage)),
    *_faults_of_a_command("10107 NotWritablePrimary", errorCode=10107),
    *_faults_of_a_command("11602 InterruptedDueToReplStateChange", errorCode=11602),
    *_faults_of_a_command("91 ShutdownInProgress", errorCode=91),
    *_faults_of_a_command("189 PrimarySteppedDown", errorCode=189),
    *_faults_of_a_command("closeConnection", closeConnection=True),
    Fault(
        "wrong password",
        _nothing,
        when=When.EACH_PAGE,
        server=Server.WITH_USERS,
        settings=_user("root", "not-the-password"),
        mended=_user("root"),
        is_cold=True,
        log="refused the login",
    ),
    Fault(
        "no right to create indexes",
        _nothing,
        Outcome.WORKS,
        server=Server.WITH_USERS,
        settings=_user("indexless"),
        is_cold=True,
    ),
    Fault(
        f"pool of {POOL} held by {CROWD} threads",
        _by_proxy(Proxy.silent),
        settings={"mongodb_max_pool_size": str(POOL)},
        crowd=CROWD,
        log="did not answer in time",
    ),
]


# What a visitor meets.


class Log(logging.Handler):
    """Keeps what the package logs of the visit that is under way in a thread, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        self._visit = threading.local()

    @contextmanager
    def visit(self) -> Iterator[list[logging.LogRecord]]:
        self._visit.records = records = list[logging.LogRecord]()
        try:
            yield records
        finally:
            self._visit.records = None

    def emit(self, record: logging.LogRecord) -> None:
        records = getattr(self._visit, "records", None)
        if records is not None:
            records.append(record)


LOG = Log()


class Gates:
    """Where visits wait for a fault that strikes in their midst, and it for their end."""

    def __init__(self, visits: int) -> None:
        self.loaded, self.struck, self.done = (threading.Barrier(visits + 1) for _ in range(3))


@dataclass
class Visit:
    """A request for a page, and what came of it."""

    page: Page
    browser: Browser
    gates: Gates | None = None
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    token: str = ""
    response: Response = field(init=False, repr=False)
    seconds: float = 0.0
    raised: StoreError | None = None
    log: list[logging.LogRecord] = field(default_factory=list, repr=False)
    stored: str = ""
    _began_at: float = 0.0

    def __post_init__(self) -> None:
        self.token = self.browser.token

    def __call__(self) -> Visit:
        self._began_at, self.raised = time.monotonic(), None
        with LOG.visit() as self.log:
            self.response = self.browser.get("/", **{"faults.visit": self})
        self.seconds = time.monotonic() - self._began_at
        if self.gates is not None:
            self.gates.done.wait(LONGEST_WAIT)
        return self

    def answer(self, session: Session) -> None:
        """Be the application of this request."""
        if self.gates is not None:
            if self.page is not UNTOUCHED:
                len(session)
            self.gates.loaded.wait(LONGEST_WAIT)
            self.gates.struck.wait(LONGEST_WAIT)
            self._began_at = time.monotonic()
        if self.page.use is not None:
            try:
                self.page.use(session, self.mark)
            except StoreError as error:
                self.raised = error
                raise

    @property
    def status(self) -> int:
        return int(self.response.status[:3])

    @property
    def cookie(self) -> str:
        """What the response did with the browser's cookie: "set", "x" for expired, or ""."""
        token = self.response.token
        return "" if token is None else "set" if token else "x"


def app_of(settings: Mapping[str, Any]) -> tuple[SessionMiddleware, MongoStore]:
    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["faults.visit"].answer(environ[KEY])
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"answer"]

    store = MongoStore(settings)
    return SessionMiddleware(conforming(answer), settings, store=store), store


def stored_after(rig: Rig, visit: Visit) -> str:
    """Say what became of the visitor's session, and of the one that the page was to make."""
    made = list(rig.stored.find({"$or": [{"owner": visit.mark}, {"data.mark": visit.mark}]}))
    if visit.page.is_first_visit:
        return {0: "none", 1: "stored"}.get(len(made), f"{len(made)} times")
    found = rig.stored.find_one({"_id": id_of(visit.token)})
    if found is None:
        return "gone"
    if "data" not in found:
        whole = [new for new in made if new["owner"] == visit.mark and new["data"] == {"base": 1}]
        return {0: "ended", 1: "moved"}.get(len(whole), f"moved {len(whole)} times")
    if found["data"] == {"base": 1} and not made:
        return "kept"
    return "written" if found["data"] == {"base": 1, "mark": visit.mark} else "wrong"


# What is wrong with that.


def wrong_with(fault: Fault, visit: Visit) -> Iterator[str]:
    """Yield how a visit under a fault differs from what the contract says of it."""
    page, outcome = visit.page, fault.outcome_of(visit.page)
    is_failure = outcome in (Outcome.FAILS, Outcome.UNKNOWN)
    if visit.status != (503 if is_failure else 200):
        yield f"status {visit.status}"
    if visit.stored not in page.allowed(outcome):
        yield f"stored: {visit.stored}, not {' or '.join(page.allowed(outcome))}"
    due = "" if is_failure else page.cookie
    if visit.cookie != due:
        yield f"cookie: {visit.cookie or 'none'}, not {due or 'none'}"
    if visit.cookie == "set" and visit.response.token == visit.token:
        yield "the old token was handed out again"
    if is_failure:
        yield from _wrong_with_failure(visit)
    elif any(record.levelno >= logging.ERROR for record in visit.log):
        yield "an ERROR in the log, but no 503"
    if page is UNTOUCHED and visit.response.commands:
        yield f"commands: {visit.response.commands}"
    repeated = [*page.commands[:1], *page.commands]
    if outcome is Outcome.REPEATED and visit.response.commands not in (
        repeated,
        [*repeated, "find"],
    ):
        yield f"commands: {visit.response.commands}, not {repeated}"
    yield from _leaked(visit)


def _wrong_with_failure(visit: Visit) -> Iterator[str]:
    if visit.response.header("Retry-After") is None:
        yield "no Retry-After"
    if visit.page is READS and visit.raised is None:
        yield "the application got no StoreError"
    errors = [record for record in visit.log if record.levelno >= logging.ERROR]
    if len(errors) != 1:
        yield f"{len(errors)} ERRORs in the log"
    for record in errors:
        cause = record.exc_info[1].__cause__ if record.exc_info and record.exc_info[1] else None
        if not isinstance(cause, PyMongoError):
            yield f"the cause is {cause!r}"


def _leaked(visit: Visit) -> Iterator[str]:
    text = "\n".join(LOG.format(record) for record in visit.log)
    public = {id_of(visit.token)}
    if set(_SECRET.findall(text)) - public:
        yield "a token in the log"
    if re.search(r"\S-password", text):
        yield "a password in the log"


def done_after(rig: Rig, visit: Visit) -> bool:
    """Say whether the page did what its visitor wanted, as the visitor's next request would see."""
    page, token = visit.page, visit.browser.token
    session = rig.store.retrieve(token) if token else None
    if page is LOGS_OUT:
        return session is None
    if session is None:
        return False
    match page.done:
        case "moved":
            return session.owner == visit.mark
        case "kept":
            return "base" in session
    return session.get("mark") == visit.mark


# One row.


@dataclass
class Row:
    """What a fault made of the pages; the visits under it, and those after it."""

    fault: Fault
    timeout: float
    during: list[Visit] = field(default_factory=list)
    after: list[Visit] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def of(self, page: Page) -> list[Visit]:
        return [visit for visit in self.during if visit.page is page]

    def slow(self) -> list[str]:
        """Return what took longer than the contract lets it; only figures ask."""
        found = []
        for visit in self.during:
            limit = ALLOWANCE + (0 if visit.page is UNTOUCHED else self.timeout * 1.1)
            if visit.seconds > limit:
                found.append(f"{visit.page.name}: {visit.seconds:.2f} s, limit {limit:.2f} s")
        return found


def run(rig: Rig, fault: Fault) -> Row:
    """Visit all pages under a fault, then once more without it, and judge."""
    row = Row(fault, fault.timeout(rig))
    app, store = app_of(rig.settings(row.timeout, **fault.settings))
    with closing(store):
        if not fault.is_cold:
            _warm(rig, app)
        gates = Gates(len(PAGES)) if fault.when is When.BETWEEN else None
        visits = [Visit(page, _browser(rig, app, page), gates) for page in PAGES]
        crowd = [Visit(READS, _browser(rig, app, READS)) for _ in range(fault.crowd)]
        row.during = visits + crowd
        _visit_under(rig, fault, visits, crowd)
        _judge(rig, row)
        if not fault.mended:
            _visit_after(rig, row, app)
    if fault.mended:
        app, store = app_of(rig.settings(row.timeout, **fault.mended))
        with closing(store):
            _visit_after(rig, row, app)
    return row


def _browser(rig: Rig, app: Any, page: Page) -> Browser:
    return Browser(app, "" if page.is_first_visit else f"mongosession={rig.begin()}")


def _warm(rig: Rig, app: Any) -> None:
    """Open a connection for every page, by visits that overlap."""
    Visit(FIRST_VISIT, Browser(app))()
    with _delayed_a_little(rig):
        _all_at_once([Visit(READS, _browser(rig, app, READS)) for _ in PAGES])


def _visit_under(rig: Rig, fault: Fault, visits: list[Visit], crowd: list[Visit]) -> None:
    match fault.when:
        case When.EACH_PAGE:
            for visit in visits:
                with _nothing(rig) if visit.page is UNTOUCHED else fault.strike(rig):
                    visit()
        case When.BETWEEN:
            gates = visits[0].gates
            assert gates is not None
            with _running(visits):
                gates.loaded.wait(LONGEST_WAIT)
                with fault.strike(rig):
                    gates.struck.wait(LONGEST_WAIT)
                    gates.done.wait(LONGEST_WAIT)
        case When.LASTING:
            struck = rig.proxy.struck
            with fault.strike(rig), _running(crowd):
                if crowd:
                    wait_until(lambda: rig.proxy.struck >= struck + POOL)
                _all_at_once(visits)


@contextmanager
def _running(visits: list[Visit]) -> Iterator[None]:
    """Let visits go on in threads; wait for them, and raise what they raise."""
    with ThreadPoolExecutor(max(len(visits), 1)) as threads:
        runs = [threads.submit(visit) for visit in visits]
        yield
        for run in runs:
            run.result(LONGEST_WAIT)


def _all_at_once(visits: list[Visit]) -> None:
    with _running(visits):
        pass


def _judge(rig: Rig, row: Row) -> None:
    for visit in row.during:
        visit.stored = stored_after(rig, visit)
        row.wrong += [f"{visit.page.name}: {what}" for what in wrong_with(row.fault, visit)]
    logged = [record.levelno for visit in row.during for record in visit.log]
    said = [record.getMessage() for visit in row.during for record in visit.log]
    if not any(row.fault.log in message for message in said) and row.fault.log:
        row.wrong.append(f"the log does not say {row.fault.log!r}")  # The first page's must.
    if logging.WARNING in logged:
        row.wrong.append(f"a warning in the log: {said[logged.index(logging.WARNING)]}")


def _visit_after(rig: Rig, row: Row, app: Any) -> None:
    """Let every visitor try again: the next request works.

    A login that comes sooner than `timeoutMS` after one that failed in its middle is dropped, for
    the first may still be under way; so that one is made to be longer ago.
    """
    for visit in row.during[: len(PAGES)]:
        if visit.stored == "ended":
            rig.age_mark(visit.token, row.timeout)
        again = Visit(visit.page, Browser(app, visit.browser.cookie), mark=visit.mark)()
        row.after.append(again)
        if again.status != 200:
            row.wrong.append(f"{visit.page.name}, tried again: status {again.status}")
        elif not done_after(rig, again):
            row.wrong.append(f"{visit.page.name}, tried again: 200, but not done")


def wait_until(condition: Callable[[], bool], seconds: float = LONGEST_WAIT) -> None:
    """Poll until what other threads do is done; raise `TimeoutError` if it hangs."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it hangs")
        time.sleep(0.01)


@contextmanager
def rigs(timeout: float) -> Iterator[Callable[[Server], Rig]]:
    """Yield what starts each kind of server once, when first asked for it."""
    logger = logging.getLogger("mongosession_wsgi")
    with ExitStack() as stack:
        logger.addHandler(LOG)
        stack.callback(logger.removeHandler, LOG)
        started: dict[Server, Rig] = {}

        def rig_of(kind: Server) -> Rig:
            if kind not in started:
                folder = Path(stack.enter_context(TemporaryDirectory()))
                started[kind] = stack.enter_context(closing(Rig(kind, folder, timeout)))
            return started[kind]

        yield rig_of


# What is acknowledged stays.


@dataclass
class Durability:
    """What 200 was answered for, and how much of it was not there after a SIGKILL."""

    cycles: int = 0
    acknowledged: int = 0
    unanswered: int = 0
    lost: int = 0
    seconds: float = 0.0


class Writer(threading.Thread):
    """A visitor who counts in a session, until a request fails or `stop` is set."""

    def __init__(self, app: Any, stop: threading.Event) -> None:
        super().__init__(name="writer", daemon=True)
        self.acknowledged = self.unanswered = 0
        self.begun = threading.Event()
        self.browser = Browser(app)
        self._stop_event = stop

    def run(self) -> None:
        while not self._stop_event.is_set():
            visit = Visit(WRITES, self.browser, mark=str(self.acknowledged + 1))()
            self.acknowledged += visit.status == 200
            self.begun.set()
            if visit.status != 200:
                self.unanswered += 1
                return

    def lost(self, rig: Rig) -> int:
        """Return how many of the writes that were answered with 200 are not there."""
        session = rig.store.retrieve(self.browser.token)
        return (
            self.acknowledged
            if session is None
            else max(self.acknowledged - int(session["mark"]), 0)
        )


def durability(rig: Rig, cycles: int, watch: Callable[[str], object] = str) -> Durability:
    """Kill the server in the midst of writes, so many times, and count what is not there after."""
    found, began_at = Durability(), time.monotonic()
    app, store = app_of(rig.settings(3.0))
    with closing(store):
        for found.cycles in range(1, cycles + 1):
            watch(f"SIGKILL {found.cycles} of {cycles}")
            stop = threading.Event()
            writers = [Writer(app, stop) for _ in range(3)]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.begun.wait(LONGEST_WAIT)
            login, logout = (Visit(page, _browser(rig, app, page)) for page in (LOGS_IN, LOGS_OUT))
            last = [login(), logout()]
            with _killed(rig):
                stop.set()
            for writer in writers:
                writer.join(LONGEST_WAIT)
                found.acknowledged += writer.acknowledged
                found.unanswered += writer.unanswered
                found.lost += writer.lost(rig)
            found.acknowledged += sum(visit.status == 200 for visit in last)
            found.lost += sum(visit.status == 200 and not done_after(rig, visit) for visit in last)
    found.seconds = time.monotonic() - began_at
    return found


# Nothing is left behind.


@dataclass
class Leaks:
    """What there was before and after so many faults."""

    faults: int
    before: dict[str, int]
    after: dict[str, int]
    next_status: int

    @property
    def leaked(self) -> dict[str, int]:
        return {
            name: self.after[name] - count
            for name, count in self.before.items()
            if self.after[name] > count
        }


_SHORT_FAULTS: list[Callable[[Proxy], None]] = [
    lambda proxy: proxy.cut_after_request(once=True),
    lambda proxy: proxy.cut_reply_after(20, once=True),
    lambda proxy: proxy.reset(once=True),
    lambda proxy: proxy.garbage(once=True),
    Proxy.refuse,
    Proxy.silent,
    Proxy.garbage,
]


def leaks(rig: Rig, faults: int, watch: Callable[[str], object] = str) -> Leaks:
    """Count connections, threads and descriptors before and after so many faults.

    Without a `connectTimeoutMS`, the driver's monitor waits 20 s for a server that said nothing.
    """
    _settled(rig)
    app, store = app_of(rig.settings(1.0, mongodb_connect_timeout_ms="500"))
    with closing(store):
        Visit(WRITES, _browser(rig, app, WRITES))()
        before, pages = _settled(rig), cycle([READS, WRITES, LOGS_IN, LOGS_OUT, FIRST_VISIT])
        for number, switch in enumerate(islice(cycle(_SHORT_FAULTS), faults), 1):
            watch(f"fault {number} of {faults}")
            visit = Visit(page := next(pages), _browser(rig, app, page))
            switch(rig.proxy)
            visit()
            rig.proxy.forward()
        last = Visit(WRITES, _browser(rig, app, WRITES))()
        return Leaks(faults, before, _settled(rig), last.status)


def _settled(rig: Rig) -> dict[str, int]:
    """Return what is open, once that has been the same for a second: threads take time to end."""
    found, since = _open(rig), time.monotonic()

    def is_settled() -> bool:
        nonlocal found, since
        if (now := _open(rig)) != found:
            found, since = now, time.monotonic()
        return time.monotonic() - since > 1

    wait_until(is_settled)
    return found


def _open(rig: Rig) -> dict[str, int]:
    return {
        "connections": rig.proxy.connections,
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/dev/fd")),
    }


# The table.


def table(rows: list[Row], *, is_coloured: bool = False) -> str:
    """Return the rows aligned; what is wrong is red, if there are colours."""
    heads = ["fault", *(page.name for page in PAGES), "afterwards"]
    lines = [
        [row.fault.name, *(_cell(row.of(page)) for page in PAGES), _after(row)] for row in rows
    ]
    widths = [max(len(line[place]) for line in [heads, *lines]) for place in range(len(heads))]
    texts = []
    for row, line in zip([None, *rows], [heads, *lines], strict=True):
        cells = [f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)]
        if is_coloured and row is not None:
            cells = _coloured(row, cells)
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)


def _cell(visits: list[Visit]) -> str:
    """Return the status, the worst time, what is stored, and what became of the cookie."""
    worst = max(visits, key=lambda visit: visit.seconds)
    return f"{worst.status} {worst.seconds:.2f} {worst.stored} {_COOKIES[worst.cookie]}".rstrip()


def _after(row: Row) -> str:
    worst = max(row.after, key=lambda visit: (visit.status, visit.seconds))
    return f"{worst.status} {worst.seconds:.2f}"


def _coloured(row: Row, cells: list[str]) -> list[str]:
    wrong = row.wrong + row.slow()
    for place, page in enumerate(PAGES, 1):
        is_wrong = any(what.startswith(f"{page.name}:") for what in wrong)
        cells[place] = f"\033[{31 if is_wrong else 32}m{cells[place]}\033[0m"
    is_wrong = any("tried again" in what for what in wrong)
    cells[-1] = f"\033[{31 if is_wrong else 32}m{cells[-1]}\033[0m"
    return cells


_COOKIES = {"": "", "set": "+", "x": "-"}
_LEGEND = """\
Each cell: status, worst time in seconds, what is stored then, + cookie set, - cookie expired.
kept: as it was; written: with the change; moved: under a new token; ended: the old token is dead,
and there is no new one; gone: deleted; none, stored: no session, one. Afterwards: the same visitors
try again without the fault, when the timeout is over, and it is done; the worst time. Asserted as
well: each 503 has Retry-After, no Set-Cookie, and one ERROR in the log, with no token in it; a page
without session sends no command; what is mended by repeating it is sent twice, and done once."""


def _figures(row: Row) -> dict[str, Any]:
    pages = {
        visit.page.name: {
            "status": visit.status,
            "seconds": round(max(one.seconds for one in row.of(visit.page)), 3),
            "cookie": visit.cookie,
            "stored": visit.stored,
            "commands": visit.response.commands,
            "again": {"status": again.status, "seconds": round(again.seconds, 3)},
        }
        for visit, again in zip(row.during, row.after, strict=False)
    }
    return {"fault": row.fault.name, "pages": pages, "wrong": row.wrong + row.slow()}


def _watch(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


@dataclass
class Results:
    """All that one run has found."""

    timeout: float
    rows: list[Row]
    durability: Durability
    leaks: Leaks
    seconds: float

    @property
    def wrong(self) -> list[str]:
        found = [
            f"{row.fault.name}: {what}" for row in self.rows for what in row.wrong + row.slow()
        ]
        if self.durability.lost:
            found.append(f"{self.durability.lost} acknowledged writes are lost")
        found += [f"{count} {name} leaked" for name, count in self.leaks.leaked.items()]
        if self.leaks.next_status != 200:
            found.append(f"after the faults: status {self.leaks.next_status}")
        return found

    def summary(self) -> Iterator[str]:
        visits = [visit for row in self.rows for visit in row.during]
        yield (
            f"{len(self.rows)} faults, {len(visits)} visits, the slowest took "
            f"{max(visit.seconds for visit in visits):.2f} s. Allowed: timeoutMS, which is "
            f"{self.timeout} s, a tenth, and {ALLOWANCE} s for a busy machine to get round to it."
        )
        durable, left = self.durability, self.leaks
        yield (
            f"{durable.cycles} times SIGKILL in the midst of writes, and restart: "
            f"{durable.acknowledged} were answered with 200, {durable.lost} of them are lost; "
            f"{durable.unanswered} were answered with 503."
        )
        counts = [f"{name} {count}, {left.after[name]}" for name, count in left.before.items()]
        yield (
            f"Before and after {left.faults} faults: {'; '.join(counts)}. "
            f"Next request: {left.next_status}."
        )
        yield f"{self.seconds:.0f} s in all."


def run_all(timeout: float, cycles: int) -> Results:
    began_at = time.monotonic()
    with rigs(timeout) as rig_of:
        rows = []
        for fault in FAULTS:
            _watch(fault.name)
            rows.append(run(rig_of(fault.server), fault))
        durable = durability(rig_of(Server.REPLICA_SET), cycles, _watch)
        left = leaks(rig_of(Server.REPLICA_SET), 100, _watch)
    _watch("")
    return Results(timeout, rows, durable, left, time.monotonic() - began_at)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--cycles", type=int, default=100, help="how often to kill a server")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="timeoutMS, in seconds")
    parser.add_argument("--json", action="store_true", help="print no table but its figures")
    options = parser.parse_args(arguments)
    results = run_all(options.timeout, options.cycles)
    if options.json:
        figures = {
            "rows": [_figures(row) for row in results.rows],
            "durability": vars(results.durability),
            "leaks": vars(results.leaks),
            "wrong": results.wrong,
        }
        print(json.dumps(figures, indent=2))
    else:
        print(table(results.rows, is_coloured=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
        print("", _LEGEND, "", *results.summary(), sep="\n")
        for what in results.wrong:
            print(f"WRONG {what}")
    return 1 if results.wrong else 0


if __name__ == "__main__":
    tool.run(main, "faults")

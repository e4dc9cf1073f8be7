"""Put servers of several processes under load, kill their workers meanwhile, count what fails.

`python -m tests.load --requests 10000` sends so many requests in all, from parallel clients that
keep their cookies, to gunicorn with its kinds of workers, waitress and uWSGI, with the sessions on
the server of `MONGODB_URI` or on an embedded one, and prints a table. A server gets some more if
not all of its workers have answered by then, or been replaced. Ends with 1 if anything is wrong.

What gunicorn promises, and what a client owes it. On HUP new workers start before the old ones get
SIGTERM. These, and a worker that has reached `--max-requests`, accept no more, answer what they
have accepted, the last time on each connection with `Connection: close`, and have
`--graceful-timeout` seconds for it. What waits in the backlog is for the other workers, because all
accept from one socket (not so with `--reuse-port`). A connection on which nothing is asked may be
closed at any time (RFC 9112, section 9.5), so a client that finds it closed opens another one: a
reconnect, and no failure. But the requests here are POSTs, which a client must not repeat without
knowing what became of them (RFC 9110, section 9.2.2): one that was sent and got no answer, or
another one than 200, has failed. None is ever repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from http.client import HTTPConnection, HTTPException
from http.cookies import SimpleCookie
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

from pymongo import MongoClient

from mongosession_wsgi import MongoStore, SessionMiddleware
from mongosession_wsgi.embedded import EmbeddedServer

from . import tool
from .wsgi import KEY

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 4
CLIENTS = 8
REGENERATE_EVERY = 10
FORGET_EVERY = 20
"""After so many requests a client is a new visitor, without a cookie."""
CONNECT_EVERY = 5
"""After so many requests a client opens a new connection, so that all workers get some."""
LONGEST_WAIT = 60.0
"""Seconds after which something hangs, rather than being slow."""


class Fault(Enum):
    """What must not happen, and is counted."""

    FAILED = "failed"
    WRONG_COUNT = "wrong count"
    TOKEN_TWICE = "token twice"
    STRAY = "stray session"
    LOGGED = "log lines"
    MISSING = "missing workers"


# The application.


def served() -> SessionMiddleware:
    """Return the application under load: it counts the requests of each session."""
    settings = {
        "mongodb_host": os.environ["MONGODB_URI"],
        "mongodb_session_db": os.environ["LOAD_DATABASE"],
    }
    return SessionMiddleware(_count, settings)


def _count(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    session = environ[KEY]
    session["count"] = session.get("count", 0) + 1
    if environ["PATH_INFO"] == "/regenerate":
        session.regenerate()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"count": session["count"], "pid": os.getpid()}).encode()]


# The servers.


class Restart(Enum):
    """How workers are replaced under load."""

    NONE = ""
    HUP = "HUP"
    MAX_REQUESTS = "max-requests"


@dataclass(frozen=True)
class Server:
    """One way to serve the application; `command` takes the port and the number of requests."""

    name: str
    command: Callable[[int, int], list[str]]
    restart: Restart = Restart.NONE
    workers: int = WORKERS
    noise: str = ""
    """A pattern of the lines of its log that say nothing of what it serves."""
    missing: str = ""
    """Why it cannot be started here."""
    weight: int = 1
    """How many shares of all requests it gets."""

    @property
    def title(self) -> str:
        return f"{self.name}, {self.restart.value}" if self.restart.value else self.name


def servers(workers: int = WORKERS) -> list[Server]:
    """Return every way to serve that is put under load."""
    found = []
    for kind, options in _GUNICORN_WORKERS.items():
        found.append(_gunicorn(kind, options, workers))
        found.append(_gunicorn(kind, [*options, "--preload"], workers))
        found.append(_gunicorn(kind, options, workers, Restart.HUP))
        found.append(_gunicorn(kind, [*options, "--preload"], workers, Restart.MAX_REQUESTS))
    found.append(Server("waitress", _waitress, workers=1, noise=WAITRESS_NOISE))
    return [*found, _uwsgi([], workers), _uwsgi(["--lazy-apps"], workers)]


_GUNICORN_WORKERS = {"sync": [], "gthread": ["--threads", "4"], "gevent": []}

_LISTENING = (
    r"<socket\.socket fd=\d+, family=[\w.]+, type=[\w.]+, proto=0, "
    r"laddr=\('127\.0\.0\.1', \d+\)>"
)
_GUNICORN_NOISE = (
    rf"Exception ignored (in:|while finalizing socket) {_LISTENING}:?|"
    rf"ResourceWarning: unclosed {_LISTENING}"
)
"""gunicorn's workers leave it to their exit to close the socket on which they listen."""

WAITRESS_NOISE = r"WARNING:waitress\.queue:Task queue depth is \d+"
"""waitress says so, too, of a request that comes before all threads have started."""

_UWSGI_NOISE = "(?!.*(Traceback|Error|Exception|Warning:|OOPS)).*"
"""uWSGI says a lot, and has no levels."""


def _gunicorn(
    kind: str, options: list[str], workers: int, restart: Restart = Restart.NONE
) -> Server:
    is_preloaded = "--preload" in options

    def command(port: int, requests: int) -> list[str]:
        line = [sys.executable, "-W", "error", "-m"]
        if kind == "gevent" and is_preloaded:
            # The worker patches too late then: PyMongo is there already, with its `import ssl`. A
            # gunicorn.conf.py that begins with `monkey.patch_all()` does the same as this.
            line += ["gevent.monkey", "--module"]
        line += ["gunicorn", "--workers", str(workers), "--worker-class", kind]
        line += ["--bind", f"127.0.0.1:{port}", "--log-level", "warning", "--no-control-socket"]
        if restart is Restart.MAX_REQUESTS:
            most = max(1, min(200, requests // 6))
            line += ["--max-requests", str(most), "--max-requests-jitter", str(most // 4)]
        return [*line, *options, "tests.load:served()"]

    return Server(
        name=f"gunicorn {kind}{' --preload' * is_preloaded}",
        command=command,
        restart=restart,
        workers=workers,
        noise=_GUNICORN_NOISE,
        # The workers of one that replaces them at the 200th request are to get there.
        weight=3 if restart is Restart.MAX_REQUESTS else 1,
    )


def _waitress(port: int, requests: int) -> list[str]:
    # It warns of every request that waits for a thread, be it for one that is about to be free.
    code = (
        "import waitress; from tests.load import served; "
        f"waitress.serve(served(), host='127.0.0.1', port={port}, threads={2 * CLIENTS})"
    )
    return [sys.executable, "-W", "error", "-c", code]


def _uwsgi(options: list[str], workers: int) -> Server:
    beside = Path(sys.executable).parent / "uwsgi"
    program = str(beside) if beside.exists() else shutil.which("uwsgi")

    def command(port: int, requests: int) -> list[str]:
        line = [str(program), "--master", "--processes", str(workers), "--threads", "2"]
        line += ["--http-socket", f"127.0.0.1:{port}", "--virtualenv", sys.prefix]
        line += ["--need-app", "--die-on-term", "--disable-logging", "--enable-threads"]
        return [*line, *options, "--module", "tests.load:served()"]

    missing = "" if program else "uWSGI is not installed"
    name = " ".join(["uwsgi", *options])
    return Server(name, command, workers=workers, noise=_UWSGI_NOISE, missing=missing)


@contextmanager
def serving(
    server: Server, uri: str, database: str, requests: int, log: IO[bytes]
) -> Iterator[tuple[subprocess.Popen[bytes], tuple[str, int]]]:
    """Run the server, with what it says in `log`; yield it and its address."""
    environ = {"MONGODB_URI": uri, "LOAD_DATABASE": database}
    environ |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    command = server.command(address[1], requests)
    running = subprocess.Popen(command, env=os.environ | environ, stdout=log, stderr=log)
    try:
        _wait_until_it_listens(running, address, log)
        yield running, address
    finally:
        running.terminate()
        try:
            running.wait(LONGEST_WAIT)
        finally:
            running.kill()  # Nothing, if it has ended.


def _wait_until_it_listens(
    running: subprocess.Popen[bytes], address: tuple[str, int], log: IO[bytes]
) -> None:
    deadline = time.monotonic() + LONGEST_WAIT
    while True:
        with suppress(ConnectionError), socket.create_connection(address, LONGEST_WAIT):
            return
        if running.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            words = log.read().decode(errors="replace")
            raise RuntimeError(f"{running.args!r} does not listen ({running.poll()}):\n{words}")
        with suppress(subprocess.TimeoutExpired):
            running.wait(0.05)


# The clients.


class Load:
    """What all clients of one run share: how many requests there are, and what came back."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.is_open_ended = True
        """Whether requests go on until somebody has seen enough."""
        self.begun = self.answered = self.visitors = self.reconnects = 0
        self.pids: set[int] = set()
        self.tokens: Counter[str] = Counter()
        self.faults: Counter[Fault] = Counter()
        self.reasons: Counter[str] = Counter()
        """Why requests failed, in words."""
        self._changed = threading.Condition()

    def begin(self) -> bool:
        """Take one of the requests; False if there are none left."""
        with self._changed:
            if self.begun >= self.requests and not self.is_open_ended:
                return False
            self.begun += 1
            return True

    def note(self, pid: int, token: str | None, *, is_right: bool) -> None:
        """Take note of an answer."""
        with self._changed:
            self.answered += 1
            self.pids.add(pid)
            if token is not None:
                self.tokens[token] += 1
            self.faults[Fault.WRONG_COUNT] += not is_right
            self._changed.notify_all()

    def note_failure(self, reason: str) -> None:
        with self._changed:
            self.answered += 1
            self.faults[Fault.FAILED] += 1
            self.reasons[reason] += 1
            self._changed.notify_all()

    def note_visitor(self) -> None:
        with self._changed:
            self.visitors += 1

    def note_reconnect(self) -> None:
        with self._changed:
            self.reconnects += 1

    def wait_for_workers(self, are_there: Callable[[], bool]) -> None:
        """Wait for workers to answer, or to be gone; look at it after every answer."""
        with self._changed:
            self.faults[Fault.MISSING] += not self._changed.wait_for(are_there, LONGEST_WAIT)

    def end(self) -> None:
        """Let no open end keep the clients."""
        self.is_open_ended = False


class Client:
    """A browser: one connection that is kept, one cookie, one request after the other."""

    def __init__(self, address: tuple[str, int], load: Load) -> None:
        self._connection = HTTPConnection(*address, timeout=LONGEST_WAIT)
        self._load = load
        self._cookie = ""
        self._count = 0
        """How many requests this visitor has had answered."""

    def run(self) -> None:
        while self._load.begin():
            try:
                self._ask()
            except (OSError, HTTPException, ValueError) as error:
                self._load.note_failure(f"{type(error).__name__}: {error}")
                self._forget()
        self._connection.close()

    def _ask(self) -> None:
        if not self._cookie:
            self._load.note_visitor()
        path = "/regenerate" if self._count % REGENERATE_EVERY == REGENERATE_EVERY - 1 else "/"
        self._drop_a_closed_connection()
        self._connection.request(
            "POST", path, headers={"Cookie": self._cookie, "Host": "localhost"}
        )
        with self._connection.getresponse() as response:
            body = response.read()
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        answer = json.loads(body)
        self._count += 1
        token = self._keep(response.headers.get_all("Set-Cookie", []))
        self._load.note(answer["pid"], token, is_right=answer["count"] == self._count)
        if self._count % CONNECT_EVERY == 0:
            self._connection.close()
        if self._count == FORGET_EVERY:
            self._forget()

    def _drop_a_closed_connection(self) -> None:
        kept = self._connection.sock
        if kept is not None and select.select([kept], [], [], 0)[0]:
            self._connection.close()
            self._load.note_reconnect()

    def _keep(self, set_cookies: list[str]) -> str | None:
        """Keep the cookie, if there is a new one; return its token."""
        for header in set_cookies:
            for name, morsel in SimpleCookie(header).items():
                self._cookie = f"{name}={morsel.value}"
                return morsel.value
        return None

    def _forget(self) -> None:
        self._cookie, self._count = "", 0


# The runs.


@dataclass
class Row:
    """What a server was asked, and what went wrong."""

    server: Server
    requests: int = 0
    seconds: float = 0.0
    pids: int = 0
    tokens: int = 0
    reconnects: int = 0
    faults: Counter[Fault] = field(default_factory=Counter)
    words: list[str] = field(default_factory=list)
    """What the faults were: of the clients, and of the server's log."""


def put_under_load(
    server: Server, uri: str, requests: int, watch: Callable[[Load], object] = lambda _: None
) -> Row:
    """Start the server, send it so many requests or a few more, end it, and count."""
    database = f"load_{secrets.token_hex(4)}"
    load = Load(requests)
    begin = time.monotonic()
    with TemporaryFile() as log, _database(uri, database) as store:
        with serving(server, uri, database, requests, log) as (running, address):
            _run(load, address, server, running, watch)
        load.faults[Fault.STRAY] = abs(sum(1 for _ in store.sessions()) - load.visitors)
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()
    logged = [line for line in lines if not re.fullmatch(server.noise, line)]
    load.faults[Fault.LOGGED] = len(logged)
    load.faults[Fault.TOKEN_TWICE] = sum(count - 1 for count in load.tokens.values())
    return Row(
        server=server,
        requests=load.answered,
        seconds=time.monotonic() - begin,
        pids=len(load.pids),
        tokens=len(load.tokens),
        reconnects=load.reconnects,
        faults=load.faults,
        words=[f"{count} x {reason}" for reason, count in load.reasons.items()] + logged,
    )


@contextmanager
def _database(uri: str, name: str) -> Iterator[MongoStore]:
    """Yield a store in a database that only one run has."""
    client: MongoClient[Any]
    with MongoClient(uri, timeoutMS=30_000) as client:
        try:
            store = MongoStore({"mongodb_session_db": name}, client=client)
            # Inserts that race the first createIndexes of a collection hang the embedded server.
            store.ensure_indexes()
            yield store
        finally:
            client.drop_database(name)


def _run(
    load: Load,
    address: tuple[str, int],
    server: Server,
    running: subprocess.Popen[bytes],
    watch: Callable[[Load], object],
) -> None:
    clients = [
        threading.Thread(target=Client(address, load).run, daemon=True) for _ in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    try:
        load.wait_for_workers(lambda: len(load.pids) >= server.workers)
        match server.restart:
            case Restart.HUP:
                _hang_up(load, running)
            case Restart.MAX_REQUESTS:
                load.wait_for_workers(lambda: len(load.pids) > server.workers)
    finally:
        load.end()
        for client in clients:
            while client.is_alive():
                client.join(0.1)
                watch(load)


def _hang_up(load: Load, running: subprocess.Popen[bytes]) -> None:
    """Replace the workers in mid-load; return when the old ones are gone and a new one answers."""
    load.wait_for_workers(lambda: load.answered >= load.requests // 2)
    old = frozenset(load.pids)
    running.send_signal(signal.SIGHUP)
    load.wait_for_workers(lambda: bool(load.pids - old) and not any(map(_is_alive, old)))


def _is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def run(chosen: list[Server], uri: str, requests: int, *, is_watched: bool = False) -> list[Row]:
    """Put the servers under load one after the other, with so many requests for all of them."""
    rows = []
    shares = sum(server.weight for server in chosen)
    for server in chosen:

        def watch(load: Load, name: str = server.title) -> None:
            if is_watched:
                words = f"{name}: {load.answered} of {load.requests}"
                print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)

        rows.append(put_under_load(server, uri, requests * server.weight // shares, watch))
    if is_watched:
        print("\r\033[K", end="", file=sys.stderr)
    return rows


# The table.


def table(rows: list[Row], *, is_coloured: bool = False) -> str:
    """Return the rows aligned; what is not zero of the faults is red, if there are colours."""
    heads = ["requests", "seconds", "processes", "tokens", "reconnects"]
    heads += [fault.value for fault in Fault]
    first = max(len(row.server.title) for row in rows)
    lines = [f"{'server':{first}}  " + "  ".join(heads)]
    for row in rows:
        figures: list[float] = [row.requests, round(row.seconds), row.pids, row.tokens]
        figures += [row.reconnects, *(row.faults[fault] for fault in Fault)]
        cells = [f"{figure:>{len(head)}}" for figure, head in zip(figures, heads, strict=True)]
        if is_coloured:
            faults = zip(cells[-len(Fault) :], figures[-len(Fault) :], strict=True)
            cells[-len(Fault) :] = [
                f"\033[{31 if figure else 32}m{cell}\033[0m" for cell, figure in faults
            ]
        lines.append(f"{row.server.title:{first}}  " + "  ".join(cells))
    return "\n".join(lines)


def _figures(row: Row) -> dict[str, Any]:
    return {
        "server": row.server.name,
        "restart": row.server.restart.value,
        "requests": row.requests,
        "seconds": round(row.seconds, 2),
        "processes": row.pids,
        "tokens": row.tokens,
        "reconnects": row.reconnects,
        **{fault.value: row.faults[fault] for fault in Fault},
        "words": row.words,
    }


def _chosen(words: list[str]) -> tuple[list[Server], list[str]]:
    """Return the servers whose title has one of `words`, and why others cannot be had."""
    asked_for = [
        server for server in servers() if not words or any(word in server.title for word in words)
    ]
    missing = [f"{server.name}: {server.missing}" for server in asked_for if server.missing]
    return [server for server in asked_for if not server.missing], missing


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="of all servers together")
    parser.add_argument("--json", action="store_true", help="print no table but its figures")
    parser.add_argument("--servers", nargs="*", default=[], help="words of their names")
    options = parser.parse_args(arguments)
    chosen, missing = _chosen(options.servers)
    if not chosen:
        parser.error("no such server; there are " + ", ".join(s.title for s in servers()))
    uri = os.environ.get("MONGODB_URI")
    with ExitStack() as stack:
        if not uri:
            folder = stack.enter_context(TemporaryDirectory())
            uri = stack.enter_context(EmbeddedServer(folder)).uri
        rows = run(chosen, uri, options.requests, is_watched=sys.stderr.isatty())
    if options.json:
        print(json.dumps([_figures(row) for row in rows], indent=2))
    else:
        _show(rows, missing)
    return 1 if any(row.faults.total() for row in rows) else 0


def _show(rows: list[Row], missing: list[str]) -> None:
    print(table(rows, is_coloured=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    total = sum(row.requests for row in rows)
    print(f"{total} requests in {sum(row.seconds for row in rows):.0f} s")
    for row in rows:
        for line in row.words:
            print(f"{row.server.title}: {line}")
    for line in missing:
        print(line)


if __name__ == "__main__":
    tool.run(main, "load")

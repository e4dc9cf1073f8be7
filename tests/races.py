"""Race overlapping requests against a real server, and count what goes wrong.

`python -m tests.races --rounds 10000` races the stories of this module, so many rounds in all, on
the server of `MONGODB_URI` or on an embedded one, and prints a table. `--server java` races them
on a mongo-java-server, whose commands run in parallel and are atomic. `--memory` races them without
a server, in threads over the memory store, which is faster. The exit status is 1 if any count is
not zero.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from http.client import HTTPResponse
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pymongo import MongoClient

from mongosession_wsgi import MongoStore, Session, SessionMiddleware, life
from mongosession_wsgi.document import CODEC, Mark, id_of
from mongosession_wsgi.session import visit_of
from mongosession_wsgi.testing.memory import Client
from mongosession_wsgi.visit import State

from . import tool
from .servers.choice import SERVERS
from .servers.kept import UnavailableError
from .wsgi import KEY, Browser, Response, call, conforming, environ_of

T = TypeVar("T")
Use = Callable[[Session], Any]
NAME = "mongosession"
LONGEST_WAIT = 60.0
"""Seconds after which something hangs, rather than being slow."""
PATIENCE = (0.01, 0.02, 0.04, 0.08, *[0.1] * 300)
"""What a login waits for another one that is under way: long, for these machines are busy."""
LIMIT = 2
"""The `session_limit` of the stories that have one."""
MOST_ROTATIONS = 100
"""The rotations after which a thief has outrun the revocation."""
CART = {"base": 1, "cart": ["egg"]}
"""What is in each session before its race."""
CART_AND_HAM = CART | {"cart": ["egg", "ham"]}
CLEAN_EVERY = 20
"""Rounds after which the collection is emptied; a memory store searches all of it."""


class Fault(Enum):
    """What must not happen, and is counted."""

    LOST = "lost"
    REVIVED = "revived"
    CLOBBERED = "clobbered cookies"
    OUTRUN = "outrun"
    STALE = "stale reads"
    BOTH_WON = "both won"


# What is raced.


@dataclass
class Racer:
    """A request that starts at the same moment as others; one that is `reading` has read before."""

    use: Use
    reading: bool = False
    token: str | None = None
    """Another token than that of the race."""
    owner: str | None = None
    """Who logs in by this request."""
    gate: threading.Barrier = field(init=False, repr=False)
    session: Session = field(init=False, repr=False)
    response: Response = field(init=False, repr=False)

    def __call__(self, session: Session) -> None:
        """Be the application of this request."""
        self.session = session
        if self.reading:
            session.copy()
        self.gate.wait(LONGEST_WAIT)
        self.use(session)

    @property
    def cookie(self) -> str | None:
        """The token that it got; "" if it was told to forget its cookie."""
        return self.response.token

    @property
    def is_acknowledged(self) -> bool:
        """Whether it wrote its changes, rather than having found its session ended."""
        visit = visit_of(self.session)
        is_over = visit.state is State.ENDED or type(visit.known) is Mark
        return self.response.status == "200 OK" and not is_over


class Track:
    """Where requests race: a middleware, its store, and perhaps a server of two processes."""

    def __init__(
        self, client: Any, database: str, address: tuple[str, int] | None = None, **settings: Any
    ) -> None:
        self.address = address
        settings = {"mongodb_session_db": database} | settings
        self.store = MongoStore(settings, client=client)
        self.stored = self.store.collection.with_options(CODEC)
        self.begun: dict[str, datetime] = {}
        """When the sessions were created that requests of this round began, by their ids."""
        self._note_what_begins()
        self.limited = (
            self if settings.get("session_limit") else self._with_a_limit(client, settings)
        )
        self._app = SessionMiddleware(conforming(self._answer), settings, store=self.store)
        self._threads = ThreadPoolExecutor(max_workers=8)

    def begin(self, *, owner: str | None = None, renewal_due: bool = False) -> str:
        """Return the token of a new session that has something in it."""
        session = self.store.create({"base": 1, "cart": ["egg"]})
        if owner is not None:
            session.login(owner)
            self.store.flush(session)
        assert session.token is not None
        assert session.expires_at is not None
        if renewal_due:
            earlier = session.expires_at - timedelta(days=15)
            self.stored.update_one({"_id": session.id}, {"$set": {"seen_at": earlier}})
        return session.token

    def race(self, token: str, *racers: Racer, against: Callable[[], Any] | None = None) -> Any:
        """Let all start at once; return what `against`, which is no request, returned."""
        self.begun.clear()
        gate = threading.Barrier(len(racers) + (against is not None))
        runs = [self._threads.submit(self._run, racer, token, gate) for racer in racers]
        if against is not None:
            gate.wait(LONGEST_WAIT)
        outcome = against() if against is not None else None
        for run in runs:
            run.result(LONGEST_WAIT)
        return outcome

    @contextmanager
    def rotating(self, *tokens: str) -> Iterator[list[Rotating]]:
        """Have the sessions of these tokens rotate meanwhile; yield when each has done so once."""
        visitors = [Rotating(self, token) for token in tokens]
        runs = [self._threads.submit(visitor.run) for visitor in visitors]
        try:
            for visitor in visitors:
                visitor.has_rotated.wait(LONGEST_WAIT)
            yield visitors
        finally:
            for visitor in visitors:
                visitor.stop.set()
            for run in runs:
                run.result(LONGEST_WAIT)

    def browser(self, token: str) -> Browser:
        return Browser(self._app, cookie=f"{NAME}={token}")

    def ask(
        self, token: str, use: Use, on_header: Callable[[], object] = lambda: None
    ) -> dict[str, Any]:
        """Send a request; do something else at the moment at which its first header goes out."""

        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            def started(*arguments: Any) -> Any:
                on_header()
                return start_response(*arguments)

            return self._app(environ, started)

        environ = environ_of(HTTP_COOKIE=f"{NAME}={token}")
        found: list[Any] = []
        response = call(app, environ | {"races.racer": lambda session: found.append(use(session))})
        return {"status": int(response.status[:3]), "found": found[0]}

    def find(self, token: str | None) -> dict[str, Any] | None:
        """Return what a request that comes now finds under `token`."""
        session = self.store.retrieve(token) if token else None
        return None if session is None else session.copy()

    def document(self, token: str) -> dict[str, Any]:
        """Return what is stored under a token's id, empty if there is nothing."""
        return next(iter(self.stored.find({"_id": id_of(token)})), {})

    def live(self, owner: str) -> set[str]:
        """Return the ids of an owner's live sessions."""
        return {info.id for info in self.store.sessions(owner)}

    def close(self) -> None:
        self._threads.shutdown()
        if self.limited is not self:
            self.limited.close()

    def _with_a_limit(self, client: Any, settings: dict[str, Any]) -> Track:
        return Track(client, settings["mongodb_session_db"], session_limit=str(LIMIT))

    def _note_what_begins(self) -> None:
        commits: Any = self.store._life
        begin = commits._begun

        def noted(*arguments: Any) -> Any:
            record = begin(*arguments)
            moment = record.created_at
            stored = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
            self.begun[record.id] = stored
            return record

        commits._begun = noted

    def _run(self, racer: Racer, token: str, gate: threading.Barrier) -> None:
        racer.gate = gate
        racer.response = self.browser(racer.token or token).get(**{"races.racer": racer})

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["races.racer"](environ[KEY])
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"answer"]


class Rotating:
    """A visitor whose every request asks for a new token, without a pause, until there is none."""

    def __init__(self, track: Track, token: str) -> None:
        self._browser = track.browser(token)
        self.stop, self.has_rotated = threading.Event(), threading.Event()
        self.is_tired = False
        """Whether the visitor gave up, because nobody had put an end to the session for long."""

    def run(self) -> None:
        for _ in range(MOST_ROTATIONS):
            response = self._browser.get(**{"races.racer": Session.regenerate})
            self.has_rotated.set()
            if self.stop.is_set() or not response.token:
                return
        self.is_tired = True

    @property
    def token(self) -> str:
        return self._browser.token


def _sets(key: str, **how: Any) -> Racer:
    return Racer(lambda session: session.update({key: key}), **how)


def _appends() -> Racer:
    return Racer(lambda session: session["cart"].append("ham"), reading=True)


def _reads() -> Racer:
    return Racer(lambda session: session.copy(), reading=True)


def _login(owner: str = "alice", **how: Any) -> Racer:
    return Racer(lambda session: session.login(owner), owner=owner, **how)


def _regenerates(**how: Any) -> Racer:
    return Racer(lambda session: session.regenerate(), **how)


def _logout(**how: Any) -> Racer:
    return Racer(lambda session: session.destroy(), **how)


def _either() -> bool:
    """Say whether a request has read before, where both ways are raced."""
    return random.random() < 0.5


def _somebody() -> str:
    return secrets.token_hex(8)


def _cookies_of(*racers: Racer) -> Iterator[Fault]:
    """Find fault with requests that got a cookie where none is due, or that failed."""
    for racer in racers:
        if racer.response.status != "200 OK":
            yield Fault.LOST
        if racer.cookie is not None:
            yield Fault.CLOBBERED


# The stories.


def writes_of_different_keys(track: Track) -> Iterator[Fault]:
    token = track.begin()
    racers = _sets("a"), _sets("b"), _sets("c", reading=True), _appends()
    track.race(token, *racers)
    yield from _cookies_of(*racers)
    if track.find(token) != CART_AND_HAM | {"a": "a", "b": "b", "c": "c"}:
        yield Fault.LOST


def reading_and_writing(track: Track) -> Iterator[Fault]:
    token = track.begin(renewal_due=True)
    racers = _reads(), _reads(), _appends(), _sets("a", reading=True)
    track.race(token, *racers)
    yield from _cookies_of(*racers)
    if track.find(token) != CART_AND_HAM | {"a": "a"}:
        yield Fault.LOST


def logout_and_writes(track: Track) -> Iterator[Fault]:
    token = track.begin()
    logout, *others = _logout(), _sets("a", reading=True), _appends(), _sets("b", reading=True)
    track.race(token, logout, *others)
    yield from _cookies_of(*others)
    yield from _after_an_end(track, token)
    if logout.cookie != "":
        yield Fault.LOST


def logout_and_renewal(track: Track) -> Iterator[Fault]:
    token = track.begin(renewal_due=True)
    logout, *others = _logout(reading=True), _reads(), _reads(), _reads()
    track.race(token, logout, *others)
    yield from _cookies_of(*others)
    yield from _after_an_end(track, token)
    if logout.cookie != "":
        yield Fault.LOST


def login_and_blind_writes(track: Track) -> Iterator[Fault]:
    yield from _login_against(track, _login(), _sets("a"), _sets("b"), _sets("c"))


def login_and_writes(track: Track) -> Iterator[Fault]:
    writers = _sets("a", reading=True), _sets("b", reading=True), _appends()
    yield from _login_against(track, _login(reading=True), *writers)


def two_logins(track: Track) -> Iterator[Fault]:
    yield from _all_log_in(track, _login("alice"), _login("bob", reading=_either()))


def four_logins(track: Track) -> Iterator[Fault]:
    yield from _all_log_in(
        track, _login("alice"), _login("bob", reading=True), _login("carol"), _login("alice")
    )


def double_login(track: Track) -> Iterator[Fault]:
    """Click "Log in" twice, as a visitor or as who has logged in before."""
    owner = _somebody()
    token = track.begin(owner=owner if _either() else None)
    racers = [_login(owner, reading=_either()) for _ in range(2)]
    track.race(token, *racers)
    yield from _after_an_end(track, token)
    if len({racer.cookie for racer in racers} - {None, ""}) != len(racers):
        yield Fault.LOST
    if any(track.find(racer.cookie) != CART for racer in racers):
        yield Fault.LOST


def login_again_and_logout(track: Track) -> Iterator[Fault]:
    """Confirm a password in one tab, log out in another."""
    owner = _somebody()
    token = track.begin(owner=owner)
    login, logout = _login(owner, reading=_either()), _logout(reading=_either())
    track.race(token, login, logout)
    yield from _after_an_end(track, token)
    if logout.cookie != "":
        yield Fault.LOST
    was_first = bool(track.document(token))  # Of the logout, nothing stays.
    if was_first or login.reading or not login.cookie:
        yield from _nobody_is_in(track, owner)
    elif track.find(login.cookie) != {}:
        yield Fault.REVIVED


def more_logins_than_the_limit(track: Track) -> Iterator[Fault]:
    """Log in thrice at once, while an older session rotates; there may be two."""
    owner, limited = _somebody(), track.limited
    old = track.begin(owner=owner)
    racers = [_login(owner, token=track.begin(), reading=_either()) for _ in range(3)]
    limited.race(old, _regenerates(reading=_either()), *racers)
    latest = sorted(limited.begun.items(), key=lambda one: (one[1], one[0]))[-LIMIT:]
    live, expected = track.live(owner), {id_ for id_, _ in latest}
    if live - expected:
        yield Fault.REVIVED
    if expected - live:
        yield Fault.LOST
    if any(racer.response.status != "200 OK" for racer in racers):
        yield Fault.LOST
    if not expected <= {id_of(racer.cookie) for racer in racers if racer.cookie}:
        yield Fault.LOST


def two_regenerations(track: Track) -> Iterator[Fault]:
    token = track.begin()
    racers = _regenerates(), _regenerates(reading=True)
    track.race(token, *racers)
    won = [racer for racer in racers if racer.cookie]
    yield from _cookies_of(*(racer for racer in racers if racer not in won))
    yield from _after_an_end(track, token)
    if len(won) > 1:
        yield Fault.BOTH_WON
    if not won or track.find(won[0].cookie) != CART:
        yield Fault.LOST


def regeneration_and_login(track: Track) -> Iterator[Fault]:
    token = track.begin()
    rotation, login = _regenerates(reading=_either()), _login(reading=_either())
    track.race(token, rotation, login)
    yield from _after_an_end(track, token)
    if not login.cookie:
        yield Fault.LOST
    if rotation.cookie:  # The session of an anonymous visitor goes on beside the login's.
        expected = [CART, {}]
    else:
        yield from _cookies_of(rotation)
        expected = [None, CART]
    if [track.find(rotation.cookie), track.find(login.cookie)] != expected:
        yield Fault.LOST


def rotation_and_logout(track: Track) -> Iterator[Fault]:
    owner = _somebody()
    token = track.begin(owner=owner)
    logout, *others = _logout(reading=_either()), _regenerates(), _regenerates(reading=True)
    track.race(token, logout, *others)
    yield from _after_an_end(track, token)
    yield from _nobody_is_in(track, owner)
    if logout.cookie != "":
        yield Fault.LOST
    if "" in {other.cookie for other in others}:
        yield Fault.CLOBBERED


def logout_and_login(track: Track) -> Iterator[Fault]:
    token = track.begin()
    logout, login = _logout(reading=True), _login(reading=True)
    track.race(token, logout, login)
    yield from _after_an_end(track, token)
    if logout.cookie == "" and login.cookie:
        yield Fault.BOTH_WON
    if not (logout.cookie == "" or track.find(login.cookie)):
        yield Fault.LOST


def revocation_and_writes(track: Track) -> Iterator[Fault]:
    token = track.begin(renewal_due=True)
    racers = _sets("a", reading=True), _appends(), _reads()
    if track.race(token, *racers, against=lambda: track.store.revoke(id_of(token))) != 1:
        yield Fault.LOST
    yield from _cookies_of(*racers)
    yield from _after_an_end(track, token)


def revocation_and_login(track: Track) -> Iterator[Fault]:
    token = track.begin()
    login = _login(reading=True)
    revoked = track.race(token, login, against=lambda: track.store.revoke(id_of(token)))
    yield from _after_an_end(track, token)
    if revoked and login.cookie:
        yield Fault.BOTH_WON
    if not (revoked or track.find(login.cookie)):
        yield Fault.LOST


def revocation_of_all_and_writes(track: Track) -> Iterator[Fault]:
    owner = secrets.token_hex(8)
    token = track.begin(owner=owner, renewal_due=True)
    racers = _sets("a", reading=True), _appends(), _reads()
    if track.race(token, *racers, against=lambda: track.store.revoke_all(owner)) != 1:
        yield Fault.LOST
    yield from _cookies_of(*racers)
    yield from _after_an_end(track, token)


def revocation_of_who_rotates(track: Track) -> Iterator[Fault]:
    owner = _somebody()
    token = track.begin(owner=owner)
    with track.rotating(token) as thieves:
        track.store.revoke(id_of(token))
        yield from _nobody_is_in(track, owner, *thieves)
    yield from _nobody_is_in(track, owner)


def revocation_of_all_who_rotate(track: Track) -> Iterator[Fault]:
    owner = _somebody()
    with track.rotating(track.begin(owner=owner), track.begin(owner=owner)) as thieves:
        track.store.revoke_all(owner)
        yield from _nobody_is_in(track, owner, *thieves)
    yield from _nobody_is_in(track, owner)


def logout_of_who_rotates(track: Track) -> Iterator[Fault]:
    """Log out by the token from before many rotations."""
    owner = _somebody()
    token = track.begin(owner=owner)
    with track.rotating(token) as thieves:
        logout = _logout()
        track.race(token, logout)
        yield from _nobody_is_in(track, owner, *thieves)
    if logout.cookie != "":
        yield Fault.LOST


def revocation_of_all_but_who_rotates(track: Track) -> Iterator[Fault]:
    owner = _somebody()
    kept, thief, _ = (track.begin(owner=owner) for _ in range(3))
    with track.rotating(kept) as (keeper,), track.rotating(thief) as thieves:
        ended = track.store.revoke_all(owner, keep=id_of(kept))
    if track.live(owner) - {id_of(keeper.token)}:
        yield Fault.REVIVED
    if thieves[0].is_tired:
        yield Fault.OUTRUN
    if track.find(keeper.token) != CART or ended not in (1, 2):
        yield Fault.LOST


def ttl_deletion_and_writes(track: Track) -> Iterator[Fault]:
    token = track.begin(renewal_due=True)
    racers = _sets("a", reading=True), _appends(), _reads()
    track.race(token, *racers, against=lambda: track.stored.delete_many({"_id": id_of(token)}))
    yield from _cookies_of(*racers)
    yield from _after_an_end(track, token)


def old_tokens_and_the_new_cookie(track: Track) -> Iterator[Fault]:
    old = track.begin()
    login = _login()
    track.race(old, login)
    stale = [
        _sets("a"),
        _sets("b", reading=True),
        _regenerates(reading=_either()),
        Racer(lambda session: (session.destroy(), session.update(a=1))),
    ]
    fresh, mallory = _sets("fresh", token=login.cookie), _login("mallory")
    track.race(old, *stale, fresh, mallory)
    yield from _cookies_of(*stale, fresh)
    if track.find(login.cookie) != CART | {"fresh": "fresh"}:
        yield Fault.LOST
    if track.find(mallory.cookie) != {}:  # A login of its own, without anything of hers.
        yield Fault.LOST
    if track.find(old) is not None:
        yield Fault.REVIVED


def a_redirect_followed_at_once(track: Track) -> Iterator[Fault]:
    """Follow a redirect at the first byte of its header, over another connection."""
    token = track.begin()
    value = secrets.token_hex(4)
    if track.address is None:
        first, found = _followed_in_this_process(track, token, value)
    else:
        with asked(track.address, f"/?set=value:{value}&redirect=/?read", token) as connection:
            connection.recv(1, socket.MSG_PEEK)
            with asked(track.address, "/?read", token) as second:
                found = answer_of(second)
            first = answer_of(connection)["status"]
    if first not in (200, 303):
        yield Fault.LOST
    if found["status"] != 200 or found["read"].get("value") != value:
        yield Fault.STALE


def _followed_in_this_process(track: Track, token: str, value: str) -> tuple[int, dict[str, Any]]:
    found: dict[str, Any] = {}

    def follow() -> None:
        answer = track.ask(token, Session.copy)
        found.update(status=answer["status"], read=answer["found"])

    first = track.ask(token, lambda session: session.update(value=value), follow)
    return first["status"], found


def _login_against(track: Track, login: Racer, *writers: Racer) -> Iterator[Fault]:
    token = track.begin()
    track.race(token, login, *writers)
    yield from _cookies_of(*writers)
    yield from _after_an_end(track, token)
    expected: Any = deepcopy(CART)
    for writer in writers:
        if writer.is_acknowledged:
            writer.use(expected)
    if track.find(login.cookie) != expected:
        yield Fault.LOST


def _all_log_in(track: Track, *racers: Racer) -> Iterator[Fault]:
    """Race logins: each has a session of its own, and the data goes to the first one's owner."""
    token = track.begin()
    track.race(token, *racers)
    yield from _after_an_end(track, token)
    first = track.document(token).get("successor")
    owners = {racer.owner for racer in racers if id_of(racer.cookie or "") == first}
    if len(owners) != 1 or len({racer.cookie for racer in racers}) != len(racers):
        yield Fault.LOST
    for racer in racers:
        if track.find(racer.cookie) != (CART if racer.owner in owners else {}):
            yield Fault.LOST


def _after_an_end(track: Track, token: str) -> Iterator[Fault]:
    if "data" in track.document(token):
        yield Fault.REVIVED


def _nobody_is_in(track: Track, owner: str, *thieves: Rotating) -> Iterator[Fault]:
    if track.live(owner):
        yield Fault.REVIVED
    if any(thief.is_tired for thief in thieves):
        yield Fault.OUTRUN


Story = Callable[[Track], Iterator[Fault]]
STORIES: list[Story] = [
    writes_of_different_keys,
    reading_and_writing,
    logout_and_writes,
    logout_and_renewal,
    logout_and_login,
    login_and_blind_writes,
    login_and_writes,
    two_logins,
    four_logins,
    double_login,
    login_again_and_logout,
    more_logins_than_the_limit,
    two_regenerations,
    regeneration_and_login,
    rotation_and_logout,
    revocation_and_writes,
    revocation_and_login,
    revocation_of_all_and_writes,
    revocation_of_who_rotates,
    revocation_of_all_who_rotate,
    revocation_of_all_but_who_rotates,
    logout_of_who_rotates,
    ttl_deletion_and_writes,
    old_tokens_and_the_new_cookie,
    a_redirect_followed_at_once,
]


# The server of two processes.


def served() -> SessionMiddleware:
    """Return the application that gunicorn runs here; its query says what a request does, in order.

    `gate=PORT` connects there, says which request in which process this is, and waits for a line of
    further steps.
    """
    settings = {
        "mongodb_host": os.environ["MONGODB_URI"],
        "mongodb_session_db": os.environ["RACES_DATABASE"],
    }
    return SessionMiddleware(_obey_the_query, settings)


def _obey_the_query(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    answer = {"process": os.getpid(), "port": int(environ["REMOTE_PORT"])}
    _obey(environ["QUERY_STRING"], environ[KEY], answer)
    if "redirect" in answer:
        start_response("303 See Other", [("Location", answer["redirect"])])
    else:
        start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]


def _obey(query: str, session: Session, answer: dict[str, Any]) -> None:
    for step, what in parse_qsl(query, keep_blank_values=True):
        match step:
            case "read":
                answer["read"] = session.copy()
            case "set":
                key, _, value = what.partition(":")
                session[key] = value
            case "regenerate":
                session.regenerate()
            case "login":
                session.login(what)
            case "destroy":
                session.destroy()
            case "redirect":
                answer["redirect"] = what
            case "gate":
                with socket.create_connection(("127.0.0.1", int(what)), LONGEST_WAIT) as gate:
                    gate.sendall(json.dumps(answer).encode() + b"\n")
                    _obey(gate.makefile().readline().strip(), session, answer)
            case _:
                raise ValueError(step)


@contextmanager
def two_processes(uri: str, database: str) -> Iterator[tuple[str, int]]:
    """Serve with gunicorn: two workers of four threads; yield the address."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        command = [sys.executable, "-m", "gunicorn", "-w", "2", "--threads", "4", "-k", "gthread"]
        command += ["--bind", f"fd://{listening.fileno()}", "--log-level", "warning"]
        command += ["--no-control-socket", "tests.races:served()"]
        server = subprocess.Popen(
            command,
            pass_fds=[listening.fileno()],
            env=os.environ | {"MONGODB_URI": uri, "RACES_DATABASE": database},
        )
        try:
            yield listening.getsockname()
        finally:
            server.terminate()
            server.wait(LONGEST_WAIT)


def asked(address: tuple[str, int], path: str, token: str) -> socket.socket:
    """Return a new connection over which a request is on its way."""
    connection = socket.create_connection(address, LONGEST_WAIT)
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", f"Cookie: {NAME}={token}"]
    connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
    return connection


def answer_of(connection: socket.socket) -> dict[str, Any]:
    """Return the JSON that comes back, with the status and the cookie."""
    with HTTPResponse(connection) as response:
        response.begin()
        answer: dict[str, Any] = json.loads(response.read())
        return answer | {"status": response.status, "cookie": response.getheader("Set-Cookie")}


# The way to a server whose commands are not atomic.


class OneAtATime:
    """Passes commands on to a MongoDB server, one after the other, whoever sends them.

    Every command on one document is atomic with MongoDB. Not so with the embedded server: its
    findAndModify answers what it found, without what others wrote before it changed it. Requests
    race all the same, for each of them is made of several commands, in any order.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._turn = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self) -> str:
        port = self._listening.getsockname()[1]
        return f"mongodb://127.0.0.1:{port}/?directConnection=true&serverMonitoringMode=poll"

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):  # It was closed.
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._pass_on, args=[client], daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while command := _message(client):
                with self._turn:
                    server.sendall(command)
                    answer = _message(server)
                client.sendall(answer)


def _message(connection: socket.socket) -> bytes:
    """Return the next message of MongoDB's wire protocol, empty at the end."""
    with suppress(ConnectionError):
        begin = connection.recv(4, socket.MSG_WAITALL)
        if len(begin) == 4:
            length = int.from_bytes(begin, "little")
            return begin + connection.recv(length - 4, socket.MSG_WAITALL)
    return b""


@contextmanager
def atomic(uri: str) -> Iterator[str]:
    """Yield the URI at which every command is atomic: that of a real server is `uri` itself."""
    client: MongoClient[Any]
    with MongoClient(uri) as client:
        address = client.address  # Waits until the driver has seen the server.
        servers = client.topology_description.server_descriptions().values()
        is_embedded = any(server.replica_set_name == "secantus" for server in servers)
    if not is_embedded or address is None:
        yield uri
        return
    with closing(OneAtATime((str(address[0]), address[1]))) as passing_on:
        yield passing_on.uri


# The table.


@dataclass
class Row:
    """What was raced, how often, and what went wrong."""

    raced: str
    rounds: int = 0
    seconds: float = 0.0
    faults: Counter[Fault] = field(default_factory=Counter)


def run(uri: str, rounds: int) -> list[Row]:
    """Race all stories on a server, `rounds` times in all, and return what came of them."""
    with track_on(uri) as track:
        return race(track, STORIES, rounds)


def track_in_memory() -> AbstractContextManager[Track]:
    """Return a track for threads of this process, over the memory store."""
    return closing(Track(RestlessClient(), "memory"))


@contextmanager
def track_on(uri: str) -> Iterator[Track]:
    """Yield a track on a server, in a database of its own, beside two processes that serve it."""
    database = f"races_{secrets.token_hex(4)}"
    client: MongoClient[Any]
    with ExitStack() as stack:
        uri = stack.enter_context(atomic(uri))
        address = stack.enter_context(two_processes(uri, database))
        client = stack.enter_context(MongoClient(uri, timeoutMS=1000 * LONGEST_WAIT))
        stack.callback(client.drop_database, database)
        yield stack.enter_context(closing(Track(client, database, address)))


class RestlessClient(Client):
    """A memory whose commands take a random time to arrive, so that every order comes up."""

    def run(self, name: str, filter: dict[str, Any], act: Callable[[], T]) -> T:
        time.sleep(random.choice((0, 0, 0.0001, 0.0005)) * random.random())
        return super().run(name, filter, act)


def race(track: Track, stories: list[Story], rounds: int, *, is_watched: bool = False) -> list[Row]:
    """Race stories, `rounds` times in all; show the progress on stderr if `is_watched`."""
    rows = []
    for place, story in enumerate(stories):
        share = rounds * (place + 1) // len(stories) - rounds * place // len(stories)
        row = Row(story.__name__.replace("_", " "))
        rows.append(row)
        begin = time.monotonic()
        with patient():
            for row.rounds in range(1, share + 1):
                row.faults.update(story(track))
                if row.rounds % CLEAN_EVERY == 0:
                    track.stored.delete_many({})
                if is_watched:
                    print(f"\r\033[K{row.raced}: {row.rounds} of {share}", end="", file=sys.stderr)
        row.seconds = time.monotonic() - begin
        track.stored.delete_many({})
    if is_watched:
        print("\r\033[K", end="", file=sys.stderr)
    return rows


@contextmanager
def patient() -> Iterator[None]:
    """Have a login wait for another one that is under way, however slow the machine is."""
    commits: Any = life
    waits, commits._WAITS = life._WAITS, PATIENCE
    try:
        yield
    finally:
        commits._WAITS = waits


def table(rows: list[Row], *, is_coloured: bool = False) -> str:
    """Return the rows aligned; what is not zero is red, if there are colours."""
    heads = ["rounds", *(fault.value for fault in Fault)]
    first = max(len(row.raced) for row in rows)
    lines = [f"{'raced':{first}}  " + "  ".join(heads)]
    for row in rows:
        counts = [row.rounds, *(row.faults[fault] for fault in Fault)]
        cells = [f"{count:>{len(head)}}" for count, head in zip(counts, heads, strict=True)]
        if is_coloured:
            cells[1:] = [
                f"\033[{31 if count else 32}m{cell}\033[0m"
                for count, cell in zip(counts[1:], cells[1:], strict=True)
            ]
        lines.append(f"{row.raced:{first}}  " + "  ".join(cells))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.races", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10_000, help="of all stories together")
    parser.add_argument("--json", action="store_true", help="print no table but its figures")
    parser.add_argument("--only", nargs="+", default=[], help="stories with one of these words")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--server", choices=SERVERS, help="start this one, without MONGODB_URI")
    where.add_argument("--memory", action="store_true", help="race over the memory store")
    options = parser.parse_args(arguments)
    stories = [story for story in STORIES if _is_one_of(options.only, story.__name__)]
    if not stories:
        parser.error("no such story; there are " + ", ".join(story.__name__ for story in STORIES))
    try:
        rows = _raced(stories, options)
    except UnavailableError as error:
        print(f"Skipped: {error}")
        return 0
    if options.json:
        figures = [
            {"raced": row.raced, "rounds": row.rounds, "seconds": round(row.seconds, 2)}
            | {fault.value: row.faults[fault] for fault in Fault}
            for row in rows
        ]
        print(json.dumps(figures, indent=2))
    else:
        print(table(rows, is_coloured=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
        rounds, seconds = sum(row.rounds for row in rows), sum(row.seconds for row in rows)
        print(f"{rounds} rounds in {seconds:.0f} s")
    return 1 if any(row.faults.total() for row in rows) else 0


def _is_one_of(words: list[str], name: str) -> bool:
    return not words or any(word in name for word in words)


def _raced(stories: list[Story], options: argparse.Namespace) -> list[Row]:
    uri = os.environ.get("MONGODB_URI")
    with ExitStack() as stack:
        if options.memory:
            track = stack.enter_context(track_in_memory())
        else:
            if options.server or not uri:
                uri = stack.enter_context(SERVERS[options.server or "embedded"]())
            track = stack.enter_context(track_on(uri))
        return race(track, stories, options.rounds, is_watched=sys.stderr.isatty())


if __name__ == "__main__":
    tool.run(main, "races")

"""Two deployments at once on one collection: one seals new sessions, and one does not (yet).

A session keeps its form until its next login or regeneration, whichever of the two a request meets.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from itertools import product
from typing import Any
from urllib.parse import parse_qsl

import pytest
from pymongo.collection import Collection

from mongosession_wsgi import MongoStore, Session, SessionMiddleware
from mongosession_wsgi.document import PLAIN, SEALED, id_of
from mongosession_wsgi.testing.requests import Clock

from .test_overlap import NAME, OpenRequest
from .wsgi import KEY, Response

pytestmark = pytest.mark.server

Use = Callable[[Session], object]
FORMS = [PLAIN, SEALED]
TWO, THREE = (list(product(FORMS, repeat=number)) for number in (2, 3))
LONGEST_WAIT = 60


class Deployments:
    """The deployments by the form of their new sessions, and a visitor whom either may answer."""

    def __init__(self, settings: dict[str, Any], stored: Collection[Any], clock: Clock) -> None:
        self.settings = {form: settings | {"session_sealed": form == SEALED} for form in FORMS}
        self.stores = {form: MongoStore(self.settings[form], clock=clock) for form in FORMS}
        self.stored = stored
        self.token = ""
        self.opened: list[OpenRequest] = []

    def open(self, form: int, use: Use, *, reading: bool = False) -> OpenRequest:
        """Open a request of the visitor that waits at its commit."""
        request = OpenRequest(
            lambda app: SessionMiddleware(app, self.settings[form], store=self.stores[form]),
            f"{NAME}={self.token}" if self.token else "",
        )
        self.opened.append(request)
        if reading:
            request.session.copy()
        use(request.session)
        return request

    def commit(self, request: OpenRequest) -> Response:
        """Answer a request; the visitor keeps its cookie."""
        response = request.commit()
        request.close()
        self.token = self.token if response.token is None else response.token
        return response

    def visit(self, form: int, use: Use, *, reading: bool = False) -> Response:
        return self.commit(self.open(form, use, reading=reading))

    def form(self) -> int | None:
        """Return the form in which the visitor's session is stored."""
        found = self.stored.find_one({"_id": id_of(self.token), "data": {"$exists": True}})
        return None if found is None else int(found["v"])

    def data(self) -> list[dict[str, Any] | None]:
        """Return the data of the visitor's session, as each deployment reads it."""
        found = [store.retrieve(self.token) for store in self.stores.values()]
        return [None if session is None else session.copy() for session in found]


@pytest.fixture
def both(settings: dict[str, Any], stored: Collection[Any], clock: Clock) -> Iterator[Deployments]:
    both = Deployments(settings, stored, clock)
    for store in both.stores.values():
        store.ensure_indexes()
    yield both
    for request in both.opened:
        request.close()
    for store in both.stores.values():
        store.close()


def puts(**values: Any) -> Use:
    return lambda session: session.update(values)


def log_in(session: Session) -> None:
    session.login("alice", remember=True)


@pytest.mark.parametrize(("first", "second"), TWO)
@pytest.mark.parametrize("reading", [False, True])
def test_a_session_keeps_its_form_until_a_login_or_a_regeneration(
    both: Deployments, first: int, second: int, reading: bool
) -> None:
    both.visit(first, puts(n=1, cart=["tea"]))
    both.visit(second, puts(n=2), reading=reading)
    both.visit(second, lambda session: session["cart"].append("milk"), reading=reading)
    assert both.form() == first
    assert both.data() == [{"n": 2, "cart": ["tea", "milk"]}] * 2
    both.visit(second, log_in, reading=reading)
    assert both.form() == second
    both.visit(first, lambda session: session.pop("n"), reading=reading)
    assert both.form() == second
    both.visit(first, Session.regenerate, reading=reading)
    assert both.form() == first
    assert both.data() == [{"cart": ["tea", "milk"]}] * 2
    (info,) = both.stores[second].sessions("alice")
    assert (info.sealed, info.remembered) == (first == SEALED, True)


@pytest.mark.parametrize(("begun", "first", "second"), THREE)
def test_changes_of_requests_that_overlap_all_survive(
    both: Deployments, begun: int, first: int, second: int
) -> None:
    both.visit(begun, puts(a=0, b=0, c=0))
    one = both.open(first, puts(a=1), reading=True)
    other = both.open(second, puts(b=2))
    third = both.open(first, lambda session: session.pop("c"))
    for request in other, one, third:
        both.commit(request)
    assert both.data() == [{"a": 1, "b": 2}] * 2
    assert both.form() == begun


@pytest.mark.parametrize(("begun", "first", "second"), THREE)
def test_of_two_regenerations_at_once_one_wins(
    both: Deployments, begun: int, first: int, second: int
) -> None:
    both.visit(begun, puts(a=0))
    one, other = both.open(first, Session.regenerate), both.open(second, Session.regenerate)
    both.commit(other)
    assert both.commit(one).cookie is None
    assert (both.form(), both.data()) == (second, [{"a": 0}] * 2)


@pytest.mark.parametrize(("begun", "first", "second"), THREE)
def test_ending_wins(both: Deployments, begun: int, first: int, second: int) -> None:
    both.visit(begun, puts(a=0))
    slow, rotation = both.open(first, puts(a=1), reading=True), both.open(first, Session.regenerate)
    both.commit(rotation)
    before = both.token
    assert both.stores[second].revoke(id_of(before)) == 1
    assert both.commit(slow).cookie is None
    assert both.data() == [None, None]
    both.visit(first, log_in)
    assert both.stores[second].revoke_all("alice") == 1
    both.visit(begun, log_in)
    both.visit(second, Session.destroy)
    assert both.token == ""
    assert both.stored.count_documents({"data": {"$exists": True}}) == 0


def test_switched_off_the_sealed_sessions_last_until_their_next_login(both: Deployments) -> None:
    """As a rolling deployment goes: on, one machine after the other, and off again."""
    both.visit(PLAIN, puts(a=1))
    for machine in (SEALED, PLAIN, SEALED, SEALED):
        both.visit(machine, lambda session: session.update(a=session["a"] + 1))
    assert both.form() == PLAIN
    both.visit(SEALED, log_in)
    for machine in (PLAIN, SEALED, PLAIN, PLAIN):
        both.visit(machine, lambda session: session.update(a=session["a"] + 1))
    assert both.form() == SEALED
    both.visit(PLAIN, log_in)
    assert (both.form(), both.data()) == (PLAIN, [{"a": 9}] * 2)


# Two servers.


def served() -> Callable[..., Iterable[bytes]]:
    """Return the application of a deployment: it does what the request asks, and says the data."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        session = environ[KEY]
        for key, value in parse_qsl(environ["QUERY_STRING"]):
            if key == "login":
                session.login(value)
            else:
                session[key] = value
        body = json.dumps(dict(session)).encode()
        start_response("200 OK", [("Content-Type", "application/json")])
        return [body]

    return SessionMiddleware(app, json.loads(os.environ["SETTINGS"]))


@contextmanager
def gunicorn(settings: dict[str, Any]) -> Iterator[str]:
    """Serve a deployment by a gunicorn of four threads; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [sys.executable, "-m", "gunicorn", "--threads", "4", "-k", "gthread"]
        command += ["--bind", f"fd://{listening.fileno()}", "--log-level", "warning"]
        command += ["--no-control-socket", f"{__name__}:served()"]
        server = subprocess.Popen(
            command,
            pass_fds=[listening.fileno()],
            env=os.environ | {"SETTINGS": json.dumps(settings)},
        )
        try:
            yield "{}:{}".format(*listening.getsockname())
        finally:
            server.terminate()
            server.wait(LONGEST_WAIT)


def get(address: str, query: str, token: str) -> tuple[dict[str, Any], str]:
    """Send a request; return the data that the application saw, and the token from then on."""
    connection = HTTPConnection(address, timeout=LONGEST_WAIT)
    connection.request("GET", f"/?{query}", headers={"Cookie": f"{NAME}={token}"})
    response = connection.getresponse()
    assert response.status == 200
    found, cookie = json.loads(response.read()), response.getheader("Set-Cookie")
    connection.close()
    return found, cookie.split(";")[0].partition("=")[2] if cookie else token


def test_two_servers_keep_each_others_sessions(
    settings: dict[str, Any], stored: Collection[Any]
) -> None:
    with ExitStack() as stack:
        addresses = [
            stack.enter_context(gunicorn(settings | {"session_sealed": sealed}))
            for sealed in (False, True)
        ]
        expected = dict[str, str]()
        token = ""
        for turn, address in enumerate([*addresses, *reversed(addresses)]):
            _, token = get(address, f"login=alice&turn={turn}", token)
            expected |= {"turn": str(turn)}
            more = {f"{turn}.{number}": str(number) for number in range(8)}
            with ThreadPoolExecutor(8) as pool:
                queries = [f"{key}={value}" for key, value in more.items()]
                for _, after in pool.map(get, addresses * 4, queries, [token] * 8):
                    assert after == token
            expected |= more
            form = SEALED if address == addresses[1] else PLAIN
            assert stored.distinct("v", {"_id": id_of(token)}) == [form]
            assert [get(one, "", token)[0] for one in addresses] == [expected, expected]

"""Every order of two requests, and the explorer itself: it finds each fault that is planted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import bson
import pytest
from pymongo.errors import OperationFailure

from . import tool
from .bench import machine
from .explore.__main__ import _chosen, _parser, main
from .explore.catalogue import BY_NAME, starts_of
from .explore.engine import MONGODB, Server, in_place_of
from .explore.exploring import Explorer, quietly
from .explore.history import History, Views
from .explore.orders import Orders, Scene, orders
from .explore.scenes import PLAN, SETS, engines
from .explore.script import Kind, Play
from .explore.verdict import PROMISES
from .explore.world import World

pytestmark = pytest.mark.unmeasured

ROOT = Path(__file__).parent.parent
Act = Callable[[], Any]


# Every order.


@pytest.mark.server  # It needs none, but minutes on a busy machine.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["mongodb"])
def test_every_order_of_two_requests_keeps_the_promises(engine: str) -> None:
    command = [sys.executable, "-m", "tests.explore", "--sets", "pairs", "--engines", engine]
    # One process remembers what two would both have to try.
    command += ["--jobs", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (row,) = json.loads(done.stdout)
    stories = {name: one["story"] for name, one in row["broken"].items()}
    assert not stories, "\n\n".join(stories.values())
    assert row["orders"] > 15_000
    assert done.returncode == bool(row["broken"])


MET_BEFORE = [
    # A repeated revocation took a session that had moved meanwhile for one that it had ended.
    ("mongodb", Scene("member", ("rotate", "revoke all"), ("new", "new"), faulty=True)),
    # A list that was read at two moments showed the kept session under both of its ids.
    ("yielding", Scene("member", ("rotate", "revoke others"), ("new", "new"))),
    # A logout took its own tombstone for another's, and left the cookie.
    ("mongodb", Scene("member", ("rotate", "read+logout"), ("new", "new"), faulty=True)),
    # Nobody counted a session that was put back after a rotation in vain.
    ("limited", Scene("rotated", ("read+login", "spoil+rotate"), ("old", "new"))),
]


@pytest.mark.parametrize(("engine", "scene"), MET_BEFORE, ids=str)
def test_a_meeting_that_broke_a_promise_once_keeps_it_now(engine: str, scene: Scene) -> None:
    manner, settings = engines()[engine]
    report = Explorer(World(Server(manner), settings)).explore([scene])
    assert [finding.story for finding in report.broken.values()] == []
    assert report.orders


# Faults that are planted.


class Planted(Server):
    """A server that does something else than what a command says."""

    def __init__(self, prefix: str, change: Callable[[Planted, dict[str, Any], Act], Any]) -> None:
        super().__init__(MONGODB)
        self.prefix = prefix
        self.change = change
        self.is_spoilt = False

    def run(self, name: str, filter: dict[str, Any], act: Act) -> Any:
        changed = act
        if self.is_spoilt and name.startswith(self.prefix):
            changed = lambda: self.change(self, filter, act)  # noqa: E731
        return super().run(name, filter, changed)

    def alter(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change every session that is stored."""
        for id_, raw in self.documents.items():
            document = bson.decode(raw)
            if "data" in document:
                change(document)
                self.documents[id_] = bson.encode(document)


def _forgets(server: Planted, _: Any, act: Act) -> Any:
    before = dict(server.documents)
    answer = act()
    server.hold(before)
    return answer


def _deletes_nothing(server: Planted, filter: dict[str, Any], act: Act) -> Any:
    return _forgets(server, filter, act)


def _loses_other_keys(server: Planted, _: Any, act: Act) -> Any:
    answer = act()
    server.alter(lambda document: document["data"].pop("cart", None))
    return answer


def _notes_the_reader(server: Planted, filter: dict[str, Any], act: Act) -> Any:
    answer = act()
    if isinstance(filter.get("_id"), str):
        server.alter(lambda document: document["data"].update(read=True))
    return answer


def _session(id_: str, **data: Any) -> bytes:
    now = datetime(2100, 1, 1, 12, tzinfo=timezone.utc)
    moments = {"created_at": now, "seen_at": now, "expires_at": now + timedelta(days=1)}
    return bson.encode({"_id": id_, "v": 1, "data": data, "owner": None} | moments)


def _upserts(server: Planted, filter: dict[str, Any], act: Act) -> Any:
    id_, found = filter["_id"], act()
    if not found and id_ not in server.documents:
        server.documents[id_] = _session(id_)
        return [b""]
    return found


def _acknowledges_all(_: Planted, __: Any, act: Act) -> Any:
    return act() or [b""]


def _deletes_all(server: Planted, _: Any, act: Act) -> Any:
    count = act()
    server.hold({})
    return count


def _shows_marks(_: Planted, filter: dict[str, Any], act: Act) -> Any:
    def shown(found: Any) -> Any:
        is_look = isinstance(found, bytes)
        is_mark = is_look and "data" not in bson.decode(found)
        return _session(filter["_id"], base="base") if is_mark else found

    return [shown(found) for found in act()]


def _shows_nothing(_: Planted, __: Any, act: Act) -> Any:
    act()
    return []


def _adds_a_key(server: Planted, _: Any, act: Act) -> Any:
    act()
    server.alter(lambda document: document["data"].update(device="of Bob"))


def _counts_one_more(_: Planted, __: Any, act: Act) -> Any:
    found = act()
    return found + found[:1]


def _refuses(_: Planted, __: Any, act: Act) -> Any:
    act()
    raise OperationFailure("no", 1)


def _turns_back_time(server: Planted, _: Any, act: Act) -> Any:
    answer = act()
    server.alter(lambda one: one.update(seen_at=one["seen_at"] - timedelta(hours=1)))
    return answer


PLANTED = [
    ("1 lost", "update_one", _forgets, "set", "read"),
    ("1 whole", "update_one", _loses_other_keys, "set", "read"),
    ("2 reader", "find", _notes_the_reader, "read", "read"),
    ("3 revived", "update_one", _upserts, "read+set", "logout"),
    ("3 after the end", "update_one", _acknowledges_all, "read", "logout"),
    ("3 by whom", "delete", _deletes_all, "logout", "set"),
    ("4 old token", "find", _shows_marks, "read", "rotate"),
    ("4 logout", "delete", _deletes_nothing, "logout", "read"),
    ("4 login", "insert", _forgets, "login", "read"),
    ("4 owner", "insert", _adds_a_key, "login", "read"),
    ("5 winners", "find_one_and_update", _forgets, "rotate", "rotate"),
    ("6 seen", "find", _shows_nothing, "read", "set"),
    ("7 final", "update_many", _deletes_nothing, "revoke all", "read"),
    ("7 count", "update_many", _counts_one_more, "revoke all", "read"),
    ("answer", "update_one", _refuses, "set", "read"),
    ("moments", "update_one", _turns_back_time, "set", "read"),
]


def found_by(server: Server, *kinds: str, wrap: Any = None, start: str = "member") -> set[str]:
    """Return which promises are broken when these requests meet."""
    world = World(server)
    explorer = Explorer(world)
    explorer.explore([])
    if isinstance(server, Planted):
        server.is_spoilt = True
    if wrap is not None:
        world.app = wrap(world.app)
    tokens = ("new",) * len(kinds)
    report = explorer.explore([Scene(start, kinds, tokens)])
    assert report.orders
    assert all(finding.story for finding in report.broken.values())
    return set(report.broken)


@pytest.mark.parametrize(
    ("promise", "command", "change", "one", "other"), PLANTED, ids=[row[0] for row in PLANTED]
)
def test_a_planted_fault_is_found(
    promise: str, command: str, change: Any, one: str, other: str
) -> None:
    assert promise in found_by(Planted(command, change), one, other)
    assert promise not in found_by(Server(MONGODB), one, other)


def _early(app: Any) -> Any:
    """Answer before the session is stored."""

    def wrapped(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        responded = environ["explore.play"].responded
        body = app(environ, start_response)
        environ["explore.play"].responded = responded
        return body

    return wrapped


def _with_cookies(change: Callable[[str | None], str | None]) -> Any:
    """Return what changes the Set-Cookie of each response."""

    def wrap(app: Any) -> Any:
        def wrapped(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
                cookie = change(dict(headers).get("Set-Cookie"))
                kept = [pair for pair in headers if pair[0] != "Set-Cookie"]
                kept += [("Set-Cookie", cookie)] if cookie is not None else []
                return start_response(status, kept, *rest)

            return app(environ, start)

        return wrapped

    return wrap


def test_a_response_before_its_commit_is_found() -> None:
    assert "6 in time" in found_by(Server(MONGODB), "set", "read", wrap=_early)


def test_a_cookie_that_is_missing_is_found() -> None:
    wrap = _with_cookies(lambda cookie: None)
    assert "6 outside" in found_by(Server(MONGODB), "rotate", "read", wrap=wrap)


def test_a_cookie_of_nobody_is_found() -> None:
    wrap = _with_cookies(lambda cookie: f"sid={'x' * 43}")
    assert "cookie" in found_by(Server(MONGODB), "read", "read", wrap=wrap)


def test_a_request_without_an_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def retrieve_for_ever(play: Play) -> None:
        while True:
            play.world.store.retrieve("x" * 43)

    monkeypatch.setitem(BY_NAME, "endless", Kind("endless", "reads", main=retrieve_for_ever))
    assert "endless" in found_by(Server(MONGODB), "endless")


def test_more_sessions_than_the_limit_are_found() -> None:
    world = World(Server(MONGODB))
    explorer = Explorer(world)
    world.limit = 1
    report = explorer.explore([Scene("visitor", ("login",), ("new",))])
    assert "limit" in report.broken


def test_every_promise_has_a_fault_that_is_found() -> None:
    others = {"6 in time", "6 outside", "cookie", "endless", "limit"}
    assert {row[0] for row in PLANTED} | others == set(PROMISES)


# The explorer.


def outcomes_of(tried: Orders, *, remembers: bool = True) -> set[Any]:
    """Return what can come of the orders, as far as anybody can tell."""
    found = set()
    for world in tried:
        if not remembers:
            world.forget()
        answers = tuple(
            (visit.local.status, visit.cookie, repr(visit.local.seen), repr(visit.local.error))
            for visit in world.visits
        )
        found.add((answers, frozenset(world.server.documents.items())))
    return found


@pytest.mark.parametrize(
    ("kinds", "faulty"),
    [
        (("read+set", "read+rotate"), True),
        (("login", "logout"), True),
        (("revoke all", "read+login"), False),
        (("set", "read+rotate", "revoke"), False),
        (("a minute", "read+logout"), False),
        (("devices", "rotate"), False),
    ],
    ids=str,
)
def test_what_is_left_out_has_been_tried(kinds: tuple[str, ...], faulty: bool) -> None:
    world = World(Server(MONGODB))
    with quietly(), in_place_of(world.replacements()):
        start = starts_of(world)["member"]
        chosen = [BY_NAME[name] for name in kinds]
        tokens = [start.tokens["new"]] * len(kinds)
        one, all_, anew = (
            Orders(world, start, chosen, tokens, faulty=faulty, reduced=reduced)
            for reduced in (True, False, True)
        )
        outcomes = outcomes_of(one)
        assert outcomes == outcomes_of(all_)
        assert outcomes == outcomes_of(anew, remembers=False)
    assert one.count.orders <= all_.count.orders
    assert one.count == anew.count


@pytest.mark.parametrize(
    ("start", "tokens", "kinds", "count"),
    [
        ("member", ("new", "new"), ("set", "set"), 2),
        ("visitor", ("new", "new"), ("read", "read"), 1),
        ("rotated", ("old", "new"), ("read", "read"), 1),
        ("nobody", ("new", "new"), ("login", "login"), 1),
    ],
)
def test_as_many_orders_are_tried_as_there_are(
    start: str, tokens: tuple[str, ...], kinds: tuple[str, ...], count: int
) -> None:
    world = World(Server(MONGODB))
    with quietly(), in_place_of(world.replacements()):
        tried = orders(world, starts_of(world), Scene(start, kinds, tokens), BY_NAME)
        for one in tried:
            assert History(one, Views(one)).steps
    assert tried.count.orders == count


def test_who_waits_sees_what_others_do_or_has_waited_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(Server(MONGODB))
    wait = world.replacements()[time.sleep]

    def wait_for_the_other(play: Play) -> None:
        for _ in range(5):
            session = world.store.retrieve(str(play.token))
            if session is not None and "of B" in session:
                play.status = "came"
                return
            wait(1.0)
        play.status = f"gave up after {world.time.passed} s"

    waits = Kind("wait", "waits", main=wait_for_the_other)
    with quietly(), in_place_of(world.replacements()):
        start = starts_of(world)["visitor"]
        tried = Orders(world, start, [waits, BY_NAME["set"]], [start.tokens["new"]] * 2)
        outcomes = {one.visits[0].local.status for one in tried}
    assert outcomes == {"came", "gave up after 5.0 s"}
    assert tried.count.orders < 10


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--sets", "pairs", "--engines", "mongodb", "--starts", "visitor", "--jobs", "1"]
    assert main([*chosen, "--kinds", "read,set"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "engine",
        "set",
        "meetings",
        "orders",
        "seconds",
        "broken",
        "promises",
    ]
    assert lines[-1].split()[1:3] == ["3", "5"]
    with pytest.raises(SystemExit):
        main(["--kinds", "sing"])
    assert "'sing' is none of: read" in capsys.readouterr().err


def test_an_interruption_is_told_in_one_line() -> None:
    command = [sys.executable, "-m", "tests.explore", "--sets", "faults", "--jobs", "2"]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(machine.children(process.pid)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # As a terminal sends a Ctrl-C.
    assert process.communicate(timeout=60)[1] == "\nexplore: interrupted\n"
    assert process.returncode == tool.INTERRUPTED


def test_without_a_choice_the_plan_is_explored() -> None:
    parse = _parser().parse_args
    assert _chosen(parse([])) == PLAN
    assert {name for name, _ in PLAN} < SETS.keys()
    assert {engine for _, engine in PLAN} == engines().keys()
    assert _chosen(parse(["--sets", "pairs"])) == [("pairs", engine) for engine in engines()]
    chosen = _chosen(parse(["--engines", "sealed", "--sets", "pairs,triples"]))
    assert chosen == [("pairs", "sealed"), ("triples", "sealed")]


STORY = """\
member: revoke all | read
7 final: what was revoked is not live, and nothing that was regenerated from it.
At first, Alice has a session that is due to be renewed.
A revokes all sessions of Alice.
B reads.
  1. A looks for the sessions of an owner: 2 found.
"""


def test_a_fault_is_told_as_a_story() -> None:
    explorer = Explorer(World(Planted("update_many", _deletes_nothing)))
    explorer.explore([])
    explorer.world.server.is_spoilt = True  # type: ignore[attr-defined]
    scene = Scene("member", ("revoke all", "read"), ("new", "new"))
    story = explorer.explore([scene]).broken["7 final"].story
    assert story.startswith(STORY)
    assert story.endswith("But P1 is live after A has ended it.")

"""What a request costs, as far as that is exact: bytes on the wire, and calls of our functions.

`make bench` measures time. These figures are the same on every machine, so a request that has
become more expensive fails here. One that has become cheaper is to lower its bound.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import bson
import pytest
from pymongo.monitoring import CommandStartedEvent

import mongosession_wsgi
from mongosession_wsgi import MongoStore, SessionMiddleware

from .bench.__main__ import RESULTS
from .bench.child import Visitor
from .bench.contenders import CONTENTS, KINDS, PROCESSES, fill, plain, touch
from .bench.measure import Process
from .bench.report import ROOT, page_of, picture_of, readme_of
from .commands import RECORDER

PACKAGE = str(Path(mongosession_wsgi.__file__).parent)


def use(kind: str, environ: dict[str, Any]) -> None:
    session = environ["mongosession"]
    match kind:
        case "fill":
            fill(session, environ)
        case "login":
            session.login("alice")
        case "logout":
            session.destroy()
        case _:
            touch(kind, session)


@pytest.fixture
def visitor(settings: dict[str, Any], store: MongoStore) -> Visitor:
    app = SessionMiddleware(plain(use), settings | {"session_secure": True}, store=store)
    return Visitor(app, CONTENTS["50 keys"])


def calls_of(act: Callable[[], object]) -> int:
    """Return how often functions of the package were called."""
    called = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal called
        code = frame.f_code
        # Python 3.12 has no frames of comprehensions any more.
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name[0] != "<":
            called += 1

    sys.setprofile(profile)
    try:
        act()
    finally:
        sys.setprofile(None)
    return called


CALLS = {
    "untouched": 13,
    "read": 43,
    "set": 33,
    "read+set": 58,
    "first visit": 48,
    "login": 186,
    "logout": 36,
    "nested": 176,
}


@pytest.mark.parametrize(("kind", "most"), CALLS.items())
def test_a_request_calls_no_more_functions_than_it_did(
    visitor: Visitor, kind: str, most: int
) -> None:
    visitor.prepare(kind)
    assert calls_of(lambda: visitor.request(kind)) <= most


BYTES = {
    "read": 130,
    "set": 366,
    "read+set": 466,
    "first visit": 264,
    "login": 6492,
    "logout": 352,
    "nested": 633,
}


@pytest.mark.parametrize(("kind", "size"), BYTES.items())
def test_a_request_sends_no_more_bytes_than_it_did(visitor: Visitor, kind: str, size: int) -> None:
    visitor.prepare(kind)
    with RECORDER.request() as commands:
        visitor.request(kind)
    assert sum(own_size_of(event) for event in commands) <= size


def own_size_of(event: CommandStartedEvent) -> int:
    """Return the bytes of a command without what the driver adds for its sessions and clocks."""
    added = ("lsid", "txnNumber")
    own = {k: v for k, v in event.command.items() if k not in added and not k.startswith("$")}
    return len(bson.encode(own))


def test_the_instrument_measures(mongodb_uri: str, database: str) -> None:
    process = Process(mongodb_uri, database, PROCESSES[0])
    try:
        for name in PROCESSES[0]:
            for kind in KINDS:
                assert len(process.ask("run", name, kind, [3, 5], 2)) == 2
        wire = process.ask("count", "ours", "read+set", [3, 5])
        assert wire["commands"] == ["find", "update"]
        assert wire["sent"] > wire["received"] / 10 > 0
        assert process.ask("threads", "ours", [3, 5], 4, 8) > 0
    finally:
        process.end()


def test_the_report_is_that_of_the_figures() -> None:
    figures = json.loads(RESULTS.read_text())
    assert (ROOT / "docs/benchmarks.md").read_text() == page_of(figures)
    assert (ROOT / "docs/pictures/bench-cpu.svg").read_text() == picture_of(figures)
    assert readme_of(figures) in (ROOT / "README.md").read_text()

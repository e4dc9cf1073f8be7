"""What a request costs, as far as that is exact: bytes on the wire, and calls of our functions.

`make bench` measures time. These figures are the same on every machine, so a request that has
become more expensive fails here. One that has become cheaper is to lower its bound.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import bson
import pytest
from pymongo.monitoring import CommandStartedEvent

import mongosession_wsgi
from mongosession_wsgi import MongoStore

from .bench import bars, measure, report, seals
from .bench.contenders import LARGE, ROWS, SMALL, Contents, Floor, Row, ours, ours_sealed
from .bench.contest import TOGETHER, runs
from .bench.measure import AT_A_TIME, UNTOUCHED_AT_A_TIME, in_turns, started
from .bench.memory import HELD_KINDS
from .bench.peers import flask_ours
from .bench.report import ROOT, files_of, readme_of
from .bench.visitor import Visitor
from .commands import RECORDER

pytestmark = pytest.mark.unmeasured

PACKAGE = str(Path(mongosession_wsgi.__file__).parent)


def visitor_of(app: Callable[..., Any], kind: str) -> Visitor:
    """Return a visitor whose application has connected and made its indexes."""
    visitor = Visitor(app, Row(kind, LARGE))
    for _ in range(2):
        visitor.prepare()
        visitor.visit()
    visitor.prepare()
    return visitor


def store_of(app: Any) -> MongoStore:
    """Return the store of an application of this package, of Flask or without a framework."""
    flask = getattr(app, "session_interface", None)
    exchanges = flask._exchanges_of(app) if flask else app._exchanges
    store: MongoStore = exchanges.store
    return store


@pytest.fixture
def made(mongodb_uri: str, database: str) -> Iterator[Callable[..., Any]]:
    """Make applications of this package, and close their clients after the test."""
    with ExitStack() as stack:

        def make(contender: Callable[..., Any]) -> Any:
            app = contender(mongodb_uri, database)
            stack.callback(store_of(app).close)
            return app

        yield make


@pytest.fixture
def visit(made: Callable[..., Any]) -> Callable[[str], Visitor]:
    app = made(ours)

    def visitor(kind: str) -> Visitor:
        ready = visitor_of(app, kind)
        store_of(app)._sessions._indexes.wait(10)  # Until then, inserts ask for them.
        return ready

    return visitor


def calls_of(act: Callable[[], object]) -> int:
    """Return how often functions of the package were called."""
    called = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal called
        code = frame.f_code
        # Python 3.12 has no frames of comprehensions any more.
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name[0] != "<":
            called += 1

    gc.disable()  # It would end the clients of earlier tests just now, by functions of ours.
    sys.setprofile(profile)
    try:
        act()
    finally:
        sys.setprofile(None)
        gc.enable()
    return called


CALLS = {
    "untouched": 9,
    "first visit": 63,
    "read": 59,
    "set": 52,
    "read and set": 82,
    "nested change": 115,
    "log in": 128,
    "log out": 50,
}
"""The calls; a session that is opened at its first use, and moments, numbers and the driver's
sessions that are kept by us and not by the driver, take more calls than they did, and less time."""


@pytest.mark.parametrize(("kind", "most"), CALLS.items())
def test_a_request_calls_no_more_functions_than_it_did(
    visit: Callable[[str], Visitor], kind: str, most: int
) -> None:
    assert calls_of(visit(kind).visit) <= most


@pytest.mark.parametrize("contender", [ours, ours_sealed, flask_ours])
@pytest.mark.parametrize("kind", CALLS)
def test_a_request_leaves_nothing_to_the_garbage_collector(
    made: Callable[..., Any], contender: Any, kind: str
) -> None:
    visitor = visitor_of(made(contender), kind)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        visitor.visit()
        gc.collect()
        # Threads of the driver may leave something, too.
        left = {type(one).__name__ for one in gc.garbage if is_of_the_package(type(one))}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


def is_of_the_package(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "mongosession_wsgi"


BYTES = {
    "untouched": 0,
    "first visit": 278,
    "read": 105,
    "set": 390,
    "read and set": 438,
    "nested change": 521,
    "log in": 6449,
    "log out": 352,
}


# A set without a look asks also for the last use and the kind of idle time (37 bytes), so that the
# times of now hold for what is stored. A login leaves no label behind, and asks for another owner.
@pytest.mark.parametrize(("kind", "size"), BYTES.items())
def test_a_request_sends_no_more_bytes_than_it_did(
    visit: Callable[[str], Visitor], kind: str, size: int
) -> None:
    assert sum(map(own_size_of, commands_of(visit(kind)))) <= size


@pytest.mark.parametrize(("kind", "more"), [("read", 0), ("set", 62), ("read and set", 62)])
def test_a_seal_sends_no_more_commands_and_few_more_bytes(
    made: Callable[..., Any], kind: str, more: int
) -> None:
    plain, sealed = (commands_of(visitor_of(made(one), kind)) for one in (ours, ours_sealed))
    assert [one.command_name for one in sealed] == [one.command_name for one in plain]
    assert sum(map(own_size_of, sealed)) - sum(map(own_size_of, plain)) <= more


def commands_of(visitor: Visitor) -> list[CommandStartedEvent]:
    with RECORDER.request() as commands:
        visitor.visit()
    return commands


def own_size_of(event: CommandStartedEvent) -> int:
    """Return the bytes of a command without what the driver adds for its sessions and clocks."""
    return len(bson.encode(without(["lsid", "txnNumber"], event)))


def without(names: Sequence[str], event: CommandStartedEvent) -> dict[str, Any]:
    return {k: v for k, v in event.command.items() if k not in names and not k.startswith("$")}


@pytest.mark.parametrize("kind", ["read", "read and set", "nested change"])
def test_the_floor_asks_mongodb_what_we_ask_it(
    made: Callable[..., Any], mongodb_uri: str, database: str, kind: str
) -> None:
    floor = Floor(mongodb_uri, database)
    with floor.client:
        asked = [
            [form_of(event) for event in commands_of(visitor_of(app, kind))]
            for app in (made(ours), floor)
        ]
    assert asked[0] == asked[1]


def form_of(event: CommandStartedEvent) -> str:
    """Return a command without what the driver's methods add, and what differs each time."""
    command = without(["lsid", "txnNumber", "limit", "singleBatch", "ordered"], event)
    for update in command.get("updates", ()):
        for name in ("multi", "upsert"):
            update.pop(name, None)
    command = dict(sorted(command.items()))
    text = str(bson.decode(bson.encode(command)))
    text = re.sub(r"datetime\.datetime\([^)]*\)", "(moment)", text)
    text = re.sub(r"'[\w-]{43}'", "(id)", text)
    return re.sub(r"value \d+|'maxTimeMS': \d+", "(some)", text)


def test_the_instrument_measures(mongodb_uri: str) -> None:
    row = Row("read and set", SMALL)
    with started(mongodb_uri, [TOGETHER], counts=True) as processes:
        assert tuple(processes) == TOGETHER
        for one in [row for row in ROWS if row.contents is SMALL]:
            names = [name for name in TOGETHER if runs(name, one)]
            spent = in_turns(processes, names, one, turns=1)
            number = UNTOUCHED_AT_A_TIME if one.kind == "untouched" else AT_A_TIME
            assert {name: len(of) for name, of in spent.items()} == dict.fromkeys(names, number)
        wire = processes["ours"].ask("count", "ours", row)
        assert wire["commands"] == ["find", "update"]
        assert wire["sent"] > 500
        assert wire["received"] > 500
        assert processes["ours"].ask("threads", "ours", row, 4, 2)["rate"] > 0
        assert processes["ours"].ask("memory") > 10_000
        held = [processes["ours"].ask("held", "ours", Row(kind, SMALL), 100) for kind in HELD_KINDS]
        assert 0 < held[0] < held[1]
        assert processes["bare"].ask("held", "bare", ROWS[0], 100) < held[0]


def test_the_figures_of_sealed_sessions(mongodb_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seals, "TURNS", 1)
    rows = [Row(kind, of) for of in (SMALL, Contents(50, 5)) for kind in ("read", "read all")]
    monkeypatch.setattr(measure, "SEALED_ROWS", rows)
    figures = report.saved()
    assert "## Sealed sessions" not in report.page_of(figures | {"sealed": {}})
    figures["sealed"] = json.loads(json.dumps(measure.sealed(mongodb_uri, 1, lambda _: None)))
    assert set(figures["sealed"]["alone"]) == set(seals.alone())
    assert [bar.most for bar in bars.sealed_bars_of(figures)] == [25 / 160] * 3 + [100 / 160]
    text, page = report.as_text(figures), report.page_of(figures)
    assert "read all, 50 keys" in text
    assert "| read all, 50 keys |" in page


def test_the_report_is_that_of_the_figures() -> None:
    figures = report.saved()
    for file, text in files_of(figures).items():
        assert file.read_text() == text
    assert readme_of(figures) in (ROOT / "README.md").read_text()


def test_a_page_has_the_sections_that_were_measured_and_says_where() -> None:
    figures = report.saved()
    titles = re.findall("(?m)^## .*", report.page_of(figures))
    for part, title in {
        "sealed": "## Sealed sessions",
        "throughput": "## Requests a second",
        "crowded": "## Requests a second with many sessions",
        "held": "## Memory",
        "database": "## What the database does",
    }.items():
        page = report.page_of({name: of for name, of in figures.items() if name != part})
        assert re.findall("(?m)^## .*", page) == [one for one in titles if one != title]
    elsewhere = figures["settings"]["wire"] | {"date": "1999-12-31"}
    moved = figures | {"settings": figures["settings"] | {"wire": elsewhere}}
    assert report.page_of(moved).count("Measured at another time: 1999-12-31") == 1


@pytest.mark.parametrize(
    "part", [name for name in report.saved() if name not in ("settings", "memory", "wire by keys")]
)
def test_each_part_of_a_run_is_told_without_the_others(part: str) -> None:
    saved = report.saved()
    assert len(report.as_text({"settings": saved["settings"], part: saved[part]})) > 100


def test_a_run_of_some_parts_leaves_the_others_as_they_are() -> None:
    saved, run = report.saved(), {"held": {}, "settings": {"held": {"date": "1999-12-31"}}}
    both = report.merged(saved, run)
    assert both["held"] == {}
    assert both["time"] == saved["time"]
    assert both["settings"]["held"] == {"date": "1999-12-31"}
    assert both["settings"]["time"] == saved["settings"]["time"]
    assert report.merged(saved, {}) == saved


def test_tables_outside_of_folds_are_narrow() -> None:
    page = re.sub("<details>.*?</details>", "", report.page_of(report.saved()), flags=re.DOTALL)
    assert max(line.count("|") for line in page.splitlines()) <= 6

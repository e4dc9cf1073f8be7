"""Requests a second are measured of whole applications, and of what they are said to be."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo import MongoClient

from .bench import memory, throughput
from .bench.bars import Rate, rates_of, to
from .bench.crowd import Crowd, cookie_of, is_whole, request_of

pytest.importorskip("gunicorn")
pytestmark = [pytest.mark.server, pytest.mark.unmeasured]

OURS = ("floor", "ours")


def tell(_: str) -> None: ...


@pytest.mark.parametrize("worker", throughput.WORKERS)
def test_a_crowd_is_answered_and_each_browser_keeps_its_session(
    worker: str, mongodb_uri: str
) -> None:
    with throughput.served(mongodb_uri, ["ours"], throughput.WORKERS[worker]) as apps:
        port = apps["ours"].port
        cookies = [cookie_of(port) for _ in range(3)]
        assert len(set(cookies)) == 3
        with Crowd(port, [[request_of("read and set", one)] for one in cookies]) as crowd:
            took, times = crowd.ask(seconds=60, most=9)
        with MongoClient[Any](mongodb_uri) as client:
            stored = list(client[apps["ours"].database]["sessions"].find())
    assert 9 <= len(times) <= 9 + 3
    assert 0 < max(times) <= took
    assert len(stored) == 3, "no request has begun a session of its own"
    assert len({one["data"]["key000"] for one in stored}) == 3


def test_an_answer_that_is_an_error_ends_the_run(mongodb_uri: str) -> None:
    with throughput.served(mongodb_uri, ["ours"], ["--threads=2"]) as apps:
        crowd = Crowd(apps["ours"].port, [[request_of("read")]])  # No cookie, so no such key.
        with pytest.raises(SystemExit, match=r"answered b'HTTP/1.1 500"), crowd:
            pass


def test_the_figures_of_a_run(mongodb_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "CONNECTIONS", (1, 2))
    monkeypatch.setattr(throughput, "SECONDS", 0.05)
    found = throughput.measured(mongodb_uri, 2, tell, ["gthread"], [OURS])
    crowded = throughput.by_sessions(mongodb_uri, (30,), 2, tell)
    for kinds in (*found["cells"]["gthread"].values(), *crowded.values()):
        for by in kinds.values():
            assert set(by) == set(OURS)
            for cell in by.values():
                assert len(cell["rate"]) == 2
                assert min(cell["rate"]) > 0
                half, most, nearly_all = cell["ms"]
                assert 0 < half <= most <= nearly_all
    assert set(crowded) == {"30"}
    rates = {rate.what: rate for rate in rates_of({"throughput": found})}
    assert set(rates["set, to the floor"].found) == {"gthread, 1", "gthread, 2"}


def test_a_bar_holds_if_all_of_its_cells_do() -> None:
    assert to([1, 2, 9], [2, 4, 3]) == 0.5
    assert Rate("read", {"sync, 1": 0.98, "sync, 8": 0.97}, 0.97).verdict == "holds"
    assert Rate("read", {"sync, 1": 0.98, "sync, 8": 0.96}, 0.97).verdict == "holds in 1 of 2"
    row = Rate("read", {"sync, 1": 0.9}, 0.97).row()
    assert row == ["read", "0.90", "0.90 (sync, 1)", "0.97", "does not hold"]


def test_the_memory_of_a_worker(mongodb_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "THREADS", (1, 2))
    monkeypatch.setattr(memory, "REQUESTS", 20)
    found = memory.measured(mongodb_uri, tell, ["bare", "ours"])
    assert set(found["held"]["ours"]) == set(memory.HELD_KINDS)
    assert found["workers"]["ours"]["2"] > found["workers"]["bare"]["1"] > 10_000


def test_a_body_ends_after_its_length_or_its_last_chunk() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2"
    assert [is_whole(head, body) for body in (b"", b"o", b"ok")] == [False, False, True]
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"
    assert not is_whole(head, b"2\r\nok\r\n")
    assert is_whole(head, b"2\r\nok\r\n0\r\n\r\n")

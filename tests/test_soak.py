"""A short run of the soak, and leaks that it is to find."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from . import soak
from .soak import Held, Row, Soak, grown, main, soak_on, verdict

pytestmark = pytest.mark.unmeasured


def test_a_process_in_memory_holds_no_more_after_many_requests(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--requests", "800", "--server", "none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "requests"
    assert [line.split()[0] for line in lines[1:11]] == [f"{n:,}" for n in range(80, 801, 80)]
    assert lines[-1] == "All is flat from the second tenth on."


@pytest.mark.server
def test_a_process_with_a_server_holds_no_more_after_many_requests_and_faults(
    mongodb_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "FAULT_EVERY", 10)
    with soak_on(mongodb_uri) as soaked:
        rows = soaked.run(1200)
    assert verdict(rows) == []
    assert max(row.held.connections for row in rows) > 0
    assert rows[-1].answers.total() == 1200


def _keeps_memory(kept: ExitStack) -> None:
    kept.push(lambda *_, held=bytes(range(256)) * 200: None)


def _keeps_descriptors(kept: ExitStack) -> None:
    kept.callback(os.close, os.open(os.devnull, os.O_RDONLY))


def _keeps_threads(kept: ExitStack) -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    kept.callback(thread.join)
    kept.callback(end.set)


@pytest.mark.parametrize(
    ("leak", "grows"),
    [
        (_keeps_memory, "Memory grows."),
        (_keeps_descriptors, "The descriptors grow."),
        (_keeps_threads, "The threads grow."),
    ],
)
def test_what_a_request_leaves_behind_is_found(
    leak: Callable[[ExitStack], None], grows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as kept, soak_on(None) as soaked:
        monkeypatch.setattr(soak.Shop, "request", lambda self: leak(kept) or "200")
        assert grows in verdict(soaked.run(400))


def held(**more: int) -> Held:
    return Held(10**8, 10, 5, 4)._replace(**more)


@pytest.mark.parametrize("name", Held._fields)
def test_growth_counts_from_the_second_tenth_on(name: str) -> None:
    def rows(*additions: int) -> Iterator[Row]:
        for number, more in enumerate(additions):
            value = getattr(held(), name) + more * soak.SLACK[name]
            yield Row(number, 0.0, held(**{name: value}))

    assert grown(list(rows(0, 5, 5, 6))) == []
    assert grown(list(rows(5, 0, 2, 0))) == [name]


def test_an_answer_that_nobody_expects_is_told() -> None:
    row = Row(10, 0.0, held(), Counter({"200": 9, "404": 1}))
    assert verdict([row]) == ["1 requests ended in 404."]


def test_a_soak_without_a_server_has_no_connections() -> None:
    with soak_on(None) as soaked:
        assert isinstance(soaked, Soak)
        assert {row.held.connections for row in soaked.run(100)} == {0}

"""Servers of several processes: no request fails, no warning, every visitor's counter exact."""

from __future__ import annotations

import pytest

from . import load
from .load import Fault, Server

pytestmark = pytest.mark.unmeasured


def _faults(row: load.Row) -> dict[str, int]:
    return {fault.value: count for fault, count in row.faults.items() if count}


@pytest.mark.parametrize("server", load.servers(workers=2), ids=lambda server: server.title)
def test_parallel_clients_are_served(server: Server, mongodb_uri: str) -> None:
    if server.missing:
        pytest.skip(server.missing)

    row = load.put_under_load(server, mongodb_uri, 60)

    assert _faults(row) == {}, row.words
    assert row.requests >= 60
    assert row.pids >= server.workers


def test_the_table_says_what_went_wrong_and_with_how_many_requests() -> None:
    good, bad = (load.Row(server, requests=7) for server in load.servers()[:2])
    bad.faults[Fault.FAILED] = 3

    lines = load.table([good, bad]).splitlines()

    heads = ["requests", *(fault.value for fault in Fault)]
    assert all(head in lines[0] for head in heads)
    end = lines[0].index(Fault.FAILED.value) + len(Fault.FAILED.value)
    assert [line[:end].split()[-1] for line in lines[1:]] == ["0", "3"]
    assert len({len(line) for line in lines}) == 1
    assert "\033[31m" in load.table([bad], is_coloured=True)
    assert "\033[31m" not in load.table([good], is_coloured=True)

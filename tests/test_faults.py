"""Every fault and every page of `faults.py`, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .faults import FAULTS, Fault, Rig, Server, durability, leaks, rigs, run

pytestmark = pytest.mark.server

TIMEOUT = 1.0
CHEAP = [fault for fault in FAULTS if "11602" not in fault.name and "189" not in fault.name]
"""Two of the four codes of an election are left to `make faults`: the driver takes all alike."""
LONGEST = 20.0
"""Seconds after which a page hangs; how long it takes is for `make faults` to say."""


@pytest.fixture(scope="module")
def rig_of() -> Iterator[Callable[[Server], Rig]]:
    with rigs(TIMEOUT) as rig_of:
        yield rig_of


@pytest.mark.parametrize("fault", CHEAP, ids=lambda fault: fault.name)
def test_every_page_ends_as_it_must(fault: Fault, rig_of: Callable[[Server], Rig]) -> None:
    row = run(rig_of(fault.server), fault)
    assert row.wrong == []
    assert max(visit.seconds for visit in row.during + row.after) < LONGEST


def test_what_was_answered_with_200_is_there_after_sigkill(
    rig_of: Callable[[Server], Rig],
) -> None:
    found = durability(rig_of(Server.REPLICA_SET), 2)
    assert found.acknowledged > 2
    assert found.lost == 0


def test_faults_leave_nothing_behind(rig_of: Callable[[Server], Rig]) -> None:
    found = leaks(rig_of(Server.REPLICA_SET), 7)
    assert found.leaked == {}
    assert found.next_status == 200

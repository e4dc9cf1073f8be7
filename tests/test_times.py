"""When a session dies, as a pure function of its moments and of the settings of now."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pytest

from mongosession_wsgi.document import Record
from mongosession_wsgi.settings import Settings
from mongosession_wsgi.testing.requests import NOW
from mongosession_wsgi.times import Times

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TIMES = Times(expires=14 * DAY, remember=60 * DAY, lifetime=90 * DAY)
ENDLESS = Times(expires=14 * DAY, remember=60 * DAY, lifetime=None)


def record(
    *,
    seen: timedelta = timedelta(),
    created: timedelta = timedelta(),
    expires: timedelta = 14 * DAY,
    remember: bool | None = None,
) -> Record:
    """Return a session that was seen and created so long ago, and expires so far ahead."""
    return Record("a", {}, None, NOW - created, NOW - seen, NOW + expires, remember=remember)


# The earliest of three moments.


class End(NamedTuple):
    """When a session dies: so long from now, or so long ago."""

    of: Record
    times: Times
    end: timedelta


ENDS = {
    "a new session": End(record(), TIMES, 14 * DAY),
    "the stored expiry is earliest": End(record(expires=HOUR), TIMES, HOUR),
    "the stored expiry has come": End(record(expires=-HOUR), TIMES, -HOUR),
    "the idle time is shorter by now": End(record(seen=10 * DAY, expires=50 * DAY), TIMES, 4 * DAY),
    "the idle time is shorter by now and over": End(
        record(seen=15 * DAY, expires=50 * DAY), TIMES, -DAY
    ),
    "the idle time is longer by now: the stored one counts": End(
        record(seen=10 * DAY, expires=DAY), TIMES, DAY
    ),
    "the lifetime is earliest": End(record(created=80 * DAY), TIMES, 10 * DAY),
    "the lifetime is over": End(record(created=91 * DAY), TIMES, -DAY),
    "no lifetime": End(record(created=500 * DAY), ENDLESS, 14 * DAY),
    "remembered": End(record(seen=20 * DAY, expires=40 * DAY, remember=True), TIMES, 40 * DAY),
    "remembered for less by now": End(
        record(seen=20 * DAY, expires=99 * DAY, remember=True), TIMES, 40 * DAY
    ),
    "remembered, and the lifetime is earliest": End(
        record(created=85 * DAY, expires=40 * DAY, remember=True), TIMES, 5 * DAY
    ),
    "not remembered: the longer time does not count": End(
        record(seen=20 * DAY, expires=40 * DAY), TIMES, -6 * DAY
    ),
    "a moment that was said, beyond any idle time": End(
        record(seen=70 * DAY, expires=5 * DAY, remember=False), TIMES, 5 * DAY
    ),
    "a moment that was said, bound by the lifetime": End(
        record(created=85 * DAY, expires=50 * DAY, remember=False), TIMES, 5 * DAY
    ),
    "a moment that was said, without a lifetime": End(
        record(created=500 * DAY, expires=999 * DAY, remember=False), ENDLESS, 999 * DAY
    ),
}


@pytest.mark.parametrize("case", ENDS.values(), ids=ENDS)
def test_a_session_dies_at_the_earliest_of_three_moments(case: End) -> None:
    assert case.times.end_of(case.of) == NOW + case.end


# What a use makes of a session.


class Use(NamedTuple):
    """What is stored of a session that is used now, and is to die `until`."""

    of: Record
    times: Times
    expires: timedelta
    until: timedelta | None = None
    seen: timedelta = timedelta()


USES = {
    "the expiry moves": Use(record(seen=DAY, expires=13 * DAY), TIMES, 14 * DAY),
    "the expiry does not move back": Use(record(expires=20 * DAY), TIMES, 20 * DAY),
    "the expiry does not move past the lifetime": Use(
        record(created=80 * DAY, expires=DAY), TIMES, 10 * DAY
    ),
    "the expiry moves without a lifetime": Use(
        record(created=500 * DAY, expires=DAY), ENDLESS, 14 * DAY
    ),
    "the clock of another server was ahead": Use(record(seen=-HOUR), TIMES, 14 * DAY, seen=HOUR),
    "remembered": Use(record(expires=DAY, remember=True), TIMES, 60 * DAY),
    "a moment that was said stays": Use(record(expires=DAY, remember=False), TIMES, DAY),
    "a moment is said": Use(record(remember=False), TIMES, 30 * DAY, until=30 * DAY),
    "an earlier moment is said": Use(record(remember=False), TIMES, HOUR, until=HOUR),
    "a moment is said beyond the lifetime": Use(
        record(created=80 * DAY, remember=False), TIMES, 10 * DAY, until=30 * DAY
    ),
    "a moment is said, without a lifetime": Use(
        record(created=500 * DAY, remember=False), ENDLESS, 999 * DAY, until=999 * DAY
    ),
}


@pytest.mark.parametrize("case", USES.values(), ids=USES)
def test_a_use_moves_the_expiry_forward(case: Use) -> None:
    until = None if case.until is None else NOW + case.until
    used = case.times.used(case.of, NOW, until)
    assert used.expires_at == NOW + case.expires
    assert used.seen_at == NOW + case.seen
    assert used == case.of._replace(seen_at=used.seen_at, expires_at=used.expires_at)


@pytest.mark.parametrize(
    ("expires", "seen", "remember", "is_due"),
    [
        (14 * DAY, timedelta(minutes=5), None, True),
        (14 * DAY, timedelta(minutes=4, seconds=59), None, False),
        (10 * timedelta(minutes=1), timedelta(minutes=1), None, True),
        (10 * timedelta(minutes=1), timedelta(seconds=59), None, False),
        (10 * timedelta(minutes=1), timedelta(minutes=1), True, False),
        (10 * timedelta(minutes=1), timedelta(minutes=5), True, True),
        (10 * timedelta(minutes=1), timedelta(minutes=4), False, False),
        (10 * timedelta(minutes=1), timedelta(minutes=5), False, True),
        (14 * DAY, -HOUR, None, False),
    ],
)
def test_a_renewal_is_due_after_a_tenth_of_the_idle_time(
    expires: timedelta, seen: timedelta, remember: bool | None, is_due: bool
) -> None:
    times = Times(expires=expires, remember=60 * DAY, lifetime=None)
    assert times.is_renewal_due(record(seen=seen, remember=remember), NOW) is is_due


# What is given a new expiry without a look.


def holds(found: Record, conditions: dict[str, Any]) -> bool:
    """Say whether a session is what conditions of this form ask for."""
    for name, condition in conditions.items():
        value = getattr(found, name)
        if isinstance(condition, dict):
            ((operator, operand),) = condition.items()
            assert operator == "$gt"
            if not value > operand:
                return False
        elif value != condition:
            return False
    return True


MOMENTS = [
    DAY * days for days in (0, 1, 13, 14, 15, 29, 30, 31, 59, 60, 61, 75, 76, 77, 89, 90, 99)
]
EVERY_KIND = [
    record(seen=seen, created=created, expires=expires, remember=kind)
    for seen in MOMENTS
    for created in MOMENTS
    if seen <= created
    for expires in (HOUR, 14 * DAY, 60 * DAY)
    for kind in (None, True, False)
]


@pytest.mark.parametrize(
    "times",
    [
        TIMES,
        ENDLESS,
        Times(expires=14 * DAY, remember=30 * DAY, lifetime=30 * DAY),
        Times(expires=14 * DAY, remember=30 * DAY, lifetime=14 * DAY),
        Times(expires=30 * DAY, remember=30 * DAY, lifetime=DAY),
    ],
    ids=str,
)
@pytest.mark.parametrize("remember", [None, True])
def test_what_is_renewed_unseen_is_renewed_as_with_a_look(
    times: Times, remember: bool | None
) -> None:
    conditions, expires_at = times.unseen(NOW, remember)
    found = [one for one in EVERY_KIND if holds(one, conditions)]
    assert found
    for one in found:
        # It is live by the times of now, of the kind that its token says, and not too old.
        assert times.end_of(one) > NOW
        assert one.remember is remember
        if expires_at is None:  # Stored under these times, it has the end of its lifetime already.
            assert times.lifetime is not None
            one = one._replace(expires_at=one.created_at + times.lifetime)
        assert times.used(one, NOW).expires_at == max(one.expires_at, expires_at or one.expires_at)


def test_a_young_session_of_its_kind_needs_no_look() -> None:
    for kind in (None, True):
        conditions, expires_at = TIMES.unseen(NOW, kind)
        assert holds(record(remember=kind), conditions)
        assert expires_at == NOW + (60 if kind else 14) * DAY
        for other in {None, True, False} - {kind}:
            assert not holds(record(remember=other), conditions)


# The settings.


@pytest.mark.parametrize(
    ("settings", "times"),
    [
        ({}, Times(14 * DAY, 30 * DAY, 30 * DAY)),
        ({"session_expires": "2 hours"}, Times(2 * HOUR, 30 * DAY, 30 * DAY)),
        ({"session_remember": "60 days"}, Times(14 * DAY, 60 * DAY, 30 * DAY)),
        ({"session_lifetime": "none"}, Times(14 * DAY, 30 * DAY, None)),
        ({"session_lifetime": "1 day"}, Times(14 * DAY, 30 * DAY, DAY)),
    ],
    ids=str,
)
def test_the_settings_say_the_times(settings: dict[str, Any], times: Times) -> None:
    assert Times.of(Settings.parse({"mongodb_session_db": "x"} | settings)) == times


def test_a_new_session_lives_for_its_idle_time_or_its_lifetime() -> None:
    def of(times: Times, idle_until: datetime) -> timedelta:
        return times.expiry(NOW, idle_until) - NOW

    assert of(TIMES, NOW + 60 * DAY) == 60 * DAY
    assert of(TIMES, NOW + 99 * DAY) == 90 * DAY
    assert of(ENDLESS, NOW + 99 * DAY) == 99 * DAY
    assert of(Times(14 * DAY, 60 * DAY, DAY), NOW + 14 * DAY) == DAY

"""Hold what requests saw, and how they were answered, against what was there."""

from __future__ import annotations

from collections.abc import Iterator

from .deeds import result_of
from .history import NOTHING_THERE, Form, History, View, names
from .script import Seen
from .verdict import Broken
from .world import Visit


def sights(history: History) -> Iterator[Broken]:
    """Find requests that saw what was not there."""
    for visit in history.visits:
        for seen in visit.local.seen:
            if not any(_fits(visit, seen, view) for view in _shown(history, visit, seen)):
                old = {Form.MARK, Form.STONE}.intersection(history.forms(visit))
                words = f"{visit.name} saw {seen.data} of {seen.owner}, and that was not there"
                yield Broken("4 old token" if old else "6 seen", words)


def _shown(history: History, visit: Visit, seen: Seen) -> list[View]:
    """Return what a request was shown of its session before it looked."""
    until = visit.moment(seen.steps)
    looks = history.looks(visit, until)
    return [history.view(visit.id, look.number) for look in looks] or [NOTHING_THERE]


def _fits(visit: Visit, seen: Seen, view: View) -> bool:
    data, owner = (view.data, view.owner) if view.is_live else ({}, None)
    return (seen.data, seen.owner) == result_of(visit.local.ops[: seen.ops], data, owner)


def answers(history: History) -> Iterator[Broken]:
    """Find requests that were answered otherwise than they should be, or never."""
    if history.world.is_endless:
        yield Broken("endless", "the requests go on and on")
    for visit in history.visits:
        if visit.has_died or visit.pending is not None:
            continue
        status, error = visit.local.status, visit.local.error
        if error is not None:
            if not _may_raise(visit):
                yield Broken("answer", f"{visit.name} has raised {error!r}")
        elif visit.kind.main is None and status not in _expected(visit):
            yield Broken("answer", f"{visit.name} is answered {status}")


def _expected(visit: Visit) -> tuple[str, ...]:
    return (visit.kind.status, *(["503 Service Unavailable"] if visit.faults else []))


def _may_raise(visit: Visit) -> bool:
    name = type(visit.local.error).__name__
    if visit.local.fails and name in ("PlannedError", "SessionDataError"):
        return True
    return bool(visit.faults) and name == "StoreError"


def cookies(history: History) -> Iterator[Broken]:
    """Find responses that set a cookie which they should not set."""
    for visit in history.visits:
        if visit.cookie == "" and not _may_expire(history, visit):
            yield Broken("cookie", f"{visit.name} has expired the cookie, and had ended nothing")
        elif visit.cookie:
            yield from _cookie(history, visit, history.world.id_of(visit.cookie))


def _may_expire(history: History, visit: Visit) -> bool:
    """Say whether a logout has ended a session, or kept one from going on, or cannot know."""
    if not visit.local.destroys:
        return False
    if visit.faults or any(end.visit is visit for end in history.ends):
        return True
    forms = history.forms(visit)
    return bool(forms) and forms[-1] is Form.MARK and history.is_followed(visit.id)


def _cookie(history: History, visit: Visit, id_: str) -> Iterator[Broken]:
    """Hold a cookie to this: its session was live when the request last touched it."""
    responded = visit.responded_at or 0
    own = [one for one in visit.steps if names(one, id_) and one.number < responded]
    if own and history.view(id_, own[-1].number + 1).is_live:
        return
    promise = "cookie"
    if id_ == visit.id:
        promise = "3 after the end" if Form.LIVE in history.forms(visit) else "4 old token"
    words = f"{visit.name} has set the cookie of {history.name(id_)}, which is not live"
    yield Broken(promise, words)


def winners(history: History) -> Iterator[Broken]:
    """Hold what goes on by regeneration to one live session at a time."""
    for root in sorted({heir.old for heir in history.heirs} | {*filter(None, _brought(history))}):
        ids = history.heirs_of(root, logins=False) | _regenerated(history, root)
        for number in range(history.ended_at + 1):
            if len(ids.intersection(history.live(number))) > 1:
                yield Broken("5 winners", "a session is live under two tokens")
                break


def _brought(history: History) -> set[str | None]:
    return {visit.id for visit in history.visits if visit.local.rotates}


def _regenerated(history: History, id_: str) -> set[str]:
    """Return what was stored by requests that saw a session live, and regenerated it."""
    return {
        birth.id
        for birth in history.births
        if birth.visit.id == id_
        and birth.visit.local.rotates
        and not birth.visit.local.destroys
        and birth.visit.local.logs_in is None
        and Form.LIVE in history.forms(birth.visit)
    }


RULES = [sights, answers, cookies, winners]

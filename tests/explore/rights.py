"""Say who may end which session, or keep it from going on."""

from __future__ import annotations

from .engine import Command, Tick, Wait
from .history import End, History, View
from .script import Call
from .world import Step, Visit


def may_end(history: History, end: End) -> bool:
    """Say whether a request may end the live session that it has ended."""
    visit = end.visit
    if not isinstance(end.step.pending, Command):
        return True  # By time.
    if visit.local.rotates and not visit.local.destroys and end.id == visit.id:
        return True
    return (
        _logout_may_end(history, visit, end.id)
        or _calls_may_end(history, end)
        or _limit_may_end(history, end)
    )


def _logout_may_end(history: History, visit: Visit, id_: str) -> bool:
    if not visit.local.destroys or visit.id is None:
        return False
    return id_ in history.heirs_of(visit.id, logins=True, siblings=True)


def _calls_may_end(history: History, end: End) -> bool:
    owner = history.view(end.id, end.step.number).owner
    return any(
        call_may_end(history, call, end.id, owner)
        for call in end.visit.local.calls
        if end.visit.is_within(call, end.step)
    )


def call_may_end(history: History, call: Call, id_: str, owner: str | None) -> bool:
    """Say whether a revocation may end the session of this id and owner."""
    match call.verb:
        case "revoke":
            return id_ in history.heirs_of(str(call.target), logins=True, siblings=True)
        case "revoke_all":
            kept = history.heirs_of(call.keep, logins=False) if call.keep else set()
            return owner == call.target and id_ not in kept
    return False


def _limit_may_end(history: History, end: End) -> bool:
    """Say whether a login, or a rotation, may end a session beyond the limit.

    A session is beyond the limit if as many of the same owner are as young, or younger. Whoever
    ends a session has looked for the owner's sessions before.
    """
    visit, limit = end.visit, history.world.limit
    ended, swap = history.view(end.id, end.step.number), history.swap_by(visit)
    if limit is None or ended.owner is None or not visit.local.rotates:
        return False
    own = visit.local.logs_in
    if own is None and swap is not None:
        own = history.view(visit.id, swap.step.number).owner
    return own == ended.owner and any(
        _younger(history, own, ended, number) >= limit
        for number in range(visit.steps[0].number, end.step.number + 1)
    )


def _younger(history: History, owner: str, than: View, number: int) -> int:
    """Return how many other sessions of an owner are as young as one, or younger."""
    views = [history.view(id_, number) for id_ in history.owned(owner, number)]
    return sum(view.moments[0] >= than.moments[0] for view in views) - (than in views)


def may_prevent(history: History, step: Step, visit: Visit) -> bool:
    """Say whether a step may keep a request from storing anew what it has taken already."""
    other, swap = step.visit, history.swap_by(visit)
    if isinstance(step.pending, Tick):
        return True
    if swap is None or visit.id is None:
        return False
    if other.local.logs_in is not None and not other.local.destroys:
        # A login with an old token waits for the first one, as long as it may take.
        return any(isinstance(one.pending, Wait) for one in other.steps)
    before, owner = history.view(visit.id, swap.step.number).owner, visit.local.logs_in
    follows = owner in (None, before)
    if follows and _logout_may_end(history, other, visit.id):
        return True
    ids = {visit.id, *(id_ for id_, _, _ in step.changes)}
    return any(
        call_may_end(history, call, id_, owner or before)
        for call in other.local.calls
        if other.is_within(call, step) and (follows or call.verb == "revoke_all")
        for id_ in ids
    )


def is_ended_for_good(history: History, visit: Visit) -> bool:
    """Say whether somebody else has ended, not just replaced, what the token of a request opens."""
    if visit.id is None:
        return False
    ids = history.heirs_of(visit.id, logins=True)
    owners = {history.view(id_, number).owner for id_ in ids for number in range(history.ended_at)}
    return any(
        _ends_for_good(history, step, visit.id, owners)
        for step in history.steps
        if step.visit is not visit and (step.changes or isinstance(step.pending, Tick))
    )


def _ends_for_good(history: History, step: Step, id_: str, owners: set[str | None]) -> bool:
    if isinstance(step.pending, Tick) or _logout_may_end(history, step.visit, id_):
        return True
    return any(
        call_may_end(history, call, id_, owner)
        for call in step.visit.local.calls
        for owner in owners
    )

"""Hold every request that was answered against what its answer promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .engine import Way
from .history import Birth, Form, History, names
from .rights import is_ended_for_good, may_prevent
from .script import GONE, Call, Op
from .verdict import Broken
from .world import Step, Visit

_KNOWN = {Form.LIVE, Form.MARK, Form.STONE}


def requests(history: History) -> Iterator[Broken]:
    """Hold each request to its answer."""
    for visit in history.visits:
        if visit.kind.main is not None:
            continue
        if visit.local.destroys and _is_carried_out(visit):
            yield from _logout(history, visit)
        elif visit.is_answered and visit.local.rotates:
            yield from _rotation(history, visit)
        elif visit.is_answered:
            yield from _writing(history, visit)


def _is_carried_out(visit: Visit) -> bool:
    """Say whether a logout was answered as done, be it with a 500 of the application."""
    if visit.has_died:
        return False
    if visit.kind.fails and visit.local.error is not None:
        return not visit.faults
    return visit.local.error is None and visit.local.status == visit.kind.status


# Requests that set and delete.


def _wanted(ops: Sequence[Op]) -> dict[str, Any]:
    """Return the values that keys are to have in the end, as far as they are set or deleted."""
    wanted: dict[str, Any] = {}
    for op in ops:
        match op.verb:
            case "set":
                wanted[op.key] = op.value
            case "delete":
                wanted[op.key] = GONE
            case "clear":
                wanted = dict.fromkeys([*wanted, *(op.value or [])], GONE)
    return wanted


def _sets(ops: Sequence[Op]) -> bool:
    return any(value != GONE for value in _wanted(ops).values())


def _writing(history: History, visit: Visit) -> Iterator[Broken]:
    forms = set(history.forms(visit))
    if forms == {Form.LIVE}:
        yield from _stored(history, visit)
    elif not forms & _KNOWN and _sets(visit.local.ops_in_time):
        yield from _begun(history, visit, "1 lost")


def _stored(history: History, visit: Visit) -> Iterator[Broken]:
    """Find what a request has set in a live session that is not stored in it."""
    in_time = _wanted(visit.local.ops_in_time)
    for key, value in _wanted(visit.local.ops).items():
        step = _step_that_made(history, visit, key, value)
        if step is None:
            yield Broken("1 lost", f"{visit.name} was answered, and {key!r} was never {value!r}")
        elif in_time.get(key) == value and step.number >= (visit.responded_at or 0):
            yield Broken("6 in time", f"{visit.name} was answered before {key!r} was {value!r}")
    if any(op.verb == "clear" and op.value is None for op in visit.local.ops):
        left = [history.view(visit.id, step.number + 1).data.keys() for step in visit.steps]
        if not any(keys <= _wanted(visit.local.ops).keys() for keys in left):
            yield Broken("1 lost", f"{visit.name} was answered, and its session never empty")


def _step_that_made(history: History, visit: Visit, key: str, value: Any) -> Step | None:
    for step in visit.steps:
        if history.view(visit.id, step.number + 1).data.get(key, GONE) == value:
            return step
    return None


def _begun(history: History, visit: Visit, promise: str) -> Iterator[Broken]:
    """Hold a request that is to have stored a new session to it, and to its cookie.

    A session that others have ended before the answer needs no cookie.
    """
    births = [birth for birth in history.births_by(visit) if birth.id != visit.id]
    if not births:
        yield Broken(promise, f"{visit.name} was answered, and no session of it was stored")
    elif births[-1].step.number >= (visit.responded_at or 0):
        yield Broken("6 in time", f"{visit.name} was answered before its session was stored")
    elif visit.cookie is None and history.ends_of(births[-1].id, visit.responded_at):
        return
    elif visit.local.status and visit.cookie != history.world.tokens[births[-1].id]:
        yield Broken(promise, f"{visit.name} stored a session, and set no cookie for it")


# Logins and regenerations.


def _rotation(history: History, visit: Visit) -> Iterator[Broken]:
    swap, forms, owner = history.swap_by(visit), history.forms(visit), visit.local.logs_in
    if swap is not None:
        if not _is_prevented(history, visit, swap.step):
            yield from _begun(history, visit, "4 login" if owner else "5 winners")
    elif owner is not None:
        if _is_to_log_in(history, visit, forms):
            yield from _begun(history, visit, "4 login")
            if forms and forms[-1] is Form.MARK:
                yield from _carried(history, visit)
    elif not _KNOWN.intersection(forms) and _sets(visit.local.fresh_ops):
        yield from _begun(history, visit, "1 lost")


def _is_prevented(history: History, visit: Visit, swap: Step) -> bool:
    """Say whether others ended, for good, what a request had taken and was to store anew."""
    return any(
        id_ == visit.id or history.name(id_).startswith(visit.name)
        for step in history.steps[swap.number + 1 :]
        if step.visit is not visit and may_prevent(history, step, visit)
        for id_, _, _ in step.changes
    )


def _is_to_log_in(history: History, visit: Visit, forms: list[Form]) -> bool:
    """Say whether a login that has not taken its session is to store one all the same.

    It is where nothing was there, and where a mark was: unless somebody ended that for good.
    """
    if Form.LIVE not in forms and (not forms or forms[-1] is not Form.MARK):
        return True
    return forms[-1] is Form.MARK and not is_ended_for_good(history, visit)


def _carried(history: History, visit: Visit) -> Iterator[Broken]:
    """Hold a login with an old token to what it is to bring along from the first one."""
    births = history.births_by(visit)
    if not births or Way.TWICE in visit.faults or visit.id is None:
        return
    if history.world.store.settings.sealed:
        return  # The session of the first login opens by its own token alone.
    birth, own = births[-1], _wanted(visit.local.fresh_ops)
    span = range(visit.steps[0].number, birth.step.number + 1)
    born = history.view(birth.id, birth.step.number + 1).data
    for id_ in history.successors_of(visit.id):
        views = [view for view in (history.view(id_, one) for one in span) if view.is_live]
        if not views or not history.view(id_, birth.step.number).is_live:
            continue
        if any(view.owner != visit.local.logs_in for view in views):
            continue
        if not history.view(id_, _last_look(visit, birth, id_)).is_live:
            continue  # The login has waited its time for the first one, in vain, or for another.
        for key, value in views[0].data.items():
            is_same = all(view.data.get(key, GONE) == value for view in views)
            if is_same and key not in own and born.get(key, GONE) != value:
                yield Broken("4 owner", f"the login of {visit.name} has left {key!r} behind")


def _last_look(visit: Visit, birth: Birth, id_: str) -> int:
    """Return the state in which a request looked last for a session, or for any, before it stored.

    A login that has not looked for it has been told by none of its looks that it is there.
    """
    looks = [step for step in visit.steps if step.number < birth.step.number]
    own = [step.number for step in looks if names(step, id_)]
    return (own or [step.number for step in looks if not names(step, birth.id)])[-1]


# Logouts and revocations.


def _logout(history: History, visit: Visit) -> Iterator[Broken]:
    forms, responded = history.forms(visit), visit.responded_at
    ended = any(end.visit is visit for end in history.ends)
    if visit.id is not None and forms and forms[-1] in _KNOWN:
        since = history.ended_at if responded is None else responded
        yield from _stays_ended(history, visit, visit.id, since, "4 logout", logins=True)
    if visit.local.rotates or _sets(visit.local.fresh_ops):
        if visit.is_answered and (ended or not _KNOWN.intersection(forms)):
            yield from _begun(history, visit, "4 login" if visit.local.rotates else "1 lost")
    elif Way.TWICE in visit.faults:
        return  # The second answer says that nothing was there to be ended.
    elif (ended or _prevents(history, visit)) and responded is not None and visit.cookie != "":
        yield Broken("4 logout", f"{visit.name} has ended a session, and not expired its cookie")


def _prevents(history: History, visit: Visit) -> bool:
    """Say whether a logout has kept a session from being stored under its new token."""
    return any(
        before is None and id_ != visit.id and not history.view(id_, step.number + 1).is_live
        for step in visit.steps
        for id_, before, _ in step.changes
    )


def _stays_ended(
    history: History, visit: Visit, id_: str, since: int, promise: str, *, logins: bool
) -> Iterator[Broken]:
    """Find what is live of a session, under whatever id, after it was ended for good."""
    ids = history.heirs_of(id_, logins=logins)
    for number in range(since, history.ended_at + 1):
        for one in sorted(ids.intersection(history.live(number))):
            name = history.name(one)
            yield Broken(promise, f"{name} is live after {visit.name} has ended it")
            return


def calls(history: History) -> Iterator[Broken]:
    """Hold revocations and lists to what they return."""
    for visit in history.visits:
        for call in visit.local.calls:
            if call.ended is None:
                continue
            match call.verb:
                case "revoke":
                    yield from _revoked(history, visit, call)
                case "revoke_all":
                    yield from _all_revoked(history, visit, call)
                case "sessions":
                    yield from _listed(history, visit, call)


def _revoked(history: History, visit: Visit, call: Call) -> Iterator[Broken]:
    begun, ended, id_ = *_span(visit, call), str(call.target)
    if history.view(id_, begun).form in _KNOWN:
        yield from _stays_ended(history, visit, id_, ended, "7 final", logins=False)
    yield from _counted(history, visit, call)


def _all_revoked(history: History, visit: Visit, call: Call) -> Iterator[Broken]:
    begun, ended = _span(visit, call)
    kept = history.heirs_of(call.keep, logins=True) if call.keep else set()
    for id_ in history.world.tokens:
        if id_ not in kept and _is_owned(history, id_, call.target, begun):
            yield from _stays_ended(history, visit, id_, ended, "7 final", logins=False)
    yield from _counted(history, visit, call)


def _span(visit: Visit, call: Call) -> tuple[int, int]:
    """Return the numbers of the states in which a call began and ended."""
    assert call.ended is not None
    return visit.moment(call.begun), visit.moment(call.ended)


def _is_owned(history: History, id_: str, owner: str | None, number: int) -> bool:
    """Say whether a session of this owner is there, or is just being regenerated."""
    view, ends = history.view(id_, number), history.ends_of(id_, number)
    if view.is_live:
        return view.owner == owner
    if view.form is not Form.MARK or not ends or ends[-1].visit.local.logs_in is not None:
        return False
    return history.view(id_, ends[-1].step.number).owner == owner


def _counted(history: History, visit: Visit, call: Call) -> Iterator[Broken]:
    """Hold a revocation to its count; what it kept from being stored may count or not."""
    if visit.faults:
        return
    span = range(*_span(visit, call))
    count = sum(end.visit is visit and end.step.number in span for end in history.ends)
    most = count + sum(other.local.rotates for other in history.visits)
    if not count <= call.result <= most:
        yield Broken("7 count", f"{visit.name} says {call.result}, and has ended {count}")


def _listed(history: History, visit: Visit, call: Call) -> Iterator[Broken]:
    """Hold a list to what was live at one moment, where the engine reads it at one moment."""
    begun, ended = _span(visit, call)
    shown = [sorted(history.owned(str(call.target), one)) for one in range(begun, ended + 1)]
    if call.result not in shown and not history.world.server.manner.scans_yield:
        yield Broken("6 seen", f"{visit.name} was shown other sessions than those that were live")


def limits(history: History) -> Iterator[Broken]:
    """Hold the logins of one owner to the most sessions that the settings allow.

    A rotation counts the sessions too. Where one has died, or could not count, the next login does.
    """
    limit = history.world.limit
    logins = [visit for visit in history.visits if visit.local.logs_in is not None]
    counting = [visit for visit in history.visits if visit.local.rotates]
    if limit is None or not all(visit.is_answered or visit.kind.fails for visit in counting):
        return
    for owner in sorted({str(visit.local.logs_in) for visit in logins}):
        left = history.owned(owner, history.ended_at)
        if len(left) > limit:
            yield Broken("limit", f"{owner} has {len(left)} live sessions")


RULES = [requests, calls, limits]

"""Hold the promises of section 6 of the contract against an order.

Three questions are asked of each order. Was each change of a document one that its author may
make? Did each request that was answered do what it promised? And did each see what was there?
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .engine import Command, Way
from .history import Birth, End, Form, History, View, names
from .script import GONE, Call, Op, Seen
from .world import Step, Visit

PROMISES = {
    "1 lost": "what was acknowledged is stored, unless the same key was committed later",
    "1 whole": "a request changes the keys that it set, and no others",
    "2 reader": "a request that only read changes nothing",
    "3 revived": "what has ended is not live again",
    "3 after the end": "a request whose session was ended meanwhile stores nothing, sets no cookie",
    "3 by whom": "a session is ended only by those who may",
    "4 old token": "a token from before reads as empty, stores nothing, sets no cookie",
    "4 logout": "a logout ends the session under its new token too, and expires the cookie",
    "4 login": "a login stores a session of its own, and sets its cookie",
    "4 owner": "a login brings along what is its owner's or nobody's, and nothing else",
    "5 winners": "of several requests that regenerate one session, one wins",
    "6 seen": "a request sees what is stored",
    "6 in time": "a response goes out when its changes are stored, not before",
    "6 outside": "the cookie that a browser has opens what it should",
    "7 final": "what was revoked is not live, and nothing that was regenerated from it",
    "7 count": "a revocation says how many it ended",
    "8 answer": "every request is answered as its application answers",
    "8 endless": "no request goes on for ever",
    "8 cookie": "a response sets the cookie of a live session",
    "9 limit": "of one owner no more sessions are live than session_limit says, the newest",
    "8 moments": "no moment moves back, and none but a login changes the owner or the creation",
}


class Broken(NamedTuple):
    """A promise that an order has broken."""

    promise: str
    words: str


def broken_by(history: History) -> Iterator[Broken]:
    """Say which promises an order has broken."""
    for rule in RULES:
        yield from rule(history)


# May its author make that change?


def changes(history: History) -> Iterator[Broken]:
    for step in history.steps:
        for id_, _, _ in step.changes:
            was, is_ = history.view(id_, step.number), history.view(id_, step.number + 1)
            if was.is_live and is_.is_live:
                yield from _update(history, step.visit, id_, was, is_)


def _update(history: History, visit: Visit, id_: str, was: View, is_: View) -> Iterator[Broken]:
    if visit.id != id_:
        yield Broken("1 whole", f"{visit.name} changed a session that is not its own")
    may = _may(visit)
    for key in was.data.keys() | is_.data.keys():
        value = is_.data.get(key, GONE)
        if value != was.data.get(key, GONE) and not _allows(may, key, value):
            promise = "1 whole" if may else "2 reader"
            yield Broken(promise, f"{visit.name} made {key!r} {value!r}")
    earlier = any(new < old for new, old in zip(is_.moments, was.moments, strict=True))
    if earlier or (is_.owner, is_.moments[0]) != (was.owner, was.moments[0]):
        yield Broken("8 moments", f"{visit.name} moved a moment or changed the owner")


def _may(visit: Visit) -> list[tuple[str | None, Any]]:
    """Return the keys that a request may change, and to what; None stands for any key."""
    may: list[tuple[str | None, Any]] = []
    if visit.local.fails:
        return may
    for op in visit.local.ops:
        if op.verb == "set":
            may.append((op.key, op.value))
        elif op.verb == "delete":
            may.append((op.key, GONE))
        elif op.verb == "clear":
            may.append((None, GONE))
    return may


def _allows(may: list[tuple[str | None, Any]], key: str, value: Any) -> bool:
    return any(one in (None, key) and to == value for one, to in may)


def ends(history: History) -> Iterator[Broken]:
    for end in history.ends:
        if not _may_end(history, end):
            name = history.world.names.get(end.id, end.id)
            yield Broken("3 by whom", f"{end.visit.name} ended {name}")


def _may_end(history: History, end: End) -> bool:
    visit = end.visit
    if not isinstance(end.step.pending, Command):
        return True  # By time.
    if visit.local.destroys and visit.id is not None:
        return end.id in history.heirs_of(visit.id, logins=True, siblings=True)
    if visit.local.rotates and end.id == visit.id:
        return True
    number = end.step.number
    owner = history.view(end.id, number).owner
    return _limit_may_end(history, end, owner) or any(
        visit.is_within(call, end.step) and _call_may_end(history, call, end.id, owner)
        for call in visit.local.calls
    )


def _call_may_end(history: History, call: Call, id_: str, owner: str | None) -> bool:
    match call.verb:
        case "revoke":
            return id_ in history.heirs_of(call.target or "", logins=True, siblings=True)
        case "revoke_all":
            kept = history.heirs_of(call.keep, logins=False) if call.keep else set()
            return owner == call.target and id_ not in kept
    return False


def _limit_may_end(history: History, end: End, owner: str | None) -> bool:
    limit = history.world.limit
    if limit is None or owner is None or end.visit.local.logs_in != owner:
        return False
    return len(_owned(history, owner, end.step.number)) >= limit


def _owned(history: History, owner: str, number: int) -> list[str]:
    return [id_ for id_ in history.live(number) if history.view(id_, number).owner == owner]


def births(history: History) -> Iterator[Broken]:
    seen: set[str] = set()
    for birth in history.births:
        yield from _birth(history, birth, seen)
        seen.add(birth.id)


def _birth(history: History, birth: Birth, seen: set[str]) -> Iterator[Broken]:
    visit, number = birth.visit, birth.step.number
    name = history.world.names.get(birth.id, birth.id)
    if birth.id in seen or history.ends_of(birth.id, number):
        if not _is_put_back(history, birth):
            yield Broken("3 revived", f"{visit.name} made {name} live again")
        return
    if not name.startswith(visit.name):
        yield Broken(
            "3 revived", f"{visit.name} stored a session under {name}, not a token of its own"
        )
        return
    if visit.local.fails:
        yield Broken("1 whole", f"{visit.name} has failed, and stored a session")
    if not _may(visit) and not visit.local.rotates:
        yield Broken("2 reader", f"{visit.name} stored a session")
    yield from _born_in_vain(history, birth)
    yield from _contents(history, birth)


def _is_put_back(history: History, birth: Birth) -> bool:
    """Say whether a request puts back what it took itself, because it could not be stored."""
    ends_of = history.ends_of(birth.id, birth.step.number)
    return birth.visit.local.fails and bool(ends_of) and ends_of[-1].visit is birth.visit


def _born_in_vain(history: History, birth: Birth) -> Iterator[Broken]:
    """Find fault with a session that is stored though the one before it was ended, or replaced."""
    visit, number = birth.visit, birth.step.number
    others = [end for end in history.ends_of(visit.id, number) if end.visit is not visit]
    forms = history.forms(visit, number + 1)
    if visit.local.destroys or not forms or history.swap_by(visit) is not None:
        return
    is_mark = history.view(visit.id, number).form is Form.MARK
    if is_mark and visit.local.logs_in is None:
        yield Broken("4 old token", f"{visit.name} stored a session with the token of a mark")
    elif Form.LIVE in forms and others and not (is_mark and visit.local.logs_in is not None):
        words = f"{visit.name} stored a session after its own was ended by {others[-1].visit.name}"
        yield Broken("3 after the end", words)


def _contents(history: History, birth: Birth) -> Iterator[Broken]:
    """Hold what a new session has against what its request did, and against what it goes on from."""
    visit, born = birth.visit, history.view(birth.id, birth.step.number + 1)
    swap = history.swap_by(visit)
    before = View(Form.NONE, {}, None, ())
    if swap is not None and not visit.local.destroys:
        before = history.view(visit.id, swap.step.number)
    data, owner = result_of(visit.local.fresh_ops, before.data, before.owner)
    if born.owner != owner:
        yield Broken("4 login", f"{visit.name} stored a session of {born.owner}, not of {owner}")
    if before.is_live and visit.local.logs_in is None and born.moments[0] != before.moments[0]:
        yield Broken("8 moments", f"{visit.name} moved the creation of a session")
    brought = _brought(history, birth) if swap is None else {}
    for key in born.data.keys() | data.keys():
        value, wanted = born.data.get(key, GONE), data.get(key, GONE)
        if value != wanted and not (wanted == GONE and value in brought.get(key, [])):
            promise = "4 owner" if wanted == GONE else "1 lost"
            words = f"{key!r} is {value!r} in the new session of {visit.name}, not {wanted!r}"
            yield Broken(promise, words)


def result_of(
    ops: Sequence[Op], data: dict[str, Any], owner: str | None
) -> tuple[dict[str, Any], str | None]:
    """Return what a session holds, and whose it is, after what an application did to it."""
    data = dict(data)
    for op in ops:
        match op.verb:
            case "set":
                data[op.key] = op.value
            case "delete":
                data.pop(op.key, None)
            case "clear":
                for key in list(data) if op.value is None else op.value:
                    data.pop(key, None)
            case "login":
                data = data if owner in (None, op.value) else {}
                owner = op.value
            case "destroy":
                data, owner = {}, None
    return data, owner


def _brought(history: History, birth: Birth) -> dict[str, list[Any]]:
    """Return what a login with an old token may bring along: the values of that time, by key."""
    visit = birth.visit
    if visit.local.logs_in is None or visit.id is None:
        return {}
    begun = visit.steps[0].number
    brought: dict[str, list[Any]] = {}
    for number in range(begun, birth.step.number + 1):
        for id_ in _first_logins(history, visit):
            view = history.view(id_, number)
            if view.is_live and view.owner in (visit.local.logs_in, None):
                for key, value in view.data.items():
                    brought.setdefault(key, []).append(value)
    return brought


def _first_logins(history: History, visit: Visit) -> set[str]:
    """Return where the session goes on that a login's old token stood for."""
    found, left = set(), [visit.id]
    while left:
        old = left.pop()
        new = [heir.new for heir in history.heirs if heir.old == old and heir.new not in found]
        found.update(new)
        left += new
    return found


# Did it do what it promised?


def duties(history: History) -> Iterator[Broken]:
    for visit in history.visits:
        if not visit.is_answered or visit.kind.main is not None:
            continue
        if visit.local.destroys:
            yield from _logout(history, visit)
        elif visit.local.rotates:
            yield from _rotation(history, visit)
        else:
            yield from _writes(history, visit)


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
                wanted = dict.fromkeys(list(wanted) + (op.value or []), GONE)
    return wanted


def _writes(history: History, visit: Visit) -> Iterator[Broken]:
    """Hold a request that only sets and deletes to its answer."""
    wanted = _wanted(visit.local.ops)
    if not wanted:
        return
    forms = history.forms(visit)
    if forms and all(form is Form.LIVE for form in forms):
        yield from _stored(history, visit, wanted)
    elif Form.LIVE not in forms and Form.MARK not in forms and Form.STONE not in forms:
        if any(value != GONE for value in _wanted(visit.local.ops_in_time).values()):
            yield from _began(history, visit, "1 lost")


def _stored(history: History, visit: Visit, wanted: dict[str, Any]) -> Iterator[Broken]:
    in_time = _wanted(visit.local.ops_in_time)
    for key, value in wanted.items():
        step = next(
            (
                step
                for step in visit.steps
                if history.view(visit.id, step.number + 1).data.get(key, GONE) == value
            ),
            None,
        )
        if step is None:
            yield Broken("1 lost", f"{visit.name} was answered, and {key!r} was never {value!r}")
        elif in_time.get(key) == value and step.number >= (visit.responded_at or 0):
            yield Broken("6 in time", f"{visit.name} was answered before {key!r} was {value!r}")


def _began(history: History, visit: Visit, promise: str) -> Iterator[Broken]:
    """Hold a request that is to have begun a session to it, and to its cookie."""
    births_by = [birth for birth in history.births_by(visit) if birth.id != visit.id]
    if not births_by:
        yield Broken(promise, f"{visit.name} was answered, and no session of it was stored")
    elif births_by[-1].step.number >= (visit.responded_at or 0):
        yield Broken("6 in time", f"{visit.name} was answered before its session was stored")
    elif visit.cookie != history.world.tokens[births_by[-1].id]:
        yield Broken(promise, f"{visit.name} stored a session, and set no cookie for it")


def _rotation(history: History, visit: Visit) -> Iterator[Broken]:
    swap, forms = history.swap_by(visit), history.forms(visit)
    promise = "5 winners" if visit.local.logs_in is None else "4 login"
    if swap is not None:
        if not _is_prevented(history, visit, swap.step):
            yield from _began(history, visit, promise)
    elif visit.local.logs_in is not None:
        if _may_log_in(history, visit, forms):
            yield from _began(history, visit, promise)
            yield from _carried(history, visit)
    elif not {Form.LIVE, Form.MARK, Form.STONE}.intersection(forms):
        if any(value != GONE for value in _wanted(visit.local.fresh_ops).values()):
            yield from _began(history, visit, "1 lost")


def _may_log_in(history: History, visit: Visit, forms: list[Form]) -> bool:
    """Say whether nobody has ended the session of a login after that login had looked at it."""
    if Form.LIVE not in forms:
        return not _is_ended_meanwhile(history, visit)
    last = history.ends_of(visit.id)
    return bool(last) and last[-1].visit.local.rotates and not _is_ended_meanwhile(history, visit)


def _is_ended_meanwhile(history: History, visit: Visit) -> bool:
    """Say whether somebody ended for good, beside a login, what its token stands for."""
    if visit.id is None:
        return False
    ids = history.heirs_of(visit.id, logins=True)
    return any(
        not step.visit.local.rotates or step.visit.local.destroys
        for step in history.steps
        if step.visit is not visit
        if any(id_ in ids or id_ not in history.world.tokens for id_, _, _ in step.changes)
        if not _is_write(history, step)
    )


def _is_write(history: History, step: Step) -> bool:
    """Say whether a step changed live sessions, and left them live."""
    return all(
        history.view(id_, step.number).is_live and history.view(id_, step.number + 1).is_live
        for id_, _, _ in step.changes
    )


def _is_prevented(history: History, visit: Visit, swap: Step) -> bool:
    """Say whether others ended, for good, what a request had taken and was to store anew."""
    drawn = {id_ for id_, name in history.world.names.items() if name.startswith(visit.name)}
    return any(
        id_ in drawn or id_ == visit.id
        for step in history.steps[swap.number + 1 :]
        if step.visit is not visit
        for id_, _, _ in step.changes
    )


def _carried(history: History, visit: Visit) -> Iterator[Broken]:
    """Hold a login with an old token to what it is to bring along."""
    births_by = history.births_by(visit)
    if not births_by or Way.TWICE in visit.faults:
        return
    birth = births_by[-1]
    begun, number = visit.steps[0].number, birth.step.number
    own = _wanted(visit.local.fresh_ops)
    for id_ in _first_logins(history, visit):
        views = [history.view(id_, one) for one in range(begun, number + 1)]
        views = [view for view in views if view.is_live]
        if not views or any(view.owner != visit.local.logs_in for view in views):
            continue
        if not views[-1] or not history.view(id_, number).is_live:
            continue
        born = history.view(birth.id, number + 1).data
        for key, value in views[0].data.items():
            if key in own or any(view.data.get(key, GONE) != value for view in views):
                continue
            if born.get(key, GONE) != value:
                yield Broken("4 owner", f"the login of {visit.name} left {key!r} behind")


def _logout(history: History, visit: Visit) -> Iterator[Broken]:
    forms = history.forms(visit)
    responded = visit.responded_at if visit.responded_at is not None else history.ended_at
    ended = _ended_by(history, visit)
    if visit.id is not None and forms and forms[-1] in (Form.LIVE, Form.MARK, Form.STONE):
        yield from _stays_ended(history, visit, visit.id, responded, "4 logout", logins=True)
    if visit.local.rotates or _wanted(visit.local.fresh_ops):
        if visit.id is None or visit.id in ended or not _is_known(forms):
            yield from _began(history, visit, "4 login" if visit.local.rotates else "1 lost")
    elif ended and visit.cookie != "":
        yield Broken("4 logout", f"{visit.name} ended a session, and its cookie is not expired")


def _is_known(forms: list[Form]) -> bool:
    return bool({Form.LIVE, Form.MARK, Form.STONE}.intersection(forms))


def _ended_by(history: History, visit: Visit) -> set[str]:
    return {end.id for end in history.ends if end.visit is visit}


def _stays_ended(
    history: History, visit: Visit, id_: str, number: int, promise: str, *, logins: bool
) -> Iterator[Broken]:
    """Find what is live of a session, under whatever id, after it was ended for good."""
    ids = history.heirs_of(id_, logins=logins)
    for later in range(number, history.ended_at + 1):
        for one in ids.intersection(history.live(later)):
            name = history.world.names.get(one, one)
            yield Broken(promise, f"{name} is live after {visit.name} has ended it")
            return


def calls(history: History) -> Iterator[Broken]:
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
    assert call.target is not None
    assert call.ended is not None
    if history.view(call.target, visit.moment(call.begun)).form not in (Form.NONE, Form.EXPIRED):
        yield from _stays_ended(
            history, visit, call.target, visit.moment(call.ended), "7 final", logins=False
        )
    yield from _counted(history, visit, call)


def _all_revoked(history: History, visit: Visit, call: Call) -> Iterator[Broken]:
    assert call.ended is not None
    kept = history.heirs_of(call.keep, logins=True) if call.keep else set()
    there = [
        id_
        for id_ in history.world.tokens
        if id_ not in kept and _is_owners(history, id_, call.target, visit.moment(call.begun))
    ]
    for id_ in there:
        for broken in _stays_ended(
            history, visit, id_, visit.moment(call.ended), "7 final", logins=False
        ):
            yield broken
            break
    yield from _counted(history, visit, call)


def _is_owners(history: History, id_: str, owner: str | None, number: int) -> bool:
    """Say whether a session of this owner is there, or is about to be regenerated."""
    view = history.view(id_, number)
    if view.is_live:
        return view.owner == owner
    ends_of = history.ends_of(id_, number)
    if view.form is not Form.MARK or not ends_of:
        return False
    return ends_of[-1].visit.local.logs_in is None and (
        history.view(id_, ends_of[-1].step.number).owner == owner
    )


def _counted(history: History, visit: Visit, call: Call) -> Iterator[Broken]:
    assert call.ended is not None
    span = range(visit.moment(call.begun), visit.moment(call.ended))
    ended = [end for end in history.ends if end.visit is visit and end.step.number in span]
    count = len(ended)
    if visit.faults:
        return
    most = count + sum(other.local.rotates for other in history.visits)
    if not count <= call.result <= most:
        yield Broken("7 count", f"{visit.name} says {call.result}, and has ended {count}")


def _listed(history: History, visit: Visit, call: Call) -> Iterator[Broken]:
    assert call.ended is not None
    for number in range(visit.moment(call.begun), visit.moment(call.ended) + 1):
        if (
            sorted(_owned(history, str(call.target), number)) == call.result
            or history.world.server.manner.scans_yield
        ):
            return
    yield Broken("6 seen", f"{visit.name} was shown other sessions than those that were live")


# Did it see what was there, and was it answered well?


def sights(history: History) -> Iterator[Broken]:
    for visit in history.visits:
        for seen in visit.local.seen:
            if not any(_fits(visit, seen, view) for view in _shown(history, visit, seen)):
                words = f"{visit.name} saw {seen.data}, and that was not there"
                marks = {Form.MARK, Form.STONE}.intersection(history.forms(visit))
                yield Broken("4 old token" if marks else "6 seen", words)


def _shown(history: History, visit: Visit, seen: Seen) -> list[View]:
    looks = [look for look in history.looks(visit) if look in visit.steps[: seen.steps]]
    return [history.view(visit.id, look.number) for look in looks] or [
        View(Form.NONE, {}, None, ())
    ]


def _fits(visit: Visit, seen: Seen, view: View) -> bool:
    data, owner = (view.data, view.owner) if view.is_live else ({}, None)
    return (seen.data, seen.owner) == result_of(visit.local.ops[: seen.ops], data, owner)


def answers(history: History) -> Iterator[Broken]:
    if history.world.is_endless:
        yield Broken("8 endless", "the requests go on and on")
    for visit in history.visits:
        if visit.has_died or visit.pending is not None:
            continue
        expected = visit.kind.status
        if visit.local.error is not None:
            if not _may_raise(visit):
                yield Broken("8 answer", f"{visit.name} raised {visit.local.error!r}")
        elif visit.kind.main is None and visit.local.status != expected:
            if not (visit.faults and str(visit.local.status).startswith("503")):
                yield Broken("8 answer", f"{visit.name} was answered {visit.local.status}")


def _may_raise(visit: Visit) -> bool:
    name = type(visit.local.error).__name__
    if visit.local.fails and name in ("Failed", "SessionDataError"):
        return True
    return bool(visit.faults) and name == "StoreError"


def cookies(history: History) -> Iterator[Broken]:
    for visit in history.visits:
        if visit.cookie == "":
            if not visit.local.destroys or not (_ended_by(history, visit) or visit.faults):
                yield from _expired_in_vain(history, visit)
        elif visit.cookie is not None:
            yield from _cookie(history, visit, history.world.id_of(visit.cookie))


def _expired_in_vain(history: History, visit: Visit) -> Iterator[Broken]:
    """Allow a logout to expire the cookie where it kept a session from going on."""
    stopped = any(
        not history.view(id_, step.number + 1).is_live
        for step in visit.steps
        for id_, _, _ in step.changes
    )
    if not (visit.local.destroys and stopped):
        yield Broken("8 cookie", f"{visit.name} expired the cookie, and had ended nothing")


def _cookie(history: History, visit: Visit, id_: str) -> Iterator[Broken]:
    """Hold a cookie to this: its session was live when the request last touched it."""
    own = [
        step for step in visit.steps if names(step, id_) and step.number < (visit.responded_at or 0)
    ]
    if not own or not history.view(id_, own[-1].number + 1).is_live:
        name = history.world.names.get(id_, "?")
        forms = history.forms(visit)
        promise = "8 cookie"
        if id_ == visit.id:
            promise = "3 after the end" if Form.LIVE in forms else "4 old token"
        yield Broken(promise, f"{visit.name} set the cookie of {name}, which is not live")


def winners(history: History) -> Iterator[Broken]:
    """Hold what goes on by regeneration to one live session at a time."""
    for root in {heir.old for heir in history.heirs}:
        ids = history.heirs_of(root, logins=False)
        for number in range(history.ended_at + 1):
            if len(ids.intersection(history.live(number))) > 1:
                yield Broken("5 winners", "a session is live under two tokens")
                break


def limits(history: History) -> Iterator[Broken]:
    """Hold the logins of one owner to the most sessions that the settings allow."""
    limit = history.world.limit
    logins = [visit for visit in history.visits if visit.local.logs_in is not None]
    if limit is None or not all(visit.is_answered for visit in logins):
        return
    for owner in {str(visit.local.logs_in) for visit in logins}:
        if len(_owned(history, owner, history.ended_at)) > limit:
            yield Broken("9 limit", f"{owner} has more than {limit} live sessions")
    for end in history.ends:
        view = history.view(end.id, end.step.number)
        if end.visit in logins and end.id != end.visit.id and view.owner is not None:
            left = [
                history.view(id_, history.ended_at)
                for id_ in _owned(history, view.owner, history.ended_at)
            ]
            if any(other.moments[0] < view.moments[0] for other in left):
                yield Broken("9 limit", f"{end.visit.name} ended a session that was not the oldest")


RULES: list[Callable[[History], Iterator[Broken]]] = [
    changes,
    ends,
    births,
    duties,
    calls,
    sights,
    answers,
    cookies,
    winners,
    limits,
]

"""Hold every change of a document against what its author may do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .engine import Way
from .history import NOTHING_THERE, Birth, End, Form, History, View
from .rights import may_end
from .script import GONE, Op
from .verdict import Broken
from .world import Visit


def updates(history: History) -> Iterator[Broken]:
    """Find changes of live sessions that their authors may not make."""
    for step in history.steps:
        for id_, _, _ in step.changes:
            was, is_ = history.view(id_, step.number), history.view(id_, step.number + 1)
            if was.is_live and is_.is_live:
                yield from _update(step.visit, id_, was, is_)


def _update(visit: Visit, id_: str, was: View, is_: View) -> Iterator[Broken]:
    if visit.id != id_:
        yield Broken("1 whole", f"{visit.name} changed a session that is not its own")
    for key in sorted(was.data.keys() | is_.data.keys()):
        value = is_.data.get(key, GONE)
        if value != was.data.get(key, GONE) and not _may_make(visit, key, value):
            promise = "1 whole" if writes(visit) else "2 reader"
            yield Broken(promise, f"{visit.name} made {key!r} {value!r}")
    earlier = any(new < old for new, old in zip(is_.moments, was.moments, strict=True))
    if earlier or (is_.owner, is_.moments[0]) != (was.owner, was.moments[0]):
        yield Broken("moments", f"{visit.name} moved a moment, or changed the owner")


def writes(visit: Visit) -> bool:
    """Say whether a request is to change data at all."""
    verbs = {op.verb for op in visit.local.ops}
    return not visit.local.fails and bool(verbs & {"set", "delete", "clear"})


def _may_make(visit: Visit, key: str, value: Any) -> bool:
    """Say whether a request may give a key this value, or remove it."""
    if visit.local.fails:
        return False
    return any(
        (op.verb == "set" and op.key == key and op.value == value)
        or (op.verb == "delete" and op.key == key and value == GONE)
        or (op.verb == "clear" and value == GONE)
        for op in visit.local.ops
    )


def ends(history: History) -> Iterator[Broken]:
    """Find sessions that somebody ended who may not."""
    for end in history.ends:
        if not may_end(history, end):
            yield Broken("3 by whom", f"{end.visit.name} has ended {history.name(end.id)}")


def births(history: History) -> Iterator[Broken]:
    """Find sessions that should not have been stored, or not like that."""
    for place, birth in enumerate(history.births):
        was_there = any(earlier.id == birth.id for earlier in history.births[:place])
        if was_there or history.ends_of(birth.id, birth.step.number):
            yield from _again(history, birth)
        else:
            yield from _birth(history, birth)


def _again(history: History, birth: Birth) -> Iterator[Broken]:
    """Allow a request to put back what it took itself, and could not store anew."""
    visit, ends_of = birth.visit, history.ends_of(birth.id, birth.step.number)
    if not (visit.local.fails and ends_of and ends_of[-1].visit is visit):
        yield Broken("3 revived", f"{visit.name} made {history.name(birth.id)} live again")


def _birth(history: History, birth: Birth) -> Iterator[Broken]:
    visit, name = birth.visit, history.name(birth.id)
    if not name.startswith(visit.name):
        yield Broken("3 revived", f"{visit.name} stored {name}, whose token it has not drawn")
        return
    if visit.local.fails:
        yield Broken("1 whole", f"{visit.name} has failed, and stored a session")
    elif not (writes(visit) or visit.local.rotates):
        yield Broken("2 reader", f"{visit.name} only read, and stored a session")
    yield from _in_vain(history, birth)
    yield from _contents(history, birth)


def _in_vain(history: History, birth: Birth) -> Iterator[Broken]:
    """Find a session that is stored though the one before it was ended, or replaced."""
    visit, number = birth.visit, birth.step.number
    forms = history.forms(visit, number + 1)
    if visit.local.destroys or not forms or history.swap_by(visit) is not None:
        return
    others = [end for end in history.ends_of(visit.id, number) if end.visit is not visit]
    if history.view(visit.id, number).is_live:  # A swap that failed was put back.
        return
    is_mark = history.view(visit.id, number).form is Form.MARK
    if is_mark and visit.local.logs_in is None:
        yield Broken("4 old token", f"{visit.name} stored a session with the token of a mark")
    elif Form.LIVE in forms and others and not is_mark:
        words = f"{visit.name} stored a session after {others[-1].visit.name} had ended its own"
        yield Broken("3 after the end", words)


def _contents(history: History, birth: Birth) -> Iterator[Broken]:
    """Hold what a new session has against what its request did, and what it goes on from."""
    visit, born = birth.visit, history.view(birth.id, birth.step.number + 1)
    swap, before = history.swap_by(visit), NOTHING_THERE
    if swap is not None:
        before = _swapped(history, visit, swap)
    data, owner = result_of(visit.local.fresh_ops, before.data, before.owner)
    if born.owner != owner:
        yield Broken("4 login", f"{visit.name} stored a session of {born.owner}, not of {owner}")
    if before.is_live and visit.local.logs_in is None and born.moments[0] != before.moments[0]:
        yield Broken("moments", f"{visit.name} moved the creation of a session")
    brought = _brought(history, birth) if swap is None else {}
    for key in sorted(born.data.keys() | data.keys()):
        value, wanted = born.data.get(key, GONE), data.get(key, GONE)
        if value != wanted and not (wanted == GONE and value in brought.get(key, [])):
            promise = "4 owner" if wanted == GONE else "1 lost"
            words = f"{key!r} is {value!r} in the new session of {visit.name}, not {wanted!r}"
            yield Broken(promise, words)


def _swapped(history: History, visit: Visit, swap: End) -> View:
    """Return what a request has in hand of the session that it has taken.

    Where the answer is lost for good, and with it the session, a request goes on with what it saw:
    docs/failures.md says so, and which servers lose no answer.
    """
    if swap.step.way not in (Way.UNANSWERED, Way.TWICE):
        return history.view(visit.id, swap.step.number)
    looks = history.looks(visit, swap.step.number)
    return history.view(visit.id, looks[-1].number) if looks else NOTHING_THERE


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
    brought: dict[str, list[Any]] = {}
    if visit.local.logs_in is None or visit.id is None:
        return brought
    # What it has in hand of its own, if the first login is over, or too slow.
    in_hand = [history.view(visit.id, look.number) for look in history.looks(visit)]
    for view in in_hand:
        if view.is_live and view.owner in (visit.local.logs_in, None):
            for key, value in view.data.items():
                brought.setdefault(key, []).append(value)
    for number in range(visit.steps[0].number, birth.step.number + 1):
        for id_ in history.successors_of(visit.id):
            view = history.view(id_, number)
            if view.is_live and view.owner in (visit.local.logs_in, None):
                for key, value in view.data.items():
                    brought.setdefault(key, []).append(value)
    return brought


RULES = [updates, ends, births]

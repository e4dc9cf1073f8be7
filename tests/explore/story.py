"""Tell in words what happened in an order."""

from __future__ import annotations

from collections.abc import Iterator

from .engine import Command, Tick, Way
from .history import Form, History
from .verdict import PROMISES, Broken
from .world import Step, Visit

VERBS = {
    "find": "looks for",
    "count": "counts",
    "insert_one": "inserts",
    "update_one": "updates",
    "update_many": "updates all of",
    "find_one_and_update": "fetches and changes",
    "replace_one": "replaces",
    "delete_one": "deletes",
    "delete_many": "deletes all of",
}


def story_of(history: History, broken: Broken) -> str:
    """Return what happened, step by step, and which promise it breaks."""
    lines = [f"{broken.promise}: {PROMISES[broken.promise]}.", f"At first, {history.start.words}."]
    lines += [_who(history, visit) for visit in history.visits]
    for step in history.steps:
        lines.append(f"  {step.number + 1}. {_step(history, step)}")
        lines += _responses(history, step)
    lines.append(f"But {broken.words}.")
    return "\n".join(lines)


def _who(history: History, visit: Visit) -> str:
    tokens = history.start.tokens
    if len(tokens) == 1:
        return f"{visit.name} {visit.kind.words}."
    by = next(name for name, token in tokens.items() if token == visit.token)
    return f"{visit.name}, which has the {by} token, {visit.kind.words}."


def _step(history: History, step: Step) -> str:
    pending, who = step.pending, step.visit.name
    if isinstance(pending, Tick):
        return f"{pending.words[0].upper()}{pending.words[1:]}."
    if not isinstance(pending, Command):
        return f"{who} waits."
    verb = VERBS.get(pending.name, pending.name)
    if step.way is not Way.WELL:
        return f"{who} {verb} {_what(history, pending)}; this command {step.way.value}."
    return f"{who} {verb} {_what(history, pending)}: {_answer(history, step, pending)}."


def _what(history: History, command: Command) -> str:
    if command.ids is None:
        return "the sessions of an owner" if "owner" in command.filter else "all sessions"
    return " and ".join(sorted(history.name(id_) for id_ in command.ids)) or "nothing"


def _answer(history: History, step: Step, command: Command) -> str:
    if step.outcome.error is not None:
        return type(step.outcome.error).__name__
    now = [_form(history, id_, step.number + 1) for id_, _, _ in step.changes]
    if now:
        return "then there is " + ", ".join(now)
    if command.ids is not None and len(command.ids) == 1:
        (id_,) = command.ids
        was = history.view(id_, step.number).form
        return f"nothing changes, there is {was.value}"
    found = step.outcome.value
    if isinstance(found, tuple):
        return f"there is {_form(history, found[0], step.number + 1)}"
    return f"{len(found) if isinstance(found, list) else found} found"


def _form(history: History, id_: str, number: int) -> str:
    form = history.view(id_, number).form
    what = "no session" if form is Form.NONE else form.value
    return f"{what} under {history.name(id_)}"


def _responses(history: History, step: Step) -> Iterator[str]:
    visit, local, after = step.visit, step.visit.local, step.number + 1
    if visit.responded_at == after:
        cookie = "no cookie"
        if visit.cookie is not None:
            id_ = history.world.id_of(visit.cookie)
            cookie = f"the cookie of {history.name(id_)}" if visit.cookie else "no cookie any more"
        yield f"     {visit.name} is answered {local.status} with {cookie}."
    if step is visit.steps[-1] and visit.pending is None:
        if visit.has_died:
            yield f"     {visit.name} has died."
        elif local.error is not None:
            yield f"     {visit.name} ends with {local.error!r}."
        yield from (
            f"     To {visit.name}, {call.verb} returns {_result(history, call.result)}."
            for call in local.calls
        )


def _result(history: History, result: object) -> str:
    if isinstance(result, list):
        return " and ".join(history.name(id_) for id_ in result) or "nothing"
    return str(result)

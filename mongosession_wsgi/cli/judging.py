"""Judge the indexes of a collection by their effect on its sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..document import SESSION
from ..indexes import OVER_ALL, does_the_same, is_over_all_documents
from .verdicts import Verdict

Index = Mapping[str, Any]
"""An index as MongoDB lists it."""
Judged = tuple[Verdict, str]
Hint = Callable[[str], str]
"""Returns the command line of a subcommand."""

_OWN_FIELDS = frozenset(SESSION) | {"_id"}
"""The fields that every session has."""


def has_ttl(indexes: Sequence[Index]) -> bool:
    """Say whether an index deletes expired sessions."""
    return any(does_the_same(one, "expires_at") for one in indexes)


def old_indexes(indexes: Sequence[Index]) -> list[str]:
    """Return the names of TTL indexes over all documents, as version 1 made them."""
    return [one["name"] for one in indexes if _is_old(one)]


def on_expires_at(indexes: Sequence[Index], hint: Hint) -> Iterator[Judged]:
    """Judge the indexes that delete expired sessions."""
    make = f"make it with: {hint('init')}"
    good = [one for one in indexes if does_the_same(one, "expires_at")]
    new = [one for one in good if not _is_old(one)]
    if new:
        yield Verdict.GOOD, f"{new[0]['name']}, TTL"
    for name in old_indexes(good):
        words = f"{name}, TTL: over all documents, as version 1 made it, not only sessions"
        yield Verdict.NOTE, f"{words}; {hint('init')} replaces it"
    if good:
        return
    ours = [one for one in indexes if _first_key(one) == "expires_at" and _reaches_sessions(one)]
    if not ours:
        yield Verdict.WRONG, f"missing, so expired sessions pile up; {make}"
    for index in ours:
        after = index.get("expireAfterSeconds")
        fault = "is no TTL index" if after is None else f"deletes {after} seconds too late"
        if after == 0:
            fault = "does not reach all sessions"
        yield Verdict.WRONG, f"{index['name']} {fault}; drop it, and {make}{_no_ttl(after, hint)}"


def on_owner(indexes: Sequence[Index], hint: Hint) -> Iterator[Judged]:
    """Judge the indexes that find the sessions of an owner."""
    found = [one for one in indexes if _first_key(one) == "owner" and _reaches_sessions(one)]
    used = [one for one in found if not one.get("hidden")]
    make = f"make it with: {hint('init')}"
    if used:
        yield Verdict.GOOD, str(used[0]["name"])
    elif found:
        yield Verdict.WRONG, f"{found[0]['name']} is hidden, so MongoDB does not use it; unhide it"
    else:
        yield Verdict.WRONG, f"missing, so an owner's sessions are found slowly; {make}"


def others(indexes: Sequence[Index]) -> Iterator[Judged]:
    """Judge the indexes of other programs: some delete sessions, or refuse new sessions."""
    for index in indexes:
        name, fields = index["name"], list(index["key"])
        if index.get("unique") and "_id" not in fields:
            yield from _unique(index)
        if index.get("expireAfterSeconds") is None or fields == ["expires_at"] or len(fields) > 1:
            continue  # MongoDB deletes nothing by an index on several fields.
        where = fields[0]
        if where in _OWN_FIELDS:
            words = f"{name} deletes sessions by the age of {where}, live ones too; drop it"
            yield Verdict.WRONG, words
        elif where.startswith("data."):
            words = f"{name} deletes each session whose data has a date as {where[5:]}; drop it"
            yield Verdict.WRONG, f"{words} unless that is meant"
        else:
            yield (
                Verdict.NOTE,
                (
                    f"{name} is a TTL index on {where}, a field of another session store; sessions "
                    "have no such field, and stay. Drop it if no other program needs it"
                ),
            )


def _unique(index: Index) -> Iterator[Judged]:
    """Judge a unique index of another program; a missing field counts as a value."""
    name, fields = index["name"], list(index["key"])
    if index.get("sparse") and _OWN_FIELDS.isdisjoint(fields):
        return  # No session is in it.
    if index.get("partialFilterExpression"):
        words = f"{name} is a unique index on some of the documents: look whether sessions match it"
        yield Verdict.NOTE, words
        return
    words = (
        f"{name} is a unique index on {', '.join(fields)}, which is not ours. MongoDB refuses each "
        "session but the first that has the same there, or nothing; drop the index, or keep the "
        "sessions in a collection of their own"
    )
    yield Verdict.WRONG, words


def _no_ttl(after: Any, hint: Hint) -> str:
    return f" (a server without TTL needs {hint('purge')} now and then)" if after is None else ""


def _is_old(index: Index) -> bool:
    return is_over_all_documents(index) and index["name"] != OVER_ALL


def _first_key(index: Index) -> str:
    return str(next(iter(index["key"])))


def _reaches_sessions(index: Index) -> bool:
    """Say whether an index holds all sessions; a partial index of another program may not."""
    fields = _OWN_FIELDS if _first_key(index) == "owner" else _OWN_FIELDS - {"owner"}
    return fields.issuperset(index.get("partialFilterExpression") or ())

"""What the indexes of a collection do for its sessions, and what they do to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .verdicts import Verdict

Index = Mapping[str, Any]
"""An index as MongoDB lists it."""
Judged = tuple[Verdict, str]
Hint = Callable[[str], str]
"""Returns the command line of a subcommand."""

_OLD_NAME = "expires_at_1"
"""The name of version 1's TTL index, which reaches all documents of the collection."""
_OWN_FIELDS = frozenset(("_id", "v", "data", "owner", "created_at", "seen_at", "expires_at"))
"""The fields that every session has."""


def has_ttl(indexes: Sequence[Index]) -> bool:
    """Say whether sessions that have expired are deleted by one of the indexes."""
    return any(_is_ttl(one) and _reaches_sessions(one) for one in indexes)


def old_index(indexes: Sequence[Index]) -> str | None:
    """Return the name of the TTL index that version 1 made, or None if it is not there.

    An index of another name was made by somebody else, and is not ours to replace.
    """
    old = [one for one in _over_all_documents(indexes) if one["name"] == _OLD_NAME]
    return _OLD_NAME if old and old[0]["expireAfterSeconds"] == 0 else None


def on_expires_at(indexes: Sequence[Index], hint: Hint) -> Iterator[Judged]:
    """Judge whether the sessions that have expired are deleted."""
    make = f"make it with: {hint('init')}"
    ours = [one for one in indexes if _first_key(one) == "expires_at" and _reaches_sessions(one)]
    ttl = [one for one in ours if _is_ttl(one)]
    good = [one for one in ttl if one["expireAfterSeconds"] == 0]
    for index in ttl:
        if index not in good:
            after = index["expireAfterSeconds"]
            words = f"{index['name']} deletes {after} seconds too late; drop it, and {make}"
            yield Verdict.WRONG, words
    old = _over_all_documents(good)
    if len(good) > len(old):
        yield Verdict.GOOD, f"{next(one for one in good if one not in old)['name']}, TTL"
    for index in old:
        yield Verdict.NOTE, _words_of_old(index, hint)
    if not ttl and ours:
        yield (
            Verdict.WRONG,
            (
                f"{ours[0]['name']} is no TTL index; drop it, and {make} (a server that has no TTL "
                f"needs {hint('purge')} from time to time)"
            ),
        )
    elif not ttl:
        yield Verdict.WRONG, f"missing, so expired sessions pile up; {make}"


def on_owner(indexes: Sequence[Index], hint: Hint) -> Iterator[Judged]:
    """Judge whether the sessions of an owner are found by an index."""
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
    """Judge the indexes of other programs, of which some delete sessions or refuse new ones."""
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
    """Judge a unique index that is not ours; a field that is missing counts as a value, once."""
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


def _over_all_documents(indexes: Sequence[Index]) -> list[Index]:
    return [one for one in indexes if _is_ttl(one) and not one.get("partialFilterExpression")]


def _words_of_old(index: Index, hint: Hint) -> str:
    words = f"{index['name']}, TTL: it deletes all documents that expire, not only sessions"
    if index["name"] == _OLD_NAME:
        return f"{words}, as version 1 made it; {hint('init')} replaces it"
    return f"{words}; if there are others, drop it, and run {hint('init')}"


def _is_ttl(index: Index) -> bool:
    return list(index["key"]) == ["expires_at"] and index.get("expireAfterSeconds") is not None


def _first_key(index: Index) -> str:
    return str(next(iter(index["key"])))


def _reaches_sessions(index: Index) -> bool:
    """Say whether an index holds all sessions; a partial one of another program may hold none."""
    fields = _OWN_FIELDS if _first_key(index) == "owner" else _OWN_FIELDS - {"owner"}
    return fields.issuperset(index.get("partialFilterExpression") or ())

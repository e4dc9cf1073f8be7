"""What grows: the collection. The others must not notice, and this measures whether they do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from random import sample
from secrets import token_urlsafe
from statistics import median
from typing import Any

from bson import encode
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.collection import Collection

from mongosession_wsgi.document import id_of

from .contenders import SMALL, Row, data_of
from .measure import Figures, Tell, in_turns, started

AT_ONCE = 5000
SAMPLE = 5000
"""The tokens that are returned, if there are as many: so many sessions are asked for, in turn."""
_DATA = data_of(SMALL)


def by_sessions(uri: str, sizes: Sequence[int], rounds: int, tell: Tell) -> Figures:
    """Return the microseconds of requests that read and that set, by the sessions stored."""
    found: Figures = {}
    with started(uri, [("ours",)]) as processes, MongoClient[Any](uri) as client:
        process = processes["ours"]
        process.ask("run", "ours", Row("set", SMALL), 1)  # Makes the collection and its indexes.
        collection = client[f"{process.database}_0"]["sessions"]
        for size in sizes:
            fill_up(collection, size, tell)
            tell(f"with {size:,} sessions")
            cells = found[str(size)] = {}
            for kind in ("read", "set"):
                spent = [
                    in_turns(processes, ["ours"], Row(kind, SMALL))["ours"] for _ in range(rounds)
                ]
                cells[kind] = {
                    of: [round(median(one[number] for one in some), 2) for some in spent]
                    for number, of in enumerate(("cpu", "wall"))
                }
    return found


def fill_up(collection: Collection[Any], size: int, tell: Tell) -> list[str]:
    """Insert sessions until there are so many; return the tokens of some, from throughout.

    They are inserted in the order of their ids. In another order each goes to a page of its own,
    and an engine slows to a tenth as soon as its cache is full.
    """
    there = collection.estimated_document_count()
    tokens = sorted((token_urlsafe(32) for _ in range(size - there)), key=id_of)
    for first in range(0, len(tokens), AT_ONCE):
        tell(f"sessions in the collection: {there + first:,} of {size:,}")
        some = tokens[first : first + AT_ONCE]
        collection.insert_many(map(_session, some), ordered=False)
    return sample(tokens, min(len(tokens), SAMPLE))


def visit(collection: Collection[Any], tokens: list[str]) -> None:
    """Let the sessions of these tokens have been visited just now."""
    ids = list(map(id_of, tokens))
    collection.update_many({"_id": {"$in": ids}}, {"$set": _moments()})


def _session(token: str) -> Any:
    new = {"_id": id_of(token), "v": 1, "data": _DATA, "owner": None} | _moments()
    return RawBSONDocument(encode(new))


def _moments() -> dict[str, datetime]:
    now = datetime.now(timezone.utc)
    return {"created_at": now, "seen_at": now, "expires_at": now + timedelta(days=14)}

"""The stored form of a session: its id, its keys, its values, and what changed of them.

Pure functions on values; nothing here has a client.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from hashlib import sha256
from types import NoneType
from typing import Any, NamedTuple
from uuid import UUID

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.errors import BSONError

from .errors import SessionDataError

VERSION = 1
MAX_SIZE = 16 * 1024 * 1024
"""The most bytes that MongoDB holds in one document."""
_SMALL = 1024 * 1024
MAX_DEPTH = 90
"""The most levels of lists and dicts in one value; MongoDB stops at 100, our wrapper included."""

CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True,
    tzinfo=timezone.utc,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
IMMUTABLE = frozenset((
    NoneType, bool, int, float, str, bytes, datetime, UUID, DatetimeMS,
    bson.ObjectId, bson.Decimal128, bson.Timestamp, bson.Regex, bson.MinKey, bson.MaxKey,
))  # fmt: skip
"""The types of BSON whose values no nested change can alter."""
_EXACT = frozenset((NoneType, bool, int, str, bytes))
"""The types of which two values are equal just if their bytes are, unlike -0.0 and nan."""
_NUMBERS = frozenset((NoneType, bool, int, float))
_SCALAR = (*IMMUTABLE, bson.Code, DBRef)
_NESTED = frozenset((dict, list))
_AS_THEY_ARE = frozenset(_SCALAR) - {int, str} | {bson.Binary}

_TO_URLSAFE = bytes.maketrans(b"+/", b"-_")
_TO_ESCAPE = re.compile(r"\A\$|[%.\0]")
_ESCAPED = re.compile(r"%(24|25|2E|00)")
_REFUSALS = (BSONError, ValueError, TypeError, OverflowError)
"""What the encoder raises for values that it does not take."""

_Path = tuple[Any, Any]
"""Where a value is found: the path of what holds it, and its key or index there."""


class Record(NamedTuple):
    """A session as MongoDB holds it."""

    id: str
    data: dict[str, Any]
    owner: str | None
    created_at: datetime
    seen_at: datetime
    expires_at: datetime


class Mark(NamedTuple):
    """What stands for a while under the id of a session that was regenerated away."""

    id: str
    expires_at: datetime
    successor: str | None
    """The id of the session that takes its place."""
    goes_on: bool
    """Whether that is the same session under another token, and not a login's."""


class Changes(NamedTuple):
    """What a request changed of a session's data."""

    assigned: dict[str, Any]
    """The values of the keys that are new or other than what is stored, in stored form."""
    removed: frozenset[str]
    replaces: bool
    """Whether what is stored goes, whatever it is, and `assigned` is all that stays."""
    prints: dict[str, bytes]
    """The bytes of what is assigned, to compare later changes with."""
    until: datetime | None = None
    """When the session is to die, if that was said; else the idle time from now on."""

    @property
    def any(self) -> bool:
        return bool(self.assigned or self.removed or self.replaces or self.until)


def id_of(token: str) -> str:
    """Return the public id of the session that `token` opens.

    One fast hash is enough, because a token is not a password but 256 random bits. What is looked
    up in the database is not the secret, so neither a dump nor the time of a look-up gives it away
    (CVE-2019-16782).
    """
    digest = sha256(token.encode()).digest()
    return b2a_base64(digest).translate(_TO_URLSAFE, b"=\n").decode()


def escape(key: str) -> str:
    """Return `key` as a name that MongoDB takes for a field and for a part of a dotted path."""
    if not key:
        return "%"
    if key.isidentifier():  # As most are; it is a tenth of the time of the search.
        return key
    return _TO_ESCAPE.sub(lambda match: f"%{ord(match[0]):02X}", key)


def unescape(name: str) -> str:
    """Return the key that `escape` made `name` of."""
    if name == "%":
        return ""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), name)


def form(key: Any, value: Any) -> Any:
    """Return `value` as it is stored: a copy, checked, the keys in it escaped.

    Raises `SessionDataError` that names the path and the type of what BSON cannot hold.
    """
    _check_key(key, (None, key))
    return _form(value, (None, key), 1)


def check(key: Any, value: Any) -> None:
    """Raise `SessionDataError`, as `encode` does, for what cannot be stored."""
    # Most of what is assigned is a short text in ASCII, which has no fault to look for.
    texts = type(key) is str and type(value) is str
    if texts and len(value) < _SMALL and key.isascii() and value.isascii():
        return
    stored = form(key, value)
    if type(value) not in _NUMBERS:  # These have no fault that only the encoder finds.
        encode_form(key, stored)


def encode(key: Any, value: Any) -> bytes:
    """Return the bytes of `value` as it is stored; two values are the same if their bytes are.

    Raises `SessionDataError`, as `form` does.
    """
    return encode_form(key, form(key, value))


def encode_form(key: str, stored: Any) -> bytes:
    """Return the bytes of a value in stored form.

    Raises `SessionDataError` for what only the encoder finds, and above 16 MiB.
    """
    try:
        encoded = bson.encode({"": stored}, codec_options=CODEC)
    except _REFUSALS as error:
        path, value = _culprit((None, key), stored)
        raise SessionDataError(
            f"{_shown(path)}: this {type(value).__name__} is out of the range that BSON has for it"
        ) from error
    if len(encoded) > MAX_SIZE:
        raise too_large(f"{_shown((None, key))}: a value of {len(encoded):,} bytes")
    return encoded


def too_large(what: str) -> SessionDataError:
    """Return the error for a session or a value that MongoDB does not hold for its size."""
    return SessionDataError(
        f"{what} is more than the 16 MiB that MongoDB holds; keep large things elsewhere and their "
        "names in the session"
    )


def decode(raw: bytes) -> Record | Mark | None:
    """Read the bytes of a stored document; None is one that is not of our form."""
    try:
        found = bson.decode(raw, codec_options=CODEC)
    except BSONError:
        return None
    return read(found)


def read(found: Mapping[str, Any]) -> Record | Mark | None:
    """Read a stored document, decoded by `CODEC`; None is one that is not of our form."""
    match found:
        case {
            "_id": str() as id_,
            "v": 1,
            "data": dict() as data,
            "owner": (str() | None) as owner,
            "created_at": datetime() as created_at,
            "seen_at": datetime() as seen_at,
            "expires_at": datetime() as expires_at,
        }:
            return Record(id_, _unescaped(data), owner, created_at, seen_at, expires_at)
        case {"_id": str() as id_, "v": 1, "expires_at": datetime() as expires_at} if (
            "data" not in found
        ):
            return Mark(id_, expires_at, found.get("successor"), "owner" in found)
        case _:
            return None


def difference(
    data: Mapping[str, Any],
    base: Mapping[str, Any],
    prints: Mapping[str, bytes],
    *,
    replaces: bool = False,
    until: datetime | None = None,
) -> Changes:
    """Return what makes `data` of `base`, which is what is stored.

    `prints` holds the bytes of those values of `base` that may have been changed in place since.
    Every other value is unchanged if it is the same object, and compared if it is not. Nothing is
    stored any more of a session that the difference `replaces`.
    """
    if replaces:
        base = {}
    assigned: dict[str, Any] = {}
    encoded: dict[str, bytes] = {}
    for key, value in list(data.items()):
        if key not in base:
            if type(value) in IMMUTABLE:
                assigned[key] = value  # Which was checked when it was assigned.
                continue
        elif value is base[key] and key not in prints:
            continue
        elif type(value) in _EXACT and type(value) is type(base[key]):
            if value != base[key]:
                assigned[key] = value
            continue
        stored = form(key, value)
        encoding = encode_form(key, stored)
        if key not in base or encoding != (prints.get(key) or encode(key, base[key])):
            assigned[key] = stored
            encoded[key] = encoding
    removed = frozenset(base.keys() - data.keys())
    return Changes(assigned, removed, replaces, encoded, until)


def update_of(changes: Changes, seen_at: datetime, expires_at: datetime | None) -> dict[str, Any]:
    """Return the update that makes `changes`, and moves the moments forward but never back.

    `expires_at` is None where a session cannot live longer than it was given at first; it moves
    back only if that is one of the changes.
    """
    moments = {"seen_at": seen_at}
    fields: dict[str, Any] = {}
    if changes.until is not None:
        fields["expires_at"] = expires_at
    elif expires_at is not None:
        moments["expires_at"] = expires_at
    if changes.replaces:
        fields["data"] = _fields(changes.assigned)
    else:
        fields |= _fields(changes.assigned, "data.")
    update: dict[str, Any] = {"$max": moments}
    if fields:
        update["$set"] = fields
    if changes.removed:
        update["$unset"] = _fields(dict.fromkeys(changes.removed, 1), "data.")
    return update


def document_of(record: Record, changes: Changes) -> bytes:
    """Return the whole document of a new session that has the data of `changes`.

    Raises `SessionDataError` above 16 MiB.
    """
    document = {
        "_id": record.id,
        "v": VERSION,
        "data": _fields(changes.assigned),
        "owner": record.owner,
        "created_at": record.created_at,
        "seen_at": record.seen_at,
        "expires_at": record.expires_at,
    }
    encoded = bson.encode(document, codec_options=CODEC)
    if len(encoded) > MAX_SIZE:
        raise too_large(f"A session of {len(encoded):,} bytes")
    return encoded


def marking(expires_at: datetime, successor: str, *, goes_on: bool) -> dict[str, Any]:
    """Return the update that makes a mark of a session that is regenerated away.

    If it `goes_on`, its owner stays, so that whoever ends all of his sessions finds that one.
    """
    gone = ["data", "created_at", "seen_at"] + ([] if goes_on else ["owner"])
    kept = {"expires_at": expires_at, "successor": successor}
    return {"$set": kept, "$unset": dict.fromkeys(gone, 1)}


def tombstone(id_: str, expires_at: datetime) -> bytes:
    """Return a mark that keeps a session that is ended already from being inserted."""
    return bson.encode({"_id": id_, "v": VERSION, "expires_at": expires_at, "ended": True})


def _fields(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {prefix + escape(key): value for key, value in values.items()}


def _unescaped(stored: dict[str, Any]) -> dict[str, Any]:
    # Escaped keys are rare; to look for them first spares most sessions a copy.
    if "%" in "".join(stored):
        stored = {unescape(name): value for name, value in stored.items()}
    if not _NESTED.isdisjoint(map(type, stored.values())):
        stored = {
            key: _unescaped_within(value) if type(value) in _NESTED else value
            for key, value in stored.items()
        }
    return stored


def _unescaped_within(value: Any) -> Any:
    if isinstance(value, dict):
        return _unescaped(value)
    if isinstance(value, list) and not _NESTED.isdisjoint(map(type, value)):
        return [_unescaped_within(item) for item in value]
    return value


def _form(value: Any, path: _Path, depth: int) -> Any:
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if isinstance(value, str):
        _check_text(value, path)
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise SessionDataError(f"{_shown(path)}: this int does not fit into 64 bits")
        return value
    if isinstance(value, dict | list | tuple):
        if depth > MAX_DEPTH:
            raise SessionDataError(
                f"{_shown(path)}: this {kind.__name__} is nested in itself or more than "
                f"{MAX_DEPTH} levels deep"
            )
        if isinstance(value, dict):
            return _form_of_dict(value, path, depth)
        return [_form(item, (path, index), depth + 1) for index, item in enumerate(list(value))]
    if isinstance(value, _SCALAR):
        return value
    raise SessionDataError(
        f"{_shown(path)}: a session cannot hold a {kind.__name__}; it holds None, bool, int, "
        "float, str, bytes, datetime, UUID, list, dict and the types of the bson package"
    )


def _form_of_dict(value: dict[Any, Any], path: _Path, depth: int) -> dict[str, Any]:
    stored = {}
    for key, item in list(value.items()):
        place = (path, key)
        _check_key(key, place)
        stored[escape(key)] = _form(item, place, depth + 1)
    return stored


def _culprit(path: _Path, stored: Any) -> tuple[_Path, Any]:
    """Return the innermost part of `stored` that the encoder refuses, and where it is."""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(stored, dict):
        parts = ((unescape(name), item) for name, item in stored.items())
    elif isinstance(stored, list):
        parts = enumerate(stored)
    for step, item in parts:
        try:
            bson.encode({"": item}, codec_options=CODEC)
        except _REFUSALS:
            return _culprit((path, step), item)
    return path, stored


def _check_key(key: Any, path: _Path) -> None:
    if not isinstance(key, str):
        raise SessionDataError(
            f"{_shown(path)}: the keys of a session are str, not {type(key).__name__}"
        )
    _check_text(key, path)


def _check_text(text: str, path: _Path) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise SessionDataError(
                f"{_shown(path)}: this str has a lone surrogate at {error.start} and is no Unicode "
                "text; decode it with the right encoding"
            ) from None


def _shown(path: _Path | None) -> str:
    """Return a path as it would be written, such as `cart[3].price`."""
    steps: list[str] = []
    while path is not None:
        path, step = path
        plain = isinstance(step, str) and step.isidentifier() and (path is None or step.isascii())
        if path is None:
            steps.append(step if plain else ascii(step))
        else:
            steps.append(f".{step}" if plain else f"[{step!a}]")
    shown = "".join(reversed(steps))
    return shown if len(shown) <= 200 else f"{shown[:100]}…{shown[-90:]}"

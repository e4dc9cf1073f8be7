"""The stored form of a session: ids, names, values, and the filters that find sessions and marks.

Pure functions on values; nothing here has a client.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from hashlib import sha256
from itertools import product
from pathlib import PurePath
from secrets import token_urlsafe
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import bson
from bson.binary import Binary, UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion, TypeDecoder, TypeRegistry
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.errors import BSONError
from bson.int64 import Int64

from .errors import SessionDataError

if TYPE_CHECKING:
    from .seal import Seal

PLAIN, SEALED = VERSIONS = 1, 2
"""The forms of a document, told by the field `v`; a collection may hold both."""
MAX_SIZE = 16 * 1024 * 1024
"""The most bytes of a document in MongoDB."""
_SMALL = 1024 * 1024
MAX_DEPTH = 90
"""The most levels of lists and dicts in one value; MongoDB stops at 100, our wrapper included."""

CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
"""The form of values for the driver. `unescaped` makes the moments aware: the driver takes as long
for the moments of a session as for the rest of a read."""


class _Ints(TypeDecoder):
    """Makes an int of the driver's `Int64`."""

    bson_type = Int64

    def transform_bson(self, value: Int64) -> int:
        return int(value)


_WITHIN = CODEC.with_options(
    tz_aware=True, tzinfo=timezone.utc, type_registry=TypeRegistry([_Ints()])
)
"""The form of the values inside of a `DBRef` or a `Code`."""
IMMUTABLE = frozenset((
    NoneType, bool, int, float, str, bytes, datetime, UUID, DatetimeMS,
    bson.ObjectId, bson.Decimal128, bson.Timestamp, bson.Regex, bson.MinKey, bson.MaxKey,
))  # fmt: skip
"""The types of BSON whose values no nested change can alter."""
_NUMBERS = frozenset((NoneType, bool, int, float))
_SCALAR = (*IMMUTABLE, bson.Code, DBRef)
_NESTED = frozenset((dict, list))
_CONTAINERS = (dict, list, tuple)
_MOMENTS = frozenset((datetime,))
"""The type of the driver's moments, also where a test has put another class in place of it."""
_HOLDERS = frozenset((bson.Code, DBRef))
"""The other types with values inside."""
_CONVERTED = frozenset((Int64, datetime))
"""The types without values inside that the driver decodes to others than the application stored."""
_UNLIKE_STORED = _NESTED | _HOLDERS | _CONVERTED
"""All types that the driver decodes to other values than the application stored."""
_MAY_BE_UNREADABLE = (Binary, bson.Regex, bson.Code, DBRef)
"""The types with values that the driver encodes but cannot decode, such as a short UUID."""
_AS_THEY_ARE = frozenset(_SCALAR) - {int, str} - frozenset(_MAY_BE_UNREADABLE)
_LEAVES = _AS_THEY_ARE | {int, str}
"""The types of items that a walk passes by; the encoder finds a long int or a lone surrogate."""

TO_URLSAFE = bytes.maketrans(b"+/", b"-_")
_TO_ESCAPE = re.compile(r"\A\$|[%.\0]")
_ESCAPED = re.compile(r"%(24|25|2E|00)")
_REFUSALS = (BSONError, ValueError, TypeError, OverflowError)
"""The errors of the encoder for values out of its range."""

_Path = tuple[Any, Any]
"""The place of a value: the path of the container, and the key or index in the container."""


class Token(str):
    """The secret of a cookie, which no `repr` shows: not in a log, a traceback or a collector."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<token>"


class Record(NamedTuple):
    """A session in MongoDB. Between `id` and `version` are the stored fields, in their order."""

    id: str
    data: dict[str, Any]
    owner: str | None
    created_at: datetime
    seen_at: datetime
    expires_at: datetime
    label: str | None = None
    remember: bool | None = None
    """The idle time: None for `session_expires`, True for `session_remember`, and False where the
    application said the moment itself, and `expires_at` alone counts."""
    version: int = PLAIN
    """The form, `v`; the data of a sealed session are still sealed."""


class Mark(NamedTuple):
    """The sign left for a while under the id of a session with a new token."""

    id: str
    expires_at: datetime
    successor: str | None
    """The id of the session under the new token; None on a tombstone."""
    goes_on: bool = False
    """Whether the successor has the same owner: the same session, or the next login."""
    by_login: bool = False
    ended: Any = None
    """The sign of the call that ended the session, or True."""

    def followed(self, *, past_logins: bool) -> str | None:
        """Return the id of the session that ends together with the session of the mark."""
        goes_on = self.goes_on and (past_logins or not self.by_login)
        return self.successor if goes_on else None


_FIELDS: dict[str, tuple[type, ...]] = {
    "data": (dict,),
    "owner": (str, NoneType),
    "created_at": (datetime,),
    "seen_at": (datetime,),
    "expires_at": (datetime,),
    "label": (str, NoneType),
    "remember": (bool, NoneType),
}
"""The fields of a stored session and their types; those of `Record` have the same names."""
_KINDS = frozenset(product(*_FIELDS.values()))
"""The types of all fields of a session together."""
_NEVER = datetime(8999, 1, 1)
"""A moment so far that a later one makes no difference, and the longest span ends before 9999."""
_OPTIONAL = frozenset(Record._field_defaults) & _FIELDS.keys()
_BSON_TYPES = {str: 2, dict: 3, datetime: 9, NoneType: 10}
"""BSON's numbers for types, shorter than names in the commands of most requests."""
_ARRAY = 4


def _condition(types: tuple[type, ...]) -> dict[str, Any]:
    numbers = [_BSON_TYPES[kind] for kind in types]
    if dict in types:  # MongoDB also takes an array with a document in it for a document.
        return {"$type": numbers[0], "$not": {"$type": _ARRAY}}
    return {"$type": numbers if len(numbers) > 1 else numbers[0]}


OURS: dict[str, Any] = {"v": {"$in": VERSIONS}}
"""The condition met by every session and every mark."""
SESSION: dict[str, Any] = OURS | {
    name: _condition(types) for name, types in _FIELDS.items() if name not in _OPTIONAL
}
"""The condition met by every session, and by no mark or foreign document."""
MARK: dict[str, Any] = OURS | {
    "data": {"$exists": False},
    "expires_at": {"$type": _BSON_TYPES[datetime]},
}
"""The condition met by every mark, and by no session."""
MOVED: dict[str, Any] = MARK | {"successor": {"$exists": True}}
"""The condition met by the mark of every session with a new token, and by no tombstone."""
MARK_TIME = timedelta(seconds=60)
"""How long a mark stands."""


def live(id_: str, now: datetime, version: int) -> dict[str, Any]:
    """Return the filter of a live session of one form by id; an expired session does not match."""
    # The narrowest condition comes first: the embedded server takes the first index it meets.
    return {"_id": id_} | SESSION | {"expires_at": {"$gt": now}, "v": version}


def live_seen(id_: str, now: datetime, version: int) -> dict[str, Any]:
    """Return a shorter filter of a live session, for a request that only rules out a mark."""
    data = {"$type": _BSON_TYPES[dict]}
    return {"_id": id_, "v": version, "data": data, "expires_at": {"$gt": now}}


def marked(id_: str, now: datetime) -> dict[str, Any]:
    """Return the filter of an unexpired mark by id."""
    return MARK | {"_id": id_, "expires_at": {"$gt": now}}


def standing(id_: str, now: datetime, version: int) -> dict[str, Any]:
    """Return the filter of a live session of one form, or of a mark with a successor."""
    return {"_id": id_, "expires_at": {"$gt": now}, "$or": [SESSION | {"v": version}, MOVED]}


ANY_ID = {"$gte": "-", "$lt": "{"}
"""The condition met by each id, and by no `_id` of another type; the TTL index has the same."""


def expired_by(now: datetime) -> dict[str, Any]:
    """Return the filter of expired sessions and marks; the TTL index finds them."""
    return {"_id": ANY_ID} | OURS | {"expires_at": {"$lte": now}}


class Changes(NamedTuple):
    """The changes of a request to a session's data."""

    assigned: dict[str, Any]
    """The new and changed values by their keys, in stored form."""
    removed: frozenset[str] = frozenset()
    replaces: bool = False
    """Whether all stored data goes, and `assigned` alone stays."""
    prints: Mapping[str, bytes] = {}
    """The bytes of the assigned values, to compare later changes with."""


_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_REMEMBERED_BIT, _SEALED_BIT = 1, 2
"""The two spare bits of a token, in the last character: 43 characters hold 258 bits.

By the bits, a request knows the session's idle time and form without a look. Nobody can change
them, because the id is a hash of the whole token.
"""
REMEMBERED = tuple(one for n, one in enumerate(_ALPHABET) if n & _REMEMBERED_BIT)
SEALED_TOKEN = tuple(one for n, one in enumerate(_ALPHABET) if n & _SEALED_BIT)
"""The last characters of the tokens of remembered, and of sealed sessions."""


def new_token(*, remembered: bool = False, sealed: bool = False) -> Token:
    """Return a new token: 32 random bytes in base64url without padding."""
    token = token_urlsafe(32)
    spare = remembered * _REMEMBERED_BIT + sealed * _SEALED_BIT
    return Token(token[:-1] + _ALPHABET[_ALPHABET.index(token[-1]) + spare])


def version_of(token: str) -> int:
    """Return the form of the document of a token's session."""
    return SEALED if token.endswith(SEALED_TOKEN) else PLAIN


def id_of(token: str) -> str:
    """Return the public id of the session of `token`.

    A fast hash is enough, because a token is no password but 256 random bits. The database looks
    up the id and not the secret, so neither a dump nor the time of a look-up gives the token away
    (CVE-2019-16782).
    """
    digest = sha256(token.encode()).digest()
    return b2a_base64(digest).translate(TO_URLSAFE, b"=\n").decode()


def text_of(value: str) -> str:
    """Return the text that MongoDB stores for a value of any kind of str.

    `str(value)` may be another: that of a member of a `(str, Enum)` is the member's name.
    """
    return str.__str__(value)


def escape(key: str) -> str:
    """Escape `key` into a name valid for a field and for a part of a dotted path."""
    if not key:
        return "%"
    return _TO_ESCAPE.sub(lambda match: f"%{ord(match[0]):02X}", key)


def unescape(name: str) -> str:
    """Return the key of an escaped name."""
    if name == "%":
        return ""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), name)


def form(key: Any, value: Any) -> Any:
    """Return `value` in stored form: a copy, checked, with the keys inside escaped.

    Raises `SessionDataError`, with the path and the type, for a value that BSON cannot hold.
    """
    _check_key(key, (None, key))
    if type(value) in _AS_THEY_ARE:
        return value
    return _Walk().form(value, (None, key), 1)


def check(key: Any, value: Any) -> None:
    """Raise `SessionDataError`, like `encode`, for a value that cannot be stored."""
    # Most assigned values are short texts in ASCII, without a fault to look for.
    texts = type(key) is str and type(value) is str
    if texts and len(value) < _SMALL and key.isascii() and value.isascii():
        return
    stored = form(key, value)
    if type(value) not in _NUMBERS:  # Only the encoder finds the faults of the other types.
        encode_form(key, stored)


def encode(key: Any, value: Any) -> bytes:
    """Return the bytes of `value` in stored form; two values are the same if their bytes are.

    Raises `SessionDataError`, like `form`.
    """
    return encode_form(key, form(key, value))


def encode_form(key: str, stored: Any) -> bytes:
    """Return the bytes of a value in stored form.

    Raises `SessionDataError` for faults found by the encoder alone, and above 16 MiB.
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
    """Return the error for a session or a value too large for MongoDB."""
    return SessionDataError(
        f"{what} is more than the 16 MiB that MongoDB holds; keep large things elsewhere and their "
        "names in the session"
    )


def decode(raw: bytes) -> Record | Mark | None:
    """Read the bytes of a stored document; None for a document not of our form."""
    found = read(fields_of(raw))
    if type(found) is Record and found.version == PLAIN:
        return found._replace(data={key: opened(value) for key, value in found.data.items()})
    return found


def fields_of(raw: bytes) -> dict[str, Any]:
    """Return the fields of a stored document; none for bytes that cannot be decoded."""
    try:
        return bson.decode(raw, codec_options=CODEC)
    except BSONError:
        return {}


def read(found: Mapping[str, Any]) -> Record | Mark | None:
    """Read a stored document, decoded by `CODEC`; None for a document not of our form.

    The values inside of lists and dicts stay in stored form; see `opened`.
    """
    id_, version = found.get("_id"), found.get("v")
    if type(id_) is not str or version not in VERSIONS or version is True:
        return None
    if "data" in found:
        fields: tuple[Any, ...] = tuple(map(found.get, _FIELDS))
        if tuple(map(type, fields)) not in _KINDS or "owner" not in found:
            return None
        data, owner, created_at, seen_at, expires_at, label, remember = fields
        if version == PLAIN:
            data = by_key(data)
        elif not all(type(value) is bytes for value in data.values()):
            return None
        return Record(
            id_, data, owner, _in_utc(min(created_at, _NEVER)), _in_utc(min(seen_at, _NEVER)),
            _in_utc(expires_at), label, remember, version,
        )  # fmt: skip
    expires_at, successor = found.get("expires_at"), found.get("successor")
    if not isinstance(expires_at, datetime) or type(successor) not in (str, NoneType):
        return None
    by_login, ended = bool(found.get("login")), found.get("ended")
    return Mark(id_, _in_utc(expires_at), successor, "owner" in found, by_login, ended)


def outline(found: Mapping[str, Any]) -> Record | Mark | None:
    """Read a stored document fetched without the data."""
    return read({**found, "data": {}} if "created_at" in found else found)


def update_of(
    changes: Changes, moments: dict[str, Any], terms: dict[str, Any], seal: Seal | None = None
) -> dict[str, Any]:
    """Return the update for `changes`; `moments` move forward but never back.

    `terms` are fields to set unconditionally, or to remove where None.
    """
    fields: dict[str, Any] = {name: term for name, term in terms.items() if term is not None}
    gone: dict[str, Any] = {name: 1 for name, term in terms.items() if term is None}
    if changes.replaces:
        fields["data"] = _fields(changes.assigned, "", seal)
    else:
        fields |= _fields(changes.assigned, "data.", seal)
    if changes.removed:
        gone |= dict.fromkeys(_fields(dict.fromkeys(changes.removed), "data.", seal), 1)
    update: dict[str, Any] = {"$max": moments}
    if fields:
        update["$set"] = fields
    if gone:
        update["$unset"] = gone
    return update


def document_of(record: Record, contents: Changes, seal: Seal | None = None) -> bytes:
    """Return the whole document of a new session with the data of `contents`.

    Raises `SessionDataError` above 16 MiB.
    """
    document: dict[str, Any] = {"_id": record.id, "v": record.version}
    document |= zip(_FIELDS, record[1:], strict=False)
    document["data"] = _fields(contents.assigned, "", seal)
    for name in _OPTIONAL:
        if document[name] is None:
            del document[name]
    encoded = bson.encode(document, codec_options=CODEC)
    if len(encoded) > MAX_SIZE:
        raise too_large(f"A session of {len(encoded):,} bytes")
    return encoded


def marking(now: datetime, successor: str, *, goes_on: bool, by_login: bool) -> dict[str, Any]:
    """Return the update from a session to a mark, as the session gets a new token.

    If the session `goes_on`, the mark keeps the owner, so whoever ends all sessions of an owner
    finds the successor. The mark of another owner's login does not tell the new owner.
    """
    kept: dict[str, Any] = {"expires_at": now + MARK_TIME, "successor": successor}
    if goes_on and by_login:
        kept["login"] = True
    return {"$set": kept, "$unset": _all_but({"expires_at"} | ({"owner"} if goes_on else set()))}


def ending(now: datetime, sign: Any = True) -> dict[str, Any]:
    """Return the update from a session to a tombstone: a mark without a successor.

    A repeated or late insert of the session cannot bring the session back over a tombstone; after
    a deletion, an insert could.
    """
    return {
        "$set": {"expires_at": now + MARK_TIME, "ended": sign},
        "$unset": _all_but({"expires_at"}),
    }


def ending_or_noting(now: datetime, sign: Any) -> dict[str, Any]:
    """Return the update from a session to a tombstone, or from a mark to a mark with the end noted.

    A mark keeps its owner and its successor. By the `sign`, a call knows its own work again.
    """
    return ending(now, sign) | {"$unset": _all_but({"expires_at", "owner"})}


def tombstone(id_: str, now: datetime, sign: Any) -> bytes:
    """Return the tombstone of a session before its insert."""
    return bson.encode({"_id": id_, "v": PLAIN, "expires_at": now + MARK_TIME, "ended": sign})


def _all_but(kept: set[str]) -> dict[str, Any]:
    return {name: 1 for name in _FIELDS if name not in kept}


def _fields(values: Mapping[str, Any], prefix: str, seal: Seal | None) -> dict[str, Any]:
    if seal is not None:
        return seal.fields(values, prefix)
    # Most keys are identifiers; other keys may need escaping.
    return {
        prefix + (key if key.isidentifier() else escape(key)): value
        for key, value in values.items()
    }


def by_key(stored: dict[str, Any], at_once: AbstractSet[type] = _CONVERTED) -> dict[str, Any]:
    """Return decoded values by their keys; `stored` is used up.

    Those of other types than `at_once` stay in stored form, for `opened`: most requests look at a
    few values.
    """
    # Escaped keys are rare; to look for them first spares most sessions a copy.
    if "%" in "".join(stored):
        stored = {unescape(name): value for name, value in stored.items()}
    for key, value in stored.items():
        if type(value) in at_once:
            stored[key] = opened(value)
    return stored


def opened(value: Any) -> Any:
    """Return a value in stored form as an application stored it; dicts are copied."""
    kind = type(value)
    if kind is dict:
        return by_key(value.copy(), _UNLIKE_STORED)
    if kind is list:
        if _UNLIKE_STORED.isdisjoint(map(type, value)):
            return value
        return [opened(item) for item in value]
    if kind in _MOMENTS:  # The driver's are naive; an aware one is the application's own.
        return value if value.tzinfo else _in_utc(value)
    if kind in _HOLDERS:
        return bson.decode(bson.encode({"": value}, codec_options=CODEC), _WITHIN)[""]
    return int(value) if kind is Int64 else value


def _in_utc(moment: datetime) -> datetime:
    """Return a decoded moment as an aware one; `replace` would take five times as long."""
    return moment.combine(moment, moment.time(), timezone.utc)


class _Walk:
    """A walk through a value before storage.

    A list or dict in several places is counted in each, and walked through again only where it is
    deeper than before: a value shared twice at each of 60 levels would be 2**60 long.
    """

    def __init__(self) -> None:
        self._size = 0
        self._known: dict[int, tuple[Any, int, Any, int] | None] = {}
        """The stored form, least size and depth of each list or dict; None while the walk is in it.

        The list or dict is kept too, for a number like its own must not go to another.
        """

    def form(self, value: Any, path: _Path, depth: int) -> Any:
        kind = type(value)
        if kind in _AS_THEY_ARE:
            return value
        if isinstance(value, _CONTAINERS):
            return self._container(value, path, depth)
        if isinstance(value, _MAY_BE_UNREADABLE):
            self._check_readable(value, path, depth)
            return value
        if issubclass(kind, str):  # A stand-in may claim to be an instance.
            if not value.isascii():
                _check_text(value, path)
            return value
        if issubclass(kind, int):
            return _checked_int(value, path)
        if issubclass(kind, _SCALAR):
            return value
        if _is_lazy_text(value):
            return self.form(str(value), path, depth)
        raise SessionDataError(
            f"{_shown(path)}: a session cannot hold a {kind.__name__}; {_instead_of(value)}"
        )

    def _check_readable(self, value: Any, path: _Path, depth: int) -> None:
        """Refuse a value that nobody could read again, and the like within a value."""
        within = getattr(value, "scope", None) or {}
        if isinstance(value, DBRef):
            within = value.as_doc()
        stored = self.form(dict(within), path, depth)
        try:
            bson.decode(bson.encode({"": value}, codec_options=CODEC), CODEC)
        except _REFUSALS as error:
            _culprit(path, stored)
            raise SessionDataError(
                f"{_shown(path)}: this {type(value).__name__} could be stored but not read again"
            ) from error

    def _container(self, value: Any, path: _Path, depth: int) -> Any:
        before, found = self._size, self._known.get(id(value), self)
        if found is None or depth > MAX_DEPTH:
            raise SessionDataError(
                f"{_shown(path)}: this {type(value).__name__} is nested in itself or more than "
                f"{MAX_DEPTH} levels deep"
            )
        if isinstance(found, tuple) and depth <= found[-1]:
            stored, size, *_ = found
            self._size += size
        else:
            self._known[id(value)] = None
            self._size += 5 + 3 * len(value)
            stored = self._items(value, path, depth)
            self._known[id(value)] = stored, self._size - before, value, depth
        if self._size > MAX_SIZE:
            raise too_large(f"{_shown(path)}: a value that has so many parts")
        return stored

    def _items(self, value: Any, path: _Path, depth: int) -> Any:
        if not isinstance(value, dict):
            items = enumerate(list(value))
            return [
                item if type(item) in _LEAVES else self.form(item, (path, index), depth + 1)
                for index, item in items
            ]
        stored = {}
        for key, item in list(value.items()):
            name = key
            if not (type(key) is str and key.isidentifier() and key.isascii()):
                _check_key(key, (path, key))
                name = escape(key)
            if type(item) not in _LEAVES:
                item = self.form(item, (path, key), depth + 1)
            stored[name] = item
        return stored


def _is_lazy_text(value: Any) -> bool:
    """Say whether an object stands for a text, such as a lazy translation.

    Lazy texts (of Babel, Django, speaklater, Werkzeug) have no type in common, but each has the
    methods of a str. An object with attributes of any name, such as a mock, is no text.
    """
    is_class = isinstance(value, type)
    return hasattr(value, "casefold") and not hasattr(value, "casefold_") and not is_class


_INSTEAD = (
    ((set, frozenset), "give a list of its items"),
    ((date, time), "give a datetime, or the text of isoformat()"),
    ((timedelta,), "give its seconds, as total_seconds() returns them"),
    ((Decimal,), "give a bson.Decimal128, or a str"),
    ((Enum,), "give its value"),
    ((PurePath,), "give a str"),
    ((bytearray, memoryview), "give bytes"),
    ((complex, Fraction), "give a str, or two numbers"),
)
"""The remedies for values that people try to store."""


def _instead_of(value: Any) -> str:
    for kinds, remedy in _INSTEAD:
        if isinstance(value, kinds):
            return remedy
    return (
        "it holds None, bool, int, float, str, bytes, datetime, UUID, list, dict and the types of "
        "the bson package"
    )


def _culprit(path: _Path, stored: Any) -> tuple[_Path, Any]:
    """Return the innermost part of `stored` refused by the encoder, and the part's place.

    Raises `SessionDataError` for a text and for an int, because a walk has better words for them.
    """
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
    _Walk().form(stored, path, 1)
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


def _checked_int(value: Any, path: _Path) -> Any:
    if not -(2**63) <= value < 2**63:
        raise SessionDataError(f"{_shown(path)}: this int does not fit into 64 bits")
    return int(value) if type(value) is Int64 else value  # An Int64 is read as an int.


def _shown(path: _Path | None) -> str:
    """Write a path as in Python, such as `cart[3].price`."""
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

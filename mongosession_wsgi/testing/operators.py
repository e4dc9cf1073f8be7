"""The few operators of a store's filters and updates, on plain values."""

from __future__ import annotations

from types import NoneType
from typing import Any

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS

from .. import document

Document = dict[str, Any]

CODEC: CodecOptions[Document] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
"""Decodes each value so as to encode to the same bytes, and to compare like in MongoDB."""

_TYPES = {2: str, 3: dict, 4: list, 9: DatetimeMS, 10: NoneType}
_MISSING = object()


def as_stored(value: Document) -> Document:
    """Return a filter, an update or a document as on the server."""
    return bson.decode(bson.encode(value, codec_options=document.CODEC), CODEC)


def matches(document: Document, filter: Document) -> bool:
    """Say whether a filter finds a document."""
    return all(
        any(matches(document, either) for either in condition)
        if field == "$or"
        else _fulfils(document.get(field, _MISSING), condition)
        for field, condition in filter.items()
    )


def _fulfils(value: Any, condition: Any) -> bool:
    if condition is None:
        return value is None or value is _MISSING
    if not (isinstance(condition, dict) and all(name.startswith("$") for name in condition)):
        return bool(value == condition)
    return all(_holds(value, operator, operand) for operator, operand in condition.items())


def _holds(value: Any, operator: str, operand: Any) -> bool:
    match operator:
        case "$exists":
            return bool((value is not _MISSING) == operand)
        case "$type":
            numbers = operand if isinstance(operand, list) else [operand]
            values = [value, *value] if isinstance(value, list) else [value]
            return any(type(one) is _TYPES[number] for one in values for number in numbers)
        case "$not":
            return not _fulfils(value, operand)
        case "$ne":
            return bool(value != operand)
        case "$in":
            return value in operand
        case "$gt":
            return type(value) is type(operand) and bool(value > operand)
        case "$gte":
            return type(value) is type(operand) and bool(value >= operand)
        case "$lt":
            return type(value) is type(operand) and bool(value < operand)
        case "$lte":
            return type(value) is type(operand) and bool(value <= operand)
    raise _unknown(operator)


def updated(document: Document, update: Document) -> Document:
    """Update a document in place, and return the document."""
    for operator, fields in update.items():
        for path, operand in fields.items():
            holder, name = _place(document, path)
            match operator:
                case "$set":
                    holder[name] = operand
                case "$unset":
                    holder.pop(name, None)
                case "$max":
                    holder[name] = max(holder.get(name, operand), operand)
                case _:
                    raise _unknown(operator)
    return document


def _unknown(operator: str) -> NotImplementedError:
    return NotImplementedError(f"{operator}: the memory store does not know this operator")


def _place(document: Document, path: str) -> tuple[Document, str]:
    """Return the container and the name of a dotted path's field."""
    holder, _, name = path.rpartition(".")
    return (document[holder] if holder else document), name

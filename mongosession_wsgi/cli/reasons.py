"""The driver's words for an error, on one line and without passwords."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote_plus, unquote, unquote_plus

from pymongo.errors import OperationFailure

from ..errors import StoreError
from ..settings import is_secret

_USER_IN_URI = re.compile(r"(mongodb(?:\+srv)?://?).*@", re.IGNORECASE)
"""The start of a URI up to its host; a path has a single slash, and a password may have spaces."""
_OPTION_IN_URI = re.compile(r"""([?&;](\w+)=).*?(?=[&;]|['"](?!\w)|$)""", re.MULTILINE)
"""An option in the query of a URI, up to the next, to a quote or to the end of the line."""
_TIMEOUTS = re.compile(r" \(configured timeouts: [^)]*\)|(?<=\.\d)\d+(?=s, Topology)")
"""The driver's words about its own settings, and the many digits of a time."""
_TOPOLOGY = re.compile(r", Topology Description: .*", re.DOTALL)
_TOO_SHORT = 4
"""A secret of fewer characters is removed only as a word of its own."""


def reason(error: BaseException, secrets: Iterable[str] = ()) -> str | None:
    """Return the driver's words for a failure of the store, or None if they add nothing."""
    cause = error.__cause__ if isinstance(error, StoreError) else None
    words = "" if cause is None else without(secrets, _words(cause))
    return None if words in str(error) else words


def without_users(text: str) -> str:
    """Return `text` without the users, the passwords and the other secrets of URIs."""
    return _OPTION_IN_URI.sub(_without_a_secret, _USER_IN_URI.sub(r"\1…@", text))


def _without_a_secret(option: re.Match[str]) -> str:
    return f"{option[1]}…" if is_secret(option[2]) else option[0]


def without(secrets: Iterable[str], text: str) -> str:
    """Return `text` on one line, without `secrets` and without the users of URIs."""
    for secret in sorted(secrets, key=len, reverse=True):
        around = r"\b" if len(secret) < _TOO_SHORT else ""
        text = re.sub(f"{around}{re.escape(secret)}{around}", "…", text)
    return without_users(" ".join(text.split()))


def secrets_of(options: Mapping[str, Any]) -> frozenset[str]:
    """Return the passwords among the options of `MongoClient`, in all forms of an error text."""
    host = options.get("host") or ()
    found = [value for name, value in options.items() if is_secret(name)]
    for uri in [host] if isinstance(host, str) else host:
        found += _secrets_of_uri(uri)
    texts = (value for value in found if isinstance(value, str))
    return frozenset(form for text in texts for form in _forms(text) if form)


def _words(cause: BaseException) -> str:
    """Return the text of an error without repetitions and details for programs."""
    if isinstance(cause, OperationFailure) and isinstance(cause.details, Mapping):
        words, name = cause.details.get("errmsg"), cause.details.get("codeName")
        if words:
            return f"{words} (code {cause.code}{f', {name}' if name else ''})"
    words = _TIMEOUTS.sub("", str(cause)) or type(cause).__name__
    # Only the topology tells of servers that fail in different ways, or of a missing primary.
    tells = words.startswith("No primary") or (words.startswith("No ") and "error=" in words)
    return words if tells else _TOPOLOGY.sub("", words)


def _secrets_of_uri(uri: str) -> Iterator[str]:
    before_query, _, query = uri.partition("?")
    user, at, _ = before_query.partition("//")[2].rpartition("@")
    if at:
        yield user.partition(":")[2]
    for option in re.split("[&;]", query):
        name, _, value = option.partition("=")
        if is_secret(name):
            yield value


def _forms(secret: str) -> Iterator[str]:
    for form in (secret, unquote(secret), unquote_plus(secret)):
        yield form.strip()
        yield quote_plus(form.strip())
        yield repr(form.strip())[1:-1]

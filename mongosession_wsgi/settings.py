"""A flat mapping of texts and values in, one frozen, checked object out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote_plus

from pymongo.common import VALIDATORS, validate_boolean_or_string
from pymongo.errors import PyMongoError

from .errors import SettingsError

DRIVER_DEFAULTS = {
    "timeoutms": 5000,
    "serverselectiontimeoutms": 5000,
    "appname": "mongosession-wsgi",
    "connect": False,
}
"""What this package asks of `MongoClient` where neither the settings nor the URI say otherwise.

The driver's own defaults wait 30 seconds for a server, and for ever on one that stalls.
"""

LONGEST_COOKIE = timedelta(days=400)
"""The most that a browser grants a cookie (RFC 6265bis, section 5.5)."""

_SHORTEST, _LONGEST = timedelta(seconds=1), timedelta(days=1000 * 365)
"""The bounds of every span; a moment that is further away may be none that Python knows."""

_UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "M": timedelta(days=30),
    "y": timedelta(days=365),
}
_UNIT_WORDS = {
    "sec": "s", "second": "s", "min": "m", "minute": "m", "hr": "h", "hour": "h",
    "day": "d", "week": "w", "month": "M", "mo": "M", "year": "y", "yr": "y",
}  # fmt: skip
_SPAN = re.compile(r"\+?\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)", re.ASCII)
_TRUTH = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip


def span(value: Any) -> timedelta:
    """Read a length of time: seconds, a `timedelta`, or a text such as `2 hours`, `+2h`, `1d`."""
    try:
        found = _span_of(value)
    except (OverflowError, ValueError):  # Of timedelta: too long, or not a number.
        found = None
    if found is None or not _SHORTEST <= found <= _LONGEST:
        raise ValueError(
            "a number of seconds, a timedelta, or a text such as '90', '2 hours', '+2h' or '1d' "
            "(s m h d w, M for 30 days, y for 365), from one second to 1000 years"
        )
    return found


def _span_of(value: Any) -> timedelta | None:
    match value:
        case bool():
            return None
        case timedelta():
            return value
        case int() | float():
            return timedelta(seconds=value)
        case str():
            return _span_of_text(value)
    return None


def _span_of_text(text: str) -> timedelta | None:
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        return None
    unit = match["unit"] or "s"
    if unit not in _UNITS:
        word = unit.lower()
        unit = _UNIT_WORDS.get(word) or _UNIT_WORDS.get(word.removesuffix("s")) or word
    return float(match["number"]) * _UNITS[unit] if unit in _UNITS else None


def span_or_unlimited(value: Any) -> timedelta | None:
    """Read a length of time, or `none` for no limit."""
    if isinstance(value, str) and value.strip().lower() == "none":
        return None
    try:
        return span(value)
    except ValueError as error:
        raise ValueError(f"{error}; or 'none' for no limit") from None


def truth(value: Any) -> bool:
    """Read a bool, one of the words that INI files use for it, or Perl's 1 and 0."""
    if isinstance(value, str | int):
        value = _TRUTH.get(str(value).strip().lower())
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def truth_or_auto(value: Any) -> bool | None:
    """Read a bool, or `auto` for None."""
    if isinstance(value, str) and value.strip().lower() == "auto":
        return None
    try:
        return truth(value)
    except ValueError:
        raise ValueError("true, false or 'auto'") from None


def same_site(value: Any) -> str:
    """Read the SameSite attribute in any case (RFC 6265bis, section 4.1.2.7)."""
    if not isinstance(value, str) or value.strip().title() not in {"Strict", "Lax", "None"}:
        raise ValueError("'Strict', 'Lax' or 'None'")
    return value.strip().title()


def text(value: Any) -> str:
    """Read a text, taken literally."""
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def database_name(value: Any) -> str:
    """Read a name that MongoDB takes for a database."""
    if not re.fullmatch(r'[^/\\. "$*<>:|?\0]{1,63}', text(value)):
        raise ValueError(
            'a database name: 1 to 63 characters, none of / \\ . " $ * < > : | ? or space'
        )
    return text(value)


def collection_name(value: Any) -> str:
    """Read a name that MongoDB takes for a collection."""
    if not re.fullmatch(r"(?!system\.)(?![.])[^$\0]{1,200}(?<![.])", text(value)) or ".." in value:
        raise ValueError("a collection name: no $, no dot at either end, not 'system.…'")
    return text(value)


def _setting(key: str, parse: Callable[[Any], Any], default: Any, doc: str) -> Any:
    return field(default=default, metadata={"key": key, "parse": parse, "doc": doc})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one application, checked; each field is one key of the flat mapping."""

    database: str | None = _setting(
        "mongodb_session_db", database_name, None, "The database. Required."
    )
    collection: str = _setting(
        "mongodb_session_coll", collection_name, "sessions", "The collection."
    )
    name: str | None = _setting(
        "session_name",
        text,
        None,
        "The cookie's name, taken literally. Unless given: `__Host-mongosession` where that prefix "
        "is allowed, else `__Secure-mongosession` where Secure, else `mongosession`.",
    )
    max_age: timedelta | None = _setting(
        "session_expires",
        span,
        None,
        "Idle time after which a session dies. Given explicitly, the cookie gets it as Max-Age; "
        "else it is 14 days, and the cookie lasts as long as the browser.",
    )
    lifetime: timedelta | None = _setting(
        "session_lifetime",
        span_or_unlimited,
        timedelta(days=30),
        "The longest life of a session however active, counted from its creation or its last "
        "login; `none` for no limit.",
    )
    remember: timedelta = _setting("session_remember", span, timedelta(days=30), "x")
    limit: int | None = _setting("session_limit", int, None, "x")
    sealed: bool = _setting("session_sealed", truth, False, "x")
    secure: bool | None = _setting(
        "session_secure",
        truth_or_auto,
        None,
        "Whether the cookie is Secure. `auto`: unless the request is plain HTTP to a loopback "
        "host. Production should say `true`.",
    )
    http_only: bool = _setting(
        "session_is_http_only", truth, True, "Whether scripts are kept from the cookie."
    )
    same_site: str = _setting(
        "session_same_site", same_site, "Lax", "`Strict`, `Lax`, or `None` (then always Secure)."
    )
    domain: str | None = _setting(
        "session_domain", text, None, "The cookie's Domain; without it, only this host gets it."
    )
    path: str = _setting("session_path", text, "/", "The cookie's Path.")
    partitioned: bool = _setting(
        "session_partitioned", truth, False, "CHIPS: one cookie per embedding site; always Secure."
    )
    client_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The keyword arguments of `MongoClient`: every other `mongodb_*` key, its prefix stripped."""

    @property
    def idle(self) -> timedelta:
        """The time without a request after which a session dies."""
        return timedelta(days=14) if self.max_age is None else self.max_age

    @classmethod
    def parse(cls, settings: Mapping[str, Any] | Settings) -> Settings:
        """Read and check a flat mapping; keys of other owners in it are left out.

        Raises `SettingsError` that names the key, for one that is unknown or whose value is bad.
        """
        if isinstance(settings, Settings):
            return settings
        values: dict[str, Any] = {}
        options: dict[str, Any] = {}
        for key, value in _ours(settings):
            if key in _FIELDS:
                name, parse = _FIELDS[key]
                values[name] = _parsed(key, parse, value)
            else:
                option = _option_of(key)
                if option in options:
                    raise SettingsError(f"{key}: the option {option!r} is given twice")
                options[option] = _parsed(key, _option_value(option), value)
        if values.get("max_age", LONGEST_COOKIE) > LONGEST_COOKIE:
            raise SettingsError(
                "session_expires: at most 400 days, the longest that browsers keep a cookie"
            )
        return cls(**values, client_options=MappingProxyType(_with_defaults(options)))


_FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    f.metadata["key"]: (f.name, f.metadata["parse"]) for f in fields(Settings) if f.metadata
}
_OPTIONS = {name.replace("_", ""): name for name in sorted(VALIDATORS)} | {
    "host": "host",
    "port": "port",
    "dbname": "authsource",
}
"""The options of `MongoClient` by their names without case and underscores.

Of `read_preference` and `readpreference` the last in order counts, which takes a text.
"""


def _ours(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what is given of the keys that are ours: None and empty texts count as not given."""
    for key, value in settings.items():
        if not isinstance(key, str) or not key.startswith(("mongodb_", "session")):
            continue
        if value is None or value == "":
            if key not in _FIELDS and key != "session":
                _option_of(key)
        elif key != "session":
            yield key, value
        elif value != "MongoDB":
            raise SettingsError(
                f"session: must be 'MongoDB', in this capitalization, not {value!r}"
            )


def _parsed(key: str, parse: Callable[[Any], Any], value: Any) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        # What is meant for MongoDB may be a secret, or a URI with one that has the wrong key.
        shown = "" if key.startswith("mongodb_") else f", not {value!r:.80}"
        raise SettingsError(f"{key}: must be {error}{shown}") from None


def _option_of(key: str) -> str:
    """Return the `MongoClient` option that `key` stands for."""
    option = _OPTIONS.get(key.removeprefix("mongodb_").replace("_", "").lower())
    if option is None or not key.startswith("mongodb_"):
        known = [
            *_FIELDS,
            "session",
            "mongodb_db_name",
            *(f"mongodb_{name}" for name in _OPTIONS.values()),
        ]
        near = get_close_matches(key, known, n=1)
        raise SettingsError(
            f"{key}: no such setting" + (f"; did you mean {near[0]}?" if near else "")
        )
    return option


def _option_value(option: str) -> Callable[[Any], Any]:
    """Return the parser of a `MongoClient` option."""
    if option in _OPTION_PARSERS:
        return _OPTION_PARSERS[option]
    if VALIDATORS[option] is validate_boolean_or_string:
        return truth

    return lambda value: _accepted_by_the_driver(option, value)


def _accepted_by_the_driver(option: str, value: Any) -> Any:
    """Return `value`; not what the driver makes of it, which it would not take a second time."""
    try:
        VALIDATORS[option](option, value)
    except (ValueError, TypeError, KeyError, OverflowError, OSError, PyMongoError) as error:
        reason = "" if option.startswith(_SECRETS) else f" ({error})"
        raise ValueError(f"what PyMongo takes for {option}{reason}") from None
    return value


def _host(value: Any) -> str | list[str]:
    hosts = [value] if isinstance(value, str) else value
    if (
        not isinstance(hosts, list | tuple)
        or not hosts
        or not all(host and isinstance(host, str) for host in hosts)
    ):
        raise ValueError("a host name, a list of host names, or a mongodb:// URI")
    if any(option == "w" and not _acknowledges(w) for option, w in _uri_options(hosts)):
        raise ValueError("without w=0: a session's write must be acknowledged")
    return value if isinstance(value, str) else list(hosts)


def _port(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,5}", value.strip()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
        raise ValueError("a number from 1 to 65535")
    return value


def _write_concern(value: Any) -> Any:
    if not _acknowledges(_accepted_by_the_driver("w", value)):
        raise ValueError("at least 1, or 'majority': a session's write must be acknowledged")
    return value


def _acknowledges(write_concern: Any) -> bool:
    understood = VALIDATORS["w"]("w", write_concern)
    return not isinstance(understood, int) or understood > 0


_OPTION_PARSERS: dict[str, Callable[[Any], Any]] = {
    "host": _host,
    "port": _port,
    "w": _write_concern,
}
_SECRETS = ("password", "tlscertificatekeyfilepassword", "authmechanismprop", "auto_encryption")


def _uri_options(hosts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the options in the query part of each URI among `hosts`, their names in lower case."""
    for host in hosts:
        if host.startswith(("mongodb://", "mongodb+srv://")):
            for pair in re.split("[&;]", host.partition("?")[2]):
                option, _, value = pair.partition("=")
                yield option.lower(), unquote_plus(value)


def _with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    host = options.get("host", "localhost")
    in_uri = dict(_uri_options([host] if isinstance(host, str) else host))
    defaults = {name: value for name, value in DRIVER_DEFAULTS.items() if name not in in_uri}
    return {"host": host, "port": 27017} | defaults | options

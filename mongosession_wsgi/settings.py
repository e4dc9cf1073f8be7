"""A flat mapping of texts and values in, one frozen, checked object out."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import date, timedelta
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import unquote_plus

from pymongo.common import VALIDATORS, validate_boolean_or_string
from pymongo.errors import PyMongoError
from pymongo.server_api import ServerApi

from .errors import SettingsError

Owner = Literal["cookie", "store", "driver"]
"""Who reads a setting.

The settings of the cookie, idle times included, are those for which a framework may have its own.
"""

DRIVER_DEFAULTS: dict[str, Any] = {
    "timeoutms": 5000,
    "serverselectiontimeoutms": 5000,
    "maxidletimems": 120_000,
    "appname": "mongosession-wsgi",
}
"""Our defaults for options of `MongoClient`, where neither the settings nor the URI give a value.

Times: the driver waits 30 seconds for a server, and for ever on a server that stalls.

Idle connections: the driver keeps them for ever. A load balancer or firewall on the way forgets
them, often in silence (Azure after 4 minutes, AWS after 350 seconds), and the next visitor would
wait until `timeoutMS` for an answer. Two minutes is well below both. PyMongo's keepalive probes
begin at the same age; some networks ignore them, and a suspended machine sends none.
"""

LONGEST_COOKIE = timedelta(days=400)
"""The most that a browser grants a cookie (RFC 6265bis, section 5.5)."""

_IDLE = timedelta(days=14)
"""The time after which an idle session dies, if `session_expires` is not given."""

_SHORTEST, LONGEST_SPAN = timedelta(seconds=1), timedelta(days=1000 * 365)
"""The bounds of every span: Python knows no moment in the far future."""

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
_PLAIN = re.compile(r"[\w.+ -]{1,40}")
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
    if found is None or not _SHORTEST <= found <= LONGEST_SPAN:
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
    """Read a bool, a word for true or false from an INI file, or Perl's 1 and 0."""
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


def count_or_unlimited(value: Any) -> int | None:
    """Read a number from 1, or `none` for no limit."""
    if isinstance(value, str):
        value = value.strip().lower()
        if value == "none":
            return None
        value = int(value) if re.fullmatch("[0-9]{1,7}", value) else None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 1_000_000:
        raise ValueError("a number from 1 to 1000000, or 'none' for no limit")
    return value


def text(value: Any) -> str:
    """Read a text, taken literally."""
    if isinstance(value, bool | int | float | date):
        raise ValueError(
            "a text; quote it, because YAML and JSON read it as a number, a date, true or false"
        )
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def database_name(value: Any) -> str:
    """Read a name that MongoDB takes for a database."""
    if not re.fullmatch(r'[^/\\. "$*<>:|?\0-\x1f\x7f]{1,63}', text(value)):
        raise ValueError(
            'a database name: 1 to 63 characters, none of / \\ . " $ * < > : | ?, space or newline'
        )
    return text(value)


def collection_name(value: Any) -> str:
    """Read a name that MongoDB takes for a collection."""
    name = r"(?!system\.)(?![.])[^$\0-\x1f\x7f]{1,200}(?<![.])"
    if not re.fullmatch(name, text(value)) or ".." in value:
        raise ValueError("a collection name: no $, no newline, no dot at an end, not 'system.…'")
    return text(value)


def _setting(
    of: Owner,
    key: str,
    parse: Callable[[Any], Any],
    default: Any,
    doc: str,
    *,
    told: str | None = None,
) -> Any:
    """Return a field with its row of the table; `told` is the default in words of the docs."""
    row = {"of": of, "key": key, "parse": parse, "doc": doc, "told": told or _told(default)}
    return field(default=default, metadata=row)


def _told(default: Any) -> str | None:
    if isinstance(default, timedelta):
        return f"{default.days} days"
    return str(default).lower() if isinstance(default, bool) else default


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of an application, checked; each field is a key of the flat mapping."""

    database: str | None = _setting(
        "store", "mongodb_session_db", database_name, None, "The database. Required."
    )
    collection: str = _setting(
        "store", "mongodb_session_coll", collection_name, "sessions", "The collection."
    )
    name: str | None = _setting(
        "cookie",
        "session_name",
        text,
        None,
        "The cookie's name, taken literally. Unless given: `__Host-mongosession` where that prefix "
        "is allowed, else `__Secure-mongosession` where Secure, else `mongosession`, followed by "
        "`session_path` unless that is `/`.",
    )
    max_age: timedelta | None = _setting(
        "cookie",
        "session_expires",
        span,
        None,
        "Idle time after which a session dies. Given explicitly, the cookie gets it as Max-Age; "
        "else the cookie lasts as long as the browser.",
        told=f"{_IDLE.days} days",
    )
    remember: timedelta = _setting(
        "cookie",
        "session_remember",
        span,
        timedelta(days=30),
        "Idle time after which a session dies that is remembered, by `login(owner, "
        "remember=True)`; the cookie gets it as Max-Age.",
    )
    lifetime: timedelta | None = _setting(
        "store",
        "session_lifetime",
        span_or_unlimited,
        timedelta(days=30),
        "The longest life of a session however active, counted from its creation or its last "
        "login; `none` for no limit.",
    )
    limit: int | None = _setting(
        "store",
        "session_limit",
        count_or_unlimited,
        None,
        "The most live sessions of one owner, from 1. A login beyond it ends those that logged in "
        "longest ago.",
        told="none",
    )
    sealed: bool = _setting(
        "store",
        "session_sealed",
        truth,
        False,
        "Whether keys and values are stored so that only the visitor's cookie opens them; needs "
        "the extra `[sealed]`.",
    )
    secure: bool | None = _setting(
        "cookie",
        "session_secure",
        truth_or_auto,
        None,
        "Whether the cookie is Secure. `auto`: unless the request is plain HTTP from this machine "
        "to itself, with no sign of a proxy. Production should say `true`.",
        told="auto",
    )
    http_only: bool = _setting(
        "cookie",
        "session_is_http_only",
        truth,
        True,
        "Whether scripts are kept from the cookie.",
    )
    same_site: str = _setting(
        "cookie",
        "session_same_site",
        same_site,
        "Lax",
        "`Strict`, `Lax`, or `None` (then always Secure).",
    )
    domain: str | None = _setting(
        "cookie",
        "session_domain",
        text,
        None,
        "The cookie's Domain; without it, only this host gets it.",
    )
    path: str = _setting("cookie", "session_path", text, "/", "The cookie's Path.")
    partitioned: bool = _setting(
        "cookie",
        "session_partitioned",
        truth,
        False,
        "CHIPS: one cookie per embedding site; always Secure.",
    )
    client_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The keyword arguments of `MongoClient`: every other `mongodb_*` key, its prefix stripped."""
    said: frozenset[str] = field(default=frozenset(), repr=False, compare=False)
    """The names of the fields that were given, be it with their defaults."""

    @property
    def idle(self) -> timedelta:
        """The time without a request after which a session dies."""
        return _IDLE if self.max_age is None else self.max_age

    @classmethod
    def keys(cls, *of: Owner) -> frozenset[str]:
        """Return the keys that the cookie, the store or the driver reads.

        Users may spell the driver's keys in other ways: `mongodb_replicaSet`.
        """
        rows = [row for row in (f.metadata for f in fields(cls)) if row and row["of"] in of]
        options = {*_OPTIONS.values(), "db_name"} if "driver" in of else ()
        return frozenset([row["key"] for row in rows] + [f"mongodb_{name}" for name in options])

    @classmethod
    def parse(cls, settings: Mapping[str, Any] | Settings) -> Settings:
        """Read and check a flat mapping; keys of other owners in it are left out.

        Raises `SettingsError` for an unknown key or a bad value, and names the key; raises
        `TypeError` unless `settings` is a mapping.
        """
        if isinstance(settings, Settings):
            return settings
        values: dict[str, Any] = {}
        options: dict[str, Any] = {}
        for key, value in _ours(_mapping(settings)):
            if key in _FIELDS:
                name, parse = _FIELDS[key]
                values[name] = _parsed(key, parse, value)
            else:
                option = _option_of(key)
                if option in options:
                    raise SettingsError(f"{key}: the option {option!r} is given twice")
                options[option] = _parsed(key, _option_value(option), value)
        _check(values)
        client_options = MappingProxyType(_with_defaults(options))
        return cls(**values, client_options=client_options, said=frozenset(values))


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


def _mapping(settings: Any) -> Mapping[str, Any]:
    """Return what has keys and values; raise `TypeError` for anything else."""
    # Ask the type, because a `MongoClient` has attributes of any name.
    if isinstance(settings, Mapping) or hasattr(type(settings), "items"):
        found: Mapping[str, Any] = settings
        return found
    name = type(settings).__name__
    kind = "None" if settings is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
    raise TypeError(
        f"settings must be a mapping such as {{'mongodb_session_db': 'myapp'}}, not {kind}"
        + ("; are the arguments of SessionMiddleware(app, settings) swapped?" * callable(settings))
    )


def _check(values: Mapping[str, Any]) -> None:
    """Refuse values that their parsers let pass; `values` holds the given ones, by field."""
    for name, key in (("max_age", "session_expires"), ("remember", "session_remember")):
        if values.get(name, LONGEST_COOKIE) > LONGEST_COOKIE:
            raise SettingsError(f"{key}: at most 400 days, the longest that browsers keep a cookie")
    if values.get("sealed") and importlib.util.find_spec("cryptography") is None:
        raise SettingsError(
            "session_sealed: needs the package cryptography; "
            "pip install 'mongosession-wsgi[sealed]'"
        )


def _ours(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield our keys with their values: None and empty texts count as not given."""
    for key, value in settings.items():
        if not isinstance(key, str) or not key.startswith(("mongodb_", "session")):
            continue
        if value is None or value == "":
            if key not in _FIELDS and key != "session":
                _option_of(key)
        elif key != "session":
            yield key, value
        elif value != "MongoDB":
            words = "session: must be 'MongoDB', in this capitalization"
            raise SettingsError(f"{words}{_if_plain(value)}")


def _parsed(key: str, parse: Callable[[Any], Any], value: Any) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        # A value for MongoDB may be a secret.
        shown = "" if key.startswith("mongodb_") else _if_plain(value)
        raise SettingsError(f"{key}: must be {error}{shown}") from None


def _if_plain(value: Any) -> str:
    """Return the words for a bad value, if plain: a mapping or a URI may hold a password."""
    is_plain = isinstance(value, str | int | float) and _PLAIN.fullmatch(str(value))
    return f", not {value!r}" if is_plain else ""


def _option_of(key: str) -> str:
    """Return the `MongoClient` option that `key` stands for."""
    option = _OPTIONS.get(key.removeprefix("mongodb_").replace("_", "").lower())
    if option is None or not key.startswith("mongodb_"):
        raise SettingsError(f"{key}: no such setting{_hint(key)}")
    return option


def _hint(key: str) -> str:
    """Suggest a known key for an unknown `key`: by meaning, or else by spelling."""
    plain = re.sub("[-_.]", "", key.lower())
    for pattern, meant in _OTHER_NAMES.items():
        if re.fullmatch(pattern, plain):
            return f"; {meant}" if " " in meant else f"; did you mean {meant}?"
    alike = sorted(name for name in _KEYS if name.startswith(plain[:7]))
    bare, known = _bare(plain), {_bare(name): name for name in alike}
    near = [known[one] for one in get_close_matches(bare, known, n=1, cutoff=0.7)]
    if bare and not near:
        near = get_close_matches(key, alike, n=1, cutoff=0.9)
    return f"; did you mean {near[0]}?" if near else ""


def _bare(key: str) -> str:
    """Return a key without its prefix, because any two keys with prefixes look similar."""
    return re.sub("^(mongodb|session|cookie)+", "", key.replace("_", ""))


_KEYS = Settings.keys("cookie", "store", "driver")
_OTHER_NAMES = {
    "session(s|type|engine|store|backend|storage|handler)": "session",
    "session(.*secret.*|.*sign.*|cookiekey|validatekey|salt)": (
        "none is needed, the cookie holds a random token and nothing to sign"
    ),
    "(mongodb|session)+(initdb)?(db|database)(name)?|mongodbname": "mongodb_session_db",
    "(mongodb|session)+auth.*(db|database|source)(name)?": "mongodb_db_name",
    "(mongodb|session)+.*(coll|collect|collection|table)(name)?": "mongodb_session_coll",
    "(mongodb|session)+.*(ur[il]|dsn|hosts?|hostname|address|servers?|nodes?|endpoint)|"
    "(mongodb|session)+(conn|connection|connectionstring|settings|client|cluster)|"
    "sessionmongodb": "mongodb_host",
    "(mongodb|session)+(root|admin|db|auth|initdbroot)?(user|username|login)": "mongodb_username",
    "(mongodb|session)+(root|admin|db|auth|initdbroot)?(pass|passwd|password|passphrase|pwd)": (
        "mongodb_password"
    ),
    "(mongodb|session)+(service)?port(number)?": "mongodb_port",
    "mongodb(rs|rsname|repl|replset|replica|replicas|replicasetname)": "mongodb_replica_set",
    "mongodb(ssl|tls)?ca(cert|certs|file|path|bundle)?": "mongodb_tls_ca_file",
    "mongodb(ssl|tls)?(client)?((cert|certificate|key|pem|pemkey)(file)?)": (
        "mongodb_tls_certificate_key_file"
    ),
    "mongodb(max)?(pool|poolsize|connections)": "mongodb_max_pool_size",
    "mongodb(stable)?api(version)?": "mongodb_server_api",
    "session(absolute.*|maxlife.*|lifespan)": "session_lifetime",
    "(mongodb|session)+(cookie)?(ttl|maxage|age|expir.*|permanent.*|.*lifetime)|"
    "session(cookie)?(idle|idletime|idletimeout|timeout.*)": "session_expires",
    "session(.*remember.*|keep.*|stay.*)": "session_remember",
    "sessions?(max(imum)?(sessions|number|count|peruser|perowner)?|.*limit.*|.*per(user|owner))|"
    "session(concurrent|parallel).*": "session_limit",
    "session(encrypt|crypt|seal).*": "session_sealed",
    "(mongodb)?session(cookie)?(key|id|sid|name|idname)|sessioncookie": "session_name",
    "session(cookie)?(https.*|secure.*|ssl|tls)": "session_secure",
    "mongodb(secure|encrypt.*|use(ssl|tls)|(ssl|tls)(enabled?|mode|on))": "mongodb_tls",
}
"""The keys of other libraries and frameworks, without `_`, and our keys of the same meaning."""


_REFUSALS = (
    ValueError, TypeError, KeyError, OverflowError, OSError, PyMongoError, UserWarning
)  # fmt: skip
"""The errors by which the driver refuses a value."""


def _option_value(option: str) -> Callable[[Any], Any]:
    """Return the parser of a `MongoClient` option."""
    if option in _OPTION_PARSERS:
        return _OPTION_PARSERS[option]
    if VALIDATORS[option] is validate_boolean_or_string:
        return truth

    return lambda value: _accepted_by_the_driver(option, value)


def _accepted_by_the_driver(option: str, value: Any) -> Any:
    """Return `value` unchanged if the driver takes it; the driver will validate it again."""
    if option in _TEXTS:
        text(value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Where the driver would ignore the value.
            # Without the package of one compressor, the next in the list will do.
            warnings.filterwarnings("ignore", "Wire protocol compression")
            if VALIDATORS[option](option, value) == [] and value:
                raise ValueError("the package that it needs is not installed")
    except _REFUSALS as error:
        of_others = isinstance(value, Mapping) or "@" in str(error) or "://" in str(error)
        reason = "" if of_others or is_secret(option) else f" ({error})"
        raise ValueError(f"what PyMongo takes for {option}{reason}") from None
    return value


def _host(value: Any) -> str | list[str]:
    hosts = [value] if isinstance(value, str) else value
    if (
        not isinstance(hosts, list | tuple)
        or not hosts
        or not all(isinstance(host, str) and _is_host(host) for host in hosts)
    ):
        raise ValueError(
            "a host ('db.example', 'db.example:27018', '[::1]'), several in a list or with commas "
            "between, or a mongodb:// or mongodb+srv:// URI, in which the path of a UNIX socket is "
            "percent-encoded"
        )
    hosts = [",".join(_parts(host)) if "://" not in host else host.strip() for host in hosts]
    if any(option == "w" and not _acknowledges(w) for option, w in uri_options(hosts)):
        raise ValueError("without w=0: a session's write must be acknowledged")
    return hosts[0] if isinstance(value, str) else hosts


def _is_host(value: str) -> bool:
    """Say whether `value` is a list of hosts, or looks like a URI, for the driver to judge."""
    if value.strip().startswith(("mongodb://", "mongodb+srv://")):
        return True
    found = [_HOST.fullmatch(part) for part in _parts(value)]
    return all(match and 0 < int(match["port"] or 1) < 65536 for match in found)


def _parts(value: str) -> list[str]:
    """Return the elements of a list with commas between."""
    return re.split(r"\s*,\s*", value.strip())


def _list(option: str) -> Callable[[Any], Any]:
    """Return the parser of an option that takes a list, or a text with commas between."""

    def parse(value: Any) -> Any:
        value = _parts(value) if isinstance(value, str) else value
        return _accepted_by_the_driver(option, value)

    return parse


def _limit(option: str) -> Callable[[Any], Any]:
    """Return the parser of a time where 0 means no limit, in the driver's words None."""

    def parse(value: Any) -> Any:
        return None if _is_zero(value) else _accepted_by_the_driver(option, value)

    return parse


def _is_zero(value: Any) -> bool:
    with suppress(TypeError, ValueError, OverflowError):
        return float(value) == 0
    return False


def _server_api(value: Any) -> ServerApi:
    if isinstance(value, ServerApi):
        return value
    try:
        return ServerApi(str(value).strip())
    except ValueError:
        raise ValueError("a version of MongoDB's Stable API, '1'") from None


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


_UNLIMITED_AT_ZERO = ("timeoutms", "maxidletimems")
_OPTION_PARSERS: dict[str, Callable[[Any], Any]] = {
    "host": _host,
    "port": _port,
    "w": _write_concern,
    "server_api": _server_api,
    # The driver compares this number before it parses a text.
    "srvmaxhosts": lambda value: int(_accepted_by_the_driver("srvmaxhosts", value)),
    **{option: _list(option) for option in ("compressors", "authoidcallowedhosts")},
    **{option: _limit(option) for option in _UNLIMITED_AT_ZERO},
}
_TEXTS = {
    option
    for option, validator in VALIDATORS.items()
    if validator in (VALIDATORS[taken] for taken in ("username", "authsource", "appname"))
}
"""The options that take any text."""
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(?:%[\w.]+)?\]|[^\s:/?#@%\[\]]+)(?::(?P<port>[0-9]{1,5}))?|"
    r"[^\s:/?#@\[\]]+\.sock"
)
"""A name, an IPv4 address or an IPv6 address in brackets, with or without a port; or a socket."""
_SECRET = re.compile("password|authmechanismprop|auto_encryption", re.IGNORECASE)


def is_secret(option: str) -> bool:
    """Say whether nobody may see the value of an option of `MongoClient`."""
    return _SECRET.search(option) is not None


def uri_options(hosts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the options in the query part of each URI among `hosts`, their names in lower case."""
    for host in hosts:
        if host.startswith(("mongodb://", "mongodb+srv://")):
            for pair in re.split("[&;]", host.partition("?")[2]):
                option, _, value = pair.partition("=")
                yield option.lower(), unquote_plus(value)


def hosts_of(options: Mapping[str, Any]) -> list[str]:
    """Return the hosts and URIs of the driver's options."""
    host = options.get("host", ())
    return [host] if isinstance(host, str) else list(host)


def check_uri(hosts: Iterable[str]) -> None:
    """Raise `ValueError` for a value in a URI that the driver would ignore with a warning."""
    of_files = VALIDATORS["tlscafile"]  # The driver itself says what is wrong with a file.
    for option, value in uri_options(hosts):
        if VALIDATORS.get(option, of_files) is not of_files:
            try:
                _accepted_by_the_driver(option, value)
            except ValueError as error:
                raise ValueError(f"{option} in the URI must be {error}") from None


def _with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    in_uri = dict(uri_options(hosts_of(options)))
    defaults = {name: value for name, value in DRIVER_DEFAULTS.items() if name not in in_uri}
    unlimited = {name: None for name in _UNLIMITED_AT_ZERO if _is_zero(in_uri.get(name))}
    return {"host": "localhost", "port": 27017} | defaults | unlimited | options

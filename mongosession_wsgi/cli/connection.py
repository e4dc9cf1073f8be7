"""How the command finds the sessions: by a file of settings, options, or the environment."""

from __future__ import annotations

import errno
import json
import re
import shlex
import socket
from collections.abc import Callable, Mapping
from configparser import ConfigParser, InterpolationError, RawConfigParser
from configparser import Error as ConfigError
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import click
from pymongo.errors import ServerSelectionTimeoutError

from ..errors import SettingsError, StoreError
from ..failures import explained
from ..settings import LONGEST_SPAN, Settings
from ..store import MongoStore
from ..times import Times
from .arguments import fault_of
from .reasons import secrets_of, without

_VARIABLES = {
    "MONGODB_URI": "mongodb_host",
    "MONGOSESSION_DB": "mongodb_session_db",
    "MONGOSESSION_COLL": "mongodb_session_coll",
}
_OPTIONS = {
    "file": "--settings",
    "section": "--section",
    "uri": "--uri",
    "database": "--db",
    "collection": "--coll",
}
_OF_PASTE = re.compile(r"^\[(app|composite|filter|pipeline|server)[\w-]*:", re.MULTILINE)
"""A section of a file for PasteDeploy."""
_LONGEST_LOOK = 1.0
"""The seconds for a look for a refused connection; a refusal needs far fewer."""
_BETWEEN_LOOKS = 0.01
_FINAL = {errno.ECONNREFUSED, errno.ENOENT} | {
    value for name, value in vars(socket).items() if name.startswith("EAI_")
}
"""The numbers of errors that last: a refused connection, no such socket, no such name."""


@dataclass
class Connection:
    """Where the sessions are, as the command line says."""

    file: Path | None = None
    section: str | None = None
    uri: str | None = None
    database: str | None = None
    collection: str | None = None
    secrets: frozenset[str] = frozenset()
    """The passwords of the last settings, to keep out of all output."""

    def settings(self, environment: Mapping[str, str]) -> Settings:
        """Return the settings: of the file, else of the environment, with the options over them.

        Raises `SettingsError`, and `click.UsageError` for a variable that is no text.
        """
        options = {
            "mongodb_host": self.uri,
            "mongodb_session_db": self.database,
            "mongodb_session_coll": self.collection,
        }
        given = {key: value for key, value in options.items() if value}
        if self.section is not None and self.file is None:
            raise click.UsageError("--section is the section of a file; give --settings too")
        if self.file is None:
            found: dict[str, Any] = _variables(environment, given)
        else:
            found = read(self.file, self.section)
        settings = Settings.parse(found | given)
        self.secrets = secrets_of(settings.client_options)
        if settings.database is None:
            raise SettingsError(
                "Which sessions? Name their database: --settings FILE with mongodb_session_db, "
                "--db NAME, or MONGOSESSION_DB in the environment"
            )
        return settings

    def store(self, environment: Mapping[str, str], longest: timedelta | None = None) -> MongoStore:
        """Return the store of these settings; `longest` replaces the time of a single command.

        A look at every session needs longer than a request may. The limit is set on the socket,
        because `timeoutMS` would also be the time of the driver's search for a server.
        """
        settings = self.settings(environment)
        if longest is not None:
            limits = {"timeoutms": None, "sockettimeoutms": longest.total_seconds() * 1000}
            options = {**settings.client_options, **limits}
            settings = replace(settings, client_options=options)
        return MongoStore(settings)

    def times(self, store: MongoStore) -> Times | None:
        """Return the times that the file says; None without a file.

        For a time that the file does not say, the stored expiry alone counts: the application may
        have that time elsewhere, as in the settings of Flask or Django.
        """
        if self.file is None:
            return None
        told, said = store.settings, store.settings.said
        return Times(
            told.idle if "max_age" in said else LONGEST_SPAN,
            told.remember if "remember" in said else LONGEST_SPAN,
            told.lifetime if "lifetime" in said else None,
        )

    def hint(self, *words: str) -> str:
        """Return a command line for a next step, with the options of this command line."""
        given = {option: getattr(self, name) for name, option in _OPTIONS.items()}
        shown = [
            word
            for option, value in given.items()
            if value is not None
            for word in (option, without(self.secrets if option == "--uri" else (), str(value)))
        ]
        return f"mongosession {shlex.join((*words, *shown))}"


def _variables(environment: Mapping[str, str], given: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of the environment that no option replaces."""
    found: dict[str, Any] = {}
    for name, key in _VARIABLES.items():
        value = environment.get(name)
        if value and key not in given:
            fault = fault_of(value)
            if fault is not None:
                raise click.UsageError(f"Invalid value for {name} in the environment: it {fault}")
            found[key] = value
    return found


def reach(store: MongoStore) -> None:
    """Raise `StoreError` at once if no server can be reached, and waiting does not help.

    The driver would search for 5 seconds, and a refused connection would stay refused. Any other
    trouble is left to the first command.
    """
    client = store.client
    until = monotonic() + min(_LONGEST_LOOK, client.options.server_selection_timeout)
    while monotonic() < until:
        servers = client.topology_description.server_descriptions().values()
        errors = [str(server.error) for server in servers if server.error is not None]
        if any(server.is_server_type_known for server in servers):
            return
        if errors and len(errors) == len(servers) and all(map(_is_final, errors)):
            error = ServerSelectionTimeoutError(", ".join(sorted(errors)))
            raise StoreError(explained(error)) from error
        sleep(_BETWEEN_LOOKS)


def _is_final(error: str) -> bool:
    """Say whether an error of a connection lasts; the driver keeps only its text."""
    number = re.search(r"\[Errno (-?\d+)\]", error)
    return number is not None and int(number[1]) in _FINAL


def read(file: Path, section: str | None = None) -> dict[str, Any]:
    """Read the flat mapping of a YAML, JSON or INI file, its kind told by the name's ending."""
    kind = file.suffix.lower()
    if kind not in _READERS:
        raise SettingsError(f"--settings {file}: must end in {', '.join(_READERS)}")
    try:
        found = _READERS[kind](file, section)
    except OSError as error:
        raise SettingsError(f"--settings {file}: {error.strerror}") from None
    except SettingsError:
        raise
    except UnicodeDecodeError:
        raise SettingsError(f"--settings {file}: is no text in UTF-8") from None
    except (ValueError, RecursionError, ConfigError) as error:
        # The text of a parser's error may be a line with a password.
        line = getattr(error, "lineno", None)
        where = "" if line is None else f", see line {line}"
        raise SettingsError(f"--settings {file}: is not well formed{where}") from None
    if not isinstance(found, dict):
        raise SettingsError(f"--settings {file}: must be one mapping of keys to values")
    _check_texts(file, found)
    loud = [key for key in found if str(key).startswith("MONGODB_") and key.lower() not in found]
    if loud:
        raise SettingsError(
            f"--settings {file}: {loud[0]} is in capitals, as in a Flask configuration; "
            "write the keys in small letters, or give --uri and --db in place of the file"
        )
    return found


def _check_texts(file: Path, found: dict[Any, Any]) -> None:
    """Refuse lone surrogates: JSON and YAML can spell them, and no database takes them."""
    for key, value in found.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and any("\ud800" <= one <= "\udfff" for one in text):
                raise SettingsError(f"--settings {file}: the value of {key!a} is no Unicode text")


def _from_yaml(file: Path, _: str | None) -> Any:
    try:
        import yaml
    except ImportError:
        raise SettingsError(
            f"--settings {file}: YAML needs PyYAML; pip install 'mongosession-wsgi[cli]'"
        ) from None
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f", see line {mark.line + 1}"
        raise SettingsError(f"--settings {file}: is not well formed YAML{where}") from None
    except yaml.YAMLError:
        raise SettingsError(f"--settings {file}: is not well formed YAML") from None


def _from_json(file: Path, _: str | None) -> Any:
    return json.loads(file.read_text(encoding="utf-8-sig"))


def _from_ini(file: Path, section: str | None) -> dict[str, str]:
    """Read a section, `[DEFAULT]` included, as the application of the file does."""
    text = file.read_text(encoding="utf-8-sig")
    ini = _parser_of_paste(file) if _OF_PASTE.search(text) else RawConfigParser()
    ini.read_string(text)
    section = section or _only_section(file, ini)
    if section not in ini:
        raise SettingsError(
            f"--section {section}: {file} has no such section; it has {', '.join(ini.sections())}"
        )
    return _values(ini, section)


def _values(ini: RawConfigParser, section: str) -> dict[str, str]:
    """Return the values that the application takes from a section and from `[DEFAULT]`.

    PasteDeploy gives a key of `[DEFAULT]` another value only by `set KEY`; `get KEY` takes the
    value of another key there.
    """
    found = {key: _value(ini, section, key) for key in ini[section]}
    if not isinstance(ini, ConfigParser):
        return found
    shared = {key: _value(ini, ini.default_section, key) for key in ini.defaults()}
    own = {key: value for key, value in found.items() if key not in shared}
    shared |= {key[4:].strip(): value for key, value in own.items() if key.startswith("set ")}
    taken = {key[4:].strip(): value for key, value in own.items() if key.startswith("get ")}
    return shared | own | {key: shared[of] for key, of in taken.items() if of in shared}


def _parser_of_paste(file: Path) -> RawConfigParser:
    """Return the parser of PasteDeploy, which heeds the case of names and interpolates values."""
    ini = ConfigParser({"here": str(file.absolute().parent), "__file__": str(file.absolute())})
    ini.optionxform = str  # type: ignore[assignment,method-assign]
    return ini


def _only_section(file: Path, ini: RawConfigParser) -> str:
    """Return the one section that names the database of the sessions."""
    found = [name for name in ini.sections() if "mongodb_session_db" in _values(ini, name)]
    if len(found) != 1:
        which = f"these do: {', '.join(found)}" if found else "none does"
        raise SettingsError(
            f"--settings {file}: one section must have mongodb_session_db, but {which}; "
            "choose one with --section"
        )
    return found[0]


def _value(ini: RawConfigParser, section: str, key: str) -> str:
    """Return a value; a `%` without a name belongs to a percent-encoded URI."""
    try:
        return ini.get(section, key)
    except InterpolationError:
        return ini.get(section, key, raw=True)


_READERS: dict[str, Callable[[Path, str | None], Any]] = (
    dict.fromkeys((".yaml", ".yml"), _from_yaml)
    | dict.fromkeys((".json",), _from_json)
    | dict.fromkeys((".ini", ".cfg", ".conf"), _from_ini)
)

"""How the command finds the sessions: by a file of settings, options, or the environment."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from configparser import ConfigParser, InterpolationError
from configparser import Error as ConfigError
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from ..settings import Settings
from ..store import MongoStore

_VARIABLES = {
    "MONGODB_URI": "mongodb_host",
    "MONGOSESSION_DB": "mongodb_session_db",
    "MONGOSESSION_COLL": "mongodb_session_coll",
}


@dataclass
class Connection:
    """What the command line says of where the sessions are."""

    file: Path | None = None
    section: str | None = None
    uri: str | None = None
    database: str | None = None
    collection: str | None = None

    def settings(self, environment: Mapping[str, str]) -> Settings:
        """Return the settings: those of the file, else of the environment, and what is given.

        Raises `SettingsError`.
        """
        if self.file is None:
            found: dict[str, Any] = {
                key: environment[name] for name, key in _VARIABLES.items() if environment.get(name)
            }
        else:
            found = read(self.file, self.section)
        given = {
            "mongodb_host": self.uri,
            "mongodb_session_db": self.database,
            "mongodb_session_coll": self.collection,
        }
        settings = Settings.parse(found | {key: value for key, value in given.items() if value})
        if settings.database is None:
            raise SettingsError(
                "Which sessions? Name their database: --settings FILE with mongodb_session_db, "
                "--db NAME, or MONGOSESSION_DB in the environment"
            )
        return settings

    def store(self, environment: Mapping[str, str], longest: timedelta | None = None) -> MongoStore:
        """Return the store of these settings, or one in which a command may take so long.

        What looks at every session needs longer than a request may. The time is that of the
        socket, because with `timeoutMS` the driver would look as long for a server, too.
        """
        settings = self.settings(environment)
        if longest is not None:
            limits = {"timeoutms": None, "sockettimeoutms": longest.total_seconds() * 1000}
            options = {**settings.client_options, **limits}
            settings = replace(settings, client_options=options)
        return MongoStore(settings)


def read(file: Path, section: str | None = None) -> dict[str, Any]:
    """Read the flat mapping of a YAML, JSON or INI file, its kind told by the name's ending."""
    kind = file.suffix.lower()
    if kind not in _READERS:
        raise SettingsError(f"--settings {file}: must end in {', '.join(_READERS)}")
    try:
        found = _READERS[kind](file, section)
    except OSError as error:
        raise SettingsError(f"--settings {file}: {error.strerror}") from None
    except (ValueError, ConfigError) as error:
        if isinstance(error, SettingsError):
            raise
        # What the parser quotes may be a line with a password.
        line = getattr(error, "lineno", None)
        where = "" if line is None else f", see line {line}"
        raise SettingsError(f"--settings {file}: is not well formed{where}") from None
    if not isinstance(found, dict):
        raise SettingsError(f"--settings {file}: must be one mapping of keys to values")
    return found


def _from_yaml(file: Path, _: str | None) -> Any:
    try:
        import yaml
    except ImportError:
        raise SettingsError(
            f"--settings {file}: YAML needs PyYAML; pip install 'mongosession-wsgi[cli]'"
        ) from None
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f", see line {mark.line + 1}"
        raise SettingsError(f"--settings {file}: is not well formed YAML{where}") from None
    except yaml.YAMLError:
        raise SettingsError(f"--settings {file}: is not well formed YAML") from None


def _from_json(file: Path, _: str | None) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _from_ini(file: Path, section: str | None) -> dict[str, str]:
    """Read a section, `[DEFAULT]` included, as PasteDeploy does."""
    ini = ConfigParser({"here": str(file.absolute().parent), "__file__": str(file.absolute())})
    ini.optionxform = str  # type: ignore[assignment,method-assign]
    ini.read_string(file.read_text(encoding="utf-8"))
    section = section or _only_section(file, ini)
    if section not in ini:
        raise SettingsError(
            f"--section {section}: {file} has no such section; it has {', '.join(ini.sections())}"
        )
    return {key: _value(ini, section, key) for key in ini[section]}


def _only_section(file: Path, ini: ConfigParser) -> str:
    """Return the one section that names the database of the sessions."""
    found = [name for name in ini.sections() if "mongodb_session_db" in ini[name]]
    if len(found) != 1:
        which = f"these do: {', '.join(found)}" if found else "none does"
        raise SettingsError(
            f"--settings {file}: one section must have mongodb_session_db, but {which}; "
            "choose one with --section"
        )
    return found[0]


def _value(ini: ConfigParser, section: str, key: str) -> str:
    """Return a value; a `%` that stands for nothing is one of a URI that is percent-encoded."""
    try:
        return ini.get(section, key)
    except InterpolationError:
        return ini.get(section, key, raw=True)


_READERS: dict[str, Callable[[Path, str | None], Any]] = (
    dict.fromkeys((".yaml", ".yml"), _from_yaml)
    | dict.fromkeys((".json",), _from_json)
    | dict.fromkeys((".ini", ".cfg", ".conf"), _from_ini)
)

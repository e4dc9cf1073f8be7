"""The errors and the warning of the package."""

from __future__ import annotations

import logging
import warnings

logger: logging.Logger = logging.getLogger("mongosession_wsgi")


class SessionError(Exception):
    """The root of every error raised by the package."""


class SettingsError(SessionError, ValueError):
    """A setting is unknown, missing, or has a value that is not allowed."""


class StoreError(SessionError):
    """MongoDB could not be reached, refused, or did not answer in time.

    Its `__cause__` is the driver's error.
    """


class SessionDataError(SessionError, ValueError):
    """A session was given a key or a value beyond MongoDB's types or size."""


class SessionWarning(UserWarning):
    """A change of a session was not carried out, at a point too late for an exception."""


def warn(message: str) -> None:
    """Say `message` in the log, and as a `SessionWarning` to whoever filters warnings."""
    logger.warning(message)
    warnings.warn(message, SessionWarning, stacklevel=3)

"""What can go wrong that is ours."""

from __future__ import annotations

import logging
import warnings

logger = logging.getLogger("mongosession_wsgi")


class SessionError(Exception):
    """The root of every error that this package raises."""


class SettingsError(SessionError, ValueError):
    """A setting is unknown, missing, or has a value that is not allowed."""


class StoreError(SessionError):
    """MongoDB could not be reached, refused, or did not answer in time.

    Its `__cause__` is the driver's error.
    """


class SessionDataError(SessionError, ValueError):
    """A session was given a key or a value that MongoDB cannot hold, or too much of it."""


class SessionWarning(UserWarning):
    """What was asked of a session could not be done, at a point where raising is no answer."""


def warn(message: str) -> None:
    """Say `message` in the log, and as a `SessionWarning` to whoever filters warnings."""
    logger.warning(message)
    warnings.warn(message, SessionWarning, stacklevel=3)

"""Web sessions for any WSGI application, kept in MongoDB."""

from .errors import SessionDataError, SessionError, SessionWarning, SettingsError, StoreError
from .middleware import SessionMiddleware
from .session import Session
from .store import MongoStore, SessionInfo

__version__ = "2.0.0"

__all__ = [
    "MongoStore",
    "Session",
    "SessionDataError",
    "SessionError",
    "SessionInfo",
    "SessionMiddleware",
    "SessionWarning",
    "SettingsError",
    "StoreError",
    "__version__",
]

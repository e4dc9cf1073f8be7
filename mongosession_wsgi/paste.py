"""A filter for PasteDeploy: `use = egg:mongosession-wsgi` in a section `[filter:session]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .middleware import SessionMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def make_filter_app(
    app: WSGIApplication, global_conf: Mapping[str, str] | None, **local_conf: str
) -> SessionMiddleware:
    """Give every request to `app` its session, by the settings of a section of an INI file.

    Those of `[DEFAULT]` count too. Raises `SettingsError`.
    """
    return SessionMiddleware(app, {**(global_conf or {}), **local_conf})

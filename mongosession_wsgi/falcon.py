"""Falcon's session, kept in MongoDB: `falcon.App(middleware=[SessionComponent(settings)])`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from falcon import HTTPServiceUnavailable, Request, Response, code_to_http_status

from .errors import SettingsError, StoreError, logger
from .exchange import (
    KEY,
    OF_THE_PAGE,
    REFUSAL,
    UNAVAILABLE,
    Exchange,
    Exchanges,
    session_around,
)
from .settings import Settings
from .store import Store

_UNCAUGHT = "mongosession.falcon.uncaught"


class SessionComponent:
    """Give every request a session, `req.context.session`, and store it before the response.

    Name this component first in an application: the first component is the last to see the
    response, so that the session is stored with the changes of all others. `settings` is the flat
    mapping of `mongodb_*` and `session_*` keys; `store` replaces the store made of the settings.
    Raises `SettingsError`. Within a `SessionMiddleware` neither is needed: its session is used.
    """

    def __init__(
        self, settings: Mapping[str, Any] | Settings | None = None, *, store: Store | None = None
    ) -> None:
        self._key = f"mongosession.falcon.{id(self)}"
        self._exchanges = None if settings is None else Exchanges(settings, store)

    def process_request(self, req: Request, resp: Response) -> None:  # noqa: ARG002
        """Open the session, without loading it."""
        left: Exchange | None = req.env.pop(self._key, None)
        if left is not None:  # An error has ended an earlier pass of the environ.
            left.is_running = False
        if session_around(req.env) is None:
            if self._exchanges is None:
                raise SettingsError(
                    "mongodb_session_db: missing; give SessionComponent the settings, or put a "
                    "SessionMiddleware around the application"
                )
            exchange = req.env[self._key] = self._exchanges.open(req.env)
            exchange.is_running = True
            setattr(req, self._key, exchange)
        req.context.session = req.env[KEY]
        vars(req)["log_error"] = partial(_log_error, req)

    def process_response(
        self,
        req: Request,
        resp: Response,
        resource: object,  # noqa: ARG002
        req_succeeded: bool,  # noqa: ARG002
    ) -> None:
        """Store the session, or raise `HTTPServiceUnavailable` if MongoDB fails.

        The status tells a failed request, and `req_succeeded` does not: applications also raise
        redirects and 4xx.
        """
        noted = vars(req)
        noted.pop("log_error", None)  # Else the request, a cycle, would wait for the collector.
        exchange: Exchange | None = noted.get(self._key)
        try:
            # Without an exchange, an earlier component has failed, or a middleware commits.
            if exchange is not None:
                _commit(exchange, resp)
            if _UNCAUGHT in noted and code_to_http_status(resp.status).startswith("500"):
                raise noted.pop(_UNCAUGHT)
        except StoreError as error:
            logger.error("Answered 503: %s", error, exc_info=error)
            for name in OF_THE_PAGE:
                resp.delete_header(name)
            raise HTTPServiceUnavailable(description=UNAVAILABLE, headers={**REFUSAL}) from error


def _log_error(req: Request, message: str) -> None:
    """Be the `req.log_error` by which Falcon tells of an error that nobody handles.

    Nothing else of ours learns of the error before `process_response`.
    """
    error = sys.exc_info()[1]
    if isinstance(error, StoreError):
        vars(req)[_UNCAUGHT] = error
    type(req).log_error(req, message)


def _commit(exchange: Exchange, resp: Response) -> None:
    exchange.is_running = False
    try:
        resp.render_body()  # Media that fail to serialize are to do so before the commit.
        exchange.commit(code_to_http_status(resp.status))
    except BaseException:
        exchange.abandon()
        raise
    finally:
        _set_headers(resp, exchange)
    if resp.stream is not None and not hasattr(resp.stream, "read"):
        resp.stream = exchange.watched(resp.stream)


def _set_headers(resp: Response, exchange: Exchange) -> None:
    before = resp.headers
    after = exchange.headers(list(before.items()))
    for name in before.keys() - {name.lower() for name, _ in after}:
        resp.delete_header(name)
    for name, value in after:
        if name == "Set-Cookie":
            resp.append_header(name, value)
        else:
            resp.set_header(name, value)

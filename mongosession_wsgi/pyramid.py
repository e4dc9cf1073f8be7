"""Pyramid's `request.session`, kept in MongoDB: `config.include("mongosession_wsgi.pyramid")`."""

# Pyramid and zope.interface have no types.
# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from secrets import token_hex
from time import time
from typing import TYPE_CHECKING, Any

from pyramid.config import Configurator
from pyramid.events import ApplicationCreated
from pyramid.interfaces import ICSRFStoragePolicy, ISession
from pyramid.registry import Registry
from pyramid.request import Request
from pyramid.response import Response
from zope.interface import implementer

from .exchange import KEY, Exchanges, session_around
from .middleware import SessionMiddleware
from .session import Session, visit_of
from .store import Store

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_STORE = "mongosession_wsgi.store"
_EXCHANGES = "mongosession_wsgi.exchanges"
_SECRETS = "mongosession_wsgi.secrets"
_CSRF = "_csrft_"


@implementer(ISession)
class MongoSession(Session):
    """The session of a request as Pyramid knows it, with every member of `Session`."""

    def __init__(self, session: Session) -> None:
        super().__init__(visit_of(session))
        self._opened = int(time())

    @property
    def created(self) -> int:
        """When the session was created or last logged in, in seconds since the epoch."""
        created_at = self.created_at
        return self._opened if created_at is None else int(created_at.timestamp())

    def changed(self) -> None:
        """Do nothing: changes inside of a list or a dict are noticed."""

    def invalidate(self) -> None:
        """End the session, as a logout does; a key set afterwards starts a new session."""
        self.destroy()

    def flash(self, msg: Any, queue: str = "", allow_duplicate: bool = True) -> None:
        """Append a message to a queue, unless it is there and duplicates are not allowed."""
        messages = self.setdefault(f"_f_{queue}", [])
        if allow_duplicate or msg not in messages:
            messages.append(msg)

    def pop_flash(self, queue: str = "") -> list[Any]:
        """Remove a queue, and return its messages."""
        return list(self.pop(f"_f_{queue}", []))

    def peek_flash(self, queue: str = "") -> list[Any]:
        """Return the messages of a queue, and keep the queue."""
        return list(self.get(f"_f_{queue}", []))

    def new_csrf_token(self) -> str:
        """Set a new CSRF token, and return it."""
        token = self[_CSRF] = token_hex(20)
        return token

    def get_csrf_token(self) -> str:
        """Return the CSRF token; make one if there is none."""
        return self.get(_CSRF) or self.new_csrf_token()


def includeme(config: Configurator) -> None:
    """Give every request its session, by the `mongodb_*` and `session_*` keys of the settings.

    They are read when the application is made, which then raises `SettingsError` if they are bad.
    """
    config.add_directive("set_mongosession_store", _set_store)
    config.set_session_factory(_session_of)
    config.add_subscriber(_install, ApplicationCreated)
    with suppress(ImportError):
        from pyramid_retry import IBeforeRetry

        config.add_subscriber(_forget_attempt, IBeforeRetry)


def _set_store(config: Configurator, store: Store) -> None:
    """Use `store` in place of the store made of the settings."""
    config.action(_STORE, partial(config.registry.__setitem__, _STORE, store))


def _install(event: ApplicationCreated) -> None:
    """Put our middleware around the execution policy of the application, whichever it has.

    So a session is stored after all attempts, tweens, callbacks and subscribers.
    """
    router, respond, registry = event.app, event.app.execution_policy, event.app.registry
    exchanges = _exchanges_by(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # Also for a login by `environ["mongosession"]`, before anything asks for `request.session`.
        visit_of(environ[KEY]).secrets = registry[_SECRETS]
        response: WSGIApplication = respond(environ, router)
        return response(environ, start_response)

    middleware = SessionMiddleware(app, exchanges.settings, store=exchanges.store)
    router.execution_policy = lambda *_: middleware


def _exchanges_by(registry: Registry) -> Exchanges:
    """Make the exchanges by the settings of an application."""
    policy = registry.queryUtility(ICSRFStoragePolicy)  # Its key for the token may differ.
    registry[_SECRETS] = (_CSRF, getattr(policy, "key", _CSRF))
    exchanges = registry[_EXCHANGES] = Exchanges(registry.settings, registry.get(_STORE))
    return exchanges


def _session_of(request: Request) -> MongoSession:
    if _EXCHANGES not in request.registry:  # A test without an application.
        _exchanges_by(request.registry)
    session = session_around(request.environ)
    if session is None:
        session = _session_of_subrequest(request)
    visit_of(session).secrets = request.registry[_SECRETS]
    return MongoSession(session)


def _session_of_subrequest(request: Request) -> Session:
    """Open a session for a subrequest with an environ, and so cookies, of its own."""
    exchanges: Exchanges = request.registry[_EXCHANGES]
    exchange = exchanges.open(request.environ)
    exchange.is_running = True

    def commit(_: Request, response: Response) -> None:
        exchange.is_running = False
        exchange.commit(response.status)
        response.headerlist = exchange.headers(response.headerlist)
        request.add_finished_callback(lambda _: exchange.close())

    def abandon(_: Request) -> None:
        exchange.is_running = False
        exchange.abandon()

    # After the other callbacks, which may use the session too.
    request.add_response_callback(lambda *_: request.add_response_callback(commit))
    request.add_finished_callback(abandon)
    return exchange.session


def _forget_attempt(event: Any) -> None:
    visit_of(event.environ[KEY]).restart()

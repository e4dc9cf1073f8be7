"""The session stores that Python has for MongoDB, and the frameworks that they need."""

from __future__ import annotations

from typing import Any

from pymongo import MongoClient

from .contenders import HELD, Application, Floor, act, plain

_TIMEOUTS = "timeoutMS=5000&serverSelectionTimeoutMS=5000"
"""What every client of this package has: without it, a worker hangs on a stalled database."""


def beaker(uri: str, database: str, **options: Any) -> Application:
    from beaker.middleware import SessionMiddleware  # type: ignore[import-untyped]

    def use(kind: str, environ: dict[str, Any]) -> None:
        session = environ["beaker.session"]

        def log_in() -> None:
            session.regenerate_id()
            session["user"] = "alice"

        act(kind, session, environ, log_in, lambda: session.delete())
        if kind not in ("read", "log out"):
            session.save()

    cookie = {"session.secure": True, "session.httponly": True}
    settings = {"session.type": "ext:mongodb", "session.url": f"{uri}/{database}"}
    app: Application = SessionMiddleware(plain(use), settings | cookie | options)
    return app


def beaker_tuned(uri: str, database: str) -> Application:
    lean = {"session.data_serializer": "json", "session.save_accessed_time": False}
    return beaker(uri, f"{database}?{_TIMEOUTS}", **lean)


def flask_alone(uri: str, database: str) -> Application:
    from flask import Flask

    app = Flask("bench")
    app.add_url_rule("/<kind>", view_func=lambda kind: "ok")
    return app


def flask_floor(uri: str, database: str) -> Application:
    from flask import Flask, make_response, request

    app, floor = Flask("bench"), Floor(uri, database)

    @app.get("/<kind>")
    def use(kind: str) -> Any:
        response = make_response("ok")
        cookie = floor.use(kind, request.environ)
        if cookie is not None:
            response.headers["Set-Cookie"] = cookie
        return response

    return app


def flask() -> Any:
    """Return a Flask application whose sessions are still to be given to it."""
    from flask import Flask, request, session

    app = Flask("bench")

    @app.get("/<kind>")
    def use(kind: str) -> str:
        if HELD in request.environ:
            request.environ[HELD] = session._get_current_object()  # type: ignore[attr-defined]
        act(kind, session, request.environ, log_in, lambda: session.clear())
        if kind == "nested change":
            session.modified = True
        return "ok"

    def log_in() -> None:
        if hasattr(session, "login"):
            session.login("alice")
        else:
            app.session_interface.regenerate(session)  # type: ignore[attr-defined]
            session["user"] = "alice"

    return app


def flask_session(uri: str, database: str, *, refreshes: bool = True) -> Application:
    from flask_session import Session  # type: ignore[import-untyped]

    client: MongoClient[Any] = MongoClient(uri)
    client[database]["sessions"].create_index("id")
    app = flask()
    app.config |= {
        "SESSION_TYPE": "mongodb",
        "SESSION_MONGODB": client,
        "SESSION_MONGODB_DB": database,
        "SESSION_REFRESH_EACH_REQUEST": refreshes,
        "SESSION_COOKIE_SECURE": True,
    }
    Session(app)
    made: Application = app
    return made


def flask_session_tuned(uri: str, database: str) -> Application:
    return flask_session(f"{uri}/?{_TIMEOUTS}", database, refreshes=False)


def flask_ours(uri: str, database: str) -> Application:
    from mongosession_wsgi.flask import MongoSessionInterface

    app = flask()
    settings = {"mongodb_host": uri, "mongodb_session_db": database, "session_secure": True}
    app.session_interface = MongoSessionInterface(settings)
    made: Application = app
    return made


def django(
    uri: str,
    database: str,
    engine: str | None = "django.contrib.sessions.backends.db",
    floor: Floor | None = None,
) -> Application:
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.urls import path

    sessions = ["django.contrib.sessions.middleware.SessionMiddleware"]
    settings.configure(
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="x" * 50,
        ROOT_URLCONF=__name__,
        MIDDLEWARE=[] if engine is None else sessions,
        INSTALLED_APPS=["django.contrib.sessions"],
        SESSION_ENGINE=engine,
        SESSION_COOKIE_SECURE=True,
        MONGOSESSION={"mongodb_host": uri, "mongodb_session_db": database},
        DATABASES={"default": {"ENGINE": "django_mongodb_backend", "HOST": uri, "NAME": database}},
        DEFAULT_AUTO_FIELD="django_mongodb_backend.fields.ObjectIdAutoField",
        USE_TZ=True,
    )

    def use(request: Any, kind: str) -> HttpResponse:
        if engine is not None:
            session = request.session

            def log_in() -> None:
                session.cycle_key()
                session["user"] = "alice"

            if HELD in request.environ:
                request.environ[HELD] = session
            act(kind, session, request.environ, log_in, session.flush)
            if kind == "nested change":
                session.modified = True
        response = HttpResponse("ok")
        cookie = None if floor is None else floor.use(kind, request.environ)
        if cookie is not None:
            response["Set-Cookie"] = cookie
        return response

    globals()["urlpatterns"] = [path("<str:kind>", use)]
    app: Application = get_wsgi_application()
    return app


def django_ours(uri: str, database: str) -> Application:
    return django(uri, database, "mongosession_wsgi.django")


def django_alone(uri: str, database: str) -> Application:
    return django(uri, database, None)


def django_floor(uri: str, database: str) -> Application:
    return django(uri, database, None, Floor(uri, database))

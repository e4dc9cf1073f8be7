"""What is measured: the same requests, answered with one kind of session each.

Every contender is used as its own documentation says, with the same contents on the same server. An
application does with its session what the path of the request names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from random import Random
from secrets import token_urlsafe
from typing import Any

from pymongo import MongoClient, WriteConcern
from werkzeug.http import parse_cookie

from mongosession_wsgi import SessionMiddleware
from mongosession_wsgi.document import id_of

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]

KINDS = ("untouched", "read", "set", "read+set", "first visit", "login", "logout", "nested")
CONTENTS = {"3 keys": (3, 5), "50 keys": (50, 100)}
"""How many keys a session has, and the bytes of each value."""

_numbers = itertools.count()


def fresh() -> str:
    """Return a value that no request has set before."""
    return f"v{next(_numbers):07}"


def contents(keys: int, size: int) -> dict[str, Any]:
    text = Random(keys)  # Not to be compressed, and the same for all.
    values = {f"k{number:03}": text.randbytes(size).hex()[:size] for number in range(keys)}
    return values | {"cart": [{"item": f"tea {number}", "count": 1} for number in range(5)]}


def fill(session: Any, environ: dict[str, Any]) -> None:
    for key, value in contents(*environ["bench.contents"]).items():
        session[key] = value


def touch(kind: str, session: Any) -> None:
    """Do what every kind of session takes."""
    if kind in ("read", "read+set"):
        session["k001"]
    if kind in ("set", "read+set", "first visit"):
        session["k000"] = fresh()
    if kind == "nested":
        session["cart"][3]["count"] += 1


def plain(use: Callable[[str, dict[str, Any]], None]) -> Application:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        use(environ["PATH_INFO"][1:], environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    return app


def bare(uri: str, database: str) -> Application:
    return plain(lambda kind, environ: None)


def ours(uri: str, database: str) -> Application:
    def use(kind: str, environ: dict[str, Any]) -> None:
        session = environ["mongosession"]
        match kind:
            case "fill":
                fill(session, environ)
            case "login":
                session.login("alice")
            case "logout":
                session.destroy()
            case _:
                touch(kind, session)

    settings = {"mongodb_host": uri, "mongodb_session_db": database, "session_secure": True}
    return SessionMiddleware(plain(use), settings)


class Floor:
    """A handler that does by hand what cannot be done without, and nothing that a session is."""

    def __init__(self, uri: str, database: str) -> None:
        client: MongoClient[Any] = MongoClient(uri, timeoutMS=5000, serverSelectionTimeoutMS=5000)
        majority = WriteConcern("majority")
        self._sessions = client[database].get_collection("floor", write_concern=majority)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        kind, headers = environ["PATH_INFO"][1:], [("Content-Type", "text/plain")]
        if kind != "untouched":
            token = parse_cookie(environ).get("sid", "")
            now = datetime.now(timezone.utc)
            live = {"_id": id_of(token), "v": 1, "expires_at": {"$gt": now}}
            new = self._use(kind, live, now, environ)
            if new is not None:
                headers.append(("Set-Cookie", f"sid={new}; Path=/; HttpOnly; SameSite=Lax"))
        start_response("200 OK", headers)
        return [b"ok"]

    def _use(self, kind: str, live: Any, now: datetime, environ: dict[str, Any]) -> str | None:
        data: dict[str, Any] = {}
        if kind in ("read", "read+set", "nested", "login"):
            data = (self._sessions.find_one(live) or {})["data"]
        match kind:
            case "set" | "read+set":
                self._update(live, now, {"data.k000": fresh()})
            case "nested":
                data["cart"][3]["count"] += 1
                self._update(live, now, {"data.cart": data["cart"]})
            case "logout":
                self._sessions.delete_one(live)
                return ""
            case "login":
                self._sessions.delete_one(live)
                return self._insert(now, data, "alice")
            case "first visit":
                return self._insert(now, {"k000": fresh()}, None)
            case "fill":
                return self._insert(now, contents(*environ["bench.contents"]), None)
        return None

    def _update(self, live: Any, now: datetime, fields: dict[str, Any]) -> None:
        moments = {"seen_at": now, "expires_at": now + timedelta(days=14)}
        self._sessions.update_one(live, {"$set": fields, "$max": moments})

    def _insert(self, now: datetime, data: dict[str, Any], owner: str | None) -> str:
        token, expires_at = token_urlsafe(32), now + timedelta(days=14)
        moments = {"created_at": now, "seen_at": now, "expires_at": expires_at}
        new = {"_id": id_of(token), "v": 1, "data": data, "owner": owner} | moments
        self._sessions.insert_one(new)
        return token


def beaker(uri: str, database: str, **options: Any) -> Application:
    from beaker.middleware import SessionMiddleware as Beaker  # type: ignore[import-untyped]

    def use(kind: str, environ: dict[str, Any]) -> None:
        if kind == "untouched":
            return
        session = environ["beaker.session"]
        match kind:
            case "fill":
                fill(session, environ)
            case "login":
                session.regenerate_id()
                session["user"] = "alice"
            case "logout":
                session.delete()
                return
            case _:
                touch(kind, session)
        if kind != "read":
            session.save()

    settings = {"session.type": "ext:mongodb", "session.url": f"{uri}/{database}"} | options
    return Beaker(plain(use), settings)  # type: ignore[no-any-return]


def beaker_tuned(uri: str, database: str) -> Application:
    """Beaker as lean as it gets: JSON instead of pickle, and no expiry to look after."""
    lean = {"session.data_serializer": "json", "session.save_accessed_time": False}
    return beaker(uri, database, **lean)


def flask_session(uri: str, database: str, *, refresh: bool = True) -> Application:
    from flask import Flask, request, session
    from flask_session import Session as FlaskSession

    app = Flask("bench")
    app.config |= {
        "SESSION_TYPE": "mongodb",
        "SESSION_MONGODB": MongoClient(uri),
        "SESSION_MONGODB_DB": database,
        "SESSION_REFRESH_EACH_REQUEST": refresh,
    }
    FlaskSession(app)

    @app.get("/<kind>")
    def use(kind: str) -> str:
        match kind:
            case "fill":
                fill(session, request.environ)
            case "login":
                app.session_interface.regenerate(session)  # type: ignore[attr-defined]
                session["user"] = "alice"
            case "logout":
                session.clear()
            case _:
                touch(kind, session)
                session.modified = session.modified or kind == "nested"
        return "ok"

    return app


def flask_session_tuned(uri: str, database: str) -> Application:
    return flask_session(uri, database, refresh=False)


def flask_bare(uri: str, database: str) -> Application:
    """Flask with no session in use: what of the figures of Flask-Session is Flask's own."""
    from flask import Flask

    app = Flask("bench")
    app.add_url_rule("/<kind>", view_func=lambda kind: "ok")
    return app


def django(uri: str, database: str, engine: str = "db") -> Application:
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    settings.configure(
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="x" * 50,
        ROOT_URLCONF=__name__,
        MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
        INSTALLED_APPS=["django.contrib.sessions"],
        SESSION_ENGINE={"db": "django.contrib.sessions.backends.db"}.get(engine, engine),
        MONGOSESSION={"mongodb_host": uri, "mongodb_session_db": database},
        DATABASES={"default": {"ENGINE": "django_mongodb_backend", "HOST": uri, "NAME": database}},
        USE_TZ=True,
    )

    def use(request: HttpRequest, kind: str) -> HttpResponse:
        session = request.session
        match kind:
            case "fill":
                fill(session, request.environ)  # type: ignore[attr-defined]
            case "login":
                session.cycle_key()
                session["user"] = "alice"
            case "logout":
                session.flush()
            case _:
                touch(kind, session)
                session.modified = session.modified or kind == "nested"
        return HttpResponse("ok")

    globals()["urlpatterns"] = [path("<str:kind>", use)]
    app: Application = get_wsgi_application()
    return app


def django_ours(uri: str, database: str) -> Application:
    return django(uri, database, "mongosession_wsgi.django")


CONTENDERS: dict[str, Callable[[str, str], Application]] = {
    "ours": ours,
    "floor": Floor,
    "bare": bare,
    "Beaker": beaker,
    "Beaker, tuned": beaker_tuned,
    "Flask-Session": flask_session,
    "Flask-Session, tuned": flask_session_tuned,
    "Flask alone": flask_bare,
    "Django": django,
    "Django, our engine": django_ours,
}
PROCESSES = (
    ("ours", "floor", "bare"),
    ("Beaker", "Beaker, tuned"),
    ("Flask-Session", "Flask-Session, tuned", "Flask alone"),
    ("Django",),
    ("Django, our engine",),
)
"""Which contenders share a process: those whose ratios are to be those of the code alone."""
PEERS = ("Beaker", "Beaker, tuned", "Flask-Session", "Flask-Session, tuned", "Django")

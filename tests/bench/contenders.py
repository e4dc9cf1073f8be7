"""What is measured: one application each, which does with its session what the path says.

Every contender is used as its own documentation says, with the same contents on the same server.
Those of other packages are in `peers`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from importlib import import_module
from os import getpid
from random import Random
from secrets import token_urlsafe
from typing import Any, NamedTuple

from pymongo import IndexModel, MongoClient, WriteConcern
from werkzeug.http import parse_cookie

from mongosession_wsgi import SessionMiddleware
from mongosession_wsgi.document import CODEC, id_of

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


class Contents(NamedTuple):
    """What a session holds: a cart, and texts that can't be compressed."""

    keys: int
    size: int
    """The characters of each text."""


class Row(NamedTuple):
    """A kind of request, and the session that it finds."""

    kind: str
    contents: Contents

    @property
    def label(self) -> str:
        return self.kind if self.kind in ALIKE else f"{self.kind}, {self.contents.keys} keys"


HELD = "bench.held"
"""The key of an environ under which an application leaves its session, if the key is there."""
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "2")]
SMALL, LARGE = Contents(3, 20), Contents(50, 100)
ALIKE = ("untouched", "first visit")
"""The kinds to which it is all one what the session holds."""
SEALED_ROWS = [
    Row(kind, of) for of in (SMALL, LARGE) for kind in ("read", "read all", "set", "read and set")
]
"""The requests by which sealed sessions are compared with others."""
ROWS = [
    *(Row(kind, SMALL) for kind in ("untouched", "first visit")),
    *(Row(kind, of) for of in (SMALL, LARGE) for kind in ("read", "set", "read and set")),
    Row("nested change", LARGE),
    *(Row(kind, of) for of in (SMALL, LARGE) for kind in ("log in", "log out")),
]

_numbers = itertools.count()


def fresh() -> str:
    """Return a value that no request has set before, in none of the workers either."""
    return f"value {getpid() % 10**7:07}{next(_numbers):07}"


def data_of(contents: Contents) -> dict[str, Any]:
    random = Random(contents.keys)  # The same for all.
    data: dict[str, Any] = {
        f"key{number:03}": random.randbytes(contents.size).hex()[: contents.size]
        for number in range(contents.keys)
    }
    if contents.keys > 1:
        data.popitem()
        data["cart"] = [{"item": f"tea {number}", "count": 1} for number in range(3)]
    return data


def act(
    kind: str,
    session: Any,
    environ: dict[str, Any],
    log_in: Callable[[], object],
    log_out: Callable[[], object],
) -> None:
    """Do with a session what a request of this kind is for."""
    match kind:
        case "fill":
            for key, value in data_of(environ["bench.contents"]).items():
                session[key] = value
        case "read":
            session["key000"]
        case "read all":
            dict(session)
        case "set" | "first visit":
            session["key000"] = fresh()
        case "read and set":
            session["key000"]
            session["key000"] = fresh()
        case "nested change":
            session["cart"][1]["count"] += 1
        case "log in":
            log_in()
        case "log out":
            log_out()


def plain(use: Callable[[str, dict[str, Any]], object]) -> Application:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        kind = environ["PATH_INFO"][1:]
        if kind != "untouched":
            use(kind, environ)
        start_response("200 OK", [*HEADERS])
        return [b"ok"]

    return app


def bare(uri: str, database: str) -> Application:
    return plain(lambda kind, environ: None)


def ours(uri: str, database: str, secure: str = "true", **settings: str) -> Application:
    def use(kind: str, environ: dict[str, Any]) -> None:
        session = environ["mongosession"]
        act(kind, session, environ, lambda: session.login("alice"), session.destroy)

    settings |= {"mongodb_host": uri, "mongodb_session_db": database, "session_secure": secure}
    return SessionMiddleware(plain(use), settings)


def ours_auto(uri: str, database: str) -> Application:
    return ours(uri, database, "auto")


def ours_sealed(uri: str, database: str) -> Application:
    import_module("cryptography")  # Without it, this contender is left out.
    return ours(uri, database, session_sealed="true")


class Floor:
    """A handler that does by hand what cannot be done without, and nothing that a session is.

    Its filters, its updates, its codec and its write concern are those of this package, and its
    commands the fewest that do the same; `test_bench_exact` compares them.
    """

    def __init__(self, uri: str, database: str) -> None:
        self.client: MongoClient[Any] = MongoClient(
            uri, timeoutMS=5000, serverSelectionTimeoutMS=5000
        )
        self._sessions = self.client[database].get_collection(
            "sessions", codec_options=CODEC, write_concern=WriteConcern("majority")
        )
        indexes = [IndexModel("expires_at", expireAfterSeconds=0), IndexModel("owner")]
        self._sessions.create_indexes(indexes)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        headers = [*HEADERS]
        cookie = self.use(environ["PATH_INFO"][1:], environ)
        if cookie is not None:
            headers.append(("Set-Cookie", cookie))
        start_response("200 OK", headers)
        return [b"ok"]

    def use(self, kind: str, environ: dict[str, Any]) -> str | None:
        """Do what a request of this kind is for; return its Set-Cookie, if any."""
        if kind == "untouched":
            return None
        id_ = id_of(parse_cookie(environ).get("sid", ""))
        now = datetime.now(timezone.utc).replace(tzinfo=None)
        new = self._use(kind, id_, now, environ)
        return None if new is None else f"sid={new}; Path=/; Secure; HttpOnly; SameSite=Lax"

    def _use(self, kind: str, id_: str, now: datetime, environ: dict[str, Any]) -> str | None:
        match kind:
            case "read" | "read all":
                self._find(id_, now)["key000"]
            case "set":
                self._update(id_, now, {"data.key000": fresh()})
            case "read and set":
                self._find(id_, now)["key000"]
                self._update(id_, now, {"data.key000": fresh()}, remember=None)
            case "nested change":
                cart = self._find(id_, now)["cart"]
                cart[1]["count"] += 1
                self._update(id_, now, {"data.cart": cart}, remember=None)
            case "log in":
                ended: Any = self._sessions.find_one_and_delete(self._live(id_, now))
                return self._insert(now, ended["data"], "alice")
            case "log out":
                self._sessions.delete_one(self._live(id_, now))
                return ""
            case "first visit":
                return self._insert(now, {"key000": fresh()}, None)
            case "fill":
                return self._insert(now, data_of(environ["bench.contents"]), None)
        return None

    def _live(self, id_: str, now: datetime) -> dict[str, Any]:
        return {"_id": id_, "v": 1, "data": {"$type": 3}, "expires_at": {"$gt": now}}

    def _find(self, id_: str, now: datetime) -> dict[str, Any]:
        found = self._sessions.find_one({"_id": id_})
        assert found is not None
        assert found["expires_at"] > now
        data: dict[str, Any] = found["data"]
        return data

    def _update(self, id_: str, now: datetime, fields: dict[str, Any], **seen: None) -> None:
        moments = {"seen_at": now, "expires_at": now + timedelta(days=14)}
        self._sessions.update_one(self._live(id_, now) | seen, {"$max": moments, "$set": fields})

    def _insert(self, now: datetime, data: dict[str, Any], owner: str | None) -> str:
        token = token_urlsafe(32)
        moments = {"created_at": now, "seen_at": now, "expires_at": now + timedelta(days=14)}
        new = {"_id": id_of(token), "v": 1, "data": data, "owner": owner} | moments
        self._sessions.insert_one(new)
        return token

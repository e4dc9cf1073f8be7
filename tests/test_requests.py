"""The table of what a request does, row by row: MongoDB's commands and the response's headers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pymongo.collection import Collection

from mongosession_wsgi import MongoStore, Session, SessionMiddleware
from mongosession_wsgi.document import id_of

from .conftest import Clock
from .wsgi import Browser, on_session

Use = Callable[[Session], Any]
FILLED = {"a": 1, "cart": ["egg"]}


class Visitor:
    """A browser whose requests each use the session in their own way."""

    def __init__(self, settings: dict[str, Any], store: MongoStore) -> None:
        self._use: Use = lambda session: None
        self.browser = Browser(
            SessionMiddleware(on_session(lambda session: self._use(session)), settings, store=store)
        )

    def does(self, use: Use, **environ: Any) -> Any:
        self._use = use
        return self.browser.get(**environ)


@pytest.fixture
def visitor(settings: dict[str, Any], store: MongoStore) -> Visitor:
    return Visitor(settings, store)


@pytest.fixture
def live(visitor: Visitor) -> Visitor:
    """A visitor who has a session with two keys."""
    visitor.does(lambda session: session.update(a=1, cart=["egg"]))
    return visitor


def test_an_untouched_session_costs_nothing_and_changes_nothing(live: Visitor) -> None:
    response = live.does(lambda session: None)
    assert response.commands == []
    assert response.headers == [("Content-Type", "text/plain; charset=utf-8")]


@pytest.mark.parametrize(
    "look",
    [
        lambda session: session.get("a"),
        lambda session: "a" in session,
        lambda session: len(session),
        lambda session: list(session),
        lambda session: session.copy(),
        lambda session: session == {},
        lambda session: session.id,
        lambda session: session.token,
        lambda session: session.new,
        lambda session: session.owner,
        lambda session: session.created_at,
        lambda session: session.expires_at,
    ],
)
def test_reading_costs_one_command_and_varies_on_cookie(live: Visitor, look: Use) -> None:
    response = live.does(look)
    assert response.commands == ["find"]
    assert response.header("Vary") == "Cookie"
    assert response.cookie is None
    assert response.header("Cache-Control") is None


@pytest.mark.parametrize("show", [repr, str])
def test_a_page_that_shows_the_session_itself_varies_on_cookie(live: Visitor, show: Use) -> None:
    response = live.does(show)
    assert response.commands == []
    assert response.header("Vary") == "Cookie"


def test_reading_twice_loads_once(live: Visitor) -> None:
    assert live.does(lambda s: (s["a"], s["cart"], len(s), s.id, s.owner)).commands == ["find"]


@pytest.mark.parametrize(
    "look",
    [
        lambda session: session.get("a"),
        lambda session: session.new,
        lambda session: session.clear(),
        lambda session: session.destroy(),
        lambda session: session.regenerate(),
    ],
)
def test_a_new_session_that_stays_empty_is_not_stored(
    visitor: Visitor, stored: Collection[Any], look: Use
) -> None:
    response = visitor.does(look)
    assert response.commands == []
    assert response.header("Vary") == "Cookie"
    assert response.cookie is None
    assert stored.count_documents({}) == 0


def test_a_new_session_that_is_filled_is_inserted_under_a_new_token(
    visitor: Visitor, stored: Collection[Any], clock: Clock
) -> None:
    response = visitor.does(lambda session: session.update(a=1))
    assert response.commands == ["insert"]
    assert response.header("Vary") == "Cookie"
    assert response.header("Cache-Control") == "private"
    assert response.cookie == f"mongosession={response.token}; HttpOnly; Path=/; SameSite=Lax"
    assert stored.find_one() == {
        "_id": id_of(response.token),
        "v": 1,
        "data": {"a": 1},
        "owner": None,
        "created_at": clock.now,
        "seen_at": clock.now,
        "expires_at": clock.now + timedelta(days=14),
    }


@pytest.mark.parametrize(
    ("change", "commands", "data"),
    [
        (lambda s: s.__setitem__("a", 2), ["update"], FILLED | {"a": 2}),
        (lambda s: s.update(x=1, y=2), ["update"], FILLED | {"x": 1, "y": 2}),
        (lambda s: s.__ior__({"a": 2}), ["update"], FILLED | {"a": 2}),
        (lambda s: s.clear(), ["update"], {}),
        (lambda s: (s.clear(), s.update(b=1)), ["update"], {"b": 1}),
        (lambda s: s.__delitem__("a"), ["find", "update"], {"cart": ["egg"]}),
        (lambda s: s.pop("a"), ["find", "update"], {"cart": ["egg"]}),
        (lambda s: (s.popitem(), s.popitem()), ["find", "update"], {}),
        (lambda s: s.setdefault("b", []).append(1), ["find", "update"], FILLED | {"b": [1]}),
        (lambda s: s["cart"].append("ham"), ["find", "update"], FILLED | {"cart": ["egg", "ham"]}),
        (lambda s: s.copy()["cart"].clear(), ["find", "update"], FILLED | {"cart": []}),
        (lambda s: s.update(a=s["a"] + 1), ["find", "update"], FILLED | {"a": 2}),
        (lambda s: s["a"] == 1 and s.update(a=True), ["find", "update"], FILLED | {"a": True}),
    ],
)  # fmt: skip
def test_a_change_is_one_update_and_no_cookie(
    live: Visitor, stored: Collection[Any], change: Use, commands: list[str], data: dict[str, Any]
) -> None:
    response = live.does(change)
    assert response.commands == commands
    assert response.header("Vary") == "Cookie"
    assert response.cookie is None
    assert repr(stored.find_one()["data"]) == repr(data)


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.update(a=s["a"]),
        lambda s: s.update(cart=list(s["cart"])),
        lambda s: (s["cart"].append(1), s["cart"].pop()),
        lambda s: s.pop("nothing", None),
    ],
)
def test_what_ends_as_it_was_is_not_written(live: Visitor, use: Use) -> None:
    assert live.does(use).commands == ["find"]


def test_an_emptied_session_stays_and_is_empty(live: Visitor, stored: Collection[Any]) -> None:
    response = live.does(lambda session: [session.pop(key) for key in list(session)])
    assert response.commands == ["find", "update"]
    assert response.cookie is None
    assert stored.find_one()["data"] == {}
    assert live.does(lambda session: (dict(session), session.new)).body == b"({}, False)"


@pytest.mark.parametrize(
    ("replace", "owner"),
    [(lambda s: s.regenerate(), None), (lambda s: s.login("alice"), "alice")],
)
def test_regenerating_ends_the_old_session_and_inserts_the_new(
    live: Visitor, stored: Collection[Any], replace: Use, owner: str | None
) -> None:
    old = live.browser.token
    response = live.does(replace)
    assert response.commands == ["findAndModify", "insert"]
    assert response.header("Vary") == "Cookie"
    assert response.header("Cache-Control") == "private"
    assert response.token not in (None, "", old)
    document = stored.find_one({"_id": id_of(response.token)})
    assert document["data"] == {"a": 1, "cart": ["egg"]}
    assert document["owner"] == owner
    assert "data" not in stored.find_one({"_id": id_of(old)})


def test_a_destroyed_session_is_deleted_and_its_cookie_expired(
    live: Visitor, stored: Collection[Any]
) -> None:
    response = live.does(lambda session: session.destroy())
    assert response.commands == ["delete"]
    assert response.header("Vary") == "Cookie"
    assert response.cookie == (
        "mongosession=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; "
        "HttpOnly; Path=/; SameSite=Lax"
    )
    assert stored.count_documents({}) == 0


def test_what_is_set_after_destroy_starts_a_new_session(
    live: Visitor, stored: Collection[Any]
) -> None:
    old = live.browser.token
    response = live.does(lambda session: (session.destroy(), session.update(flash="Bye")))
    assert response.commands == ["delete", "insert"]
    assert response.token not in (None, "", old)
    assert [document["data"] for document in stored.find()] == [{"flash": "Bye"}]


def test_what_is_set_between_destroy_and_login_is_the_new_owners(
    live: Visitor, stored: Collection[Any]
) -> None:
    live.does(lambda session: session.login("alice"))
    live.does(lambda s: (s.copy(), s.destroy(), s.update(flash="Bye"), s.login("bob")))
    found = stored.find_one({"data": {"$exists": True}})
    assert (found["data"], found["owner"]) == ({"flash": "Bye"}, "bob")


def test_login_after_destroy_starts_a_new_session(live: Visitor, stored: Collection[Any]) -> None:
    live.does(lambda session: (session.destroy(), session.login("alice")))
    assert [(one["data"], one["owner"]) for one in stored.find()] == [({}, "alice")]


# Renewal.


def test_reading_moves_the_expiry_after_five_minutes_and_not_before(
    live: Visitor, stored: Collection[Any], clock: Clock
) -> None:
    clock.advance(minutes=4, seconds=59)
    assert live.does(lambda session: session["a"]).commands == ["find"]
    clock.advance(seconds=1)
    response = live.does(lambda session: session["a"])
    assert response.commands == ["find", "update"]
    assert response.cookie is None, "a cookie that lasts as long as the browser needs no renewal"
    document = stored.find_one()
    assert document["seen_at"] == clock.now
    assert document["expires_at"] == clock.now + timedelta(days=14)
    assert live.does(lambda session: session["a"]).commands == ["find"]


def test_renewal_comes_after_a_tenth_of_a_short_idle_time(
    settings: dict[str, Any], clock: Clock
) -> None:
    settings |= {"session_expires": "100"}
    visitor = Visitor(settings, MongoStore(settings, clock=clock))
    visitor.does(lambda session: session.update(a=1))
    clock.advance(seconds=9)
    assert visitor.does(lambda session: session["a"]).cookie is None
    clock.advance(seconds=1)
    response = visitor.does(lambda session: session["a"])
    assert response.commands == ["find", "update"]
    assert response.token == visitor.browser.token
    assert "Max-Age=100" in response.cookie
    assert response.header("Cache-Control") == "private"


def test_a_change_renews_a_cookie_that_has_an_end(settings: dict[str, Any], clock: Clock) -> None:
    settings |= {"session_expires": "1h"}
    visitor = Visitor(settings, MongoStore(settings, clock=clock))
    visitor.does(lambda session: session.update(a=1))
    assert visitor.does(lambda session: session.update(a=session["a"] + 1)).cookie is None
    clock.advance(minutes=6)
    assert visitor.does(lambda session: session.update(a=session["a"] + 1)).cookie is not None
    assert visitor.does(lambda session: session.update(a=0)).cookie is not None, (
        "written unseen, nobody knows how old the cookie is"
    )


def test_an_expired_session_is_gone(live: Visitor, stored: Collection[Any], clock: Clock) -> None:
    old = live.browser.token
    clock.advance(days=14)
    response = live.does(lambda session: (dict(session), session.new, session.id))
    assert response.body == b"({}, True, None)"
    assert response.cookie is None
    assert live.does(lambda session: session.update(b=2)).token not in (None, "", old)
    assert stored.find_one({"_id": id_of(old)})["data"] == {"a": 1, "cart": ["egg"]}


# Failed requests.


class BrokenError(Exception):
    pass


def failing(use: Use) -> Use:
    def fail(session: Session) -> None:
        use(session)
        raise BrokenError

    return fail


@pytest.mark.parametrize(
    "use",
    [
        lambda session: session.update(a=2),
        lambda session: session["cart"].append("ham"),
        lambda session: session.clear(),
        lambda session: session.login("alice"),
        lambda session: session.regenerate(),
    ],
)
def test_the_changes_of_an_application_that_raises_are_dropped(
    live: Visitor, stored: Collection[Any], use: Use
) -> None:
    before = list(stored.find())
    with pytest.raises(BrokenError):
        live.does(failing(use))
    assert list(stored.find()) == before


def test_an_application_that_raises_is_logged_out_all_the_same(
    live: Visitor, stored: Collection[Any]
) -> None:
    with pytest.raises(BrokenError):
        live.does(failing(lambda session: (session.destroy(), session.update(b=1))))
    assert stored.count_documents({}) == 0


@pytest.fixture
def failed(settings: dict[str, Any], store: MongoStore) -> Callable[[Visitor, Use], Any]:
    """Make a request of a visitor that answers 500."""

    def fail(visitor: Visitor, use: Use) -> Any:
        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            use(environ["mongosession"])
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"oh"]

        return Browser(
            SessionMiddleware(app, settings, store=store), cookie=visitor.browser.cookie
        ).get()

    return fail


def test_the_changes_of_a_request_that_answers_500_are_dropped(
    live: Visitor, stored: Collection[Any], failed: Any
) -> None:
    before = list(stored.find())
    response = failed(live, lambda session: (session.update(a=2), session.login("alice")))
    assert response.status == "500 Internal Server Error"
    assert response.header("Vary") == "Cookie"
    assert response.cookie is None
    assert list(stored.find()) == before


def test_destroy_is_carried_out_by_a_request_that_answers_500(
    live: Visitor, stored: Collection[Any], failed: Any
) -> None:
    response = failed(live, lambda session: (session.destroy(), session.update(b=1)))
    assert response.commands == ["delete"]
    assert response.token == ""
    assert stored.count_documents({}) == 0

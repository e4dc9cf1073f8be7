"""The session engine for Django: what Django promises of one, and what we promise on top."""

from __future__ import annotations

import asyncio
import copy
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from http.cookies import SimpleCookie
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import django
import pytest
from django.conf import settings as django_settings
from django.contrib import auth, messages
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.backends import db
from django.contrib.sessions.backends.base import UpdateError
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.utils import timezone as django_timezone
from django.utils.functional import empty
from django.views.defaults import server_error
from pymongo.collection import Collection

from examples.browser import Browser as Shopper
from mongosession_wsgi import MongoStore, SessionDataError, SettingsError, StoreError
from mongosession_wsgi.django import SessionStore, mongo_store

from ..commands import RECORDER
from ..test_examples import environment, post, served
from ..test_security import locals_of_ours
from ..wsgi import DOWN, Browser, Response

View = Callable[[Any], object]
FORTNIGHT = 14 * 24 * 60 * 60
NOBODYS = "n" * 43


def index(request: HttpRequest) -> HttpResponse:
    """Do what the test says that this request is to do."""
    answer = request.META["tests.view"](request)
    return answer if isinstance(answer, HttpResponse) else HttpResponse(str(answer))


def handler500(request: HttpRequest) -> HttpResponse:
    if isinstance(sys.exc_info()[1], StoreError):
        return HttpResponse("Later.", status=503, headers={"Retry-After": "5"})
    return server_error(request)


urlpatterns = [path("", index)]


@pytest.fixture(scope="module", autouse=True)
def _project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Django project for this module; whatever the process had for one is there again then."""
    before, django_settings._wrapped = django_settings._wrapped, empty
    users = {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path_factory.mktemp("sql") / "db"}
    django_settings.configure(
        ALLOWED_HOSTS=["localhost", "testserver"],
        AUTHENTICATION_BACKENDS=["django.contrib.auth.backends.ModelBackend"],
        DATABASES={"default": users},
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.messages",
            "django.contrib.sessions",
        ],
        LOGGING_CONFIG=None,
        MESSAGE_STORAGE="django.contrib.messages.storage.session.SessionStorage",
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="not a secret, as everybody can read it here",
        SESSION_ENGINE="mongosession_wsgi.django",
    )
    django.setup()
    call_command("migrate", verbosity=0)
    yield
    connections.close_all()
    django_settings._wrapped = before


@pytest.fixture(autouse=True)
def _settings(settings: dict[str, Any], _project: None) -> Iterator[None]:
    with override_settings(MONGOSESSION=settings):
        yield
        mongo_store().close()


@pytest.fixture
def users() -> Iterator[list[Any]]:
    users: Any = auth.get_user_model().objects
    made = [users.create_user(name) for name in ("alice", "bob")]
    yield made
    auth.get_user_model().objects.all().delete()


@pytest.fixture
def browser() -> Browser:
    return Browser(WSGIHandler())


def visit(browser: Browser, view: View) -> Response:
    return browser.get(**{"tests.view": view})


def puts(**values: Any) -> View:
    return lambda request: request.session.update(values)


def reads(request: Any) -> object:
    return sorted(request.session.items())


def saved(**values: Any) -> SessionStore:
    session = SessionStore()
    session.update(values)
    session.save()
    return session


def data_of(session_key: str | None) -> dict[str, Any]:
    return dict(SessionStore(session_key).items())


class Caller:
    """Calls the methods of a session, or their asynchronous twins."""

    def __init__(self, twin: bool, session: SessionStore) -> None:
        self._twin = twin
        self._session = session

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not self._twin:
            return getattr(self._session, "__setitem__" if name == "set" else name)
        method = getattr(self._session, f"a{name}")
        return lambda *args, **named: asyncio.run(method(*args, **named))


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def calling(request: pytest.FixtureRequest) -> Callable[[SessionStore], Caller]:
    return lambda session: Caller(request.param, session)


Calling = Callable[[SessionStore], Caller]


# What Django promises of every engine: the mapping and its flags.


def flags(session: SessionStore) -> tuple[bool, bool]:
    return session.accessed, session.modified


def unflagged(**values: Any) -> SessionStore:
    session = SessionStore()
    session.update(values)
    session.accessed = session.modified = False
    return session


def test_a_new_session_is_untouched_and_costs_no_command() -> None:
    with RECORDER.request() as commands:
        session = SessionStore(NOBODYS)
        assert flags(session) == (False, False)
        assert session.session_key == NOBODYS
    assert commands == []


@pytest.mark.parametrize(
    ("name", "args", "answer", "modified"),
    [
        ("get", ("absent",), None, False),
        ("get", ("tea",), "Assam", False),
        ("set", ("tea", "Oolong"), None, True),
        ("pop", ("tea",), "Assam", True),
        ("pop", ("absent", "nothing"), "nothing", False),
        ("setdefault", ("tea", "Oolong"), "Assam", False),
        ("setdefault", ("milk", True), True, True),
        ("update", ({"milk": True},), None, True),
        ("has_key", ("tea",), True, False),
        ("has_key", ("absent",), False, False),
    ],
)
def test_a_use_is_noticed(
    calling: Calling, name: str, args: tuple[Any, ...], answer: object, modified: bool
) -> None:
    session = unflagged(tea="Assam")
    assert getattr(calling(session), name)(*args) == answer
    assert flags(session) == (True, modified)


@pytest.mark.parametrize(
    ("name", "found"), [("keys", ["tea"]), ("values", ["Assam"]), ("items", [("tea", "Assam")])]
)
def test_iterating_modifies_nothing(calling: Calling, name: str, found: list[Any]) -> None:
    session = unflagged(tea="Assam")
    assert list(getattr(calling(session), name)()) == found
    assert flags(session) == (True, False)


def test_clear_empties_the_session() -> None:
    session = unflagged(tea="Assam")
    session.clear()
    assert dict(session.items()) == {}
    assert flags(session) == (True, True)


def test_popping_what_is_not_there_is_a_key_error(calling: Calling) -> None:
    with pytest.raises(KeyError):
        calling(SessionStore()).pop("absent")


def test_a_browser_is_asked_whether_it_keeps_cookies(calling: Calling) -> None:
    session = SessionStore()
    assert not calling(session).test_cookie_worked()
    calling(session).set_test_cookie()
    assert calling(session).test_cookie_worked()
    calling(session).delete_test_cookie()
    assert not calling(session).test_cookie_worked()


def test_what_is_encoded_can_be_decoded() -> None:
    session = SessionStore()
    assert session.decode(session.encode({"tea": "Assam"})) == {"tea": "Assam"}
    assert session.decode("rubbish") == {}


# What Django promises of every engine: the life of a session.


@pytest.mark.also_sealed
def test_a_saved_session_exists_and_keeps_its_data(calling: Calling) -> None:
    session = SessionStore()
    calling(session).set("tea", "Assam")
    calling(session).save()
    assert session["tea"] == "Assam"
    assert calling(SessionStore()).exists(session.session_key)
    assert data_of(session.session_key) == {"tea": "Assam"}


def test_created_is_saved_even_if_empty(calling: Calling) -> None:
    session = SessionStore()
    calling(session).create()
    assert session.modified
    assert SessionStore().exists(session.session_key)


def test_save_must_create_makes_another_session(calling: Calling) -> None:
    session = saved(tea="Assam")
    before = session.session_key
    calling(session).save(must_create=True)
    assert session.session_key != before
    assert data_of(before) == data_of(session.session_key) == {"tea": "Assam"}


def test_created_anew_nothing_is_taken_over(calling: Calling) -> None:
    session = SessionStore(saved(tea="Assam").session_key)
    calling(session).create()
    assert data_of(session.session_key) == {}


def test_a_deleted_session_does_not_exist(calling: Calling) -> None:
    session = saved(tea="Assam")
    calling(session).delete()
    assert not calling(session).exists(session.session_key)
    other = saved(tea="Assam")
    calling(session).delete(other.session_key)
    assert not SessionStore().exists(other.session_key)


def test_flush_ends_the_session_and_forgets_its_key(calling: Calling) -> None:
    session = saved(tea="Assam")
    before = session.session_key
    calling(session).flush()
    assert session.session_key is None
    assert flags(session) == (True, True)
    assert not SessionStore().exists(before)
    session["tea"] = "Oolong"
    session.save()
    assert session.session_key != before
    assert data_of(session.session_key) == {"tea": "Oolong"}


@pytest.mark.also_sealed
@pytest.mark.parametrize("data", [{"tea": "Assam", "cart": [1]}, {}])
@pytest.mark.parametrize("loaded", [True, False])
def test_cycle_key_moves_the_data_under_a_new_key(
    calling: Calling, data: dict[str, Any], loaded: bool
) -> None:
    session = saved(**data)
    before = session.session_key
    if not loaded:
        session = SessionStore(before)
    calling(session).cycle_key()
    assert not SessionStore().exists(before)
    assert session.session_key != before
    assert session.modified
    assert dict(session.items()) == data_of(session.session_key) == data


def test_cycle_key_of_a_new_session_saves_it(calling: Calling) -> None:
    session = SessionStore()
    calling(session).cycle_key()
    assert SessionStore().exists(session.session_key)


def test_a_key_cannot_be_chosen() -> None:
    with pytest.raises(AttributeError):
        SessionStore().session_key = NOBODYS  # type: ignore[misc]


@pytest.mark.parametrize(
    "key", ["", "1", "1234567", "12345678", NOBODYS, "n" * 42 + "é", "x" * 999]
)
def test_a_key_that_is_not_live_is_never_adopted(
    calling: Calling, key: str, stored: Collection[Any]
) -> None:
    session = SessionStore(key)
    assert calling(session).get("tea") is None
    assert session.session_key is None
    assert not calling(session).exists(key)
    calling(session).delete(key)
    assert stored.count_documents({}) == 0
    session = SessionStore(key)
    calling(session).save()
    assert session.session_key not in (None, key)


def test_a_malformed_key_costs_no_command() -> None:
    with RECORDER.request() as commands:
        assert not SessionStore().exists("12345678")
        assert data_of("12345678") == {}
        SessionStore("12345678").delete()
    assert commands == []


def test_the_stored_id_is_no_key() -> None:
    session_id = saved(tea="Assam").id
    assert data_of(session_id) == {}


def test_a_deleted_session_is_not_revived(calling: Calling) -> None:
    session = saved(tea="Assam")
    calling(SessionStore(session.session_key)).delete()
    calling(session).set("tea", "Oolong")
    with pytest.raises(UpdateError):
        calling(session).save()
    assert calling(session).load() == {}


def leave_expired(stored: Collection[Any]) -> None:
    """Keep the server from deleting what has expired before the test looks for it."""
    mongo_store().ensure_indexes()
    stored.drop_index("expires_at_1")


@pytest.mark.parametrize("expired", [-10, -timedelta(seconds=10), "past"])
def test_a_session_that_expires_in_the_past_is_gone_at_once(
    calling: Calling, expired: Any, stored: Collection[Any]
) -> None:
    session = saved(tea="Assam")
    leave_expired(stored)
    past = django_timezone.now() - timedelta(days=1)
    calling(session).set_expiry(past if expired == "past" else expired)
    calling(session).save()
    assert data_of(session.session_key) == {}
    assert stored.count_documents({}) == 1
    saved(tea="Oolong")
    calling(SessionStore()).clear_expired()
    assert [document["data"] for document in stored.find()] == [{"tea": "Oolong"}]


def test_clearsessions_deletes_what_has_expired(stored: Collection[Any]) -> None:
    saved(tea="Assam")
    leave_expired(stored)
    saved(tea="Oolong", _session_expiry=-1)
    assert stored.count_documents({}) == 2
    call_command("clearsessions")
    assert [document["data"] for document in stored.find()] == [{"tea": "Assam"}]


# What Django promises of every engine: when a session expires.

NOW = datetime(2030, 1, 2, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("expiry", "age"),
    [
        (None, FORTNIGHT),
        (0, FORTNIGHT),
        (10, 10),
        (NOW + timedelta(seconds=10), 10),
    ],
)
def test_the_age_is_what_was_set(calling: Calling, expiry: Any, age: int) -> None:
    session = SessionStore()
    calling(session).set_expiry(5)
    calling(session).set_expiry(expiry)
    assert calling(session).get_expiry_age(modification=NOW) == age
    date = calling(session).get_expiry_date(modification=NOW)
    assert date == NOW + timedelta(seconds=age)
    with override_settings(SESSION_EXPIRE_AT_BROWSER_CLOSE=False):
        assert calling(session).get_expire_at_browser_close() == (expiry == 0)
    with override_settings(SESSION_EXPIRE_AT_BROWSER_CLOSE=True):
        assert calling(session).get_expire_at_browser_close() == (expiry in (None, 0))


def test_a_timedelta_becomes_a_moment(calling: Calling) -> None:
    session = SessionStore()
    calling(session).set_expiry(timedelta(days=1))
    left = session.get_expiry_date() - django_timezone.now()
    assert timedelta(hours=23) < left <= timedelta(days=1)


@pytest.fixture
def _in_chicago(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/Chicago")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_in_chicago")
@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize("days", [100, 1])
def test_what_is_stored_expires_when_django_says(
    use_tz: bool, days: int, stored: Collection[Any]
) -> None:
    with override_settings(USE_TZ=use_tz):
        session = saved(tea="Assam")
        expiry = django_timezone.now().replace(microsecond=0) + timedelta(days=days)
        session.set_expiry(expiry)
        session.save()
    assert stored.find_one()["expires_at"] == expiry.astimezone(timezone.utc)
    session.set_expiry(None)
    with override_settings(SESSION_COOKIE_AGE=3600):
        before = datetime.now(timezone.utc)
        session.save()
    # Within what a save may take on a machine that does other things as well.
    left = stored.find_one()["expires_at"] - before
    assert timedelta(minutes=59) < left < timedelta(minutes=61)


def test_a_shorter_age_ends_what_is_older_at_once(
    stored: Collection[Any], calling: Calling
) -> None:
    plain = saved(tea="Assam")
    said = saved(tea="Oolong", _session_expiry=30 * 24 * 3600)
    closing = saved(tea="Sencha", _session_expiry=0)
    two_hours_ago = datetime.now(timezone.utc) - timedelta(hours=2)
    stored.update_many({}, {"$set": {"seen_at": two_hours_ago}})
    with override_settings(SESSION_COOKIE_AGE=3600):
        assert not calling(SessionStore()).exists(plain.session_key)
        assert data_of(plain.session_key) == data_of(closing.session_key) == {}
        assert data_of(said.session_key)["tea"] == "Oolong", "its own moment holds"
        assert [info.data["tea"] for info in mongo_store().sessions()] == ["Oolong"]
    assert data_of(plain.session_key) == {"tea": "Assam"}


def test_the_age_of_a_subclass_counts(stored: Collection[Any]) -> None:
    class Brief(SessionStore):
        def get_session_cookie_age(self) -> int:
            return 60

    session = Brief()
    session["tea"] = "Assam"
    session.save()
    document = stored.find_one()
    assert document["expires_at"] - document["seen_at"] <= timedelta(seconds=60)
    stored.update_one({}, {"$set": {"seen_at": datetime.now(timezone.utc) - timedelta(hours=1)}})
    assert not Brief().exists(session.session_key)


def test_the_age_of_a_subclass_may_go_by_the_data_and_by_its_attributes() -> None:
    class Either(SessionStore):
        def __init__(self, session_key: str | None = None) -> None:
            super().__init__(session_key)
            self.age = 7200

        def get_session_cookie_age(self) -> int:
            return 600 if self.get("is_staff") else self.age

    for is_staff, age in (True, 600), (False, 7200):
        session = Either()
        session["is_staff"] = is_staff
        session.save()
        again = Either(session.session_key)
        assert (again["is_staff"], again.get_expiry_age()) == (is_staff, age)


def test_an_age_by_the_data_does_not_end_a_session_sooner(stored: Collection[Any]) -> None:
    class Lasting(SessionStore):
        def get_session_cookie_age(self) -> int:
            return 7200 if self.get("stays") else 60

    session = Lasting()
    session["stays"] = True
    session.save()
    stored.update_one({}, {"$set": {"seen_at": datetime.now(timezone.utc) - timedelta(hours=1)}})
    assert Lasting(session.session_key)["stays"]


def test_a_load_by_hand_leaves_the_data_in_hand(calling: Calling) -> None:
    session = SessionStore(saved(tea="Assam").session_key)
    session["milk"] = True
    assert calling(session).load() == {"tea": "Assam"}
    assert dict(session.items()) == {"tea": "Assam", "milk": True}


def test_an_age_that_cannot_be_told_makes_nobody_anonymous() -> None:
    class Broken(SessionStore):
        def get_session_cookie_age(self) -> int:
            raise ZeroDivisionError

    session = Broken(saved(tea="Assam").session_key)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            session.get("tea")


def test_what_a_subclass_says_of_the_expiry_holds(stored: Collection[Any]) -> None:
    class Lasting(SessionStore):
        def get_expiry_date(self, **kwargs: Any) -> datetime:
            return django_timezone.now() + timedelta(days=90)

    session = Lasting()
    session["tea"] = "Assam"
    session.save()
    stored.update_one({}, {"$set": {"seen_at": datetime.now(timezone.utc) - timedelta(days=60)}})
    assert Lasting().exists(session.session_key)


# What is stored.


def test_it_is_stored_as_every_session_of_ours(
    settings: dict[str, Any], stored: Collection[Any]
) -> None:
    session = saved(tea="Assam", _auth_user_id="7")
    document = stored.find_one()
    moments = {"created_at", "seen_at", "expires_at"}
    assert set(document) == {"_id", "v", "data", "owner", "remember"} | moments
    assert document["_id"] == session.id
    assert document["data"] == {"tea": "Assam", "_auth_user_id": "7"}
    assert session.session_key not in str(document)
    ours = MongoStore(settings)
    found = ours.retrieve(session.session_key or "")
    ours.close()
    assert found == {"tea": "Assam", "_auth_user_id": "7"}
    assert found.owner == "7"


def test_a_session_of_another_application_can_be_used() -> None:
    theirs = mongo_store().create({"tea": "Assam"})
    session = SessionStore(theirs.token)
    assert session["tea"] == "Assam"
    session["tea"] = "Oolong"
    session.save()
    assert mongo_store().retrieve(theirs.token or "") == {"tea": "Oolong"}


@pytest.mark.parametrize("has_read", [True, False])
def test_a_deep_copy_is_another_object_for_the_same_session(*, has_read: bool) -> None:
    session = SessionStore(saved(cart=["tea"]).session_key)
    if has_read:
        assert session["cart"] == ["tea"]
    copied = copy.deepcopy(session)
    copied["cart"].append("milk")
    assert session["cart"] == ["tea"]
    copied.save()
    assert copied.session_key == session.session_key
    assert data_of(session.session_key) == {"cart": ["tea", "milk"]}


def test_only_the_difference_is_written() -> None:
    session = SessionStore(saved(tea="Assam", milk=True, sugar=3).session_key)
    session["tea"] = "Oolong"
    del session["milk"]
    with RECORDER.request() as commands:
        session.save()
    (update,) = (event.command["updates"][0]["u"] for event in commands)
    assert set(update["$set"]) == {"data.tea", "expires_at"}
    assert set(update["$unset"]) == {"data.milk"}


def test_a_change_within_a_value_is_one() -> None:
    session = SessionStore(saved(cart={"tea": ["Assam"]}).session_key)
    session["cart"]["tea"].append("Oolong")
    assert session.modified
    session.save()
    assert session.modified, "it says what was done, also after the save"
    assert not SessionStore(session.session_key).modified
    assert data_of(session.session_key) == {"cart": {"tea": ["Assam", "Oolong"]}}
    session["cart"]["tea"].pop()
    session.save()
    assert data_of(session.session_key) == {"cart": {"tea": ["Assam"]}}


@pytest.mark.parametrize("value", [{1, 2}, {7: "tea"}, object()])
def test_what_bson_does_not_hold_is_refused_and_changes_nothing(value: object) -> None:
    key = saved(tea="Assam").session_key
    session = SessionStore(key)
    session["tea"] = "Oolong"
    session["cart"] = value
    with pytest.raises(SessionDataError, match="cart"):
        session.save()
    assert data_of(key) == {"tea": "Assam"}


# Requests.


@pytest.mark.also_sealed
@pytest.mark.parametrize(
    ("view", "commands"),
    [
        (lambda request: "untouched", []),
        (reads, ["find"]),
        (puts(milk=True), ["find", "update"]),
        (puts(tea="Assam"), ["find", "update"]),
        (lambda request: request.session["cart"].append(1), ["find", "update"]),
        (
            lambda request: request.session.cycle_key(),
            ["find", "findAndModify", "insert", "update"],
        ),
        (lambda request: request.session.flush(), ["delete"]),
    ],
)
def test_a_request_with_a_live_session(browser: Browser, view: View, commands: list[str]) -> None:
    visit(browser, puts(tea="Assam", cart=[]))
    assert visit(browser, view).commands == commands


def test_a_request_without_a_session(browser: Browser, stored: Collection[Any]) -> None:
    response = visit(browser, lambda request: "untouched")
    assert (response.commands, response.header("Vary"), response.cookie) == ([], None, None)
    response = visit(browser, reads)
    assert (response.commands, response.header("Vary"), response.cookie) == ([], "Cookie", None)
    response = visit(browser, lambda request: request.session.flush())
    assert (response.commands, response.header("Vary"), response.cookie) == ([], "Cookie", None)
    response = visit(browser, puts(tea="Assam"))
    assert response.commands == ["insert"]
    assert browser.token == response.token
    assert stored.count_documents({}) == 1


def test_the_cookie_is_djangos_own(browser: Browser) -> None:
    with override_settings(
        SESSION_COOKIE_NAME="tea",
        SESSION_COOKIE_SECURE=True,
        SESSION_COOKIE_SAMESITE="Strict",
        SESSION_COOKIE_PATH="/shop",
        SESSION_COOKIE_AGE=3600,
    ):
        response = visit(browser, puts(milk=True))
    cookie = SimpleCookie(response.cookie or "")["tea"]
    assert data_of(cookie.value) == {"milk": True}
    assert (cookie["secure"], cookie["httponly"], cookie["samesite"]) == (True, True, "Strict")
    assert (cookie["path"], cookie["max-age"]) == ("/shop", "3600")


def test_a_flush_expires_the_cookie(browser: Browser, stored: Collection[Any]) -> None:
    visit(browser, puts(tea="Assam"))
    response = visit(browser, lambda request: request.session.flush())
    assert "Max-Age=0" in (response.cookie or "")
    assert response.header("Vary") == "Cookie"
    assert stored.count_documents({}) == 0


def test_an_emptied_session_stays(browser: Browser) -> None:
    visit(browser, puts(tea="Assam"))
    before = browser.token
    visit(browser, lambda request: request.session.pop("tea"))
    assert browser.token == before
    assert SessionStore().exists(before)


def moving(name: str, get_response: Any) -> Any:
    """Return a middleware of docs/moving.md."""
    page = (Path(__file__).parents[2] / "docs" / "moving.md").read_text()
    start = page.index(f"def {name}")
    recipe: dict[str, Any] = {"OldSession": db.SessionStore, "OLD_NAME": "old"}
    exec(page[start : page.index("\n\n\n", start)], recipe)
    return recipe[name](get_response)


take_over = partial(moving, "take_over_the_old_session")
end_old = partial(moving, "end_the_old_session")


@pytest.mark.parametrize("cause", ["view", "MongoDB"])
def test_an_old_session_is_taken_over_again_if_the_first_request_failed(
    cause: str, settings: dict[str, Any]
) -> None:
    old = db.SessionStore()
    old["cart"] = ["tea"]
    old.save()
    session = "django.contrib.sessions.middleware.SessionMiddleware"
    around = [f"{__name__}.end_old", session, f"{__name__}.take_over"]
    store, status = (settings, 503) if cause == "view" else (DOWN, 200)
    with override_settings(MIDDLEWARE=around):
        browser = Browser(WSGIHandler(), f"old={old.session_key}")
        with override_settings(MONGOSESSION=store):
            first = visit(browser, lambda _: HttpResponse(status=status))
        assert first.status.startswith("503")
        assert first.cookie is None
        assert old.exists(old.session_key)
        response = visit(browser, reads)
    assert response.body == b"[('cart', ['tea'])]"
    assert response.commands == ["insert"]
    assert [info.data for info in mongo_store().sessions()] == [{"cart": ["tea"]}]
    assert not old.exists(old.session_key)


def test_a_view_that_failed_gives_its_own_answer_whatever_it_has_set(browser: Browser) -> None:
    visit(browser, puts(cart=[]))

    def fails(request: Any) -> HttpResponse:
        request.session["cart"].append({1, 2})
        return HttpResponse(request.session.modified, status=503)

    response = visit(browser, fails)
    assert (response.status, response.body) == ("503 Service Unavailable", b"True")
    assert data_of(browser.token) == {"cart": []}


@pytest.mark.parametrize("status", [500, 503])
def test_a_failed_request_saves_nothing(browser: Browser, status: int) -> None:
    visit(browser, puts(tea="Assam", cart=[]))

    def fails(request: Any) -> HttpResponse:
        request.session["tea"] = "Oolong"
        request.session["cart"].append(1)
        return HttpResponse(status=status)

    assert visit(browser, fails).cookie is None
    assert data_of(browser.token) == {"tea": "Assam", "cart": []}


def test_every_request_saves_if_django_is_told_so(
    browser: Browser, stored: Collection[Any]
) -> None:
    visit(browser, puts(tea="Assam"))
    stored.update_one({}, {"$set": {"expires_at": datetime.now(timezone.utc) + timedelta(1)}})
    visit(browser, reads)
    assert stored.find_one()["expires_at"] < datetime.now(timezone.utc) + timedelta(2)
    with override_settings(SESSION_SAVE_EVERY_REQUEST=True):
        response = visit(browser, lambda request: "untouched")
    assert response.token == browser.token
    assert stored.find_one()["expires_at"] > datetime.now(timezone.utc) + timedelta(13)


# Overlapping requests.


@pytest.mark.also_sealed
def test_changes_of_different_keys_survive(browser: Browser) -> None:
    visit(browser, puts(tea="Assam", cart=[]))
    both_have_read, threads = Barrier(2, timeout=20), []
    for key in "milk", "sugar":

        def changes(request: Any, key: str = key) -> None:
            request.session.get(key)
            both_have_read.wait()
            request.session[key] = True

        other = Browser(browser.app, browser.cookie)
        threads.append(Thread(target=visit, args=(other, changes)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert data_of(browser.token) == {"tea": "Assam", "cart": [], "milk": True, "sugar": True}


@pytest.mark.also_sealed
def test_an_overlapping_change_survives_a_cycled_key(calling: Calling) -> None:
    session = saved(tea="Assam")
    other = SessionStore(session.session_key)
    other["milk"] = True
    other.save()
    calling(session).cycle_key()
    session["sugar"] = 3
    session.save()
    assert data_of(session.session_key) == {"tea": "Assam", "milk": True, "sugar": 3}


def test_a_session_that_was_ended_meanwhile_stays_ended(
    browser: Browser, stored: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    visit(browser, puts(tea="Assam"))
    other = Browser(browser.app, browser.cookie)

    def is_late(request: Any) -> None:
        request.session["tea"] = "Oolong"
        visit(other, lambda request: request.session.flush())

    response = visit(browser, is_late)
    assert (response.status, response.cookie) == ("400 Bad Request", None)
    assert stored.count_documents({}) == 0


@pytest.mark.parametrize("view", [reads, puts(tea="Oolong"), lambda r: r.session.cycle_key()])
def test_an_old_key_reads_as_empty_and_takes_nothing_from_the_new_one(
    browser: Browser, view: View
) -> None:
    visit(browser, puts(tea="Assam"))
    late = Browser(browser.app, browser.cookie)
    visit(browser, lambda request: request.session.cycle_key())
    response = visit(late, view)
    assert (response.status, response.cookie) == ("200 OK", None)
    assert data_of(late.token) == {}
    assert data_of(browser.token) == {"tea": "Assam"}
    with pytest.raises(UpdateError):
        SessionStore(late.token).save()


def test_after_an_old_key_there_can_be_a_new_session(browser: Browser) -> None:
    visit(browser, puts(tea="Assam"))
    late = Browser(browser.app, browser.cookie)
    visit(browser, lambda request: request.session.cycle_key())

    def starts_anew(request: Any) -> None:
        request.session.get("tea")
        request.session.flush()
        request.session["tea"] = "Oolong"

    visit(late, starts_anew)
    assert data_of(late.token) == {"tea": "Oolong"}


# django.contrib.auth and django.contrib.messages.


def logs_in(user: Any) -> View:
    return lambda request: auth.login(request, user)


def whoami(request: Any) -> object:
    return request.user


@pytest.mark.also_sealed
def test_a_login_keeps_the_data_under_a_new_key(browser: Browser, users: list[Any]) -> None:
    visit(browser, puts(tea="Assam"))
    before = browser.token
    response = visit(browser, logs_in(users[0]))
    assert response.token == browser.token != before
    assert not SessionStore().exists(before)
    assert data_of(browser.token)["tea"] == "Assam"
    assert visit(browser, whoami).body == b"alice"


@pytest.mark.parametrize("user_id", ["7", 7])
def test_who_is_logged_in_owns_the_session(calling: Calling, user_id: Any) -> None:
    session = saved(tea="Assam")
    calling(session).set("_auth_user_id", user_id)
    (info,) = mongo_store().sessions("7")
    assert (info.id, info.data["_auth_user_id"]) == (session.id, user_id)
    assert data_of(session.session_key) == {"tea": "Assam", "_auth_user_id": user_id}


@pytest.mark.parametrize("visited_before", [True, False])
def test_those_who_are_told_of_a_login_get_its_key(
    browser: Browser, users: list[Any], visited_before: bool
) -> None:
    keys = []

    def told(request: Any, **_: object) -> None:
        keys.append(request.session.session_key)

    if visited_before:
        visit(browser, puts(tea="Assam"))
    user_logged_in.connect(told)
    try:
        visit(browser, logs_in(users[0]))
    finally:
        user_logged_in.disconnect(told)
    assert keys == [browser.token]


def test_the_sessions_of_a_user_are_listed_and_ended(browser: Browser, users: list[Any]) -> None:
    phone, (alice, bob) = Browser(browser.app), users
    bobs = Browser(browser.app)
    for one, user in (browser, alice), (phone, alice), (bobs, bob):
        visit(one, logs_in(user))
    assert len(list(mongo_store().sessions(str(alice.pk)))) == 2

    here = SessionStore(browser.token)
    assert mongo_store().revoke_all(str(here.owner), keep=here.id) == 1
    assert [visit(one, whoami).body for one in (browser, phone, bobs)] == [
        b"alice",
        b"AnonymousUser",
        b"bob",
    ]


@pytest.mark.also_sealed
def test_data_of_another_user_is_dropped(browser: Browser, users: list[Any]) -> None:
    visit(browser, logs_in(users[0]))
    visit(browser, puts(secret="of Alice"))
    alices = browser.token
    visit(browser, logs_in(users[1]))
    assert "secret" not in data_of(browser.token)
    assert not SessionStore().exists(alices)
    assert [info.owner for info in mongo_store().sessions()] == [str(users[1].pk)]


def test_data_of_another_user_is_dropped_by_a_login_by_hand(calling: Calling) -> None:
    backend = {auth.BACKEND_SESSION_KEY: "django.contrib.auth.backends.ModelBackend"}
    alices = saved(_auth_user_id="1", address="Alice's", **backend)
    session = SessionStore(alices.session_key)
    session.update({"tea": "Assam"} | backend)
    calling(session).set("_auth_user_id", "2")
    session.save()
    assert data_of(session.session_key) == {"tea": "Assam", "_auth_user_id": "2"} | backend
    assert not SessionStore().exists(alices.session_key)


def test_a_logout_ends_the_session(browser: Browser, users: list[Any]) -> None:
    visit(browser, logs_in(users[0]))
    before = browser.token

    def logs_out(request: Any) -> object:
        auth.logout(request)
        messages.success(request, "Come again!")
        return request.user

    assert visit(browser, logs_out).body == b"AnonymousUser"
    assert not SessionStore().exists(before)
    assert set(data_of(browser.token)) == {"_messages"}


@pytest.mark.also_sealed
def test_a_changed_password_logs_out_everywhere_else(
    browser: Browser, users: list[Any], stored: Collection[Any]
) -> None:
    alice, phone = users[0], Browser(browser.app)
    for one in browser, phone:
        visit(one, logs_in(alice))

    def changes(request: Any) -> None:
        assert request.user == alice
        alice.set_password("another")
        alice.save()
        auth.update_session_auth_hash(request, alice)

    visit(browser, changes)
    assert [visit(one, whoami).body for one in (browser, phone)] == [b"alice", b"AnonymousUser"]
    assert stored.count_documents({"data": {"$exists": True}}) == 1


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("meets", ["before", "between"])
def test_a_double_click_on_log_in_leaves_nobody_outside(
    looks: bool, meets: str, browser: Browser, users: list[Any]
) -> None:
    visit(browser, puts(tea="Assam", milk=True))
    other = Browser(browser.app, browser.cookie)

    def first(request: Any) -> None:
        auth.login(request, users[0])
        request.session["tea"] = "Oolong"

    def second(request: Any) -> None:
        if looks:
            request.session.get("tea")
        if meets == "between":
            request.session["sugar"] = 1
            visit(other, first)
        auth.login(request, users[0])

    if meets == "before":
        visit(other, first)
    response = visit(browser, second)
    assert (response.status, response.token) == ("200 OK", browser.token)
    assert browser.token != other.token
    for one in browser, other:
        assert visit(one, whoami).body == b"alice"
        assert data_of(one.token)["tea"] == "Oolong", "the one's cart is the other's"
    assert data_of(browser.token).get("sugar") == (1 if meets == "between" else None)
    assert len(list(mongo_store().sessions(str(users[0].pk)))) == 2


def test_a_login_that_meets_a_logout_stays_out(browser: Browser, users: list[Any]) -> None:
    visit(browser, puts(tea="Assam"))
    other = Browser(browser.app, browser.cookie)

    def logs_in_late(request: Any) -> None:
        request.session.get("tea")
        visit(other, lambda request: request.session.flush())
        auth.login(request, users[0])

    response = visit(browser, logs_in_late)
    assert (response.status, response.cookie) == ("200 OK", None)
    assert not list(mongo_store().sessions())


@pytest.mark.also_sealed
@pytest.mark.parametrize("ends", [auth.logout, lambda request: request.session.flush()])
def test_a_logout_follows_a_cycled_key(
    ends: View, browser: Browser, users: list[Any], stored: Collection[Any]
) -> None:
    visit(browser, logs_in(users[0]))
    other = Browser(browser.app, browser.cookie)
    visit(browser, lambda request: request.session.cycle_key())
    assert "Max-Age=0" in str(visit(other, ends).cookie)
    assert visit(browser, whoami).body == b"AnonymousUser"
    assert not stored.count_documents({"data": {"$exists": True}})


@pytest.mark.also_sealed
@pytest.mark.parametrize("own", [True, False])
def test_a_key_that_was_cycled_away_is_deleted_without_the_session_that_replaced_it(
    calling: Calling, own: bool
) -> None:
    """So that what Django does in its own `cycle_key` can be done by hand, at any later time."""
    session = saved(tea="Assam")
    before = session.session_key
    session.cycle_key()
    if own:
        calling(session).delete(before)
    else:
        calling(SessionStore(before)).delete()
    session["milk"] = True
    session.save()
    assert data_of(session.session_key) == {"tea": "Assam", "milk": True}


def test_a_session_that_is_cycled_after_it_was_read_is_deleted_under_its_new_key() -> None:
    session = saved(tea="Assam")
    other = SessionStore(session.session_key)
    other.cycle_key()
    session.delete()
    assert data_of(other.session_key) == {}


@pytest.mark.parametrize("calls", ["flush", "aflush"])
def test_a_logout_by_the_token_from_before_a_login_leaves_the_login_and_its_cookie(
    calls: str, browser: Browser, users: list[Any]
) -> None:
    visit(browser, puts(tea="Assam"))
    late = Browser(browser.app, browser.cookie)
    visit(browser, logs_in(users[0]))

    def ends(request: Any) -> object:
        if calls == "flush":
            request.session.flush()
        else:
            asyncio.run(request.session.aflush())
        return dict(request.session.items())

    response = visit(late, ends)
    assert (response.status, response.body, response.cookie) == ("200 OK", b"{}", None)
    assert visit(browser, whoami).body == b"alice"


def test_a_page_that_saves_sets_no_cookie_over_that_of_a_login(
    browser: Browser, users: list[Any]
) -> None:
    visit(browser, puts(tea="Assam"))
    other = Browser(browser.app, browser.cookie)

    def is_slow(request: Any) -> None:
        request.session.get("tea")
        visit(other, logs_in(users[0]))

    with override_settings(SESSION_SAVE_EVERY_REQUEST=True):
        response = visit(browser, is_slow)
    assert (response.status, response.cookie) == ("400 Bad Request", None)


def test_a_login_has_the_label_that_was_given(browser: Browser, users: list[Any]) -> None:
    def with_label(request: Any) -> object:
        request.session.label = "Firefox"
        auth.login(request, users[0])
        return request.session.label

    assert visit(browser, with_label).body == b"Firefox"
    shown = visit(browser, lambda request: request.session.get("tea") or request.session.label)
    assert shown.body == b"Firefox"
    assert [info.label for info in mongo_store().sessions(str(users[0].pk))] == ["Firefox"]


def test_the_label_of_a_login_is_not_that_of_the_next_user(
    browser: Browser, users: list[Any]
) -> None:
    def with_label(request: Any) -> None:
        request.session.label = "Alice's iPad"
        auth.login(request, users[0])

    visit(browser, with_label)
    visit(browser, logs_in(users[1]))
    assert [info.label for info in mongo_store().sessions(str(users[1].pk))] == [None]


@pytest.mark.parametrize(
    "leaves",
    [
        lambda _: auth.logout,
        lambda them: logs_in(them[1]),
        lambda _: lambda request: request.user.pk and request.session.delete(),
    ],
)
def test_the_audit_log_names_the_owner_of_a_session_that_ends(
    browser: Browser, users: list[Any], caplog: pytest.LogCaptureFixture, leaves: Any
) -> None:
    visit(browser, logs_in(users[0]))
    caplog.set_level(logging.INFO, "mongosession_wsgi.audit")
    visit(browser, leaves(users))
    owners = {one.session_event: one.session_owner for one in caplog.records}  # type: ignore[attr-defined]
    assert owners["logout"] == str(users[0].pk)


def forgets(request: Any) -> None:
    """Log out by hand."""
    assert request.user.is_authenticated
    del request.session[auth.SESSION_KEY]


def forgets_everything(request: Any) -> None:
    for key in list(request.session.keys()):
        del request.session[key]


CLEARS: list[View] = [lambda request: request.session.clear(), forgets_everything]


@pytest.mark.parametrize("acts", [*CLEARS, forgets])
def test_a_logout_by_hand_ends_the_login(browser: Browser, users: list[Any], acts: View) -> None:
    visit(browser, logs_in(users[0]))
    visit(browser, acts)
    assert not list(mongo_store().sessions(str(users[0].pk)))


@pytest.mark.parametrize("acts", CLEARS)
def test_a_session_that_is_cleared_is_an_empty_one_under_a_new_key(
    browser: Browser, users: list[Any], acts: View
) -> None:
    visit(browser, logs_in(users[0]))
    before = browser.token
    response = visit(browser, acts)
    assert response.token == browser.token != before
    assert SessionStore().exists(browser.token)
    assert data_of(browser.token) == {}


@pytest.mark.parametrize(
    "acts", [puts(milk=True), lambda r: r.session.pop("tea"), lambda r: r.session.cycle_key()]
)
def test_who_is_logged_in_by_another_application_stays_so(browser: Browser, acts: View) -> None:
    theirs = mongo_store().open(None)
    theirs.update(tea="Assam")
    theirs.login("alice", label="Firefox")
    mongo_store().flush(theirs)
    browser.cookie = f"sessionid={theirs.token}"
    visit(browser, acts)
    (info,) = mongo_store().sessions("alice")
    assert (info.label, info.id) == ("Firefox", SessionStore(browser.token).id)


def test_a_clear_by_the_token_from_before_a_rotation_changes_nothing(
    browser: Browser, users: list[Any]
) -> None:
    visit(browser, logs_in(users[0]))
    before = Browser(browser.app, browser.cookie)
    visit(browser, lambda request: request.session.cycle_key())

    def clears(request: Any) -> None:
        request.session.get("tea")
        request.session.clear()

    assert visit(before, clears).status == "200 OK"
    assert visit(browser, whoami).body == b"alice"


def test_neither_clear_nor_the_label_does_any_input_or_output(browser: Browser) -> None:
    """Django has no asynchronous form of `clear`, because it needs none."""
    visit(browser, puts(tea="Assam"))
    with RECORDER.request() as commands:
        session = SessionStore(browser.token)
        session.clear()
        assert session.label is None
    assert not commands


def test_a_new_key_keeps_the_label(browser: Browser, users: list[Any]) -> None:
    def with_label(request: Any) -> None:
        request.session.label = "Firefox"
        auth.login(request, users[0])

    visit(browser, with_label)
    visit(browser, lambda request: request.session.get("tea") or request.session.create())
    labels = [info.label for info in mongo_store().sessions(str(users[0].pk))]
    assert labels == ["Firefox", "Firefox"]


@pytest.mark.parametrize("since", [{}, {"tea": "Assam"}])
def test_a_session_that_is_cleared_before_it_is_read_is_empty(
    browser: Browser, users: list[Any], since: dict[str, Any]
) -> None:
    visit(browser, logs_in(users[0]))
    before = Browser(browser.app, browser.cookie)

    def clears(request: Any) -> None:
        request.session.clear()
        request.session.update(since)

    visit(browser, clears)
    assert visit(before, whoami).body == b"AnonymousUser"
    contents = visit(browser, lambda request: sorted(request.session.keys())).body
    assert contents == str(sorted(since)).encode()


@pytest.mark.parametrize("every", [True, False])
def test_a_session_that_was_deleted_stays_so(
    browser: Browser, users: list[Any], *, every: bool
) -> None:
    visit(browser, logs_in(users[0]))

    def deletes(request: Any) -> None:
        assert request.user.is_authenticated
        request.session.delete()
        if not every:
            request.session["flash"] = "bye"

    with override_settings(SESSION_SAVE_EVERY_REQUEST=every):
        visit(browser, deletes)
    assert visit(browser, whoami).body == b"AnonymousUser"
    assert not list(mongo_store().sessions(str(users[0].pk)))


def test_a_login_after_a_delete_is_one(browser: Browser, users: list[Any]) -> None:
    visit(browser, puts(tea="Assam"))

    def deletes(request: Any) -> None:
        request.session.get("tea")
        request.session.delete()
        auth.login(request, users[0])

    visit(browser, deletes)
    assert visit(browser, whoami).body == b"alice"


@pytest.mark.parametrize("acts", ["login", "logout", "begin"])
def test_a_failure_that_the_view_caught_is_not_tried_again(
    browser: Browser, users: list[Any], monkeypatch: pytest.MonkeyPatch, acts: str
) -> None:
    if acts != "begin":
        visit(browser, puts(tea="Assam"))
    view = {
        "login": logs_in(users[0]),
        "logout": auth.logout,
        "begin": lambda request: request.session.update({"a": 1}) or request.session.save(),
    }[acts]
    tries: list[Any] = []

    def down(session: Any) -> None:
        tries.append(session)
        raise StoreError("is down")

    def catches(request: Any) -> str:
        assert acts == "begin" or request.session["tea"] == "Assam"
        with pytest.raises(StoreError):
            view(request)
        return "sorry"

    monkeypatch.setattr(mongo_store(), "flush", down)
    response = visit(browser, catches)
    assert (response.status, response.body, len(tries)) == ("200 OK", b"sorry", 1)


def test_who_logs_in_again_has_a_new_key_and_a_new_moment(
    browser: Browser, users: list[Any], stored: Collection[Any]
) -> None:
    """Django changes no key where the same user is logged in; ASVS 7.2.4 asks for a new one."""

    def with_label(request: Any) -> None:
        request.session.update({"tea": "Assam"})
        request.session.label = "Firefox"
        auth.login(request, users[0])

    visit(browser, with_label)
    old, before = browser.token, browser.cookie
    an_hour_ago = datetime.now(timezone.utc) - timedelta(hours=1)
    stored.update_one({"owner": str(users[0].pk)}, {"$set": {"created_at": an_hour_ago}})
    moments: list[datetime] = []
    visit(browser, lambda request: moments.append(request.session.created_at))

    def again(request: Any) -> None:
        auth.login(request, users[0])
        moments.append(request.session.created_at)

    visit(browser, again)
    earlier, later = moments
    assert abs(earlier - an_hour_ago) < timedelta(seconds=1)
    assert later > an_hour_ago + timedelta(minutes=59)
    assert browser.token != old
    (info,) = mongo_store().sessions(str(users[0].pk))
    assert (info.data["tea"], info.label) == ("Assam", "Firefox")
    assert abs(info.created_at - later) < timedelta(seconds=1)
    assert visit(browser, whoami).body == b"alice"
    assert visit(Browser(browser.app, before), whoami).body == b"AnonymousUser"


def test_two_logins_within_a_minute_are_one(browser: Browser, users: list[Any]) -> None:
    """Django's own tests ask for it: `test_session_key_flushed_on_login_after_password_change`."""
    visit(browser, logs_in(users[0]))
    before = browser.token
    visit(browser, logs_in(users[0]))
    assert browser.token == before
    visit(browser, logs_in(users[1]))
    assert browser.token != before


def test_a_password_changed_in_a_session_is_no_login(browser: Browser, users: list[Any]) -> None:
    visit(browser, logs_in(users[0]))
    (before,) = mongo_store().sessions(str(users[0].pk))

    def changes_it(request: Any) -> None:
        users[0].set_password("swordfish")
        users[0].save()
        request.user = users[0]
        auth.update_session_auth_hash(request, users[0])

    visit(browser, changes_it)
    (after,) = mongo_store().sessions(str(users[0].pk))
    assert after.id != before.id
    assert after.created_at == before.created_at
    assert visit(browser, whoami).body == b"alice"


def test_a_session_that_is_not_saved_has_no_moment() -> None:
    assert SessionStore().created_at is None
    assert SessionStore(NOBODYS).created_at is None
    assert saved(tea="Assam").created_at is not None


@pytest.mark.parametrize(
    ("expiry", "at_browser_close", "remembered"),
    [(None, False, True), (0, False, False), (None, True, False), (0, True, False)],
)
def test_a_login_that_outlives_the_browser_is_a_remembered_one(
    browser: Browser, users: list[Any], expiry: Any, at_browser_close: bool, remembered: bool
) -> None:
    def with_expiry(request: Any) -> None:
        auth.login(request, users[0])
        request.session.set_expiry(expiry)

    with override_settings(SESSION_EXPIRE_AT_BROWSER_CLOSE=at_browser_close):
        visit(browser, puts(tea="Assam"))
        assert [info.remembered for info in mongo_store().sessions()] == [False], "of nobody"
        response = visit(browser, with_expiry)
        assert ("Max-Age" in str(response.cookie)) is remembered
        shown = visit(browser, lambda request: request.session.remembered)
        assert shown.body == str(remembered).encode()
    (info,) = mongo_store().sessions(str(users[0].pk))
    assert info.remembered is remembered


@pytest.mark.also_sealed
def test_messages_are_kept_until_they_are_read(browser: Browser) -> None:
    visit(browser, lambda request: messages.success(request, "Bought."))
    show = visit(browser, lambda request: [str(m) for m in messages.get_messages(request)])
    assert show.body == b"['Bought.']"
    assert data_of(browser.token) == {}


@pytest.mark.also_sealed
def test_the_test_client_has_a_session_and_logs_in(users: list[Any]) -> None:
    client = Client()
    session, extra = client.session, dict[str, Any]({"tests.view": whoami})
    session["tea"] = "Assam"
    session.save()
    assert client.session["tea"] == "Assam"
    client.force_login(users[0])
    opened: Any = client.session
    assert opened.owner == str(users[0].pk)
    assert client.session["tea"] == "Assam"
    assert client.get("/", **extra).content == b"alice"
    client.logout()
    assert client.get("/", **extra).content == b"AnonymousUser"


def test_the_asynchronous_test_client_has_one_too(users: list[Any]) -> None:
    async def use() -> None:
        client = AsyncClient()
        session = await client.asession()
        await session.aset("tea", "Assam")
        await session.asave()
        await client.aforce_login(users[0])
        session = await client.asession()
        assert await session.aget("tea") == "Assam"
        assert list(mongo_store().sessions(str(users[0].pk)))
        await client.alogout()

    asyncio.run(use())
    assert list(mongo_store().sessions()) == []


# Settings.


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "mongodb_session_db: missing"),
        ({"mongodb_session_db": "a", "mongodb_hots": "b"}, "mongodb_hots.*mongodb_host"),
        ({"mongodb_session_db": "a", "session_secure": True}, "session_secure: has no effect"),
        ({"mongodb_session_db": "a", "session_expires": 9}, "session_expires: has no effect"),
        ({"mongodb_session_db": "a", "session_remember": 9}, "session_remember: has no effect"),
        ({"mongodb_session_db": "a", "session_limit": 0}, "session_limit: must be a number from 1"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], says: str) -> None:
    with override_settings(MONGOSESSION=given), pytest.raises(SettingsError, match=says):
        mongo_store()


def test_a_project_with_wrong_settings_does_not_start() -> None:
    program = """
from django.conf import settings
settings.configure(
    SESSION_ENGINE="mongosession_wsgi.django",
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
)
from django.core.wsgi import get_wsgi_application
get_wsgi_application()
"""
    started = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.returncode == 1
    assert "SettingsError: mongodb_session_db: missing" in started.stderr


def test_there_is_no_longest_life_unless_one_is_given(
    settings: dict[str, Any], stored: Collection[Any]
) -> None:
    in_a_year = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(365)
    with override_settings(MONGOSESSION=settings | {"session_lifetime": ""}):
        saved(_session_expiry=in_a_year.isoformat())
        mongo_store().close()
    assert stored.find_one_and_delete({})["expires_at"] == in_a_year
    with override_settings(MONGOSESSION=settings | {"session_lifetime": "1 day"}):
        saved(_session_expiry=in_a_year.isoformat())
        mongo_store().close()
    assert stored.find_one()["expires_at"] < datetime.now(timezone.utc) + timedelta(2)


# Outages, and a real server.


@pytest.mark.parametrize(
    "view", [reads, puts(tea="Assam"), whoami, lambda r: r.session.cycle_key()]
)
@pytest.mark.parametrize("cookie", [f"sessionid={NOBODYS}", ""])
def test_an_outage_is_an_error_and_makes_nobody_anonymous(
    browser: Browser, view: View, cookie: str
) -> None:
    browser.cookie = cookie
    with override_settings(MONGOSESSION=DOWN):
        assert visit(browser, lambda request: "untouched").status == "200 OK"
        response = visit(browser, view)
    needs_none = not cookie and view in (reads, whoami)
    assert response.status == ("200 OK" if needs_none else "503 Service Unavailable")
    assert response.cookie is None


def test_a_session_that_failed_is_not_tried_again() -> None:
    with override_settings(MONGOSESSION=DOWN):
        session = SessionStore(NOBODYS)
        failures = []
        for use in (lambda: session.get("tea"), session.save, lambda: session.id):
            with pytest.raises(StoreError) as failure:
                use()
            failures.append(failure.value)
    assert failures[0] is failures[1] is failures[2]


@pytest.mark.parametrize(
    "acts",
    [
        lambda session: session.flush(),
        lambda session: session.delete(),
        lambda session: session.delete(session.session_key),
        lambda session: session.exists(session.session_key),
        lambda session: session.cycle_key(),
    ],
)
@pytest.mark.parametrize("has_looked", [True, False])
def test_no_frame_of_ours_shows_a_key_to_a_collector_of_local_variables(
    acts: View, *, has_looked: bool
) -> None:
    session = saved(tea="Assam")
    key = str(session.session_key)
    with override_settings(MONGOSESSION=DOWN), pytest.raises(StoreError) as failure:
        acts(session if has_looked else SessionStore(key))
    shown = [repr(local) for _, local in locals_of_ours(failure.value)]
    assert shown
    assert key not in str(shown)


def test_a_logout_that_failed_does_not_look_done() -> None:
    with override_settings(MONGOSESSION=DOWN), pytest.raises(StoreError):
        SessionStore(NOBODYS).flush()


def test_the_shop_under_gunicorn(mongodb_uri: str, tmp_path: Path) -> None:
    command = ["gunicorn", "--bind", "127.0.0.1:0", "django_shop:app"]
    with served(command, mongodb_uri, tmp_path / "log") as url:
        alice = Shopper(url)
        assert [alice.get().visits for _ in range(3)] == [1, 2, 3]
        for tea in "Oolong", "Assam", "Oolong":
            alice.post("/cart", item=tea)
        old = Shopper(url, alice.cookies)
        page = alice.post("/login", name=" Zoë <b>&amp; ")
        assert page[1:3] == ("Zoë <b>&amp;", {"Oolong": 2, "Assam": 1})
        assert alice.token != old.token
        assert old.get() == (1, None, {}, False)
        for path_, form in ("/cart", {"item": "Coffee"}), ("/login", {"name": " "}):
            status, headers = post(url + path_, alice.token, **form)
            assert (status, headers["Set-Cookie"]) == (400, None)
        status, headers = post(f"{url}/logout", alice.token)
        assert (status, headers["Location"]) == (303, "/")
        assert "Max-Age=0" in headers["Set-Cookie"]
        assert alice.get()[:3] == (1, None, {})
    said = (tmp_path / "log").read_text()
    assert "rror" not in said, said

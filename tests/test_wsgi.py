"""The commit as PEP 3333 lets an application make it late, twice, or not at all."""

from __future__ import annotations

import gc
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any
from weakref import ref
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from pymongo.collection import Collection
from pymongo.errors import AutoReconnect

from mongosession_wsgi import (
    MongoStore,
    Session,
    SessionDataError,
    SessionMiddleware,
    SessionWarning,
    StoreError,
)
from mongosession_wsgi.document import id_of
from mongosession_wsgi.testing.memory import Client, MemoryStore

from .wsgi import Browser, Response, call, conforming, environ_of

App = Callable[..., Iterable[bytes]]
PLAIN = [("Content-Type", "text/plain")]


@pytest.fixture
def wrapped(settings: dict[str, Any], store: MongoStore) -> Callable[[App], SessionMiddleware]:
    return lambda app: SessionMiddleware(app, settings, store=store)


@pytest.fixture
def visit(wrapped: Callable[[App], SessionMiddleware]) -> Callable[..., Response]:
    """Make one request to an application, with the cookie of `session` if there is one."""

    def visit(app: App, session: Session | None = None, **environ: Any) -> Response:
        cookie = f"mongosession={session.token}" if session else ""
        return Browser(wrapped(conforming(app)), cookie).get(**environ)

    return visit


class Body:
    """An iterable that counts how often it is closed."""

    def __init__(self, items: Iterable[bytes], on_close: Callable[[], None] = lambda: None) -> None:
        self.items = iter(items)
        self.on_close = on_close
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self.items

    def close(self) -> None:
        self.closed += 1
        self.on_close()


# When the commit is.


def test_a_generator_may_change_the_session_until_its_first_item(
    visit: Any, stored: Collection[Any]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        environ["mongosession"]["a"] = 1
        yield b"hello"

    response = visit(app)
    assert response.body == b"hello"
    assert stored.find_one({"_id": id_of(response.token)})["data"] == {"a": 1}


def test_a_list_is_committed_when_it_is_returned_with_changes_after_start_response(
    visit: Any, stored: Collection[Any]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", PLAIN)
        environ["mongosession"]["a"] = 1
        return [b"hello"]

    assert stored.find_one({"_id": id_of(visit(app).token)})["data"] == {"a": 1}


def test_write_commits_first(visit: Any, stored: Collection[Any]) -> None:
    seen: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", PLAIN)
        environ["mongosession"]["a"] = 1
        write(b"one ")
        seen.extend(stored.aggregate([]))
        write(b"two ")
        return [b"three"]

    response = visit(app)
    assert response.body == b"one two three"
    assert response.token
    assert [document["data"] for document in seen] == [{"a": 1}]


def test_an_empty_iterable_is_committed_when_it_is_exhausted(
    visit: Any, stored: Collection[Any]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        environ["mongosession"]["a"] = 1
        start_response("204 No Content", [])
        yield from ()

    assert visit(app).token
    assert stored.count_documents({}) == 1


def test_the_write_is_acknowledged_before_the_server_has_the_headers(
    wrapped: Any, stored: Collection[Any]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["mongosession"]["a"] = 1
        start_response("200 OK", PLAIN)
        assert stored.count_documents({}) == 0
        return [b""]

    there: list[int] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        there.append(stored.count_documents({}))
        return lambda data: None

    wrapped(app)(environ_of(), start_response)
    assert there == [1]


def test_an_item_of_a_wrong_type_is_for_the_server_to_tell(wrapped: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[Any]:
        start_response("200 OK", PLAIN)
        yield b"one"
        yield None
        yield b"two"

    assert list(wrapped(app)(environ_of(), lambda *_: None)) == [b"one", None, b"two"]


def test_a_request_leaves_its_environ_to_no_garbage_collector(wrapped: Any) -> None:
    """An upload in the environ would stay in memory until the collector comes."""

    class Upload: ...

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["upload"] = Upload()
        uploads.append(ref(environ["upload"]))
        environ["mongosession"]["a"] = 1
        start_response("200 OK", PLAIN)
        return [b""]

    uploads: list[ref[Upload]] = []
    gc.disable()
    try:
        list(wrapped(app)(environ_of(), lambda *_: None))
        assert uploads[0]() is None
    finally:
        gc.enable()


def test_items_pass_one_by_one(wrapped: Any) -> None:
    made: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        environ["mongosession"].get("a")
        start_response("200 OK", PLAIN)
        for number in range(3):
            made.append(number)
            yield b"%d" % number

    body = wrapped(app)(environ_of(), lambda *_: lambda _: None)
    for number, item in enumerate(body):
        assert item == b"%d" % number
        assert made == list(range(number + 1))
    body.close()


# What the server is handed.


class Named(tuple[bytes, ...]): ...


@pytest.mark.parametrize("own", [[b"hello"], (b"hello",), Named([b"hello"])])
def test_the_applications_own_list_is_handed_on(wrapped: Any, own: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return own

    assert wrapped(app)(environ_of(), lambda *_: lambda _: None) is own


class FileMaker:
    """A server whose `wsgi.file_wrapper` is a bound method, as that of mod_wsgi."""

    def wrap(self, file: io.BytesIO, size: int = 8192) -> Iterable[bytes]:
        return FileWrapper(file, size)


@pytest.mark.parametrize("wrapper", [FileWrapper, FileMaker().wrap, lambda file: file])
def test_the_applications_own_file_wrapper_is_handed_on(wrapped: Any, wrapper: Any) -> None:
    own: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["mongosession"]["a"] = 1
        start_response("200 OK", PLAIN)
        own.append(environ["wsgi.file_wrapper"](io.BytesIO(b"file")))
        return own[0]

    environ = environ_of(**{"wsgi.file_wrapper": wrapper})
    for _ in range(2):
        assert wrapped(app)(environ, lambda *_: lambda _: None) is own.pop()


def test_a_file_wrapper_that_is_a_function_does_no_harm(wrapped: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return environ["wsgi.file_wrapper"](io.BytesIO(b"file"))

    environ = environ_of(**{"wsgi.file_wrapper": lambda file: iter([file.read()])})
    assert call(wrapped(app), environ).body == b"file"


def test_the_applications_header_list_is_never_changed(wrapped: Any) -> None:
    headers = [*PLAIN, ("Vary", "Accept"), ("Cache-Control", "public")]
    before = list(headers)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["mongosession"]["a"] = 1
        start_response("200 OK", headers)
        return [b""]

    browser = Browser(wrapped(app))
    first, second = browser.get(), browser.get(HTTP_COOKIE="")
    assert headers == before
    for response in (first, second):
        assert response.header("Vary") == "Accept, Cookie"
        assert response.header("Cache-Control") == "private"
        assert len(response.all("Set-Cookie")) == 1


def test_the_applications_own_cookies_stay(visit: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["mongosession"]["a"] = 1
        start_response("200 OK", [*PLAIN, ("Set-Cookie", "theme=dark")])
        return [b""]

    cookies = visit(app).all("Set-Cookie")
    assert cookies[0] == "theme=dark"
    assert cookies[1].startswith("mongosession=")


# close().


@pytest.mark.parametrize("items", [[], [b"one"], [b"one", b"two"]])
def test_close_is_called_exactly_once(visit: Any, items: list[bytes]) -> None:
    body = Body(items)

    def app(environ: dict[str, Any], start_response: Any) -> Body:
        start_response("200 OK", PLAIN)
        return body

    assert visit(app).body == b"".join(items)
    assert body.closed == 1


def test_a_response_that_nobody_read_is_closed_and_nothing_is_stored(
    wrapped: Any, stored: Collection[Any]
) -> None:
    body = Body([b"one"])

    def app(environ: dict[str, Any], start_response: Any) -> Body:
        environ["mongosession"]["a"] = 1
        start_response("200 OK", PLAIN)
        return body

    wrapped(app)(environ_of(), lambda *_: lambda _: None).close()
    assert body.closed == 1
    assert stored.count_documents({}) == 0


def test_a_close_that_raises_loses_no_late_change(
    visit: Any, store: MongoStore, stored: Collection[Any]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Body:
        session = environ["mongosession"]

        def fail() -> None:
            session["late"] = True
            raise OSError("disk full")

        start_response("200 OK", PLAIN)
        return Body([b"one"], fail)

    session = store.create({"a": 1})
    with pytest.raises(OSError, match="disk full"):
        visit(app, session)
    assert stored.find_one()["data"] == {"a": 1, "late": True}


def test_a_client_that_goes_away_in_mid_body_gets_the_body_closed(
    wrapped: Any, stored: Collection[Any]
) -> None:
    body = Body(iter([b"one", b"two", b"three"]))

    def app(environ: dict[str, Any], start_response: Any) -> Body:
        environ["mongosession"]["a"] = 1
        start_response("200 OK", PLAIN)
        return body

    response = wrapped(app)(environ_of(), lambda *_: lambda _: None)
    assert next(iter(response)) == b"one"
    response.close()
    assert body.closed == 1
    assert stored.count_documents({}) == 1


# start_response again.


def restarting(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    environ["mongosession"]["a"] = 1
    start_response("200 OK", PLAIN)
    try:
        raise ValueError
    except ValueError:
        start_response("200 Really OK", PLAIN, sys.exc_info())
    yield b"fine"


def test_start_response_again_before_the_commit_counts_once(visit: Any) -> None:
    response = visit(restarting)
    assert response.status == "200 Really OK"
    assert len(response.all("Set-Cookie")) == len(response.all("Vary")) == 1


def test_start_response_again_after_the_commit_carries_our_headers_again(visit: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        environ["mongosession"]["a"] = 1
        start_response("200 OK", PLAIN)
        yield b""
        try:
            raise ValueError
        except ValueError:
            start_response("500 Oh", PLAIN, sys.exc_info())
        yield b"sorry"

    response = visit(app)
    assert response.status == "500 Oh"
    assert response.token
    assert response.header("Vary") == "Cookie"


def test_an_error_page_after_the_commit_drops_the_changes_since(
    visit: Any, store: MongoStore
) -> None:
    session = store.create({"a": 1})

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b""  # The server has no byte to send yet.
        environ["mongosession"]["paid"] = True
        try:
            raise KeyError("a bug")
        except KeyError:
            start_response("500 Internal Server Error", PLAIN, sys.exc_info())
        yield b"sorry"

    assert visit(app, session).status == "500 Internal Server Error"
    assert store.retrieve(session.token) == {"a": 1}


def test_an_error_page_in_place_of_the_response_drops_the_changes(
    visit: Any, stored: Collection[Any]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["mongosession"]["a"] = 1
        start_response("200 OK", PLAIN)
        try:
            raise ValueError
        except ValueError:
            start_response("500 Oh", PLAIN, sys.exc_info())
        return [b"sorry"]

    assert visit(app).cookie is None
    assert stored.count_documents({}) == 0


def test_start_response_again_without_exc_info_is_the_applications_error(wrapped: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", PLAIN)
        start_response("200 OK", PLAIN)
        return [b""]

    with pytest.raises(AssertionError, match="without exc_info"):
        call(wrapped(app), environ_of())


def test_start_response_never_called_is_the_applications_error(wrapped: Any) -> None:
    with pytest.raises(AssertionError, match="did not call start_response"):
        call(wrapped(lambda environ, start_response: [b"hello"]), environ_of())


# Late changes.


def late(use: Callable[[Session], object], status: str = "200 OK") -> App:
    """Return an application that uses its session only after its response has begun."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response(status, PLAIN)
        yield b"begun"
        use(environ["mongosession"])

    return app


def test_late_changes_of_a_live_session_are_written(
    visit: Any, store: MongoStore, stored: Collection[Any]
) -> None:
    visit(late(lambda session: session.update(b=2)), store.create({"a": 1}))
    assert stored.find_one()["data"] == {"a": 1, "b": 2}


def test_late_changes_of_a_session_that_the_response_created_are_written(
    visit: Any, stored: Collection[Any]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        session = environ["mongosession"]
        session["a"], session["cart"] = 1, []
        start_response("200 OK", PLAIN)
        yield b"begun"
        session["cart"].append("late")
        del session["a"]

    visit(app)
    assert stored.find_one()["data"] == {"cart": ["late"]}


def test_a_session_first_filled_late_is_not_stored(
    visit: Any, stored: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.warns(SessionWarning, match="fill it before"):
        visit(late(lambda session: session.update(a=1)))
    assert "fill it before" in caplog.text
    assert stored.count_documents({}) == 0


def test_a_dead_session_filled_late_is_not_stored(
    visit: Any, store: MongoStore, stored: Collection[Any]
) -> None:
    session = store.create({"a": 1})
    stored.delete_many({})
    cookie = {"HTTP_COOKIE": f"mongosession={session.token}"}
    with pytest.warns(SessionWarning, match="fill it before"):
        visit(late(lambda session: session.update(a=1)), **cookie)
    assert stored.count_documents({}) == 0


def test_a_late_login_is_not_done(visit: Any, store: MongoStore, stored: Collection[Any]) -> None:
    session = store.create({"a": 1})
    before = list(stored.find())
    with pytest.warns(SessionWarning, match="no new token"):
        visit(late(lambda session: (session.login("alice"), session.update(a=2))), session)
    assert list(stored.find()) == before


def test_a_late_destroy_is_done_and_what_is_set_since_is_not_stored(
    visit: Any, store: MongoStore, stored: Collection[Any]
) -> None:
    app = late(lambda session: (session.destroy(), session.update(a=2)))
    with pytest.warns(SessionWarning, match="fill it before"):
        visit(app, store.create({"a": 1}))
    assert stored.count_documents({}) == 0


@pytest.mark.parametrize("is_read", [False, True])
def test_a_late_destroy_is_done_though_the_request_has_failed(
    visit: Any, stored: Collection[Any], store: MongoStore, is_read: bool
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        session = environ["mongosession"]
        if is_read:
            session["a"]
        start_response("500 Oh", PLAIN)
        yield b"sorry"
        session.destroy()

    visit(app, store.create({"a": 1}))
    assert stored.count_documents({}) == 0


def test_a_store_that_failed_at_the_commit_is_not_asked_to_destroy(
    visit: Any, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Session] = []

    class Body(list[bytes]):
        def close(self) -> None:
            environ["mongosession"].destroy()

    def fail(session: Session) -> None:
        asked.append(session)
        raise StoreError("MongoDB is down")

    def app(of: dict[str, Any], start_response: Any) -> Body:
        environ.update(of)
        of["mongosession"]["a"] = 2
        start_response("200 OK", PLAIN)
        return Body([b"item"])

    environ: dict[str, Any] = {}
    session = store.create({"a": 1})
    monkeypatch.setattr(store, "flush", fail)
    assert visit(app, session).status.startswith("503")
    assert len(asked) == 1


def test_a_destroy_that_failed_is_not_tried_again_as_the_body_is_closed(
    visit: Any, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Session] = []

    def fail(session: Session) -> bool:
        asked.append(session)
        return False

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        environ["mongosession"].destroy()
        raise ValueError
        yield b""

    session = store.create({"a": 1})
    monkeypatch.setattr(store, "destroy", fail)
    with pytest.raises(ValueError):  # noqa: PT011
        visit(app, session)
    assert len(asked) == 1


@pytest.mark.parametrize("fails", ["at its first item", "at the commit"])
def test_a_destroy_in_the_close_of_a_body_is_done_though_the_request_has_failed(
    visit: Any, stored: Collection[Any], store: MongoStore, fails: str
) -> None:
    class Body:
        def __init__(self, session: Session) -> None:
            self._session = session

        def __iter__(self) -> Iterator[bytes]:
            if fails == "at its first item":
                raise ValueError
            yield b"item"

        def close(self) -> None:
            self._session.destroy()

    def app(environ: dict[str, Any], start_response: Any) -> Body:
        session = environ["mongosession"]
        if fails == "at the commit":
            session["a"].append({1})
        start_response("200 OK", PLAIN)
        return Body(session)

    with pytest.raises((ValueError, SessionDataError)):
        visit(app, store.create({"a": [1]}))
    assert stored.count_documents({}) == 0


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("rest", [[], [b"rest"], (b"rest",)])
def test_late_changes_between_a_write_and_the_list_are_written(
    wrapped: Any, store: MongoStore, ends: bool, rest: Any
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:  # No validator hides the list.
        start_response("200 OK", PLAIN)(b"begun")
        environ["mongosession"]["b"] = 2
        if ends:
            environ["mongosession"].destroy()
        return rest

    assert left_by(wrapped(app), store) == ([] if ends else [{"a": 1, "b": 2}])


def left_by(app: Any, store: MongoStore) -> list[dict[str, Any]]:
    """Send a request with the cookie of a new session; return the data of all sessions then."""
    cookie = f"mongosession={store.create({'a': 1}).token}"
    call(app, environ_of(HTTP_COOKIE=cookie))
    return [one.data for one in store.sessions()]


class Counted(list[bytes]):
    """A body whose items a server may count, and which does something at its end."""

    def __init__(self, session: Session) -> None:
        super().__init__([b"one"])
        self._session = session

    def close(self) -> None:
        self._session["b"] = 2


class Lazy(list[bytes]):
    """A body of a length, whose items are made one by one."""

    def __init__(self, session: Session) -> None:
        super().__init__([b"one"])
        self._session = session

    def __iter__(self) -> Iterator[bytes]:
        self._session["b"] = 2
        return super().__iter__()


class Indexed:
    """An iterable by its indexes alone."""

    def __init__(self, session: Session) -> None:
        self._items = iter(Lazy(session))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> bytes:
        if index:
            raise IndexError
        return next(self._items)


class LazyAndNoList:
    def __init__(self, session: Session) -> None:
        self._items = Lazy(session)

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._items)


@pytest.mark.parametrize("body", [Lazy, LazyAndNoList, Indexed])
def test_what_a_body_of_a_length_sets_as_its_items_are_made_is_stored(
    wrapped: Any, store: MongoStore, body: Any
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:  # No validator hides the body.
        start_response("200 OK", PLAIN)
        return body(environ["mongosession"])

    assert left_by(wrapped(app), store) == [{"a": 1, "b": 2}]


def test_late_changes_by_the_end_of_a_body_that_may_be_counted_are_written(
    wrapped: Any, store: MongoStore
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:  # No validator hides the body.
        start_response("200 OK", PLAIN)
        return Counted(environ["mongosession"])

    assert left_by(wrapped(app), store) == [{"a": 1, "b": 2}]


def test_late_changes_of_a_response_that_failed_are_dropped(
    visit: Any, store: MongoStore, stored: Collection[Any]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        environ["mongosession"]["a"] = 2
        start_response("503 Busy", PLAIN)
        yield b"begun"
        environ["mongosession"]["a"] = 3

    visit(app, store.create({"a": 1}))
    assert stored.find_one()["data"] == {"a": 1}


@pytest.mark.parametrize("ends", [False, True])
def test_late_changes_of_a_body_that_raises_are_dropped(
    visit: Any, store: MongoStore, stored: Collection[Any], ends: bool
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        environ["mongosession"]["a"] = 2
        start_response("200 OK", PLAIN)
        yield b"begun"
        environ["mongosession"]["a"] = 3
        if ends:
            environ["mongosession"].destroy()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        visit(app, store.create({"a": 1}))
    found = stored.find_one()
    assert (found and found["data"]) == (None if ends else {"a": 2})


@pytest.mark.parametrize("ends", [False, True])
def test_what_is_set_as_a_body_that_raised_is_closed_is_dropped(
    visit: Any, store: MongoStore, stored: Collection[Any], ends: bool
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Body:
        def items() -> Iterator[bytes]:
            yield b"begun"
            raise RuntimeError("no more")

        def close() -> None:
            session = environ["mongosession"]
            session["a"] = 2
            if ends:
                session.destroy()

        start_response("200 OK", PLAIN)
        return Body(items(), close)

    with pytest.raises(RuntimeError, match="no more"):
        visit(app, store.create({"a": 1}))
    found = stored.find_one()
    assert (found and found["data"]) == (None if ends else {"a": 1})


def test_late_changes_of_a_failed_response_are_dropped(
    visit: Any, store: MongoStore, stored: Collection[Any]
) -> None:
    visit(late(lambda session: session.update(a=2), "500 Sorry"), store.create({"a": 1}))
    assert stored.find_one()["data"] == {"a": 1}


# Errors.


@pytest.mark.parametrize("returned", [list, iter], ids=["list", "iterator"])
def test_what_cannot_be_stored_fails_the_request_and_leaves_the_session(
    visit: Any, store: MongoStore, stored: Collection[Any], returned: Any
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        session = environ["mongosession"]
        session["a"] = 2
        session["cart"].append({"price": {1, 2}})
        start_response("200 OK", PLAIN)
        return returned([b"never sent"])

    session = store.create({"a": 1, "cart": ["egg"]})
    before = list(stored.find())
    with pytest.raises(SessionDataError, match=r"cart\[1\]\.price: .* a set"):
        visit(app, session)
    assert list(stored.find()) == before


def test_the_body_of_a_request_that_fails_at_the_commit_is_closed(wrapped: Any) -> None:
    body = Body([])

    class Wrapper(FileWrapper):
        def __init__(self) -> None:
            super().__init__(io.BytesIO())
            self.close = body.close

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["mongosession"]["cart"] = []
        environ["mongosession"]["cart"].append(object())
        start_response("200 OK", PLAIN)
        return Wrapper()

    environ = environ_of(**{"wsgi.file_wrapper": Wrapper})
    with pytest.raises(SessionDataError):
        wrapped(app)(environ, lambda *_: lambda _: None)
    assert body.closed == 1


def failing(*_: object) -> None:
    raise StoreError("MongoDB is down")


def swallowing(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    environ["mongosession"]["a"] = 1
    write = start_response("200 OK", PLAIN)
    for _ in range(2):
        with suppress(Exception):  # The application takes any error for a client that went away.
            write(b"never sent")
    return []


@pytest.fixture
def down(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> MongoStore:
    def run(*_: object) -> None:
        raise AutoReconnect("the connection broke")

    monkeypatch.setattr(Client, "run", run)
    return MemoryStore(settings)


def test_a_commit_that_fails_is_a_503_though_the_application_swallows_the_error(
    settings: dict[str, Any], down: MongoStore
) -> None:
    response = call(SessionMiddleware(swallowing, settings, store=down), environ_of())
    assert response.status == "503 Service Unavailable"


@pytest.mark.parametrize("returned", [list, iter], ids=["list", "iterator"])
@pytest.mark.parametrize(
    ("status", "answered"),
    [("500 Oh", "503 Service Unavailable"), ("502 Oh", "502 Oh"), ("200 OK", "200 OK")],
)
def test_a_500_for_an_error_of_the_store_is_a_503(
    visit: Any, status: str, answered: str, returned: Any
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            failing()
        except StoreError:
            start_response(status, PLAIN, sys.exc_info())
        return returned([b"sorry"])

    response = visit(app)
    assert response.status == answered
    assert response.header("Retry-After") == ("5" if answered.startswith("503") else None)


def test_an_error_page_of_the_applications_own_takes_the_place_of_a_commit_that_fails(
    settings: dict[str, Any], down: MongoStore
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["mongosession"]["a"] = 1
        try:
            start_response("200 OK", PLAIN)(b"never sent")
        except StoreError:
            start_response("502 Bad Gateway", PLAIN, sys.exc_info())
        return [b"back soon"]

    response = call(SessionMiddleware(app, settings, store=down), environ_of())
    assert (response.status, response.body) == ("502 Bad Gateway", b"back soon")


# Inside of one another.


def test_a_middleware_inside_another_hands_on_the_outers_session(
    settings: dict[str, Any], store: MongoStore
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["mongosession"]["a"] = 1
        start_response("200 OK", PLAIN)
        return [b""]

    inner = SessionMiddleware(app, settings | {"session_name": "inner"}, store=store)
    response = call(
        validator(SessionMiddleware(inner, settings | {"session_name": "outer"}, store=store)),
        environ_of(),
    )
    assert response.cookie.startswith("outer=")

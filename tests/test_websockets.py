"""What docs/websockets.md says of Flask-SocketIO and flask-sock is so; its blocks run here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from typing import Any

import pytest
from flask import Flask, session
from werkzeug.serving import make_server

from mongosession_wsgi import Session, SessionMiddleware, SessionWarning, StoreError
from mongosession_wsgi.flask import MongoSessionInterface
from mongosession_wsgi.testing import MemoryStore
from mongosession_wsgi.visit import Outcome

from .test_docs import DOCS, blocks
from .wsgi import environ_of

LONGEST_WAIT = 30


def block_with(text: str) -> dict[str, Any]:
    """Run the block of the page that has `text` in it; return what it defines."""
    (block,) = [
        block
        for block in blocks(DOCS / "websockets.md")
        if block.language == "py" and text in block.text
    ]
    namespace: dict[str, Any] = {"__name__": "websockets_page"}
    exec(compile("\n" * (block.line - 1) + block.text, "websockets.md", "exec"), namespace)
    return namespace


def log_in() -> str:
    session.login("alice")  # type: ignore[attr-defined]
    session["seen"] = "by HTTP"
    return "in"


def log_out() -> str:
    session.clear()
    return "out"


def with_pages(app: Flask, store: MemoryStore) -> Flask:
    app.session_interface = MongoSessionInterface({}, store=store)
    app.add_url_rule("/in", view_func=log_in)
    app.add_url_rule("/out", view_func=log_out)
    return app


def data_in(store: MemoryStore) -> list[dict[str, Any]]:
    return [info.data for info in store.sessions()]


def connected(app: Flask, socketio: Any) -> tuple[Any, Any]:
    """Log in by HTTP, and connect; return both clients."""
    browser = app.test_client()
    browser.get("/in")
    return browser, socketio.test_client(app, flask_test_client=browser)


def said(client: Any, text: str) -> Any:
    return client.send(text, callback=True)


def test_socketio_that_leaves_the_session_to_flask_shares_it() -> None:
    pytest.importorskip("flask_socketio")
    page, store = block_with("SocketIO(app, manage_session=False)"), MemoryStore()
    browser, client = connected(with_pages(page["app"], store), page["socketio"])
    assert said(client, "hello") == "alice: hello"
    assert data_in(store) == [{"seen": "by HTTP", "last_message": "hello"}]
    browser.get("/out")
    assert said(client, "more") == "log in first"
    assert data_in(store) == []


def test_socketio_that_manages_the_session_has_a_copy() -> None:
    flask_socketio = pytest.importorskip("flask_socketio")
    store = MemoryStore()
    app = with_pages(Flask(__name__), store)
    socketio = flask_socketio.SocketIO(app)
    socketio.on_event("message", remember)
    browser, client = connected(app, socketio)
    assert said(client, "hello") == {"seen": "by HTTP", "last": "hello"}
    assert data_in(store) == [{"seen": "by HTTP"}]
    browser.get("/out")
    assert said(client, "more") == {"seen": "by HTTP", "last": "more"}


def test_socketio_within_the_middleware_has_the_session_of_the_handshake() -> None:
    flask_socketio = pytest.importorskip("flask_socketio")
    store = MemoryStore()
    app = with_pages(Flask(__name__), store)
    socketio = flask_socketio.SocketIO(app, manage_session=False, async_mode="threading")
    app.wsgi_app = SessionMiddleware(app.wsgi_app, {}, store=store)  # type: ignore[method-assign]
    socketio.on_event("message", remember)
    with served(app) as port:
        cookie = browsing(port, "/in")
        with connection_to(port, "/socket.io/?EIO=4&transport=websocket", cookie) as connection:
            assert connection.recv().startswith("0")
            connection.send("40")
            assert connection.recv().startswith("40")
            connection.send('420["message", "hello"]')
            assert told(connection) == {"seen": "by HTTP", "last": "hello"}
            assert data_in(store) == [{"seen": "by HTTP"}]
            browsing(port, "/out", cookie)
            connection.send('421["message", "more"]')
            assert told(connection) == {"seen": "by HTTP", "last": "more"}


def told(connection: Any) -> Any:
    (answer,) = json.loads(connection.recv().lstrip("0123456789"))
    return answer


def remember(text: str) -> dict[str, Any]:
    session["last"] = text
    return dict(session)


def test_a_socket_of_flask_sock_asks_the_store_again() -> None:
    pytest.importorskip("flask_sock")
    page, store = block_with("import Sock\n"), MemoryStore()
    page["store"] = store
    with served(with_pages(page["app"], store)) as port:
        cookie = browsing(port, "/in")
        with connection_to(port, "/chat", cookie) as connection:
            connection.send("hello")
            assert connection.recv() == "stored"
            assert data_in(store) == [{"seen": "by HTTP", "last_message": "hello"}]
            browsing(port, "/out", cookie)
            connection.send("more")
            assert connection.recv() == ""  # The server has closed the socket.
    assert data_in(store) == []


def returning() -> list[bytes]:
    """End as an application of gevent-websocket does."""
    return []


def stopping() -> list[bytes]:
    raise StopIteration


def take_over(store: MemoryStore, cookie: str, end: Callable[[], list[bytes]]) -> None:
    """Visit an application that takes the socket over, and never calls `start_response`."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["mongosession"]["last"] = "hello"
        assert "hello" not in str(data_in(store))
        return end()

    environ = environ_of(
        **{"wsgi.websocket": object()} | ({"HTTP_COOKIE": cookie} if cookie else {})
    )
    with suppress(StopIteration):
        body: Any = SessionMiddleware(app, {}, store=store)(environ, pytest.fail)  # type: ignore[arg-type]
        with closing(body):
            assert list(body) == []


@pytest.mark.parametrize("end", [returning, stopping])
def test_an_application_that_takes_the_socket_over_has_its_changes_stored_in_the_end(
    end: Callable[[], list[bytes]],
) -> None:
    store = MemoryStore()
    token = store.create({"seen": "by HTTP"}).token
    take_over(store, f"mongosession={token}", end)
    assert data_in(store) == [{"seen": "by HTTP", "last": "hello"}]


@pytest.mark.parametrize("end", [returning, stopping])
def test_a_session_that_begins_in_a_socket_that_was_taken_over_is_not_stored(
    end: Callable[[], list[bytes]],
) -> None:
    store = MemoryStore()
    with pytest.warns(SessionWarning, match="It is not stored"):
        take_over(store, "", end)
    assert data_in(store) == []


@pytest.mark.parametrize("upgrade", [{}, {"HTTP_UPGRADE": "websocket"}])
def test_who_asked_for_no_socket_and_lets_a_stop_iteration_out_has_failed(
    upgrade: dict[str, Any],
) -> None:
    """A bare `next()` in a handler; a proxy may send Upgrade with each request."""
    store = MemoryStore()
    cookie = f"mongosession={store.create({'seen': 'by HTTP'}).token}"

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["mongosession"]["paid"] = True
        return stopping()

    environ = environ_of(HTTP_COOKIE=cookie, **upgrade)
    with pytest.raises(StopIteration):
        SessionMiddleware(app, {}, store=store)(environ, pytest.fail)  # type: ignore[arg-type]
    assert data_in(store) == [{"seen": "by HTTP"}]


@pytest.mark.parametrize("end", [returning, stopping])
def test_a_socket_that_was_taken_over_hears_of_no_failure(
    end: Callable[[], list[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    class Down(MemoryStore):
        def flush(self, session: Session) -> Outcome:
            raise StoreError("is down")

    store = Down()
    take_over(store, f"mongosession={store.create({'seen': 'by HTTP'}).token}", end)
    assert "What a WebSocket has changed is lost: is down" in caplog.text


@contextmanager
def served(app: Flask) -> Iterator[int]:
    """Serve on a free port, with a thread for each connection; yield the port."""
    server = make_server("localhost", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(LONGEST_WAIT)
        server.server_close()


def browsing(port: int, path: str, cookie: str = "") -> str:
    """Ask for a page; return the cookie that comes back."""
    with closing(HTTPConnection("localhost", port, timeout=LONGEST_WAIT)) as connection:
        connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
        answer = connection.getresponse()
        answer.read()
    assert answer.status == 200
    return (answer.getheader("Set-Cookie") or "").partition(";")[0]


@contextmanager
def connection_to(port: int, path: str, cookie: str) -> Iterator[Any]:
    """Open a WebSocket."""
    websocket = pytest.importorskip("websocket")
    url = f"ws://localhost:{port}{path}"
    connection = websocket.create_connection(url, cookie=cookie, timeout=LONGEST_WAIT)
    try:
        yield connection
    finally:
        connection.shutdown()

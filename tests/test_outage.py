"""A database that is down: what the visitors of every framework see of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import bottle
import falcon
import flask
import pytest
from pyramid.config import Configurator
from pyramid.response import Response as PyramidResponse

from mongosession_wsgi import SessionMiddleware, StoreError

from .wsgi import COOKIE, DOWN, Browser

pytestmark = pytest.mark.server  # Each request waits half a second for a database.


def read(environ: dict[str, Any]) -> str:
    return str(environ["mongosession"].get("user"))


def plain(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    answer = read(environ).encode()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer]


def in_bottle() -> Any:
    app = bottle.Bottle()
    app.get("/")(lambda: read(bottle.request.environ))
    return app


def in_falcon() -> Any:
    class Page:
        def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
            response.text = read(request.env)

    app = falcon.App()
    app.add_route("/", Page())
    return app


def in_flask() -> Any:
    app = flask.Flask("outage")
    app.get("/")(lambda: read(flask.request.environ))
    return app


def in_pyramid() -> Any:
    with Configurator() as config:
        config.add_route("page", "/")
        config.add_view(lambda request: PyramidResponse(read(request.environ)), route_name="page")
    return config.make_wsgi_app()


@pytest.mark.parametrize(
    "app", [lambda: plain, in_bottle, in_falcon, in_flask, in_pyramid], ids=lambda app: app.__name__
)
def test_a_page_that_reads_answers_503(
    app: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    response = Browser(SessionMiddleware(app(), DOWN), COOKIE).get()
    assert response.status == "503 Service Unavailable"
    assert response.header("Retry-After") == "5"
    assert response.header("Vary") == "Cookie"
    assert response.cookie is None
    errors = [one for one in caplog.records if one.name == "mongosession_wsgi"]
    assert [one.levelno for one in errors] == [logging.ERROR]
    assert "t" * 43 not in caplog.text


def test_a_page_of_the_applications_own_for_an_outage_is_kept() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        with pytest.raises(StoreError) as first:
            read(environ)
        with pytest.raises(StoreError) as second:
            len(environ["mongosession"])
        assert second.value is first.value, "it is not tried again"
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"We are counting our tea, come back in a minute."]

    response = Browser(SessionMiddleware(app, DOWN), COOKIE).get()
    assert response.status == "200 OK"


@pytest.mark.parametrize(
    "use",
    [
        lambda session: session.update(a=1),
        lambda session: session.clear(),
        lambda session: session.regenerate(),
        lambda session: session.login("alice"),
        lambda session: session.destroy(),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_page_whose_commit_fails_answers_503(use: Callable[[Any], Any], method: str) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        use(environ["mongosession"])
        start_response("200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", "theme=dark")])
        return [b"done"]

    response = Browser(SessionMiddleware(app, DOWN), COOKIE).get(REQUEST_METHOD=method)
    assert response.status == "503 Service Unavailable"
    assert response.cookie is None
    assert (response.body == b"") == (method == "HEAD")


def test_a_stream_whose_first_item_fails_answers_503() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield read(environ).encode()

    assert Browser(SessionMiddleware(app, DOWN), COOKIE).get().status.startswith("503")


def test_a_late_failure_is_the_servers_to_log() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"begun"
        yield read(environ).encode()

    with pytest.raises(StoreError):
        Browser(SessionMiddleware(app, DOWN), COOKIE).get()


def test_a_page_that_does_not_touch_its_session_is_untouched() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"as fast as ever"]

    response = Browser(SessionMiddleware(app, DOWN), COOKIE).get()
    assert (response.status, response.commands) == ("200 OK", [])

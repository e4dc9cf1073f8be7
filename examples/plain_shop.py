"""A small shop in plain WSGI. Run it in this folder: gunicorn plain_shop:app"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from device_name import device_name
from own_forms import own_forms_only
from page import NOT_FOUND, PRODUCTS, page, put_into_cart
from settings import SETTINGS

from mongosession_wsgi import SessionMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def shop(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    session, form = environ["mongosession"], form_of(environ)
    match environ["REQUEST_METHOD"], environ["PATH_INFO"]:
        case "GET", "/":
            session["visits"] = session.get("visits", 0) + 1
            start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
            return [page(session).encode()]
        case "POST", "/cart" if (item := form.get("item")) in PRODUCTS:
            put_into_cart(session, item)
        case "POST", "/login" if name := form.get("name", "").strip():
            device = device_name(environ.get("HTTP_USER_AGENT", ""))
            session.login(name, remember="remember" in form, label=device)
        case "POST", "/logout":
            session.destroy()
        case "POST", "/cart" | "/login":
            start_response("400 Bad Request", [("Content-Type", "text/plain")])
            return [b"We sell no such tea, or you gave no name.\n"]
        case _:
            start_response("404 Not Found", [("Content-Type", "text/html; charset=utf-8")])
            return [NOT_FOUND.encode()]
    start_response("303 See Other", [("Location", "/")])
    return []


def form_of(environ: WSGIEnvironment) -> dict[str, str]:
    form: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return dict(parse_qsl(form.decode(errors="replace")))


app = own_forms_only(SessionMiddleware(shop, SETTINGS))

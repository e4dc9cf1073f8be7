"""A small shop in Pyramid. Run it in this folder: gunicorn pyramid_shop:app"""

from device_name import device_name
from own_forms import own_forms_only
from page import NOT_FOUND, PRODUCTS, page, put_into_cart
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPBadRequest, HTTPSeeOther
from pyramid.request import Request
from pyramid.response import Response
from pyramid.view import notfound_view_config, view_config
from settings import SETTINGS


@view_config(route_name="index", request_method="GET")
def index(request: Request) -> Response:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return Response(page(request.session))


@view_config(route_name="cart", request_method="POST")
def add(request: Request) -> Response:
    item = request.POST.get("item")
    if item not in PRODUCTS:
        raise HTTPBadRequest("We have no such tea.")
    put_into_cart(request.session, item)
    return HTTPSeeOther(request.route_path("index"))


@view_config(route_name="login", request_method="POST")
def login(request: Request) -> Response:
    name = request.POST.get("name", "").strip()
    if not name:
        raise HTTPBadRequest("Tell us your name.")
    device = device_name(request.user_agent or "")
    request.session.login(name, remember="remember" in request.POST, label=device)
    return HTTPSeeOther(request.route_path("index"))


@view_config(route_name="logout", request_method="POST")
def logout(request: Request) -> Response:
    request.session.invalidate()
    return HTTPSeeOther(request.route_path("index"))


@notfound_view_config()
def not_found(request: Request) -> Response:
    return Response(NOT_FOUND, status=404)


with Configurator(settings=SETTINGS) as config:
    config.include("mongosession_wsgi.pyramid")
    for name, path in ("index", "/"), ("cart", "/cart"), ("login", "/login"), ("logout", "/logout"):
        config.add_route(name, path)
    config.scan()

app = own_forms_only(config.make_wsgi_app())

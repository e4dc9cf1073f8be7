"""A small shop in Bottle. Run it in this folder: gunicorn bottle_shop:app"""

from bottle import Bottle, HTTPError, abort, redirect, request
from device_name import device_name
from devices import devices, store
from own_forms import REFUSAL, is_from_elsewhere
from page import NOT_FOUND, PRODUCTS, page, put_into_cart
from settings import SETTINGS

from mongosession_wsgi import Session
from mongosession_wsgi.bottle import MongoSessionPlugin

app = Bottle()
app.install(MongoSessionPlugin(SETTINGS, store=store))
app.merge(devices)


@app.hook("before_request")
def take_own_forms_only() -> None:
    if is_from_elsewhere(request.environ):
        abort(403, REFUSAL)


@app.get("/")
def index(session: Session) -> str:
    session["visits"] = session.get("visits", 0) + 1
    return page(session, devices="/devices")


@app.post("/cart")
def add(session: Session) -> None:
    item = request.forms.item
    if item not in PRODUCTS:
        abort(400, "We have no such tea.")
    put_into_cart(session, item)
    redirect("/", 303)


@app.post("/login")
def login(session: Session) -> None:
    name = request.forms.name.strip()
    if not name:
        abort(400, "Tell us your name.")
    device = device_name(request.headers.raw("User-Agent", ""))
    session.login(name, remember="remember" in request.forms, label=device)
    redirect("/", 303)


@app.post("/logout")
def logout(session: Session) -> None:
    session.destroy()
    redirect("/", 303)


@app.error(404)
def not_found(error: HTTPError) -> str:
    return NOT_FOUND

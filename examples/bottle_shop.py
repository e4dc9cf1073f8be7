"""A small shop in Bottle. Run it in this folder: gunicorn bottle_shop:app"""

from bottle import Bottle, abort, redirect, request
from page import PRODUCTS, page
from settings import SETTINGS

from mongosession_wsgi import SessionMiddleware

shop = Bottle()


@shop.get("/")
def index() -> str:
    session = request.environ["mongosession"]
    session["visits"] = session.get("visits", 0) + 1
    return page(session)


@shop.post("/cart")
def add() -> None:
    item = request.forms.item
    if item not in PRODUCTS:
        abort(400, "We have no such tea.")
    cart = request.environ["mongosession"].setdefault("cart", [])
    for line in cart:
        if line["item"] == item:
            line["count"] += 1
            break
    else:
        cart.append({"item": item, "count": 1})
    redirect("/", 303)


@shop.post("/login")
def login() -> None:
    name = request.forms.name.strip()
    if not name:
        abort(400, "Tell us your name.")
    request.environ["mongosession"].login(name)
    redirect("/", 303)


@shop.post("/logout")
def logout() -> None:
    request.environ["mongosession"].destroy()
    redirect("/", 303)


app = SessionMiddleware(shop, SETTINGS)

"""A small shop in Flask. Run it in this folder: gunicorn flask_shop:app"""

from flask import Flask, abort, redirect, request, url_for
from page import PRODUCTS, page
from settings import SETTINGS
from werkzeug.wrappers import Response

from mongosession_wsgi import SessionMiddleware

shop = Flask(__name__)


@shop.get("/")
def index() -> str:
    session = request.environ["mongosession"]
    session["visits"] = session.get("visits", 0) + 1
    return page(session)


@shop.post("/cart")
def add() -> Response:
    item = request.form["item"]
    if item not in PRODUCTS:
        abort(400, "We have no such tea.")
    cart = request.environ["mongosession"].setdefault("cart", [])
    for line in cart:
        if line["item"] == item:
            line["count"] += 1
            break
    else:
        cart.append({"item": item, "count": 1})
    return redirect(url_for("index"), 303)


@shop.post("/login")
def login() -> Response:
    name = request.form["name"].strip()
    if not name:
        abort(400, "Tell us your name.")
    request.environ["mongosession"].login(name)
    return redirect(url_for("index"), 303)


@shop.post("/logout")
def logout() -> Response:
    request.environ["mongosession"].destroy()
    return redirect(url_for("index"), 303)


app = SessionMiddleware(shop, SETTINGS)

"""A small shop in Flask. Run it in this folder: gunicorn flask_shop:app"""

from device_name import device_name
from flask import Flask, abort, redirect, request, session, url_for
from own_forms import own_forms_only
from page import NOT_FOUND, PRODUCTS, page, put_into_cart
from settings import SETTINGS
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from mongosession_wsgi.flask import MongoSessionInterface

app = Flask(__name__)
app.session_interface = MongoSessionInterface(SETTINGS)
app.wsgi_app = own_forms_only(app.wsgi_app)


@app.get("/")
def index() -> str:
    session["visits"] = session.get("visits", 0) + 1
    return page(session)


@app.post("/cart")
def add() -> Response:
    item = request.form["item"]
    if item not in PRODUCTS:
        abort(400, "We have no such tea.")
    put_into_cart(session, item)
    return redirect(url_for("index"), 303)


@app.post("/login")
def login() -> Response:
    name = request.form["name"].strip()
    if not name:
        abort(400, "Tell us your name.")
    device = device_name(request.user_agent.string)
    session.login(name, remember="remember" in request.form, label=device)
    return redirect(url_for("index"), 303)


@app.post("/logout")
def logout() -> Response:
    session.clear()
    return redirect(url_for("index"), 303)


@app.errorhandler(404)
def not_found(error: NotFound) -> tuple[str, int]:
    return NOT_FOUND, 404

"""The page that every shop shows, and what is sold there."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from settings import SETTINGS

from mongosession_wsgi import Session


class Product(NamedTuple):
    price: int
    colour: str
    taste: str


PRODUCTS = {
    "Sencha": Product(9, "#a9bd4f", "grassy and fresh"),
    "Darjeeling": Product(12, "#e0a63a", "flowery, the first flush"),
    "Oolong": Product(14, "#c9762b", "roasted, with a long finish"),
    "Earl Grey": Product(8, "#9c4a1a", "black, with bergamot"),
    "Assam": Product(7, "#6f2a10", "malty and strong"),
    "Rooibos": Product(6, "#b5331c", "sweet, without caffeine"),
}

HERE = Path(__file__).parent
STYLE = (HERE / "shop.css").read_text(encoding="utf-8")
PAGE = Template((HERE / "page.html").read_text(encoding="utf-8"))

ADDED = Template("""
    <p class="notice" role="status">$item is in your cart. <a href="#cart">Look at it</a></p>""")

PRODUCT = Template("""
        <li>
          <span class="cup" style="--tea: $colour"></span>
          <h3>$name</h3>
          <p>$taste</p>
          <button name="item" value="$name">Add<span class="unseen"> $name</span>, €$price</button>
        </li>""")

CART = Template("""
        <ul class="lines">$lines
        </ul>
        <p class="total"><span>Total</span> <span>€$total</span></p>""")

LINE = Template("""
          <li data-item="$item" data-count="$count">
            <span>$count × $item</span> <span>€$price</span>
          </li>""")

EMPTY = """
        <p>Nothing in it yet.</p>"""

SIGNED_IN = Template("""
        <p>Signed in as <strong id="owner">$owner</strong></p>$devices
        <form method="post" action="/logout"><button class="quiet">Sign out</button></form>""")

DEVICES = Template("""
        <p><a href="$path">Where you're signed in</a></p>""")

SIGN_IN = """
        <form method="post" action="/login">
          <label for="name">Your name</label>
          <input id="name" name="name" required maxlength="60" autocomplete="username">
          <label class="tick"><input type="checkbox" name="remember"> Remember me here</label>
          <button>Sign in</button>
        </form>
        <p>Any name will do. The cart comes along.</p>"""


def put_into_cart(session: Session, item: str) -> None:
    """Put one more of an item into the cart. The session notices a change deep in the list."""
    session["added"] = item  # For the next page, which tells the visitor once.
    cart = session.setdefault("cart", [])
    for line in cart:
        if line["item"] == item:
            line["count"] += 1
            return
    cart.append({"item": item, "count": 1})


def page(session: Session, devices: str = "") -> str:
    """Return the shop's page for the visitor of `session`.

    `devices` is the path of the page of the devices, in a shop that has one.
    """
    cart, added = session.get("cart", []), session.pop("added", None)
    count = sum(line["count"] for line in cart)
    return fill(
        PAGE,
        {"title": SETTINGS["title"], "visits": session["visits"], "count": count},
        style=STYLE,
        added=fill(ADDED, {"item": added}) if added else "",
        products="".join(fill(PRODUCT, {"name": k} | v._asdict()) for k, v in PRODUCTS.items()),
        cart=_cart(cart),
        account=SIGN_IN if session.owner is None else _account(session.owner, devices),
    )


def _account(owner: str, devices: str) -> str:
    link = fill(DEVICES, {"path": devices}) if devices else ""
    return fill(SIGNED_IN, {"owner": owner}, devices=link)


def _cart(lines: Sequence[Mapping[str, Any]]) -> str:
    if not lines:
        return EMPTY
    rows, total = "", 0
    for line in lines:
        price = line["count"] * PRODUCTS[line["item"]].price
        rows += fill(LINE, {**line, "price": price})
        total += price
    return fill(CART, {"total": total}, lines=rows)


def fill(template: Template, texts: Mapping[str, object], **html: str) -> str:
    """Fill in `texts`, escaped, and `html`, which is HTML already."""
    return template.substitute({name: escape(str(text)) for name, text in texts.items()}, **html)


NOT_FOUND = fill(
    Template((HERE / "not_found.html").read_text(encoding="utf-8")),
    {"title": SETTINGS["title"]},
    style=STYLE,
)
"""The page of a shop for an address that it does not have."""

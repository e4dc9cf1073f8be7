"""A small shop in Falcon. Run it in this folder: gunicorn falcon_shop:app"""

import falcon
from device_name import device_name
from own_forms import own_forms_only
from page import NOT_FOUND, PRODUCTS, page, put_into_cart
from settings import SETTINGS

from mongosession_wsgi.falcon import SessionComponent


class Front:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        session = req.context.session
        session["visits"] = session.get("visits", 0) + 1
        resp.content_type = falcon.MEDIA_HTML
        resp.text = page(session)


class Cart:
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        item = req.get_media().get("item")
        if item not in PRODUCTS:
            raise falcon.HTTPBadRequest(description="We have no such tea.")
        put_into_cart(req.context.session, item)
        raise falcon.HTTPSeeOther("/")


class Login:
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        name = req.get_media().get("name", "").strip()
        if not name:
            raise falcon.HTTPBadRequest(description="Tell us your name.")
        device, remember = device_name(req.user_agent or ""), "remember" in req.get_media()
        req.context.session.login(name, remember=remember, label=device)
        raise falcon.HTTPSeeOther("/")


class Logout:
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        req.context.session.destroy()
        raise falcon.HTTPSeeOther("/")


def not_found(req: falcon.Request, resp: falcon.Response, *_: object) -> None:
    resp.status, resp.content_type, resp.text = falcon.HTTP_404, falcon.MEDIA_HTML, NOT_FOUND


app = falcon.App(middleware=[SessionComponent(SETTINGS)])
app.add_error_handler(falcon.HTTPRouteNotFound, not_found)
app.add_route("/", Front())
app.add_route("/cart", Cart())
app.add_route("/login", Login())
app.add_route("/logout", Logout())
app = own_forms_only(app)

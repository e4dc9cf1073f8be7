"""A small shop in Django. Run it in this folder: gunicorn django_shop:app"""

from device_name import device_name
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.urls import path
from django.views.decorators.http import require_GET, require_POST
from own_forms import own_forms_only
from page import NOT_FOUND, PRODUCTS, page, put_into_cart
from settings import SETTINGS

settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    SESSION_ENGINE="mongosession_wsgi.django",
    SESSION_COOKIE_NAME="mongosession",
    MONGOSESSION=SETTINGS,
    LOGGING={"version": 1, "incremental": True, "loggers": {"django.request": {"level": "ERROR"}}},
)


@require_GET
def index(request: HttpRequest) -> HttpResponse:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return HttpResponse(page(request.session))


@require_POST
def add(request: HttpRequest) -> HttpResponse:
    if (item := request.POST.get("item")) not in PRODUCTS:
        return HttpResponseBadRequest("We have no such tea.")
    put_into_cart(request.session, item)
    return HttpResponse(status=303, headers={"Location": "/"})


@require_POST
def login(request: HttpRequest) -> HttpResponse:
    if not (name := request.POST.get("name", "").strip()):
        return HttpResponseBadRequest("Tell us your name.")
    request.session.label = device_name(request.headers.get("User-Agent", ""))
    request.session[SESSION_KEY] = name  # As django.contrib.auth does, which needs a database.
    request.session.set_expiry(None if "remember" in request.POST else 0)
    return HttpResponse(status=303, headers={"Location": "/"})


@require_POST
def logout(request: HttpRequest) -> HttpResponse:
    request.session.flush()
    return HttpResponse(status=303, headers={"Location": "/"})


def handler404(request: HttpRequest, exception: Exception) -> HttpResponse:
    return HttpResponse(NOT_FOUND, status=404)


urlpatterns = [path("", index), path("cart", add), path("login", login), path("logout", logout)]
app = own_forms_only(get_wsgi_application())

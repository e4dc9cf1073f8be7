"""Read the token from a request, make the header that sets it."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property, lru_cache
from ipaddress import IPv6Address, ip_address
from threading import Lock
from typing import TYPE_CHECKING
from unicodedata import normalize
from urllib.parse import quote

from werkzeug.http import dump_cookie

from .errors import SettingsError, logger
from .settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

TOKEN = re.compile("[A-Za-z0-9_-]{43}")
"""A token: 32 bytes in base64url without padding."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OF_SECURE = ("__host-", "__secure-", "__http-")
_OF_HTTP_ONLY = ("__http-", "__host-http-")
"""The prefixes, in lower case, that only a cookie with the attribute can have."""
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_PATH = re.compile(r"/[\x20-\x3a\x3c-\x7e]*")
_HOST = re.compile(r"(?P<name>\[[^\]]*\]|[^:]*)(?::\d*)?")
_PAGE = re.compile(r"(?P<scheme>https?)://(?P<host>[^/?#]*)", re.I)
_OF_A_PROXY = re.compile(
    r"""\b(?!HTTP_PROXY\b)HTTP_(?:X_)?(?:
    FORWARDED | ORIGINAL_ | REAL_ | REMOTE_ | CLUSTER_ | TRUE_CLIENT | CLIENT_IP\b | CLIENT_CERT
    | CLIENT_(?:PORT|PROTO|SCHEME)\b | SCRIPT_NAME\b | REWRITE_URL\b | EARLY_DATA\b
    | VIA\b | PROXY | PROXIED | WL_PROXY | TLS_ | SSL(?:_|\b) | (?:URL_)?SCHEME\b | PROTO\b
    | HTTPS\b | FRONT_END_HTTPS | MAX_FORWARDS | REQUEST_START | QUEUE_START
    | SURROGATE_CAPABILITY | KONG_ | CONSUMER_ | SOZU_ | AUTHENTIK_ | POMERIUM_ | SENDFILE_TYPE
    | NGINX_ | ACCEL_ | VARNISH | HAPROXY_ | ENVOY_ | ISTIO_ | L5D_ | AUTH_REQUEST_ | BLUECOAT_
    | CF_ | CDN_ | CLOUDFRONT_ | AMZN_ | AMZ_CF_ | AZURE_ | ARR_ | APPENGINE_ | CLOUD_TRACE | GOOG_
    | AKAMAI | FASTLY_ | FLY_ | VERCEL_ | NF_ | RAILWAY_ | RNDR_ | DO_CONNECTING_IP | INCAP_
    | SUCURI_ | ALI_CDN | EO_ | TAILSCALE_
    )""",
    re.VERBOSE,
)
"""The request headers of proxies, load balancers and CDNs.

`X-Request-ID` and the headers of tracing are missing, because clients send them too; `HTTP_PROXY`
because it comes from the shell, whose variables wsgiref puts into the environ.
"""
_PERSISTS = re.compile("keep-alive|upgrade", re.I)
"""The Connection header of every browser over HTTP/1.1; proxies do not pass it on."""


class _Once:
    """A line of the log, written once, by the first thread to come."""

    def __init__(self, level: int, line: str) -> None:
        self._level = level
        self._line = line
        self._turn = Lock()

    def log(self, *arguments: object) -> None:
        if self._turn.acquire(blocking=False):  # For good.
            logger.log(self._level, self._line, *arguments)


def _several() -> _Once:
    return _Once(
        logging.WARNING,
        "The request has several cookies named %s with different values: none of them is used, so "
        "the visitor has no session. Another application sets a cookie of this name, on a parent "
        "domain or another path, or this one did under an earlier session_domain or session_path. "
        "Choose another session_name, or expire the other cookie. This is logged once.",
    )


@dataclass(frozen=True, kw_only=True)
class Cookie:
    """The session cookie, with all of its attributes but the value (RFC 6265bis, section 4.1)."""

    name: str
    secure: bool
    http_only: bool
    same_site: str
    domain: str | None
    path: str
    partitioned: bool
    max_age: timedelta | None
    several: _Once = field(repr=False, compare=False)

    def read(self, header: str) -> str | None:
        """Return the token in a Cookie header; whatever else stands there is None."""
        start = f"{self.name}="
        if start not in header:
            return None
        found = set()
        for pair in header.split(";"):
            stripped = pair.strip(" \t")
            if stripped.startswith(start):
                found.add(stripped.removeprefix(start))
        if len(found) > 1:
            self.several.log(self.name)
            return None
        token = found.pop() if found else ""
        return token if TOKEN.fullmatch(token) else None

    def issue(self, token: str) -> str:
        """Return the value of the Set-Cookie header that hands `token` to the browser."""
        if self.max_age is not None:  # Then the header has the time of now.
            return self._header(token, self.max_age)
        return self._without_a_token.replace("=;", f"={token};", 1)

    @cached_property
    def _without_a_token(self) -> str:
        """The header with an empty value; made once, because the attributes are always the same."""
        return self._header("", None)

    def expire(self) -> str:
        """Return the value of the Set-Cookie header that makes the browser forget its token."""
        return self._header("", timedelta(0), expires=0)

    def _header(self, value: str, max_age: timedelta | None, expires: int | None = None) -> str:
        return dump_cookie(
            self.name,
            value,
            max_age=max_age,
            expires=expires,
            secure=self.secure,
            httponly=self.http_only,
            samesite=self.same_site,
            domain=self.domain,
            path=self.path,
            partitioned=self.partitioned,
            max_size=0,
        )


class CookiePolicy:
    """Which cookie a request's browser is to have: the Secure one, or the one for development.

    Raises `SettingsError` for a name, Domain or Path that a browser would refuse.
    """

    def __init__(self, settings: Settings) -> None:
        secure = settings.secure
        for key, reason in _reasons_for_secure(settings):
            if secure is False:
                raise SettingsError(f"session_secure: {key} {reason} must be Secure, so not false")
            secure = True
        several = _several()
        self._public = _cookie(settings, several, secure=secure is not False)
        self._development = (
            _cookie(settings, several, secure=False) if secure is None else self._public
        )
        self._secure_over_http = _Once(
            logging.WARNING,
            "A Secure session cookie was set on a request that came by plain HTTP to %r. Browsers "
            "send it back by HTTPS only. In production, serve by HTTPS and set session_secure: "
            "true; check that the proxy sends X-Forwarded-Proto, and that the server trusts it "
            "(gunicorn: forwarded_allow_ips). For development on a host with a name or "
            "in a container, set session_secure: false. This is logged once.",
        )
        self._not_secure = _Once(
            logging.INFO,
            "A session cookie without Secure was set, because a request came by plain HTTP from "
            "this machine to itself, with no sign of a proxy. In production, set session_secure: "
            "true. This is logged once.",
        )

    def cookie_for(self, environ: WSGIEnvironment) -> Cookie:
        """Return the cookie that fits the request: Secure, unless it is plain HTTP to loopback."""
        if self._public is not self._development and _is_development(environ):
            return self._development
        return self._public

    def issue(self, cookie: Cookie, token: str, scheme: str, host: str | None) -> str:
        """Return the Set-Cookie header that hands `token` to the browser of a request.

        Logs the first cookie without Secure if the choice was automatic, and the first Secure
        cookie for a request by plain HTTP: the browser may never send this cookie back.
        """
        if not cookie.secure and self._public is not self._development:
            self._not_secure.log()
        elif cookie.secure and scheme != "https":
            self._secure_over_http.log(host)
        return cookie.issue(token)


def _reasons_for_secure(settings: Settings) -> list[tuple[str, str]]:
    """Return the settings that only a Secure cookie can have (RFC 6265bis, section 5.7)."""
    name = (settings.name or "").lower()
    return [
        (key, reason)
        for key, reason, applies in (
            ("session_name", "with this prefix", name.startswith(_OF_SECURE)),
            ("session_same_site", "None", settings.same_site == "None"),
            ("session_partitioned", "true", settings.partitioned),
        )
        if applies
    ]


def _cookie(settings: Settings, several: _Once, *, secure: bool) -> Cookie:
    name = settings.name or _default_name(settings, secure)
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"session_name: {name!r} is no cookie name; use letters, digits and !#$%&'*+-.^_`|~"
        )
    if name.lower().startswith("__host-") and (settings.domain or settings.path != "/"):
        raise SettingsError(
            f"session_name: a cookie named {name!r} has no session_domain, and session_path /"
        )
    if name.lower().startswith(_OF_HTTP_ONLY) and not settings.http_only:
        raise SettingsError(
            f"session_is_http_only: a cookie named {name!r} must be HttpOnly, so not false"
        )
    cookie = Cookie(
        name=name,
        secure=secure,
        http_only=settings.http_only,
        same_site=settings.same_site,
        domain=_checked_domain(settings.domain),
        path=_checked_path(settings.path),
        partitioned=settings.partitioned,
        max_age=settings.max_age,
        several=several,
    )
    _check_size(cookie.issue("t" * 43))
    return cookie


def _check_size(header: str) -> None:
    """Refuse a header that browsers would not take whole (RFC 6265bis, section 5.6)."""
    path = header.partition("; Path=")[2].partition(";")[0]  # A space is three characters here.
    for key, text, most in (("session_path", path, 1024), ("session_name", header, 4096)):
        if len(text) > most:
            raise SettingsError(f"{key}: more than {most} bytes as the cookie is sent, shorten it")


def _default_name(settings: Settings, secure: bool) -> str:
    if secure:
        scoped = settings.domain or settings.path != "/"
        return "__Secure-mongosession" if scoped else "__Host-mongosession"
    # A browser sends the cookie of / to /admin too, where two of one name would be no session.
    return "mongosession" + ("" if settings.path == "/" else quote(settings.path, safe=""))


def _checked_domain(domain: str | None) -> str | None:
    if domain is None:
        return None
    host = domain.removeprefix(".")
    try:
        name = host.encode("idna").decode("ascii")
        is_mapped = any(map(_is_mapped, re.split("[.\u3002\uff0e\uff61]", host)))
    except UnicodeError:
        name, is_mapped = "", False
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise SettingsError(
            f"session_domain: {domain!r} is no host name; give it without scheme, port or path"
        )
    if is_mapped:
        raise SettingsError(
            f"session_domain: {domain!r} may be another host to a browser than to Python; write it "
            "in its ASCII form (xn--...)"
        )
    return name


def _is_mapped(label: str) -> bool:
    """Say whether Python puts other letters in place of those of a label: ss for ß.

    Python has IDNA 2003. Browsers leave such letters as they are (UTS 46, nontransitional).
    """
    written = normalize("NFKC", "".join(map(str.lower, label)))
    return not label.isascii() and label.encode("idna").decode("idna") != written


def _checked_path(path: str) -> str:
    if not _PATH.fullmatch(path):
        raise SettingsError(
            f"session_path: {path!r} is no path; it begins with / and has no ; and no control "
            "characters"
        )
    return path


def _is_development(environ: WSGIEnvironment) -> bool:
    """Say whether the request is plain HTTP from this machine to itself, with no proxy between."""
    return (
        environ["wsgi.url_scheme"] == "http"
        and _is_this_machine(environ.get("HTTP_HOST") or environ.get("SERVER_NAME", ""))
        and not _is_connection_of_a_proxy(environ)
        and not _has_headers_of_a_proxy(environ)
    )


def _is_connection_of_a_proxy(environ: WSGIEnvironment) -> bool:
    """Say whether the peer is on another machine, or connects as no browser does.

    No browser uses HTTP/1.0, as nginx does, or a UNIX socket: there, servers know no address of the
    peer (an empty text, or a word) or no port of their own. Test clients say HTTP/1.0 too, but name
    no peer; WebTest may name a peer, and also its own origin, `paste.testing`.
    """
    peer = environ.get("REMOTE_ADDR")
    if peer is None:
        return not environ.get("SERVER_PORT", "80")
    is_old = environ.get("SERVER_PROTOCOL") == "HTTP/1.0" and "paste.testing" not in environ
    return is_old or not _is_loopback(peer)


def _has_headers_of_a_proxy(environ: WSGIEnvironment) -> bool:
    """Say whether a proxy added a header, changed Host, or left out the Connection of a browser."""
    if "HTTP_SEC_FETCH_SITE" in environ and not _PERSISTS.search(
        environ.get("HTTP_CONNECTION", "")
    ):
        return True
    return (
        _names_one_of_a_proxy(" ".join(environ))
        or _is_elsewhere(environ.get("HTTP_ORIGIN", ""))
        or _is_elsewhere(environ.get("HTTP_REFERER", ""))
    )


@lru_cache(maxsize=256)
def _names_one_of_a_proxy(headers: str) -> bool:
    """Say whether a proxy added one of `headers`; cached, as clients repeat their headers."""
    return _OF_A_PROXY.search(headers) is not None


def _is_elsewhere(page: str) -> bool:
    """Say whether the URL of a page is HTTPS, or on another machine; `null` is neither."""
    match = _PAGE.match(page)
    if match is None:
        return False
    return match["scheme"].lower() == "https" or not _is_this_machine(match["host"])


@lru_cache(maxsize=256)
def _is_this_machine(host: str) -> bool:
    """Say whether `host`, a name or an address with or without a port, is this machine."""
    match = _HOST.fullmatch(host.lower())
    name = match["name"] if match else host
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name.strip("[]"))


@lru_cache(maxsize=256)
def _is_loopback(address: str) -> bool:
    """Say whether `address` is a loopback address."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return (mapped or found).is_loopback

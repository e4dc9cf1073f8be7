"""Read the token from a request, make the header that sets it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

from werkzeug.http import dump_cookie

from .errors import SettingsError, logger
from .settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

TOKEN = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
"""A token: 32 bytes in base64url without padding."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_PATH = re.compile(r"/[\x20-\x3a\x3c-\x7e]*")
_HOST = re.compile(r"(?P<name>\[[^\]]*\]|[^:]*)(?::\d*)?")
_FROM_A_PROXY = re.compile(r"HTTP_(?:FORWARDED|X_FORWARDED_|X_REAL_IP|VIA)")


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

    def read(self, environ: WSGIEnvironment) -> str | None:
        """Return the token that the request brings; whatever else stands there is None."""
        header, start = environ.get("HTTP_COOKIE", ""), f"{self.name}="
        if start not in header:
            return None
        found = set()
        for pair in header.split(";"):
            stripped = pair.strip(" \t")
            if stripped.startswith(start):
                found.add(stripped.removeprefix(start))
        if len(found) > 1:
            logger.warning(
                "The request has several cookies named %s: none of them is used. Look for another "
                "application that sets this name, on this host or a parent domain.",
                self.name,
            )
            return None
        token = found.pop() if found else ""
        return token if TOKEN.fullmatch(token) else None

    def issue(self, token: str) -> str:
        """Return the value of the Set-Cookie header that hands `token` to the browser."""
        return self._header(token, self.max_age)

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
        self._public = _cookie(settings, secure=secure is not False)
        self._development = self._public if secure else _cookie(settings, secure=False)
        self._warned = False

    def cookie_for(self, environ: WSGIEnvironment) -> Cookie:
        """Return the cookie that fits the request: Secure, unless it is plain HTTP to loopback."""
        if self._public is not self._development and _is_development(environ):
            return self._development
        return self._public

    def issue(self, cookie: Cookie, token: str, environ: WSGIEnvironment) -> str:
        """Return the Set-Cookie header that hands `token` to the browser of the request.

        Logs, once, that the cookie is Secure but the request was not: it may never come back.
        """
        if cookie.secure and environ["wsgi.url_scheme"] != "https" and not self._warned:
            self._warned = True
            logger.warning(
                "A Secure session cookie was set on a request that came by plain HTTP to %r. "
                "Behind a TLS proxy, check that it sends X-Forwarded-Proto and that the server "
                "trusts it (gunicorn: forwarded_allow_ips), and set session_secure: true. "
                "Without TLS, browsers do not send this cookie back.",
                environ.get("HTTP_HOST") or environ.get("SERVER_NAME"),
            )
        return cookie.issue(token)


def _reasons_for_secure(settings: Settings) -> list[tuple[str, str]]:
    """Return the settings that only a Secure cookie can have (RFC 6265bis, section 5.7)."""
    name = (settings.name or "").lower()
    return [
        (key, reason)
        for key, reason, applies in (
            ("session_name", "with this prefix", name.startswith(("__host-", "__secure-"))),
            ("session_same_site", "None", settings.same_site == "None"),
            ("session_partitioned", "true", settings.partitioned),
        )
        if applies
    ]


def _cookie(settings: Settings, *, secure: bool) -> Cookie:
    name = settings.name or _default_name(settings, secure)
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"session_name: {name!r} is no cookie name; use letters, digits and !#$%&'*+-.^_`|~"
        )
    if name.lower().startswith("__host-") and (settings.domain or settings.path != "/"):
        raise SettingsError(
            f"session_name: a cookie named {name!r} has no session_domain, and session_path /"
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
    )
    if len(cookie.issue("t" * 43)) > 4096:
        raise SettingsError("session_name: the cookie would have more than 4096 bytes, shorten it")
    return cookie


def _default_name(settings: Settings, secure: bool) -> str:
    if not secure:
        return "mongosession"
    if settings.domain or settings.path != "/":
        return "__Secure-mongosession"
    return "__Host-mongosession"


def _checked_domain(domain: str | None) -> str | None:
    if domain is None:
        return None
    try:
        name = domain.removeprefix(".").encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise SettingsError(
            f"session_domain: {domain!r} is no host name; give it without scheme, port or path"
        )
    return name


def _checked_path(path: str) -> str:
    if not _PATH.fullmatch(path) or len(path) > 1024:
        raise SettingsError(
            f"session_path: {path!r} is no path; it begins with / and has no ; and no control "
            "characters, at most 1024"
        )
    return path


def _is_development(environ: WSGIEnvironment) -> bool:
    """Say whether the request is plain HTTP from this machine to itself, with no proxy between."""
    peer = environ.get("REMOTE_ADDR")
    return (
        environ["wsgi.url_scheme"] == "http"
        and _is_loopback(environ.get("HTTP_HOST") or environ.get("SERVER_NAME", ""))
        and (not peer or _is_loopback(peer))
        and not _FROM_A_PROXY.search(" ".join(environ))
    )


@lru_cache(maxsize=256)
def _is_loopback(host: str) -> bool:
    """Say whether `host`, a name or an address with or without a port, is this machine."""
    match = _HOST.fullmatch(host.lower())
    name = match["name"] if match else host
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name.strip("[]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback

"""What a response says to caches, so that none hands one visitor's session to another."""

from __future__ import annotations

import re

from werkzeug.http import parse_dict_header, parse_set_header

Headers = list[tuple[str, str]]

_DIRECTIVE = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')
_FOR_ALL = {"public", "s-maxage", "private"}
"""The directives that `private` replaces, also the weaker `private="X-Field"`."""
_TARGETED = re.compile(r".+-cache-control|surrogate-control|edge-control|x-accel-expires", re.I)
"""The headers that a CDN or nginx obeys in place of Cache-Control (RFC 9213, section 2.2).

CDN-Cache-Control is the standard. Cloudflare, Vercel, Netlify, Akamai and LiteSpeed have names with
the same ending; Surrogate-Control is Fastly's, Edge-Control Akamai's, X-Accel-Expires nginx's.
"""


def vary_on_cookie(headers: Headers) -> None:
    """Add `Cookie` to what the response varies on, once (RFC 9110, section 12.5.5)."""
    varies = [value for name, value in headers if name.lower() == "vary"]
    if not varies:
        headers.append(("Vary", "Cookie"))
        return
    names = parse_set_header(", ".join(varies))
    if "cookie" not in names and "*" not in names:
        _extend(headers, "Vary", "Cookie")


def make_private(headers: Headers) -> None:
    """Keep shared caches from storing a response that begins a session.

    `private` takes the place of `public` and `s-maxage` (RFC 9111, section 5.2.2); the other
    directives stay. Headers for a CDN alone are left out, so Cache-Control counts there too.
    """
    if not _speaks_to_caches(headers):
        headers.append(("Cache-Control", "private"))
        return
    _leave_out_targeted(headers)
    if _is_never_stored(_directives(headers)):
        return
    kept = [
        directive.strip()
        for name, value in headers
        if name.lower() == "cache-control"
        for directive in _DIRECTIVE.findall(value)
        if directive.strip() and directive.partition("=")[0].strip().lower() not in _FOR_ALL
    ]
    headers[:] = [header for header in headers if header[0].lower() != "cache-control"]
    headers.append(("Cache-Control", ", ".join(["private", *kept])))


def keep_cookie_private(headers: Headers) -> None:
    """Keep shared caches from storing the cookie of a response that merely renews a session.

    They may store the page, if the application allows it (RFC 9111, section 5.2.2.4).
    """
    _leave_out_targeted(headers)
    directives = _directives(headers)
    if directives is None:
        headers.append(("Cache-Control", "private"))
        return
    for_all_fields = [name for name, fields in directives.items() if fields is None]
    fields_left_out = parse_set_header(directives.get("no-cache"))
    is_stored = not _is_never_stored(directives) and "private" not in for_all_fields
    if is_stored and "set-cookie" not in fields_left_out:
        _extend(headers, "Cache-Control", 'no-cache="Set-Cookie"')


def _speaks_to_caches(headers: Headers) -> bool:
    """Say whether there may be a header for caches; most responses have none."""
    names = " ".join([name for name, _ in headers]).lower()
    return "-control" in names or "x-accel-expires" in names


def _directives(headers: Headers) -> dict[str, str | None] | None:
    """Return the directives of Cache-Control in lower case; None if there is no such header."""
    values = [value for name, value in headers if name.lower() == "cache-control"]
    return parse_dict_header(", ".join(values).lower()) if values else None


def _is_never_stored(directives: dict[str, str | None] | None) -> bool:
    """Say whether no cache stores the response.

    A cache that knows the status code ignores `no-store` beside `must-understand` (RFC 9111,
    section 5.2.2.3).
    """
    names = directives or ()
    return "no-store" in names and "must-understand" not in names


def _leave_out_targeted(headers: Headers) -> None:
    headers[:] = [header for header in headers if not _TARGETED.fullmatch(header[0])]


def _extend(headers: Headers, wanted: str, element: str) -> None:
    """Append an element to a list header, next to what is there."""
    for index, (name, value) in enumerate(headers):
        if name.lower() == wanted.lower():
            headers[index] = (name, f"{value}, {element}" if value.strip() else element)
            return
    headers.append((wanted, element))

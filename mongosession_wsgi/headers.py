"""What a response says to caches, so that none hands one visitor's session to another."""

from __future__ import annotations

from werkzeug.http import parse_dict_header, parse_set_header

Headers = list[tuple[str, str]]


def vary_on_cookie(headers: Headers) -> None:
    """Add `Cookie` to what the response varies on, once (RFC 9110, section 12.5.5)."""
    varies = [value for name, value in headers if name.lower() == "vary"]
    if not varies:
        headers.append(("Vary", "Cookie"))
        return
    names = parse_set_header(", ".join(varies))
    if "cookie" not in names and "*" not in names:
        _extend(headers, "Vary", "Cookie")


def keep_cookie_private(headers: Headers) -> None:
    """Keep shared caches from storing a response that sets a cookie (RFC 9111, section 5.2.2)."""
    controls = [value for name, value in headers if name.lower() == "cache-control"]
    if not controls:
        headers.append(("Cache-Control", "private"))
        return
    directives = parse_dict_header(", ".join(controls).lower())
    for_all_fields = [name for name, fields in directives.items() if fields is None]
    fields_left_out = parse_set_header(directives.get("no-cache"))
    # A cache that knows the status code ignores the one beside the other (section 5.2.2.3).
    is_stored = "no-store" not in directives or "must-understand" in directives
    if is_stored and "private" not in for_all_fields and "set-cookie" not in fields_left_out:
        _extend(headers, "Cache-Control", 'no-cache="Set-Cookie"')


def make_private(headers: Headers) -> None:
    keep_cookie_private(headers)


def _extend(headers: Headers, wanted: str, element: str) -> None:
    """Append an element to a list header, next to what is there."""
    for index, (name, value) in enumerate(headers):
        if name.lower() == wanted.lower():
            headers[index] = (name, f"{value}, {element}" if value.strip() else element)
            return
    headers.append((wanted, element))

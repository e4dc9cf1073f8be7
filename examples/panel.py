"""The panel beside the shop: the cookie, the stored document, the commands, and the promises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any

from page import fill
from promises import PROMISES

HERE = Path(__file__).parent
PANEL = Template((HERE / "panel.html").read_text(encoding="utf-8"))

PROMISE = Template("""
      <form method="post" action="/promises/$name"><button class="quiet">$title</button></form>""")

TOLD = Template("""
    <section class="told" role="status">
      <h3>$title</h3>
      <ol>$steps
      </ol>
    </section>""")

STEP = Template("""
        <li>
          <strong>$who</strong> $does: $shows <b class="$verdict">$mark</b>$commands
        </li>""")

REQUEST = Template("""
      <li><code>$line</code> <span>$status</span>$commands$cookie
      </li>""")

COMMANDS = Template("""
        <ul class="commands">$commands
        </ul>""")

COMMAND = Template("""
          <li><b>$name</b> $does <span>$comes_of_it · $time ms</span></li>""")

NO_COMMAND = """
        <p>No command: this request has nothing to ask MongoDB.</p>"""

COOKIE_SET = Template("""
        <p class="sets">Set-Cookie: $cookie</p>""")

ATTRIBUTE = Template("""
        <li><code>$attribute</code> $means</li>""")

MEANINGS = {
    "HttpOnly": "No script can read the cookie.",
    "SameSite=Lax": "Forms of other sites come without the cookie.",
    "Path=/": "It goes to every page of this host.",
    "Secure": "It never goes over plain HTTP.",
}
NOT_SECURE = "not Secure", "Only because this is plain HTTP on your own machine."
NO_DOCUMENT = "Nothing is stored: this browser has no session."


def panel(
    *,
    cookie: str | None,
    document: Mapping[str, Any] | None,
    requests: Iterable[Mapping[str, Any]],
    told: Mapping[str, Any] | None,
) -> str:
    """Return the panel, with the last `requests` of a browser and what a promise has `told`."""
    newest_first = reversed(list(requests))
    return fill(
        PANEL,
        {"cookie": (cookie or "no cookie").partition(";")[0]},
        attributes=_attributes(cookie) if cookie else "",
        document=fill(Template("$json"), {"json": _as_json(document) if document else NO_DOCUMENT}),
        requests="".join(map(_request, newest_first)),
        told=_told(told) if told else "",
        promises="".join(
            fill(PROMISE, {"name": name, "title": promise.__doc__})
            for name, promise in PROMISES.items()
        ),
    )


def masked(set_cookie: str) -> str:
    """Return a Set-Cookie header with no more than the beginning of the token."""
    return re.sub(r"^([^=]+=[^;]{0,6})[^;]*", r"\1…", set_cookie)


def _attributes(cookie: str) -> str:
    given = [part.strip() for part in cookie.split(";")[1:]]
    rows = [(attribute, MEANINGS.get(attribute, "")) for attribute in given]
    if "Secure" not in given:
        rows.append(NOT_SECURE)
    return "".join(fill(ATTRIBUTE, {"attribute": name, "means": means}) for name, means in rows)


def _as_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, default=_as_text)


def _as_text(value: object) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S} UTC" if isinstance(value, datetime) else str(value)


def _request(noted: Mapping[str, Any]) -> str:
    return fill(
        REQUEST,
        {"line": noted["line"], "status": noted["status"]},
        commands=_commands(noted["commands"]) or NO_COMMAND,
        cookie=fill(COOKIE_SET, {"cookie": noted["cookie"]}) if noted["cookie"] else "",
    )


def _told(told: Mapping[str, Any]) -> str:
    return fill(TOLD, {"title": told["title"]}, steps="".join(map(_step, told["steps"])))


def _step(step: Mapping[str, Any]) -> str:
    is_right, texts = step["is_right"], {name: step[name] for name in ("who", "does", "shows")}
    texts |= {"mark": "✓" if is_right else "✗", "verdict": "right" if is_right else "wrong"}
    return fill(STEP, texts, commands=_commands(step["commands"]))


def _commands(commands: Iterable[Mapping[str, Any]]) -> str:
    rows = "".join(
        fill(COMMAND, {**command, "time": f"{command['milliseconds']:.1f}"}) for command in commands
    )
    return fill(COMMANDS, {}, commands=rows) if rows else ""

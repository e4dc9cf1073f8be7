"""The page that tells somebody where they are signed in, and lets them sign out there."""

import hmac
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from string import Template

from bottle import Bottle, abort, redirect, request, response
from page import STYLE, fill
from settings import SETTINGS

from mongosession_wsgi import MongoStore, Session, SessionInfo
from mongosession_wsgi.bottle import MongoSessionPlugin

OTHERS = "others"
"""What the form names instead of an id, to end all sessions but the one that sends it."""

UNITS = {"day": timedelta(days=1), "hour": timedelta(hours=1), "minute": timedelta(minutes=1)}

PAGE = Template(Path(__file__).with_name("devices.html").read_text(encoding="utf-8"))

DEVICE = Template("""
        <li$current>
          <span class="screen $kind"></span>
          <div>
            <h2>$name</h2>$this
            <p>$active</p>
            <p>Signed in on <time datetime="$moment">$since</time></p>
          </div>
          <button class="quiet" name="end" value="$id">
            Sign out<span class="unseen"> $name. $active</span></button>
        </li>""")

CURRENT = ' aria-current="true"'

THIS = """
            <p class="this">This device</p>"""

SIGN_OUT_OTHERS = f"""
      <button class="quiet" name="end" value="{OTHERS}">Sign out everywhere else</button>"""

NOTICE = Template("""
    <p class="notice" role="status">$text</p>""")


store = MongoStore(SETTINGS)
devices = Bottle()
devices.install(MongoSessionPlugin())


@devices.get("/devices")
def show(session: Session) -> str:
    if session.owner is None:
        redirect("/", 303)
    response.set_header("Cache-Control", "no-store")
    return page(session, store.sessions(session.owner), session.pop("ended", None))


@devices.post("/devices")
def sign_out(session: Session) -> None:
    if session.owner is None:
        redirect("/", 303)
    if not is_genuine(session, request.forms.csrf):
        abort(403, "This form is out of date. Open its page again.")
    if request.forms.end == session.id:
        session.destroy()
        redirect("/", 303)
    session["ended"] = end(session, request.forms.end)
    redirect("/devices", 303)


def end(session: Session, which: str) -> int:
    """End the session of this id, or all `OTHERS`, of the owner of `session`; return how many."""
    if which == OTHERS:
        return store.revoke_all(session.owner, keep=session.id)
    # A session has one owner for life, so nothing can come between the question and the deed.
    mine = any(info.id == which for info in store.sessions(session.owner))
    return store.revoke(which) if mine else 0


def csrf_token(session: Session) -> str:
    """Return what a form must send along: only a page of this session can know it."""
    if session.token is None:
        raise LookupError("a session that is not stored has no token")
    return hmac.digest(session.token.encode(), b"csrf", "sha256").hex()


def is_genuine(session: Session, csrf: str) -> bool:
    """Say whether a form comes from a page of this session."""
    return hmac.compare_digest(csrf_token(session).encode(), csrf.encode())


def page(session: Session, sessions: Iterable[SessionInfo], ended: int | None) -> str:
    """Return the page for the owner of `session`, whose `sessions` these are.

    `ended` is how many the form has ended that leads here, None if there was none.
    """
    now = datetime.now(timezone.utc)
    this_first = sorted(sessions, key=lambda info: info.id != session.id)
    return fill(
        PAGE,
        {
            "title": SETTINGS["title"],
            "owner": session.owner,
            "count": _counted(len(this_first)),
            "csrf": csrf_token(session),
        },
        style=STYLE,
        notice="" if ended is None else fill(NOTICE, {"text": _told(ended)}),
        devices="".join(_device(info, info.id == session.id, now) for info in this_first),
        others=SIGN_OUT_OTHERS if len(this_first) > 1 else "",
    )


def _device(info: SessionInfo, is_this: bool, now: datetime) -> str:
    name = info.label or "A device"
    texts = {
        "id": info.id,
        "name": name,
        "kind": "phone" if name.endswith(("iPhone", "Android")) else "",
        "active": "Active now" if is_this else last_active(now - info.seen_at),
        "moment": info.created_at.isoformat(timespec="seconds"),
        "since": f"{info.created_at.day} {info.created_at:%B %Y, %H:%M} UTC",
    }
    return fill(DEVICE, texts, current=CURRENT if is_this else "", this=THIS if is_this else "")


def last_active(span: timedelta) -> str:
    """Say in words how long ago a device was active.

    A session that is only read is noted as seen every five minutes, so the last ten count as one.
    """
    for unit, size in UNITS.items():
        if span >= size and span >= timedelta(minutes=10):
            count = span // size
            return f"Last active {count} {unit}{'s' if count > 1 else ''} ago"
    return "Active in the last few minutes"


def _counted(devices: int) -> str:
    return f"{devices} device{'' if devices == 1 else 's'}"


def _told(ended: int) -> str:
    if ended == 0:
        return "No device was signed out: it had been already."
    return f"{_counted(ended)} signed out."

"""The kinds of requests that are explored, and what is stored when they begin."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import bson

from mongosession_wsgi import Session

from .engine import Changes, Tick, changes_between
from .script import Kind, PlannedError, Play
from .world import Heir, Start, World

HAS_REMEMBER = "remember" in inspect.signature(Session.login).parameters
CART, BASE = "cart", "base"
SHARED = "shared"
"""A key that several requests set."""


# What applications do.


def _then(*uses: Callable[[Play], Any]) -> Callable[[Play], None]:
    def use(play: Play) -> None:
        for one in uses:
            one(play)

    return use


def _read(play: Play) -> None:
    play.read()


def _set(play: Play) -> None:
    play.set(SHARED)
    play.set()


def _append(play: Play) -> None:
    play.append()


def _delete(play: Play) -> None:
    play.delete(BASE)


def _clear(play: Play) -> None:
    play.clear()


def _login(owner: str, **options: Any) -> Callable[[Play], None]:
    return lambda play: play.login(owner, **options)


def _regenerate(play: Play) -> None:
    play.regenerate()


def _destroy(play: Play) -> None:
    play.destroy()


def _spoil(play: Play) -> None:
    play.spoil()


def _fail(play: Play) -> None:
    raise PlannedError


def _end_others_one_by_one(play: Play) -> None:
    """Be the page "Where you're signed in", and end each session but this one."""
    play.read()
    if play.session.owner is not None:
        here = play.session.id
        for id_ in play.call("sessions", play.session.owner):
            if id_ != here:
                play.call("revoke", id_)


def _end_others_at_once(play: Play) -> None:
    play.read()
    if play.session.owner is not None:
        play.call("revoke_all", play.session.owner, play.session.id)


def _end_others_after_login(play: Play) -> None:
    """Be what docs/devices.md recommends after a change of the password."""
    play.read()
    owner = play.session.owner
    if owner is not None:
        play.call("revoke_all", owner, play.session.id)
        play.login(owner)


# What operators and time do.


def _main(do: Callable[[Play], object]) -> Callable[[Play], None]:
    def main(play: Play) -> None:
        play.is_committing = True
        do(play)

    return main


def _of_alice(play: Play) -> None:
    play.call("revoke_all", "alice")


def _of_alice_but_this(play: Play) -> None:
    play.call("revoke_all", "alice", play.id)


def _tick(words: str, seconds: float) -> Callable[[Play], None]:
    """Return what lets time pass, and has the server delete what has expired."""

    def main(play: Play) -> None:
        play.ask(Tick(words, lambda: _pass_by(play.world, seconds)))
        deletes = "the server deletes what has expired"
        play.ask(Tick(deletes, lambda: _delete_expired(play.world)))

    return main


def _pass_by(world: World, seconds: float) -> Changes:
    world.time.pass_by(seconds)
    return ()


def _delete_expired(world: World) -> Changes:
    documents = world.server.documents
    before, now = dict(documents), world.time.now.replace(tzinfo=None)
    for id_, raw in before.items():
        if bson.decode(raw)["expires_at"] <= now:
            del documents[id_]
    return changes_between(before, documents)


def _request(name: str, words: str, *uses: Callable[[Play], Any], **how: Any) -> Kind:
    return Kind(name, words, _then(*uses), **how)


KINDS = [
    _request("read", "reads", _read),
    _request("set", "sets, having read nothing", _set),
    _request("read+set", "reads, then sets", _read, _set),
    _request("set+read", "sets, then reads", _set, _read),
    _request("append", "appends to a list", _append),
    _request("delete", "deletes a key", _delete),
    _request("clear", "clears, having read nothing", _clear),
    _request("read+clear+set", "reads, clears, then sets", _read, _clear, _set),
    _request("login", "logs in as Alice, having read nothing", _login("alice")),
    _request("read+login", "reads, then logs in as Alice", _read, _login("alice")),
    _request("login+set", "logs in as Alice, then sets", _login("alice"), _set),
    _request("login bob", "logs in as Bob, having read nothing", _login("bob")),
    _request("read+login bob", "reads, then logs in as Bob", _read, _login("bob")),
    _request("rotate", "regenerates, having read nothing", _regenerate),
    _request("read+rotate", "reads, then regenerates", _read, _regenerate),
    _request("set+rotate", "sets, then regenerates", _set, _regenerate),
    _request("spoil+rotate", "regenerates, and cannot be stored", _spoil, _regenerate, fails=True),
    _request("logout", "logs out, having read nothing", _destroy),
    _request("read+logout", "reads, then logs out", _read, _destroy),
    _request("logout+set", "logs out, then sets", _destroy, _set),
    _request("read+logout+set", "reads, logs out, then sets", _read, _destroy, _set),
    _request("logout+login", "logs out, then logs in as Alice", _destroy, _login("alice")),
    _request("fail", "sets, then answers 500", _set, status="500 PlannedError", fails=True),
    _request("raise", "reads, sets, then raises", _read, _set, _fail, fails=True),
    _request(
        "fail+logout", "logs out, then answers 500", _destroy, status="500 PlannedError", fails=True
    ),
    _request("raise+logout", "logs out, then raises", _destroy, _fail, fails=True),
    _request("late set", "reads, and sets after its first item", _read, late=_set),
    _request("set late", "sets after its first item, having read nothing", late=_set),
    _request("devices", "ends the owner's other sessions one by one", _end_others_one_by_one),
    _request("log out others", "ends the owner's other sessions at once", _end_others_at_once),
    _request("new password", "ends the others, then logs in again", _end_others_after_login),
    Kind(
        "revoke",
        "revokes the session by its id",
        main=_main(lambda play: play.call("revoke", play.id or "no id")),
    ),
    Kind("revoke all", "revokes all sessions of Alice", main=_main(_of_alice)),
    Kind("revoke others", "revokes all of Alice's but this one", main=_main(_of_alice_but_this)),
    Kind("list", "lists Alice's sessions", main=_main(lambda play: play.call("sessions", "alice"))),
    Kind("purge", "deletes what has expired", main=_main(lambda play: play.call("purge", None))),
    Kind("a minute", "lets a minute pass", main=_tick("a minute passes", 61)),
    Kind("expiry", "lets the idle time pass", main=_tick("two hours pass", 2 * 3600 + 61)),
]
if HAS_REMEMBER:
    KINDS.insert(
        11, _request("remember", "logs in as Alice, to stay", _login("alice", remember=True))
    )
BY_NAME = {kind.name: kind for kind in KINDS}
DANGEROUS = (
    *("set", "read+set", "rotate", "read+rotate", "login", "read+login", "login bob", "logout"),
    *("read+logout", "revoke", "revoke all", "revoke others"),
)


# What is stored at the start.


class Setting(NamedTuple):
    """How a start is made: the requests of one browser, one after the other."""

    words: str
    requests: tuple[Kind, ...] = ()
    tokens: tuple[str, ...] = ("new",)
    """What the tokens are called that the browser gets by and by."""
    follows: tuple[bool, bool] = (False, False)
    """Whether the new token is that of a login, and of one with the same owner."""
    minutes: int = 0
    """The time between the last of them and the beginning of the order."""


def _fill(play: Play) -> None:
    play.set(BASE, "base")
    play.set(CART, ["egg"])


_BEGIN = _request("begin", "fills a cart", _fill)
_ENTER = _request("enter", "logs in as Alice and fills a cart", _login("alice"), _fill)
_LOGIN, _ROTATE, _LOGOUT = BY_NAME["login"], BY_NAME["rotate"], BY_NAME["logout"]
_OLD_AND_NEW = ("old", "new")

STARTS = {
    "nobody": Setting("a browser has no cookie"),
    "gone": Setting("a browser has the cookie of a session that was logged out", (_BEGIN, _LOGOUT)),
    "visitor": Setting("an anonymous visitor has a session", (_BEGIN,)),
    # Due to be renewed, so that also those who only read write something.
    "member": Setting("Alice has a session that is due to be renewed", (_ENTER,), minutes=20),
    "rotated": Setting(
        "Alice's session has just been regenerated", (_ENTER, _ROTATE), _OLD_AND_NEW, (False, True)
    ),
    "rotated visitor": Setting(
        "an anonymous session has just been regenerated",
        (_BEGIN, _ROTATE),
        _OLD_AND_NEW,
        (False, True),
    ),
    "confirmed": Setting(
        "Alice has just logged in again", (_ENTER, _LOGIN), _OLD_AND_NEW, (True, True)
    ),
    "arrived": Setting(
        "Alice, anonymous before, has just logged in",
        (_BEGIN, _LOGIN),
        _OLD_AND_NEW,
        (True, False),
    ),
}
_PHONE = (_LOGIN, _request("phone", "", lambda play: play.set("device", "phone")))


def starts_of(world: World) -> dict[str, Start]:
    """Store what each start has, by requests; return the starts by their names."""
    return {name: _start(world, name, setting) for name, setting in STARTS.items()}


def _start(world: World, name: str, setting: Setting) -> Start:
    """Make a start; Alice has another session elsewhere in each of them."""
    world.reset(Start("setting up", ""))
    _browse(world, "P", _PHONE)
    drawn: list[str | None] = [*_browse(world, "S", setting.requests)]
    tokens = dict(zip(setting.tokens, drawn or [None], strict=True))
    world.time.pass_by(60 * setting.minutes)
    heirs: tuple[Heir, ...] = ()
    if len(drawn) == 2:
        old, new = (world.id_of(token) for token in tokens.values() if token)
        heirs = (Heir(old, new, *setting.follows),)
    documents = dict(world.server.documents)
    return Start(name, setting.words, documents, tokens, heirs, world.time.now)


def _browse(world: World, name: str, requests: tuple[Kind, ...]) -> list[str]:
    """Do one request after the other; return the tokens that the browser had by and by.

    A second passes after each, so that no two of the sessions are of the same age.
    """
    tokens: list[str] = []
    for kind in requests:
        play = world.run_alone(name, kind, tokens[-1] if tokens else None, len(tokens))
        assert play.status == kind.status, play.error
        world.time.pass_by(1)
        if play.cookie and play.cookie not in tokens:
            tokens.append(play.cookie)
    return tokens

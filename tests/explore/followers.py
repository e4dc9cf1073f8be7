"""Go on after an order: what does the next request of the browser find, and leave behind?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .catalogue import BY_NAME
from .engine import Documents
from .history import Form, History, View, Views
from .script import Kind, Local, Play
from .verdict import Broken
from .world import World


def cookies_of(history: History) -> list[str | None]:
    """Return the tokens that the browser may have in the end, by the order of the responses.

    A response whose last command came before another's in every order was the earlier one.
    """
    last = {
        visit: step
        for visit in history.visits
        if visit.cookie is not None
        for step in visit.steps
        if step.number < (visit.responded_at or 0)
    }
    if not last:
        return [history.start.tokens["new"]]
    setters = [
        visit
        for visit, step in last.items()
        if not any(history.is_before(step, other) for other in last.values() if other is not step)
    ]
    return list(dict.fromkeys(visit.cookie or None for visit in setters))


def other_cookies_of(history: History) -> list[str | None]:
    """Return the tokens that it may have if the network lets one response overtake another."""
    tokens = [visit.cookie or None for visit in history.visits if visit.cookie is not None]
    tokens += history.start.tokens.values()
    return list(dict.fromkeys(tokens))


class Followers:
    """The requests that follow an order; each is tried once for what an order leaves."""

    def __init__(self, world: World, views: Views) -> None:
        self._world = world
        self._views = views
        self._known: dict[Any, list[Broken]] = {}

    def forget(self) -> None:
        self._known.clear()

    def broken_by(self, history: History) -> Iterator[Broken]:
        """Say which promises are broken by what follows."""
        for token in cookies_of(history):
            yield from _outside(history, token)
        documents, now = dict(self._world.server.documents), self._world.time.now
        heirs = frozenset(history.heirs)
        for token in other_cookies_of(history):
            key = (frozenset(documents.items()), now, heirs, token)
            if key not in self._known:
                self._known[key] = list(self._follow(history, documents, token))
            yield from self._known[key]
        self._restore(documents, history)

    def _follow(
        self, history: History, documents: Documents, token: str | None
    ) -> Iterator[Broken]:
        id_ = None if token is None else self._world.id_of(token)
        view = history.view(id_, history.ended_at)
        for rule in _RULES:
            self._restore(documents, history)
            yield from rule(_Following(self._world, self._views, history, token, id_, view))

    def _restore(self, documents: Documents, history: History) -> None:
        self._world.server.hold(documents)
        self._world.time.now = history.now


class _Following:
    """A browser with one token, after an order."""

    def __init__(
        self,
        world: World,
        views: Views,
        history: History,
        token: str | None,
        id_: str | None,
        view: View,
    ) -> None:
        self.world = world
        self.views = views
        self.history = history
        self.token = token
        self.id = id_
        self.view = view

    def do(self, kind: Kind) -> Play:
        """Do a request, a second later, with the token that the browser has; keep its cookie."""
        self.world.time.pass_by(1)
        visit = self.world.run_alone("F", kind, self.token)
        if visit.cookie is not None:
            self.token = visit.cookie or None
        return visit

    def look(self, token: str | None) -> View:
        """Return what is there now under a token."""
        id_ = "" if token is None else self.world.id_of(token)
        raw = self.world.server.documents.get(id_)
        return self.views.of(token or "", id_, raw, self.world.time.now)

    def live(self) -> list[tuple[str, View]]:
        found = [(id_, self.look(self.world.tokens[id_])) for id_ in self.world.server.documents]
        return [(id_, view) for id_, view in found if view.is_live]


def _outside(history: History, token: str | None) -> Iterator[Broken]:
    """Find a browser whose cookie opens nothing though nobody meant to end its session."""
    if token is None:
        return
    id_ = history.world.id_of(token)
    ends_of = history.ends_of(id_)
    if history.view(id_, history.ended_at).is_live or not ends_of:
        return
    visit = ends_of[-1].visit
    local = visit.local
    is_replaced = visit.is_answered and local.rotates and not local.destroys and not visit.faults
    if is_replaced and not any(v.local.destroys or v.local.calls for v in history.visits):
        yield Broken("6 outside", f"the browser is left with a token that {visit.name} ended")


def _reads(browser: _Following) -> Iterator[Broken]:
    visit = browser.do(BY_NAME["read"])
    yield from _answered(visit, "read")
    expected = (browser.view.data, browser.view.owner) if browser.view.is_live else ({}, None)
    if [(seen.data, seen.owner) for seen in visit.seen] != [expected]:
        promise = "6 seen" if browser.view.is_live else "4 old token"
        yield Broken(promise, f"the next request saw {visit.seen[-1:]}, not {expected}")
    if visit.cookie is not None and not (browser.view.is_live and visit.cookie == browser.token):
        yield Broken("cookie", "the next request, which reads, set a cookie")


def _sets(browser: _Following) -> Iterator[Broken]:
    before = browser.world.server.documents.copy()
    visit = browser.do(BY_NAME["set"])
    yield from _answered(visit, "sets")
    data = browser.look(browser.token).data
    match browser.view.form:
        case Form.LIVE | Form.NONE | Form.EXPIRED:
            if data.get("of F") != "by F" or len(data) != len(browser.view.data | _BY_F):
                yield Broken("1 lost", f"the next request has set a key, and then there is {data}")
        case Form.MARK:
            if visit.cookie is not None or browser.world.server.documents != before:
                yield Broken("4 old token", "the next request has set a key with an old token")


_BY_F = {"of F": "by F", "shared": "by F"}


def _logs_in(browser: _Following) -> Iterator[Broken]:
    old = browser.token
    visit = browser.do(BY_NAME["login"])
    yield from _answered(visit, "logs in")
    view = browser.look(browser.token)
    if visit.cookie is None or not view.is_live or view.owner != "alice":
        yield Broken("4 login", "the next request has logged in, and is outside")
    expected = {} if browser.view.owner not in (None, "alice") else browser.view.data
    if browser.view.is_live and view.data != expected:
        yield Broken("4 owner", f"the next request has logged in, and has {view.data}")
    if browser.look(old).is_live:
        yield Broken("4 old token", "the next request has logged in, and its old token is live")


def _logs_out(browser: _Following) -> Iterator[Broken]:
    visit = browser.do(BY_NAME["logout"])
    yield from _answered(visit, "logs out")
    if browser.view.is_live and visit.cookie != "":
        yield Broken("4 logout", "the next request has logged out, and still has its cookie")
    if browser.id is not None and browser.view.form in (Form.LIVE, Form.MARK):
        ids = browser.history.heirs_of(browser.id, logins=True)
        if ids.intersection(id_ for id_, _ in browser.live()):
            yield Broken("4 logout", "the next request has logged out, and its session is live")


def _is_revoked(browser: _Following) -> Iterator[Broken]:
    if browser.id is None or browser.view.form in (Form.NONE, Form.EXPIRED):
        return
    visit = browser.do(BY_NAME["revoke"])
    ids = browser.history.heirs_of(browser.id, logins=False)
    if visit.error is not None or ids.intersection(id_ for id_, _ in browser.live()):
        yield Broken("7 final", f"then the session is revoked, and is live ({visit.error!r})")


def _all_are_revoked(browser: _Following) -> Iterator[Broken]:
    owned = [id_ for id_, view in browser.live() if view.owner == "alice"]
    visit = browser.do(BY_NAME["revoke all"])
    if visit.error is not None or any(view.owner == "alice" for _, view in browser.live()):
        yield Broken(
            "7 final", f"then all of Alice's are revoked, and one is live ({visit.error!r})"
        )
    if visit.error is None and visit.calls[0].result != len(owned):
        yield Broken("7 count", f"then revoking all says {visit.calls[0].result}")


def _answered(visit: Play, does: str) -> Iterator[Broken]:
    if not Local(visit).is_answered:
        yield Broken("answer", f"the next request {does}, and gets {visit.status} {visit.error!r}")


_RULES: list[Callable[[_Following], Iterator[Broken]]] = [
    _reads,
    _sets,
    _logs_in,
    _logs_out,
    _is_revoked,
    _all_are_revoked,
]

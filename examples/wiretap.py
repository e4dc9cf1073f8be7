"""Listen to a request: the answer, and the commands to MongoDB with their times."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pymongo import monitoring

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment


class Command(NamedTuple):
    """A command of a request, in words, and the time that MongoDB took."""

    name: str
    does: str
    comes_of_it: str
    milliseconds: float


class Wiretap(monitoring.CommandListener):
    """A listener that notes the commands of the request under way in a thread."""

    def __init__(self) -> None:
        self._thread = threading.local()

    @contextmanager
    def on(self) -> Iterator[list[Command]]:
        """Collect the commands of the block."""
        self._thread.commands, self._thread.sent = commands, _ = [], {}
        try:
            yield commands
        finally:
            self._thread.commands = None

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if self._hears(event.command_name):
            self._thread.sent[event.request_id] = event.command

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        if self._hears(event.command_name):
            does = _in_words(event.command_name, self._thread.sent.pop(event.request_id))
            comes_of_it, took = _result(event.command_name, event.reply), event.duration_micros
            command = Command(event.command_name, does, comes_of_it, took / 1000)
            self._thread.commands.append(command)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        if self._hears(event.command_name):
            took = event.duration_micros / 1000
            self._thread.commands.append(Command(event.command_name, "", "fails", took))

    def _hears(self, name: str) -> bool:
        return getattr(self._thread, "commands", None) is not None and name != "createIndexes"


def _in_words(name: str, command: Mapping[str, Any]) -> str:
    """Describe a command: the fields of the session to set or to remove."""
    match name:
        case "update":
            return _changes(command["updates"][0]["u"])
        case "findAndModify" if "update" in command:
            return _changes(command["update"])
        case "insert":
            return "a new session"
        case "find":
            by_id = isinstance(command["filter"].get("_id"), str)
            return "a session by its id" if by_id else "the sessions of an owner"
    return ""


def _changes(update: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> str:
    """Name the fields of an update, or of all stages of a pipeline."""
    stages = [update] if isinstance(update, Mapping) else list(update)
    named = {
        operator: [field for stage in stages if operator in stage for field in stage[operator]]
        for operator in ("$set", "$max", "$unset")
    }
    sets, removes = named["$set"] + named["$max"], named["$unset"]
    parts = [f"sets {', '.join(sets)}"] if sets else []
    parts += [f"removes {', '.join(removes)}"] if removes else []
    return "; ".join(parts) or "puts another document in place"


def _result(name: str, reply: Mapping[str, Any]) -> str:
    if name == "find":
        found = len(reply["cursor"]["firstBatch"])
    elif name == "findAndModify":
        found = int(reply["lastErrorObject"]["n"])
    else:
        found = reply.get("n", 0)
    return {0: "nothing there", 1: "1 document"}.get(found, f"{found} documents")


WIRETAP = Wiretap()
monitoring.register(WIRETAP)


class Answer(NamedTuple):
    """The answer to a request, and the commands of the request."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes
    commands: list[Command]

    @property
    def set_cookie(self) -> str | None:
        """The Set-Cookie header of the session, if there is any."""
        ours = (v for k, v in self.headers if k == "Set-Cookie" and COOKIE in v.partition("=")[0])
        return next(ours, None)


COOKIE = "mongosession"
"""The name of the session's cookie, which may have a prefix."""


def listen(app: WSGIApplication, environ: WSGIEnvironment) -> Answer:
    """Have `app` answer a request; return the answer and the commands."""
    began: list[Any] = []
    written: list[bytes] = []

    def start_response(*status_and_headers: Any) -> Any:
        began[:] = status_and_headers
        return written.append

    with WIRETAP.on() as commands:
        body = app(environ, start_response)
        try:
            written.extend(body)
        finally:
            getattr(body, "close", lambda: None)()
    return Answer(began[0], began[1], b"".join(written), commands)

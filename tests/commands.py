"""What MongoDB is asked, seen by a listener that every client of the suite has."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bson
from pymongo import monitoring

_ASIDE = {"createIndexes", "listIndexes", "endSessions"}
OURS = {"find", "insert", "update", "delete", "findAndModify"}


class Recorder(monitoring.CommandListener):
    """Notes the commands of the request that is under way in this thread, and of no other."""

    def __init__(self) -> None:
        self._request = threading.local()
        self.scattered: list[Any] = []
        """Commands that served a request without naming one `_id`."""

    @contextmanager
    def request(self) -> Iterator[list[monitoring.CommandStartedEvent]]:
        """Collect the commands of a request.

        Left out are those that make indexes, and `endSessions`: the driver may send it in any
        thread, when the client of an earlier test is thrown away.
        """
        self._request.commands = commands = []
        try:
            yield commands
        finally:
            self._request.commands = None

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        commands = getattr(self._request, "commands", None)
        if commands is None or event.command_name in _ASIDE:
            return
        commands.append(event)
        if event.command_name in OURS and not _names_one_id(event.command):
            self.scattered.append(event.command)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


def _names_one_id(command: Any) -> bool:
    """Say whether a cluster sharded by `_id` sends the command to one shard."""
    selected = (
        command.get("filter"),
        command.get("query"),
        *(update["q"] for update in command.get("updates", ())),
        *(delete["q"] for delete in command.get("deletes", ())),
        *command.get("documents", ()),
    )
    found = [one.get("_id") for one in selected if one is not None]
    return len(found) == 1 and isinstance(found[0], str) and len(found[0]) == 43


def size_of(event: monitoring.CommandStartedEvent) -> int:
    """Return the bytes of a command as it was sent."""
    return len(bson.encode(event.command))


RECORDER = Recorder()
monitoring.register(RECORDER)

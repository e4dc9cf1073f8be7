"""What goes over the wire, seen where the driver hands it to its socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pymongo import monitoring


class Wire(monitoring.CommandListener):
    """Counts what one thread asks of MongoDB; the driver's own threads do not count.

    It costs time. A process that has one is not to be timed.
    """

    def __init__(self) -> None:
        self._thread: int | None = None
        self.commands: list[str] = []
        self.sent = self.received = 0

    def install(self) -> None:
        """Stand between all sockets of this process and those who use them, from now on."""
        monitoring.register(self)
        send, receive, wire = socket.socket.sendall, socket.socket.recv_into, self

        def sendall(self: socket.socket, data: Any, *args: Any) -> None:
            if threading.get_ident() == wire._thread:
                wire.sent += memoryview(data).nbytes
            send(self, data, *args)

        def recv_into(self: socket.socket, *args: Any) -> int:
            number = receive(self, *args)
            if threading.get_ident() == wire._thread:
                wire.received += number
            return number

        socket.socket.sendall = sendall  # type: ignore[method-assign,assignment]
        socket.socket.recv_into = recv_into  # type: ignore[method-assign,assignment]

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what this thread does within."""
        self.commands, self.sent, self.received = [], 0, 0
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = None

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if threading.get_ident() == self._thread:
            self.commands.append(event.command_name)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

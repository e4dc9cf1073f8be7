"""A TCP proxy in front of a MongoDB server, whose faults a test switches on and off."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

import bson
from pymongo import MongoClient

_GARBAGE = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nNo.\n"
_HEADER = 16
_MAX_TIME = re.compile(rb"(\x10maxTimeMS\0).{4}", re.DOTALL)
_OP_REPLY, _OP_MSG = 1, 2013
_OF_THE_DRIVER = {"hello", "isMaster", "ismaster", "ping", "endSessions"}
_OF_THE_DRIVER |= {"saslStart", "saslContinue"}
_IN_PASSING = {"listIndexes", "createIndexes"}
_LONGEST_WAIT = 10.0

_Fault = Callable[["_Link", bytes], bool]
"""What happens to a message of the client; returns whether the connection lives on."""
Document = dict[str, Any]
Change = Callable[[Document, Callable[[], Document]], Document]
"""Returns the answer to a command; the second argument asks the server for its own."""


class Proxy:
    """Passes connections on to `server`, message by message, until it is told of a fault.

    `struck` counts how often a fault met a message or a connection. The driver's own commands,
    such as the `hello` of its monitor, and those of the thread that makes indexes, meet only the
    faults that befall whole connections.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        self.struck = 0
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._fault: _Fault | None = None
        self._whole = False
        self._once = False
        self._switched = threading.Event()
        self._port = 0
        self._listening: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._listen()

    @property
    def uri(self) -> str:
        """Where a client finds the server through this proxy, and stays on it."""
        return (
            f"mongodb://127.0.0.1:{self._port}/?directConnection=true"
            "&serverMonitoringMode=poll&heartbeatFrequencyMS=500"
        )

    @property
    def connections(self) -> int:
        """How many connections of clients are open now."""
        with self._lock:
            return len(self._links)

    # The faults.

    def forward(self) -> None:
        """Pass everything on, as if there were no proxy."""
        self._switch(None)
        if self._listening is None:
            self._listen()

    def refuse(self) -> None:
        """Cut every connection, and refuse new ones."""
        self._switch(None)
        self._stop_listening()
        self._cut_all()
        self.struck += 1

    def silent(self) -> None:
        """Accept connections and read what comes, and never answer."""
        self._switch(lambda link, message: True, whole=True)

    def delay(self, seconds: float) -> None:
        """Pass every command on so much later."""
        switched = threading.Event()

        def later(link: _Link, message: bytes) -> bool:
            switched.wait(seconds)
            return link.answer(link.ask(message))

        self._switch(later, switched=switched)

    def cut_reply_after(self, size: int, *, once: bool = False) -> None:
        """Pass so many bytes of the reply on, and close the connection."""

        def cut(link: _Link, message: bytes) -> bool:
            link.answer(link.ask(message)[:size])
            return False

        self._switch(cut, once=once)

    def cut_after_request(self, *, once: bool = False) -> None:
        """Have the server carry the command out, and close the connection without its answer."""

        def cut(link: _Link, message: bytes) -> bool:
            link.ask(message)
            return False

        self._switch(cut, once=once)

    def reset(self, *, once: bool = False) -> None:
        """Answer a command with RST instead of passing it on; lasting, also every connection."""

        def reset(link: _Link, message: bytes) -> bool:
            link.reset()
            return False

        self._switch(reset, once=once, whole=not once)

    def garbage(self, *, once: bool = False) -> None:
        """Answer as no MongoDB does; lasting, also the handshake."""
        self._switch(lambda link, message: link.answer(_GARBAGE), once=once, whole=not once)

    def rewrite(self, change: Change) -> None:
        """Answer every command, those of the driver too, as `change` says."""

        def answer(link: _Link, message: bytes) -> bool:
            def ask() -> Document:
                return _document_of(link.ask(message))

            return link.answer(_reply(message, change(_document_of(message), ask)))

        self._switch(answer, whole=True)

    def cut_idle(self) -> None:
        """Cut every connection that there is now, as a load balancer does after a while."""
        self._cut_all()

    def close(self) -> None:
        """Cut every connection and wait for the end of every thread."""
        self._switch(None)
        self._stop_listening()
        self._cut_all()
        deadline = time.monotonic() + _LONGEST_WAIT
        while self.connections and time.monotonic() < deadline:
            self._join_one()

    # How it goes on.

    def fault_for(self, message: bytes) -> _Fault | None:
        """Return what is to happen to this message, None if it is to be passed on."""
        with self._lock:
            fault = self._fault
            if fault is None or not (self._whole or _is_of_the_application(message)):
                return None
            self.struck += 1
            if self._once:
                self._fault = None
            return fault

    def forget(self, link: _Link) -> None:
        with self._lock:
            self._links.discard(link)

    def _switch(
        self,
        fault: _Fault | None,
        *,
        once: bool = False,
        whole: bool = False,
        switched: threading.Event | None = None,
    ) -> None:
        with self._lock:
            before, self._switched = self._switched, switched or threading.Event()
            self._fault, self._once, self._whole = fault, once, whole
        before.set()

    def _listen(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self._port), backlog=128)
        self._port = self._listening.getsockname()[1]
        self._accepting = threading.Thread(
            target=self._accept, args=[self._listening], name="proxy", daemon=True
        )
        self._accepting.start()

    def _stop_listening(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None and self._accepting is not None:
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            self._accepting.join(_LONGEST_WAIT)
            listening.close()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):  # It was closed.
            while True:
                client, _ = listening.accept()
                link = _Link(self, client)
                with self._lock:
                    self._links.add(link)
                link.start()

    def _cut_all(self) -> None:
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()

    def _join_one(self) -> None:
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()
            link.join(0.1)


P = TypeVar("P", bound=Proxy)


@contextmanager
def before(client: MongoClient[Any], kind: type[P]) -> Iterator[P]:
    """Yield a proxy of a kind before the server of a client, and close the proxy in the end."""
    assert client.address is not None
    with closing(kind(client.address)) as proxy:
        yield proxy


class _Link(threading.Thread):
    """One connection of a client, and that to the server once there is something to ask."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        super().__init__(name="proxy link", daemon=True)
        self._proxy = proxy
        self._client = client
        self._server: socket.socket | None = None
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> None:
        try:
            with suppress(OSError):
                while (message := _message(self._client)) and self._pass_on(message):
                    pass
        finally:
            self._client.close()
            if self._server is not None:
                self._server.close()
            self._proxy.forget(self)

    def ask(self, message: bytes) -> bytes:
        """Return the server's reply, empty where the server has hung up."""
        message = without_time_left(message)
        if self._server is None:
            self._server = socket.create_connection(self._proxy.server)
            self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server.sendall(message)
        return _message(self._server)

    def answer(self, reply: bytes) -> bool:
        self._client.sendall(reply)
        return bool(reply)

    def reset(self) -> None:
        """Have the kernel send RST when the connection is closed."""
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def cut(self) -> None:
        for connection in (self._client, self._server):
            if connection is not None:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _pass_on(self, message: bytes) -> bool:
        fault = self._proxy.fault_for(message)
        return self.answer(self.ask(message)) if fault is None else fault(self, message)


def command_of(message: bytes) -> str | None:
    """Return the name of the command that an OP_MSG asks for: its document's first key."""
    if int.from_bytes(message[12:16], "little") != _OP_MSG:
        return None
    first_key = _HEADER + 4 + 1 + 4 + 1
    return message[first_key : message.index(b"\0", first_key)].decode()


def _document_of(message: bytes) -> Document:
    """Return the document of a message, which follows what each kind begins with."""
    kind = int.from_bytes(message[12:16], "little")
    begins = {_OP_MSG: _HEADER + 4 + 1, _OP_REPLY: _HEADER + 20}
    # Else a query: flags, the name of a collection, two numbers.
    begin = begins.get(kind) or message.index(b"\0", _HEADER + 4) + 1 + 8
    size = int.from_bytes(message[begin : begin + 4], "little")
    return dict(bson.decode(message[begin : begin + size]))


def _reply(asked: bytes, document: Document) -> bytes:
    """Return the answer to a message, of the kind that its sender waits for."""
    if int.from_bytes(asked[12:16], "little") == _OP_MSG:
        kind, body = _OP_MSG, struct.pack("<iB", 0, 0) + bson.encode(document)
    else:
        kind, body = _OP_REPLY, struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(document)
    return struct.pack("<ii4si", _HEADER + len(body), 0, asked[4:8], kind) + body


def _is_of_the_application(message: bytes) -> bool:
    command = command_of(message)
    return command is not None and command not in _OF_THE_DRIVER | _IN_PASSING


def without_time_left(message: bytes) -> bytes:
    """Return the message with the number in its `maxTimeMS` made 0, which is no limit.

    The embedded server knows a write that the driver repeats by all of its bytes, a real one by its
    session and number alone; and the driver repeats it with less time left.
    """
    return _MAX_TIME.sub(lambda found: found[1] + bytes(4), message)


def _message(connection: socket.socket) -> bytes:
    """Return the next message of MongoDB's wire protocol, empty at the end."""
    begin = connection.recv(4, socket.MSG_WAITALL)
    if len(begin) < 4:
        return b""
    rest = int.from_bytes(begin, "little") - 4
    body = connection.recv(rest, socket.MSG_WAITALL)
    return begin + body if len(body) == rest else b""

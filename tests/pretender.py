"""A proxy that makes a MongoDB server answer as servers of other makers do."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import bson

from .proxy import Proxy

Answer = dict[str, Any]
_OP_MSG, _OP_QUERY = 2013, 2004
_HEADER = 16


class Pretender(Proxy):
    """Changes the answers to some commands, and refuses others."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.changes: dict[str, Callable[[Answer], Answer]] = {}
        """By the name of a command: makes another answer of the server's."""
        self.refuses: Callable[[str, Answer], int | None] = lambda name, asked: None
        """Returns the code of the error that a command is refused with, or None."""
        super().__init__(server)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def fault_for(self, message: bytes) -> Any:
        asked = _asked(message)
        name = next(iter(asked))
        code = None if _is_of_the_driver(message, asked) else self.refuses(name, asked)
        if code is not None:
            words = f"pretended: {name} is refused"
            refusal = {"ok": 0.0, "code": code, "codeName": f"Code{code}", "errmsg": words}
            return lambda link, message: link.answer(written(message, refusal))
        if name in self.changes:
            change = self.changes[name]
            return lambda link, message: link.answer(_changed(message, link.ask(message), change))
        return super().fault_for(message)


def _asked(message: bytes) -> Answer:
    if _code(message) == _OP_MSG:
        return bson.decode(message[_HEADER + 5 :][: _size(message, _HEADER + 5)])
    begin = message.index(b"\0", _HEADER + 4) + 9  # Behind the flags, the name, two numbers.
    return bson.decode(message[begin:][: _size(message, begin)])


def _is_of_the_driver(message: bytes, asked: Answer) -> bool:
    """Say whether a `hello` is a handshake or a heartbeat, without which there is no connection."""
    return _code(message) == _OP_QUERY or "topologyVersion" in asked or "helloOk" in asked


def _changed(message: bytes, reply: bytes, change: Callable[[Answer], Answer]) -> bytes:
    if not reply:
        return reply
    begin = _HEADER + (5 if _code(reply) == _OP_MSG else 20)
    return written(message, change(bson.decode(reply[begin:])))


def written(message: bytes, answer: Answer) -> bytes:
    if _code(message) == _OP_MSG:
        code, body = _OP_MSG, struct.pack("<iB", 0, 0) + bson.encode(answer)
    else:
        code, body = 1, struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(answer)
    return struct.pack("<i4s4si", _HEADER + len(body), b"\1\0\0\0", message[4:8], code) + body


def _code(message: bytes) -> int:
    return int.from_bytes(message[12:16], "little")


def _size(message: bytes, begin: int) -> int:
    return int.from_bytes(message[begin : begin + 4], "little")

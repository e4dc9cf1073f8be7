"""The servers that a command can be told to start: `--server`, or `SERVER=` of make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from tempfile import TemporaryDirectory

from mongosession_wsgi.embedded import EmbeddedServer

from .java import java_server
from .kept import is_kept
from .rust import rust_server


@contextmanager
def embedded_server() -> Iterator[str]:
    """Start an embedded server with a folder of its own, yield the URI, and end the server."""
    with TemporaryDirectory() as folder, EmbeddedServer(folder) as server:
        yield server.uri


SERVERS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "embedded": embedded_server,
    "java": java_server,
    "rust": rust_server,
}


def at_hand() -> list[str]:
    """Return the names of the servers that neither a network nor a build is needed for."""
    return [name for name in SERVERS if name == "embedded" or is_kept(name)]

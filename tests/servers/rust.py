"""Run secantus-mdb, a fast server with MongoDB's protocol over WiredTiger, for benches and load.

Cargo builds the server from crates.io, once, into `.servers/`, in about ten minutes. The server
keeps an empty database in a folder of its own, and ends with the process that started the server.
Its findAndModify is not atomic, so races want another server.

`python -m tests.servers.rust` serves until Ctrl-C, and prints the URI.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from mongosession_wsgi.embedded import EmbeddedServer, EmbeddedServerError

from .kept import UnavailableError, demand, kept, run, serve, tell

_RELEASE = "0.5.3-beta.196"
_OPTIONS = ("--cache-size", "1G", "--log-level", "WARNING")


@contextmanager
def rust_server() -> Iterator[str]:
    """Start a server of its own on a free loopback port, yield the URI, and end the server.

    Raises `UnavailableError` where there is no server yet and none can be built.
    """
    program = fetch() / "bin/secantusd-rs"
    with TemporaryDirectory() as folder:
        server = _RustServer(program, folder)
        try:
            server.start()
        except EmbeddedServerError as error:
            raise UnavailableError(f"secantus-mdb did not start: {error}") from error
        try:
            yield server.uri
        finally:
            server.stop()


def fetch() -> Path:
    """Return the folder of the program; Cargo builds the program if it is not there yet."""
    return kept(f"rust-{_RELEASE}", _build)


class _RustServer(EmbeddedServer):
    """A relative of the embedded server: another program with the same command line."""

    def __init__(self, program: Path, folder: str) -> None:
        super().__init__(Path(folder, "data"), options=_OPTIONS)
        self._path = program

    def _launch(self, program: str, config: IO[bytes]) -> None:
        super()._launch(str(self._path), config)


def _build(folder: Path) -> None:
    demand("secantus-mdb", "Rust, CMake and a C compiler", ("cargo", "cmake", "cc"))
    tell("Building secantus-mdb by Cargo, once, in about ten minutes ...")
    release = ["secantus-mdb", "--version", _RELEASE, "--locked", "--ignore-rust-version"]
    command = ["cargo", "install", "--quiet", "--root", str(folder), *release]
    # The release uses a feature that is still to come to stable Rust.
    run(command, "secantus-mdb", minutes=60, environ={"RUSTC_BOOTSTRAP": "1"})


if __name__ == "__main__":
    sys.exit(serve(rust_server))

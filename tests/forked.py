"""Run the command `mongosession` in processes forked from one that has imported it already.

Half a second of a command is imports. `Forks` starts a process that imports the command once; each
call of the command is then a child of that process, with an environment, a folder and streams of
its own. What depends on how Python starts needs a process from its beginning, and not this module.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

ROOT = Path(__file__).parent.parent
_LONGEST_MESSAGE = 1 << 20


class Forks:
    """A process that forks; to be closed in the end."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
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
        """Run the command to its end; a command that takes too long is killed."""
        with TemporaryFile() as stdin, TemporaryFile() as stdout, TemporaryFile() as stderr:
            stdin.write(input.encode())
            stdin.seek(0)
            streams = [stream.fileno() for stream in (stdin, stdout, stderr)]
            asked = json.dumps([list(arguments), dict(environment), str(folder)])
            socket.send_fds(self._socket, [f"{asked}\n".encode()], streams)
            timer = threading.Timer(timeout, os.kill, [self._answer(), signal.SIGKILL])
            timer.start()
            code = self._answer()
            timer.cancel()
            said = []
            for stream in (stdout, stderr):
                stream.seek(0)
                said.append(stream.read().decode())
        return subprocess.CompletedProcess(list(arguments), code, *said)

    def close(self) -> None:
        self._answers.close()
        self._socket.close()
        self._process.wait()

    def _answer(self) -> int:
        return int(self._answers.readline())


def serve(asking: socket.socket) -> None:
    """Fork for each message; return in the child, which is to run the command."""
    while True:
        message, streams, *_ = socket.recv_fds(asking, _LONGEST_MESSAGE, 3)
        if not message:
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


if __name__ == "__main__":
    from mongosession_wsgi import cli
    from mongosession_wsgi.cli import commands  # noqa: F401 - so that no child imports it.

    serve(socket.socket(fileno=int(sys.argv[1])))
    cli.main()

"""The process between the embedded server and the owner: the server ends when the owner ends.

`embedded` starts this file as a program. The file imports nothing of the package, because the
driver behind an import would take half a second of each start.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

_LONGEST_STOP = 10.0
_PR_SET_PDEATHSIG = 1


def watch(owner: int, command: Sequence[str]) -> int:
    """Run the server until it ends, the owner ends, or somebody ends this process.

    Returns the server's exit code. After the death of a parent, a child has another parent. The
    watcher looks for the change, and not for a closed pipe: other children of the dead parent may
    hold the pipe open.
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
        _end(server, told_to_end)
    return server.returncode


def _end(server: "subprocess.Popen[bytes]", told_to_end: Sequence[int]) -> None:
    """Tell the server to end, once more each time that the owner asks, and kill it at last."""
    deadline, heeded = time.monotonic() + _LONGEST_STOP, -1
    while server.poll() is None and time.monotonic() < deadline:
        if heeded != len(told_to_end):
            heeded = len(told_to_end)
            server.terminate()
        time.sleep(0.02)
    server.kill()
    server.wait()


def _end_with_watcher() -> None:
    """Have Linux send the process SIGTERM when the parent dies, even of a SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(watch(int(sys.argv[1]), sys.argv[2:]))

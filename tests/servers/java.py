"""Run mongo-java-server, a small MongoDB server whose commands are atomic, for races and tests.

Maven fetches the server from Maven Central, once, into `.servers/`. The server keeps an empty
database in memory, and ends with the process that started the server. Real parallel commands on
one document are the reason for this server: the embedded server's findAndModify is not atomic.

`python -m tests.servers.java` serves until Ctrl-C, and prints the URI.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

_SOURCES = Path(__file__).with_suffix("")
_CACHE = Path(__file__).parents[2] / ".servers"
_LONGEST_FETCH = 600.0
_LONGEST_STOP = 10.0


class UnavailableError(Exception):
    """The server cannot be had on this machine; the text says why, in one sentence."""


@contextmanager
def java_server() -> Iterator[str]:
    """Start a server of its own on a free loopback port, yield the URI, and end the server.

    Raises `UnavailableError` where there is no JDK, no Maven, or no way to Maven Central.
    """
    libraries = fetch()
    command = ["java", "-Xmx512m", "-cp", f"{libraries}/*", str(_SOURCES / "Server.java")]
    with TemporaryFile("w+") as log:
        server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # A Ctrl-C is for the tests, which need the server to clean up.
        )
        try:
            yield f"mongodb://127.0.0.1:{_port_of(server, log)}"
        finally:
            _end(server)


def fetch() -> Path:
    """Return the folder of the libraries; Maven fetches them if they are not there yet."""
    missing = [program for program in ("java", "javac", "mvn") if shutil.which(program) is None]
    if missing:
        raise UnavailableError(
            f"mongo-java-server needs a JDK and Maven, and {' and '.join(missing)} cannot be found."
        )
    pom = _SOURCES / "pom.xml"
    libraries = _CACHE / f"java-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if libraries.exists():
        return libraries
    _CACHE.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=_CACHE) as folder:
        fetched = Path(folder) / "libraries"
        _copy_dependencies(pom, fetched)
        with suppress(FileExistsError):  # Another process was faster.
            fetched.rename(libraries)
    return libraries


def _copy_dependencies(pom: Path, folder: Path) -> None:
    print("Fetching mongo-java-server by Maven, once ...", file=sys.stderr, flush=True)
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    command = ["mvn", "--quiet", "--batch-mode", "--file", str(pom), *goal]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LONGEST_FETCH)
    except subprocess.CalledProcessError as error:
        words = (error.stdout + error.stderr).strip().splitlines() or ["it said nothing"]
        raise UnavailableError(f"Maven could not fetch mongo-java-server: {words[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError("Maven did not fetch mongo-java-server in 10 minutes.") from error


def _port_of(server: subprocess.Popen[str], log: IO[str]) -> int:
    """Return the port that the server tells when it listens."""
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line.strip().isdigit():
        log.seek(0)
        raise UnavailableError(f"mongo-java-server did not start: {log.read().strip()[-500:]}")
    return int(line)


def _end(server: subprocess.Popen[str]) -> None:
    """Close the pipe that the server waits on, and wait until the server is gone."""
    assert server.stdin is not None
    assert server.stdout is not None
    with suppress(BrokenPipeError):
        server.stdin.close()
    try:
        server.wait(_LONGEST_STOP)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    server.stdout.close()


def main() -> int:
    """Serve until Ctrl-C."""
    try:
        with java_server() as uri, suppress(KeyboardInterrupt):
            print(uri, flush=True)
            sys.stdin.read()
    except UnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run mongo-java-server, a small MongoDB server whose commands are atomic, for races and tests.

Maven fetches the server from Maven Central, once, into `.servers/`. The server keeps an empty
database in memory, and ends with the process that started the server. Real parallel commands on
one document are the reason for this server: the embedded server's findAndModify is not atomic.

`python -m tests.servers.java` serves until Ctrl-C, and prints the URI.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from .kept import UnavailableError, demand, kept, run, serve, tell

_SOURCES = Path(__file__).with_suffix("")
_LONGEST_STOP = 10.0


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
    demand("mongo-java-server", "a JDK and Maven", ("java", "javac", "mvn"))
    pom = (_SOURCES / "pom.xml").read_bytes()
    return kept(f"java-{hashlib.sha256(pom).hexdigest()[:12]}", _copy_dependencies)


def _copy_dependencies(folder: Path) -> None:
    tell("Fetching mongo-java-server by Maven, once ...")
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    command = ["mvn", "--quiet", "--batch-mode", "--file", str(_SOURCES / "pom.xml"), *goal]
    run(command, "mongo-java-server", minutes=10)


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


if __name__ == "__main__":
    sys.exit(serve(java_server))

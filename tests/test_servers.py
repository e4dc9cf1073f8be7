"""Other servers than the embedded one keep sessions as well.

mongo-java-server is fetched by Maven, and these tests are skipped where there is no JDK, no Maven
or no network. The server knows no `hello`, names no key in a duplicate key error, and deletes
nothing by itself.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from mongosession_wsgi import MongoStore
from mongosession_wsgi.testing.conformance import StoreConformance

from . import races
from .commands import RECORDER
from .servers import java

pytestmark = pytest.mark.server

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def java_uri() -> Iterator[str]:
    try:
        with java.java_server() as uri:
            yield uri
    except java.UnavailableError as error:
        pytest.skip(str(error))


class TestJavaServer(StoreConformance):
    @pytest.fixture
    def make_store(self, java_uri: str) -> Callable[[Callable[[], datetime]], MongoStore]:
        name = f"test_{secrets.token_hex(4)}"
        settings = {"mongodb_host": java_uri, "mongodb_session_db": name}

        def make(clock: Callable[[], datetime]) -> MongoStore:
            store = MongoStore(settings, clock=clock)
            # This server sometimes fails a command on a collection as another makes its indexes.
            store.ensure_indexes()
            return store

        return make


def test_a_few_races_in_parallel_lose_and_revive_nothing(java_uri: str) -> None:
    rows = races.run(java_uri, 170)
    RECORDER.scattered.clear()  # The sessions of an owner may be on every shard.
    assert {row.raced: row.faults for row in rows if row.faults} == {}


def test_the_server_ends_with_the_process_that_started_it(java_uri: str) -> None:
    command = [sys.executable, "-m", "tests.servers.java"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        port = int(owner.stdout.readline().rpartition(":")[2])
        assert listens(port)
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while listens(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not listens(port)


def listens(port: int) -> bool:
    with socket.socket() as visitor:
        return visitor.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("command", ["tests.servers.java", "tests.races"])
def test_without_a_jdk_one_sentence_says_so(command: str) -> None:
    options = ["--server", "java"] if command == "tests.races" else []
    run = subprocess.run(
        [sys.executable, "-m", command, *options],
        cwd=ROOT,
        env=os.environ | {"PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = (run.stdout + run.stderr).strip()
    assert said.removeprefix("Skipped: ") == (
        "mongo-java-server needs a JDK and Maven, and java and javac and mvn cannot be found."
    )
    assert run.returncode == (0 if command == "tests.races" else 1)


def test_what_maven_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program, script in {"java": "", "javac": "", "mvn": "echo no network; exit 1"}.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    monkeypatch.setattr(java, "_CACHE", tmp_path / "cache")
    with pytest.raises(java.UnavailableError, match="could not fetch mongo-java-server: no net"):
        java.fetch()
    assert list((tmp_path / "cache").iterdir()) == []

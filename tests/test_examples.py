"""Each example shop, over HTTP, under the servers that people deploy with; and the demo's end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SHOPS = sorted(path.stem for path in EXAMPLES.glob("*_shop.py"))
SERVERS = {
    "gunicorn": ["gunicorn", "{shop}:app", "--bind", "127.0.0.1:{port}"],
    "gunicorn --preload": ["gunicorn", "{shop}:app", "--bind", "127.0.0.1:{port}", "--preload"],
    "waitress": ["waitress", "--listen", "127.0.0.1:{port}", "{shop}:app"],
}

sys.path.insert(0, str(EXAMPLES))
from demo import Browser, cart, free_port, visits  # noqa: E402


@contextmanager
def served(server: str, shop: str, uri: str, log: Path) -> Iterator[int]:
    """Serve a shop in the folder of the examples, as their docstrings say; yield its port."""
    port = free_port(8100)
    command = [word.format(shop=shop, port=port) for word in SERVERS[server]]
    environment = os.environ | {"MONGODB_URI": uri, "PYTHONPATH": str(ROOT)}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", *command],
            cwd=EXAMPLES,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        _wait_for(process, port, log)
        yield port
    finally:
        process.terminate()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            Browser(port).get("/no-such-page")
            return
        time.sleep(0.05)
    pytest.fail(log.read_text())


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("shop", SHOPS)
def test_a_shop_serves_two_visitors(
    server: str, shop: str, mongodb_uri: str, tmp_path: Path
) -> None:
    log = tmp_path / "server.log"
    with served(server, shop, mongodb_uri, log) as port:
        alice, bob, thief = Browser(port), Browser(port), Browser(port)
        assert [visits(alice.get()) for _ in range(3)] == ["1", "2", "3"]
        for item in ("bread", "honey", "bread"):
            alice.post("/cart", item=item)
        thief.cookie = alice.cookie
        alice.post("/login", name="<Alice>")
        assert alice.cookie != thief.cookie
        page = alice.get()
        assert "Hello, &lt;Alice&gt;" in page
        assert cart(page) == {"bread": 2, "honey": 1}
        assert cart(thief.get()) == {}
        assert cart(bob.get()) == {}
        thief.cookie = alice.cookie
        alice.post("/logout")
        assert "Max-Age=0" in alice.headers["Set-Cookie"]
        assert alice.cookie == ""
        assert cart(thief.get()) == {}
    assert not re.search("warning|error|traceback", log.read_text(), re.IGNORECASE)


def test_there_is_a_shop_for_each_framework_and_each_is_short() -> None:
    assert SHOPS == ["bottle_shop", "falcon_shop", "flask_shop", "plain_shop", "pyramid_shop"]
    for shop in SHOPS:
        assert len((EXAMPLES / f"{shop}.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["Starting a", "Starting gunicorn", "Alice logs in", "Ctrl-C"])
def test_the_demo_leaves_nothing_running(moment: str, signal_number: int, tmp_path: Path) -> None:
    examples = tmp_path / "examples"
    examples.symlink_to(EXAMPLES)  # Its data is beside the examples, so this demo has its own.
    demo = subprocess.Popen(
        [sys.executable, "-u", str(examples / "demo.py")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "DEMO_MARK": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen = ""
    for line in demo.stdout or ():
        seen += line
        if moment in line:
            demo.send_signal(signal_number)
            break
    seen += demo.communicate(timeout=60)[0]
    assert moment in seen
    assert "Traceback" not in seen
    assert _with_mark(str(tmp_path)) == []


def _with_mark(mark: str) -> list[str]:
    """Return the command lines of the processes that the demo with this mark has left."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"DEMO_MARK={mark}".encode() in environ.read_bytes():
                found.append(environ.with_name("cmdline").read_text())
    return found

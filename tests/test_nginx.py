"""The cookie behind a real nginx that ends TLS and is told no more than where the server is."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from mongosession_wsgi import SessionMiddleware
from mongosession_wsgi.testing import MemoryStore

from .test_examples import address_in, environment

NGINX, OPENSSL = shutil.which("nginx"), shutil.which("openssl")
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(
        not (NGINX and OPENSSL), reason="needs nginx and openssl (Debian: nginx-light, openssl)"
    ),
]
CONFIGURATION = """
daemon off;
master_process off;
pid nginx.pid;
error_log error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path temp;
    proxy_temp_path temp;
    fastcgi_temp_path temp;
    uwsgi_temp_path temp;
    scgi_temp_path temp;
    ssl_certificate certificate.pem;
    ssl_certificate_key key.pem;
    {servers}
}}
"""
DEPLOYMENT = (Path(__file__).parent.parent / "docs" / "deployment.md").read_text()
DOCUMENTED = DEPLOYMENT.partition("```nginx\nlocation / {\n")[2].partition("}\n```")[0]
WAYS = {
    "TCP, HTTP/1.0": "proxy_pass http://127.0.0.1:8000;",
    "TCP, HTTP/1.1": "proxy_pass http://127.0.0.1:8000; proxy_http_version 1.1;",
    "TCP, HTTP/1.1, kept open": (  # As without any directive since nginx 1.29.7.
        'proxy_pass http://127.0.0.1:8000; proxy_http_version 1.1; proxy_set_header Connection "";'
    ),
    "UNIX, HTTP/1.0": "proxy_pass http://unix:app:;",
    "UNIX, HTTP/1.1": "proxy_pass http://unix:app:; proxy_http_version 1.1;",
    "as documented": DOCUMENTED,
}
CLIENTS = {
    "a browser": {"Connection": "keep-alive", "Sec-Fetch-Site": "none"},
    "an old browser on its second page": {"Referer": "https://shop.example/cart"},
    "a script": {},
}
UNKNOWN = {("TCP, HTTP/1.1", "a script"), ("TCP, HTTP/1.1, kept open", "a script")}
"""Where nothing distinguishes the proxy from the client, if the client were on this machine."""


def page(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Begin a session, and tell what the server was told of the request."""
    environ["mongosession"]["visits"] = 1
    start_response("200 OK", [("Content-Type", "text/plain")])
    names = ("SERVER_PROTOCOL", "REMOTE_ADDR", "HTTP_HOST", "HTTP_CONNECTION")
    return [" ".join(f"{name}={environ.get(name)!r}" for name in names).encode()]


app = SessionMiddleware(page, {}, store=MemoryStore())


class Connection(HTTPConnection):
    """HTTPS over a UNIX socket, so that no test has to find a port for nginx."""

    def __init__(self, path: Path) -> None:
        super().__init__("shop.example", timeout=20)
        self._path = path

    def connect(self) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(20)
        plain.connect(str(self._path))
        self.sock = context.wrap_socket(plain)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the application is served, directly and by nginx in all ways."""
    folder = tmp_path_factory.mktemp("nginx")
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0"]
    command += ["--bind", f"unix:{folder / 'app'}", "--workers", "1", f"{__name__}:app"]
    with running(command, folder / "log", PYTHONWARNINGS="error") as server:
        address = address_in(folder / "log", server).removeprefix("http://")
        (folder / "address").write_text(address)
        certify(folder)
        (folder / "nginx.conf").write_text(configuration(folder, address))
        command = [NGINX or "", "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"]
        with running(command, folder / "nginx.log") as proxy:
            wait_for([folder / f"front{number}" for number in range(len(WAYS))], proxy, folder)
            yield folder


@contextmanager
def running(command: list[str], log: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment(**more), stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def certify(folder: Path) -> None:
    command = [OPENSSL or "", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=shop.example", "-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def configuration(folder: Path, address: str) -> str:
    servers = "\n".join(
        f"server {{ listen unix:{folder / f'front{number}'} ssl; location / {{ {way} }} }}"
        for number, way in enumerate(WAYS.values())
    )
    servers = servers.replace("127.0.0.1:8000", address).replace("unix:app", f"unix:{folder}/app")
    return CONFIGURATION.format(servers=servers)


def wait_for(sockets: list[Path], process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not all(path.exists() for path in sockets):
        if time.monotonic() > deadline or process.poll() is not None:
            said = [path.read_text() for path in (folder / "nginx.log", folder / "error.log")]
            pytest.fail("nginx did not start:\n" + "\n".join(said))
        time.sleep(0.02)


def visit(connection: HTTPConnection, headers: dict[str, str]) -> tuple[str, str]:
    """Return the Set-Cookie header and the page."""
    connection.request("GET", "/", headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    assert response.status == 200, body
    return response.headers["Set-Cookie"], body


@pytest.mark.parametrize(("way", "client"), sorted({*product(WAYS, CLIENTS)} - UNKNOWN))
def test_behind_nginx_the_cookie_is_the_secure_one(folder: Path, way: str, client: str) -> None:
    front = Connection(folder / f"front{list(WAYS).index(way)}")
    cookie, told = visit(front, CLIENTS[client])
    assert cookie.startswith("__Host-mongosession="), told
    assert "; Secure;" in cookie


@pytest.mark.parametrize(("way", "client"), sorted(UNKNOWN))
def test_what_is_as_if_from_this_machine_is_taken_for_it(
    folder: Path, way: str, client: str
) -> None:
    front = Connection(folder / f"front{list(WAYS).index(way)}")
    cookie, _ = visit(front, CLIENTS[client])
    assert cookie.startswith("mongosession=")
    assert "Secure" not in cookie


@pytest.mark.parametrize("client", ["a browser", "a script"])
def test_without_nginx_the_cookie_is_that_of_development(folder: Path, client: str) -> None:
    server = HTTPConnection((folder / "address").read_text(), timeout=20)
    cookie, told = visit(server, CLIENTS[client])
    assert cookie.startswith("mongosession="), told

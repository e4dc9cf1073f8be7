"""The cookie: when it is Secure, what it is called, what is refused, and its very text."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest

from mongosession_wsgi import MongoStore, SessionMiddleware, SettingsError
from mongosession_wsgi.cookie import Cookie, CookiePolicy
from mongosession_wsgi.settings import Settings

from .wsgi import Browser, environ_of, on_session

TOKEN = "t" * 43
HTTPS = {"wsgi.url_scheme": "https"}


def policy_of(settings: Mapping[str, Any] | None = None) -> CookiePolicy:
    return CookiePolicy(Settings.parse(settings or {}))


def cookie_of(settings: Mapping[str, Any] | None = None, **environ: Any) -> Cookie:
    return policy_of(settings).cookie_for(environ_of(**environ))


def refusal_of(settings: Mapping[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        policy_of(settings)
    return str(caught.value)


# When it is Secure.


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost",
        "localhost:8080",
        "localhost:",
        "shop.localhost",
        "a.b.localhost:8080",
        "127.0.0.1",
        "127.0.0.1:8080",
        "127.1.2.3",
        "127.255.255.254:1",
        "[::1]",
        "[::1]:8080",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]:80",
    ],
)
def test_plain_http_to_this_machine_needs_no_secure_cookie(host: str) -> None:
    assert not cookie_of(HTTP_HOST=host).secure
    assert cookie_of(HTTP_HOST=host, **HTTPS).secure


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "localhost.evil.com",
        "127.0.0.1.evil.com",
        "127.0.0.1.nip.io:80",
        "evil-localhost",
        "evillocalhost",
        "localhost.localdomain",
        "localhost@evil.com",
        "localhost:80@evil.com",
        "evil.com:80.localhost:1",
        "localhost:8080x",
        "localhost:80:80",
        "localhost\n",
        " localhost",
        "128.0.0.1",
        "126.255.255.255",
        "10.0.0.1",
        "0.0.0.0",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "127.0.0.01",
        "[::2]",
        "[::]",
        "[::ffff:10.0.0.1]",
        "[::127.0.0.1]",
        "[::1]evil.com",
        ":80",
        "1" * 5000,
    ],
)
def test_any_other_host_gets_a_secure_cookie(host: str) -> None:
    assert cookie_of(HTTP_HOST=host).secure


@pytest.mark.parametrize(
    ("name", "secure"), [("localhost", False), ("127.0.0.1", False), ("example.com", True)]
)
def test_without_a_host_header_the_servers_name_counts(name: str, secure: bool) -> None:
    assert cookie_of(HTTP_HOST="", SERVER_NAME=name).secure is secure
    environ = environ_of(SERVER_NAME=name)
    del environ["HTTP_HOST"]
    assert policy_of().cookie_for(environ).secure is secure


def test_a_host_header_wins_over_the_servers_name() -> None:
    assert cookie_of(HTTP_HOST="example.com", SERVER_NAME="localhost").secure
    assert not cookie_of(HTTP_HOST="localhost", SERVER_NAME="example.com").secure


@pytest.mark.parametrize(
    "peer", ["", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "::FFFF:7f00:1"]
)
def test_a_peer_that_is_this_machine_or_unknown_needs_no_secure_cookie(peer: str) -> None:
    assert not cookie_of(REMOTE_ADDR=peer).secure


def test_a_peer_that_the_server_does_not_name_needs_no_secure_cookie() -> None:
    environ = environ_of()
    del environ["REMOTE_ADDR"]
    assert not policy_of().cookie_for(environ).secure


@pytest.mark.parametrize(
    "peer", ["10.0.0.1", "192.168.0.7", "128.0.0.1", "::2", "fe80::1", "::ffff:10.0.0.1", "unix:"]
)
def test_a_foreign_peer_gets_a_secure_cookie(peer: str) -> None:
    assert cookie_of(REMOTE_ADDR=peer).secure


@pytest.mark.parametrize(
    "header",
    [
        "HTTP_FORWARDED",
        "HTTP_X_FORWARDED_FOR",
        "HTTP_X_FORWARDED_PROTO",
        "HTTP_X_FORWARDED_HOST",
        "HTTP_X_FORWARDED_PORT",
        "HTTP_X_FORWARDED_PREFIX",
        "HTTP_X_REAL_IP",
        "HTTP_VIA",
    ],
)
@pytest.mark.parametrize("value", ["", "127.0.0.1", "http"])
def test_a_sign_of_a_proxy_gets_a_secure_cookie(header: str, value: str) -> None:
    assert cookie_of(**{header: value}).secure


@pytest.mark.parametrize("environ", [{}, HTTPS, {"HTTP_HOST": "a.b"}, {"HTTP_VIA": "x"}])
@pytest.mark.parametrize("secure", [True, False])
def test_the_setting_forces_either(secure: bool, environ: dict[str, Any]) -> None:
    assert cookie_of({"session_secure": secure}, **environ).secure is secure


@pytest.mark.parametrize(
    "settings",
    [
        {"session_same_site": "None"},
        {"session_partitioned": True},
        {"session_name": "__Host-sid"},
        {"session_name": "__Secure-sid"},
        {"session_name": "__hOsT-sid"},
        {"session_name": "__SECURE-sid"},
    ],
)
def test_what_needs_secure_has_it_everywhere_and_refuses_to_go_without(
    settings: dict[str, Any],
) -> None:
    assert cookie_of(settings).secure
    assert cookie_of(settings | {"session_secure": "true"}).secure
    message = refusal_of(settings | {"session_secure": "false"})
    assert message.startswith("session_secure: ")
    assert next(iter(settings)) in message


# What it is called.

PUBLIC = {"HTTP_HOST": "example.com"}


@pytest.mark.parametrize(
    ("settings", "environ", "name"),
    [
        ({}, {}, "mongosession"),
        ({}, HTTPS, "__Host-mongosession"),
        ({}, PUBLIC, "__Host-mongosession"),
        ({"session_secure": True}, {}, "__Host-mongosession"),
        ({"session_secure": False}, HTTPS, "mongosession"),
        ({"session_domain": "example.com"}, {}, "mongosession"),
        ({"session_domain": "example.com"}, HTTPS, "__Secure-mongosession"),
        ({"session_path": "/shop"}, {}, "mongosession"),
        ({"session_path": "/shop"}, HTTPS, "__Secure-mongosession"),
        ({"session_path": "/"}, HTTPS, "__Host-mongosession"),
        (
            {"session_domain": "example.com", "session_path": "/shop", "session_secure": True},
            {},
            "__Secure-mongosession",
        ),
        ({"session_domain": "a.b", "session_secure": False}, HTTPS, "mongosession"),
        ({"session_same_site": "None"}, {}, "__Host-mongosession"),
        ({"session_partitioned": True}, {}, "__Host-mongosession"),
        ({"session_name": "sid"}, {}, "sid"),
        ({"session_name": "sid"}, HTTPS, "sid"),
        ({"session_name": "__Secure-sid", "session_domain": "a.b"}, HTTPS, "__Secure-sid"),
        ({"session_name": "__host-sid"}, {}, "__host-sid"),
        ({"session_name": "!#$%&'*+-.^_`|~9aZ"}, {}, "!#$%&'*+-.^_`|~9aZ"),
    ],
)
def test_the_name_has_the_prefix_that_is_allowed(
    settings: dict[str, Any], environ: dict[str, Any], name: str
) -> None:
    assert cookie_of(settings, **environ).name == name


@pytest.mark.parametrize("prefix", ["__Host-", "__host-", "__HOST-", "__hOsT-"])
@pytest.mark.parametrize("scope", [{"session_domain": "a.b"}, {"session_path": "/shop"}])
def test_a_cookie_of_one_host_has_no_domain_and_no_path(prefix: str, scope: dict[str, Any]) -> None:
    assert refusal_of({"session_name": f"{prefix}sid"} | scope).startswith("session_name: ")


@pytest.mark.parametrize(
    "name",
    [
        *(" sid", "s d", "s;d", "s=d", "s,d", 's"d', "s\td", "s\r\nd", "sid\n", "s\0d", "sïd"),
        *("s(d)", "s@d", "s[d]", "s{d}", "s\\d", "s:d", "s<d", "s?d", "s/d", "s\x7fd", "\u0441id"),
    ],
)
def test_what_is_no_cookie_name_is_refused(name: str) -> None:
    message = refusal_of({"session_name": name})
    assert message.startswith("session_name: ")
    assert "\n" not in message


@pytest.mark.parametrize("characters", ["sid", "^.*+$|", "%s%d", "s'd", "$Version"])
def test_the_name_is_taken_literally(characters: str) -> None:
    cookie = cookie_of({"session_name": characters})
    assert cookie.issue(TOKEN).startswith(f"{characters}={TOKEN}; ")
    assert cookie.read({"HTTP_COOKIE": f"{characters}={TOKEN}"}) == TOKEN
    assert cookie.read({"HTTP_COOKIE": f"x{characters}={TOKEN}; SID={TOKEN}"}) is None


# Domain, Path and size.


@pytest.mark.parametrize(
    ("domain", "sent"),
    [
        ("example.com", "example.com"),
        (".example.com", "example.com"),
        ("Example.COM", "Example.COM"),
        ("my-shop.example.com", "my-shop.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("10.0.0.1", "10.0.0.1"),
        ("localhost", "localhost"),
    ],
)
def test_a_domain_is_sent(domain: str, sent: str) -> None:
    header = cookie_of({"session_domain": domain}).issue(TOKEN)
    assert f"; Domain={sent};" in header


@pytest.mark.parametrize(
    "domain",
    [
        *(".", "..", "a..b", "..example.com", "example.com.", "*.example.com", "example.com:80"),
        *("https://example.com", "example.com/shop", "[::1]", "a.b; Secure", "a\r\nb: c"),
        *("a b", " a.b", "a.b ", "a;b", "a,b", "a=b", "a.b\n", "a\0b", "a\u3002;b"),
        *("-a.b", "a-.b", "x" * 64, ".".join(["x" * 60] * 5)),
    ],
)
def test_what_is_no_domain_is_refused(domain: str) -> None:
    message = refusal_of({"session_domain": domain})
    assert message.startswith("session_domain: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/shop", "/shop"),
        ("/shop/", "/shop/"),
        ("/a%20b", "/a%20b"),
        ("/a b", "/a%20b"),
        ("/a,b=c", "/a,b=c"),
        ('/a"b', "/a%22b"),
        ("/" + "x" * 1023, "/" + "x" * 1023),
    ],
)
def test_a_path_is_sent(path: str, sent: str) -> None:
    assert f"; Path={sent};" in cookie_of({"session_path": path}).issue(TOKEN)


@pytest.mark.parametrize(
    "path",
    [
        *("shop", " /", "*", "/a;b", "/; Secure", "/a\r\nb: c", "/\n", "/a\tb", "/\0", "/\x7f"),
        *("/ü", "/" + "x" * 1024, "http://example.com/"),
    ],
)
def test_what_is_no_path_is_refused(path: str) -> None:
    message = refusal_of({"session_path": path})
    assert message.startswith("session_path: ")
    assert "\n" not in message


def test_no_cookie_has_more_than_4096_bytes() -> None:
    rest = len(cookie_of({"session_name": "x", "session_secure": True}).issue(TOKEN)) - 1
    longest = {"session_name": "x" * (4096 - rest), "session_secure": True}
    assert len(cookie_of(longest).issue(TOKEN)) == 4096
    assert "4096 bytes" in refusal_of(longest | {"session_name": "x" * (4097 - rest)})


@pytest.mark.parametrize(
    "bad",
    [{"session_name": "s;d"}, {"session_domain": "a;b"}, {"session_path": "x"}],
)
def test_the_cookie_is_checked_in_the_constructor(bad: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        SessionMiddleware(on_session(repr), {"mongodb_session_db": "x"} | bad)


# Its text.

GONE = "; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0"


@pytest.mark.parametrize(
    ("settings", "environ", "name", "attributes"),
    [
        ({}, {}, "mongosession", "{age}; HttpOnly; Path=/; SameSite=Lax"),
        ({}, HTTPS, "__Host-mongosession", "{age}; Secure; HttpOnly; Path=/; SameSite=Lax"),
        (
            {"session_is_http_only": "no", "session_same_site": "strict"},
            HTTPS,
            "__Host-mongosession",
            "{age}; Secure; Path=/; SameSite=Strict",
        ),
        (
            {"session_same_site": "none"},
            {},
            "__Host-mongosession",
            "{age}; Secure; HttpOnly; Path=/; SameSite=None",
        ),
        (
            {"session_partitioned": "true"},
            HTTPS,
            "__Host-mongosession",
            "{age}; Secure; HttpOnly; Path=/; SameSite=Lax; Partitioned",
        ),
        (
            {"session_domain": "example.com", "session_path": "/shop", "session_name": "sid"},
            HTTPS,
            "sid",
            "; Domain=example.com{age}; Secure; HttpOnly; Path=/shop; SameSite=Lax",
        ),
    ],
)
def test_the_set_cookie_header(
    settings: dict[str, Any], environ: dict[str, Any], name: str, attributes: str
) -> None:
    cookie = cookie_of(settings, **environ)
    assert cookie.issue(TOKEN) == f"{name}={TOKEN}{attributes.format(age='')}"
    assert cookie.expire() == f"{name}={attributes.format(age=GONE)}"


@pytest.mark.parametrize(
    ("expires", "seconds"),
    [("2 hours", 7200), (90.9, 90), ("400d", 34_560_000), ("14 days", 1209600)],
)
def test_an_expiry_that_is_given_is_the_cookies_max_age(expires: Any, seconds: int) -> None:
    cookie = cookie_of({"session_expires": expires})
    assert f"; Max-Age={seconds};" in cookie.issue(TOKEN)
    assert "Max-Age=0;" in cookie.expire()


@pytest.mark.parametrize("nothing", [{}, {"session_expires": ""}, {"session_lifetime": "1h"}])
def test_a_cookie_lasts_as_long_as_the_browser_if_no_expiry_is_given(
    nothing: dict[str, Any],
) -> None:
    header = cookie_of(nothing).issue(TOKEN)
    assert "Max-Age" not in header
    assert "Expires" not in header


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"session_name": "sid", "session_path": "/shop", "session_domain": "example.com"},
        {"session_expires": "1h", "session_is_http_only": False, "session_partitioned": True},
    ],
)
def test_what_is_issued_is_expired_under_the_same_name_domain_and_path(
    settings: dict[str, Any],
) -> None:
    cookie = cookie_of(settings, **HTTPS)

    def place(header: str) -> list[str]:
        pair, *attributes = header.split("; ")
        return [pair.partition("=")[0]] + [
            found for found in attributes if not found.startswith(("Max-Age=", "Expires="))
        ]

    assert place(cookie.issue(TOKEN)) == place(cookie.expire())


# The line in the log.


def test_a_secure_cookie_over_plain_http_is_logged_once(
    settings: dict[str, Any], store: MongoStore, caplog: pytest.LogCaptureFixture
) -> None:
    app = SessionMiddleware(on_session(lambda session: session.update(a=1)), settings, store=store)
    with caplog.at_level(logging.WARNING, "mongosession_wsgi"):
        tokens = [Browser(app).get(HTTP_HOST="example.com").token for _ in range(3)]
    (line,) = caplog.messages
    assert line.startswith("A Secure session cookie was set on a request that came by plain HTTP")
    assert "'example.com'" in line
    assert "X-Forwarded-Proto" in line
    assert "session_secure" in line
    assert not any(token in caplog.text for token in tokens if token)


@pytest.mark.parametrize("environ", [{}, HTTPS])
def test_a_cookie_that_will_come_back_is_not_logged(
    environ: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    policy = policy_of()
    environ = environ_of(**environ)
    policy.issue(policy.cookie_for(environ), TOKEN, environ)
    assert not caplog.messages


def test_a_host_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    policy = policy_of()
    environ = environ_of(HTTP_HOST="a\nERROR all is lost")
    policy.issue(policy.cookie_for(environ), TOKEN, environ)
    assert "\n" not in caplog.messages[0]

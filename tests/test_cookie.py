"""The cookie: when it is Secure, what it is called, what is refused, and its very text."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
import webob
import webtest

from mongosession_wsgi import SessionMiddleware, SettingsError
from mongosession_wsgi.cookie import Cookie, CookiePolicy
from mongosession_wsgi.settings import Settings

from .wsgi import environ_of, on_session

TOKEN = "t" * 43
HTTPS = {"wsgi.url_scheme": "https"}


def policy_of(settings: Mapping[str, Any] | None = None) -> CookiePolicy:
    return CookiePolicy(Settings.parse(settings or {}))


def cookie_of(settings: Mapping[str, Any] | None = None, /, **environ: Any) -> Cookie:
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
    "peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "::FFFF:7f00:1"]
)
def test_a_peer_that_is_this_machine_needs_no_secure_cookie(peer: str) -> None:
    assert not cookie_of(REMOTE_ADDR=peer).secure


def without_peer(**extra: Any) -> dict[str, Any]:
    environ = environ_of(**extra)
    del environ["REMOTE_ADDR"]
    return environ


@pytest.mark.parametrize("protocol", ["HTTP/1.0", "HTTP/1.1"])
def test_a_test_client_which_names_no_peer_needs_no_secure_cookie(protocol: str) -> None:
    assert not policy_of().cookie_for(without_peer(SERVER_PROTOCOL=protocol)).secure


@pytest.mark.parametrize("protocol", ["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize("blank", [webob.BaseRequest.blank, webtest.TestRequest.blank])
def test_webob_and_webtest_need_no_secure_cookie(blank: Any, protocol: str) -> None:
    environ = blank("/", base_url="http://localhost", environ={"SERVER_PROTOCOL": protocol}).environ
    assert not policy_of().cookie_for(environ).secure


def test_webtest_that_is_given_a_peer_needs_no_secure_cookie() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [policy_of().cookie_for(environ).name.encode()]

    client = webtest.TestApp(app, {"REMOTE_ADDR": "127.0.0.1"})
    assert client.get("/").text == "mongosession"


def test_wsgirefs_defaults_for_tests_need_no_secure_cookie() -> None:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    assert not policy_of().cookie_for(environ).secure


@pytest.mark.parametrize(
    "environ",
    [
        environ_of(REMOTE_ADDR=""),  # gunicorn and Cheroot over a UNIX socket
        environ_of(REMOTE_ADDR="localhost"),  # waitress
        environ_of(REMOTE_ADDR="<local>"),  # Werkzeug
        without_peer(SERVER_NAME="", SERVER_PORT=""),  # gevent
    ],
)
def test_a_unix_socket_gets_a_secure_cookie(environ: dict[str, Any]) -> None:
    assert policy_of().cookie_for(environ).secure


def test_http_1_0_gets_a_secure_cookie() -> None:
    assert cookie_of(SERVER_PROTOCOL="HTTP/1.0").secure
    assert not cookie_of(SERVER_PROTOCOL="HTTP/1.1").secure


@pytest.mark.parametrize(
    "peer", ["10.0.0.1", "192.168.0.7", "128.0.0.1", "::2", "fe80::1", "::ffff:10.0.0.1", "unix:"]
)
def test_a_foreign_peer_gets_a_secure_cookie(peer: str) -> None:
    assert cookie_of(REMOTE_ADDR=peer).secure


def words(text: str) -> list[str]:
    return text.split()


PROXIES = words("""
    Forwarded Forwarded-For X-Forwarded X-Forwarded-For X-Forwarded-Proto X-Forwarded-Host
    X-Forwarded-Port X-Forwarded-Prefix X-Forwarded-Ssl X-Forwarded-Scheme X-Forwarded-Server
    X-Forwarded-Client-Cert X-Forwarded-By X-Forwarded-User X-Real-IP X-Real-Port Via X-Via
    X-Original-URL X-Original-Host X-Original-URI X-Original-Forwarded-For Front-End-Https
    X-Scheme X-Url-Scheme X-Proto X-Https X-SSL-Client-Cert SSL-Client-Verify Client-IP X-Client-IP
    True-Client-IP X-True-Client-IP X-Cluster-Client-IP X-ProxyUser-Ip X-Proxied Proxy-Client-IP
    Proxy-Connection WL-Proxy-Client-IP X-NginX-Proxy X-Accel-Mapping X-Varnish X-Haproxy-Id
    CF-Connecting-IP CF-Connecting-IPv6 CF-Ray CF-Visitor CF-IPCountry CDN-Loop Cdn-Src-Ip
    CloudFront-Forwarded-Proto CloudFront-Viewer-Address X-Amz-Cf-Id X-Amzn-Trace-Id
    X-Amzn-Tls-Version X-ARR-LOG-ID X-ARR-SSL X-Azure-ClientIP X-Azure-Ref X-Azure-FDID Max-Forwards
    Fastly-Client-IP Fastly-SSL Fastly-FF Fly-Client-IP Fly-Forwarded-Proto X-Appengine-User-Ip
    X-AppEngine-Country X-Cloud-Trace-Context X-Goog-IAP-JWT-Assertion X-Envoy-External-Address
    X-Envoy-Internal X-Request-Start X-Queue-Start X-Akamai-Edgescape Akamai-Origin-Hop
    Surrogate-Capability X-Vercel-Id X-Nf-Client-Connection-Ip X-Railway-Edge Rndr-Id
    DO-Connecting-IP Incap-Client-IP X-Sucuri-ClientIP Ali-Cdn-Real-Ip EO-Client-IP
    Tailscale-User-Login X-Auth-Request-User X-Remote-User Remote-User X-BlueCoat-Via
    L5d-Dst-Override X-Script-Name X-Rewrite-URL Early-Data X-SSL X-TLS-Client-Cert TLS-Version
    X-Client-Proto X-Client-Port X-Kong-Request-Id X-Consumer-Username Sozu-Id X-Authentik-Username
    X-Pomerium-Jwt-Assertion X-Sendfile-Type
""")
BROWSERS = words("""
    Accept Accept-Encoding Accept-Language Cache-Control Connection Content-Disposition DNT Expect
    From If-Match If-Modified-Since If-None-Match If-Range Origin-Agent-Cluster Pragma Priority
    Prefer Range Referer-Policy Save-Data Sec-CH-UA Sec-Fetch-Dest Sec-Fetch-Mode Sec-GPC
    Sec-Purpose Sec-WebSocket-Key TE Trailer Upgrade Upgrade-Insecure-Requests User-Agent
    Viewport-Width X-CSRF-Token X-CSRFToken X-XSRF-Token X-Requested-With X-Request-ID
    X-Correlation-ID X-HTTP-Method-Override X-Client-Data X-Client-Version X-API-Key X-Purpose
    X-Turbo-Request-Id HX-Request HX-Current-URL Traceparent Tracestate Baggage Sentry-Trace B3
    X-B3-TraceId X-Amz-Date X-Amz-Security-Token X-Amz-Content-Sha256 CF CDN Ray Realm Clientele
""")


def variable(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")


@pytest.mark.parametrize("header", PROXIES)
@pytest.mark.parametrize("value", ["", "127.0.0.1"])
def test_a_sign_of_a_proxy_gets_a_secure_cookie(header: str, value: str) -> None:
    assert cookie_of(**{variable(header): value}).secure


def test_the_headers_of_browsers_and_scripts_are_no_sign_of_a_proxy() -> None:
    for header in BROWSERS:
        assert not cookie_of(**{variable(header): "keep-alive"}).secure, header


@pytest.mark.parametrize("header", ["HTTP_ORIGIN", "HTTP_REFERER"])
@pytest.mark.parametrize(
    ("page", "secure"),
    [
        ("https://shop.example", True),
        ("HTTPS://shop.example/cart?x=1", True),
        ("http://shop.example", True),
        ("http://shop.example:8000/", True),
        ("http://192.168.0.7/", True),
        ("http://localhost.shop.example/", True),
        ("http://localhost@shop.example/", True),
        ("https://localhost", True),
        ("HTTPS://localhost", True),
        ("https://localhost:8443/", True),
        ("http://localhost", False),
        ("http://LOCALHOST:3000/page", False),
        ("http://127.0.0.1:5173", False),
        ("http://[::1]:5173/?next=https://shop.example/", False),
        ("http://shop.localhost/", False),
        ("null", False),
        ("", False),
        ("about:client", False),
        ("moz-extension://3f2a", False),
        ("localhost", False),
    ],
)
def test_a_page_of_https_or_elsewhere_gets_a_secure_cookie(
    header: str, page: str, secure: bool
) -> None:
    assert cookie_of(**{header: page}).secure is secure


@pytest.mark.parametrize("site", ["none", "same-origin", "cross-site"])
@pytest.mark.parametrize(
    ("connection", "secure"),
    [
        ("keep-alive", False),
        ("Keep-Alive", False),
        ("keep-alive, Upgrade", False),
        ("Upgrade", False),
        ("close", True),
        ("", True),
        (None, True),
    ],
)
def test_a_browser_whose_connection_is_not_its_own_gets_a_secure_cookie(
    connection: str | None, secure: bool, site: str
) -> None:
    environ = {} if connection is None else {"HTTP_CONNECTION": connection}
    assert cookie_of(HTTP_SEC_FETCH_SITE=site, **environ).secure is secure
    assert not cookie_of(**environ).secure


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
        {"session_name": "__Http-sid"},
        {"session_name": "__HTTP-sid"},
        {"session_name": "__Host-Http-sid"},
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
        ({"session_path": "/shop"}, {}, "mongosession%2Fshop"),
        ({"session_path": "/a b/*%2F"}, {}, "mongosession%2Fa%20b%2F%2A%252F"),
        ({"session_path": "/shop", "session_name": "sid"}, {}, "sid"),
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


def test_applications_at_different_paths_have_different_cookies_in_development() -> None:
    paths = ["/", "/a", "/A", "/a/", "/a/b", "/a-b", "/a.b", "/a_b", "/a%2Fb", "/a%b", "/%61", "//"]
    names = [cookie_of({"session_path": path}).name for path in paths]
    assert len(set(names)) == len(paths)
    for name in names:
        assert re.fullmatch(r"mongosession[!#$%&'*+.^_`|~0-9A-Za-z-]*", name)


@pytest.mark.parametrize("prefix", ["__Http-", "__http-", "__Host-Http-", "__hOsT-hTTp-"])
def test_a_cookie_that_is_named_http_only_is(prefix: str) -> None:
    settings = {"session_name": f"{prefix}sid"}
    assert cookie_of(settings).http_only
    message = refusal_of(settings | {"session_is_http_only": "false"})
    assert message.startswith("session_is_http_only: ")


@pytest.mark.parametrize("prefix", ["__Host-", "__host-", "__HOST-", "__hOsT-", "__Host-Http-"])
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
    assert cookie.read(f"{characters}={TOKEN}") == TOKEN
    assert cookie.read(f"x{characters}={TOKEN}; SID={TOKEN}") is None


# Domain, Path and size.


@pytest.mark.parametrize(
    ("domain", "sent"),
    [
        ("example.com", "example.com"),
        (".example.com", "example.com"),
        ("Example.COM", "Example.COM"),
        ("my-shop.example.com", "my-shop.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("Bücher.Example", "xn--bcher-kva.Example"),
        ("xn--strae-oqa.bücher.example", "xn--strae-oqa.xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),
        ("日本。jp", "xn--wgv71a.jp"),
        ("ΣΑΣ.example", "xn--mxa9ab.example"),
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
    "domain", ["straße.de", "shop.STRAßE.de", "νίκος.example", "نامه\u200cای.example"]
)
def test_a_domain_that_browsers_write_in_another_way_is_refused(domain: str) -> None:
    message = refusal_of({"session_domain": domain})
    assert message.startswith("session_domain: ")
    assert "xn--" in message


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/shop", "/shop"),
        ("/shop/", "/shop/"),
        ("/a%20b", "/a%20b"),
        ("/a b", "/a%20b"),
        ("/a,b=c", "/a,b=c"),
        ('/a"b', "/a%22b"),
        ("/a?b#c", "/a%3Fb%23c"),
        ("/" + "x" * 1023, "/" + "x" * 1023),
        ("/" + " " * 341, "/" + "%20" * 341),
    ],
)
def test_a_path_is_sent(path: str, sent: str) -> None:
    assert f"; Path={sent};" in cookie_of({"session_path": path}).issue(TOKEN)


@pytest.mark.parametrize(
    "path",
    [
        *("shop", " /", "*", "/a;b", "/; Secure", "/a\r\nb: c", "/\n", "/a\tb", "/\0", "/\x7f"),
        *("/ü", "/" + "x" * 1024, "/" + " " * 342, "/" + '"' * 4096, "http://example.com/"),
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


# The lines in the log.


def test_the_variables_of_the_shell_are_no_headers() -> None:
    """wsgiref puts them into the environ, as Bottle's and Pyramid's first servers do."""
    for name in ("HTTP_PROXY", "NPM_CONFIG_HTTP_PROXY", "MY_HTTP_FORWARDED"):
        assert not cookie_of(**{name: "http://proxy.example.com:3128"}).secure
    for name in ("HTTP_X_PROXY", "HTTP_PROXY_CONNECTION", "HTTP_X_PROXY_ID"):
        assert cookie_of(**{name: "1"}).secure


def lines_of(
    caplog: pytest.LogCaptureFixture, settings: Mapping[str, Any], *environs: dict[str, Any]
) -> list[tuple[int, str]]:
    """Return the level and text of what is logged when each request gets a token, twice."""
    caplog.set_level(logging.INFO, "mongosession_wsgi")
    policy = policy_of(settings)
    for environ in [environ_of(**extra) for extra in environs] * 2:
        policy.issue(
            policy.cookie_for(environ), TOKEN, environ["wsgi.url_scheme"], environ["HTTP_HOST"]
        )
    assert TOKEN not in caplog.text
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def test_a_secure_cookie_over_plain_http_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = lines_of(caplog, {}, PUBLIC, {"HTTP_HOST": "db"}, {"REMOTE_ADDR": ""})
    assert line[0] == logging.WARNING
    assert line[1].startswith(
        "A Secure session cookie was set on a request that came by plain HTTP"
    )
    for told in ("'example.com'", "X-Forwarded-Proto", "session_secure: true", "false"):
        assert told in line[1]


def test_a_cookie_without_secure_that_is_chosen_automatically_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (line,) = lines_of(caplog, {"session_secure": "auto"}, {}, {"HTTP_HOST": "127.0.0.1"})
    assert line[0] == logging.INFO
    assert line[1].startswith("A session cookie without Secure was set")
    assert "session_secure: true" in line[1]


@pytest.mark.parametrize(
    ("settings", "environ"),
    [
        ({"session_secure": False}, {}),
        ({"session_secure": False}, PUBLIC),
        ({"session_secure": False}, HTTPS),
        ({"session_secure": True}, HTTPS),
        ({}, HTTPS),
        ({}, HTTPS | PUBLIC),
    ],
)
def test_a_cookie_that_was_asked_for_or_will_come_back_is_not_logged(
    settings: dict[str, Any], environ: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert lines_of(caplog, settings, environ) == []


def test_each_application_logs_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        assert len(lines_of(caplog, {}, {}, PUBLIC)) == 2


def test_two_cookies_of_the_name_are_logged_once_for_both_cookies(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = policy_of({"session_name": "sid"})
    two = f"sid={TOKEN}; sid={'u' * 43}"
    for environ in [environ_of(HTTP_COOKIE=two), environ_of(HTTP_COOKIE=two, **HTTPS)] * 2:
        cookie = policy.cookie_for(environ)
        assert cookie.read(environ["HTTP_COOKIE"]) is None
        assert replace(cookie, max_age=None).read(environ["HTTP_COOKIE"]) is None
    (message,) = caplog.messages
    for told in ("cookies named sid", "parent domain", "path", "session_domain", "session_name"):
        assert told in message
    assert TOKEN not in message


def test_a_line_is_logged_once_by_many_threads(caplog: pytest.LogCaptureFixture) -> None:
    cookie, barrier = cookie_of({"session_name": "sid"}), threading.Barrier(8)

    def read() -> None:
        barrier.wait(timeout=20)
        cookie.read("sid=a; sid=b")

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(caplog.messages) == 1


def test_a_host_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    ((_, line),) = lines_of(caplog, {}, {"HTTP_HOST": "a\nERROR all is lost"})
    assert "\n" not in line

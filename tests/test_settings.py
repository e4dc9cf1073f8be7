"""The flat mapping of settings: what is taken, what is refused, and what the driver is told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from configparser import RawConfigParser
from contextlib import suppress
from datetime import date, datetime, timedelta
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo import ReadPreference, WriteConcern, compression_support
from pymongo.client_options import ClientOptions
from pymongo.collection import Collection
from pymongo.common import VALIDATORS
from pymongo.server_api import ServerApi

from mongosession_wsgi import MongoStore, SessionMiddleware, SettingsError
from mongosession_wsgi.settings import Settings

from .wsgi import Browser, on_session


def others(ours: str, theirs: str) -> list[tuple[str, str]]:
    """Return what each of the keys of other libraries is to be answered with."""
    return [(key, ours) for key in theirs.split()]


Parse = Callable[[Mapping[str, Any]], Any]
DATABASE = {"mongodb_session_db": "myapp"}
KEYS = [
    "session",
    "mongodb_session_db",
    "mongodb_session_coll",
    "mongodb_host",
    "mongodb_port",
    "mongodb_username",
    "mongodb_password",
    "mongodb_db_name",
    "mongodb_replica_set",
    "session_name",
    "session_expires",
    "session_remember",
    "session_lifetime",
    "session_limit",
    "session_sealed",
    "session_secure",
    "session_is_http_only",
    "session_same_site",
    "session_domain",
    "session_path",
    "session_partitioned",
]
FIELDS = {
    "mongodb_session_db": "database",
    "mongodb_session_coll": "collection",
    "session_name": "name",
    "session_expires": "max_age",
    "session_remember": "remember",
    "session_lifetime": "lifetime",
    "session_limit": "limit",
    "session_sealed": "sealed",
    "session_secure": "secure",
    "session_is_http_only": "http_only",
    "session_same_site": "same_site",
    "session_domain": "domain",
    "session_path": "path",
    "session_partitioned": "partitioned",
}
SECRET = "geheim"
BIG = 10**400


def app(environ: Any, start_response: Any) -> list[bytes]:
    raise NotImplementedError


def middleware(settings: Mapping[str, Any]) -> SessionMiddleware:
    return SessionMiddleware(app, settings)


both_constructors = pytest.mark.parametrize("parse", [MongoStore, middleware])


def refusal_of(settings: Mapping[str, Any], parse: Parse = Settings.parse) -> str:
    with pytest.raises(SettingsError) as caught:
        parse(settings)
    return str(caught.value)


def driver_options(settings: Mapping[str, Any]) -> ClientOptions:
    """Return what a real client made of the settings. It does not connect yet."""
    store = MongoStore({**DATABASE, **settings})
    try:
        return store._sessions.documents.database.client.options
    finally:
        store.close()


# What is given, and what is not.


def test_the_defaults() -> None:
    settings = Settings.parse(DATABASE)
    assert settings == Settings(database="myapp", client_options=settings.client_options)
    assert (settings.collection, settings.name, settings.max_age) == ("sessions", None, None)
    assert (settings.idle, settings.lifetime) == (timedelta(days=14), timedelta(days=30))
    assert (settings.remember, settings.limit, settings.sealed) == (timedelta(days=30), None, False)
    assert (settings.secure, settings.http_only, settings.same_site) == (None, True, "Lax")
    assert (settings.domain, settings.path, settings.partitioned) == (None, "/", False)
    assert dict(settings.client_options) == {
        "host": "localhost",
        "port": 27017,
        "timeoutms": 5000,
        "serverselectiontimeoutms": 5000,
        "maxidletimems": 120_000,
        "appname": "mongosession-wsgi",
    }


@pytest.mark.parametrize("nothing", ["", None])
@pytest.mark.parametrize("key", KEYS)
def test_an_empty_value_counts_as_not_given(key: str, nothing: str | None) -> None:
    assert Settings.parse({key: nothing}) == Settings.parse({})


def test_the_seeds_example_is_taken() -> None:
    example = {
        "session": "MongoDB",
        "mongodb_session_db": "dancer_sessions",
        "mongodb_host": "",
        "session_expires": "2 hours",
    }
    settings = Settings.parse(example)
    assert settings.database == "dancer_sessions"
    assert settings.idle == settings.max_age == timedelta(hours=2)
    assert settings.client_options["host"] == "localhost"


def test_settings_that_are_parsed_are_taken_as_they_are() -> None:
    settings = Settings.parse(DATABASE)
    assert Settings.parse(settings) is settings


def test_settings_are_frozen() -> None:
    settings = Settings.parse(DATABASE)
    with pytest.raises(AttributeError):
        settings.path = "/x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.client_options["host"] = "x"  # type: ignore[index]


@pytest.mark.parametrize("other", ["debug", "SECRET_KEY", "mongodb", "Session_path", 7, None, ""])
def test_the_keys_of_others_are_ignored(other: Any) -> None:
    assert Settings.parse(DATABASE | {other: object()}) == Settings.parse(DATABASE)


@pytest.mark.parametrize(
    "word", ["mongodb", "MONGODB", "MongoDb", "Mongo DB", "YAML", 1, ["MongoDB"]]
)
def test_the_session_engine_is_mongodb_in_this_capitalization(word: Any) -> None:
    assert "session: must be 'MongoDB'" in refusal_of({"session": word})


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [("session", "mongodb", "not 'mongodb'"), ("session_limit", -1, "not -1")],
)
def test_a_plain_word_or_number_is_shown_in_the_error(key: str, value: Any, shown: str) -> None:
    assert refusal_of({key: value}).endswith(f", {shown}")


class Client:
    """As a `MongoClient`, this has attributes of any name: its databases."""

    def __getattr__(self, name: str) -> Any:
        return f"the database {name}"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (None, "not None"),
        ("myapp", "not a str"),
        (b"myapp", "not a bytes"),
        (7, "not an int"),
        ([("mongodb_session_db", "myapp")], "not a list"),
        (app, "not a function; are the arguments of SessionMiddleware(app, settings) swapped?"),
        (dict, "not a type; are the arguments"),
        (Client(), "not a Client"),
    ],
)
@pytest.mark.parametrize("parse", [Settings.parse, MongoStore, middleware])
def test_what_is_no_mapping_is_refused(parse: Any, settings: Any, told: str) -> None:
    with pytest.raises(TypeError) as caught:
        parse(settings)
    message = "settings must be a mapping such as {'mongodb_session_db': 'myapp'}, "
    assert str(caught.value).startswith(message + told)


def test_what_is_like_a_mapping_is_taken() -> None:
    config = RawConfigParser()
    config.read_string("[myapp]\nmongodb_session_db = myapp\nmongodb_port = 9")

    class Like:
        def items(self) -> Any:
            return config["myapp"].items()

    for settings in (config["myapp"], MappingProxyType(dict(config["myapp"])), Like()):
        parsed = Settings.parse(settings)  # type: ignore[arg-type]
        assert (parsed.database, parsed.client_options["port"]) == ("myapp", 9)


def test_each_key_is_the_cookies_the_stores_or_the_drivers() -> None:
    cookie, store, driver = (Settings.keys(of) for of in ("cookie", "store", "driver"))
    assert {*FIELDS} == cookie | store == Settings.keys("cookie", "store")
    assert {key for key in FIELDS if key.startswith("mongodb_")} <= store
    assert not cookie & store
    assert {"session_lifetime", "session_limit", "session_sealed"} < store
    assert {"session_expires", "session_remember", "session_secure", "session_name"} < cookie
    assert {"mongodb_host", "mongodb_port", "mongodb_db_name", "mongodb_timeoutms"} < driver
    assert not driver & (cookie | store)


@pytest.mark.parametrize("value", ["x", "", None])
@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("session_expire", "session_expires"),
        ("session_samesite", "session_same_site"),
        ("session_cookie_name", "session_name"),
        ("session_Path", "session_path"),
        ("sessions", "session"),
        ("mongodb_hots", "mongodb_host"),
        ("mongodb_session_database", "mongodb_session_db"),
        ("mongodb_db_nam", "mongodb_db_name"),
        ("mongodb_pasword", "mongodb_password"),
        ("mongodb_replica_sett", "mongodb_replicaset"),
        ("mongodb_maxPoolSze", "mongodb_maxpoolsize"),
        ("mongodb_sesion_db", "mongodb_session_db"),
        *others(
            "mongodb_host", "mongodb_uri mongodb_url mongodb_dsn mongodb_settings mongodb_hosts"
        ),
        *others(
            "mongodb_host", "mongodb_connection_string session_mongodb session.url session_uri"
        ),
        *others(
            "mongodb_session_db", "mongodb_db mongodb_database mongodb_name session_mongodb_db"
        ),
        *others("mongodb_session_db", "session_db mongodb_initdb_database mongodb_session_dbname"),
        *others("mongodb_session_coll", "mongodb_collection mongodb_coll session_mongodb_collect"),
        *others("mongodb_session_coll", "mongodb_collection_name session_collection"),
        *others("mongodb_db_name", "mongodb_auth_db mongodb_authentication_database"),
        *others("mongodb_username", "mongodb_user mongodb_root_user session_username"),
        *others("mongodb_password", "mongodb_pass mongodb_pwd mongodb_root_password"),
        *others("mongodb_tls", "mongodb_secure mongodb_use_ssl mongodb_ssl_enabled"),
        *others("mongodb_tls_ca_file", "mongodb_ssl_ca_certs mongodb_ca_file"),
        *others("mongodb_timeoutms", "mongodb_timeout"),
        *others("mongodb_connecttimeoutms", "mongodb_connection_timeout mongodb_connect_timeout"),
        *others("mongodb_max_pool_size", "mongodb_pool_size"),
        *others("mongodb_replica_set", "mongodb_rs mongodb_replica"),
        *others("session_expires", "session_timeout session_max_age session_ttl session_permanent"),
        *others("session_expires", "session_cookie_age session.cookie_expires session_maxAge"),
        *others("session_expires", "session_cookie_lifetime session_idle_timeout mongodb_ttl"),
        *others("session_lifetime", "session_absolute_timeout session_max_lifetime"),
        *others("session_remember", "session_remember_me session_remember_for"),
        *others("session_limit", "session_max session_max_sessions session_concurrent_sessions"),
        *others("session_sealed", "session_encrypt session.encrypt_key session_encryption"),
        *others("session_name", "session_key session.key session_cookie session_sid"),
        *others("session_is_http_only", "session_httponly session_cookie_httponly"),
        *others("session_same_site", "session_cookie_samesite session.samesite"),
        *others("session_secure", "session_cookie_secure session_https_only session_secure_cookie"),
        *others("session_domain", "session_cookie_domain"),
        *others("session", "session_type session_engine session_store"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, nearest: str, value: Any) -> None:
    assert refusal_of({key: value}).endswith(f"{key}: no such setting; did you mean {nearest}?")


@pytest.mark.parametrize(
    "key",
    [
        "session" + "?" * 40,
        *(
            "mongodb_",
            "session_",
            "mongodb_alias",
            "mongodb_auth",
            "mongodb_enabled",
            "mongodb_log_level",
            "session_serializer",
        ),
        *("session_key_prefix", "session_save_every_request", "session.data_dir", "session_auto"),
    ],
)
def test_an_unknown_key_that_is_near_to_nothing_is_refused(key: str) -> None:
    assert refusal_of({key: "x"}) == f"{key}: no such setting"


@pytest.mark.parametrize("key", ["session_secret", "session_secret_key", "session_use_signer"])
def test_no_secret_is_needed(key: str) -> None:
    assert "none is needed" in refusal_of({key: SECRET})
    assert SECRET not in refusal_of({key: SECRET})


@both_constructors
@pytest.mark.parametrize("nothing", [{}, {"mongodb_session_db": ""}, {"mongodb_session_db": None}])
def test_the_database_is_required(parse: Parse, nothing: Mapping[str, Any]) -> None:
    assert refusal_of(nothing, parse).startswith("mongodb_session_db: missing")


@both_constructors
def test_a_bad_value_is_refused_by_the_constructor(parse: Parse) -> None:
    assert refusal_of(DATABASE | {"session_expires": "soon"}, parse).startswith("session_expires: ")


# The value of each key.


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("mongodb_session_coll", "web.sessions", "web.sessions"),
        ("session_name", " sid", " sid"),
        ("session_secure", "true", True),
        ("session_secure", "Off", False),
        ("session_secure", True, True),
        ("session_secure", "auto", None),
        ("session_secure", " Auto ", None),
        ("session_is_http_only", "false", False),
        ("session_is_http_only", "0", False),
        ("session_is_http_only", "1", True),
        ("session_is_http_only", "YES", True),
        ("session_is_http_only", " no ", False),
        ("session_is_http_only", "on", True),
        ("session_is_http_only", 0, False),
        ("session_is_http_only", 1, True),
        ("session_same_site", "strict", "Strict"),
        ("session_same_site", "LAX", "Lax"),
        ("session_same_site", "nOnE", "None"),
        ("session_domain", "example.com", "example.com"),
        ("session_path", "/shop", "/shop"),
        ("session_partitioned", "true", True),
        ("session_partitioned", False, False),
        ("session_remember", "2 weeks", timedelta(weeks=2)),
        ("session_limit", 1, 1),
        ("session_limit", " 3 ", 3),
        ("session_limit", 1_000_000, 1_000_000),
        ("session_limit", "None", None),
        ("session_sealed", "no", False),
    ],
)
def test_a_value_is_read(key: str, value: Any, read: Any) -> None:
    assert getattr(Settings.parse({key: value}), FIELDS[key]) == read


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("mongodb_session_db", ["a.b", "a b", "a/b", "a$", "a\0", "a\n", "x" * 64, 7, ["a"]]),
        (
            "mongodb_session_coll",
            ["a$b", "system.x", ".a", "a.", "a..b", "a\0b", "a\r\n", "x" * 201, 7],
        ),
        ("mongodb_host", [7, {}, [], [7], [""], ["a", None]]),
        ("mongodb_port", ["http", 0, -1, 65536, "65536", 2.5, True, "9" * 5000, "\u0663", [1]]),
        ("mongodb_username", [[]]),
        ("mongodb_max_pool_size", ["many", -1]),
        ("mongodb_tls", ["maybe", 2]),
        ("mongodb_tls_ca_file", ["no/such/file", 7]),
        ("mongodb_w", [[1], "0", -1, "-1"]),
        ("mongodb_timeout_ms", ["soon", -1, BIG]),
        ("session_name", [7, ["sid"]]),
        ("session_secure", ["maybe", 2, 0.0]),
        ("session_is_http_only", ["auto", "maybe", 2]),
        ("session_same_site", ["loose", True, 0]),
        ("session_domain", [7]),
        ("session_path", [7]),
        ("session_partitioned", ["auto"]),
        ("session_remember", ["none", 0, "soon", True]),
        ("session_limit", [0, "0", -1, "-1", 1.5, "1.5", True, 1_000_001, BIG, "9" * 5000, "many"]),
        ("session_sealed", ["auto", "maybe", 2]),
        ("mongodb_server_api", ["2", 2, "v1", [1], True]),
        ("mongodb_max_idle_time_ms", [-1, "soon"]),
    ],
)
def test_a_bad_value_is_refused_by_name(key: str, values: list[Any]) -> None:
    for value in values:
        assert refusal_of({key: value}).startswith(f"{key}: must be "), value


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (90, timedelta(seconds=90)),
        (1.5, timedelta(seconds=1.5)),
        (timedelta(hours=3), timedelta(hours=3)),
        ("90", timedelta(seconds=90)),
        ("+90", timedelta(seconds=90)),
        ("90s", timedelta(seconds=90)),
        ("90 seconds", timedelta(seconds=90)),
        ("1.5h", timedelta(minutes=90)),
        ("2 hours", timedelta(hours=2)),
        ("+2h", timedelta(hours=2)),
        (" + 2  Hours ", timedelta(hours=2)),
        ("1d", timedelta(days=1)),
        ("1 day", timedelta(days=1)),
        ("2w", timedelta(weeks=2)),
        ("2 weeks", timedelta(weeks=2)),
        ("1m", timedelta(minutes=1)),
        ("10 min", timedelta(minutes=10)),
        ("1 minute", timedelta(minutes=1)),
        ("1M", timedelta(days=30)),
        ("2 months", timedelta(days=60)),
        ("2 Months", timedelta(days=60)),
        ("1y", timedelta(days=365)),
        ("1 year", timedelta(days=365)),
        ("400d", timedelta(days=400)),
    ],
)
def test_a_span_is_read(value: Any, read: timedelta) -> None:
    settings = Settings.parse({"session_expires": value, "session_lifetime": value})
    assert settings.max_age == settings.idle == settings.lifetime == read


@pytest.mark.parametrize("key", ["session_expires", "session_lifetime"])
@pytest.mark.parametrize(
    "value",
    [
        *(0, 0.5, -1, "0", "-1", "-2h", "0 days", timedelta(0), timedelta(days=-1)),
        *(True, False, "soon", "true", "2 fortnights", "h", "1h30m", "1 2", "1,5h", "\u0663"),
        *(float("inf"), float("nan"), float("1e400"), "inf", "nan", "1e400", "1e3"),
        *(BIG, -BIG, "9" * 5000, 10**9 * 86400, "1001y", timedelta.max),
        *([], [90], {}, b"90", object),
    ],
)
def test_what_is_no_span_is_refused(key: str, value: Any) -> None:
    message = refusal_of({key: value})
    assert message.startswith(f"{key}: must be a number of seconds")
    assert "float" not in message
    assert "object at" not in message


@pytest.mark.parametrize("value", ["401d", timedelta(days=400, seconds=1), "2y", 10**8])
def test_no_cookie_lasts_longer_than_400_days(value: Any) -> None:
    for key in ("session_expires", "session_remember"):
        assert refusal_of({key: value}).startswith(f"{key}: at most 400 days")
    assert Settings.parse({"session_lifetime": value}).lifetime is not None


@pytest.mark.parametrize("value", ["none", "None", " NONE "])
def test_a_lifetime_may_have_no_limit(value: str) -> None:
    assert Settings.parse({"session_lifetime": value}).lifetime is None
    assert "session_expires" in refusal_of({"session_expires": value})


@both_constructors
def test_sealing_needs_a_package(parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    message = refusal_of(DATABASE | {"session_sealed": "true"}, parse)
    assert message.startswith("session_sealed: needs the package cryptography")
    assert "pip install 'mongosession-wsgi[sealed]'" in message
    assert not Settings.parse({"session_sealed": "false"}).sealed
    module = ModuleType("cryptography")
    module.__spec__ = ModuleSpec("cryptography", None)
    monkeypatch.setitem(sys.modules, "cryptography", module)
    assert Settings.parse({"session_sealed": "true"}).sealed


@pytest.mark.parametrize("value", [12345678, 7.5, False, date(2024, 1, 1), datetime(2024, 1, 1)])
@pytest.mark.parametrize(
    "key",
    [
        *("mongodb_username", "mongodb_password", "mongodb_db_name", "mongodb_replica_set"),
        *("mongodb_app_name", "mongodb_session_db", "mongodb_session_coll"),
        *("mongodb_tls_certificate_key_file_password", "session_name", "session_domain"),
    ],
)
def test_a_text_that_yaml_has_made_something_else_of_is_to_be_quoted(key: str, value: Any) -> None:
    message = refusal_of({key: value})
    assert message.startswith(f"{key}: must be a text; quote it")
    assert str(value) not in message or key.startswith("session_")


def test_the_longest_lifetime_can_be_stored(
    settings: dict[str, Any], stored: Collection[Any]
) -> None:
    store = MongoStore(settings | {"session_lifetime": "1000y", "session_expires": "400d"})
    browser = Browser(SessionMiddleware(on_session(lambda s: s.update(a=1)), settings, store=store))
    assert browser.get().commands == ["insert"]
    assert browser.get().commands == ["update"]
    assert stored.count_documents({}) == 1
    store.close()


# What the driver is told.


@pytest.mark.parametrize(
    ("key", "value", "option", "understood"),
    [
        ("mongodb_replica_set", "rs0", "replicaSet", "rs0"),
        ("mongodb_replicaSet", "rs0", "replicaSet", "rs0"),
        ("mongodb_REPLICASET", "rs0", "replicaSet", "rs0"),
        ("mongodb__replica__set_", "rs0", "replicaSet", "rs0"),
        ("mongodb_max_pool_size", "7", "maxPoolSize", 7),
        ("mongodb_timeout_ms", "250", "timeoutMS", 0.25),
        ("mongodb_timeoutMS", 250, "timeoutMS", 0.25),
        ("mongodb_server_selection_timeout_ms", 250, "serverSelectionTimeoutMS", 0.25),
        ("mongodb_app_name", "shop", "appName", "shop"),
        ("mongodb_tls", "yes", "tls", True),
        ("mongodb_tls", "off", "tls", False),
        ("mongodb_retry_writes", "false", "retryWrites", False),
        ("mongodb_tz_aware", "true", "tz_aware", True),
        ("mongodb_w", "2", "w", 2),
        ("mongodb_w", "majority", "w", "majority"),
        ("mongodb_read_concern_level", "majority", "readConcernLevel", "majority"),
        ("mongodb_direct_connection", "true", "directConnection", True),
        ("mongodb_read_preference", "nearest", "readPreference", "nearest"),
        ("mongodb_compressors", "zlib", "compressors", ["zlib"]),
        ("mongodb_compressors", " zlib , zlib", "compressors", ["zlib", "zlib"]),
        ("mongodb_srv_max_hosts", "0", "srvMaxHosts", 0),
        ("mongodb_auth_oidc_allowed_hosts", "a, b", "authOIDCAllowedHosts", ["a", "b"]),
        ("mongodb_zlib_compression_level", "6", "zlibCompressionLevel", 6),
        ("mongodb_heartbeat_frequency_ms", "700", "heartbeatFrequencyMS", 0.7),
        ("mongodb_wtimeout_ms", "7", "wTimeoutMS", 7),
        ("mongodb_local_threshold_ms", "7", "localThresholdMS", 7.0),
        ("mongodb_max_staleness_seconds", "-1", "maxStalenessSeconds", -1),
        ("mongodb_server_monitoring_mode", "poll", "serverMonitoringMode", "poll"),
        ("mongodb_uuid_representation", "standard", "uuidRepresentation", 4),
        ("mongodb_auth_mechanism", "SCRAM-SHA-256", "authMechanism", "SCRAM-SHA-256"),
        (
            "mongodb_read_preference_tags",
            "dc:ny,rack:1",
            "readPreferenceTags",
            [{"dc": "ny", "rack": "1"}],
        ),
    ],
)
def test_an_option_of_the_client_is_taken_in_any_spelling(
    key: str, value: Any, option: str, understood: Any
) -> None:
    needed = {"mongodb_username": "bob", "mongodb_password": "x"}
    needed |= {"mongodb_read_preference": "secondary"} if "_tags" in key else {}
    options = driver_options(needed | {key: value})
    found = options._options[option]
    assert (found, type(found)) == (understood, type(understood))


def test_the_driver_compares_the_number_of_srv_hosts_with_others_before_it_reads_it() -> None:
    assert Settings.parse({"mongodb_srv_max_hosts": "2"}).client_options["srvmaxhosts"] == 2


@pytest.mark.parametrize("version", ["1", 1, " 1 ", ServerApi("1", strict=True)])
def test_a_version_of_the_stable_api_is_taken_as_text(version: Any) -> None:
    server_api = driver_options({"mongodb_server_api": version}).pool_options.server_api
    assert server_api is not None
    assert server_api.version == "1"
    assert server_api.strict is (version.strict if isinstance(version, ServerApi) else None)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("mongodb_auth_mechanism", "SHA1", "SCRAM-SHA-256"),
        ("mongodb_read_preference", "somewhere", "primaryPreferred"),
        ("mongodb_max_pool_size", "many", "must be an integer"),
        ("mongodb_tls_ca_file", "no/such/file", "No such file"),
        ("mongodb_server_monitoring_mode", "often", "poll"),
        ("mongodb_app_name", "x" * 129, "128 bytes"),
        ("mongodb_compressors", "zlib, zlibb", "Unsupported compressor: zlibb"),
    ],
)
def test_the_drivers_own_reason_is_told(key: str, value: str, reason: str) -> None:
    assert reason in refusal_of({key: value})


def test_of_several_compressors_one_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression_support, "_have_snappy", lambda: False)
    assert "is not installed" in refusal_of({"mongodb_compressors": "snappy"})
    settings = Settings.parse(DATABASE | {"mongodb_compressors": "snappy, zlib"})
    assert settings.client_options["compressors"] == ["snappy", "zlib"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mongodb_replica_set", "mongodb_replicaSet"),
        ("mongodb_w", "mongodb_W"),
        ("mongodb_host", "mongodb_Host"),
        ("mongodb_db_name", "mongodb_auth_source"),
    ],
)
def test_the_same_option_twice_is_refused(one: str, other: str) -> None:
    assert "is given twice" in refusal_of({one: "1", other: "1"})
    assert Settings.parse({one: "1", other: ""}) == Settings.parse({one: "1"})


def test_the_user_is_looked_up_in_the_database_of_that_name() -> None:
    settings = {
        "mongodb_username": "bob",
        "mongodb_password": SECRET,
        "mongodb_db_name": "users",
    }
    credentials = driver_options(settings).pool_options._credentials
    assert credentials is not None
    assert (credentials.username, credentials.password) == ("bob", SECRET)
    assert credentials.source == "users"


@pytest.mark.parametrize(
    ("settings", "nodes"),
    [
        ({}, {("localhost", 27017)}),
        ({"mongodb_port": "27018"}, {("localhost", 27018)}),
        ({"mongodb_host": "db1", "mongodb_port": 27018}, {("db1", 27018)}),
        ({"mongodb_host": "db1:1,db2"}, {("db1", 1), ("db2", 27017)}),
        ({"mongodb_host": ["db1", "db2:9"]}, {("db1", 27017), ("db2", 9)}),
        ({"mongodb_host": ("db1", "db2")}, {("db1", 27017), ("db2", 27017)}),
        ({"mongodb_host": "mongodb://db1:1,db2:2/x"}, {("db1", 1), ("db2", 2)}),
        ({"mongodb_host": "mongodb://db1", "mongodb_port": "9"}, {("db1", 9)}),
        ({"mongodb_host": "[::1]:9"}, {("::1", 9)}),
        ({"mongodb_host": "[::1]"}, {("::1", 27017)}),
        ({"mongodb_host": "[fe80::1%25eth0]:9"}, {("fe80::1%eth0", 9)}),
        ({"mongodb_host": "localhost:27017"}, {("localhost", 27017)}),
        ({"mongodb_host": " db1 , db2:9 "}, {("db1", 27017), ("db2", 9)}),
        ({"mongodb_host": "mongodb://db1\n"}, {("db1", 27017)}),
        ({"mongodb_host": "mongodb://%2Ftmp%2Fm.sock"}, {("/tmp/m.sock", None)}),
        ({"mongodb_host": "%2Ftmp%2Fm.sock"}, {("/tmp/m.sock", None)}),
    ],
)
def test_the_hosts_are_those_that_are_given(
    settings: Mapping[str, Any], nodes: set[tuple[str, int]]
) -> None:
    store = MongoStore({**DATABASE, **settings})
    client = store._sessions.documents.database.client
    assert set(client._topology_settings.seeds) == nodes
    store.close()


@pytest.mark.parametrize(
    "host",
    [
        *(
            "http://db1",
            "https://db1:27017/myapp",
            "tcp://10.0.0.1:27017",
            "MONGODB://db1",
            "//db1",
        ),
        *("db1/myapp", "db1?w=1", "db1#x", "/tmp/mongodb-27017.sock", f"bob:{SECRET}@db1"),
        *(
            "db1:27017:27017",
            "db1:",
            "db1:x",
            "db1:0",
            "db1:65536",
            "db1 27017",
            "::1",
            "fe80::1%lo",
        ),
        *("[::1", "::1]", "[db1]", "db1,", ",db1", "db1,,db2", "db%31", " ", "db1,http://db2"),
    ],
)
@pytest.mark.parametrize("wrap", [str, lambda host: [host], lambda host: ["db1", host]])
def test_what_is_no_host_is_refused(wrap: Callable[[str], Any], host: str) -> None:
    message = refusal_of({"mongodb_host": wrap(host)})
    assert message.startswith("mongodb_host: must be a host ('db.example'")
    assert "mongodb+srv://" in message
    assert SECRET not in message


def test_a_cluster_may_be_named_by_dns() -> None:
    host = "mongodb+srv://cluster.example.net/?timeoutMS=1&appName=shop"
    options = Settings.parse({"mongodb_host": host}).client_options
    assert options["host"] == host
    assert {"timeoutms", "appname"}.isdisjoint(options)


DEFAULTS = {
    "timeoutMS": 5.0,
    "serverSelectionTimeoutMS": 5.0,
    "maxIdleTimeMS": 120.0,
    "appname": "mongosession-wsgi",
}


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({}, {}),
        ({"mongodb_host": "mongodb://db1/?retryWrites=true"}, {}),
        ({"mongodb_timeout_ms": "700"}, {"timeoutMS": 0.7}),
        ({"mongodb_server_selection_timeout_ms": 700}, {"serverSelectionTimeoutMS": 0.7}),
        ({"mongodb_appname": "shop"}, {"appname": "shop"}),
        ({"mongodb_host": "mongodb://db1/?timeoutMS=700"}, {"timeoutMS": 0.7}),
        ({"mongodb_host": "mongodb://db1/?timeoutms=700&w=1"}, {"timeoutMS": 0.7}),
        (
            {"mongodb_host": "mongodb://db1/x?w=1&serverSelectionTimeoutMS=700"},
            {"serverSelectionTimeoutMS": 0.7},
        ),
        ({"mongodb_host": ["db2", "mongodb://db1/?appName=shop"]}, {"appname": "shop"}),
        ({"mongodb_max_idle_time_ms": "700"}, {"maxIdleTimeMS": 0.7}),
        ({"mongodb_host": "mongodb://db1/?maxIdleTimeMS=700"}, {"maxIdleTimeMS": 0.7}),
        ({"mongodb_timeout_ms": 0}, {"timeoutMS": None}),
        ({"mongodb_timeout_ms": "0"}, {"timeoutMS": None}),
        ({"mongodb_timeout_ms": " 0.0 "}, {"timeoutMS": None}),
        ({"mongodb_max_idle_time_ms": 0}, {"maxIdleTimeMS": None}),
        ({"mongodb_host": "mongodb://db1/?timeoutMS=0"}, {"timeoutMS": None}),
        ({"mongodb_host": "mongodb://db1/?w=1&TIMEOUTMS=0"}, {"timeoutMS": None}),
        (
            {"mongodb_host": "mongodb://db1/?timeoutMS=0", "mongodb_timeout_ms": 700},
            {"timeoutMS": 0.7},
        ),
        (
            {"mongodb_host": "mongodb://db1/?timeoutMS=700", "mongodb_timeout_ms": 0},
            {"timeoutMS": None},
        ),
        (
            {"mongodb_host": "mongodb://db1/?timeoutMS=9", "mongodb_timeoutMS": 700},
            {"timeoutMS": 0.7},
        ),
    ],
)
def test_the_drivers_defaults_are_changed_unless_something_else_is_said(
    settings: Mapping[str, Any], changed: dict[str, Any]
) -> None:
    options = driver_options(settings)
    expected = DEFAULTS | changed
    assert options.timeout == expected["timeoutMS"]
    assert options.server_selection_timeout == expected["serverSelectionTimeoutMS"]
    assert options.pool_options.max_idle_time_seconds == expected["maxIdleTimeMS"]
    assert options.pool_options.appname == expected["appname"]


@pytest.mark.parametrize(
    "settings",
    [
        {"mongodb_w": 0},
        {"mongodb_w": "0"},
        {"mongodb_w": " 00 "},
        {"mongodb_W": 0},
        {"mongodb_w": False},
        {"mongodb_host": "mongodb://db1/?w=0"},
        {"mongodb_host": "mongodb://db1/?W=0"},
        {"mongodb_host": "mongodb://db1/?tls=true&w=00"},
        {"mongodb_host": "mongodb://db1/?w=%30"},
        {"mongodb_host": "mongodb+srv://db1/?w=0&tls=true"},
        {"mongodb_host": ["mongodb://db1", "mongodb://db2/?w=0"]},
    ],
)
def test_writes_that_nobody_acknowledges_are_refused(settings: Mapping[str, Any]) -> None:
    message = refusal_of(settings)
    assert message.startswith(next(iter(settings)))
    assert message.endswith("a session's write must be acknowledged")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mongodb_w": 1, "mongodb_read_preference": "secondary"},
        {"mongodb_host": "mongodb://db1/?w=1&readPreference=secondary&journal=false"},
    ],
)
def test_sessions_are_read_from_the_primary_and_written_to_the_majority(
    settings: Mapping[str, Any],
) -> None:
    store = MongoStore({**DATABASE, **settings})
    sessions = store._sessions.documents
    assert sessions.read_preference == ReadPreference.PRIMARY
    assert sessions.write_concern == WriteConcern("majority")
    store.close()


# Secrets.


@pytest.mark.parametrize(
    "settings",
    [
        {"mongodb_password": [SECRET]},
        {"mongodb_PASSWORD": [SECRET]},
        {"mongodb_pass_word": [SECRET]},
        {"mongodb_tls_certificate_key_file_password": [SECRET]},
        {"mongodb_auth_mechanism_properties": f"AWS_SESSION_TOKEN:{SECRET},x"},
        {"mongodb_auth_mechanism_properties": f"{SECRET}:x"},
        {"mongodb_auto_encryption_opts": {"key": SECRET}},
        {"mongodb_host": f"mongodb://u:{SECRET}@db1/?w=0"},
        {"mongodb_HOST": f"mongodb://u:{SECRET}@db1/?w=0"},
        {"mongodb_host": [f"mongodb://u:{SECRET}@db1", 7]},
        {"mongodb_port": f"mongodb://u:{SECRET}@db1"},
        {"mongodb_session_db": f"mongodb://u:{SECRET}@db1"},
        {"mongodb_session_coll": f"mongodb://u:{SECRET}@db1/$"},
        {"mongodb_hots": f"mongodb://u:{SECRET}@db1"},
        {"mongodb_pasword": SECRET},
        {"mongodb_uri": f"mongodb://u:{SECRET}@db1"},
        {"session_mongodb": f"mongodb://u:{SECRET}@db1"},
        {"mongodb_uuid_representation": f"mongodb://u:{SECRET}@db1"},
        {"mongodb_tls_ca_file": f"mongodb://u:{SECRET}@db1"},
        {"mongodb_host": f"postgres://u:{SECRET}@db1"},
        {"mongodb_zlib_compression_level": {"password": SECRET}},
        {"mongodb_uuid_representation": f"redis://db1/?password={SECRET}"},
        {"session": {"password": SECRET}},
        {"session": f"redis://:{SECRET}@db1"},
        {"session_expires": {"password": SECRET}},
        {"session_path": [SECRET]},
        {"session_same_site": f"redis://:{SECRET}@db1"},
    ],
)
def test_no_secret_is_in_the_error(settings: Mapping[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.parse(settings)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_no_secret_is_in_the_repr() -> None:
    host = f"mongodb://u:{SECRET}@db1"
    settings = Settings.parse({"mongodb_host": host, "mongodb_password": SECRET})
    assert SECRET not in repr(settings)


# Anything at all.

words = st.sampled_from(
    ["", "0", "1", "true", "none", "auto", "2 hours", "90", "MongoDB", "mongodb://h/?w=0", "h:1"]
)
scalars = st.none() | words | st.text() | st.integers() | st.sampled_from([BIG, 1 << 31, 1 << 63])
keys = (
    st.sampled_from([*KEYS, *(f"mongodb_{name}" for name in ("w", "tls", "ssl", "timeoutMS"))])
    | st.sampled_from(["session", "session_", "mongodb_", "mongodb_session_"])
    | st.builds("mongodb_{}".format, st.text())
    | st.builds("session{}".format, st.text())
    | st.text()
)
mappings = st.dictionaries(keys, scalars | st.lists(scalars, max_size=3), max_size=6)


@hypothesis.settings(deadline=None)
@given(mappings)
def test_any_mapping_is_parsed_or_refused(mapping: dict[str, Any]) -> None:
    for parse in (Settings.parse, MongoStore, middleware):
        with suppress(SettingsError):
            parse(DATABASE | mapping)


@hypothesis.settings(deadline=None)
@given(st.sampled_from(sorted(VALIDATORS)), scalars | st.lists(scalars, max_size=3))
def test_any_value_of_any_option_is_parsed_or_refused(option: str, value: Any) -> None:
    with suppress(SettingsError):
        Settings.parse({f"mongodb_{option}": value})

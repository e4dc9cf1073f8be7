"""The client of a process: how connecting fails, the words for each cause, time, the primary."""

from __future__ import annotations

import errno
import gc
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import bson
import dns.resolver
import pymongo
import pytest
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient, _csot, monitoring
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    DuplicateKeyError,
    InvalidOperation,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)
from pymongo.uri_parser import parse_uri

from mongosession_wsgi import MongoStore, SessionDataError, SettingsError, StoreError, connecting
from mongosession_wsgi.collection import SessionCollection
from mongosession_wsgi.commands import Documents, find
from mongosession_wsgi.connecting import OPTIONS
from mongosession_wsgi.document import MAX_SIZE
from mongosession_wsgi.embedded import EmbeddedServer
from mongosession_wsgi.failures import REMEDIES, LookUpTimeoutError, explained
from mongosession_wsgi.settings import Settings

from .faults import wait_until
from .proxy import Proxy

LONGEST = 30.0
"""Seconds after which a wait is one without end."""
SOON = 500
"""A short `timeoutMS`, for commands that run into it."""
PEM = Path(__file__).with_name("localhost.pem")
ID = "i" * 43
Made = Callable[..., SessionCollection]


@pytest.fixture
def made(mongodb_uri: str, database: str) -> Iterator[Made]:
    """Make collections of this test's database, and close them in the end."""
    collections: list[SessionCollection] = []

    def make(host: str = mongodb_uri, **settings: Any) -> SessionCollection:
        settings = {f"mongodb_{name}": value for name, value in settings.items()}
        settings = {"mongodb_host": host, "mongodb_session_db": database} | settings
        collections.append(SessionCollection(Settings.parse(settings)))
        return collections[-1]

    yield make
    for one in collections:
        one.close()


def address_of(uri: str) -> tuple[str, int]:
    host, port = parse_uri(uri)["nodelist"][0]
    return host, int(port)


def by_name(uri: str) -> str:
    """Return the URI with a name, for each connection to look up."""
    return uri.replace("127.0.0.1", "localhost")


def look(documents: Documents) -> Any:
    return find(documents, deque(), ID)


def grow_old(collection: SessionCollection) -> None:
    """Use a connection with a `maxIdleTimeMS` of 1, and wait until it is too old."""
    collection.attempt(look)
    time.sleep(0.01)


def in_time(call: Callable[[], Any], seconds: float = LONGEST) -> Any:
    """Return the result of a call; raise `TimeoutError` if the call waits without an end."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except Exception as error:  # noqa: BLE001 - raised again
            result.set_exception(error)

    threading.Thread(target=copy_context().run, args=[run], daemon=True).start()
    return result.result(seconds)


def failure_of(call: Callable[[], Any], seconds: float = LONGEST) -> StoreError:
    with pytest.raises(StoreError) as caught:
        in_time(call, seconds)
    return caught.value


@pytest.mark.parametrize("seconds", [60, 0], ids=["longer", "without a limit"])
def test_a_timeout_of_the_application_lifts_no_limit_of_ours(
    made: Made, proxy: Proxy, seconds: float
) -> None:
    """The driver forgets its own limit within any `pymongo.timeout`."""
    collection = made(proxy.uri, timeout_ms=SOON)
    assert collection.attempt(look) is None
    collection._is_direct = False  # As for most deployments; a look at the member has a limit.
    proxy.silent()
    with pymongo.timeout(seconds):
        assert "in time" in str(failure_of(lambda: collection.attempt(look)))


def test_the_threads_of_a_client_know_no_time_limit_of_a_request(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Python 3.14 on, a thread may inherit the context of the call that starts the thread."""
    limits: list[float | None] = []
    own_client = SessionCollection._own_client

    def watched(self: SessionCollection) -> MongoClient[Any]:
        limits.append(_csot.get_timeout())
        return own_client(self)

    monkeypatch.setattr(SessionCollection, "_own_client", watched)
    with pymongo.timeout(LONGEST):
        made().attempt(look)
    assert limits == [None]


@pytest.mark.parametrize("kind", ["a login beyond the limit", "a key for a dead session"])
def test_the_commands_of_a_commit_share_the_time_of_one(
    database: str, proxy: Proxy, kind: str
) -> None:
    limits: list[int] = []

    class Listener(monitoring.CommandListener):
        def started(self, event: monitoring.CommandStartedEvent) -> None:
            limits.append(event.command.get("maxTimeMS", 0))

        def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

        def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

    settings = {"mongodb_session_db": database, "session_limit": 1}
    with MongoClient[Any](proxy.uri, timeoutMS=5000, event_listeners=[Listener()]) as client:
        store = MongoStore(settings, client=client)
        store.ensure_indexes()
        dead = kind == "a key for a dead session"
        session = store.open("A" * 43 if dead else None)
        if dead:
            session["a"] = 1
        else:
            session.login("alice")
        limits.clear()
        proxy.delay(0.2)
        store.flush(session)
    assert len(limits) > 1
    assert all(limit <= 5000 - 200 * before for before, limit in enumerate(limits)), limits


@pytest.fixture
def long_list(made: Made, proxy: Proxy) -> SessionCollection:
    """A collection with more documents than a first batch holds."""
    collection = made(proxy.uri, timeout_ms=SOON)
    collection.documents.insert_many([{"n": n} for n in range(300)])
    return collection


def test_a_list_may_be_left_while_the_server_is_silent(
    long_list: SessionCollection, proxy: Proxy
) -> None:
    """To close a cursor is a command, and the driver sets that one no limit."""
    found = long_list.each(long_list.documents.find({}))
    assert next(found)["n"] == 0
    proxy.silent()
    in_time(found.close, SOON / 100)  # type: ignore[attr-defined]


def test_a_list_that_goes_on_after_the_close_makes_no_client(
    long_list: SessionCollection,
) -> None:
    found = long_list.each(long_list.documents.find({}))
    next(found)
    long_list.close()
    with pytest.raises(StoreError):
        list(found)
    assert not long_list._made


def test_a_list_that_is_forgotten_sends_nothing_by_the_garbage_collector(
    long_list: SessionCollection,
) -> None:
    """There, the driver would wait for ever for the locks that this thread holds."""
    client = long_list.documents.database.client
    found = long_list.each(long_list.documents.find({}))
    next(found)
    around: list[Any] = [found]
    around.append(around)
    del found, around

    def collect() -> None:
        with client._topology._lock:
            gc.collect()

    in_time(collect)


def test_a_list_whose_server_falls_silent_fails_in_time(
    long_list: SessionCollection, proxy: Proxy
) -> None:
    found = long_list.each(long_list.documents.find({}))
    next(found)
    proxy.silent()
    with pytest.raises(StoreError, match="in time"):
        in_time(lambda: list(found), SOON / 100)


# Failures while connecting.


def test_a_database_must_be_named() -> None:
    with pytest.raises(SettingsError, match="mongodb_session_db: missing"):
        SessionCollection(Settings.parse({}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"heartbeat_frequency_ms": 100}, "heartbeatFrequencyMS"),
        ({"min_pool_size": 200}, "minPoolSize"),
        ({"max_staleness_seconds": 90}, "maxStalenessSeconds"),
        ({"host": ["a", "b"], "direct_connection": True}, "directConnection"),
        ({"auth_mechanism": "MONGODB-AWS", "username": "u", "password": "hunter2",
          "auth_mechanism_properties": "AWS_SESSION_TOKEN:hunter3", "ssl": True, "tls": False},
         "ssl and tls"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_fail_at_once(
    settings: dict[str, Any], words: str
) -> None:
    named = {f"mongodb_{name}": value for name, value in settings.items()}
    with pytest.raises(SettingsError, match=f"do not go together: .*{words}") as caught:
        MongoStore({"mongodb_session_db": "shop"} | named)
    assert "hunter" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("later", ["username", "auth_mechanism"])
def test_a_login_may_be_completed_later(later: str) -> None:
    given = {"mongodb_session_db": "shop", f"mongodb_{later}": "SCRAM-SHA-256"}
    assert MongoStore(given).settings.client_options


@pytest.mark.parametrize("option", ["tlsCAFile", "tlsCertificateKeyFile", "tlsCRLFile"])
@pytest.mark.parametrize("fault", ["missing", "empty", "damaged", "a folder"])
def test_a_file_of_certificates_that_cannot_be_read(
    made: Made, tmp_path: Path, option: str, fault: str
) -> None:
    path = tmp_path / "some.pem"
    if fault == "a folder":
        path.mkdir()
    elif fault != "missing":
        path.write_text("" if fault == "empty" else "-----BEGIN CERTIFICATE-----\nx\n")
    collection = made(f"mongodb://127.0.0.1:1/?tls=true&{option}={path}")
    error = failure_of(lambda: collection.attempt(look))
    assert "A file of certificates is not there, not readable or damaged" in str(error)
    assert isinstance(error.__cause__, OSError | ConfigurationError)


def test_a_file_that_comes_later_is_read_by_the_next_request(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    collection = made(f"mongodb://127.0.0.1:1/?tls=true&tlsCAFile={path}&timeoutMS={SOON}")
    assert "A file of certificates" in str(failure_of(lambda: collection.attempt(look)))
    path.write_text(PEM.read_text())
    assert "nothing listens" in str(failure_of(lambda: collection.attempt(look)))


@contextmanager
def no_threads(of: str, within: str = "") -> Iterator[None]:
    """Refuse to start threads of this name, as a system does that has no more.

    `within` names the threads that are refused theirs. Others go on: those of other clients.
    """
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name.startswith(of) and threading.current_thread().name.startswith(within):
            raise RuntimeError("can't start new thread")
        start(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


def test_without_threads_there_is_an_error_and_with_them_it_works(made: Made) -> None:
    collection = made()
    with no_threads(of="mongosession"):
        failure = failure_of(lambda: collection.attempt(look))
    assert "can have no more threads" in str(failure)
    assert isinstance(failure.__cause__, RuntimeError)
    assert collection.attempt(look) is None


def test_the_drivers_own_threads_may_be_what_is_missing(made: Made) -> None:
    collection = made()
    with no_threads(of="pymongo", within="mongosession connect"):
        assert "no more threads" in str(failure_of(lambda: collection.attempt(look)))
    assert collection.attempt(look) is None


def test_a_connection_more_without_a_thread(made: Made) -> None:
    collection = made(max_idle_time_ms=1)
    grow_old(collection)
    with no_threads(of="mongosession"):
        assert collection.attempt(look) is None


def interrupted(*_: object) -> None:
    """Be called as the handler of a signal raises, such as that of a time limit for requests."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["_begin_making", "begin"])
def test_a_request_that_was_interrupted_in_the_making_of_the_client(
    made: Made, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    collection = made()
    with monkeypatch.context() as patched:
        owner: Any = connecting if place == "begin" else SessionCollection
        patched.setattr(owner, place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            collection.attempt(look)
    assert collection.attempt(look) is None


def test_connections_that_were_interrupted_leave_room_for_others(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = made(max_idle_time_ms=1)
    for _ in range(3):
        grow_old(collection)
        with monkeypatch.context() as patched:
            patched.setattr(connecting, "begin", interrupted)
            with pytest.raises(KeyboardInterrupt):
                collection.attempt(look)
    assert collection.attempt(look) is None


def test_a_first_use_at_the_end_of_python_fails_at_once(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = made()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "is_finalizing", lambda: True)
        assert "Python is about to end" in str(failure_of(lambda: collection.attempt(look)))
    assert collection.attempt(look) is None


@pytest.mark.skipif(not hasattr(ClientSession, "bind"), reason="needs PyMongo 4.18")
@pytest.mark.parametrize("shared", [False, True])
def test_a_session_that_the_application_has_bound_is_not_ours(
    settings: dict[str, Any], client: MongoClient[Any], shared: bool
) -> None:
    with closing(MongoStore(settings, client=client if shared else None)) as store:
        session = store.open(None)
        session.login("alice")
        store.flush(session)
        with client.start_session() as theirs, theirs.bind(), theirs.start_transaction():
            client[settings["mongodb_session_db"]]["orders"].insert_one({"n": 1})
            assert [one.owner for one in store.sessions("alice")] == ["alice"]
            assert store.revoke_all("alice") == 1
            store.ensure_indexes()
            theirs.abort_transaction()
        assert list(store.sessions("alice")) == []


@pytest.mark.skipif(not hasattr(ClientSession, "bind"), reason="needs PyMongo 4.18")
@pytest.mark.parametrize("shared", [False, True])
def test_a_store_that_is_closed_leaves_a_transaction_of_the_application_alone(
    settings: dict[str, Any], client: MongoClient[Any], shared: bool
) -> None:
    orders = client[settings["mongodb_session_db"]]["orders"]
    store = MongoStore(settings, client=client if shared else None)
    store.create()
    with client.start_session() as theirs, theirs.bind(), theirs.start_transaction():
        orders.insert_one({"n": 1})
        store.close()
    assert orders.count_documents({}) == 1


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), ValueError("x"), OSError("x")])
def test_an_error_of_the_command_itself_is_not_taken_for_one_of_the_database(
    made: Made, error: Exception
) -> None:
    def wrong(documents: Documents) -> None:
        raise error

    with pytest.raises(type(error)):
        made().attempt(wrong)
    with pytest.raises(TypeError):
        made().attempt(lambda documents: documents.update_one(5, 5))  # type: ignore[arg-type]


def test_memory_that_runs_out_in_the_midst_of_connecting(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(*_: object, **__: object) -> None:
        raise MemoryError

    collection = made(timeout_ms=SOON, max_idle_time_ms=1)
    grow_old(collection)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert "can have no more memory" in str(failure_of(lambda: collection.attempt(look)))


# Names.


class Names:
    """The look-up of `localhost`, which does not end while names are silent."""

    def __init__(self) -> None:
        self.asked = 0
        self._answering = threading.Event()
        self._answering.set()
        self._real = socket.getaddrinfo

    def look_up(self, host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "localhost":
            self.asked += 1
            self._answering.wait(2 * LONGEST)
        return self._real(host, *args, **kwargs)

    def be_silent(self) -> None:
        self._answering.clear()

    def answer(self) -> None:
        self._answering.set()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.look_up)
    yield names
    names.answer()


def test_a_name_that_hangs_at_first_use(made: Made, proxy: Proxy, names: Names) -> None:
    collection = made(by_name(proxy.uri), timeout_ms=SOON)
    names.be_silent()
    assert "name" in str(failure_of(lambda: collection.attempt(look)))
    names.answer()
    assert in_time(lambda: made(by_name(proxy.uri)).attempt(look)) is None


def test_a_name_that_hangs_when_an_idle_connection_is_replaced(
    made: Made, proxy: Proxy, names: Names
) -> None:
    collection = made(by_name(proxy.uri), timeout_ms=SOON, max_idle_time_ms=1)
    grow_old(collection)
    names.be_silent()
    asked = names.asked
    error = failure_of(lambda: collection.attempt(look))
    assert "was not looked up in time" in str(error)
    assert isinstance(error.__cause__, LookUpTimeoutError)
    assert names.asked > asked
    names.answer()
    assert in_time(lambda: made(by_name(proxy.uri)).attempt(look)) is None


def test_a_name_that_hangs_while_the_pool_grows_costs_no_connection_that_is_there(
    made: Made, proxy: Proxy, names: Names
) -> None:
    collection = made(by_name(proxy.uri), timeout_ms=round(1000 * LONGEST))
    collection.attempt(look)
    names.be_silent()
    with ThreadPoolExecutor(1) as threads:
        struck = proxy.struck
        proxy.delay(LONGEST)
        first = threads.submit(collection.attempt, look)
        wait_until(lambda: proxy.struck > struck)
        with pymongo.timeout(SOON / 1000):
            error = failure_of(lambda: collection.attempt(look))
        proxy.forward()
        assert first.result(LONGEST) is None
    assert isinstance(error.__cause__, LookUpTimeoutError)
    assert in_time(lambda: collection.attempt(look)) is None, "the names are silent still"


def test_names_that_hang_for_long_hold_two_threads_and_no_more(
    made: Made, proxy: Proxy, names: Names
) -> None:
    collection = made(by_name(proxy.uri), timeout_ms=SOON, max_idle_time_ms=1)
    grow_old(collection)
    names.be_silent()
    with ThreadPoolExecutor(6) as threads:
        runs = [threads.submit(collection.attempt, look) for _ in range(12)]
        errors = [run.exception(LONGEST) for run in runs]
    assert {type(error) for error in errors} == {StoreError}
    stuck = [one for one in threading.enumerate() if one.name == "mongosession connect"]
    assert len(stuck) == 2
    names.answer()
    for one in stuck:
        one.join(LONGEST)
    assert collection.attempt(look) is None


def test_the_driver_takes_the_pool_that_bounds_a_connection(made: Made) -> None:
    client = made().documents.database.client
    client.admin.command("ping")
    (server,) = client._topology._servers.values()
    assert OPTIONS
    assert type(server.pool) is OPTIONS["_pool_class"]


def test_a_driver_that_knows_no_such_pool_is_taken_as_it_is(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mongosession_wsgi.connecting.OPTIONS", {"_pool": None})
    assert made().attempt(look) is None


class Zone:
    """The answers of the name servers for `cluster.example.test`."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.text = [b"authSource=admin"]
        self.target = "db.example.test"
        self.answering = threading.Event()
        self.answering.set()

    def resolve(self, name: str, kind: str, **_: Any) -> Any:
        self.asked.append(kind)
        self.answering.wait(2 * LONGEST)
        if self.error is not None:
            raise self.error
        if kind == "TXT":
            return [SimpleNamespace(strings=[text]) for text in self.text]
        target = SimpleNamespace(to_text=lambda omit_final_dot: self.target)
        return [SimpleNamespace(target=target, port=self.port)]


CLUSTER = "mongodb+srv://cluster.example.test/?tls=false"


@pytest.fixture
def zone(mongodb_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zone]:
    address, port = address_of(mongodb_uri)
    zone, real = Zone(port), socket.getaddrinfo

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        return real(address if host == "db.example.test" else host, *args, **kwargs)

    monkeypatch.setattr(dns.resolver, "resolve", zone.resolve)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield zone
    zone.answering.set()


def test_a_cluster_that_is_named_by_dns(made: Made, zone: Zone) -> None:
    collection = made(CLUSTER)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(collection.attempt, [look] * 4)) == [None] * 4
    assert zone.asked == ["SRV", "TXT"], "one look-up is for all who wait"


def test_a_cluster_whose_name_is_known_late_is_there_for_the_next_request(
    made: Made, zone: Zone
) -> None:
    zone.answering.clear()
    collection = made(CLUSTER, timeout_ms=SOON)
    for _ in range(2):
        error = failure_of(lambda: collection.attempt(look))
        assert "was not looked up in time" in str(error)
        assert isinstance(error.__cause__, LookUpTimeoutError)
    zone.answering.set()
    making = collection._making[os.getpid()]
    assert making.result(LONGEST) is collection.documents
    assert collection.attempt(look) is None
    assert zone.asked == ["SRV", "TXT"]


def test_a_client_that_takes_long_for_another_reason_than_its_name(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = threading.Event()

    def load(self: ssl.SSLContext) -> None:
        loading.wait(2 * LONGEST)

    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", load)
    collection = made("mongodb://127.0.0.1:1/?tls=true", timeout_ms=SOON)
    assert "MongoDB did not answer in time" in str(failure_of(lambda: collection.attempt(look)))
    loading.set()


def test_a_client_that_comes_after_its_store_was_closed_is_closed_too(
    made: Made, zone: Zone
) -> None:
    zone.answering.clear()
    collection = made(f"{CLUSTER}&timeoutMS={SOON}")
    failure_of(lambda: collection.attempt(look))
    making = collection._making[os.getpid()]
    collection.close()
    zone.answering.set()
    late = making.result(LONGEST)
    with pytest.raises(InvalidOperation):
        late.find_one({})
    assert collection._endings == {}
    assert collection.attempt(look) is None


def test_two_clients_of_the_same_hosts_are_both_closed(made: Made) -> None:
    """The driver calls the clients equal."""
    collection = made()
    both = [collection._collection_of(collection._own_client()) for _ in range(2)]
    assert both[0].database.client == both[1].database.client
    for documents in both:
        assert documents.find_one({}) is None
        collection._end(documents)
        with pytest.raises(InvalidOperation):
            documents.find_one({})
    assert collection._endings == {}


@pytest.mark.parametrize("is_told", [True, False], ids=["by close", "as garbage"])
def test_an_own_client_is_closed_once_and_its_server_not_waited_for(
    mongodb_uri: str, database: str, monkeypatch: pytest.MonkeyPatch, *, is_told: bool
) -> None:
    """Garbage is collected in the midst of anything: so not in the thread that collects it."""
    waits: list[float | None] = []
    threads: list[threading.Thread] = []
    close = MongoClient.close
    store = MongoStore({"mongodb_host": mongodb_uri, "mongodb_session_db": database})
    own = store.client

    def watched(client: MongoClient[Any]) -> None:
        if client is own:  # Clients of other tests may be garbage by now, too.
            threads.append(threading.current_thread())
            waits.append(_csot.remaining())
        close(client)

    monkeypatch.setattr(MongoClient, "close", watched)
    assert own.admin.command("ping")["ok"]
    if is_told:
        store.close()
    del store
    gc.collect()
    wait_until(lambda: bool(waits))
    assert len(waits) == 1
    assert 0 < (waits[0] or 0) <= 1
    assert (threads == [threading.current_thread()]) is is_told


def test_garbage_is_collected_while_the_driver_holds_its_locks(
    mongodb_uri: str, database: str
) -> None:
    """The collector may come in a thread of the client that it closes."""
    store = MongoStore({"mongodb_host": mongodb_uri, "mongodb_session_db": database})
    client, stores = store.client, [store]
    del store

    def collect() -> None:
        with client._topology._lock:
            stores.clear()
            gc.collect()

    in_time(collect)
    wait_until(lambda: client._closed)


def test_a_program_that_closes_nothing_ends_without_a_word(mongodb_uri: str, database: str) -> None:
    program = f"""
from mongosession_wsgi import MongoStore
store = MongoStore({{"mongodb_host": {mongodb_uri!r}, "mongodb_session_db": {database!r}}})
store.create({{"a": 1}})
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_silent_server_does_not_hold_up_the_close(
    made: Made, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver alone would wait until it takes the server for lost, which are 20 seconds."""
    collection = made(proxy.uri)
    assert collection.attempt(look) is None
    monkeypatch.setattr("mongosession_wsgi.collection._MOMENT", SOON / 1000)
    proxy.silent()
    in_time(collection.close, SOON / 100)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"error": dns.resolver.NXDOMAIN()}, "cannot be looked up"),
        ({"error": dns.resolver.NoNameservers()}, "cannot be looked up"),
        (
            {"error": dns.resolver.LifetimeTimeout(timeout=1, errors=[])},
            "was not looked up in time",
        ),
        ({"text": [b"tls=true"]}, "DNS records of the name"),
        ({"text": [b"authSource=a", b"authSource=b"]}, "DNS records of the name"),
        ({"text": [b"\xff\xfe"]}, "DNS records of the name"),
        ({"target": "db.elsewhere.test"}, "DNS records of the name"),
    ],
    ids=str,
)
def test_a_name_server_that_says_something_else(
    made: Made, zone: Zone, fault: dict[str, Any], words: str
) -> None:
    vars(zone).update(fault)
    collection = made(CLUSTER)
    error = failure_of(lambda: collection.attempt(look))
    assert words in str(error)
    vars(zone).update(vars(Zone(zone.port)))
    assert collection.attempt(look) is None


def test_a_cluster_named_by_dns_without_dnspython(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "dns"]:
        monkeypatch.setitem(sys.modules, name, None)
    error = failure_of(lambda: made(CLUSTER).attempt(look))
    assert "needs the package dnspython" in str(error)


# No secrets.


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://u:hunter2/sesame@db/",
        "mongodb://u:12345/sesame@db/",
        "mongodb://u:hunter2@sesame@db/",
        "mongodb://u:hunter2:sesame@db/",
        "mongodb://u:hunter2?sesame@db/",
        "mongodb://u:hunter2#sesame@db/?timeoutMS=500",
        "mongodb://u:hunter2%sesame@db/",
        "mongodb://u:hunter2[sesame@db:x/",
        "mongodb+srv://u:hunter2,sesame@a,b/",
        "mongodb+srv://u:hunter2/sesame@cluster.example.test:1/",
        "mongodb://u:hunter2sesame@127.0.0.1:1/?timeoutMS=500",
        "mongodb://u:hunter2sesame@127.0.0.1:1/?tls=true&tlsCAFile=hunter2sesame",
        "mongodb://u:hunter2sesame@db/?authMechanism=PLAIN&readPreference=primary&readPreferenceTags=a:b",
    ],
)
def test_no_part_of_a_password_is_told(made: Made, uri: str) -> None:
    error = failure_of(lambda: made(uri).attempt(look))
    told = "".join(traceback.format_exception(error))
    assert "hunter2" not in told.replace(uri, "")
    assert "sesame" not in told.replace(uri, "")
    assert error.__cause__ is not None


@pytest.mark.parametrize("words", ["Bad port: 'hunter2'", "Unknown option hunter2", '"/sesame@db"'])
def test_a_driver_that_quotes_a_uri_tells_no_password(made: Made, words: str) -> None:
    """Releases of the driver differ in how much of a URI they quote."""
    error = made("mongodb://u:hunter2/sesame@db/")._no_client(ConfigurationError(words))
    told = "".join(traceback.format_exception(error))
    assert "hunter2" not in told
    assert "sesame" not in told
    assert "percent-encoded" in told


# Seven causes, seven texts.


@contextmanager
def listening(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """Yield the port of a server that passes each connection to `serve`, and then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve_one(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                serve(connection)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=serve_one, args=[connection], daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    accepting.join(LONGEST)


def hang_up(connection: socket.socket) -> None:
    connection.recv(4096)


def stay_silent(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def say_alert(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"\x15\x03\x03\x00\x02\x02\x50")


def say_http(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def speak_tls(connection: socket.socket, *, wants_certificate: bool = False) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    if wants_certificate:
        context.load_verify_locations(PEM)
        context.verify_mode = ssl.CERT_REQUIRED
    with connection.dup() as below:
        try:
            with context.wrap_socket(connection, server_side=True) as speaking:
                stay_silent(speaking)
        except ssl.SSLError:  # To close at once would take the alert back.
            below.shutdown(socket.SHUT_WR)
            stay_silent(below)


def want_certificate(connection: socket.socket) -> None:
    speak_tls(connection, wants_certificate=True)


@pytest.fixture
def atlas(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "nowhere.example.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        here = str(host).endswith(".mongodb.net")
        return real("127.0.0.1" if here else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


TLS = "tls=true&"
TRUSTED = f"{TLS}tlsCAFile={PEM}&"
TEXTS = {
    "atlas": ("cluster0-shard-00-00.abc.mongodb.net", say_alert, TLS, "IP access list"),
    "atlas, closed": ("cluster0-shard-00-00.abc.mongodb.net", hang_up, TLS, "IP access list"),
    "tls to plain": ("127.0.0.1", say_http, TLS, "remove mongodb_tls"),
    "tls to plain, closed": ("127.0.0.1", hang_up, TLS, "remove mongodb_tls"),
    "plain to tls": ("127.0.0.1", speak_tls, "", "set mongodb_tls: true"),
    "untrusted": ("localhost", speak_tls, TLS, "is not trusted"),
    "another name": ("127.0.0.1", speak_tls, TRUSTED, "is for another name"),
    "certificate wanted": ("localhost", want_certificate, TRUSTED, "certificate of this client"),
    "alert": ("localhost", say_alert, TLS, "TLS with the server fails"),
    "silent": ("127.0.0.1", stay_silent, "", "did not answer in time"),
    "no mongodb": ("127.0.0.1", say_http, "", "What answers is no MongoDB"),
    "no name": ("nowhere.example.test", stay_silent, "", "cannot be looked up"),
    "no such name": ("a..b", stay_silent, "", "cannot be looked up"),
}


@pytest.mark.usefixtures("atlas")
@pytest.mark.parametrize(("host", "serve", "options", "words"), TEXTS.values(), ids=TEXTS)
def test_each_cause_has_its_text(
    made: Made, host: str, serve: Callable[[socket.socket], object], options: str, words: str
) -> None:
    with listening(serve) as port:
        collection = made(f"mongodb://{host}:{port}/?{options}timeoutMS={SOON}")
        for _ in range(10):  # A busy machine may take all of the time to begin with TLS.
            error = failure_of(lambda: collection.attempt(look))
            if words in str(error):
                break
        collection.close()
    assert words in str(error)
    assert isinstance(error.__cause__, PyMongoError)


def test_no_more_files_can_be_opened(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    collection = made("localhost:1", timeout_ms=SOON)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    error = failure_of(lambda: collection.attempt(look))
    monkeypatch.undo()
    assert "no more open files" in str(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Failed to acquire IMDS access token: <urlopen error timed out>"),
        FileNotFoundError(2, "No such file", "/var/run/secrets/kubernetes.io/serviceaccount/token"),
    ],
)
def test_no_token_is_to_be_had(error: Exception) -> None:
    assert "mongodb_auth_mechanism_properties" in explained(error)


DOWN = "a:1: [Errno 111] Connection refused"
TOPOLOGY = f"Timeout: 5s, Topology Description: <.. error=AutoReconnect({DOWN!r})>"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ServerSelectionTimeoutError(f"No primary available for writes, {TOPOLOGY}"),
            "has no primary",
        ),
        (
            ServerSelectionTimeoutError(
                f'No replica set members match selector "Primary()", {TOPOLOGY}'
            ),
            "has no primary",
        ),
        (
            ServerSelectionTimeoutError(
                "Could not reach any servers in [('mongo', 27017)]. Replica set is configured with "
                f"internal hostnames or IPs?, {TOPOLOGY}"
            ),
            "mongodb_direct_connection: true",
        ),
        # Of a set that was never initiated.
        (ServerSelectionTimeoutError("No servers available for writes, Timeout: 5s"), "initiated"),
        (ServerSelectionTimeoutError('No servers match selector "Primary()", T'), "initiated"),
        (
            ServerSelectionTimeoutError(
                "Could not reach any servers in [('a', 1)]. Replica set is configured with "
                "internal hostnames or IPs?, Topology: [SSL: CERTIFICATE_VERIFY_FAILED] Hostname "
                "mismatch, certificate is not valid for 'a'"
            ),
            "for another name",
        ),
        (ServerSelectionTimeoutError(f"{DOWN}, {TOPOLOGY}"), "nothing listens"),
        (ServerSelectionTimeoutError("a:1: [Errno 101] Network is unreachable"), "nothing listens"),
        (
            OperationFailure("user is not allowed to do action [insert] on [a.sessions]", 8000),
            "grant it readWrite",
        ),
        (OperationFailure("CMD_NOT_ALLOWED: createIndexes", 8000), "plan of this MongoDB"),
        (ConfigurationError('The "dnspython" module must be installed to use'), "dnspython"),
        (
            ConfigurationError('The "kerberos" module must be installed to use GSSAPI'),
            "another package",
        ),
        (
            ConfigurationError("MONGODB-AWS authentication requires pymongo-auth-aws: install"),
            "another package",
        ),
    ],
    ids=str,
)
def test_each_of_the_drivers_words_has_its_text(error: Exception, words: str) -> None:
    assert words in explained(error)


@pytest.mark.parametrize(
    "host", ["kerberos.local", "pymongo-auth-aws", "dnspython", "nameservers", "getaddrinfo"]
)
def test_the_name_of_a_host_has_no_text(host: str) -> None:
    assert "nothing listens" in explained(
        AutoReconnect(f"{host}:1: [Errno 111] Connection refused")
    )


def test_nothing_listens(made: Made) -> None:
    with listening(stay_silent) as port:
        pass
    error = failure_of(lambda: made(f"127.0.0.1:{port}", timeout_ms=SOON).attempt(look))
    assert "nothing listens" in str(error)


@pytest.mark.parametrize(
    "option",
    ["timeoutMS=abc", "timeoutMS=-5", "tls=maybe", "authMechanism=SCRAM", "compressors=zlib,zlibb"],
)
def test_a_value_in_the_uri_that_the_driver_would_ignore(
    made: Made, mongodb_uri: str, option: str
) -> None:
    host, port = address_of(mongodb_uri)
    collection = made(f"mongodb://joe:secret@{host}:{port}/?{option}")
    error = failure_of(lambda: collection.attempt(look))
    assert f"{option.partition('=')[0].lower()} in the URI must be" in str(error)
    assert "secret" not in str(error)


def test_a_time_in_the_uri_is_read_as_the_driver_reads_it(made: Made, mongodb_uri: str) -> None:
    host, port = address_of(mongodb_uri)
    assert made(f"mongodb://{host}:{port}/?timeoutMS=4e3").attempt(look) is None


@pytest.mark.parametrize("direct", ["", "&directConnection=true"])
def test_a_replica_set_of_another_name(made: Made, mongodb_uri: str, direct: str) -> None:
    host, port = address_of(mongodb_uri)
    collection = made(f"mongodb://{host}:{port}/?replicaSet=other&timeoutMS={SOON}{direct}")
    assert "replica set of that name" in str(failure_of(lambda: collection.attempt(look)))


CODES = {
    13: "grant it readWrite",
    64: "Too few members",
    100: "Too few members",
    121: "a validator",
    14031: "disk of MongoDB is full",
    166: "is a view",
    16500: "throttles",
    8000: "plan of this MongoDB",
    301: "mongodb_retry_writes: false",
    4321: "MongoDB failed (OperationFailure)",
}


@pytest.mark.parametrize(("code", "words"), CODES.items())
def test_each_code_has_its_text(made: Made, proxy: Proxy, code: int, words: str) -> None:
    collection = made(proxy.uri)
    collection.attempt(look)
    proxy.rewrite(lambda command, ask: a_failure(code) if "find" in command else ask())
    error = failure_of(lambda: collection.attempt(look))
    assert words in str(error)
    assert isinstance(error.__cause__, OperationFailure)


def a_failure(code: int) -> dict[str, Any]:
    return {"ok": 0.0, "code": code, "errmsg": "no"}


def test_the_texts_differ() -> None:
    texts = [words for *_, words in TEXTS.values()] + list(CODES.values())
    assert len(set(texts)) >= 15
    assert explained(RuntimeError("x")) == "MongoDB failed (RuntimeError)"
    assert len({one.sentence for one in REMEDIES}) == len(REMEDIES)
    for one in REMEDIES:
        assert one.sentence[0].isupper()
        assert not one.sentence.endswith(".")


# Users.


@pytest.fixture(scope="module")
def with_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path_factory.mktemp("users"))
    with server, MongoClient[Any](server.uri) as client:
        resource = {"db": "", "collection": ""}
        for role, actions in {"blind": ["find", "insert", "createIndex"], "none": []}.items():
            privileges = [{"resource": resource, "actions": actions}] if actions else []
            client.admin.command("createRole", role, privileges=privileges, roles=[])
            client.admin.command("createUser", role, pwd="hunter2", roles=[role])
    server.options = ("--auth",)
    with server:
        yield server


@pytest.mark.parametrize(
    ("login", "words"),
    [
        ({}, "the settings have none"),
        ({"username": "blind", "password": "wrong"}, "refused the login"),
        ({"username": "nobody", "password": "hunter2"}, "refused the login"),
        ({"username": "blind", "password": "hunter2\n"}, "ends in a newline"),
        ({"username": "none", "password": "hunter2"}, "grant it readWrite"),
        (
            {"username": "blind", "password": "hunter2", "auth_mechanism": "GSSAPI"},
            "another package",
        ),
    ],
    ids=str,
)
def test_each_way_to_be_refused_has_its_text(
    made: Made, with_users: EmbeddedServer, login: dict[str, str], words: str
) -> None:
    collection = made(with_users.uri, timeout_ms=SOON, **login)
    for _ in range(2):
        error = failure_of(lambda: collection.attempt(look))
        assert words in str(error)
        assert "hunter2" not in "".join(traceback.format_exception(error))


def test_a_client_of_the_applications_own_fails_in_the_same_words(
    with_users: EmbeddedServer, database: str
) -> None:
    settings = Settings.parse({"mongodb_session_db": database})
    with MongoClient[Any](
        with_users.uri, username="blind", password="hunter2\n", timeoutMS=SOON
    ) as client:
        error = failure_of(lambda: SessionCollection(settings, client).attempt(look))
    assert "ends in a newline" in str(error)


# The primary, and nobody else.


def as_secondary(command: dict[str, Any], ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Answer as a member does that has lost an election."""
    mode = command.get("$readPreference", {}).get("mode", "primary")
    if {"find", "aggregate", "listIndexes"} & command.keys() and mode == "primary":
        return a_failure(13435)
    if {"insert", "update", "delete", "findAndModify"} & command.keys():
        return a_failure(10107)
    found = ask()
    if "setName" in found:
        found |= {"ismaster": False, "isWritablePrimary": False, "secondary": True}
        found.pop("topologyVersion", None)
    return found


READS: dict[str, Callable[[SessionCollection], Any]] = {
    "find": lambda one: one.attempt(look),
    "cursor": lambda one: one.attempt(lambda documents: list(documents.find({}))),
    "count": lambda one: one.attempt(lambda documents: documents.count_documents({})),
    "distinct": lambda one: one.attempt(lambda documents: documents.distinct("_id")),
    "raw cursor": lambda one: list(one.raw.find({})),
    "raw aggregate": lambda one: list(one.raw.aggregate([])),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_secondary_is_not_read(
    made: Made, proxy: Proxy, stored: Collection[Any], read: Callable[[SessionCollection], Any]
) -> None:
    stored.insert_one({"_id": ID})
    collection = made(proxy.uri, timeout_ms=2 * SOON)
    proxy.rewrite(as_secondary)
    error = failure_of(lambda: read(collection))
    assert "not the primary" in str(error)
    assert isinstance(error.__cause__, NotPrimaryError)
    proxy.forward()
    wait_until(lambda: collection.documents.database.client.is_primary)
    assert read(collection)


def test_a_member_that_was_the_primary_a_moment_ago_is_not_read(
    made: Made, proxy: Proxy, stored: Collection[Any]
) -> None:
    stored.insert_one({"_id": ID})
    collection = made(proxy.uri, timeout_ms=2 * SOON)
    assert collection.attempt(look) == {"_id": ID}

    def unnoticed(command: dict[str, Any], ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return as_secondary(command, ask) if "find" in command else ask()

    proxy.rewrite(unnoticed)
    failure_of(lambda: collection.attempt(look))


def test_a_store_lists_and_revokes_nothing_on_a_secondary(
    proxy: Proxy, settings: dict[str, Any], store: MongoStore
) -> None:
    session = store.open(None)
    session.login("alice")
    store.flush(session)
    direct = MongoStore(settings | {"mongodb_host": proxy.uri, "mongodb_timeout_ms": 2 * SOON})
    proxy.rewrite(as_secondary)
    for call in (
        lambda: list(direct.sessions()),
        lambda: direct.revoke_all("alice"),
        lambda: direct.revoke_all("bob"),
        lambda: direct.retrieve(session.token or ""),
        lambda: list(direct.collection.find({})),
        direct.purge,
    ):
        failure_of(call)
    direct.close()


# Time.


@pytest.mark.parametrize("given", [{"timeout_ms": 0}, {"timeout_ms": "0"}, {}])
def test_no_limit(made: Made, proxy: Proxy, given: dict[str, Any]) -> None:
    collection = made(proxy.uri if given else f"{proxy.uri}&timeoutMS=0", **given)
    assert collection.timeout is None
    assert collection.attempt(look) is None
    proxy.delay(0.05)
    with collection.deadline(0.0):
        assert collection.attempt(look) is None
    proxy.forward()


@pytest.mark.parametrize("ours", [0, 1000 * LONGEST])
def test_a_timeout_of_the_applications_own_is_not_made_longer(
    made: Made, proxy: Proxy, ours: float
) -> None:
    collection = made(proxy.uri, timeout_ms=int(ours))
    collection.attempt(look)
    proxy.silent()
    with pymongo.timeout(SOON / 1000), collection.deadline(time.monotonic()):
        cause: Any = failure_of(lambda: collection.attempt(look)).__cause__
    assert cause.timeout


def test_what_has_taken_time_before_is_counted(made: Made, proxy: Proxy) -> None:
    hours = 3_600_000
    collection = made(proxy.uri, timeout_ms=2 * hours)
    collection.attempt(look)
    proxy.silent()
    with collection.deadline(time.monotonic() - 2 * hours / 1000):
        cause: Any = failure_of(lambda: collection.attempt(look)).__cause__
    assert cause.timeout


def test_idle_connections_that_were_cut_cost_nobody_an_error(made: Made, proxy: Proxy) -> None:
    collection = made(proxy.uri)
    commands: list[Callable[[Documents], Any]] = [
        look,
        lambda documents: documents.update_one({"_id": ID}, {"$set": {"a": 1}}),
        lambda documents: documents.delete_many({"_id": ID}),
        lambda documents: list(documents.find({})),
    ]
    for command in commands:
        with ThreadPoolExecutor(4) as threads:
            proxy.delay(0.05)
            list(threads.map(collection.attempt, [look] * 4))
            proxy.forward()
            assert proxy.connections >= 4
            proxy.cut_idle()
            for run in [threads.submit(collection.attempt, command) for _ in range(4)]:
                run.result(LONGEST)


# Documents that are too large, and ids that are taken.


def test_a_refusal_in_words_of_its_own_of_what_is_too_large(made: Made, proxy: Proxy) -> None:
    def update(documents: Documents) -> Any:
        return documents.update_one({"_id": ID}, {"$set": {"a": 1}})

    collection = made(proxy.uri)
    collection.attempt(update, MAX_SIZE + 1)
    for code, size, expected in (
        (4321, MAX_SIZE + 1, SessionDataError),
        (4321, MAX_SIZE, StoreError),
        (4321, 0, StoreError),
        (13, MAX_SIZE + 1, StoreError),
        (50, MAX_SIZE + 1, StoreError),
        (10334, 0, SessionDataError),
    ):
        proxy.rewrite(
            lambda command, ask, code=code: (  # type: ignore[misc]
                a_failure(code) if "update" in command else ask()
            )
        )
        with pytest.raises(expected):
            collection.attempt(update, size)


def raw(**document: Any) -> RawBSONDocument:
    return RawBSONDocument(bson.encode(document))


def test_an_id_that_is_taken_where_the_server_does_not_say_so(made: Made, proxy: Proxy) -> None:
    collection = made(proxy.uri)
    assert collection.insert(raw(_id=ID))
    assert not collection.insert(raw(_id=ID))

    def without_key(command: dict[str, Any], ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        found = ask()
        for error in found.get("writeErrors", ()):
            error.pop("keyPattern", None)
        return found

    proxy.rewrite(without_key)
    assert not collection.insert(raw(_id=ID))


def test_a_unique_index_of_somebody_else_is_no_id_that_is_taken(
    made: Made, stored: Collection[Any]
) -> None:
    stored.create_index("owner", unique=True)
    collection = made()
    assert collection.insert(raw(_id=ID))
    with pytest.raises(StoreError) as caught:
        collection.insert(raw(_id="j" * 43))
    assert isinstance(caught.value.__cause__, DuplicateKeyError)

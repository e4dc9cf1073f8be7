from __future__ import annotations

import gc
import os
import secrets
import signal
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import hypothesis
import pytest
from pymongo import MongoClient
from pymongo.collection import Collection

from mongosession_wsgi import MongoStore
from mongosession_wsgi.embedded import EmbeddedServer
from mongosession_wsgi.testing.requests import Clock

from .commands import RECORDER
from .measured import import_all, measure_no_more, paused, resumed, save
from .pretender import Pretender
from .proxy import Proxy, before

# Time limits of Hypothesis would fail on a busy machine. Examples are the same in each run: some of
# those that chance makes up take many times as long. `STORIES` asks for others.
hypothesis.settings.register_profile(
    "unhurried",
    deadline=None,
    derandomize="STORIES" not in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("unhurried")


# Thousands of tests are made, and all of them stay: to look through them for garbage takes longer
# than to make them.
gc.disable()
# A shell lets a command in the background ignore Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # So does `nohup` with a hang-up.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """Measure coverage in the processes of pytest-xdist, and from there on only where asked for.

    The process that starts them runs no test.
    """
    starts_others = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if starts_others:
        save()
    else:
        measure_no_more()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Find the tests without measuring how."""
    import_all()
    with paused():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Measure the fixtures and the tests, and not how pytest goes from one to the next."""
    with paused():
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_fixture_setup() -> Iterator[None]:
    with resumed():
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with resumed() if is_measured(item) else paused():
        return (yield)


def is_measured(item: pytest.Item) -> bool:
    """Say whether a test tells what is covered; what Hypothesis makes up covers it by luck."""
    return not any(map(item.get_closest_marker, ("unmeasured", "hypothesis")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests marked `also_sealed` twice; the sessions of the second run are sealed."""
    if metafunc.definition.get_closest_marker("also_sealed"):
        metafunc.parametrize("is_sealed", [False, True], ids=["plain", "sealed"])


def pytest_collection_finish() -> None:
    """Collect garbage from now on, and look through none of the tests for it."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server, for `make quick` to leave them out; deal all to processes.

    Each process of pytest-xdist begins with a part of the list. The modules are dealt like cards:
    neighbours in the alphabet that wait a lot would else be left for the end, all of them. Long
    tests come first, for one that began at the end would keep all processes but its own waiting.
    """
    for item in items:
        if "mongodb_uri" in getattr(item, "fixturenames", ()):
            item.add_marker("server")
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    modules = dict.fromkeys(item.path for item in items)
    part_of = {module: number % processes for number, module in enumerate(modules)}
    items.sort(key=lambda item: (part_of[item.path], item.get_closest_marker("timeout") is None))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Save what was measured: a process of pytest-xdist has ten seconds to end, and is killed."""
    save()


@pytest.fixture(scope="session")
def mongodb_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server of the whole run: that of `MONGODB_URI`, or an embedded one."""
    uri = os.environ.get("MONGODB_URI")
    if uri:
        yield uri
        return
    with EmbeddedServer(
        tmp_path_factory.mktemp("mongodb"), options=["--enable-test-commands"]
    ) as server:
        yield server.uri


@pytest.fixture(scope="session")
def client(mongodb_uri: str) -> Iterator[MongoClient[Any]]:
    """A client for looking at what is stored, apart from those that are tested."""
    client: MongoClient[Any]
    with MongoClient(mongodb_uri, tz_aware=True) as client:
        yield client


@pytest.fixture
def pretender(client: MongoClient[Any]) -> Iterator[Pretender]:
    """A proxy before the server, whose answers a test may change."""
    with before(client, Pretender) as pretender:
        yield pretender


@pytest.fixture
def proxy(client: MongoClient[Any]) -> Iterator[Proxy]:
    """A proxy before the server, with faults that a test switches on."""
    with before(client, Proxy) as proxy:
        yield proxy


@pytest.fixture
def there(
    pretender: Pretender, settings: dict[str, Any], store: MongoStore
) -> Iterator[MongoStore]:
    """A store that speaks to the pretender, and whose indexes are made."""
    there = MongoStore(settings | {"mongodb_host": pretender.uri})
    yield there
    there.close()


@pytest.fixture
def database(client: MongoClient[Any]) -> Iterator[str]:
    """The name of a database that only this test has."""
    name = f"test_{secrets.token_hex(4)}"
    yield name
    client.drop_database(name)


@pytest.fixture
def stored(client: MongoClient[Any], database: str) -> Collection[Any]:
    """The collection of this test's sessions."""
    return client[database]["sessions"]


@pytest.fixture
def is_sealed() -> bool:
    return False


@pytest.fixture
def settings(mongodb_uri: str, database: str, is_sealed: bool) -> dict[str, Any]:
    sealed = {"session_sealed": "true"} if is_sealed else {}
    return {"mongodb_host": mongodb_uri, "mongodb_session_db": database} | sealed


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime.now(timezone.utc).replace(microsecond=0))


@pytest.fixture(scope="session")
def own_client(mongodb_uri: str) -> Iterator[MongoClient[Any]]:
    """The client that a store makes by itself, made once for the stores of all tests."""
    store = MongoStore({"mongodb_host": mongodb_uri, "mongodb_session_db": "tests"})
    yield store.client
    store.close()


@pytest.fixture
def store(
    settings: dict[str, Any], clock: Clock, own_client: MongoClient[Any]
) -> Iterator[MongoStore]:
    """A store whose indexes are made, so that tests count only the commands that they are about."""
    store = MongoStore(settings, client=own_client, clock=clock)
    store.ensure_indexes()
    yield store
    store.close()


@pytest.fixture(autouse=True)
def _every_command_names_one_id() -> Iterator[None]:
    yield
    scattered, RECORDER.scattered[:] = list(RECORDER.scattered), []
    assert not scattered, "a request's command would go to every shard of a cluster"

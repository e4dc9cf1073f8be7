"""A store on a client that an application has already, by itself, of MongoEngine, or observed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mongoengine
import pytest
from opentelemetry.instrumentation.pymongo import PymongoInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pymongo import AsyncMongoClient, MongoClient, ReadPreference, WriteConcern

from mongosession_wsgi import MongoStore


@pytest.fixture
def settings(database: str) -> dict[str, Any]:
    """Settings that lead nowhere without the client."""
    return {"mongodb_session_db": database, "mongodb_host": "mongodb://127.0.0.1:9"}


def test_a_client_of_mongoengine(mongodb_uri: str, settings: dict[str, Any]) -> None:
    mongoengine.connect("other", host=mongodb_uri, uuidRepresentation="standard")
    try:
        store = MongoStore(settings, client=mongoengine.get_connection())
        token = store.create({"a": 1}).token or ""
        store.close()
        assert store.retrieve(token) == {"a": 1}
    finally:
        mongoengine.disconnect()


def test_what_a_client_says_of_reads_and_writes_does_not_count(
    mongodb_uri: str, settings: dict[str, Any]
) -> None:
    with MongoClient[Any](mongodb_uri, readPreference="secondary", w=1, tz_aware=False) as client:
        sessions = MongoStore(settings, client=client).collection
        assert sessions.read_preference == ReadPreference.PRIMARY
        assert sessions.write_concern == WriteConcern("majority")


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = PymongoInstrumentor()
    instrumentor.instrument(tracer_provider=provider, capture_statement=True)
    yield exporter
    instrumentor.uninstrument()


def test_what_is_no_client_is_refused_before_a_write_is_lost(
    mongodb_uri: str, settings: dict[str, Any]
) -> None:
    with MongoClient[Any](mongodb_uri) as client:
        for other in (AsyncMongoClient[Any](mongodb_uri), mongodb_uri, client["shop"]):
            with pytest.raises(TypeError, match="client: must be a MongoClient, not "):
                MongoStore(settings, client=other)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["DatabaseClient", "AsyncSafeMongoClient", "MotorShopClient"])
def test_a_class_of_the_applications_own_may_have_any_name(
    mongodb_uri: str, settings: dict[str, Any], name: str
) -> None:
    with type(name, (MongoClient,), {})(mongodb_uri) as client:
        store = MongoStore(settings, client=client)
        assert store.retrieve(store.create({"a": 1}).token or "") == {"a": 1}
        store.close()


def test_a_span_has_no_token(
    spans: InMemorySpanExporter, mongodb_uri: str, settings: dict[str, Any]
) -> None:
    store = MongoStore(settings | {"mongodb_host": mongodb_uri})
    session = store.create({"a": 1})
    token, id_ = session.token or "", session.id or ""
    assert store.retrieve(token) == {"a": 1}
    store.destroy(session)
    store.close()
    told = " ".join(span.to_json() for span in spans.get_finished_spans())
    assert told.count("insert") >= 1
    assert id_ in told
    assert token not in told

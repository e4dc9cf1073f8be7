"""A restore from a backup brings ended sessions back, and a command ends them: docs/servers.md."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from mongosession_wsgi import MongoStore, Session
from mongosession_wsgi.testing.requests import Clock


@pytest.mark.parametrize(
    ("options", "ended", "left"), [(["--all"], 2, set()), (["--idle-for", "26h"], 1, {"alice"})]
)
def test_a_restore_brings_an_ended_session_back_and_a_command_ends_it(
    store: MongoStore,
    stored: Collection[Any],
    settings: dict[str, Any],
    clock: Clock,
    options: list[str],
    ended: int,
    left: set[str],
) -> None:
    clock.now -= timedelta(hours=27)
    tokens = {owner: logged_in(store, owner) for owner in ("alice", "mallory")}
    backup = list(stored.find())
    clock.now += timedelta(hours=27)
    use(store, tokens["alice"])
    store.destroy(opened(store, tokens["mallory"]))
    assert store.retrieve(tokens["mallory"]) is None

    restore(stored, backup)
    assert opened(store, tokens["mallory"]).owner == "mallory"
    assert opened(store, tokens["alice"])["visits"] == 1
    assert f"{ended} session" in revoked(settings, *options)
    assert {owner for owner in tokens if store.retrieve(tokens[owner])} == left


def test_a_backup_that_is_older_than_the_idle_time_brings_nobody_back(
    store: MongoStore, stored: Collection[Any], clock: Clock
) -> None:
    token = logged_in(store, "mallory")
    backup = list(stored.find())
    store.destroy(opened(store, token))
    restore(stored, backup)
    assert opened(store, token).owner == "mallory"
    clock.now += timedelta(days=15)
    assert store.retrieve(token) is None


def logged_in(store: MongoStore, owner: str) -> str:
    session = store.create()
    session.login(owner)
    store.flush(session)
    assert session.token is not None
    return session.token


def opened(store: MongoStore, token: str) -> Session:
    session = store.retrieve(token)
    assert session is not None
    return session


def use(store: MongoStore, token: str) -> None:
    session = opened(store, token)
    session["visits"] = 1
    store.flush(session)


def restore(collection: Collection[Any], documents: list[dict[str, Any]]) -> None:
    """Insert what is not there, and leave what is, as mongorestore does."""
    with suppress(BulkWriteError):  # Of the documents that are there already.
        collection.insert_many(documents, ordered=False)


def revoked(settings: dict[str, Any], *options: str) -> str:
    place = ["--uri", settings["mongodb_host"], "--db", settings["mongodb_session_db"]]
    run = subprocess.run(
        [sys.executable, "-m", "mongosession_wsgi", "revoke", *options, "--yes", *place],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return run.stdout + run.stderr

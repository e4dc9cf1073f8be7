"""The command on servers that are not MongoDB's own, or allow less, or lack something."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import bson
import pytest
from pymongo import MongoClient
from pymongo.collection import Collection

from mongosession_wsgi import MongoStore, StoreError
from mongosession_wsgi.cli import commands
from mongosession_wsgi.cli.administration import Administration, NotAllowedError, Selection
from mongosession_wsgi.cli.health import Health
from mongosession_wsgi.cli.verdicts import Finding, Verdict
from mongosession_wsgi.document import id_of

from .conftest import Clock
from .pretender import Answer, Pretender

GOOD, NOTE, WRONG = Verdict.GOOD, Verdict.NOTE, Verdict.WRONG
NO_SUCH_COMMAND, NOT_ALLOWED, OF_ATLAS, NO_OPERATOR = 59, 13, 8000, 168


def findings(store: MongoStore) -> dict[str, Finding]:
    return {found.what: found for found in Health(store).findings()}


def without(*names: str) -> Callable[[Answer], Answer]:
    return lambda answer: {name: one for name, one in answer.items() if name not in names}


# Looking whether all is well.


def test_several_mongos_have_an_address_each(
    client: MongoClient[Any], settings: dict[str, Any], store: MongoStore
) -> None:
    def as_mongos(answer: Answer) -> Answer:
        of_a_set = ("setName", "hosts", "me", "primary", "setVersion", "electionId")
        return without(*of_a_set, "topologyVersion")(answer | {"msg": "isdbgrid"})

    assert client.address is not None
    routers = [Pretender(client.address), Pretender(client.address)]
    for router in routers:
        router.changes = dict.fromkeys(("hello", "isMaster", "ismaster"), as_mongos)
    there = MongoStore(settings | {"mongodb_host": [router.address for router in routers]})
    found = findings(there)
    assert found["server"].verdict is GOOD
    assert any(router.address in found["server"].words for router in routers)
    assert found["topology"] == Finding("topology", GOOD, "sharded cluster")
    assert WRONG not in {one.verdict for one in found.values()}
    there.close()
    for router in routers:
        router.close()


@pytest.mark.parametrize("of", [lambda now: bson.Int64(now.timestamp() * 1000), lambda now: None])
def test_a_server_that_tells_its_time_otherwise_or_not_at_all(
    pretender: Pretender, there: MongoStore, of: Callable[[datetime], Any]
) -> None:
    now = datetime.now(timezone.utc)
    pretender.changes["hello"] = lambda answer: answer | {"localTime": of(now)}
    found = findings(there)
    assert found["clock"].verdict is (GOOD if of(now) else NOTE)
    assert ("does not tell its time" in found["clock"].words) == (of(now) is None)
    assert found["expired sessions"].verdict is GOOD
    assert "round trip" in found


@pytest.mark.parametrize("code", [NO_SUCH_COMMAND, NOT_ALLOWED, OF_ATLAS])
@pytest.mark.parametrize("command", ["hello", "listIndexes", "buildInfo", "listCollections"])
def test_a_command_that_cannot_be_had_harms_nothing(
    pretender: Pretender, there: MongoStore, command: str, code: int
) -> None:
    pretender.refuses = lambda name, asked: code if name == command else None
    found = findings(there)
    assert WRONG not in {one.verdict for one in found.values()}
    assert found["round trip"].verdict is GOOD
    if command == "hello" and code == NO_SUCH_COMMAND:
        assert found["clock"].verdict is GOOD, "isMaster tells the time too"
        assert "without the command hello" in found["topology"].words
    elif command in ("hello", "listIndexes"):
        noted = found["clock" if command == "hello" else "index on owner"]
        assert noted.verdict is NOTE
        assert command in noted.words


def test_a_look_that_fails_in_an_unforeseen_way_is_a_line_of_the_report(
    pretender: Pretender, there: MongoStore
) -> None:
    pretender.changes["hello"] = lambda answer: answer | {"localTime": bson.Int64(2**62)}
    nothing = {"id": bson.Int64(0), "ns": "shop.sessions", "firstBatch": [{}]}
    pretender.changes["listIndexes"] = lambda answer: {"ok": 1.0, "cursor": nothing}
    found = findings(there)
    assert (found["clock"].verdict, found["expired sessions"].verdict) == (NOTE, NOTE)
    assert found["index on owner"].verdict is NOTE
    assert "KeyError" in found["index on expires_at"].words
    assert found["round trip"].verdict is GOOD


def test_a_secondary_is_told(pretender: Pretender, there: MongoStore) -> None:
    pretender.changes["hello"] = lambda answer: (
        answer
        | {
            "secondary": True,
            "isWritablePrimary": False,
        }
    )
    assert findings(there)["topology"].verdict is WRONG


def test_a_unique_index_of_others_is_told_with_the_refusal_that_it_causes(
    there: MongoStore, stored: Collection[Any]
) -> None:
    stored.create_index("session_id", unique=True)
    stored.insert_one({"_id": "other"})
    found = findings(there)
    assert "session_id_1" in found["other indexes"].words
    assert found["round trip"].verdict is WRONG
    assert found["round trip"].error is not None


# Servers that tell no sizes.


def leave_out_expressions(pretender: Pretender) -> None:
    def without_size(answer: Answer) -> Answer:
        for one in answer["cursor"]["firstBatch"]:
            one.pop("size", None)
        return answer

    def without_sizes(answer: Answer) -> Answer:
        for one in answer["cursor"]["firstBatch"]:
            if "largest" in one:
                one |= {"largest": None, "bytes": 0}
                one["_id"]["size"] = 0
        return answer

    pretender.changes |= {"find": without_size, "aggregate": without_sizes}


def refuse_expressions(pretender: Pretender) -> None:
    pretender.refuses = lambda name, asked: NO_OPERATOR if "$bsonSize" in str(asked) else None


@pytest.fixture(params=[leave_out_expressions, refuse_expressions])
def sizeless(request: pytest.FixtureRequest, pretender: Pretender, there: MongoStore) -> MongoStore:
    """A store on a server that leaves expressions out of a projection, or refuses them."""
    request.param(pretender)
    return there


def test_check_tells_of_a_server_without_sizes(sizeless: MongoStore) -> None:
    found = findings(sizeless)
    assert found["sizes"].verdict is NOTE
    assert "list --larger-than" in found["sizes"].words
    assert found["round trip"].verdict is GOOD


def test_sessions_are_listed_without_sizes(sizeless: MongoStore) -> None:
    ids = {sizeless.create({"n": n}).id for n in range(3)}
    found = list(Administration(sizeless).sessions(Selection()))
    assert {one.id for one in found} == ids
    assert {one.size for one in found} == {None}
    assert len(list(Administration(sizeless).sessions(Selection(), newest=2))) == 2


def test_one_session_is_shown_with_its_size_all_the_same(
    sizeless: MongoStore, stored: Collection[Any]
) -> None:
    id_ = sizeless.create({"word": "xyzzy"}).id
    assert id_ is not None
    found = Administration(sizeless).session(id_)
    assert found is not None
    assert found.size == len(bson.encode(stored.find_one() or {}))
    data = {} if found.sealed else {"word": "xyzzy"}
    assert Administration(sizeless).whole(id_) == (found, data)


def test_sessions_are_counted_without_sizes(sizeless: MongoStore) -> None:
    sizeless.create({"n": 1})
    session = sizeless.open(None)
    session.login("alice")
    sizeless.flush(session)
    found = Administration(sizeless).statistics()
    assert (found.live, found.logged_in, found.sized) == (2, 1, False)
    assert (sum(found.ages.values()), sum(found.idle.values())) == (2, 2)


def test_counting_here_and_there_comes_to_the_same(
    pretender: Pretender, there: MongoStore, stored: Collection[Any], clock: Clock
) -> None:
    """As on a server that has sizes, but lacks $switch."""
    stored.insert_many([
        {
            "_id": id_of(f"{number}"),
            "v": 2 if owner is None else 1,
            "data": {"x": "x" * size},
            "owner": owner,
            "created_at": clock() - age,
            "seen_at": clock() - age / 2,
            "expires_at": clock() + timedelta(days=1),
        }
        for number, (size, owner, age) in enumerate([
            (0, "alice", timedelta(0)),
            (200, None, timedelta(minutes=1)),
            (2000, None, timedelta(hours=3)),
            (70_000, "bob", timedelta(days=20)),
            (2_000_000, "bob", timedelta(days=40)),
        ])
    ])  # fmt: skip
    expected = Administration(there, clock=clock).statistics()
    assert (expected.live, expected.sealed) == (5, 2)
    pretender.refuses = lambda name, asked: NO_OPERATOR if "$switch" in str(asked) else None
    assert Administration(there, clock=clock).statistics() == expected


def test_a_selection_by_size_is_refused_with_a_reason(
    pretender: Pretender, there: MongoStore
) -> None:
    refuse_expressions(pretender)
    with pytest.raises(StoreError, match="cannot select sessions by their size"):
        list(Administration(there).sessions(Selection(larger_than=5)))


@pytest.mark.parametrize("code", [NOT_ALLOWED, OF_ATLAS, 16500])
def test_a_refusal_for_another_reason_is_an_error(
    pretender: Pretender, there: MongoStore, code: int
) -> None:
    there.create({"n": 1})
    pretender.refuses = lambda name, asked: code if "$bsonSize" in str(asked) else None
    with pytest.raises(StoreError):
        list(Administration(there).sessions(Selection()))
    with pytest.raises(StoreError):
        Administration(there).statistics()


def test_a_doubt_needs_no_right_to_list_collections(
    pretender: Pretender, settings: dict[str, Any]
) -> None:
    there = MongoStore(settings | {"mongodb_host": pretender.uri, "mongodb_session_coll": "x"})
    assert "is the name right?" in (Administration(there).doubt() or "")
    pretender.refuses = lambda name, asked: NOT_ALLOWED if name == "listCollections" else None
    assert Administration(there).doubt() is None
    there.close()


# Replacing the index of version 1.


def test_an_index_that_may_not_be_listed_or_dropped(
    pretender: Pretender, there: MongoStore, stored: Collection[Any]
) -> None:
    looking = Administration(there)
    pretender.refuses = lambda name, asked: NOT_ALLOWED if name == "dropIndexes" else None
    with pytest.raises(NotAllowedError):
        looking.drop_index("owner_1")
    pretender.refuses = lambda name, asked: OF_ATLAS if name == "listIndexes" else None
    assert looking.indexes() is None
    assert looking.old_index() is None
    pretender.refuses = lambda name, asked: NO_OPERATOR
    with pytest.raises(StoreError):
        looking.indexes()


def test_an_index_by_which_documents_of_others_expire_is_theirs_to_replace(
    there: MongoStore, stored: Collection[Any]
) -> None:
    stored.drop_indexes()
    stored.create_index("expires_at", expireAfterSeconds=0, name="by_hand")
    looking = Administration(there)
    assert looking.old_index() == "by_hand"
    stored.insert_one({"expires_at": datetime.now(timezone.utc) + timedelta(days=1)})
    assert looking.old_index() is None
    stored.drop_index("by_hand")
    stored.create_index("expires_at", expireAfterSeconds=0)
    assert looking.old_index() == "expires_at_1"


@pytest.fixture
def init(
    pretender: Pretender, database: str, store: MongoStore, capsys: pytest.CaptureFixture[str]
) -> Callable[[], tuple[str, str]]:
    """Runs `mongosession init` on the pretender, and returns what it prints."""

    def init() -> tuple[str, str]:
        commands.program.main(
            ["init", "--uri", pretender.uri, "--db", database],
            "mongosession",
            standalone_mode=False,
        )
        return capsys.readouterr()

    return init


def test_init_tells_of_a_server_without_ttl(
    pretender: Pretender, init: Callable[[], tuple[str, str]]
) -> None:
    assert init()[1] == ""

    def without_ttl(answer: Answer) -> Answer:
        for one in answer["cursor"]["firstBatch"]:
            one.pop("expireAfterSeconds", None)
        return answer

    pretender.changes["listIndexes"] = without_ttl
    said = init()[1]
    assert said.startswith("This server has no TTL, so mongosession purge --uri ")


def test_init_leaves_an_index_that_it_may_not_drop(
    pretender: Pretender, stored: Collection[Any], init: Callable[[], tuple[str, str]]
) -> None:
    stored.drop_indexes()
    stored.create_index("expires_at", expireAfterSeconds=0)
    pretender.refuses = lambda name, asked: NOT_ALLOWED if name == "dropIndexes" else None
    shown, said = init()
    assert said.startswith("expires_at_1 stays, ")
    assert "replaced" not in shown
    assert "owner_1" in stored.index_information()


def test_init_tells_if_it_has_dropped_an_index_and_made_none(
    pretender: Pretender, stored: Collection[Any], init: Callable[[], tuple[str, str]]
) -> None:
    stored.drop_indexes()
    stored.create_index("expires_at", expireAfterSeconds=0)
    pretender.refuses = lambda name, asked: NO_OPERATOR if name == "createIndexes" else None
    shown, said = init()
    assert shown == ""
    assert said.startswith("expires_at_1 was dropped, and nothing is in its place yet")
    assert "Error: MongoDB" in said

"""The parts of the command that need no server: words, indexes, columns."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from select import select
from tempfile import TemporaryFile
from typing import Any
from uuid import UUID

import bson
import click
import pytest
from bson.datetime_ms import DatetimeMS
from pymongo.errors import OperationFailure, ServerSelectionTimeoutError
from rich.text import Text

from mongosession_wsgi import StoreError
from mongosession_wsgi.cli import commands, console, health, judging, streams
from mongosession_wsgi.cli.administration import Statistics, Summary
from mongosession_wsgi.cli.arguments import fault_of
from mongosession_wsgi.cli.connection import Connection
from mongosession_wsgi.cli.reasons import reason, secrets_of, without, without_users
from mongosession_wsgi.cli.verdicts import Finding, Verdict
from mongosession_wsgi.document import Record, id_of
from mongosession_wsgi.embedded import EmbeddedServerError
from mongosession_wsgi.indexes import OURS, OVER_ALL

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
ONE = Summary(id_of("one"), "alice", NOW, NOW, NOW, 200)


# The driver's words.


def caused_by(cause: BaseException) -> StoreError:
    error = StoreError("ours")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (
            ServerSelectionTimeoutError(
                "h:1: refused (configured timeouts: timeoutMS: 1.0ms), Timeout: 4.99986s, Topology "
                "Description: <TopologyDescription id: 1>"
            ),
            "h:1: refused, Timeout: 4.9s",
        ),
        (
            ServerSelectionTimeoutError("No primary, Timeout: 1s, Topology Description: <T>"),
            "No primary, Timeout: 1s, Topology Description: <T>",
        ),
        (
            ServerSelectionTimeoutError("No servers, Timeout: 1.5s, Topology Description: <T>"),
            "No servers, Timeout: 1.5s",
        ),
        (
            ServerSelectionTimeoutError("No mongos, Topology Description: <T error=AutoReconnect>"),
            "No mongos, Topology Description: <T error=AutoReconnect>",
        ),
        (
            OperationFailure("long", 8000, {"errmsg": "over\nquota", "codeName": "AtlasError"}),
            "over quota (code 8000, AtlasError)",
        ),
        (OperationFailure("no details", 5), "no details"),
        (OSError(), "OSError"),
    ],
)
def test_the_drivers_words_are_short_and_on_one_line(cause: Exception, words: str) -> None:
    assert reason(caused_by(cause)) == words


def test_words_that_our_sentence_has_are_not_said_twice() -> None:
    error = StoreError("ours. DNS failed")
    error.__cause__ = OSError("DNS failed")
    assert reason(error) is None


def test_an_error_of_ours_alone_has_no_words_of_the_driver() -> None:
    assert reason(StoreError("ours")) is None


def test_an_error_outside_of_the_store_has_no_words_of_the_driver() -> None:
    error = EmbeddedServerError("Port 7 is taken")
    error.__cause__ = OSError("Address already in use")
    assert reason(error) is None


@pytest.mark.parametrize(
    "options",
    [
        {"password": "hun@ter2\n"},
        {"host": "mongodb://u:hun%40ter2%0A@h"},
        {"host": ["h", "mongodb://u:hun%40ter2@h/?x=1"]},
        {"host": "mongodb://h/?tlsCertificateKeyFilePassword=hun%40ter2"},
        {"host": "mongodb://h/?a=b;authMechanismProperties=hun%40ter2"},
        {"tlscertificatekeyfilepassword": "hun@ter2"},
    ],
)
@pytest.mark.parametrize(
    "shown", ["hun@ter2", "'hun@ter2\\n'", "hun%40ter2", "mongodb://u:hun@ter2@h"]
)
def test_no_password_is_shown_in_any_form(options: dict[str, Any], shown: str) -> None:
    text = without(secrets_of(options), f"could not use {shown} here")
    assert "ter2" not in text
    assert text.startswith("could not use ")
    assert text.endswith(" here")


def test_a_password_of_several_lines_is_not_shown_either() -> None:
    secrets = secrets_of({"password": "hun\nter2"})
    for shown in ("hun\nter2", "'hun\\nter2'"):
        assert "ter2" not in without(secrets, f"could not use {shown}")


def test_a_short_password_is_removed_only_where_it_stands_alone() -> None:
    assert without(["pw"], "user pw of pwned") == "user … of pwned"
    assert without([], "a mongodb+srv://u:p@h b") == "a mongodb+srv://…@h b"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("mongodb://u:hun ter2@h/x", "mongodb://…@h/x"),
        ("mongodb:/u:hunter2@h/x", "mongodb:/…@h/x"),
        ("MongoDB+SRV://u:hunter2@h", "MongoDB+SRV://…@h"),
        ("mongodb://u:h@unter2@h", "mongodb://…@h"),
        ("mongodb://u:h?unter2@h", "mongodb://…@h"),
        (
            "mongodb://h/?tls=true&tlsCertificateKeyFilePassword=hun ter2&w=1",
            "mongodb://h/?tls=true&tlsCertificateKeyFilePassword=…&w=1",
        ),
        (
            "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:hunter2",
            "mongodb://h/?authMechanismProperties=…",
        ),
        (
            "mongodb://h/?a=b;TLSCERTIFICATEKEYFILEPASSWORD=hun'ter2",
            "mongodb://h/?a=b;TLSCERTIFICATEKEYFILEPASSWORD=…",
        ),
    ],
)
def test_a_uri_is_shown_without_its_secrets(uri: str, shown: str) -> None:
    assert without_users(uri) == shown
    assert without_users(f"the value {uri!r} is wrong").replace('"', "'") == (
        f"the value '{shown}' is wrong"
    )
    hint = Connection(uri=uri).hint("init")
    assert "ter2" not in hint
    assert shown in hint


# Arguments.


@pytest.mark.parametrize(
    "text", ["J\udcfcrgen", "a\n", "a\r\n", "a\tb", "\x1b[2J", "a\x85b", "\x7f"]
)
def test_a_text_that_no_terminal_sends_is_refused(text: str) -> None:
    assert fault_of(text)


@pytest.mark.parametrize("text", ["", "Jürgen", "漢字", "a b", "\u202e", "👩\u200d🚀"])
def test_other_texts_are_taken(text: str) -> None:
    assert fault_of(text) is None


BROKEN = ["J\udcfcrgen", "alice\n", "ali\x1b[2Jce"]
OPTIONS = ["--settings", "--section", "--uri", "--db", "--coll", "--owner", "--idle-for"]


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        *((["list", option], option) for option in (*OPTIONS, "--larger-than", "--newest")),
        *((["revoke", "--yes", option], option) for option in OPTIONS),
        *(([option], option) for option in OPTIONS[:5]),
        (["show"], "ID"),
        (["revoke"], "ID"),
        (["embedded"], "FOLDER"),
        (["embedded", "--port"], "--port"),
    ],
)
def test_an_argument_that_is_no_text_is_named(arguments: list[str], named: str, text: str) -> None:
    with pytest.raises(click.BadParameter) as raised:
        commands.program.main([*arguments, text], "mongosession", standalone_mode=False)
    assert raised.value.exit_code == 2
    assert named in raised.value.format_message()


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("name", ["MONGODB_URI", "MONGOSESSION_DB", "MONGOSESSION_COLL"])
def test_a_variable_that_is_no_text_is_named(name: str, text: str) -> None:
    with pytest.raises(click.UsageError, match=name):
        Connection().settings({"MONGOSESSION_DB": "shop", name: text})


def test_a_hint_leaves_out_passwords_where_they_may_be_and_no_other_words() -> None:
    """A password may have the letters of a name."""
    uri = "mongodb://h/?appName=shop"
    given = Connection(uri=uri, database="shop", secrets=frozenset(["shop"]))
    assert given.hint("init") == "mongosession init --uri 'mongodb://h/?appName=…' --db shop"


def test_a_finding_shows_no_password_of_a_uri(capsys: pytest.CaptureFixture[str]) -> None:
    found = Finding("round trip", Verdict.WRONG, "mongodb://joe:hunter2@db fails")
    console.finding(found, ())
    assert "mongodb://…@db fails" in capsys.readouterr().out
    assert "hunter2" not in str(console.findings_as_json([found], ()))


def test_a_hint_repeats_the_options_but_no_password() -> None:
    given = Connection(uri="mongodb://u:p@h/?a=b", database="shop", collection="my sessions")
    assert given.hint("init") == (
        "mongosession init --uri 'mongodb://…@h/?a=b' --db shop --coll 'my sessions'"
    )
    assert Connection().hint("purge") == "mongosession purge"


# The settings of a file.

YEARS, HOUR = timedelta(days=900), timedelta(hours=1)


@pytest.mark.parametrize("remember", [None, True, False])
@pytest.mark.parametrize(
    ("said", "ends"),
    [
        ({}, {}),
        ({"session_expires": "1 hour"}, {None: HOUR}),
        ({"session_remember": "1 hour"}, {True: HOUR}),
        ({"session_lifetime": "801 days"}, dict.fromkeys((None, True, False), 24 * HOUR)),
        ({"session_lifetime": "none"}, {}),
    ],
)
def test_a_time_that_the_file_does_not_say_ends_no_session(
    tmp_path: Path, said: dict[str, str], ends: dict[bool | None, timedelta], remember: bool | None
) -> None:
    """A session that was used long after its beginning, and is stored for long."""
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"mongodb_session_db": "shop"} | said))
    given = Connection(file=file)
    times = given.times(given.store({}))
    assert times is not None
    begun = NOW - timedelta(days=800)
    record = Record(id_of("one"), {}, None, begun, NOW, NOW + YEARS, None, remember)
    assert times.end_of(record) == NOW + ends.get(remember, YEARS)


def test_without_a_file_no_time_is_known() -> None:
    given = Connection(database="shop")
    assert given.times(given.store({})) is None


# Indexes.


def index(*fields: str, **more: Any) -> dict[str, Any]:
    name = "_".join(f"{field}_1" for field in fields)
    return {"v": 2, "key": dict.fromkeys(fields, 1), "name": name} | more


ID = index("_id", name="_id_")
TTL = index("expires_at", expireAfterSeconds=0)
PARTIAL = TTL | {"name": "ours", "partialFilterExpression": OURS}


def judged(look: Any, *found: dict[str, Any]) -> list[tuple[Verdict, str]]:
    return list(look([ID, *found], lambda name: f"mongosession {name} --db shop"))


def verdicts(found: Iterable[tuple[Verdict, str]]) -> list[Verdict]:
    return [verdict for verdict, _ in found]


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        ([PARTIAL], Verdict.GOOD, "ours, TTL"),
        ([PARTIAL | {"expireAfterSeconds": 0.0, "background": True}], Verdict.GOOD, "ours, TTL"),
        ([TTL | {"name": OVER_ALL}], Verdict.GOOD, OVER_ALL),
        ([], Verdict.WRONG, "make it with: mongosession init --db shop"),
        ([index("expires_at")], Verdict.WRONG, "expires_at_1 is no TTL index; drop it"),
        ([index("expires_at", "owner")], Verdict.WRONG, "is no TTL index"),
        ([TTL | {"expireAfterSeconds": 60}], Verdict.WRONG, "deletes 60 seconds too late"),
        ([PARTIAL | {"partialFilterExpression": {"kind": "x"}}], Verdict.WRONG, "missing"),
        ([PARTIAL | {"partialFilterExpression": {"owner": "x"}}], Verdict.WRONG, "missing"),
        ([PARTIAL | {"partialFilterExpression": {"v": 1}}], Verdict.WRONG, "does not reach all"),
        ([TTL], Verdict.NOTE, "not only sessions; mongosession init --db shop replaces it"),
        ([TTL | {"name": "by_hand"}], Verdict.NOTE, "by_hand, TTL: over all documents"),
    ],
)  # fmt: skip
def test_the_ttl_index_is_judged(found: list[Any], verdict: Verdict, words: str) -> None:
    ((judgement, said),) = judged(judging.on_expires_at, *found)
    assert judgement is verdict
    assert words in said


def test_an_old_ttl_index_beside_the_new_one_is_told() -> None:
    found = judged(judging.on_expires_at, TTL, PARTIAL)
    assert verdicts(found) == [Verdict.GOOD, Verdict.NOTE]


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ([TTL], ["expires_at_1"]),
        ([TTL | {"name": "by_hand"}, PARTIAL], ["by_hand"]),
        ([PARTIAL], []),
        ([TTL | {"name": OVER_ALL}], []),
        ([TTL | {"expireAfterSeconds": 60}], []),
        ([index("expires_at")], []),
        ([], []),
    ],
)
def test_only_indexes_over_all_documents_are_replaced(found: list[Any], names: list[str]) -> None:
    assert judging.old_indexes([ID, *found]) == names


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (index("owner"), Verdict.GOOD),
        (index("owner", "seen_at"), Verdict.GOOD),
        (index("owner") | {"key": {"owner": "hashed"}}, Verdict.GOOD),
        (index("owner", partialFilterExpression={"owner": {"$exists": True}}), Verdict.GOOD),
        (index("owner", partialFilterExpression={"kind": "x"}), Verdict.WRONG),
        (index("owner", hidden=True), Verdict.WRONG),
        (index("seen_at", "owner"), Verdict.WRONG),
    ],
)
def test_the_index_on_owner_is_judged(found: dict[str, Any], verdict: Verdict) -> None:
    assert verdicts(judged(judging.on_owner, found)) == [verdict]


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (index("expires", expireAfterSeconds=0), Verdict.NOTE),
        (index("created_at", expireAfterSeconds=3600), Verdict.WRONG),
        (index("data.since", expireAfterSeconds=3600), Verdict.WRONG),
        (index("x", "y", expireAfterSeconds=3600), None),
        (index("session_id", unique=True), Verdict.WRONG),
        (index("owner", unique=True), Verdict.WRONG),
        (index("owner", unique=True, sparse=True), Verdict.WRONG),
        (index("session_id", unique=True, sparse=True), None),
        (index("sid", unique=True, partialFilterExpression={"sid": "x"}), Verdict.NOTE),
        (index("_id", "owner", unique=True), None),
        (index("city"), None),
        (TTL, None),
    ],
)
def test_the_indexes_of_others_are_judged(found: dict[str, Any], verdict: Verdict | None) -> None:
    assert verdicts(judging.others([ID, found])) == ([] if verdict is None else [verdict])


# Streams.


def test_a_ctrl_c_just_before_the_wait_for_an_answer_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, there = os.pipe()
    ready: list[Any] = []

    def select_late(reading: Any, writing: Any, failing: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        ready.extend(select(reading, writing, failing, 60)[0])
        os.write(there, b"y\n")

    with os.fdopen(here) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(streams, "select", select_late)
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            assert streams.ask("?") is True
        finally:
            signal.signal(signal.SIGINT, before)
            os.close(there)
        assert ready
        assert stdin not in ready
    assert signal.set_wakeup_fd(-1) == -1


def test_windows_reads_an_answer_without_a_wait_for_signals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with TemporaryFile("w+") as stdin:
        stdin.write("y\n")
        stdin.seek(0)
        with monkeypatch.context() as patched:
            patched.setattr(streams, "select", None)
            patched.setattr(sys, "stdin", stdin)
            patched.setattr(os, "name", "nt")
            agreed = streams.ask("?")
    assert agreed is True


@pytest.mark.parametrize(
    ("address", "written"),
    [
        (("127.0.0.1", 27017), "127.0.0.1:27017"),
        (("db.example", 27018), "db.example:27018"),
        (("::1", 27017), "[::1]:27017"),
        (("/tmp/mongodb-27017.sock", None), "/tmp/mongodb-27017.sock"),
    ],
)
def test_an_address_is_written_as_people_do(address: Any, written: str) -> None:
    assert health._written(address) == written


@pytest.mark.parametrize("hangup", [signal.SIG_DFL, signal.SIG_IGN])
def test_embedded_outlives_its_terminal_where_nohup_asks_for_it(
    hangup: signal.Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(commands, "serve", lambda *_: found.append(signal.getsignal(signal.SIGHUP)))
    before = signal.signal(signal.SIGHUP, hangup), signal.getsignal(signal.SIGTERM)
    try:
        commands.program(["embedded"], standalone_mode=False)
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert (found == [signal.SIG_IGN]) is (hangup is signal.SIG_IGN)


# What is shown.


VALUES: dict[str, Any] = {
    "none": None, "bool": True, "int": 2**62, "float": float("nan"), "infinite": float("-inf"),
    "text": "é\x1b", "bytes": b"\0\xff", "moment": NOW, "far": DatetimeMS(2**60),
    "id": UUID(int=7), "nested": [{"id": UUID(int=8)}], "object": bson.ObjectId("0" * 24),
    "decimal": bson.Decimal128("1.5"), "stamp": bson.Timestamp(1, 2), "least": bson.MinKey(),
    "most": bson.MaxKey(), "pattern": bson.Regex("a", "i"), "code": bson.Code("x"),
    "scoped": bson.Code("x", {"id": UUID(int=9)}), "binary": bson.Binary(b"x", 128),
    "reference": bson.DBRef("c", UUID(int=10), "db"), "long": bson.Int64(5),
}  # fmt: skip


def test_data_of_every_type_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    data = VALUES | {"$binary": {"base64": "no", "subType": "04"}}
    console.session(ONE, data, as_json=True)
    shown = json.loads(capsys.readouterr().out)["data"]
    assert shown.keys() == data.keys()
    assert shown["id"] == {"$uuid": str(UUID(int=7))}
    assert shown["nested"] == [{"id": {"$uuid": str(UUID(int=8))}}]
    console.session(ONE, data, as_json=False)
    text = capsys.readouterr().out
    assert str(UUID(int=7)) in text
    assert text.isascii()
    assert "\x1b" not in text


def test_a_sealed_session_says_so_in_place_of_its_data(capsys: pytest.CaptureFixture[str]) -> None:
    sealed = ONE._replace(sealed=True, label="Firefox", remembered=True)
    console.session(sealed, {}, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert "data" not in shown
    assert shown["sealed"] is True
    assert (shown["label"], shown["remembered"]) == ("Firefox", True)
    console.session(sealed, {}, as_json=False)
    text = capsys.readouterr().out
    assert "data        sealed" in text
    assert "label       Firefox" in text
    assert "remembered  yes" in text


def test_counts_have_their_nouns() -> None:
    assert [console.counted(n, "session") for n in (0, 1, 2, 1234)] == [
        *("0 sessions", "1 session", "2 sessions", "1,234 sessions"),
    ]


def test_columns_are_as_wide_as_a_terminal_shows_them() -> None:
    assert console._in_column("漢字漢字漢字", 8) == "漢字漢 …"
    assert console._in_column("alice", 8) == "alice   "
    assert console._in_column("\x1b[2J", 8) == "\\x1b[2J "


@pytest.mark.parametrize("is_terminal", [False, True])
def test_an_id_of_another_program_does_not_command_the_terminal(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    (row,) = console.rows([ONE._replace(id="\x1b]0;owned\x07\n")], NOW)
    assert "\\x1b]0;owned\\x07\\n" in row


def test_a_line_is_whole_where_no_terminal_has_a_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    line = "live " * 40
    console.styled(Text(line))
    assert capsys.readouterr().out == f"{line}\n"


def test_sizes_that_are_unknown_are_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    found = Statistics(live=2, sized=False)
    console.statistics(found)
    shown = capsys.readouterr().out
    assert "unknown" in shown
    assert "\nSize" not in shown
    as_json = console.as_json(found)
    assert (as_json["bytes"], as_json["largest_bytes"], as_json["sizes"]) == (None, None, None)
    (row,) = console.rows([ONE._replace(size=None)], NOW)
    assert row.endswith("\t")

"""The command `mongosession`, run as a process of its own against a real server."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
from bson.binary import Binary
from pymongo import MongoClient
from pymongo.client_options import ClientOptions
from pymongo.collection import Collection

from mongosession_wsgi import MongoStore, SettingsError, StoreError
from mongosession_wsgi.cli import administration, connection
from mongosession_wsgi.cli.connection import read
from mongosession_wsgi.document import id_of
from mongosession_wsgi.embedded import EmbeddedServer

from .forked import Forks
from .measured import MEASURED
from .proxy import Proxy

TREE = Path(__file__).parents[1]
MODULE = (sys.executable, "-m", "mongosession_wsgi")
SCRIPT = Path(sys.executable).with_name("mongosession")
SECRET = "hunter2-is-secret"
NOWHERE = "mongodb://127.0.0.1:9"
DAYS_14 = timedelta(days=14)
LONGEST_WAIT = 60.0


@pytest.fixture
def environment(mongodb_uri: str, database: str, tmp_path: Path) -> dict[str, str]:
    """What a process of the command finds in its environment: where this test's sessions are."""
    return environment_of_python() | {
        "MONGODB_URI": mongodb_uri,
        "MONGOSESSION_DB": database,
        "TERM": "xterm-256color",
        "COLUMNS": "100",
    }


def environment_of_python() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kept | {"PYTHONPATH": str(TREE), "PYTHONWARNINGS": "error"}


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    environment = environment_of_python() | MEASURED
    with closing(Forks(environment, "mongosession_wsgi.cli.commands", "run")) as forks:
        yield forks


class Command:
    """Runs the command, and keeps it from what the tests' own environment has.

    A variable for Python itself counts only where Python starts, and not in a fork.
    """

    def __init__(self, environment: dict[str, str], folder: Path, forks: Forks) -> None:
        self.environment = environment
        self.folder = folder
        self.forks = forks

    def __call__(
        self, *arguments: str, input: str = "", code: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        whole = self.environment | environment
        if any(name.startswith(("PYTHON", "LC_")) for name in environment):
            done = subprocess.run(
                [*MODULE, *arguments],
                env=whole,
                cwd=self.folder,
                input=input,
                capture_output=True,
                text=True,
                timeout=LONGEST_WAIT,
            )
        else:
            done = self.forks.run(arguments, whole, self.folder, input, LONGEST_WAIT)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert SECRET not in done.stdout + done.stderr
        return done

    def into(self, stdout: int, *arguments: str) -> tuple[int, str]:
        """Run the command with this stdout; return its code, and what it says to stderr."""
        with TemporaryFile() as stderr:
            streams = [os.open(os.devnull, os.O_RDONLY), stdout, stderr.fileno()]
            with self.forks.started(
                arguments, self.environment, self.folder, streams, LONGEST_WAIT
            ) as code:
                os.close(streams[0])
            stderr.seek(0)
            return code(), stderr.read().decode()

    def on_a_terminal(
        self, *arguments: str, typed: bytes = b"", **environment: str
    ) -> tuple[int, str]:
        """Run the command with a terminal for all its streams; return its code and the screen."""
        here, there = pty.openpty()
        whole, streams = self.environment | environment, [there] * 3
        with self.forks.started(arguments, whole, self.folder, streams, LONGEST_WAIT) as code:
            os.close(there)
            screen = screen_of(here, typed)
        return code(), screen

    def on_a_terminal_from_its_start(self, *arguments: str, **environment: str) -> str:
        """Run the command in a process of its own on a terminal; return the screen."""
        here, there = pty.openpty()
        process = subprocess.Popen(
            [*MODULE, *arguments],
            env=self.environment | environment,
            stdin=there,
            stdout=there,
            stderr=there,
        )
        os.close(there)
        with killed_in_time(process):
            return screen_of(here, b"")


@pytest.fixture
def mongosession(environment: dict[str, str], tmp_path: Path, forks: Forks) -> Command:
    return Command(environment, tmp_path, forks)


@pytest.fixture
def many(stored: Collection[Any]) -> list[str]:
    """Seven live sessions, their ids newest first, and what is no live session.

    There is no TTL index, or the monitor might delete the expired one before a test has seen it.
    """
    stored.create_index("owner")
    now = datetime.now(timezone.utc)
    ids = [id_of(str(number)) for number in range(7)]
    spans = [timedelta(days=days) for days in (0, 0.01, 0.5, 2, 5, 10, 13)]
    for number, (id_, idle) in enumerate(zip(ids, spans, strict=True)):
        owner = ("alice", "bob", None)[number % 3]
        stored.insert_one(document(id_, owner, now - idle, "x" * 4000 * (number == 2)))
    stored.insert_one(document(id_of("expired"), "alice", now - DAYS_14 * 2))
    stored.insert_one({"_id": id_of("mark"), "v": 1, "expires_at": now + timedelta(seconds=60)})
    stored.insert_one(document(id_of("other"), "alice", now) | {"v": 3})
    return ids


def document(id_: str, owner: str | None, seen_at: datetime, text: str = "") -> dict[str, Any]:
    return {
        "_id": id_,
        "v": 1,
        "data": {"secret word": f"xyzzy{text}"},
        "owner": owner,
        "created_at": seen_at - timedelta(hours=1),
        "seen_at": seen_at,
        "expires_at": seen_at + DAYS_14,
    }


@contextmanager
def started(environment: dict[str, str], *command: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command; it is killed when a test has waited too long, so that no test hangs."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command,
        env=environment | MEASURED,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        text=True,
        preexec_fn=heed_interruptions,
    )
    with process, killed_in_time(process):
        yield process


@contextmanager
def killed_in_time(process: subprocess.Popen[Any]) -> Iterator[None]:
    timer = threading.Timer(LONGEST_WAIT, process.kill)
    timer.start()
    try:
        yield
        process.wait(LONGEST_WAIT)
    finally:
        timer.cancel()


def heed_interruptions() -> None:
    """Undo what a shell does to whatever it runs in the background, such as a run of the tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def screen_of(here: int, typed: bytes) -> str:
    """Return what a terminal shows up to the end; answer the question that is asked there."""
    shown = b""
    with suppress(OSError):  # How Linux says that the other end is closed.
        while piece := os.read(here, 65536):
            shown += piece
            if typed and b"[y/N]" in shown:
                os.write(here, typed)
                typed = b""
    os.close(here)
    return shown.decode()


# Where the sessions are.


def test_it_connects_by_the_environment_by_options_and_by_a_file(
    mongosession: Command, mongodb_uri: str, database: str, many: list[str], tmp_path: Path
) -> None:
    def live(*arguments: str, **environment: Any) -> int:
        count: int = json.loads(mongosession(*arguments, **environment).stdout)["live"]
        return count

    nothing: dict[str, Any] = {"MONGODB_URI": "", "MONGOSESSION_DB": ""}
    wrong: dict[str, Any] = {"MONGODB_URI": NOWHERE, "MONGOSESSION_DB": "wrong"}
    assert live("stats", "--json") == 7
    assert live("stats", "--json", "--uri", mongodb_uri, "--db", database, **wrong) == 7
    assert live("--uri", mongodb_uri, "--db", database, "stats", "--json", **nothing) == 7
    assert live("stats", "--json", "--coll", "others") == 0
    assert live("stats", "--json", MONGOSESSION_COLL="others") == 0
    written = {"mongodb_host": mongodb_uri, "mongodb_session_db": database, "debug": "yes"}
    (tmp_path / "s.json").write_text(json.dumps(written))
    (tmp_path / "s.yaml").write_text("".join(f"{key}: {one}\n" for key, one in written.items()))
    shared = f"[DEFAULT]\nmongodb_host = {mongodb_uri}\n[app:main]\nuse = egg:shop\n"
    (tmp_path / "s.ini").write_text(f"{shared}[filter:f]\nmongodb_session_db = {database}\n")
    for name in ("s.json", "s.yaml", "s.ini"):
        assert live("stats", "--json", "--settings", name, **wrong) == 7
        assert live("stats", "--json", "--settings", name, "--coll", "others") == 0


def test_a_section_of_an_ini_file_is_chosen_where_several_would_do(
    mongosession: Command, mongodb_uri: str, database: str, many: list[str], tmp_path: Path
) -> None:
    section = f"mongodb_host = {mongodb_uri}\nmongodb_session_db = "
    (tmp_path / "s.ini").write_text(f"[a]\n{section}%(here)\n[b]\n{section}{database}\n")
    refused = mongosession("stats", "--settings", "s.ini", code=1)
    assert "these do: a, b; choose one with --section" in refused.stderr
    assert "live" in mongosession("stats", "--settings", "s.ini", "--section", "b").stdout
    refused = mongosession("stats", "--settings", "s.ini", "--section", "c", code=1)
    assert "--section c: s.ini has no such section; it has a, b" in refused.stderr


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("s.yaml", "mongodb_sesion_db: shop", "did you mean mongodb_session_db?"),
        ("s.yaml", f"a: b\nmongodb_password: '{SECRET}\n", "s.yaml: is not well formed YAML"),
        ("s.yaml", "- a\n- b\n", "must be one mapping of keys to values"),
        ("s.json", f'{{"mongodb_password": "{SECRET}', "not well formed, see line 1"),
        ("s.ini", f"[a]\nmongodb_password = a\nmongodb_password = {SECRET}", "see line 3"),
        ("s.ini", "[a]\nmongodb_host = h\n", "but none does"),
        ("s.ini", f"mongodb_password = {SECRET}", "not well formed, see line 1"),
        ("s.toml", "", "s.toml: must end in .yaml, .yml, .json, .ini, .cfg, .conf"),
        ("s.yaml", "mongodb_host: h", "Name their database: --settings FILE"),
        ("s.json", '{"MONGODB_SESSION_DB": "shop"}', "s.json: MONGODB_SESSION_DB is in capitals"),
        ("t.json", '{"MONGODB_HOST": "db.example"}', "t.json: MONGODB_HOST is in capitals"),
        ("s.yaml", "mongodb_session_db: a/b", "mongodb_session_db: must be a database name"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_without_its_contents(
    mongosession: Command, tmp_path: Path, name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    refused = mongosession("stats", "--settings", name, code=1)
    assert words in refused.stderr
    assert not refused.stdout


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_may_begin_with_a_byte_order_mark(
    tmp_path: Path, encoding: str, mongodb_uri: str, database: str
) -> None:
    found = {"mongodb_host": mongodb_uri, "mongodb_session_db": database}
    (tmp_path / "s.json").write_text(json.dumps(found), encoding=encoding)
    lines = "".join(f"{key}: {value}\n" for key, value in found.items())
    (tmp_path / "s.yaml").write_text(lines, encoding=encoding)
    (tmp_path / "s.ini").write_text(f"[a]\n{lines}", encoding=encoding)
    for name in ("s.json", "s.yaml"):
        assert read(tmp_path / name) == found
    assert read(tmp_path / "s.ini").items() >= found.items()


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("s.json", "{}".encode("utf-16")),
        ("s.ini", b"[a]\nmongodb_session_db = \xfc"),
        ("s.json", b"[" * 100_000),
        ("s.yaml", b"[" * 1_000),
        ("s.json", b'{"mongodb_session_db": "\\ud800"}'),
        ("s.json", b'{"mongodb_session_db": "a", "mongodb_host": ["\\udcfc"]}'),
        ("s.yaml", b"mongodb_session_db: 2026-13-45"),
        ("s.yaml", b"a: \0"),
    ],
)
def test_a_file_of_other_contents_is_an_error_of_settings(
    tmp_path: Path, name: str, contents: bytes
) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(SettingsError, match=f"--settings .*{name}: "):
        read(tmp_path / name)


def test_arguments_and_variables_that_are_no_text_are_a_usage_error(mongosession: Command) -> None:
    """More of them are tried where no process has to be started."""
    refused = mongosession("revoke", "--yes", "--owner", "J\udcfcrgen", code=2).stderr
    assert "Invalid value for '--owner': the value is no text" in refused
    newline: dict[str, Any] = {"MONGOSESSION_DB": "shop\n"}
    refused = mongosession("stats", code=2, **newline).stderr
    assert "Invalid value for MONGOSESSION_DB in the environment: it ends in a newline" in refused
    mongosession("stats", "--db", "shop", **newline)
    assert "give --settings" in mongosession("stats", "--section", "a", code=2).stderr


def test_a_warning_of_the_driver_is_one_line(mongosession: Command, mongodb_uri: str) -> None:
    uri = mongodb_uri + "/?nonsense=1"
    done = mongosession("stats", "--json", "--uri", uri, PYTHONWARNINGS="default")
    assert done.stderr.startswith("Warning: Unknown option")
    assert ".py" not in done.stderr


def test_a_file_that_is_not_there_and_no_database_at_all(mongosession: Command) -> None:
    refused = mongosession("stats", "--settings", "gone.yaml", code=1)
    assert refused.stderr == "Error: --settings gone.yaml: No such file or directory\n"
    refused = mongosession("list", MONGOSESSION_DB="", code=1)
    assert "--db NAME, or MONGOSESSION_DB in the environment" in refused.stderr


@pytest.mark.parametrize(
    ("section", "written", "read_as"),
    [
        ("app:main", "mongodb_password = a%40b", "a%40b"),
        ("app:main", "mongodb_password = a%%40b", "a%40b"),
        ("filter-app:shop", "secret = a\nmongodb_password = %(secret)s", "a"),
        ("app:main", "set mongodb_password = a", "a"),
        ("app:main", "mongodb_password = a\nset mongodb_password = b", "a"),
        ("app:main", "get mongodb_password = secret\n[DEFAULT]\nsecret = a", "a"),
        ("app:main", "get mongodb_password = s\nset s = b\n[DEFAULT]\ns = a", "b"),
        ("app:main", "mongodb_password = b\n[DEFAULT]\nmongodb_password = a", "a"),
        ("app:main", "set mongodb_password = b\n[DEFAULT]\nmongodb_password = a", "b"),
        ("myapp", "mongodb_password = b\n[DEFAULT]\nmongodb_password = a", "b"),
        ("myapp", "mongodb_password = a%40b", "a%40b"),
        ("myapp", "mongodb_password = a%%40b", "a%%40b"),
        ("myapp", "secret = a\nmongodb_password = %(secret)s", "%(secret)s"),
        ("myapp", "MongoDB_Password = a", "a"),
    ],
)
def test_an_ini_file_is_read_as_its_application_reads_it(
    tmp_path: Path, section: str, written: str, read_as: str
) -> None:
    (tmp_path / "s.ini").write_text(f"[{section}]\nmongodb_session_db = shop\n{written}\n")
    assert read(tmp_path / "s.ini")["mongodb_password"] == read_as


def test_a_file_for_pastedeploy_may_name_the_database_by_set_and_get(tmp_path: Path) -> None:
    file = tmp_path / "s.ini"
    for written in ("set mongodb_session_db = shop", "get mongodb_session_db = name"):
        file.write_text(f"[DEFAULT]\nname = shop\n[app:main]\n[filter:session]\n{written}\n")
        assert read(file)["mongodb_session_db"] == "shop"


# When MongoDB fails.


@pytest.mark.parametrize("command", ["stats", "list", "purge", "init"])
def test_no_server_is_an_error_that_says_what_to_check(mongosession: Command, command: str) -> None:
    uri = f"mongodb://admin:{SECRET}@127.0.0.1:9/?serverSelectionTimeoutMS=200"
    failed = mongosession(command, "--uri", uri, code=1)
    ours, driver = failed.stderr.splitlines()
    assert ours.startswith("Error: ")
    assert driver == "The driver says: 127.0.0.1:9: [Errno 111] Connection refused"
    assert not failed.stdout


def test_a_bad_uri_is_told_without_its_password(mongosession: Command) -> None:
    failed = mongosession("stats", "--uri", f"mongodb://admin:{SECRET}/@host", code=1)
    assert "percent-encoded" in failed.stderr


def test_a_uri_in_a_wrong_place_is_quoted_without_its_password(mongosession: Command) -> None:
    uri = f"mongodb://admin:{SECRET}@host/shop"
    for arguments in (["stats", uri], [uri], ["list", "--newest", uri], ["show", uri]):
        assert "mongodb://…@host" in mongosession(*arguments, code=2).stderr
    spaced = f"MONGODB://admin:my {SECRET}@host/shop"
    assert "MONGODB://…@host" in mongosession("show", spaced, code=2).stderr
    option = f"mongodb://host/?tlsCertificateKeyFilePassword={SECRET}"
    assert "Password=…' is no public id" in mongosession("show", option, code=2).stderr
    assert "mongodb:/…@host" in mongosession("list", "--settings", uri, code=1).stderr


def test_check_says_so_of_a_server_that_is_not_there(mongosession: Command) -> None:
    uri = f"mongodb://admin:{SECRET}@127.0.0.1:9/?serverSelectionTimeoutMS=200"
    found, driver = mongosession("check", "--uri", uri, code=1).stdout.splitlines()
    assert found.startswith("WRONG  server               ")
    assert driver.strip() == "The driver says: 127.0.0.1:9: [Errno 111] Connection refused"
    report = json.loads(mongosession("check", "--uri", uri, "--json", code=1).stdout)
    assert not report["well"]
    (server,) = report["findings"]
    assert (server["what"], server["verdict"]) == ("server", "wrong")
    assert "refused" in server["driver"]


@pytest.mark.parametrize("command", ["list", "check"])
def test_each_cause_is_told_in_the_drivers_words(
    mongosession: Command, client: MongoClient[Any], command: str
) -> None:
    limit = "serverSelectionTimeoutMS=1000&timeoutMS=1000"
    assert client.address is not None
    proxy = Proxy(client.address)
    proxy.silent()
    here, said = "{}:{}".format(*client.address), set()
    for uri, words in (
        (f"mongodb://u:{SECRET}@127.0.0.1:9", "127.0.0.1:9: [Errno 111] Connection refused"),
        (f"mongodb://u:{SECRET}@no-such-host.invalid", "no-such-host.invalid:27017: [Errno -"),
        ("mongodb://%2Fno%2Fsuch.sock", "/no/such.sock: [Errno 2] No such file"),
        (f"{proxy.uri}&{limit}", "No servers found yet"),
        (f"mongodb://{here}/?replicaSet=other&{limit}", 'replica set name "other"'),
        (f"mongodb://u:{SECRET}@127.0.0.1:9,127.0.0.1:10", "refused, 127.0.0.1:9: [Errno 111]"),
    ):
        failed = mongosession(command, "--uri", uri, code=1)
        words_of_the_driver = (failed.stdout + failed.stderr).splitlines()[1].strip()
        assert words_of_the_driver.startswith("The driver says: ")
        assert words in words_of_the_driver
        said.add(words_of_the_driver)
    assert len(said) == 6
    proxy.close()


def test_a_refused_connection_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"mongodb_session_db": "shop", "mongodb_host": NOWHERE, "mongodb_connect": True}
    store = MongoStore(settings)
    monkeypatch.setattr(connection, "_LONGEST_LOOK", LONGEST_WAIT)
    monkeypatch.setattr(ClientOptions, "server_selection_timeout", LONGEST_WAIT)
    with pytest.raises(StoreError) as raised:  # Else it would return after the look, and not raise.
        connection.reach(store)
    assert "127.0.0.1:9" in str(raised.value.__cause__)
    store.close()


# What it shows.


def test_check_finds_missing_indexes_and_init_makes_them(
    mongosession: Command, stored: Collection[Any], database: str
) -> None:
    wrong = mongosession("check", code=1).stdout
    assert "WRONG  index on expires_at  missing, so expired sessions pile up" in wrong
    assert "WRONG  index on owner       missing" in wrong
    assert wrong.count("make it with: mongosession init") == 2
    assert set(stored.index_information()) == {"_id_"}, "check changes nothing"
    printed = mongosession("init", "--sharded")
    assert printed.stdout.splitlines() == [
        f'sh.enableSharding("{database}")',
        f'sh.shardCollection("{database}.sessions", {{ _id: "hashed" }})',
    ]
    assert stored.index_information()["expires_at_1"]["expireAfterSeconds"] == 0
    good = mongosession("check").stdout.splitlines()
    assert [line[7:27].strip() for line in good] == [
        *("server", "topology", "write concern", "index on expires_at", "index on owner"),
        *("expired sessions", "clock", "round trip"),
    ]
    assert all(line.startswith(("ok ", "note ")) for line in good)
    assert good[2].endswith("w: majority")
    assert not stored.count_documents({}), "the session that was tried is gone"


def test_init_replaces_the_ttl_index_of_version_1(
    mongosession: Command, stored: Collection[Any]
) -> None:
    stored.create_index("expires_at", expireAfterSeconds=0)
    noted = mongosession("check", code=1).stdout
    assert "note   index on expires_at  expires_at_1, TTL: over all documents" in noted
    assert "mongosession init replaces it" in noted
    lines = mongosession("init").stdout.splitlines()
    assert lines[1] == "expires_at_1, which deleted other documents too, is replaced."
    made = {next(iter(one["key"])): one for one in stored.list_indexes()}
    assert made.keys() == {"_id", "expires_at", "owner"}
    assert made["expires_at"]["partialFilterExpression"]
    assert len(mongosession("init").stdout.splitlines()) == 1
    assert "note" not in mongosession("check").stdout


def test_hints_repeat_the_options_that_were_given(
    mongosession: Command, mongodb_uri: str, database: str, tmp_path: Path
) -> None:
    written = {"mongodb_host": mongodb_uri, "mongodb_session_db": database}
    (tmp_path / "my s.json").write_text(json.dumps(written))
    found = mongosession("check", "--settings", "my s.json", "--coll", "other", code=1).stdout
    assert "make it with: mongosession init --settings 'my s.json' --coll other" in found


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("list", ""),
        ("list --json", ""),
        ("revoke --all", "No session matches.\n"),
        ("revoke --all --yes", "No session matches.\n"),
        ("revoke --owner alice --dry-run", "0 sessions would be ended.\n"),
        ("purge", "0 expired documents deleted.\n"),
        ("purge --dry-run", "0 expired documents would be deleted.\n"),
    ],
)
def test_a_database_or_a_collection_that_is_not_there_is_told(
    mongosession: Command, stored: Collection[Any], database: str, command: str, shown: str
) -> None:
    nowhere = mongosession(*command.split(), "--db", f"{database}_no")
    assert nowhere.stdout == shown
    assert nowhere.stderr == f"MongoDB has no database {database}_no; is the name right?\n"
    stored.create_index("owner")
    nowhere = mongosession(*command.split(), "--coll", "sesions")
    assert nowhere.stderr == f"{database} has no collection sesions; is the name right?\n"
    assert mongosession(*command.split()).stderr == ""


def test_show_stats_and_check_tell_it_too(
    mongosession: Command, stored: Collection[Any], database: str
) -> None:
    stored.create_index("owner")
    words = f"{database} has no collection x; is the name right?"
    assert words in mongosession("stats", "--coll", "x").stderr
    assert mongosession("show", id_of("one"), "--coll", "x", code=1).stderr.splitlines() == [
        f"Error: no live session has the id {id_of('one')}",
        words,
    ]
    assert (
        f"note   collection           {words}"
        in mongosession("check", "--coll", "x", code=1).stdout
    )


def test_what_version_2_stores_beside_is_shown(
    mongosession: Command, stored: Collection[Any]
) -> None:
    now = datetime.now(timezone.utc)
    label, sealed = id_of("label"), id_of("sealed")
    more = {"label": "Firefox on Linux", "remember": True}
    stored.insert_one(document(label, "alice", now) | more)
    stored.insert_one(document(sealed, "alice", now - timedelta(hours=2)) | {"v": 2})
    first, second = map(
        json.loads, mongosession("list", "--newest", "2", "--json").stdout.splitlines()
    )
    assert (first["label"], first["remembered"], first["sealed"]) == (
        "Firefox on Linux",
        True,
        False,
    )
    assert (second["label"], second["remembered"], second["sealed"]) == (None, False, True)
    _, screen = mongosession.on_a_terminal("list", "--newest", "2")
    assert screen.splitlines()[1].split()[1:5] == ["alice", "Firefox", "on", "Linux"]
    _, screen = mongosession.on_a_terminal("list", COLUMNS="120")
    assert sorted(line[-7:] for line in screen.splitlines()) == [" " * 7, " SEALED", " sealed"]
    _, screen = mongosession.on_a_terminal("list", COLUMNS="80")
    assert {len(line) for line in screen.splitlines()} == {80}
    assert sorted(line[-2:] for line in screen.splitlines()) == ["  ", " S", " s"]
    lines = [line.split("\t") for line in mongosession("list").stdout.splitlines()]
    assert sorted(line[6:] for line in lines) == [[], ["sealed"]]
    shown = mongosession("show", sealed, "--data").stdout
    assert "data        sealed" in shown
    assert "xyzzy" not in shown
    found = json.loads(mongosession("show", sealed, "--data", "--json").stdout)
    assert found["sealed"] is True
    assert "data" not in found
    mongosession("revoke", "--owner", "alice", "--yes")
    assert not live(stored)


def test_stats_and_check_say_how_many_are_sealed(
    mongosession: Command, stored: Collection[Any], database: str
) -> None:
    mongosession("init")
    now = datetime.now(timezone.utc)
    stored.insert_one(document(id_of("plain"), "alice", now))
    assert "\n  sealed                 0\n" in mongosession("stats").stdout
    assert "sealed sessions" not in mongosession("check").stdout
    sealing = f"mongodb_session_db: {database}\nsession_sealed: true\n"
    settings = Path(mongosession.folder, "sealing.yaml")
    settings.write_text(f"mongodb_host: {mongosession.environment['MONGODB_URI']}\n{sealing}")
    told = mongosession("check", "--settings", settings.name).stdout
    assert "note   sealed sessions      0 of 1; each other stays so until its next login" in told
    assert "mongosession revoke --settings sealing.yaml --all ends all" in told
    for number in range(2):
        stored.insert_one(document(id_of(f"{number}"), "alice", now) | {"v": 2})
    assert json.loads(mongosession("stats", "--json").stdout)["sealed"] == 2
    assert "\n  sealed                 2\n" in mongosession("stats").stdout
    assert "ok     sealed sessions      2 of 3\n" in mongosession("check").stdout
    found = json.loads(mongosession("check", "--json").stdout)
    (one,) = (one for one in found["findings"] if one["what"] == "sealed sessions")
    assert (one["verdict"], one["words"]) == ("ok", "2 of 3")


def test_data_that_no_application_could_read_is_an_error(
    mongosession: Command, stored: Collection[Any]
) -> None:
    broken = document(id_of("one"), "alice", datetime.now(timezone.utc))
    stored.insert_one(broken | {"data": {"uuid": Binary(b"short", 4)}})
    assert "alice" in mongosession("show", id_of("one")).stdout
    assert "cannot be read" in mongosession("show", id_of("one"), "--data", code=1).stderr


def test_check_finds_indexes_that_are_there_but_wrong(
    mongosession: Command, stored: Collection[Any]
) -> None:
    stored.create_index("expires_at", name="plain")
    assert "plain is no TTL index; drop it" in mongosession("check", code=1).stdout
    stored.drop_index("plain")
    stored.create_index("expires_at", name="late", expireAfterSeconds=60)
    assert "late deletes 60 seconds too late" in mongosession("check", code=1).stdout


def test_check_finds_a_ttl_monitor_that_is_off(
    mongosession: Command, stored: Collection[Any]
) -> None:
    stored.create_index("owner")
    expired = datetime.now(timezone.utc) - DAYS_14 - timedelta(hours=1)
    stored.insert_one(document(id_of("expired"), None, expired))
    found = mongosession("check", code=1).stdout
    assert "the oldest has waited for the TTL monitor for 36" in found
    assert "mongosession purge does its work" in found


def test_stats_count_what_is_live_and_of_what_kind(mongosession: Command, many: list[str]) -> None:
    found = json.loads(mongosession("stats", "--json").stdout)
    assert (found["live"], found["logged_in"], found["anonymous"]) == (7, 5, 2)
    assert found["largest_bytes"] > 4000
    assert [one["count"] for one in found["sizes"]] == [6, 0, 0, 1, 0, 0, 0, 0]
    assert found["sizes"][3]["below_bytes"] == 16384
    assert [one["count"] for one in found["idle"]] == [1, 0, 1, 1, 2, 2, 0, 0]
    assert [one["count"] for one in found["ages"]] == [0, 0, 0, 3, 2, 2, 0, 0]
    assert found["ages"][-1]["below_seconds"] is None
    shown = mongosession("stats").stdout
    assert "live                     7\n  logged in              5\n" in shown
    assert "\x1b" not in shown


def test_list_has_tabs_in_a_pipe_and_columns_on_a_terminal(
    mongosession: Command, many: list[str]
) -> None:
    lines = [line.split("\t") for line in mongosession("list", "--newest", "9").stdout.splitlines()]
    assert [line[0] for line in lines] == many
    assert [line[1] for line in lines] == ["alice", "bob", "", "alice", "bob", "", "alice"]
    created, seen, expires = map(datetime.fromisoformat, lines[0][2:5])
    assert (seen - created, expires - seen) == (timedelta(hours=1), DAYS_14)
    assert int(lines[2][5]) > 4000
    code, screen = mongosession.on_a_terminal("list", "--newest", "3")
    rows = screen.splitlines()
    assert code == 0
    assert rows[0].split() == ["ID", "OWNER", "LABEL", "IDLE", "LEFT", "SIZE", "S"]
    assert rows[3].split() == [many[2], "-", "-", "12h", "13d", "4.1", "KiB"]
    assert max(map(len, rows)) <= 100


def test_list_selects_by_owner_idleness_and_size(mongosession: Command, many: list[str]) -> None:
    def listed(*arguments: str) -> set[str]:
        lines = mongosession("list", *arguments).stdout.splitlines()
        return {line.split("\t")[0] for line in lines}

    assert listed() == set(many)
    assert listed("--owner", "alice") == {many[0], many[3], many[6]}
    assert listed("--idle-for", "5d") == set(many[4:])
    assert listed("--larger-than", "1k") == {many[2]}
    assert listed("--owner", "alice", "--idle-for", "36 hours") == {many[3], many[6]}
    assert listed("--newest", "2") == set(many[:2])
    objects = map(json.loads, mongosession("list", "--json").stdout.splitlines())
    assert {one["id"] for one in objects} == set(many)
    wrong = [("--idle-for", "soon"), ("--larger-than", "huge"), ("--newest", "0")]
    for option, value in (*wrong, ("--newest", "9" * 20)):
        assert option in mongosession("list", option, value, code=2).stderr


def test_show_hides_the_data_until_it_is_asked_for(mongosession: Command, many: list[str]) -> None:
    shown = mongosession("show", many[0]).stdout
    assert "owner       alice" in shown
    assert "xyzzy" not in shown + mongosession("show", many[0], "--json").stdout
    assert '"secret word": "xyzzy"' in mongosession("show", many[0], "--data").stdout
    found = json.loads(mongosession("show", many[0], "--data", "--json").stdout)
    assert found["data"] == {"secret word": "xyzzy"}
    for nobody in (id_of("expired"), id_of("mark"), id_of("other"), id_of("nobody")):
        assert "no live session has the id" in mongosession("show", nobody, code=1).stderr
    assert "is no public id" in mongosession("show", "short", code=2).stderr


def test_what_a_visitor_chose_does_not_command_the_terminal(
    mongosession: Command, stored: Collection[Any]
) -> None:
    owner = "\x1b[2J\x9b2J\u202eeve\tx\n"
    stored.insert_one(document(id_of("eve"), owner, datetime.now(timezone.utc), "\x1b[2J"))
    for command in (["list"], ["show", id_of("eve"), "--data"]):
        assert "\x1b" not in mongosession(*command).stdout
        assert "\x1b" not in mongosession.on_a_terminal(*command)[1]
    assert mongosession("list").stdout.count("\t") == 5
    listed = mongosession("list", "--json").stdout
    assert json.loads(listed)["owner"] == owner
    assert listed.isascii()
    assert mongosession("show", id_of("eve"), "--json").stdout.isascii()


def test_colours_are_for_terminals_and_no_color_is_heeded(mongosession: Command) -> None:
    mongosession("init")
    assert "\x1b" not in mongosession("check").stdout
    _, screen = mongosession.on_a_terminal("check")
    assert "\x1b[32mok" in screen
    _, screen = mongosession.on_a_terminal("check", NO_COLOR="1")
    assert "\x1b[3" not in screen


# Ending sessions.


def live(stored: Collection[Any]) -> set[str]:
    now = datetime.now(timezone.utc)
    found = stored.find({"v": 1, "data": {"$exists": True}, "expires_at": {"$gt": now}})
    return {one["_id"] for one in found}


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["--owner", "alice"], {1, 2, 4, 5}),
        (["--idle-for", "5d"], {0, 1, 2, 3}),
        (["--owner", "alice", "--idle-for", "1d"], {0, 1, 2, 4, 5}),
        (["--all"], set()),
    ],
)
def test_revoke_ends_what_is_selected_and_nothing_else(
    mongosession: Command,
    many: list[str],
    stored: Collection[Any],
    arguments: list[str],
    left: set[int],
) -> None:
    ended = 7 - len(left)
    dry = mongosession("revoke", *arguments, "--dry-run")
    assert dry.stdout == f"{ended} sessions would be ended.\n"
    assert len(live(stored)) == 7
    refused = mongosession("revoke", *arguments, input="n\n")
    assert refused.stderr == f"End {ended} sessions? [y/N]: \nNothing was ended.\n"
    assert len(live(stored)) == 7
    done = mongosession("revoke", *arguments, input="y\n")
    assert done.stdout == f"{ended} sessions ended.\n"
    assert live(stored) == {many[number] for number in left}
    assert stored.find_one({"_id": id_of("other")}), "what is not of our form stays"
    assert mongosession("revoke", *arguments, "--yes").stdout == "No session matches.\n"
    again = mongosession("revoke", *arguments)
    assert (again.stdout, again.stderr) == ("No session matches.\n", "")


def test_documents_of_another_form_are_no_sessions(
    mongosession: Command, many: list[str], stored: Collection[Any]
) -> None:
    now = datetime.now(timezone.utc)
    foreign = {"order-17", "order-17".ljust(43), "a" * 44}
    stored.insert_many([document(id_, "alice", now) for id_ in foreign])
    stored.insert_one(document(id_of("odd"), None, now) | {"owner": 5})
    listed = mongosession("list").stdout.splitlines()
    assert {line.split("\t")[0] for line in listed} == set(many)
    assert json.loads(mongosession("stats", "--json").stdout)["live"] == 7
    one = mongosession("revoke", id_of("odd"), id_of("mark"), "--dry-run")
    assert one.stdout == "0 sessions would be ended.\n"
    assert mongosession("revoke", "--all", "--yes").stdout == "7 sessions ended.\n"
    assert live(stored) == foreign | {id_of("odd")}


def test_revoke_by_ids_takes_those_that_look_like_options(
    mongosession: Command, many: list[str], stored: Collection[Any]
) -> None:
    dashed = next(id_ for n in range(10_000) if (id_ := id_of(str(n))).startswith("-"))
    stored.insert_one(document(dashed, None, datetime.now(timezone.utc)))
    assert dashed in mongosession("show", dashed).stdout
    done = mongosession("revoke", "--yes", dashed, many[0], many[0], id_of("gone"))
    assert done.stdout == "2 sessions ended.\n"
    assert live(stored) == set(many[1:])
    mongosession("revoke", "--yess", many[1], code=2)


def test_revoke_wants_one_way_to_say_which(mongosession: Command, many: list[str]) -> None:
    for arguments in ([], ["--all", "--owner", "alice"], ["--all", many[0]]):
        assert "which sessions?" in mongosession("revoke", *arguments, code=2).stderr
    refused = mongosession("revoke", "--all", code=1).stderr
    assert refused.splitlines()[0] == "End 7 sessions? [y/N]: "
    assert "give --yes" in refused.splitlines()[1]


def test_revoke_ends_what_is_just_being_regenerated(
    mongosession: Command, store: MongoStore, stored: Collection[Any]
) -> None:
    session = store.create({"a": 1})
    session.login("alice")
    store.flush(session)
    session.regenerate()
    store.flush(session)
    stored.delete_one({"_id": session.id})  # As if its second command were still to come.
    assert stored.count_documents({"owner": "alice"}) == 1
    mongosession("revoke", "--owner", "alice", "--yes")
    tombstone = {"_id": session.id, "ended": {"$exists": True}}
    assert stored.find_one(tombstone), "it can't be inserted any more"


def test_revoke_asks_and_shows_a_bar_on_a_terminal(
    mongosession: Command, many: list[str], stored: Collection[Any]
) -> None:
    code, screen = mongosession.on_a_terminal("revoke", "--all", typed=b"y\n")
    assert code == 0
    assert "7/7" in screen
    assert "7 sessions ended." in screen
    assert not live(stored)


def test_purge_deletes_what_has_expired(
    mongosession: Command, many: list[str], stored: Collection[Any]
) -> None:
    assert mongosession("purge", "--dry-run").stdout == "1 expired document would be deleted.\n"
    assert mongosession("purge").stdout == "1 expired document deleted.\n"
    assert stored.count_documents({}) == 9


GATED = """
import sys, time
from pymongo import monitoring
from mongosession_wsgi.cli import administration, connection
from mongosession_wsgi.cli.connection import read
from mongosession_wsgi.cli import main

class Gate(monitoring.CommandListener):
    batches = 0
    def started(self, event):
        is_batch = event.command_name in ("update", "delete")
        self.batches += is_batch
        if is_batch and self.batches == 3:
            print("at the gate", file=sys.stderr, flush=True)
            time.sleep(60)
    def succeeded(self, event): ...
    def failed(self, event): ...

administration.AT_A_TIME = 2
monitoring.register(Gate())
main()
"""


@pytest.mark.parametrize(("command", "total"), [(["revoke", "--all", "--yes"], 7), (["purge"], 5)])
def test_an_interruption_says_how_many_are_done_and_the_next_run_goes_on(
    mongosession: Command, stored: Collection[Any], command: list[str], total: int, many: list[str]
) -> None:
    for number in range(4):
        stored.insert_one(
            document(id_of(f"old{number}"), None, datetime.now(timezone.utc) - 2 * DAYS_14)
        )
    with started(mongosession.environment, sys.executable, "-c", GATED, *command) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "at the gate\n"
        process.send_signal(signal.SIGINT)
        words = process.stderr.read()
        assert process.wait(LONGEST_WAIT) == 130
        assert words.startswith(f"Interrupted: 4 of {total} ")
        assert words.endswith("Run it again to go on.\n")
        assert not process.stdout.read()
    assert mongosession(*command).stdout.startswith(f"{total - 4} ")


def test_an_interruption_of_the_question_ends_nothing(
    mongosession: Command, many: list[str], stored: Collection[Any]
) -> None:
    code, screen = mongosession.on_a_terminal("revoke", "--all", typed=b"\x03")
    assert code == 130
    assert "Interrupted." in screen
    assert len(live(stored)) == 7


@pytest.mark.parametrize("typed", [b"n\n", b"\n", b"maybe\n", b"\x04"])
def test_any_answer_but_yes_ends_nothing_and_is_no_error(
    mongosession: Command, many: list[str], stored: Collection[Any], typed: bytes
) -> None:
    code, screen = mongosession.on_a_terminal("revoke", "--all", typed=typed)
    assert code == 0
    assert screen.splitlines()[-1] == "Nothing was ended."
    assert len(live(stored)) == 7


def test_one_session_is_not_many_and_none_shows_no_bar(
    mongosession: Command, many: list[str], stored: Collection[Any]
) -> None:
    assert mongosession("revoke", many[0], "--dry-run").stdout == "1 session would be ended.\n"
    asked = mongosession("revoke", many[0], id_of("gone"), input="yes\n")
    assert asked.stderr == "End 1 session? [y/N]: \n"
    assert asked.stdout == "1 session ended.\n"
    asked = mongosession("revoke", many[0], id_of("gone"))
    assert (asked.stdout, asked.stderr) == ("No session matches.\n", "")
    _, screen = mongosession.on_a_terminal("revoke", "--owner", "nobody")
    assert screen == "No session matches.\r\n"
    _, screen = mongosession.on_a_terminal("purge", "--db", "no")
    assert "0/0" not in screen
    _, screen = mongosession.on_a_terminal("list", "--owner", "nobody")
    assert screen == "No session matches.\r\n"


def test_a_delete_that_is_repeated_over_a_broken_connection_counts_right(
    client: MongoClient[Any],
    settings: dict[str, Any],
    many: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert client.address is not None
    monkeypatch.setattr(administration, "AT_A_TIME", 3)
    proxy = Proxy(client.address)
    store = MongoStore(settings | {"mongodb_host": proxy.uri})
    ending = administration.Administration(store).end(administration.Selection())
    assert next(ending) == 3
    proxy.cut_after_request(once=True)
    assert list(ending) == [3, 1]
    assert proxy.struck == 1
    store.close()
    proxy.close()


# In company.


def test_a_reader_that_has_enough_is_no_error(
    mongosession: Command, stored: Collection[Any]
) -> None:
    now = datetime.now(timezone.utc)
    stored.insert_many([document(id_of(str(number)), "alice", now) for number in range(3000)])
    with started(mongosession.environment, *MODULE, "list") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().count("\t") == 5
        process.stdout.close()
        assert process.wait(LONGEST_WAIT) == 141
        assert process.stderr.read() == ""


@pytest.mark.parametrize("command", ["check", "stats", "stats --json", "list", "list --json"])
def test_every_command_ends_in_silence_where_nobody_reads(
    mongosession: Command, many: list[str], command: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with closing(os.fdopen(writing, "wb")):
        assert mongosession.into(writing, *command.split()) == (141, "")


EVERY = ("check --json", "stats", "list", "init", "--help")


@pytest.mark.parametrize("command", EVERY)
@pytest.mark.parametrize(("to", "words"), [("/dev/full", "No space left"), ("&-", "Bad file")])
def test_output_that_cannot_be_written_is_an_error(
    mongosession: Command, many: list[str], command: str, to: str, words: str
) -> None:
    if to == "/dev/full":
        with open(to, "wb") as full:
            code, said = mongosession.into(full.fileno(), *command.split())
    else:
        shell = f"exec {shlex.join([*MODULE, *command.split()])} >{to}"
        with started(mongosession.environment, "sh", "-c", shell) as process:
            _, said = process.communicate(timeout=LONGEST_WAIT)
        code = process.returncode
    assert code == 1
    (line,) = [line for line in said.splitlines() if "its indexes" not in line]
    assert line.startswith("Error: the output could not be written: ")
    assert words in line


def test_other_streams_that_are_closed_or_full(mongosession: Command, many: list[str]) -> None:
    for command, redirected, code in (
        ("show short", "2>/dev/full", 2),
        ("show short", "2>&-", 2),
        (f"show {id_of('gone')}", "2>&-", 1),
        ("list", "2>&- <&-", 0),
        ("list", "2>&- >&- <&-", 1),
        ("revoke --all", "<&-", 1),
    ):
        shell = f"exec {shlex.join([*MODULE, *command.split()])} {redirected}"
        with started(mongosession.environment, "sh", "-c", shell) as process:
            shown, said = process.communicate(timeout=LONGEST_WAIT)
        assert process.returncode == code, said
        assert "Traceback" not in shown + said


@pytest.mark.parametrize(
    ("encoding", "commands"),
    [
        (
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            [["list"], ["stats"], ["check"], ["show", id_of("one"), "--data"]],
        ),
        ({"PYTHONIOENCODING": "ascii"}, [["list"]]),
        ({"PYTHONIOENCODING": "ascii:strict"}, [["list"]]),
    ],
    ids=["C", "ascii", "strict"],
)
def test_a_terminal_without_utf_8_gets_what_it_has_letters_for(
    mongosession: Command,
    stored: Collection[Any],
    encoding: dict[str, str],
    commands: list[list[str]],
) -> None:
    owner = "Jürgen " * 9
    stored.insert_one(document(id_of("one"), owner, datetime.now(timezone.utc)))
    shown = mongosession("list", **encoding).stdout  # type: ignore[arg-type]
    assert "J\\xfcrgen" in shown
    for command in commands:
        screen = mongosession.on_a_terminal_from_its_start(*command, **encoding)
        assert screen.isascii()
        assert "\\u2" not in screen
    screen = mongosession.on_a_terminal_from_its_start("revoke", "--all", "--yes", **encoding)
    assert screen.isascii()
    assert "1 session ended." in screen


def test_without_click_or_rich_it_says_what_to_install(environment: dict[str, str]) -> None:
    for part in ("click", "rich"):
        code = f"import sys; sys.modules[{part!r}] = None; from mongosession_wsgi.cli import main; "
        with started(environment, sys.executable, "-c", code + "main()") as process:
            _, words = process.communicate(timeout=LONGEST_WAIT)
        assert process.returncode == 1
        assert words == (
            "mongosession: the command needs click and rich; pip install 'mongosession-wsgi[cli]'\n"
        )


AS_ON_WINDOWS = """
import signal, sys

sys.modules["fcntl"] = sys.modules["termios"] = sys.modules["resource"] = None
del signal.SIGHUP

from mongosession_wsgi.cli import main

main()
"""


def test_windows_has_every_command_but_the_embedded_server(environment: dict[str, str]) -> None:
    def ran(*command: str) -> tuple[int, str]:
        with started(environment, sys.executable, "-c", AS_ON_WINDOWS, *command) as process:
            _, words = process.communicate(timeout=LONGEST_WAIT)
        return process.returncode, words

    assert ran("stats", "--json")[0] == 0
    code, words = ran("embedded")
    assert code == 1
    assert words.startswith("Error: The embedded server needs Linux or macOS; elsewhere, ")
    assert words.count("\n") == 1


INTERRUPTED_EARLY = """
import signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "click":
            signal.raise_signal(signal.SIGINT)

from mongosession_wsgi.cli import main

sys.meta_path.insert(0, Finder())
main()
"""

INTERRUPTED_LATE = """
import atexit, signal

from mongosession_wsgi.cli import main

atexit.register(signal.raise_signal, signal.SIGINT)
main()
"""


@pytest.mark.parametrize(("program", "code"), [(INTERRUPTED_EARLY, 130), (INTERRUPTED_LATE, 0)])
def test_a_ctrl_c_before_or_after_the_command_prints_nothing(
    environment: dict[str, str], program: str, code: int
) -> None:
    with started(environment, sys.executable, "-c", program, "--version") as process:
        _, words = process.communicate(timeout=LONGEST_WAIT)
    assert (process.returncode, words) == (code, "")


def test_a_wrong_password_is_told_and_never_shown(mongosession: Command, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "db") as server, MongoClient[Any](server.uri) as client:
        client.admin.command("createUser", "shop", pwd="right", roles=["root"])
    with EmbeddedServer(tmp_path / "db", options=["--auth"]) as server:
        uri = server.uri.replace("//", f"//shop:{SECRET}@") + "/?authSource=admin"
        for command in ("check", "stats", "list", "init"):
            failed = mongosession(command, "--uri", uri, code=1)
            assert "MongoDB refused the login" in failed.stdout + failed.stderr
        right = server.uri.replace("//", "//shop:right@") + "/?authSource=admin"
        assert "shop:right" not in mongosession("check", "--uri", right, code=1).stdout


def test_embedded_serves_until_it_is_interrupted(mongosession: Command, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = mongosession.environment | {"TMPDIR": str(temporary)}
    data = str(tmp_path / "data")
    for number, folder in ((signal.SIGINT, data), (signal.SIGTERM, ""), (signal.SIGHUP, "")):
        arguments = [folder] if folder else []
        with started(environment, *MODULE, "embedded", *arguments) as process:
            assert process.stdout is not None
            uri = process.stdout.readline().strip()
            assert "ok" in mongosession("check", "--uri", uri, code=1).stdout
            process.send_signal(number)
            assert process.wait(LONGEST_WAIT) == 0
    assert (tmp_path / "data").exists()
    assert not list(temporary.iterdir())


COMMANDS = ("check", "init", "stats", "list", "show", "revoke", "purge", "embedded")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(mongosession: Command, command: str) -> None:
    shown = mongosession(command, "--help").stdout
    assert f"Examples:\n    mongosession {command}" in shown
    assert shown == mongosession(command, "-h").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_it(mongosession: Command, shell: str) -> None:
    script = mongosession(_MONGOSESSION_COMPLETE=f"{shell}_source").stdout
    assert "_MONGOSESSION_COMPLETE" in script
    typed: dict[str, Any] = {
        "COMP_WORDS": "mongosession re",
        "COMP_CWORD": "re" if shell == "fish" else "1",
    }
    assert "revoke" in mongosession(_MONGOSESSION_COMPLETE=f"{shell}_complete", **typed).stdout


@pytest.mark.skipif(not SCRIPT.exists(), reason="the distribution is not installed here")
def test_the_installed_script_is_the_command(environment: dict[str, str]) -> None:
    with started(environment, str(SCRIPT), "--help") as process:
        shown, _ = process.communicate(timeout=LONGEST_WAIT)
    assert process.returncode == 0
    assert shown.startswith("Usage: mongosession [OPTIONS] COMMAND [ARGS]...")
    assert all(f"\n  {command} " in shown for command in COMMANDS)

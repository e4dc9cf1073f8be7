"""The house as it is meant to be: the rooms, who may import whom, and how large a thing may be."""

from __future__ import annotations

import ast
import importlib
import io
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import bson
import pytest

import mongosession_wsgi
from mongosession_wsgi import Session, SessionInfo, SessionMiddleware, document, store
from mongosession_wsgi.document import Changes, Mark, Record
from mongosession_wsgi.life import MOVES
from mongosession_wsgi.testing.requests import NOW, Clock

from .scripted import Scene
from .wsgi import environ_of

pytestmark = pytest.mark.unmeasured

PACKAGE = Path(mongosession_wsgi.__file__).parent

ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "headers": set(),
    "audit": set(),
    "settings": {"errors"},
    "cookie": {"errors", "settings"},
    "document": {"errors"},
    "seal": {"document"},
    "times": {"document", "settings"},
    "draft": {"errors", "document"},
    "visit": {"errors", "document", "draft", "times"},
    "session": {"errors", "document", "draft", "visit"},
    "failures": {"errors"},
    "connecting": {"failures"},
    "indexes": {"errors", "document", "failures", "connecting"},
    "commands": {"document", "failures"},
    "collection": {
        *("errors", "settings", "document", "failures", "connecting", "indexes", "commands"),
    },
    "life": {
        *("errors", "audit", "document", "seal", "times", "draft", "visit"),
        *("commands", "collection"),
    },
    "store": {
        *("errors", "audit", "settings", "document", "times", "visit", "session"),
        *("failures", "commands", "collection", "life"),
    },
    "exchange": {
        *("errors", "headers", "settings", "cookie", "times", "visit", "session", "store"),
    },
    "middleware": {"errors", "headers", "settings", "store", "exchange"},
}
"""The rooms of the core, from the ground up, and those that each one may import."""
FOR_TYPES = {"document": {"seal"}, "draft": {"seal"}, "visit": {"seal"}}
"""What a room knows of another for its type hints alone."""
FRAMEWORKS = {"bottle", "django", "falcon", "flask", "paste", "pyramid"}
OF_FRAMEWORKS = {"_django", "_flask"}
"""Rooms of one framework each, behind the names that its users write."""
FOR_FRAMEWORKS = {
    *("errors", "settings", "cookie", "document", "times", "visit", "session", "store"),
    *("exchange", "middleware"),
}
FOR_THE_COMMAND = {
    *("__version__", "errors", "failures", "settings", "document", "indexes", "times", "store"),
    "embedded",
}
FOR_TESTS = {"errors", "settings", "document", "session", "store", "cookie", "exchange"}


class Imports(ast.NodeVisitor):
    """The modules that a module imports: `.name` or `..name` for ours, `name` for others."""

    def __init__(self, module: Path) -> None:
        self.found: set[str] = set()
        self.for_types: set[str] = set()
        self.visit(ast.parse(module.read_text()))

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            self.found, self.for_types = self.for_types, self.found
            self.generic_visit(node)
            self.found, self.for_types = self.for_types, self.found
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        names = [node.module] if node.module else [alias.name for alias in node.names]
        self.found.update("." * node.level + name for name in names)


def ours(names: set[str], dots: str = ".") -> set[str]:
    """Return the modules of ours among imported names, those `dots` away."""
    found = {name for name in names if name.startswith(dots) and name[len(dots)] != "."}
    return {name[len(dots) :].partition(".")[0] for name in found}


def modules(pattern: str) -> Any:
    return pytest.mark.parametrize(
        "module", sorted(PACKAGE.glob(pattern)), ids=lambda path: path.stem
    )


# Who may import whom.


@modules("*.py")
def test_a_module_imports_only_what_is_below_it(module: Path) -> None:
    imports, name = Imports(module), module.stem
    if name in ("__init__", "__main__"):
        return
    if name in ROOMS:
        below, for_types = ROOMS[name], FOR_TYPES.get(name, set())
    elif name == "embedded":
        below, for_types = {"errors"}, set()
    elif name == "_watcher":
        below, for_types = set(), set()
    else:
        assert name in FRAMEWORKS | OF_FRAMEWORKS, "a module without a place in the house"
        below, for_types = FOR_FRAMEWORKS | {f"_{name}"} & OF_FRAMEWORKS, set()
    assert ours(imports.found) <= below
    assert ours(imports.for_types) <= below | for_types


@modules("*/*.py")
def test_a_module_of_a_part_imports_what_that_part_may(module: Path) -> None:
    part = {"testing": FOR_TESTS, "cli": FOR_THE_COMMAND}[module.parent.name]
    beside = {path.stem for path in module.parent.glob("*.py")}
    imports = Imports(module)
    assert ours(imports.found | imports.for_types, "..") <= part
    assert ours(imports.found | imports.for_types, ".") <= beside


def test_the_rooms_are_built_from_the_ground_up() -> None:
    names = list(ROOMS)
    for index, (name, below) in enumerate(ROOMS.items()):
        assert below <= set(names[:index]), name
    assert ROOMS["errors"] == set()


@modules("**/*.py")
def test_nobody_imports_the_root(module: Path) -> None:
    imports = Imports(module)
    found = imports.found | imports.for_types
    assert "mongosession_wsgi" not in {name.partition(".")[0] for name in found}
    if "__version__" in {name.lstrip(".") for name in found}:
        assert module.relative_to(PACKAGE) == Path("cli/commands.py")


KNOWS_A_CLIENT = {"collection", "commands", "connecting", "failures", "indexes"}
"""The room of this process's client, and the parts of it."""


@modules("**/*.py")
def test_one_room_knows_pymongos_client(module: Path) -> None:
    name, imports = str(module.relative_to(PACKAGE).with_suffix("")), Imports(module)
    imported = {one for one in imports.found if one.partition(".")[0] == "pymongo"}
    if name in KNOWS_A_CLIENT:
        return
    if name == "settings":  # The options of the driver are among the settings.
        assert imported <= {"pymongo.common", "pymongo.errors", "pymongo.server_api"}
    elif name == "embedded":  # It asks its own server whether it is up.
        assert imported <= {"pymongo", "pymongo.errors"}
    elif name.startswith(("cli/", "testing/")):
        assert imported <= {"pymongo.errors"}
    else:
        assert imported == set()
    assert ("MongoClient(" in module.read_text()) == (name == "embedded")


def test_one_room_knows_werkzeugs_cookies() -> None:
    for module in PACKAGE.rglob("*.py"):
        assert ("dump_cookie" in module.read_text()) == (module.stem == "cookie")


def test_what_an_extra_brings_is_imported_only_on_use() -> None:
    program = "import sys, mongosession_wsgi; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    extras = FRAMEWORKS - {"paste"} | {"click", "rich", "pytest", "yaml", "cryptography"}
    assert extras.isdisjoint(loaded)
    assert {
        name.split(".")[1] for name in loaded if name.startswith("mongosession_wsgi.")
    } == ROOMS.keys() - {"seal"}


def test_the_root_has_the_names_of_the_contract() -> None:
    assert set(mongosession_wsgi.__all__) == {
        "MongoStore",
        "Session",
        "SessionDataError",
        "SessionError",
        "SessionInfo",
        "SessionMiddleware",
        "SessionWarning",
        "SettingsError",
        "StoreError",
        "__version__",
    }


# The way of a request.

USES: dict[str, Callable[[Session], object]] = {
    "read": lambda session: session.get("a"),
    "set": lambda session: session.update(a=2),
    "read and set": lambda session: (session.get("a"), session.update(b=1)),
    "log in": lambda session: session.login("alice"),
    "read and log in": lambda session: (session.get("a"), session.login("alice")),
    "regenerate": lambda session: session.regenerate(),
    "log out": lambda session: session.destroy(),
    "log out and set": lambda session: (session.destroy(), session.update(a=1)),
}
FLOORS = {name: floor for floor, name in enumerate(ROOMS)}
CLIMBS = {("session", "exchange"), ("visit", "life"), ("collection", "life")}
"""A session is opened at its first use and asks what is stored at its first need, and a command is
what a move says it is."""
PLAIN = {"find", "insert_one", "update_one"}
"""The commands of `commands`, which need no move to say what they are."""


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_way_of_a_request_climbs_only_for_a_command(use: Callable[[Session], object]) -> None:
    scene = Scene(Clock())
    token = scene.stored({"a": 1})

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        use(environ["mongosession"])
        start_response("200 OK", [])
        return []

    middleware: Any = SessionMiddleware(app, {"session_name": "sid"}, store=scene.store)
    climbs: list[tuple[str, str]] = []

    def step(frame: FrameType, event: str, argument: object) -> None:
        after = room_of(frame)
        before = room_of(frame.f_back) if after is not None else None
        if event == "call" and after and before and FLOORS[before] < FLOORS[after]:
            climbs.append((before, after))

    sys.setprofile(step)
    try:
        middleware(environ_of("/", HTTP_COOKIE=f"sid={token}"), lambda *_: None)
    finally:
        sys.setprofile(None)
    commands = scene.commands()
    assert set(climbs) <= CLIMBS
    told = [name for name in commands if name not in PLAIN]
    assert commands
    assert climbs.count(("collection", "life")) == len(told)
    assert climbs.count(("visit", "life")) <= 1


def room_of(frame: FrameType | None) -> str | None:
    """Return the room of a function, or of the one of ours that called it."""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.parent == PACKAGE and file.stem in ROOMS:
            return file.stem
        if file == Path(__file__) or PACKAGE in file.parents:
            return None
        frame = frame.f_back
    return None


def test_a_move_says_what_it_does() -> None:
    for row in MOVES.values():
        for move in row.values():
            line = (move.__doc__ or "").strip().partition("\n")[0]
            assert line.endswith(".")
            assert len(line) > 20


# A field of the document is listed once.

OF_A_LISTING = {"id", "size", "data", "sealed"}
"""What `SessionInfo` has beside the fields of the document."""
OTHER_NAMES = {"remember": "remembered"}


def test_a_field_of_the_document_is_listed_once() -> None:
    listed = set(document._FIELDS)
    assert set(Record._fields) == listed | {"id", "version"}
    told = {OTHER_NAMES.get(name, name) for name in listed}
    assert {field.name for field in fields(SessionInfo)} == told | OF_A_LISTING


def another(kind: type) -> Any:
    """Return a value of a type that no default is."""
    return {
        dict: {"a": 1}, str: "x", bool: True, type(NOW): NOW + timedelta(hours=1)
    }[kind]  # fmt: skip


def test_every_field_comes_back_is_told_and_goes_with_the_session() -> None:
    given = {name: another(kinds[0]) for name, kinds in document._FIELDS.items()}
    record = Record("i" * 43, **given)
    stored = document.document_of(record, Changes(given["data"]))
    assert document.decode(stored) == record
    info = store._info(record, 1)
    for name, value in given.items():
        assert getattr(info, OTHER_NAMES.get(name, name)) == value
    # No mark and no tombstone keeps what it need not.
    for update in (
        document.marking(NOW, "j" * 43, goes_on=False, by_login=True),
        document.ending(NOW),
    ):
        assert set(update["$unset"]) == set(given) - {"expires_at"}


@pytest.mark.parametrize("name", document._FIELDS)
def test_a_field_of_another_type_makes_no_session(name: str) -> None:
    given = {name: another(kinds[0]) for name, kinds in document._FIELDS.items()}
    stored = bson.encode({"_id": "i" * 43, "v": document.PLAIN} | given)
    found = bson.decode(stored, codec_options=document.CODEC)
    assert isinstance(document.read(found), Record)
    assert document.read(found | {name: 5}) is None
    if name not in Record._field_defaults:
        assert not isinstance(
            document.read({key: one for key, one in found.items() if key != name}), Record
        )


def test_every_field_of_a_mark_is_read() -> None:
    mark = document.marking(NOW, "j" * 43, goes_on=True, by_login=True)["$set"]
    found = {"_id": "i" * 43, "v": document.PLAIN, "owner": "x"} | mark
    assert document.read(found) == Mark(
        "i" * 43, NOW + document.MARK_TIME, "j" * 43, goes_on=True, by_login=True
    )


# How large a thing may be.

SMALL_CORE = 4_048
"""The code lines of the rooms, without blank lines, comments and docstrings.

Version 1 had 1,696 in nine modules. What came since: the table and its rooms, sealed sessions,
logins that others have replaced, labels, remembered sessions, the limit, the audit log, index
builds that nobody waits for, look-ups with an end, words for each failure, signs of proxies, and
writes with numbers of our own.
"""
LONG, COMPLEX = 30, 10
OVER = {
    ("settings", "_host"),
    ("settings", "_hint"),
    ("document", "read"),
    ("visit", "Visit.__init__"),
    ("visit", "Visit.take"),
    ("collection", "_without_secrets"),
    ("life", "Life.write"),
}
"""The functions that are longer or more complex than that; a new one is to be split."""


def code_lines(text: str) -> int:
    """Return how many lines hold code: neither blank nor comment nor docstring."""
    aside = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in aside | {tokenize.ENDMARKER}:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if is_text(statement):
                lines -= set(range(statement.lineno, statement.end_lineno + 1))
    return len(lines)


def is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(
        getattr(statement.value, "value", None), str
    )


def complexity(function: ast.AST) -> int:
    """Return McCabe's complexity of a function, counted as radon counts it."""
    count = 1
    for node in ast.walk(function):
        if isinstance(node, ast.If | ast.For | ast.While | ast.IfExp | ast.ExceptHandler):
            count += 1 + (isinstance(node, ast.For | ast.While) and bool(node.orelse))
        elif isinstance(node, ast.Assert):
            count += 1
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += 1 + len(node.ifs)
        elif isinstance(node, ast.match_case):
            is_rest = isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None
            count += not is_rest
    return count


def functions(tree: ast.AST, within: str = "") -> Iterator[tuple[str, Any]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from functions(node, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{within}{node.name}", node


@pytest.mark.parametrize("room", ROOMS)
def test_a_function_of_the_core_is_short_and_plain(room: str) -> None:
    for name, function in functions(ast.parse((PACKAGE / f"{room}.py").read_text())):
        if (room, name) in OVER:
            continue
        told = function.body[0].end_lineno if is_text(function.body[0]) else function.lineno
        assert function.end_lineno - told <= LONG, name
        assert complexity(function) <= COMPLEX, name


def test_the_core_is_small() -> None:
    sizes = {room: code_lines((PACKAGE / f"{room}.py").read_text()) for room in ROOMS}
    assert sum(sizes.values()) <= SMALL_CORE, sizes


@pytest.mark.parametrize("framework", sorted(FRAMEWORKS))
def test_what_a_framework_needs_is_small(framework: str) -> None:
    files = [PACKAGE / f"{name}.py" for name in (framework, f"_{framework}")]
    assert sum(code_lines(file.read_text()) for file in files if file.exists()) <= 285


def test_everything_public_says_what_it_does() -> None:
    for module in PACKAGE.rglob("*.py"):
        tree = ast.parse(module.read_text())
        assert ast.get_docstring(tree), module
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), node.name


def test_the_page_of_the_commit_has_every_cell() -> None:
    pytest.importorskip("sphinx")
    docs = str(PACKAGE.parent / "docs" / "_ext")
    sys.path.append(docs)
    try:
        moves = importlib.import_module("moves")
    finally:
        sys.path.remove(docs)
    told, drawn = "\n".join(moves.table()), moves.picture()
    assert [len(row) for _, row in moves.cells()] == [5] * 5
    assert told.count("nothing to do") + told.count("**: ") == 25
    for row in MOVES.values():
        for move in row.values():
            assert moves.line_of(move) in told
            assert f">{moves.name_of(move)}</text>" in drawn
    assert drawn.count("<rect") == 25

"""The house as it is meant to be: who may import whom, and what is at the root."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mongosession_wsgi

PACKAGE = Path(mongosession_wsgi.__file__).parent
MAY_IMPORT = {
    "errors": set(),
    "headers": set(),
    "settings": {"errors"},
    "cookie": {"errors", "settings"},
    "document": {"errors"},
    "session": {"errors", "document"},
    "store": {"errors", "settings", "document", "session"},
    "exchange": {"errors", "headers", "cookie", "session", "store"},
    "middleware": {"errors", "headers", "cookie", "exchange", "session", "settings", "store"},
    "embedded": {"errors"},
}
THE_COMMAND_MAY_IMPORT = {"__version__", "errors", "failures", "settings", "document", "indexes"}
THE_COMMAND_MAY_IMPORT |= {"store", "embedded"}
"""What the modules of the command, which only the command imports, are made of."""
FRAMEWORKS = {"bottle", "django", "falcon", "flask", "paste", "pyramid"}
ON_TOP = {"errors", "cookie", "exchange", "middleware", "session", "settings", "store"}
"""What the modules of the frameworks, which nothing of ours imports, are made of."""
MAY_IMPORT |= dict.fromkeys(FRAMEWORKS, ON_TOP)


def imports_of(module: Path) -> set[str]:
    """Return the modules that `module` imports: `.name` or `..name` for ours, `name` for others."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found.update("." * node.level + name for name in names)
    return found


@pytest.mark.parametrize("module", sorted(PACKAGE.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_module_imports_only_what_is_below_it(module: Path) -> None:
    ours = {name[1:] for name in imports_of(module) if name.startswith(".")}
    assert ours <= MAY_IMPORT[module.stem]
    assert "mongosession_wsgi" not in {name.partition(".")[0] for name in imports_of(module)}


@pytest.mark.parametrize("module", sorted(PACKAGE.glob("testing/*.py")), ids=lambda path: path.stem)
def test_what_is_for_tests_builds_on_the_store(module: Path) -> None:
    beside = {f".{path.stem}" for path in PACKAGE.glob("testing/*.py")}
    below = {f"..{name}" for name in ON_TOP | {"document"}}
    ours = {name for name in imports_of(module) if name.startswith(".")}
    assert ours <= beside | below


@pytest.mark.parametrize("module", sorted(PACKAGE.glob("cli/*.py")), ids=lambda path: path.stem)
def test_the_command_builds_on_the_store(module: Path) -> None:
    beside = {f".{path.stem}" for path in PACKAGE.glob("cli/[!_]*.py")}
    below = {f"..{name}" for name in THE_COMMAND_MAY_IMPORT}
    ours = {name for name in imports_of(module) if name.startswith(".")}
    assert ours <= beside | below


def test_a_module_for_a_framework_is_small_and_imported_only_on_use() -> None:
    for name in FRAMEWORKS:
        assert len((PACKAGE / f"{name}.py").read_text().splitlines()) <= 150
    program = "import sys, mongosession_wsgi; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    extras = FRAMEWORKS - {"paste"} | {"click", "rich", "pytest", "yaml"}
    assert extras.isdisjoint(loaded)
    assert not any(name.startswith("mongosession_wsgi.testing") for name in loaded)


def test_only_the_cookie_knows_werkzeugs_cookies_and_only_the_store_a_client() -> None:
    for module in PACKAGE.glob("*.py"):
        text = module.read_text()
        assert ("dump_cookie" in text) == (module.stem == "cookie")
        assert ("MongoClient(" in text) == (module.stem in {"store", "embedded"})


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


def test_everything_public_says_what_it_does() -> None:
    for module in PACKAGE.rglob("*.py"):
        tree = ast.parse(module.read_text())
        assert ast.get_docstring(tree), module
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), node.name

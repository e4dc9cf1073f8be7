"""What a user installs: the wheel, with pymongo and werkzeug and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from mongosession_wsgi import embedded

# Building and installing take pip's time, and a package index.
pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent
ADDRESS = "https://code.example/owner/mongosession-wsgi"
PARTS = ("setup.cfg", "setup.py", "README.md", "LICENSE", "mongosession_wsgi")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel, made of a copy of the source."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)
    setup_cfg = (source / "setup.cfg").read_text()
    (source / "setup.cfg").write_text(re.sub(r"(?m)^url =.*$", f"url = {ADDRESS}", setup_cfg))
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", built)
    run(*build, source, cwd=source)
    return built


def test_the_wheel_installs_alone_and_imports(built: Path, tmp_path: Path) -> None:
    wheel = next(built.glob("*.whl"))
    venv.create(tmp_path / "clean")
    python = tmp_path / "clean" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-compile", wheel, cwd=tmp_path)
    program = "from importlib.metadata import distributions as d; print(*{i.name for i in d()})"
    names = run(python, "-c", program, cwd=tmp_path).lower().replace("_", "-").split()
    assert sorted(names) == ["dnspython", "markupsafe", "mongosession-wsgi", "pymongo", "werkzeug"]
    program = "import mongosession_wsgi as m; print(m.SessionMiddleware.__name__, m.__version__)"
    printed = run(python, "-W", "error", "-c", program, cwd=tmp_path)
    assert printed.startswith("SessionMiddleware ")


def test_the_distributions_hold_every_module_the_types_and_the_licence(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mongosession_wsgi").rglob("*.py")}
    assert modules <= set(names)
    assert "mongosession_wsgi/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "examples"))]
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        assert {"LICENSE", "README.md"} <= {Path(name).name for name in sdist.getnames()}


def test_the_page_of_an_index_has_whole_addresses(built: Path) -> None:
    """An index shows the README alone: a relative link or picture would lead nowhere there."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        metadata = wheel.read(name).decode()
    assert f"Project-URL: Source, {ADDRESS}\n" in metadata
    assert f"Project-URL: Changelog, {ADDRESS}/blob/HEAD/CHANGELOG.md\n" in metadata
    assert f"]({ADDRESS}/raw/HEAD/docs/pictures/bench-cpu.svg)" in metadata
    assert f"[Flask]({ADDRESS}/blob/HEAD/docs/frameworks/flask.md)" in metadata
    assert re.findall(r"\]\((?!https?:|#).*?\)", metadata) == []


@pytest.fixture
def setup_cfg() -> ConfigParser:
    setup_cfg = ConfigParser(interpolation=None)
    setup_cfg.read(ROOT / "setup.cfg")
    return setup_cfg


def test_the_extra_brings_the_server_that_the_module_runs(setup_cfg: ConfigParser) -> None:
    too_new = "{}.{}".format(*embedded._TOO_NEW)
    brought = setup_cfg["options.extras_require"]["embedded"].replace(" ", "").split()
    assert brought[0] == f'{embedded._RELEASE};python_version<"{too_new}"'
    assert brought[1].startswith("uv>=")
    assert brought[1].endswith(f';python_version>="{too_new}"')
    assert embedded._PYTHONS.split(",") == [">=3.10", f"<{too_new}"]


def test_the_classifiers_name_every_supported_python(setup_cfg: ConfigParser) -> None:
    classifiers = setup_cfg["metadata"]["classifiers"]
    for minor in range(10, 16):
        assert f"Programming Language :: Python :: 3.{minor}\n" in classifiers
    assert setup_cfg["options"]["python_requires"] == ">=3.10"


def test_the_demo_installs_no_tool_of_ours(setup_cfg: ConfigParser) -> None:
    """`make demo` is a newcomer's first minute: a shop, its server, and nothing else."""
    demo = setup_cfg["options.extras_require"]["demo"].split()
    assert demo == ["mongosession-wsgi[bottle,embedded]", "gunicorn", "PyYAML"]

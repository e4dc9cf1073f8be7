"""Fetch or build another server once, keep it in `.servers/`, and serve by hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

_CACHE = Path(__file__).parents[2] / ".servers"


class UnavailableError(Exception):
    """The server cannot be had on this machine; the text says why, in one sentence."""


def demand(server: str, needs: str, programs: Sequence[str]) -> None:
    """Raise `UnavailableError` unless all programs are on the search path."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise UnavailableError(
            f"{server} needs {needs}, and {' and '.join(missing)} cannot be found."
        )


def kept(name: str, fetch: Callable[[Path], None]) -> Path:
    """Return a folder of `.servers/`; if the folder is not there yet, `fetch` makes it, once.

    An interrupted fetch leaves nothing behind that the next start would take for a server.
    """
    folder = _CACHE / name
    if folder.exists():
        return folder
    _CACHE.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=_CACHE) as around:
        fetched = Path(around) / "fetched"
        fetch(fetched)
        try:
            fetched.rename(folder)
        except OSError:
            if not folder.exists():  # Else another process was faster.
                raise
    return folder


def is_kept(server: str) -> bool:
    """Say whether a server, `java` or `rust`, was fetched before."""
    return any(_CACHE.glob(f"{server}-*"))


def run(
    command: Sequence[str], server: str, *, minutes: int, environ: Mapping[str, str] | None = None
) -> None:
    """Run the program that fetches or builds a server; raises `UnavailableError` with its words."""
    program = command[0]
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=60 * minutes,
            env={**os.environ, **(environ or {})},
        )
    except subprocess.CalledProcessError as error:
        lines = (error.stdout + error.stderr).strip().splitlines() or ["it said nothing"]
        words = next((line for line in lines if line.lower().startswith("error")), lines[0])
        raise UnavailableError(f"{program} could not fetch {server}: {words.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{program} did not fetch {server} in {minutes} minutes.") from error


def tell(what: str) -> None:
    """Say what takes so long."""
    print(what, file=sys.stderr, flush=True)


def serve(server: Callable[[], AbstractContextManager[str]]) -> int:
    """Serve by hand until Ctrl-C, or until the end of the input; print the URI."""
    try:
        with server() as uri, suppress(KeyboardInterrupt):
            print(uri, flush=True)
            sys.stdin.read()
    except UnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    return 0

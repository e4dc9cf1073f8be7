"""The streams of the command: stdin for an answer, stdout for results, stderr for the rest."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from select import select
from typing import TextIO


def prepare() -> None:
    """Make all streams usable, also closed streams and encodings without some letters.

    A write to a closed stdout is an error, as in other programs.
    """
    for name, mode, flags in (
        ("stdin", "r", os.O_RDONLY),
        ("stdout", "w", os.O_RDONLY),  # So that a write fails.
        ("stderr", "w", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, flags)
            setattr(sys, name, open(opened, mode, closefd=False))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_: say(f"Warning: {message}")


def drop_output(stream: TextIO) -> None:
    """Throw the rest of a stream's buffer away; else Python complains when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(*lines: str) -> None:
    """Print lines to stderr; if stderr is full or closed, only the exit code tells of them."""
    try:
        print(*lines, sep="\n", file=sys.stderr, flush=True)
    except OSError:
        drop_output(sys.stderr)


def ask(question: str) -> bool | None:
    """Ask on stderr, and return whether the answer was yes; None if stdin has no answer."""
    print(f"{question} [y/N]: ", end="", file=sys.stderr, flush=True)
    line = _line()
    if not (sys.stdin.isatty() and line):
        say("")  # The next output has a line of its own.
    return line.strip().lower() in ("y", "yes") if line else None


def _line() -> str:
    """Read a line from stdin.

    A Ctrl-C just before the wait would not end the wait, so a signal also writes to a pipe. On
    Windows, no program can wait for stdin beside a pipe.
    """
    if os.name == "nt":
        return sys.stdin.readline()
    interrupted, interrupt = os.pipe()
    os.set_blocking(interrupt, False)
    before = signal.set_wakeup_fd(interrupt)
    try:
        select([sys.stdin, interrupted], [], [])
        return sys.stdin.readline()
    finally:
        signal.set_wakeup_fd(before)
        os.close(interrupt)
        os.close(interrupted)

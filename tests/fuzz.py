"""Throw cookie headers at the reader and the middleware, and count what goes wrong.

`python -m tests.fuzz --examples 1000000` makes so many headers from a seed, without a database, and
prints a table; then it times headers that grow. It ends with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import string
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from wsgiref.validate import validator

from mongosession_wsgi import MongoStore, Session, SessionMiddleware
from mongosession_wsgi.cookie import Cookie, CookiePolicy
from mongosession_wsgi.errors import logger
from mongosession_wsgi.settings import Settings
from mongosession_wsgi.times import Times
from mongosession_wsgi.visit import NOTHING, Known, Visit

from . import tool
from .wsgi import call, environ_of, on_session

SETTINGS = {"mongodb_session_db": "fuzz"}
HTTPS = {"wsgi.url_scheme": "https"}
TARGETS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"session_name": "sid"}, {}),
    ({}, {}),
    ({}, HTTPS),
)
"""The settings and the environ of each cookie that is attacked: three names."""

THROUGH_MIDDLEWARE = 100
"""One of so many headers goes through the whole middleware."""
SEMICOLONS, LONGEST_SECONDS = 100_000, 0.05
MOST_GROWTH = 3.0
"""Doubling a header must double its time; this leaves room for noise, and none for squares."""
TOO_SHORT_TO_COMPARE = 0.002

BASE64URL = string.ascii_letters + string.digits + "-_"
ODD = [*map(chr, range(256)), "\u0100", "\u0430", "\u2028", "\ud800", "\U0001f36a"]


class Fault(Enum):
    """What must not happen, and is counted."""

    RAISED = "raised"
    ADOPTED = "adopted"
    OVERLOOKED = "overlooked"
    COMMAND = "commands"
    REFLECTED = "reflected"


# Where headers come from.

Source = Callable[[random.Random, str, str], str]
"""Makes a header of a generator, the name of the cookie and a token."""


def grammar(rng: random.Random, name: str, token: str) -> str:
    """Pairs, as browsers and others write them, rightly and wrongly."""
    names = (*[name] * 12, name.swapcase(), f"{name} ", f"\xa0{name}", f"x{name}", name[:-1])
    names += (f'"{name}"', f"{name}[$ne]", f"={name}", "", "$Version", "a", "other")
    values = (*[token] * 12, token[::-1], f'"{token}"', f'"{token}', token[1:], f"{token}x")
    values += (f"{token} ", f" {token}", f"{token}=", f"{token[:-2]}+/", f"{token},{name}={token}")
    values += (f"\\{ord(token[0]):o}{token[1:]}", f"{token}\0", f"{token}\r\nX: y", f"\xff{token}")
    values += ("", "1", '{"$gt": ""}', "deleted")
    pairs = (
        rng.choice(names) + rng.choice(("=", "=", "=", "=", "", "==", " =")) + rng.choice(values)
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5)))
    )
    return rng.choice(("; ", "; ", ";", ";\t", " ; ", ";;", ", ", "&", "\xa0;")).join(pairs)


def mutation(rng: random.Random, name: str, token: str) -> str:
    """A good header with a few characters changed."""
    header = rng.choice((f"{name}={token}", f"a=1; {name}={token}; b=2", f"b={token}; {name}=x"))
    for _ in range(rng.choice((1, 1, 2, 4))):
        begin = rng.randrange(len(header) + 1)
        end = begin + rng.choice((0, 0, 1, 1, 2, 9))
        new = rng.choice(("", *rng.sample(ODD, 2), ";", "=", " ", header[begin:end] * 2))
        header = header[:begin] + new + header[end:]
    return header


def near_token(rng: random.Random, name: str, token: str) -> str:
    """A token in which one character is another, missing or too much."""
    place = rng.randrange(44)
    rest = token[place + rng.randrange(2) :]
    return f"{name}={token[:place]}{rng.choice(('', rng.choice(BASE64URL), rng.choice(ODD)))}{rest}"


def noise(rng: random.Random, name: str, token: str) -> str:
    """Any characters, with a good pair somewhere in between."""
    before, after = (
        "".join(rng.choices(ODD, k=rng.choice((0, 1, 2, 20)))) + rng.choice(("", ";", "; "))
        for _ in range(2)
    )
    return f"{before}{name}={token}{after}"


SOURCES: tuple[Source, ...] = (grammar, mutation, near_token, noise)


# What is attacked, and what is right.


def expected(header: str, name: str) -> str | None:
    """Return the token of a header, read in the plainest way there is."""
    values = set()
    for pair in header.split(";"):
        found, equals, value = pair.lstrip(" \t").partition("=")
        if equals and found == name:
            values.add(value.rstrip(" \t"))
    if len(values) != 1:
        return None
    value = values.pop()
    return value if len(value) == 43 and set(value) <= set(BASE64URL) else None


class EmptyStore(MongoStore):
    """A store that has no session, and notes the tokens that it would ask MongoDB for."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)
        self.asked: list[str] = []

    def open(self, token: str | None, times: Times | None = None) -> Session:
        return Session(Visit(token, self._look, times or self._times()))

    def _look(self, visit: Visit) -> Known:
        self.asked.append(str(visit.token))
        return NOTHING


class Target:
    """One cookie, its reader by itself, and the middleware that has it."""

    def __init__(self, settings: dict[str, Any], environ: dict[str, Any]) -> None:
        settings = SETTINGS | settings
        self.cookie: Cookie = CookiePolicy(Settings.parse(settings)).cookie_for(
            environ_of(**environ)
        )
        self._environ = environ
        self._store = EmptyStore()
        app = on_session(lambda session: session.get("user", "nobody"))
        self._app = validator(SessionMiddleware(app, settings, store=self._store))
        self._answer_to_nobody = self._answer()

    def faults(self, header: str, *, through_middleware: bool) -> Iterator[Fault]:
        right = expected(header, self.cookie.name)
        try:
            token = self.cookie.read(header)
        except Exception:  # noqa: BLE001 (whatever it is, it is what we look for)
            yield Fault.RAISED
            return
        if token != right:
            yield Fault.OVERLOOKED if token is None else Fault.ADOPTED
        if through_middleware:
            yield from self._faults_of_middleware(header, right)

    def _faults_of_middleware(self, header: str, right: str | None) -> Iterator[Fault]:
        self._store.asked.clear()
        try:
            answer = self._answer(HTTP_COOKIE=header)
        except Exception:  # noqa: BLE001 (as above)
            yield Fault.RAISED
            return
        if self._store.asked != ([] if right is None else [right]):
            yield Fault.COMMAND
        if answer != self._answer_to_nobody:
            yield Fault.REFLECTED

    def _answer(self, **extra: Any) -> tuple[str, list[tuple[str, str]], bytes]:
        response = call(self._app, environ_of(**self._environ, **extra))
        return response.status, response.headers, response.body


@dataclass
class Row:
    """What was tried, how often, and what went wrong."""

    tried: str
    headers: int = 0
    tokens: int = 0
    """How many headers had a token that was to be taken."""
    middleware: int = 0
    seconds: float = 0.0
    faults: Counter[Fault] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


class _Log(logging.Handler):
    """Takes what is logged, and counts the lines with something that may be a token."""

    def __init__(self) -> None:
        super().__init__()
        self.leaks = 0

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage().split()
        self.leaks += any(len(word) >= 43 for word in words)


@contextmanager
def log_apart() -> Iterator[_Log]:
    """Keep what is logged off the screen."""
    log, propagate = _Log(), logger.propagate
    logger.addHandler(log)
    logger.propagate = False
    try:
        yield log
    finally:
        logger.propagate = propagate
        logger.removeHandler(log)


def run(examples: int, seed: int, *, is_watched: bool = False) -> list[Row]:
    """Try so many headers in all; show the progress on stderr if `is_watched`."""
    rng = random.Random(seed)
    tokens = ["".join(rng.choices(BASE64URL, k=43)) for _ in range(64)]
    targets = [Target(*target) for target in TARGETS]
    rows = []
    for place, source in enumerate(SOURCES):
        row = Row(source.__name__.replace("_", " "))
        rows.append(row)
        begin = time.perf_counter()
        share = examples * (place + 1) // len(SOURCES) - examples * place // len(SOURCES)
        with log_apart() as log:
            for row.headers in range(1, share + 1):
                target = targets[row.headers % len(targets)]
                header = source(rng, target.cookie.name, rng.choice(tokens))
                _try(row, target, header, log)
                if is_watched and row.headers % 5000 == 0:
                    text = f"{row.tried}: {row.headers} of {share}"
                    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        row.seconds = time.perf_counter() - begin
    if is_watched:
        print("\r\033[K", end="", file=sys.stderr)
    return rows


def _try(row: Row, target: Target, header: str, log: _Log) -> None:
    through_middleware = row.headers % THROUGH_MIDDLEWARE == 0
    row.middleware += through_middleware
    row.tokens += expected(header, target.cookie.name) is not None
    faults = list(target.faults(header, through_middleware=through_middleware))
    if log.leaks:
        log.leaks = 0
        faults.append(Fault.REFLECTED)
    if faults:
        row.faults.update(faults)
        row.examples.append(f"{faults[0].value}, {target.cookie.name}: {header!r:.400}")


# How long it takes.


@dataclass
class Growth:
    """How the time to read a header grows with the header."""

    tried: str
    seconds: float
    doubled: float
    """The seconds for a header of twice the length."""
    limit: float | None = None

    @property
    def is_fault(self) -> bool:
        if self.limit is not None and self.seconds > self.limit:
            return True
        return self.doubled > max(TOO_SHORT_TO_COMPARE, MOST_GROWTH * self.seconds)


SHAPES: dict[str, Callable[[int], str]] = {
    "semicolons": lambda n: ";" * n,
    "semicolons and spaces": lambda n: "; " * n,
    "spaces": lambda n: ";" + " " * n,
    "tabs and semicolons": lambda n: "\t\t;" * n,
    "our name": lambda n: "sid" * n,
    "our name and =": lambda n: "sid=" * n,
    "our name without =": lambda n: "; sid" * n,
    "our cookie": lambda n: "; sid=1" * n,
    "other cookies": lambda n: "; a=1" * n,
    "commas": lambda n: ", sid=" * n,
    "one long value": lambda n: "; sid=" + "x" * n,
    "one long value of spaces": lambda n: "; sid=x" + " " * n + "x",
    "one long name": lambda n: "x" * n + "=1",
}


def growths(repeats: int = 7) -> list[Growth]:
    """Time each shape of header, and one of twice its length."""
    cookie = CookiePolicy(Settings.parse({"session_name": "sid"})).cookie_for(environ_of())

    def seconds(header: str) -> float:
        header += f"; sid={'t' * 43}"
        spent = []
        for _ in range(repeats):
            begin = time.process_time()
            cookie.read(header)
            spent.append(time.process_time() - begin)
        return statistics.median(spent)

    with log_apart():
        return [
            Growth(
                tried,
                seconds(shape(SEMICOLONS)),
                seconds(shape(2 * SEMICOLONS)),
                LONGEST_SECONDS if tried == "semicolons" else None,
            )
            for tried, shape in SHAPES.items()
        ]


# The table.


def table(rows: list[Row], grown: list[Growth], *, is_coloured: bool = False) -> str:
    """Return both tables aligned; what was found is red, if there are colours."""

    def coloured(cell: str, is_fault: bool) -> str:
        return f"\033[{31 if is_fault else 32}m{cell}\033[0m" if is_coloured else cell

    heads = ["headers", "tokens", "middleware", *(fault.value for fault in Fault)]
    first = max(
        len(tried) for tried in [*(row.tried for row in rows), *(one.tried for one in grown)]
    )
    lines = [f"{'tried':{first}}  " + "  ".join(f"{head:>10}" for head in heads)]
    for row in rows:
        cells = [f"{count:>10,}" for count in (row.headers, row.tokens, row.middleware)]
        cells += [coloured(f"{row.faults[fault]:>10,}", bool(row.faults[fault])) for fault in Fault]
        lines.append(f"{row.tried:{first}}  " + "  ".join(cells))
    heads = [f"{SEMICOLONS:,}", f"{2 * SEMICOLONS:,}", "found"]
    lines += ["", f"{'repeated':{first}}  " + "  ".join(f"{head:>10}" for head in heads)]
    for growth in grown:
        cells = [f"{spent * 1000:>7.2f} ms" for spent in (growth.seconds, growth.doubled)]
        cells.append(coloured(f"{'slow' if growth.is_fault else '-':>10}", growth.is_fault))
        lines.append(f"{growth.tried:{first}}  " + "  ".join(cells))
    return "\n".join(lines)


def figures(seed: int, rows: list[Row], grown: list[Growth]) -> dict[str, Any]:
    return {
        "seed": seed,
        "tried": [
            {"tried": row.tried, "headers": row.headers, "tokens": row.tokens}
            | {"middleware": row.middleware, "seconds": round(row.seconds, 2)}
            | {fault.value: row.faults[fault] for fault in Fault}
            | {"examples": row.examples[:5]}
            for row in rows
        ],
        "repeated": [
            {"tried": growth.tried, "ms": round(growth.seconds * 1000, 3)}
            | {"ms_doubled": round(growth.doubled * 1000, 3), "slow": growth.is_fault}
            for growth in grown
        ],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=100_000, help="headers to try in all")
    parser.add_argument("--seed", type=int, help="to try the same headers again")
    parser.add_argument("--json", action="store_true", help="print no table but its figures")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    rows = run(options.examples, seed, is_watched=sys.stderr.isatty())
    grown = growths()
    if options.json:
        print(json.dumps(figures(seed, rows, grown), indent=2))
    else:
        print(table(rows, grown, is_coloured=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
        for row in rows:
            print(*row.examples[:5], sep="\n", end="\n" if row.examples else "")
        seconds = sum(row.seconds for row in rows)
        rate = options.examples / seconds
        print(f"{options.examples:,} headers in {seconds:.0f} s, {rate:,.0f}/s; --seed {seed}")
    found = any(row.faults for row in rows) or any(growth.is_fault for growth in grown)
    return 1 if found else 0


if __name__ == "__main__":
    tool.run(main, "fuzz")

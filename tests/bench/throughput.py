"""Requests a second of whole applications: behind gunicorn, over sockets, with many browsers.

The applications of one framework are up together, and one is loaded at a time, in turn, again and
again: what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from statistics import quantiles
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from . import machine
from .contest import CONTENDERS
from .crowd import Crowd, cookie_of, request_of
from .growth import fill_up, visit
from .measure import ROOT, Figures, Tell, databases

WORKERS = {
    "sync": ("--workers=3",),
    "gthread": ("--workers=1", "--threads=8"),
    "gevent": ("--workers=1", "--worker-class=gevent"),
}
"""The kinds of gunicorn's workers, and how many there are of each on one core."""
GROUPS = (
    ("floor", "ours", "Beaker, tuned"),
    ("Flask, floor", "Flask, ours", "Flask-Session", "Flask-Session, tuned"),
    ("Django, floor", "Django, ours", "Django"),
)
KINDS = ("read", "set", "read and set")
CONNECTIONS = (1, 8, 64)
SECONDS = 0.4
"""The time of one turn: so short that all contenders have theirs within a moment."""


class Served:
    """A contender behind gunicorn, on a port of its own."""

    def __init__(self, uri: str, database: str, name: str, options: Sequence[str]) -> None:
        self.database = database
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        # As gunicorn sets it for sockets of its own; else an answer may wait for 40 ms.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self._listener.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{self._listener.fileno()}"]
        command += ["--no-control-socket", "--log-level=error"]
        command += ["--keep-alive=75", "--graceful-timeout=1", *options]
        names = {"BENCH_URI": uri, "BENCH_DATABASE": database, "BENCH_NAME": name}
        self._gunicorn = subprocess.Popen(
            [*command, "tests.bench.served:app"],
            cwd=ROOT,
            env=os.environ | names,
            pass_fds=[self._listener.fileno()],
            preexec_fn=machine.end_with_parent,
            start_new_session=True,  # A Ctrl-C is for the parent, which ends this.
        )

    def pids(self) -> list[int]:
        """Return the processes of the workers."""
        return machine.children(self._gunicorn.pid)

    def close(self) -> None:
        self._gunicorn.terminate()
        self._gunicorn.wait(30)
        self._listener.close()


@contextmanager
def served(uri: str, names: Iterable[str], options: Sequence[str]) -> Iterator[dict[str, Served]]:
    """Serve contenders, on databases of their own that are dropped in the end."""
    with ExitStack() as stack:
        prefix = stack.enter_context(databases(uri))
        by_name = {}
        installed = [name for name in names if CONTENDERS[name].is_installed]
        for number, name in enumerate(installed):
            by_name[name] = Served(uri, f"{prefix}_{number}", name, options)
            stack.callback(by_name[name].close)
        yield by_name


class Cell:
    """What the turns of one contender have come to."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self._times: list[float] = []
        self._spent = [0.0, 0.0]

    def turn(self, served: Served, crowd: Crowd, database: int | None, seconds: float) -> None:
        """Let a crowd ask, and note the requests a second, and the CPU on both sides."""
        pids = served.pids()
        before = cpu(pids), cpu([database] if database else [])
        took, times = crowd.ask(seconds)
        after = cpu(pids), cpu([database] if database else [])
        self.rates.append(round(len(times) / took, 1))
        self._times += times
        for side in (0, 1):
            self._spent[side] += after[side] - before[side]

    def figures(self) -> Figures:
        """Return the rates, the percentiles in milliseconds, and µs of CPU of a request."""
        cuts = quantiles(self._times, n=100, method="inclusive")
        return {
            "rate": self.rates,
            "ms": [round(cuts[of - 1] * 1000, 2) for of in (50, 95, 99)],
            "cpu": [round(spent / len(self._times)) for spent in self._spent],
        }


def cpu(pids: Iterable[int]) -> float:
    return sum(map(machine.cpu_of, pids))


def measured(
    uri: str,
    rounds: int,
    tell: Tell,
    workers: Iterable[str] = WORKERS,
    groups: Sequence[Sequence[str]] = GROUPS,
) -> Figures:
    """Return the figures of every worker, number of connections, kind and contender."""
    database, cells = pid_of(uri), Figures()
    for worker in workers:
        cells[worker] = {str(number): {kind: {} for kind in KINDS} for number in CONNECTIONS}
        for names in groups:
            tell(f"throughput: {worker}, {', '.join(names)}")
            with served(uri, names, WORKERS[worker]) as apps, machine.beside_the_server():
                for number, kind, found in _of_group(apps, database, rounds):
                    cells[worker][str(number)][kind] |= found
    return {"seconds": SECONDS, "cells": cells}


def _of_group(
    apps: dict[str, Served], database: int | None, rounds: int
) -> Iterator[tuple[int, str, Figures]]:
    """Yield the figures of contenders that are up together, by connections and kind."""
    cookies = {
        name: [cookie_of(app.port) for _ in range(max(CONNECTIONS))] for name, app in apps.items()
    }
    for number in CONNECTIONS:
        for kind in KINDS:
            requests = {
                name: [[request_of(kind, one)] for one in of[:number]]
                for name, of in cookies.items()
            }
            yield number, kind, in_turns(apps, requests, database, rounds)


def in_turns(
    apps: dict[str, Served],
    requests: dict[str, list[Any]],
    database: int | None,
    rounds: int,
) -> dict[str, Figures]:
    """Load one application after the other, several times, each time the other way around."""
    cells = {name: Cell() for name in apps}
    for turn in range(rounds + 1):
        for name in list(apps)[:: -1 if turn % 2 else 1]:
            with Crowd(apps[name].port, requests[name]) as crowd:
                if turn:
                    cells[name].turn(apps[name], crowd, database, SECONDS)
                else:  # This one only warms up.
                    crowd.ask(SECONDS / 2)
    return {name: cell.figures() for name, cell in cells.items()}


def by_sessions(uri: str, sizes: Sequence[int], rounds: int, tell: Tell) -> Figures:
    """Return the figures of the floor and of ours, by how many sessions are stored.

    The browsers ask for sessions throughout the collection, so the database needs all of it. They
    are as if visited just now: the floor renews none, and of ours none is to be due.
    """
    found: Figures = {}
    database = pid_of(uri)
    tokens: dict[str, list[str]] = {}
    with served(uri, GROUPS[0][:2], WORKERS["gthread"]) as apps, MongoClient[Any](uri) as client:
        names = {name: cookie_of(app.port).partition("=")[0] for name, app in apps.items()}
        for size in sizes:
            tell(f"storing {size:,} sessions twice")
            for name, app in apps.items():
                tokens[name] = fill_up(client[app.database]["sessions"], size, tell)
            for name, app in apps.items():
                visit(client[app.database]["sessions"], tokens[name])
            tell(f"throughput with {size:,} sessions")
            with machine.beside_the_server():
                found[str(size)] = {
                    kind: in_turns(apps, _asked(kind, names, tokens), database, rounds)
                    for kind in KINDS
                }
    return found


def _asked(
    kind: str, names: dict[str, str], tokens: dict[str, list[str]], number: int = 8
) -> dict[str, list[Any]]:
    """Return the requests of each browser, which share the sessions among them.

    A turn goes on where the one before it ended, or it would ask for the same few sessions.
    """
    return {
        name: [
            cycle([request_of(kind, f"{cookie}={token}") for token in tokens[name][first::number]])
            for first in range(number)
        ]
        for name, cookie in names.items()
    }


def pid_of(uri: str) -> int | None:
    """Return the process of the server, if it runs on this machine."""
    with MongoClient[Any](uri) as client:
        here = client.address is not None and client.address[0] in ("127.0.0.1", "localhost")
        try:
            pid = client.admin.command("serverStatus").get("pid") if here else None
        except PyMongoError:
            return None
    return int(pid) if pid else None

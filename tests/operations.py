"""How long the command takes, and how much memory, with many sessions.

`python -m tests.operations --sessions 200000` fills a database of the embedded server, or of
`MONGODB_URI`, and prints a line for each subcommand; the database is dropped in the end.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

from pymongo import MongoClient

from mongosession_wsgi import MongoStore
from mongosession_wsgi.document import id_of
from mongosession_wsgi.embedded import EmbeddedServer

from . import tool

AT_A_TIME = 2000
OWNERS = 1000
SEED = 20
COMMANDS = (
    ("--version",),
    ("stats",),
    ("list",),
    ("list", "--owner", "user7"),
    ("list", "--larger-than", "4k"),
    ("list", "--newest", "20"),
    ("revoke", "--owner", "user7", "--yes"),
    ("revoke", "--idle-for", "10d", "--yes"),
    ("purge",),
)
MEASURED = """
import atexit, re, sys
from pathlib import Path
from mongosession_wsgi.cli import main

def peak():
    # Linux counts into ru_maxrss what the parent had when it started this process.
    found = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
    print(found[1], file=sys.stderr)

atexit.register(peak)
main()
"""


def documents(count: int) -> Iterator[dict[str, Any]]:
    """Yield sessions of all sizes and ages; half of them are logged in, a few expired."""
    chance, now = random.Random(SEED), datetime.now(timezone.utc)
    for number in range(count):
        created_at = now - timedelta(days=25) * chance.random() ** 3
        seen_at = created_at + (now - created_at) * chance.random()
        yield {
            "_id": id_of(str(number)),
            "v": 1,
            "data": {"cart": "x" * int(50 * 1.5 ** (12 * chance.random()))},
            "owner": f"user{number % OWNERS}" if chance.random() < 0.5 else None,
            "created_at": created_at,
            "seen_at": seen_at,
            "expires_at": seen_at + timedelta(days=14),
        }


def fill(uri: str, database: str, count: int) -> None:
    store = MongoStore({"mongodb_host": uri, "mongodb_session_db": database})
    store.ensure_indexes()
    store.close()
    with MongoClient[Any](uri) as client:
        batch: list[dict[str, Any]] = []
        for document in documents(count):
            batch.append(document)
            if len(batch) == AT_A_TIME:
                client[database].sessions.insert_many(batch, ordered=False)
                batch = []
        if batch:
            client[database].sessions.insert_many(batch, ordered=False)


def measured(command: tuple[str, ...], environment: dict[str, str]) -> str:
    """Run a subcommand; return its time, the peak memory of its process, and what it came to."""
    begun = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", MEASURED, *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    took = time.monotonic() - begun
    lines = process.stdout.splitlines()
    came_to = lines[0] if len(lines) == 1 else f"{len(lines):,} lines"
    if process.returncode:
        came_to = f"exit code {process.returncode}: {process.stderr}"
    peak = int(process.stderr.split()[-1])
    return f"{' '.join(command):32} {took:7.1f} s {peak / 1024:6.0f} MiB  {came_to}"


@contextmanager
def server() -> Iterator[str]:
    uri = os.environ.get("MONGODB_URI")
    if uri:
        yield uri
        return
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(folder) as embedded:
        yield embedded.uri


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=200_000)
    count = parser.parse_args().sessions
    database = f"operations_{os.getpid()}"
    with server() as uri:
        try:
            begun = time.monotonic()
            fill(uri, database, count)
            print(f"{count:,} sessions stored in {time.monotonic() - begun:.1f} s", flush=True)
            environment = {"MONGODB_URI": uri, "MONGOSESSION_DB": database}
            for command in COMMANDS:
                print(measured(command, environment), flush=True)
        finally:
            with MongoClient[Any](uri) as client:
                client.drop_database(database)


if __name__ == "__main__":
    tool.run(main, "operations")

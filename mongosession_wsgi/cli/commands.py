"""The subcommands of `mongosession`: results to stdout; progress, questions, errors to stderr."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from .. import __version__
from ..embedded import serve
from ..errors import SessionError, logger
from ..store import MongoStore, utc_now
from . import console, streams
from .administration import Administration, NotAllowedError, Selection, Summary
from .arguments import TakesIds, argument, as_id, as_ids, as_size, as_span, option
from .connection import Connection, reach
from .console import counted
from .health import Health
from .judging import has_ttl
from .reasons import without_users
from .streams import say
from .verdicts import Finding, Verdict

F = TypeVar("F", bound=Callable[..., Any])

_FAILED, _INTERRUPTED, _PIPE_BROKEN = 1, 130, 141
_ENDS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""The signals that end the embedded server; a terminal sends the second as it is closed.

Windows has no second one.
"""
_MOST = 1_000_000_000
"""A number of sessions that any server takes."""
_LONGEST = timedelta(minutes=10)
"""The time for one MongoDB command that looks at all sessions."""
_NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO}
_NOTHING = "No session matches."


class _Program(click.Group):
    """All commands; click itself would exit with 1 if a pipe is broken."""

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        with _silent_ends():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _silent_ends():
                return super().invoke(ctx)
        except SessionError as error:
            console.failure(error, _connection().secrets)
            ctx.exit(_FAILED)


def _examples(*lines: str) -> str:
    """Return an epilog that click does not wrap."""
    return "\b\nExamples:\n" + "\n".join(f"  mongosession {line}" for line in lines)


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None:
        setattr(ctx.ensure_object(Connection), str(param.name), value)


def _connecting(command: F) -> F:
    """Give a command, or the program, the options for where the sessions are."""
    told: dict[str, Any] = {"expose_value": False, "callback": _remember}
    for give in reversed((
        option("--settings", "file", metavar="FILE", type=click.Path(path_type=Path),
                     help="The application's settings: YAML, JSON or INI.", **told),
        option("--section", metavar="NAME", help="The section of an INI file.", **told),
        option("--uri", metavar="URI", help="Instead of MONGODB_URI.", **told),
        option("--db", "database", metavar="NAME", help="Instead of MONGOSESSION_DB.",
                     **told),
        option("--coll", "collection", metavar="NAME", help="Instead of MONGOSESSION_COLL.",
                     **told),
    )):  # fmt: skip
        command = give(command)
    return command


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_examples(
        "check --settings production.yaml",
        "--settings production.yaml list --owner alice",
        "MONGODB_URI=mongodb://db.example MONGOSESSION_DB=shop mongosession stats",
    ).replace("  mongosession MONGODB_URI", "  MONGODB_URI"),
)
@_connecting
@click.version_option(__version__, prog_name="mongosession")
def program() -> None:
    """Look after the web sessions that mongosession_wsgi keeps in MongoDB.

    Say where the sessions are by --settings FILE, by --uri, --db and --coll, before the subcommand
    or after it, or by MONGODB_URI, MONGOSESSION_DB and MONGOSESSION_COLL in the environment.
    """
    click.get_current_context().ensure_object(Connection)


@program.command(
    epilog=_examples("check --settings production.yaml", "check --db shop || mail ops")
)
@_connecting
@option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(as_json: bool) -> None:
    """Look at the connection, the server, the indexes and the clocks, and try a session.

    Prints a line with a verdict for each, and exits with 1 if anything is wrong. The session is
    deleted again.
    """
    connection = _connection()
    found: list[Finding] = []
    with _store(None) as store:
        for one in Health(store, reach=reach, hint=connection.hint).findings():
            found.append(one)
            if not as_json:
                console.finding(one, connection.secrets)
    if as_json:
        click.echo(json.dumps(console.findings_as_json(found, connection.secrets)))
    if Verdict.WRONG in {one.verdict for one in found}:
        _exit(_FAILED)


@program.command(epilog=_examples("init --db shop", "init --settings production.yaml --sharded"))
@_connecting
@option("--sharded", is_flag=True, help="Also print how to shard the collection.")
def init(sharded: bool) -> None:
    """Make the indexes that are missing.

    The TTL index of version 1 is replaced: it deletes all documents that expire, not only sessions.
    """
    with _administration() as administration:
        old = _drop_old_index(administration)
        try:
            administration.store.ensure_indexes()
        except SessionError:
            if old is not None:
                say(f"{old} was dropped, and nothing is in its place yet. Run this again.")
            raise
        made = administration.indexes()
        collection = administration.store.collection
    name, database = collection.full_name, collection.database.name
    click.echo(f"{name} has its indexes: TTL on expires_at, and owner.", err=sharded)
    if old is not None:
        click.echo(f"{old}, which deleted other documents too, is replaced.", err=sharded)
    if made is not None and not has_ttl(made):
        purge_line = _connection().hint("purge")
        say(f"This server has no TTL, so {purge_line} has to delete expired sessions.")
    if sharded:
        click.echo(f"sh.enableSharding({json.dumps(database)})")
        click.echo(f'sh.shardCollection({json.dumps(name)}, {{ _id: "hashed" }})')


@program.command(epilog=_examples("stats --db shop", "stats --db shop --json | jq .live"))
@_connecting
@option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def stats(as_json: bool) -> None:
    """Count the sessions, and show how large and how old they are."""
    with _administration() as administration:
        found = administration.statistics()
        if not found.live + found.expired:
            _say_doubt(administration)
    if as_json:
        click.echo(json.dumps(console.as_json(found)))
    else:
        console.statistics(found)


@program.command(
    "list",
    epilog=_examples(
        "list --owner alice",
        "list --newest 10",
        "list --idle-for 7d --larger-than 10k | cut -f1",
    ),
)
@_connecting
@option("--owner", metavar="O", help="Only sessions of this owner.")
@option(
    "--idle-for",
    callback=as_span,
    metavar="TIME",
    help="Only sessions not used for so long: 2h, 30d.",
)
@option(
    "--larger-than",
    callback=as_size,
    metavar="BYTES",
    help="Only sessions of more bytes: 500, 10k, 1M.",
)
@option("--newest", type=click.IntRange(1, _MOST), metavar="N", help="The N that were used last.")
@option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def list_(
    owner: str | None,
    idle_for: timedelta | None,
    larger_than: int | None,
    newest: int | None,
    as_json: bool,
) -> None:
    """List the live sessions, without their data.

    In a pipe, a line has, between tabs: id, owner, the moments of creation, last use and expiry,
    and the size in bytes. The lines come in no order, unless you give --newest.
    """
    selection = Selection(owner, idle_for, larger_than)
    with (
        _administration() as administration,
        closing(administration.sessions(selection, newest=newest or 0)) as found,
    ):
        noted = _noted(administration, found)
        lines = console.json_rows(noted) if as_json else console.rows(noted, utc_now())
        for line in lines:
            sys.stdout.write(line + "\n")


@program.command(cls=TakesIds, epilog=_examples("show ID", "show ID --data"))
@_connecting
@argument("id", callback=as_id)
@option("--data", is_flag=True, help="Also the data that the application keeps in it.")
@option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(id: str, data: bool, as_json: bool) -> None:
    """Show one session by its public id, the first column of list."""
    with _administration() as administration:
        whole = administration.whole(id) if data else None
        summary, contents = whole or (administration.session(id), None)
        doubt = administration.doubt() if summary is None else None
    if summary is None:
        words = f"no live session has the id {id}"
        raise click.ClickException(words if doubt is None else f"{words}\n{doubt}")
    if data and whole is None:
        words = f"the data of {id} cannot be read, so the application finds no session there"
        raise click.ClickException(words)
    console.session(summary, contents, as_json=as_json)


@program.command(
    cls=TakesIds,
    epilog=_examples(
        "revoke ID ID",
        "revoke --owner alice --yes",
        "revoke --idle-for 30d --dry-run",
        "list --larger-than 1M | cut -f1 | xargs mongosession revoke --yes",
    ),
)
@_connecting
@argument("ids", nargs=-1, metavar="[ID]...", callback=as_ids)
@option("--owner", metavar="O", help="All sessions of this owner.")
@option(
    "--idle-for",
    callback=as_span,
    metavar="TIME",
    help="All sessions not used for so long: 2h, 30d.",
)
@option("--all", "every", is_flag=True, help="All sessions.")
@option("--yes", is_flag=True, help="Do not ask.")
@option("--dry-run", is_flag=True, help="Only count.")
def revoke(
    ids: tuple[str, ...],
    owner: str | None,
    idle_for: timedelta | None,
    every: bool,
    yes: bool,
    dry_run: bool,
) -> None:
    """End sessions, after a question: by their ids, or all that are selected.

    You may interrupt the command, and run it again to go on. --owner with --idle-for ends sessions
    to which both apply. Sessions that begin in the meantime may live on.
    """
    selects = owner is not None or idle_for is not None
    if bool(ids) + selects + every != 1:
        raise click.UsageError("which sessions? Give ids, or --owner, --idle-for or both, or --all")
    with _administration() as administration:
        selection = Selection(owner, idle_for)
        total = administration.count_ids(ids) if ids else administration.count(selection)
        if dry_run:
            click.echo(f"{counted(total, 'session')} would be ended.")
        elif not (total or yes):
            click.echo(_NOTHING)
        elif not (yes or _agreed(f"End {counted(total, 'session')}?")):
            say("Nothing was ended.")
        else:
            ending = map(administration.store.revoke, ids) if ids else administration.end(selection)
            _work("ended", "session", total, ending, _NOTHING)
        if not total:
            _say_doubt(administration)


@program.command(epilog=_examples("purge --db shop", "purge --settings production.yaml --dry-run"))
@_connecting
@option("--dry-run", is_flag=True, help="Only count.")
def purge(dry_run: bool) -> None:
    """Delete expired sessions, for a server whose TTL monitor is off."""
    with _administration() as administration:
        total = administration.count_expired()
        if dry_run:
            click.echo(f"{counted(total, 'expired document')} would be deleted.")
        else:
            _work("deleted", "expired document", total, administration.purge())
        if not total:
            _say_doubt(administration)


@program.command(epilog=_examples("embedded", "embedded ./data --port 27017"))
@argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@option("--port", type=click.IntRange(0, 65535), default=0, help="0 takes a free one.")
def embedded(folder: Path | None, port: int) -> None:
    """Run the embedded server until Ctrl-C, and print its URI.

    The data is in FOLDER, which is made if need be; without FOLDER, in a folder that is deleted in
    the end. The server is for trying things out, not for production.
    """
    for number in _ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # As nohup has it.
            signal.signal(number, _end_in_order)
    with tempfile.TemporaryDirectory() as temporary:
        serve(folder or temporary, port)


def _end_in_order(*_: object) -> NoReturn:
    """End the command; a terminal that is closed may send its signal twice."""
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


def run() -> int:
    """Run the command line; return the exit code."""
    streams.prepare()
    logger.setLevel(logging.ERROR)  # The command has its own words for warnings.
    try:
        code = _ran()
        sys.stdout.flush()
    except BrokenPipeError:
        _end_in_silence()
    except OSError as error:
        streams.drop_output(sys.stdout)
        lost = error.errno in _NOT_WRITTEN
        say(f"Error: {f'the output could not be written: {error.strerror}' if lost else error}")
        return _FAILED
    return code


def _ran() -> int:
    try:
        return program.main(prog_name="mongosession", standalone_mode=False) or 0
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(file=shown)
        say(without_users(shown.getvalue().rstrip("\n")))  # A URI in a wrong place may be quoted.
        return error.exit_code
    except click.Abort:
        say("Interrupted.")
        return _INTERRUPTED


@contextmanager
def _silent_ends() -> Iterator[None]:
    """Exit without a word if the reader of the output has enough."""
    try:
        yield
    except BrokenPipeError:
        _end_in_silence()


def _end_in_silence() -> NoReturn:
    streams.drop_output(sys.stdout)
    sys.exit(_PIPE_BROKEN)


def _exit(code: int) -> NoReturn:
    click.get_current_context().exit(code)


def _connection() -> Connection:
    return click.get_current_context().ensure_object(Connection)


@contextmanager
def _store(longest: timedelta | None) -> Iterator[MongoStore]:
    store = _connection().store(os.environ, longest)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _administration() -> Iterator[Administration]:
    with _store(_LONGEST) as store:
        reach(store)
        yield Administration(store, times=_connection().times(store))


def _drop_old_index(administration: Administration) -> str | None:
    """Drop the TTL index of version 1; return its name, or None if there is none to drop."""
    name = administration.old_index()
    if name is None:
        return None
    try:
        administration.drop_index(name)
    except NotAllowedError:
        say(f"{name} stays, which deletes other documents too: this user may not drop it.")
        return None
    return name


def _noted(administration: Administration, found: Iterator[Summary]) -> Iterator[Summary]:
    """Pass sessions on; at the end, explain a list that is empty or without sizes."""
    count = unsized = 0
    for one in found:
        count += 1
        unsized += one.size is None
        yield one
    if unsized:
        say("The sizes are unknown: this server does not tell them ($bsonSize).")
    if not count:
        if sys.stdout.isatty():
            say(_NOTHING)
        _say_doubt(administration)


def _say_doubt(administration: Administration) -> None:
    doubt = administration.doubt()
    if doubt is not None:
        say(doubt)


def _agreed(question: str) -> bool:
    agreed = streams.ask(question)
    if agreed is None and not sys.stdin.isatty():
        raise click.ClickException("there is nobody to ask; give --yes to go on without a question")
    return bool(agreed)


def _work(done: str, what: str, total: int, batches: Iterator[int], nothing: str = "") -> None:
    """Run through `batches` of counts with a progress bar, and print the sum."""
    count = 0
    try:
        with console.progress(done.capitalize(), total) as move:
            for batch in batches:
                count += batch
                move(count)
    except KeyboardInterrupt:
        so_far = f"{count:,} of {counted(total, what)} {done}"
        say(f"Interrupted: {so_far}. Run it again to go on.")
        _exit(_INTERRUPTED)
    except SessionError:
        say(f"{count:,} of {counted(total, what)} {done} before it failed.")
        raise
    click.echo(nothing if nothing and not count else f"{counted(count, what)} {done}.")

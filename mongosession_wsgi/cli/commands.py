"""The subcommands of `mongosession`: results to stdout; progress, questions, errors to stderr."""

from __future__ import annotations

import io
import json
import os
import re
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
from ..errors import SessionError
from ..settings import span
from ..store import MongoStore, utc_now
from . import console
from .administration import Administration, Selection
from .connection import Connection
from .health import Health, Verdict

F = TypeVar("F", bound=Callable[..., Any])

_FAILED, _MISUSED, _INTERRUPTED, _PIPE_BROKEN = 1, 2, 130, 141
_LONGEST = timedelta(minutes=10)
"""The time for one command to MongoDB that looks at all sessions."""
_ID = re.compile("[A-Za-z0-9_-]{43}")
_UNITS = {"": 1, "k": 1024, "m": 1024**2}


def _span(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    """Read a length of time, as the settings take it."""
    try:
        return None if value is None else span(value)
    except ValueError as error:
        raise click.BadParameter(f"must be {error}", ctx, param) from None


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read a number of bytes."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,12})\s*([km]?)i?b?", value.strip().lower())
    if match is None:
        raise click.BadParameter("must be bytes, such as 500, 10k or 1M", ctx, param)
    return int(match[1]) * _UNITS[match[2]]


def _id(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Check a public id, so that a mistyped option is not taken for one."""
    if not _ID.fullmatch(value):
        message = f"{value!r} is no public id: they have 43 characters, and list shows them"
        raise click.BadParameter(message, ctx, param)
    return value


def _ids(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Check public ids, and leave out what is given twice."""
    return tuple(dict.fromkeys(_id(ctx, param, one) for one in value))


class _TakesIds(click.Command):
    """A command whose arguments are ids, of which one in 64 begins like an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" not in args:
            ids = [one for one in args if one.startswith("-") and _ID.fullmatch(one)]
            args = [one for one in args if one not in ids] + ["--", *ids]
        return super().parse_args(ctx, args)


class _Program(click.Group):
    """All commands; click itself would exit with 1 where a pipe is broken."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _end_in_silence()


def _examples(*lines: str) -> str:
    """Return an epilog that click does not wrap."""
    return "\b\nExamples:\n" + "\n".join(f"  mongosession {line}" for line in lines)


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None:
        setattr(ctx.ensure_object(Connection), str(param.name), value)


def _connecting(command: F) -> F:
    """Give a command, or the program, the options that say where the sessions are."""
    told: dict[str, Any] = {"expose_value": False, "callback": _remember}
    for option in reversed((
        click.option("--settings", "file", metavar="FILE", type=click.Path(path_type=Path),
                     help="The application's settings: YAML, JSON or INI.", **told),
        click.option("--section", metavar="NAME", help="The section of an INI file.", **told),
        click.option("--uri", metavar="URI", help="Instead of MONGODB_URI.", **told),
        click.option("--db", "database", metavar="NAME", help="Instead of MONGOSESSION_DB.",
                     **told),
        click.option("--coll", "collection", metavar="NAME", help="Instead of MONGOSESSION_COLL.",
                     **told),
    )):  # fmt: skip
        command = option(command)
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

    Where they are is told by --settings FILE, by --uri, --db and --coll, or by MONGODB_URI,
    MONGOSESSION_DB and MONGOSESSION_COLL in the environment; before the subcommand or after it.
    """


@program.command(
    epilog=_examples("check --settings production.yaml", "check --db shop || mail ops")
)
@_connecting
def check() -> None:
    """Look at the connection, the server, the indexes and the clocks, and try a session.

    Prints a line with a verdict for each, and exits with 1 if anything is wrong. The session that
    is tried is deleted again.
    """
    with _store(None) as store:
        wrong = False
        for found in Health(store).findings():
            console.finding(found)
            wrong |= found.verdict is Verdict.WRONG
    if wrong:
        sys.exit(_FAILED)


@program.command(epilog=_examples("init --db shop", "init --settings production.yaml --sharded"))
@_connecting
@click.option("--sharded", is_flag=True, help="Also print how to shard the collection.")
def init(sharded: bool) -> None:
    """Make the indexes; nothing happens to those that are there."""
    with _store(_LONGEST) as store:
        store.ensure_indexes()
        name = store.collection.full_name
        click.echo(f"{name} has its indexes: TTL on expires_at, and owner.", err=sharded)
    if sharded:
        click.echo(f"sh.enableSharding({json.dumps(store.collection.database.name)})")
        click.echo(f'sh.shardCollection({json.dumps(name)}, {{ _id: "hashed" }})')


@program.command(epilog=_examples("stats --db shop", "stats --db shop --json | jq .live"))
@_connecting
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def stats(as_json: bool) -> None:
    """Count the sessions, and show how large and how old they are."""
    with _administration() as administration:
        found = administration.statistics()
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
@click.option("--owner", metavar="O", help="Only those of this owner.")
@click.option(
    "--idle-for", callback=_span, metavar="TIME", help="Only those not used for so long: 2h, 30d."
)
@click.option(
    "--larger-than", callback=_size, metavar="BYTES", help="Only those of more bytes: 500, 10k, 1M."
)
@click.option("--newest", type=click.IntRange(1), metavar="N", help="The N that were used last.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def list_(
    owner: str | None,
    idle_for: timedelta | None,
    larger_than: int | None,
    newest: int | None,
    as_json: bool,
) -> None:
    """List the live sessions, without their data.

    In a pipe, a line has, between tabs: id, owner, when it was created, last used, expires, and
    its size in bytes. They come in no order, unless --newest is given.
    """
    selection = Selection(owner, idle_for, larger_than)
    with (
        _administration() as administration,
        closing(administration.sessions(selection, newest=newest or 0)) as found,
    ):
        lines = console.json_rows(found) if as_json else console.rows(found, utc_now())
        for line in lines:
            sys.stdout.write(line + "\n")


@program.command(cls=_TakesIds, epilog=_examples("show ID", "show ID --data"))
@_connecting
@click.argument("id", callback=_id)
@click.option("--data", is_flag=True, help="Also what the application keeps in it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(id: str, data: bool, as_json: bool) -> None:
    """Show one session by its public id, the first column of list."""
    with _administration() as administration:
        summary = administration.session(id)
        contents = administration.data(id) if data else None
    if summary is None:
        raise click.ClickException(f"no live session has the id {id}")
    console.session(summary, contents, as_json=as_json)


@program.command(
    cls=_TakesIds,
    epilog=_examples(
        "revoke ID ID",
        "revoke --owner alice --yes",
        "revoke --idle-for 30d --dry-run",
        "list --larger-than 1M | cut -f1 | xargs mongosession revoke --yes",
    ),
)
@_connecting
@click.argument("ids", nargs=-1, metavar="[ID]...", callback=_ids)
@click.option("--owner", metavar="O", help="All of this owner.")
@click.option(
    "--idle-for",
    callback=_span,
    metavar="TIME",
    help="All that were not used for so long: 2h, 30d.",
)
@click.option("--all", "every", is_flag=True, help="All there are.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say how many it would be.")
def revoke(
    ids: tuple[str, ...],
    owner: str | None,
    idle_for: timedelta | None,
    every: bool,
    yes: bool,
    dry_run: bool,
) -> None:
    """End sessions, after a question: by their ids, or all that are selected.

    It may be interrupted, and run again to go on. --owner with --idle-for ends those to which
    both apply. Sessions that begin in the meantime may live on.
    """
    selects = owner is not None or idle_for is not None
    if bool(ids) + selects + every != 1:
        raise click.UsageError("which sessions? Give ids, or --owner, --idle-for or both, or --all")
    with _administration() as administration:
        selection = Selection(owner, idle_for)
        total = len(ids) if ids else administration.count(selection)
        if dry_run:
            click.echo(f"{total:,} sessions would be ended.")
        elif not _agreed(f"End {total:,} sessions?", yes):
            raise click.ClickException("nothing was ended")
        else:
            ending = map(administration.store.revoke, ids) if ids else administration.end(selection)
            _work("ended", "sessions", total, ending)


@program.command(epilog=_examples("purge --db shop", "purge --settings production.yaml --dry-run"))
@_connecting
@click.option("--dry-run", is_flag=True, help="Only say how many it would be.")
def purge(dry_run: bool) -> None:
    """Delete what has expired, for a server whose TTL monitor is off."""
    with _administration() as administration:
        total = administration.count_expired()
        if dry_run:
            click.echo(f"{total:,} expired documents would be deleted.")
        else:
            _work("deleted", "expired documents", total, administration.purge())


@program.command(epilog=_examples("embedded", "embedded ./data --port 27017"))
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0 takes a free one.")
def embedded(folder: Path | None, port: int) -> None:
    """Run the embedded server until Ctrl-C, and print its URI.

    Its data is in FOLDER, which is made if need be; without one, in a folder that is deleted in
    the end. It is for trying things out, not for production.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory() as temporary:
        serve(folder or temporary, port)


def run() -> int:
    """Run the command line; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        program.main(prog_name="mongosession", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SessionError as error:
        click.echo(f"Error: {error}", err=True)
        return _FAILED
    except click.Abort:
        click.echo("Interrupted.", err=True)
        return _INTERRUPTED
    except BrokenPipeError:
        _end_in_silence()
    return 0


def _end_in_silence() -> NoReturn:
    """Exit as a program does whose reader has enough."""
    # What is left in the buffer has nowhere to go; Python would complain at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(_PIPE_BROKEN)


@contextmanager
def _store(longest: timedelta | None) -> Iterator[MongoStore]:
    connection = click.get_current_context().find_object(Connection) or Connection()
    store = connection.store(os.environ, longest)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _administration() -> Iterator[Administration]:
    with _store(_LONGEST) as store:
        yield Administration(store)


def _agreed(question: str, yes: bool) -> bool:
    try:
        return yes or click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise click.ClickException("nobody is there to be asked; give --yes") from None


def _work(done: str, what: str, total: int, batches: Iterator[int]) -> None:
    """Do what yields counts, show how far it is, and say how far it came."""
    count = 0
    try:
        with console.progress(f"{done.capitalize()}", total) as bar:
            for batch in batches:
                count += batch
                bar.update(bar.task_ids[0], completed=count)
    except KeyboardInterrupt:
        click.echo(
            f"Interrupted: {count:,} of {total:,} {what} {done}. Run it again to go on.", err=True
        )
        sys.exit(_INTERRUPTED)
    except SessionError:
        click.echo(f"{count:,} of {total:,} {what} {done} before it failed.", err=True)
        raise
    click.echo(f"{count:,} {what} {done}.")

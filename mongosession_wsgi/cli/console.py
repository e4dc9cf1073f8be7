"""The output of the command: columns and colours on a terminal, fields between tabs in a pipe."""

from __future__ import annotations

import json
import shutil
import sys
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, NoReturn
from uuid import UUID

from bson import json_util
from bson.binary import UuidRepresentation
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from .administration import AGES, SIZES, Statistics, Summary
from .reasons import reason, without_users
from .streams import say
from .verdicts import Finding, Verdict

_STYLES = {Verdict.GOOD: "green", Verdict.NOTE: "yellow", Verdict.WRONG: "bold red"}
_JSON = json_util.JSONOptions(
    json_mode=json_util.JSONMode.RELAXED, uuid_representation=UuidRepresentation.STANDARD
)
_BAR = 40
_ID, _SPAN, _SIZE = 43, 4, 8
"""The widths of columns."""
_LEAST_TEXT, _GOOD_TEXT = 7, 16
_DRIVER = "The driver says: "
_SPANS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_SIZES = (("MiB", 1024**2), ("KiB", 1024))


def counted(count: int, what: str) -> str:
    """Return a number with its noun: 1 session, 2 sessions."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def printable(text: str) -> str:
    """Return `text` on one line, with a terminal's control characters escaped."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def in_size(size: float) -> str:
    """Return a number of bytes in a readable unit."""
    for unit, factor in _SIZES:
        if size >= factor:
            number = size / factor
            return f"{number:.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
    return f"{size:.0f} B"


def in_span(span: timedelta) -> str:
    """Return a length of time in one unit, cut off."""
    seconds = max(span.total_seconds(), 0)
    for unit, factor in _SPANS:
        if seconds >= factor:
            return f"{int(seconds // factor)}{unit}"
    return "0s"


def _or_plain(text: str, plain: str) -> str:
    """Return `text`, or `plain` if the encoding of stdout lacks its letters."""
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return plain
    return text


def _in_column(text: str, width: int) -> str:
    """Return `text` cut or filled to so many cells of a terminal; some letters take two."""
    text = printable(text)
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, width - 1) + _or_plain("…", "~")


class _Console(Console):
    """A console that leaves a broken pipe to the command; rich would exit with 1."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def _with_columns(console: Console) -> Console:
    """Give a console a width where `COLUMNS` is 0: rich would print nothing."""
    if console.width < 1:
        console.width = 80
    return console


def styled(line: Text) -> None:
    """Print a line that is never wrapped; without colours unless stdout is a terminal."""
    _with_columns(_Console(highlight=False)).print(line, soft_wrap=True)


def rows(summaries: Iterable[Summary], now: datetime) -> Iterator[str]:
    """Yield a line for each session: columns for a terminal, else fields between tabs."""
    if not sys.stdout.isatty():
        for one in summaries:
            moments = (one.created_at, one.seen_at, one.expires_at)
            texts = (*map(printable, (one.id, one.owner or "")), *map(datetime.isoformat, moments))
            size = "" if one.size is None else str(one.size)
            yield "\t".join((*texts, size, *(["sealed"] if one.sealed else [])))
        return
    room = shutil.get_terminal_size().columns - _ID - 2 * _SPAN - _SIZE - 6
    sealed = "sealed" if room >= 2 * _GOOD_TEXT + len("sealed") else "s"
    room -= len(sealed)
    label = max(room // 2, _LEAST_TEXT)
    owner = max(room - label, _LEAST_TEXT)
    head = (
        f"{'ID':{_ID}} {'OWNER':{owner}} {'LABEL':{label}} "
        f"{'IDLE':>{_SPAN}} {'LEFT':>{_SPAN}} {'SIZE':>{_SIZE}} {sealed.upper()}\n"
    )
    for one in summaries:
        idle, left = in_span(now - one.seen_at), in_span(one.expires_at - now)
        size = "-" if one.size is None else in_size(one.size)
        columns = ((one.id, _ID), (one.owner or "-", owner), (one.label or "-", label))
        shown = " ".join(_in_column(*column) for column in columns)
        row = f"{shown} {idle:>{_SPAN}} {left:>{_SPAN}} {size:>{_SIZE}}"
        yield f"{head}{row} {sealed if one.sealed else ' ' * len(sealed)}"
        head = ""


def json_rows(summaries: Iterable[Summary]) -> Iterator[str]:
    """Yield a JSON object for each session, in ASCII, which commands no terminal."""
    for one in summaries:
        yield json.dumps(_summary(one))


def session(summary: Summary, data: dict[str, Any] | None, *, as_json: bool) -> None:
    """Print one session, and its data unless that is None."""
    shown = _summary(summary)
    if data is not None and not summary.sealed:
        # Escaped, because a visitor may have typed anything.
        written = json_util.dumps(data, json_options=_JSON)
        shown["data"] = json.loads(written, object_hook=_with_uuid)
    if as_json:
        print(json.dumps(shown))
        return
    optional = ("label", "remembered", "sealed")
    for name, value in shown.items():
        if name != "data" and (value or name not in optional):
            print(f"{name:12}{_in_words(value)}")
    if "data" in shown:
        print(json.dumps(shown["data"], indent=2))
    elif data is not None:
        print(f"{'data':12}sealed: only the visitor's cookie opens it")


def _with_uuid(found: dict[str, Any]) -> dict[str, Any]:
    """Write the bytes of a UUID as people know them."""
    match found:
        case {"$binary": {"base64": str(text), "subType": "04"}}:
            with suppress(ValueError):
                return {"$uuid": str(UUID(bytes=b64decode(text)))}
    return found


def _in_words(value: object) -> str:
    if isinstance(value, str):
        return printable(value)
    return "-" if value is None else "yes" if value is True else str(value)


def _summary(one: Summary) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in one._asdict().items()
    }


def finding(found: Finding, secrets: Iterable[str]) -> None:
    """Print one line of a health check, and below it the driver's words for an error."""
    verdict = Text(f"{found.verdict.value:5}", _STYLES[found.verdict])
    styled(Text.assemble(verdict, f"  {found.what:20} {printable(without_users(found.words))}"))
    words = None if found.error is None else reason(found.error, secrets)
    if words is not None:
        styled(Text(f"{'':28}{_DRIVER}{printable(words)}"))


def findings_as_json(findings: Iterable[Finding], secrets: Iterable[str]) -> dict[str, Any]:
    """Return a health check for programs."""
    lines = [
        {
            "what": found.what,
            "verdict": found.verdict.value.lower(),
            "words": without_users(found.words),
            "driver": None if found.error is None else reason(found.error, secrets),
        }
        for found in findings
    ]
    return {"well": all(line["verdict"] != "wrong" for line in lines), "findings": lines}


def failure(error: BaseException, secrets: Iterable[str] = ()) -> None:
    """Print an error of ours to stderr, and below it the driver's words."""
    words = reason(error, secrets)
    say(
        f"Error: {without_users(str(error))}",
        *([] if words is None else [f"{_DRIVER}{printable(words)}"]),
    )


def statistics(found: Statistics) -> None:
    """Print the counts, and a histogram of each kind of size and age."""
    for what, count in (
        ("live", found.live),
        ("  logged in", found.logged_in),
        ("  anonymous", found.anonymous),
        ("  sealed", found.sealed),
        ("expired", found.expired),
    ):
        styled(Text(f"{what:14}{count:>12,}"))
    if not found.sized:
        styled(Text(f"{'size':14}{'unknown':>12}  this server does not tell it ($bsonSize)"))
    elif found.live:
        mean = found.bytes / found.live
        styled(Text(f"{'size':14}{in_size(found.bytes):>12}  "
                    f"mean {in_size(mean)}, largest {in_size(found.largest)}"))  # fmt: skip
    sizes, ages = [in_size(size) for size in SIZES], [in_span(age) for age in AGES]
    if found.sized:
        _histogram("Size", found.sizes, sizes)
    _histogram("Age, since created or logged in", found.ages, ages)
    _histogram("Idle, since last used", found.idle, ages)


def _histogram(title: str, counts: Counter[int], bounds: Sequence[str]) -> None:
    styled(Text(f"\n{title}", "bold"))
    most, block = max(counts.values(), default=0) or 1, _or_plain("█", "#")
    for label, count in buckets(counts, bounds):
        bar = block * round(_BAR * count / most)
        styled(Text.assemble(f"  {label:>10} {count:>10,} ", (bar, "cyan")))


def as_json(found: Statistics) -> dict[str, Any]:
    """Return the statistics for programs: each bucket with the bound that it is below, or null."""
    ages = [age.total_seconds() for age in AGES]
    return {
        "live": found.live,
        "logged_in": found.logged_in,
        "anonymous": found.anonymous,
        "sealed": found.sealed,
        "expired": found.expired,
        "bytes": found.bytes if found.sized else None,
        "largest_bytes": found.largest if found.sized else None,
        "sizes": _buckets(found.sizes, "below_bytes", SIZES) if found.sized else None,
        "ages": _buckets(found.ages, "below_seconds", ages),
        "idle": _buckets(found.idle, "below_seconds", ages),
    }


def _buckets(counts: Counter[int], name: str, bounds: Sequence[float]) -> list[dict[str, Any]]:
    return [{name: bound, "count": counts[n]} for n, bound in enumerate((*bounds, None))]


def buckets(counts: Counter[int], bounds: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield the label and the count of each bucket."""
    for bucket in range(len(bounds) + 1):
        label = f"< {bounds[bucket]}" if bucket < len(bounds) else f">= {bounds[-1]}"
        yield label, counts[bucket]


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr, if that is a terminal; yield the function that moves it."""
    console = _with_columns(Console(stderr=True))
    if not (total and console.is_terminal):
        yield lambda _: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.update(task, completed=count)

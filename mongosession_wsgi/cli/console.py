"""What the command shows: in columns and colours on a terminal, by tabs in a pipe."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, NoReturn

from bson import json_util
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from .administration import AGES, SIZES, Statistics, Summary
from .health import Finding, Verdict

_STYLES = {Verdict.GOOD: "green", Verdict.NOTE: "yellow", Verdict.WRONG: "bold red"}
_JSON = json_util.RELAXED_JSON_OPTIONS
_BAR = 40
_SPANS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_SIZES = (("MiB", 1024**2), ("KiB", 1024))


def printable(text: str) -> str:
    """Return `text` on one line, and without what would command a terminal."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def in_size(size: float) -> str:
    """Return a number of bytes in the unit that people would take."""
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


class _Console(Console):
    """A console that leaves a broken pipe to the command; rich would exit with 1."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def styled(line: Text) -> None:
    """Print a line that is never wrapped; without colours unless stdout is a terminal."""
    _Console(highlight=False).print(line, soft_wrap=True)


def rows(summaries: Iterable[Summary], now: datetime) -> Iterator[str]:
    """Yield a line for each session: columns for a terminal, else fields between tabs."""
    if not sys.stdout.isatty():
        for one in summaries:
            moments = (one.created_at, one.seen_at, one.expires_at)
            texts = (one.id, printable(one.owner or ""), *map(datetime.isoformat, moments))
            yield "\t".join((*texts, str(one.size)))
        return
    width = max(shutil.get_terminal_size().columns - 68, 8)
    yield f"{'ID':43} {'OWNER':{width}} {'IDLE':>5} {'LEFT':>5} {'SIZE':>9}"
    for one in summaries:
        owner = "-" if one.owner is None else printable(one.owner)
        owner = owner if len(owner) <= width else owner[: width - 1] + "…"
        idle, left = in_span(now - one.seen_at), in_span(one.expires_at - now)
        yield f"{one.id:43} {owner:{width}} {idle:>5} {left:>5} {in_size(one.size):>9}"


def json_rows(summaries: Iterable[Summary]) -> Iterator[str]:
    """Yield a JSON object for each session, in ASCII, which commands no terminal."""
    for one in summaries:
        yield json.dumps(_summary(one))


def session(summary: Summary, data: dict[str, Any] | None, *, as_json: bool) -> None:
    """Print one session, and its data unless that is None."""
    shown = _summary(summary)
    if data is not None:
        shown["data"] = json.loads(json_util.dumps(data, json_options=_JSON))
    if as_json:
        print(json.dumps(shown))
        return
    for name, value in shown.items():
        if name != "data":
            print(f"{name:12}{printable(value) if isinstance(value, str) else value}")
    if data is not None:
        # Escaped, because it may hold anything that a visitor typed.
        print(json.dumps(shown["data"], indent=2))


def _summary(one: Summary) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in one._asdict().items()
    }


def finding(found: Finding) -> None:
    """Print one line of a health check."""
    verdict = Text(f"{found.verdict.value:5}", _STYLES[found.verdict])
    styled(Text.assemble(verdict, f"  {found.what:20} {found.words}"))


def statistics(found: Statistics) -> None:
    """Print the counts, and a histogram of each kind of size and age."""
    for what, count in (
        ("live", found.live),
        ("  logged in", found.logged_in),
        ("  anonymous", found.anonymous),
        ("expired", found.expired),
    ):
        styled(Text(f"{what:14}{count:>12,}"))
    if found.live:
        mean = found.bytes / found.live
        styled(Text(f"{'size':14}{in_size(found.bytes):>12}  "
                    f"mean {in_size(mean)}, largest {in_size(found.largest)}"))  # fmt: skip
    sizes, ages = [in_size(size) for size in SIZES], [in_span(age) for age in AGES]
    for title, counts, bounds in (
        ("Size", found.sizes, sizes),
        ("Age, since created or logged in", found.ages, ages),
        ("Idle, since last used", found.idle, ages),
    ):
        styled(Text(f"\n{title}", "bold"))
        for label, count in histogram(counts, bounds):
            bar = "█" * round(_BAR * count / (max(counts.values(), default=0) or 1))
            styled(Text.assemble(f"  {label:>10} {count:>10,} ", (bar, "cyan")))


def as_json(found: Statistics) -> dict[str, Any]:
    """Return the statistics for programs: each bucket with the bound that it is below, or null."""
    ages = [age.total_seconds() for age in AGES]
    return {
        "live": found.live,
        "logged_in": found.logged_in,
        "anonymous": found.anonymous,
        "expired": found.expired,
        "bytes": found.bytes,
        "largest_bytes": found.largest,
        "sizes": _buckets(found.sizes, "below_bytes", SIZES),
        "ages": _buckets(found.ages, "below_seconds", ages),
        "idle": _buckets(found.idle, "below_seconds", ages),
    }


def _buckets(counts: Counter[int], name: str, bounds: Sequence[float]) -> list[dict[str, Any]]:
    return [{name: bound, "count": counts[n]} for n, bound in enumerate((*bounds, None))]


def histogram(counts: Counter[int], bounds: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield the label and the count of each bucket."""
    for bucket in range(len(bounds) + 1):
        label = f"< {bounds[bucket]}" if bucket < len(bounds) else f">= {bounds[-1]}"
        yield label, counts[bucket]


@contextmanager
def progress(what: str, total: int) -> Iterator[Progress]:
    """Show a bar on stderr, if that is a terminal; its only task has the number 0."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        bar.add_task(what, total=total)
        yield bar

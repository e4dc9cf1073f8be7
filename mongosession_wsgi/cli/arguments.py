"""Kinds of arguments: texts, lengths of time, sizes, and the ids of sessions."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar
from unicodedata import category

import click

from ..settings import span

F = TypeVar("F", bound=Callable[..., Any])

_ID = re.compile("[A-Za-z0-9_-]{43}")
_UNITS = {"": 1, "k": 1024, "m": 1024**2}


def fault_of(text: str) -> str | None:
    """Return why a text from the command line or the environment is refused, or None.

    Bytes that are no text reach Python as surrogates, and no database takes surrogates.
    """
    if any(category(one) == "Cs" for one in text):
        return "is no text in the encoding of this terminal; most terminals want UTF-8"
    if text.endswith(("\n", "\r")):
        return "ends in a newline; remove it"
    if any(category(one) == "Cc" for one in text):
        return "has a control character in it"
    return None


class _Checked(click.Parameter):
    """A parameter whose values must be texts on one line."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        for one in value if isinstance(value, list | tuple) else [value]:
            fault = fault_of(one) if isinstance(one, str) else None
            if fault is not None:
                raise click.BadParameter(f"the value {fault}", ctx, self)
        return super().type_cast_value(ctx, value)


class _CheckedOption(_Checked, click.Option): ...


class _CheckedArgument(_Checked, click.Argument): ...


def option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """Do what `click.option` does, for values that must be texts."""
    return click.option(*names, cls=_CheckedOption, **attributes)


def argument(*names: str, **attributes: Any) -> Callable[[F], F]:
    """Do what `click.argument` does, for values that must be texts."""
    return click.argument(*names, cls=_CheckedArgument, **attributes)


def as_span(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    """Read a length of time, as the settings take it."""
    try:
        return None if value is None else span(value)
    except ValueError as error:
        raise click.BadParameter(f"must be {error}", ctx, param) from None


def as_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read a number of bytes."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,12})\s*([km]?)i?b?", value.strip().lower())
    if match is None:
        raise click.BadParameter("must be bytes, such as 500, 10k or 1M", ctx, param)
    return int(match[1]) * _UNITS[match[2]]


def as_id(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Check a public id, so that a mistyped option is not taken for an id."""
    if not _ID.fullmatch(value):
        message = f"{value!r} is no public id: they have 43 characters, and list shows them"
        raise click.BadParameter(message, ctx, param)
    return value


def as_ids(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Check public ids, and leave out repetitions."""
    return tuple(dict.fromkeys(as_id(ctx, param, one) for one in value))


class TakesIds(click.Command):
    """A command whose arguments are ids; each 64th id begins like an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" not in args:
            ids = [one for one in args if one.startswith("-") and _ID.fullmatch(one)]
            args = [one for one in args if one not in ids] + ["--", *ids]
        return super().parse_args(ctx, args)

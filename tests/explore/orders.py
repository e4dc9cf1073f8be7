"""Try every order of the steps of some requests that makes a difference, once.

Orders that differ only in steps that do not meet are one: sleep sets leave out all but the first
of them (P. Godefroid, Partial-Order Methods for the Verification of Concurrent Systems, 1996).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .engine import Effect, Way
from .script import Kind
from .world import Choice, Start, World


@dataclass(frozen=True)
class Scene:
    """Which requests meet, with which tokens, at which start."""

    start: str
    kinds: tuple[str, ...]
    tokens: tuple[str, ...]
    faulty: bool = False
    """Whether one command of one request goes wrong."""

    def __str__(self) -> str:
        brought = "" if set(self.tokens) == {"new"} else f" ({', '.join(self.tokens)})"
        return f"{self.start}: {' | '.join(self.kinds)}{brought}{', one fault' * self.faulty}"


@dataclass
class _Node:
    """A point at which several steps could be taken."""

    asleep: dict[Choice, Effect]
    """The steps that were tried before, elsewhere, with all that they can lead to from here."""
    choices: list[Choice]
    before: Any
    """The world at this point."""
    chosen: Choice
    effect: Effect
    done: dict[Choice, Effect] = field(default_factory=dict)


@dataclass
class Count:
    """How many orders were tried, and how many were left once they turned out to be known."""

    orders: int = 0
    left: int = 0


class Orders:
    """All orders of a scene, one after the other; the world is as each of them leaves it."""

    def __init__(
        self,
        world: World,
        start: Start,
        kinds: Sequence[Kind],
        tokens: Sequence[str | None],
        *,
        faulty: bool = False,
        reduced: bool = True,
    ) -> None:
        self._world = world
        self._begin: Callable[[], None] = lambda: self._restart(start, kinds, tokens)
        self._faulty = faulty
        self._reduced = reduced
        self.count = Count()

    def __iter__(self) -> Iterator[World]:
        """Yield the world as each order leaves it; what is stored may be changed meanwhile."""
        path: list[_Node] = []
        while True:
            if self._run(path):
                self.count.orders += 1
                yield self._world
            else:
                self.count.left += 1
            if not self._backtrack(path):
                return

    def _restart(self, start: Start, kinds: Sequence[Kind], tokens: Sequence[str | None]) -> None:
        self._world.reset(start)
        self._world.begin(kinds, tokens)

    def _run(self, path: list[_Node]) -> bool:
        """Go another way at the end of the path, up to the end; False if this order is known."""
        world = self._world
        if path:
            world.restore(path[-1].before)
            path[-1].effect = world.take(path[-1].chosen)
        else:
            self._begin()
        while not (world.is_over or world.is_endless):
            asleep = self._asleep(path[-1]) if path else {}
            choices = world.choices(faulty=self._faulty and not _has_fault(path))
            awake = [choice for choice in choices if choice not in asleep]
            if not awake:
                return False
            before = world.save()
            path.append(_Node(asleep, awake, before, awake[0], world.take(awake[0])))
        return True

    def _asleep(self, node: _Node) -> dict[Choice, Effect]:
        """Return what need not be tried after a step: what came before it and does not meet it."""
        if not self._reduced:
            return {}
        return {
            choice: effect
            for choice, effect in (node.asleep | node.done).items()
            if _are_independent(choice, effect, node.chosen, node.effect)
        }

    def _backtrack(self, path: list[_Node]) -> bool:
        """Turn to the next step at the last point that has one left; False if there is none."""
        while path:
            node = path[-1]
            node.done[node.chosen] = node.effect
            left = [choice for choice in node.choices if choice not in node.done]
            if left:
                node.chosen = left[0]
                return True
            path.pop()
        return False


def _has_fault(path: list[_Node]) -> bool:
    return any(node.chosen.way not in (Way.WELL, Way.BEATEN) for node in path)


def _are_independent(one: Choice, effect: Effect, other: Choice, others: Effect) -> bool:
    if one.name == other.name or effect.meets(others):
        return False
    return Way.WELL in (one.way, other.way)


def orders(world: World, starts: dict[str, Start], scene: Scene, kinds: dict[str, Kind]) -> Orders:
    """Return the orders of a scene."""
    start = starts[scene.start]
    return Orders(
        world,
        start,
        [kinds[name] for name in scene.kinds],
        [start.tokens[name] for name in scene.tokens],
        faulty=scene.faulty,
    )

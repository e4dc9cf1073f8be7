"""Explore scenes in several processes, and add up what they find."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, islice

from ..tool import for_the_parent
from .catalogue import BY_NAME, starts_of
from .engine import Server, in_place_of
from .followers import Followers
from .history import History, Views
from .orders import Scene, orders
from .promises import broken_by
from .scenes import engines
from .story import story_of
from .verdict import Broken
from .world import Start, World

AT_A_TIME = 40
"""The scenes that a process is given at a time."""
MOST_REMEMBERED = 200_000
GARBAGE = 50_000
"""The new objects after which a process collects garbage."""


@dataclass
class Finding:
    """How often a promise was broken, and the shortest story of it."""

    orders: int = 0
    scenes: int = 0
    length: int = 0
    story: str = ""

    def add(self, other: Finding) -> None:
        self.orders += other.orders
        self.scenes += other.scenes
        if not self.story or other.length < self.length:
            self.length, self.story = other.length, other.story


@dataclass
class Report:
    """What came of some scenes."""

    scenes: int = 0
    orders: int = 0
    left: int = 0
    """The orders that turned out, on the way, to be like one that was tried."""
    seconds: float = 0.0
    broken: dict[str, Finding] = field(default_factory=dict)

    def add(self, other: Report) -> None:
        self.scenes += other.scenes
        self.orders += other.orders
        self.left += other.left
        self.seconds += other.seconds
        for promise, finding in other.broken.items():
            self.broken.setdefault(promise, Finding()).add(finding)


class Explorer:
    """All that is needed to explore one world, and what is remembered of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._views = Views(self.world)
        self._followers = Followers(self.world, self._views)
        self._starts: dict[str, Start] = {}

    def explore(self, scenes: Iterable[Scene]) -> Report:
        """Try every order of each scene."""
        begun, report = time.perf_counter(), Report()
        with quietly(), in_place_of(self.world.replacements()):
            self._starts = self._starts or starts_of(self.world)
            for scene in scenes:
                report.add(self._scene(scene))
                self._forget_if_much()
        report.seconds = time.perf_counter() - begun
        return report

    def _scene(self, scene: Scene) -> Report:
        report = Report(scenes=1)
        tried = orders(self.world, self._starts, scene, BY_NAME)
        for world in tried:
            history = History(world, self._views)
            broken: dict[str, Broken] = {}
            for one in chain(broken_by(history), self._followers.broken_by(history)):
                broken.setdefault(one.promise, one)
            for promise, one in broken.items():
                finding = report.broken.setdefault(promise, Finding(scenes=1))
                length = _length(history)
                if not finding.story or length < finding.length:
                    story = f"{scene}\n{story_of(history, one)}"
                    finding.length, finding.story = length, story
                finding.orders += 1
        report.orders, report.left = tried.count.orders, tried.count.left
        return report

    def _forget_if_much(self) -> None:
        if self.world.remembered + self._views.remembered > MOST_REMEMBERED:
            self.world.forget()
            self._views.forget()
            self._followers.forget()


def _length(history: History) -> int:
    """Return how long the story of an order is; one whose requests take turns is longer."""
    turns = sum(
        one.visit is not other.visit
        for one, other in zip(history.steps, history.steps[1:], strict=False)
    )
    return 10 * len(history.steps) + turns


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what the product says of the faults that it meets out of the log."""
    logger = logging.getLogger("mongosession_wsgi")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


# In several processes.


@cache
def _explorer(engine: str) -> Explorer:
    manner, settings = engines()[engine]
    return Explorer(World(Server(manner), settings))


def _part(task: tuple[str, list[Scene]]) -> Report:
    engine, scenes = task
    return _explorer(engine).explore(scenes)


def explore(
    engine: str, scenes: Iterable[Scene], jobs: int, tell: Callable[[Report], None]
) -> Report:
    """Explore the scenes in so many processes; `tell` what came of them so far, now and then."""
    report, begun = Report(), time.perf_counter()
    context = multiprocessing.get_context("fork")
    # Garbage is rare here, and the much that is remembered takes long to look through.
    with for_the_parent():
        processes = context.Pool(jobs, gc.set_threshold, (GARBAGE,))
    with processes as pool:
        for part in pool.imap_unordered(_part, _tasks(engine, scenes)):
            report.add(part)
            report.seconds = time.perf_counter() - begun
            tell(report)
    gc.collect()
    return report


def _tasks(engine: str, scenes: Iterable[Scene]) -> Iterator[tuple[str, list[Scene]]]:
    left = iter(scenes)
    while some := list(islice(left, AT_A_TIME)):
        yield engine, some

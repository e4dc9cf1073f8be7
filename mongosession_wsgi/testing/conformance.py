"""The tests for every store, as a pytest class to subclass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from ..store import MongoStore
from .requests import Clock

pytest.register_assert_rewrite(f"{__package__}.contents", f"{__package__}.overlap")

from .contents import Contents  # noqa: E402
from .overlap import Overlap  # noqa: E402


class StoreConformance(Contents, Overlap):
    """Subclass the suite, and define a fixture `make_store`: a function from a clock to a store.

    The settings are to be the default ones: an idle time of 14 days, a lifetime of 30 days.
    """

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def store(
        self, make_store: Callable[[Callable[[], datetime]], MongoStore], clock: Clock
    ) -> Iterator[MongoStore]:
        store = make_store(clock)
        yield store
        store.close()

"""The tests for every store, as a pytest class to subclass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from ..store import MongoStore
from .requests import Clock

for _name in "contents", "logins", "overlap":
    pytest.register_assert_rewrite(f"{__package__}.{_name}")

from .contents import Contents  # noqa: E402
from .logins import Logins  # noqa: E402
from .overlap import Overlap  # noqa: E402


class StoreConformance(Contents, Logins, Overlap):
    """Subclass the suite, and define a fixture `make_store`: a function from a clock to a store.

    The settings are to be the default ones: an idle time of 14 days, 30 for a remembered session,
    and a lifetime of 30 days. A store with `session_limit: 2` comes from a fixture
    `make_limited_store`; without the fixture, the tests of the limit are skipped.
    """

    @pytest.fixture
    def make_limited_store(self) -> Callable[[Callable[[], datetime]], MongoStore]:
        pytest.skip("define make_limited_store, for a store with session_limit: 2")

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

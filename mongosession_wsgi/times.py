"""When a session dies: by the stored expiry, the idle time, and the longest life."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from .document import Record
from .settings import Settings

_RENEW_AT_LEAST_EVERY = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Times:
    """The idle times and the longest life of now, valid for older sessions too."""

    expires: timedelta
    """The idle time of a session; `session_expires`."""
    remember: timedelta
    """The idle time of a remembered session; `session_remember`."""
    lifetime: timedelta | None
    """The longest life, counted from the creation or the last login; `session_lifetime`."""
    idle: Mapping[bool | None, timedelta | None] = field(init=False, repr=False)
    """The idle time by `Record.remember`; None where the application said the moment itself."""
    _pause: Mapping[bool | None, timedelta] = field(init=False, repr=False)
    """The time without a renewal, by `Record.remember`: a tenth of the idle time."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "idle", {None: self.expires, True: self.remember, False: None})
        most = _RENEW_AT_LEAST_EVERY
        pause = {kind: min(time / 10, most) if time else most for kind, time in self.idle.items()}
        object.__setattr__(self, "_pause", pause)

    @classmethod
    def of(cls, settings: Settings) -> Times:
        """Return the times of the settings."""
        return cls(settings.idle, settings.remember, settings.lifetime)

    def end_of(self, record: Record) -> datetime:
        """Return when a stored session dies: the earliest of the three moments."""
        idle = self.idle[record.remember]
        end = record.expires_at
        if idle is not None:
            end = min(end, record.seen_at + idle)
        return end if self.lifetime is None else min(end, record.created_at + self.lifetime)

    def expiry(self, created_at: datetime, idle_until: datetime) -> datetime:
        """Return the end of the idle time, or of the longest life if that is sooner."""
        return idle_until if self.lifetime is None else min(idle_until, created_at + self.lifetime)

    def used(self, record: Record, now: datetime, until: datetime | None = None) -> Record:
        """Return `record` after a use of the session now; no moment moves back.

        Only a moment said by the application, `until`, may be earlier than before.
        """
        seen_at = max(now, record.seen_at)
        if until is not None:
            expires_at = self.expiry(record.created_at, until)
        else:
            idle = self.idle[record.remember]
            idle_until = record.expires_at if idle is None else now + idle
            expires_at = max(self.expiry(record.created_at, idle_until), record.expires_at)
        return record._replace(seen_at=seen_at, expires_at=expires_at)

    def is_renewal_due(self, record: Record, now: datetime) -> bool:
        """Say whether a session only read is to live longer: after a tenth of the idle time."""
        return now - record.seen_at >= self._pause[record.remember]

    def unseen(
        self, now: datetime, remember: bool | None
    ) -> tuple[dict[str, Any], datetime | None]:
        """Return the conditions for a new expiry without a look, and the new expiry.

        The conditions hold for sessions too young to reach their longest life. Where the longest
        life is no longer than the idle time, no expiry ever moves: None.
        """
        idle = self.remember if remember else self.expires
        conditions: dict[str, Any] = {"seen_at": {"$gt": now - idle}, "remember": remember}
        if self.lifetime is None:
            return conditions, now + idle
        if self.lifetime <= idle:
            return conditions | {"created_at": {"$gt": now - self.lifetime}}, None
        return conditions | {"created_at": {"$gt": now + idle - self.lifetime}}, now + idle

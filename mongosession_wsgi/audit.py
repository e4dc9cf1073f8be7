"""The audit log: the fate of logins, said after the database has acknowledged the change.

OWASP ASVS 5.0, V16. Silent unless the application asks for INFO of `mongosession_wsgi.audit`.
"""

from __future__ import annotations

import logging

_logger = logging.getLogger("mongosession_wsgi.audit")


def say(
    event: str,
    words: str,
    *,
    id: str | None = None,
    owner: str | None = None,
    previous_id: str | None = None,
    label: str | None = None,
    count: int | None = None,
) -> None:
    """Log an event; the parts are fields of the record too, for a formatter of JSON.

    The line shows owners and labels by `ascii`, so no line break of a visitor begins a new line.
    """
    if not _logger.isEnabledFor(logging.INFO):
        return
    parts = {"owner": owner, "session": id, "previous": previous_id, "label": label, "count": count}
    shown = ", ".join(f"{name} {part!a}" for name, part in parts.items() if part is not None)
    fields = {
        "session_event": event,
        "session_id": id,
        "session_owner": owner,
        "session_previous_id": previous_id,
        "session_label": label,
        "session_count": count,
    }
    _logger.info("%s: %s%s", event, words, f" ({shown})" if shown else "", extra=fields)

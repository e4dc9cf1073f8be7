"""No command of ours scans a collection: each examines what it is for, and nothing else.

The embedded server explains one condition at a time, so there this says that a command has a
condition whose index leads to so few documents. A server of `MONGODB_URI` explains all conditions.
"""

from __future__ import annotations

from .bench.explained import THEIRS, explained
from .commands import RECORDER

COMMANDS = {
    "read": ["find"],
    "set": ["update"],
    "read and set": ["find", "update"],
    "log in": ["findAndModify"],
    "regenerate": ["findAndModify"],
    "log out": ["delete"],
    "revoke": ["findAndModify"],
    "sessions(owner)": ["find"],
    "revoke_all": ["find", "update"],
}
"""What is done with sessions, and the commands that select for it."""
OF_AN_OWNER = {"sessions(owner)", "revoke_all"}


def test_no_command_examines_more_than_what_it_is_for(mongodb_uri: str) -> None:
    found = explained(mongodb_uri)
    RECORDER.scattered.clear()  # The sessions of an owner may be on every shard.
    assert found is not None
    assert {name: [one.command for one in commands] for name, commands in found.items()} == COMMANDS
    for name, commands in found.items():
        due = THEIRS if name in OF_AN_OWNER else 1
        for one in commands:
            assert one.way.startswith(("IXSCAN", "IDHACK", "EXPRESS")), (name, one)
            assert one.documents == one.found == due, (name, one)
            assert due <= one.keys <= 2 * due, (name, one)  # An index is asked for each `_id`.

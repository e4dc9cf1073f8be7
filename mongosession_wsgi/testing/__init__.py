"""For the tests of an application: a store without a server, and a client's session in hand.

`mongosession_wsgi.testing.conformance` has the tests that every store must pass; they need pytest.
"""

from .clients import session_of
from .memory import MemoryStore

__all__ = ["MemoryStore", "session_of"]

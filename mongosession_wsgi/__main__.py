"""`python -m mongosession_wsgi` is the command `mongosession`."""

from __future__ import annotations

from .cli import main

main()

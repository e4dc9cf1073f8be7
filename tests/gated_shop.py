"""The Bottle shop, where a test may hold a request open: gunicorn tests.gated_shop:app"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from bottle import request
from bottle_shop import app


def gated(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Have a request wait that names the port of a gate, when it is done but for its commit."""

    def held(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        finally:
            if "gate" in request.query:
                with socket.create_connection(("127.0.0.1", int(request.query.gate))) as gate:
                    gate.recv(1)

    return held


app.install(gated)

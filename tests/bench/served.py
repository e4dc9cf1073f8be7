"""The application that gunicorn serves for a measurement: a contender, named by the environment.

`NAME`, `URI` and `DATABASE` are those of `made`.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from .contenders import SMALL, Application
from .contest import CONTENDERS


def made(environ: dict[str, str]) -> Application:
    """Return the application of a contender, which fills its sessions with the small contents."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    contender = CONTENDERS[environ["BENCH_NAME"]]
    app = contender.make(environ["BENCH_URI"], environ["BENCH_DATABASE"])

    def filled(environ: dict[str, Any], start_response: Any) -> Any:
        environ["bench.contents"] = SMALL
        return app(environ, start_response)

    return filled


def __getattr__(name: str) -> Application:
    """Make the application when gunicorn's worker asks for `app`."""
    if name != "app":
        raise AttributeError(name)
    return made(dict(os.environ))

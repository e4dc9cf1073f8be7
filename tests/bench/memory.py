"""What a session takes of memory: in each request, and in a worker of gunicorn."""

from __future__ import annotations

from collections.abc import Iterable

from . import machine
from .contenders import SMALL, Row
from .contest import CONTENDERS, EVERYWHERE
from .crowd import Crowd, cookie_of, request_of
from .measure import Figures, Tell, started
from .throughput import served

HELD_KINDS = ("untouched", "read", "set")
THREADS = (1, 64)
REQUESTS = 200
"""The live requests whose memory is measured at once."""
ROUNDS = 3
"""How often each of the browsers asks; there are as many browsers as threads at the most."""


def measured(uri: str, tell: Tell, names: Iterable[str] = EVERYWHERE) -> Figures:
    """Return the bytes that requests hold, and the KiB of workers, by contender."""
    found: Figures = {"held": {}, "workers": {}}
    for name in names:
        tell(f"memory: {name}")
        with started(uri, [(name,)]) as processes:
            if name in processes:
                kinds = HELD_KINDS if CONTENDERS[name].alone != name else HELD_KINDS[:1]
                found["held"][name] = {
                    kind: round(processes[name].ask("held", name, Row(kind, SMALL), REQUESTS))
                    for kind in kinds
                }
        for threads in THREADS:
            size = worker(uri, name, threads)
            if size is not None:
                found["workers"].setdefault(name, {})[str(threads)] = size
    return found


def worker(uri: str, name: str, threads: int) -> int | None:
    """Return the KiB of a worker whose threads have all answered; None without the package."""
    with served(uri, [name], ["--worker-class=gthread", f"--threads={threads}"]) as apps:
        if name not in apps:
            return None
        app, number = apps[name], max(THREADS)
        if CONTENDERS[name].alone == name:
            requests = [request_of("untouched")] * number
        else:
            requests = [request_of("read and set", cookie_of(app.port)) for _ in range(number)]
        with Crowd(app.port, [[one] for one in requests]) as crowd:
            for _ in range(ROUNDS):
                crowd.ask(seconds=0)
            (pid,) = app.pids()
            return machine.memory_of(pid, "VmRSS")

"""The machine that measures: its cores, and what processes take of it, as Linux tells."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

IS_LINUX = sys.platform == "linux"
_TICKS = os.sysconf("SC_CLK_TCK")


def cores() -> list[int]:
    """Return the processor's cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if IS_LINUX else [0]


def run_on(cores: Sequence[int]) -> None:
    """Have this process, and those started from now on, run on these cores and on no other."""
    if IS_LINUX:
        os.sched_setaffinity(0, cores)


ALL_CORES = cores()
FIRST, OTHERS = ALL_CORES[:1], ALL_CORES[1:] or ALL_CORES[:1]
"""The cores of the clients, and those of the server."""


@contextmanager
def beside_the_server() -> Iterator[None]:
    """Run this process on the server's cores for a while, away from the applications."""
    before = cores()
    run_on(OTHERS)
    try:
        yield
    finally:
        run_on(before)


def end_with_parent() -> None:
    """Have Linux end this new process when its parent dies, even of a SIGKILL."""
    pr_set_pdeathsig = 1
    if IS_LINUX:
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, such as the workers of gunicorn."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(one) for task in tasks for one in (task / "children").read_text().split()]


def cpu_of(pid: int) -> float:
    """Return the microseconds of CPU that a process has taken, in its code and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS * 1e6


def memory_of(pid: int, what: str) -> int:
    """Return KiB of a process: `VmHWM`, the most it has had, or `VmRSS`, the memory of now.

    Not `ru_maxrss`, in which Linux counts what the process was before it became this program.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0])


def load() -> float:
    """Return how many processes wanted a core, on average of the last minute."""
    return round(os.getloadavg()[0], 1)


def description() -> str:
    """Return the processor, its cores and the system, in words."""
    cpus = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    processor = cpus[0] if cpus else platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {platform.system()}"

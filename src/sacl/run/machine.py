"""Cores and memory of this machine, and how much of them this process has used."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

resource: types.ModuleType | None
try:
    import resource
except ImportError:  # Windows
    resource = None

_KIB_PER_MIB = 1024
_SHORT_OF_MEMORY = re.compile(
    "out of memory|not enough memory|could not create a primitive|allocate memory|failed to map",
    re.IGNORECASE,
)
"""What torch, and the loading of its libraries, say where an allocation fails."""
_OF_GROUPS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Files of a control group with its limit and what it has taken: version 2, and 1."""
_SHARES = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
"""Files with a group's processor time and the time in which it may take that: version 2, and 1."""
CAN_FORK = sys.platform == "linux" and not any(
    Path("/dev", name).exists() for name in ("nvidiactl", "kfd", "dxg")
)
"""Whether processes are forked of one that has imported what they need. Where there is a GPU they
are not: importing may open its driver, which no fork can use then."""
SAFE = {"PYTHONSAFEPATH": "1"}
"""How another Python is started: it would import a user's `signal.py` of the current folder."""


def available_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use.

    A limit of processor time on its control group (cgroup), or on one around it, counts: a
    container may have been given 2 of the 64 cores that it sees.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    limits = _limits(root, "cpu", _SHARES)  # a quota of -1 is none, of version 1
    shares = [math.ceil(quota / period) for _, quota, period in limits if quota > 0]
    return min([cores, *shares])


def is_short_of_memory(error: BaseException) -> bool:
    """Tell whether an error is of an allocation that failed, on the machine or on its GPU."""
    return isinstance(error, MemoryError) or bool(_SHORT_OF_MEMORY.search(str(error)))


def peak_memory_mb() -> float | None:
    """Return the largest resident memory that this process has had, None on Windows."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if sys.platform != "darwin" else 1024**2), 1)


def free_memory_mb(root: Path = Path("/")) -> float | None:
    """Return the memory that can still be taken, by the system and by the limits of a batch job.

    A limit is that of a control group (cgroup), of either version, in which this process is, or of
    one around it. None where nothing says (Windows, macOS). Files lie below a `root`.
    """
    free: list[float] = []
    with contextlib.suppress(OSError, ValueError, LookupError):
        meminfo = (root / "proc/meminfo").read_text()
        lines = dict(line.split(":", 1) for line in meminfo.splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) / _KIB_PER_MIB)
    for group, most, taken in _limits(root, "memory", _OF_GROUPS):
        free.append((most - taken + _cached(group)) / _KIB_PER_MIB**2)
    return min(free, default=None)


def _limits(
    root: Path, controller: str, files: Sequence[Sequence[str]]
) -> Iterator[tuple[Path, int, int]]:
    """Yield the control groups around this process, its own first, and the two numbers in files."""
    text = ""
    with contextlib.suppress(OSError):
        text = (root / "proc/self/cgroup").read_text()
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")
        groups = (group, *group.parents[: len(group.parents) - len(top.parents)])
        for folder, names in itertools.product(groups, files):
            with contextlib.suppress(OSError, ValueError):  # `max` where there is no limit
                first, second = " ".join((folder / name).read_text() for name in names).split()
                yield folder, int(first), int(second)


def _cached(group: Path) -> int:
    """Return how much of what a group has taken are files that the system forgets when asked."""
    with contextlib.suppress(OSError, ValueError, LookupError):
        rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))
    return 0


@contextlib.contextmanager
def environment_with(more: Mapping[str, str]) -> Iterator[None]:
    """Let variables have other values in the body."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})

"""What this machine offers, and what this process has taken of it."""

from __future__ import annotations

import contextlib
import os
import sys
import types
from pathlib import Path

resource: types.ModuleType | None
try:
    import resource
except ImportError:  # Windows
    resource = None

_GROUP = Path("/sys/fs/cgroup")
_KIB_PER_MIB = 1024


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def peak_memory_mb() -> float | None:
    """Return the largest resident memory that this process has had, None on Windows."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if sys.platform != "darwin" else 1024**2), 1)


def free_memory_mb(meminfo: Path = Path("/proc/meminfo"), group: Path = _GROUP) -> float | None:
    """Return the memory that can still be taken, by the system and by the limit of a batch job.

    None where neither says (Windows, macOS).
    """
    free: list[float] = []
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) / _KIB_PER_MIB)
    with contextlib.suppress(OSError, ValueError):  # `max` where there is no limit
        most, now = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        free.append((most - now) / _KIB_PER_MIB**2)
    return min(free, default=None)

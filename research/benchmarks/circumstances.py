"""What a figure was obtained on, the same in every result; and how memory is watched."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sacl.run.record import versions


def circumstances() -> dict[str, Any]:
    """Return machine, threads, versions, git revision and date."""
    import torch  # not where only `watched` is wanted

    return {
        "machine": machine(),
        "torch_threads": torch.get_num_threads(),
        "versions": versions(),
        "git_revision": _revision(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


@contextmanager
def watched(look: Callable[[], float], every_s: float) -> Iterator[list[float]]:
    """Yield a list of what is seen now; after the body its last item is the most that was seen."""
    seen, over = [look()], threading.Event()
    most = seen.copy()

    def watch() -> None:
        while not over.wait(every_s):
            most[0] = max(most[0], look())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
        seen.append(most[0])


def _revision() -> str | None:
    """Return the commit of the checkout, `-dirty` where files differ from it, None without one."""
    words = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    done = subprocess.run(
        words, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def machine() -> dict[str, Any]:
    """Return processor, cores and whether the CPU computes in bfloat16."""
    import torch

    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    bf16 = bool(torch.cpu._is_avx512_bf16_supported())
    devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {"cpu": model, "cores": os.cpu_count(), "avx512_bf16": bf16, "gpus": devices}

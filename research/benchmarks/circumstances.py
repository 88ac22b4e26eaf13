"""What a figure was obtained on: machine, versions, revision, date; the same in every result."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from sacl.run.record import versions


def circumstances() -> dict[str, Any]:
    """Return machine, threads, versions, git revision and date."""
    return {
        "machine": machine(),
        "torch_threads": torch.get_num_threads(),
        "versions": versions(),
        "git_revision": _revision(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _revision() -> str | None:
    """Return the commit of the checkout, `-dirty` where files differ from it, None without one."""
    words = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    done = subprocess.run(
        words, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def machine() -> dict[str, Any]:
    """Return processor, cores and whether the CPU computes in bfloat16."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    bf16 = bool(torch.cpu._is_avx512_bf16_supported())
    devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {"cpu": model, "cores": os.cpu_count(), "avx512_bf16": bf16, "gpus": devices}

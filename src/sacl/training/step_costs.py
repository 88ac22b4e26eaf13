"""What a training step takes on this machine, measured in a process of its own.

That process ends with its memory: what it peaked at is what training peaks at, and where that does
not fit it is the process that dies. torch is loaded there, not here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from sacl.errors import SaclError
from sacl.files.atomic import plain
from sacl.settings import RunConfig

_LIMIT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """What one training step of each stage takes on this machine.

    Seconds per step; how many weights each network has; `peak_gb` is of the whole process, with a
    few patches only. `load` is how many other processes wanted a core of the machine's `cores`
    meanwhile: above that number a step takes longer than it will on an idle machine.
    """

    device: str
    threads: int
    cores: int
    load: float
    locate_s: float
    pretrain_s: float
    finetune_s: float
    parameters: Mapping[str, int]
    peak_gb: float


def measure_steps(
    config: RunConfig, organs: int, spacing_mm: tuple[float, float, float]
) -> StepCosts:
    """Return the costs of the configured networks, measured in a process of its own.

    Raises:
        SaclError: the steps could not be taken, for instance for want of memory.
    """
    request = {"config": plain(config), "organs": organs, "spacing_mm": spacing_mm}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sacl.training.probe"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SaclError(f"probe: a few training steps took more than {_LIMIT_S:.0f} s") from None
    if done.returncode != 0 or not done.stdout.strip():
        lines = done.stderr.strip().splitlines() or ["it ended without a word"]
        reason = "it was killed, most likely for want of memory"
        raise SaclError(f"probe: {lines[-1] if done.returncode > 0 else reason}")
    return StepCosts(**json.loads(done.stdout.strip().splitlines()[-1]))

"""What computes: the device, cores that this process may use, and its memory."""

from __future__ import annotations

import contextlib
import importlib
import os
from dataclasses import dataclass

_LARGE_GPU_GB = 10.0
"""Memory from which on ResNet-50 trains on batches of 256 x 256 slices."""


@dataclass(frozen=True)
class MachineFacts:
    """A machine in numbers; `gpu_gb` is 0 without a CUDA device, `memory_gb` where unknown."""

    device: str
    cores: int
    memory_gb: float
    gpu_gb: float = 0.0

    @property
    def is_large(self) -> bool:
        """Tell whether it is a GPU for large networks and fine slices."""
        return self.gpu_gb >= _LARGE_GPU_GB


def measure_machine(device: str) -> MachineFacts:
    """Return what this machine has for a `device` of the settings; one that it lacks is refused."""
    devices = importlib.import_module("sacl.networks.device")  # torch, when it is needed
    resolved, memory, gpu = devices.resolve_device(device), 0.0, 0.0
    with contextlib.suppress(AttributeError, OSError, ValueError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if resolved.type == "cuda":
        gpu = devices.torch.cuda.get_device_properties(resolved).total_memory / 1e9
    cores = devices.available_cores()
    return MachineFacts(resolved.type, cores, round(memory, 1), round(gpu, 1))

"""How much memory the prediction of a scan takes, known from its size."""

from __future__ import annotations

_BYTES_PER_VOXEL = 17
"""Of a scan while it is read, predicted and cleaned, and of the rest: imports, networks, a batch;
by research/benchmarks/prediction_memory.py at 50 and at 200 slices."""
_BASE_GB = 0.7


def prediction_gb(voxels: int) -> float:
    """Return the memory that predicting a scan of so many voxels takes, in GB."""
    return _BASE_GB + voxels * _BYTES_PER_VOXEL / 1e9

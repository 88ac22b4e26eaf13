"""Arrays on disk, made in their full size at once and mapped instead of read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def allocate(path: Path, shape: Sequence[int], dtype: type) -> np.ndarray:
    """Make an .npy file of zeros whose blocks are really there, and map it.

    Writing to a sparse file on a full disk kills the process; asking first is an error one can
    tell.
    """
    if 0 in shape:
        empty: np.ndarray = np.zeros(tuple(shape), dtype)
        np.save(path, empty)
        return empty
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=tuple(shape))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def open_array(path: Path) -> np.ndarray:
    """Map an array read-only; an empty one has no bytes that could be mapped and is loaded."""
    with contextlib.suppress(ValueError):
        mapped: np.ndarray = np.load(path, mmap_mode="r")
        return mapped
    loaded: np.ndarray = np.load(path)
    return loaded

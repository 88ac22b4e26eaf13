"""Numbers as files store them: arrays mapped from disk, and what stored voxels mean.

Conversions go slice by slice, so that no third array of a scan's size is ever held.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Num, Shaped
from scipy import ndimage

from sacl.errors import DataError

HIGHEST_LABEL = 65535
"""Largest value that a label may have; whatever is larger is no label."""
LARGEST_RATIO = 1100
"""Deflate cannot shrink anything further; a header that promises more is damaged."""
_NOISE = 1e-3
"""How far a label value may lie from a whole number: a scale factor in float32 leaves 1e-7."""
_INT16 = np.iinfo(np.int16)


def allocate(path: Path, shape: Sequence[int], dtype: type) -> np.ndarray:
    """Make an .npy file of zeros whose blocks are reserved, and map it: a full disk is an error."""
    if 0 in shape:
        np.save(path, np.zeros(tuple(shape), dtype))
        return open_array(path)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=tuple(shape))
    with path.open("r+b") as file:
        _reserve(file.fileno(), path.stat().st_size)
    return array


def set_aside(
    arrays: Sequence[Shaped[np.ndarray, ...]], folder: Path | None
) -> Shaped[np.ndarray, ...]:
    """Return arrays one after the other, mapped from a nameless file in the folder.

    They take disk, and memory only as far as there is any to spare; the file goes with the array,
    or with the process. Without a folder it lies where temporary files do.
    """
    shape, kind = (sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        _reserve(file.fileno(), math.prod(shape) * kind.itemsize)
        joined = np.memmap(file, kind, "w+", shape=shape)
    return np.concatenate(arrays, out=joined)


def _reserve(file: int, size: int) -> None:
    """Reserve the blocks of a file: mapped, a full disk would end the program without a word."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)


def open_array(path: Path) -> np.ndarray:
    """Map an array read-only; an empty one has no bytes to map and is loaded."""
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:
        return np.load(path)


def intensities(stored: Num[np.ndarray, "i j k"], slope: float, inter: float) -> np.ndarray:
    """Return `stored * slope + inter`, int16 where these are whole numbers that fit, else float32.

    `stored` itself is returned where nothing changes.
    """
    identity = (slope, inter) == (1.0, 0.0)
    if identity and np.can_cast(stored.dtype, np.int16):
        return stored.astype(np.int16, copy=False)
    if stored.dtype.kind != "f" and slope == round(slope) and inter == round(inter):
        ends = [float(end) * slope + inter for end in (stored.min(), stored.max())]
        if _INT16.min <= min(ends) and max(ends) <= _INT16.max:
            return _scaled(stored, np.int64(slope), np.int64(inter), np.int16)
    if identity:
        return stored.astype(np.float32, copy=False)
    return _scaled(stored, np.float32(slope), np.float32(inter), np.float32)


def label_numbers(
    stored: Num[np.ndarray, "i j k"], slope: float, inter: float, where: str
) -> Integer[np.ndarray, "i j k"]:
    """Return `stored * slope + inter` as integers in the machine's byte order.

    A value that is whole but for the noise of a scale factor is rounded; any other is refused.
    """
    if stored.dtype.kind != "f" and (slope, inter) == (1.0, 0.0):
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)
    require_finite(stored, where)
    whole = np.empty(stored.shape, np.int32, order="F")
    for k in range(stored.shape[2]):
        with np.errstate(over="ignore", invalid="ignore"):
            values = stored[:, :, k] * slope + inter
            whole[:, :, k] = np.rint(values)  # a value beyond int32 differs from what it becomes
        fractions = values[np.abs(whole[:, :, k] - values) > _NOISE]
        if fractions.size:
            digits = np.format_float_positional(np.float32(fractions[0]), trim="-")
            raise DataError(
                f"{where}: label value {digits} is not a whole number; this is no label"
                " map, or it was resampled without nearest-neighbor interpolation"
            )
    return whole


def distinct_values(labels: Integer[np.ndarray, "i j k"]) -> set[int]:
    """Return all values of a label map, by the ends of its runs of one value."""
    values: set[int] = set()
    for k in range(labels.shape[2]):
        row = labels[:, :, k].ravel("K")
        ends = row[np.flatnonzero(row[1:] != row[:-1])]
        values.update(np.unique(ends).tolist(), (int(row[-1]),))
    return values


def label_boxes(labels: Integer[np.ndarray, ...], most: int = 0) -> list[tuple[slice, ...] | None]:
    """Return the bounding box of each label value from 1 to `most`, None where it is nowhere.

    Without `most`, up to the largest value. The voxels are read as they lie in memory, which in
    files is from k to i: ten times as fast.
    """
    in_order = labels.flags.f_contiguous
    boxes: list[Any] = ndimage.find_objects(labels.T if in_order else labels, most)
    return [box and box[::-1] for box in boxes] if in_order else boxes


def relabeled(
    labels: Integer[np.ndarray, "i j k"], table: Shaped[np.ndarray, " value"]
) -> np.ndarray:
    """Return `table[labels]` for labels from 0 on; `labels` itself where that is equal."""
    if labels.dtype == table.dtype and np.array_equal(table, np.arange(table.size)):
        return labels
    changed = np.empty(labels.shape, table.dtype, order="F")
    for k in range(labels.shape[2]):  # by slice: an index array costs 8 bytes per voxel
        np.take(table, labels[:, :, k].T, out=changed[:, :, k].T, mode="clip")
    return changed


def require_finite(voxels: Shaped[np.ndarray, ...], where: str) -> None:
    """Refuse voxels that are NaN or infinite, and say how many are."""
    bad = 0 if voxels.dtype.kind != "f" else voxels.size - int(np.isfinite(voxels).sum())
    if bad:
        raise DataError(
            f"{where}: {bad} of {voxels.size} voxels are NaN or infinite; give them a value, for"
            " instance that of air"
        )


def _scaled(
    stored: Num[np.ndarray, "i j k"], slope: np.number, inter: np.number, kind: type[np.number]
) -> np.ndarray:
    """Return `stored * slope + inter` as `kind`, computed in the factors' type."""
    scaled = np.empty(stored.shape, kind, order="F")
    for k in range(stored.shape[2]):
        scaled[:, :, k] = stored[:, :, k].astype(type(slope)) * slope + inter
    return scaled

"""Arrays mapped from disk, and stored voxels as numbers.

Conversions go slice by slice, so that no third array of a scan's size is ever held.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Integer, Num, Shaped
from scipy import ndimage

from sacl.errors import DataError
from sacl.types import Grid, LabelMap, LabelScheme

HIGHEST_LABEL = 65535
"""Largest value that a label may have; whatever is larger is no label."""
LARGEST_RATIO = 1100
"""Deflate cannot shrink anything further; a header that promises more is damaged."""
_NOISE = 1e-3
"""How far a label value may lie from a whole number: a scale factor in float32 leaves 1e-7."""
_INT16 = np.iinfo(np.int16)
LARGEST_FILE = 10 * 10**9
"""Bytes of a file at most, of an array that is written by rows."""
_LARGEST_HEADER = 1000

Layout = Mapping[str, tuple[tuple[int, ...], Any]]
"""Shape and type of several arrays, by name."""


def mapped_new(path: Path, layout: Layout) -> dict[str, np.ndarray]:
    """Make a file of several arrays of zeros, one after another, and map them to be filled.

    Its blocks are reserved, so that a full disk is an error.
    """
    with path.open("wb") as file:
        file.truncate(size_of(layout))
        _reserve(file.fileno(), size_of(layout))
    return mapped(path, layout, "r+")


def mapped(path: Path, layout: Layout, mode: Literal["r", "r+"] = "r") -> dict[str, np.ndarray]:
    """Map the arrays of a file that `mapped_new` made."""
    arrays: dict[str, np.ndarray] = {}
    start = 0
    for name, (shape, kind) in layout.items():
        empty = 0 in shape
        arrays[name] = np.zeros(shape, kind) if empty else np.memmap(path, kind, mode, start, shape)
        start += arrays[name].nbytes
    return arrays


def size_of(layout: Layout) -> int:
    """Return the bytes of several arrays."""
    return sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in layout.values())


def write_rows(
    folder: Path, name: str, rows: Shaped[np.ndarray, "_ ..."], first: int, count: int
) -> list[Path]:
    """Write rows of an array of `count` rows, from the row `first` on, into its files.

    They are `name-0000.npy` and so on, each of as many rows as `LARGEST_FILE` allows. Returns those
    written into. Written again, the same rows change nothing.
    """
    per_file = max(1, (LARGEST_FILE - _LARGEST_HEADER) // (rows[:1].nbytes or 1))
    written = []
    while len(rows):
        number, start = divmod(first, per_file)
        some, rows = rows[: per_file - start], rows[per_file - start :]
        first += len(some)
        shape = (min(per_file, count - number * per_file), *some.shape[1:])
        header = np.lib.format.header_data_from_array_1_0(some) | {"shape": shape}
        written.append(folder / f"{name}-{number:04d}.npy")
        written[-1].touch()
        with written[-1].open("r+b") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.seek(start * some[0].nbytes, os.SEEK_CUR)
            file.write(np.ascontiguousarray(some).data)
    return written


@dataclass(frozen=True, eq=False)
class Joined:
    """Arrays whose rows follow one another as if they were of one array; read by rows alone."""

    parts: Sequence[np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows of all parts, and the shape of a row."""
        return (len(self), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element."""
        return self.parts[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: int | slice | Shaped[np.ndarray, " n"]) -> np.ndarray:
        """Return one row, or a new array of several; rows count from 0 on."""
        if isinstance(rows, (int, np.integer)):
            return np.asarray(self[np.array([rows])][0])
        chosen = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        if chosen.dtype.kind not in "iu" or chosen.min(initial=0) < 0:
            raise IndexError(f"rows are numbers from 0 on, got {chosen.dtype}, {chosen.min()}")
        number = np.searchsorted(self._ends, chosen, side="right")
        picked = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        for part in np.unique(number):
            here = number == part
            start = self._ends[part] - len(self.parts[part])
            picked[here] = self.parts[part][chosen[here] - start]
        return picked

    @cached_property
    def _ends(self) -> Integer[np.ndarray, " part"]:
        return np.cumsum([len(part) for part in self.parts])


def read_joined(folder: Path, name: str, shape: Sequence[int], kind: Any) -> np.ndarray | Joined:
    """Map what `write_rows` wrote, read-only; nothing was written of what has no rows.

    Raises:
        ValueError: a file, or its type, is not as it was written.
    """
    parts = [np.load(path, mmap_mode="r") for path in sorted(folder.glob(f"{name}-*.npy"))]
    if any(part.dtype != kind for part in parts):
        raise ValueError(f"{name} is not {np.dtype(kind)}")
    if not parts:
        return np.zeros((0, *shape[1:]), kind)
    return parts[0] if len(parts) == 1 else Joined(parts)


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
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)


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


def label_map_of(
    voxels: Integer[np.ndarray, "i j k"], grid: Grid, scheme: LabelScheme, name: str
) -> LabelMap:
    """Return what was read of a file as a label map; values outside `scheme` are refused."""
    low, high = int(voxels.min()), int(voxels.max())
    if low < 0 or high > len(scheme.names):
        raise DataError(
            f"{name}: label values {low} to {high}, outside the scheme {scheme.name} with"
            f" {len(scheme.names)} organs (1 is {scheme.names[0]}); give the map in that scheme"
        )
    return LabelMap(voxels.astype(scheme.label_type, copy=False), grid, scheme)

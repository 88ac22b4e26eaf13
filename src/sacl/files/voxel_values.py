"""What a file's stored numbers mean: intensities as int16 or float32, label values as integers.

Every conversion goes slice by slice, so that no third array of a scan's size is ever held.
"""

from __future__ import annotations

import numpy as np

from sacl.errors import DataError

_INT16 = np.iinfo(np.int16)


def intensities(stored: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Return `stored * slope + inter`, int16 where these are whole numbers that fit, else float32.

    `stored` itself is returned where that already is so.
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


def label_values(stored: np.ndarray, slope: float, inter: float, where: str) -> np.ndarray:
    """Return `stored * slope + inter` as integers in the machine's byte order.

    Raises:
        DataError: a value is not a whole number, is NaN or infinite.
    """
    if stored.dtype.kind != "f" and (slope, inter) == (1.0, 0.0):
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)
    require_finite(stored, where)
    whole = np.empty(stored.shape, np.int32, order="F")
    for k in range(stored.shape[2]):
        values = stored[:, :, k] * slope + inter
        with np.errstate(invalid="ignore"):  # a value beyond int32 differs from what it becomes
            whole[:, :, k] = values
        fractions = values[whole[:, :, k] != values]
        if fractions.size:
            raise DataError(
                f"{where}: label value {fractions[0]:g} is not a whole number; this is no label"
                " map, or it was resampled without nearest-neighbor interpolation"
            )
    return whole


def distinct_values(labels: np.ndarray) -> set[int]:
    """Return all values of a label map `[i, j, k]`.

    A label map is made of runs of one value, so only the ends of the runs are looked at.
    """
    found: set[int] = set()
    for k in range(labels.shape[2]):
        row = labels[:, :, k].ravel("K")
        ends = row[np.flatnonzero(row[1:] != row[:-1])]
        found.update(np.unique(ends).tolist(), (int(row[-1]),))
    return found


def relabeled(labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return `table[labels]` for labels `[i, j, k]` from 0 on; `labels` itself if that is equal."""
    if labels.dtype == table.dtype and np.array_equal(table, np.arange(table.size)):
        return labels
    changed = np.empty(labels.shape, table.dtype, order="F")
    for k in range(labels.shape[2]):  # by slice: an index array costs 8 bytes per voxel
        np.take(table, labels[:, :, k].T, out=changed[:, :, k].T, mode="clip")
    return changed


def require_finite(voxels: np.ndarray, where: str) -> None:
    """Refuse voxels that are NaN or infinite.

    Raises:
        DataError: how many are not finite.
    """
    bad = 0 if voxels.dtype.kind != "f" else voxels.size - int(np.isfinite(voxels).sum())
    if bad:
        raise DataError(
            f"{where}: {bad} of {voxels.size} voxels are NaN or infinite; give them a value, for"
            " instance that of air"
        )


def _scaled(
    stored: np.ndarray, slope: np.number, inter: np.number, kind: type[np.number]
) -> np.ndarray:
    """Return `stored * slope + inter` as `kind`, computed in the factors' type."""
    scaled = np.empty(stored.shape, kind, order="F")
    for k in range(stored.shape[2]):
        scaled[:, :, k] = stored[:, :, k].astype(type(slope)) * slope + inter
    return scaled

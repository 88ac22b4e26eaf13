"""Where the query patches lie, and how they are cut: square in mm, resampled without aliasing.

A pixel's center is its position: voxel `n` covers `[n - 0.5, n + 0.5)`, and output pixel `p` of a
box that starts at voxel `s` lies at `s - 0.5 + (p + 0.5) * pitch`. Every pixel is the weighted mean
of the voxels around it (a triangle as wide as the larger of pitch and voxel, the antialiased
bilinear filter), and outside the volume everything is 0. So a patch cut with a margin has exactly
the plain patch in its middle.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Shaped
from scipy import sparse

from sacl.files.arrays import label_boxes
from sacl.types import Box, Grid, LabelMap


def round_to_even(value: float) -> int:
    """Return the even number nearest to the value, so that a margin is the same on both sides."""
    return 2 * round(value / 2)


Region = tuple[slice, ...]
"""An organ's bounding box in (i, j, k)."""


def organ_regions(coarse: LabelMap) -> dict[str, Region]:
    """Return the bounding box of every organ that the map holds, in one pass over its voxels."""
    names = coarse.scheme.names
    regions = label_boxes(coarse.voxels, len(names))
    return {name: r for name, r in zip(names, regions, strict=True) if r is not None}


def plan_boxes(
    coarse: LabelMap,
    organ: str,
    context: float = 1.4,
    min_side_mm: float = 24.0,
    slice_margin: int = 1,
    region: Region | None = None,
) -> list[Box]:
    """Return a box per axial slice that holds the organ, and `slice_margin` slices further.

    All boxes of an organ in a scan have one side length, `context` times the organ's largest
    in-plane extent over its slices, at least `min_side_mm`, square in mm. Each is centered on the
    mask's bounding box in its slice; a slice without the organ takes the nearest one's center.
    `region` is where the organ lies, of `organ_regions`; looked for where it is not given.

    The boxes come by rising k, one voxel thick, and may reach beyond the volume; there is none
    where the coarse map does not hold the organ.
    """
    region = region or organ_regions(coarse).get(organ)
    if region is None:
        return []
    spacing_mm = coarse.grid.spacing_mm
    offset = [span.start for span in region]
    inside = coarse.voxels[region] == coarse.scheme.label_of(organ)
    ends = [_bounds(np.asarray(inside.any(axis=1 - axis)), offset[axis]) for axis in (0, 1)]
    first, last = np.swapaxes(ends, 0, 1)
    held = np.flatnonzero(inside.any(axis=(0, 1)))
    extent_mm = float(((last - first)[:, held].max(axis=1) * spacing_mm[:2]).max())
    side_mm, middle = max(context * extent_mm, min_side_mm), 0.5 * (first + last)
    boxes = []
    for k in range(offset[2] - slice_margin, offset[2] + inside.shape[2] + slice_margin):
        nearest = held[np.abs(held + offset[2] - k).argmin()]
        if 0 <= k < coarse.grid.shape[2] and abs(nearest + offset[2] - k) <= slice_margin:
            i, j = middle[:, nearest].tolist()
            boxes.append(box_around((i, j), side_mm, spacing_mm, k))
    return boxes


def whole_slice_box(grid: Grid, k: int) -> Box:
    """Return the smallest centered box, square in mm, that holds the whole axial slice `k`."""
    side_mm = max(grid.shape[0] * grid.spacing_mm[0], grid.shape[1] * grid.spacing_mm[1])
    return box_around((grid.shape[0] / 2, grid.shape[1] / 2), side_mm, grid.spacing_mm, k)


def box_around(
    middle: tuple[float, float], side_mm: float, spacing_mm: tuple[float, float, float], k: int
) -> Box:
    """Return a box of slice `k`, square in mm, whose middle lies at a voxel border (i, j)."""
    # The tolerance keeps a side that is whole up to rounding from growing by a voxel.
    n, m = (max(1, math.ceil(side_mm / spacing - 1e-6)) for spacing in spacing_mm[:2])
    i, j = math.floor(middle[0] - n / 2 + 0.5), math.floor(middle[1] - m / 2 + 0.5)
    return Box((i, j, k), (i + n, j + m, k + 1))


def cut(
    plane: Shaped[np.ndarray, "*stack i j"],
    box: Box,
    size: int,
    scale: float = 1.0,
    nearest: bool = False,
) -> Shaped[np.ndarray, "*stack side side"]:
    """Cut a box out of one or several slices and resample it to a square, 0 outside the slice.

    The box's side gets `size` pixels. The cut is `scale` times wider than the box, about its
    center, at the same pitch: `side = round_to_even(size * scale)`. With `nearest` each pixel is
    its nearest voxel, of the plane's own type (labels), else the antialiased mean, float32.
    """
    side = size if scale == 1.0 else round_to_even(size * scale)
    if nearest:
        return _cut_nearest(plane, box, size, side)
    first_i, weight_i = _filter(box.shape[0], size, side)
    first_j, weight_j = _filter(box.shape[1], size, side)
    start = (box.start[0] + first_i, box.start[1] + first_j)
    pixels = crop(plane, start, (weight_i.shape[1], weight_j.shape[1])).astype(np.float32)
    squares = []
    for one in pixels.reshape(-1, *pixels.shape[-2:]):
        along_i = np.ascontiguousarray((weight_i @ one).T)
        squares.append(np.asarray((weight_j @ along_i).T))
    return np.stack(squares).reshape(*pixels.shape[:-2], side, side)


def triangle(
    position: Float[np.ndarray, " out"], first: int, last: int, pitch: float
) -> Float[np.ndarray, "out read"]:
    """Return how much each of the voxels `first` to `last` counts at some positions, not summed.

    The antialiased bilinear filter: a triangle as wide as the larger of pitch and voxel.
    """
    distance = np.abs(np.arange(first, last + 1) - position[:, None])
    return np.clip(1.0 - distance / max(pitch, 1.0), 0.0, None)


def coverage(
    labels: Integer[np.ndarray, "i j"], label: int, box: Box, size: int, scale: float = 1.0
) -> Float[np.ndarray, "side side"]:
    """Return the attention of a patch: the share of each pixel that a label covers, in [0, 1].

    The mask goes through the same antialiased filter as the image, and is not thresholded: a soft
    edge says where the boundary runs. Size and scale are those of `cut`.
    """
    return np.clip(cut(labels == label, box, size, scale), 0.0, 1.0)


def crop(
    plane: Shaped[np.ndarray, "*stack i j"], start: tuple[int, int], shape: tuple[int, int]
) -> Shaped[np.ndarray, "*stack a b"]:
    """Return a window of a slice; what lies outside the slice is 0."""
    low = [max(0, s) for s in start]
    high = [
        max(a, min(n, s + m))
        for a, n, s, m in zip(low, plane.shape[-2:], start, shape, strict=True)
    ]
    part = plane[..., low[0] : high[0], low[1] : high[1]]
    if part.shape[-2:] == shape:
        return part
    window = np.zeros((*plane.shape[:-2], *shape), plane.dtype)
    i, j = low[0] - start[0], low[1] - start[1]
    if part.size:
        window[..., i : i + part.shape[-2], j : j + part.shape[-1]] = part
    return window


def _bounds(
    occupied: Bool[np.ndarray, "position k"], offset: int
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Return first and one past the last occupied position per slice."""
    first = occupied.argmax(axis=0) + offset
    last = occupied.shape[0] - occupied[::-1].argmax(axis=0) + offset
    return first, last


def _positions(voxels: int, size: int, side: int) -> Float[np.ndarray, " side"]:
    """Return where the output pixels lie, in voxels from the first one's center."""
    pitch = voxels / size
    return (np.arange(side) + 0.5 - (side - size) / 2) * pitch - 0.5


@lru_cache(maxsize=4096)
def _filter(voxels: int, size: int, side: int) -> tuple[int, sparse.csr_array]:
    """Return the first voxel that is read, relative to the box, and the weights `[side, read]`.

    The boxes of an organ in a scan share their side, so that this is computed once for all slices.
    Sparse, because a pixel reads few voxels: 3 to 10 times as fast as the dense product.
    """
    width = max(voxels / size, 1.0)
    position = _positions(voxels, size, side)
    first = math.ceil(position[0] - width)
    last = math.floor(position[-1] + width)
    weight = triangle(position, first, last, width)
    weight /= weight.sum(axis=1, keepdims=True)
    return first, sparse.csr_array(weight.astype(np.float32))


def _cut_nearest(
    plane: Shaped[np.ndarray, "*stack i j"], box: Box, size: int, side: int
) -> Shaped[np.ndarray, "*stack side side"]:
    rows, columns = (
        np.floor(_positions(box.shape[axis], size, side) + 0.5).astype(int) for axis in (0, 1)
    )
    start = (box.start[0] + int(rows[0]), box.start[1] + int(columns[0]))
    shape = (int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1)
    window = crop(plane, start, shape)
    return window[..., (rows - rows[0])[:, None], (columns - columns[0])[None, :]]

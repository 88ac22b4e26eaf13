"""Masks that overlap: which organ a contested voxel is given to, and how many voxels there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Overlap = Literal["smaller", "first", "error"]
"""Who gets a contested voxel: the organ with fewer voxels in this scan, or that listed first."""


@dataclass(frozen=True, eq=False)
class OrganMask:
    """An organ's voxels in a scan, cut to their bounding box: `inside` bool, from `start` on."""

    organ: str
    start: tuple[int, int, int]
    inside: np.ndarray

    @property
    def region(self) -> tuple[slice, slice, slice]:
        """Where the box lies in the scan."""
        i, j, k = (slice(a, a + n) for a, n in zip(self.start, self.inside.shape, strict=True))
        return i, j, k


def organ_mask(organ: str, inside: np.ndarray) -> OrganMask:
    """Cut a mask `[i, j, k]` of bool to its bounding box; an empty one has an empty box."""
    start = [0, 0, 0]
    for axis in (2, 1, 0):  # by slices first: the rest is looked for among few voxels
        others = tuple(other for other in range(3) if other != axis)
        held = np.flatnonzero(inside.any(axis=others))
        if len(held) == 0:
            return OrganMask(organ, (0, 0, 0), np.zeros((0, 0, 0), np.bool_))
        start[axis] = int(held[0])
        inside = inside[(slice(None),) * axis + (slice(held[0], held[-1] + 1),)]
    i, j, k = start
    return OrganMask(organ, (i, j, k), inside.copy(order="F"))


def merge_masks(
    masks: Sequence[OrganMask], labels: Sequence[int], shape: tuple[int, int, int], rule: Overlap
) -> tuple[np.ndarray, dict[tuple[str, str], int]]:
    """Return a label map of the masks, and the contested voxels by pair of organs.

    With `smaller` (and equal size: the first listed) the smaller organ in this scan wins, so that
    nothing small vanishes within something large; with `first`, and with `error` for the caller to
    refuse, the one listed first. A voxel that three masks claim counts for each of their pairs.

    Args:
        masks: One per organ.
        labels: The label value of each.
        shape: Voxels of the scan.
        rule: Who wins.
    """
    voxels = np.zeros(shape, np.min_scalar_type(max(labels, default=0)), order="F")
    claims = np.zeros(shape, np.uint16 if len(masks) > 255 else np.uint8, order="F")
    order = list(range(len(masks)))
    if rule == "smaller":
        sizes = [int(mask.inside.sum()) for mask in masks]
        order.sort(key=lambda n: sizes[n])
    for n in reversed(order):  # the winner is written last
        mask = masks[n]
        voxels[mask.region][mask.inside] = labels[n]
        claims[mask.region] += mask.inside
    return voxels, _contested(masks, claims)


def overlap_in_words(contested: Collection[Mapping[str, int]]) -> str:
    """Return in how many scans masks overlap, by how much, and the worst of the pairs."""
    total = Counter[str]()
    for pairs in contested:
        total.update(pairs)
    worst, count = total.most_common(1)[0]
    return (
        f"masks overlap in {len(contested)} scans by {sum(total.values())} voxels, most of all"
        f" {worst} by {count}"
    )


def _contested(masks: Sequence[OrganMask], claims: np.ndarray) -> dict[tuple[str, str], int]:
    """Count the voxels that two masks claim, slice by slice to need little memory."""
    found: Counter[tuple[str, str]] = Counter()
    for k in np.flatnonzero((claims > 1).any(axis=(0, 1))):
        i, j = np.nonzero(claims[:, :, k] > 1)
        here = [mask for mask in masks if 0 <= k - mask.start[2] < mask.inside.shape[2]]
        claimed = np.stack([_at(mask, i, j, int(k)) for mask in here]).astype(np.int64)
        pairs = claimed @ claimed.T
        for a, b in np.argwhere(np.triu(pairs, 1)):
            found[here[a].organ, here[b].organ] += int(pairs[a, b])
    return dict(found.most_common())


def _at(mask: OrganMask, i: np.ndarray, j: np.ndarray, k: int) -> np.ndarray:
    """Tell of pixels (i, j) of a slice whether they are inside of a mask."""
    i, j = i - mask.start[0], j - mask.start[1]
    held = (i >= 0) & (i < mask.inside.shape[0]) & (j >= 0) & (j < mask.inside.shape[1])
    found = np.zeros(len(i), np.bool_)
    found[held] = mask.inside[i[held], j[held], k - mask.start[2]]
    return found

"""Scores of all organs of one scan, each measured inside its own bounding box."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from sacl.scores.overlap import dice, volume_ml
from sacl.scores.surface import surface_distances
from sacl.types import LabelMap, OrganScore

EMPTY_RULE = (
    "Organ absent from the reference and from the prediction: Dice, NSD and HD95 are undefined,"
    " counted, and left out of every mean. Absent from exactly one of them: Dice 0, NSD 0, HD95"
    " infinite; means of HD95 are over the finite values, and the infinite ones are counted."
    " An organ that was not annotated in a scan is not scored in it."
)
"""What an empty mask gives, in one paragraph for people."""

_Box = tuple[slice, ...]


def score_case(
    case_id: str,
    reference: LabelMap,
    predicted: LabelMap,
    organs: Sequence[str],
    tolerance_mm: float,
) -> list[OrganScore]:
    """Score the organs of one scan; both maps lie on one grid and share one scheme.

    Empty masks follow `EMPTY_RULE`. `tolerance_mm` is that of the normalized surface Dice.
    """
    boxes = [ndimage.find_objects(m.voxels, len(m.scheme.names)) for m in (reference, predicted)]
    scores = []
    for organ in organs:
        label = reference.scheme.label_of(organ)
        box = _union(boxes[0][label - 1], boxes[1][label - 1])
        mask_r = np.asarray(reference.voxels[box] == label, dtype=np.bool_)
        mask_p = np.asarray(predicted.voxels[box] == label, dtype=np.bool_)
        distances = surface_distances(mask_r, mask_p, reference.grid.spacing_mm)
        scores.append(
            OrganScore(
                case_id=case_id,
                organ=organ,
                dice=dice(mask_r, mask_p),
                hd95_mm=distances.hd95_mm(),
                nsd=distances.nsd(tolerance_mm),
                reference_ml=volume_ml(mask_r, reference.grid.voxel_ml),
                predicted_ml=volume_ml(mask_p, reference.grid.voxel_ml),
            )
        )
    return scores


def _union(a: _Box | None, b: _Box | None) -> _Box:
    """Return the smallest box that holds both; an empty one where neither is."""
    if a is None or b is None:
        return a or b or (slice(0, 0), slice(0, 0), slice(0, 0))
    return tuple(
        slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(a, b, strict=True)
    )

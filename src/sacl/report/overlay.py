"""Which scan and which slice to show, and how it lies on the screen."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from sacl.types import LabelMap

ORIENTATION = (
    "Axial slices as radiologists see them: from the feet, the patient's right on the left of the"
    " picture, the front at the top."
)


def extremes(score_of_case: Mapping[str, float]) -> dict[str, str]:
    """Return the worst, median and best case by score; fewer where there are fewer cases.

    Of an even number the lower of the two middle cases is the median. NaN is left out.
    """
    ranked = sorted(
        (case for case, score in score_of_case.items() if np.isfinite(score)),
        key=lambda case: (score_of_case[case], case),
    )
    if not ranked:
        return {}
    picks = {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}
    chosen: dict[str, str] = {}
    for role, case in picks.items():
        if case not in chosen.values():
            chosen[role] = case
    return chosen


def fullest_slice(reference: np.ndarray, predicted: np.ndarray) -> int:
    """Return the axial slice k with the largest organ area: the reference's, else predicted."""
    area = np.count_nonzero(reference, axis=(0, 1))
    if not area.any():
        area = np.count_nonzero(predicted, axis=(0, 1))
    return int(np.argmax(area))


def only_annotated(predicted: LabelMap, annotated: Collection[str]) -> LabelMap:
    """Return a prediction without the organs that nobody looked for in that scan.

    Beside a reference that cannot have them they would look like mistakes.
    """
    scheme = predicted.scheme
    kept = np.array([0, *((organ in annotated) * scheme.label_of(organ) for organ in scheme.names)])
    return LabelMap(kept.astype(predicted.voxels.dtype)[predicted.voxels], predicted.grid, scheme)


def as_seen(plane: np.ndarray) -> np.ndarray:
    """Return a canonical axial plane `[i, j]` as an image `[row, column]` for radiologists.

    In canonical order i runs to the patient's right, j to the front; on the screen the patient's
    right is on the left and the front is at the top, so both axes are reversed.
    """
    return np.asarray(plane.T[::-1, ::-1])

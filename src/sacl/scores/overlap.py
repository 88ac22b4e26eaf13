"""Overlap of two masks: Dice, volume, and the counts per label of nnU-Net's `summary.json`.

TP, FP, FN and TN are numbers of voxels; Dice = 2 TP / (2 TP + FP + FN), IoU = TP / (TP + FP + FN),
n_pred = TP + FP and n_ref = TP + FN (nnU-Net, version 2). Dice and IoU are NaN where a label is in
neither map. A label's mean is over the cases in which it is not NaN; the foreground's mean is over
the labels, and NaN where one of them is. All figures of a label that was not annotated in a case
are NaN in that case, which nnU-Net itself does not know.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Integer

FIGURES = ("Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref")

Figures = Mapping[str, float]
"""A label's figures by name."""


def dice(reference: Bool[np.ndarray, "*axes"], predicted: Bool[np.ndarray, "*axes"]) -> float:
    """Return the Dice coefficient, 2 |R ∩ P| / (|R| + |P|), of two masks.

    NaN when both masks are empty; 0 when exactly one is.
    """
    total = int(np.count_nonzero(reference)) + int(np.count_nonzero(predicted))
    if total == 0:
        return math.nan
    return 2.0 * int(np.count_nonzero(reference & predicted)) / total


def volume_ml(mask: Bool[np.ndarray, "*axes"], voxel_ml: float) -> float:
    """Return the volume of a mask in milliliters; 0 when it is empty."""
    return int(np.count_nonzero(mask)) * voxel_ml


def label_figures(
    reference: Integer[np.ndarray, "i j k"],
    predicted: Integer[np.ndarray, "i j k"],
    labels: int,
    annotated: Collection[int],
) -> dict[int, Figures]:
    """Return the figures of the labels 1 to `labels` in one case, by label.

    Args:
        reference: Label values, none above `labels`.
        predicted: The same on the same grid.
        labels: Highest label value.
        annotated: The labels that were looked for in the reference.
    """
    count = np.zeros((labels + 1, labels + 1), np.int64)
    for k in range(reference.shape[2]):  # by slice: the pair index costs 8 bytes per voxel
        pair = reference[:, :, k].astype(np.int64) * (labels + 1) + predicted[:, :, k]
        count += np.bincount(pair.ravel(), minlength=count.size).reshape(count.shape)
    return {
        label: _figures(count, label) if label in annotated else dict.fromkeys(FIGURES, math.nan)
        for label in range(1, labels + 1)
    }


def means(cases: Sequence[Mapping[int, Figures]]) -> dict[int, Figures]:
    """Return each label's mean figures over the cases in which they are not NaN."""
    labels = cases[0] if cases else ()
    return {
        label: {name: _nan_mean([case[label][name] for case in cases]) for name in FIGURES}
        for label in labels
    }


def foreground_mean(by_label: Mapping[int, Figures]) -> Figures:
    """Return the mean figures over the labels; NaN where a label's is."""
    return {
        name: float(np.mean([figures[name] for figures in by_label.values()])) for name in FIGURES
    }


def _figures(count: Integer[np.ndarray, "label label"], label: int) -> Figures:
    """Return a label's figures; `count[r, p]` voxels are r in the reference and p predicted."""
    tp = int(count[label, label])
    fn = int(count[label].sum()) - tp
    fp = int(count[:, label].sum()) - tp
    union = tp + fp + fn
    return {
        "Dice": 2 * tp / (2 * tp + fp + fn) if union else math.nan,
        "FN": fn,
        "FP": fp,
        "IoU": tp / union if union else math.nan,
        "TN": int(count.sum()) - union,
        "TP": tp,
        "n_pred": tp + fp,
        "n_ref": tp + fn,
    }


def _nan_mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
